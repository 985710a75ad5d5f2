package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What an operator reads, by its beginning.
const (
	full     = "etcd is full"
	refused  = "etcd refuses this user"
	noAnswer = "etcd does not answer"
)

func TestExplain(t *testing.T) {
	other := errors.New("something else")
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"no space, as the client tells it", rpctypes.ErrNoSpace, full},
		{"no space, as the server tells it", rpctypes.ErrGRPCNoSpace, full},
		{"a wrong password", rpctypes.ErrAuthFailed, refused},
		{"no password where one is needed", rpctypes.ErrUserEmpty, refused},
		{"a role without the permission", rpctypes.ErrPermissionDenied, refused},
		{"a token that the server forgot", rpctypes.ErrInvalidAuthToken, refused},
		{"a certificate that is not accepted", status.Error(codes.Unauthenticated, "x"), refused},
		{"a deadline that passed", context.DeadlineExceeded, noAnswer},
		{"nobody listens", status.Error(codes.Unavailable, "connection refused"), noAnswer},
		{"the server's own deadline", status.Error(codes.DeadlineExceeded, "x"), noAnswer},
		{"a member that lost its quorum", rpctypes.ErrTimeout, noAnswer},
		{"a member without a leader", rpctypes.ErrNoLeader, noAnswer},
		{"an election under way", rpctypes.ErrLeaderChanged, noAnswer},
		{"anything else stays as it is", other, other.Error()},
		{"a conflict stays as it is", etcd.ErrConflict, etcd.ErrConflict.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, err := range []error{c.err, fmt.Errorf("read the record of node 1: %w", c.err)} {
				got := etcd.Explain(err)
				if !errors.Is(got, c.err) {
					t.Errorf("Explain(%v) = %v, which hides its cause", err, got)
				}
				if !strings.Contains(got.Error(), c.want) {
					t.Errorf("Explain(%v) = %q, want %q in it", err, got, c.want)
				}
			}
		})
	}
	if etcd.Explain(nil) != nil {
		t.Error("Explain(nil) is an error")
	}
}

// failing repeats a write until it fails, and returns how.
func failing(t *testing.T, write func(ctx context.Context) error) error {
	t.Helper()
	var err error
	etcdtest.Eventually(t, "the write is refused", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), etcdtest.Patience)
		defer cancel()
		err = write(ctx)
		return err != nil
	})
	return err
}

func TestAFullEtcdIsExplained(t *testing.T) {
	cl := etcdtest.Start(t, func(c *embed.Config) { c.QuotaBackendBytes = 1 << 20 }).Client(t)
	big := strings.Repeat("x", 300<<10)
	n := 0
	err := failing(t, func(ctx context.Context) error {
		n++
		_, err := cl.Put(ctx, fmt.Sprintf("big/%d", n), big)
		return err
	})
	if got := etcd.Explain(err); !strings.HasPrefix(got.Error(), full) {
		t.Errorf("a full etcd says %q", got)
	}
	err = failing(t, func(ctx context.Context) error { _, err := cl.Grant(ctx, 10); return err })
	if got := etcd.Explain(fmt.Errorf("get a lease: %w", err)); !strings.HasPrefix(got.Error(), full) {
		t.Errorf("a full etcd refuses a lease with %q", got)
	}
}

func TestAnUnreachableEtcdIsExplained(t *testing.T) {
	for _, c := range []struct {
		name    string
		disturb func(*etcdtest.Cable)
	}{
		{"cut", (*etcdtest.Cable).Cut},
		{"hung", (*etcdtest.Cable).Hang},
	} {
		t.Run(c.name, func(t *testing.T) {
			cable := etcdtest.Start(t).Cable(t)
			c.disturb(cable)
			cl := etcdtest.Dial(t, cable.Endpoint())
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err := cl.Put(ctx, "k", "v")
			if got := etcd.Explain(err); got == nil || !strings.HasPrefix(got.Error(), noAnswer) {
				t.Errorf("an unreachable etcd says %v", got)
			}
		})
	}
}

// withUsers makes a server that asks for a password: "root" may do everything,
// "guest" nothing.
func withUsers(t *testing.T) *etcdtest.Server {
	t.Helper()
	s := etcdtest.Start(t)
	cl := s.Client(t)
	ctx := t.Context()
	for _, f := range []func() error{
		func() error { _, err := cl.UserAdd(ctx, "root", "secret"); return err },
		func() error { _, err := cl.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := cl.UserAdd(ctx, "guest", "secret"); return err },
		func() error { _, err := cl.AuthEnable(ctx); return err },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func passwordFile(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestARefusedUserIsExplained(t *testing.T) {
	s := withUsers(t)
	put := func(cl *clientv3.Client) error { _, err := cl.Put(t.Context(), "k", "v"); return err }
	for _, c := range []struct {
		name, user, password, want string
	}{
		{"the right password, as an editor leaves it", "root", "secret\n", ""},
		{"a wrong password", "root", "wrong", refused},
		{"a user without a role", "guest", "secret", refused},
		{"no user at all", "", "", refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := etcd.Options{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()}
			if c.user != "" {
				o.Username, o.PasswordFile = c.user, passwordFile(t, c.password)
			}
			cl, err := etcd.Dial(o)
			if err == nil {
				defer cl.Close()
				err = etcd.Explain(put(cl))
			}
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("the answer is %v, want %q in it", err, c.want)
			}
		})
	}
}

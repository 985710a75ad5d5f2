package election_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/election"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

func TestGrantGivesExactlyTheLeaseThatTheNumbersRestOn(t *testing.T) {
	t.Parallel()
	fast := etcdtest.Start(t)
	// The floor of a lease is 1.5 election time-outs, here 3 s.
	slow := etcdtest.Start(t, func(c *embed.Config) { c.TickMs, c.ElectionMs = 10, 2000 })
	for _, c := range []struct {
		name  string
		from  *etcdtest.Server
		lease time.Duration
		want  string // "" = granted
	}{
		{"whole seconds are granted", fast, 2 * time.Second, ""},
		{"etcd's floor is granted if it is what was asked for", slow, 3 * time.Second, ""},
		{"a lease below etcd's floor is refused, since etcd makes it longer", slow, 2 * time.Second, "LOCK_TIMEOUT"},
		{"a lease of half seconds is refused, since etcd would make it shorter", fast, 2500 * time.Millisecond, "2.5s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := boottime.Now()
			l, err := election.Grant(t.Context(), c.from.Client(t), timing(c.lease), zap.NewNop())
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("Grant returned %v, want a refusal with %q in it", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			valid := c.lease - timing(c.lease).Margin
			if until := l.ValidUntil(); until < before.Add(valid) || until > boottime.Now().Add(valid) {
				t.Errorf("valid for %v, want %v from the request", until.Sub(before), valid)
			}
			if !l.Valid() || isLost(l) || l.ValidSince() < before {
				t.Errorf("a new lease: valid %v, lost %v, gap %v before it was asked for", l.Valid(), isLost(l), before.Sub(l.ValidSince()))
			}
		})
	}
}

func TestValidityCountsFromTheRequest(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	for _, c := range []struct {
		name string
		get  func(cl *clientv3.Client, id int64) (*election.Lease, error)
	}{
		{"a new lease", func(cl *clientv3.Client, _ int64) (*election.Lease, error) {
			return election.Grant(t.Context(), cl, timing(5*time.Second), zap.NewNop())
		}},
		{"a resumed lease", func(cl *clientv3.Client, id int64) (*election.Lease, error) {
			return election.Resume(t.Context(), cl, timing(5*time.Second), id, zap.NewNop())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			former := grant(t, s.Client(t), 5*time.Second)
			cable := s.Cable(t)
			cl := etcdtest.Dial(t, cable.Endpoint())
			if _, err := cl.Get(t.Context(), "connect"); err != nil {
				t.Fatal(err)
			}
			cable.Hang()
			type result struct {
				lease *election.Lease
				err   error
			}
			got := make(chan result, 1)
			go func() {
				l, err := c.get(cl, former.ID())
				got <- result{l, err}
			}()
			if err := boottime.WaitUntil(t.Context(), boottime.Now().Add(500*time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			healed := boottime.Now()
			cable.Heal()
			r := within(t, "the answer came", got)
			if r.err != nil {
				t.Fatal(r.err)
			}
			if left := r.lease.ValidUntil().Sub(healed); left >= 5*time.Second-timing(5*time.Second).Margin {
				t.Errorf("valid for %v after the answer left, as if nothing had held it up", left)
			}
		})
	}
}

func TestResume(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	cl := s.Client(t)
	l := grant(t, cl, 3*time.Second)
	gone := grant(t, cl, 3*time.Second)
	if err := gone.Revoke(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		id    int64
		lease time.Duration
		want  error
	}{
		{"a lease that etcd knows goes on", l.ID(), 3 * time.Second, nil},
		{"a lease that ended is lost", gone.ID(), 3 * time.Second, election.ErrLost},
		{"a lease that never was is lost", 12345, 3 * time.Second, election.ErrLost},
		{"a lease of another LOCK_TIMEOUT does not fit the numbers of today", l.ID(), 4 * time.Second, election.ErrLost},
		{"nor does one that differs by less than a second", l.ID(), 3500 * time.Millisecond, election.ErrLost},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := election.Resume(t.Context(), cl, timing(c.lease), c.id, zap.NewNop())
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("Resume returned %v, want %v", err, c.want)
			}
			if err == nil && (got.ID() != c.id || !got.Valid()) {
				t.Errorf("resumed lease %x, valid %v; want %x, valid", got.ID(), got.Valid(), c.id)
			}
		})
	}
}

// TestResumeOfAnUnreachableEtcdIsNoLoss: and it asks again at the pace of its
// caller, not as fast as the processor can.
func TestResumeOfAnUnreachableEtcdIsNoLoss(t *testing.T) {
	t.Parallel()
	cable := etcdtest.Start(t).Cable(t)
	cable.Cut()
	var streams atomic.Int64
	cl, err := clientv3.New(clientv3.Config{
		Endpoints: []string{cable.Endpoint()}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithChainStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, m string, s grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			streams.Add(1)
			return s(ctx, d, cc, m, o...)
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	l, err := election.Resume(t.Context(), cl, timing(2*time.Second), 7, zap.NewNop())
	if err == nil || errors.Is(err, election.ErrLost) {
		t.Errorf("Resume returned %v, %v; want an error that is not ErrLost", l, err)
	}
	if n := streams.Load(); n > 5 {
		t.Errorf("one Resume asked %d times", n)
	}
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	cl := s.Client(t)
	l := grant(t, cl, 60*time.Second)
	gone := leased(t, cl, l)
	result := renew(t, l)
	for range 2 {
		if err := l.Revoke(t.Context()); err != nil {
			t.Errorf("Revoke: %v", err)
		}
	}
	if l.Valid() || !isLost(l) {
		t.Errorf("a revoked lease: valid %v, lost %v", l.Valid(), isLost(l))
	}
	within(t, "the keys under the lease were gone", gone)
	if err := within(t, "Run ended", result); !errors.Is(err, election.ErrLost) {
		t.Errorf("Run returned %v, want ErrLost", err)
	}
}

// TestRevokeOutOfReachStillEndsValidity: nobody may act under a lease that was
// given up, whether etcd heard of it or not.
func TestRevokeOutOfReachStillEndsValidity(t *testing.T) {
	t.Parallel()
	cable := etcdtest.Start(t).Cable(t)
	l := grant(t, etcdtest.Dial(t, cable.Endpoint()), 60*time.Second)
	result := renew(t, l)
	cable.Cut()
	if err := l.Revoke(t.Context()); err == nil {
		t.Error("Revoke out of etcd's reach succeeded")
	}
	if l.Valid() || !isLost(l) {
		t.Errorf("a revoked lease: valid %v, lost %v", l.Valid(), isLost(l))
	}
	if err := within(t, "Run ended", result); !errors.Is(err, election.ErrLost) {
		t.Errorf("Run returned %v, want ErrLost", err)
	}
}

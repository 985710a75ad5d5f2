package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/dispatch"
	"github.com/shaman-ha/shaman/internal/membership"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// What is wrong with the command line is refused before the configuration is read.
func TestBadCommandLinesAreUsageErrors(t *testing.T) {
	for _, line := range []string{
		"", "nonsense", "stat extra", "stat --nonsense", "stat -o yaml", "version -o yaml", "version extra",
		"fence", "fence nonsense", "fence confirm", "fence confirm a b", "fence test", "fence status",
		"failover", "failover nonsense", "failover release", "failover release a b", "failover release --all a",
		"add", "add ct-a", "add ct-a --path ves/a", "add a --path /a", "add ct-a --path /a --prio x", "add ct-a ct-b --path /a", "add .ct-a --path /a",
		"set", "set ct-a", "set ct-a --path a", "set ct-a --prio -1", "del", "del a b", "del-everywhere", "del-everywhere a",
		"rename ct-a", "rename ct-a b", "rename a ct-b", "rename ct-a vm-a", "get-last-node", "get-last-node a", "start", "relocate", "relocate ct-a n1 n2",
		"plan", "set-config", "set-config A", "set-config A=1", "set-config =1", "set-config START_RETRIES=1 START_RETRIES=1",
		"add-role", "add-role A B", "add-role vm", "set-roles vm", "suspend a b", "resume a b", "events extra", "events --since x", "events --since -1", "events --resource a",
		"get-config x", "get-config-local x", "get-roles x", "info x", "join x", "leave x", "top x", "top", "doctor x", "doctor -o yaml", "doctor --nonsense",
		"stat --config /nonexistent", "join --config /nonexistent", "-c nonexistent stat --config /nonexistent",
	} {
		t.Run(line, func(t *testing.T) {
			var out, msg bytes.Buffer
			code := Run(t.Context(), strings.Fields(line), Streams{In: strings.NewReader(""), Out: &out, Err: &msg}, "")
			if code != exitUsage {
				t.Errorf("exit code %d, want %d; it said %q", code, exitUsage, &msg)
			}
			if out.Len() > 0 || !strings.HasPrefix(msg.String(), "shaman: ") {
				t.Errorf("stdout is %q, stderr %q; want nothing and a message", &out, &msg)
			}
		})
	}
}

func TestExitCodeOfAnError(t *testing.T) {
	a := &app{}
	for _, tt := range []struct {
		name string
		err  error
		want int
	}{
		{"nothing", nil, 0},
		{"anything else", errors.New("disk full"), exitFailed},
		{"a code of its own", fmt.Errorf("why: %w", fail(exitPart, "half")), exitPart},
		{"a key or value of the configuration", &config.UsageError{Err: errors.New("x")}, exitUsage},
		{"unsafe time-outs", &config.UnsafeError{Err: errors.New("x")}, exitRefused},
		{"a node in no cluster", fmt.Errorf("x: %w", cluster.ErrNotJoined), exitState},
		{"joined meanwhile", membership.ErrJoined, exitState},
		{"a second host of the same id", cluster.ErrForeignNonce, exitFailed},
		{"another action under way", dispatch.ErrBusy, exitFailed},
		{"the node is away", dispatch.ErrNodeAway, exitReach},
		{"etcd does not answer", a.reach(context.DeadlineExceeded), exitReach},
		{"etcd has no leader", a.reach(rpctypes.ErrNoLeader), exitReach},
		{"etcd is full", a.reach(rpctypes.ErrNoSpace), exitReach},
		{"the mount does not answer", a.reach(fmt.Errorf("%w: %w", cluster.ErrHold, context.DeadlineExceeded)), exitFailed},
		{"two of them", errors.Join(fail(exitReach, "a"), fail(exitState, "b")), exitReach},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var msg bytes.Buffer
			b := &app{err: &msg, started: true}
			if got := b.report(tt.err); got != tt.want {
				t.Errorf("exit code %d, want %d", got, tt.want)
			}
			if (msg.Len() > 0) != (tt.err != nil) {
				t.Errorf("it said %q", &msg)
			}
		})
	}
}

func TestMessagesCannotSteerATerminal(t *testing.T) {
	var msg bytes.Buffer
	a := &app{err: &msg, started: true}
	a.report(errors.New("two\nlines \x1b[31mred\r"))
	a.say("%s", "a\x07b")
	if got, want := msg.String(), "shaman: two\nlines  [31mred \na b\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestAnAnswerThatCannotBeWrittenIsAFailure(t *testing.T) {
	var msg bytes.Buffer
	if code := Run(t.Context(), []string{"version"}, Streams{In: strings.NewReader(""), Out: full{}, Err: &msg}, "1"); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
}

func TestAnInterruptedCommandSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var msg bytes.Buffer
	code := Run(ctx, []string{"stat", "extra"}, Streams{In: strings.NewReader(""), Out: &msg, Err: &msg}, "1")
	if code != exitFailed || !strings.Contains(msg.String(), "interrupted") {
		t.Errorf("exit code %d, it said %q", code, &msg)
	}
}

package libvirt

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// A guest whose process hangs does not answer a request to shut down: a stop by
// force must not wait for that.
func TestAStopByForceOvertakesARequestThatHangs(t *testing.T) {
	s := newSite(t, "qemu")
	d := s.open(t, s.a)
	path := s.running(t, d, "hangs")
	g := s.guest(path)
	must(t, syscall.Kill(s.a.Guest(g.UUID, g.Name), syscall.SIGSTOP))
	done := make(chan error, 1)
	go func() { done <- d.Stop(t.Context(), path, false) }()
	eventually(t, "the request is under way", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), brief)
		defer cancel()
		return d.Barrier(ctx) != nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must(t, d.Stop(ctx, path, true), <-done)
	if got := at(t, d, path); got != cluster.VEStopped {
		t.Errorf("listed as %q", got)
	}
}

func TestAWatchComesBackAfterLibvirtd(t *testing.T) {
	s := newSite(t, "qemu")
	d := s.open(t, s.a)
	path := s.running(t, d, "watched")
	ctx, cancel := context.WithCancel(t.Context())
	hints, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- d.Watch(ctx, func() {
			select {
			case hints <- struct{}{}:
			default:
			}
		})
	}()
	hinted := func(what string) {
		t.Helper()
		select {
		case <-hints:
		case <-time.After(patience):
			t.Fatalf("no hint after %s", what)
		}
	}
	hinted("the first connection")
	must(t, s.a.KillDaemon(t.Context()))
	hinted("libvirtd's end")
	// The new connection's own hint has come; what is seen from here on are events.
	yes, prio := true, uint32(42)
	must(t, s.a.Ready(t.Context()), d.Configure(t.Context(), path, cluster.VEParams{HA: &yes, Priority: &prio}))
	hinted("a change of the parameters")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v, want the cause", err)
	}
}

func TestSavedDefinitions(t *testing.T) {
	s := newSite(t, "qemu")
	d := s.open(t, s.a)
	path := s.running(t, d, "kept")
	before, err := os.Stat(path)
	must(t, err)
	must(t, d.Save(t.Context(), path))
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("what says the same already was written again (%v)", err)
	}
	s.virsh(t, s.a, "setmaxmem", s.guest(path).UUID, "32M", "--config")
	eventually(t, "the change is listed", func() bool {
		ves, err := d.List(t.Context())
		must(t, err)
		i := slices.IndexFunc(ves, func(v cluster.VE) bool { return v.Path == path })
		return ves[i].Stale && ves[i].Memory == 32<<20
	})
	must(t, d.Save(t.Context(), path))
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "32768</memory>") {
		t.Errorf("%s holds %s (%v)", path, text, err)
	}
	// One that was never saved is made a resource: it is registered, and saved then.
	must(t, d.Stop(t.Context(), path, true), os.Remove(path), d.Register(t.Context(), path), d.Save(t.Context(), path))
	if ves, err := d.List(t.Context()); err != nil || len(ves) != 1 || ves[0].Stale {
		t.Errorf("after it was saved anew: %+v (%v)", ves, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

func TestDefinitionsThatCannotBeRegisteredSayWhy(t *testing.T) {
	s := newSite(t, "qemu")
	d := s.open(t, s.a)
	path := s.running(t, d, "first")
	tests := map[string]struct{ text, says string }{
		"of another UUID":  {strings.ReplaceAll(s.guest(path).XML, "<name>first", "<name>second"), "UUID"},
		"no XML":           {"<domain", "shaman sync"},
		"of another title": {strings.ReplaceAll(s.guest(path).XML, s.guest(path).UUID, "@UUID@"), "rename or undefine"},
	}
	for name, tt := range tests {
		id := uuid{1, byte(len(name))}
		other := d.path(id)
		must(t, os.WriteFile(other, []byte(strings.ReplaceAll(tt.text, "@UUID@", id.String())), 0o600))
		if err := d.Register(t.Context(), other); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: register = %v, want %q said", name, err, tt.says)
		}
	}
}

// Whatever a libvirtd leaves that dies in the middle of a start is not taken for
// stopped while its process is there, and can be ended.
func TestALibvirtdThatDiesInTheMiddleOfAStart(t *testing.T) {
	s := newSite(t, "qemu")
	d := s.open(t, s.a)
	path := s.running(t, d, "halfway")
	g := s.guest(path)
	must(t, d.Stop(t.Context(), path, true))
	done := make(chan error, 1)
	go func() { done <- d.Start(t.Context(), path) }()
	eventually(t, "a process", func() bool { return s.a.Guest(g.UUID, g.Name) != 0 })
	must(t, s.a.KillDaemon(t.Context()))
	if err := <-done; err != nil && !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("start = %v, want ErrCannotAsk: nobody knows", err)
	}
	must(t, s.a.Ready(t.Context()))
	ves, err := d.List(t.Context())
	must(t, err)
	i := slices.IndexFunc(ves, func(v cluster.VE) bool { return v.Path == path })
	t.Logf("listed as %q by %q", ves[i].State, ves[i].Cause)
	if ves[i].State == cluster.VEStopped && s.a.Guest(g.UUID, g.Name) != 0 {
		t.Error("listed as stopped while its process is there")
	}
	must(t, d.Stop(t.Context(), path, true))
	if pid := s.a.Guest(g.UUID, g.Name); pid != 0 {
		t.Errorf("process %d is there after a stop by force", pid)
	}
	must(t, d.Barrier(t.Context()), d.Start(t.Context(), path))
}

package drivertest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
)

func ownStop(t *testing.T, m machine) {
	path := m.running(t, "leaves", false)
	m.End(t, path, cluster.CauseStop)
	if c, want := m.stopped(t, path), m.told(cluster.CauseStop); c != want {
		t.Errorf("cause %q, want %q", c, want)
	}
}

// told is how a guest's end by itself is listed.
func (m machine) told(how cluster.StopCause) cluster.StopCause {
	if m.EndsAlike {
		return cluster.CauseUnknown
	}
	return how
}

func crash(t *testing.T, m machine) {
	path := m.running(t, "dies", false)
	m.End(t, path, cluster.CauseCrash)
	if c, want := m.stopped(t, path), m.told(cluster.CauseCrash); c != want {
		t.Errorf("cause %q, want %q: only a stop may turn desired state to stopped", c, want)
	}
}

func restart(t *testing.T, m machine) {
	path := m.running(t, "comes back", false)
	m.End(t, path, cluster.CauseCrash)
	m.stopped(t, path)
	must(t, m.Start(t.Context(), path))
	eventually(t, "it counts its second start", func() bool { return m.Starts(t, path) == 2 })
	must(t, m.Stop(t.Context(), path, false))
	if c := m.stopped(t, path); c != cluster.CauseStop {
		t.Errorf("cause %q, want %q", c, cluster.CauseStop)
	}
}

func graceful(t *testing.T, m machine) {
	path := m.running(t, "polite", false)
	must(t, m.Stop(t.Context(), path, false))
	v, _ := m.find(t, path)
	if v.State != cluster.VEStopped || v.Cause != cluster.CauseStop {
		t.Errorf("after the stop it is %q by %q, want stopped by a stop", v.State, v.Cause)
	}
}

// brief is a deadline for what does not come.
const brief = 100 * time.Millisecond

func stubborn(t *testing.T, m machine) {
	path := m.running(t, "deaf", true)
	ctx, cancel := context.WithTimeout(t.Context(), brief)
	defer cancel()
	if err := m.Stop(ctx, path, false); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a stop past its deadline = %v, want ErrCannotAsk", err)
	}
	m.wantState(t, path, cluster.VERunning)
	must(t, m.Stop(t.Context(), path, true))
	if v, _ := m.find(t, path); v.State != cluster.VEStopped || v.Cause == cluster.CauseStop {
		t.Errorf("after the stop by force it is %q by %q, want stopped, and not by the guest's own stop", v.State, v.Cause)
	}
}

func overtake(t *testing.T, m machine) {
	path := m.running(t, "slow", true)
	done := make(chan error, 1)
	go func() { done <- m.Stop(t.Context(), path, false) }()
	ctx, cancel := context.WithTimeout(t.Context(), brief)
	defer cancel()
	<-ctx.Done() // the graceful one is under way by now, and if not, the test only proves less
	fctx, fcancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer fcancel()
	if err := m.Stop(fctx, path, true); err != nil {
		t.Errorf("stop by force = %v; it waited for the graceful one", err)
	}
	must(t, <-done)
	m.wantState(t, path, cluster.VEStopped)
}

func barrier(t *testing.T, m machine) {
	must(t, m.Barrier(t.Context()))
	path := m.running(t, "queued", true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Stop(ctx, path, false) }()
	eventually(t, "a barrier that waits for the stop", func() bool {
		bctx, bcancel := context.WithTimeout(t.Context(), brief)
		defer bcancel()
		err := m.Barrier(bctx)
		if err != nil && !errors.Is(err, cluster.ErrCannotAsk) {
			t.Fatalf("barrier = %v, want ErrCannotAsk", err)
		}
		return err != nil
	})
	cancel()
	if err := <-done; !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("the stop whose context ended = %v, want ErrCannotAsk", err)
	}
	must(t, m.Barrier(t.Context()))
}

func ended(t *testing.T, m machine) {
	path := m.registered(t, "late", false)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	other := m.ve(t, "later", false)
	for verb, call := range map[string]func() error{
		"start":     func() error { return m.Start(ctx, path) },
		"stop":      func() error { return m.Stop(ctx, path, false) },
		"kill":      func() error { return m.Stop(ctx, path, true) },
		"configure": func() error { yes := true; return m.Configure(ctx, path, hypervisor.Params{HA: &yes}) },
		"list":      func() error { _, err := m.List(ctx); return err },
		"register":  func() error { return m.Register(ctx, other) },
	} {
		if err := call(); !errors.Is(err, cluster.ErrCannotAsk) {
			t.Errorf("%s with an ended context = %v, want ErrCannotAsk", verb, err)
		}
	}
	must(t, m.Barrier(t.Context()))
	m.wantState(t, path, cluster.VEStopped)
	if n := m.Starts(t, path); n != 0 {
		t.Errorf("it was started %d times all the same", n)
	}
}

func reopen(t *testing.T, m machine) {
	up, down := m.running(t, "up", false), m.registered(t, "down", false)
	gone := m.registered(t, "gone", false)
	must(t, m.Unregister(t.Context(), gone))
	next := machine{m.Harness, m.Open(t)}
	next.wantState(t, up, cluster.VERunning)
	next.wantState(t, down, cluster.VEStopped)
	if _, listed := next.find(t, gone); listed {
		t.Error("what was unregistered is back after a restart")
	}
	must(t, next.Start(t.Context(), up))
	must(t, next.Stop(t.Context(), up, false))
	next.wantState(t, up, cluster.VEStopped)
	if n := next.Starts(t, up); n != 1 {
		t.Errorf("started %d times, want once: it ran already", n)
	}
}

func hints(t *testing.T, m machine) {
	path := m.registered(t, "seen", false)
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		done <- m.Watch(ctx, func() {
			select {
			case seen <- struct{}{}:
			default:
			}
		})
	}()
	// Events may be lost while the watch is set up: the first ones are repeated.
	eventually(t, "a first hint", func() bool {
		must(t, errors.Join(m.Start(t.Context(), path), m.Stop(t.Context(), path, true)))
		select {
		case <-seen:
			return true
		case <-time.After(brief):
			return false
		}
	})
	begun := m.Starts(t, path)
	must(t, m.Start(t.Context(), path))
	eventually(t, "it counts its start", func() bool { return m.Starts(t, path) > begun })
	for quiet := false; !quiet; {
		select {
		case <-seen:
		case <-time.After(brief):
			quiet = true
		}
	}
	m.End(t, path, cluster.CauseStop)
	select {
	case <-seen:
	case <-time.After(patience):
		t.Error("no hint after a guest's own stop")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v after its context ended, want the cause", err)
	}
}

func configure(t *testing.T, m machine) {
	path := m.registered(t, "tuned", false)
	no, prio := false, uint32(4294967295)
	must(t, m.Configure(t.Context(), path, hypervisor.Params{HA: &no}))
	must(t, m.Configure(t.Context(), path, hypervisor.Params{Priority: &prio}))
	must(t, m.Configure(t.Context(), path, hypervisor.Params{}))
	for _, on := range []machine{m, {m.Harness, m.Open(t)}} {
		if v, _ := on.find(t, path); v.HA || v.Priority != prio {
			t.Errorf("HA %v, priority %d; want off, %d", v.HA, v.Priority, prio)
		}
	}
	yes := true
	must(t, m.Configure(t.Context(), path, hypervisor.Params{HA: &yes}))
	if v, _ := m.find(t, path); !v.HA || v.Priority != prio {
		t.Errorf("HA %v, priority %d; want on, %d", v.HA, v.Priority, prio)
	}
}

func autostart(t *testing.T, m machine) {
	path := m.registered(t, "self", false)
	if v, _ := m.find(t, path); v.Autostart {
		t.Error("the hypervisor would start it by itself at boot, wherever its resource is by then")
	}
}

func capacity(t *testing.T, m machine) {
	c, err := m.Capacity(t.Context())
	must(t, err)
	if c.Memory <= 0 || c.CPUs <= 0 {
		t.Errorf("capacity %+v; want memory and CPUs", c)
	}
	if m.Name() == "" || len(m.Kinds()) == 0 {
		t.Errorf("name %q, kinds %v; want both", m.Name(), m.Kinds())
	}
}

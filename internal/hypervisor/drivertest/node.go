package drivertest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

func selfStart(t *testing.T, m machine) {
	if m.SelfStart == nil {
		t.Log("this technology starts nothing by itself, or says so with the VE")
		return
	}
	path := m.registered(t, "eager", false)
	m.SelfStart(t, path)
	if v, _ := m.find(t, path); !v.Autostart {
		t.Fatal("its autostart is on, and not listed so")
	}
	must(t, m.Register(t.Context(), path))
	if v, _ := m.find(t, path); v.Autostart {
		t.Error("registering it left the hypervisor's autostart on")
	}
}

func hung(t *testing.T, m machine) {
	if m.Hang == nil {
		t.Log("nothing stands between this driver and the kernel that could hang")
		return
	}
	up, down := m.running(t, "still up", false), m.registered(t, "still down", false)
	resume := m.Hang(t)
	defer resume()
	calls := map[string]func(context.Context) error{
		"list":  func(ctx context.Context) error { _, err := m.List(ctx); return err },
		"start": func(ctx context.Context) error { return m.Start(ctx, down) },
		"kill":  func(ctx context.Context) error { return m.Stop(ctx, up, true) },
	}
	for verb, call := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		done := make(chan error, 1)
		go func() { done <- call(ctx) }()
		select {
		case err := <-done:
			if slices.Contains(m.Spared, verb) {
				must(t, err)
			} else if !errors.Is(err, cluster.ErrCannotAsk) {
				t.Errorf("%s of a hypervisor that hangs = %v, want ErrCannotAsk", verb, err)
			}
		case <-time.After(patience):
			t.Fatalf("%s did not return when its context ended", verb)
		}
		cancel()
	}
	resume()
	// Whatever was under way has an end, which the barrier tells, and then the list is true.
	eventually(t, "a barrier", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return m.Barrier(ctx) == nil
	})
	var v cluster.VE
	eventually(t, "a list", func() bool {
		ves, err := m.List(t.Context())
		for _, x := range ves {
			if x.Path == down {
				v = x
			}
		}
		return err == nil && v.Path == down && v.State != cluster.VEUnknown
	})
	must(t, m.Start(t.Context(), down))
	m.wantState(t, down, cluster.VERunning)
	eventually(t, "it counts its start", func() bool { return m.Starts(t, down) >= 1 })
	if n := m.Starts(t, down); n != 1 {
		t.Errorf("started %d times, want once", n)
	}
}

func killed(t *testing.T, m machine) {
	if m.Kill == nil {
		t.Log("this hypervisor has no daemon, or its guests are inside of it")
		return
	}
	path := m.running(t, "survivor", false)
	m.Kill(t)
	eventually(t, "a list that has it running", func() bool {
		ves, err := m.List(t.Context())
		for _, v := range ves {
			if v.Path == path && v.State == cluster.VEStopped {
				t.Fatal("a VE that runs is listed as stopped")
			}
			if v.Path == path && v.State == cluster.VERunning {
				return err == nil
			}
		}
		return false
	})
	must(t, m.Start(t.Context(), path))
	must(t, m.Stop(t.Context(), path, false))
	if n := m.Starts(t, path); n != 1 {
		t.Errorf("started %d times, want once", n)
	}
}

// other is the second node; the VE at path is gone there when the test ends.
func (m machine) other(t *testing.T, path string) machine {
	t.Helper()
	there := machine{m.Harness, m.Other(t)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(there.Stop(ctx, path, true), there.Unregister(ctx, path)); err != nil {
			t.Errorf("clean up %s on the other node: %v", path, err)
		}
	})
	return there
}

func moves(t *testing.T, m machine) {
	if m.Other == nil {
		t.Log("this technology cannot be had on two nodes of one machine")
		return
	}
	path := m.running(t, "mover", false)
	if v, _ := m.find(t, path); v.Stale {
		must(t, m.Save(t.Context(), path))
	}
	there := m.other(t, path)
	must(t, errors.Join(m.Stop(t.Context(), path, true), m.Unregister(t.Context(), path)))
	if _, listed := there.find(t, path); listed {
		t.Fatal("the other node knows it before it was registered there")
	}
	must(t, errors.Join(there.Register(t.Context(), path), there.Start(t.Context(), path)))
	there.wantState(t, path, cluster.VERunning)
	eventually(t, "it counts its second start", func() bool { return m.Starts(t, path) == 2 })
	if v, listed := m.find(t, path); listed {
		t.Errorf("the first node lists it as %q still", v.State)
	}
	must(t, errors.Join(there.Stop(t.Context(), path, true), there.Unregister(t.Context(), path)))
	must(t, m.Register(t.Context(), path))
}

func secondNode(t *testing.T, m machine) {
	if m.Other == nil {
		t.Log("this technology cannot be had on two nodes of one machine")
		return
	}
	path := m.running(t, "wanted", false)
	if v, _ := m.find(t, path); v.Stale {
		must(t, m.Save(t.Context(), path))
	}
	there := m.other(t, path)
	must(t, there.Register(t.Context(), path))
	err := there.Start(t.Context(), path)
	switch {
	case m.Refuses && !errors.Is(err, cluster.ErrLocked):
		t.Errorf("start on a second node = %v, want ErrLocked: the VE runs on the first", err)
	case !m.Refuses && err != nil:
		t.Errorf("start on a second node = %v; the driver refuses, so its harness and its manual have to say so", err)
	case m.Refuses:
		there.wantState(t, path, cluster.VEStopped)
		m.wantState(t, path, cluster.VERunning)
	}
}

func saved(t *testing.T, m machine) {
	if m.Change == nil || m.Other == nil {
		t.Log("all that there is of a VE lies with the VE")
		return
	}
	path := m.registered(t, "edited", false)
	m.Change(t, path)
	was, _ := m.find(t, path)
	eventually(t, "the change is seen", func() bool {
		v, _ := m.find(t, path)
		return v.Stale
	})
	must(t, m.Save(t.Context(), path))
	now, _ := m.find(t, path)
	if now.Stale {
		t.Error("still stale after it was saved")
	}
	must(t, m.Unregister(t.Context(), path))
	there := m.other(t, path)
	must(t, there.Register(t.Context(), path))
	v, listed := there.find(t, path)
	if !listed || v.Stale || v.Memory != was.Memory || v.UUID != now.UUID {
		t.Errorf("the other node lists it: %v, as %+v; want memory %d, UUID %s, not stale", listed, v, was.Memory, now.UUID)
	}
	must(t, there.Unregister(t.Context(), path))
}

func unfit(t *testing.T, m machine) {
	if m.Unfit == nil {
		t.Log("a VE of this technology is one directory: nothing of it can lie elsewhere")
		return
	}
	path, names := m.Unfit(t, "homebound")
	v, listed := m.find(t, path)
	if !listed || v.HA || !strings.Contains(v.Unfit, names) {
		t.Errorf("listed %v, HA %v, unfit %q; want listed, HA off, and %q named", listed, v.HA, v.Unfit, names)
	}
}

package prlctl

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/prlctl/prltest"
)

// lateStart returns a VE whose start was asked for by a tool that was killed, and
// that the dispatcher has not begun yet.
func lateStart(t *testing.T, n *node, d *Driver) string {
	t.Helper()
	path := n.make(t, "late", false)
	must(t, d.Register(t.Context(), path))
	n.Slow(400*time.Millisecond, 400*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	if err := d.Start(ctx, path); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Fatalf("start past its deadline = %v, want ErrCannotAsk", err)
	}
	return path
}

func TestABarrierWaitsForAStartOfAKilledTool(t *testing.T) {
	n := newNode(t, t.TempDir())
	d := n.open(t)
	d.t.settle = 3 * time.Second
	path := lateStart(t, n, d)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.Barrier(ctx); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("barrier = %v, want ErrCannotAsk: the start may still come", err)
	}
	must(t, d.Barrier(t.Context()))
	if v := ve(t, d, path); v.State == cluster.VEUnknown || (conf(t, path).Starts == 1) != (v.State == cluster.VERunning) {
		t.Errorf("after the barrier: %q with %d starts", v.State, conf(t, path).Starts)
	}
	starts := conf(t, path).Starts
	n.Slow(0, 0)
	must(t, d.Start(t.Context(), path))
	if starts > 1 || conf(t, path).Starts != 1 {
		t.Errorf("started %d times, want once", conf(t, path).Starts)
	}
	must(t, d.Stop(t.Context(), path, true))
}

// What the daemon before this one had asked for may come yet when the first answer does.
func TestABarrierOfANewDaemonWaitsForAnswersOfAWhile(t *testing.T) {
	n := newNode(t, t.TempDir())
	d := n.open(t)
	d.t.settle = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := d.Barrier(ctx); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("barrier = %v, want ErrCannotAsk", err)
	}
	d.t.settle = 100 * time.Millisecond
	must(t, d.Barrier(t.Context()))
}

func TestAStopByForceOutlastsAStartOfAKilledTool(t *testing.T) {
	n := newNode(t, t.TempDir())
	d := n.open(t)
	d.t.settle = 3 * time.Second
	path := lateStart(t, n, d)
	must(t, d.Stop(t.Context(), path, true))
	if v := ve(t, d, path); v.State != cluster.VEStopped {
		t.Errorf("after the stop it is %q", v.State)
	}
	must(t, d.Barrier(t.Context()))
	if v := ve(t, d, path); v.State != cluster.VEStopped {
		t.Errorf("after the barrier it is %q: the late start came through", v.State)
	}
}

func TestWithoutADispatcherNothingIsKnown(t *testing.T) {
	n := newNode(t, t.TempDir())
	d := n.open(t)
	path := n.make(t, "alone", false)
	must(t, d.Register(t.Context(), path))
	must(t, d.Start(t.Context(), path))
	n.Down()
	for verb, call := range map[string]func() error{
		"list":       func() error { _, err := d.List(t.Context()); return err },
		"start":      func() error { return d.Start(t.Context(), path) },
		"stop":       func() error { return d.Stop(t.Context(), path, true) },
		"register":   func() error { return d.Register(t.Context(), path) },
		"unregister": func() error { return d.Unregister(t.Context(), path) },
		"barrier":    func() error { return d.Barrier(t.Context()) },
	} {
		if err := call(); !errors.Is(err, cluster.ErrCannotAsk) {
			t.Errorf("%s = %v, want ErrCannotAsk", verb, err)
		}
	}
	n.Up(t)
	if v := ve(t, d, path); v.State != cluster.VERunning {
		t.Errorf("after the dispatcher is back it is %q", v.State)
	}
	must(t, d.Stop(t.Context(), path, true))
}

func TestOnlyOurGracefulStopIsAStop(t *testing.T) {
	n := newNode(t, t.TempDir())
	d := n.open(t)
	path := n.make(t, "ours", false)
	must(t, d.Register(t.Context(), path))
	cause := func(want cluster.StopCause, when string) {
		t.Helper()
		for _, on := range []*Driver{d, n.open(t)} {
			if v := ve(t, on, path); v.State != cluster.VEStopped || v.Cause != want {
				t.Errorf("%s: %q by %q, want stopped by %q", when, v.State, v.Cause, want)
			}
		}
	}
	must(t, d.Start(t.Context(), path))
	must(t, d.Stop(t.Context(), path, false))
	cause(cluster.CauseStop, "after our stop")
	// An operator starts it, and it dies: the note of our stop must not speak for that.
	cmd := func(args ...string) {
		t.Helper()
		if r, err := d.tool(t.Context(), args...); err != nil || r.Code != 0 {
			t.Fatalf("prlctl %v: %+v, %v", args, r, err)
		}
	}
	cmd("start", conf(t, path).UUID)
	if v := ve(t, d, path); v.State != cluster.VERunning {
		t.Fatalf("it is %q", v.State)
	}
	must(t, n.End(path))
	cause(cluster.CauseUnknown, "after the death of what an operator started")
	must(t, d.Start(t.Context(), path))
	must(t, d.Stop(t.Context(), path, true))
	cause(cluster.CauseUnknown, "after a stop by force")
	must(t, os.WriteFile(filepath.Join(n.state, "prlctl", "junk.json"), []byte("{"), 0o644))
	must(t, os.WriteFile(d.causes.file(path), []byte(`{"path":"`+path+`","boot":"another"}`), 0o644))
	cause(cluster.CauseUnknown, "after a boot of the host")
}

func TestWhatARegisterDoes(t *testing.T) {
	n := newNode(t, t.TempDir())
	d := n.open(t)
	path := n.make(t, "new", false)
	must(t, d.Register(t.Context(), path+"/config.pvs"))
	uuid := conf(t, path).UUID
	var changes [][]string
	for _, q := range n.Calls() {
		if q.Driver != "prlctl" {
			t.Errorf("prlctl %v without SHAMAN_DRIVER", q.Args)
		}
		if q.Args[0] != "list" {
			changes = append(changes, q.Args)
		}
	}
	want := [][]string{{"register", path, "--preserve-uuid", "--force", "--ignore-ha-cluster"}, {"set", uuid, "--autostart", "off"}}
	if !slices.EqualFunc(changes, want, slices.Equal) {
		t.Errorf("prlctl %v, want %v", changes, want)
	}
	n.Fail("register", 255, "it must not be called again")
	must(t, d.Register(t.Context(), path))
	n.Fail("register", 0, "")
	// Taken over by another server meanwhile: here it is invalid, and has to be claimed anew.
	c := conf(t, path)
	c.Owner = "elsewhere"
	must(t, c.Write(path))
	if err := d.Start(t.Context(), path); !errors.Is(err, cluster.ErrLocked) {
		t.Errorf("start of what another server owns = %v, want ErrLocked", err)
	}
	must(t, d.Register(t.Context(), path))
	if c := conf(t, path); c.Owner != n.UUID || c.UUID != uuid {
		t.Errorf("owner %s, UUID %s; want this server, the same UUID", c.Owner, c.UUID)
	}
	must(t, d.Start(t.Context(), path))
	must(t, d.Stop(t.Context(), path, false))
}

func TestParametersThatPrlctlDoesNotTell(t *testing.T) {
	n := newNode(t, t.TempDir())
	d := n.open(t)
	path, outside := n.make(t, "plain", false), filepath.Join(t.TempDir(), "outside")
	must(t, prltest.Conf{UUID: "o", Name: "outside", Type: "VM", HA: "yes"}.Write(outside))
	must(t, errors.Join(d.Register(t.Context(), path), d.Register(t.Context(), outside)))
	if v := ve(t, d, outside); v.HA || v.Unfit == "" {
		t.Errorf("a VE that does not lie on the mount: HA %v, unfit %q", v.HA, v.Unfit)
	}
	if v := ve(t, d, path); !v.HA || v.Unfit != "" || v.UUID != conf(t, path).UUID {
		t.Errorf("a VE that lies on the mount: %+v", v)
	}
	for _, out := range []string{"", "[]", `[{"ID":""}]`, `[{"ID":"x","Hardware":[]}]`} {
		if all, err := d.readDetails(out); err == nil && len(all) > 0 && all["x"] != (details{}) {
			t.Errorf("%q: %v", out, all)
		}
	}
}

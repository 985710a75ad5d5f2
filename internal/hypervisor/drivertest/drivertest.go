// Package drivertest is the contract of hypervisor.Driver as a suite of tests
// that every driver passes, and a fake driver that passes it too.
package drivertest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
)

// Harness is a machine on which the suite can make VEs.
type Harness struct {
	// Open returns the driver. Each call returns another object of the same
	// machine, as a restarted daemon has.
	Open func(t *testing.T) hypervisor.Driver
	// Make makes a VE that is not registered, with HA on. A stubborn one ignores a
	// graceful stop.
	Make func(t *testing.T, name string, stubborn bool) (path string)
	// End ends a running guest from inside: by its own shutdown (CauseStop), or by
	// its death (CauseCrash).
	End func(t *testing.T, path string, how cluster.StopCause)
	// Starts counts how often a guest was started since it was made.
	Starts func(t *testing.T, path string) int

	// EndsAlike tells that this hypervisor says the same of a guest's own shutdown
	// and of its death: the cause of both has to be listed as unknown then, and only
	// what the driver itself stopped gracefully is a stop.
	EndsAlike bool

	// The rest is nil where the technology has nothing of the kind.

	// Hang makes what carries out the verbs (the hypervisor's daemon, its tools) not
	// answer until resume is called, which is called once or more.
	Hang func(t *testing.T) (resume func())
	// Spared are the verbs ("list", "start", "kill") that need nothing of what
	// hangs: they succeed.
	Spared []string
	// Kill ends the hypervisor's daemon the hard way and starts it anew; nil also
	// where guests are a part of it.
	Kill func(t *testing.T)
	// Other returns the driver of a second node with the same shared file system.
	Other func(t *testing.T) hypervisor.Driver
	// Refuses tells that a second node refuses to start what runs on the first.
	Refuses bool
	// Change changes the definition of a registered VE by the hypervisor's own
	// means. nil: all that there is of a VE lies with the VE.
	Change func(t *testing.T, path string)
	// Unfit makes a VE that is known to the hypervisor, has HA on and cannot be
	// highly available; names is what Unfit has to name.
	Unfit func(t *testing.T, name string) (path, names string)
	// SelfStart switches the hypervisor's own autostart of a registered VE on.
	SelfStart func(t *testing.T, path string)
}

// patience bounds the wait for what must come; no test that passes waits for it.
const patience = 20 * time.Second

// Run runs the suite. No VE runs when it returns.
func Run(t *testing.T, h Harness) {
	tests := []struct {
		name string
		run  func(*testing.T, machine)
	}{
		{"a registered VE is listed as stopped, and not twice", registerTwice},
		{"a VE that is not there cannot be registered", registerNothing},
		{"unregistering refuses a running VE, and an unknown one is a success", unregister},
		{"starting and stopping twice succeed, and start once", verbsTwice},
		{"an unregistered VE is not started", startUnknown},
		{"many starts at once start it once", startsAtOnce},
		{"starts and stops at once end in a state that List tells", mixedAtOnce},
		{"registering at once succeeds for all", registersAtOnce},
		{"a guest's own shutdown is a stop", ownStop},
		{"a guest's death is a crash", crash},
		{"a start after a crash forgets the crash", restart},
		{"a graceful stop waits until the guest is gone", graceful},
		{"a graceful stop that takes too long cannot be asked, and stops nothing", stubborn},
		{"a stop by force does not wait for a graceful one", overtake},
		{"a barrier waits for the stop that is under way", barrier},
		{"no verb begins after its context has ended", ended},
		{"a restarted driver knows what is registered and what runs", reopen},
		{"lifecycle events are hinted at", hints},
		{"HA parameters are kept across a restart", configure},
		{"the hypervisor's autostart is off for what is registered", autostart},
		{"the capacity is told", capacity},
		{"registering switches the hypervisor's autostart off", selfStart},
		{"a hypervisor that hangs is an error in time, and what it still does is waited for", hung},
		{"a hypervisor's daemon that is killed leaves its guests alone", killed},
		{"a VE moves to another node", moves},
		{"a VE that runs is refused by another node, or said not to be", secondNode},
		{"a changed definition is saved for other nodes", saved},
		{"a VE that cannot be highly available says why", unfit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, machine{h, h.Open(t)}) })
	}
}

// machine is a driver under test.
type machine struct {
	Harness
	hypervisor.Driver
}

// ve makes a VE that is gone when the test ends.
func (m machine) ve(t *testing.T, name string, stubborn bool) string {
	t.Helper()
	path := m.Make(t, name, stubborn)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(m.Stop(ctx, path, true), m.Unregister(ctx, path)); err != nil {
			t.Errorf("clean up %s: %v", path, err)
		}
	})
	return path
}

// registered makes a VE and registers it.
func (m machine) registered(t *testing.T, name string, stubborn bool) string {
	t.Helper()
	path := m.ve(t, name, stubborn)
	must(t, m.Register(t.Context(), path))
	return path
}

// running makes a VE that runs.
func (m machine) running(t *testing.T, name string, stubborn bool) string {
	t.Helper()
	path := m.registered(t, name, stubborn)
	must(t, m.Start(t.Context(), path))
	// One that was started before it could be counted would be asked to stop too early.
	eventually(t, "it counts its start", func() bool { return m.Starts(t, path) == 1 })
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// find returns what List says of a path.
func (m machine) find(t *testing.T, path string) (ve cluster.VE, listed bool) {
	t.Helper()
	ves, err := m.List(t.Context())
	must(t, err)
	for _, v := range ves {
		if v.Path == path {
			if listed {
				t.Fatalf("%s is listed twice", path)
			}
			ve, listed = v, true
		}
	}
	return ve, listed
}

func (m machine) wantState(t *testing.T, path string, want cluster.VEState) {
	t.Helper()
	if v, listed := m.find(t, path); !listed || v.State != want {
		t.Fatalf("listed %v, state %q; want listed, %q", listed, v.State, want)
	}
}

// stopped waits until the VE is listed as stopped, and returns why.
func (m machine) stopped(t *testing.T, path string) cluster.StopCause {
	t.Helper()
	var v cluster.VE
	eventually(t, "it is listed as stopped", func() bool {
		v, _ = m.find(t, path)
		return v.State == cluster.VEStopped
	})
	return v.Cause
}

func registerTwice(t *testing.T, m machine) {
	path := m.ve(t, "twice", false)
	if _, listed := m.find(t, path); listed {
		t.Fatal("listed before it was registered")
	}
	for range 2 {
		must(t, m.Register(t.Context(), path))
	}
	v, listed := m.find(t, path)
	if !listed {
		t.Fatal("not listed after it was registered")
	}
	want := cluster.VE{Kind: v.Kind, Name: "twice", Path: path, State: cluster.VEStopped, HA: true}
	v.UUID, v.Memory, v.VCPUs = "", 0, 0 // the technology's own
	if diff := cmp.Diff(want, v); diff != "" {
		t.Errorf("listed otherwise (-want +got):\n%s", diff)
	}
	if n := m.Starts(t, path); n != 0 {
		t.Errorf("registering started it %d times", n)
	}
}

func registerNothing(t *testing.T, m machine) {
	path := m.ve(t, "there", false) + "-not"
	if err := m.Register(t.Context(), path); err == nil {
		t.Fatal("registered a path where there is no VE")
	}
	if _, listed := m.find(t, path); listed {
		t.Error("and lists it")
	}
}

func unregister(t *testing.T, m machine) {
	path := m.running(t, "held", false)
	if err := m.Unregister(t.Context(), path); err == nil {
		t.Fatal("unregistered a running VE")
	}
	m.wantState(t, path, cluster.VERunning)
	must(t, m.Stop(t.Context(), path, true))
	for range 2 {
		must(t, m.Unregister(t.Context(), path))
	}
	if _, listed := m.find(t, path); listed {
		t.Error("still listed")
	}
	must(t, m.Register(t.Context(), path))
	if v, _ := m.find(t, path); v.Cause != cluster.CauseUnknown {
		t.Errorf("registered anew it stopped by %q; what was before is forgotten", v.Cause)
	}
}

func verbsTwice(t *testing.T, m machine) {
	path := m.registered(t, "again", false)
	for range 2 {
		must(t, m.Stop(t.Context(), path, false))
	}
	for range 2 {
		must(t, m.Start(t.Context(), path))
	}
	m.wantState(t, path, cluster.VERunning)
	must(t, m.Register(t.Context(), path))
	m.wantState(t, path, cluster.VERunning)
	eventually(t, "it counts its start", func() bool { return m.Starts(t, path) >= 1 })
	for range 2 {
		must(t, m.Stop(t.Context(), path, true))
	}
	m.wantState(t, path, cluster.VEStopped)
	if n := m.Starts(t, path); n != 1 {
		t.Errorf("started %d times, want once", n)
	}
}

func startUnknown(t *testing.T, m machine) {
	path := m.ve(t, "unknown", false)
	if err := m.Start(t.Context(), path); !errors.Is(err, cluster.ErrNoVE) {
		t.Errorf("start = %v, want ErrNoVE", err)
	}
	must(t, m.Stop(t.Context(), path, false))
	must(t, m.Stop(t.Context(), path, true))
	yes := true
	if err := m.Configure(t.Context(), path, hypervisor.Params{HA: &yes}); !errors.Is(err, cluster.ErrNoVE) {
		t.Errorf("configure = %v, want ErrNoVE", err)
	}
}

// atOnce runs n calls at the same moment and returns their errors.
func atOnce(n int, call func(i int) error) []error {
	errs := make([]error, n)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { <-begin; errs[i] = call(i) })
	}
	close(begin)
	wg.Wait()
	return errs
}

func startsAtOnce(t *testing.T, m machine) {
	path := m.registered(t, "crowd", false)
	must(t, errors.Join(atOnce(8, func(i int) error {
		if i%2 == 0 {
			_, _ = m.List(t.Context()) // looking must not disturb
		}
		return m.Start(t.Context(), path)
	})...))
	m.wantState(t, path, cluster.VERunning)
	eventually(t, "it counts its start", func() bool { return m.Starts(t, path) >= 1 })
	must(t, m.Stop(t.Context(), path, true))
	if n := m.Starts(t, path); n != 1 {
		t.Errorf("started %d times, want once", n)
	}
}

func mixedAtOnce(t *testing.T, m machine) {
	path := m.registered(t, "mixed", false)
	// Some are refused, as the others come: but there is never a VE that runs unlisted.
	for _, err := range atOnce(9, func(i int) error {
		switch i % 3 {
		case 0:
			return m.Start(t.Context(), path)
		case 1:
			return m.Stop(t.Context(), path, true)
		}
		_ = m.Unregister(t.Context(), path)
		return m.Register(t.Context(), path)
	}) {
		if err != nil && !errors.Is(err, cluster.ErrNoVE) {
			t.Error(err)
		}
	}
	must(t, m.Register(t.Context(), path))
	must(t, m.Stop(t.Context(), path, true))
	n := m.Starts(t, path)
	m.wantState(t, path, cluster.VEStopped)
	must(t, m.Start(t.Context(), path))
	eventually(t, "it counts one more start", func() bool { return m.Starts(t, path) == n+1 })
	m.wantState(t, path, cluster.VERunning)
}

func registersAtOnce(t *testing.T, m machine) {
	path := m.ve(t, "names", false)
	must(t, errors.Join(atOnce(8, func(int) error { return m.Register(t.Context(), path) })...))
	m.wantState(t, path, cluster.VEStopped)
}

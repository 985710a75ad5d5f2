package drivertest

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Fake is a driver in memory whose calls can be made to fail. It passes the
// suite like any other, so that those who are tested with it see what a driver
// really does. It reads no clock: it can be used inside synctest.
type Fake struct{ *host }

// Definition is a VE on the fake's disk.
type Definition struct {
	Kind      cluster.Kind // "" = ct
	NoHA      bool
	Autostart bool // while it is not registered anew
	Priority  uint32
	Memory    cluster.Bytes
	UUID      string
	Stubborn  bool // ignores a graceful stop
	Unsure    bool // whether it runs is not known, as of a migration that comes in
	Unfit     string
	Stale     bool // until it is saved
}

// Fault is what happens to the next calls of one verb on one VE.
type Fault struct {
	Times int   // how many calls; 0 = all until Mend
	Err   error // what they return, with nothing done
	// Hang lets them wait for the end of their context, and return ErrCannotAsk.
	Hang bool
	// Late does the work all the same, after such a call has returned: at the next
	// barrier, or when Settle is called.
	Late bool
}

// host is what outlives a driver object: the machine.
type host struct {
	mu      sync.Mutex
	changed chan struct{} // closed and made anew at each change
	defs    map[string]*Definition
	ves     map[string]*guest // registered
	faults  map[string]*Fault
	late    []func() // with mu held
	starts  map[string]int
	calls   []string
	working int // verbs that wait for a guest
}

type guest struct {
	running bool
	cause   cluster.StopCause
}

// NewFake returns the driver of an empty machine.
func NewFake() *Fake {
	return &Fake{&host{
		changed: make(chan struct{}), defs: map[string]*Definition{}, ves: map[string]*guest{},
		faults: map[string]*Fault{}, starts: map[string]int{},
	}}
}

// Reopen returns another driver object of the same machine, as a restarted daemon has.
func (f *Fake) Reopen() *Fake { return &Fake{f.host} }

// Define puts a VE on the disk.
func (f *Fake) Define(path string, d Definition) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.defs[path] = &d
}

// Run defines a VE that is registered and runs.
func (f *Fake) Run(path string, d Definition) {
	f.Define(path, d)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ves[path] = &guest{running: true}
	f.change()
}

// End ends a running guest.
func (f *Fake) End(path string, cause cluster.StopCause) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v := f.ves[path]; v != nil {
		v.running, v.cause = false, cause
		f.change()
	}
}

// Inject makes the next calls of a verb ("start", "list" …) on a VE fail; path
// is "" for the verbs that name none.
func (f *Fake) Inject(verb, path string, fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fault.Times == 0 {
		fault.Times = -1
	}
	f.faults[verb+" "+path] = &fault
}

// Mend takes a fault back.
func (f *Fake) Mend(verb, path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.faults, verb+" "+path)
}

// Settle lets everything take effect that was accepted and not done yet.
func (f *Fake) Settle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settle()
}

// Running tells whether a VE runs.
func (f *Fake) Running(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ves[path] != nil && f.ves[path].running
}

// Registered tells whether a VE is known here.
func (f *Fake) Registered(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ves[path] != nil
}

// Starts counts how often a VE came to run by Start.
func (f *Fake) Starts(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts[path]
}

// Calls returns all calls that change something, such as "start /ve/a", in
// their order; a stop by force is a "kill".
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

func (h *host) change() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *host) settle() {
	for _, do := range h.late {
		do()
	}
	h.late = nil
	h.change()
}

// enter begins a call: it applies the faults, and returns with mu held unless
// there is an error. do is what a late call still does.
func (h *host) enter(ctx context.Context, verb, path string, do func()) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s: %w: %w", verb, path, cluster.ErrCannotAsk, context.Cause(ctx))
	}
	h.mu.Lock()
	if verb != "list" {
		h.calls = append(h.calls, verb+" "+path)
	}
	fault := h.faults[verb+" "+path]
	if fault == nil || fault.Times == 0 {
		return nil
	}
	fault.Times--
	if fault.Late {
		h.late = append(h.late, do)
	}
	hang, err := fault.Hang || fault.Late, fault.Err
	h.mu.Unlock()
	if hang {
		<-ctx.Done()
		return fmt.Errorf("%s %s: %w: %w", verb, path, cluster.ErrCannotAsk, context.Cause(ctx))
	}
	return fmt.Errorf("%s %s: %w", verb, path, err)
}

// wait waits, with mu held, until cond holds.
func (h *host) wait(ctx context.Context, cond func() bool) error {
	for !cond() {
		changed := h.changed
		h.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = fmt.Errorf("%w: %w", cluster.ErrCannotAsk, context.Cause(ctx))
		}
		h.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Name implements hypervisor.Driver.
func (*Fake) Name() string { return "fake" }

// Kinds implements hypervisor.Driver.
func (*Fake) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindCT, cluster.KindVM} }

// List implements hypervisor.Driver.
func (f *Fake) List(ctx context.Context) ([]cluster.VE, error) {
	if err := f.enter(ctx, "list", "", func() {}); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	out := []cluster.VE{}
	for path, v := range f.ves {
		d := f.defs[path]
		e := cluster.VE{
			Kind: d.Kind, Name: filepath.Base(path), Path: path, UUID: d.UUID, State: cluster.VEStopped,
			HA: !d.NoHA && d.Unfit == "", Unfit: d.Unfit, Stale: d.Stale, Autostart: d.Autostart, Priority: d.Priority, Memory: d.Memory,
		}
		if e.Kind == "" {
			e.Kind = cluster.KindCT
		}
		switch {
		case d.Unsure:
			e.State = cluster.VEUnknown
		case v.running:
			e.State = cluster.VERunning
		default:
			e.Cause = v.cause
		}
		out = append(out, e)
	}
	return out, nil
}

// Register implements hypervisor.Driver.
func (f *Fake) Register(ctx context.Context, path string) error {
	do := func() {
		if f.defs[path] == nil {
			return
		}
		if f.ves[path] == nil {
			f.ves[path] = &guest{}
		}
		f.defs[path].Autostart = false
		f.change()
	}
	if err := f.enter(ctx, "register", path, do); err != nil {
		return err
	}
	defer f.mu.Unlock()
	if f.defs[path] == nil {
		return fmt.Errorf("register %s: there is no such definition", path)
	}
	do()
	return nil
}

// Unregister implements hypervisor.Driver.
func (f *Fake) Unregister(ctx context.Context, path string) error {
	if err := f.enter(ctx, "unregister", path, func() { delete(f.ves, path) }); err != nil {
		return err
	}
	defer f.mu.Unlock()
	if v := f.ves[path]; v != nil && v.running {
		return fmt.Errorf("unregister %s: it runs", path)
	}
	delete(f.ves, path)
	f.change()
	return nil
}

// Start implements hypervisor.Driver.
func (f *Fake) Start(ctx context.Context, path string) error {
	do := func() {
		if v := f.ves[path]; v != nil && !v.running {
			v.running, v.cause = true, ""
			f.starts[path]++
			f.change()
		}
	}
	if err := f.enter(ctx, "start", path, do); err != nil {
		return err
	}
	defer f.mu.Unlock()
	if f.ves[path] == nil {
		return fmt.Errorf("start %s: it is not registered here: %w", path, cluster.ErrNoVE)
	}
	do()
	return nil
}

// Stop implements hypervisor.Driver.
func (f *Fake) Stop(ctx context.Context, path string, force bool) error {
	verb, cause := "stop", cluster.CauseStop
	if force {
		verb, cause = "kill", cluster.CauseCrash
	}
	do := func() {
		v := f.ves[path]
		if v == nil || !v.running || !force && f.defs[path].Stubborn {
			return
		}
		v.running, v.cause = false, cause
		f.change()
	}
	if err := f.enter(ctx, verb, path, do); err != nil {
		return err
	}
	defer f.mu.Unlock()
	do()
	f.working++
	defer func() { f.working--; f.change() }()
	return f.wait(ctx, func() bool { return f.ves[path] == nil || !f.ves[path].running })
}

// Barrier implements hypervisor.Driver.
func (f *Fake) Barrier(ctx context.Context) error {
	if err := f.enter(ctx, "barrier", "", func() {}); err != nil {
		return err
	}
	defer f.mu.Unlock()
	f.settle()
	return f.wait(ctx, func() bool { return f.working == 0 })
}

// Watch implements hypervisor.Driver.
func (f *Fake) Watch(ctx context.Context, hint func()) error {
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
			hint()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Capacity implements hypervisor.Driver.
func (f *Fake) Capacity(ctx context.Context) (cluster.Capacity, error) {
	if err := f.enter(ctx, "capacity", "", func() {}); err != nil {
		return cluster.Capacity{}, err
	}
	f.mu.Unlock()
	return cluster.Capacity{Memory: 64 << 30, CPUs: 8}, nil
}

// Configure implements hypervisor.Driver.
func (f *Fake) Configure(ctx context.Context, path string, p cluster.VEParams) error {
	do := func() {
		d := f.defs[path]
		if p.HA != nil {
			d.NoHA = !*p.HA
		}
		if p.Priority != nil {
			d.Priority = *p.Priority
		}
		f.change()
	}
	if err := f.enter(ctx, "configure", path, do); err != nil {
		return err
	}
	defer f.mu.Unlock()
	if f.ves[path] == nil {
		return fmt.Errorf("configure %s: it is not registered here: %w", path, cluster.ErrNoVE)
	}
	do()
	return nil
}

// Save implements hypervisor.Driver.
func (f *Fake) Save(ctx context.Context, path string) error {
	do := func() {
		if d := f.defs[path]; d != nil {
			d.Stale = false
		}
	}
	if err := f.enter(ctx, "save", path, do); err != nil {
		return err
	}
	defer f.mu.Unlock()
	do()
	return nil
}

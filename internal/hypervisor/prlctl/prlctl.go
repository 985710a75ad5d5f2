// Package prlctl is the driver for Virtuozzo and OpenVZ 7: virtual machines and
// containers through the prlctl tool, which talks to a daemon, the dispatcher.
//
// The tool tells errors apart by text only, and a tool that is killed does not
// end the dispatcher's work. So no verb believes what the tool said: each looks
// at the list before and after, and a verb whose tool was killed keeps its turn
// until the VE's state has been settled for a while, with the dispatcher answering.
//
// Not promised: how a VE came to stop. prlctl does not tell a guest's own shutdown
// from its death, so the cause is unknown, and desired state stays running, except
// for what this driver itself stopped gracefully.
package prlctl

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
)

// Options of the driver.
type Options struct {
	Program     string // path of prlctl; "" = /usr/bin/prlctl
	Mount       string // the shared file system; a VE that lies elsewhere is unfit. "" = not checked
	StateDir    string // what this driver stopped itself; survives a restart of the daemon
	HostMemory  cluster.Bytes
	StopTimeout time.Duration // for a graceful stop; 0 = 30 s
	Logger      *zap.Logger   // nil = none
}

// timing is fixed but in tests.
type timing struct {
	poll    time.Duration // between two looks of a verb that waits
	watch   time.Duration // between two looks of Watch
	ask     time.Duration // deadline of one look that has no other
	details time.Duration // how old memory, CPUs and autostart may be
	// settle is how long the state has to stay settled, with the dispatcher
	// answering, until what a killed tool had asked for is taken as over. It errs on
	// the side of waiting: the dispatcher begins a request within milliseconds.
	settle time.Duration
}

// Driver runs VEs by prlctl.
type Driver struct {
	o      Options
	t      timing
	turns  driverkit.Turns
	hints  driverkit.Hints
	causes *causes

	mu            sync.Mutex
	answers       answers
	doubts        map[string]bool // by path: something may still come over the VE; true: its start
	details       map[string]details
	detailsAt     time.Time
	detailsFailed bool
}

// New returns the driver. It does not ask prlctl yet.
func New(o Options) (*Driver, error) {
	if o.Program == "" {
		o.Program = "/usr/bin/prlctl"
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Mount != "" {
		o.Mount = filepath.Clean(o.Mount)
	}
	c, err := openCauses(filepath.Join(o.StateDir, "prlctl"))
	if err != nil {
		return nil, err
	}
	return &Driver{
		o: o, causes: c, doubts: map[string]bool{}, details: map[string]details{},
		t: timing{poll: 200 * time.Millisecond, watch: 2 * time.Second, ask: 10 * time.Second, details: 10 * time.Second, settle: 3 * time.Second},
	}, nil
}

// Name implements hypervisor.Driver.
func (*Driver) Name() string { return "prlctl" }

// Kinds implements hypervisor.Driver.
func (*Driver) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindCT, cluster.KindVM} }

// tool runs prlctl. SHAMAN_DRIVER tells a shaman that is called from below it
// that this driver is at work, and that there is nothing to do.
func (d *Driver) tool(ctx context.Context, args ...string) (driverkit.Result, error) {
	return driverkit.Tool{Path: d.o.Program, Args: args, Env: []string{"SHAMAN_DRIVER=prlctl"}}.Run(ctx)
}

// change runs a prlctl that changes something on the VE at path. If its outcome
// is not known the VE is in doubt until it has settled.
func (d *Driver) change(ctx context.Context, path string, args ...string) error {
	d.mu.Lock()
	before, had := d.doubts[path]
	d.doubts[path] = before || args[0] == "start"
	d.mu.Unlock()
	r, err := d.tool(ctx, args...)
	if err == nil && r.Code != 0 {
		err = failure(args[0], r)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.detailsAt = time.Time{}
	switch {
	case unknown(err):
	case had:
		d.doubts[path] = before
	default:
		delete(d.doubts, path)
	}
	return err
}

// settled takes the doubt about a VE back.
func (d *Driver) settled(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.doubts, path)
}

// doubted tells whether something may still come over the VE, and whether that
// may be its start.
func (d *Driver) doubted(path string) (doubt, start bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	start, doubt = d.doubts[path]
	return doubt, start
}

// verb runs f when no other verb works on the VE. A verb that leaves it in doubt
// keeps its turn until the VE has settled, or one comes that does not wait.
func (d *Driver) verb(ctx context.Context, name, path string, f func() error) error {
	path = home(path)
	err := d.turns.Do(ctx, path, func() error {
		err := f()
		if doubt, _ := d.doubted(path); doubt {
			d.settle(context.WithoutCancel(ctx), path)
		}
		d.hints.Hint()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s %s: %w", name, path, err)
	}
	return nil
}

// quiet measures for how long all looks at a VE agree on a state that lasts.
type quiet struct {
	status string
	since  time.Time
}

// see takes one look; nil is a VE that is not known.
func (q *quiet) see(e *entry) time.Duration {
	status := "gone"
	if e != nil {
		status = e.status
	}
	if q.since.IsZero() || status != q.status || (e != nil && e.moving()) {
		q.status, q.since = status, time.Now()
	}
	return time.Since(q.since)
}

// settle waits until nothing is at work on the VE, and clears the doubt. It gives
// way to a stop by force as soon as prlctl answers, which then finds the doubt.
func (d *Driver) settle(ctx context.Context, path string) {
	var q quiet
	for pause := d.t.poll; ; time.Sleep(pause) {
		actx, cancel := context.WithTimeout(ctx, d.t.ask)
		e, err := d.find(actx, path)
		cancel()
		if err != nil {
			q, pause = quiet{}, min(2*pause, d.t.watch)
			continue
		}
		pause = d.t.poll
		if q.see(e) >= d.t.settle {
			d.settled(path)
			return
		}
		if d.turns.Rushed(path) {
			return
		}
	}
}

// pause waits a little, or until ctx ends.
func (d *Driver) pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return driverkit.Ended(ctx)
	case <-time.After(d.t.poll):
		return nil
	}
}

var errNotHere = fmt.Errorf("prlctl lists no VE with this home: %w", cluster.ErrNoVE)

// List implements hypervisor.Driver.
func (d *Driver) List(ctx context.Context) ([]cluster.VE, error) {
	seq := d.causes.now()
	es, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	more, err := d.parameters(ctx, es)
	if err != nil {
		return nil, err
	}
	out := make([]cluster.VE, 0, len(es))
	for _, e := range es {
		x := more[e.uuid]
		v := cluster.VE{
			Kind: e.kind, Name: e.name, Path: e.path, UUID: e.uuid, State: e.state(), HA: e.ha,
			Autostart: x.autostart, Priority: e.priority, Memory: x.memory, VCPUs: x.cpus,
		}
		switch {
		case !e.ha: // nobody asks for it
		case !d.below(e.path):
			v.Unfit = fmt.Sprintf("its home %s is not on the shared file system %s", e.path, d.o.Mount)
		case x.outside != "":
			v.Unfit = fmt.Sprintf("its disk %s is not on the shared file system %s", x.outside, d.o.Mount)
		}
		v.HA = v.HA && v.Unfit == ""
		if e.status == statusStopped {
			if d.causes.known(e.path) {
				v.Cause = cluster.CauseStop
			}
		} else if err := d.causes.forget(e.path, seq); err != nil {
			d.o.Logger.Warn("what was remembered of the VE's last stop could not be removed; a death before the next start by shaman may be taken for a stop", zap.String("ve", e.path), zap.Error(err))
		}
		out = append(out, v)
	}
	return out, nil
}

// Register implements hypervisor.Driver.
func (d *Driver) Register(ctx context.Context, path string) error {
	path = home(path)
	return d.verb(ctx, "register", path, func() error {
		e, err := d.find(ctx, path)
		if err != nil {
			return err
		}
		if e != nil && e.status == statusInvalid {
			// Left from before it was registered on another node: the claim has to be made anew.
			if err := d.change(ctx, path, "unregister", e.uuid); err != nil {
				return err
			}
			e = nil
		}
		if e == nil {
			// The flags: by default it gets a new UUID; a VE whose node died still names
			// that node as its server; and the call of shaman from below is left out.
			err := d.change(ctx, path, "register", path, "--preserve-uuid", "--force", "--ignore-ha-cluster")
			if unknown(err) {
				return err
			}
			var lerr error
			if e, lerr = d.find(ctx, path); lerr != nil {
				return both(err, lerr)
			}
			if e == nil && err == nil {
				err = errors.New("prlctl says that it is registered, and does not list it under this home; try 'prlctl list -a -o uuid,home'")
			}
			if e == nil {
				return err
			}
		}
		if a, known := d.autostart(ctx, *e); known && !a {
			return nil
		}
		return d.change(ctx, path, "set", e.uuid, "--autostart", "off")
	})
}

// autostart tells whether the hypervisor would start the VE by itself.
func (d *Driver) autostart(ctx context.Context, e entry) (on, known bool) {
	d.stale()
	more, err := d.parameters(ctx, []entry{e})
	x, known := more[e.uuid]
	return x.autostart, known && err == nil
}

// Unregister implements hypervisor.Driver.
func (d *Driver) Unregister(ctx context.Context, path string) error {
	return d.verb(ctx, "unregister", path, func() error {
		path := home(path)
		e, err := d.find(ctx, path)
		if err != nil {
			return err
		}
		if e != nil && e.state() != cluster.VEStopped && e.status != statusInvalid {
			return fmt.Errorf("it is %s; stop it first", e.status)
		}
		if e != nil {
			if err := d.change(ctx, path, "unregister", e.uuid); err != nil {
				if unknown(err) {
					return err
				}
				if e, lerr := d.find(ctx, path); lerr != nil || e != nil {
					return both(err, lerr)
				}
			}
		}
		return d.causes.forget(path, d.causes.now())
	})
}

// Start implements hypervisor.Driver. It fails only if the VE is listed as not
// running afterwards: what prlctl says of it is not enough.
func (d *Driver) Start(ctx context.Context, path string) error {
	return d.verb(ctx, "start", path, func() error {
		path := home(path)
		var said error
		for tried := false; ; {
			e, err := d.find(ctx, path)
			switch {
			case err != nil:
				return both(said, err)
			case e == nil:
				return errNotHere
			case e.state() == cluster.VERunning:
				return nil
			case e.moving():
				if err := d.pause(ctx); err != nil {
					return fmt.Errorf("it is %s: %w", e.status, err)
				}
				continue
			case tried && said == nil:
				return fmt.Errorf("prlctl says that it was started, and then that it is %s: the guest may have ended at once", e.status)
			case tried:
				return said
			}
			if err := d.causes.forget(path, d.causes.now()); err != nil {
				return err
			}
			if said = d.change(ctx, path, "start", e.uuid); unknown(said) {
				return said
			}
			tried = true
		}
	})
}

// answers tells for how long prlctl has answered every question. What a tool of the
// daemon before this one had asked for may still come, within a moment after the
// dispatcher answers again.
type answers struct {
	since time.Time // of the first answer of an unbroken row
	calm  bool      // the row was long enough, once
}

func (d *Driver) answered(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil:
		d.answers.since = time.Time{}
	case d.answers.since.IsZero():
		d.answers.since = time.Now()
	default:
		d.answers.calm = d.answers.calm || time.Since(d.answers.since) >= d.t.settle
	}
}

func (d *Driver) calm() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.answers.calm
}

// Barrier implements hypervisor.Driver.
func (d *Driver) Barrier(ctx context.Context) error {
	if err := d.turns.Wait(ctx); err != nil {
		return err
	}
	quiets := map[string]*quiet{}
	for {
		es, err := d.look(ctx)
		if err != nil {
			return err
		}
		waits := d.busy(es, quiets)
		if waits == "" && d.calm() {
			return nil
		}
		if err := d.pause(ctx); err != nil {
			return fmt.Errorf("wait for prlctl's jobs (%s): %w", waits, err)
		}
	}
}

// busy names a VE on which something may still come, or whose image is open
// though it does not run; "" = there is none.
func (d *Driver) busy(es []entry, quiets map[string]*quiet) (waits string) {
	at := map[string]*entry{}
	for _, e := range es {
		at[e.path] = &e
		if e.ha && d.below(e.path) && (e.moving() || e.status == statusMounted) {
			waits = e.path + " is " + e.status
		}
	}
	d.mu.Lock()
	doubts := maps.Clone(d.doubts)
	d.mu.Unlock()
	for path := range doubts {
		q := quiets[path]
		if q == nil {
			q = &quiet{}
			quiets[path] = q
		}
		if q.see(at[path]) < d.t.settle {
			waits = path + " is " + q.status + ", and the outcome of a command on it is not known"
			continue
		}
		d.settled(path)
	}
	return waits
}

// Watch implements hypervisor.Driver: prlctl has no events, so the list is looked at.
func (d *Driver) Watch(ctx context.Context, hint func()) error {
	remove := d.hints.Add(hint)
	defer remove()
	var was map[entry]bool
	for {
		seq := d.causes.now()
		actx, cancel := context.WithTimeout(ctx, d.t.ask)
		es, err := d.look(actx)
		cancel()
		if err == nil {
			is := make(map[entry]bool, len(es))
			for _, e := range es {
				is[e] = true
				if e.status != statusStopped {
					_ = d.causes.forget(e.path, seq) // List says what cannot be forgotten
				}
			}
			if was != nil && !maps.Equal(was, is) {
				hint()
			}
			was = is
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(d.t.watch):
		}
	}
}

// Capacity implements hypervisor.Driver.
func (d *Driver) Capacity(context.Context) (cluster.Capacity, error) {
	return driverkit.HostCapacity(d.o.HostMemory)
}

// Configure implements hypervisor.Driver.
func (d *Driver) Configure(ctx context.Context, path string, p cluster.VEParams) error {
	var args []string
	if p.HA != nil {
		args = append(args, "--ha-enable", map[bool]string{true: "yes", false: "no"}[*p.HA])
	}
	if p.Priority != nil {
		args = append(args, "--ha-prio", strconv.FormatUint(uint64(*p.Priority), 10))
	}
	if len(args) == 0 {
		return nil
	}
	return d.verb(ctx, "configure", path, func() error {
		e, err := d.find(ctx, home(path))
		if err != nil {
			return err
		}
		if e == nil {
			return errNotHere
		}
		return d.change(ctx, e.path, append([]string{"set", e.uuid}, args...)...)
	})
}

// Save implements hypervisor.Driver: all there is of a VE lies in its directory.
func (*Driver) Save(context.Context, string) error { return nil }

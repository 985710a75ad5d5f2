// Package agent is what every node does with its VEs: it carries out the
// actions that are addressed to it, and keeps its repository true to what its
// hypervisor says.
//
// There are exactly two reasons to start a VE: an action, and the first
// admission after a new boot. STATE=running in the repository alone is none.
// At the moment of a start the gate is open, the lease valid, the repository
// mine, the resource in it, and the action still there; starting a VE that runs
// already is no start, by the driver's contract.
//
// A start's outcome is started, failed and proven stopped, or not known. Only
// the second may leave this node; what is not known stays here and is stopped by
// force until it is.
package agent

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Inbox is where actions come from and outcomes go to.
type Inbox interface {
	Pending() []cluster.Versioned[cluster.Action]
	Has(cluster.Action) bool
	Read(ctx context.Context, a cluster.Action) (cluster.Versioned[cluster.Action], bool, error)
	Write(ctx context.Context, lease int64, was []cluster.Versioned[cluster.Action], now []cluster.Action) ([]int64, error)
}

// Repository is this node's directory of resources.
type Repository interface {
	List(ctx context.Context, forced bool) (cluster.Listing, error)
	Census(ctx context.Context) (cluster.Census, error)
	FreshCensus(ctx context.Context) (cluster.Census, error)
	Absent(ctx context.Context, path string) (bool, error)
	ClaimBroken(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID, path string) (cluster.ResourceID, error)
	DropBroken(ctx context.Context, id cluster.ResourceID, path string) error
	Look(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID) (cluster.Resource, error)
	Update(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID, change func(*cluster.Resource)) error
	Create(ctx context.Context, inc cluster.Incarnation, res cluster.Resource) error
	Claim(ctx context.Context, inc cluster.Incarnation, pool cluster.PoolID, ids []cluster.ResourceID) ([]cluster.Claimed, error)
	GiveBack(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID) (cluster.ResourceID, error)
	Rename(ctx context.Context, inc cluster.Incarnation, id, to cluster.ResourceID) error
	Delete(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID) error
	MarkBroken(ctx context.Context, inc cluster.Incarnation, id cluster.ResourceID, why cluster.BrokenReason) error
	Sight(ctx context.Context, probe string) (cluster.Sighting, error)
}

// Hypervisor is all drivers of this node as one.
type Hypervisor interface {
	List(ctx context.Context) ([]cluster.VE, error)
	ListKind(ctx context.Context, kind cluster.Kind) ([]cluster.VE, error)
	Register(ctx context.Context, kind cluster.Kind, path string) error
	Unregister(ctx context.Context, kind cluster.Kind, path string) error
	Start(ctx context.Context, kind cluster.Kind, path string) error
	Stop(ctx context.Context, kind cluster.Kind, path string, force bool) error
	BarrierKind(ctx context.Context, kind cluster.Kind) error
	Configure(ctx context.Context, kind cluster.Kind, path string, p cluster.VEParams) error
	Save(ctx context.Context, kind cluster.Kind, path string) error
	Kinds() []cluster.Kind
}

// Gate lets work through while this node may act in an incarnation.
type Gate interface {
	// Hold returns an error once the gate is closed or of another incarnation.
	// The gate does not close before release was called.
	Hold(inc cluster.Incarnation) (release func(), err error)
}

// BootList is what the first admission after a new boot has to start. It
// outlives restarts of the daemon.
type BootList interface {
	Pending() []cluster.ResourceID
	Done(cluster.ResourceID) error
}

// Settings are the cluster-wide parameters that concern an agent.
type Settings struct {
	LockTimeout      time.Duration
	ActionTimeout    time.Duration // deadline of one call to the hypervisor
	LockRetryTimeout time.Duration
	ParallelStarts   int
	StartRetries     int
}

// Agent is the agent of one node.
type Agent struct {
	Self       cluster.NodeID
	Inbox      Inbox
	Repository Repository
	Hypervisor Hypervisor
	Gate       Gate
	Boot       BootList
	Settings   func() Settings
	Ignored    func(path string) bool // VEs that join --ignore-res left alone
	// RunsOn names the other nodes whose word is that the VE runs there, or may; not
	// those proven harmless. known is false while it is not known what others say.
	RunsOn func(path string) (on []cluster.NodeID, known bool)
	// Said is this node's word as it is published, if it is of this boot; it is not
	// known before the copy of etcd is there.
	Said    func() (words []cluster.RunningVE, known bool)
	Spoke   func() // called when Words has changed; does not block
	Event   func(cluster.Event)
	Leave   func(ctx context.Context, ready func(context.Context) error) error // ends the membership, and the repository goes, unless ready objects once nothing can come in any more
	At      func(label string)                                                 // called before and after each step that changes something
	Log     *zap.Logger
	Metrics *Metrics

	asked askedStops

	hints  chan struct{}
	looks  chan struct{}
	report atomic.Pointer[Report]
	said   sync.Mutex
	words  *spoken // the newest; nil while no session runs
}

// Session is one admission: from it to the loss of its lease.
type Session struct {
	Incarnation cluster.Incarnation
	Lease       int64
	Valid       func() bool          // the lease, now
	ValidSince  func() boottime.Time // the last gap in its validity
	Bringing    func() bool          // host or daemon is on its way down, or came up just now
}

// Report is what an agent last saw of its node.
type Report struct {
	Usage       cluster.Usage
	Resources   map[cluster.Kind]int
	ByStatus    map[string]int
	Differs     map[cluster.ResourceID]cluster.VEState // not as they should be, and not in work
	Drift       []cluster.Drift                        // the first maxDrift of them
	Drifts      map[cluster.DriftClass]int             // all of them
	Unparseable int
	Err         error // why the hypervisor could not be asked
}

// Init makes an agent ready; call it once, before anything else.
func (a *Agent) Init() {
	a.hints = make(chan struct{}, 1)
	a.looks = make(chan struct{}, 1)
	a.report.Store(&Report{})
	if a.At == nil {
		a.At = func(string) {}
	}
}

// Hint says that actions may have changed. It does not block.
func (a *Agent) Hint() { poke(a.hints) }

// Look says that the repository or the VEs may have changed. It does not block.
func (a *Agent) Look() { poke(a.looks) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Report returns what was last seen.
func (a *Agent) Report() Report { return *a.report.Load() }

// session is the state of one Run.
type session struct {
	*Agent
	Session
	starts   *queue // takes and starts after boot
	errands  *queue // all other actions
	outcomes chan answer
	ended    <-chan struct{}

	heldClaims int // takes that the last sweep could not claim; of intake only

	mu    sync.Mutex
	known map[string]string                    // action name → id: in work or finished here
	busy  map[cluster.ResourceID]int           // resources that work is under way for
	held  map[cluster.ResourceID]chan struct{} // resources that one piece of work has for itself; closed when it lets go
	stops map[cluster.ResourceID]stopSeen
	since map[string]boottime.Time // path of a VE without a resource → first seen
	given map[string]boottime.Time // path → since when it was given to this node because it ran here, and does not; of reconcile only
	made  map[string]boottime.Time // path → when this session made a resource of a VE that does not run; of reconcile only
	plain map[string]boottime.Time // path of a VE that runs, is not highly available and had no resource anywhere at that time; of reconcile only

	census struct { // of soleResource
		sync.Mutex
		at    boottime.Time // when it was begun
		spots cluster.Spots
	}

	brought atomic.Int64 // boottime.Time at which a start was last queued or ended
	budget  int          // of reconcile: how many LAST_NODE it may still write in this look
}

// Run serves one admission until the context ends. All work that it started has
// ended when it returns, except calls into a hypervisor or file system that hang
// past their deadlines.
func (a *Agent) Run(ctx context.Context, s Session) error {
	r := &session{
		Agent: a, Session: s, starts: newQueue(), errands: newQueue(), outcomes: make(chan answer, 4096),
		known: map[string]string{}, busy: map[cluster.ResourceID]int{}, held: map[cluster.ResourceID]chan struct{}{},
		stops: map[cluster.ResourceID]stopSeen{}, since: map[string]boottime.Time{}, plain: map[string]boottime.Time{}, made: map[string]boottime.Time{}, given: map[string]boottime.Time{},
	}
	g, ctx := errgroup.WithContext(ctx)
	r.ended = ctx.Done()
	g.Go(func() error { return r.intake(ctx) })
	g.Go(func() error { return r.answerAll(ctx) })
	g.Go(func() error { return r.reconcileAll(ctx) })
	g.Go(func() error { return r.work(ctx) })
	a.forgetWords()
	defer a.forgetWords()
	r.bootStarts()
	a.Hint()
	a.Look()
	return g.Wait()
}

// bootStarts queues what ran here before the machine's boot.
func (r *session) bootStarts() {
	for _, id := range r.Boot.Pending() {
		r.setBusy(id, 1)
		r.starts.push(&job{id: id, start: true, boot: true, reason: "it ran here before the reboot"})
	}
}

func (r *session) setBusy(id cluster.ResourceID, delta int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[id] += delta; r.busy[id] <= 0 {
		delete(r.busy, id)
	}
}

// alone waits until no other piece of work has a resource for itself, and takes
// it. Bringing a VE up, and letting go of it, are each several steps of which the
// first looks whether the resource is here and the last rests on that: one in the
// middle of the other would start what was given away.
func (r *session) alone(ctx context.Context, id cluster.ResourceID) (release func(), err error) {
	for {
		r.mu.Lock()
		busy, taken := r.held[id]
		if !taken {
			free := make(chan struct{})
			r.held[id] = free
			r.mu.Unlock()
			return func() {
				r.mu.Lock()
				delete(r.held, id)
				r.mu.Unlock()
				close(free)
			}, nil
		}
		r.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// noteBrought notes that VEs are being brought up.
func (r *session) noteBrought() { r.brought.Store(int64(boottime.Now())) }

// broughtWithin tells whether VEs are being brought up, or were a moment ago.
func (r *session) broughtWithin(d time.Duration) bool {
	last := boottime.Time(r.brought.Load())
	return !r.starts.empty() || last != 0 && boottime.Since(last) < d
}

func (r *session) isBusy(id cluster.ResourceID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.busy[id] > 0
}

// call runs f with the deadline of one call to the hypervisor.
func (r *session) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.Settings().ActionTimeout)
	defer cancel()
	return f(ctx)
}

// sleep waits, or returns the context's cause.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

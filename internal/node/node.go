package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Lease is this daemon's lease in etcd.
type Lease interface {
	ID() int64
	Valid() bool
	ValidSince() boottime.Time
	Lost() <-chan struct{}
	Observe(f func(sent boottime.Time)) // is told of each acknowledged renewal; nil ends that
	Run(ctx context.Context) error
	Revoke(ctx context.Context) error
}

// Members are the keys of this cluster's nodes in etcd.
type Members interface {
	Get(ctx context.Context, id cluster.NodeID) (cluster.NodeRecord, int64, error)
	Update(ctx context.Context, id cluster.NodeID, f func(*cluster.NodeRecord) error) error
	OwnFailovers(ctx context.Context, id cluster.NodeID) ([]cluster.Versioned[cluster.Failover], error)
	PutRecovering(ctx context.Context, id cluster.NodeID, lease int64, rec cluster.RecoveringRecord) error
	PutAlive(ctx context.Context, id cluster.NodeID, lease int64, rec cluster.AliveRecord) error
	HoldsAlive(ctx context.Context, id cluster.NodeID, lease int64) (cluster.AliveRecord, bool, error)
	Admit(ctx context.Context, a cluster.Admission) (serial int64, err error)
	Stop(ctx context.Context, id cluster.NodeID, lease int64, kind cluster.StopKind, at string) error
	PublishWatchdog(ctx context.Context, id cluster.NodeID, lease int64, wd cluster.Watchdog) error
	DisownWatchdog(ctx context.Context, id cluster.NodeID) error
	Leave(ctx context.Context, id cluster.NodeID, lease int64) error
}

// Mount is the shared file system.
type Mount interface {
	Census(ctx context.Context) (cluster.Census, error)
	Incarnation(ctx context.Context, n cluster.NodeID) (inc cluster.Incarnation, present bool, err error)
	HighestPool(ctx context.Context, n cluster.NodeID) (cluster.Incarnation, error)
	CreateRepository(ctx context.Context, n cluster.NodeID, inc cluster.Incarnation) error
	RemoveRepository(ctx context.Context, n cluster.NodeID) error
	WriteAnswer(ctx context.Context, n cluster.NodeID, o cluster.Order, deadline time.Duration) error
	MustOwn(ctx context.Context, n cluster.NodeID, inc cluster.Incarnation) error
	Sync(ctx context.Context) error
}

// Hypervisor is all drivers of this node as one.
type Hypervisor interface {
	List(ctx context.Context) ([]cluster.VE, error)
	Register(ctx context.Context, kind cluster.Kind, path string) error
	Unregister(ctx context.Context, kind cluster.Kind, path string) error
	Stop(ctx context.Context, kind cluster.Kind, path string, force bool) error
	Barrier(ctx context.Context) error
	Kinds() []cluster.Kind
}

// Watchdog is the machine's own. An error of Arm says what to do; the watchdog
// is not armed then.
type Watchdog interface {
	Arm(timeout, selfFence time.Duration) (cluster.Watchdog, error)
	Retune(timeout, selfFence time.Duration) error
	Disarm()
	Contact(issued boottime.Time)
	Limit(until boottime.Time) // feeds no more after it, until Lift
	Lift()
	State() cluster.Watchdog
}

// Admitted is one admission.
type Admitted struct {
	Incarnation cluster.Incarnation
	Lease       Lease
}

// Usage is what a node publishes about itself while it is alive.
type Usage struct {
	Capacity  cluster.Capacity
	Usage     cluster.Usage
	Resources map[cluster.Kind]int
	Differs   map[cluster.ResourceID]cluster.VEState
	Drift     []cluster.Drift
	Drifts    map[cluster.DriftClass]int
	Unasked   []cluster.Kind // whose driver does not answer now: nothing is to be sent here for it
}

// Settings are the cluster-wide parameters that concern a node's life.
type Settings struct {
	Timing        cluster.Timing
	StopBudget    time.Duration
	ActionTimeout time.Duration
	CrashLimit    int           // NODE_CRASH_PER_HOUR_THRESHOLD
	Watchdog      time.Duration // WATCHDOG_TIMEOUT; 0 = off
	Reboot        bool          // LEASE_LOST_ACTION
}

// Node is this node.
type Node struct {
	Self       cluster.NodeID
	Name       string
	Address    string
	BootID     string
	HardwareID string
	Nonce      string
	Version    string

	Members    Members
	Mount      Mount
	Hypervisor Hypervisor
	Watchdog   Watchdog
	Heart      *Heart
	Gate       *Gate
	State      *State
	Settings   func() Settings
	Usage      func() Usage
	Ignored    func(path string) bool // VEs that are none of shaman's business
	IgnoreNow  func(ctx context.Context) error

	Grant  func(ctx context.Context) (Lease, error)
	Resume func(ctx context.Context, id int64) (Lease, error) // ErrLeaseGone once etcd does not know it
	Elect  func(ctx context.Context, l Lease) error           // campaigns and leads while the lease lasts
	Active func(ctx context.Context, a Admitted) error        // the agent's work
	Reset  func(why string)                                   // resets the machine; returns only if it cannot
	// OnAdmit is called at each admission, and after a resumed one.
	OnAdmit func(Admitted)

	Status func(string) // one sentence for people, at every change
	Event  func(cluster.Event)
	Log    *zap.Logger

	turn     sync.Mutex // held by who opens the gate, or decides to close it for good
	mu       sync.Mutex
	admitted *Admitted
	left     bool          // the repository of this admission goes by its own hand
	down     chan struct{} // closed once this host is shutting down
	gone     error         // what came of that
	recorded bool          // that the host went down, in etcd
	saidDog  string
	asked    *[2]time.Duration // what the watchdog was brought to, and published; keepWatchdog's own
}

var (
	// ErrLeaseGone is returned by Resume if etcd does not know the lease.
	ErrLeaseGone = errors.New("etcd does not know the lease any more")
	// ErrDown ends an admission whose host is shutting down, with everything stopped.
	ErrDown = errors.New("this host is shutting down")
	// ErrLeft ends Run after the node has left the cluster.
	ErrLeft = errors.New("this node left the cluster")
	// errQuiesced ends an admission whose VEs were all stopped.
	errQuiesced = errors.New("this node has stopped all its VEs")
)

// retryPause is the pause between two tries of what depends on etcd or the mount.
const retryPause = 200 * time.Millisecond

// Admitted returns the present admission, or nil.
func (n *Node) Admitted() *Admitted {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.admitted
}

func (n *Node) setAdmitted(a *Admitted) {
	n.mu.Lock()
	n.admitted = a
	n.mu.Unlock()
}

func (n *Node) setLeft(left bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left = left
}

func (n *Node) hasLeft() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.left
}

// Run lives until the context ends or the node leaves (ErrLeft): lease,
// Recovering, admission, Active, and again whenever the lease is lost.
func (n *Node) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.obey(ctx) })
	g.Go(func() error { return n.live(ctx) })
	return g.Wait()
}

func (n *Node) live(ctx context.Context) error {
	for {
		if n.shuttingDown() {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		l, resumed, err := n.obtain(ctx)
		if err != nil {
			return err
		}
		err = n.underLease(ctx, l, resumed)
		n.setAdmitted(nil)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case n.shuttingDown():
			<-ctx.Done() // it comes back after the next boot
			return context.Cause(ctx)
		case errors.Is(err, cluster.ErrNotJoined):
			return ErrLeft
		}
		became := "its VEs run on"
		if n.State.harmless() {
			became = "everything here was stopped"
		}
		n.Log.Warn("this node is not admitted any more; "+became, zap.NamedError("reason", err))
		n.Event(cluster.Event{Kind: "node-out", Subject: n.Self, Message: fmt.Sprintf("not admitted any more: %v", err)})
		if err := sleep(ctx, retryPause); err != nil {
			return err
		}
	}
}

// obtain gets the lease of an earlier process of this boot, or a new one.
func (n *Node) obtain(ctx context.Context) (l Lease, resumed bool, err error) {
	said := ""
	for {
		former := n.State.get().Lease
		if former != 0 {
			l, err = n.Resume(ctx, former)
			if err == nil && n.State.quiesced() {
				// That admission is over, and must not be kept up: as long as its alive key
				// is held, no failover of it can open, and its VEs stay down.
				if err = l.Revoke(ctx); err == nil {
					err = ErrLeaseGone
				}
			}
			if err == nil {
				return l, true, nil
			}
			if errors.Is(err, ErrLeaseGone) {
				former = 0
			}
		}
		if former == 0 {
			if l, err = n.Grant(ctx); err == nil {
				return l, false, nil
			}
		}
		if ctx.Err() != nil {
			return nil, false, context.Cause(ctx)
		}
		if err.Error() != said {
			said = err.Error()
			n.Log.Warn("waiting for etcd", zap.Error(err))
		}
		n.Status("waiting for etcd: " + cluster.OneLine(err))
		if err := sleep(ctx, retryPause); err != nil {
			return nil, false, err
		}
	}
}

func (n *Node) underLease(ctx context.Context, l Lease, resumed bool) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Run(ctx) })
	g.Go(func() error { return n.Elect(ctx, l) })
	g.Go(func() error {
		a, ok := Admitted{}, false
		if resumed {
			a, ok = n.stillAdmitted(ctx, l)
		}
		if !ok {
			l.Observe(nil)
			var err error
			if a, err = n.recover(ctx, l); err != nil {
				return err
			}
		}
		return n.active(ctx, a)
	})
	return g.Wait()
}

// stillAdmitted tells whether this restarted daemon goes on where the one
// before it stopped: same lease, same incarnation, gate not closed.
func (n *Node) stillAdmitted(ctx context.Context, l Lease) (Admitted, bool) {
	n.Status("resuming after a restart")
	for ctx.Err() == nil {
		rec, held, err := n.Members.HoldsAlive(ctx, n.Self, l.ID())
		if err == nil && !held {
			return Admitted{}, false
		}
		if err == nil {
			// This lease holds the alive key, so its renewals are contact, also while the
			// mount is away.
			l.Observe(n.Watchdog.Contact)
		}
		if err == nil {
			err = n.Mount.MustOwn(ctx, n.Self, rec.Incarnation)
			if errors.Is(err, cluster.ErrSealed) {
				return Admitted{}, false
			}
		}
		if err == nil {
			if rec.Incarnation <= n.State.get().Closed {
				return Admitted{}, false
			}
			n.Log.Info("resumed the admission of the daemon before this one", zap.Int64("incarnation", int64(rec.Incarnation)))
			return Admitted{Incarnation: rec.Incarnation, Lease: l}, true
		}
		n.Status("resuming after a restart: " + err.Error())
		if sleep(ctx, retryPause) != nil {
			break
		}
	}
	return Admitted{}, false
}

// active is one admission, until something ends it.
func (n *Node) active(ctx context.Context, a Admitted) error {
	if err := n.begin(a); err != nil {
		return err
	}
	n.Heart.Tell(a.Incarnation, false)
	n.asked = nil
	n.setLeft(false)
	n.OnAdmit(a)
	n.Status(fmt.Sprintf("Active, incarnation %d", a.Incarnation))
	a.Lease.Observe(n.Watchdog.Contact)
	defer a.Lease.Observe(nil)
	g, ctx := errgroup.WithContext(ctx)
	work, end := context.WithCancelCause(ctx)
	defer end(nil)
	g.Go(func() error { return n.Active(work, a) })
	g.Go(func() error { return n.publish(work, a) })
	g.Go(func() error { return n.keepWatchdog(work, a) })
	g.Go(func() error { return n.guard(ctx, a, end) })
	return g.Wait()
}

// begin opens the gate, unless this incarnation was ended meanwhile.
func (n *Node) begin(a Admitted) error {
	n.turn.Lock()
	defer n.turn.Unlock()
	if a.Incarnation <= n.State.get().Closed {
		return errQuiesced
	}
	n.Gate.Open(a.Incarnation)
	n.setAdmitted(&a)
	return nil
}

const (
	// guardEvery is how often an active node looks whether its repository still is its own.
	guardEvery = time.Second
	// revokeTime bounds how long the lease is tried to be given up after a quiesce.
	revokeTime = 2 * time.Second
	// publishEvery bounds how often a change of usage is written to etcd,
	// publishSoon how often one that operators look at.
	publishEvery = 10 * time.Second
	publishSoon  = time.Second
	publishTick  = 500 * time.Millisecond
)

// guard ends an admission that somebody else has ended: first its work, since a
// gate waits for those who hold it, and then all VEs.
func (n *Node) guard(ctx context.Context, a Admitted, endWork context.CancelCauseFunc) error {
	tick := time.NewTicker(min(guardEvery, n.Settings().Timing.Heartbeat))
	defer tick.Stop()
	inContact := true
	for {
		if valid := a.Lease.Valid(); valid != inContact {
			if inContact = valid; valid {
				n.Log.Info("in contact with etcd again")
			} else {
				n.Log.Warn("out of contact with etcd: the lease cannot be proven valid; VEs run on, nothing is started or moved")
			}
		}
		var reason error
		order, ordered := n.ordered(a.Incarnation)
		if ordered {
			reason = fmt.Errorf("the master ordered it, for failover %s: this node's lease has ended", order.Failover)
		} else if err := n.Heart.Foreign(); err != nil {
			reason = fmt.Errorf("duplicate-host-id: %w; two machines use host id %s: give one of them another HOST_ID", err, n.Self)
		} else if err := n.Mount.MustOwn(ctx, n.Self, a.Incarnation); errors.Is(err, cluster.ErrSealed) && !n.hasLeft() {
			// One that was removed by a node that left is no seal: its VEs go on.
			reason = err
		}
		if reason != nil && ctx.Err() == nil {
			n.Log.Error("this node must not run anything any more", zap.Error(reason))
			endWork(reason)
			err := n.quiesce(ctx, a.Incarnation, reason)
			if err == nil && ordered {
				err = n.answer(ctx, order)
			}
			rebooting := err == nil && ordered && n.Settings().Reboot
			rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeTime)
			defer cancel()
			err = errors.Join(errQuiesced, reason, err, a.Lease.Revoke(rctx))
			if rebooting {
				n.reboot()
			}
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-n.shutdownBegun():
			return n.goDown(ctx, a, endWork)
		case <-tick.C:
		}
	}
}

// publish rewrites the alive key when the usage has changed noticeably, soon
// when a VE is not as it should be, and at once when the contact with the mount
// has changed.
func (n *Node) publish(ctx context.Context, a Admitted) error {
	sent, at := n.aliveRecord(a), time.Now()
	tick := time.NewTicker(publishTick)
	defer tick.Stop()
	first := true
	for {
		now := n.aliveRecord(a)
		age := time.Since(at)
		due := first || now.Mount != sent.Mount || age >= publishSoon && (!maps.Equal(now.Differs, sent.Differs) || !slices.Equal(now.Drift, sent.Drift) || !maps.Equal(now.Drifts, sent.Drifts) || !slices.Equal(now.Kinds, sent.Kinds)) ||
			(age >= publishEvery || !seemsFull(sent)) && changed(sent, now)
		if due {
			err := n.Members.PutAlive(ctx, n.Self, a.Lease.ID(), now)
			if errors.Is(err, cluster.ErrOtherHolder) {
				return err
			}
			if err == nil {
				sent, at, first = now, time.Now(), false
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// seemsFull tells whether a record was taken after the hypervisor had answered.
func seemsFull(r cluster.AliveRecord) bool { return r.Usage.Running != nil }

func (n *Node) aliveRecord(a Admitted) cluster.AliveRecord {
	u := n.Usage()
	return cluster.AliveRecord{
		Incarnation: a.Incarnation, BootID: n.BootID, Nonce: n.Nonce,
		Capacity: u.Capacity, Usage: u.Usage, Resources: u.Resources, Differs: u.Differs, Drift: u.Drift, Drifts: u.Drifts,
		Mount: n.Heart.Mount(), Kinds: slices.DeleteFunc(n.Hypervisor.Kinds(), func(k cluster.Kind) bool { return slices.Contains(u.Unasked, k) }), Version: n.Version,
	}
}

// changed tells whether usage moved by 5 % of the capacity, or any count did.
func changed(was, now cluster.AliveRecord) bool {
	diff := now.Usage.Memory - was.Usage.Memory
	if max(diff, -diff)*20 > max(now.Capacity.Memory, 1) || was.Capacity != now.Capacity {
		return true
	}
	return !sameCounts(was.Resources, now.Resources) || !sameCounts(was.Usage.Running, now.Usage.Running)
}

func sameCounts(a, b map[cluster.Kind]int) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	for k, v := range b {
		if a[k] != v {
			return false
		}
	}
	return true
}

func sleep(ctx context.Context, d time.Duration) error {
	return boottime.WaitUntil(ctx, boottime.Now().Add(d))
}

// Package failover is the master's engine: it observes, decides what to do next,
// does it, and looks again.
//
// Decide is pure: no clock, no I/O, no log. A new master observes the same facts
// and goes on, so there is no recovery code; the normal path is the recovery
// code. Every step can be carried out twice, and whatever a replaced master
// still does either fails (its term guards every write to etcd) or finds a name
// that is taken for ever (the seal).
//
// The order is: open failover → proof → seal → place → dispatch → (the target
// marks, claims, registers, starts, answers) → done. Nothing moves past an
// unproven fence.
package failover

import (
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// Settings are the cluster-wide parameters that concern the engine.
type Settings struct {
	Timing         cluster.Timing
	Patience       time.Duration // extra, after a lease has ended
	SkipThreshold  int
	StopBudget     time.Duration
	PoolCheck      time.Duration
	ActionTimeout  time.Duration
	RelocateTries  int // nodes beyond the first on which a failed VE is tried
	Reserve        cluster.Bytes
	ManualAllowed  bool
	RebootedCounts bool
	MoveDown       bool // SHUTDOWN_POLICY=failover
}

// Pulse is what is known of a node's heartbeat.
type Pulse string

// A pulse is known to be silent only if every read succeeded and showed nothing
// new for long enough.
const (
	PulseUnknown Pulse = ""
	PulseBeats   Pulse = "beats"
	PulseSilent  Pulse = "silent"
)

// Proof is why a node can do no harm.
type Proof struct {
	Method   string
	Evidence string
}

// Located is where the mount holds a path besides the pool.
type Located struct {
	Owner    cluster.NodeID
	Resource cluster.ResourceID
}

// Observation is everything that Decide knows.
type Observation struct {
	Now   boottime.Time // of the master's machine
	Clock time.Time     // for people
	Self  cluster.NodeID
	Epoch cluster.Epoch
	Settings

	Nodes      map[cluster.NodeID]cluster.Versioned[cluster.NodeRecord]
	Alive      map[cluster.NodeID]cluster.Versioned[cluster.AliveRecord]
	Recovering map[cluster.NodeID]cluster.Versioned[cluster.RecoveringRecord]
	Failovers  map[cluster.FailoverID]cluster.Versioned[cluster.Failover]
	Actions    []cluster.Versioned[cluster.Action]
	Confirms   map[cluster.FailoverID]cluster.Versioned[cluster.Confirm]

	Settled         bool // etcd was in contact without a gap for long enough
	Pulses          map[cluster.NodeID]Pulse
	LostSince       map[cluster.NodeID]boottime.Time // when the alive key was first seen to be absent
	RecoveringSince map[cluster.NodeID]boottime.Time
	OpenSince       map[cluster.FailoverID]boottime.Time // when the failover was first seen
	CountedAt       map[cluster.FailoverID]boottime.Time // when its counts were last written
	Proofs          map[cluster.FailoverID]Proof
	Stuck           map[cluster.FailoverID]string // every method failed at least once; why

	Pools   map[cluster.PoolID]cluster.Listing // those that were read this time
	Paths   map[string][]Located               // in repositories; nil = not read this time
	Waiting []cluster.Resource                 // in repositories of Active nodes
	Broken  map[string][]cluster.ResourceID    // path → in quarantine; nil = not read this time
	Owned   map[cluster.NodeID]cluster.Usage   // what of each repository should run now
	Brake   *cluster.Brake                     // as published

	FewerSince boottime.Time // when fewer nodes than RELOCATION_SKIP_THRESHOLD, or fewer than before, were lost; 0 = not so
	Turn       int           // placements made in this mastership: where round-robin goes on
}

// view is the cluster as the policies see it.
func (o *Observation) view() cluster.View {
	f := cluster.Facts{
		At: o.Clock, Master: o.Self, Epoch: o.Epoch,
		Nodes: map[cluster.NodeID]cluster.NodeRecord{}, Alive: map[cluster.NodeID]cluster.AliveRecord{},
		Recovering: map[cluster.NodeID]cluster.RecoveringRecord{}, Beating: map[cluster.NodeID]bool{},
	}
	for id, e := range o.Nodes {
		f.Nodes[id] = e.Value
	}
	for id, e := range o.Alive {
		f.Alive[id] = e.Value
	}
	for id, e := range o.Recovering {
		f.Recovering[id] = e.Value
	}
	for _, e := range o.Failovers {
		f.Failovers = append(f.Failovers, e.Value)
	}
	for id, p := range o.Pulses {
		f.Beating[id] = p == PulseBeats
	}
	return cluster.NewView(f)
}

// lostFor is for how long a node's alive key has been seen to be absent.
func (o *Observation) lostFor(n cluster.NodeID) time.Duration {
	if at, seen := o.LostSince[n]; seen {
		return o.Now.Sub(at)
	}
	return 0
}

func (o *Observation) name(n cluster.NodeID) string {
	if e, ok := o.Nodes[n]; ok && e.Value.Name != "" {
		return e.Value.Name
	}
	return string(n)
}

// sealedAt tells whether a failover took over this incarnation of a node.
func (o *Observation) sealed(n cluster.NodeID, inc cluster.Incarnation) bool {
	e, ok := o.Failovers[cluster.FailoverID{Node: n, Incarnation: inc}]
	if ok {
		return e.Value.Phase.Sealed()
	}
	_, pool := o.Pools[cluster.PoolID{Node: n, Incarnation: inc}]
	return pool && inc > 0
}

// Act is what a step does.
type Act string

// The acts, in the order of a failover.
const (
	ActOpen       Act = "open"
	ActWithdraw   Act = "withdraw"
	ActFence      Act = "fence"  // run the methods side by side
	ActUpdate     Act = "update" // of the failover's record: phase, proof, counts
	ActSeal       Act = "seal"
	ActQuarantine Act = "quarantine"
	ActDispatch   Act = "dispatch"
	ActFinish     Act = "finish"
	ActBrake      Act = "brake"
	ActForget     Act = "forget"
)

// Step is one thing to do now.
type Step struct {
	Do       Act
	Failover cluster.FailoverID
	Reason   string

	Opening     cluster.Opening                       // ActOpen
	Was         cluster.Versioned[cluster.Failover]   // ActWithdraw, ActUpdate, ActFinish
	Now         cluster.Failover                      // ActUpdate, ActFinish
	Mod         int64                                 // ActWithdraw: of recovering/; ActUpdate with a proof: of nodes/
	Delay       time.Duration                         // ActFence: before an agent may cut the power
	Swaps       []cluster.Swap                        // ActDispatch, ActFinish
	Unparseable []cluster.Unparseable                 // ActQuarantine
	Brake       *cluster.Brake                        // ActBrake; nil takes it away
	Old         []cluster.Versioned[cluster.Failover] // ActForget
}

// PlaceRequest is what a relocation policy is asked.
type PlaceRequest struct {
	View      cluster.View
	Resources []cluster.Resource
	Avoid     map[cluster.ResourceID][]cluster.NodeID
	Pending   map[cluster.NodeID]cluster.Usage
	CPUPools  map[cluster.NodeID]string
	Reserve   cluster.Bytes
	Turn      int
}

// Place is a relocation policy: pure, one placement for each resource.
type Place func(PlaceRequest) []cluster.Placement

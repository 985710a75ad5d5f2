package cluster

import "time"

// Versioned is a value of etcd with the revisions at which it was read: who
// acts on it compares them in the transaction.
type Versioned[T any] struct {
	Value  T
	Err    error // the stored value is no valid T
	Raw    []byte
	Mod    int64 // modification revision
	Create int64 // create revision
	Lease  int64 // lease that the key is under; 0 = none
}

// Unparseable is a resource file that cannot be used. It is reported and left where it is.
type Unparseable struct {
	File  string // path of the file
	ID    string // its name
	Owner NodeID // whose repository or sealed repository it lies in
	Err   error
}

// Listing is what one directory of resources holds.
type Listing struct {
	Inc         Incarnation // by its .inc; 0 if there is none
	HasInc      bool
	Done        bool // .done is there
	Resources   []Resource
	Unparseable []Unparseable
}

// BrokenResource is a quarantined resource.
type BrokenResource struct {
	Resource Resource
	Reason   BrokenReason
	File     string
	Err      error // why the file or its reason cannot be read
}

// Census is everything that the mount holds of resources.
type Census struct {
	Repositories map[NodeID]Listing
	Pools        map[PoolID]Listing
	Broken       []BrokenResource
	Unparseable  []Unparseable
}

// Claimed is the result of one claim.
type Claimed struct {
	ID  ResourceID // in the new repository; differs if the name was taken
	Err error      // ErrGone: somebody else has it; else not known or not done
}

// Place is where a resource file lies: in a pool directory, or in the
// repository of a node and incarnation.
type Place struct {
	Pool        PoolID // zero: in the repository
	Node        NodeID
	Incarnation Incarnation
}

// Heartbeat is what a living daemon overwrites again and again on the mount.
type Heartbeat struct {
	V     int         `json:"v"`
	Host  NodeID      `json:"host"`
	Inc   Incarnation `json:"inc"`
	Boot  string      `json:"boot"`
	HW    string      `json:"hw"`
	Nonce string      `json:"nonce"` // of the process
	Seq   int64       `json:"seq"`
	Clean bool        `json:"clean"` // nothing of the repository runs, autostart off, no job queued
}

// Order is what a master writes into a node's order slot ("stop everything, for
// this failover"), and the node into its answer slot once that is done. Failover
// and serial keep the answer to one order from being taken for that to another.
type Order struct {
	V        int         `json:"v"`
	Failover string      `json:"failover"` // "<host>.<inc>"
	Inc      Incarnation `json:"inc"`
	Serial   int64       `json:"serial"` // of the failover
	State    OrderState  `json:"state"`
}

// OrderState tells an order from its answer.
type OrderState string

// An order is answered only after everything was stopped.
const (
	Ordered  OrderState = "ordered"
	Quiesced OrderState = "quiesced"
)

// FenceTarget is the node that is to be proven harmless, and for which failover.
type FenceTarget struct {
	Node     NodeID
	Name     string
	Failover FailoverID
	Serial   int64
	Watchdog Watchdog // as the node published it for this incarnation
	// LostFor is for how long this master has seen its alive key to be absent, at
	// the moment of the call.
	LostFor time.Duration
}

// Opening is what was observed of a node when its failover is to be opened.
type Opening struct {
	Failover      Failover
	NodeMod       int64 // of nodes/<host>: neither Inactive nor Down, of this incarnation
	RecoveringMod int64 // of recovering/<host>, which does not say "not quiesced"; 0 = absent
}

// Swap is one change of the set of actions: Old, as it was read, gives way to
// New. Either may be nil. With NodeMod the record of Old's node has to be as it was
// read, too.
type Swap struct {
	Old     *Versioned[Action]
	New     *Action
	NodeMod int64
}

// Admission is what a node brings to be admitted.
type Admission struct {
	Node        NodeID
	Incarnation Incarnation // the one it comes in with
	Lease       int64
	Former      int64 // a lease of this same boot that may still hold the alive key; 0 = none
	Alive       AliveRecord
	BootID      string
	HardwareID  string
	Name        string
	Address     string
	At          time.Time // by the node's own clock
	Watchdog    Watchdog
	CrashLimit  int // NODE_CRASH_PER_HOUR_THRESHOLD; 0 = crashes are not counted
}

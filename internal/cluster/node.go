package cluster

import "time"

// Liveness is what is known of a node's life.
type Liveness string

// The words of stat, JSON and metrics.
const (
	Active        Liveness = "Active"
	Inactive      Liveness = "Inactive"      // joined, daemon stopped cleanly: its VEs run on, no failover
	Isolated      Liveness = "Isolated"      // lease gone, heartbeat goes on
	Crashed       Liveness = "Crashed"       // lease gone, heartbeat silent
	AwaitingFence Liveness = "AwaitingFence" // no method could prove it harmless
	Fenced        Liveness = "Fenced"        // proven harmless, repository taken over
	Recovering    Liveness = "Recovering"    // back, not yet admitted
	Down          Liveness = "Down"          // host was shut down in an orderly way
)

// Flag keeps a node from getting new VEs. It fails over like any other.
type Flag string

// The flags, in the order in which status shows them.
const (
	Maintenance Flag = "Maintenance"
	Suspended   Flag = "Suspended"
)

// Mount is how a node's contact with the shared file system is.
type Mount string

// The values of "mount" in stat.
const (
	MountOK   Mount = "ok"
	MountSlow Mount = "slow"
	MountLost Mount = "lost"
)

// Watchdog is what a node publishes about its armed watchdog, before it uses it.
type Watchdog struct {
	Armed            bool          `json:"armed"`
	Timeout          time.Duration `json:"timeout,omitempty"`            // W, as read back from the device
	SelfFenceTimeout time.Duration `json:"self_fence_timeout,omitempty"` // P
	Virtual          bool          `json:"virtual,omitempty"`            // the node is itself a virtual machine
}

// Counts tells whether others may take this node's silence for proof: a virtual
// machine that is paused does not reset itself, so its watchdog counts only where
// that is trusted (WATCHDOG_TRUST_VIRTUAL).
func (w Watchdog) Counts(trustVirtual bool) bool {
	return w.Armed && (trustVirtual || !w.Virtual)
}

// SuspendToken is one reason why a node is suspended; it is resumed token by token.
type SuspendToken struct {
	ID          string `json:"id"`
	Description string `json:"description"`
	Timestamp   string `json:"timestamp"` // RFC 3339
}

// Node is one node at one moment, by etcd and by the observer's own eyes.
type Node struct {
	ID            NodeID
	Name          string
	Address       string
	Incarnation   Incarnation
	Liveness      Liveness
	Flags         []Flag
	Since         time.Time // of this liveness, by the observer's clock; zero = not known
	Master        bool
	Mount         Mount
	Roles         []Role // empty = every role that its drivers allow
	Kinds         []Kind // that its drivers can run
	Capacity      Capacity
	Usage         Usage
	Resources     map[Kind]int // in its repository
	Watchdog      Watchdog
	SuspendTokens []SuspendToken
}

// Status is the one word shown for a node: the first that applies.
func (n Node) Status() string {
	switch n.Liveness {
	case Active:
		if len(n.Flags) > 0 {
			for _, f := range []Flag{Maintenance, Suspended} {
				for _, have := range n.Flags {
					if have == f {
						return string(f)
					}
				}
			}
		}
		return string(Active)
	default:
		return string(n.Liveness)
	}
}

// View is one look at the cluster.
type View struct {
	Epoch Epoch
	At    time.Time
	Nodes []Node
}

// Placement is one choice: which node gets a resource, and why.
type Placement struct {
	Resource ResourceID
	From     NodeID
	To       NodeID // "" = nobody can host it now
	Policy   string // the policy that chose; "" when none could
	Reason   string // one sentence: why To, or why nobody
	Rejected []Rejection
}

// Rejection says why a node did not get a resource.
type Rejection struct {
	Node   NodeID
	Reason string
}

package cluster

// Want is desired state: what should be, not what is.
type Want string

// WantUnset means the file says nothing: a living owner takes the driver's
// word, and in a dead node's repository it means WantRunning.
const (
	WantUnset   Want = ""
	WantRunning Want = "running"
	WantStopped Want = "stopped"
)

// Resource is shaman's protected record of a VE: one file. Owner and Pool are
// read off the directory that holds the file, never off its body.
type Resource struct {
	ID        ResourceID
	Kind      Kind
	Path      string // of the VE; its identity
	Owner     NodeID // "" while in the pool or broken
	Pool      PoolID // zero unless in the pool
	Want      Want
	Memory    Bytes // 0 = not known
	VCPUs     int   // 0 = not known
	UUID      string
	Priority  uint32 // higher first; 0 is the lowest and the default
	LastNode  NodeID
	Waiting   string // why it does not run though it should
	Migrating NodeID // the other end of a migration under way
}

// ShouldRun tells whether a failover has to start this resource: no word at
// all counts as running, since a VE that stays down is the worse mistake.
func (r Resource) ShouldRun() bool { return r.Want != WantStopped }

// BrokenReason is the JSON beside a quarantined resource.
type BrokenReason struct {
	Node      NodeID `json:"node"`
	Operation string `json:"operation"`
	Error     string `json:"error"`
	Attempts  int    `json:"attempts"`
	Time      string `json:"time"` // RFC 3339
}

// VEState is what a driver says about a VE now.
type VEState string

// VEUnknown is only said of a VE whose state the hypervisor itself does not
// know; a driver that cannot ask returns an error instead.
const (
	VERunning VEState = "running"
	VEStopped VEState = "stopped"
	VEUnknown VEState = "unknown"
)

// StopCause says how a VE that is not running came to stop.
type StopCause string

// Only CauseStop may turn desired state to stopped.
const (
	CauseUnknown StopCause = ""      // not known, e.g. the host went down under it
	CauseStop    StopCause = "stop"  // by the guest itself or by an operator
	CauseCrash   StopCause = "crash" // died
)

// VE is a virtual machine or container as its hypervisor knows it.
type VE struct {
	Kind      Kind
	Name      string // unencoded
	Path      string
	UUID      string
	State     VEState
	Cause     StopCause // how it stopped; meaningful with VEStopped only
	HA        bool      // protected by shaman, by the hypervisor's word
	Autostart bool      // the hypervisor would start it by itself at boot
	Priority  uint32
	Memory    Bytes
	VCPUs     int
	// Stale tells that what is kept of it on the shared file system for other nodes
	// (Save) is not there or is older than what the hypervisor has.
	Stale bool
	// Unfit says why it cannot be highly available, though its parameters ask for it:
	// a disk that other nodes do not see, for one. HA is false then.
	Unfit string
}

// ID returns the id that the VE's resource has by default.
func (v VE) ID() ResourceID { return MakeResourceID(v.Kind, v.Name) }

// Capacity is what a node can carry.
type Capacity struct {
	Memory  Bytes  `json:"memory"`
	CPUs    int    `json:"cpus"`
	CPUPool string `json:"cpu_pool,omitempty"`
	MaxVMs  int    `json:"max_vms,omitempty"` // running; 0 = no limit, likewise below
	MaxCTs  int    `json:"max_cts,omitempty"`
	MaxVEs  int    `json:"max_ves,omitempty"`
}

// Usage is what all VEs of a node take, highly available or not.
type Usage struct {
	Memory  Bytes        `json:"memory"` // of running VEs
	Running map[Kind]int `json:"running,omitempty"`
}

// VEParams are the HA parameters that a VE itself carries; nil leaves one as it is.
type VEParams struct {
	HA       *bool
	Priority *uint32
}

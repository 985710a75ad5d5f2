package cluster

import (
	"fmt"
	"slices"
	"time"
)

// RecordVersion is the "v" of every value in etcd and of every slot on the mount.
const RecordVersion = 1

// StopKind says how a node's daemon left.
type StopKind string

// The values of "stopped" in nodes/<host_id>.
const (
	NotStopped   StopKind = ""
	StopInactive StopKind = "inactive"
	StopDown     StopKind = "down"
)

// NodeRecord is nodes/<host_id>: a joined member. Each node writes its own;
// operators' commands change flags, roles and releases in it.
type NodeRecord struct {
	V             int            `json:"v"`
	Name          string         `json:"name"`
	Address       string         `json:"address"`
	Roles         []Role         `json:"roles,omitempty"`
	Incarnation   Incarnation    `json:"incarnation"`
	BootID        string         `json:"boot_id,omitempty"` // of the last admission
	HardwareID    string         `json:"hardware_id,omitempty"`
	CPUPool       string         `json:"cpu_pool,omitempty"`
	Maintenance   bool           `json:"maintenance,omitempty"`
	SuspendTokens []SuspendToken `json:"suspend_tokens,omitempty"`
	Crashes       []string       `json:"crashes,omitempty"` // of the last hour, RFC 3339
	Stopped       StopKind       `json:"stopped,omitempty"`
	StoppedAt     string         `json:"stopped_at,omitempty"` // RFC 3339
	Watchdog      Watchdog       `json:"watchdog,omitzero"`
	IgnoreExist   bool           `json:"ignore_existing,omitempty"` // joined with --ignore-res, list not taken yet
	Released      Incarnation    `json:"released,omitempty"`        // the brake does not hold this incarnation
	Serial        int64          `json:"serial,omitempty"`          // highest failover serial at the last admission
	Elsewhere     Elsewhere      `json:"elsewhere,omitzero"`
}

// Elsewhere is a node's word on what runs on it without being in its repository:
// VEs that are highly available, or have a resource somewhere. It changes as soon
// as that does; every failover that opens asks for a fresh one.
type Elsewhere struct {
	Asked int64       `json:"asked"` // the highest failover serial that this answers
	Error string      `json:"error,omitempty"`
	VEs   []RunningVE `json:"ves,omitempty"`
}

// RunningVE names a VE that a node's driver does not say is stopped.
type RunningVE struct {
	ID   ResourceID `json:"id"`
	Path string     `json:"path"`
	UUID string     `json:"uuid,omitempty"`
	// Unsure tells that it may run or not: a live migration that is coming in, say.
	Unsure bool `json:"unsure,omitempty"`
}

// Flags returns the flags that are set, in the order in which status shows them.
func (n NodeRecord) Flags() []Flag {
	var out []Flag
	if n.Maintenance {
		out = append(out, Maintenance)
	}
	if len(n.SuspendTokens) > 0 {
		out = append(out, Suspended)
	}
	return out
}

// CrashToken is the suspension of a node that crashes again and again.
const CrashToken = "node_crash_per_hour_threshold"

// NoteCrash counts a crash of this node, and suspends it if that is the limit-th
// within an hour (limit 0: never). An operator resumes it.
func (n *NodeRecord) NoteCrash(at time.Time, limit int) {
	n.Crashes = append(slices.DeleteFunc(n.Crashes, func(s string) bool {
		t, err := time.Parse(time.RFC3339, s)
		return err != nil || at.Sub(t) >= time.Hour
	}), at.UTC().Format(time.RFC3339))
	suspended := slices.ContainsFunc(n.SuspendTokens, func(t SuspendToken) bool { return t.ID == CrashToken })
	if limit == 0 || len(n.Crashes) < limit || suspended {
		return
	}
	n.SuspendTokens = append(n.SuspendTokens, SuspendToken{
		ID: CrashToken, Timestamp: at.UTC().Format(time.RFC3339Nano),
		Description: fmt.Sprintf("crashed %d times within an hour (NODE_CRASH_PER_HOUR_THRESHOLD); find out why, then run 'shaman resume %s --token %s'", len(n.Crashes), n.Name, CrashToken),
	})
}

// AliveRecord is alive/<host_id>, under the node's lease.
type AliveRecord struct {
	V           int          `json:"v"`
	Incarnation Incarnation  `json:"incarnation"`
	BootID      string       `json:"boot_id"`
	Nonce       string       `json:"nonce"`
	Capacity    Capacity     `json:"capacity"`
	Usage       Usage        `json:"usage"`
	Resources   map[Kind]int `json:"resources,omitempty"` // in the repository
	// Differs are the resources in the repository whose VEs are not in the state
	// that they should be in, and are not on their way there.
	Differs map[ResourceID]VEState `json:"differs,omitempty"`
	Drift   []Drift                `json:"drift,omitempty"`  // the first of them, in order
	Drifts  map[DriftClass]int     `json:"drifts,omitempty"` // how many there are of each class
	Mount   Mount                  `json:"mount"`
	Kinds   []Kind                 `json:"kinds"` // that the drivers can run
	Version string                 `json:"version"`
}

// RecoveringRecord is recovering/<host_id>, under the node's lease: a node that
// is back and not yet admitted.
type RecoveringRecord struct {
	V           int         `json:"v"`
	Incarnation Incarnation `json:"incarnation"`
	BootID      string      `json:"boot_id"`
	HardwareID  string      `json:"hardware_id"`
	Nonce       string      `json:"nonce"`
	Clean       bool        `json:"clean"`        // nothing of the repository runs, autostart off, no job queued
	NotQuiesced bool        `json:"not_quiesced"` // all else of admission is done: an unproven failover may be withdrawn
	Quiesced    bool        `json:"quiesced"`     // began to quiesce: never returns with this incarnation
	Waiting     string      `json:"waiting"`      // for people: what admission waits for
}

// Phase is how far a failover has come.
type Phase string

// The phases, as stat shows them. Before PhaseRelocating the repository is not
// sealed, and the node cannot be admitted.
const (
	PhaseHeld          Phase = "held"
	PhaseFencing       Phase = "fencing"
	PhaseAwaitingFence Phase = "awaiting-fence"
	PhaseSealing       Phase = "sealing" // a proof is recorded
	PhaseRelocating    Phase = "relocating"
	PhaseDone          Phase = "done"
	PhaseWithdrawn     Phase = "withdrawn"
)

// Sealed tells whether the repository was taken over.
func (p Phase) Sealed() bool { return p == PhaseRelocating || p == PhaseDone }

// Open tells whether the failover still has work to do.
func (p Phase) Open() bool { return p != PhaseDone && p != PhaseWithdrawn }

// FailoverID is "<host id>.<incarnation>", the name that the sealed repository gets.
type FailoverID = PoolID

// Failover is failovers/<host_id>.<inc>. Its serial is the key's create
// revision. Times are RFC 3339 with nanoseconds, by the clock of the master of
// that moment: for people, never compared by the protocol.
type Failover struct {
	V          int         `json:"v"`
	Node       NodeID      `json:"node"`
	Name       string      `json:"name"` // of the node
	Inc        Incarnation `json:"incarnation"`
	Phase      Phase       `json:"phase"`
	Reason     string      `json:"reason"`
	Liveness   Liveness    `json:"liveness"` // Isolated or Crashed, as the master sees it
	Proof      string      `json:"proof,omitempty"`
	Evidence   string      `json:"evidence,omitempty"`
	Command    string      `json:"command,omitempty"` // what an operator does to go on
	Total      int         `json:"total"`
	Started    int         `json:"started"`
	Stopped    int         `json:"stopped"`
	Broken     int         `json:"broken"`
	Waiting    int         `json:"waiting"`
	Unreadable int         `json:"unreadable,omitempty"` // files that went to broken as they were; counted in Broken
	// Folded are outcomes whose actions are gone already; they are counted in the
	// numbers above.
	Folded     Folded `json:"folded,omitzero"`
	OpenedBy   NodeID `json:"opened_by"`
	LostAt     string `json:"lease_lost_at,omitempty"`
	OpenedAt   string `json:"opened_at,omitempty"`
	FencedAt   string `json:"fenced_at,omitempty"`
	SealedAt   string `json:"sealed_at,omitempty"`
	DispatchAt string `json:"dispatched_at,omitempty"`
	DoneAt     string `json:"done_at,omitempty"`
}

// Folded counts outcomes of a failover that goes on.
type Folded struct {
	Started int `json:"started,omitempty"`
	Stopped int `json:"stopped,omitempty"`
	Broken  int `json:"broken,omitempty"`
}

// ID returns the failover's key and the name of its sealed repository.
func (f Failover) ID() FailoverID { return FailoverID{Node: f.Node, Incarnation: f.Inc} }

// Brake is what the master publishes while too many nodes are lost at once.
type Brake struct {
	V         int      `json:"v"`
	Threshold int      `json:"threshold"`
	Nodes     []NodeID `json:"nodes"`
	Since     string   `json:"since"`
	Reason    string   `json:"reason"`
}

// Marks is the key mark: the marks that masters have left, the newest first. The
// newest lies on the mount too. An etcd that does not know the mark on the mount
// was rebuilt, or restored from a backup that is older than what was done since:
// revisions and epochs alone do not show that, since they grow again.
type Marks struct {
	V     int      `json:"v"`
	Marks []string `json:"marks"`
}

// marksKept is how many marks are remembered. More than one, since the write of a
// replaced master can land on the mount late.
const marksKept = 32

// With returns the marks with a new one before them.
func (m Marks) With(mark string) Marks {
	kept := m.Marks[:min(len(m.Marks), marksKept-1)]
	return Marks{V: RecordVersion, Marks: append([]string{mark}, kept...)}
}

// Knows tells whether the mark on a mount is one of these; an empty one was
// never left, and says nothing.
func (m Marks) Knows(mark string) bool { return mark == "" || slices.Contains(m.Marks, mark) }

// Verb is what an action asks a node to do.
type Verb string

// The verbs. All but the whole-node ones name a resource.
const (
	VerbTake     Verb = "take"      // claim from a pool directory, register, start unless Start is false
	VerbStart    Verb = "start"     // start what lies in the own repository
	VerbGiveBack Verb = "give-back" // stop if Stop, unregister, move into pool/<owner>.0 for node To
	VerbBreak    Verb = "break"     // quarantine, with Reason
	VerbAdd      Verb = "add"       // make a resource of the VE at Path
	VerbSet      Verb = "set"
	VerbDelete   Verb = "del"
	VerbRename   Verb = "rename"
	VerbLeave    Verb = "leave" // whole node
	VerbLook     Verb = "look"  // whole node: tell what the probe file named Path holds, as this node sees it
	VerbRuns     Verb = "runs"  // whole node: tell whether the VE at Path runs here
	VerbAdopt    Verb = "adopt" // take the resource of a VE that is here out of broken into the own repository; starts nothing
	VerbSync     Verb = "sync"  // whole node: make the repository true
	VerbClean    Verb = "clean" // whole node: re-register what is valid in broken, drop what has no VE any more
)

// ActionState is how far an action has come. Only a new one can be withdrawn.
type ActionState string

// An action is new until its node marks it claimed, before it touches anything.
const (
	ActionNew     ActionState = "new"
	ActionClaimed ActionState = "claimed"
	ActionDone    ActionState = "done"
)

// Outcome is the answer to an action.
type Outcome string

// Only OutcomeFailed, which means proven stopped, lets a resource leave its node.
const (
	OutcomeNone       Outcome = ""
	OutcomeStarted    Outcome = "started"
	OutcomeRegistered Outcome = "registered" // taken and registered, stays stopped
	OutcomeOK         Outcome = "ok"
	OutcomeFailed     Outcome = "failed"  // and proven stopped
	OutcomeUnknown    Outcome = "unknown" // interim: the owner force-stops until it knows
	OutcomeHeld       Outcome = "held"    // interim: storage or node trouble, tried again
	OutcomeSuperseded Outcome = "superseded"
	OutcomeRefused    Outcome = "refused" // nothing was done; Error says why
	OutcomeGone       Outcome = "gone"    // the resource is not where the action says
	OutcomeBroken     Outcome = "broken"
)

// Action is actions/<host_id>/<resource> (or .<verb>.<id> for a whole node).
type Action struct {
	V         int         `json:"v"`
	ID        string      `json:"id"` // random; makes a write with an unknown result readable
	Verb      Verb        `json:"verb"`
	Node      NodeID      `json:"node"` // who carries it out
	Inc       Incarnation `json:"incarnation"`
	Resource  ResourceID  `json:"resource,omitempty"`
	Pool      string      `json:"pool,omitempty"`     // VerbTake: the directory to claim from
	Failover  string      `json:"failover,omitempty"` // "<host>.<inc>", or "" for an operator's
	Start     bool        `json:"start,omitempty"`
	Stop      bool        `json:"stop,omitempty"`
	To        NodeID      `json:"to,omitempty"`
	Path      string      `json:"path,omitempty"`
	NewName   ResourceID  `json:"new_name,omitempty"`
	Priority  *uint32     `json:"priority,omitempty"`
	Memory    Bytes       `json:"memory,omitempty"`
	Force     bool        `json:"force,omitempty"`
	Waiting   string      `json:"waiting,omitempty"` // VerbTake without Start: why it should run and does not
	Policy    string      `json:"policy,omitempty"`
	Reason    string      `json:"reason"`
	Operation string      `json:"operation,omitempty"` // VerbBreak: what failed
	Attempts  int         `json:"attempts,omitempty"`  // failed attempts so far, on all nodes
	Tried     []NodeID    `json:"tried,omitempty"`     // nodes where it failed
	CreatedAt string      `json:"created_at"`
	ClaimedAt string      `json:"claimed_at,omitempty"`
	DoneAt    string      `json:"done_at,omitempty"`
	State     ActionState `json:"state"`
	Outcome   Outcome     `json:"outcome,omitempty"`
	Error     string      `json:"error,omitempty"`
	Progress  string      `json:"progress,omitempty"`
	Saw       *Sighting   `json:"saw,omitempty"`     // VerbLook: the answer
	Adopt     bool        `json:"adopt,omitempty"`   // VerbGiveBack: only because its VE runs on To
	DryRun    bool        `json:"dry_run,omitempty"` // VerbSync, VerbClean: only say what would be done
	Report    *Report     `json:"report,omitempty"`  // VerbSync, VerbClean: the answer
}

// Sighting is what a node sees of a probe file on the mount when it reads it
// fresh: doctor compares it with what was written.
type Sighting struct {
	Found bool   `json:"found"` // the name is there
	Token string `json:"token"` // "" if the file holds no complete record
	At    string `json:"at"`    // RFC 3339 with nanoseconds, by that node's wall clock: for people
}

// Moves tells whether an action changes anything. One that does not is no event.
func (a Action) Moves() bool { return a.Verb != VerbLook && a.Verb != VerbRuns }

// Name returns the last part of the action's key.
func (a Action) Name() string {
	if a.Resource != "" {
		return string(a.Resource)
	}
	return fmt.Sprintf(".%s.%s", a.Verb, a.ID)
}

// Term proves a mastership to etcd: its key's create revision must still be Epoch.
type Term struct {
	Key   string
	Epoch Epoch
}

// Event is one line of events/<host_id>.jsonl.
type Event struct {
	Time     time.Time  `json:"time"`
	Node     NodeID     `json:"node"` // who wrote it
	Kind     string     `json:"event"`
	Subject  NodeID     `json:"subject,omitempty"` // the node that it is about
	Resource ResourceID `json:"resource,omitempty"`
	Failover string     `json:"failover,omitempty"`
	Epoch    Epoch      `json:"epoch,omitempty"`
	Message  string     `json:"message"`
}

// Confirm is confirms/<host_id>.<inc>: an operator's word that a node is off. It
// counts for the failover of this serial; with serial 0, which is written
// together with nodes/<host_id> for a node that was Inactive, as long as that
// record has not changed since.
type Confirm struct {
	V      int    `json:"v"`
	By     string `json:"by"`
	At     string `json:"at"` // RFC 3339
	Serial int64  `json:"serial"`
}

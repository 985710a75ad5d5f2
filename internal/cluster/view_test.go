package cluster

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestStatusIsTheFirstWordThatApplies(t *testing.T) {
	for _, tt := range []struct {
		name string
		node Node
		want string
	}{
		{"an active node without flags is Active", Node{Liveness: Active}, "Active"},
		{"suspension shows on an active node", Node{Liveness: Active, Flags: []Flag{Suspended}}, "Suspended"},
		{"maintenance comes before suspension, in whatever order they are set", Node{Liveness: Active, Flags: []Flag{Suspended, Maintenance}}, "Maintenance"},
		{"a flag does not hide that a node crashed", Node{Liveness: Crashed, Flags: []Flag{Maintenance}}, "Crashed"},
		{"a flag does not hide that a node is inactive", Node{Liveness: Inactive, Flags: []Flag{Suspended}}, "Inactive"},
		{"a flag does not hide that a fence is awaited", Node{Liveness: AwaitingFence, Flags: []Flag{Maintenance}}, "AwaitingFence"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.node.Status()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

const (
	n1 NodeID = "0000000000000001"
	n2 NodeID = "0000000000000002"
)

func TestLiveness(t *testing.T) {
	failover := func(inc Incarnation, p Phase, l Liveness) Failover {
		return Failover{Node: n1, Inc: inc, Phase: p, Liveness: l}
	}
	for _, tt := range []struct {
		name       string
		alive      bool
		recovering bool
		beating    bool
		stopped    StopKind
		never      bool
		failovers  []Failover
		want       Liveness
	}{
		{name: "its lease is there", alive: true, want: Active},
		{name: "its lease is there, and so are the books of its last failover", alive: true, failovers: []Failover{failover(3, PhaseDone, Crashed)}, want: Active},
		{name: "no lease, and the heartbeat goes on", beating: true, want: Isolated},
		{name: "no lease and no heartbeat", want: Crashed},
		{name: "joined, and its daemon was never started", never: true, want: Inactive},
		{name: "no method could prove it harmless", failovers: []Failover{failover(3, PhaseAwaitingFence, Isolated)}, beating: true, want: AwaitingFence},
		{name: "nothing hides that a fence is awaited", failovers: []Failover{failover(3, PhaseAwaitingFence, Crashed)}, recovering: true, stopped: StopInactive, want: AwaitingFence},
		{name: "the master's word counts while its failover is open", failovers: []Failover{failover(3, PhaseFencing, Isolated)}, want: Isolated},
		{name: "the master's word counts while its failover is held", failovers: []Failover{failover(3, PhaseHeld, Crashed)}, beating: true, want: Crashed},
		{name: "it is proven, not yet sealed", failovers: []Failover{failover(3, PhaseSealing, Crashed)}, want: Crashed},
		{name: "sealed", failovers: []Failover{failover(3, PhaseRelocating, Crashed)}, want: Fenced},
		{name: "done", failovers: []Failover{failover(3, PhaseDone, Crashed)}, want: Fenced},
		{name: "an open failover comes before one that is done", failovers: []Failover{failover(4, PhaseFencing, Crashed), failover(3, PhaseDone, Isolated)}, want: Crashed},
		{name: "back after it was sealed", failovers: []Failover{failover(3, PhaseDone, Crashed)}, recovering: true, beating: true, want: Recovering},
		{name: "back, with no failover", recovering: true, want: Recovering},
		{name: "a failover of an older incarnation says nothing", failovers: []Failover{failover(2, PhaseDone, Crashed)}, stopped: StopInactive, want: Inactive},
		{name: "a withdrawn failover says nothing", failovers: []Failover{failover(3, PhaseWithdrawn, Crashed)}, beating: true, want: Isolated},
		{name: "a failover of another node says nothing", failovers: []Failover{{Node: n2, Inc: 3, Phase: PhaseAwaitingFence}}, beating: true, want: Isolated},
		{name: "the host was shut down in an orderly way", stopped: StopDown, want: Down},
		{name: "the daemon was stopped cleanly", stopped: StopInactive, want: Inactive},
		{name: "stopped cleanly, then confirmed off and sealed", stopped: StopInactive, failovers: []Failover{failover(3, PhaseRelocating, "")}, want: Fenced},
		{name: "back after a clean stop", stopped: StopInactive, recovering: true, want: Recovering},
	} {
		t.Run(tt.name, func(t *testing.T) {
			boot := "boot"
			if tt.never {
				boot = ""
			}
			f := Facts{
				Nodes:     map[NodeID]NodeRecord{n1: {Name: "node1", Incarnation: 3, BootID: boot, Stopped: tt.stopped}},
				Failovers: tt.failovers,
				Beating:   map[NodeID]bool{n1: tt.beating},
			}
			if tt.alive {
				f.Alive = map[NodeID]AliveRecord{n1: {Incarnation: 3}}
			}
			if tt.recovering {
				f.Recovering = map[NodeID]RecoveringRecord{n1: {}}
			}
			if diff := cmp.Diff(tt.want, NewView(f).Nodes[0].Liveness); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNewViewJoinsWhatIsKnownOfANode(t *testing.T) {
	at := time.Unix(1000, 0)
	token := []SuspendToken{{ID: "t1"}}
	got := NewView(Facts{
		At: at, Master: n1, Epoch: 57,
		Nodes: map[NodeID]NodeRecord{
			n1: {Name: "node1", Address: "10.0.0.1", Incarnation: 3, BootID: "b", Roles: []Role{"CT"}, Maintenance: true},
			n2: {Name: "node2", Incarnation: 1, BootID: "b", SuspendTokens: token},
		},
		Alive: map[NodeID]AliveRecord{
			n1:                 {Mount: MountOK, Kinds: []Kind{KindCT}, Capacity: Capacity{Memory: 64}, Usage: Usage{Memory: 5}, Resources: map[Kind]int{KindCT: 4}},
			"00000000000000ff": {Mount: MountOK}, // left meanwhile: no member, so not shown
		},
	})
	want := View{Epoch: 57, At: at, Nodes: []Node{
		{
			ID: n1, Name: "node1", Address: "10.0.0.1", Incarnation: 3, Liveness: Active, Flags: []Flag{Maintenance}, Master: true, Mount: MountOK,
			Roles: []Role{"CT"}, Kinds: []Kind{KindCT}, Capacity: Capacity{Memory: 64}, Usage: Usage{Memory: 5}, Resources: map[Kind]int{KindCT: 4},
		},
		{ID: n2, Name: "node2", Incarnation: 1, Liveness: Crashed, Flags: []Flag{Suspended}, Mount: MountLost, SuspendTokens: token},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestNodesAreInTheOrderThatPeopleExpect(t *testing.T) {
	f := Facts{Nodes: map[NodeID]NodeRecord{
		"0000000000000005": {Name: "node10"}, "0000000000000004": {Name: "node2"}, "0000000000000003": {Name: "node2"},
		"0000000000000002": {Name: "node02"}, "0000000000000001": {Name: "rack1-b"}, "0000000000000006": {Name: "node"},
	}}
	var got []NodeID
	for _, n := range NewView(f).Nodes {
		got = append(got, n.ID)
	}
	want := []NodeID{"0000000000000006", "0000000000000002", "0000000000000003", "0000000000000004", "0000000000000005", "0000000000000001"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestNaturalCompareIsAnOrder(t *testing.T) {
	name := rapid.StringMatching(`[a01-]{0,2}[0-2]{0,2}[ab]?[0-9]{0,2}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := name.Draw(t, "a"), name.Draw(t, "b"), name.Draw(t, "c")
		if ab, ba := naturalCompare(a, b), naturalCompare(b, a); (ab < 0) != (ba > 0) || (ab == 0) != (ba == 0) {
			t.Fatalf("compare(%q, %q) = %d, the other way round %d", a, b, ab, ba)
		}
		if naturalCompare(a, b) <= 0 && naturalCompare(b, c) <= 0 && naturalCompare(a, c) > 0 {
			t.Fatalf("%q ≤ %q ≤ %q, and yet %q > %q", a, b, c, a, c)
		}
	})
}

func TestPhases(t *testing.T) {
	type answer struct{ Sealed, Open bool }
	got := map[Phase]answer{}
	for _, p := range []Phase{PhaseHeld, PhaseFencing, PhaseAwaitingFence, PhaseSealing, PhaseRelocating, PhaseDone, PhaseWithdrawn} {
		got[p] = answer{p.Sealed(), p.Open()}
	}
	want := map[Phase]answer{
		PhaseHeld: {false, true}, PhaseFencing: {false, true}, PhaseAwaitingFence: {false, true}, PhaseSealing: {false, true},
		PhaseRelocating: {true, true}, PhaseDone: {true, false}, PhaseWithdrawn: {false, false},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestActionName(t *testing.T) {
	got := []string{Action{Verb: VerbTake, ID: "a1", Resource: "vm-web"}.Name(), Action{Verb: VerbLeave, ID: "a1"}.Name()}
	if diff := cmp.Diff([]string{"vm-web", ".leave.a1"}, got); diff != "" {
		t.Error(diff)
	}
}

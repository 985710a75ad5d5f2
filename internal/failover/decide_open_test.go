package failover

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestDecideOpens(t *testing.T) {
	unsettled := func(o *Observation) { o.Settled = false }
	patient := func(o *Observation) { o.Patience = 5 * time.Second }
	decideTable(t, []row{
		{name: "nothing while all is well", o: given()},
		{name: "a crashed node is opened", o: given(lost(node2)), want: []string{"open n2.1 Crashed"}},
		{name: "an isolated node is opened", o: given(lost(node2), beat(node2, PulseBeats)), want: []string{"open n2.1 Isolated"}},
		{name: "a node that cannot be judged is opened", o: given(lost(node2), beat(node2, PulseUnknown)), want: []string{"open n2.1 Crashed"}},
		{name: "not before the extra patience has passed", o: given(patient, lostFor(node2, 4*time.Second))},
		{name: "once the extra patience has passed", o: given(patient, lostFor(node2, 5*time.Second)), want: []string{"open n2.1 Crashed"}},
		{name: "not if it is not known since when it is lost", o: given(lost(node2), func(o *Observation) { delete(o.LostSince, node2) })},
		{name: "not one that stopped cleanly", o: given(lost(node2), record(node2, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive }))},
		{name: "not one whose host was shut down", o: given(lost(node2), record(node2, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopDown }))},
		{name: "one whose host was shut down, where that is to move its VEs", o: given(lost(node2), moveDown, down(node2)), want: []string{"open n2.1 Down"}},
		{name: "that one also while it beats and by a master that is not settled", o: given(unsettled, lost(node2), beat(node2, PulseBeats), moveDown, down(node2)), want: []string{"open n2.1 Down"}},
		{name: "not one that stopped cleanly, even then", o: given(lost(node2), moveDown, record(node2, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive }))},
		{name: "not one that was never admitted", o: given(lost(node2), record(node2, func(r *cluster.NodeRecord) { r.BootID = "" }))},
		{name: "not one whose record cannot be read", o: given(lost(node2), func(o *Observation) {
			e := o.Nodes[node2]
			e.Err = cluster.ErrTorn
			o.Nodes[node2] = e
		})},
		{name: "not one that is failed over already", o: given(sealed(node2), open(node2, cluster.PhaseDone, proven))},
		{name: "not one that still beats, by a master that is not settled", o: given(unsettled, lost(node2), beat(node2, PulseBeats))},
		{name: "not one that cannot be judged, by a master that is not settled", o: given(unsettled, lost(node2), beat(node2, PulseUnknown))},
		{name: "a silent one even by a master that is not settled", o: given(unsettled, lost(node2)), want: []string{"open n2.1 Crashed"}},
		{name: "not one that just came back", o: given(lost(node2), back(node2, 9*time.Second, cluster.RecoveringRecord{}))},
		{name: "one that came back and does not get on", o: given(lost(node2), back(node2, 10*time.Second, cluster.RecoveringRecord{})), want: []string{"open n2.1 Crashed"}},
		{name: "not one that is back and not quiesced", o: given(lost(node2), back(node2, time.Hour, cluster.RecoveringRecord{NotQuiesced: true}))},
	})
}

func moveDown(o *Observation) { o.MoveDown = true }

func down(n cluster.NodeID) change {
	return record(n, func(r *cluster.NodeRecord) { r.Stopped, r.StoppedAt = cluster.StopDown, "2026-03-01T12:00:00Z" })
}

func TestOpeningComparesWhatWasSeen(t *testing.T) {
	o := given(lostFor(node2, 3*time.Second), back(node2, time.Minute, cluster.RecoveringRecord{}))
	steps := Decide(o, first)
	if len(steps) != 1 {
		t.Fatalf("want one step, got %v", lines(steps))
	}
	how := "its lease ended and its heartbeat is silent"
	want := cluster.Opening{NodeMod: 11, RecoveringMod: 77, Failover: cluster.Failover{
		Node: node2, Name: "n2", Inc: 1, Phase: cluster.PhaseFencing, Reason: how, Liveness: cluster.Crashed,
		OpenedBy: node1, LostAt: stamp(3 * time.Second), OpenedAt: stamp(0),
	}}
	if d := cmp.Diff(want, steps[0].Opening); d != "" {
		t.Errorf("opening (-want +got):\n%s", d)
	}
}

func TestDecideBrake(t *testing.T) {
	released := func(n cluster.NodeID) change {
		return record(n, func(r *cluster.NodeRecord) { r.Released = r.Incarnation })
	}
	three := []change{lost(node2), lost(node3), lost(node4)}
	with := func(more ...change) Observation { return given(append(append([]change{}, three...), more...)...) }
	braked := func(o *Observation) { o.Brake = &cluster.Brake{Threshold: 3, Nodes: []cluster.NodeID{node2, node3}} }
	fewerFor := func(d time.Duration) change { return func(o *Observation) { o.FewerSince = moment.Add(-d) } }
	on := "brake on: n2 n3 n4"
	all := []string{"open n2.1 Crashed", "open n3.1 Crashed", "open n4.1 Crashed"}
	decideTable(t, []row{
		{name: "below the threshold all are opened", o: given(lost(node2), lost(node3)), want: all[:2]},
		{name: "at the threshold nothing is opened, and that is said", o: with(), want: []string{on}},
		{name: "it is said once only", o: with(func(o *Observation) {
			o.Brake = &cluster.Brake{Threshold: 3, Nodes: []cluster.NodeID{node2, node3, node4}}
		})},
		{name: "a change is said again", o: with(func(o *Observation) {
			o.Brake = &cluster.Brake{Threshold: 2, Nodes: []cluster.NodeID{node2, node3, node4}}
		}), want: []string{on}},
		{name: "it stays a while after fewer are lost: the rest may be on the way", o: given(lost(node2), braked, fewerFor(14*time.Second)), want: []string{"brake on: n2"}},
		{name: "it goes when no more have come back for that while", o: given(lost(node2), braked, fewerFor(15*time.Second)), want: []string{"brake off", "open n2.1 Crashed"}},
		{name: "it goes at once when all are back", o: given(braked, fewerFor(0)), want: []string{"brake off"}},
		{name: "an operator's release ends the wait", o: given(lost(node2), released(node2), braked, fewerFor(0)), want: []string{"brake off", "open n2.1 Crashed"}},
		{
			name: "a node that an operator has confirmed to be off does not count, and is taken over",
			o:    with(func(o *Observation) { o.SkipThreshold = 2 }, open(node2, cluster.PhaseSealing, func(f *cluster.Failover) { f.Proof = "manual" })),
			want: []string{"brake on: n3 n4", "seal n2.1"},
		},
		{
			name: "nodes whose heartbeat is silent count before their lease ends",
			o:    given(lost(node2), beat(node3, PulseSilent), beat(node4, PulseSilent)), want: []string{on},
		},
		{
			name: "nodes whose heartbeat cannot be judged do not count while their lease holds",
			o:    given(lost(node2), beat(node3, PulseUnknown), beat(node4, PulseUnknown)), want: all[:1],
		},
		{name: "the master's own heartbeat does not count", o: given(lost(node2), beat(node3, PulseSilent), beat(node1, PulseSilent)), want: all[:1]},
		{name: "a node that was released does not count", o: with(released(node2)), want: all},
		{name: "a node whose former incarnation was released counts", o: with(record(node2, func(r *cluster.NodeRecord) { r.Released, r.Incarnation = 1, 2 })), want: []string{on}},
		{
			name: "a released node is opened though too many others are lost",
			o:    with(released(node2), func(o *Observation) { o.SkipThreshold = 2 }), want: []string{"brake on: n3 n4", "open n2.1 Crashed"},
		},
		{name: "a node that awaits an operator does not count", o: with(
			open(node4, cluster.PhaseAwaitingFence, func(f *cluster.Failover) { f.Reason, f.Command = awaiting("x"), "shaman fence confirm n4" }),
			func(o *Observation) { o.Stuck[of(node4, 1)] = "x" },
		), want: append(all[:2:2], "fence n4.1 after 0s")},
		{name: "a node that was taken over does not count", o: with(open(node4, cluster.PhaseDone, proven)), want: all[:2]},
		{name: "a node that is back does not count", o: with(back(node4, 0, cluster.RecoveringRecord{})), want: all[:2]},
		{name: "a node that was lost an hour ago does not count", o: with(lostFor(node4, time.Hour)), want: all},
		{name: "a node that was lost less than an hour ago counts", o: with(lostFor(node4, time.Hour-time.Second)), want: []string{on}},
		{name: "a node that stopped cleanly does not count", o: with(record(node4, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive })), want: all[:2]},
		{name: "a node that stopped cleanly does not count by its heartbeat either", o: given(lost(node2), lost(node3),
			record(node4, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopDown }), beat(node4, PulseSilent)), want: all[:2]},
		{
			name: "an open failover is held, without fencing and sealing, even with a proof",
			o: with(open(node2, cluster.PhaseFencing), open(node3, cluster.PhaseSealing, proven), func(o *Observation) {
				o.Proofs[of(node2, 1)] = Proof{Method: "agent"}
			}),
			want: []string{on, "update n2.1 held", "update n3.1 held agent"},
		},
		{
			name: "what is sealed goes on", o: with(open(node4, cluster.PhaseFencing), sealed(node2, res("vm-a")), func(o *Observation) { o.SkipThreshold = 2 }),
			want: []string{"brake on: n3 n4", "update n4.1 held", "take vm-a@n1 start"},
		},
		{
			name: "what awaits an operator is sealed once it is proven",
			o: with(func(o *Observation) { o.SkipThreshold = 2 }, open(node4, cluster.PhaseAwaitingFence), func(o *Observation) {
				o.Proofs[of(node4, 1)] = Proof{Method: "manual"}
			}), want: []string{"brake on: n2 n3", "update n4.1 sealing manual"},
		},
		{name: "a released one goes on with its fencing", o: with(func(o *Observation) { o.SkipThreshold = 2 }, released(node2), open(node2, cluster.PhaseHeld)),
			want: []string{"brake on: n3 n4", "fence n2.1 after 0s", "update n2.1 fencing"}},
	})
}

func TestHeldSaysHowToGoOn(t *testing.T) {
	steps := Decide(given(lost(node2), lost(node3), lost(node4), open(node2, cluster.PhaseFencing)), first)
	i := 1 // after the brake
	if steps[i].Do != ActUpdate || steps[i].Now.Command != "shaman failover release n2" {
		t.Errorf("got %q with the command %q", lines(steps)[i], steps[i].Now.Command)
	}
	if !strings.Contains(steps[0].Reason, "n2, n3, n4") || !strings.Contains(steps[0].Reason, "shaman failover release") {
		t.Errorf("the brake does not say which nodes and what to do: %q", steps[0].Reason)
	}
}

func awaiting(why string) string {
	return "no method could prove that the node is harmless (" + why + "); nothing of it moves until one does"
}

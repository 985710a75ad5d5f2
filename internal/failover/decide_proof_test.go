package failover

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestDecideProofsAndSeal(t *testing.T) {
	fencing := func(more ...change) Observation {
		return given(append([]change{lost(node2), open(node2, cluster.PhaseFencing)}, more...)...)
	}
	rebooted := cluster.RecoveringRecord{Incarnation: 1, BootID: "boot-2", HardwareID: "hw-n2", Clean: true}
	but := func(f func(*cluster.RecoveringRecord)) change {
		r := rebooted
		f(&r)
		return back(node2, 0, r)
	}
	confirm := func(serial, mod int64) change {
		return func(o *Observation) {
			o.Confirms[of(node2, 1)] = cluster.Versioned[cluster.Confirm]{Mod: mod, Value: cluster.Confirm{By: "ann", Serial: serial}}
		}
	}
	pending := []string{"fence n2.1 after 0s"}
	provenBy := func(m string) []string { return []string{"update n2.1 sealing " + m} }
	decideTable(t, []row{
		{name: "without a proof the methods go on and nothing moves", o: fencing(), want: pending},
		{name: "a method's proof is recorded before anything is sealed", o: fencing(func(o *Observation) {
			o.Proofs[of(node2, 1)] = Proof{Method: "agent", Evidence: "off"}
		}), want: provenBy("agent")},
		{name: "a recorded proof is sealed upon", o: given(lost(node2), open(node2, cluster.PhaseSealing, proven)), want: []string{"seal n2.1"}},
		{name: "a proof of another incarnation counts for nothing", o: fencing(func(o *Observation) {
			o.Proofs[of(node2, 2)] = Proof{Method: "agent"}
		}), want: pending},
		{name: "a new boot of the same hardware that is clean is a proof", o: fencing(back(node2, 0, rebooted)), want: provenBy("rebooted")},
		{name: "not the same boot", o: fencing(but(func(r *cluster.RecoveringRecord) { r.BootID = "boot-1" })), want: pending},
		{name: "not without a boot id", o: fencing(but(func(r *cluster.RecoveringRecord) { r.BootID = "" })), want: pending},
		{name: "not other hardware", o: fencing(but(func(r *cluster.RecoveringRecord) { r.HardwareID = "hw-n9" })), want: pending},
		{name: "not unknown hardware", o: fencing(but(func(r *cluster.RecoveringRecord) { r.HardwareID = "" }),
			record(node2, func(r *cluster.NodeRecord) { r.HardwareID = "" })), want: pending},
		{name: "not unless it is clean", o: fencing(but(func(r *cluster.RecoveringRecord) { r.Clean = false })), want: pending},
		{name: "not of another incarnation", o: fencing(but(func(r *cluster.RecoveringRecord) { r.Incarnation = 2 })), want: pending},
		{name: "not where that is not allowed to count", o: fencing(back(node2, 0, rebooted), func(o *Observation) { o.RebootedCounts = false }), want: pending},
		{name: "an operator's word for this serial is a proof", o: fencing(confirm(50, 99)), want: provenBy("manual")},
		{name: "an operator's word for an earlier failover is none", o: fencing(confirm(49, 99)), want: pending},
		{name: "an operator's word for a stopped node counts while its record is unchanged", o: fencing(confirm(0, 11)), want: provenBy("manual")},
		{name: "and no longer once its record has changed", o: fencing(confirm(0, 12)), want: pending},
		{name: "an operator's word where that method is not listed is none", o: fencing(confirm(50, 99), func(o *Observation) { o.ManualAllowed = false }), want: pending},
		{name: "an operator's word that cannot be read is none", o: fencing(confirm(50, 99), func(o *Observation) {
			c := o.Confirms[of(node2, 1)]
			c.Err = cluster.ErrTorn
			o.Confirms[of(node2, 1)] = c
		}), want: pending},
		{name: "the word of a node that was shut down in good order is a proof", o: fencing(moveDown, down(node2)), want: provenBy("down")},
		{name: "that it was stopped is none", o: fencing(record(node2, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive })), want: pending},
		{name: "agents wait for the node's own quiesce while it beats", o: fencing(beat(node2, PulseBeats), open(node2, cluster.PhaseFencing, func(f *cluster.Failover) { f.Liveness = cluster.Isolated }), func(o *Observation) {
			o.OpenSince[of(node2, 1)] = moment.Add(-4 * time.Second)
		}), want: []string{"fence n2.1 after 12s"}},
		{name: "agents wait no longer than that", o: fencing(beat(node2, PulseBeats), open(node2, cluster.PhaseFencing, func(f *cluster.Failover) { f.Liveness = cluster.Isolated }), func(o *Observation) {
			o.OpenSince[of(node2, 1)] = moment.Add(-time.Hour)
		}), want: pending},
		{name: "nothing cuts a node's power before it is known whether it lives", o: fencing(beat(node2, PulseUnknown)), want: []string{"fence n2.1 after 16s"}},
		{name: "but no longer than a living one would be given", o: fencing(beat(node2, PulseUnknown), func(o *Observation) {
			o.OpenSince[of(node2, 1)] = moment.Add(-16 * time.Second)
		}), want: pending},
		{name: "a node that falls silent meanwhile is shown as crashed", o: fencing(open(node2, cluster.PhaseFencing, func(f *cluster.Failover) { f.Liveness = cluster.Isolated })),
			want: []string{"fence n2.1 after 0s", "update n2.1 fencing"}},
		{name: "when every method has failed it awaits an operator, and the methods go on", o: fencing(func(o *Observation) { o.Stuck[of(node2, 1)] = "agent: refused" }),
			want: []string{"fence n2.1 after 0s", "update n2.1 awaiting-fence"}},
		{name: "a failover that is held goes on when the brake is off", o: given(lost(node2), open(node2, cluster.PhaseHeld)), want: []string{"fence n2.1 after 0s", "update n2.1 fencing"}},
		{name: "a proven one that was held goes on with its seal", o: given(lost(node2), open(node2, cluster.PhaseHeld, proven)), want: []string{"update n2.1 sealing agent"}},
	})
}

func TestDecideWithdraws(t *testing.T) {
	home := cluster.RecoveringRecord{Incarnation: 1, NotQuiesced: true}
	decideTable(t, []row{
		{name: "a node that is back with its VEs at home", o: given(lost(node2), open(node2, cluster.PhaseFencing), back(node2, 0, home)), want: []string{"withdraw n2.1"}},
		{name: "also while an operator is awaited", o: given(lost(node2), open(node2, cluster.PhaseAwaitingFence), back(node2, 0, home)), want: []string{"withdraw n2.1"}},
		{name: "also under the brake", o: given(lost(node2), lost(node3), lost(node4), back(node2, 0, home), open(node2, cluster.PhaseHeld), func(o *Observation) { o.SkipThreshold = 2 }),
			want: []string{"brake on: n3 n4", "withdraw n2.1"}},
		{name: "not a node that began to quiesce", o: given(lost(node2), open(node2, cluster.PhaseFencing), back(node2, 0, cluster.RecoveringRecord{Quiesced: true})), want: []string{"fence n2.1 after 0s"}},
		{name: "not once a proof is recorded", o: given(lost(node2), open(node2, cluster.PhaseSealing, proven), back(node2, 0, home)), want: []string{"seal n2.1"}},
		{name: "not once it is sealed", o: given(sealed(node2, res("vm-a")), back(node2, 0, home)), want: []string{"take vm-a@n1 start"}},
	})
	steps := Decide(given(lost(node2), open(node2, cluster.PhaseFencing), back(node2, 0, home)), first)
	if steps[0].Mod != 77 || steps[0].Was.Mod != 60 {
		t.Errorf("the withdrawal compares %d and %d, want the revisions that were seen", steps[0].Mod, steps[0].Was.Mod)
	}
}

func TestAwaitingFenceNamesTheExactCommand(t *testing.T) {
	o := given(lost(node2), open(node2, cluster.PhaseFencing), func(o *Observation) { o.Stuck[of(node2, 1)] = "agent: no route to host" })
	steps := Decide(o, first)
	want := cluster.Failover{
		Node: node2, Name: "n2", Inc: 1, Phase: cluster.PhaseAwaitingFence, Liveness: cluster.Crashed,
		Reason: awaiting("agent: no route to host"), Command: "shaman fence confirm n2",
	}
	if d := cmp.Diff(want, steps[1].Now); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
	// Decided again with that in effect, nothing is written.
	o.Failovers[of(node2, 1)] = cluster.Versioned[cluster.Failover]{Value: want, Mod: 61, Create: 50}
	if d := cmp.Diff([]string{"fence n2.1 after 0s"}, lines(Decide(o, first))); d != "" {
		t.Errorf("again (-want +got):\n%s", d)
	}
}

func TestProofIsRecordedWithItsEvidenceAndTime(t *testing.T) {
	o := given(lost(node2), open(node2, cluster.PhaseAwaitingFence, func(f *cluster.Failover) { f.Command = "shaman fence confirm n2" }), func(o *Observation) {
		o.Proofs[of(node2, 1)] = Proof{Method: "agent", Evidence: "status says off"}
	})
	want := cluster.Failover{
		Node: node2, Name: "n2", Inc: 1, Phase: cluster.PhaseSealing, Reason: "proven by agent", Liveness: cluster.Crashed,
		Proof: "agent", Evidence: "status says off", FencedAt: stamp(0),
	}
	step := Decide(o, first)[0]
	if d := cmp.Diff(want, step.Now); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
	if step.Mod == 0 || step.Mod != o.Nodes[node2].Mod {
		t.Errorf("the record of the node is compared at %d, it was read at %d", step.Mod, o.Nodes[node2].Mod)
	}
}

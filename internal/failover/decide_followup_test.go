package failover

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestDecideReplacesOnlyWhatCannotBeClaimed(t *testing.T) {
	here := sealed(node2, res("vm-a"))
	old := func(a *cluster.Action) { a.CreatedAt = stamp(2 * time.Minute) }
	again := []string{"take@n3 → take vm-a@n1 start"}
	decideTable(t, []row{
		{name: "a new action for a living node stays", o: given(here, take(node3, node2, "vm-a"))},
		{name: "one that nobody marked for ACTION_TIMEOUT is placed anew", o: given(here, take(node3, node2, "vm-a", old)), want: again},
		{name: "a marked one stays, however old", o: given(here, take(node3, node2, "vm-a", old, claimed))},
		{name: "a new one stays while its node is merely lost", o: given(here, take(node3, node2, "vm-a", old), lost(node3), func(o *Observation) { o.Settled = false }, beat(node3, PulseBeats))},
		{name: "a new one is placed anew when a failover of its node is open", o: given(here, take(node3, node2, "vm-a"), lost(node3), open(node3, cluster.PhaseFencing)),
			want: append([]string{"fence n3.1 after 0s"}, again...)},
		{name: "a marked one stays when a failover of its node is open", o: given(here, take(node3, node2, "vm-a", claimed), lost(node3), open(node3, cluster.PhaseFencing)), want: []string{"fence n3.1 after 0s"}},
		{name: "a marked one stays when its node is proven and not sealed", o: given(here, take(node3, node2, "vm-a", claimed), lost(node3), open(node3, cluster.PhaseSealing, proven)), want: []string{"seal n3.1"}},
		{name: "a marked one is placed anew when its node was stopped on purpose", o: given(here, take(node3, node2, "vm-a", claimed), lost(node3), record(node3, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive })), want: again},
		{name: "a marked one is placed anew when its node is sealed", o: given(here, take(node3, node2, "vm-a", claimed), sealed(node3), open(node3, cluster.PhaseDone, proven)), want: again},
		{name: "a new one for an older admission is placed anew", o: given(here, take(node3, node2, "vm-a"), alive(node3, func(a *cluster.AliveRecord) { a.Incarnation = 2 })), want: again},
		{name: "one that was answered superseded", o: given(here, take(node3, node2, "vm-a", done(cluster.OutcomeSuperseded))), want: again},
		{name: "one that was answered gone", o: given(here, take(node3, node2, "vm-a", done(cluster.OutcomeGone))), want: again},
		{name: "one that was refused", o: given(here, take(node3, node2, "vm-a", done(cluster.OutcomeRefused))), want: again},
		{name: "an action whose resource was claimed goes when its node is sealed", o: given(sealed(node2), take(node3, node2, "vm-a", claimed), sealed(node3, res("vm-a")), open(node2, cluster.PhaseDone, proven)),
			want: []string{"take@n3 → gone", "take vm-a@n1 start"}},
		{name: "an operator's action goes with its node", o: given(action(node3, cluster.VerbStart, "vm-a", claimed), sealed(node3), open(node3, cluster.PhaseDone, proven)), want: []string{"start@n3 → gone"}},
		{name: "an operator's action that is marked stays with its living node", o: given(action(node3, cluster.VerbStart, "vm-a", claimed, old))},
		{name: "an action that cannot be read blocks its key and nothing else", o: given(sealed(node2, res("vm-a"), res("vm-b")), take(node1, node2, "vm-a"), func(o *Observation) {
			o.Actions[0].Err, o.Actions[0].Value = cluster.ErrTorn, cluster.Action{Node: node1, Resource: "vm-a"}
		}), want: []string{"take vm-b@n1 start"}},
	})
}

func TestDecideFollowsUpFailures(t *testing.T) {
	failed := func(tried ...cluster.NodeID) func(*cluster.Action) {
		return func(a *cluster.Action) {
			done(cluster.OutcomeFailed)(a)
			a.Error, a.Tried, a.Attempts = "no disk", tried, len(tried)
		}
	}
	gone := func(o *Observation) {
		open(node2, cluster.PhaseRelocating, proven, func(f *cluster.Failover) { f.DispatchAt = stamp(0) })(o)
	}
	keep := func(more ...change) Observation { return given(append([]change{sealed(node2), gone}, more...)...) }
	byOperator := func(a *cluster.Action) { a.Failover, a.Pool = "", of(node4, 0).String() }
	waited := func(a *cluster.Action) { a.Policy, a.Start, a.DoneAt = "drs", true, stamp(0) }
	decideTable(t, []row{
		{name: "a VE that cannot be started is given back", o: keep(take(node3, node2, "vm-a", failed())), want: []string{"take@n3 → give-back vm-a@n3 start"}},
		{name: "under the name that it got", o: keep(take(node3, node2, "vm-a", failed(), func(a *cluster.Action) { a.NewName = "vm-a~2" })), want: []string{"take@n3 → give-back vm-a~2@n3 start"}},
		{name: "after RELOCATE_RETRIES other nodes it is broken", o: keep(take(node3, node2, "vm-a", failed(node4))), want: []string{"take@n3 → break vm-a@n3 start"}},
		{name: "at once where no retries are wanted", o: keep(take(node3, node2, "vm-a", failed()), func(o *Observation) { o.RelocateTries = 0 }), want: []string{"take@n3 → break vm-a@n3 start"}},
		{name: "at once where there is no other node", o: keep(take(node1, node2, "vm-a", failed()), sealed(node3), open(node3, cluster.PhaseDone, proven), sealed(node4), open(node4, cluster.PhaseDone, proven)), want: []string{"take@n1 → break vm-a@n1 start"}},
		{name: "one that had waited for room and cannot be started goes the same way", o: given(action(node3, cluster.VerbStart, "vm-a", waited, failed())), want: []string{"start@n3 → give-back vm-a@n3 start"}},
		{name: "and is broken after as many nodes", o: given(action(node3, cluster.VerbStart, "vm-a", waited, failed(node4))), want: []string{"start@n3 → break vm-a@n3 start"}},
		{name: "an operator's start that fails is the operator's", o: given(action(node3, cluster.VerbStart, "vm-a", failed(), func(a *cluster.Action) { a.DoneAt = stamp(0) }))},
		{name: "a give-back that fails ends broken", o: keep(action(node3, cluster.VerbGiveBack, "vm-a", ofFailover, failed(node3))), want: []string{"give-back@n3 → break vm-a@n3"}},
		{name: "also one of a failure outside of a failover", o: given(action(node3, cluster.VerbGiveBack, "vm-a", failed(node3))), want: []string{"give-back@n3 → break vm-a@n3"}},
		{name: "a quarantine that fails is tried again after a while", o: keep(action(node3, cluster.VerbBreak, "vm-a", ofFailover, failed(node3), func(a *cluster.Action) { a.DoneAt = stamp(11 * time.Second) })), want: []string{"break@n3 → break vm-a@n3"}},
		{name: "not at once, and the failover stays open meanwhile", o: keep(action(node3, cluster.VerbBreak, "vm-a", ofFailover, failed(node3)))},
		{name: "an operator's own give-back that fails changes nothing", o: given(action(node3, cluster.VerbGiveBack, "vm-a", failed()))},
		{name: "a failure of an operator's relocation goes the same way", o: given(pooled(node4, 0), take(node3, node2, "vm-a", byOperator, failed())), want: []string{"take@n3 → give-back vm-a@n3 start"}},
		{name: "a failure of a node that is gone waits for what becomes of it", o: keep(take(node3, node2, "vm-a", failed()), lost(node3), open(node3, cluster.PhaseFencing)), want: []string{"fence n3.1 after 0s"}},
		{name: "a failure of a node that was sealed is forgotten", o: given(sealed(node2), open(node2, cluster.PhaseDone, proven), take(node3, node2, "vm-a", failed()), sealed(node3), open(node3, cluster.PhaseDone, proven)), want: []string{"take@n3 → gone"}},
	})
	steps := Decide(keep(take(node3, node2, "vm-a", failed(node4))), first)
	a := steps[0].Swaps[0].New
	if d := cmp.Diff([]cluster.NodeID{node4, node3}, a.Tried); d != "" || a.Attempts != 2 || a.Reason != "no disk" || a.Operation != "start" {
		t.Errorf("break after %d attempts of %q (%s) on (-want +got):\n%s", a.Attempts, a.Operation, a.Reason, d)
	}
}

func TestDecideHandsOnWhatWasGivenBack(t *testing.T) {
	given3 := func(fs ...func(*cluster.Action)) change {
		return action(node3, cluster.VerbGiveBack, "vm-a", append([]func(*cluster.Action){done(cluster.OutcomeOK)}, fs...)...)
	}
	to := func(n cluster.NodeID) func(*cluster.Action) { return func(a *cluster.Action) { a.To = n } }
	lies := pooled(node3, 0, res("vm-a"))
	small := func(n cluster.NodeID) change {
		return alive(n, func(a *cluster.AliveRecord) { a.Capacity.Memory = 0 })
	}
	decideTable(t, []row{
		{name: "to the node that was asked for", o: given(lies, given3(to(node4))), want: []string{"give-back@n3 → take vm-a@n4 start"}},
		{name: "elsewhere if it does not fit there", o: given(lies, given3(to(node4)), small(node4)), want: []string{"give-back@n3 → take vm-a@n1 start"}},
		{name: "back to its own node if that is asked for", o: given(lies, given3(to(node3))), want: []string{"give-back@n3 → take vm-a@n3 start"}},
		{name: "stopped as it is, to the node that was asked for", o: given(pooled(node3, 0, res("vm-a", stopped)), given3(to(node4))), want: []string{"give-back@n3 → take vm-a@n4"}},
		{name: "past the nodes where it failed", o: given(lies, given3(func(a *cluster.Action) { a.Tried = []cluster.NodeID{node1, node3} })), want: []string{"give-back@n3 → take vm-a@n2 start"}},
		{name: "to a node where it failed, if there is no other that could keep it", o: given(lies, flagAll, record(node1, func(r *cluster.NodeRecord) { r.Maintenance = false }),
			given3(func(a *cluster.Action) { a.Tried = []cluster.NodeID{node1} })), want: []string{"give-back@n3 → take vm-a@n1 waiting"}},
		{name: "under the name that it got in the pool", o: given(pooled(node3, 0, res("vm-a~3")), given3(to(node4), func(a *cluster.Action) { a.NewName = "vm-a~3" })), want: []string{"give-back@n3 → take vm-a~3@n4 start"}},
		{name: "not before the answer is there, which says where to", o: given(lies, action(node3, cluster.VerbGiveBack, "vm-a", claimed, to(node4)))},
		{name: "without an answer if its owner is dead", o: given(pooled(node3, 0, res("vm-a")), sealed(node3), open(node3, cluster.PhaseDone, proven), pooled(node3, 0, res("vm-a")), action(node3, cluster.VerbGiveBack, "vm-a", claimed, to(node4))),
			want: []string{"give-back@n3 → gone", "take vm-a@n1 start"}},
		{name: "not by what its owner had said of it before it gave it back", o: given(lies, given3(to(node4)), record(node3, func(r *cluster.NodeRecord) {
			r.Elsewhere.VEs = []cluster.RunningVE{{Path: "/vm-a"}}
		})), want: []string{"give-back@n3 → take vm-a@n4 start"}},
		{name: "the answer stays until the directory was read", o: given(given3(to(node4)))},
		{name: "the answer goes when somebody has it", o: given(pooled(node3, 0), given3(to(node4))), want: []string{"give-back@n3 → gone"}},
		{name: "though a finished action of an earlier passage is still there", o: given(lies, given3(to(node4)), sealed(node2), open(node2, cluster.PhaseRelocating, proven, func(f *cluster.Failover) { f.Started, f.DispatchAt = 1, stamp(0) }),
			take(node1, node2, "vm-a", done(cluster.OutcomeStarted), func(a *cluster.Action) { a.Pool = of(node3, 0).String() }), take(node1, node2, "vm-z", claimed)),
			want: []string{"give-back@n3 → gone", "take@n1 → take vm-a@n4 start"}},
	})
}

func TestDecideClearsAwayWhatNobodyWaitsFor(t *testing.T) {
	ago := func(d time.Duration) func(*cluster.Action) {
		return func(a *cluster.Action) { done(cluster.OutcomeOK)(a); a.DoneAt = stamp(d) }
	}
	decideTable(t, []row{
		{name: "an operator's answer is kept for its command", o: given(action(node3, cluster.VerbSet, "vm-a", ago(answerKept)))},
		{name: "and goes after a while", o: given(action(node3, cluster.VerbSet, "vm-a", ago(answerKept+time.Second))), want: []string{"set@n3 → gone"}},
		{name: "an action of a failover that is over", o: given(sealed(node2), open(node2, cluster.PhaseDone, proven), take(node3, node2, "vm-a", done(cluster.OutcomeStarted))), want: []string{"take@n3 → gone"}},
		{name: "an action of a failover that is not known", o: given(pooled(node2, 1), take(node3, node2, "vm-a", done(cluster.OutcomeStarted))), want: []string{"take@n3 → gone"}},
		{name: "a quarantine outside of a failover, at once: no command waits for it", o: given(action(node3, cluster.VerbBreak, "vm-a", done(cluster.OutcomeBroken))), want: []string{"break@n3 → gone"}},
		{name: "an operator's answer that was seen is in nobody's way", o: given(sealed(node2, res("vm-a")), action(node1, cluster.VerbStart, "vm-a", ago(answerRead+time.Second))), want: []string{"start@n1 → take vm-a@n1 start"}},
		{name: "one that was perhaps not seen yet is waited for", o: given(sealed(node2, res("vm-a")), action(node1, cluster.VerbStart, "vm-a", ago(answerRead)))},
		{name: "a take outside of a failover, at once", o: given(pooled(node4, 0), take(node3, node2, "vm-a", done(cluster.OutcomeStarted), func(a *cluster.Action) { a.Failover, a.Pool = "", of(node4, 0).String() })), want: []string{"take@n3 → gone"}},
	})
}

package failover

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestDecideGivesVEsTheirResources(t *testing.T) {
	says := func(n cluster.NodeID, path string, fs ...func(*cluster.RunningVE)) change {
		return record(n, func(r *cluster.NodeRecord) {
			w := cluster.RunningVE{Path: path}
			for _, f := range fs {
				f(&w)
			}
			r.Elsewhere.VEs = append(r.Elsewhere.VEs, w)
		})
	}
	unsure := func(w *cluster.RunningVE) { w.Unsure = true }
	owns := func(n cluster.NodeID, id cluster.ResourceID) change {
		return func(o *Observation) {
			o.Paths["/"+string(id)] = append(o.Paths["/"+string(id)], Located{Owner: n, Resource: id})
		}
	}
	broken := func(ids ...cluster.ResourceID) change {
		return func(o *Observation) {
			o.Broken = map[string][]cluster.ResourceID{"/vm-a": ids}
		}
	}
	refused := func(ago time.Duration) change {
		return action(node2, cluster.VerbGiveBack, "vm-a", func(a *cluster.Action) {
			done(cluster.OutcomeRefused)(a)
			a.DoneAt, a.To, a.Adopt = stamp(ago), node3, true
		})
	}
	runs := given(owns(node2, "vm-a"), says(node3, "/vm-a"))
	with := func(more ...change) Observation {
		return given(append([]change{owns(node2, "vm-a"), says(node3, "/vm-a")}, more...)...)
	}
	decideTable(t, []row{
		{name: "the owner is asked for what runs on another node", o: runs, want: []string{"give-back vm-a@n2 for n3"}},
		{name: "not while it may still be coming there", o: given(owns(node2, "vm-a"), says(node3, "/vm-a", unsure))},
		{name: "not if it runs on two nodes by their word", o: with(says(node4, "/vm-a"))},
		{name: "not if it has two owners", o: with(owns(node4, "vm-a"))},
		{name: "not if its node owns it by now", o: given(owns(node3, "vm-a"), says(node3, "/vm-a"))},
		{name: "not while the repositories were not read", o: with(func(o *Observation) { o.Paths = nil })},
		{name: "not of an owner whose daemon is stopped", o: with(lost(node2), record(node2, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive }))},
		{name: "not for a node that is lost", o: with(lost(node3), record(node3, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive }))},
		{name: "not while an action of this name is under way", o: with(action(node2, cluster.VerbSet, "vm-a", claimed))},
		{name: "not at once again if it was refused", o: with(refused(askAgain / 2))},
		{name: "but after a while", o: with(refused(askAgain)), want: []string{"give-back@n2 → give-back vm-a@n2 for n3"}},
		{name: "once given back it goes there, and is not started", o: given(pooled(node2, 0, res("vm-a")), says(node3, "/vm-a"),
			action(node2, cluster.VerbGiveBack, "vm-a", done(cluster.OutcomeOK), func(a *cluster.Action) { a.To, a.Adopt = node3, true })), want: []string{"give-back@n2 → take vm-a@n3"}},
		{name: "also while that node's word is on its way", o: given(pooled(node2, 0, res("vm-a")),
			action(node2, cluster.VerbGiveBack, "vm-a", done(cluster.OutcomeOK), func(a *cluster.Action) { a.To, a.Adopt = node3, true })), want: []string{"give-back@n2 → take vm-a@n3"}},
		{name: "and is held while that node is lost and may run it", o: given(lost(node3), record(node3, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive }), pooled(node2, 0, res("vm-a")),
			action(node2, cluster.VerbGiveBack, "vm-a", done(cluster.OutcomeOK), func(a *cluster.Action) { a.To, a.Adopt = node3, true }))},
		{name: "a refusal keeps nothing waiting from being started", o: given(func(o *Observation) {
			r := res("vm-a", func(r *cluster.Resource) { r.Owner, r.Waiting = node2, "no room" })
			o.Waiting = append(o.Waiting, r)
			o.Paths[r.Path] = []Located{{Owner: node2, Resource: "vm-a"}}
		}, refused(answerRead+time.Second)), want: []string{"give-back@n2 → give-back vm-a@n2 for n1"}},
		{name: "a stopped one that its node let go of goes to another", o: given(pooled(node1, 0, res("vm-a", stopped))), want: []string{"take vm-a@n2"}},
		{name: "or back, if there is no other", o: given(pooled(node1, 0, res("vm-a", stopped)), lost(node2), lost(node3), lost(node4), record(node2, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive }),
			record(node3, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive }), record(node4, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive })), want: []string{"take vm-a@n1"}},
		{name: "out of quarantine too", o: given(broken("vm-x"), says(node3, "/vm-a")), want: []string{"adopt vm-x@n3"}},
		{name: "not if two in quarantine are this VE", o: given(broken("vm-x", "vm-y"), says(node3, "/vm-a"))},
		{name: "not if the pool has it", o: given(broken("vm-x"), says(node3, "/vm-a"), pooled(node2, 0, res("vm-a"))), want: []string{"take vm-a@n3"}},
		{name: "a VE without any resource is its node's to protect", o: given(says(node3, "/vm-a"))},
	})
	// Those that were refused a moment ago are in nobody's way.
	var many []change
	for _, id := range []cluster.ResourceID{"vm-a", "vm-b", "vm-c", "vm-d", "vm-e"} {
		many = append(many, owns(node2, id), says(node3, "/"+string(id)))
		if id != "vm-e" {
			many = append(many, action(node2, cluster.VerbGiveBack, id, func(a *cluster.Action) {
				done(cluster.OutcomeRefused)(a)
				a.DoneAt, a.To, a.Adopt = stamp(askAgain/2), node3, true
			}))
		}
	}
	if d := cmp.Diff([]string{"give-back vm-e@n2 for n3"}, lines(Decide(given(many...), first))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	steps := Decide(runs, first)
	want := []cluster.Swap{{New: &cluster.Action{Verb: cluster.VerbGiveBack, Adopt: true, Node: node2, Inc: 1, Resource: "vm-a", Path: "/vm-a", To: node3, Reason: "its VE runs on node n3"}}}
	if d := cmp.Diff(want, steps[0].Swaps); d != "" {
		t.Errorf("swaps (-want +got):\n%s", d)
	}
}

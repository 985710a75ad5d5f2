package failover

import (
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// TestDecideDoesNotWaitForAName: two nodes had a VE of one name each. The action
// for the first one stays for as long as its failover is open, which something
// that is held keeps open for ever; the second VE goes to another node.
func TestDecideDoesNotWaitForAName(t *testing.T) {
	twin := func(r *cluster.Resource) { r.Path = "/twin" }
	held := func(o *Observation) {
		sealed(node2, res("vm-held"))(o)
		o.CountedAt[of(node2, 1)] = moment
		o.Paths["/vm-held"] = []Located{{Owner: node1, Resource: "vm-held"}}
	}
	first := take(node1, node2, "vm-a", done(cluster.OutcomeStarted))
	decideTable(t, []row{
		{name: "one that should run", o: given(held, first, sealed(node3, res("vm-a", twin))), want: []string{"take vm-a@n4 start"}},
		{name: "one that should not", o: given(held, first, sealed(node3, res("vm-a", twin, stopped))), want: []string{"take vm-a@n4"}},
		{name: "where every node has one it waits", o: given(held, first, sealed(node3, res("vm-a", twin)), take(node4, node2, "vm-a", done(cluster.OutcomeGone)))},
		{name: "its own action is not in the way", o: given(sealed(node2, res("vm-a")), take(node1, node2, "vm-a", done(cluster.OutcomeGone))), want: []string{"take@n1 → take vm-a@n1 start"}},
	})
}

// TestDecideFindsRoomWhileAFailoverIsHeldOpen: what waits for room gets another
// chance as soon as there is some, whatever else keeps its failover open.
func TestDecideFindsRoomWhileAFailoverIsHeldOpen(t *testing.T) {
	held := func(o *Observation) {
		sealed(node2, res("vm-held"))(o)
		o.Paths["/vm-held"] = []Located{{Owner: node1, Resource: "vm-held"}}
		o.CountedAt[of(node2, 1)] = moment
		r := res("vm-a", func(r *cluster.Resource) { r.Owner, r.Waiting = node3, "no room" })
		o.Waiting, o.Paths["/vm-a"] = []cluster.Resource{r}, []Located{{Owner: node3, Resource: "vm-a"}}
	}
	kept := func(out cluster.Outcome) change {
		return take(node3, node2, "vm-a", done(out), func(a *cluster.Action) { a.Start, a.Waiting = false, "no room" })
	}
	over := open(node2, cluster.PhaseDone, proven)
	decideTable(t, []row{
		{name: "the action that brought it gives way", o: given(held, kept(cluster.OutcomeRegistered)), want: []string{"take@n3 → give-back vm-a@n3 for n1"}},
		{name: "not one that is under way", o: given(held, take(node3, node2, "vm-a", claimed))},
		{name: "nor one that failed, which is followed up", o: given(held, kept(cluster.OutcomeFailed)), want: []string{"take@n3 → give-back vm-a@n3"}},
		{name: "once the failover is done it is cleared away first", o: given(held, over, kept(cluster.OutcomeRegistered)), want: []string{"take@n3 → gone"}},
	})
}

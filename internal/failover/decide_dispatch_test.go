package failover

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestDecideDispatches(t *testing.T) {
	urgent := func(p uint32) func(*cluster.Resource) { return func(r *cluster.Resource) { r.Priority = p } }
	big := func(r *cluster.Resource) { r.Memory = 50 }
	migrating := func(n cluster.NodeID) func(*cluster.Resource) { return func(r *cluster.Resource) { r.Migrating = n } }
	runsOn := func(n cluster.NodeID, id string) change {
		return record(n, func(r *cluster.NodeRecord) { r.Elsewhere.VEs = []cluster.RunningVE{{Path: "/" + id}} })
	}
	flag := func(n cluster.NodeID) change {
		return record(n, func(r *cluster.NodeRecord) { r.Maintenance = true })
	}
	owner := func(n cluster.NodeID, path string) change {
		return func(o *Observation) { o.Paths[path] = append(o.Paths[path], Located{Owner: n}) }
	}
	silent := record(node3, func(r *cluster.NodeRecord) { r.Elsewhere.Asked = 49 })
	decideTable(t, []row{
		{name: "what should run is placed and started, highest priority first",
			o:    given(sealed(node2, res("vm-a"), res("vm-b", urgent(5)), res("vm-c", urgent(7)))),
			want: []string{"take vm-c@n1 start", "take vm-b@n1 start", "take vm-a@n1 start"}},
		{name: "what should not run is registered by the master's node", o: given(sealed(node2, res("vm-a", stopped))), want: []string{"take vm-a@n1"}},
		{name: "a file that does not say counts as running", o: given(sealed(node2, res("vm-a", func(r *cluster.Resource) { r.Want = cluster.WantUnset }))), want: []string{"take vm-a@n1 start"}},
		{name: "what fits nowhere waits on the master's node", o: given(sealed(node2, res("vm-a", big))), want: []string{"take vm-a@n1 waiting"}},
		{name: "on the first other node if the master's gets nothing", o: given(flag(node1), flag(node3), sealed(node2, res("vm-a", big), res("vm-b", stopped))), want: []string{"take vm-b@n4", "take vm-a@n4 waiting"}},
		{name: "on a node that can hold its type", o: given(alive(node1, func(a *cluster.AliveRecord) { a.Kinds = []cluster.Kind{"ct"} }), sealed(node2, res("vm-a", stopped))), want: []string{"take vm-a@n3"}},
		{name: "what lies in a repository takes room before its node has said so", o: given(sealed(node2, res("vm-a", func(r *cluster.Resource) { r.Memory = 6 })), func(o *Observation) {
			o.Owned = map[cluster.NodeID]cluster.Usage{node1: {Memory: 5}}
		}), want: []string{"take vm-a@n3 start"}},
		{name: "a claimed one is not counted twice, under way and in the repository", o: given(sealed(node2, res("vm-a", func(r *cluster.Resource) { r.Memory = 6 })),
			take(node1, node4, "vm-b", claimed, func(a *cluster.Action) { a.Memory = 4 }), owner(node1, "/vm-b"), func(o *Observation) {
				o.Owned = map[cluster.NodeID]cluster.Usage{node1: {Memory: 4}}
			}), want: []string{"take vm-a@n1 start"}},
		{name: "in the pool if no node can", o: given(flag(node1), flag(node3), flag(node4), sealed(node2, res("vm-a"), res("vm-b", stopped)))},
		{name: "nothing before the seal is recorded", o: given(lost(node2), open(node2, cluster.PhaseSealing, proven), pooled(node2, 1, res("vm-a"))), want: []string{"seal n2.1"}},
		{name: "nothing from a directory of another incarnation", o: given(sealed(node2), func(o *Observation) {
			o.Pools[of(node2, 1)] = cluster.Listing{Inc: 2, HasInc: true, Resources: []cluster.Resource{res("vm-a")}}
		})},
		{name: "nothing from a directory that does not say of which incarnation it is", o: given(sealed(node2), func(o *Observation) {
			o.Pools[of(node2, 1)] = cluster.Listing{Resources: []cluster.Resource{res("vm-a")}}
		})},
		{name: "nothing while the repositories were not read", o: given(sealed(node2, res("vm-a")), func(o *Observation) { o.Paths = nil })},
		{name: "a seal that etcd knows nothing of implies its proof", o: given(lost(node2), pooled(node2, 1, res("vm-a")), record(node2, func(r *cluster.NodeRecord) { r.BootID = "" })), want: []string{"take vm-a@n1 start"}},
		{name: "not before every living node has said what runs on it", o: given(sealed(node2, res("vm-a")), silent)},
		{name: "for two seconds at most", o: given(sealed(node2, res("vm-a")), silent, func(o *Observation) { o.OpenSince[of(node2, 1)] = moment.Add(-answersWait) }), want: []string{"take vm-a@n1 start"}},
		{name: "what runs elsewhere goes there, without a start", o: given(sealed(node2, res("vm-a")), runsOn(node4, "vm-a")), want: []string{"take vm-a@n4"}},
		{name: "what may run elsewhere is held", o: given(sealed(node2, res("vm-a"), res("vm-b")), record(node4, func(r *cluster.NodeRecord) {
			r.Elsewhere.VEs = []cluster.RunningVE{{Path: "/vm-a", Unsure: true}}
		})), want: []string{"take vm-b@n1 start"}},
		{name: "what runs on two nodes by their word is held", o: given(sealed(node2, res("vm-a")), runsOn(node3, "vm-a"), runsOn(node4, "vm-a"))},
		{name: "what runs on a node that is not alive stays", o: given(sealed(node2, res("vm-a")), runsOn(node4, "vm-a"), lost(node4), open(node4, cluster.PhaseFencing)), want: []string{"fence n4.1 after 0s"}},
		{name: "the last word of a node that was proven harmless since does not count", o: given(sealed(node2, res("vm-a")), runsOn(node4, "vm-a"), sealed(node4), open(node4, cluster.PhaseDone, proven)), want: []string{"take vm-a@n1 start"}},
		{name: "a path that lies in a repository too is held", o: given(sealed(node2, res("vm-a"), res("vm-b")), owner(node3, "/vm-a")), want: []string{"take vm-b@n1 start"}},
		{name: "one path in one sealed directory twice is held", o: given(sealed(node2, res("vm-a"), res("vm-b", func(r *cluster.Resource) { r.Path = "/vm-a" })))},
		{name: "one path in two sealed directories is held", o: given(sealed(node2, res("vm-a")), sealed(node3, res("vm-a"), res("vm-b")), record(node4, func(r *cluster.NodeRecord) { r.Elsewhere.Asked = 1000 })), want: []string{"take vm-b@n1 start"}},
		{name: "of two VEs of one name the second waits a round", o: given(sealed(node2, res("vm-a")), sealed(node3, res("vm-a", func(r *cluster.Resource) { r.Path = "/other" }))), want: []string{"take vm-a@n1 start"}},
		{name: "a migration whose other end may run it is held", o: given(sealed(node2, res("vm-a", migrating(node4))), lost(node4), open(node4, cluster.PhaseFencing)), want: []string{"fence n4.1 after 0s"}},
		{name: "a migration whose other end is alive and does not have it", o: given(sealed(node2, res("vm-a", migrating(node4)))), want: []string{"take vm-a@n1 start"}},
		{name: "a migration whose other end was taken over", o: given(sealed(node2, res("vm-a", migrating(node4))), sealed(node4), open(node4, cluster.PhaseDone, proven)), want: []string{"take vm-a@n1 start"}},
		{name: "what cannot be read goes to quarantine, and the rest goes on", o: given(sealed(node2, res("vm-a")), func(o *Observation) {
			l := o.Pools[of(node2, 1)]
			l.Unparseable = []cluster.Unparseable{{ID: "vm-x", Err: cluster.ErrTorn}}
			o.Pools[of(node2, 1)] = l
		}), want: []string{"quarantine n2.1", "take vm-a@n1 start"}},
		{name: "actions under way count against a node", o: given(sealed(node2, res("vm-a", func(r *cluster.Resource) { r.Memory = 5 })), take(node1, node4, "vm-z", claimed, func(a *cluster.Action) { a.Memory = 6 })), want: []string{"take vm-a@n3 start"}},
		{name: "so do starts of what waited", o: given(sealed(node2, res("vm-a", func(r *cluster.Resource) { r.Memory = 5 })), action(node1, cluster.VerbStart, "vm-z", func(a *cluster.Action) { a.Start, a.Memory = true, 6 })), want: []string{"take vm-a@n3 start"}},
		{name: "so does what is on its way to a node", o: given(sealed(node2, res("vm-a", func(r *cluster.Resource) { r.Memory = 5 })), action(node4, cluster.VerbGiveBack, "vm-z", func(a *cluster.Action) { a.To, a.Memory = node1, 6 })), want: []string{"take vm-a@n3 start"}},
	})
}

func TestDispatchedActionsSayEverythingTheirNodeNeeds(t *testing.T) {
	r := res("vm-a", func(r *cluster.Resource) { r.Priority, r.Memory = 9, 4 })
	steps := Decide(given(sealed(node2, r)), first)
	prio := uint32(9)
	want := []cluster.Swap{{New: &cluster.Action{
		Verb: cluster.VerbTake, Node: node1, Inc: 1, Resource: "vm-a", Pool: node2str + ".1", Failover: node2str + ".1", Start: true,
		Path: "/vm-a", Priority: &prio, Memory: 4, Policy: "first", Reason: "it is the first",
	}}}
	if d := cmp.Diff(want, steps[0].Swaps); d != "" {
		t.Errorf("swaps (-want +got):\n%s", d)
	}
}

const node2str = string(node2)

func TestDecideGivesWaitingAnotherChance(t *testing.T) {
	waits := func(owner cluster.NodeID, id cluster.ResourceID, fs ...func(*cluster.Resource)) change {
		return func(o *Observation) {
			r := res(id, func(r *cluster.Resource) { r.Owner, r.Waiting = owner, "no room" })
			for _, f := range fs {
				f(&r)
			}
			o.Waiting = append(o.Waiting, r)
			o.Paths[r.Path] = append(o.Paths[r.Path], Located{Owner: owner, Resource: id})
		}
	}
	full := func(n cluster.NodeID) change {
		return alive(n, func(a *cluster.AliveRecord) { a.Usage.Memory = 10 })
	}
	need := func(m cluster.Bytes) func(*cluster.Resource) { return func(r *cluster.Resource) { r.Memory = m } }
	decideTable(t, []row{
		{name: "started where it waits, if it fits there", o: given(waits(node1, "vm-a")), want: []string{"start vm-a@n1 start"}},
		{name: "given to the node where it fits", o: given(waits(node1, "vm-a"), full(node1)), want: []string{"give-back vm-a@n1 for n2"}},
		{name: "left waiting while it fits nowhere", o: given(waits(node1, "vm-a"), full(node1), full(node2), full(node3), full(node4))},
		{name: "left alone while an action for it is under way", o: given(waits(node1, "vm-a"), action(node1, cluster.VerbStart, "vm-a", claimed))},
		{name: "left alone while its owner is not alive", o: given(waits(node3, "vm-a"), lost(node3)), want: []string{"open n3.1 Crashed"}},
		{name: "left alone if it should not run any more", o: given(waits(node1, "vm-a", stopped))},
		{name: "held while another repository holds the same VE", o: given(waits(node1, "vm-a"), func(o *Observation) {
			o.Paths["/vm-a"] = append(o.Paths["/vm-a"], Located{Owner: node3, Resource: "vm-other"})
		})},
		{name: "held while the pool holds the same VE", o: given(waits(node1, "vm-a"), sealed(node2, res("vm-b", func(r *cluster.Resource) { r.Path = "/vm-a" })))},
		{name: "not started while another node says that it runs there, but given to that one", o: given(waits(node1, "vm-a"), record(node3, func(r *cluster.NodeRecord) {
			r.Elsewhere.VEs = []cluster.RunningVE{{Path: "/vm-a"}}
		})), want: []string{"give-back vm-a@n1 for n3"}},
		{name: "held while another node says that it may run there", o: given(waits(node1, "vm-a"), record(node3, func(r *cluster.NodeRecord) {
			r.Elsewhere.VEs = []cluster.RunningVE{{Path: "/vm-a", Unsure: true}}
		}))},
		{name: "its room is not given away twice in one round", o: given(full(node2), full(node3), full(node4), waits(node1, "vm-a", need(7)), sealed(node2, res("vm-b", need(7)))), want: []string{"take vm-b@n1 start"}},
		{name: "nor is the room of what was given back for it", o: given(full(node2), full(node3), full(node4), waits(node2, "vm-a", need(7)), pooled(node3, 0, res("vm-b", need(7))),
			action(node3, cluster.VerbGiveBack, "vm-b", done(cluster.OutcomeOK), func(a *cluster.Action) { a.To, a.Memory = node1, 7 })), want: []string{"give-back@n3 → take vm-b@n1 start"}},
	})
}

func TestDecideFinishes(t *testing.T) {
	counted := func(f *cluster.Failover) { f.Started, f.DispatchAt = 1, stamp(0) }
	sealedWith := func(f func(*cluster.Failover), more ...change) Observation {
		return given(append([]change{sealed(node2), open(node2, cluster.PhaseRelocating, proven, f)}, more...)...)
	}
	none := func(*cluster.Failover) {}
	dispatched := func(f *cluster.Failover) { f.DispatchAt = stamp(0) }
	decideTable(t, []row{
		{name: "an empty directory without actions is done", o: sealedWith(none), want: []string{"finish n2.1"}},
		{name: "not while the directory was not read", o: sealedWith(none, func(o *Observation) { delete(o.Pools, of(node2, 1)) })},
		{name: "not while an unreadable file lies in it", o: sealedWith(none, func(o *Observation) {
			o.Pools[of(node2, 1)] = cluster.Listing{Inc: 1, HasInc: true, Unparseable: []cluster.Unparseable{{ID: "vm-x", Err: cluster.ErrTorn}}}
		}), want: []string{"quarantine n2.1"}},
		{name: "not while an outcome is missing", o: sealedWith(dispatched, take(node3, node2, "vm-a", claimed))},
		{name: "not after an interim outcome", o: sealedWith(dispatched, take(node3, node2, "vm-a", claimed, func(a *cluster.Action) { a.Outcome = cluster.OutcomeUnknown }))},
		{name: "done when all outcomes are in", o: sealedWith(counted, take(node3, node2, "vm-a", done(cluster.OutcomeStarted))), want: []string{"finish n2.1"}},
		{name: "progress is written", o: sealedWith(dispatched, take(node3, node2, "vm-a", done(cluster.OutcomeStarted)), take(node3, node2, "vm-b", claimed)), want: []string{"update n2.1 relocating agent"}},
		{name: "but not too often", o: sealedWith(dispatched, take(node3, node2, "vm-a", done(cluster.OutcomeStarted)), take(node3, node2, "vm-b", claimed), func(o *Observation) {
			o.CountedAt[of(node2, 1)] = moment.Add(-countEvery + time.Millisecond)
		})},
		{name: "what has been finished for a while is counted, and gives its key back", o: sealedWith(dispatched, take(node3, node2, "vm-b", claimed),
			take(node3, node2, "vm-a", done(cluster.OutcomeStarted), ago(2*foldAfter)), take(node3, node2, "vm-c", done(cluster.OutcomeRegistered), ago(2*foldAfter)),
			take(node3, node2, "vm-d", done(cluster.OutcomeRegistered), ago(2*foldAfter), func(a *cluster.Action) { a.Waiting = "no room" })),
			want: []string{"update n2.1 relocating agent", "take@n3 → gone", "take@n3 → gone"}},
		{name: "not one whose resource lies in the directory still", o: sealedWith(dispatched, sealed(node2, res("vm-a")), take(node3, node2, "vm-b", claimed), take(node3, node2, "vm-a", done(cluster.OutcomeStarted), ago(2*foldAfter))),
			want: []string{"update n2.1 relocating agent"}},
		{name: "not while a resource that was given back waits to be claimed", o: sealedWith(dispatched, pooled(node3, 0, res("vm-a")), flagAll,
			action(node3, cluster.VerbGiveBack, "vm-a", done(cluster.OutcomeOK), ofFailover))},
		{name: "done though a give-back found nothing to give", o: sealedWith(dispatched, action(node3, cluster.VerbGiveBack, "vm-a", done(cluster.OutcomeGone), ofFailover)), want: []string{"finish n2.1"}},
		{name: "done though a give-back was refused, since the VE runs after all", o: sealedWith(dispatched, action(node3, cluster.VerbGiveBack, "vm-a", done(cluster.OutcomeRefused), ofFailover)), want: []string{"finish n2.1"}},
	})
	folded := sealedWith(func(f *cluster.Failover) {
		f.DispatchAt, f.Folded = stamp(0), cluster.Folded{Started: 7, Stopped: 2, Broken: 1}
	},
		take(node3, node2, "vm-b", claimed), take(node3, node2, "vm-a", done(cluster.OutcomeStarted), ago(2*foldAfter)), take(node3, node2, "vm-c", done(cluster.OutcomeStarted)))
	up := Decide(folded, first)[0].Now
	if want := (cluster.Folded{Started: 8, Stopped: 2, Broken: 1}); up.Folded != want || up.Started != 9 || up.Stopped != 2 || up.Broken != 1 {
		t.Errorf("folded %+v of %d started, %d stopped, %d broken; want %+v of 9, 2, 1", up.Folded, up.Started, up.Stopped, up.Broken, want)
	}
	steps := Decide(sealedWith(none,
		take(node3, node2, "vm-a", done(cluster.OutcomeStarted)), take(node3, node2, "vm-b", done(cluster.OutcomeStarted)), take(node1, node2, "vm-c", done(cluster.OutcomeRegistered)),
		take(node1, node2, "vm-d", done(cluster.OutcomeRegistered), func(a *cluster.Action) { a.Waiting = "no room" }),
		action(node4, cluster.VerbBreak, "vm-e", done(cluster.OutcomeBroken), ofFailover), take(node4, node3, "vm-f", done(cluster.OutcomeStarted)),
		func(o *Observation) {
			f := o.Failovers[of(node2, 1)]
			f.Value.Unreadable = 2
			o.Failovers[of(node2, 1)] = f
		}), first)
	last := steps[len(steps)-1]
	got := []int{last.Now.Started, last.Now.Stopped, last.Now.Waiting, last.Now.Broken, len(last.Swaps)}
	if d := cmp.Diff([]int{2, 1, 1, 3, 5}, got); d != "" || last.Do != ActFinish {
		t.Errorf("%s counts started, stopped, waiting, broken and its actions (-want +got):\n%s", last.Do, d)
	}
}

func ago(d time.Duration) func(*cluster.Action) {
	return func(a *cluster.Action) { a.DoneAt = stamp(d) }
}

func ofFailover(a *cluster.Action) { a.Failover = node2str + ".1" }

// flagAll keeps every node from getting anything.
func flagAll(o *Observation) {
	for id := range o.Nodes {
		record(id, func(r *cluster.NodeRecord) { r.Maintenance = true })(o)
	}
}

func TestDecideForgets(t *testing.T) {
	old := func(count int) change {
		return func(o *Observation) {
			for i := range count {
				f := cluster.Failover{Node: node2, Inc: cluster.Incarnation(i + 1), Phase: cluster.PhaseDone}
				o.Failovers[f.ID()] = cluster.Versioned[cluster.Failover]{Value: f, Create: int64(i + 1), Mod: int64(i + 1)}
			}
		}
	}
	now := func(inc cluster.Incarnation) change {
		return func(o *Observation) {
			record(node2, func(r *cluster.NodeRecord) { r.Incarnation = inc })(o)
			alive(node2, func(a *cluster.AliveRecord) { a.Incarnation = inc })(o)
		}
	}
	decideTable(t, []row{
		{name: "the last twenty are kept", o: given(old(keepDone), now(keepDone+1))},
		{name: "older ones are forgotten", o: given(old(keepDone+2), now(keepDone+3)), want: []string{"forget n2.1", "forget n2.2"}},
		{name: "never that of the present incarnation", o: given(old(keepDone+1), now(keepDone+1))},
	})
}

package failover

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// The nodes of the tables; node1 is master.
const (
	node1 = cluster.NodeID("0000000000000001")
	node2 = cluster.NodeID("0000000000000002")
	node3 = cluster.NodeID("0000000000000003")
	node4 = cluster.NodeID("0000000000000004")
)

var (
	clock  = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	moment = boottime.Time(10 * time.Hour)
)

func stamp(ago time.Duration) string { return clock.Add(-ago).Format(time.RFC3339Nano) }

func of(n cluster.NodeID, inc cluster.Incarnation) cluster.FailoverID {
	return cluster.FailoverID{Node: n, Incarnation: inc}
}

func nick(n cluster.NodeID) string {
	if n == "" {
		return "nobody"
	}
	return "n" + strings.TrimLeft(string(n), "0")
}

// given is an observation of four Active nodes of incarnation 1, changed as told.
func given(changes ...func(*Observation)) Observation {
	o := Observation{
		Now: moment, Clock: clock, Self: node1, Epoch: 7, Settled: true,
		Settings: Settings{
			Timing: cluster.NewTiming(10*time.Second, 0, 0), SkipThreshold: 3, StopBudget: 15 * time.Second, PoolCheck: 30 * time.Second,
			ActionTimeout: time.Minute, RelocateTries: 1, ManualAllowed: true, RebootedCounts: true,
		},
		Nodes: map[cluster.NodeID]cluster.Versioned[cluster.NodeRecord]{}, Alive: map[cluster.NodeID]cluster.Versioned[cluster.AliveRecord]{},
		Recovering: map[cluster.NodeID]cluster.Versioned[cluster.RecoveringRecord]{}, Failovers: map[cluster.FailoverID]cluster.Versioned[cluster.Failover]{},
		Confirms: map[cluster.FailoverID]cluster.Versioned[cluster.Confirm]{}, Pulses: map[cluster.NodeID]Pulse{},
		LostSince: map[cluster.NodeID]boottime.Time{}, RecoveringSince: map[cluster.NodeID]boottime.Time{},
		OpenSince: map[cluster.FailoverID]boottime.Time{}, CountedAt: map[cluster.FailoverID]boottime.Time{},
		Proofs: map[cluster.FailoverID]Proof{}, Stuck: map[cluster.FailoverID]string{},
		Pools: map[cluster.PoolID]cluster.Listing{}, Paths: map[string][]Located{},
	}
	for i, n := range []cluster.NodeID{node1, node2, node3, node4} {
		o.Nodes[n] = cluster.Versioned[cluster.NodeRecord]{Mod: int64(10 + i), Value: cluster.NodeRecord{
			Name: nick(n), Incarnation: 1, BootID: "boot-1", HardwareID: "hw-" + nick(n), Elsewhere: cluster.Elsewhere{Asked: 1000},
		}}
		o.Alive[n] = cluster.Versioned[cluster.AliveRecord]{Mod: int64(20 + i), Value: cluster.AliveRecord{
			Incarnation: 1, Mount: cluster.MountOK, Kinds: []cluster.Kind{"vm", "ct"}, Capacity: cluster.Capacity{Memory: 10},
		}}
		o.Pulses[n] = PulseBeats
	}
	for _, c := range changes {
		c(&o)
	}
	return o
}

type change = func(*Observation)

// lost takes a node's lease and heartbeat away.
func lost(n cluster.NodeID) change { return lostFor(n, 0) }

func lostFor(n cluster.NodeID, d time.Duration) change {
	return func(o *Observation) {
		delete(o.Alive, n)
		o.LostSince[n] = moment.Add(-d)
		o.Pulses[n] = PulseSilent
	}
}

func beat(n cluster.NodeID, p Pulse) change { return func(o *Observation) { o.Pulses[n] = p } }

func record(n cluster.NodeID, f func(*cluster.NodeRecord)) change {
	return func(o *Observation) {
		e := o.Nodes[n]
		f(&e.Value)
		o.Nodes[n] = e
	}
}

func alive(n cluster.NodeID, f func(*cluster.AliveRecord)) change {
	return func(o *Observation) {
		e := o.Alive[n]
		f(&e.Value)
		o.Alive[n] = e
	}
}

// back makes a node Recovering since a while ago.
func back(n cluster.NodeID, ago time.Duration, r cluster.RecoveringRecord) change {
	return func(o *Observation) {
		o.Recovering[n] = cluster.Versioned[cluster.RecoveringRecord]{Mod: 77, Value: r}
		o.RecoveringSince[n] = moment.Add(-ago)
	}
}

// open adds a failover of a node's first incarnation, with serial 50.
func open(n cluster.NodeID, p cluster.Phase, fs ...func(*cluster.Failover)) change {
	return func(o *Observation) {
		f := cluster.Failover{Node: n, Name: nick(n), Inc: 1, Phase: p, Reason: "its lease ended", Liveness: cluster.Crashed}
		for _, c := range fs {
			c(&f)
		}
		o.Failovers[f.ID()] = cluster.Versioned[cluster.Failover]{Value: f, Mod: 60, Create: 50}
		o.OpenSince[f.ID()] = moment
	}
}

func proven(f *cluster.Failover) { f.Proof, f.Evidence = "agent", "off" }

func res(id cluster.ResourceID, fs ...func(*cluster.Resource)) cluster.Resource {
	r := cluster.Resource{ID: id, Kind: id.Kind(), Path: "/" + string(id), Want: cluster.WantRunning, Memory: 1}
	for _, f := range fs {
		f(&r)
	}
	return r
}

func stopped(r *cluster.Resource) { r.Want = cluster.WantStopped }

// pooled puts resources into a pool directory.
func pooled(n cluster.NodeID, inc cluster.Incarnation, rs ...cluster.Resource) change {
	return func(o *Observation) {
		o.Pools[of(n, inc)] = cluster.Listing{Inc: inc, HasInc: true, Resources: rs}
	}
}

// sealed is a node that is lost and taken over, with these resources still in the pool.
func sealed(n cluster.NodeID, rs ...cluster.Resource) change {
	return func(o *Observation) {
		lost(n)(o)
		open(n, cluster.PhaseRelocating, proven, func(f *cluster.Failover) { f.DispatchAt = stamp(0) })(o)
		pooled(n, 1, rs...)(o)
	}
}

// action adds an action for a node's first incarnation, sent just now.
func action(n cluster.NodeID, v cluster.Verb, id cluster.ResourceID, fs ...func(*cluster.Action)) change {
	return func(o *Observation) {
		a := cluster.Action{ID: fmt.Sprint(len(o.Actions)), Verb: v, Node: n, Inc: 1, Resource: id, Path: "/" + string(id), State: cluster.ActionNew, CreatedAt: stamp(0)}
		for _, f := range fs {
			f(&a)
		}
		o.Actions = append(o.Actions, cluster.Versioned[cluster.Action]{Value: a, Mod: int64(100 + len(o.Actions))})
	}
}

func take(n cluster.NodeID, from cluster.NodeID, id cluster.ResourceID, fs ...func(*cluster.Action)) change {
	base := func(a *cluster.Action) {
		a.Pool, a.Failover, a.Start, a.Memory = of(from, 1).String(), of(from, 1).String(), true, 1
	}
	return action(n, cluster.VerbTake, id, append([]func(*cluster.Action){base}, fs...)...)
}

func claimed(a *cluster.Action) { a.State, a.ClaimedAt = cluster.ActionClaimed, stamp(0) }

func done(out cluster.Outcome) func(*cluster.Action) {
	return func(a *cluster.Action) { a.State, a.Outcome, a.DoneAt = cluster.ActionDone, out, stamp(0) }
}

// first places everything on the first node that passes simple filters.
func first(r PlaceRequest) []cluster.Placement {
	given := map[cluster.NodeID]cluster.Usage{}
	var out []cluster.Placement
	for _, res := range r.Resources {
		p := cluster.Placement{Resource: res.ID, From: res.Owner, Reason: "nothing fits"}
		for _, n := range r.View.Nodes {
			g, pend := given[n.ID], r.Pending[n.ID]
			vms := g.Running["vm"] + pend.Running["vm"] + n.Usage.Running["vm"]
			if n.Liveness != cluster.Active || len(n.Flags) > 0 || n.Mount != cluster.MountOK || !slices.Contains(n.Kinds, res.Kind) ||
				n.ID == res.Owner || slices.Contains(r.Avoid[res.ID], n.ID) || n.Capacity.MaxVEs > 0 && vms >= n.Capacity.MaxVEs ||
				res.Memory > n.Capacity.Memory-n.Usage.Memory-g.Memory-pend.Memory-r.Reserve {
				continue
			}
			p.To, p.Policy, p.Reason = n.ID, "first", "it is the first"
			g.Memory += res.Memory
			if g.Running == nil {
				g.Running = map[cluster.Kind]int{}
			}
			g.Running[res.Kind]++
			given[n.ID] = g
			break
		}
		out = append(out, p)
	}
	return out
}

// lines tells steps in short, one line a step or swap.
func lines(steps []Step) []string {
	out := []string{}
	for _, s := range steps {
		f := fmt.Sprintf("%s %s.%d", s.Do, nick(s.Failover.Node), s.Failover.Incarnation)
		switch s.Do {
		case ActOpen:
			out = append(out, fmt.Sprintf("%s %s", f, s.Opening.Failover.Liveness))
		case ActUpdate:
			out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s", f, s.Now.Phase, s.Now.Proof)))
			for _, w := range s.Swaps {
				out = append(out, swapLine(w))
			}
		case ActFence:
			out = append(out, fmt.Sprintf("%s after %s", f, s.Delay))
		case ActDispatch:
			for _, w := range s.Swaps {
				out = append(out, swapLine(w))
			}
		case ActBrake:
			if s.Brake == nil {
				out = append(out, "brake off")
				continue
			}
			var names []string
			for _, n := range s.Brake.Nodes {
				names = append(names, nick(n))
			}
			out = append(out, "brake on: "+strings.Join(names, " "))
		case ActForget:
			for _, f := range s.Old {
				out = append(out, fmt.Sprintf("forget %s.%d", nick(f.Value.Node), f.Value.Inc))
			}
		default:
			out = append(out, f)
		}
	}
	return out
}

func swapLine(w cluster.Swap) string {
	var b strings.Builder
	if w.Old != nil {
		fmt.Fprintf(&b, "%s@%s → ", w.Old.Value.Verb, nick(w.Old.Value.Node))
		if w.New == nil {
			return b.String() + "gone"
		}
	}
	a := w.New
	fmt.Fprintf(&b, "%s %s@%s", a.Verb, a.Resource, nick(a.Node))
	if a.To != "" {
		fmt.Fprintf(&b, " for %s", nick(a.To))
	}
	if a.Start {
		b.WriteString(" start")
	}
	if a.Waiting != "" {
		b.WriteString(" waiting")
	}
	return b.String()
}

type row struct {
	name string
	o    Observation
	want []string
}

func decideTable(t *testing.T, rows []row) {
	t.Helper()
	for _, tt := range rows {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == nil {
				tt.want = []string{}
			}
			if d := cmp.Diff(tt.want, lines(Decide(tt.o, first))); d != "" {
				t.Errorf("steps (-want +got):\n%s", d)
			}
		})
	}
}

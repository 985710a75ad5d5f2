package failover

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// left takes a node out of the cluster.
func left(n cluster.NodeID) change {
	return func(o *Observation) {
		delete(o.Nodes, n)
		delete(o.Alive, n)
		delete(o.Pulses, n)
	}
}

// TestDecideWaitsForNobodyWhoDoesNotComeBack: a node that leaves, or whose daemon
// is stopped, right after an action was sent to it is never failed over.
func TestDecideWaitsForNobodyWhoDoesNotComeBack(t *testing.T) {
	here := sealed(node2, res("vm-a"))
	gone := func(o *Observation) {
		sealed(node2)(o)
		open(node2, cluster.PhaseRelocating, proven, func(f *cluster.Failover) { f.DispatchAt = stamp(0) })(o)
	}
	inactive := func(o *Observation) {
		delete(o.Alive, node3)
		record(node3, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive })(o)
	}
	again := []string{"take@n3 → take vm-a@n1 start"}
	failed := func(a *cluster.Action) { done(cluster.OutcomeFailed)(a); a.Error = "no disk" }
	decideTable(t, []row{
		{name: "a new action for a node that left", o: given(here, take(node3, node2, "vm-a"), left(node3)), want: again},
		{name: "a marked one for a node that left", o: given(here, take(node3, node2, "vm-a", claimed), left(node3)), want: again},
		{name: "a marked one whose resource went with the node", o: given(gone, take(node3, node2, "vm-a", claimed), left(node3)), want: []string{"take@n3 → gone"}},
		{name: "a failure of a node that left", o: given(gone, take(node3, node2, "vm-a", failed), left(node3)), want: []string{"take@n3 → gone"}},
		{name: "a quarantine by a node that left", o: given(gone, action(node3, cluster.VerbBreak, "vm-a", ofFailover, failed), left(node3)), want: []string{"break@n3 → gone"}},
		{name: "a new action for a node whose daemon was stopped", o: given(here, take(node3, node2, "vm-a"), inactive), want: again},
		{name: "a new action from far in the future: the master's clock was set back", o: given(here, take(node3, node2, "vm-a", func(a *cluster.Action) { a.CreatedAt = stamp(-time.Hour) })), want: again},
		{name: "clocks of two masters that differ a little", o: given(here, take(node3, node2, "vm-a", func(a *cluster.Action) { a.CreatedAt = stamp(-time.Second) }))},
		{name: "a marked one for such a node: its rename may be under way, and one rename wins", o: given(here, take(node3, node2, "vm-a", claimed), inactive), want: again},
	})
}

// TestWithdrawingEndsTheMethodsFirst: an agent that goes on for a moment cuts the
// power of a node that is admitted by then.
func TestWithdrawingEndsTheMethodsFirst(t *testing.T) {
	ended := make(chan struct{})
	running := make(chan struct{})
	slow := methodFunc(func(ctx context.Context) error {
		close(running)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	})
	o := given(lost(node2), open(node2, cluster.PhaseFencing))
	over := true
	d := &desk{answer: func(c string) error {
		if c == "withdraw n2" {
			select {
			case <-ended:
			case <-time.After(5 * time.Second):
				over = false
			}
		}
		return nil
	}}
	e := engineOf(o, d)
	e.Methods = these(slow)
	m := e.newTerm(term7)
	f := o.Failovers[of(node2, 1)]
	if err := m.apply(t.Context(), o, Step{Do: ActFence, Failover: of(node2, 1), Was: f}); err != nil {
		t.Fatal(err)
	}
	<-running
	if err := m.apply(t.Context(), o, Step{Do: ActWithdraw, Failover: of(node2, 1), Was: f, Now: f.Value}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"marks", "check mark of 1", "mark etcd [id old]", "mark the mount id", "withdraw n2"}, d.calls()); d != "" || !over {
		t.Errorf("methods ended before: %v; calls (-want +got):\n%s", over, d)
	}
	m.prover.stop()
}

type methodFunc func(context.Context) error

func (methodFunc) Name() string { return "slow" }
func (methodFunc) Gentle() bool { return true }
func (f methodFunc) Prove(ctx context.Context, _ cluster.FenceTarget, _ func() error) (string, error) {
	return "", f(ctx)
}

// TestWhatAStoppedNodeMarkedGivesWayOnlyWhileItIsStopped: the transaction looks, since
// the node may be admitted again in between and carry it out.
func TestWhatAStoppedNodeMarkedGivesWayOnlyWhileItIsStopped(t *testing.T) {
	inactive := func(o *Observation) {
		lost(node3)(o)
		record(node3, func(r *cluster.NodeRecord) { r.Stopped = cluster.StopInactive })(o)
	}
	compared := 0
	for name, c := range map[string]struct {
		state change
		want  bool
	}{
		"marked": {take(node3, node2, "vm-a", claimed), true},
		"new":    {take(node3, node2, "vm-a"), false},
	} {
		o := given(sealed(node2, res("vm-a")), inactive, c.state)
		for _, s := range Decide(o, first) {
			for _, w := range s.Swaps {
				compared++
				if got := w.NodeMod != 0 && w.NodeMod == o.Nodes[node3].Mod; w.Old != nil && got != c.want {
					t.Errorf("%s: the node's record is compared: %v, want %v", name, got, c.want)
				}
			}
		}
	}
	if compared != 2 {
		t.Errorf("%d actions gave way, want 2", compared)
	}
}

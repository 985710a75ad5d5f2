package failover

import (
	"fmt"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// BenchmarkDecide is one round of a failover of 10,000 VEs: at first nothing is
// dispatched, then everything is under way, then everything is answered.
func BenchmarkDecide(b *testing.B) {
	const count = 10_000
	o := given(sealed(node2), func(o *Observation) {
		l := cluster.Listing{Inc: 1, HasInc: true}
		for i := range count {
			l.Resources = append(l.Resources, res(cluster.ResourceID(fmt.Sprintf("vm-%05d", i)), func(r *cluster.Resource) { r.Memory = 0 }))
		}
		o.Pools[of(node2, 1)] = l
	})
	round := func(name string, o Observation) []Step {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				Decide(o, first)
			}
		})
		return Decide(o, first)
	}
	for _, s := range round("dispatch", o) {
		for i, w := range s.Swaps {
			w.New.State, w.New.CreatedAt = cluster.ActionNew, stamp(0)
			o.Actions = append(o.Actions, cluster.Versioned[cluster.Action]{Value: *w.New, Mod: int64(i)})
		}
	}
	round("under way", o)
	o.Pools[of(node2, 1)] = cluster.Listing{Inc: 1, HasInc: true}
	for i := range o.Actions {
		done(cluster.OutcomeStarted)(&o.Actions[i].Value)
	}
	round("answered", o)
}

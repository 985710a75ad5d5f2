package failover

import (
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// TestDecideNeverCutsThePowerOfTheMaster: a node that is back may be master
// before it is admitted, and the only one that is left.
func TestDecideNeverCutsThePowerOfTheMaster(t *testing.T) {
	slow := func(rg cluster.RecoveringRecord) change {
		return func(o *Observation) {
			lostFor(node1, time.Hour)(o)
			beat(node1, PulseUnknown)(o)
			back(node1, time.Minute, rg)(o)
		}
	}
	old := func(o *Observation) { o.OpenSince[of(node1, 1)] = moment.Add(-time.Hour) }
	decideTable(t, []row{
		{name: "its own admission takes long: it is not failed over by itself", o: given(slow(cluster.RecoveringRecord{}))},
		{name: "another node's does: that one is", o: given(lostFor(node2, time.Hour), back(node2, time.Minute, cluster.RecoveringRecord{})), want: []string{"open n2.1 Crashed"}},
		{name: "it stopped everything and needs the takeover", o: given(slow(cluster.RecoveringRecord{Quiesced: true})), want: []string{"open n1.1 Crashed"}},
		{name: "a failover of its own from another master: no agent runs", o: given(slow(cluster.RecoveringRecord{}), open(node1, cluster.PhaseFencing), old), want: []string{"update n1.1 awaiting-fence"}},
		{name: "after it stopped everything, with nobody left: no agent, but its own answer counts", o: given(slow(cluster.RecoveringRecord{Quiesced: true}), open(node1, cluster.PhaseFencing), left(node2), left(node3), left(node4)), want: []string{"fence n1.1 after 24h0m0s"}},
		{name: "and an operator is asked if that takes too long", o: given(slow(cluster.RecoveringRecord{Quiesced: true}), open(node1, cluster.PhaseFencing), old, left(node2), left(node3), left(node4)), want: []string{"fence n1.1 after 24h0m0s", "update n1.1 awaiting-fence"}},
		{name: "but with others left it may be cut off", o: given(slow(cluster.RecoveringRecord{Quiesced: true}), open(node1, cluster.PhaseFencing), old), want: []string{"fence n1.1 after 0s"}},
		{name: "it is withdrawn as any other", o: given(slow(cluster.RecoveringRecord{NotQuiesced: true}), open(node1, cluster.PhaseAwaitingFence), old), want: []string{"withdraw n1.1"}},
		{name: "and goes on with a proof", o: given(slow(cluster.RecoveringRecord{}), open(node1, cluster.PhaseSealing, proven), old), want: []string{"seal n1.1"}},
	})
}

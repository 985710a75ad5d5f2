package dispatch

import (
	"fmt"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"pgregory.net/rapid"
)

// Every swap is in one batch, a batch is for one node and fits a transaction,
// and the order of a node's swaps stays: the most urgent comes first.
func TestBatchesAreOfOneNodeAndFit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		action := func(i int) *cluster.Action {
			return &cluster.Action{Node: cluster.NodeID(fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "node"))), Attempts: i}
		}
		var swaps []cluster.Swap
		for i := range rapid.IntRange(0, 500).Draw(t, "swaps") {
			var s cluster.Swap
			kind := rapid.IntRange(0, 2).Draw(t, "kind")
			if kind != 0 {
				s.Old = &cluster.Versioned[cluster.Action]{Value: *action(i)}
			}
			if kind != 1 {
				s.New = action(i)
			}
			swaps = append(swaps, s)
		}
		total := 0
		last := map[cluster.NodeID]int{}
		for _, batch := range inBatches(swaps) {
			ops := 0
			of := cluster.NodeID("")
			for k, s := range batch {
				var node cluster.NodeID
				var order int
				if s.New != nil {
					node, order = s.New.Node, s.New.Attempts
				} else {
					node, order = s.Old.Value.Node, s.Old.Value.Attempts
				}
				if s.Old != nil && s.New != nil {
					ops++
				}
				ops++
				if k > 0 && node != of {
					t.Fatalf("a batch is for the nodes %s and %s", of, node)
				}
				if order < last[node] {
					t.Fatalf("swap %d of node %s comes after swap %d", order, node, last[node])
				}
				of, last[node] = node, order
			}
			if ops > etcd.MaxOps {
				t.Fatalf("a batch of %d operations", ops)
			}
			total += len(batch)
		}
		if total != len(swaps) {
			t.Fatalf("%d of %d swaps are in a batch", total, len(swaps))
		}
	})
}

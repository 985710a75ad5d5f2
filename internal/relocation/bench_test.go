package relocation_test

import (
	"fmt"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/relocation"
)

// large is a cluster of 10,000 living nodes to which 100,000 VEs of some dead
// nodes are to go, each of which needs a little less than its share of memory.
func large(dead int, need cluster.Bytes) relocation.Request {
	req := relocation.Request{CPUPools: map[cluster.NodeID]string{}}
	for i := range 10_000 {
		req.View.Nodes = append(req.View.Nodes, active(cluster.NodeID(fmt.Sprintf("%016x", i)), memory(cluster.Bytes(64+i%7)*gib)))
	}
	for i := range dead {
		id := cluster.NodeID(fmt.Sprintf("dead-%d", i))
		req.View.Nodes = append(req.View.Nodes, active(id, func(n *cluster.Node) { n.Liveness = cluster.Crashed }))
	}
	for i := range 100_000 {
		r := vm(cluster.ResourceID(fmt.Sprintf("vm-%06d", i)), need+cluster.Bytes(i%13)*gib/4)
		if i%2 == 1 {
			r.ID, r.Kind = cluster.ResourceID(fmt.Sprintf("ct-%06d", i)), cluster.KindCT
		}
		r.Priority, r.Owner = uint32(i%5), cluster.NodeID(fmt.Sprintf("dead-%d", i%dead))
		req.Resources = append(req.Resources, r)
	}
	return req
}

func BenchmarkPlace100k(b *testing.B) {
	for _, bb := range []struct {
		name, mode string
		dead       int
		need       cluster.Bytes
	}{
		{"drs of one node", "drs,round-robin", 1, 2 * gib},
		{"drs of 100 nodes", "drs,round-robin", 100, 2 * gib},
		{"round-robin of one node", "round-robin", 1, 2 * gib},
		{"spare then drs", "spare,drs", 1, 2 * gib},
		{"half of it fits nowhere", "drs", 1, 14 * gib},
	} {
		b.Run(bb.name, func(b *testing.B) {
			req, p := large(bb.dead, bb.need), policy(b, bb.mode)
			b.ReportAllocs()
			for b.Loop() {
				p.Place(req)
			}
		})
	}
}

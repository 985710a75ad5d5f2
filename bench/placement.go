package main

import (
	"fmt"
	"runtime"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/relocation"
)

const (
	placedVEs   = 100_000
	placedNodes = 10_000
	gib         = cluster.Bytes(1 << 30)
)

// benchPlacement asks the policies for more than any cluster has.
func benchPlacement(o options) error {
	rows := [][]string{{"mode", "dead nodes", "median", "worst", "placed"}}
	for _, c := range []struct {
		mode string
		dead int
		need cluster.Bytes
	}{
		{"drs,round-robin", 1, 2 * gib},
		{"drs,round-robin", 100, 2 * gib},
		{"round-robin", 1, 2 * gib},
		{"spare,drs", 1, 2 * gib},
		{"drs", 1, 14 * gib}, // half of it fits nowhere
	} {
		p, err := relocation.Parse(c.mode)
		if err != nil {
			return err
		}
		req := placement(c.dead, c.need)
		var took []time.Duration
		placed := 0
		for range max(o.runs, 5) {
			runtime.GC()
			begin := time.Now()
			out := p.Place(req)
			took = append(took, time.Since(begin))
			placed = 0
			for _, pl := range out {
				if pl.To != "" {
					placed++
				}
			}
		}
		rows = append(rows, []string{c.mode, fmt.Sprint(c.dead), seconds(median(took)), seconds(worst(took)), fmt.Sprint(placed)})
	}
	table(fmt.Sprintf("Placement of %d VEs onto %d nodes, in seconds (target: 0.500)", placedVEs, placedNodes), rows)
	return nil
}

func placement(dead int, need cluster.Bytes) relocation.Request {
	kinds := []cluster.Kind{cluster.KindVM, cluster.KindCT}
	req := relocation.Request{CPUPools: map[cluster.NodeID]string{}}
	for i := range placedNodes {
		id := cluster.NodeID(fmt.Sprintf("%016x", i))
		req.View.Nodes = append(req.View.Nodes, cluster.Node{
			ID: id, Name: string(id), Liveness: cluster.Active, Mount: cluster.MountOK, Kinds: kinds,
			Capacity: cluster.Capacity{Memory: cluster.Bytes(64+i%7) * gib},
		})
	}
	for i := range dead {
		id := cluster.NodeID(fmt.Sprintf("%016x", placedNodes+i))
		req.View.Nodes = append(req.View.Nodes, cluster.Node{ID: id, Name: string(id), Liveness: cluster.Crashed, Kinds: kinds})
	}
	for i := range placedVEs {
		kind := kinds[i%2]
		req.Resources = append(req.Resources, cluster.Resource{
			ID: cluster.MakeResourceID(kind, veName(i)), Kind: kind, Path: "/ve/" + veName(i), Want: cluster.WantRunning,
			Owner: cluster.NodeID(fmt.Sprintf("%016x", placedNodes+i%dead)), Memory: need + cluster.Bytes(i%13)*gib/4, Priority: uint32(i % 5),
		})
	}
	return req
}

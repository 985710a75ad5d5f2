package agent

import (
	"context"
	"fmt"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// maxDrift bounds the differences that a node publishes one by one; all are counted.
const maxDrift = 100

// maxAbsent bounds at how many paths one look looks: each is a listing of a directory.
const maxAbsent = 20

// drifts are the differences that one look found.
type drifts struct {
	asked  int // paths that were looked at
	first  []cluster.Drift
	counts map[cluster.DriftClass]int
}

func (d *drifts) add(x cluster.Drift) {
	if d.counts == nil {
		d.counts = map[cluster.DriftClass]int{}
	}
	if d.counts[x.Class]++; len(d.first) < maxDrift {
		d.first = append(d.first, x)
	}
}

// driftOf notes in what a resource differs from its VE, which is here, beyond what
// settle mends.
func (r *session) driftOf(d *drifts, res cluster.Resource, v cluster.VE) {
	x := cluster.Drift{Class: cluster.DriftMismatch, Resource: res.ID, Path: res.Path}
	switch {
	case v.Unfit != "":
		x.Why, x.Next = "it cannot be highly available any more: "+v.Unfit, "mend that, or 'shaman del "+string(res.ID)+"'"
		d.add(x)
	case !v.HA:
		x.Why, x.Next = "high availability is off in the VE's own parameters", fmt.Sprintf("'shaman del %s', or switch it on in the VE", res.ID)
		d.add(x)
	}
	if on, _ := r.RunsOn(res.Path); v.State == cluster.VERunning && len(on) > 0 {
		d.add(cluster.Drift{Class: cluster.DriftDuplicate, Resource: res.ID, Path: res.Path,
			Why: fmt.Sprintf("it runs here and, by the word of node %s, runs or comes up there (a migration under way shows like this)", on[0]), Next: "if it is not being migrated, stop it on one of the two at once"})
	}
}

// unknownVE notes a resource whose VE the hypervisor does not know.
func (r *session) unknownVE(ctx context.Context, d *drifts, res cluster.Resource) {
	x := cluster.Drift{Class: cluster.DriftOrphan, Resource: res.ID, Path: res.Path, Why: "its VE is not known to the hypervisor of its node", Next: "'shaman sync' on its node registers it again"}
	if d.asked++; d.asked > maxAbsent {
		d.add(x)
		return
	}
	if absent, err := r.Repository.Absent(ctx, res.Path); err == nil && absent {
		x.Class, x.Why, x.Next = cluster.DriftBadPath, "there is nothing at its path", "restore the VE, or 'shaman sync' on its node, which puts the resource into quarantine"
	}
	d.add(x)
}

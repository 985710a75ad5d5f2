package relocation_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/relocation"
)

const gib = cluster.Bytes(1 << 30)

// active is a node that passes every filter and has 10 GiB free; changes make
// it less fit.
func active(id cluster.NodeID, changes ...func(*cluster.Node)) cluster.Node {
	n := cluster.Node{
		ID: id, Name: string(id), Liveness: cluster.Active, Mount: cluster.MountOK,
		Kinds: []cluster.Kind{cluster.KindVM, cluster.KindCT}, Capacity: cluster.Capacity{Memory: 10 * gib},
	}
	for _, c := range changes {
		c(&n)
	}
	return n
}

func memory(free cluster.Bytes) func(*cluster.Node) {
	return func(n *cluster.Node) { n.Capacity.Memory = free }
}

func running(kind cluster.Kind, count int) func(*cluster.Node) {
	return func(n *cluster.Node) {
		if n.Usage.Running == nil {
			n.Usage.Running = map[cluster.Kind]int{}
		}
		n.Usage.Running[kind] = count
	}
}

func roles(r ...cluster.Role) func(*cluster.Node) { return func(n *cluster.Node) { n.Roles = r } }

// vm is a resource of the dead node "dead" that needs this much memory.
func vm(id cluster.ResourceID, need cluster.Bytes) cluster.Resource {
	return cluster.Resource{ID: id, Kind: id.Kind(), Path: "/" + string(id), Owner: "dead", Want: cluster.WantRunning, Memory: need}
}

func policy(t testing.TB, mode string) relocation.Policy {
	t.Helper()
	p, err := relocation.Parse(mode)
	if err != nil {
		t.Fatalf("parse %q: %v", mode, err)
	}
	return p
}

// homes is where each resource went; "" is nowhere.
func homes(ps []cluster.Placement) map[cluster.ResourceID]cluster.NodeID {
	out := map[cluster.ResourceID]cluster.NodeID{}
	for _, p := range ps {
		out[p.Resource] = p.To
	}
	return out
}

// rejections is why each node did not get the only resource of an answer.
func rejections(t *testing.T, ps []cluster.Placement) map[cluster.NodeID]string {
	t.Helper()
	if len(ps) != 1 {
		t.Fatalf("got %d placements for one resource: %+v", len(ps), ps)
	}
	out := map[cluster.NodeID]string{}
	for _, r := range ps[0].Rejected {
		out[r.Node] = r.Reason
	}
	return out
}

func diff(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

package etcd_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
)

// TestLayout: these names are a contract with tools outside of this program.
func TestLayout(t *testing.T) {
	l := etcd.NewLayout("lab")
	const n = cluster.NodeID("00000000000000aa")
	id := cluster.FailoverID{Node: n, Incarnation: 7}
	got := map[string]string{
		"node": l.Node(n), "alive": l.Alive(n), "recovering": l.Recovering(n), "masters": l.Masters(), "config": l.Config(),
		"failover": l.Failover(id), "confirm": l.Confirm(id), "brake": l.Brake(), "withdrawn": l.Withdrawn(42),
		"action on a resource": l.Action(cluster.Action{Node: n, Resource: "vm-web", Verb: cluster.VerbTake, ID: "x"}),
		"action on a node":     l.Action(cluster.Action{Node: n, Verb: cluster.VerbLeave, ID: "5e"}),
	}
	want := map[string]string{
		"node": "/shaman/lab/nodes/00000000000000aa", "alive": "/shaman/lab/alive/00000000000000aa",
		"recovering": "/shaman/lab/recovering/00000000000000aa", "masters": "/shaman/lab/master/", "config": "/shaman/lab/config/",
		"failover": "/shaman/lab/failovers/00000000000000aa.7", "confirm": "/shaman/lab/confirms/00000000000000aa.7",
		"brake": "/shaman/lab/brake", "withdrawn": "/shaman/lab/history/00000000000000000042",
		"action on a resource": "/shaman/lab/actions/00000000000000aa/vm-web",
		"action on a node":     "/shaman/lab/actions/00000000000000aa/.leave.5e",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	for name, key := range got {
		if !strings.HasPrefix(key, l.Prefix()) {
			t.Errorf("%s: %s is outside of the cluster's prefix", name, key)
		}
	}
	if strings.HasPrefix(etcd.NewLayout("lab2").Prefix(), l.Prefix()) {
		t.Error("the keys of a cluster whose name begins with that of another one are inside that other one")
	}
}

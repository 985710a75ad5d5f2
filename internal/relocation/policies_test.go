package relocation_test

import (
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/relocation"
)

type placed = map[cluster.ResourceID]cluster.NodeID

func TestPolicies(t *testing.T) {
	urgent := func(r cluster.Resource, p uint32) cluster.Resource { r.Priority = p; return r }
	from := func(r cluster.Resource, n cluster.NodeID) cluster.Resource { r.Owner = n; return r }
	hosting := func(n *cluster.Node) { n.Resources = map[cluster.Kind]int{cluster.KindVM: 1} }
	for _, tt := range []struct {
		name      string
		mode      string
		nodes     []cluster.Node
		resources []cluster.Resource
		req       relocation.Request
		want      placed
	}{
		{
			name: "drs takes the node with the most free memory", mode: "drs",
			nodes:     []cluster.Node{active("n1", memory(5*gib)), active("n2", memory(9*gib)), active("n3", memory(7*gib))},
			resources: []cluster.Resource{vm("vm-a", gib)}, want: placed{"vm-a": "n2"},
		},
		{
			name: "drs deducts what it gave before it chooses again", mode: "drs",
			nodes:     []cluster.Node{active("n1", memory(5*gib)), active("n2", memory(6*gib))},
			resources: []cluster.Resource{vm("vm-a", 3*gib), vm("vm-b", 2*gib), vm("vm-c", gib)}, want: placed{"vm-a": "n2", "vm-b": "n1", "vm-c": "n1"},
		},
		{
			name: "drs gives the last room to the higher priority, however small it is", mode: "drs",
			nodes:     []cluster.Node{active("n1", memory(4*gib))},
			resources: []cluster.Resource{vm("vm-big", 4*gib), urgent(vm("vm-small", gib), 1)}, want: placed{"vm-big": "", "vm-small": "n1"},
		},
		{
			name: "drs places the largest of one priority first", mode: "drs",
			nodes:     []cluster.Node{active("n1", memory(4*gib))},
			resources: []cluster.Resource{vm("vm-small", gib), vm("vm-big", 4*gib)}, want: placed{"vm-small": "", "vm-big": "n1"},
		},
		{
			name: "drs breaks a tie of memory by the fewer VEs, then by id", mode: "drs",
			nodes:     []cluster.Node{active("n1", running(cluster.KindVM, 2)), active("n3", running(cluster.KindVM, 1)), active("n2", running(cluster.KindVM, 1))},
			resources: []cluster.Resource{vm("vm-a", gib)}, want: placed{"vm-a": "n2"},
		},
		{
			name: "drs passes over the freest node where the VE failed, for that VE only", mode: "drs",
			nodes:     []cluster.Node{active("n1", memory(20*gib)), active("n2")},
			resources: []cluster.Resource{vm("vm-a", 2*gib), vm("vm-b", gib)}, want: placed{"vm-a": "n2", "vm-b": "n1"},
			req: relocation.Request{Avoid: map[cluster.ResourceID][]cluster.NodeID{"vm-a": {"n1"}}},
		},
		{
			name: "drs keeps the VEs of two nodes out of each one's own node only", mode: "drs",
			nodes:     []cluster.Node{active("n1", memory(20*gib)), active("n2")},
			resources: []cluster.Resource{from(vm("vm-a", gib), "n1"), from(vm("vm-b", gib), "n2")}, want: placed{"vm-a": "n2", "vm-b": "n1"},
		},
		{
			name: "drs counts across types: a container fills the memory that a virtual machine wants", mode: "drs",
			nodes:     []cluster.Node{active("n1", memory(4*gib)), active("n2", memory(3*gib))},
			resources: []cluster.Resource{vm("ct-a", 3*gib), vm("vm-b", 2*gib)}, want: placed{"ct-a": "n1", "vm-b": "n2"},
		},
		{
			name: "drs leaves types of scripts to others", mode: "drs",
			nodes:     []cluster.Node{active("n1", func(n *cluster.Node) { n.Kinds = append(n.Kinds, "s3") })},
			resources: []cluster.Resource{vm("s3-a", 0)}, want: placed{"s3-a": ""},
		},
		{
			name: "round-robin goes round, by priority and then id, beginning where its turn is", mode: "round-robin",
			nodes:     []cluster.Node{active("n1"), active("n2"), active("n3")},
			resources: []cluster.Resource{vm("vm-a", gib), vm("vm-b", gib), urgent(vm("vm-c", gib), 1), vm("vm-d", gib)},
			want:      placed{"vm-c": "n2", "vm-a": "n3", "vm-b": "n1", "vm-d": "n2"}, req: relocation.Request{Turn: 4},
		},
		{
			name: "round-robin passes over full nodes and goes on with the rest", mode: "round-robin",
			nodes:     []cluster.Node{active("n1", func(n *cluster.Node) { n.Capacity.MaxVEs = 1 }), active("n2"), active("n3")},
			resources: []cluster.Resource{vm("vm-a", 0), vm("vm-b", 0), vm("vm-c", 0), vm("vm-d", 0), vm("vm-e", 0)},
			want:      placed{"vm-a": "n1", "vm-b": "n2", "vm-c": "n3", "vm-d": "n2", "vm-e": "n3"},
		},
		{
			name: "round-robin passes over a node where the VE failed, for that VE only", mode: "round-robin",
			nodes:     []cluster.Node{active("n1"), active("n2")},
			resources: []cluster.Resource{vm("vm-a", 0), vm("vm-b", 0)}, want: placed{"vm-a": "n2", "vm-b": "n1"},
			req: relocation.Request{Avoid: map[cluster.ResourceID][]cluster.NodeID{"vm-a": {"n1"}}},
		},
		{
			name: "round-robin takes a negative turn for what it is", mode: "round-robin",
			nodes:     []cluster.Node{active("n1"), active("n2"), active("n3")},
			resources: []cluster.Resource{vm("vm-a", 0)}, want: placed{"vm-a": "n3"}, req: relocation.Request{Turn: -1},
		},
		{
			name: "spare takes everything to one empty node, though another is emptier by then", mode: "spare",
			nodes:     []cluster.Node{active("n1"), active("n2", memory(11*gib))},
			resources: []cluster.Resource{vm("vm-a", 5*gib), vm("vm-b", 5*gib)}, want: placed{"vm-a": "n2", "vm-b": "n2"},
		},
		{
			name: "spare prefers the role to the memory", mode: "spare",
			nodes:     []cluster.Node{active("n1", memory(90*gib)), active("n2", roles(cluster.RoleSpare))},
			resources: []cluster.Resource{vm("vm-a", gib)}, want: placed{"vm-a": "n2"},
		},
		{
			name: "spare passes over a node that runs something", mode: "spare",
			nodes:     []cluster.Node{active("n1", memory(90*gib), running(cluster.KindCT, 1)), active("n2")},
			resources: []cluster.Resource{vm("vm-a", gib)}, want: placed{"vm-a": "n2"},
		},
		{
			name: "spare passes over a node that holds a stopped resource", mode: "spare",
			nodes:     []cluster.Node{active("n1", memory(90*gib), hosting), active("n2")},
			resources: []cluster.Resource{vm("vm-a", gib)}, want: placed{"vm-a": "n2"},
		},
		{
			name: "spare passes over a node for which something is under way", mode: "spare",
			nodes:     []cluster.Node{active("n1", memory(90*gib)), active("n2")},
			resources: []cluster.Resource{vm("vm-a", gib)}, want: placed{"vm-a": "n2"},
			req: relocation.Request{Pending: map[cluster.NodeID]cluster.Usage{"n1": {Running: map[cluster.Kind]int{cluster.KindVM: 1}}}},
		},
		{
			name: "spare passes over the empty node that just came back, where all of it comes from", mode: "spare",
			nodes:     []cluster.Node{active("dead", memory(90*gib)), active("n2")},
			resources: []cluster.Resource{vm("vm-a", gib), vm("vm-b", gib)}, want: placed{"vm-a": "n2", "vm-b": "n2"},
		},
		{
			name: "spare passes over an empty node that can run none of it", mode: "spare",
			nodes:     []cluster.Node{active("n1", memory(90*gib), func(n *cluster.Node) { n.Kinds = []cluster.Kind{"s3"} }), active("n2")},
			resources: []cluster.Resource{vm("vm-a", gib)}, want: placed{"vm-a": "n2"},
		},
		{
			name: "spare leaves over what its one node cannot hold", mode: "spare",
			nodes:     []cluster.Node{active("n1", memory(4*gib)), active("n2", memory(3*gib))},
			resources: []cluster.Resource{vm("vm-a", 3*gib), vm("vm-b", 2*gib)}, want: placed{"vm-a": "n1", "vm-b": ""},
		},
		{
			name: "spare has nothing to offer where every node hosts something", mode: "spare",
			nodes:     []cluster.Node{active("n1", hosting)},
			resources: []cluster.Resource{vm("vm-a", gib)}, want: placed{"vm-a": ""},
		},
		{
			name: "no nodes at all", mode: "drs,round-robin,spare",
			resources: []cluster.Resource{vm("vm-a", gib)}, want: placed{"vm-a": ""},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := tt.req
			req.View.Nodes, req.Resources = tt.nodes, tt.resources
			diff(t, "homes", tt.want, homes(policy(t, tt.mode).Place(req)))
		})
	}
}

package relocation_test

import (
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/relocation"
)

// Each row makes one node unfit. Beside it stands a node that is fit but less
// attractive to every policy, and that must get the resource.
func TestEveryFilterRejectsWithItsReason(t *testing.T) {
	all := []string{"drs", "round-robin", "spare"}
	sized := []string{"drs", "spare"}
	for _, tt := range []struct {
		name  string
		unfit func(*cluster.Node)
		req   func(*relocation.Request)
		kind  cluster.ResourceID
		modes []string
		want  string
	}{
		{name: "a node that is not alive", unfit: func(n *cluster.Node) { n.Liveness = cluster.Crashed }, modes: all, want: "is Crashed"},
		{name: "a node that is not admitted yet", unfit: func(n *cluster.Node) { n.Liveness = cluster.Recovering }, modes: all, want: "is Recovering"},
		{name: "a node under maintenance", unfit: func(n *cluster.Node) { n.Flags = []cluster.Flag{cluster.Maintenance} }, modes: all, want: "is Maintenance"},
		{name: "a suspended node", unfit: func(n *cluster.Node) { n.Flags = []cluster.Flag{cluster.Suspended} }, modes: all, want: "is Suspended"},
		{name: "a node whose mount is slow", unfit: func(n *cluster.Node) { n.Mount = cluster.MountSlow }, modes: all, want: "its mount is slow"},
		{name: "a node whose mount is lost", unfit: func(n *cluster.Node) { n.Mount = cluster.MountLost }, modes: all, want: "its mount is lost"},
		{name: "the node that it comes from", unfit: func(n *cluster.Node) { n.ID = "dead" }, modes: all, want: "is where it comes from"},
		{name: "a node without a driver for the type", unfit: func(n *cluster.Node) { n.Kinds = []cluster.Kind{cluster.KindCT} }, modes: all, want: "has no driver for type vm"},
		{name: "a node whose roles name other types", unfit: roles("CT", "S3"), modes: all, want: "lacks role VM"},
		{name: "a spare whose other roles name other types", unfit: roles(cluster.RoleSpare, "CT"), modes: all, want: "lacks role VM"},
		{name: "a node that is kept as a spare", unfit: roles(cluster.RoleSpare), modes: []string{"drs", "round-robin"}, want: "is kept as a spare"},
		{
			name: "a node of another CPU pool", unfit: func(n *cluster.Node) { n.Capacity.CPUPool = "b" }, modes: all, want: `is in CPU pool "b", not "a"`,
			req: func(r *relocation.Request) { r.CPUPools = map[cluster.NodeID]string{"dead": "a"} },
		},
		{
			name: "a node of no CPU pool, when it comes from one", unfit: func(*cluster.Node) {}, modes: all, want: `is in CPU pool "", not "a"`,
			req: func(r *relocation.Request) { r.CPUPools = map[cluster.NodeID]string{"dead": "a"} },
		},
		{
			name: "a node where it failed already", unfit: func(*cluster.Node) {}, modes: all, want: "failed with it already",
			req: func(r *relocation.Request) {
				r.Avoid = map[cluster.ResourceID][]cluster.NodeID{"vm-a": {"unfit"}, "ct-a": {"unfit"}}
			},
		},
		{
			name: "a node at its limit of virtual machines", modes: []string{"drs", "round-robin"}, want: "runs 2 virtual machines, MAX_VMS is 2",
			unfit: func(n *cluster.Node) { n.Capacity.MaxVMs = 2; running(cluster.KindVM, 2)(n) },
		},
		{
			name: "a node at its limit of containers", modes: []string{"drs", "round-robin"}, want: "runs 3 containers, MAX_CTS is 3", kind: "ct-a",
			unfit: func(n *cluster.Node) { n.Capacity.MaxCTs = 3; running(cluster.KindCT, 3)(n) },
		},
		{
			name: "a node at its limit of all VEs", modes: []string{"drs", "round-robin"}, want: "runs 4 VEs, MAX_VES is 4",
			unfit: func(n *cluster.Node) {
				n.Capacity.MaxVEs = 4
				running(cluster.KindCT, 3)(n)
				running(cluster.KindVM, 1)(n)
			},
		},
		{
			name: "a node that actions under way bring to its limit", modes: []string{"drs", "round-robin"}, want: "runs 1 virtual machines, MAX_VMS is 1",
			unfit: func(n *cluster.Node) { n.Capacity.MaxVMs = 1 },
			req: func(r *relocation.Request) {
				r.Pending = map[cluster.NodeID]cluster.Usage{"unfit": {Running: map[cluster.Kind]int{cluster.KindVM: 1}}}
			},
		},
		{name: "a node with too little memory", unfit: memory(2*gib - 1), modes: sized, want: "needs 2.0 GiB, 2.0 GiB free"},
		{
			name: "a node whose VEs leave too little memory", unfit: func(n *cluster.Node) { n.Usage.Memory = 9 * gib }, modes: sized, want: "needs 2.0 GiB, 1.0 GiB free",
		},
		{
			name: "a node for which VEs are under way that leave too little memory", unfit: func(*cluster.Node) {}, modes: sized, want: "needs 2.0 GiB, 1.0 GiB free",
			req: func(r *relocation.Request) { r.Pending = map[cluster.NodeID]cluster.Usage{"unfit": {Memory: 9 * gib}} },
		},
		{
			name: "a node whose reserve leaves too little memory", unfit: memory(3 * gib), modes: sized, want: "needs 2.0 GiB, 1.0 GiB free",
			req: func(r *relocation.Request) { r.Reserve = 2 * gib },
		},
		{name: "a node whose memory is not known", unfit: memory(0), modes: sized, want: "needs 2.0 GiB, 0 bytes free"},
	} {
		for _, mode := range tt.modes {
			t.Run(mode+"/"+tt.name, func(t *testing.T) {
				id := tt.kind
				if id == "" {
					id = "vm-a"
				}
				unfit := active("unfit", tt.unfit)
				req := relocation.Request{Resources: []cluster.Resource{vm(id, 2*gib)}, Explain: true}
				if tt.req != nil {
					tt.req(&req)
				}
				req.View.Nodes = []cluster.Node{unfit}
				alone := policy(t, mode).Place(req)
				diff(t, "alone, it goes nowhere", map[cluster.ResourceID]cluster.NodeID{id: ""}, homes(alone))
				diff(t, "alone, the rejection", map[cluster.NodeID]string{unfit.ID: tt.want}, rejections(t, alone))

				fit := active("z-fit", memory(5*gib))
				fit.Capacity.CPUPool = req.CPUPools["dead"]
				req.View.Nodes = append(req.View.Nodes, fit)
				both := policy(t, mode).Place(req)
				diff(t, "beside a fit node, it goes there", map[cluster.ResourceID]cluster.NodeID{id: "z-fit"}, homes(both))
				if mode == "spare" && rejections(t, both)["unfit"] == "is not the spare node" {
					return // the unfit one was not even looked at
				}
				diff(t, "beside a fit node, the rejection", map[cluster.NodeID]string{unfit.ID: tt.want}, rejections(t, both))
			})
		}
	}
}

func TestWhatNoFilterForbidsIsAllowed(t *testing.T) {
	for _, tt := range []struct {
		name string
		node func(*cluster.Node)
		mode string
		res  cluster.Resource
		pool string
	}{
		{name: "exactly as much memory as is needed", mode: "drs", node: memory(2 * gib), res: vm("vm-a", 2*gib)},
		{name: "a VE whose memory is not known, on a node that has none left", mode: "drs", node: func(n *cluster.Node) { n.Usage.Memory = 20 * gib }, res: vm("vm-a", 0)},
		{name: "a role that names the type", mode: "drs", node: roles("CT", "VM"), res: vm("vm-a", gib)},
		{name: "a role that names the type beside SPARE", mode: "drs", node: roles(cluster.RoleSpare, "VM"), res: vm("vm-a", gib)},
		{name: "the limit of the other type", mode: "drs", node: func(n *cluster.Node) { n.Capacity.MaxCTs = 1; running(cluster.KindCT, 1)(n) }, res: vm("vm-a", gib)},
		{name: "one below the limit of all VEs", mode: "drs", node: func(n *cluster.Node) { n.Capacity.MaxVEs = 2; running(cluster.KindCT, 1)(n) }, res: vm("vm-a", gib)},
		{name: "a node in a CPU pool, for a VE from a node in none", mode: "drs", node: func(n *cluster.Node) { n.Capacity.CPUPool = "b" }, res: vm("vm-a", gib)},
		{name: "the same CPU pool", mode: "drs", node: func(n *cluster.Node) { n.Capacity.CPUPool = "a" }, res: vm("vm-a", gib), pool: "a"},
		{name: "more memory than there is, in turn", mode: "round-robin", node: memory(gib), res: vm("vm-a", 50*gib)},
		{name: "a type of a script, in turn", mode: "round-robin", node: func(n *cluster.Node) { n.Kinds = []cluster.Kind{"s3"} }, res: vm("s3-a", 0)},
		{name: "a type of a script, on the spare", mode: "spare", node: func(n *cluster.Node) { n.Kinds = []cluster.Kind{"s3"} }, res: vm("s3-a", 0)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := relocation.Request{Resources: []cluster.Resource{tt.res}, CPUPools: map[cluster.NodeID]string{"dead": tt.pool}}
			req.View.Nodes = []cluster.Node{active("n1", tt.node)}
			diff(t, "home", map[cluster.ResourceID]cluster.NodeID{tt.res.ID: "n1"}, homes(policy(t, tt.mode).Place(req)))
		})
	}
}

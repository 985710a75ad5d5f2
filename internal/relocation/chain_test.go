package relocation_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/relocation"
)

func TestChainFallsThrough(t *testing.T) {
	full := func(n *cluster.Node) { n.Capacity.MaxVEs = 1 }
	for _, tt := range []struct {
		name      string
		mode      string
		nodes     []cluster.Node
		resources []cluster.Resource
		want      []cluster.Placement
	}{
		{
			name: "what drs has no memory for goes in turn", mode: "drs,round-robin",
			nodes: []cluster.Node{active("n1", memory(4*gib))}, resources: []cluster.Resource{vm("vm-big", 9*gib), vm("vm-a", gib)},
			want: []cluster.Placement{
				{Resource: "vm-big", From: "dead", To: "n1", Policy: "round-robin", Reason: "it was its turn"},
				{Resource: "vm-a", From: "dead", To: "n1", Policy: "drs", Reason: "it has the most free memory of the nodes that fit"},
			},
		},
		{
			name: "the next policy finds the nodes as full as the one before has left them", mode: "drs,round-robin",
			nodes: []cluster.Node{active("n1", full), active("n2", memory(2*gib))}, resources: []cluster.Resource{vm("vm-a", 3*gib), vm("vm-b", 3*gib)},
			want: []cluster.Placement{
				{Resource: "vm-a", From: "dead", To: "n1", Policy: "drs", Reason: "it has the most free memory of the nodes that fit"},
				{Resource: "vm-b", From: "dead", To: "n2", Policy: "round-robin", Reason: "it was its turn"},
			},
		},
		{
			name: "a node that an earlier policy filled is no spare any more", mode: "drs,spare",
			nodes: []cluster.Node{active("n1", memory(4*gib))}, resources: []cluster.Resource{vm("vm-a", 3*gib), vm("s3-b", 0)},
			want: []cluster.Placement{
				{Resource: "vm-a", From: "dead", To: "n1", Policy: "drs", Reason: "it has the most free memory of the nodes that fit"},
				{
					Resource: "s3-b", From: "dead", Reason: "spare finds no node among 1 (one has no driver for type s3)",
					Rejected: []cluster.Rejection{{Node: "n1", Reason: "has no driver for type s3"}},
				},
			},
		},
		{
			name: "everything falls through a spare that is not there", mode: "spare,drs",
			nodes: []cluster.Node{active("n1", running(cluster.KindVM, 1))}, resources: []cluster.Resource{vm("vm-a", gib)},
			want: []cluster.Placement{{Resource: "vm-a", From: "dead", To: "n1", Policy: "drs", Reason: "it has the most free memory of the nodes that fit"}},
		},
		{
			name: "what no policy can place says why, with the commonest reason first", mode: "round-robin,drs",
			nodes: []cluster.Node{
				active("n1", func(n *cluster.Node) { n.Liveness = cluster.Crashed }),
				active("n2", func(n *cluster.Node) { n.Flags = []cluster.Flag{cluster.Suspended} }),
				active("n3", func(n *cluster.Node) { n.Flags = []cluster.Flag{cluster.Suspended} }),
			},
			resources: []cluster.Resource{vm("vm-a", gib)},
			want: []cluster.Placement{{
				Resource: "vm-a", From: "dead", Reason: "drs finds no node among 3 (2: each is Suspended; one is Crashed)",
				Rejected: []cluster.Rejection{{Node: "n1", Reason: "is Crashed"}, {Node: "n2", Reason: "is Suspended"}, {Node: "n3", Reason: "is Suspended"}},
			}},
		},
		{
			name: "a type that the only policy does not know", mode: "drs",
			nodes: []cluster.Node{active("n1")}, resources: []cluster.Resource{vm("s3-a", 0)},
			want: []cluster.Placement{{Resource: "s3-a", From: "dead", Reason: "drs places virtual machines and containers only"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := relocation.Request{View: cluster.View{Nodes: tt.nodes}, Resources: tt.resources}
			diff(t, "placements", tt.want, policy(t, tt.mode).Place(req))
		})
	}
}

func TestExplainSaysOfEveryOtherNodeWhyNot(t *testing.T) {
	req := relocation.Request{Explain: true, Resources: []cluster.Resource{vm("vm-a", 4*gib)}}
	req.View.Nodes = []cluster.Node{active("n1"), active("n2", memory(5*gib)), active("n3", memory(gib)), active("n4", roles("CT"))}
	for _, tt := range []struct {
		mode string
		want map[cluster.NodeID]string
	}{
		{"drs", map[cluster.NodeID]string{"n2": "another node suits better", "n3": "needs 4.0 GiB, 1.0 GiB free", "n4": "lacks role VM"}},
		{"round-robin", map[cluster.NodeID]string{"n2": "another node suits better", "n3": "another node suits better", "n4": "lacks role VM"}},
		{"spare", map[cluster.NodeID]string{"n2": "is not the spare node", "n3": "is not the spare node", "n4": "lacks role VM"}},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			diff(t, "rejections", tt.want, rejections(t, policy(t, tt.mode).Place(req)))
		})
	}
}

func TestAVEThatFitsNowhereDoesNotAskThousandsOfNodesUnlessExplained(t *testing.T) {
	req := relocation.Request{Resources: []cluster.Resource{vm("vm-a", gib)}}
	for i := range 1000 {
		req.View.Nodes = append(req.View.Nodes, active(cluster.NodeID(fmt.Sprintf("n%04d", i)), memory(0)))
	}
	brief := policy(t, "drs").Place(req)
	if n := len(brief[0].Rejected); n == 0 || n >= 1000 {
		t.Errorf("without Explain %d of 1000 nodes gave a reason", n)
	}
	if !strings.Contains(brief[0].Reason, "among 1000") || !strings.Contains(brief[0].Reason, "of the first") {
		t.Errorf("the reason does not say how many nodes there are and how many were asked: %q", brief[0].Reason)
	}
	req.Explain = true
	if n := len(policy(t, "drs").Place(req)[0].Rejected); n != 1000 {
		t.Errorf("with Explain %d of 1000 nodes gave a reason", n)
	}
}

func TestParse(t *testing.T) {
	for _, tt := range []struct{ mode, want, refused string }{
		{mode: "drs", want: "drs"},
		{mode: "drs,round-robin", want: "drs,round-robin"},
		{mode: "spare,drs,round-robin", want: "spare,drs,round-robin"},
		{mode: "", refused: "no policy"},
		{mode: "drs,", refused: "no policy"},
		{mode: "drs,drs", refused: "twice"},
		{mode: "DRS", refused: "allowed are drs, round-robin, spare"},
		{mode: "drs, spare", refused: "no policy"},
	} {
		t.Run(fmt.Sprintf("%q", tt.mode), func(t *testing.T) {
			p, err := relocation.Parse(tt.mode)
			switch {
			case tt.refused == "" && err != nil:
				t.Fatal(err)
			case tt.refused == "":
				diff(t, "name", tt.want, p.Name())
			case err == nil || !strings.Contains(err.Error(), tt.refused):
				t.Errorf("got %v, want an error that says %q", err, tt.refused)
			}
		})
	}
}

func TestManyVEsThatFitNowhereStillSayWhyEach(t *testing.T) {
	req := relocation.Request{}
	for i := range 100 {
		req.View.Nodes = append(req.View.Nodes, active(cluster.NodeID(fmt.Sprintf("n%04d", i)), memory(0)))
	}
	for i := range 10_000 {
		req.Resources = append(req.Resources, vm(cluster.ResourceID(fmt.Sprintf("vm-%05d", i)), gib))
	}
	total := 0
	for _, p := range policy(t, "drs").Place(req) {
		if len(p.Rejected) == 0 || !strings.Contains(p.Reason, "needs 1.0 GiB, 0 bytes free") {
			t.Fatalf("%s: %q with %d rejections", p.Resource, p.Reason, len(p.Rejected))
		}
		total += len(p.Rejected)
	}
	if total > 100_000 {
		t.Errorf("%d looks at nodes for 10,000 VEs that fit nowhere", total)
	}
}

package relocation_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/relocation"
	"pgregory.net/rapid"
)

var kinds = []cluster.Kind{cluster.KindVM, cluster.KindCT, "s3"}

func drawNode(t *rapid.T, id cluster.NodeID) cluster.Node {
	seldom := func(what string) bool { return rapid.IntRange(0, 5).Draw(t, string(id)+what) == 0 }
	n := cluster.Node{ID: id, Liveness: cluster.Active, Mount: cluster.MountOK, Kinds: slices.Clone(kinds)}
	if seldom(" down") {
		n.Liveness = rapid.SampledFrom([]cluster.Liveness{cluster.Crashed, cluster.Isolated, cluster.Recovering, cluster.Inactive}).Draw(t, "liveness")
	}
	if seldom(" flagged") {
		n.Flags = []cluster.Flag{cluster.Maintenance}
	}
	if seldom(" without mount") {
		n.Mount = cluster.MountLost
	}
	if seldom(" without driver") {
		n.Kinds = n.Kinds[1:]
	}
	n.Roles = rapid.SampledFrom([][]cluster.Role{nil, nil, nil, {cluster.RoleSpare}, {"VM"}, {"CT", "S3"}}).Draw(t, "roles")
	n.Capacity = cluster.Capacity{
		Memory: cluster.Bytes(rapid.IntRange(0, 12).Draw(t, "memory")), CPUPool: rapid.SampledFrom([]string{"", "", "a", "b"}).Draw(t, "pool"),
		MaxVMs: rapid.IntRange(0, 4).Draw(t, "max vms"), MaxCTs: rapid.IntRange(0, 4).Draw(t, "max cts"), MaxVEs: rapid.IntRange(0, 6).Draw(t, "max ves"),
	}
	if seldom(" used") {
		n.Usage = cluster.Usage{Memory: cluster.Bytes(rapid.IntRange(0, 12).Draw(t, "used")), Running: map[cluster.Kind]int{cluster.KindVM: 1}}
		n.Resources = map[cluster.Kind]int{cluster.KindVM: 1}
	}
	return n
}

func drawRequest(t *rapid.T) relocation.Request {
	r := relocation.Request{
		Avoid: map[cluster.ResourceID][]cluster.NodeID{}, Pending: map[cluster.NodeID]cluster.Usage{},
		CPUPools: map[cluster.NodeID]string{"n0": rapid.SampledFrom([]string{"", "a"}).Draw(t, "pool of n0")},
		Reserve:  cluster.Bytes(rapid.IntRange(0, 2).Draw(t, "reserve")), Turn: rapid.IntRange(-3, 9).Draw(t, "turn"), Explain: rapid.Bool().Draw(t, "explain"),
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "nodes") {
		id := cluster.NodeID(fmt.Sprintf("n%d", i))
		r.View.Nodes = append(r.View.Nodes, drawNode(t, id))
		if rapid.IntRange(0, 5).Draw(t, "pending") == 0 {
			r.Pending[id] = cluster.Usage{Memory: 2, Running: map[cluster.Kind]int{cluster.KindVM: 1}}
		}
	}
	for i := range rapid.IntRange(0, 12).Draw(t, "resources") {
		kind := rapid.SampledFrom(kinds).Draw(t, "kind")
		id := cluster.ResourceID(fmt.Sprintf("%s-%d", kind, i))
		r.Resources = append(r.Resources, cluster.Resource{
			ID: id, Kind: kind, Path: "/" + string(id), Priority: uint32(rapid.IntRange(0, 2).Draw(t, "priority")),
			Memory: cluster.Bytes(rapid.IntRange(0, 6).Draw(t, "need")), Owner: rapid.SampledFrom([]cluster.NodeID{"", "n0", "n1", "gone"}).Draw(t, "owner"),
		})
		if rapid.IntRange(0, 5).Draw(t, "avoids") == 0 {
			r.Avoid[id] = []cluster.NodeID{"n2"}
		}
	}
	return r
}

func drawMode(t *rapid.T) string {
	words := rapid.Permutation([]string{"drs", "round-robin", "spare"}).Draw(t, "policies")
	return strings.Join(words[:rapid.IntRange(1, 3).Draw(t, "how many")], ",")
}

// broken says which rule a placement breaks; given is what its node got before.
func broken(req relocation.Request, r cluster.Resource, p cluster.Placement, given map[cluster.NodeID]cluster.Usage) string {
	i := slices.IndexFunc(req.View.Nodes, func(n cluster.Node) bool { return n.ID == p.To })
	if i < 0 {
		return "goes to a node that is not there"
	}
	n, g := req.View.Nodes[i], given[p.To]
	pool := req.CPUPools[r.Owner]
	others := slices.ContainsFunc(n.Roles, func(r cluster.Role) bool { return r != cluster.RoleSpare })
	pend := req.Pending[p.To]
	total, same := 0, n.Usage.Running[r.Kind]+pend.Running[r.Kind]+g.Running[r.Kind]
	for _, u := range []cluster.Usage{n.Usage, pend, g} {
		for _, c := range u.Running {
			total += c
		}
	}
	free := n.Capacity.Memory - n.Usage.Memory - pend.Memory - g.Memory - req.Reserve
	switch {
	case n.Liveness != cluster.Active, len(n.Flags) > 0, n.Mount != cluster.MountOK:
		return "goes to a node that gets nothing"
	case p.To == r.Owner, slices.Contains(req.Avoid[r.ID], p.To):
		return "goes to a node where it must not be"
	case !slices.Contains(n.Kinds, r.Kind), others && !slices.Contains(n.Roles, cluster.RoleOf(r.Kind)):
		return "goes to a node that cannot run its type"
	case pool != "" && n.Capacity.CPUPool != pool:
		return "leaves its CPU pool"
	case n.Capacity.MaxVEs > 0 && total >= n.Capacity.MaxVEs,
		r.Kind == cluster.KindVM && n.Capacity.MaxVMs > 0 && same >= n.Capacity.MaxVMs,
		r.Kind == cluster.KindCT && n.Capacity.MaxCTs > 0 && same >= n.Capacity.MaxCTs:
		return "exceeds a limit"
	case p.Policy != "spare" && len(n.Roles) > 0 && !others:
		return "goes to a spare without the policy spare"
	case p.Policy != "round-robin" && r.Memory > 0 && r.Memory > free:
		return "exceeds the memory"
	}
	return ""
}

// TestNothingIsLostTwiceOrMisplaced follows the answer in the order in which the
// policies chose, so that what was given before counts.
func TestNothingIsLostTwiceOrMisplaced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		req, mode := drawRequest(t), drawMode(t)
		p, err := relocation.Parse(mode)
		if err != nil {
			t.Fatal(err)
		}
		got := p.Place(req)
		if len(got) != len(req.Resources) {
			t.Fatalf("%s: %d placements for %d resources", mode, len(got), len(req.Resources))
		}
		byPolicy := map[string][]int{}
		spares := map[cluster.NodeID]bool{}
		for i, pl := range got {
			r := req.Resources[i]
			switch {
			case pl.Resource != r.ID || pl.From != r.Owner:
				t.Fatalf("%s: placement %d is of %s from %q, want %s from %q", mode, i, pl.Resource, pl.From, r.ID, r.Owner)
			case pl.Reason == "":
				t.Fatalf("%s: %s has no reason", mode, r.ID)
			case (pl.To == "") != (pl.Policy == ""):
				t.Fatalf("%s: %s goes to %q by policy %q", mode, r.ID, pl.To, pl.Policy)
			case pl.To != "" && !slices.Contains(strings.Split(mode, ","), pl.Policy):
				t.Fatalf("%s: %s was placed by %s", mode, r.ID, pl.Policy)
			case pl.Policy == "spare":
				spares[pl.To] = true
			}
			for _, rej := range pl.Rejected {
				if rej.Node == pl.To || rej.Reason == "" {
					t.Fatalf("%s: %s on %q has the rejection %+v", mode, r.ID, pl.To, rej)
				}
			}
			byPolicy[pl.Policy] = append(byPolicy[pl.Policy], i)
		}
		if len(spares) > 1 {
			t.Fatalf("%s: more than one spare node was used: %v", mode, spares)
		}
		given := map[cluster.NodeID]cluster.Usage{}
		for _, word := range strings.Split(mode, ",") {
			order := byPolicy[word]
			slices.SortStableFunc(order, func(a, b int) int { return int(req.Resources[b].Priority) - int(req.Resources[a].Priority) })
			for _, i := range order {
				if why := broken(req, req.Resources[i], got[i], given); why != "" {
					t.Fatalf("%s: %s by %s on %s %s", mode, got[i].Resource, word, got[i].To, why)
				}
				g := given[got[i].To]
				if g.Running == nil {
					g.Running = map[cluster.Kind]int{}
				}
				g.Memory += req.Resources[i].Memory
				g.Running[req.Resources[i].Kind]++
				given[got[i].To] = g
			}
		}
		// What no policy placed, the last one could not have placed either.
		for _, i := range byPolicy[""] {
			for _, n := range req.View.Nodes {
				last := mode[strings.LastIndex(mode, ",")+1:]
				if last != "round-robin" {
					continue // drs leaves types over, spare all nodes but one
				}
				pl := cluster.Placement{To: n.ID, Policy: last}
				if broken(req, req.Resources[i], pl, given) == "" {
					t.Fatalf("%s: %s was left over, though %s takes it", mode, req.Resources[i].ID, n.ID)
				}
			}
		}
	})
}

func TestTheAnswerDoesNotDependOnTheOrderOfNodesAndChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		req := drawRequest(t)
		p, err := relocation.Parse(drawMode(t))
		if err != nil {
			t.Fatal(err)
		}
		before := clone(req)
		want := p.Place(req)
		if d := cmp.Diff(before, req); d != "" {
			t.Fatalf("the request was changed (-before +after):\n%s", d)
		}
		again := req
		again.View.Nodes = rapid.Permutation(req.View.Nodes).Draw(t, "another order of the nodes")
		if d := cmp.Diff(want, p.Place(again)); d != "" {
			t.Fatalf("another order, another answer (-want +got):\n%s", d)
		}
		// Nor does where a resource goes depend on the order of the resources.
		again.Resources = rapid.Permutation(req.Resources).Draw(t, "another order of the resources")
		if d := cmp.Diff(homes(want), homes(p.Place(again))); d != "" {
			t.Fatalf("another order of resources, another answer (-want +got):\n%s", d)
		}
	})
}

// clone copies whatever of a request a policy could write to.
func clone(r relocation.Request) relocation.Request {
	nodes := slices.Clone(r.View.Nodes)
	usage := func(u cluster.Usage) cluster.Usage {
		if u.Running != nil {
			m := map[cluster.Kind]int{}
			for k, c := range u.Running {
				m[k] = c
			}
			u.Running = m
		}
		return u
	}
	for i := range nodes {
		nodes[i].Usage = usage(nodes[i].Usage)
		nodes[i].Kinds, nodes[i].Roles, nodes[i].Flags = slices.Clone(nodes[i].Kinds), slices.Clone(nodes[i].Roles), slices.Clone(nodes[i].Flags)
	}
	r.View.Nodes, r.Resources = nodes, slices.Clone(r.Resources)
	pending := map[cluster.NodeID]cluster.Usage{}
	for id, u := range r.Pending {
		pending[id] = usage(u)
	}
	avoid := map[cluster.ResourceID][]cluster.NodeID{}
	for id, ns := range r.Avoid {
		avoid[id] = slices.Clone(ns)
	}
	pools := map[cluster.NodeID]string{}
	for id, p := range r.CPUPools {
		pools[id] = p
	}
	r.Pending, r.Avoid, r.CPUPools = pending, avoid, pools
	return r
}

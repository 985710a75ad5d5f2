// Package relocation chooses new homes for resources: the policies drs, spare
// and round-robin, and chains of them.
//
// Policies are pure: the same request gives the same answer, whatever the order
// of its nodes, and nothing of the request is changed. Each resource gets
// exactly one placement; one without a node says why.
package relocation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Request is what a policy is asked. A resource's Owner is the node that it
// leaves, and where it never goes.
type Request struct {
	View      cluster.View
	Resources []cluster.Resource
	Avoid     map[cluster.ResourceID][]cluster.NodeID // nodes where it failed already
	Pending   map[cluster.NodeID]cluster.Usage        // actions under way, on top of the nodes' own usage
	CPUPools  map[cluster.NodeID]string               // of nodes that resources leave: they stay within their pool
	Reserve   cluster.Bytes                           // HOST_MEMORY_RESERVE: memory of every node that is not given away
	Turn      int                                     // where round-robin begins
	Explain   bool                                    // say of every resource why the other nodes were not chosen
}

// Policy is one way of choosing.
type Policy interface {
	// Name is the policy's word in RESOURCE_RELOCATION_MODE.
	Name() string
	// Place returns one placement for each resource of the request.
	Place(Request) []cluster.Placement
}

// Names are the words that RESOURCE_RELOCATION_MODE may list.
var names = []string{"drs", "round-robin", "spare"}

// Parse reads RESOURCE_RELOCATION_MODE: policies joined by commas; what one
// cannot place falls to the next.
func Parse(mode string) (Policy, error) {
	var chain []Policy
	seen := map[string]bool{}
	for _, word := range strings.Split(mode, ",") {
		if seen[word] {
			return nil, fmt.Errorf("relocation mode %q names %q twice", mode, word)
		}
		seen[word] = true
		switch word {
		case "drs":
			chain = append(chain, drs{})
		case "round-robin":
			chain = append(chain, roundRobin{})
		case "spare":
			chain = append(chain, spare{})
		default:
			return nil, fmt.Errorf("relocation mode %q: %q is no policy; allowed are %s, joined by commas", mode, word, strings.Join(names, ", "))
		}
	}
	return Chain(chain...), nil
}

// Chain asks the policies in turn: what one cannot place falls to the next,
// which finds the nodes as full as the ones before have left them.
func Chain(policies ...Policy) Policy { return chain(policies) }

type chain []Policy

func (c chain) Name() string {
	words := make([]string, len(c))
	for i, p := range c {
		words[i] = p.Name()
	}
	return strings.Join(words, ",")
}

func (c chain) Place(req Request) []cluster.Placement {
	t := newTable(req)
	out := make([]cluster.Placement, len(req.Resources))
	open := make([]int, len(req.Resources))
	for i := range open {
		open[i] = i
	}
	for _, p := range c {
		if len(open) == 0 {
			break
		}
		placer, ok := p.(placer)
		if !ok {
			continue // only this package makes policies
		}
		open = placer.place(t, open, out)
	}
	for _, i := range open {
		r := req.Resources[i]
		out[i].Resource, out[i].From = r.ID, r.Owner
		if out[i].Reason == "" {
			out[i].Reason = "no policy applies to this type"
		}
	}
	return out
}

// placer is what the policies of this package do on a shared table: place what
// they can of the open resources, and return the rest with reasons filled in.
type placer interface {
	place(t *table, open []int, out []cluster.Placement) (left []int)
}

// host is a node with what was given to it so far.
type host struct {
	node    cluster.Node
	free    cluster.Bytes // less reserve and pending; meaningless if the memory is not known
	running map[cluster.Kind]int
	total   int
	fit     string // why it gets nothing at all; "" = it may
	pool    string
}

// table is the state of one chain's run.
type table struct {
	req   Request
	hosts []*host                 // in order of their ids
	fit   map[cluster.NodeID]bool // those that may get something
	class map[classKey][]*host
	looks int // how many nodes were asked why they do not take a resource
}

// classKey groups resources for which the same filters hold. A node that gets
// nothing anyway is no reason for a class of its own: else the VEs of each of
// many dead nodes would be one.
type classKey struct {
	kind  cluster.Kind
	from  cluster.NodeID // "" unless it could get something
	pool  string
	spare bool
}

func (t *table) classOf(r cluster.Resource, spare bool) classKey {
	k := classKey{kind: r.Kind, pool: t.req.CPUPools[r.Owner], spare: spare}
	if t.fit[r.Owner] {
		k.from = r.Owner
	}
	return k
}

func newTable(req Request) *table {
	t := &table{req: req, fit: map[cluster.NodeID]bool{}, class: map[classKey][]*host{}}
	for _, n := range req.View.Nodes {
		p := req.Pending[n.ID]
		h := &host{node: n, pool: n.Capacity.CPUPool, running: map[cluster.Kind]int{}}
		h.free = n.Capacity.Memory - n.Usage.Memory - p.Memory - req.Reserve
		for _, m := range []map[cluster.Kind]int{n.Usage.Running, p.Running} {
			for k, c := range m {
				h.running[k] += c
				h.total += c
			}
		}
		switch {
		case n.Liveness != cluster.Active:
			h.fit = "is " + string(n.Liveness)
		case len(n.Flags) > 0:
			h.fit = "is " + n.Status()
		case n.Mount != cluster.MountOK:
			h.fit = "its mount is " + string(n.Mount)
		}
		t.hosts = append(t.hosts, h)
		t.fit[n.ID] = h.fit == ""
	}
	slices.SortFunc(t.hosts, func(a, b *host) int { return cmp.Compare(a.node.ID, b.node.ID) })
	return t
}

// static says why a host never gets a resource of this class, or "".
func (t *table) static(h *host, k classKey) string {
	switch {
	case h.fit != "":
		return h.fit
	case h.node.ID == k.from:
		return "is where it comes from"
	case !slices.Contains(h.node.Kinds, k.kind):
		return "has no driver for type " + string(k.kind)
	}
	roles := h.node.Roles
	others := slices.ContainsFunc(roles, func(r cluster.Role) bool { return r != cluster.RoleSpare })
	switch {
	case others && !slices.Contains(roles, cluster.RoleOf(k.kind)):
		return "lacks role " + string(cluster.RoleOf(k.kind))
	case len(roles) > 0 && !others && !k.spare:
		return "is kept as a spare"
	}
	if k.pool != "" && h.pool != k.pool {
		return fmt.Sprintf("is in CPU pool %q, not %q", h.pool, k.pool)
	}
	return ""
}

// candidates are the hosts that pass the static filters of a class.
func (t *table) candidates(k classKey) []*host {
	if c, ok := t.class[k]; ok {
		return c
	}
	c := []*host{}
	for _, h := range t.hosts {
		if t.static(h, k) == "" {
			c = append(c, h)
		}
	}
	t.class[k] = c
	return c
}

// limits says why a host has no room for one more VE of this kind, or "".
func limits(h *host, kind cluster.Kind) string {
	c := h.node.Capacity
	switch {
	case c.MaxVEs > 0 && h.total >= c.MaxVEs:
		return fmt.Sprintf("runs %d VEs, MAX_VES is %d", h.total, c.MaxVEs)
	case kind == cluster.KindVM && c.MaxVMs > 0 && h.running[kind] >= c.MaxVMs:
		return fmt.Sprintf("runs %d virtual machines, MAX_VMS is %d", h.running[kind], c.MaxVMs)
	case kind == cluster.KindCT && c.MaxCTs > 0 && h.running[kind] >= c.MaxCTs:
		return fmt.Sprintf("runs %d containers, MAX_CTS is %d", h.running[kind], c.MaxCTs)
	}
	return ""
}

// memory says why a host has not the memory for a resource, or "". A host whose
// memory is not known takes only what needs none.
func memory(h *host, r cluster.Resource) string {
	if r.Memory > 0 && r.Memory > h.free {
		return fmt.Sprintf("needs %s, %s free", size(r.Memory), size(max(0, h.free)))
	}
	return ""
}

func (t *table) avoided(r cluster.Resource, h *host) bool {
	return slices.Contains(t.req.Avoid[r.ID], h.node.ID)
}

func (h *host) give(r cluster.Resource) {
	h.free -= r.Memory
	h.running[r.Kind]++
	h.total++
}

func (t *table) placed(out *cluster.Placement, r cluster.Resource, h *host, policy, reason string, why func(*host) string) {
	*out = cluster.Placement{Resource: r.ID, From: r.Owner, To: h.node.ID, Policy: policy, Reason: reason}
	if t.req.Explain {
		for _, o := range t.hosts {
			if o != h {
				w := why(o)
				if w == "" {
					w = "another node suits better"
				}
				out.Rejected = append(out.Rejected, cluster.Rejection{Node: o.node.ID, Reason: w})
			}
		}
	}
	h.give(r)
}

// Without Explain, maxRejections bounds how many nodes are asked why they do not
// take a resource that fits nowhere, and maxLooks how many are asked in all: in
// a cluster of thousands, many thousands of such resources must not cost a look
// at many nodes each. Past it one node speaks for the others.
const (
	maxRejections = 64
	maxLooks      = 500 * maxRejections
)

// refused fills in why nobody takes a resource.
func (t *table) refused(out *cluster.Placement, r cluster.Resource, policy string, why func(*host) string) {
	counts := map[string]int{}
	var order []string
	var rejected []cluster.Rejection
	asked := t.hosts
	if !t.req.Explain {
		asked = asked[:min(len(asked), maxRejections, max(1, maxLooks-t.looks))]
		t.looks += len(asked)
	}
	for _, h := range asked {
		w := why(h)
		rejected = append(rejected, cluster.Rejection{Node: h.node.ID, Reason: w})
		if counts[w] == 0 {
			order = append(order, w)
		}
		counts[w]++
	}
	slices.SortStableFunc(order, func(a, b string) int { return counts[b] - counts[a] })
	var parts []string
	for _, w := range order[:min(3, len(order))] {
		if counts[w] == 1 {
			parts = append(parts, "one "+w)
		} else {
			parts = append(parts, fmt.Sprintf("%d: each %s", counts[w], w))
		}
	}
	reason := policy + " finds no node"
	if len(parts) > 0 {
		more := ""
		if len(asked) < len(t.hosts) {
			more = fmt.Sprintf("; of the first %d", len(asked))
		}
		reason += fmt.Sprintf(" among %d (%s%s)", len(t.hosts), strings.Join(parts, "; "), more)
	}
	*out = cluster.Placement{Resource: r.ID, From: r.Owner, Reason: reason, Rejected: rejected}
}

func size(b cluster.Bytes) string {
	switch {
	case b >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(b)/(1<<30))
	case b >= 1<<20:
		return fmt.Sprintf("%d MiB", b>>20)
	}
	return fmt.Sprintf("%d bytes", b)
}

package relocation

import (
	"cmp"
	"container/heap"
	"slices"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// drs sends the most important and then largest VEs first to the node with the
// most free memory. It knows virtual machines and containers only.
type drs struct{}

func (drs) Name() string                          { return "drs" }
func (p drs) Place(r Request) []cluster.Placement { return Chain(p).Place(r) }

func (p drs) place(t *table, open []int, out []cluster.Placement) (left []int) {
	order := slices.Clone(open)
	res := t.req.Resources
	slices.SortStableFunc(order, func(a, b int) int {
		x, y := res[a], res[b]
		return cmp.Or(cmp.Compare(y.Priority, x.Priority), cmp.Compare(y.Memory, x.Memory), cmp.Compare(x.ID, y.ID))
	})
	heaps := map[classKey]*freest{}
	for _, i := range order {
		r := res[i]
		if r.Kind != cluster.KindVM && r.Kind != cluster.KindCT {
			out[i].Reason = "drs places virtual machines and containers only"
			left = append(left, i)
			continue
		}
		k := t.classOf(r, false)
		h := heaps[k]
		if h == nil {
			h = newFreest(t.candidates(k))
			heaps[k] = h
		}
		best := h.take(t, r)
		why := func(o *host) string { return p.why(t, o, r, k) }
		if best == nil {
			t.refused(&out[i], r, "drs", why)
			left = append(left, i)
			continue
		}
		t.placed(&out[i], r, best, "drs", "it has the most free memory of the nodes that fit", why)
		for _, other := range heaps {
			other.changed(best)
		}
	}
	return left
}

func (drs) why(t *table, h *host, r cluster.Resource, k classKey) string {
	if t.avoided(r, h) {
		return "failed with it already"
	}
	return cmp.Or(t.static(h, k), limits(h, r.Kind), memory(h, r))
}

// freest hands out the host with the most free memory. Hosts only ever get
// fuller, so an entry that is out of date is put right when it comes up.
type freest struct {
	hosts []*host
	at    map[*host]int
}

func newFreest(hosts []*host) *freest {
	f := &freest{hosts: slices.Clone(hosts), at: make(map[*host]int, len(hosts))}
	for i, h := range f.hosts {
		f.at[h] = i
	}
	heap.Init(f)
	return f
}

// take returns the best host that passes the filters, or nil. Those that do not
// pass are looked at in order of their free memory, and put back.
func (f *freest) take(t *table, r cluster.Resource) *host {
	var aside []*host
	defer func() {
		for _, h := range aside {
			heap.Push(f, h)
		}
	}()
	for f.Len() > 0 {
		h := f.hosts[0]
		if memory(h, r) != "" {
			return nil // and nobody has more
		}
		full := limits(h, r.Kind) != ""
		if !full && !t.avoided(r, h) {
			return h
		}
		heap.Pop(f)
		if !full { // a full host stays full: it never comes back
			aside = append(aside, h)
		}
	}
	return nil
}

func (f *freest) changed(h *host) {
	if i, ok := f.at[h]; ok {
		heap.Fix(f, i)
	}
}

func (f *freest) Len() int { return len(f.hosts) }
func (f *freest) Less(i, j int) bool {
	a, b := f.hosts[i], f.hosts[j]
	if a.free != b.free {
		return a.free > b.free
	}
	return cmp.Or(cmp.Compare(a.total, b.total), cmp.Compare(a.node.ID, b.node.ID)) < 0
}
func (f *freest) Swap(i, j int) {
	f.hosts[i], f.hosts[j] = f.hosts[j], f.hosts[i]
	f.at[f.hosts[i]], f.at[f.hosts[j]] = i, j
}
func (f *freest) Push(x any) {
	h, _ := x.(*host)
	f.at[h] = len(f.hosts)
	f.hosts = append(f.hosts, h)
}
func (f *freest) Pop() any {
	last := f.hosts[len(f.hosts)-1]
	f.hosts = f.hosts[:len(f.hosts)-1]
	delete(f.at, last)
	return last
}

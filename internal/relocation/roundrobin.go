package relocation

import (
	"cmp"
	"slices"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// roundRobin goes from node to node, whatever the memory.
type roundRobin struct{}

func (roundRobin) Name() string                          { return "round-robin" }
func (p roundRobin) Place(r Request) []cluster.Placement { return Chain(p).Place(r) }

func (p roundRobin) place(t *table, open []int, out []cluster.Placement) (left []int) {
	order := slices.Clone(open)
	res := t.req.Resources
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(res[b].Priority, res[a].Priority), cmp.Compare(res[a].ID, res[b].ID))
	})
	rings := map[classKey]*ring{}
	for _, i := range order {
		r := res[i]
		k := t.classOf(r, false)
		g := rings[k]
		if g == nil {
			g = &ring{hosts: slices.Clone(t.candidates(k))}
			if len(g.hosts) > 0 {
				g.next = ((t.req.Turn % len(g.hosts)) + len(g.hosts)) % len(g.hosts)
			}
			rings[k] = g
		}
		why := func(h *host) string {
			if t.avoided(r, h) {
				return "failed with it already"
			}
			return cmp.Or(t.static(h, k), limits(h, r.Kind))
		}
		h := g.take(t, r)
		if h == nil {
			t.refused(&out[i], r, "round-robin", why)
			left = append(left, i)
			continue
		}
		t.placed(&out[i], r, h, "round-robin", "it was its turn", why)
	}
	return left
}

// ring goes round the hosts that have room.
type ring struct {
	hosts []*host
	next  int
}

func (g *ring) take(t *table, r cluster.Resource) *host {
	for tried := 0; tried < len(g.hosts); {
		if g.next >= len(g.hosts) {
			g.next = 0
		}
		h := g.hosts[g.next]
		switch {
		case limits(h, r.Kind) != "":
			g.hosts = slices.Delete(g.hosts, g.next, g.next+1) // full once is full for good
		case t.avoided(r, h):
			g.next++
			tried++
		default:
			g.next++
			return h
		}
	}
	return nil
}

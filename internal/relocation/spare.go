package relocation

import (
	"cmp"
	"slices"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// spare sends everything to one node that hosts nothing.
type spare struct{}

func (spare) Name() string                          { return "spare" }
func (p spare) Place(r Request) []cluster.Placement { return Chain(p).Place(r) }

// empty tells whether a node hosts nothing at all, stopped resources included.
func empty(h *host) bool {
	if h.total > 0 {
		return false
	}
	for _, n := range h.node.Resources {
		if n > 0 {
			return false
		}
	}
	return true
}

// choose returns the spare node: with role SPARE before others, then the one
// with the most free memory. One that may take none of the open resources, such
// as the node that they come from, is none.
func (spare) choose(t *table, open []int) *host {
	useful := map[*host]bool{}
	seen := map[classKey]bool{}
	for _, i := range open {
		r := t.req.Resources[i]
		k := t.classOf(r, true)
		if avoid := len(t.req.Avoid[r.ID]) > 0; avoid || !seen[k] {
			seen[k] = seen[k] || !avoid
			for _, h := range t.candidates(k) {
				useful[h] = useful[h] || !t.avoided(r, h)
			}
		}
	}
	var best *host
	rank := func(h *host) int {
		if slices.Contains(h.node.Roles, cluster.RoleSpare) {
			return 0
		}
		return 1
	}
	for _, h := range t.hosts {
		if !useful[h] || !empty(h) {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(rank(h), rank(best)), cmp.Compare(best.free, h.free), cmp.Compare(h.node.ID, best.node.ID)) < 0 {
			best = h
		}
	}
	return best
}

func (p spare) place(t *table, open []int, out []cluster.Placement) (left []int) {
	chosen := p.choose(t, open)
	order := slices.Clone(open)
	res := t.req.Resources
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(res[b].Priority, res[a].Priority), cmp.Compare(res[b].Memory, res[a].Memory), cmp.Compare(res[a].ID, res[b].ID))
	})
	for _, i := range order {
		r := res[i]
		k := t.classOf(r, true)
		why := func(h *host) string {
			switch {
			case t.avoided(r, h):
				return "failed with it already"
			case t.static(h, k) != "":
				return t.static(h, k)
			case h != chosen:
				return "is not the spare node"
			}
			return cmp.Or(limits(h, r.Kind), memory(h, r))
		}
		if chosen == nil || why(chosen) != "" {
			t.refused(&out[i], r, "spare", why)
			left = append(left, i)
			continue
		}
		t.placed(&out[i], r, chosen, "spare", "it is the spare node", why)
	}
	return left
}

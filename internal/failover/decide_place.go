package failover

import (
	"maps"
	"slices"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// take asks a node to claim a resource.
func (b *actionBoard) take(pl placing, on cluster.NodeID, start bool, policy, waiting, why string) {
	e, ok := b.o.Alive[on]
	if !ok {
		return
	}
	prio := pl.res.Priority
	key := string(on) + "/" + string(pl.res.ID)
	if b.keys[key] && (pl.old == nil || string(pl.old.Value.Node)+"/"+pl.old.Value.Name() != key) {
		return // another action for a resource of this name is under way there
	}
	if last, there := b.read[key]; there && pl.old == nil {
		pl.old = &last
	} else if there && string(pl.old.Value.Node)+"/"+pl.old.Value.Name() != key {
		b.swap(&last, nil)
		return // one key, one change a round
	}
	b.keys[key] = true
	if start {
		b.expect(on, pl.res.Kind, pl.res.Memory, 1)
	}
	b.swap(pl.old, &cluster.Action{
		Verb: cluster.VerbTake, Node: on, Inc: e.Value.Incarnation, Resource: pl.res.ID, Pool: pl.pool.String(),
		Failover: pl.failover, Start: start, Path: pl.res.Path, Priority: &prio, Memory: pl.res.Memory,
		Waiting: waiting, Policy: policy, Reason: why, Tried: pl.tried, Attempts: pl.attempts,
	})
}

// taken are the nodes where an action for another resource of this name has to
// stay, for as long as its failover is open: there is no room for a second one.
func (b *actionBoard) taken(pl placing) (out []cluster.NodeID) {
	for _, n := range b.names[pl.res.ID] {
		if pl.old == nil || pl.old.Value.Node != n || pl.old.Value.Name() != string(pl.res.ID) {
			out = append(out, n)
		}
	}
	return out
}

// place finds nodes for all that should run, and sends the rest to the master's node.
func (b *actionBoard) place(place Place) {
	if len(b.toPlace) == 0 {
		return
	}
	req := b.request()
	byID := map[cluster.ResourceID]placing{}
	for _, pl := range b.toPlace {
		switch {
		case !pl.res.ShouldRun():
			b.keep(pl, "", "it should not run; registered and left stopped")
		case pl.want != "" && !slices.Contains(b.taken(pl), pl.want) && b.fits(place, pl):
			b.take(pl, pl.want, true, "operator", "", "asked for by an operator")
		default:
			// Two resources of one name from different pools: the second one waits a round.
			if _, dup := byID[pl.res.ID]; dup {
				continue
			}
			byID[pl.res.ID] = pl
			r := pl.res
			r.Owner = pl.pool.Node
			req.Resources = append(req.Resources, r)
			req.Avoid[r.ID] = slices.Concat(pl.tried, b.taken(pl))
		}
	}
	placed := place(req)
	slices.SortStableFunc(placed, func(x, y cluster.Placement) int {
		return int(int64(byID[y.Resource].res.Priority) - int64(byID[x.Resource].res.Priority))
	})
	for _, p := range placed {
		pl := byID[p.Resource]
		if p.To == "" {
			b.keep(pl, p.Reason, "no node can run it now: "+p.Reason)
			continue
		}
		b.take(pl, p.To, true, p.Policy, "", p.Reason)
	}
}

func (b *actionBoard) request() PlaceRequest {
	req := PlaceRequest{
		View: b.viewOnce(), Avoid: map[cluster.ResourceID][]cluster.NodeID{}, Pending: b.pending,
		CPUPools: map[cluster.NodeID]string{}, Reserve: b.o.Reserve, Turn: int(b.o.Epoch) + b.o.Turn,
	}
	for id, e := range b.o.Nodes {
		if a, ok := b.o.Alive[id]; ok {
			req.CPUPools[id] = a.Value.Capacity.CPUPool
		} else if e.Value.CPUPool != "" {
			req.CPUPools[id] = e.Value.CPUPool
		}
	}
	return req
}

// fits asks the policy about one node only: an operator's choice passes the same filters.
func (b *actionBoard) fits(place Place, pl placing) bool {
	req := b.request()
	nodes := req.View.Nodes[:0:0]
	for _, n := range req.View.Nodes {
		if n.ID == pl.want {
			nodes = append(nodes, n)
		}
	}
	req.View.Nodes = nodes
	r := pl.res
	if r.Owner = pl.pool.Node; r.Owner == pl.want {
		r.Owner = ""
	}
	req.Resources = []cluster.Resource{r}
	got := place(req)
	return len(got) == 1 && got[0].To == pl.want
}

// keep registers a resource, stopped, on the node that an operator asked for,
// else on the master's, or where that cannot be on the first node that can hold
// its type. A node where it failed, or that was asked to let go of it, comes last, but
// before the pool: nobody looks after what lies there.
func (b *actionBoard) keep(pl placing, waiting, why string) {
	rank := func(n cluster.Node) int {
		switch {
		case slices.Contains(pl.tried, n.ID):
			return 4
		case n.ID == pl.want && waiting == "":
			return 1
		case pl.pool == cluster.PoolID{Node: n.ID}:
			return 4
		case n.ID == b.o.Self:
			return 2
		}
		return 3
	}
	var best *cluster.Node
	nodes, taken := b.viewOnce().Nodes, b.taken(pl)
	for i, n := range nodes {
		holds := n.Liveness == cluster.Active && len(n.Flags) == 0 && n.Mount == cluster.MountOK && slices.Contains(n.Kinds, pl.res.Kind) && !slices.Contains(taken, n.ID)
		if holds && (best == nil || rank(n) < rank(*best)) {
			best = &nodes[i]
		}
	}
	if best == nil {
		return // it stays in the pool, where the next round finds it
	}
	b.take(pl, best.ID, false, "", waiting, why)
}

// viewOnce is the cluster as the policies see it, made once a round.
func (b *actionBoard) viewOnce() cluster.View {
	if b.view == nil {
		v := b.o.view()
		// What a node publishes of its usage is some seconds old. What lies in its
		// repository and should run is its load too, as soon as it lies there.
		for i := range v.Nodes {
			own, n := b.o.Owned[v.Nodes[i].ID], &v.Nodes[i]
			running := maps.Clone(n.Usage.Running)
			for k, count := range own.Running {
				if running == nil {
					running = map[cluster.Kind]int{}
				}
				running[k] = max(running[k], count)
			}
			n.Usage = cluster.Usage{Memory: max(n.Usage.Memory, own.Memory), Running: running}
		}
		b.view = &v
	}
	return *b.view
}

// afterWaiting follows up the starts that failed of VEs which had waited for room:
// to another node if one has room now, or into quarantine. To wait again where it
// could not be started would be to fail there again, for ever.
func (b *actionBoard) afterWaiting(place Place) {
	for _, a := range b.failed {
		v := a.Value
		tried := append(slices.Clone(v.Tried), v.Node)
		next := cluster.Action{
			Verb: cluster.VerbBreak, Operation: "start", Node: v.Node, Inc: v.Inc, Resource: v.Resource, Path: v.Path, Priority: v.Priority, Memory: v.Memory,
			Attempts: v.Attempts + 1, Tried: tried, Reason: v.Error, Start: true,
		}
		if len(tried) <= b.o.RelocateTries {
			req := b.request()
			r := cluster.Resource{ID: v.Resource, Kind: v.Resource.Kind(), Path: v.Path, Memory: v.Memory, Owner: v.Node}
			if v.Priority != nil {
				r.Priority = *v.Priority
			}
			req.Resources, req.Avoid[v.Resource] = []cluster.Resource{r}, tried
			if got := place(req); len(got) == 1 && got[0].To != "" {
				next.Verb, next.Operation, next.To = cluster.VerbGiveBack, "", got[0].To
				b.expect(next.To, r.Kind, r.Memory, 1)
			}
		}
		b.swap(&a, &next)
	}
}

// waiting gives resources that found no room another chance.
func (b *actionBoard) waiting(place Place) {
	var rs []cluster.Resource
	for _, r := range b.o.Waiting {
		_, runs := b.elsewhere(r.Owner)[r.Path]
		if len(b.o.Paths[r.Path]) > 1 || b.paths[r.Path] > 0 || runs {
			continue // it may run elsewhere: held, like a duplicate in the pool
		}
		// The action that brought it there stays while its failover is open, and must
		// not keep it waiting for as long as something else is held.
		key := string(r.Owner) + "/" + string(r.ID)
		_, kept := b.kept[key]
		if _, alive := b.o.Alive[r.Owner]; alive && r.ShouldRun() && (!b.keys[key] || kept) && !b.o.sealed(r.Owner, b.o.Alive[r.Owner].Value.Incarnation) {
			rs = append(rs, r)
		}
	}
	if len(rs) == 0 {
		return
	}
	req := b.request()
	owners := map[cluster.ResourceID]cluster.Resource{}
	for _, r := range rs {
		if _, dup := owners[r.ID]; dup {
			continue // of two with one name the second one waits a round
		}
		owners[r.ID] = r
		r.Owner = "" // where it waits is as good as any other node
		req.Resources = append(req.Resources, r)
	}
	for _, p := range place(req) {
		r := owners[p.Resource]
		if p.To == "" {
			continue
		}
		prio := r.Priority
		a := cluster.Action{Node: r.Owner, Inc: b.o.Alive[r.Owner].Value.Incarnation, Resource: r.ID, Path: r.Path, Priority: &prio, Memory: r.Memory, Policy: p.Policy}
		if p.To == r.Owner {
			a.Verb, a.Start, a.Reason = cluster.VerbStart, true, "there is room now: "+p.Reason
		} else {
			a.Verb, a.To, a.Reason = cluster.VerbGiveBack, p.To, "there is room on "+b.o.name(p.To)+" now: "+p.Reason
		}
		key := string(r.Owner) + "/" + string(r.ID)
		b.keys[key] = true
		b.expect(p.To, r.Kind, r.Memory, 1)
		if old, there := b.kept[key]; there {
			b.swap(&old, &a)
			continue
		}
		if old, there := b.read[key]; there {
			b.swap(&old, &a)
			continue
		}
		b.swap(nil, &a)
	}
}

package failover

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// copyTable copies a table, by parsed names.
func copyTable[K comparable, T any](t Table[T], parse func(string) (K, bool), into map[K]cluster.Versioned[T]) bool {
	return t.Read(func(entries map[string]cluster.Versioned[T]) {
		for name, e := range entries {
			if k, ok := parse(name); ok {
				into[k] = e
			}
		}
	})
}

func parseNode(s string) (cluster.NodeID, bool) {
	id, err := cluster.ParseNodeID(s)
	return id, err == nil
}

func parseFailover(s string) (cluster.FailoverID, bool) {
	id, err := cluster.ParsePoolID(s)
	return id, err == nil
}

// observe gathers the facts; ok is false while the copies of etcd are not up to date.
func (m *term) observe(ctx context.Context) (o Observation, ok bool, err error) {
	now := boottime.Now()
	o = Observation{
		Now: now, Clock: time.Now(), Self: m.Self, Epoch: m.Epoch, Settings: m.Settings(),
		Nodes: map[cluster.NodeID]cluster.Versioned[cluster.NodeRecord]{}, Alive: map[cluster.NodeID]cluster.Versioned[cluster.AliveRecord]{},
		Recovering: map[cluster.NodeID]cluster.Versioned[cluster.RecoveringRecord]{}, Failovers: map[cluster.FailoverID]cluster.Versioned[cluster.Failover]{},
		Confirms: map[cluster.FailoverID]cluster.Versioned[cluster.Confirm]{}, Pulses: map[cluster.NodeID]Pulse{},
	}
	ok = copyTable(m.Nodes, parseNode, o.Nodes)
	ok = copyTable(m.Alive, parseNode, o.Alive) && ok
	ok = copyTable(m.Recovering, parseNode, o.Recovering) && ok
	ok = copyTable(m.Failovers, parseFailover, o.Failovers) && ok
	ok = copyTable(m.Confirms, parseFailover, o.Confirms) && ok
	ok = m.Actions.Read(func(entries map[string]cluster.Versioned[cluster.Action]) {
		o.Actions = make([]cluster.Versioned[cluster.Action], 0, len(entries))
		for _, e := range entries {
			o.Actions = append(o.Actions, e)
		}
	}) && ok
	if !ok {
		return o, false, nil
	}
	m.remember(&o, now)
	o.Settled = now.Sub(m.ValidSince()) >= o.Timing.Settle()
	o.Brake = m.Brake()
	m.watchBrake(&o)
	if err := m.observeMount(ctx, &o); err != nil {
		return o, false, err
	}
	m.measure(&o)
	return o, true, nil
}

// remember keeps since when things are as they are, by this machine's clock.
func (m *term) remember(o *Observation, now boottime.Time) {
	for id := range o.Nodes {
		o.Pulses[id] = m.Pulses.Of(id)
		// An admission and the end of its lease may both have passed unseen.
		if life := o.Nodes[id].Value.Serial; m.lives[id] != life {
			m.lives[id] = life
			delete(m.lost, id)
		}
		if _, alive := o.Alive[id]; alive {
			delete(m.lost, id)
		} else if _, seen := m.lost[id]; !seen {
			m.lost[id] = now
		}
		if _, back := o.Recovering[id]; !back {
			delete(m.recovering, id)
		} else if _, seen := m.recovering[id]; !seen {
			m.recovering[id] = now
		}
	}
	fencing := map[cluster.FailoverID]bool{}
	for id, f := range o.Failovers {
		if _, seen := m.opened[id]; !seen {
			m.opened[id] = now
		}
		// While it is held, or once it is proven, nothing goes on that could cut
		// the power of a node which may be on its way back.
		fencing[id] = f.Value.Proof == "" && (f.Value.Phase == cluster.PhaseFencing || f.Value.Phase == cluster.PhaseAwaitingFence)
	}
	for id := range m.opened {
		if _, there := o.Failovers[id]; !there && id.Incarnation != 0 {
			delete(m.opened, id)
			delete(m.counted, id)
		}
	}
	o.LostSince, o.RecoveringSince, o.OpenSince, o.CountedAt = m.lost, m.recovering, m.opened, m.counted
	o.Proofs, o.Stuck = m.prover.state(fencing)
}

// watchBrake keeps since when fewer nodes are lost than the brake needs; each one
// that comes back begins that time anew.
func (m *term) watchBrake(o *Observation) {
	n := len(brakeNodes(o, lostNodes(o)))
	switch {
	case n >= o.SkipThreshold:
		m.fewer = 0
	case m.fewer == 0 || n < m.lostLast:
		m.fewer = o.Now
	}
	m.lostLast = n
	o.FewerSince, o.Turn = m.fewer, m.turn
}

// observeMount reads the pool: everything at first and once in a while, and
// whatever a failover or an action points at in every round.
func (m *term) observeMount(ctx context.Context, o *Observation) error {
	full := m.poolsAt == 0 || o.Now.Sub(m.poolsAt) >= o.PoolCheck
	if full {
		all, err := m.Mount.Pools(ctx)
		if err != nil {
			return err
		}
		for _, p := range all {
			m.pools[p] = true
		}
		m.poolsAt = o.Now
	}
	for id, f := range o.Failovers {
		if f.Value.Phase == cluster.PhaseRelocating {
			m.pools[id] = true
		}
	}
	for _, a := range o.Actions {
		if a.Value.Verb == cluster.VerbGiveBack && a.Value.State == cluster.ActionDone {
			m.pools[cluster.PoolID{Node: a.Value.Node}] = true
		}
		if a.Value.Verb == cluster.VerbTake {
			if p, err := cluster.ParsePoolID(a.Value.Pool); err == nil {
				m.pools[p] = true
			}
		}
	}
	o.Pools = make(map[cluster.PoolID]cluster.Listing, len(m.pools))
	busy := false
	for p := range m.pools {
		l, err := m.Mount.Pool(ctx, p, false)
		if errors.Is(err, fs.ErrNotExist) {
			delete(m.pools, p)
			continue
		}
		if err != nil {
			return err
		}
		o.Pools[p] = l
		busy = busy || len(l.Resources) > 0
		if f, ok := o.Failovers[p]; len(l.Resources)+len(l.Unparseable) == 0 && (!ok || !f.Value.Phase.Open()) {
			delete(m.pools, p) // nothing left to do; the next full look finds what may turn up
		}
	}
	return m.observeRepositories(ctx, o, full, busy)
}

// wordsEvery bounds how often the mount is read because something runs on a node
// that does not own it; as long as nothing new is said, less and less often.
const wordsEvery = time.Second

// observeRepositories reads who owns what, before anything is dispatched: a
// path that is in a repository is never dispatched from the pool as well.
func (m *term) observeRepositories(ctx context.Context, o *Observation, full, busy bool) error {
	undispatched := false
	if busy {
		known := make(map[string]bool, len(o.Actions))
		for _, a := range o.Actions {
			if a.Value.Verb == cluster.VerbTake && a.Value.State != cluster.ActionDone {
				known[a.Value.Pool+"/"+string(a.Value.Resource)] = true
			}
		}
		for p, l := range o.Pools {
			for _, r := range l.Resources {
				undispatched = undispatched || !known[p.String()+"/"+string(r.ID)]
			}
		}
	}
	// What runs on a node that does not own it is looked for once a while, as long as
	// it is so.
	said, words := m.wordsMod, false
	m.wordsMod = 0
	for _, e := range o.Nodes {
		if len(e.Value.Elsewhere.VEs) > 0 {
			words, m.wordsMod = true, max(m.wordsMod, e.Mod)
		}
	}
	if m.wordsMod != said {
		m.wordsPause = wordsEvery
	}
	words = words && (m.wordsAt == 0 || o.Now.Sub(m.wordsAt) >= m.wordsPause)
	if words {
		m.wordsPause = min(2*m.wordsPause, max(o.PoolCheck, wordsEvery))
	}
	if !full && !undispatched && !words {
		return nil // nothing is dispatched, and nothing new is known of what waits
	}
	c, err := m.Mount.Census(ctx)
	if err != nil {
		return err
	}
	m.wordsAt = o.Now
	o.Broken = map[string][]cluster.ResourceID{}
	for _, b := range c.Broken {
		if b.Err == nil {
			o.Broken[b.Resource.Path] = append(o.Broken[b.Resource.Path], b.Resource.ID)
		}
	}
	o.Paths, o.Owned = map[string][]Located{}, map[cluster.NodeID]cluster.Usage{}
	for owner, l := range c.Repositories {
		use := cluster.Usage{Running: map[cluster.Kind]int{}}
		for _, r := range l.Resources {
			if r.ShouldRun() && r.Waiting == "" {
				use.Memory += r.Memory
				use.Running[r.Kind]++
			}
			o.Paths[r.Path] = append(o.Paths[r.Path], Located{Owner: owner, Resource: r.ID})
			if r.Waiting != "" {
				o.Waiting = append(o.Waiting, r)
			}
		}
		o.Owned[owner] = use
	}
	return nil
}

// measure sets the gauges that show the cluster as this master sees it.
func (m *term) measure(o *Observation) {
	m.Metrics.Nodes.Reset()
	for _, n := range o.view().Nodes {
		m.Metrics.Nodes.WithLabelValues(n.Status()).Inc()
	}
	m.Metrics.Open.Reset()
	for _, f := range o.Failovers {
		if f.Value.Phase.Open() {
			m.Metrics.Open.WithLabelValues(string(f.Value.Phase)).Inc()
		}
	}
	brake := 0.0
	if o.Brake != nil {
		brake = 1
	}
	m.Metrics.Brake.Set(brake)
}

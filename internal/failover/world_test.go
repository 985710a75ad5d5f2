package failover

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
	"pgregory.net/rapid"
)

// world is a cluster in memory: etcd as maps with revisions, the mount as maps
// of directories, and machines that run VEs. The real engine works on it. Every
// write checks what it must never see.
type world struct {
	t   *rapid.T
	rev int64

	nodes      map[cluster.NodeID]cluster.Versioned[cluster.NodeRecord]
	alive      map[cluster.NodeID]cluster.Versioned[cluster.AliveRecord]
	recovering map[cluster.NodeID]cluster.Versioned[cluster.RecoveringRecord]
	failovers  map[cluster.FailoverID]cluster.Versioned[cluster.Failover]
	actions    map[string]cluster.Versioned[cluster.Action]
	confirms   map[cluster.FailoverID]cluster.Versioned[cluster.Confirm]
	brake      *cluster.Brake

	repos  map[cluster.NodeID]*dir
	pools  map[cluster.PoolID]*dir
	broken map[string]cluster.Resource // by path

	machines map[cluster.NodeID]*machine
	all      []string // every path there is
	epoch    cluster.Epoch
	master   *lead
	former   []*lead // that do not know yet that they were replaced
	faults   bool    // starts may fail, and writes end half way
	settings Settings
	ids      int
}

// dir is a directory of resources.
type dir struct {
	inc  cluster.Incarnation
	done bool
	res  map[cluster.ResourceID]cluster.Resource
}

// lead is one mastership with the steps that it decided and has not taken yet.
type lead struct {
	*term
	o     Observation
	steps []Step
}

func newWorld(t *rapid.T) *world {
	w := &world{
		t: t, nodes: map[cluster.NodeID]cluster.Versioned[cluster.NodeRecord]{}, alive: map[cluster.NodeID]cluster.Versioned[cluster.AliveRecord]{},
		recovering: map[cluster.NodeID]cluster.Versioned[cluster.RecoveringRecord]{}, failovers: map[cluster.FailoverID]cluster.Versioned[cluster.Failover]{},
		actions: map[string]cluster.Versioned[cluster.Action]{}, confirms: map[cluster.FailoverID]cluster.Versioned[cluster.Confirm]{},
		repos: map[cluster.NodeID]*dir{}, pools: map[cluster.PoolID]*dir{}, broken: map[string]cluster.Resource{},
		machines: map[cluster.NodeID]*machine{}, faults: true,
	}
	w.settings = Settings{
		SkipThreshold: rapid.IntRange(2, 5).Draw(t, "skip threshold"), RelocateTries: rapid.IntRange(0, 2).Draw(t, "relocate tries"),
		ManualAllowed: true, RebootedCounts: true, ActionTimeout: rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(t, "action timeout"),
		StopBudget: -time.Second, // heartbeats cannot be judged here, and nobody waits for one that can
	}
	for i := range rapid.IntRange(2, 4).Draw(t, "nodes") {
		n := cluster.NodeID(fmt.Sprintf("%016x", i+1))
		m := &machine{w: w, id: n, on: true, session: true, room: rapid.IntRange(1, 4).Draw(t, "room"), running: map[string]bool{}}
		w.machines[n] = m
		w.repos[n] = &dir{inc: 1, res: map[cluster.ResourceID]cluster.Resource{}}
		w.putNode(n, cluster.NodeRecord{Name: nick(n), Incarnation: 1, BootID: m.bootID(), HardwareID: string(n)})
		w.putAlive(m)
		for j := range rapid.IntRange(0, 3).Draw(t, "VEs") {
			r := res(cluster.ResourceID(fmt.Sprintf("vm-%s-%d", nick(n), j)), func(r *cluster.Resource) { r.Memory = 0 })
			if rapid.IntRange(0, 3).Draw(t, "stopped") == 0 {
				r.Want = cluster.WantStopped
			} else {
				m.running[r.Path] = true
			}
			w.repos[n].res[r.ID] = r
			w.all = append(w.all, r.Path)
		}
	}
	w.elect(node1)
	return w
}

func (w *world) next() int64 { w.rev++; return w.rev }

func (w *world) putNode(n cluster.NodeID, r cluster.NodeRecord) {
	rev := w.next()
	w.nodes[n] = cluster.Versioned[cluster.NodeRecord]{Value: r, Mod: rev, Create: rev}
}

func (w *world) putAlive(m *machine) {
	rev := w.next()
	w.alive[m.id] = cluster.Versioned[cluster.AliveRecord]{Mod: rev, Create: rev, Value: cluster.AliveRecord{
		Incarnation: w.nodes[m.id].Value.Incarnation, Mount: cluster.MountOK, Kinds: []cluster.Kind{"vm"},
		Capacity: cluster.Capacity{MaxVEs: m.room}, Usage: cluster.Usage{Running: map[cluster.Kind]int{"vm": len(m.running)}},
	}}
}

// elect makes a node master; the one before does not know it yet.
func (w *world) elect(n cluster.NodeID) {
	if w.master != nil {
		w.former = append(w.former, w.master)
	}
	w.epoch++
	e := &Engine{Methods: these(),
		Self: n, Nodes: tableOf(w.nodes), Alive: tableOf(w.alive), Recovering: tableOf(w.recovering), Failovers: poolTable(w.failovers),
		Confirms: poolTable(w.confirms), Actions: &table[cluster.Action]{m: w.actions}, Brake: func() *cluster.Brake { return w.brake },
		Ledger: ledger{w}, Mount: mount{w}, Pulses: &Pulses{Timing: func() cluster.Timing { return quick }}, Settings: func() Settings { return w.settings },
		Place: first, ValidSince: func() boottime.Time { return 0 }, Valid: func() bool { return true }, Event: func(cluster.Event) {}, Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry()),
		NewID: func() string { w.ids++; return fmt.Sprint(w.ids) },
	}
	e.Init()
	w.master = &lead{term: e.newTerm(cluster.Term{Key: "master", Epoch: w.epoch})}
}

// live is a table of the world's own map, so that it is always up to date.
type live[K comparable, T any] struct {
	m    map[K]cluster.Versioned[T]
	name func(K) string
}

func (l live[K, T]) Read(f func(map[string]cluster.Versioned[T])) bool {
	out := map[string]cluster.Versioned[T]{}
	for k, e := range l.m {
		out[l.name(k)] = e
	}
	f(out)
	return true
}

func tableOf[T any](m map[cluster.NodeID]cluster.Versioned[T]) Table[T] {
	return live[cluster.NodeID, T]{m, func(n cluster.NodeID) string { return string(n) }}
}

func poolTable[T any](m map[cluster.PoolID]cluster.Versioned[T]) Table[T] {
	return live[cluster.PoolID, T]{m, cluster.PoolID.String}
}

// ledger is the world's etcd, as a master writes to it.
type ledger struct{ w *world }

func (l ledger) guard(t cluster.Term) error {
	if t.Epoch != l.w.epoch {
		return cluster.ErrDeposed
	}
	return nil
}

func (l ledger) Open(_ context.Context, t cluster.Term, o cluster.Opening) error {
	w, n, id := l.w, o.Failover.Node, o.Failover.ID()
	if err := l.guard(t); err != nil {
		return err
	}
	_, alive := w.alive[n]
	_, there := w.failovers[id]
	if alive || there || w.nodes[n].Mod != o.NodeMod || w.recovering[n].Mod != o.RecoveringMod {
		return cluster.ErrConflict
	}
	if w.nodes[n].Value.Stopped != cluster.NotStopped {
		w.t.Fatalf("a failover of %s was opened, which stopped cleanly", nick(n))
	}
	rev := w.next()
	w.failovers[id] = cluster.Versioned[cluster.Failover]{Value: o.Failover, Mod: rev, Create: rev}
	return nil
}

func (l ledger) Update(_ context.Context, t cluster.Term, was cluster.Versioned[cluster.Failover], f cluster.Failover, _ int64, drop ...cluster.Swap) error {
	w, id := l.w, f.ID()
	if err := l.guard(t); err != nil {
		return err
	}
	now, ok := w.failovers[id]
	switch {
	case !ok || now.Mod != was.Mod:
		return cluster.ErrConflict
	case now.Value.Proof != "" && f.Proof != now.Value.Proof:
		w.t.Fatalf("the proof of failover %s was rewritten from %q to %q", id, now.Value.Proof, f.Proof)
	case now.Value.Phase.Sealed() && !f.Phase.Sealed():
		w.t.Fatalf("failover %s went back from %s to %s", id, now.Value.Phase, f.Phase)
	case f.Phase.Sealed() && (f.Proof == "" || w.pools[id] == nil):
		w.t.Fatalf("failover %s counts as sealed, with proof %q and the pool directory there: %v", id, f.Proof, w.pools[id] != nil)
	}
	for _, s := range drop { // all of them, or nothing
		if have, ok := w.actions[key(s.Old.Value)]; !ok || have.Mod != s.Old.Mod {
			return cluster.ErrConflict
		}
	}
	for _, s := range drop {
		if err := l.swap(s); err != nil {
			return err
		}
	}
	w.failovers[id] = cluster.Versioned[cluster.Failover]{Value: f, Mod: w.next(), Create: now.Create}
	return nil
}

func (l ledger) Wanted(_ context.Context, t cluster.Term, id cluster.FailoverID, serial int64) error {
	if err := l.guard(t); err != nil {
		return err
	}
	if l.w.failovers[id].Create != serial {
		return cluster.ErrConflict
	}
	return nil
}

func (l ledger) Withdraw(_ context.Context, t cluster.Term, was cluster.Versioned[cluster.Failover], _ cluster.Failover, mod int64) error {
	w, id := l.w, was.Value.ID()
	if err := l.guard(t); err != nil {
		return err
	}
	if w.failovers[id].Mod != was.Mod || w.recovering[id.Node].Mod != mod {
		return cluster.ErrConflict
	}
	if w.failovers[id].Value.Proof != "" {
		w.t.Fatalf("failover %s was withdrawn though it is proven", id)
	}
	delete(w.failovers, id)
	delete(w.confirms, id)
	return nil
}

func (l ledger) Apply(_ context.Context, t cluster.Term, swaps []cluster.Swap) (int, error) {
	w := l.w
	cut := len(swaps)
	if w.faults && len(swaps) > 0 && rapid.IntRange(0, 4).Draw(w.t, "the dispatch ends half way") == 0 {
		cut = rapid.IntRange(0, len(swaps)-1).Draw(w.t, "after")
	}
	var first error
	for _, s := range swaps[:cut] {
		if err := l.guard(t); err != nil {
			return 0, err
		}
		if err := l.swap(s); err != nil {
			first = err
		}
	}
	if cut < len(swaps) {
		return cut, fmt.Errorf("no answer after %d of %d", cut, len(swaps))
	}
	return cut, first
}

func key(a cluster.Action) string { return string(a.Node) + "/" + a.Name() }

func (l ledger) swap(s cluster.Swap) error {
	w := l.w
	if s.Old != nil {
		now, ok := w.actions[key(s.Old.Value)]
		if !ok || now.Mod != s.Old.Mod {
			return cluster.ErrConflict
		}
		if s.NodeMod != 0 && w.nodes[now.Value.Node].Mod != s.NodeMod {
			return cluster.ErrConflict
		}
		// A daemon that was stopped on purpose carries nothing out while it stays so.
		left := s.NodeMod != 0 && w.nodes[now.Value.Node].Value.Stopped != cluster.NotStopped
		if now.Value.State == cluster.ActionClaimed && !left && !w.sealed(now.Value.Node, now.Value.Inc) {
			w.t.Fatalf("%s was marked and is replaced before incarnation %d of its node is sealed: %s", key(now.Value), now.Value.Inc, swapLine(s))
		}
	}
	if s.New != nil {
		if _, taken := w.actions[key(*s.New)]; taken && (s.Old == nil || key(s.Old.Value) != key(*s.New)) {
			return cluster.ErrConflict
		}
	}
	if s.Old != nil {
		delete(w.actions, key(s.Old.Value))
	}
	if s.New != nil {
		rev := w.next()
		w.actions[key(*s.New)] = cluster.Versioned[cluster.Action]{Value: *s.New, Mod: rev, Create: rev}
	}
	return nil
}

// sealed tells by the mount itself whether an incarnation was taken over.
func (w *world) sealed(n cluster.NodeID, inc cluster.Incarnation) bool {
	return w.pools[of(n, inc)] != nil
}

func (l ledger) PutBrake(_ context.Context, t cluster.Term, b *cluster.Brake) error {
	if err := l.guard(t); err != nil {
		return err
	}
	l.w.brake = b
	return nil
}

func (l ledger) Forget(_ context.Context, t cluster.Term, old []cluster.Versioned[cluster.Failover]) error {
	if err := l.guard(t); err != nil {
		return err
	}
	for _, f := range old {
		delete(l.w.failovers, f.Value.ID())
	}
	return nil
}

// mount is the world's shared file system. A replaced master can still write to it.
type mount struct{ w *world }

func (mount) RecordEpoch(context.Context, cluster.Epoch) error { return nil }
func (mount) CheckMark(context.Context, cluster.Marks) error   { return nil }
func (mount) PutMark(context.Context, string) error            { return nil }

func (l ledger) Marks(context.Context) (cluster.Marks, error) { return cluster.Marks{}, nil }
func (l ledger) PutMarks(_ context.Context, t cluster.Term, _ cluster.Marks) error {
	return l.guard(t)
}

func (m mount) Seal(_ context.Context, id cluster.FailoverID) error {
	w := m.w
	if w.pools[id] != nil {
		return nil
	}
	own := w.repos[id.Node]
	if own == nil || own.inc != id.Incarnation {
		return cluster.ErrSealed
	}
	if f, ok := w.failovers[id]; !ok || f.Value.Proof == "" {
		w.t.Fatalf("%s is sealed without a recorded proof", id)
	}
	w.pools[id] = own
	delete(w.repos, id.Node)
	return nil
}

func (m mount) Pools(context.Context) ([]cluster.PoolID, error) {
	return slices.Collect(maps.Keys(m.w.pools)), nil
}

func (m mount) Pool(_ context.Context, p cluster.PoolID, _ bool) (cluster.Listing, error) {
	d := m.w.pools[p]
	if d == nil {
		return cluster.Listing{}, fs.ErrNotExist
	}
	return d.listing("", p), nil
}

func (d *dir) listing(owner cluster.NodeID, pool cluster.PoolID) cluster.Listing {
	l := cluster.Listing{Inc: d.inc, HasInc: true, Done: d.done}
	for _, id := range slices.Sorted(maps.Keys(d.res)) {
		r := d.res[id]
		r.ID, r.Owner, r.Pool = id, owner, pool
		l.Resources = append(l.Resources, r)
	}
	return l
}

func (m mount) Census(context.Context) (cluster.Census, error) {
	c := cluster.Census{Repositories: map[cluster.NodeID]cluster.Listing{}}
	for n, d := range m.w.repos {
		c.Repositories[n] = d.listing(n, cluster.PoolID{})
	}
	for _, path := range slices.Sorted(maps.Keys(m.w.broken)) {
		c.Broken = append(c.Broken, cluster.BrokenResource{Resource: m.w.broken[path]})
	}
	return c, nil
}

func (m mount) MarkBroken(context.Context, cluster.Place, string, cluster.BrokenReason) error {
	m.w.t.Fatalf("the master moved a readable file to broken")
	return nil
}

func (m mount) MarkDone(_ context.Context, p cluster.PoolID) error {
	d := m.w.pools[p]
	if len(d.res) > 0 {
		return fmt.Errorf("%s still holds %d resources", p, len(d.res))
	}
	d.done = true
	return nil
}

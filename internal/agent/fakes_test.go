package agent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"go.uber.org/zap"
)

const (
	self  = cluster.NodeID("00000000000000a1")
	other = cluster.NodeID("00000000000000b2")
)

var pool = cluster.PoolID{Node: other, Incarnation: 2}

type entry = cluster.Versioned[cluster.Action]

// fakeInbox is this node's actions in etcd, and the local copy of them, which
// may lag behind.
type fakeInbox struct {
	mu      sync.Mutex
	etcd    map[string]entry
	copy    map[string]entry
	lags    bool
	fail    []error // of the next writes
	lost    bool    // whose answers are lost: the write takes effect all the same
	written []cluster.Action
}

func (i *fakeInbox) put(as ...cluster.Action) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, a := range as {
		i.etcd[a.Name()] = entry{Value: a, Mod: i.etcd[a.Name()].Mod + 1}
	}
	i.sync()
}

func (i *fakeInbox) withdraw(name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.etcd, name)
	i.sync()
}

func (i *fakeInbox) sync() {
	if i.lags {
		return
	}
	i.copy = map[string]entry{}
	for k, e := range i.etcd {
		i.copy[k] = e
	}
}

func (i *fakeInbox) get(name string) cluster.Action {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.etcd[name].Value
}

// outcomes are the answers that took effect.
func (i *fakeInbox) outcomes() (out []cluster.Outcome) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, a := range i.written {
		if a.State == cluster.ActionDone {
			out = append(out, a.Outcome)
		}
	}
	return out
}

func (i *fakeInbox) Pending() (out []entry) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, e := range i.copy {
		if e.Value.State != cluster.ActionDone {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b entry) int { return int(a.Value.Name()[3]) - int(b.Value.Name()[3]) })
	return out
}

func (i *fakeInbox) Has(a cluster.Action) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.copy[a.Name()].Value.ID == a.ID
}

func (i *fakeInbox) Read(_ context.Context, a cluster.Action) (entry, bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	e, ok := i.etcd[a.Name()]
	return e, ok, nil
}

func (i *fakeInbox) Write(_ context.Context, _ int64, was []entry, now []cluster.Action) ([]int64, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	revs := make([]int64, len(now))
	var err error
	if len(i.fail) > 0 {
		err, i.fail = i.fail[0], i.fail[1:]
		if !i.lost {
			return revs, err
		}
	}
	for k, a := range now {
		if have, ok := i.etcd[a.Name()]; !ok || have.Mod != was[k].Mod {
			continue
		}
		i.etcd[a.Name()] = entry{Value: a, Mod: was[k].Mod + 1}
		i.written = append(i.written, a)
		if err == nil {
			revs[k] = was[k].Mod + 1
		}
	}
	i.sync()
	return revs, err
}

// fakeRepo is the own repository and the rest of the mount.
type fakeRepo struct {
	elsewhere map[cluster.NodeID]cluster.Listing // more repositories
	mu        sync.Mutex
	own       map[cluster.ResourceID]cluster.Resource
	others    map[cluster.ResourceID]cluster.Resource
	pools     map[cluster.PoolID]map[cluster.ResourceID]cluster.Resource
	broken    map[cluster.ResourceID]cluster.BrokenReason
	back      map[cluster.ResourceID]cluster.Resource // given back
	bad       []cluster.Unparseable
	probes    map[string]string
	absent    map[string]bool    // paths of VEs where there is nothing
	fail      map[string][]error // operation → errors of its next calls
	calls     []string
}

func (f *fakeRepo) enter(op string) error {
	f.calls = append(f.calls, op)
	if errs := f.fail[op]; len(errs) > 0 {
		f.fail[op] = errs[1:]
		return errs[0]
	}
	return nil
}

func listing(m map[cluster.ResourceID]cluster.Resource) (l cluster.Listing) {
	for _, r := range m {
		l.Resources = append(l.Resources, r)
	}
	return l
}

func (f *fakeRepo) List(context.Context, bool) (cluster.Listing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := listing(f.own)
	l.Unparseable = f.bad
	return l, f.enter("list")
}

func (f *fakeRepo) Census(context.Context) (cluster.Census, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := cluster.Census{
		Repositories: map[cluster.NodeID]cluster.Listing{self: listing(f.own), other: listing(f.others)},
		Pools:        map[cluster.PoolID]cluster.Listing{},
	}
	for p, m := range f.pools {
		c.Pools[p] = listing(m)
	}
	for n, l := range f.elsewhere {
		c.Repositories[n] = l
	}
	for id, why := range f.broken {
		c.Broken = append(c.Broken, cluster.BrokenResource{Resource: cluster.Resource{ID: id, Kind: id.Kind(), Path: "/ve/" + string(id)[3:]}, Reason: why})
	}
	return c, f.enter("census")
}

func (f *fakeRepo) FreshCensus(ctx context.Context) (cluster.Census, error) { return f.Census(ctx) }

func (f *fakeRepo) Absent(_ context.Context, path string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.absent[path], f.enter("absent")
}

func (f *fakeRepo) ClaimBroken(_ context.Context, _ cluster.Incarnation, id cluster.ResourceID, path string) (cluster.ResourceID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter("unbreak"); err != nil {
		return "", err
	}
	if _, there := f.broken[id]; !there {
		return "", cluster.ErrGone
	}
	delete(f.broken, id)
	f.own[id] = cluster.Resource{ID: id, Kind: id.Kind(), Path: path, Want: cluster.WantRunning}
	return id, nil
}

func (f *fakeRepo) DropBroken(_ context.Context, id cluster.ResourceID, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.broken, id)
	return f.enter("drop")
}

func (f *fakeRepo) Look(_ context.Context, _ cluster.Incarnation, id cluster.ResourceID) (cluster.Resource, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter("look"); err != nil {
		return cluster.Resource{}, err
	}
	r, ok := f.own[id]
	if !ok {
		return r, cluster.ErrGone
	}
	return r, nil
}

func (f *fakeRepo) Update(_ context.Context, _ cluster.Incarnation, id cluster.ResourceID, change func(*cluster.Resource)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter("update"); err != nil {
		return err
	}
	r, ok := f.own[id]
	if !ok {
		return cluster.ErrGone
	}
	change(&r)
	f.own[id] = r
	return nil
}

func (f *fakeRepo) Create(_ context.Context, _ cluster.Incarnation, r cluster.Resource) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter("create"); err != nil {
		return err
	}
	if _, taken := f.own[r.ID]; taken {
		return cluster.ErrTaken
	}
	r.Kind = r.ID.Kind()
	f.own[r.ID] = r
	return nil
}

func (f *fakeRepo) Claim(_ context.Context, _ cluster.Incarnation, p cluster.PoolID, ids []cluster.ResourceID) ([]cluster.Claimed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter("claim"); err != nil {
		return nil, err
	}
	out := make([]cluster.Claimed, len(ids))
	for i, id := range ids {
		r, ok := f.pools[p][id]
		if !ok {
			out[i] = cluster.Claimed{ID: id, Err: cluster.ErrGone}
			continue
		}
		to := id
		if _, taken := f.own[id]; taken {
			to = id + "~" + cluster.ResourceID(p.Node)
		}
		delete(f.pools[p], id)
		r.ID = to
		f.own[to], out[i] = r, cluster.Claimed{ID: to}
	}
	return out, nil
}

func (f *fakeRepo) GiveBack(_ context.Context, _ cluster.Incarnation, id cluster.ResourceID) (cluster.ResourceID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter("give back"); err != nil {
		return "", err
	}
	f.back[id] = f.own[id]
	delete(f.own, id)
	return id, nil
}

func (f *fakeRepo) Rename(_ context.Context, _ cluster.Incarnation, id, to cluster.ResourceID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter("rename"); err != nil {
		return err
	}
	r, ok := f.own[id]
	if !ok {
		return cluster.ErrGone
	}
	if _, taken := f.own[to]; taken {
		return cluster.ErrTaken
	}
	delete(f.own, id)
	r.ID = to
	f.own[to] = r
	return nil
}

func (f *fakeRepo) Delete(_ context.Context, _ cluster.Incarnation, id cluster.ResourceID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.own, id)
	return f.enter("delete")
}

func (f *fakeRepo) MarkBroken(_ context.Context, _ cluster.Incarnation, id cluster.ResourceID, why cluster.BrokenReason) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.own, id)
	f.broken[id] = why
	return f.enter("break")
}

func (f *fakeRepo) Sight(_ context.Context, probe string) (cluster.Sighting, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.enter("sight"); err != nil {
		return cluster.Sighting{}, err
	}
	token, found := f.probes[probe]
	return cluster.Sighting{Found: found, Token: token}, nil
}

func (f *fakeRepo) get(id cluster.ResourceID) cluster.Resource {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.own[id]
}

type fakeGate struct{ closed atomic.Bool }

func (g *fakeGate) Hold(inc cluster.Incarnation) (func(), error) {
	if g.closed.Load() || inc != 3 {
		return nil, errors.New("the start gate is closed")
	}
	return func() {}, nil
}

type fakeBoot struct {
	mu  sync.Mutex
	ids []cluster.ResourceID
}

func (b *fakeBoot) Pending() []cluster.ResourceID {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.ids)
}

func (b *fakeBoot) Done(id cluster.ResourceID) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ids = slices.DeleteFunc(b.ids, func(have cluster.ResourceID) bool { return have == id })
	return nil
}

// site is one admission, with incarnation 3, among fakes.
type site struct {
	before []cluster.RunningVE // published by the process before this one
	*session
	inbox    *fakeInbox
	repo     *fakeRepo
	hv       *drivertest.Fake
	gate     *fakeGate
	boot     *fakeBoot
	invalid  atomic.Bool
	bringing atomic.Bool
	gap      boottime.Time // last gap in the lease's validity
	left     atomic.Bool
	unheard  bool                        // what other nodes say is not known
	words    map[string][]cluster.NodeID // of other nodes: path → where it runs
	pausing  func()                      // called while the gate closes for a node that leaves
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{
		inbox: &fakeInbox{etcd: map[string]entry{}, copy: map[string]entry{}},
		repo: &fakeRepo{
			own: map[cluster.ResourceID]cluster.Resource{}, others: map[cluster.ResourceID]cluster.Resource{},
			pools:  map[cluster.PoolID]map[cluster.ResourceID]cluster.Resource{pool: {}},
			broken: map[cluster.ResourceID]cluster.BrokenReason{}, back: map[cluster.ResourceID]cluster.Resource{}, fail: map[string][]error{},
		},
		hv: drivertest.NewFake(), gate: &fakeGate{}, boot: &fakeBoot{}, gap: boottime.Now().Add(-1000 * time.Hour),
		pausing: func() {}, words: map[string][]cluster.NodeID{},
	}
	set, err := hypervisor.NewSet(s.hv)
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{
		Self: self, Inbox: s.inbox, Repository: s.repo, Hypervisor: set, Gate: s.gate, Boot: s.boot,
		Settings: func() Settings {
			return Settings{LockTimeout: time.Hour, ActionTimeout: time.Minute, LockRetryTimeout: time.Hour, ParallelStarts: 2, StartRetries: 1}
		},
		Ignored: func(string) bool { return false }, Event: func(cluster.Event) {},
		RunsOn: func(path string) ([]cluster.NodeID, bool) { return s.words[path], !s.unheard }, Said: func() ([]cluster.RunningVE, bool) { return s.before, !s.unheard }, Spoke: func() {},
		Leave: func(ctx context.Context, ready func(context.Context) error) error {
			s.pausing()
			if err := ready(ctx); err != nil {
				return err
			}
			s.left.Store(true)
			return nil
		},
		Log: zap.NewNop(), Metrics: NewMetrics(prometheus.NewRegistry()),
	}
	a.Init()
	s.session = &session{
		Agent: a, Session: s.Session(), starts: newQueue(), errands: newQueue(), outcomes: make(chan answer, 4096),
		ended: t.Context().Done(), known: map[string]string{}, busy: map[cluster.ResourceID]int{}, held: map[cluster.ResourceID]chan struct{}{},
		stops: map[cluster.ResourceID]stopSeen{}, since: map[string]boottime.Time{}, plain: map[string]boottime.Time{}, made: map[string]boottime.Time{}, given: map[string]boottime.Time{},
	}
	return s
}

func (s *site) Session() Session {
	return Session{
		Incarnation: 3, Lease: 9, Valid: func() bool { return !s.invalid.Load() },
		ValidSince: func() boottime.Time { return s.gap }, Bringing: s.bringing.Load,
	}
}

// ownVE puts a resource into the repository, and its definition on the disk.
func (s *site) ownVE(id cluster.ResourceID, want cluster.Want) cluster.Resource {
	r := cluster.Resource{ID: id, Kind: id.Kind(), Path: "/ve/" + string(id)[3:], Want: want, LastNode: self}
	s.repo.own[id] = r
	s.hv.Define(r.Path, drivertest.Definition{Kind: r.Kind})
	return r
}

// pooled puts a resource into the pool.
func (s *site) pooled(id cluster.ResourceID) {
	r := s.ownVE(id, cluster.WantRunning)
	delete(s.repo.own, id)
	s.repo.pools[pool][id] = r
}

func action(verb cluster.Verb, id cluster.ResourceID) cluster.Action {
	return cluster.Action{ID: "id-" + string(id), Verb: verb, Node: self, Inc: 3, Resource: id, State: cluster.ActionNew}
}

func take(id cluster.ResourceID, priority uint32) cluster.Action {
	a := action(cluster.VerbTake, id)
	a.Pool, a.Start, a.Priority = pool.String(), true, &priority
	return a
}

// job makes the job of a claimed action, as a sweep does.
func (s *site) job(a cluster.Action) *job {
	a.State = cluster.ActionClaimed
	s.inbox.put(a)
	e := s.inbox.etcd[a.Name()]
	return &job{id: a.Resource, action: &e, start: a.Start || a.Verb == cluster.VerbStart}
}

// said returns the answers that wait to be written.
func (s *site) said() (out []cluster.Action) {
	for {
		select {
		case a := <-s.outcomes:
			out = append(out, a.now)
		default:
			return out
		}
	}
}

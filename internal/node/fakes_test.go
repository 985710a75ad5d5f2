package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

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

// trace is what the fakes were asked to do, in its order.
type trace struct {
	mu    sync.Mutex
	steps []string
}

func (tr *trace) add(step string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.steps = append(tr.steps, step)
}

func (tr *trace) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return strings.Join(tr.steps, ", ")
}

type fakeLease struct {
	tr   *trace
	id   int64
	lost chan struct{}
}

func (l *fakeLease) ID() int64                 { return l.id }
func (l *fakeLease) Valid() bool               { return true }
func (l *fakeLease) ValidSince() boottime.Time { return 0 }
func (l *fakeLease) Lost() <-chan struct{}     { return l.lost }
func (l *fakeLease) Observe(f func(boottime.Time)) {
	if f != nil {
		f(boottime.Now())
	}
}
func (l *fakeLease) Run(ctx context.Context) error {
	select {
	case <-l.lost:
		return errors.New("lease lost")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
func (l *fakeLease) Revoke(context.Context) error { l.tr.add("revoke"); return nil }

type fakeMembers struct {
	tr       *trace
	mu       sync.Mutex
	rec      cluster.NodeRecord
	err      error // of Get
	own      []cluster.Versioned[cluster.Failover]
	admitErr error
	admitted []cluster.Admission
	put      []cluster.RecoveringRecord
	alive    cluster.AliveRecord
	held     bool
	aliveErr error
	leaveErr error
	stopped  cluster.StopKind
	onLeave  func()
	dogErr   error
	stopErr  error
}

func (m *fakeMembers) Get(context.Context, cluster.NodeID) (cluster.NodeRecord, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec, 1, m.err
}
func (m *fakeMembers) Update(context.Context, cluster.NodeID, func(*cluster.NodeRecord) error) error {
	return nil
}
func (m *fakeMembers) PublishWatchdog(_ context.Context, _ cluster.NodeID, _ int64, wd cluster.Watchdog) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rec.Watchdog == wd {
		return nil // nothing to write
	}
	m.tr.add(fmt.Sprintf("publish %s/%s", wd.Timeout, wd.SelfFenceTimeout))
	if m.dogErr == nil {
		m.rec.Watchdog = wd
	}
	return m.dogErr
}
func (m *fakeMembers) DisownWatchdog(context.Context, cluster.NodeID) error {
	m.tr.add("disown")
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dogErr
}
func (m *fakeMembers) OwnFailovers(context.Context, cluster.NodeID) ([]cluster.Versioned[cluster.Failover], error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.own, nil
}
func (m *fakeMembers) PutRecovering(_ context.Context, _ cluster.NodeID, _ int64, rec cluster.RecoveringRecord) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put = append(m.put, rec)
	return m.err
}
func (m *fakeMembers) PutAlive(context.Context, cluster.NodeID, int64, cluster.AliveRecord) error {
	return nil
}
func (m *fakeMembers) HoldsAlive(context.Context, cluster.NodeID, int64) (cluster.AliveRecord, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.alive, m.held, m.aliveErr
}
func (m *fakeMembers) Admit(_ context.Context, a cluster.Admission) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.admitErr != nil {
		return 0, m.admitErr
	}
	m.admitted = append(m.admitted, a)
	m.rec.Incarnation, m.rec.BootID = a.Incarnation, a.BootID
	return 77, nil
}
func (m *fakeMembers) Stop(_ context.Context, _ cluster.NodeID, _ int64, kind cluster.StopKind, _ string) error {
	m.stopped = kind
	m.tr.add("stop")
	if m.stopErr != nil {
		return m.stopErr
	}
	return m.leaveErr
}
func (m *fakeMembers) Leave(context.Context, cluster.NodeID, int64) error {
	m.tr.add("leave")
	if m.onLeave != nil {
		m.onLeave()
	}
	return m.leaveErr
}

type fakeMount struct {
	tr      *trace
	mu      sync.Mutex
	census  cluster.Census
	err     error // of Census
	inc     cluster.Incarnation
	present bool
	pool    cluster.Incarnation
	ownErr  error
	syncErr error

	answers   []cluster.Order
	answerErr error
}

func (m *fakeMount) WriteAnswer(_ context.Context, _ cluster.NodeID, o cluster.Order, _ time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tr.add("answer")
	if m.answerErr == nil {
		m.answers = append(m.answers, o)
	}
	return m.answerErr
}

func (m *fakeMount) Census(context.Context) (cluster.Census, error) { return m.census, m.err }
func (m *fakeMount) Incarnation(context.Context, cluster.NodeID) (cluster.Incarnation, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.inc, m.present, nil
}
func (m *fakeMount) HighestPool(context.Context, cluster.NodeID) (cluster.Incarnation, error) {
	return m.pool, nil
}
func (m *fakeMount) CreateRepository(_ context.Context, _ cluster.NodeID, inc cluster.Incarnation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tr.add("create")
	m.inc, m.present = inc, true
	return nil
}
func (m *fakeMount) RemoveRepository(context.Context, cluster.NodeID) error {
	m.tr.add("remove")
	return nil
}
func (m *fakeMount) MustOwn(context.Context, cluster.NodeID, cluster.Incarnation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ownErr
}
func (m *fakeMount) Sync(context.Context) error { m.tr.add("sync"); return m.syncErr }

// tracedSet records the two verbs whose order counts.
type tracedSet struct {
	*hypervisor.Set
	tr *trace
}

func (s tracedSet) Stop(ctx context.Context, k cluster.Kind, path string, force bool) error {
	s.tr.add("stop " + path)
	return s.Set.Stop(ctx, k, path, force)
}

func (s tracedSet) Barrier(ctx context.Context) error {
	s.tr.add("barrier")
	return s.Set.Barrier(ctx)
}

// fakeDog is a watchdog that remembers what it was asked for.
type fakeDog struct {
	tr  *trace
	mu  sync.Mutex
	now cluster.Watchdog
	err error // of Arm
}

func (d *fakeDog) Arm(timeout, selfFence time.Duration) (cluster.Watchdog, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil || d.now.Armed {
		return d.now, d.err
	}
	d.tr.add("arm " + timeout.String())
	d.now = cluster.Watchdog{Armed: true, Timeout: timeout, SelfFenceTimeout: selfFence}
	return d.now, nil
}
func (d *fakeDog) Retune(timeout, selfFence time.Duration) error {
	d.tr.add(fmt.Sprintf("retune %s/%s", timeout, selfFence))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now.Timeout, d.now.SelfFenceTimeout = timeout, selfFence
	return nil
}
func (d *fakeDog) Disarm() {
	d.armedAdd("disarm")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now = cluster.Watchdog{}
}

// armedAdd traces what concerns a dog that is armed.
func (d *fakeDog) armedAdd(step string) {
	if d.State().Armed {
		d.tr.add(step)
	}
}
func (d *fakeDog) Contact(boottime.Time) {}
func (d *fakeDog) Limit(boottime.Time)   { d.armedAdd("limit") }
func (d *fakeDog) Lift()                 { d.armedAdd("lift") }
func (d *fakeDog) State() cluster.Watchdog {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}

// site is a node among fakes: joined with incarnation 3, its daemon restarted
// within the same boot, its repository in place and empty.
type site struct {
	*Node
	tr      *trace
	members *fakeMembers
	mount   *fakeMount
	hv      *drivertest.Fake
	lease   *fakeLease
	dog     *fakeDog
	resets  chan string
	run     string
}

func newSite(t *testing.T) *site {
	t.Helper()
	tr := &trace{}
	s := &site{
		tr: tr, hv: drivertest.NewFake(), run: t.TempDir(),
		members: &fakeMembers{tr: tr, rec: cluster.NodeRecord{Incarnation: 3, BootID: "boot"}},
		mount:   &fakeMount{tr: tr, inc: 3, present: true, pool: 2, census: cluster.Census{Repositories: map[cluster.NodeID]cluster.Listing{}, Pools: map[cluster.PoolID]cluster.Listing{}}},
		dog:     &fakeDog{tr: tr}, resets: make(chan string, 9),
		lease: &fakeLease{tr: tr, id: 9, lost: make(chan struct{})},
	}
	set, err := hypervisor.NewSet(s.hv)
	if err != nil {
		t.Fatal(err)
	}
	state, err := LoadState(s.run, "boot")
	if err != nil {
		t.Fatal(err)
	}
	heart := NewHeart(nil, nil, lab, cluster.Heartbeat{}, nil, zap.NewNop())
	heart.last, heart.err = boottime.Now(), nil
	s.Node = &Node{
		Self: self, BootID: "boot", HardwareID: "hw", Nonce: "nonce", Members: s.members, Mount: s.mount,
		Watchdog: s.dog, Reset: func(why string) { s.resets <- why },
		Hypervisor: tracedSet{set, tr}, Heart: heart, Gate: &Gate{}, State: state,
		Settings: func() Settings {
			return Settings{Timing: lab(), StopBudget: 10 * time.Second, ActionTimeout: 10 * time.Second}
		},
		Usage: func() Usage { return Usage{} }, Ignored: func(string) bool { return false },
		IgnoreNow: func(context.Context) error { return nil }, OnAdmit: func(Admitted) {},
		Status: func(string) {}, Event: func(cluster.Event) {}, Log: zap.NewNop(),
	}
	return s
}

// lab are numbers in which a heartbeat takes 4 ms, and contact lasts long.
func lab() cluster.Timing {
	return cluster.NewTiming(time.Hour, 4*time.Millisecond, time.Hour)
}

func listing(inc cluster.Incarnation, rs ...cluster.Resource) cluster.Listing {
	return cluster.Listing{Inc: inc, HasInc: true, Resources: rs}
}

func res(id cluster.ResourceID, path string) cluster.Resource {
	return cluster.Resource{ID: id, Kind: id.Kind(), Path: path, Want: cluster.WantRunning}
}

func failoverIn(phase cluster.Phase, inc cluster.Incarnation, proof string) cluster.Versioned[cluster.Failover] {
	return cluster.Versioned[cluster.Failover]{Value: cluster.Failover{Node: self, Inc: inc, Phase: phase, Proof: proof}}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

package failover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// table is a copy of keys that a test holds.
type table[T any] struct {
	m     map[string]cluster.Versioned[T]
	stale bool
}

func (t *table[T]) Read(f func(map[string]cluster.Versioned[T])) bool {
	f(t.m)
	return !t.stale
}

// desk is a ledger and a mount that write down what they are asked, and answer
// what the test wants.
type desk struct {
	mu     sync.Mutex
	asked  []string
	answer func(call string) error
	pool   cluster.Listing
	last   cluster.Failover
}

func (d *desk) call(format string, args ...any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := fmt.Sprintf(format, args...)
	d.asked = append(d.asked, c)
	if d.answer != nil {
		return d.answer(c)
	}
	return nil
}

func (d *desk) calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string{}, d.asked...)
}

func (d *desk) has(call string) bool {
	for _, c := range d.calls() {
		if c == call {
			return true
		}
	}
	return false
}

func (d *desk) Open(_ context.Context, _ cluster.Term, o cluster.Opening) error {
	return d.call("open %s", nick(o.Failover.Node))
}
func (d *desk) Update(_ context.Context, _ cluster.Term, _ cluster.Versioned[cluster.Failover], f cluster.Failover, _ int64, _ ...cluster.Swap) error {
	d.mu.Lock()
	d.last = f
	d.mu.Unlock()
	return d.call("update %s %s", nick(f.Node), f.Phase)
}
func (d *desk) Wanted(context.Context, cluster.Term, cluster.FailoverID, int64) error { return nil }
func (d *desk) Withdraw(_ context.Context, _ cluster.Term, w cluster.Versioned[cluster.Failover], _ cluster.Failover, _ int64) error {
	return d.call("withdraw %s", nick(w.Value.Node))
}
func (d *desk) Apply(_ context.Context, _ cluster.Term, s []cluster.Swap) (int, error) {
	return len(s), d.call("apply %d", len(s))
}
func (d *desk) PutBrake(_ context.Context, _ cluster.Term, b *cluster.Brake) error {
	return d.call("brake %v", b != nil)
}
func (d *desk) Forget(_ context.Context, _ cluster.Term, old []cluster.Versioned[cluster.Failover]) error {
	return d.call("forget %d", len(old))
}
func (d *desk) RecordEpoch(_ context.Context, e cluster.Epoch) error { return d.call("epoch %d", e) }
func (d *desk) CheckMark(_ context.Context, m cluster.Marks) error {
	return d.call("check mark of %d", len(m.Marks))
}
func (d *desk) PutMark(_ context.Context, mark string) error {
	return d.call("mark the mount %s", mark)
}
func (d *desk) Marks(context.Context) (cluster.Marks, error) {
	return cluster.Marks{Marks: []string{"old"}}, d.call("marks")
}
func (d *desk) PutMarks(_ context.Context, _ cluster.Term, m cluster.Marks) error {
	return d.call("mark etcd %s", m.Marks)
}
func (d *desk) Seal(_ context.Context, id cluster.FailoverID) error {
	return d.call("seal %s", nick(id.Node))
}
func (d *desk) Pools(context.Context) ([]cluster.PoolID, error) { return nil, d.call("pools") }
func (d *desk) Pool(context.Context, cluster.PoolID, bool) (cluster.Listing, error) {
	return d.pool, d.call("pool")
}
func (d *desk) Census(context.Context) (cluster.Census, error) {
	return cluster.Census{}, d.call("census")
}
func (d *desk) MarkBroken(_ context.Context, _ cluster.Place, name string, _ cluster.BrokenReason) error {
	return d.call("broken %s", name)
}
func (d *desk) MarkDone(context.Context, cluster.PoolID) error { return d.call("done") }

// engineOf is an engine that sees an observation's nodes through a desk.
func engineOf(o Observation, d *desk) *Engine {
	e := &Engine{Methods: these(),
		Self: o.Self, Nodes: named(o.Nodes), Alive: named(o.Alive), Recovering: named(o.Recovering), Failovers: &table[cluster.Failover]{m: map[string]cluster.Versioned[cluster.Failover]{}},
		Actions: &table[cluster.Action]{}, Confirms: &table[cluster.Confirm]{}, Brake: func() *cluster.Brake { return nil },
		Ledger: d, Mount: d, Pulses: &Pulses{Timing: func() cluster.Timing { return quick }}, Settings: func() Settings { return o.Settings },
		Place: first, ValidSince: func() boottime.Time { return 0 }, Valid: func() bool { return true }, NewID: func() string { return "id" }, Event: func(cluster.Event) {}, Log: zap.NewNop(),
		Metrics: NewMetrics(prometheus.NewRegistry()),
	}
	e.Init()
	return e
}

func named[T any](m map[cluster.NodeID]cluster.Versioned[T]) *table[T] {
	out := map[string]cluster.Versioned[T]{}
	for id, e := range m {
		out[string(id)] = e
	}
	return &table[T]{m: out}
}

var term7 = cluster.Term{Key: "k", Epoch: 7}

func TestAMasterWhoseEtcdWentBackDoesNothingAndKeepsTheOffice(t *testing.T) {
	refused := fmt.Errorf("the mark is not known: %w", cluster.ErrWentBack)
	d := &desk{answer: func(c string) error {
		if c == "check mark of 1" {
			return refused
		}
		return nil
	}}
	e := engineOf(given(lost(node2)), d)
	said := make(chan cluster.Event, 1)
	e.Event = func(ev cluster.Event) { said <- ev }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.Lead(ctx, term7) }()
	if ev := <-said; ev.Kind != "master-idle" || ev.Message != refused.Error() {
		t.Errorf("said %+v", ev)
	}
	e.Hint()
	select {
	case err := <-ended:
		t.Fatalf("it gave the office up: %v", err)
	default:
	}
	cancel()
	if err := <-ended; !errors.Is(err, refused) {
		t.Errorf("ended with %v", err)
	}
	if diff := cmp.Diff([]string{"epoch 7", "marks", "check mark of 1"}, d.calls()); diff != "" {
		t.Errorf("what it did (-want +got):\n%s", diff)
	}
}

func TestAMasterWhoseMountIsInTroubleGivesTheOfficeUp(t *testing.T) {
	d := &desk{answer: func(string) error { return fmt.Errorf("write cluster: %w", cluster.ErrHold) }}
	if err := engineOf(given(lost(node2)), d).Lead(t.Context(), term7); !errors.Is(err, cluster.ErrHold) {
		t.Errorf("ended with %v", err)
	}
	if diff := cmp.Diff([]string{"epoch 7"}, d.calls()); diff != "" {
		t.Errorf("what it did (-want +got):\n%s", diff)
	}
}

func TestADeposedMasterStopsAtOnce(t *testing.T) {
	d := &desk{answer: func(c string) error {
		if c == "open n2" {
			return fmt.Errorf("open: %w", cluster.ErrDeposed)
		}
		return nil
	}}
	if err := engineOf(given(lost(node2), lost(node3)), d).Lead(t.Context(), term7); !errors.Is(err, cluster.ErrDeposed) {
		t.Errorf("ended with %v", err)
	}
	if diff := cmp.Diff([]string{"epoch 7", "marks", "check mark of 1", "mark etcd [id old]", "mark the mount id", "pools", "census",
		"marks", "check mark of 1", "mark etcd [id old]", "mark the mount id", "open n2"}, d.calls()); diff != "" {
		t.Errorf("what it did (-want +got):\n%s", diff)
	}
}

func TestLeadGoesOnAfterErrorsAndEndsWithTheCause(t *testing.T) {
	d := &desk{answer: func(c string) error {
		switch c {
		case "open n2":
			return errors.New("no answer")
		case "open n3":
			return cluster.ErrConflict
		}
		return nil
	}}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error)
	e := engineOf(given(lost(node2), lost(node3), lost(node4), func(o *Observation) { o.SkipThreshold = 9 }), d)
	go func() { ended <- e.Lead(ctx, term7) }()
	waitFor(t, "the last node is opened though the others failed", func() bool { return d.has("open n4") })
	n := len(d.calls())
	e.Hint()
	waitFor(t, "there is another round", func() bool { return len(d.calls()) > n })
	over := errors.New("lease validity ended")
	cancel(over)
	if err := <-ended; !errors.Is(err, over) {
		t.Errorf("ended with %v", err)
	}
}

func TestNothingIsDecidedOnCopiesThatAreNotUpToDate(t *testing.T) {
	for _, name := range []string{"nodes", "alive", "recovering", "failovers", "actions", "confirms"} {
		t.Run(name, func(t *testing.T) {
			d := &desk{}
			e := engineOf(given(lost(node2)), d)
			switch name {
			case "nodes":
				e.Nodes = &table[cluster.NodeRecord]{stale: true}
			case "alive":
				e.Alive = &table[cluster.AliveRecord]{stale: true}
			case "recovering":
				e.Recovering = &table[cluster.RecoveringRecord]{stale: true}
			case "failovers":
				e.Failovers = &table[cluster.Failover]{stale: true}
			case "actions":
				e.Actions = &table[cluster.Action]{stale: true}
			case "confirms":
				e.Confirms = &table[cluster.Confirm]{stale: true}
			}
			if err := e.newTerm(term7).round(t.Context()); err != nil || len(d.calls()) != 0 {
				t.Errorf("did %q, %v", d.calls(), err)
			}
		})
	}
}

func TestNothingIsDecidedWhileTheMountCannotBeRead(t *testing.T) {
	for _, failing := range []string{"pools", "census"} {
		d := &desk{answer: func(c string) error {
			if c == failing {
				return fs.ErrPermission
			}
			return nil
		}}
		if err := engineOf(given(lost(node2)), d).newTerm(term7).round(t.Context()); !errors.Is(err, fs.ErrPermission) || d.has("open n2") {
			t.Errorf("with failing %s: did %q, %v", failing, d.calls(), err)
		}
	}
}

func TestEveryUnreadableFileIsCounted(t *testing.T) {
	d := &desk{answer: func(c string) error {
		if c == "broken vm-y" {
			return cluster.ErrHold
		}
		return nil
	}}
	o := given(sealed(node2))
	m := engineOf(o, d).newTerm(term7)
	torn := func(id string) cluster.Unparseable { return cluster.Unparseable{ID: id, Err: cluster.ErrTorn} }
	d.pool = cluster.Listing{Inc: 1, HasInc: true, Unparseable: []cluster.Unparseable{torn("vm-x"), torn("vm-y"), torn("vm-z")}}
	o.Pools[of(node2, 1)] = d.pool
	for _, s := range Decide(o, first) {
		if err := m.apply(t.Context(), o, s); !errors.Is(err, cluster.ErrHold) {
			t.Errorf("%s: %v", s.Do, err)
		}
	}
	if diff := cmp.Diff([]string{"broken vm-x", "broken vm-y", "broken vm-z", "update n2 relocating"}, d.calls()); diff != "" {
		t.Errorf("what it did (-want +got):\n%s", diff)
	}
	if d.last.Unreadable != 2 {
		t.Errorf("%d of the two files that were moved are counted", d.last.Unreadable)
	}
}

// A machine that was suspended while it was master wakes up with its context
// still alive: what cannot be taken back asks for the lease itself.
func TestNothingIrreversibleWithoutAValidLease(t *testing.T) {
	valid := true
	m := &term{Engine: &Engine{Valid: func() bool { return valid }}}
	if err := m.mayAct(t.Context()); err != nil {
		t.Errorf("a master with a valid lease may not act: %v", err)
	}
	valid = false
	if m.mayAct(t.Context()) == nil {
		t.Error("a master whose lease is not valid may act")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("deposed")
	cancel(why)
	if err := m.mayAct(ctx); !errors.Is(err, why) {
		t.Errorf("mayAct returned %v after %v", err, why)
	}
}

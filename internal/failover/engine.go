package failover

import (
	"context"
	"errors"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// Table is a local copy of keys in etcd, by name; it tells whether it is being kept up.
type Table[T any] interface {
	Read(f func(map[string]cluster.Versioned[T])) bool
}

// Ledger is where failovers and actions are written; every write is guarded by the term.
type Ledger interface {
	Open(ctx context.Context, term cluster.Term, o cluster.Opening) error
	Update(ctx context.Context, term cluster.Term, was cluster.Versioned[cluster.Failover], f cluster.Failover, nodeMod int64, drop ...cluster.Swap) error
	Wanted(ctx context.Context, term cluster.Term, id cluster.FailoverID, serial int64) error
	Withdraw(ctx context.Context, term cluster.Term, was cluster.Versioned[cluster.Failover], f cluster.Failover, recoveringMod int64) error
	Apply(ctx context.Context, term cluster.Term, swaps []cluster.Swap) (int, error)
	Marks(ctx context.Context) (cluster.Marks, error)
	PutMarks(ctx context.Context, term cluster.Term, m cluster.Marks) error
	PutBrake(ctx context.Context, term cluster.Term, b *cluster.Brake) error
	Forget(ctx context.Context, term cluster.Term, entries []cluster.Versioned[cluster.Failover]) error
}

// Mount is the shared file system, as far as a master needs it.
type Mount interface {
	RecordEpoch(ctx context.Context, epoch cluster.Epoch) error
	CheckMark(ctx context.Context, known cluster.Marks) error
	PutMark(ctx context.Context, mark string) error
	Seal(ctx context.Context, id cluster.FailoverID) error
	Pools(ctx context.Context) ([]cluster.PoolID, error)
	Pool(ctx context.Context, p cluster.PoolID, forced bool) (cluster.Listing, error)
	Census(ctx context.Context) (cluster.Census, error)
	MarkBroken(ctx context.Context, from cluster.Place, name string, why cluster.BrokenReason) error
	MarkDone(ctx context.Context, p cluster.PoolID) error
}

// Engine runs failovers while this node is master.
type Engine struct {
	Self       cluster.NodeID
	Nodes      Table[cluster.NodeRecord]
	Alive      Table[cluster.AliveRecord]
	Recovering Table[cluster.RecoveringRecord]
	Failovers  Table[cluster.Failover]
	Actions    Table[cluster.Action]
	Confirms   Table[cluster.Confirm]
	Brake      func() *cluster.Brake // as published; must not block

	Ledger     Ledger
	Mount      Mount
	Methods    func() []Method // of the moment; must not block
	Pulses     *Pulses
	Settings   func() Settings
	Place      Place
	ValidSince func() boottime.Time // the last gap in this daemon's contact with etcd
	Valid      func() bool          // this daemon's lease, right now
	NewID      func() string
	At         func(label string) // called before and after each step that changes something
	Event      func(cluster.Event)
	Log        *zap.Logger
	Metrics    *Metrics

	hints chan struct{}
}

// Init makes an engine ready; call it once, before anything else.
func (e *Engine) Init() {
	e.hints = make(chan struct{}, 1)
	if e.At == nil {
		e.At = func(string) {}
	}
}

// Hint says that what is observed may have changed. It does not block.
func (e *Engine) Hint() {
	select {
	case e.hints <- struct{}{}:
	default:
	}
}

const (
	// idlePause is how long a master that cannot begin stays in office all the same.
	idlePause = time.Second
	// roundPause is the least time between two rounds, roundEvery the most.
	roundPause = 50 * time.Millisecond
	roundEvery = time.Second
	// roundBurst is how many rounds may follow each other at once after a quiet
	// time: proof, seal and dispatch need one each, and wait for nothing else.
	roundBurst = 5
	// roundSettle lets the copies of etcd take in what the round before has written.
	roundSettle = time.Millisecond
)

// term is the state of one mastership.
type term struct {
	*Engine
	cluster.Term
	prover *prover

	lost       map[cluster.NodeID]boottime.Time
	lives      map[cluster.NodeID]int64 // the admission that each was last seen with, by its serial
	recovering map[cluster.NodeID]boottime.Time
	opened     map[cluster.FailoverID]boottime.Time
	counted    map[cluster.FailoverID]boottime.Time
	late       map[cluster.FailoverID]bool // seals that came too late, told once
	fewer      boottime.Time               // see Observation.FewerSince
	lostLast   int
	turn       int
	poolsAt    boottime.Time
	wordsMod   int64                   // of the newest record with a word in it
	wordsPause time.Duration           // until the mount is read again for these words
	wordsAt    boottime.Time           // when the mount was last read whole
	pools      map[cluster.PoolID]bool // with something left to do
	looked     time.Duration           // how long the last round observed and decided
	sent       bool                    // the last round sent actions: what it wrote must be seen before the next, or it is sent again
}

// Lead observes, decides and applies until the context ends with the mastership.
func (e *Engine) Lead(ctx context.Context, t cluster.Term) error {
	err := e.Mount.RecordEpoch(ctx, t.Epoch)
	if err == nil {
		err = e.mark(ctx, t)
	}
	if err != nil {
		e.Log.Error("this master does nothing", zap.Error(err))
		e.Event(cluster.Event{Kind: "master-idle", Epoch: t.Epoch, Message: cluster.OneLine(err)})
		if errors.Is(err, cluster.ErrWentBack) {
			<-ctx.Done() // holding the office keeps another node from doing worse
		}
		select { // let another node try, and not at once again
		case <-ctx.Done():
		case <-time.After(idlePause):
		}
		return err
	}
	e.Event(cluster.Event{Kind: "master", Subject: e.Self, Epoch: t.Epoch, Message: "became master"})
	m := e.newTerm(t)
	defer m.prover.stop()
	tick := time.NewTicker(roundEvery)
	defer tick.Stop()
	left, counted := roundBurst, boottime.Now()
	for {
		m.looked, m.sent = 0, false
		if err := m.round(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, cluster.ErrDeposed) {
				return err
			}
			m.Log.Warn("a round of the engine ended early; the next one looks again", zap.Error(err))
		}
		// With many thousands of actions looking and deciding takes time: leave as
		// much to others. What the steps waited for, etcd or the mount, was theirs.
		if earned := int(boottime.Since(counted) / roundPause); earned > 0 {
			left, counted = min(left+earned, roundBurst), boottime.Now()
		}
		wait := max(roundPause, m.looked)
		if left > 0 && !m.sent {
			left--
			wait = roundSettle
		}
		pause := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			pause.Stop()
			return context.Cause(ctx)
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-e.hints:
		case <-tick.C:
		}
	}
}

func (e *Engine) newTerm(t cluster.Term) *term {
	return &term{
		Engine: e, Term: t, lost: map[cluster.NodeID]boottime.Time{}, lives: map[cluster.NodeID]int64{}, recovering: map[cluster.NodeID]boottime.Time{},
		opened: map[cluster.FailoverID]boottime.Time{}, counted: map[cluster.FailoverID]boottime.Time{},
		pools: map[cluster.PoolID]bool{}, late: map[cluster.FailoverID]bool{},
		prover: &prover{methods: e.Methods, log: e.Log, metrics: e.Metrics, hint: e.Hint, runs: map[cluster.FailoverID]*proving{}},
	}
}

// mark makes sure that this etcd knows what was last done on the mount, and
// leaves a new mark in both: etcd first, so that the mount never has one that
// etcd does not know. It comes before anything that cannot be taken back, so that
// a backup of etcd from before that is recognised.
func (e *Engine) mark(ctx context.Context, t cluster.Term) error {
	known, err := e.Ledger.Marks(ctx)
	if err != nil {
		return err
	}
	if err := e.Mount.CheckMark(ctx, known); err != nil {
		return err
	}
	next := e.NewID()
	if err := e.Ledger.PutMarks(ctx, t, known.With(next)); err != nil {
		return err
	}
	return e.Mount.PutMark(ctx, next)
}

// round is observe → Decide → apply, once.
func (m *term) round(ctx context.Context) error {
	begin := time.Now()
	o, ok, err := m.observe(ctx)
	if err != nil || !ok {
		return err
	}
	var errs []error
	steps := Decide(o, m.Place)
	m.looked = time.Since(begin)
	for _, s := range steps {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		err := m.apply(ctx, o, s)
		result := "done"
		if err != nil {
			result = "failed"
		}
		if s.Do != ActFence {
			m.Metrics.Steps.WithLabelValues(string(s.Do), result).Inc()
		}
		if errors.Is(err, cluster.ErrDeposed) {
			return err
		}
		if err != nil && !errors.Is(err, cluster.ErrConflict) {
			errs = append(errs, err) // one bad resource or node never stops the round for the others
		}
	}
	return errors.Join(errs...)
}

package failover

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// Method is one way of proving a node harmless. Prove returns the evidence, and
// a nil error only if the proof holds; ErrNotApplicable if this method can never
// say anything about that node. check tells right before each irreversible act
// whether this daemon still is master.
type Method interface {
	Name() string
	// Gentle methods ask the node itself to stop everything. The others wait while
	// it may still be doing so.
	Gentle() bool
	Prove(ctx context.Context, t cluster.FenceTarget, check func() error) (evidence string, err error)
}

// ErrNotApplicable is returned by a method that is not configured for a node.
var ErrNotApplicable = errors.New("not configured for this node")

const (
	// fencePause and fencePauseMax bound the pause between two tries of a method.
	fencePause    = 2 * time.Second
	fencePauseMax = 30 * time.Second
	// stagger is the time between the starts of two methods, unless the first one
	// has failed before.
	stagger = time.Second
	// patienceTick is how often a method looks whether it may begin by now.
	patienceTick = 50 * time.Millisecond
)

// prover runs all methods for all open failovers of one mastership.
type prover struct {
	methods func() []Method // asked when a failover's proof begins
	log     *zap.Logger
	metrics *Metrics
	hint    func()

	mu   sync.Mutex
	runs map[cluster.FailoverID]*proving
	wg   sync.WaitGroup
}

// proving is one failover's methods side by side.
type proving struct {
	lost   boottime.Time // when its alive key was first seen to be absent
	cancel context.CancelFunc
	proof  *Proof
	errs   map[string]string // method → its last failure; missing = not tried yet
	notYet int               // methods that have neither failed nor said that they do not apply
	begin  boottime.Time     // before it only gentle methods run
}

// start runs the methods for a failover, once. Until delay has passed only the
// gentle ones run; each further call sets the delay anew.
func (p *prover) start(ctx context.Context, t cluster.FenceTarget, delay time.Duration, check func() error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := boottime.Now()
	begin := now.Add(delay)
	if run := p.runs[t.Failover]; run != nil {
		run.begin = begin
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	methods := p.methods()
	run := &proving{cancel: cancel, errs: map[string]string{}, notYet: len(methods), begin: begin, lost: now.Add(-t.LostFor)}
	p.runs[t.Failover] = run
	before := make(chan struct{})
	close(before)
	for i, m := range methods {
		answered := make(chan struct{})
		turn := before
		before = answered
		p.wg.Go(func() {
			if p.await(ctx, run, m, turn, time.Duration(i)*stagger) == nil {
				p.prove(ctx, run, t, m, sync.OnceFunc(func() { close(answered) }), check)
			}
		})
	}
}

// await waits for a method's turn: the one before it has answered once or had its
// time, and for methods that are not gentle the delay has passed.
func (p *prover) await(ctx context.Context, run *proving, m Method, turn <-chan struct{}, longest time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-turn:
	case <-time.After(longest):
	}
	for !m.Gentle() {
		p.mu.Lock()
		left := run.begin.Sub(boottime.Now())
		p.mu.Unlock()
		if left <= 0 {
			break
		}
		if err := boottime.WaitUntil(ctx, boottime.Now().Add(min(left, patienceTick))); err != nil {
			return err
		}
	}
	return nil
}

func (p *prover) prove(ctx context.Context, run *proving, t cluster.FenceTarget, m Method, answered func(), check func() error) {
	id, name := t.Failover, t.Name
	first := true
	for pause := fencePause; ; pause = min(2*pause, fencePauseMax) {
		begin := time.Now()
		t.LostFor = boottime.Since(run.lost)
		evidence, err := m.Prove(ctx, t, check)
		if ctx.Err() != nil {
			return
		}
		answered()
		p.mu.Lock()
		if first {
			run.notYet--
			first = false
		}
		if err == nil {
			if run.proof == nil {
				run.proof = &Proof{Method: m.Name(), Evidence: evidence}
			}
		} else {
			run.errs[m.Name()] = cluster.OneLine(err)
		}
		p.mu.Unlock()
		p.hint()
		switch {
		case err == nil:
			p.metrics.Attempts.WithLabelValues(m.Name(), "proven").Inc()
			p.log.Info("proven harmless", zap.String("node", name), zap.String("failover", id.String()), zap.String("method", m.Name()), zap.String("evidence", evidence), zap.Duration("elapsed", time.Since(begin)))
			return
		case errors.Is(err, ErrNotApplicable):
			return
		}
		p.metrics.Attempts.WithLabelValues(m.Name(), "failed").Inc()
		p.log.Warn("could not prove the node harmless; tried again", zap.String("node", name), zap.String("failover", id.String()), zap.String("method", m.Name()), zap.Error(err))
		if boottime.WaitUntil(ctx, boottime.Now().Add(pause)) != nil {
			return
		}
	}
}

// state copies what has come of the methods, and ends those of failovers that
// want no proof now.
func (p *prover) state(wanted map[cluster.FailoverID]bool) (map[cluster.FailoverID]Proof, map[cluster.FailoverID]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	proofs, stuck := map[cluster.FailoverID]Proof{}, map[cluster.FailoverID]string{}
	for id, run := range p.runs {
		if !wanted[id] {
			run.cancel()
			delete(p.runs, id)
			continue
		}
		if run.proof != nil {
			proofs[id] = *run.proof
		} else if run.notYet == 0 {
			var why []string
			for m, e := range run.errs {
				why = append(why, fmt.Sprintf("%s: %s", m, e))
			}
			sort.Strings(why)
			stuck[id] = strings.Join(why, "; ")
			if len(why) == 0 {
				stuck[id] = "no fencing method is configured"
			}
		}
	}
	return proofs, stuck
}

// end ends the methods of one failover.
func (p *prover) end(id cluster.FailoverID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if run := p.runs[id]; run != nil {
		run.cancel()
		delete(p.runs, id)
	}
}

// stop ends all methods and waits for them.
func (p *prover) stop() {
	p.mu.Lock()
	for _, run := range p.runs {
		run.cancel()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

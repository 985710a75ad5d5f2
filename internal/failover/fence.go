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
	Prove(ctx context.Context, node cluster.NodeID, name string, check func() error) (evidence string, err error)
}

// ErrNotApplicable is returned by a method that is not configured for a node.
var ErrNotApplicable = errors.New("not configured for this node")

const (
	// fencePause and fencePauseMax bound the pause between two tries of a method.
	fencePause    = 2 * time.Second
	fencePauseMax = 30 * time.Second
	// stagger is the time between the starts of two methods.
	stagger = time.Second
)

// prover runs all methods for all open failovers of one mastership.
type prover struct {
	methods []Method
	log     *zap.Logger
	metrics *Metrics
	hint    func()

	mu   sync.Mutex
	runs map[cluster.FailoverID]*proving
	wg   sync.WaitGroup
}

// proving is one failover's methods side by side.
type proving struct {
	cancel context.CancelFunc
	proof  *Proof
	errs   map[string]string // method → its last failure; missing = not tried yet
	notYet int               // methods that have neither failed nor said that they do not apply
	since  boottime.Time
}

// start runs the methods for a failover, once; delay holds agents back.
func (p *prover) start(ctx context.Context, id cluster.FailoverID, name string, delay time.Duration, check func() error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runs[id] != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	run := &proving{cancel: cancel, errs: map[string]string{}, notYet: len(p.methods), since: boottime.Now()}
	p.runs[id] = run
	for i, m := range p.methods {
		p.wg.Go(func() { p.prove(ctx, run, id, name, m, delay+time.Duration(i)*stagger, check) })
	}
}

func (p *prover) prove(ctx context.Context, run *proving, id cluster.FailoverID, name string, m Method, delay time.Duration, check func() error) {
	if boottime.WaitUntil(ctx, boottime.Now().Add(delay)) != nil {
		return
	}
	first := true
	for pause := fencePause; ; pause = min(2*pause, fencePauseMax) {
		begin := time.Now()
		evidence, err := m.Prove(ctx, id.Node, name, check)
		if ctx.Err() != nil {
			return
		}
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

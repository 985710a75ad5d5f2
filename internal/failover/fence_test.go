package failover

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

// method is a fencing method that asks the test for each of its answers.
type method struct {
	name   string
	gentle bool
	asked  chan cluster.NodeID
	reply  chan error
}

func newMethod(name string) *method {
	return &method{name: name, asked: make(chan cluster.NodeID), reply: make(chan error)}
}

func (m *method) Name() string { return m.name }
func (m *method) Gentle() bool { return m.gentle }
func (m *method) Prove(ctx context.Context, t cluster.FenceTarget, check func() error) (string, error) {
	select {
	case m.asked <- t.Node:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	select {
	case err := <-m.reply:
		return m.name + " says so", errors.Join(err, check())
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func proving2(t *testing.T, ms ...*method) (*prover, cluster.FailoverID, map[cluster.FailoverID]bool) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	var all []Method
	for _, m := range ms {
		all = append(all, m)
	}
	p := &prover{methods: these(all...), log: zap.NewNop(), metrics: NewMetrics(prometheus.NewRegistry()), hint: func() {}, runs: map[cluster.FailoverID]*proving{}}
	t.Cleanup(p.stop)
	id := of(node2, 1)
	p.start(t.Context(), cluster.FenceTarget{Node: node2, Name: "n2", Failover: id}, 0, func() error { return nil })
	return p, id, map[cluster.FailoverID]bool{id: true}
}

func counter(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func (p *prover) waitProof(t *testing.T, open map[cluster.FailoverID]bool) Proof {
	t.Helper()
	var got map[cluster.FailoverID]Proof
	waitFor(t, "there is a proof", func() bool { got, _ = p.state(open); return len(got) == 1 })
	return got[of(node2, 1)]
}

func (p *prover) waitStuck(t *testing.T, open map[cluster.FailoverID]bool) string {
	t.Helper()
	var got map[cluster.FailoverID]string
	waitFor(t, "it is stuck", func() bool { _, got = p.state(open); return len(got) == 1 })
	return got[of(node2, 1)]
}

func TestMethodsRunSideBySideAndTheFirstProofWins(t *testing.T) {
	a, b := newMethod("a"), newMethod("b")
	p, _, open := proving2(t, a, b)
	if n := <-a.asked; n != node2 {
		t.Errorf("asked about %s", n)
	}
	<-b.asked // though a has not answered
	b.reply <- nil
	want := Proof{Method: "b", Evidence: "b says so"}
	if d := cmp.Diff(want, p.waitProof(t, open)); d != "" {
		t.Errorf("proof (-want +got):\n%s", d)
	}
	a.reply <- nil
	waitFor(t, "the second proof is counted", func() bool { return counter(t, p.metrics.Attempts.WithLabelValues("a", "proven")) == 1 })
	if d := cmp.Diff(want, p.waitProof(t, open)); d != "" {
		t.Errorf("after a second proof (-want +got):\n%s", d)
	}
}

func TestItIsStuckOnlyWhenEveryMethodHasFailedOnce(t *testing.T) {
	a, b := newMethod("a"), newMethod("b")
	p, _, open := proving2(t, a, b)
	<-a.asked
	a.reply <- errors.New("refused")
	<-b.asked
	if proofs, stuck := p.state(open); len(proofs)+len(stuck) != 0 {
		t.Errorf("before b has answered: %v %v", proofs, stuck)
	}
	b.reply <- ErrNotApplicable
	if d := cmp.Diff("a: refused; b: not configured for this node", p.waitStuck(t, open)); d != "" {
		t.Errorf("why (-want +got):\n%s", d)
	}
	// The one that failed is tried again, the one that does not apply is not.
	<-a.asked
	a.reply <- nil
	p.waitProof(t, open)
	if _, stuck := p.state(open); len(stuck) != 0 {
		t.Errorf("stuck beside a proof: %v", stuck)
	}
	if n := counter(t, p.metrics.Attempts.WithLabelValues("b", "failed")); n != 0 {
		t.Errorf("a method that does not apply counts %v failures", n)
	}
}

func TestItIsStuckAtOnceWithoutMethods(t *testing.T) {
	p, _, open := proving2(t)
	if d := cmp.Diff("no fencing method is configured", p.waitStuck(t, open)); d != "" {
		t.Errorf("why (-want +got):\n%s", d)
	}
}

func TestNoProofCountsPastTheMastership(t *testing.T) {
	a := newMethod("a")
	p := &prover{methods: these(a), log: zap.NewNop(), metrics: NewMetrics(prometheus.NewRegistry()), hint: func() {}, runs: map[cluster.FailoverID]*proving{}}
	ctx, cancel := context.WithCancel(t.Context())
	p.start(ctx, cluster.FenceTarget{Node: node2, Name: "n2", Failover: of(node2, 1)}, 0, func() error { return context.Cause(ctx) })
	<-a.asked
	cancel()
	p.stop() // returns once the method has ended
	if proofs, stuck := p.state(map[cluster.FailoverID]bool{of(node2, 1): true}); len(proofs)+len(stuck) != 0 {
		t.Errorf("after the end: %v %v", proofs, stuck)
	}
}

func TestMethodsEndWithTheirFailoverAndBeginAnewWithTheNext(t *testing.T) {
	a := newMethod("a")
	p, id, open := proving2(t, a)
	<-a.asked
	a.reply <- nil
	p.waitProof(t, open)
	p.state(nil) // withdrawn
	p.start(t.Context(), cluster.FenceTarget{Node: node2, Name: "n2", Failover: id}, 0, func() error { return nil })
	if proofs, _ := p.state(open); len(proofs) != 0 {
		t.Errorf("the proof of a failover that was withdrawn counts for the next one: %v", proofs)
	}
	<-a.asked
	p.start(t.Context(), cluster.FenceTarget{Node: node2, Name: "n2", Failover: id}, 0, func() error { return nil })
	select {
	case <-a.asked:
		t.Error("a second start of the same failover started a second method")
	case <-time.After(20 * time.Millisecond):
	}
	p.state(nil)
	waitFor(t, "the method has ended", func() bool {
		select {
		case a.reply <- nil:
			return false
		default:
			return true
		}
	})
}

func TestOnlyGentleMethodsRunBeforeTheDelayHasPassed(t *testing.T) {
	gentle, harsh := newMethod("gentle"), newMethod("harsh")
	gentle.gentle = true
	p := &prover{methods: these(gentle, harsh), log: zap.NewNop(), metrics: NewMetrics(prometheus.NewRegistry()), hint: func() {}, runs: map[cluster.FailoverID]*proving{}}
	t.Cleanup(p.stop)
	target := cluster.FenceTarget{Node: node2, Name: "n2", Failover: of(node2, 1)}
	allowed := func() error { return nil }
	p.start(t.Context(), target, time.Hour, allowed)
	<-gentle.asked
	gentle.reply <- errors.New("silent")
	select {
	case <-harsh.asked:
		t.Fatal("the node may still be stopping everything by itself")
	case <-time.After(3 * patienceTick):
	}
	// It falls silent: nobody is there to wait for.
	p.start(t.Context(), target, 0, allowed)
	<-harsh.asked
}

func TestAMethodNeedNotWaitForOneThatHasFailed(t *testing.T) {
	a, b := newMethod("a"), newMethod("b")
	begin := time.Now()
	proving2(t, a, b)
	<-a.asked
	a.reply <- ErrNotApplicable
	<-b.asked
	if d := time.Since(begin); d >= stagger {
		t.Errorf("asked after %s, though the one before had failed at once", d)
	}
}

// While a failover is held, or once its proof is recorded, nothing may go on
// that cuts the power of a node which may be on its way back.
func TestMethodsRunOnlyWhileAProofIsWanted(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    cluster.Failover
		want bool
	}{
		{"fencing", cluster.Failover{Phase: cluster.PhaseFencing}, true},
		{"awaiting an operator", cluster.Failover{Phase: cluster.PhaseAwaitingFence}, true},
		{"held by the brake", cluster.Failover{Phase: cluster.PhaseHeld}, false},
		{"proven", cluster.Failover{Phase: cluster.PhaseSealing, Proof: "rebooted"}, false},
		{"proven and held", cluster.Failover{Phase: cluster.PhaseHeld, Proof: "rebooted"}, false},
		{"sealed", cluster.Failover{Phase: cluster.PhaseRelocating, Proof: "agent"}, false},
		{"done", cluster.Failover{Phase: cluster.PhaseDone, Proof: "agent"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newMethod("a")
			p, id, _ := proving2(t, a)
			<-a.asked
			m := &term{Engine: &Engine{Pulses: &Pulses{Timing: func() cluster.Timing { return quick }}}, prover: p}
			o := given()
			o.Failovers[id] = cluster.Versioned[cluster.Failover]{Value: tt.f}
			m.lost, m.recovering, m.opened, m.counted = o.LostSince, o.RecoveringSince, o.OpenSince, o.CountedAt
			m.remember(&o, moment)
			if got := p.runs[id] != nil; got != tt.want {
				t.Errorf("the methods run: %v, want %v", got, tt.want)
			}
		})
	}
}

// these are the methods of all times.
func these(ms ...Method) func() []Method { return func() []Method { return ms } }

package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

var order = cluster.Order{V: 1, Failover: string(self) + ".3", Inc: 3, Serial: 50, State: cluster.Ordered}

// give puts an order where the next look at the mount would have found it.
func (s *site) give(o cluster.Order) {
	s.Heart.mu.Lock()
	defer s.Heart.mu.Unlock()
	s.Heart.order = o
}

func TestWhichOrdersAreObeyed(t *testing.T) {
	but := func(f func(*cluster.Order)) cluster.Order {
		o := order
		f(&o)
		return o
	}
	for _, tt := range []struct {
		name  string
		order cluster.Order
		mem   func(*memory)
		want  bool
	}{
		{name: "one for this incarnation", order: order, want: true},
		{name: "none", order: cluster.Order{}},
		{name: "not one for an incarnation of before", order: but(func(o *cluster.Order) { o.Inc = 2 })},
		{name: "not one of a failover that was withdrawn before the last admission", order: order, mem: func(m *memory) { m.Serial = 50 }},
		{name: "not one that is answered", order: order, mem: func(m *memory) { m.Answered = 50 }},
		{name: "a newer one after that", order: order, mem: func(m *memory) { m.Answered, m.Serial = 49, 49 }, want: true},
		{name: "not an answer that strayed into the slot", order: but(func(o *cluster.Order) { o.State = cluster.Quiesced })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			if tt.mem != nil {
				must(t, s.State.update(tt.mem))
			}
			s.give(tt.order)
			if _, got := s.ordered(3); got != tt.want {
				t.Errorf("obeyed: %t, want %t", got, tt.want)
			}
		})
	}
}

func TestAnActiveNodeObeys(t *testing.T) {
	s, done := activeSite(t)
	s.give(order)
	if err := <-done; err == nil {
		t.Error("the admission ended without a reason")
	}
	want := order
	want.State = cluster.Quiesced
	if d := cmp.Diff([]cluster.Order{want}, s.mount.answers); d != "" {
		t.Errorf("answers (-want +got):\n%s", d)
	}
	if got, want := s.tr.String(), "stop /ve/a, barrier, sync, answer, revoke"; got != want {
		t.Errorf("did %q, want %q: answered only after everything is stopped and flushed", got, want)
	}
	if mem := loadState(t, s.run, "boot").get(); mem.Answered != 50 || mem.Closed != 3 {
		t.Errorf("the next daemon finds answered %d, closed %d; want 50, 3", mem.Answered, mem.Closed)
	}
}

func TestNoAnswerUnlessEverythingIsStopped(t *testing.T) {
	s, done := activeSite(t)
	s.hv.Inject("kill", "/ve/a", drivertest.Fault{Times: 1, Err: errors.New("it does not die")})
	s.give(order)
	<-done
	if len(s.mount.answers) != 0 {
		t.Fatal("the master was told that everything is stopped, and it is not")
	}
	// The order stands, so it is tried again; the gate stays closed meanwhile.
	s.setAdmitted(nil)
	must(t, s.State.update(func(m *memory) { m.Incarnation = 3 }))
	must(t, s.obeyOnce(t.Context()))
	if s.hv.Running("/ve/a") || len(s.mount.answers) != 1 {
		t.Errorf("runs %t, %d answers", s.hv.Running("/ve/a"), len(s.mount.answers))
	}
	if _, err := s.Gate.Hold(3); err == nil {
		t.Error("the gate is open")
	}
}

func TestADaemonThatWasRestartedObeysBeforeItGoesOn(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/a", drivertest.Definition{})
	must(t, s.State.update(func(m *memory) { m.Incarnation = 3 }))
	s.give(order)
	must(t, s.obeyOnce(t.Context()))
	if s.hv.Running("/ve/a") || len(s.mount.answers) != 1 {
		t.Fatalf("runs %t, %d answers", s.hv.Running("/ve/a"), len(s.mount.answers))
	}
	// Whatever it was about to resume is over.
	if err := s.begin(Admitted{Incarnation: 3, Lease: s.lease}); !errors.Is(err, errQuiesced) {
		t.Errorf("an incarnation that was ended begins again: %v", err)
	}
	must(t, s.begin(Admitted{Incarnation: 4, Lease: s.lease}))
	must(t, s.obeyOnce(t.Context())) // answered; nothing is done twice
	if len(s.mount.answers) != 1 {
		t.Error("answered twice")
	}
}

// The next incarnation waits for the answer: its gate and its VEs are its own.
func TestNothingBeginsWhileAnOrderIsObeyed(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/a", drivertest.Definition{})
	s.hv.Inject("kill", "/ve/a", drivertest.Fault{Hang: true})
	s.Settings = func() Settings { return Settings{StopBudget: 100 * time.Millisecond} }
	must(t, s.State.update(func(m *memory) { m.Incarnation = 3 }))
	s.give(order)
	done := make(chan error, 1)
	go func() { done <- s.obeyOnce(t.Context()) }()
	eventually(t, "the order is being obeyed", func() bool { return s.State.get().Closed == 3 })
	must(t, s.begin(Admitted{Incarnation: 4, Lease: s.lease}))
	if _, err := s.Gate.Hold(4); err != nil {
		t.Errorf("the gate of the next incarnation: %v", err)
	}
	if err := <-done; err == nil {
		t.Error("a stop that hangs was taken for done")
	}
	if _, err := s.Gate.Hold(4); err != nil {
		t.Errorf("the gate of the next incarnation was closed for the one before: %v", err)
	}
}

func TestANodeThatWasNeverAdmittedObeysNothing(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/a", drivertest.Definition{})
	s.give(cluster.Order{Failover: "x.0", Serial: 50, State: cluster.Ordered})
	must(t, s.obeyOnce(t.Context()))
	if !s.hv.Running("/ve/a") {
		t.Error("stopped what is not shaman's business")
	}
}

func TestAnAnswerIsTriedAgain(t *testing.T) {
	s := newSite(t)
	s.mount.answerErr = errors.New("EIO")
	if err := s.answer(t.Context(), order); err == nil || s.State.get().Answered != 0 {
		t.Errorf("answer = %v, answered %d", err, s.State.get().Answered)
	}
	s.mount.answerErr = nil
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // a daemon that is being stopped still tells what it has done
	must(t, s.answer(ctx, order))
	if s.State.get().Answered != 50 {
		t.Error("not remembered")
	}
}

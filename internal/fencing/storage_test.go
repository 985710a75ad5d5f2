package fencing

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// slots are one node's slots; the node answers as the test tells it.
type slots struct {
	mu     sync.Mutex
	order  cluster.Order
	answer cluster.Order
	writes int
	obey   func(cluster.Order) cluster.Order // at each write of an order
	err    error
}

func (s *slots) ReadOrder(context.Context, cluster.NodeID, time.Duration) (cluster.Order, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.order, s.err
}

func (s *slots) WriteOrder(_ context.Context, _ cluster.NodeID, o cluster.Order, _ time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = o
	s.writes++
	if s.obey != nil {
		s.answer = s.obey(o)
	}
	return s.err
}

func (s *slots) ReadAnswer(context.Context, cluster.NodeID, time.Duration) (cluster.Order, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answer, s.err
}

func answered(o cluster.Order) cluster.Order {
	o.State = cluster.Quiesced
	return o
}

func TestStorageProves(t *testing.T) {
	target := cluster.FenceTarget{Node: "00000000000000a2", Name: "n2", Failover: cluster.FailoverID{Node: "00000000000000a2", Incarnation: 3}, Serial: 50}
	want := cluster.Order{V: 1, Failover: "00000000000000a2.3", Inc: 3, Serial: 50, State: cluster.Ordered}
	but := func(f func(*cluster.Order)) func(cluster.Order) cluster.Order {
		return func(o cluster.Order) cluster.Order {
			o = answered(o)
			f(&o)
			return o
		}
	}
	for _, tt := range []struct {
		name   string
		slots  *slots
		beats  bool
		proven bool
		says   string
	}{
		{name: "the answer to this very order is the proof", slots: &slots{obey: answered}, beats: true, proven: true},
		{name: "also one that was given to the master before", slots: &slots{order: want, answer: answered(want)}, beats: true, proven: true},
		{name: "also of a node that has fallen silent since", slots: &slots{order: want, answer: answered(want)}, proven: true},
		{name: "not an answer for another serial", slots: &slots{obey: but(func(o *cluster.Order) { o.Serial = 49 })}, beats: true, says: "STOP_BUDGET"},
		{name: "not an answer for another incarnation", slots: &slots{obey: but(func(o *cluster.Order) { o.Inc = 2 })}, beats: true, says: "STOP_BUDGET"},
		{name: "not an answer for another failover", slots: &slots{obey: but(func(o *cluster.Order) { o.Failover = "x.3" })}, beats: true, says: "STOP_BUDGET"},
		{name: "not an order in the answer's slot", slots: &slots{obey: func(o cluster.Order) cluster.Order { return o }}, beats: true, says: "STOP_BUDGET"},
		{name: "no answer", slots: &slots{}, beats: true, says: "STOP_BUDGET"},
		{name: "a silent node is not waited for", slots: &slots{}, says: "silent"},
		{name: "a mount that fails proves nothing, and is told", slots: &slots{obey: answered, err: errors.New("EIO")}, beats: true, says: "EIO"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &Storage{
				Slots: tt.slots, Beats: func(cluster.NodeID) bool { return tt.beats }, Budget: func() time.Duration { return -time.Second },
				Timing: func() cluster.Timing { return cluster.NewTiming(time.Second, 2*time.Millisecond, time.Second) },
			}
			evidence, err := f.Prove(t.Context(), target, func() error { return nil })
			if (err == nil) != tt.proven || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Prove = %q, %v; want proven %t, %q", evidence, err, tt.proven, tt.says)
			}
			if tt.slots.err == nil && tt.slots.order != want {
				t.Errorf("the order is %+v, want %+v", tt.slots.order, want)
			}
		})
	}
}

func TestStorageOrdersAgainWhatAnotherMasterOverwrote(t *testing.T) {
	s := &slots{}
	f := &Storage{Slots: s, Beats: func(cluster.NodeID) bool { return true }, Budget: func() time.Duration { return time.Hour }, Timing: func() cluster.Timing { return cluster.NewTiming(time.Second, 2*time.Millisecond, time.Second) }}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := f.Prove(ctx, cluster.FenceTarget{Node: "00000000000000a2", Serial: 50}, func() error { return nil })
		done <- err
	}()
	for writes := 0; writes < 3; {
		s.mu.Lock()
		if s.writes > writes {
			writes = s.writes
			s.order = cluster.Order{Serial: 7} // a late write of a replaced master
		}
		s.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	why := errors.New("deposed")
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("ended with %v", err)
	}
}

func TestStorageAsksForItsMastershipFirst(t *testing.T) {
	s := &slots{obey: answered}
	f := &Storage{Slots: s}
	why := errors.New("not master any more")
	if _, err := f.Prove(t.Context(), cluster.FenceTarget{}, func() error { return why }); !errors.Is(err, why) || s.writes != 0 {
		t.Errorf("Prove = %v after %d orders", err, s.writes)
	}
}

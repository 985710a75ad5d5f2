package node

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// slot is this node's heartbeat on the mount, which a stranger may write.
type slot struct {
	mu    sync.Mutex
	now   cluster.Heartbeat
	err   error // of the next reads
	reads int
	write func(*slot) // at each read, before it
	beats []cluster.Heartbeat
	probe error
	order cluster.Order
}

func (s *slot) peek(context.Context, time.Duration) (cluster.Heartbeat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if s.write != nil {
		s.write(s)
	}
	return s.now, s.err
}

func (s *slot) beat(_ context.Context, hb cluster.Heartbeat, _ []string, _ time.Duration) (cluster.Order, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beats = append(s.beats, hb)
	return s.order, s.probe
}

func (s *slot) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.beats)
}

func TestTheFirstBeatWaitsForStrangers(t *testing.T) {
	tests := []struct {
		name  string
		slot  *slot
		beats bool
		reads int // 0 = not told
	}{
		{"the slot of a daemon of this boot is taken over at once", &slot{now: cluster.Heartbeat{Nonce: "former", Seq: 4}}, true, 1},
		{"a silent slot of another boot is taken over after a second look", &slot{now: cluster.Heartbeat{Nonce: "of before the reboot", Seq: 4}}, true, 2},
		{"a slot that was never written is free after a second look", &slot{err: cluster.ErrTorn}, true, 2},
		{"a stranger that goes on beating is never overwritten", &slot{write: func(s *slot) { s.now = cluster.Heartbeat{Nonce: "stranger", Seq: int64(s.reads)} }}, false, 0},
		{"a stranger that is seen in the middle of a write is none the less", &slot{write: func(s *slot) {
			s.now, s.err = cluster.Heartbeat{Nonce: "stranger", Seq: int64(s.reads)}, nil
			if s.reads == 1 {
				s.err = cluster.ErrTorn
			}
		}}, false, 0},
		{"a slot that cannot be read is not free", &slot{err: errors.New("stale handle")}, false, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := NewHeart(tt.slot.beat, tt.slot.peek, lab, cluster.Heartbeat{Nonce: "mine"}, []string{"former"}, zap.NewNop())
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- h.Run(ctx) }()
			if tt.beats {
				eventually(t, "a second beat", func() bool { return tt.slot.count() >= 2 })
			} else {
				eventually(t, "some looks", func() bool { tt.slot.mu.Lock(); defer tt.slot.mu.Unlock(); return tt.slot.reads >= 7 })
			}
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Run = %v, want the end of its context", err)
			}
			if (tt.slot.count() > 0) != tt.beats {
				t.Errorf("%d beats, want any: %v", tt.slot.count(), tt.beats)
			}
			if tt.reads != 0 && tt.slot.reads != tt.reads {
				t.Errorf("%d looks before the first beat, want %d", tt.slot.reads, tt.reads)
			}
			stranger := tt.slot.write != nil
			if err := h.Foreign(); errors.Is(err, cluster.ErrForeignNonce) != stranger {
				t.Errorf("Foreign = %v, want ErrForeignNonce: %v", err, stranger)
			}
			if _, err := h.Contact(); (err == nil) != tt.beats {
				t.Errorf("contact says %v, want contact: %v", err, tt.beats)
			}
		})
	}
}

func TestAStrangerThatFallsSilentIsForgotten(t *testing.T) {
	s := &slot{write: func(s *slot) {
		if s.reads <= 4 {
			s.now = cluster.Heartbeat{Nonce: "stranger", Seq: int64(s.reads)}
		}
	}}
	h := NewHeart(s.beat, s.peek, lab, cluster.Heartbeat{}, nil, zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	eventually(t, "contact without a stranger", func() bool { return s.count() > 0 && h.Foreign() == nil })
	cancel()
	<-done
}

func TestBeatsCountAndSayWhatTheyAreTold(t *testing.T) {
	s := &slot{}
	h := NewHeart(s.beat, s.peek, lab, cluster.Heartbeat{Nonce: "mine"}, nil, zap.NewNop())
	h.once(t.Context(), time.Second)
	h.Tell(5, true)
	s.probe = errors.New("EIO")
	h.once(t.Context(), time.Second)
	if a, b := s.beats[0], s.beats[1]; b.Seq != a.Seq+1 || b.Inc != 5 || !b.Clean || a.Clean || b.Nonce != "mine" {
		t.Errorf("beats %+v and %+v; want the next number, incarnation 5, clean", a, b)
	}
	if _, err := h.Contact(); err == nil {
		t.Error("in contact after a probe that failed")
	}
	s.probe = cluster.ErrForeignNonce
	h.once(t.Context(), time.Second)
	if !errors.Is(h.Foreign(), cluster.ErrForeignNonce) {
		t.Error("a foreign nonce is not told")
	}
	s.probe = nil
	h.once(t.Context(), time.Second)
	if _, err := h.Contact(); err != nil || h.Foreign() != nil {
		t.Errorf("after a good probe: contact %v, foreign %v", err, h.Foreign())
	}
}

func TestMountAndContact(t *testing.T) {
	timing := cluster.NewTiming(10*time.Second, time.Second, 10*time.Second) // H 1 s, D 2 s, P 10 s
	bad := errors.New("EIO")
	tests := []struct {
		name    string
		age     time.Duration // of the last contact; 0 = none
		took    time.Duration
		err     error
		mount   cluster.Mount
		contact bool
	}{
		{"never reached", 0, 0, bad, cluster.MountLost, false},
		{"fresh", time.Millisecond, time.Millisecond, nil, cluster.MountOK, true},
		{"fresh, and the probe took more than half of its deadline", time.Millisecond, 1100 * time.Millisecond, nil, cluster.MountSlow, true},
		{"one probe failed", 1500 * time.Millisecond, time.Millisecond, bad, cluster.MountSlow, true},
		{"two probes failed", 3100 * time.Millisecond, time.Millisecond, bad, cluster.MountLost, true},
		{"out of contact for SELF_FENCE_TIMEOUT", 11 * time.Second, time.Millisecond, bad, cluster.MountLost, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := NewHeart(nil, nil, func() cluster.Timing { return timing }, cluster.Heartbeat{}, nil, zap.NewNop())
			h.took, h.err = tt.took, tt.err
			if tt.age != 0 {
				h.last = boottime.Now().Add(-tt.age)
			}
			if got := h.Mount(); got != tt.mount {
				t.Errorf("mount %q, want %q", got, tt.mount)
			}
			if err := h.InContact(); (err == nil) != tt.contact {
				t.Errorf("InContact = %v, want contact: %v", err, tt.contact)
			}
		})
	}
}

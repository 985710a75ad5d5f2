package failover

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// slot is a heartbeat slot that a test writes and Pulses reads.
type slot struct {
	mu    sync.Mutex
	hb    cluster.Heartbeat
	err   error
	hang  chan struct{} // while set, reads hang until it is closed, whatever their deadline
	reads int
	last  boottime.Time
}

func (s *slot) read(context.Context, cluster.NodeID, time.Duration) (cluster.Heartbeat, error) {
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang != nil {
		<-hang
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	s.last = boottime.Now()
	return s.hb, s.err
}

func (s *slot) set(f func(*slot)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *slot) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

// quick is a heartbeat that is silent after 60 ms.
var quick = cluster.Timing{Heartbeat: 10 * time.Millisecond, Probe: 20 * time.Millisecond}

// watching reads a slot as node2's until the test ends.
func watching(t *testing.T) (*slot, *Pulses) {
	t.Helper()
	s := &slot{hb: cluster.Heartbeat{Host: node2, Nonce: "a", Seq: 1}}
	p := &Pulses{Read: s.read, Targets: func() []cluster.NodeID { return []cluster.NodeID{node2} }, Timing: func() cluster.Timing { return quick }}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		s.set(func(s *slot) {
			if s.hang != nil {
				close(s.hang)
				s.hang = nil
			}
		})
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v, want the context's cause", err)
		}
	})
	return s, p
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestPulseIsUnknownBeforeItIsWatched(t *testing.T) {
	p := &Pulses{Timing: func() cluster.Timing { return quick }}
	if got := p.Of(node2); got != PulseUnknown {
		t.Errorf("got %q", got)
	}
}

func TestPulseBeatsWhileSomethingNewIsRead(t *testing.T) {
	s, p := watching(t)
	waitFor(t, "the slot is read", func() bool { return s.count() > 0 })
	if got := p.Of(node2); got == PulseBeats {
		t.Error("one look at a slot that may be old was taken for a beat")
	}
	waitFor(t, "it beats", func() bool {
		s.set(func(s *slot) { s.hb.Seq++ })
		return p.Of(node2) == PulseBeats
	})
	// A new process of the node that begins to count anew beats as well.
	waitFor(t, "it is not seen to beat any more", func() bool { return p.Of(node2) != PulseBeats })
	s.set(func(s *slot) { s.hb.Nonce = "b" })
	waitFor(t, "the new process beats", func() bool { return p.Of(node2) == PulseBeats })
}

func TestPulseIsSilentOnlyAfterLongEnough(t *testing.T) {
	s, p := watching(t)
	begin := boottime.Now()
	waitFor(t, "it is silent", func() bool { return p.Of(node2) == PulseSilent })
	if d := boottime.Since(begin); d <= quick.Silence() {
		t.Errorf("silent after %s, want more than %s", d, quick.Silence())
	}
	s.set(func(s *slot) { s.hb.Seq++ })
	waitFor(t, "the first new record ends the silence", func() bool { return p.Of(node2) == PulseBeats })
}

func TestAFailedReadIsUnknownAndTheWaitBeginsAnew(t *testing.T) {
	s, p := watching(t)
	waitFor(t, "it is silent", func() bool { return p.Of(node2) == PulseSilent })
	s.set(func(s *slot) { s.err = errors.New("EIO") })
	waitFor(t, "a read that failed makes it unknown", func() bool { return p.Of(node2) == PulseUnknown })
	for range 3 * int(quick.Silence()/quick.Heartbeat) {
		n := s.count()
		waitFor(t, "the slot is read again", func() bool { return s.count() > n })
		if got := p.Of(node2); got != PulseUnknown {
			t.Fatalf("while no read succeeds it is %q", got)
		}
	}
	s.set(func(s *slot) { s.err = nil })
	begin := boottime.Now()
	waitFor(t, "it is silent again", func() bool { return p.Of(node2) == PulseSilent })
	if d := boottime.Since(begin); d <= quick.Silence() {
		t.Errorf("silent %s after the last failed read, want more than %s", d, quick.Silence())
	}
}

// A reader that hangs, or a process that was paused, has read nothing: the time
// that passes meanwhile says nothing about the node.
func TestTimeInWhichNothingIsReadIsNoSilence(t *testing.T) {
	s, p := watching(t)
	hang := make(chan struct{})
	waitFor(t, "something new is read", func() bool {
		s.set(func(s *slot) { s.hb.Seq++ })
		return p.Of(node2) == PulseBeats
	})
	s.set(func(s *slot) { s.hang = hang })
	waitFor(t, "much time has passed since the last read", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return boottime.Since(s.last) > 3*quick.Silence()
	})
	if got := p.Of(node2); got != PulseUnknown {
		t.Errorf("with nothing read for three times the silence it is %q, want unknown", got)
	}
	s.set(func(s *slot) { s.hang = nil })
	close(hang)
}

func TestPulseOfANodeThatIsNoTargetAnyMoreIsForgotten(t *testing.T) {
	s := &slot{hb: cluster.Heartbeat{Nonce: "a", Seq: 1}}
	var mu sync.Mutex
	targets := []cluster.NodeID{node2}
	p := &Pulses{Read: s.read, Timing: func() cluster.Timing { return quick }, Targets: func() []cluster.NodeID {
		mu.Lock()
		defer mu.Unlock()
		return targets
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.Run(ctx) }() // its cause is the cancel below
	defer func() { cancel(); <-ended }()
	waitFor(t, "it is silent", func() bool { return p.Of(node2) == PulseSilent })
	mu.Lock()
	targets = nil
	mu.Unlock()
	waitFor(t, "it is unknown", func() bool { return p.Of(node2) == PulseUnknown })
}

// A slot that a power cut left half written is silent like any other, once its bytes
// stay the same.
func TestATornSlotThatStaysAsItIsIsSilent(t *testing.T) {
	s, p := watching(t)
	s.set(func(s *slot) { s.hb, s.err = cluster.Heartbeat{Nonce: "torn:1"}, cluster.ErrTorn })
	waitFor(t, "the torn slot is silent", func() bool { return p.Of(node2) == PulseSilent })
	s.set(func(s *slot) { s.hb = cluster.Heartbeat{Nonce: "torn:2"} })
	waitFor(t, "another torn slot is something new", func() bool { return p.Of(node2) == PulseBeats })
	s.set(func(s *slot) { s.hb, s.err = cluster.Heartbeat{}, errors.New("EIO") })
	waitFor(t, "a read that fails is unknown", func() bool { return p.Of(node2) == PulseUnknown })
}

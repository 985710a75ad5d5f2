package failover

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// HeartbeatReader reads a node's heartbeat fresh. With ErrTorn, for a slot that was
// half written, Nonce tells its bytes from others: if they stay the same for long,
// nobody writes there.
type HeartbeatReader func(ctx context.Context, n cluster.NodeID, deadline time.Duration) (cluster.Heartbeat, error)

// Pulses watches the heartbeats of other nodes. Every daemon watches the
// master's, so that the next master knows at once whether it beats; a master
// watches all.
type Pulses struct {
	Read    HeartbeatReader
	Targets func() []cluster.NodeID // must not block
	Timing  func() cluster.Timing

	mu   sync.Mutex
	seen map[cluster.NodeID]*pulse
}

// pulse is what was read of one node. Silence counts from the end of the read
// that last saw something new up to the issue of the last read that saw nothing
// new, and every read in between must have succeeded: time in which nothing was
// read, because the mount hangs or this process was paused, says nothing.
type pulse struct {
	last    cluster.Heartbeat
	newAt   boottime.Time // 0: only ever read once
	since   boottime.Time // of the unbroken row of good reads that show this record
	asked   boottime.Time // when the last read of that row was issued
	reading bool
}

// Run reads until the context ends.
func (p *Pulses) Run(ctx context.Context) error {
	p.mu.Lock()
	p.seen = map[cluster.NodeID]*pulse{}
	p.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		t := p.Timing()
		next := boottime.Now().Add(t.Heartbeat)
		targets := map[cluster.NodeID]bool{}
		for _, n := range p.Targets() {
			targets[n] = true
			if p.begin(n) {
				wg.Go(func() { p.read(ctx, n, t.Probe) })
			}
		}
		p.mu.Lock()
		for n := range p.seen {
			if !targets[n] {
				delete(p.seen, n)
			}
		}
		p.mu.Unlock()
		if err := boottime.WaitUntil(ctx, next); err != nil {
			return err
		}
	}
}

func (p *Pulses) begin(n cluster.NodeID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen[n]
	if s == nil {
		s = &pulse{}
		p.seen[n] = s
	}
	if s.reading {
		return false
	}
	s.reading = true
	return true
}

func (p *Pulses) read(ctx context.Context, n cluster.NodeID, deadline time.Duration) {
	begin := boottime.Now()
	hb, err := p.Read(ctx, n, deadline)
	now := boottime.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen[n]
	if s == nil {
		return
	}
	s.reading, s.asked = false, begin
	switch {
	case err != nil && (!errors.Is(err, cluster.ErrTorn) || hb.Nonce == ""):
		s.since = 0 // unknown, never silent: the wait begins anew
	case hb.Seq != s.last.Seq || hb.Nonce != s.last.Nonce:
		if s.last.Nonce != "" {
			s.newAt = now
		}
		s.last, s.since = hb, now
	case s.since == 0:
		s.since = now
	}
}

// Of tells what is known of a node's heartbeat now.
func (p *Pulses) Of(n cluster.NodeID) Pulse {
	t := p.Timing()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen[n]
	switch {
	case s == nil:
		return PulseUnknown
	case s.newAt != 0 && boottime.Since(s.newAt) <= t.Silence():
		return PulseBeats
	case s.since != 0 && s.asked.Sub(s.since) > t.Silence() && boottime.Since(s.asked) <= t.Silence():
		return PulseSilent
	}
	return PulseUnknown
}

// Silence is the unbroken row of reads that succeeded and showed nothing new: from
// the end of the read that last saw something new to the issue of the last one. ok
// is false while there is none.
func (p *Pulses) Silence(n cluster.NodeID) (from, to boottime.Time, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen[n]
	if s == nil || s.since == 0 || s.asked < s.since {
		return 0, 0, false
	}
	return s.since, s.asked, true
}

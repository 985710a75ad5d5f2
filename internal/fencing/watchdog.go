package fencing

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// Watchdog proves a node harmless by its silence: it published that its watchdog
// is armed, and feeds it in contact only, so after T_wd without a sign of life on
// either channel the machine has been reset.
type Watchdog struct {
	// Silence is the unbroken row of fresh reads of the node's heartbeat that
	// succeeded and showed nothing new; it must not block. A read that failed is no
	// silence: it ends the row.
	Silence       func(cluster.NodeID) (from, to boottime.Time, ok bool)
	Beats         func(cluster.NodeID) bool // the heartbeat goes on; must not block
	Timing        func() cluster.Timing
	TrustVirtual  func() bool
	NotApplicable error
}

// Name is the word in FENCE_METHODS.
func (*Watchdog) Name() string { return "watchdog" }

// Gentle says that this method only watches.
func (*Watchdog) Gentle() bool { return true }

// blindTime is how long the heartbeat may be unreadable before that is told.
const blindTime = 10 * time.Second

// Prove waits until the silence is long enough. It returns an error once the
// heartbeat goes on, or cannot be read.
func (f *Watchdog) Prove(ctx context.Context, t cluster.FenceTarget, check func() error) (string, error) {
	wd := t.Watchdog
	if !wd.Counts(f.TrustVirtual()) || wd.Timeout <= 0 || wd.SelfFenceTimeout <= 0 {
		return "", f.NotApplicable
	}
	gone := boottime.Now().Add(-t.LostFor)
	seen := boottime.Now()
	for {
		if err := check(); err != nil {
			return "", err
		}
		h := f.Timing().Heartbeat
		need := cluster.WatchdogProof(wd.SelfFenceTimeout, wd.Timeout, h)
		from, to, ok := f.Silence(t.Node)
		silent := to.Sub(max(from, gone))
		switch {
		case ok && silent >= need:
			return fmt.Sprintf("no sign of life on either channel for %s; its armed watchdog resets it within %s (published: SELF_FENCE_TIMEOUT %s, time-out %s)", silent.Round(time.Millisecond), need, wd.SelfFenceTimeout, wd.Timeout), nil
		case f.Beats(t.Node):
			return "", errors.New("its heartbeat goes on, so its watchdog is fed")
		case ok:
			seen = boottime.Now()
		case boottime.Since(seen) > blindTime:
			return "", errors.New("its heartbeat cannot be read from here; a read that fails is no silence")
		}
		if err := boottime.WaitUntil(ctx, boottime.Now().Add(h)); err != nil {
			return "", err
		}
	}
}

package node

import (
	"context"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// arm makes sure, before an admission, that the watchdog is armed if it is to be,
// and returns what the admission publishes. A node without one comes in all the
// same: there may be other ways to prove it harmless.
func (n *Node) arm() cluster.Watchdog {
	want := n.Settings().Watchdog
	if want == 0 {
		return n.Watchdog.State() // not yet disarmed, perhaps
	}
	wd, err := n.Watchdog.Arm(want, n.Settings().Timing.SelfFence)
	n.tellWatchdog(err)
	return wd
}

func (n *Node) tellWatchdog(err error) {
	said := ""
	if err != nil {
		said = err.Error()
	}
	n.mu.Lock()
	again := n.saidDog == said
	n.saidDog = said
	n.mu.Unlock()
	if err != nil && !again {
		n.Log.Error("no watchdog: without a fence agent for this node its VEs stay where they are if it loses power, until an operator confirms", zap.Error(err))
	}
}

// watchdogEvery is how often an active node looks whether its watchdog is as it
// should be, and watchdogRetry how often one that cannot be used is tried again.
const (
	watchdogEvery = time.Second
	watchdogRetry = 10 * time.Second
)

// keepWatchdog brings the watchdog to what is configured. Its numbers change only
// while none are published: whoever counts the silence of this node counts with
// numbers that hold, or not at all.
func (n *Node) keepWatchdog(ctx context.Context, a Admitted) error {
	tick := time.NewTicker(watchdogEvery)
	defer tick.Stop()
	var next boottime.Time
	for {
		if now := boottime.Now(); now >= next {
			if err := n.tuneWatchdog(ctx, a); err != nil && ctx.Err() == nil {
				next = now.Add(watchdogRetry)
				n.tellWatchdog(err)
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func (n *Node) tuneWatchdog(ctx context.Context, a Admitted) error {
	have, s := n.Watchdog.State(), n.Settings()
	want, selfFence := s.Watchdog, s.Timing.SelfFence
	wanted := [2]time.Duration{want, selfFence}
	if have.Armed == (want != 0) && n.asked != nil && *n.asked == wanted {
		return nil
	}
	publish := func(wd cluster.Watchdog) error { return n.Members.PublishWatchdog(ctx, n.Self, a.Lease.ID(), wd) }
	if have.Armed != (want != 0) || have.Armed && (n.asked != nil || have.Timeout != want || have.SelfFenceTimeout != selfFence) {
		if err := n.changeWatchdog(want, selfFence, have.Armed, publish); err != nil {
			return err
		}
	}
	// A process before this one, or a try before, may have ended before this.
	if err := publish(n.Watchdog.State()); err != nil {
		return err
	}
	n.asked = &wanted
	n.tellWatchdog(nil)
	return nil
}

// changeWatchdog takes back what is published, and changes the watchdog then. After
// an error nothing is published.
func (n *Node) changeWatchdog(want, selfFence time.Duration, armed bool, publish func(cluster.Watchdog) error) error {
	if armed {
		if err := publish(cluster.Watchdog{}); err != nil {
			return err
		}
	}
	var err error
	switch {
	case want == 0:
		n.Watchdog.Disarm()
	case armed:
		err = n.Watchdog.Retune(want, selfFence)
	default:
		_, err = n.Watchdog.Arm(want, selfFence)
	}
	return err
}

// Starved is told that the watchdog is fed no more: this machine is reset in a
// moment, by itself or by the watchdog. Until then as much as possible is stopped
// in good order; nothing is answered.
func (n *Node) Starved(why string) {
	n.Event(cluster.Event{Kind: "self-fence", Subject: n.Self, Message: "the watchdog is fed no more, and resets this machine: " + why})
	wd := n.Watchdog.State()
	ctx, cancel := context.WithTimeout(context.Background(), wd.Timeout)
	defer cancel()
	err := n.Gate.Close(ctx)
	if err == nil {
		err = n.stopAll(ctx)
	}
	n.Log.Error("before the reset", zap.String("reason", why), zap.NamedError("stopped", err))
}

// rebootSlack is the time for what was said to reach the disks and the others.
const rebootSlack = time.Second

// reboot is LEASE_LOST_ACTION: after an order was carried out, the machine begins
// anew, whatever state had cut it off.
func (n *Node) reboot() {
	n.Event(cluster.Event{Kind: "reboot", Subject: n.Self, Message: "rebooting after an order to stop everything (LEASE_LOST_ACTION=reboot)"})
	// The local file systems, for the log; one that hangs is not waited for.
	go unix.Sync()
	_ = boottime.WaitUntil(context.Background(), boottime.Now().Add(rebootSlack)) // its context does not end
	n.Reset(fmt.Sprintf("LEASE_LOST_ACTION=reboot: node %s has stopped everything, as it was ordered to", n.Name))
}

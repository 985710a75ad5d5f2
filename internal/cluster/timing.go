package cluster

import "time"

// Timing is the set of numbers that the safety argument rests on, derived from
// the cluster-wide configuration (design: section 12).
type Timing struct {
	Lease     time.Duration // L, LOCK_TIMEOUT
	Renew     time.Duration // K, period of renewals
	Attempt   time.Duration // a, without an answer for that long another member is asked
	Margin    time.Duration // m, taken off the lease's validity
	Heartbeat time.Duration // H
	Probe     time.Duration // D, deadline of one probe of the mount
	SelfFence time.Duration // P
}

// shortLease is the lease from which on down the tight set of numbers holds
// (design: section 12).
const shortLease = 5 * time.Second

// NewTiming derives the numbers from LOCK_TIMEOUT; heartbeat and selfFence of 0
// take their defaults.
func NewTiming(lease, heartbeat, selfFence time.Duration) Timing {
	t := Timing{Lease: lease, Renew: lease / 5, Heartbeat: heartbeat, SelfFence: selfFence}
	if lease <= shortLease {
		t.Renew = lease / 8
	}
	if lease < shortLease {
		t.Margin = lease / 10
	} else {
		t.Margin = max(500*time.Millisecond, lease/10) + lease/500
	}
	t.Attempt = min(time.Second, t.Renew)
	if t.Heartbeat == 0 {
		t.Heartbeat = min(time.Second, lease/10)
	}
	t.Probe = 2 * t.Heartbeat
	if t.SelfFence == 0 {
		t.SelfFence = lease
	}
	return t
}

// Silence is how long a heartbeat must show nothing new before it counts as
// silent: 3·H + D + c, where c, the mount's visibility delay, is at most H.
func (t Timing) Silence() time.Duration { return 4*t.Heartbeat + t.Probe }

// Settle is how long a new master, or one whose etcd was away, leaves alone the
// nodes whose heartbeat goes on.
func (t Timing) Settle() time.Duration { return t.Lease + 5*time.Second }

// WatchdogProof is T_wd: how long both channels of a node must be silent before
// its armed watchdog has surely fired. (P + 3·W + 1 s)·1.001 + H + 1 s, with the P
// and W that the node published: a check may pass just before P ends and its feed
// land a whole W later, the thread stall another W, and the kernel feeds once more
// when the holder of the device dies. model/silence.pml shows that 2·W is not enough.
func WatchdogProof(selfFence, timeout, heartbeat time.Duration) time.Duration {
	base := selfFence + 3*timeout + time.Second
	return base + base/1000 + heartbeat + time.Second
}

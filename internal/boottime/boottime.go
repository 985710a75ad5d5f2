// Package boottime reads the clock that deadlines of the safety argument run
// on: CLOCK_BOOTTIME, which goes on while the machine is suspended, unlike the
// monotonic clock behind time.Now.
package boottime

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Time is a moment since the machine's boot. Moments of two boots, or of two
// machines, cannot be compared.
type Time time.Duration

// Now returns the present moment.
func Now() Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		// The call cannot fail on a kernel that Go supports (CLOCK_BOOTTIME: Linux 2.6.39).
		panic(fmt.Sprintf("read CLOCK_BOOTTIME: %v", err))
	}
	return Time(ts.Nano())
}

// Add returns t+d.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Sub returns t-u.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// Since returns the time passed since t.
func Since(t Time) time.Duration { return Now().Sub(t) }

// slice bounds one sleep of WaitUntil: timers run on the monotonic clock, so a
// suspended machine wakes up at most this much late.
const slice = 500 * time.Millisecond

// WaitUntil returns when t has come, or with the context's cause if that ends first.
func WaitUntil(ctx context.Context, t Time) error {
	for {
		left := t.Sub(Now())
		if left <= 0 {
			return nil
		}
		timer := time.NewTimer(min(left, slice))
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}

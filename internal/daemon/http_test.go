package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/config"
)

// still is a heart that began its last round that long ago.
func still(d *Daemon, since time.Duration) {
	var round atomic.Int64
	round.Store(int64(boottime.Now().Add(-since)))
	d.rounds.Store(&round)
}

func TestAHeartThatIsStuckDoesNotGoRound(t *testing.T) {
	d := &Daemon{}
	c := config.MustDefaults()
	d.settings.Store(&c)
	if !d.goesRound() {
		t.Error("there is no heart yet, and that counts as stuck")
	}
	for _, tt := range []struct {
		since time.Duration
		want  bool
	}{
		{0, true},
		{c.Timing().Probe, true},             // the mount hangs
		{c.Timing().Heartbeat * 5 / 2, true}, // it listens
		{longestRound(c.Timing()) - time.Second, true},
		{longestRound(c.Timing()) + time.Millisecond, false},
		{time.Hour, false},
	} {
		if still(d, tt.since); d.goesRound() != tt.want {
			t.Errorf("a round that began %s ago: goes round is %t, want %t", tt.since, !tt.want, tt.want)
		}
	}
}

func TestSystemdIsToldAsLongAsTheHeartGoesRound(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "3000000")
	synctest.Test(t, func(t *testing.T) {
		var said atomic.Int64
		d := &Daemon{Options: Options{Notify: func(string) { said.Add(1) }}}
		c := config.MustDefaults()
		d.settings.Store(&c)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.feedSystemd(ctx) }()
		// The heart is on the real clock, which stands still here.
		for _, tt := range []struct {
			since time.Duration
			want  bool
		}{{0, true}, {time.Hour, false}, {0, true}} {
			synctest.Wait()
			still(d, tt.since)
			said.Store(0)
			time.Sleep(3 * time.Second)
			synctest.Wait()
			if got := said.Load() > 0; got != tt.want {
				t.Errorf("the last round began %s ago, and systemd is told %d times within WatchdogSec", tt.since, said.Load())
			}
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestTheUnitIsFasterThanTheWatchdogs: a daemon that hangs, or whose heart is stuck,
// is ended by systemd before others, or the machine's own watchdog, take action.
func TestTheUnitIsFasterThanTheWatchdogs(t *testing.T) {
	unit, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", "shaman-monitor.service"))
	if err != nil {
		t.Fatal(err)
	}
	get := func(key string) time.Duration {
		t.Helper()
		m := regexp.MustCompile("(?m)^" + key + "=(.*)$").FindSubmatch(unit)
		if m == nil {
			t.Fatalf("the unit has no %s", key)
		}
		d, err := time.ParseDuration(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	c := config.MustDefaults()
	const spare = 250 * time.Millisecond // for a machine that is busy
	aborted := get("WatchdogSec") + get("TimeoutAbortSec")
	// It may have stopped right before a feed, of which there are five in a time-out.
	if left := c.WatchdogTimeout - c.WatchdogTimeout/5 - aborted; left < spare {
		t.Errorf("a daemon that hangs is gone %s before its watchdog bites, want %s", left, spare)
	}
	if left := c.Timing().SelfFence - longestRound(c.Timing()) - aborted - get("RestartSec"); left < spare {
		t.Errorf("a daemon whose heart is stuck is started anew %s before SELF_FENCE_TIMEOUT, want %s", left, spare)
	}
}

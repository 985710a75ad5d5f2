package boottime_test

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"pgregory.net/rapid"
)

func TestNowIsTheUptimeOfTheMachine(t *testing.T) {
	before := boottime.Now()
	b, err := os.ReadFile("/proc/uptime") // CLOCK_BOOTTIME, in hundredths of a second
	after := boottime.Now()
	if err != nil {
		t.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(strings.Fields(string(b))[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	up := time.Duration(seconds * float64(time.Second))
	// Containers may shift the boot clock of their processes, and /proc with it.
	if up < time.Duration(before)-time.Second || up > time.Duration(after)+time.Second {
		t.Errorf("the kernel was up for %v between %v and %v", up, time.Duration(before), time.Duration(after))
	}
}

func TestAddAndSubAreInverse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := boottime.Time(rapid.Int64Range(0, 1<<60).Draw(t, "at"))
		d := time.Duration(rapid.Int64Range(-1<<60, 1<<60).Draw(t, "d"))
		if got := at.Add(d).Sub(at); got != d {
			t.Fatalf("at.Add(%v).Sub(at) = %v", d, got)
		}
	})
}

func TestWaitUntilNeverReturnsEarly(t *testing.T) {
	// Longer than one slice of sleep, so that it has to go on after the first.
	for _, d := range []time.Duration{-time.Second, 0, time.Millisecond, 120 * time.Millisecond} {
		until := boottime.Now().Add(d)
		if err := boottime.WaitUntil(t.Context(), until); err != nil {
			t.Errorf("WaitUntil in %v: %v", d, err)
		}
		if now := boottime.Now(); now < until {
			t.Errorf("WaitUntil in %v returned %v early", d, until.Sub(now))
		}
	}
}

func TestWaitUntilEndsWithTheCauseOfItsContext(t *testing.T) {
	why := errors.New("validity ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error)
	go func() { ended <- boottime.WaitUntil(ctx, boottime.Now().Add(time.Hour)) }()
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("WaitUntil returned %v, want the cause %v", err, why)
	}
	if err := boottime.WaitUntil(ctx, boottime.Now().Add(-1)); err != nil {
		t.Errorf("a moment that has come is an error under an ended context: %v", err)
	}
}

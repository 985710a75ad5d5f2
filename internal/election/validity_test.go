package election

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
	"pgregory.net/rapid"
)

// old returns a lease whose last renewal was sent so long ago.
func old(age time.Duration) *Lease {
	return newLease(nil, cluster.NewTiming(10*time.Second, 0, 0), 1, boottime.Now().Add(-age), zap.NewNop())
}

// TestAnAnswerThatComesLateLeavesAGap: the renewal was sent while the lease was
// valid, and answered when it was not. Nobody could prove validity in between.
func TestAnAnswerThatComesLateLeavesAGap(t *testing.T) {
	l := old(10 * time.Second)
	if l.Valid() {
		t.Fatal("the lease is valid, which this test does not want")
	}
	before := boottime.Now()
	l.renewed(before.Add(-2 * time.Second))
	if !l.Valid() || l.ValidSince() < before {
		t.Errorf("valid %v; without a gap since %v before the answer", l.Valid(), before.Sub(l.ValidSince()))
	}
}

// TestRenewedProperties: validity never outlasts the latest renewal that was
// sent, answers may come in any order, and nothing revives an ended lease.
func TestRenewedProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := old(time.Second)
		first, since := l.ValidUntil(), l.ValidSince()
		lasts := l.timing.Lease - l.timing.Margin
		latest := first.Add(-lasts)
		now := boottime.Now()
		for _, age := range rapid.SliceOf(rapid.Int64Range(0, int64(5*time.Second))).Draw(t, "ages of answered renewals") {
			sent := now.Add(-time.Duration(age))
			latest = max(latest, sent)
			l.renewed(sent)
			if got := l.ValidUntil(); got != latest.Add(lasts) {
				t.Fatalf("valid until %v after the latest renewal, want %v", got.Sub(latest), lasts)
			}
		}
		if l.ValidSince() != since {
			t.Fatal("a gap without a moment of invalidity")
		}
		l.end()
		l.renewed(now)
		if l.Valid() {
			t.Fatal("a renewal revived a lease that had ended")
		}
	})
}

func TestTheTimeOfARenewalIsTakenBeforeItIsSent(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	c := &courier{ask: make(chan struct{}, 1)}
	replies := make(chan reply)
	var sending boottime.Time
	ended := make(chan error)
	go func() {
		ended <- each(ctx, c, replies, func() (int64, error) {
			sending = boottime.Now()
			return 10, nil
		})
	}()
	c.ask <- struct{}{}
	if re := <-replies; re.sent > sending {
		t.Errorf("validity would count from %v after the renewal was sent", re.sent.Sub(sending))
	}
	why := errors.New("dismissed")
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("each ended with %v", err)
	}
}

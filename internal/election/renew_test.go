package election_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/election"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// renewed waits until validity was moved on n times.
func renewed(t *testing.T, l *election.Lease, n int) {
	t.Helper()
	for range n {
		was := l.ValidUntil()
		etcdtest.Eventually(t, "the lease is renewed", func() bool { return l.ValidUntil() > was })
	}
}

// TestRenewedValidityCountsFromTheRequest: answers take 200 ms, so at no moment
// is the lease valid for longer than if it had just been asked for, less that.
func TestRenewedValidityCountsFromTheRequest(t *testing.T) {
	t.Parallel()
	cable := etcdtest.Start(t).Cable(t)
	cable.Slow(100 * time.Millisecond)
	const lease = 4 * time.Second
	l := grant(t, etcdtest.Dial(t, cable.Endpoint()), lease)
	renew(t, l)
	for range 3 {
		was := l.ValidUntil()
		var left time.Duration
		etcdtest.Eventually(t, "the lease is renewed", func() bool {
			until := l.ValidUntil()
			left = until.Sub(boottime.Now())
			return until > was
		})
		if most := lease - timing(lease).Margin - 200*time.Millisecond; left > most {
			t.Errorf("valid for %v after an answer, want at most %v", left, most)
		}
	}
}

func waitFor(t *testing.T, d time.Duration) {
	t.Helper()
	if err := boottime.WaitUntil(t.Context(), boottime.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
}

// TestAHungMemberIsHarmless: two ways to etcd, one of which hangs for longer
// than the lease, first one and then the other.
func TestAHungMemberIsHarmless(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	a, b := s.Cable(t), s.Cable(t)
	cl := etcdtest.Dial(t, a.Endpoint(), b.Endpoint())
	l := grant(t, cl, 2*time.Second)
	renew(t, l)
	etcdtest.Eventually(t, "both ways are in use", func() bool { return a.Connections() > 0 && b.Connections() > 0 })
	since := l.ValidSince()
	for _, c := range []*etcdtest.Cable{a, b} {
		renewed(t, l, 2)
		c.Hang()
		waitFor(t, 2300*time.Millisecond)
		if !l.Valid() || l.ValidSince() != since {
			t.Fatalf("one hung way of two: valid %v, validity had a gap %v", l.Valid(), l.ValidSince() != since)
		}
		c.Heal()
	}
	renewed(t, l, 2)
	if l.ValidSince() != since {
		t.Error("validity had a gap")
	}
}

func TestACutShorterThanHalfOfTheLeaseIsHarmless(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	cable := s.Cable(t)
	l := grant(t, etcdtest.Dial(t, cable.Endpoint()), 5*time.Second)
	since := l.ValidSince()
	renew(t, l)
	renewed(t, l, 1)
	cable.Cut()
	before := cable.Tried()
	waitFor(t, 2200*time.Millisecond)
	tries := cable.Tried() - before
	cable.Heal()
	renewed(t, l, 2)
	if l.ValidSince() != since {
		t.Error("a cut shorter than half of the lease made a gap in its validity")
	}
	// What the numbers allow for a reconnect is 0.1 s, however long the cut was.
	if tries < 10 {
		t.Errorf("%d connections were tried in 2.2 s of a cut, want about one each 0.1 s", tries)
	}
}

// TestALongCut: validity ends before etcd lets the lease go; renewals go on; and
// only etcd's own word ends it.
func TestALongCut(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	cable, other := s.Cable(t), s.Client(t)
	l := grant(t, etcdtest.Dial(t, cable.Endpoint()), 2*time.Second)
	gone := leased(t, other, l)
	result := renew(t, l)
	renewed(t, l, 2)
	cable.Cut()
	etcdtest.Eventually(t, "validity has ended", func() bool { return !l.Valid() })
	until := l.ValidUntil()
	within(t, "etcd let the lease go", gone)
	if now := boottime.Now(); now <= until {
		t.Errorf("validity lasts %v longer than the lease in etcd", until.Sub(now))
	}
	if isLost(l) {
		t.Error("the lease counts as lost while etcd cannot have said so")
	}
	select {
	case err := <-result:
		t.Fatalf("Run ended with %v while etcd was out of reach", err)
	default:
	}
	cable.Heal()
	if err := within(t, "Run ended", result); !errors.Is(err, election.ErrLost) {
		t.Errorf("Run returned %v, want ErrLost", err)
	}
	if !isLost(l) || l.Valid() {
		t.Errorf("after etcd's word: lost %v, valid %v", isLost(l), l.Valid())
	}
}

func TestALeaseThatEtcdStillHasIsValidAgain(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	cable, other := s.Cable(t), s.Client(t)
	l := grant(t, etcdtest.Dial(t, cable.Endpoint()), 2*time.Second)
	since := l.ValidSince()
	result := renew(t, l)
	renewed(t, l, 2)
	cable.Cut()
	// A new leader of etcd gives all leases their whole time again; here a third
	// party does.
	etcdtest.Eventually(t, "validity has ended", func() bool {
		_, err := other.KeepAliveOnce(t.Context(), clientv3.LeaseID(l.ID()))
		return err == nil && !l.Valid()
	})
	until := l.ValidUntil()
	cable.Heal()
	etcdtest.Eventually(t, "the lease is valid again", l.Valid)
	if l.ValidSince() < until || since >= until {
		t.Errorf("validity ended at %v and counts as without a gap since %v", until, l.ValidSince())
	}
	select {
	case err := <-result:
		t.Errorf("Run ended with %v", err)
	default:
	}
}

func TestARestartOfEtcdIsNoLoss(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t)
	l := grant(t, s.Client(t), 5*time.Second)
	result := renew(t, l)
	renewed(t, l, 1)
	s.Stop()
	s.Restart()
	renewed(t, l, 2)
	select {
	case err := <-result:
		t.Errorf("Run ended with %v", err)
	default:
	}
}

func TestRunEndsWithTheCauseOfItsContext(t *testing.T) {
	t.Parallel()
	cable := etcdtest.Start(t).Cable(t)
	for _, disturb := range []func(){func() {}, cable.Hang, cable.Cut} {
		cable.Heal()
		l := grant(t, etcdtest.Dial(t, cable.Endpoint()), 2*time.Second)
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		disturb()
		etcdtest.Eventually(t, "the lease is near its end or was renewed", func() bool { return boottime.Since(l.ValidSince()) > 600*time.Millisecond })
		cancel(errTestOver)
		if err := within(t, "Run ended", ended); !errors.Is(err, errTestOver) {
			t.Errorf("Run returned %v, want the cause of its context", err)
		}
	}
}

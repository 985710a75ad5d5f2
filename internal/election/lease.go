package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

var (
	// ErrLost is returned once etcd itself has said that the lease is gone.
	ErrLost = errors.New("the lease has ended")
	// ErrInvalid is the cause of contexts that end because validity can no longer be proven.
	ErrInvalid = errors.New("the lease can no longer be proven valid")
)

// Lease is one etcd lease and our own, stricter idea of its validity. All
// methods but Run may be called concurrently.
type Lease struct {
	client *clientv3.Client
	timing cluster.Timing
	id     clientv3.LeaseID
	log    *zap.Logger
	lost   chan struct{}

	mu         sync.Mutex
	validUntil boottime.Time
	gap        boottime.Time // last moment at which validity was not given
	ended      bool
	contact    func(sent boottime.Time) // nil = nobody wants to know
}

// Grant gets a new lease of exactly timing.Lease. A server that grants another
// time (its floor is 1.5 election time-outs) is refused: the safety argument
// rests on that number.
func Grant(ctx context.Context, cl *clientv3.Client, timing cluster.Timing, log *zap.Logger) (*Lease, error) {
	want := int64(timing.Lease / time.Second)
	if time.Duration(want)*time.Second != timing.Lease {
		return nil, fmt.Errorf("get a lease of %v (LOCK_TIMEOUT): etcd counts in whole seconds", timing.Lease)
	}
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	sent := boottime.Now()
	resp, err := cl.Grant(ctx, want)
	if err != nil {
		return nil, fmt.Errorf("get a lease: %w", err)
	}
	if resp.TTL != want {
		return nil, fmt.Errorf("get a lease of %d s (LOCK_TIMEOUT): etcd grants %d s; raise LOCK_TIMEOUT or lower etcd's election time-out", want, resp.TTL)
	}
	return newLease(cl, timing, resp.ID, sent, log), nil
}

// Resume goes on with a lease that an earlier process of this daemon held. It
// returns ErrLost if etcd does not know it any more.
func Resume(ctx context.Context, cl *clientv3.Client, timing cluster.Timing, id int64, log *zap.Logger) (*Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	sent := boottime.Now()
	resp, err := cl.KeepAliveOnce(ctx, clientv3.LeaseID(id))
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return nil, ErrLost
	case err != nil:
		return nil, fmt.Errorf("resume lease %x: %w", id, err)
	case time.Duration(resp.TTL)*time.Second != timing.Lease:
		// LOCK_TIMEOUT was changed: the old lease does not fit the numbers of today.
		return nil, ErrLost
	}
	return newLease(cl, timing, clientv3.LeaseID(id), sent, log), nil
}

func newLease(cl *clientv3.Client, timing cluster.Timing, id clientv3.LeaseID, sent boottime.Time, log *zap.Logger) *Lease {
	return &Lease{
		client: cl, timing: timing, id: id, log: log, lost: make(chan struct{}),
		validUntil: sent.Add(timing.Lease - timing.Margin), gap: sent,
	}
}

// ID is the lease's number in etcd.
func (l *Lease) ID() int64 { return int64(l.id) }

// Valid tells whether the holder may act now.
func (l *Lease) Valid() bool { return boottime.Now() < l.ValidUntil() }

// ValidUntil is when validity ends unless a renewal moves it.
func (l *Lease) ValidUntil() boottime.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return 0
	}
	return l.validUntil
}

// ValidSince is the last moment at which validity was not given: contact with
// etcd has had no gap from then on.
func (l *Lease) ValidSince() boottime.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gap
}

// Observe calls f with the moment at which the last acknowledged renewal was sent,
// and again at each later one, until it is called with nil. f must not block.
func (l *Lease) Observe(f func(sent boottime.Time)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.contact = f; f != nil && !l.ended {
		f(l.validUntil.Add(l.timing.Margin - l.timing.Lease))
	}
}

// Lost is closed once etcd has said that the lease is gone.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Revoke ends the lease, and with it all keys under it.
func (l *Lease) Revoke(ctx context.Context) error {
	l.end()
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	if _, err := l.client.Revoke(ctx, l.id); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("revoke lease %x: %w", int64(l.id), err)
	}
	return nil
}

func (l *Lease) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.ended = true
		close(l.lost)
	}
}

// renewed counts validity from the moment at which the renewal was sent.
func (l *Lease) renewed(sent boottime.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	// By the moment of the answer, which may come late: until then nobody could
	// prove validity.
	if now := boottime.Now(); now >= l.validUntil {
		l.gap = now
	}
	l.validUntil = max(l.validUntil, sent.Add(l.timing.Lease-l.timing.Margin))
	if l.contact != nil {
		l.contact(sent)
	}
}

package election_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/election"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// timing derives the numbers from a lease as the daemon does.
func timing(lease time.Duration) cluster.Timing { return cluster.NewTiming(lease, 0, 0) }

func grant(t *testing.T, cl *clientv3.Client, lease time.Duration) *election.Lease {
	t.Helper()
	l, err := election.Grant(t.Context(), cl, timing(lease), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var errTestOver = errors.New("the test is over")

// renew runs a lease until the test ends; the channel gets what Run returned.
func renew(t *testing.T, l *election.Lease) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	result := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		result <- l.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel(errTestOver)
		<-ended
	})
	return result
}

// within returns what a channel gets, and ends the test if it gets nothing.
func within[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(etcdtest.Patience):
		t.Fatalf("waited in vain until %s", what)
		panic("unreachable")
	}
}

// leased puts a key under a lease, and returns a channel that is closed when etcd deletes it.
func leased(t *testing.T, cl *clientv3.Client, l *election.Lease) <-chan struct{} {
	t.Helper()
	resp, err := cl.Put(t.Context(), "under-the-lease", "", clientv3.WithLease(clientv3.LeaseID(l.ID())))
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		for resp := range cl.Watch(t.Context(), "under-the-lease", clientv3.WithRev(resp.Header.Revision+1)) {
			if len(resp.Events) > 0 {
				close(gone)
				return
			}
		}
	}()
	return gone
}

func isLost(l *election.Lease) bool {
	select {
	case <-l.Lost():
		return true
	default:
		return false
	}
}

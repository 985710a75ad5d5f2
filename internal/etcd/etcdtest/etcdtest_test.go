package etcdtest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func put(t *testing.T, cl *clientv3.Client, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	_, err := cl.Put(ctx, "k", "v")
	return err
}

func TestCable(t *testing.T) {
	s := etcdtest.Start(t)
	cable := s.Cable(t)
	cl := etcdtest.Dial(t, cable.Endpoint())
	whole := func() bool { return put(t, cl, etcdtest.Patience) == nil }
	etcdtest.Eventually(t, "a whole cable carries requests", whole)

	cable.Cut()
	if err := put(t, cl, 200*time.Millisecond); err == nil {
		t.Error("a request passed through a cut cable")
	}
	cable.Heal()
	etcdtest.Eventually(t, "a healed cable carries requests", whole)

	cable.Hang()
	if err := put(t, cl, 200*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a request through a hung cable ended with %v, want no answer within its deadline", err)
	}
	if cable.Connections() == 0 {
		t.Error("a hung cable has no connections, want them kept")
	}
	answered := make(chan error, 1)
	go func() { answered <- put(t, cl, etcdtest.Patience) }()
	cable.Heal()
	if err := <-answered; err != nil {
		t.Errorf("a request that was held back ended with %v after the cable was healed", err)
	}
}

func TestRestartKeepsEndpointAndData(t *testing.T) {
	s := etcdtest.Start(t)
	cl := s.Client(t)
	if err := put(t, cl, etcdtest.Patience); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if err := put(t, cl, 200*time.Millisecond); err == nil {
		t.Error("a request was answered by a stopped member")
	}
	s.Restart()
	etcdtest.Eventually(t, "the restarted member answers with what it stored", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		resp, err := cl.Get(ctx, "k")
		return err == nil && len(resp.Kvs) == 1
	})
}

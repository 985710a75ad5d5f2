package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

type item struct {
	N int `json:"n"`
}

// mirror runs a mirror of "p/" until the test ends, and counts its hints.
func mirror(t *testing.T, cl *clientv3.Client) (*etcd.Mirror[item], *atomic.Int64) {
	t.Helper()
	var hints atomic.Int64
	m := etcd.NewMirror[item](cl, "p/", zap.NewNop(), func() { hints.Add(1) })
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	why := errors.New("the test is over")
	t.Cleanup(func() {
		cancel(why)
		if err := <-ended; !errors.Is(err, why) {
			t.Errorf("Run ended with %v, want the cause of its context", err)
		}
		if _, synced := m.Revision(); synced {
			t.Error("the mirror counts as kept up after Run has ended")
		}
	})
	return m, &hints
}

func contents(m *etcd.Mirror[item]) map[string]int {
	got := map[string]int{}
	m.Read(func(entries map[string]etcd.Entry[item]) {
		for name, e := range entries {
			got[name] = e.Value.N
		}
	})
	return got
}

func eventuallyHolds(t *testing.T, m *etcd.Mirror[item], want map[string]int) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("mirror (-want +got):\n%s", cmp.Diff(want, contents(m)))
		}
	}()
	etcdtest.Eventually(t, "the mirror holds what etcd does", func() bool {
		_, synced := m.Revision()
		return synced && maps.Equal(contents(m), want)
	})
}

func TestMirrorListsThenWatches(t *testing.T) {
	cl := etcdtest.Start(t).Client(t)
	putKey(t, cl, "p/listed", `{"n":1}`)
	putKey(t, cl, "p/short-lived", `{"n":1}`)
	putKey(t, cl, "q/other", `{"n":9}`)
	m, hints := mirror(t, cl)
	eventuallyHolds(t, m, map[string]int{"listed": 1, "short-lived": 1})

	before := hints.Load()
	putKey(t, cl, "p/watched", `{"n":2}`)
	mod := putKey(t, cl, "p/listed", `{"n":3}`)
	deleteKey(t, cl, "p/short-lived")
	eventuallyHolds(t, m, map[string]int{"listed": 3, "watched": 2})
	if hints.Load() == before {
		t.Error("no hint was given after changes")
	}
	e, ok := m.Get("listed")
	if !ok || e.Mod != mod || e.Create >= mod || e.Err != nil || string(e.Raw) != `{"n":3}` {
		t.Errorf("entry %+v, %v; want revision %d and the create revision before", e, ok, mod)
	}
	if rev, _ := m.Revision(); rev < mod {
		t.Errorf("the mirror says that it holds revision %d, want at least %d", rev, mod)
	}
	if _, ok := m.Get("short-lived"); ok {
		t.Error("a deleted key is still there")
	}
}

func TestMirrorKeepsWhatItCannotRead(t *testing.T) {
	cl := etcdtest.Start(t).Client(t)
	lease, err := cl.Grant(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Put(t.Context(), "p/bad", "no JSON", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	m, _ := mirror(t, cl)
	etcdtest.Eventually(t, "the mirror is synced", func() bool { _, ok := m.Revision(); return ok })
	e, ok := m.Get("bad")
	if !ok || e.Err == nil || string(e.Raw) != "no JSON" || e.Lease != int64(lease.ID) {
		t.Errorf("entry %+v, %v; want the raw value, an error and lease %d", e, ok, lease.ID)
	}
}

func TestMirrorPages(t *testing.T) {
	cl := etcdtest.Start(t).Client(t)
	const n = 4100 // more than two pages
	want := map[string]int{}
	var ops []clientv3.Op
	for i := range n {
		want[fmt.Sprint(i)] = i
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("p/%d", i), fmt.Sprintf(`{"n":%d}`, i)))
		if len(ops) == etcd.MaxOps || i == n-1 {
			if _, err := etcd.Commit(t.Context(), cl, nil, ops); err != nil {
				t.Fatal(err)
			}
			ops = nil
		}
	}
	m, _ := mirror(t, cl)
	eventuallyHolds(t, m, want)
}

func TestMirrorSurvivesACut(t *testing.T) {
	s := etcdtest.Start(t)
	cable, other := s.Cable(t), s.Client(t)
	putKey(t, other, "p/stays", `{"n":1}`)
	putKey(t, other, "p/goes", `{"n":1}`)
	m, _ := mirror(t, etcdtest.Dial(t, cable.Endpoint()))
	eventuallyHolds(t, m, map[string]int{"stays": 1, "goes": 1})

	cable.Cut()
	deleteKey(t, other, "p/goes")
	putKey(t, other, "p/new", `{"n":2}`)
	cable.Heal()
	eventuallyHolds(t, m, map[string]int{"stays": 1, "new": 2})
}

// TestMirrorMissesNoDeletionOverACompaction: the watch cannot go on where it
// was, so everything has to be listed anew.
func TestMirrorMissesNoDeletionOverACompaction(t *testing.T) {
	s := etcdtest.Start(t)
	cable, other := s.Cable(t), s.Client(t)
	putKey(t, other, "p/stays", `{"n":1}`)
	putKey(t, other, "p/goes", `{"n":1}`)
	m, _ := mirror(t, etcdtest.Dial(t, cable.Endpoint()))
	eventuallyHolds(t, m, map[string]int{"stays": 1, "goes": 1})

	cable.Cut()
	deleteKey(t, other, "p/goes")
	rev := putKey(t, other, "p/new", `{"n":2}`)
	if _, err := other.Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	cable.Heal()
	eventuallyHolds(t, m, map[string]int{"stays": 1, "new": 2})
	putKey(t, other, "p/new", `{"n":3}`)
	eventuallyHolds(t, m, map[string]int{"stays": 1, "new": 3})
}

func TestMirrorIsNotSyncedBeforeTheFirstList(t *testing.T) {
	s := etcdtest.Start(t)
	cable := s.Cable(t)
	cable.Cut()
	m, _ := mirror(t, etcdtest.Dial(t, cable.Endpoint()))
	if synced := m.Read(func(entries map[string]etcd.Entry[item]) {}); synced {
		t.Error("a mirror that never read anything says that it is kept up")
	}
	cable.Heal()
	etcdtest.Eventually(t, "the mirror is synced", func() bool {
		return m.Read(func(map[string]etcd.Entry[item]) {})
	})
}

func TestMirrorOfARestartedServer(t *testing.T) {
	s := etcdtest.Start(t)
	cl := s.Client(t)
	putKey(t, cl, "p/a", `{"n":1}`)
	m, _ := mirror(t, cl)
	eventuallyHolds(t, m, map[string]int{"a": 1})
	s.Stop()
	s.Restart()
	etcdtest.Eventually(t, "the restarted server takes a write", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := cl.Put(ctx, "p/b", `{"n":2}`)
		return err == nil
	})
	eventuallyHolds(t, m, map[string]int{"a": 1, "b": 2})
}

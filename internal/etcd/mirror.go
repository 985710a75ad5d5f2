package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	mvccpb "go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Entry is one key of a mirror.
type Entry[T any] = cluster.Versioned[T]

// Mirror keeps a local copy of a key prefix, by list and watch. The copy may be
// old: who acts on it compares revisions in the transaction. Keys are named by
// what follows the prefix.
type Mirror[T any] struct {
	client *clientv3.Client
	prefix string
	log    *zap.Logger
	hint   func()

	mu      sync.Mutex
	entries map[string]Entry[T]
	rev     int64
	synced  bool
}

const (
	// resync lists anew even if the watch shows nothing: watches have lost events before.
	resync = 60 * time.Second
	// listLimit is the page of a list, so that one answer stays well under grpc's 4 MiB.
	listLimit = 2000
)

// NewMirror returns a mirror of a prefix; hint, which must not block, is called
// after each change.
func NewMirror[T any](cl *clientv3.Client, prefix string, log *zap.Logger, hint func()) *Mirror[T] {
	return &Mirror[T]{client: cl, prefix: prefix, log: log, hint: hint, entries: map[string]Entry[T]{}}
}

// Run keeps the copy until the context ends, which is the only error it returns.
func (m *Mirror[T]) Run(ctx context.Context) error {
	defer m.setSynced(false)
	pause := 100 * time.Millisecond
	for {
		err := m.follow(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			m.log.Debug("reading etcd anew", zap.String("prefix", m.prefix), zap.Error(err))
			m.setSynced(false)
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(pause + rand.N(pause)):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 100 * time.Millisecond
	}
}

// follow lists, then watches until something is wrong (an error) or the next
// full list is due (nil).
func (m *Mirror[T]) follow(ctx context.Context) error {
	rev, err := m.list(ctx)
	if err != nil {
		return err
	}
	wctx, cancel := context.WithTimeout(ctx, resync+rand.N(resync/4))
	defer cancel()
	ch := m.client.Watch(clientv3.WithRequireLeader(wctx), m.prefix, clientv3.WithPrefix(), clientv3.WithRev(rev+1), clientv3.WithProgressNotify())
	for resp := range ch {
		if err := resp.Err(); err != nil {
			return fmt.Errorf("watch %s: %w", m.prefix, err)
		}
		if len(resp.Events) > 0 {
			m.apply(resp.Events)
			m.hint()
		}
	}
	if errors.Is(wctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	return errors.New("the watch ended")
}

func (m *Mirror[T]) list(ctx context.Context) (int64, error) {
	fresh := map[string]Entry[T]{}
	var rev int64
	from, end := m.prefix, clientv3.GetPrefixRangeEnd(m.prefix)
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(listLimit)}
		if rev != 0 {
			opts = append(opts, clientv3.WithRev(rev))
		}
		rctx, cancel := context.WithTimeout(ctx, RequestTimeout)
		resp, err := m.client.Get(rctx, from, opts...)
		cancel()
		if err != nil {
			return 0, fmt.Errorf("list %s: %w", m.prefix, err)
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			fresh[strings.TrimPrefix(string(kv.Key), m.prefix)] = decode[T](kv)
		}
		if !resp.More || len(resp.Kvs) == 0 {
			break
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	m.mu.Lock()
	m.entries, m.rev, m.synced = fresh, rev, true
	m.mu.Unlock()
	m.hint()
	return rev, nil
}

func decode[T any](kv *mvccpb.KeyValue) Entry[T] {
	e := Entry[T]{Raw: kv.Value, Mod: kv.ModRevision, Create: kv.CreateRevision, Lease: kv.Lease}
	e.Err = json.Unmarshal(kv.Value, &e.Value)
	return e
}

func (m *Mirror[T]) apply(events []*clientv3.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ev := range events {
		name := strings.TrimPrefix(string(ev.Kv.Key), m.prefix)
		if ev.Kv.ModRevision > m.rev {
			m.rev = ev.Kv.ModRevision
		}
		if ev.Type == clientv3.EventTypeDelete {
			delete(m.entries, name)
			continue
		}
		m.entries[name] = decode[T](ev.Kv)
	}
}

func (m *Mirror[T]) setSynced(ok bool) {
	m.mu.Lock()
	m.synced = ok
	m.mu.Unlock()
}

// Read calls f with the copy, which f must neither keep nor change, and tells
// whether the copy is being kept up now.
func (m *Mirror[T]) Read(f func(entries map[string]Entry[T])) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m.entries)
	return m.synced
}

// Get returns one entry.
func (m *Mirror[T]) Get(name string) (Entry[T], bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[name]
	return e, ok
}

// Revision is the store revision up to which the copy holds everything, and
// whether the copy is being kept up.
func (m *Mirror[T]) Revision() (int64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rev, m.synced
}

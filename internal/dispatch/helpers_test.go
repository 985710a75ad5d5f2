package dispatch_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/dispatch"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	n1 = cluster.NodeID("0000000000000001")
	n2 = cluster.NodeID("0000000000000002")
)

// lab is one cluster's keys in an etcd of its own, with a master.
type lab struct {
	t      *testing.T
	client *clientv3.Client
	keys   etcd.Layout
	ledger *dispatch.Ledger
	term   cluster.Term
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, client: etcdtest.Start(t).Client(t), keys: etcd.NewLayout("lab")}
	l.ledger = dispatch.NewLedger(l.client, l.keys, zap.NewNop(), func() {})
	l.term = cluster.Term{Key: l.keys.Masters() + "1"}
	l.term.Epoch = cluster.Epoch(l.put(l.term.Key, "{}"))
	return l
}

// depose makes somebody else master.
func (l *lab) depose() {
	l.t.Helper()
	l.remove(l.term.Key)
	l.put(l.keys.Masters()+"2", "{}")
}

func (l *lab) put(key string, val any, opts ...clientv3.OpOption) int64 {
	l.t.Helper()
	s, ok := val.(string)
	if !ok {
		b, err := json.Marshal(val)
		if err != nil {
			l.t.Fatal(err)
		}
		s = string(b)
	}
	resp, err := l.client.Put(l.t.Context(), key, s, opts...)
	if err != nil {
		l.t.Fatal(err)
	}
	return resp.Header.Revision
}

func (l *lab) remove(key string) {
	l.t.Helper()
	if _, err := l.client.Delete(l.t.Context(), key); err != nil {
		l.t.Fatal(err)
	}
}

// entry reads a key; ok is false if it is absent.
func entry[T any](l *lab, key string) (e etcd.Entry[T], ok bool) {
	l.t.Helper()
	resp, err := l.client.Get(l.t.Context(), key)
	if err != nil {
		l.t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return e, false
	}
	kv := resp.Kvs[0]
	e = etcd.Entry[T]{Raw: kv.Value, Mod: kv.ModRevision, Create: kv.CreateRevision, Lease: kv.Lease}
	if err := json.Unmarshal(kv.Value, &e.Value); err != nil {
		l.t.Fatal(err)
	}
	return e, true
}

// count is how many keys have a prefix.
func (l *lab) count(prefix string) int {
	l.t.Helper()
	resp, err := l.client.Get(l.t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		l.t.Fatal(err)
	}
	return int(resp.Count)
}

// alive puts a node's alive key under a lease, and returns the lease.
func (l *lab) alive(n cluster.NodeID) int64 {
	l.t.Helper()
	resp, err := l.client.Grant(l.t.Context(), 60)
	if err != nil {
		l.t.Fatal(err)
	}
	l.put(l.keys.Alive(n), cluster.AliveRecord{V: 1}, clientv3.WithLease(resp.ID))
	return int64(resp.ID)
}

func action(n cluster.NodeID, i int) cluster.Action {
	return cluster.Action{ID: fmt.Sprintf("id%d", i), Verb: cluster.VerbTake, Node: n, Resource: cluster.ResourceID(fmt.Sprintf("vm-%d", i)), State: cluster.ActionNew}
}

// actions makes new actions for a node, as swaps.
func actions(n cluster.NodeID, count int) []cluster.Swap {
	var out []cluster.Swap
	for i := range count {
		a := action(n, i)
		out = append(out, cluster.Swap{New: &a})
	}
	return out
}

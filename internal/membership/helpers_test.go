package membership_test

import (
	"encoding/json"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	"github.com/shaman-ha/shaman/internal/membership"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	self  = cluster.NodeID("00000000000000aa")
	other = cluster.NodeID("00000000000000bb")
)

// lab is one cluster's keys in an etcd of its own.
type lab struct {
	t       *testing.T
	client  *clientv3.Client
	keys    etcd.Layout
	members *membership.Members
}

func newLab(t *testing.T) *lab {
	t.Helper()
	cl := etcdtest.Start(t).Client(t)
	keys := etcd.NewLayout("lab")
	return &lab{t: t, client: cl, keys: keys, members: membership.New(cl, keys, zap.NewNop(), func() {})}
}

// join makes the node self a member of this incarnation.
func (l *lab) join(inc cluster.Incarnation) {
	l.t.Helper()
	if err := l.members.Join(l.t.Context(), self, cluster.NodeRecord{Name: "n1", Incarnation: inc}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) lease() int64 {
	l.t.Helper()
	resp, err := l.client.Grant(l.t.Context(), 60)
	if err != nil {
		l.t.Fatal(err)
	}
	return int64(resp.ID)
}

// put writes a value, as somebody else would.
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

// putFailover writes a failover of the node self, and returns its serial.
func (l *lab) putFailover(inc cluster.Incarnation, phase cluster.Phase) int64 {
	l.t.Helper()
	f := cluster.Failover{V: 1, Node: self, Inc: inc, Phase: phase}
	return l.put(l.keys.Failover(f.ID()), f)
}

// read returns a value as an object, nil if the key is absent, and its lease.
func (l *lab) read(key string) (map[string]any, int64) {
	l.t.Helper()
	resp, err := l.client.Get(l.t.Context(), key)
	if err != nil {
		l.t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return nil, 0
	}
	var m map[string]any
	if err := json.Unmarshal(resp.Kvs[0].Value, &m); err != nil {
		l.t.Fatal(err)
	}
	return m, resp.Kvs[0].Lease
}

func (l *lab) record() cluster.NodeRecord {
	l.t.Helper()
	rec, _, err := l.members.Get(l.t.Context(), self)
	if err != nil {
		l.t.Fatal(err)
	}
	return rec
}

package membership

import (
	"context"
	"errors"
	"fmt"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrOtherMount is returned by Bind if the cluster lives on another file system.
var ErrOtherMount = errors.New("the cluster lives on another file system")

// MountUUID returns the uuid of the mount that the cluster lives on, "" if no
// node was ever joined, and the id of the etcd cluster that says so.
func (m *Members) MountUUID(ctx context.Context) (uuid string, etcdCluster uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := m.client.Get(ctx, m.keys.Identity())
	if err != nil {
		return "", 0, fmt.Errorf("read which mount the cluster lives on: %w", err)
	}
	if len(resp.Kvs) > 0 {
		uuid = string(resp.Kvs[0].Value)
	}
	return uuid, resp.Header.ClusterId, nil
}

// Bind ties the cluster to the mount of this uuid, for ever: the first join
// wins. A node that joins with a local directory under a lost mount, or with
// another cluster's storage, gets ErrOtherMount.
func (m *Members) Bind(ctx context.Context, uuid string) error {
	key := m.keys.Identity()
	_, err := etcd.Commit(ctx, m.client, []clientv3.Cmp{etcd.Absent(key)}, []clientv3.Op{clientv3.OpPut(key, uuid)})
	if err != nil && !errors.Is(err, etcd.ErrConflict) {
		return fmt.Errorf("tie the cluster to its mount: %w", err)
	}
	have, _, err := m.MountUUID(ctx)
	if err != nil {
		return err
	}
	if have != uuid {
		return fmt.Errorf("%w: etcd says %s, this node's mount has %s", ErrOtherMount, have, uuid)
	}
	return nil
}

// Remove ends the membership of a node that is away for good: its failover is
// done, so nothing of it runs and its repository is empty. ErrFailoverOpen is
// returned if it is not, ErrOtherHolder if the node is alive.
func (m *Members) Remove(ctx context.Context, id cluster.NodeID) error {
	rec, _, mod, err := m.get(ctx, id)
	if err != nil {
		return err
	}
	own, err := m.OwnFailovers(ctx, id)
	if err != nil {
		return err
	}
	cmps := []clientv3.Cmp{etcd.Unchanged(m.keys.Node(id), mod), etcd.Absent(m.keys.Alive(id)), etcd.Absent(m.keys.Recovering(id))}
	done := rec.BootID == "" // never admitted: nothing of it ever ran under shaman
	for _, f := range own {
		if f.Value.Inc == rec.Incarnation && f.Value.Phase == cluster.PhaseDone {
			done = true
		}
		if f.Value.Phase.Open() {
			return fmt.Errorf("%w (failover %s, phase %s)", ErrFailoverOpen, f.Value.ID(), f.Value.Phase)
		}
		cmps = append(cmps, etcd.Unchanged(m.keys.Failover(f.Value.ID()), f.Mod))
	}
	if !done {
		return fmt.Errorf("remove node %s: its last incarnation was not failed over: %w", id, ErrFailoverOpen)
	}
	_, err = etcd.Commit(ctx, m.client, cmps, []clientv3.Op{clientv3.OpDelete(m.keys.Node(id))})
	if errors.Is(err, etcd.ErrConflict) {
		return fmt.Errorf("remove node %s: %w", id, ErrOtherHolder)
	}
	if err != nil {
		return fmt.Errorf("remove node %s: %w", id, err)
	}
	return nil
}

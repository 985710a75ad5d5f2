// Package membership announces this node and sees the others: the keys nodes/,
// alive/ and recovering/ in etcd.
//
// A node is a member from join to leave, alive while its lease lasts, and
// Recovering while it is back and not yet admitted. Admission and the opening
// of a failover are both one transaction on the same keys, so etcd orders them:
// a node never comes in while somebody is about to take its repository.
package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// ErrJoined is returned by Join if the node has a record already.
var ErrJoined = errors.New("this node is joined already")

// The errors that decide what a node does next.
var (
	ErrNotJoined    = cluster.ErrNotJoined
	ErrFailoverOpen = cluster.ErrFailoverOpen
	ErrOtherHolder  = cluster.ErrOtherHolder
)

// Members reads and writes the members of one cluster. All methods may be
// called concurrently.
type Members struct {
	client *clientv3.Client
	keys   etcd.Layout

	// Local copies, kept by Run.
	Nodes      *etcd.Mirror[cluster.NodeRecord]
	Alive      *etcd.Mirror[cluster.AliveRecord]
	Recovering *etcd.Mirror[cluster.RecoveringRecord]
}

// New returns the members; hint, which must not block, is called after changes
// while Run runs.
func New(cl *clientv3.Client, keys etcd.Layout, log *zap.Logger, hint func()) *Members {
	return &Members{
		client: cl, keys: keys,
		Nodes:      etcd.NewMirror[cluster.NodeRecord](cl, keys.Nodes(), log, hint),
		Alive:      etcd.NewMirror[cluster.AliveRecord](cl, keys.Alives(), log, hint),
		Recovering: etcd.NewMirror[cluster.RecoveringRecord](cl, keys.Recoverings(), log, hint),
	}
}

// Run keeps the local copies until the context ends.
func (m *Members) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.Nodes.Run(ctx) })
	g.Go(func() error { return m.Alive.Run(ctx) })
	g.Go(func() error { return m.Recovering.Run(ctx) })
	return g.Wait()
}

// Get reads a member's record anew. It returns ErrNotJoined if there is none.
func (m *Members) Get(ctx context.Context, id cluster.NodeID) (cluster.NodeRecord, int64, error) {
	rec, _, mod, err := m.get(ctx, id)
	return rec, mod, err
}

func (m *Members) get(ctx context.Context, id cluster.NodeID) (rec cluster.NodeRecord, raw []byte, mod int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := m.client.Get(ctx, m.keys.Node(id))
	if err != nil {
		return rec, nil, 0, fmt.Errorf("read the record of node %s: %w", id, err)
	}
	if len(resp.Kvs) == 0 {
		return rec, nil, 0, ErrNotJoined
	}
	if err := json.Unmarshal(resp.Kvs[0].Value, &rec); err != nil {
		return rec, nil, 0, fmt.Errorf("read the record of node %s: %w", id, err)
	}
	return rec, resp.Kvs[0].Value, resp.Kvs[0].ModRevision, nil
}

// Join makes a node a member. It returns ErrJoined if it is one.
func (m *Members) Join(ctx context.Context, id cluster.NodeID, rec cluster.NodeRecord) error {
	rec.V = cluster.RecordVersion
	val, err := etcd.Encode(rec)
	if err != nil {
		return err
	}
	_, err = etcd.Commit(ctx, m.client, []clientv3.Cmp{etcd.Absent(m.keys.Node(id))}, []clientv3.Op{clientv3.OpPut(m.keys.Node(id), val)})
	if errors.Is(err, etcd.ErrConflict) {
		return ErrJoined
	}
	if err != nil {
		return fmt.Errorf("join node %s: %w", id, err)
	}
	return nil
}

// updateTries bounds how often a change is applied again to a record that
// somebody else changed in between.
const updateTries = 8

// Update changes a member's record; f may be called several times. Fields that
// this version does not know are kept. An error of f ends it and is returned.
func (m *Members) Update(ctx context.Context, id cluster.NodeID, f func(*cluster.NodeRecord) error) error {
	return m.update(ctx, id, nil, f)
}

func (m *Members) update(ctx context.Context, id cluster.NodeID, guards []clientv3.Cmp, f func(*cluster.NodeRecord) error) error {
	for range updateTries {
		rec, raw, mod, err := m.get(ctx, id)
		if err != nil {
			return err
		}
		was, err := etcd.Encode(rec)
		if err != nil {
			return err
		}
		if err := f(&rec); err != nil {
			return err
		}
		if is, err := etcd.Encode(rec); err != nil || is == was {
			return err // nil if there is nothing to write
		}
		val, err := etcd.Merge(raw, rec)
		if err != nil {
			return err
		}
		_, err = etcd.Commit(ctx, m.client, append([]clientv3.Cmp{etcd.Unchanged(m.keys.Node(id), mod)}, guards...), []clientv3.Op{clientv3.OpPut(m.keys.Node(id), val)})
		if err == nil {
			return nil
		}
		if !errors.Is(err, etcd.ErrConflict) {
			return fmt.Errorf("change the record of node %s: %w", id, err)
		}
	}
	return fmt.Errorf("change the record of node %s: %w", id, etcd.ErrConflict)
}

// PutRecovering says that a node is back and not yet admitted.
func (m *Members) PutRecovering(ctx context.Context, id cluster.NodeID, lease int64, rec cluster.RecoveringRecord) error {
	rec.V = cluster.RecordVersion
	val, err := etcd.Encode(rec)
	if err != nil {
		return err
	}
	// Only a member has such a key: a node that left meanwhile must not leave one behind.
	_, err = etcd.Commit(ctx, m.client,
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(m.keys.Node(id)), ">", 0)},
		[]clientv3.Op{clientv3.OpPut(m.keys.Recovering(id), val, clientv3.WithLease(clientv3.LeaseID(lease)))})
	if errors.Is(err, etcd.ErrConflict) {
		return ErrNotJoined
	}
	if err != nil {
		return fmt.Errorf("announce node %s as recovering: %w", id, err)
	}
	return nil
}

// PutAlive rewrites the usage and state of an admitted node. It returns
// ErrOtherHolder if the key is gone or not under this lease.
func (m *Members) PutAlive(ctx context.Context, id cluster.NodeID, lease int64, rec cluster.AliveRecord) error {
	rec.V = cluster.RecordVersion
	val, err := etcd.Encode(rec)
	if err != nil {
		return err
	}
	_, err = etcd.Commit(ctx, m.client,
		[]clientv3.Cmp{clientv3.Compare(clientv3.LeaseValue(m.keys.Alive(id)), "=", lease)},
		[]clientv3.Op{clientv3.OpPut(m.keys.Alive(id), val, clientv3.WithLease(clientv3.LeaseID(lease)))})
	if errors.Is(err, etcd.ErrConflict) {
		return ErrOtherHolder
	}
	if err != nil {
		return fmt.Errorf("publish the usage of node %s: %w", id, err)
	}
	return nil
}

// HoldsAlive tells whether alive/<id> is under this lease, and returns its record.
func (m *Members) HoldsAlive(ctx context.Context, id cluster.NodeID, lease int64) (cluster.AliveRecord, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	var rec cluster.AliveRecord
	resp, err := m.client.Get(ctx, m.keys.Alive(id))
	if err != nil {
		return rec, false, fmt.Errorf("read the alive key of node %s: %w", id, err)
	}
	if len(resp.Kvs) == 0 || resp.Kvs[0].Lease != lease {
		return rec, false, nil
	}
	if err := json.Unmarshal(resp.Kvs[0].Value, &rec); err != nil {
		return rec, false, fmt.Errorf("read the alive key of node %s: %w", id, err)
	}
	return rec, true, nil
}

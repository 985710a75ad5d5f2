package membership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// OwnFailovers reads the failovers of one node; the serial of each is its create revision.
func (m *Members) OwnFailovers(ctx context.Context, id cluster.NodeID) ([]cluster.Versioned[cluster.Failover], error) {
	own, _, err := m.ownFailovers(ctx, id)
	return own, err
}

// ownFailovers also returns the store revision of the answer, which is above
// the serial of every failover so far, and below that of every later one.
func (m *Members) ownFailovers(ctx context.Context, id cluster.NodeID) ([]cluster.Versioned[cluster.Failover], int64, error) {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := m.client.Get(ctx, m.keys.FailoversOf(id), clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("read the failovers of node %s: %w", id, err)
	}
	var out []cluster.Versioned[cluster.Failover]
	for _, kv := range resp.Kvs {
		f := cluster.Versioned[cluster.Failover]{Raw: kv.Value, Create: kv.CreateRevision, Mod: kv.ModRevision}
		if err := json.Unmarshal(kv.Value, &f.Value); err != nil {
			return nil, 0, fmt.Errorf("read failover %s: %w", kv.Key, err)
		}
		out = append(out, f)
	}
	return out, resp.Header.Revision, nil
}

// Admit lets a node in, by one transaction: its record is as read, no failover
// of it is in a phase before the seal, and its alive key is absent or held by
// its own former lease. It returns a serial up to which no order is obeyed any
// more: it covers all failovers of the node so far, also the withdrawn ones,
// whose keys are gone, and none that may follow.
//
// Errors: ErrNotJoined, ErrFailoverOpen, ErrOtherHolder; etcd.ErrConflict if
// something changed in between (try again); anything else is unknown.
func (m *Members) Admit(ctx context.Context, a cluster.Admission) (serial int64, err error) {
	rec, raw, mod, err := m.get(ctx, a.Node)
	if err != nil {
		return 0, err
	}
	if a.Incarnation < rec.Incarnation {
		return 0, fmt.Errorf("admit node %s with incarnation %d: etcd knows %d; the mount and etcd disagree", a.Node, a.Incarnation, rec.Incarnation)
	}
	own, serial, err := m.ownFailovers(ctx, a.Node)
	if err != nil {
		return 0, err
	}
	cmps := []clientv3.Cmp{etcd.Unchanged(m.keys.Node(a.Node), mod)}
	for _, f := range own {
		if !f.Value.Phase.Sealed() && f.Value.Phase != cluster.PhaseWithdrawn {
			return 0, fmt.Errorf("%w (failover %s, phase %s)", ErrFailoverOpen, f.Value.ID(), f.Value.Phase)
		}
		if f.Value.Inc >= a.Incarnation {
			return 0, fmt.Errorf("admit node %s with incarnation %d: that one was failed over", a.Node, a.Incarnation)
		}
		cmps = append(cmps, etcd.Unchanged(m.keys.Failover(f.Value.ID()), f.Mod))
	}
	// The only failover that could be opened in between is that of the recorded incarnation.
	cmps = append(cmps, etcd.Absent(m.keys.Failover(cluster.FailoverID{Node: a.Node, Incarnation: a.Incarnation})))
	if rec.Incarnation != a.Incarnation && !hasFailover(own, rec.Incarnation) {
		cmps = append(cmps, etcd.Absent(m.keys.Failover(cluster.FailoverID{Node: a.Node, Incarnation: rec.Incarnation})))
	}
	holder, err := m.aliveCompare(ctx, a)
	if err != nil {
		return 0, err
	}
	ops, err := m.admissionOps(a, rec, raw, serial)
	if err != nil {
		return 0, err
	}
	if _, err := etcd.Commit(ctx, m.client, append(cmps, holder), ops); err != nil {
		return 0, fmt.Errorf("admit node %s: %w", a.Node, err)
	}
	return serial, nil
}

func (m *Members) admissionOps(a cluster.Admission, rec cluster.NodeRecord, raw []byte, serial int64) ([]clientv3.Op, error) {
	if rec.BootID != "" && rec.BootID != a.BootID && rec.Stopped == cluster.NotStopped {
		// Another boot, and nobody said goodbye before it.
		rec.Name = a.Name
		rec.NoteCrash(a.At, a.CrashLimit)
	}
	if rec.BootID != a.BootID || rec.Incarnation != a.Incarnation {
		rec.Elsewhere = cluster.Elsewhere{} // of another life; the next failover asks anew
	}
	rec.V = cluster.RecordVersion
	rec.Incarnation = a.Incarnation
	rec.BootID, rec.HardwareID = a.BootID, a.HardwareID
	rec.Name, rec.Address = a.Name, a.Address
	rec.CPUPool = a.Alive.Capacity.CPUPool
	rec.Stopped, rec.StoppedAt = cluster.NotStopped, ""
	rec.Serial = serial
	rec.Released = 0
	rec.Watchdog = a.Watchdog
	node, err := etcd.Merge(raw, rec)
	if err != nil {
		return nil, err
	}
	a.Alive.V = cluster.RecordVersion
	alive, err := etcd.Encode(a.Alive)
	if err != nil {
		return nil, err
	}
	return []clientv3.Op{
		clientv3.OpPut(m.keys.Node(a.Node), node),
		clientv3.OpPut(m.keys.Alive(a.Node), alive, clientv3.WithLease(clientv3.LeaseID(a.Lease))),
		clientv3.OpDelete(m.keys.Recovering(a.Node)),
	}, nil
}

func hasFailover(own []cluster.Versioned[cluster.Failover], inc cluster.Incarnation) bool {
	for _, f := range own {
		if f.Value.Inc == inc {
			return true
		}
	}
	return false
}

func (m *Members) aliveCompare(ctx context.Context, a cluster.Admission) (clientv3.Cmp, error) {
	key := m.keys.Alive(a.Node)
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := m.client.Get(ctx, key)
	if err != nil {
		return clientv3.Cmp{}, fmt.Errorf("read the alive key of node %s: %w", a.Node, err)
	}
	if len(resp.Kvs) == 0 {
		return etcd.Absent(key), nil
	}
	kv := resp.Kvs[0]
	if kv.Lease != a.Lease && (a.Former == 0 || kv.Lease != a.Former) {
		return clientv3.Cmp{}, ErrOtherHolder
	}
	return etcd.Unchanged(key, kv.ModRevision), nil
}

// Stop records that the daemon leaves its node alone: no failover follows.
// It returns ErrFailoverOpen if one is under way already.
func (m *Members) Stop(ctx context.Context, id cluster.NodeID, lease int64, kind cluster.StopKind, at string) error {
	for range updateTries {
		rec, raw, mod, err := m.get(ctx, id)
		if err != nil {
			return err
		}
		own, err := m.OwnFailovers(ctx, id)
		if err != nil {
			return err
		}
		for _, f := range own {
			if !f.Value.Phase.Sealed() {
				return ErrFailoverOpen
			}
		}
		cmps := []clientv3.Cmp{
			etcd.Unchanged(m.keys.Node(id), mod),
			clientv3.Compare(clientv3.LeaseValue(m.keys.Alive(id)), "=", lease),
		}
		rec.Stopped, rec.StoppedAt, rec.Watchdog = kind, at, cluster.Watchdog{}
		if kind == cluster.StopDown {
			rec.Elsewhere = cluster.Elsewhere{} // everything is stopped: its word on what runs there is over
		}
		val, err := etcd.Merge(raw, rec)
		if err != nil {
			return err
		}
		_, err = etcd.Commit(ctx, m.client, cmps, []clientv3.Op{clientv3.OpPut(m.keys.Node(id), val), clientv3.OpDelete(m.keys.Alive(id))})
		if err == nil {
			return nil
		}
		if !errors.Is(err, etcd.ErrConflict) {
			return fmt.Errorf("record the stop of node %s: %w", id, err)
		}
		if _, held, err := m.HoldsAlive(ctx, id, lease); err != nil || !held {
			return errors.Join(ErrOtherHolder, err)
		}
	}
	return fmt.Errorf("record the stop of node %s: %w", id, etcd.ErrConflict)
}

// PublishWatchdog records the watchdog of an admitted node. It holds the alive key,
// so no failover of it can be open that counts with what stood there before.
func (m *Members) PublishWatchdog(ctx context.Context, id cluster.NodeID, lease int64, wd cluster.Watchdog) error {
	held := clientv3.Compare(clientv3.LeaseValue(m.keys.Alive(id)), "=", lease)
	return m.update(ctx, id, []clientv3.Cmp{held}, func(r *cluster.NodeRecord) error {
		r.Watchdog = wd
		return nil
	})
}

// DisownWatchdog takes the watchdog out of the record of a node that is not
// admitted, unless a failover counts with it already (ErrFailoverOpen).
func (m *Members) DisownWatchdog(ctx context.Context, id cluster.NodeID) error {
	rec, _, mod, err := m.get(ctx, id)
	if errors.Is(err, cluster.ErrNotJoined) {
		return nil
	}
	if err != nil {
		return err
	}
	own, err := m.OwnFailovers(ctx, id)
	if err != nil {
		return err
	}
	for _, f := range own {
		if !f.Value.Phase.Sealed() && f.Value.Phase != cluster.PhaseWithdrawn {
			return fmt.Errorf("%w (failover %s, phase %s)", ErrFailoverOpen, f.Value.ID(), f.Value.Phase)
		}
	}
	unopened := etcd.Absent(m.keys.Failover(cluster.FailoverID{Node: id, Incarnation: rec.Incarnation}))
	if hasFailover(own, rec.Incarnation) {
		return nil // sealed: nothing of it is here
	}
	return m.update(ctx, id, []clientv3.Cmp{etcd.Unchanged(m.keys.Node(id), mod), unopened}, func(r *cluster.NodeRecord) error {
		r.Watchdog = cluster.Watchdog{}
		return nil
	})
}

// Leave ends a living node's membership: its record and its alive key go in one
// transaction, unless a failover of it is open.
func (m *Members) Leave(ctx context.Context, id cluster.NodeID, lease int64) error {
	_, _, mod, err := m.get(ctx, id)
	if err != nil {
		return err
	}
	own, err := m.OwnFailovers(ctx, id)
	if err != nil {
		return err
	}
	cmps := []clientv3.Cmp{
		etcd.Unchanged(m.keys.Node(id), mod),
		clientv3.Compare(clientv3.LeaseValue(m.keys.Alive(id)), "=", lease),
	}
	for _, f := range own {
		if f.Value.Phase.Open() {
			return fmt.Errorf("%w (failover %s, phase %s)", ErrFailoverOpen, f.Value.ID(), f.Value.Phase)
		}
		cmps = append(cmps, etcd.Unchanged(m.keys.Failover(f.Value.ID()), f.Mod))
	}
	_, err = etcd.Commit(ctx, m.client, cmps, []clientv3.Op{
		clientv3.OpDelete(m.keys.Node(id)),
		clientv3.OpDelete(m.keys.Alive(id)),
		clientv3.OpDelete(m.keys.Recovering(id)),
	})
	if err != nil {
		return fmt.Errorf("leave with node %s: %w", id, err)
	}
	return nil
}

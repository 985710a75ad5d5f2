package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/dispatch"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/membership"
	"github.com/shaman-ha/shaman/internal/resources"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// recoverWatch is how long heartbeats are watched before a mount is tied to
// another etcd. The parameters may be lost, so it is far beyond the heartbeat
// interval that any LOCK_TIMEOUT gives (1 s at most).
const recoverWatch = 8 * time.Second

// slotRead bounds the reading of one heartbeat.
const slotRead = 2 * time.Second

// recover brings this node back into a cluster whose etcd was rebuilt or restored
// from a backup. What the mount says of repositories and incarnations counts; the
// first node to do so ties the mount to the etcd of today.
//
// No daemon may run meanwhile: each acts by the etcd that it knows, and after
// this there would be two of them.
func (a *app) recover(ctx context.Context) error {
	id, _, err := a.store.ReadIdentity(ctx)
	if errors.Is(err, resources.ErrNoCluster) {
		return fail(exitState, "%w; there is nothing to recover: a new cluster is made by 'shaman join'", err)
	}
	if err != nil {
		return err
	}
	if id.Name != a.local.ClusterName {
		return fail(exitRefused, "the mount belongs to cluster %q, CLUSTER_NAME says %q; nothing was done", id.Name, a.local.ClusterName)
	}
	m := a.members()
	uuid, etcdCluster, err := m.MountUUID(ctx)
	if err != nil {
		return err
	}
	if uuid != "" && uuid != id.UUID {
		return fail(exitRefused, "%w: etcd says %s, this node's mount has %s; nothing was done", membership.ErrOtherMount, uuid, id.UUID)
	}
	known, err := dispatch.ReadMarks(ctx, a.client, a.keys)
	if err != nil {
		return err
	}
	if id.EtcdClusterID != etcdCluster || !known.Knows(id.Mark) {
		if err := a.rebind(ctx, m, etcdCluster); err != nil {
			return err
		}
		a.say("the mount is tied to the etcd of today; what it says of repositories and incarnations counts")
	}
	_, _, err = m.Get(ctx, a.self)
	switch {
	case errors.Is(err, cluster.ErrNotJoined):
		if err := a.join(ctx, false); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		// One that was found on the mount only has no name yet.
		if err := m.Update(ctx, a.self, func(rec *cluster.NodeRecord) error {
			if rec.Address == "" {
				rec.Name, rec.Address = a.local.NodeName, a.local.NodeAddress
			}
			return nil
		}); err != nil {
			return err
		}
		a.say("this node is joined; start shaman-monitor here (systemctl start shaman-monitor), then look at 'shaman stat'")
	}
	return nil
}

// rebind makes what etcd holds fit the mount, and ties the mount to it as the
// last step: until then no master acts.
func (a *app) rebind(ctx context.Context, m *membership.Members, etcdCluster uint64) error {
	running, err := a.beating(ctx)
	if err != nil {
		return err
	}
	if len(running) > 0 {
		return fail(exitRefused, "daemons run on: %s. Each acts by the etcd that it knows; stop shaman-monitor on all nodes first ('systemctl stop shaman-monitor'; VEs run on), then run this again", strings.Join(running, ", "))
	}
	s := newSnapshot()
	if err := a.lookEtcd(ctx, s); err != nil {
		return err
	}
	// Failovers and actions of a backup are over, one way or the other: what is
	// left of them lies in the pool, where the next master finds it. Nobody is alive:
	// a daemon that found the lease of before still held would resume it, and not be
	// admitted anew.
	for _, prefix := range []string{a.keys.Failovers(), a.keys.Actions(), a.keys.Confirms(), a.keys.Brake(), a.keys.Mark(), a.keys.Alives(), a.keys.Recoverings()} {
		dctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
		_, err := a.client.Delete(dctx, prefix, clientv3.WithPrefix())
		cancel()
		if err != nil {
			return fmt.Errorf("clear %s: %w", prefix, err)
		}
	}
	owners, err := a.store.Owners(ctx)
	if err != nil {
		return err
	}
	for id := range s.facts.Nodes {
		if !slices.Contains(owners, id) {
			owners = append(owners, id)
		}
	}
	for _, id := range owners {
		if err := a.restore(ctx, m, id, s); err != nil {
			return err
		}
	}
	return a.store.Rebind(ctx, etcdCluster)
}

// restore makes etcd know of a node what the mount does. A node whose machine is
// gone has nobody to join it again: without a record its VEs would stay where
// they are for ever.
func (a *app) restore(ctx context.Context, m *membership.Members, id cluster.NodeID, s *snapshot) error {
	have, present, err := a.store.Incarnation(ctx, id)
	if err != nil {
		return err
	}
	if _, known := s.facts.Nodes[id]; !known && id == a.self {
		return nil // it joins by its own name
	} else if !known && !present {
		return nil // it left, or was taken over: there is nothing of it
	} else if !known {
		a.say("node %[1]s has a repository on the mount, and etcd does not know it: it is %[2]s now. Run 'shaman join --recover' on it too; if its machine is gone, 'shaman fence confirm %[1]s' once a master is there", id, cluster.Inactive)
		if err := m.Join(ctx, id, cluster.NodeRecord{Name: string(id), Incarnation: have}); err != nil {
			return err
		}
	}
	boot := "unknown"
	if hb, err := a.store.ReadHeartbeat(ctx, id, slotRead); err == nil {
		boot = cmp.Or(hb.Boot, boot)
	}
	return m.Update(ctx, id, func(rec *cluster.NodeRecord) error {
		if present {
			rec.Incarnation = max(rec.Incarnation, have)
			// It may have been admitted since. One without a boot never was, and is never lost.
			rec.BootID = cmp.Or(rec.BootID, boot)
		}
		// Its daemon was stopped for this; it is not lost.
		rec.Stopped, rec.StoppedAt = cluster.StopInactive, now()
		rec.Elsewhere = cluster.Elsewhere{}
		return nil
	})
}

// beating names the nodes whose daemons write their heartbeats, or may do so.
func (a *app) beating(ctx context.Context) ([]string, error) {
	owners, err := a.store.Owners(ctx)
	if err != nil {
		return nil, err
	}
	a.say("watching the heartbeats of %d nodes for %s …", len(owners), recoverWatch)
	first := map[cluster.NodeID]cluster.Heartbeat{}
	read := func(n cluster.NodeID) (cluster.Heartbeat, error) {
		hb, err := a.store.ReadHeartbeat(ctx, n, slotRead)
		if errors.Is(err, cluster.ErrTorn) {
			err = nil // never written
		}
		return hb, err
	}
	for _, n := range owners {
		if first[n], err = read(n); err != nil {
			return nil, fmt.Errorf("the heartbeat of node %s cannot be read, so nobody knows whether its daemon runs: %w", n, err)
		}
	}
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(recoverWatch):
	}
	var running []string
	for _, n := range owners {
		hb, err := read(n)
		if err != nil {
			return nil, fmt.Errorf("the heartbeat of node %s cannot be read, so nobody knows whether its daemon runs: %w", n, err)
		}
		if hb != first[n] {
			running = append(running, string(n))
		}
	}
	sort.Strings(running)
	return running, nil
}

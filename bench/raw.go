package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	renameBatch = 200 // renames between two pairs of fsyncs
	parallel    = 4   // transactions under way at once
)

// raw is what the pieces of a failover cost without shaman.
type raw struct{ renames, dispatch, marks, outcomes, deletes time.Duration }

// toStart is everything but the clearing away: what lies between a proof and the
// last outcome.
func (r raw) toStart() time.Duration { return r.renames + r.dispatch + r.marks + r.outcomes }
func (r raw) all() time.Duration     { return r.toStart() + r.deletes }

// rawCost does the renames and transactions of a failover on the same disk and
// the same etcd member, one kind after the other.
func (s *site) rawCost(ctx context.Context, sz size, dead cluster.NodeID) (r raw, err error) {
	if r.renames, err = s.rawRenames(sz.ves); err != nil {
		return r, err
	}
	guard := "/raw/master"
	won, err := s.client.Put(ctx, guard, "bench")
	if err != nil {
		return r, fmt.Errorf("raw cost of etcd: %w", err)
	}
	term := cluster.Term{Key: guard, Epoch: cluster.Epoch(won.Header.Revision)}
	prio := uint32(0)
	now := time.Now().UTC().Format(time.RFC3339Nano)
	actions := make([]cluster.Action, sz.ves)
	for i := range actions {
		actions[i] = cluster.Action{
			V: cluster.RecordVersion, ID: "0123456789abcdef", Verb: cluster.VerbTake, Node: dead, Inc: 1, Resource: cluster.ResourceID("ct-" + veName(i)),
			Pool: string(dead) + ".1", Failover: string(dead) + ".1", Start: true, Path: "/ve/" + veName(i), Priority: &prio, Memory: veMemory,
			Policy: "drs", Reason: "most free memory of 9 nodes that fit (4.0 TiB)", CreatedAt: now, State: cluster.ActionNew,
		}
	}
	for _, phase := range []struct {
		took   *time.Duration
		change func(*cluster.Action)
		remove bool
	}{
		{&r.dispatch, func(*cluster.Action) {}, false},
		{&r.marks, func(a *cluster.Action) { a.State, a.ClaimedAt = cluster.ActionClaimed, now }, false},
		{&r.outcomes, func(a *cluster.Action) {
			a.State, a.Outcome, a.DoneAt = cluster.ActionDone, cluster.OutcomeStarted, now
		}, false},
		{&r.deletes, func(*cluster.Action) {}, true},
	} {
		ops := make([]clientv3.Op, len(actions))
		for i := range actions {
			phase.change(&actions[i])
			key := "/raw/actions/" + string(actions[i].Resource)
			if phase.remove {
				ops[i] = clientv3.OpDelete(key)
				continue
			}
			val, err := etcd.Encode(actions[i])
			if err != nil {
				return r, err
			}
			ops[i] = clientv3.OpPut(key, val)
		}
		if *phase.took, err = s.rawWrites(ctx, term, ops); err != nil {
			return r, err
		}
	}
	return r, nil
}

// rawWrites runs operations in guarded transactions.
func (s *site) rawWrites(ctx context.Context, term cluster.Term, ops []clientv3.Op) (time.Duration, error) {
	begin := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for lo := 0; lo < len(ops); lo += etcd.MaxOps {
		g.Go(func() error {
			_, err := etcd.CommitAs(ctx, s.client, term, nil, ops[lo:min(len(ops), lo+etcd.MaxOps)])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, fmt.Errorf("raw cost of etcd: %w", err)
	}
	return time.Since(begin), nil
}

// rawRenames moves files from one directory to another, as claims do.
func (s *site) rawRenames(n int) (time.Duration, error) {
	from, to := filepath.Join(s.dir, "raw-from"), filepath.Join(s.dir, "raw-to")
	for _, d := range []string{from, to} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return 0, fmt.Errorf("raw cost of renames: %w", err)
		}
	}
	for i := range n {
		if err := os.WriteFile(filepath.Join(from, veName(i)), []byte("/ve/"+veName(i)+"\n"), 0o644); err != nil {
			return 0, fmt.Errorf("raw cost of renames: %w", err)
		}
	}
	if err := flush(from); err != nil {
		return 0, err
	}
	begin := time.Now()
	for i := range n {
		if err := unix.Rename(filepath.Join(from, veName(i)), filepath.Join(to, veName(i))); err != nil {
			return 0, fmt.Errorf("raw cost of renames: %w", err)
		}
		if i%renameBatch == renameBatch-1 || i == n-1 {
			for _, d := range []string{to, from} {
				if err := syncDir(d); err != nil {
					return 0, fmt.Errorf("raw cost of renames: %w", err)
				}
			}
		}
	}
	return time.Since(begin), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

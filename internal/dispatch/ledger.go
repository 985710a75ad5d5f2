// Package dispatch keeps failovers, actions and their outcomes in etcd: what a
// master decides and sends (Ledger), and what a node receives and answers (Inbox).
//
// Every write of a master is one transaction of at most etcd.MaxOps operations
// that its term guards, so a replaced master cannot write. An action is new
// until its node marks it claimed; only a new one can be withdrawn.
package dispatch

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Ledger is the master's side.
type Ledger struct {
	client *clientv3.Client
	keys   etcd.Layout

	// Local copies, kept by Run.
	Failovers *etcd.Mirror[cluster.Failover]
	Actions   *etcd.Mirror[cluster.Action]
	Confirms  *etcd.Mirror[cluster.Confirm]

	wrote atomic.Int64 // highest revision of a write of actions
}

// Written is the local copy of the actions as their writer may trust it: it
// counts as kept up only once it shows everything that this ledger has written.
// A master that looked earlier would send the same actions again.
type Written struct{ Ledger *Ledger }

// Read calls f with the copy, and tells whether it is kept up; see Mirror.Read.
func (w Written) Read(f func(map[string]etcd.Entry[cluster.Action])) bool {
	rev, _ := w.Ledger.Actions.Revision() // before f: what f sees is at least that new
	return w.Ledger.Actions.Read(f) && rev >= w.Ledger.wrote.Load()
}

// note remembers the revision of a write.
func (l *Ledger) note(rev int64) {
	for {
		have := l.wrote.Load()
		if rev <= have || l.wrote.CompareAndSwap(have, rev) {
			return
		}
	}
}

// NewLedger returns the ledger of a cluster; hint is called after changes while Run runs.
func NewLedger(cl *clientv3.Client, keys etcd.Layout, log *zap.Logger, hint func()) *Ledger {
	return &Ledger{
		client: cl, keys: keys,
		Failovers: etcd.NewMirror[cluster.Failover](cl, keys.Failovers(), log, hint),
		Actions:   etcd.NewMirror[cluster.Action](cl, keys.Actions(), log, hint),
		Confirms:  etcd.NewMirror[cluster.Confirm](cl, keys.Confirms(), log, hint),
	}
}

// Run keeps the local copies until the context ends.
func (l *Ledger) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.Failovers.Run(ctx) })
	g.Go(func() error { return l.Actions.Run(ctx) })
	g.Go(func() error { return l.Confirms.Run(ctx) })
	return g.Wait()
}

// NewID returns a random id for an action.
func NewID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(b[:])
}

// Open opens a failover if the node is still as observed and its alive key is
// absent. It returns etcd.ErrConflict if not.
func (l *Ledger) Open(ctx context.Context, term cluster.Term, o cluster.Opening) error {
	f := o.Failover
	f.V = cluster.RecordVersion
	val, err := etcd.Encode(f)
	if err != nil {
		return err
	}
	_, err = etcd.CommitAs(ctx, l.client, term, []clientv3.Cmp{
		etcd.Absent(l.keys.Alive(f.Node)),
		etcd.Unchanged(l.keys.Node(f.Node), o.NodeMod),
		etcd.Unchanged(l.keys.Recovering(f.Node), o.RecoveringMod),
		etcd.Absent(l.keys.Failover(f.ID())),
	}, []clientv3.Op{clientv3.OpPut(l.keys.Failover(f.ID()), val)})
	if err != nil {
		return fmt.Errorf("open failover %s: %w", f.ID(), err)
	}
	return nil
}

// Update rewrites a failover that still is as it was read. With nodeMod the record
// of its node has to be so, too: what a proof rests on. drop are finished actions
// that go with the same write, all of them or nothing.
func (l *Ledger) Update(ctx context.Context, term cluster.Term, was etcd.Entry[cluster.Failover], f cluster.Failover, nodeMod int64, drop ...cluster.Swap) error {
	val, err := etcd.Merge(was.Raw, f)
	if err != nil {
		return err
	}
	key := l.keys.Failover(f.ID())
	cmps := []clientv3.Cmp{etcd.Unchanged(key, was.Mod)}
	if nodeMod != 0 {
		cmps = append(cmps, etcd.Unchanged(l.keys.Node(f.Node), nodeMod))
	}
	ops := []clientv3.Op{clientv3.OpPut(key, val)}
	for _, s := range drop {
		c, o, err := l.swap(s)
		if err != nil {
			return err
		}
		cmps, ops = append(cmps, c...), append(ops, o...)
	}
	rev, err := etcd.CommitAs(ctx, l.client, term, cmps, ops)
	if err != nil {
		return fmt.Errorf("update failover %s to %s: %w", f.ID(), f.Phase, err)
	}
	if len(drop) > 0 {
		l.note(rev)
	}
	return nil
}

// Wanted tells whether a failover still stands and this term is the master's, by
// etcd's own word of this moment. It returns etcd.ErrConflict if not.
func (l *Ledger) Wanted(ctx context.Context, term cluster.Term, id cluster.FailoverID, serial int64) error {
	key := l.keys.Failover(id)
	stands := clientv3.Compare(clientv3.CreateRevision(key), "=", serial)
	if _, err := etcd.CommitAs(ctx, l.client, term, []clientv3.Cmp{stands}, []clientv3.Op{clientv3.OpGet(key, clientv3.WithKeysOnly())}); err != nil {
		return fmt.Errorf("make sure that failover %s still stands: %w", id, err)
	}
	return nil
}

// Withdraw ends a failover that has no proof, since its node is back: in one
// transaction it is deleted and archived. It returns etcd.ErrConflict if the
// failover or the node's word changed meanwhile.
func (l *Ledger) Withdraw(ctx context.Context, term cluster.Term, was etcd.Entry[cluster.Failover], f cluster.Failover, recoveringMod int64) error {
	f.Phase = cluster.PhaseWithdrawn
	val, err := etcd.Merge(was.Raw, f)
	if err != nil {
		return err
	}
	key := l.keys.Failover(f.ID())
	_, err = etcd.CommitAs(ctx, l.client, term, []clientv3.Cmp{
		etcd.Unchanged(key, was.Mod),
		etcd.Unchanged(l.keys.Recovering(f.Node), recoveringMod),
	}, []clientv3.Op{
		clientv3.OpDelete(key),
		clientv3.OpDelete(l.keys.Confirm(f.ID())),
		clientv3.OpPut(l.keys.Withdrawn(was.Create), val),
	})
	if err != nil {
		return fmt.Errorf("withdraw failover %s: %w", f.ID(), err)
	}
	return nil
}

func (l *Ledger) swap(s cluster.Swap) ([]clientv3.Cmp, []clientv3.Op, error) {
	var cmps []clientv3.Cmp
	var ops []clientv3.Op
	var oldKey string
	if s.Old != nil {
		oldKey = l.keys.Action(s.Old.Value)
		cmps = append(cmps, etcd.Unchanged(oldKey, s.Old.Mod))
		if s.NodeMod != 0 {
			cmps = append(cmps, etcd.Unchanged(l.keys.Node(s.Old.Value.Node), s.NodeMod))
		}
	}
	if s.New == nil {
		return cmps, append(ops, clientv3.OpDelete(oldKey)), nil
	}
	s.New.V = cluster.RecordVersion
	val, err := etcd.Encode(s.New)
	if err != nil {
		return nil, nil, err
	}
	key := l.keys.Action(*s.New)
	if key != oldKey {
		cmps = append(cmps, etcd.Absent(key))
		if oldKey != "" {
			ops = append(ops, clientv3.OpDelete(oldKey))
		}
	}
	return cmps, append(ops, clientv3.OpPut(key, val)), nil
}

// parallelTxns is how many transactions of one call are under way at once.
const parallelTxns = 4

// Apply carries out swaps in batches, several side by side, a batch being all
// or nothing. A batch with a conflict is tried one by one, so that one stale
// action does not hold the others. It returns how many took effect, and an
// error for the rest (any but etcd.ErrConflict ends it at once).
func (l *Ledger) Apply(ctx context.Context, term cluster.Term, swaps []cluster.Swap) (int, error) {
	batches := inBatches(swaps)
	done := make([]int, len(batches))
	stale := make([][]error, len(done)) // an error of the group would end the other batches
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelTxns)
	for i, batch := range batches {
		g.Go(func() error {
			err := l.applyAll(gctx, term, batch)
			if err == nil {
				done[i] = len(batch)
				return nil
			}
			if !errors.Is(err, etcd.ErrConflict) {
				return err
			}
			if len(batch) == 1 {
				stale[i] = []error{err}
				return nil
			}
			for j := range batch {
				switch err := l.applyAll(gctx, term, batch[j:j+1]); {
				case err == nil:
					done[i]++
				case errors.Is(err, etcd.ErrConflict):
					stale[i] = append(stale[i], err)
				default:
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	if err == nil {
		err = errors.Join(slices.Concat(stale...)...)
	}
	n := 0
	for _, d := range done {
		n += d
	}
	return n, err
}

// inBatches cuts swaps into transactions, each for one node and none of more
// than etcd.MaxOps operations or compares, its guard aside. A node that gets its
// actions a hundred at a time marks, claims and flushes them a hundred at a time;
// spread over all nodes, each transaction would cost every one of them its own.
// The order stays: by the first swap of a batch, and within each node.
func inBatches(swaps []cluster.Swap) [][]cluster.Swap {
	type batch struct{ index, weight int }
	var out [][]cluster.Swap
	filling := map[cluster.NodeID]batch{}
	for _, s := range swaps {
		var to cluster.NodeID
		weight := 1
		switch {
		case s.New == nil:
			to = s.Old.Value.Node
		case s.Old == nil:
			to = s.New.Node
		default:
			to, weight = s.New.Node, 2
		}
		if s.NodeMod != 0 {
			weight++
		}
		b, ok := filling[to]
		if !ok || b.weight+weight > etcd.MaxOps {
			b = batch{index: len(out)}
			out = append(out, nil)
		}
		out[b.index] = append(out[b.index], s)
		b.weight += weight
		filling[to] = b
	}
	return out
}

func (l *Ledger) applyAll(ctx context.Context, term cluster.Term, swaps []cluster.Swap) error {
	var cmps []clientv3.Cmp
	var ops []clientv3.Op
	for _, s := range swaps {
		c, o, err := l.swap(s)
		if err != nil {
			return err
		}
		cmps, ops = append(cmps, c...), append(ops, o...)
	}
	rev, err := etcd.CommitAs(ctx, l.client, term, cmps, ops)
	if err != nil {
		return fmt.Errorf("dispatch %d actions: %w", len(swaps), err)
	}
	l.note(rev)
	return nil
}

// PutBrake publishes, or with nil takes away, the master's word that it holds failovers back.
func (l *Ledger) PutBrake(ctx context.Context, term cluster.Term, b *cluster.Brake) error {
	op := clientv3.OpDelete(l.keys.Brake())
	if b != nil {
		b.V = cluster.RecordVersion
		val, err := etcd.Encode(b)
		if err != nil {
			return err
		}
		op = clientv3.OpPut(l.keys.Brake(), val)
	}
	if _, err := etcd.CommitAs(ctx, l.client, term, nil, []clientv3.Op{op}); err != nil {
		return fmt.Errorf("publish the brake: %w", err)
	}
	return nil
}

// Marks reads the marks that masters have left.
func (l *Ledger) Marks(ctx context.Context) (cluster.Marks, error) {
	return ReadMarks(ctx, l.client, l.keys)
}

// ReadMarks is Marks for those who are no master.
func ReadMarks(ctx context.Context, cl *clientv3.Client, keys etcd.Layout) (m cluster.Marks, err error) {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := cl.Get(ctx, keys.Mark())
	if err != nil {
		return m, fmt.Errorf("read the masters' marks: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return m, nil
	}
	if err := json.Unmarshal(resp.Kvs[0].Value, &m); err != nil {
		return m, fmt.Errorf("read the masters' marks: %w", err)
	}
	return m, nil
}

// PutMarks rewrites them.
func (l *Ledger) PutMarks(ctx context.Context, term cluster.Term, m cluster.Marks) error {
	val, err := etcd.Encode(m)
	if err != nil {
		return err
	}
	if _, err := etcd.CommitAs(ctx, l.client, term, nil, []clientv3.Op{clientv3.OpPut(l.keys.Mark(), val)}); err != nil {
		return fmt.Errorf("leave a mark in etcd: %w", err)
	}
	return nil
}

// Forget deletes failovers that are long over. Their sealed directories stay,
// so their names stay taken.
func (l *Ledger) Forget(ctx context.Context, term cluster.Term, entries []etcd.Entry[cluster.Failover]) error {
	for _, e := range entries {
		key := l.keys.Failover(e.Value.ID())
		_, err := etcd.CommitAs(ctx, l.client, term, []clientv3.Cmp{etcd.Unchanged(key, e.Mod)}, []clientv3.Op{clientv3.OpDelete(key)})
		if err != nil && !errors.Is(err, etcd.ErrConflict) {
			return fmt.Errorf("forget failover %s: %w", e.Value.ID(), err)
		}
	}
	return nil
}

package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// Inbox is one node's side: the actions that it is asked to carry out.
type Inbox struct {
	client *clientv3.Client
	keys   etcd.Layout
	node   cluster.NodeID

	// Actions is a local copy, kept by Run.
	Actions *etcd.Mirror[cluster.Action]
}

// NewInbox returns the inbox of a node; hint is called after changes while Run runs.
func NewInbox(cl *clientv3.Client, keys etcd.Layout, node cluster.NodeID, log *zap.Logger, hint func()) *Inbox {
	return &Inbox{client: cl, keys: keys, node: node, Actions: etcd.NewMirror[cluster.Action](cl, keys.ActionsOf(node), log, hint)}
}

// Run keeps the local copy until the context ends.
func (i *Inbox) Run(ctx context.Context) error { return i.Actions.Run(ctx) }

// Pending returns the actions without an outcome.
func (i *Inbox) Pending() []etcd.Entry[cluster.Action] {
	var out []etcd.Entry[cluster.Action]
	i.Actions.Read(func(entries map[string]etcd.Entry[cluster.Action]) {
		for _, e := range entries {
			if e.Err == nil && e.Value.State != cluster.ActionDone {
				out = append(out, e)
			}
		}
	})
	return out
}

// Has tells whether this very action is still there.
func (i *Inbox) Has(a cluster.Action) bool {
	e, ok := i.Actions.Get(a.Name())
	return ok && e.Err == nil && e.Value.ID == a.ID
}

// Write puts new values over actions that still are as they were read, in
// batches, and returns for each its new revision, or 0 where it had changed.
// It needs no guard: an action belongs to its node from the moment at which it
// is marked, and the compare arbitrates before that. The lease that holds the
// node's alive key must still do so at that moment; ErrNotAlive is returned if
// it does not.
func (i *Inbox) Write(ctx context.Context, lease int64, was []etcd.Entry[cluster.Action], now []cluster.Action) ([]int64, error) {
	revs := make([]int64, len(now))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelTxns)
	for lo := 0; lo < len(now); lo += etcd.MaxOps {
		hi := min(len(now), lo+etcd.MaxOps)
		g.Go(func() error {
			err := i.write(gctx, lease, was[lo:hi], now[lo:hi], revs[lo:hi])
			if err == nil || !errors.Is(err, etcd.ErrConflict) {
				return err
			}
			for k := lo; k < hi; k++ {
				if err := i.write(gctx, lease, was[k:k+1], now[k:k+1], revs[k:k+1]); err != nil && !errors.Is(err, etcd.ErrConflict) {
					return err
				}
			}
			return nil
		})
	}
	return revs, g.Wait()
}

// ErrNotAlive is returned if this node acts under a lease that does not hold its alive key.
var ErrNotAlive = cluster.ErrNotAlive

func (i *Inbox) write(ctx context.Context, lease int64, was []etcd.Entry[cluster.Action], now []cluster.Action, revs []int64) error {
	alive := clientv3.Compare(clientv3.LeaseValue(i.keys.Alive(i.node)), "=", lease)
	cmps := []clientv3.Cmp{alive}
	var ops []clientv3.Op
	for k := range now {
		key := i.keys.Action(now[k])
		val, err := etcd.Merge(was[k].Raw, now[k])
		if err != nil {
			return err
		}
		cmps = append(cmps, etcd.Unchanged(key, was[k].Mod))
		ops = append(ops, clientv3.OpPut(key, val))
	}
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	// The whole key: an answer with keys only does not tell the lease.
	resp, err := i.client.Txn(ctx).If(cmps...).Then(ops...).Else(clientv3.OpGet(i.keys.Alive(i.node))).Commit()
	if err != nil {
		return fmt.Errorf("write %d actions: %w", len(now), err)
	}
	if resp.Succeeded {
		for k := range revs {
			revs[k] = resp.Header.Revision
		}
		return nil
	}
	kvs := resp.Responses[0].GetResponseRange().GetKvs()
	if len(kvs) == 0 || kvs[0].Lease != lease {
		return ErrNotAlive
	}
	return etcd.ErrConflict
}

// Read reads one action anew; ok is false if it is gone.
func (i *Inbox) Read(ctx context.Context, a cluster.Action) (e etcd.Entry[cluster.Action], ok bool, err error) {
	return readAction(ctx, i.client, i.keys.Action(a))
}

func readAction(ctx context.Context, cl *clientv3.Client, key string) (e etcd.Entry[cluster.Action], ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := cl.Get(ctx, key)
	if err != nil {
		return e, false, fmt.Errorf("read action %s: %w", key, err)
	}
	if len(resp.Kvs) == 0 {
		return e, false, nil
	}
	kv := resp.Kvs[0]
	e = etcd.Entry[cluster.Action]{Raw: kv.Value, Mod: kv.ModRevision, Create: kv.CreateRevision}
	if err := json.Unmarshal(kv.Value, &e.Value); err != nil {
		return e, true, fmt.Errorf("read action %s: %w", key, err)
	}
	return e, true, nil
}

var (
	// ErrBusy is returned by Ask while another action for the same resource is under way.
	ErrBusy = errors.New("another action for this resource is under way")
	// ErrNodeAway is returned by Ask if the node that has to act is not Active.
	ErrNodeAway = errors.New("the node is not Active, so its daemon cannot act")
)

// unread tells whether a finished action is the master's own, which nobody reads:
// that an owner did not let go of a resource, or a node has adopted one.
func unread(a cluster.Action) bool {
	return a.State == cluster.ActionDone && (a.Verb == cluster.VerbAdopt || a.Verb == cluster.VerbGiveBack && a.Adopt && a.Outcome != cluster.OutcomeOK)
}

// Ask sends an operator's action to a living node and follows it until its
// outcome or the end of the context; progress is called with each state that
// was seen. The action is removed afterwards, unless it is still under way.
func Ask(ctx context.Context, cl *clientv3.Client, keys etcd.Layout, a cluster.Action, progress func(cluster.Action)) (cluster.Action, error) {
	a.V, a.ID, a.State = cluster.RecordVersion, NewID(), cluster.ActionNew
	a.CreatedAt = time.Now().UTC().Format(time.RFC3339Nano)
	val, err := etcd.Encode(a)
	if err != nil {
		return a, err
	}
	key := keys.Action(a)
	_, err = etcd.Commit(ctx, cl, []clientv3.Cmp{
		etcd.Absent(key),
		clientv3.Compare(clientv3.CreateRevision(keys.Alive(a.Node)), ">", 0),
	}, []clientv3.Op{clientv3.OpPut(key, val)})
	switch {
	case errors.Is(err, etcd.ErrConflict):
		e, ok, rerr := readAction(ctx, cl, key)
		if rerr == nil && ok && unread(e.Value) {
			_, err = etcd.Commit(ctx, cl, []clientv3.Cmp{
				etcd.Unchanged(key, e.Mod),
				clientv3.Compare(clientv3.CreateRevision(keys.Alive(a.Node)), ">", 0),
			}, []clientv3.Op{clientv3.OpPut(key, val)})
			if err == nil {
				break
			}
		}
		if ok { // also one that cannot be read is in the way
			return a, ErrBusy
		}
		return a, ErrNodeAway
	case err != nil:
		// The write may have happened: the id tells whether the key is ours.
		if e, ok, rerr := readAction(ctx, cl, key); rerr != nil || !ok || e.Value.ID != a.ID {
			return a, fmt.Errorf("send the action: %w", err)
		}
	}
	return follow(ctx, cl, keys, a, progress)
}

// follow polls: an operator's command is rare, and a poll cannot miss an answer.
func follow(ctx context.Context, cl *clientv3.Client, keys etcd.Layout, a cluster.Action, progress func(cluster.Action)) (cluster.Action, error) {
	key := keys.Action(a)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if a.Verb == cluster.VerbLeave && left(ctx, cl, keys, a.Node) {
			// A node that has left cannot answer any more; its record going is the answer.
			a.State, a.Outcome = cluster.ActionDone, cluster.OutcomeOK
			_, err := etcd.Commit(ctx, cl, nil, []clientv3.Op{clientv3.OpDelete(key)})
			return a, err
		}
		e, ok, err := readAction(ctx, cl, key)
		if err == nil {
			if !ok || e.Value.ID != a.ID {
				return a, fmt.Errorf("the action for %s disappeared before its outcome was seen; 'shaman events' tells what became of it", a.Name())
			}
			progress(e.Value)
			a = e.Value
			if a.State == cluster.ActionDone && a.Verb == cluster.VerbGiveBack && a.Outcome == cluster.OutcomeOK {
				return a, nil // the master turns it into the action for the next node
			}
			if a.State == cluster.ActionDone {
				_, err := etcd.Commit(ctx, cl, []clientv3.Cmp{etcd.Unchanged(key, e.Mod)}, []clientv3.Op{clientv3.OpDelete(key)})
				if err != nil && !errors.Is(err, etcd.ErrConflict) {
					return a, fmt.Errorf("remove the finished action: %w", err)
				}
				return a, nil
			}
		}
		select {
		case <-ctx.Done():
			return a, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func left(ctx context.Context, cl *clientv3.Client, keys etcd.Layout, n cluster.NodeID) bool {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := cl.Get(ctx, keys.Node(n), clientv3.WithKeysOnly())
	return err == nil && len(resp.Kvs) == 0
}

package fencing

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// Slots are the order and answer slots of the nodes, on the mount.
type Slots interface {
	ReadOrder(ctx context.Context, n cluster.NodeID, deadline time.Duration) (cluster.Order, error)
	WriteOrder(ctx context.Context, n cluster.NodeID, o cluster.Order, deadline time.Duration) error
	ReadAnswer(ctx context.Context, n cluster.NodeID, deadline time.Duration) (cluster.Order, error)
}

// Storage proves a node harmless through the mount: the node is ordered to stop
// everything, and its answer, for this very failover, says that it has.
//
// It works for nodes that live and have lost etcd only. A node that is silent
// gets the order all the same: if it wakes up, it obeys before it does anything.
type Storage struct {
	Slots  Slots
	Beats  func(cluster.NodeID) bool // the heartbeat goes on, or cannot be judged; must not block
	Timing func() cluster.Timing
	Budget func() time.Duration // STOP_BUDGET
}

// Name is the word in FENCE_METHODS.
func (*Storage) Name() string { return "storage" }

// Gentle says that this method rests on the node's own doing, which others must
// not cut short.
func (*Storage) Gentle() bool { return true }

// answerSlack is how much longer than STOP_BUDGET an answer may take: the order
// has to be read, and the answer written.
const answerSlack = time.Second

// Prove orders, again and again, until the answer is there. It returns an error
// once the node is silent, or has had its time.
func (f *Storage) Prove(ctx context.Context, t cluster.FenceTarget, check func() error) (string, error) {
	order := cluster.Order{V: cluster.RecordVersion, Failover: t.Failover.String(), Inc: t.Failover.Incarnation, Serial: t.Serial, State: cluster.Ordered}
	begin := boottime.Now()
	for {
		if err := check(); err != nil {
			return "", err
		}
		timing := f.Timing()
		answered, err := f.ask(ctx, t.Node, order, timing.Probe)
		switch {
		case answered:
			return fmt.Sprintf("the node stopped everything and answered the order for failover %s (serial %d) after %s", order.Failover, order.Serial, boottime.Since(begin).Round(time.Millisecond)), nil
		case ctx.Err() != nil:
			return "", context.Cause(ctx)
		case !f.Beats(t.Node):
			return "", errors.Join(errors.New("its heartbeat is silent, so nobody obeys the order that lies in its slot"), err)
		case boottime.Since(begin) > f.Budget()+answerSlack+timing.Silence():
			return "", errors.Join(fmt.Errorf("it did not answer the order to stop everything within STOP_BUDGET (%s)", f.Budget()), err)
		}
		if err := boottime.WaitUntil(ctx, boottime.Now().Add(timing.Heartbeat)); err != nil {
			return "", err
		}
	}
}

// ask makes sure that the order stands, and reads the answer.
func (f *Storage) ask(ctx context.Context, n cluster.NodeID, order cluster.Order, deadline time.Duration) (answered bool, err error) {
	have, err := f.Slots.ReadOrder(ctx, n, deadline)
	if err == nil && have != order {
		err = f.Slots.WriteOrder(ctx, n, order, deadline)
	}
	if err != nil {
		return false, err
	}
	got, err := f.Slots.ReadAnswer(ctx, n, deadline)
	want := order
	want.State = cluster.Quiesced
	return err == nil && got == want, err
}

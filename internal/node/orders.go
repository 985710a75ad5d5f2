package node

import (
	"context"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// ordered tells whether a master's order to stop everything stands for this
// incarnation and is not answered yet. One that is older than the last admission
// belongs to a failover that was withdrawn.
func (n *Node) ordered(inc cluster.Incarnation) (cluster.Order, bool) {
	o, mem := n.Heart.Order(), n.State.get()
	due := o.State == cluster.Ordered && inc != 0 && o.Inc == inc && o.Serial > mem.Serial && o.Serial > mem.Answered
	return o, due
}

// answerTries bounds how often an answer is tried to be written; the order stands,
// so the next round begins anew after that.
const answerTries = 5

// answer tells the master that everything is stopped, and remembers that.
func (n *Node) answer(ctx context.Context, order cluster.Order) error {
	ctx = context.WithoutCancel(ctx)
	order.State = cluster.Quiesced
	var err error
	for range answerTries {
		if err = n.Mount.WriteAnswer(ctx, n.Self, order, n.Settings().Timing.Probe); err == nil {
			break
		}
		if err := sleep(ctx, n.Settings().Timing.Heartbeat); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("answer the master's order: %w", err)
	}
	n.Log.Warn("told the master that everything here is stopped", zap.String("failover", order.Failover))
	n.Event(cluster.Event{Kind: "order-answered", Subject: n.Self, Failover: order.Failover, Message: "everything is stopped; its VEs can be started elsewhere"})
	return n.State.update(func(m *memory) { m.Answered = max(m.Answered, order.Serial) })
}

// obey follows a master's orders while this node is not admitted: its daemon was
// restarted, or its lease is gone and its VEs still run. An admitted node's guard
// does the same. Obeyed whatever the node believes.
func (n *Node) obey(ctx context.Context) error {
	for {
		if err := n.obeyOnce(ctx); err != nil {
			n.Log.Error("could not obey the master's order to stop everything; tried again", zap.Error(err))
		}
		if err := boottime.WaitUntil(ctx, boottime.Now().Add(min(time.Second, n.Settings().Timing.Heartbeat))); err != nil {
			return err
		}
	}
}

func (n *Node) obeyOnce(ctx context.Context) error {
	if _, due := n.ordered(n.State.get().Incarnation); !due {
		return nil
	}
	// Until the answer is written: the gate that closes, and the VEs that are
	// stopped, must not be those of the next incarnation.
	n.turn.Lock()
	defer n.turn.Unlock()
	inc := n.State.get().Incarnation
	order, due := n.ordered(inc)
	if !due || n.Admitted() != nil {
		return nil // an admitted node's guard sees the order
	}
	if err := n.State.update(func(m *memory) { m.Closed = max(m.Closed, inc) }); err != nil {
		return err
	}
	reason := fmt.Errorf("the master ordered it, for failover %s", order.Failover)
	if err := n.quiesce(ctx, inc, reason); err != nil {
		return err
	}
	if err := n.answer(ctx, order); err != nil {
		return err
	}
	if n.Settings().Reboot {
		n.reboot()
	}
	return nil
}

package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// Retire is the end of a daemon that is not coming back at once: the node is
// Inactive from then on, its VEs run on, and no failover follows. Call it after
// Run has returned, with the admission that there was.
func (n *Node) Retire(ctx context.Context, a Admitted) error {
	err := n.Members.Stop(ctx, n.Self, a.Lease.ID(), cluster.StopInactive, time.Now().UTC().Format(time.RFC3339))
	if err != nil {
		return err
	}
	if err := n.State.update(func(m *memory) { m.Lease = 0 }); err != nil {
		n.Log.Warn("the next daemon will ask for a lease that is gone", zap.Error(err))
	}
	return a.Lease.Revoke(ctx)
}

// Leave ends the membership of this node. Resources that are left are taken out
// of high availability, which the caller has made sure is wanted; their VEs go on.
func (n *Node) Leave(ctx context.Context) error {
	a := n.Admitted()
	if a == nil {
		return errors.New("leave: this node is not admitted")
	}
	reopen, err := n.Gate.Pause(ctx)
	if err == nil {
		err = n.Members.Leave(ctx, n.Self, a.Lease.ID())
	}
	if err != nil {
		if reopen != nil {
			reopen()
		}
		return fmt.Errorf("leave: %w", err)
	}
	n.Event(cluster.Event{Kind: "left", Subject: n.Self, Message: "left the cluster"})
	if err := n.State.update(func(m *memory) { m.Lease, m.Starts = 0, nil }); err != nil {
		n.Log.Warn("cannot clear the state of this boot", zap.Error(err))
	}
	return n.Mount.RemoveRepository(ctx, n.Self)
}

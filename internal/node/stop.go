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
// Inactive from then on, its VEs run on, and no failover follows; or Down, if its host
// is shutting down and everything was stopped. Call it after
// Run has returned, with the lease of the last admission; nil stands for that of
// the daemon before this one, which this one did not get to resume. done is false
// if there is nothing to record: the node was not admitted, or has closed its gate
// for good and is to be failed over. With an error
// nothing is recorded, and an armed watchdog stays armed; try again.
func (n *Node) Retire(ctx context.Context, l Lease) (done bool, err error) {
	id := n.State.get().Lease
	if l != nil {
		id = l.ID()
	}
	if id == 0 || n.isDown() {
		return false, n.letGo(ctx)
	}
	kind := cluster.StopInactive
	switch {
	case n.shuttingDown() && n.State.harmless():
		kind = cluster.StopDown // that could not be recorded before
	case n.State.quiesced():
		// This node comes back with the next incarnation only, for which somebody has to
		// take its repository over. Nobody does that of one that said goodbye.
		if l != nil {
			if err := l.Revoke(ctx); err != nil {
				n.Log.Debug("the lease ends by itself", zap.Error(err))
			}
		}
		return false, n.letGo(ctx)
	}
	err = n.Members.Stop(ctx, n.Self, id, kind, time.Now().UTC().Format(time.RFC3339))
	if errors.Is(err, cluster.ErrOtherHolder) && (l == nil || n.Watchdog.State().Armed) {
		return false, n.letGo(ctx)
	}
	if err != nil {
		return false, err
	}
	n.Watchdog.Disarm() // the same transaction took it out of the record
	if err := n.State.update(func(m *memory) { m.Lease = 0 }); err != nil {
		n.Log.Warn("the next daemon will ask for a lease that is gone", zap.Error(err))
	}
	if l == nil {
		return true, nil // the key is gone; the lease itself ends by itself
	}
	if err := l.Revoke(ctx); err != nil {
		n.Log.Debug("the lease ends by itself", zap.Error(err))
	}
	return true, nil
}

// ShutDown is the orderly end of this host: all its VEs are asked to shut down,
// and after ACTION_TIMEOUT stopped by force; then etcd records that the node is
// Down, which is as good as a proof. It returns when that is done or cannot be
// done. The daemon is not admitted again before the next boot.
func (n *Node) ShutDown(ctx context.Context) error {
	n.mu.Lock()
	if n.down == nil {
		n.down = make(chan struct{})
	}
	begun := false
	select {
	case <-n.down:
		begun = true
	default:
		close(n.down)
	}
	n.mu.Unlock()
	if !begun {
		n.Log.Info("this host is shutting down; stopping its VEs")
	}
	for n.Admitted() != nil {
		if err := sleep(ctx, shutdownTick); err != nil {
			return fmt.Errorf("shut down: %w", err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gone
}

// shutdownTick is how often ShutDown looks whether the admission has ended.
const shutdownTick = 20 * time.Millisecond

func (n *Node) shutdownBegun() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down == nil {
		n.down = make(chan struct{})
	}
	return n.down
}

func (n *Node) shuttingDown() bool {
	select {
	case <-n.shutdownBegun():
		return true
	default:
		return false
	}
}

// isDown tells whether etcd has recorded that the host went down in good order.
func (n *Node) isDown() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.recorded
}

// goDown ends an admission because the host is shutting down.
func (n *Node) goDown(ctx context.Context, a Admitted, endWork context.CancelCauseFunc) error {
	ctx = context.WithoutCancel(ctx) // the end of the work ends it
	endWork(ErrDown)                 // from here on no VE that stops is taken for one that an operator has stopped
	err := n.stopGently(ctx)
	if err != nil {
		n.Log.Warn("not all VEs shut down by themselves; stopping them by force", zap.Error(err))
	}
	if err = n.quiesce(ctx, a.Incarnation, ErrDown); err == nil {
		err = n.recordDown(ctx, a)
	}
	if err == nil {
		n.Watchdog.Disarm() // nothing runs here any more
		n.Event(cluster.Event{Kind: "down", Subject: n.Self, Message: "shut down in good order; everything is stopped"})
		if uerr := n.State.update(func(m *memory) { m.Lease = 0 }); uerr != nil {
			n.Log.Warn("a daemon that is started before the next boot asks for a lease that is gone", zap.Error(uerr))
		}
		rctx, cancel := context.WithTimeout(ctx, revokeTime)
		defer cancel()
		_ = a.Lease.Revoke(rctx) // it ends by itself
	} else {
		n.Log.Error("the shutdown of this host could not be recorded; the others have to find out by themselves that nothing runs here", zap.Error(err))
	}
	n.mu.Lock()
	n.gone, n.recorded = err, err == nil
	n.mu.Unlock()
	return errors.Join(ErrDown, err)
}

// recordDown tries for as long as the alive key lasts without a renewal.
func (n *Node) recordDown(ctx context.Context, a Admitted) error {
	ctx, cancel := context.WithTimeout(ctx, n.Settings().Timing.Lease)
	defer cancel()
	for {
		err := n.Members.Stop(ctx, n.Self, a.Lease.ID(), cluster.StopDown, time.Now().UTC().Format(time.RFC3339))
		if err == nil || errors.Is(err, cluster.ErrOtherHolder) || sleep(ctx, retryPause) != nil {
			return err
		}
	}
}

// stopGently asks all VEs that are ours to shut down, and waits for them.
func (n *Node) stopGently(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, n.Settings().ActionTimeout)
	defer cancel()
	if err := n.Gate.Close(ctx); err != nil {
		return err
	}
	return n.stopOurs(ctx, false)
}

// letGo disarms the watchdog of a node that is not admitted: because nothing runs
// here any more, or because etcd has recorded that nobody may count on it.
func (n *Node) letGo(ctx context.Context) error {
	if !n.Watchdog.State().Armed {
		return nil
	}
	if !n.State.harmless() {
		if err := n.Members.DisownWatchdog(ctx, n.Self); err != nil {
			return err
		}
	}
	n.Watchdog.Disarm()
	return nil
}

// Leave ends the membership of this node, unless ready objects: it is asked when
// the gate is closed, so that what it sees stays so. Resources that are left are
// taken out of high availability; their VEs go on.
func (n *Node) Leave(ctx context.Context, ready func(context.Context) error) error {
	a := n.Admitted()
	if a == nil {
		return errors.New("leave: this node is not admitted")
	}
	reopen, err := n.Gate.Pause(ctx)
	if err == nil {
		err = ready(ctx)
	}
	if err == nil {
		err = n.Members.Leave(ctx, n.Self, a.Lease.ID())
	}
	if err != nil {
		if reopen != nil {
			reopen()
		}
		return fmt.Errorf("leave: %w", err)
	}
	n.Watchdog.Disarm() // the record is gone, and nobody counts on it
	n.setLeft(true)
	n.Event(cluster.Event{Kind: "left", Subject: n.Self, Message: "left the cluster"})
	if err := n.State.update(func(m *memory) { m.Lease, m.Starts = 0, nil }); err != nil {
		n.Log.Warn("cannot clear the state of this boot", zap.Error(err))
	}
	if err := n.Mount.RemoveRepository(ctx, n.Self); err != nil {
		n.Log.Warn("this node has left; its repository on the mount could not be removed, and is used again if it joins again", zap.Error(err))
	}
	return nil
}

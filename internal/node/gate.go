// Package node is the life of one member: from the daemon's start through
// Recovering and admission to the end of its lease, and again.
//
// It keeps the two channels by which others see that this node lives: the lease
// in etcd, and the heartbeat on the mount (Heart). It owns the start gate, and
// it quiesces: closes the gate, waits for those who hold it, then stops
// everything by force. In that order; stopping before the workers have ended is
// how a VE is started after "everything is stopped" was said.
package node

import (
	"context"
	"errors"
	"sync"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// ErrGateClosed is returned while this node must not start, register or move anything.
var ErrGateClosed = errors.New("the start gate is closed")

// Gate lets work through while the node may act in one incarnation. The zero
// gate is closed.
type Gate struct {
	mu      sync.Mutex
	open    bool
	inc     cluster.Incarnation
	holders int
	closed  int           // how often it was closed
	idle    chan struct{} // made by Close, closed when the last holder is gone
}

// Open lets work of this incarnation through, and of no other.
func (g *Gate) Open(inc cluster.Incarnation) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open, g.inc = true, inc
}

// Hold keeps the gate from closing until release is called, which is safe to
// call once only.
func (g *Gate) Hold(inc cluster.Incarnation) (release func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.open || g.inc != inc {
		return nil, ErrGateClosed
	}
	g.holders++
	return g.release, nil
}

func (g *Gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holders--
	if g.holders == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// Close lets nothing through any more and waits until nobody holds the gate. An
// error means that somebody still does; the gate is closed all the same.
func (g *Gate) Close(ctx context.Context) error {
	g.mu.Lock()
	g.open = false
	g.closed++
	if g.holders == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Pause closes the gate as Close does. reopen opens it again, unless somebody
// else has closed or opened it since.
func (g *Gate) Pause(ctx context.Context) (reopen func(), err error) {
	g.mu.Lock()
	open, inc, closed := g.open, g.inc, g.closed+1
	g.mu.Unlock()
	if !open {
		return nil, ErrGateClosed
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.closed == closed && g.inc == inc {
			g.open = true
		}
	}, g.Close(ctx)
}

package libvirt

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

const (
	reconnectMin = 100 * time.Millisecond
	reconnectMax = 10 * time.Second
	// aliveEvery is how often a watch's connection is tried: a libvirtd that hangs
	// keeps it open and says nothing.
	aliveEvery   = 10 * time.Second
	aliveTimeout = 10 * time.Second
)

// Watch implements hypervisor.Driver.
func (d *Driver) Watch(ctx context.Context, hint func()) error {
	pause, said := reconnectMin, false
	for {
		began := time.Now()
		err := d.watchOnce(ctx, hint)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Since(began) > aliveEvery {
			pause, said = reconnectMin, false
		}
		if !said { // once, not at each attempt: a libvirtd can be down for days
			d.o.Logger.Warn("no events from libvirt; connecting again, and changes are seen later until then", zap.Error(err))
			said = true
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause + rand.N(pause)):
		}
		pause = min(2*pause, reconnectMax)
	}
}

// watchOnce passes on the events of one connection until that, or ctx, ends.
func (d *Driver) watchOnce(ctx context.Context, hint func()) error {
	c, err := d.pool.open(ctx)
	if err != nil {
		return err
	}
	// Not ended by ctx: the library would take its subscriptions back just when the
	// connection is closed, and libvirtd (seen with 9.0) can crash of the two at once.
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	type subscription struct {
		life <-chan golibvirt.DomainEventLifecycleMsg
		meta <-chan any
		err  error
	}
	done := make(chan subscription, 1)
	go func() {
		var s subscription
		if s.life, s.err = c.LifecycleEvents(sctx); s.err == nil {
			s.meta, _ = c.SubscribeEvents(sctx, golibvirt.DomainEventIDMetadataChange, nil) // without it the next pass sees it
		}
		done <- s
	}()
	var s subscription
	answered := false
	select {
	case s = <-done:
		answered = true
	case <-ctx.Done():
	case <-time.After(dialTimeout):
		s.err = errors.New("libvirtd does not answer")
	}
	// In this order: the library's goroutines end when the connection has, and
	// what they still hand over is taken, whoever has given up waiting for them.
	defer func() {
		c.wire.Close()
		cancel()
		go func() {
			if !answered {
				late := <-done
				s.life, s.meta = late.life, late.meta
			}
			drain(s.life)
			drain(s.meta)
		}()
	}()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.err != nil {
		return fmt.Errorf("%w: ask libvirt for its events: %w", cluster.ErrCannotAsk, s.err)
	}
	return d.events(ctx, c, s.life, s.meta, hint)
}

func drain[T any](c <-chan T) {
	if c == nil {
		return
	}
	for range c { // only to its end
	}
}

func (d *Driver) events(ctx context.Context, c *conn, life <-chan golibvirt.DomainEventLifecycleMsg, meta <-chan any, hint func()) error {
	d.defs.forgetAll()
	end := d.defs.watch()
	defer end()
	hint() // whatever happened before was not seen
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-c.wire.dead:
			return fmt.Errorf("%w: libvirtd has ended the connection", cluster.ErrCannotAsk)
		case e, ok := <-life:
			if !ok {
				return fmt.Errorf("%w: libvirt sends no more events", cluster.ErrCannotAsk)
			}
			d.defs.forget(uuid(e.Dom.UUID)) // it may have been defined, or started with another definition
			hint()
		case e, ok := <-meta:
			if !ok {
				meta = nil
				continue
			}
			if m, ok := e.(*golibvirt.DomainEventCallbackMetadataChangeMsg); ok {
				d.defs.forget(uuid(m.Dom.UUID))
				hint()
			}
		case <-alive.C:
			pctx, cancel := context.WithTimeout(ctx, aliveTimeout)
			err := c.ping(pctx)
			cancel()
			if err != nil {
				return fmt.Errorf("%w: libvirtd does not answer: %w", cluster.ErrCannotAsk, err)
			}
		}
	}
}

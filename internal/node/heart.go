package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// Prober proves contact with the mount once: my heartbeat written durably, my
// order slot read fresh, on the file system of my cluster. former are the nonces
// of earlier processes that may still stand in the slot.
type Prober func(ctx context.Context, hb cluster.Heartbeat, former []string, deadline time.Duration) (cluster.Order, error)

// Heart beats on the mount. All methods but Run may be called concurrently.
type Heart struct {
	Probe  Prober
	Peek   func(ctx context.Context, deadline time.Duration) (cluster.Heartbeat, error) // reads the own slot
	Timing func() cluster.Timing
	// Contacted is told of each proven contact, by its moment of issue; it must not block.
	Contacted func(issued boottime.Time)
	Log       *zap.Logger

	// Round is the moment at which the last round began, for who looks whether it
	// still goes round.
	Round atomic.Int64

	mu      sync.Mutex
	beat    cluster.Heartbeat
	former  []string
	last    boottime.Time // moment of issue of the last contact
	took    time.Duration
	err     error
	foreign error
	since   boottime.Time // when trouble began; 0 = none
	order   cluster.Order // as the last contact found it
}

// NewHeart returns a heart that has not beaten.
//
// former are the nonces of the daemons of this boot before this one.
func NewHeart(probe Prober, peek func(context.Context, time.Duration) (cluster.Heartbeat, error), timing func() cluster.Timing, beat cluster.Heartbeat, former []string, log *zap.Logger) *Heart {
	return &Heart{Probe: probe, Peek: peek, Timing: timing, Contacted: func(boottime.Time) {}, Log: log, beat: beat, former: former, err: errors.New("the mount was not reached yet")}
}

// Run beats until the context ends.
func (h *Heart) Run(ctx context.Context) error {
	if err := h.listen(ctx); err != nil {
		return err
	}
	for {
		t := h.Timing()
		issued := boottime.Now()
		h.Round.Store(int64(issued))
		h.once(ctx, t.Probe)
		if err := boottime.WaitUntil(ctx, issued.Add(t.Heartbeat)); err != nil {
			return err
		}
	}
}

// listen makes sure, before the first beat, that nobody else beats in this
// node's slot: whoever wrote it last must be a daemon of this boot that has
// ended, or fall silent for a while.
func (h *Heart) listen(ctx context.Context) error {
	for {
		t := h.Timing()
		h.Round.Store(int64(boottime.Now()))
		first, err := h.Peek(ctx, t.Probe)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch {
		case errors.Is(err, cluster.ErrTorn):
			// Never written, or somebody is just writing it.
			if err := boottime.WaitUntil(ctx, boottime.Now().Add(t.Heartbeat/2)); err != nil {
				return err
			}
			if _, again := h.Peek(ctx, t.Probe); errors.Is(again, cluster.ErrTorn) {
				return nil
			}
			continue
		case err == nil && slices.Contains(h.former, first.Nonce):
			return nil
		case err == nil:
			h.Round.Store(int64(boottime.Now()))
			if err := boottime.WaitUntil(ctx, boottime.Now().Add(t.Heartbeat*5/2)); err != nil {
				return err
			}
			h.Round.Store(int64(boottime.Now()))
			var second cluster.Heartbeat
			if second, err = h.Peek(ctx, t.Probe); err == nil {
				if second == first {
					h.mu.Lock()
					h.former = append(h.former, first.Nonce)
					h.mu.Unlock()
					return nil
				}
				h.mu.Lock()
				h.foreign = fmt.Errorf("%w: boot %s, hardware %s", cluster.ErrForeignNonce, second.Boot, second.HW)
				h.mu.Unlock()
				h.Log.Error("duplicate-host-id: another machine uses this node's host id; this daemon does not beat", zap.Error(h.foreign))
			}
		}
		if err != nil {
			h.mu.Lock()
			h.err = err
			h.mu.Unlock()
		}
		if err := boottime.WaitUntil(ctx, boottime.Now().Add(t.Heartbeat)); err != nil {
			return err
		}
	}
}

func (h *Heart) once(ctx context.Context, deadline time.Duration) {
	h.mu.Lock()
	h.beat.Seq++
	beat, former := h.beat, h.former
	h.mu.Unlock()
	issued := boottime.Now()
	order, err := h.Probe(ctx, beat, former, deadline)
	if ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.err
	h.took = boottime.Since(issued)
	h.err = err
	switch {
	case err == nil:
		h.last, h.former, h.foreign, h.since, h.order = issued, nil, nil, 0, order
		h.Contacted(issued)
		if was != nil {
			h.Log.Info("the mount is in contact")
		}
	case errors.Is(err, cluster.ErrForeignNonce):
		h.foreign = err
		fallthrough
	default:
		if h.since == 0 {
			h.since = issued
		}
		if was == nil || errors.Is(err, cluster.ErrForeignNonce) {
			h.Log.Error("lost contact with the mount; VEs run on, nothing is started or moved", zap.Error(err))
		}
	}
}

// Contact returns the moment of the last contact, and what is wrong since then.
func (h *Heart) Contact() (boottime.Time, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last, h.err
}

// Order is what the last contact found in this node's order slot.
func (h *Heart) Order() cluster.Order {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.order
}

// Foreign returns an error once another process was seen to write this node's
// heartbeat.
func (h *Heart) Foreign() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.foreign
}

// Mount is how the contact is now: lost after two probes in a row that failed,
// slow while they take more than half of their deadline.
func (h *Heart) Mount() cluster.Mount {
	t := h.Timing()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.last == 0, h.err != nil && boottime.Since(h.last) > t.Heartbeat+t.Probe:
		return cluster.MountLost
	case h.err != nil, h.took > t.Probe/2:
		return cluster.MountSlow
	}
	return cluster.MountOK
}

// InContact returns why a node that must have the mount has not, or nil: the
// last contact is at most SELF_FENCE_TIMEOUT old.
func (h *Heart) InContact() error {
	last, err := h.Contact()
	if last == 0 || boottime.Since(last) > h.Timing().SelfFence {
		return errors.Join(errors.New("the mount is out of contact"), err)
	}
	return nil
}

// Tell sets what the next beats say.
func (h *Heart) Tell(inc cluster.Incarnation, clean bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.beat.Inc, h.beat.Clean = inc, clean
}

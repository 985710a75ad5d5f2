package failover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// apply carries one step out. Every step can be carried out twice.
func (m *term) apply(ctx context.Context, o Observation, s Step) error {
	log := m.Log.With(zap.String("failover", s.Failover.String()), zap.String("node", o.name(s.Failover.Node)), zap.Int64("epoch", int64(m.Epoch)))
	switch s.Do {
	case ActFence:
		m.prover.start(ctx, cluster.FenceTarget{
			Node: s.Failover.Node, Name: o.name(s.Failover.Node), Failover: s.Failover, Serial: s.Was.Create,
			Watchdog: o.Nodes[s.Failover.Node].Value.Watchdog, LostFor: o.lostFor(s.Failover.Node),
		}, s.Delay, func() error {
			if err := m.mayAct(ctx); err != nil {
				return err
			}
			// By etcd's own word: the copy that was decided upon may be old, and what is
			// asked here cuts the power of a node that may be back.
			return m.Ledger.Wanted(ctx, m.Term, s.Failover, s.Was.Create)
		})
		return nil
	case ActOpen:
		if err := m.mark(ctx, m.Term); err != nil {
			return err
		}
		m.At("open:before")
		err := m.Ledger.Open(ctx, m.Term, s.Opening)
		m.At("open:after")
		if err == nil {
			log.Warn("failover opened", zap.String("reason", s.Reason))
			m.event(s, "failover-open", fmt.Sprintf("node %s: %s; proving it harmless", o.name(s.Failover.Node), s.Reason))
		}
		return err
	case ActWithdraw:
		m.prover.end(s.Failover) // first: a method that goes on would cut the power of a node that is back
		// An etcd that is put back to before this must not pass for the present one: the
		// failover would be open again, and an answer to it may lie in the node's slot.
		if err := m.mark(ctx, m.Term); err != nil {
			return err
		}
		err := m.Ledger.Withdraw(ctx, m.Term, s.Was, s.Now, s.Mod)
		if err == nil {
			log.Info("failover withdrawn", zap.String("reason", s.Reason))
			m.event(s, "failover-withdrawn", fmt.Sprintf("node %s: %s", o.name(s.Failover.Node), s.Reason))
			m.Metrics.Done.WithLabelValues("withdrawn").Inc()
		}
		return err
	case ActUpdate:
		return m.update(ctx, log, s)
	case ActSeal:
		return m.seal(ctx, log, o, s)
	case ActQuarantine:
		return m.quarantine(ctx, log, o, s)
	case ActDispatch:
		return m.dispatch(ctx, s)
	case ActFinish:
		return m.finish(ctx, log, s)
	case ActBrake:
		if err := m.Ledger.PutBrake(ctx, m.Term, s.Brake); err != nil {
			return err
		}
		if s.Brake == nil {
			m.Log.Info("failovers go on", zap.String("reason", s.Reason))
			m.event(s, "brake-off", s.Reason)
		} else {
			m.Log.Error("failovers are held back", zap.String("reason", s.Reason))
			m.event(s, "brake-on", s.Reason)
		}
		return nil
	case ActForget:
		return m.Ledger.Forget(ctx, m.Term, s.Old)
	}
	return fmt.Errorf("apply a step that does not exist: %q", s.Do)
}

// mayAct is asked right before what cannot be taken back: a machine that was
// suspended may not have noticed yet that its mastership is over.
func (m *term) mayAct(ctx context.Context) error {
	if ctx.Err() == nil && !m.Valid() {
		return errors.New("mastership cannot be proven any more: the lease is not valid")
	}
	return context.Cause(ctx)
}

func (m *term) event(s Step, kind, msg string) {
	ev := cluster.Event{Kind: kind, Epoch: m.Epoch, Message: msg, Subject: s.Failover.Node}
	if s.Failover.Node != "" {
		ev.Failover = s.Failover.String()
	}
	m.Event(ev)
}

func (m *term) update(ctx context.Context, log *zap.Logger, s Step) error {
	proven := s.Now.Proof != "" && s.Was.Value.Proof == ""
	if proven {
		m.At("proof:before")
	}
	if err := m.Ledger.Update(ctx, m.Term, s.Was, s.Now, s.Mod, s.Swaps...); err != nil {
		return err
	}
	if proven {
		m.At("proof:after")
	}
	m.counted[s.Failover] = boottime.Now()
	switch {
	case proven:
		log.Info("fenced", zap.String("method", s.Now.Proof), zap.String("evidence", s.Now.Evidence))
		m.event(s, "fenced", fmt.Sprintf("node %s is proven harmless by %s: %s", s.Now.Name, s.Now.Proof, s.Now.Evidence))
	case s.Now.Phase != s.Was.Value.Phase && s.Now.Phase == cluster.PhaseAwaitingFence:
		log.Error("awaiting fence: an operator has to act", zap.String("reason", s.Reason), zap.String("command", s.Now.Command))
		m.event(s, "awaiting-fence", fmt.Sprintf("node %s: %s; make sure that it is off, then run '%s'", s.Now.Name, s.Reason, s.Now.Command))
	case s.Now.Phase != s.Was.Value.Phase && s.Now.Phase == cluster.PhaseHeld:
		log.Error("failover held", zap.String("reason", s.Reason), zap.String("command", s.Now.Command))
		m.event(s, "held", fmt.Sprintf("node %s: %s; '%s' goes on at once", s.Now.Name, s.Reason, s.Now.Command))
	}
	m.Hint()
	return nil
}

// seal takes the repository over and records it. The rename alone is no fence:
// the proof came first, and .inc tells afterwards whether it came in time.
func (m *term) seal(ctx context.Context, log *zap.Logger, o Observation, s Step) error {
	if err := m.mayAct(ctx); err != nil {
		return err
	}
	if err := m.Mount.Seal(ctx, s.Failover); err != nil {
		if errors.Is(err, cluster.ErrSealed) && !m.late[s.Failover] {
			m.late[s.Failover] = true
			m.event(s, "seal-late", cluster.OneLine(err))
		}
		return err
	}
	l, err := m.Mount.Pool(ctx, s.Failover, true)
	if err != nil {
		return err
	}
	next := s.Now
	next.Phase, next.Reason = cluster.PhaseRelocating, "sealed"
	next.SealedAt = o.Clock.UTC().Format(time.RFC3339Nano)
	next.Total = len(l.Resources) + len(l.Unparseable)
	m.At("sealed:before")
	if err := m.Ledger.Update(ctx, m.Term, s.Was, next, 0); err != nil {
		return err
	}
	m.At("sealed:after")
	m.pools[s.Failover] = true
	log.Info("repository sealed", zap.Int("resources", next.Total))
	m.event(s, "sealed", fmt.Sprintf("took over the repository of node %s: %d resources", s.Now.Name, next.Total))
	m.Hint()
	return nil
}

// quarantine moves files that cannot be read to broken, each for itself, and
// counts them in one write.
func (m *term) quarantine(ctx context.Context, log *zap.Logger, o Observation, s Step) error {
	var errs []error
	moved := 0
	for _, u := range s.Unparseable {
		why := u.Err.Error()
		err := m.Mount.MarkBroken(ctx, cluster.Place{Pool: s.Failover}, u.ID, cluster.BrokenReason{
			Node: s.Failover.Node, Operation: "read", Error: why, Time: o.Clock.UTC().Format(time.RFC3339),
		})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		moved++
		log.Error("a resource file cannot be read; it was moved to broken as it is", zap.String("resource", u.ID), zap.String("reason", why))
		m.event(s, "unparseable", u.ID+" was moved to broken, byte for byte: "+why)
	}
	if f, ok := o.Failovers[s.Failover]; ok && moved > 0 {
		next := f.Value
		next.Unreadable += moved
		errs = append(errs, m.Ledger.Update(ctx, m.Term, f, next, 0))
	}
	return errors.Join(errs...)
}

func (m *term) dispatch(ctx context.Context, s Step) error {
	now := time.Now().UTC().Format(time.RFC3339Nano)
	for i := range s.Swaps {
		if a := s.Swaps[i].New; a != nil {
			a.ID, a.State, a.CreatedAt = m.NewID(), cluster.ActionNew, now
		}
	}
	m.sent = true
	m.At("dispatch:before")
	n, err := m.Ledger.Apply(ctx, m.Term, s.Swaps)
	m.At("dispatch:after")
	sent := 0
	for _, w := range s.Swaps {
		if w.New == nil {
			continue
		}
		sent++
		result := "placed"
		if w.New.Waiting != "" {
			result = "none"
		}
		if w.New.Verb == cluster.VerbTake {
			m.Metrics.Placements.WithLabelValues(w.New.Policy, result).Inc()
			m.turn++
		}
		m.Log.Debug("dispatched", zap.String("resource", string(w.New.Resource)), zap.String("to", string(w.New.Node)), zap.String("action", string(w.New.Verb)), zap.String("failover", w.New.Failover), zap.String("policy", w.New.Policy), zap.String("reason", w.New.Reason))
	}
	if sent > 0 && n > 0 {
		m.Log.Info("actions dispatched", zap.Int("resources", sent), zap.Int64("epoch", int64(m.Epoch)))
	}
	return err
}

// finish marks the sealed directory done, by a listing that decides, and closes the books.
func (m *term) finish(ctx context.Context, log *zap.Logger, s Step) error {
	if err := m.Mount.MarkDone(ctx, s.Failover); err != nil {
		return err
	}
	m.At("finish:before")
	if err := m.Ledger.Update(ctx, m.Term, s.Was, s.Now, 0); err != nil {
		return err
	}
	m.At("finish:after")
	f := s.Now
	log.Info("failover done", zap.Int("started", f.Started), zap.Int("stopped", f.Stopped), zap.Int("broken", f.Broken), zap.Int("waiting", f.Waiting))
	m.event(s, "failover-done", fmt.Sprintf("node %s: %d resources: %d started, %d stopped, %d waiting for room, %d broken", f.Name, f.Total, f.Started, f.Stopped, f.Waiting, f.Broken))
	m.Metrics.Done.WithLabelValues("done").Inc()
	m.Metrics.LastSuccess.SetToCurrentTime()
	m.timeline(f)
	delete(m.pools, s.Failover)
	// What is left of this write is cleared away as loose in a later round.
	_, err := m.Ledger.Apply(ctx, m.Term, s.Swaps)
	return err
}

// timeline observes how long each phase took.
func (m *term) timeline(f cluster.Failover) {
	at := func(s string) time.Time {
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			return time.Time{}
		}
		return t
	}
	marks := []struct {
		phase    string
		from, to time.Time
	}{
		{"detect", at(f.LostAt), at(f.OpenedAt)}, {"fence", at(f.OpenedAt), at(f.FencedAt)},
		{"seal", at(f.FencedAt), at(f.SealedAt)}, {"dispatch", at(f.SealedAt), at(f.DispatchAt)}, {"start", at(f.DispatchAt), at(f.DoneAt)},
	}
	for _, k := range marks {
		if !k.from.IsZero() && !k.to.IsZero() {
			m.Metrics.Phase.WithLabelValues(k.phase).Observe(max(0, k.to.Sub(k.from).Seconds()))
		}
	}
}

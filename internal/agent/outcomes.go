package agent

import (
	"context"
	"errors"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// answer is an outcome on its way into etcd.
type answer struct {
	was cluster.Versioned[cluster.Action]
	now cluster.Action
}

const (
	// answerBatch and answerPause gather outcomes into few transactions without
	// holding a single one back noticeably.
	answerBatch = 100
	answerPause = 3 * time.Millisecond
	// answerLinger is that pause while many more are being brought up: nobody
	// waits for a single one of their outcomes.
	answerLinger = 20 * time.Millisecond
)

// answer queues the outcome of an action.
func (r *session) answer(e cluster.Versioned[cluster.Action], o cluster.Outcome, msg string, renamed cluster.ResourceID) {
	a := e.Value
	a.State, a.Outcome, a.Error = cluster.ActionDone, o, msg
	a.DoneAt = time.Now().UTC().Format(time.RFC3339Nano)
	if renamed != "" {
		a.NewName = renamed
	}
	select {
	case r.outcomes <- answer{was: e, now: a}:
	case <-r.ended: // the next admission finds the action without an outcome
	}
}

// answerAll writes outcomes until the context ends.
func (r *session) answerAll(ctx context.Context) error {
	for {
		var batch []answer
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case first := <-r.outcomes:
			batch = append(batch, first)
		}
		pause := answerPause
		if !r.starts.empty() {
			pause = answerLinger
		}
		timer := time.NewTimer(pause)
	gather:
		for len(batch) < 4*answerBatch {
			select {
			case next := <-r.outcomes:
				batch = append(batch, next)
			case <-timer.C:
				break gather
			}
		}
		timer.Stop()
		if err := r.writeAnswers(ctx, batch); err != nil {
			return err
		}
	}
}

// writeAnswers tries until every outcome is in etcd or proven to be unwanted.
func (r *session) writeAnswers(ctx context.Context, batch []answer) error {
	pause := 50 * time.Millisecond
	for len(batch) > 0 {
		was := make([]cluster.Versioned[cluster.Action], len(batch))
		now := make([]cluster.Action, len(batch))
		for i, b := range batch {
			was[i], now[i] = b.was, b.now
		}
		r.At("outcome:before")
		revs, err := r.Inbox.Write(ctx, r.Lease, was, now)
		r.At("outcome:after")
		var left []answer
		for i, b := range batch {
			if i < len(revs) && revs[i] != 0 {
				r.written(b.now)
				continue
			}
			if next, again := r.reread(ctx, b); again {
				left = append(left, next)
			}
		}
		if err == nil && len(left) == 0 {
			return nil
		}
		batch = left
		if errors.Is(err, cluster.ErrNotAlive) {
			return err // this admission is over; the next one looks at the actions anew
		}
		if err != nil {
			r.Log.Warn("cannot report outcomes to etcd; tried again", zap.Int("outcomes", len(left)), zap.Error(err))
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, time.Second)
	}
	return nil
}

// reread finds out what became of a write that did not take effect as it was.
func (r *session) reread(ctx context.Context, b answer) (answer, bool) {
	e, ok, err := r.Inbox.Read(ctx, b.now)
	switch {
	case err != nil:
		return b, true
	case !ok || e.Value.ID != b.now.ID:
		return b, false // withdrawn, or another one stands there now
	case e.Value.State == cluster.ActionDone:
		r.written(b.now)
		return b, false
	}
	b.was.Mod, b.was.Raw = e.Mod, e.Raw
	return b, true
}

// written ends an action. It stays known: the local copy of etcd may show it as
// unfinished for as long as its watch lags behind, and nothing is done twice.
func (r *session) written(a cluster.Action) {
	r.Metrics.Actions.WithLabelValues(string(a.Verb), string(a.Outcome)).Inc()
	if !a.Moves() {
		// Many and of no consequence: not remembered, since their names are never used
		// again, and no line in the story of this node.
		r.setKnown(a, false)
		r.Log.Debug("answered what is seen of a probe file", zap.String("action", a.Name()), zap.String("outcome", string(a.Outcome)), zap.String("error", a.Error))
		return
	}
	log := r.Log.Info
	if a.Outcome == cluster.OutcomeFailed || a.Outcome == cluster.OutcomeRefused {
		log = r.Log.Warn
	}
	fields := []zap.Field{zap.String("action", string(a.Verb)), zap.String("resource", string(a.Resource)), zap.String("outcome", string(a.Outcome)), zap.String("reason", a.Reason)}
	if a.Failover != "" {
		fields = append(fields, zap.String("failover", a.Failover))
	}
	if a.Error != "" {
		fields = append(fields, zap.String("error", a.Error))
	}
	log("action finished", fields...)
	r.Event(cluster.Event{Kind: "action-" + string(a.Outcome), Resource: a.Resource, Failover: a.Failover, Message: sentence(a)})
}

func sentence(a cluster.Action) string {
	s := string(a.Verb) + ": " + string(a.Outcome)
	if a.Reason != "" {
		s += "; " + a.Reason
	}
	if a.Error != "" {
		s += "; " + a.Error
	}
	return s
}

package daemon

import (
	"context"
	"slices"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"go.uber.org/zap"
)

// questionsEvery is how often this node looks for questions without a hint, and
// whether its last answer still is true.
const questionsEvery = 2 * time.Second

// answerQuestions tells, after each failover that opened, what runs here
// without being in the own repository, and takes it back once it is not so any
// more: an answer that names something keeps that from being started elsewhere.
func (m *member) answerQuestions(ctx context.Context) error {
	tick := time.NewTicker(questionsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.asked:
		case <-tick.C:
		}
		if err := m.answerQuestion(ctx); err != nil {
			m.Logger.Warn("cannot tell the master what runs here; tried again", zap.Error(etcd.Explain(err)))
		}
	}
}

func (m *member) answerQuestion(ctx context.Context) error {
	var asked int64
	m.ledger.Failovers.Read(func(e map[string]etcd.Entry[cluster.Failover]) {
		for _, f := range e {
			if f.Value.Phase.Open() && f.Value.Node != m.host {
				asked = max(asked, f.Create)
			}
		}
	})
	own, joined := m.members.Nodes.Get(string(m.host))
	last := own.Value.Elsewhere
	if !joined || asked <= last.Asked && len(last.VEs) == 0 {
		return nil
	}
	lctx, cancel := context.WithTimeout(ctx, questionsEvery)
	defer cancel()
	ves, err := m.agent.Elsewhere(lctx)
	if err != nil || asked <= last.Asked && slices.Equal(ves, last.VEs) {
		return err
	}
	return m.members.Update(ctx, m.host, func(r *cluster.NodeRecord) error {
		r.Elsewhere = cluster.Elsewhere{Asked: max(asked, r.Elsewhere.Asked), VEs: ves}
		return nil
	})
}

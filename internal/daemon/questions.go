package daemon

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"go.uber.org/zap"
)

// questionsEvery is how often this node looks for questions without a hint, and
// whether its last answer still is true.
const questionsEvery = 2 * time.Second

// answerQuestions keeps this node's word true on what runs here without being in
// its repository, and makes a fresh one after each failover that opened: what it
// names is started nowhere else, and what runs here is given to this node.
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
	if !joined {
		return nil
	}
	ves, looked := m.agent.Words()
	var failed error
	if asked > last.Asked || !looked && len(last.VEs) > 0 {
		lctx, cancel := context.WithTimeout(ctx, questionsEvery)
		defer cancel()
		var fresh []cluster.RunningVE
		fresh, failed = m.agent.Elsewhere(lctx)
		var partly *cluster.UnansweredError
		if failed == nil || errors.As(failed, &partly) && len(partly.Kinds) < len(m.drivers.Kinds()) {
			if ves, looked = m.agent.Words(); !looked {
				ves, looked = fresh, true
			}
		}
		if failed != nil {
			asked = 0 // no answer, or half of one; what is known is said all the same
		}
	}
	if !looked || asked <= last.Asked && slices.Equal(ves, last.VEs) {
		return failed
	}
	err := m.members.Update(ctx, m.host, func(r *cluster.NodeRecord) error {
		r.Elsewhere = cluster.Elsewhere{Asked: max(asked, r.Elsewhere.Asked), VEs: ves}
		return nil
	})
	return errors.Join(failed, err)
}

// saidBefore is what is published as this node's word, if it is of this boot. It is
// not known before the copy of etcd is there.
func (m *member) saidBefore() (words []cluster.RunningVE, known bool) {
	known = m.members.Nodes.Read(func(nodes map[string]etcd.Entry[cluster.NodeRecord]) {
		if rec, ok := nodes[string(m.host)]; ok && rec.Value.BootID == m.boot {
			words = rec.Value.Elsewhere.VEs
		}
	})
	return words, known
}

// runsOn names the other nodes by whose word a VE runs there, or may. A node that
// was proven harmless since, and is not back, runs nothing. It is not known before
// the copies of etcd are there.
func (m *member) runsOn(path string) (on []cluster.NodeID, known bool) {
	known = m.members.Nodes.Read(func(nodes map[string]etcd.Entry[cluster.NodeRecord]) {
		for name, e := range nodes {
			if cluster.NodeID(name) != m.host && slices.ContainsFunc(e.Value.Elsewhere.VEs, func(v cluster.RunningVE) bool { return v.Path == path }) {
				on = append(on, cluster.NodeID(name))
			}
		}
	})
	if len(on) > 0 { // who is harmless is only said by copies that are whole
		whole := m.members.Alive.Read(func(map[string]etcd.Entry[cluster.AliveRecord]) {}) && m.ledger.Failovers.Read(func(map[string]etcd.Entry[cluster.Failover]) {})
		if whole {
			on = slices.DeleteFunc(on, m.provenHarmless)
		}
	}
	slices.Sort(on)
	return on, known
}

func (m *member) provenHarmless(n cluster.NodeID) bool {
	if _, alive := m.members.Alive.Get(string(n)); alive {
		return false
	}
	rec, _ := m.members.Nodes.Get(string(n))
	f, there := m.ledger.Failovers.Get(cluster.FailoverID{Node: n, Incarnation: rec.Value.Incarnation}.String())
	return there && f.Value.Phase.Sealed()
}

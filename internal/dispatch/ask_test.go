package dispatch_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/dispatch"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
)

// asked is an Ask under way.
type asked struct {
	action cluster.Action
	err    error
}

// ask sends an action to n1 and returns once it is in etcd.
func (l *lab) ask(ctx context.Context, a cluster.Action) (cluster.Action, <-chan asked) {
	l.t.Helper()
	done := make(chan asked, 1)
	go func() {
		got, err := dispatch.Ask(ctx, l.client, l.keys, a, func(cluster.Action) {})
		done <- asked{got, err}
	}()
	var sent cluster.Action
	etcdtest.Eventually(l.t, "the action is sent", func() bool {
		resp, err := l.client.Get(l.t.Context(), l.keys.Action(a))
		if err != nil || len(resp.Kvs) == 0 {
			return false
		}
		e, _ := entry[cluster.Action](l, l.keys.Action(a))
		sent = e.Value
		return true
	})
	return sent, done
}

func (l *lab) outcome(done <-chan asked) asked {
	l.t.Helper()
	select {
	case r := <-done:
		return r
	case <-time.After(etcdtest.Patience):
		l.t.Fatal("Ask did not return")
		panic("unreachable")
	}
}

var start = cluster.Action{Verb: cluster.VerbStart, Node: n1, Resource: "vm-web", Reason: "an operator asks"}

func TestAskFollowsToTheOutcome(t *testing.T) {
	l := newLab(t)
	l.alive(n1)
	sent, done := l.ask(t.Context(), start)
	if sent.ID == "" || sent.State != cluster.ActionNew || sent.V != cluster.RecordVersion || sent.CreatedAt == "" {
		t.Errorf("sent: %+v", sent)
	}
	sent.State, sent.Progress = cluster.ActionClaimed, "starting"
	l.put(l.keys.Action(sent), sent)
	sent.State, sent.Outcome = cluster.ActionDone, cluster.OutcomeStarted
	l.put(l.keys.Action(sent), sent)
	if r := l.outcome(done); r.err != nil || r.action.Outcome != cluster.OutcomeStarted {
		t.Errorf("Ask returned %+v, %v; want the outcome", r.action, r.err)
	}
	if l.count(l.keys.Actions()) != 0 {
		t.Error("the finished action is still there")
	}
}

func TestAskLeavesAFinishedGiveBackToTheMaster(t *testing.T) {
	for outcome, left := range map[cluster.Outcome]int{cluster.OutcomeOK: 1, cluster.OutcomeRefused: 0} {
		l := newLab(t)
		l.alive(n1)
		sent, done := l.ask(t.Context(), cluster.Action{Verb: cluster.VerbGiveBack, Node: n1, Resource: "vm-web", To: n2})
		sent.State, sent.Outcome = cluster.ActionDone, outcome
		l.put(l.keys.Action(sent), sent)
		if r := l.outcome(done); r.err != nil || r.action.Outcome != outcome {
			t.Errorf("Ask returned %+v, %v", r.action, r.err)
		}
		if got := l.count(l.keys.Actions()); got != left {
			t.Errorf("%d actions are left after outcome %q, want %d", got, outcome, left)
		}
	}
}

func TestAskRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		given func(l *lab)
		want  error
	}{
		{"a node that is away", func(*lab) {}, dispatch.ErrNodeAway},
		{"a resource with an action under way", func(l *lab) { l.alive(n1); l.put(l.keys.Action(start), start) }, dispatch.ErrBusy},
		{"both", func(l *lab) { l.put(l.keys.Action(start), start) }, dispatch.ErrBusy},
		{"an action that cannot be read", func(l *lab) { l.alive(n1); l.put(l.keys.Action(start), "{") }, dispatch.ErrBusy},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			c.given(l)
			before := l.count(l.keys.Actions())
			_, err := dispatch.Ask(t.Context(), l.client, l.keys, start, func(cluster.Action) {})
			if !errors.Is(err, c.want) || l.count(l.keys.Actions()) != before {
				t.Errorf("Ask returned %v with %d actions, want %v with %d", err, l.count(l.keys.Actions()), c.want, before)
			}
		})
	}
}

func TestAskSaysThatItsActionDisappeared(t *testing.T) {
	for name, disturb := range map[string]func(l *lab, a cluster.Action){
		"the key is gone":              func(l *lab, a cluster.Action) { l.remove(l.keys.Action(a)) },
		"another action took its name": func(l *lab, a cluster.Action) { a.ID = "another"; l.put(l.keys.Action(a), a) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.alive(n1)
			sent, done := l.ask(t.Context(), start)
			disturb(l, sent)
			if r := l.outcome(done); r.err == nil || !strings.Contains(r.err.Error(), "disappeared") {
				t.Errorf("Ask returned %+v, %v; want it to say so", r.action, r.err)
			}
		})
	}
}

func TestAskThatIsGivenUpLeavesTheActionUnderWay(t *testing.T) {
	l := newLab(t)
	l.alive(n1)
	ctx, cancel := context.WithCancelCause(t.Context())
	_, done := l.ask(ctx, start)
	why := errors.New("interrupted")
	cancel(why)
	if r := l.outcome(done); !errors.Is(r.err, why) {
		t.Errorf("Ask returned %v, want the cause of its context", r.err)
	}
	if l.count(l.keys.Actions()) != 1 {
		t.Error("the action is gone, and its node may be at it")
	}
}

// TestAskALeaveIsAnsweredByTheRecordGoing: who has left cannot answer any more.
func TestAskALeaveIsAnsweredByTheRecordGoing(t *testing.T) {
	l := newLab(t)
	l.alive(n1)
	l.put(l.keys.Node(n1), cluster.NodeRecord{})
	done := make(chan asked, 1)
	go func() {
		got, err := dispatch.Ask(t.Context(), l.client, l.keys, cluster.Action{Verb: cluster.VerbLeave, Node: n1}, func(cluster.Action) {})
		done <- asked{got, err}
	}()
	etcdtest.Eventually(t, "the action is sent", func() bool { return l.count(l.keys.ActionsOf(n1)) == 1 })
	l.remove(l.keys.Node(n1))
	if r := l.outcome(done); r.err != nil || r.action.Outcome != cluster.OutcomeOK {
		t.Errorf("Ask returned %+v, %v", r.action, r.err)
	}
	if l.count(l.keys.Actions()) != 0 {
		t.Error("the node that left has an action still")
	}
}

package dispatch_test

import (
	"context"
	"errors"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/dispatch"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func (l *lab) inbox(n cluster.NodeID) *dispatch.Inbox {
	return dispatch.NewInbox(l.client, l.keys, n, zap.NewNop(), func() {})
}

// sent dispatches actions to n1, and returns them as read, and as claimed.
func (l *lab) sent(count int) (was []etcd.Entry[cluster.Action], claimed []cluster.Action) {
	l.t.Helper()
	if _, err := l.ledger.Apply(l.t.Context(), l.term, actions(n1, count)); err != nil {
		l.t.Fatal(err)
	}
	for i := range count {
		e, _ := entry[cluster.Action](l, l.keys.Action(action(n1, i)))
		was = append(was, e)
		a := e.Value
		a.State = cluster.ActionClaimed
		claimed = append(claimed, a)
	}
	return was, claimed
}

func TestWriteMarksMoreThanOneTransactionHolds(t *testing.T) {
	l := newLab(t)
	lease := l.alive(n1)
	was, claimed := l.sent(250)
	revs, err := l.inbox(n1).Write(t.Context(), lease, was, claimed)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range claimed {
		e, _ := entry[cluster.Action](l, l.keys.Action(a))
		if e.Value.State != cluster.ActionClaimed || revs[i] != e.Mod {
			t.Fatalf("action %d is %s at revision %d, said to be written at %d", i, e.Value.State, e.Mod, revs[i])
		}
	}
}

func TestWriteTellsConflictsActionByAction(t *testing.T) {
	l := newLab(t)
	lease := l.alive(n1)
	was, claimed := l.sent(230)
	withdrawn, replaced := 5, 217
	l.remove(l.keys.Action(claimed[withdrawn]))
	anew := action(n1, replaced)
	anew.ID = "another one of this name"
	l.put(l.keys.Action(anew), anew)
	revs, err := l.inbox(n1).Write(t.Context(), lease, was, claimed)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range claimed {
		e, ok := entry[cluster.Action](l, l.keys.Action(a))
		wrote := ok && e.Value.State == cluster.ActionClaimed
		if want := i != withdrawn && i != replaced; wrote != want || (revs[i] != 0) != want {
			t.Errorf("action %d: written %v, revision %d; want written: %v", i, wrote, revs[i], want)
		}
	}
	if l.count(l.keys.ActionsOf(n1)) != 229 {
		t.Error("a withdrawn action came back")
	}
}

func TestWriteNeedsTheAliveKey(t *testing.T) {
	for _, c := range []struct {
		name  string
		given func(l *lab, lease int64) int64 // returns the lease to act under
		want  error
	}{
		{"the lease holds it", func(_ *lab, lease int64) int64 { return lease }, nil},
		{"the lease has ended", func(l *lab, lease int64) int64 {
			if _, err := l.client.Revoke(l.t.Context(), clientv3.LeaseID(lease)); err != nil {
				l.t.Fatal(err)
			}
			return lease
		}, cluster.ErrNotAlive},
		{"another lease holds it", func(l *lab, lease int64) int64 { l.alive(n1); return lease }, cluster.ErrNotAlive},
		{"it holds that of another node only", func(l *lab, _ int64) int64 { return l.alive(n2) }, cluster.ErrNotAlive},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			was, claimed := l.sent(3)
			lease := c.given(l, l.alive(n1))
			revs, err := l.inbox(n1).Write(t.Context(), lease, was, claimed)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("Write returned %v, want %v", err, c.want)
			}
			for i, a := range claimed {
				e, _ := entry[cluster.Action](l, l.keys.Action(a))
				if wrote := e.Value.State == cluster.ActionClaimed; wrote != (c.want == nil) || (revs[i] != 0) != wrote {
					t.Errorf("action %d: written %v, revision %d, with error %v", i, wrote, revs[i], err)
				}
			}
		})
	}
}

func TestWriteKeepsWhatItDoesNotKnow(t *testing.T) {
	l := newLab(t)
	lease := l.alive(n1)
	key := l.keys.Action(action(n1, 0))
	l.put(key, `{"v":1,"id":"id0","verb":"take","node":"0000000000000001","resource":"vm-0","state":"new","reason":"r","created_at":"now","later":[1]}`)
	was, _ := entry[cluster.Action](l, key)
	a := was.Value
	a.State = cluster.ActionClaimed
	if _, err := l.inbox(n1).Write(t.Context(), lease, []etcd.Entry[cluster.Action]{was}, []cluster.Action{a}); err != nil {
		t.Fatal(err)
	}
	if got, _ := entry[map[string]any](l, key); got.Value["later"] == nil || got.Value["state"] != "claimed" {
		t.Errorf("written action: %s", got.Raw)
	}
}

func TestInboxShowsItsOwnPendingActions(t *testing.T) {
	l := newLab(t)
	inbox := l.inbox(n1)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error)
	go func() { ended <- inbox.Run(ctx) }()
	fresh, done, foreign := action(n1, 0), action(n1, 1), action(n2, 2)
	done.State = cluster.ActionDone
	l.put(l.keys.ActionsOf(n1)+"vm-bad", "{")
	for _, a := range []cluster.Action{done, foreign, fresh} {
		l.put(l.keys.Action(a), a)
	}
	etcdtest.Eventually(t, "the last one is there", func() bool { return inbox.Has(fresh) })
	if p := inbox.Pending(); len(p) != 1 || p[0].Value.ID != fresh.ID {
		t.Errorf("pending: %+v, want the new one alone", p)
	}
	renamed := fresh
	renamed.ID = "another one of this name"
	if inbox.Has(renamed) || inbox.Has(foreign) || !inbox.Has(done) {
		t.Error("Has goes by the name alone, or misses a finished action")
	}
	e, ok, err := inbox.Read(t.Context(), fresh)
	if err != nil || !ok || e.Value.ID != fresh.ID {
		t.Errorf("Read: %+v, %v, %v", e, ok, err)
	}
	l.remove(l.keys.Action(fresh))
	if _, ok, err := inbox.Read(t.Context(), fresh); ok || err != nil {
		t.Errorf("Read of an action that is gone: %v, %v", ok, err)
	}
	etcdtest.Eventually(t, "the mirror sees that it is gone", func() bool { return !inbox.Has(fresh) })
	why := errors.New("the test is over")
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("Run returned %v, want the cause of its context", err)
	}
}

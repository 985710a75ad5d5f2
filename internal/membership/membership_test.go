package membership_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	"github.com/shaman-ha/shaman/internal/membership"
)

func TestJoinTwice(t *testing.T) {
	l := newLab(t)
	if _, _, err := l.members.Get(t.Context(), self); !errors.Is(err, membership.ErrNotJoined) {
		t.Errorf("Get before Join: %v, want ErrNotJoined", err)
	}
	l.join(1)
	err := l.members.Join(t.Context(), self, cluster.NodeRecord{Name: "impostor", Incarnation: 9})
	if !errors.Is(err, membership.ErrJoined) {
		t.Errorf("the second Join: %v, want ErrJoined", err)
	}
	want := cluster.NodeRecord{V: cluster.RecordVersion, Name: "n1", Incarnation: 1}
	if diff := cmp.Diff(want, l.record()); diff != "" {
		t.Errorf("record after both (-want +got):\n%s", diff)
	}
}

func TestUpdate(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	nothing := func(*cluster.NodeRecord) error { return nil }
	if err := l.members.Update(ctx, self, nothing); !errors.Is(err, membership.ErrNotJoined) {
		t.Errorf("Update of a node that is not joined: %v, want ErrNotJoined", err)
	}
	l.put(l.keys.Node(self), `{"v":1,"name":"n1","incarnation":1,"maintenance":true,"later":{"x":[1]}}`)
	if err := l.members.Update(ctx, self, func(r *cluster.NodeRecord) error {
		r.Maintenance, r.Address = false, "10.0.0.1"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"v": 1.0, "name": "n1", "address": "10.0.0.1", "incarnation": 1.0, "later": map[string]any{"x": []any{1.0}}}
	got, _ := l.read(l.keys.Node(self))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}

	no := errors.New("no")
	if err := l.members.Update(ctx, self, func(r *cluster.NodeRecord) error { r.Name = "x"; return no }); !errors.Is(err, no) {
		t.Errorf("Update returned %v, want the error of its function", err)
	}
	if l.record().Name != "n1" {
		t.Error("an Update that was given up changed the record")
	}
}

func TestUpdateThatChangesNothingWritesNothing(t *testing.T) {
	l := newLab(t)
	l.join(1)
	_, before, err := l.members.Get(t.Context(), self)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.members.Update(t.Context(), self, func(*cluster.NodeRecord) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, after, err := l.members.Get(t.Context(), self); err != nil || after != before {
		t.Errorf("revision %d before and %d after (%v), want no write", before, after, err)
	}
}

func TestUpdateTriesAgainOnConflict(t *testing.T) {
	l := newLab(t)
	l.join(1)
	calls := 0
	if err := l.members.Update(t.Context(), self, func(r *cluster.NodeRecord) error {
		calls++
		if calls < 3 { // somebody else is faster, twice
			l.put(l.keys.Node(self), cluster.NodeRecord{V: 1, Name: fmt.Sprintf("renamed%d", calls), Incarnation: 1})
		}
		r.Address = "10.0.0.1"
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := l.record(); calls != 3 || got.Name != "renamed2" || got.Address != "10.0.0.1" {
		t.Errorf("after %d tries the record is %+v; want both changes after 3", calls, got)
	}
	err := l.members.Update(t.Context(), self, func(r *cluster.NodeRecord) error {
		l.put(l.keys.Node(self), cluster.NodeRecord{V: 1, Name: "restless"})
		r.Address = "lost"
		return nil
	})
	if !errors.Is(err, etcd.ErrConflict) {
		t.Errorf("Update of a record that never rests: %v, want ErrConflict", err)
	}
}

// TestConcurrentUpdatesAreAllKept: operators' commands and the node itself
// write one record.
func TestConcurrentUpdatesAreAllKept(t *testing.T) {
	l := newLab(t)
	l.join(1)
	var running sync.WaitGroup
	for i := range 4 {
		running.Go(func() {
			for j := range 5 {
				for {
					err := l.members.Update(t.Context(), self, func(r *cluster.NodeRecord) error {
						r.SuspendTokens = append(r.SuspendTokens, cluster.SuspendToken{ID: fmt.Sprintf("%d.%d", i, j)})
						return nil
					})
					if err == nil {
						break
					}
					if !errors.Is(err, etcd.ErrConflict) {
						t.Errorf("Update: %v", err)
						return
					}
				}
			}
		})
	}
	running.Wait()
	seen := map[string]bool{}
	for _, token := range l.record().SuspendTokens {
		seen[token.ID] = true
	}
	if len(seen) != 20 || len(l.record().SuspendTokens) != 20 {
		t.Errorf("%d tokens, %d different; want 20 of 20", len(l.record().SuspendTokens), len(seen))
	}
}

func TestPutRecovering(t *testing.T) {
	l := newLab(t)
	lease := l.lease()
	rec := cluster.RecoveringRecord{Incarnation: 1, NotQuiesced: true}
	if err := l.members.PutRecovering(t.Context(), self, lease, rec); !errors.Is(err, membership.ErrNotJoined) {
		t.Errorf("of a node that is not joined: %v, want ErrNotJoined", err)
	}
	if got, _ := l.read(l.keys.Recovering(self)); got != nil {
		t.Errorf("a node that is not joined left %v behind", got)
	}
	l.join(1)
	if err := l.members.PutRecovering(t.Context(), self, lease, rec); err != nil {
		t.Fatal(err)
	}
	if got, under := l.read(l.keys.Recovering(self)); got["not_quiesced"] != true || under != lease {
		t.Errorf("record %v under lease %d, want it under %d", got, under, lease)
	}
	if err := l.members.PutRecovering(t.Context(), self, 4711, rec); err == nil || errors.Is(err, membership.ErrNotJoined) {
		t.Errorf("under a lease that has ended: %v, want an error that is not ErrNotJoined", err)
	}
}

func TestPutAliveIsForTheHolderOnly(t *testing.T) {
	l := newLab(t)
	l.join(1)
	mine, foreign := l.lease(), l.lease()
	rec := cluster.AliveRecord{Incarnation: 1, Mount: cluster.MountOK}
	if err := l.members.PutAlive(t.Context(), self, mine, rec); !errors.Is(err, membership.ErrOtherHolder) {
		t.Errorf("before admission: %v, want ErrOtherHolder: only admission makes the key", err)
	}
	if _, held, err := l.members.HoldsAlive(t.Context(), self, mine); held || err != nil {
		t.Errorf("an absent key is held: %v, %v", held, err)
	}
	if _, err := l.members.Admit(t.Context(), cluster.Admission{Node: self, Incarnation: 1, Lease: mine, Alive: rec}); err != nil {
		t.Fatal(err)
	}
	rec.Mount = cluster.MountSlow
	if err := l.members.PutAlive(t.Context(), self, foreign, rec); !errors.Is(err, membership.ErrOtherHolder) {
		t.Errorf("under another lease: %v, want ErrOtherHolder", err)
	}
	if err := l.members.PutAlive(t.Context(), self, mine, rec); err != nil {
		t.Fatal(err)
	}
	got, held, err := l.members.HoldsAlive(t.Context(), self, mine)
	if err != nil || !held || got.Mount != cluster.MountSlow {
		t.Errorf("held %v, %+v, %v; want what was put last", held, got, err)
	}
	if _, held, err := l.members.HoldsAlive(t.Context(), self, foreign); held || err != nil {
		t.Errorf("the foreign lease holds the key: %v, %v", held, err)
	}
}

func TestRunMirrorsAllThree(t *testing.T) {
	l := newLab(t)
	l.join(1)
	lease := l.lease()
	if err := l.members.PutRecovering(t.Context(), self, lease, cluster.RecoveringRecord{Incarnation: 1}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error)
	go func() { ended <- l.members.Run(ctx) }()
	has := func() (node, alive, recovering bool) {
		_, node = l.members.Nodes.Get(string(self))
		_, alive = l.members.Alive.Get(string(self))
		_, recovering = l.members.Recovering.Get(string(self))
		return node, alive, recovering
	}
	etcdtest.Eventually(t, "the node is seen as Recovering", func() bool { n, a, r := has(); return n && !a && r })
	if _, err := l.members.Admit(t.Context(), cluster.Admission{Node: self, Incarnation: 1, Lease: lease}); err != nil {
		t.Fatal(err)
	}
	etcdtest.Eventually(t, "the node is seen as alive", func() bool { n, a, r := has(); return n && a && !r })
	why := errors.New("the test is over")
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("Run returned %v, want the cause of its context", err)
	}
}

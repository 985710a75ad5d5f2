package dispatch_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
)

func TestOpen(t *testing.T) {
	f := cluster.Failover{Node: n1, Inc: 3, Phase: cluster.PhaseHeld, Reason: "lease ended"}
	for _, c := range []struct {
		name  string
		given func(l *lab, o *cluster.Opening)
		want  error
	}{
		{"a node whose lease has ended", func(*lab, *cluster.Opening) {}, nil},
		{"a node that is alive", func(l *lab, _ *cluster.Opening) { l.alive(n1) }, etcd.ErrConflict},
		{"a node whose record changed since it was observed", func(l *lab, _ *cluster.Opening) {
			l.put(l.keys.Node(n1), cluster.NodeRecord{Incarnation: 3, Stopped: cluster.StopInactive})
		}, etcd.ErrConflict},
		{"a node that left", func(l *lab, _ *cluster.Opening) { l.remove(l.keys.Node(n1)) }, etcd.ErrConflict},
		{"a node that came back meanwhile", func(l *lab, _ *cluster.Opening) {
			l.put(l.keys.Recovering(n1), cluster.RecoveringRecord{NotQuiesced: true})
		}, etcd.ErrConflict},
		{"a node that was back when it was observed", func(l *lab, o *cluster.Opening) {
			o.RecoveringMod = l.put(l.keys.Recovering(n1), cluster.RecoveringRecord{})
		}, nil},
		{"a node whose word changed since", func(l *lab, o *cluster.Opening) {
			o.RecoveringMod = l.put(l.keys.Recovering(n1), cluster.RecoveringRecord{})
			l.put(l.keys.Recovering(n1), cluster.RecoveringRecord{NotQuiesced: true})
		}, etcd.ErrConflict},
		{"a failover that is open already", func(l *lab, _ *cluster.Opening) { l.put(l.keys.Failover(f.ID()), "{}") }, etcd.ErrConflict},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			o := cluster.Opening{Failover: f, NodeMod: l.put(l.keys.Node(n1), cluster.NodeRecord{Incarnation: 3})}
			c.given(l, &o)
			err := l.ledger.Open(t.Context(), l.term, o)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("Open returned %v, want %v", err, c.want)
			}
			got, _ := entry[cluster.Failover](l, l.keys.Failover(f.ID()))
			if opened := got.Value.Reason == f.Reason && got.Value.V == cluster.RecordVersion; opened != (c.want == nil) {
				t.Errorf("opened: %v, with error %v", opened, err)
			}
		})
	}
}

func TestUpdateKeepsWhatItDoesNotKnow(t *testing.T) {
	l := newLab(t)
	id := cluster.FailoverID{Node: n1, Incarnation: 3}
	key := l.keys.Failover(id)
	l.put(key, `{"v":1,"node":"0000000000000001","incarnation":3,"phase":"fencing","command":"do it","later":7}`)
	was, _ := entry[cluster.Failover](l, key)
	f := was.Value
	f.Phase, f.Proof, f.Command = cluster.PhaseSealing, "agent", ""
	if err := l.ledger.Update(t.Context(), l.term, was, f, 0); err != nil {
		t.Fatal(err)
	}
	got, _ := entry[map[string]any](l, key)
	if got.Value["phase"] != "sealing" || got.Value["proof"] != "agent" || got.Value["command"] != nil || got.Value["later"] != 7.0 {
		t.Errorf("updated failover: %s", got.Raw)
	}
	if got.Create != was.Create {
		t.Error("an update changed the serial")
	}
	if err := l.ledger.Update(t.Context(), l.term, was, f, 0); !errors.Is(err, etcd.ErrConflict) {
		t.Errorf("Update of what was read before the last change: %v, want ErrConflict", err)
	}
}

// What is counted in the record goes with the same write, all of it or nothing: an
// outcome is neither lost nor counted twice.
func TestUpdateDropsWhatItHasCounted(t *testing.T) {
	l := newLab(t)
	key := l.keys.Failover(cluster.FailoverID{Node: n1, Incarnation: 3})
	l.put(key, `{"v":1,"node":"0000000000000001","incarnation":3,"phase":"relocating"}`)
	was, _ := entry[cluster.Failover](l, key)
	if _, err := l.ledger.Apply(t.Context(), l.term, actions(n2, 50)); err != nil {
		t.Fatal(err)
	}
	var drop []cluster.Swap
	for i := range 50 {
		a, _ := entry[cluster.Action](l, l.keys.Action(action(n2, i)))
		drop = append(drop, cluster.Swap{Old: &a})
	}
	f := was.Value
	f.Folded.Started = 50
	stale := *drop[49].Old
	stale.Mod--
	if err := l.ledger.Update(t.Context(), l.term, was, f, 0, append(drop[:49:49], cluster.Swap{Old: &stale})...); !errors.Is(err, etcd.ErrConflict) {
		t.Errorf("Update with an action that has changed: %v, want ErrConflict", err)
	}
	if got, _ := entry[cluster.Failover](l, key); got.Mod != was.Mod || l.count(l.keys.ActionsOf(n2)) != 50 {
		t.Errorf("a part of it took effect: folded %+v, %d actions", got.Value.Folded, l.count(l.keys.ActionsOf(n2)))
	}
	if err := l.ledger.Update(t.Context(), l.term, was, f, 0, drop...); err != nil {
		t.Fatal(err)
	}
	if got, _ := entry[cluster.Failover](l, key); got.Value.Folded != f.Folded || l.count(l.keys.ActionsOf(n2)) != 0 {
		t.Errorf("folded %+v, %d actions are left; want %+v and none", got.Value.Folded, l.count(l.keys.ActionsOf(n2)), f.Folded)
	}
}

func TestWithdraw(t *testing.T) {
	for _, c := range []struct {
		name  string
		given func(l *lab, key string)
		want  error
	}{
		{"a node that says that it is back", func(*lab, string) {}, nil},
		{"a proof came meanwhile", func(l *lab, key string) { l.put(key, cluster.Failover{Node: n1, Inc: 3, Proof: "agent"}) }, etcd.ErrConflict},
		{"the node began to quiesce meanwhile", func(l *lab, _ string) {
			l.put(l.keys.Recovering(n1), cluster.RecoveringRecord{Quiesced: true})
		}, etcd.ErrConflict},
		{"the node's word ended with its lease", func(l *lab, _ string) { l.remove(l.keys.Recovering(n1)) }, etcd.ErrConflict},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			f := cluster.Failover{V: 1, Node: n1, Inc: 3, Phase: cluster.PhaseFencing}
			key := l.keys.Failover(f.ID())
			l.put(key, f)
			l.put(l.keys.Confirm(f.ID()), cluster.Confirm{V: 1})
			word := l.put(l.keys.Recovering(n1), cluster.RecoveringRecord{NotQuiesced: true})
			was, _ := entry[cluster.Failover](l, key)
			c.given(l, key)
			err := l.ledger.Withdraw(t.Context(), l.term, was, f, word)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("Withdraw returned %v, want %v", err, c.want)
			}
			archived, done := entry[cluster.Failover](l, l.keys.Withdrawn(was.Create))
			left := l.count(l.keys.Failovers()) + l.count(l.keys.Confirms())
			if done != (c.want == nil) || done && archived.Value.Phase != cluster.PhaseWithdrawn || (left == 0) != done {
				t.Errorf("archived: %v as %q; %d keys left", done, archived.Value.Phase, left)
			}
		})
	}
}

func TestWanted(t *testing.T) {
	for name, c := range map[string]struct {
		given func(l *lab, key string)
		want  error
	}{
		"it stands":                          {func(*lab, string) {}, nil},
		"it has changed, and stands":         {func(l *lab, key string) { l.put(key, cluster.Failover{Node: n1, Inc: 3, Reason: "x"}) }, nil},
		"it was withdrawn":                   {func(l *lab, key string) { l.remove(key) }, etcd.ErrConflict},
		"it was withdrawn, and another open": {func(l *lab, key string) { l.remove(key); l.put(key, cluster.Failover{Node: n1, Inc: 3}) }, etcd.ErrConflict},
		"this master was replaced":           {func(l *lab, _ string) { l.remove(l.term.Key) }, etcd.ErrConflict},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			f := cluster.Failover{V: 1, Node: n1, Inc: 3, Phase: cluster.PhaseFencing}
			key := l.keys.Failover(f.ID())
			l.put(key, f)
			was, _ := entry[cluster.Failover](l, key)
			c.given(l, key)
			if err := l.ledger.Wanted(t.Context(), l.term, f.ID(), was.Create); (err == nil) != (c.want == nil) {
				t.Errorf("Wanted: %v, want %v", err, c.want)
			}
		})
	}
}

func TestForgetLeavesWhatChanged(t *testing.T) {
	l := newLab(t)
	var read []etcd.Entry[cluster.Failover]
	for inc := range cluster.Incarnation(3) {
		f := cluster.Failover{V: 1, Node: n1, Inc: inc + 1, Phase: cluster.PhaseDone}
		l.put(l.keys.Failover(f.ID()), f)
		e, _ := entry[cluster.Failover](l, l.keys.Failover(f.ID()))
		read = append(read, e)
	}
	changed := l.keys.Failover(read[0].Value.ID())
	l.put(changed, read[0].Value)
	if err := l.ledger.Forget(t.Context(), l.term, read); err != nil {
		t.Fatal(err)
	}
	if _, ok := entry[cluster.Failover](l, changed); !ok || l.count(l.keys.Failovers()) != 1 {
		t.Errorf("%d failovers left, the changed one: %v; want it alone", l.count(l.keys.Failovers()), ok)
	}
}

func TestBrake(t *testing.T) {
	l := newLab(t)
	want := cluster.Brake{V: cluster.RecordVersion, Threshold: 3, Nodes: []cluster.NodeID{n1, n2}}
	if err := l.ledger.PutBrake(t.Context(), l.term, &want); err != nil {
		t.Fatal(err)
	}
	got, _ := entry[cluster.Brake](l, l.keys.Brake())
	if diff := cmp.Diff(want, got.Value); diff != "" {
		t.Errorf("brake (-want +got):\n%s", diff)
	}
	if err := l.ledger.PutBrake(t.Context(), l.term, nil); err != nil || l.count(l.keys.Brake()) != 0 {
		t.Errorf("taking the brake away: %v, %d keys", err, l.count(l.keys.Brake()))
	}
}

func TestRunMirrorsWhatTheLedgerHolds(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error)
	go func() { ended <- l.ledger.Run(ctx) }()
	f := cluster.Failover{Node: n1, Inc: 1, Phase: cluster.PhaseHeld}
	if err := l.ledger.Open(t.Context(), l.term, cluster.Opening{Failover: f}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.ledger.Apply(t.Context(), l.term, actions(n2, 1)); err != nil {
		t.Fatal(err)
	}
	l.put(l.keys.Confirm(f.ID()), cluster.Confirm{By: "root"})
	etcdtest.Eventually(t, "all three are mirrored", func() bool {
		_, failover := l.ledger.Failovers.Get(f.ID().String())
		_, sent := l.ledger.Actions.Get(string(n2) + "/vm-0")
		_, confirm := l.ledger.Confirms.Get(f.ID().String())
		return failover && sent && confirm
	})
	why := errors.New("the test is over")
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("Run returned %v, want the cause of its context", err)
	}
}

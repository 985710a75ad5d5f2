package dispatch_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
)

func TestApplyDispatchesMoreThanOneTransactionHolds(t *testing.T) {
	l := newLab(t)
	n, err := l.ledger.Apply(t.Context(), l.term, actions(n1, 430))
	if err != nil || n != 430 || l.count(l.keys.ActionsOf(n1)) != 430 {
		t.Errorf("Apply returned %d, %v and wrote %d, want 430", n, err, l.count(l.keys.ActionsOf(n1)))
	}
	if n, err := l.ledger.Apply(t.Context(), l.term, nil); n != 0 || err != nil {
		t.Errorf("Apply of nothing returned %d, %v", n, err)
	}
}

func TestApplySwaps(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	if _, err := l.ledger.Apply(ctx, l.term, actions(n1, 120)); err != nil {
		t.Fatal(err)
	}
	// All move to another node, which is two operations each.
	var moves []cluster.Swap
	for i := range 120 {
		was, _ := entry[cluster.Action](l, l.keys.Action(action(n1, i)))
		next := action(n2, i)
		moves = append(moves, cluster.Swap{Old: &was, New: &next})
	}
	if n, err := l.ledger.Apply(ctx, l.term, moves); err != nil || n != 120 {
		t.Fatalf("moving: %d, %v", n, err)
	}
	if at1, at2 := l.count(l.keys.ActionsOf(n1)), l.count(l.keys.ActionsOf(n2)); at1 != 0 || at2 != 120 {
		t.Errorf("after moving %d are at the old node and %d at the new one, want 0 and 120", at1, at2)
	}
	// One is replaced in place, one withdrawn.
	first, _ := entry[cluster.Action](l, l.keys.Action(action(n2, 0)))
	again := action(n2, 0)
	again.ID = "again"
	second, _ := entry[cluster.Action](l, l.keys.Action(action(n2, 1)))
	if n, err := l.ledger.Apply(ctx, l.term, []cluster.Swap{{Old: &first, New: &again}, {Old: &second}}); err != nil || n != 2 {
		t.Fatalf("replacing and withdrawing: %d, %v", n, err)
	}
	if e, ok := entry[cluster.Action](l, l.keys.Action(again)); !ok || e.Value.ID != "again" || e.Value.V != cluster.RecordVersion {
		t.Errorf("replaced action: %v, %+v", ok, e.Value)
	}
	if _, ok := entry[cluster.Action](l, l.keys.Action(action(n2, 1))); ok {
		t.Error("the withdrawn action is still there")
	}
}

func TestOneStaleActionHoldsNoOther(t *testing.T) {
	for _, stale := range []int{0, 49, 50, 199, 200, 449, 450} {
		t.Run(fmt.Sprintf("number %d of 451 is taken", stale), func(t *testing.T) {
			l := newLab(t)
			taken := action(n1, stale)
			taken.ID = "somebody else's"
			l.put(l.keys.Action(taken), taken)
			n, err := l.ledger.Apply(t.Context(), l.term, actions(n1, 451))
			if n != 450 || !errors.Is(err, etcd.ErrConflict) {
				t.Errorf("Apply returned %d, %v; want 450 and ErrConflict", n, err)
			}
			if got := l.count(l.keys.ActionsOf(n1)); got != 451 {
				t.Errorf("%d actions, want 451", got)
			}
			if e, _ := entry[cluster.Action](l, l.keys.Action(taken)); e.Value.ID != "somebody else's" {
				t.Error("the stale swap took effect")
			}
		})
	}
}

// TestAClaimedActionCannotBeWithdrawn: the node marked it after the master had read it.
func TestAClaimedActionCannotBeWithdrawn(t *testing.T) {
	l := newLab(t)
	a := action(n1, 0)
	l.put(l.keys.Action(a), a)
	was, _ := entry[cluster.Action](l, l.keys.Action(a))
	a.State = cluster.ActionClaimed
	l.put(l.keys.Action(a), a)
	elsewhere := action(n2, 0)
	n, err := l.ledger.Apply(t.Context(), l.term, []cluster.Swap{{Old: &was, New: &elsewhere}})
	if n != 0 || !errors.Is(err, etcd.ErrConflict) {
		t.Errorf("Apply returned %d, %v; want 0 and ErrConflict", n, err)
	}
	if e, ok := entry[cluster.Action](l, l.keys.Action(a)); !ok || e.Value.State != cluster.ActionClaimed || l.count(l.keys.ActionsOf(n2)) != 0 {
		t.Errorf("the claimed action: %v, %+v; actions elsewhere: %d", ok, e.Value, l.count(l.keys.ActionsOf(n2)))
	}
}

func TestADeposedMasterWritesNothing(t *testing.T) {
	for _, c := range []struct {
		name  string
		write func(l *lab, f etcd.Entry[cluster.Failover]) error
	}{
		{"Open", func(l *lab, _ etcd.Entry[cluster.Failover]) error {
			return l.ledger.Open(l.t.Context(), l.term, cluster.Opening{Failover: cluster.Failover{Node: n2, Inc: 1}})
		}},
		{"Update", func(l *lab, f etcd.Entry[cluster.Failover]) error {
			f.Value.Phase = cluster.PhaseDone
			return l.ledger.Update(l.t.Context(), l.term, f, f.Value, 0)
		}},
		{"Withdraw", func(l *lab, f etcd.Entry[cluster.Failover]) error {
			return l.ledger.Withdraw(l.t.Context(), l.term, f, f.Value, 0)
		}},
		{"Forget", func(l *lab, f etcd.Entry[cluster.Failover]) error {
			return l.ledger.Forget(l.t.Context(), l.term, []etcd.Entry[cluster.Failover]{f})
		}},
		{"PutBrake", func(l *lab, _ etcd.Entry[cluster.Failover]) error {
			return l.ledger.PutBrake(l.t.Context(), l.term, &cluster.Brake{})
		}},
		{"Apply", func(l *lab, _ etcd.Entry[cluster.Failover]) error {
			n, err := l.ledger.Apply(l.t.Context(), l.term, actions(n1, 430))
			if n != 0 {
				l.t.Errorf("%d swaps took effect", n)
			}
			return err
		}},
		{"Apply with a conflict", func(l *lab, _ etcd.Entry[cluster.Failover]) error {
			l.put("/shaman/lab/other", "")
			a := action(n1, 0)
			_, err := l.ledger.Apply(l.t.Context(), l.term, []cluster.Swap{{Old: &etcd.Entry[cluster.Action]{Value: a, Mod: 1}, New: &a}})
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			f := cluster.Failover{V: 1, Node: n1, Inc: 1, Phase: cluster.PhaseFencing}
			l.put(l.keys.Failover(f.ID()), f)
			was, _ := entry[cluster.Failover](l, l.keys.Failover(f.ID()))
			l.depose()
			if err := c.write(l, was); !errors.Is(err, etcd.ErrDeposed) {
				t.Errorf("%s by a deposed master: %v, want ErrDeposed", c.name, err)
			}
			now, _ := entry[cluster.Failover](l, l.keys.Failover(f.ID()))
			if now.Mod != was.Mod || l.count(l.keys.Actions())+l.count(l.keys.Brake())+l.count(l.keys.History()) != 0 || l.count(l.keys.Failovers()) != 1 {
				t.Errorf("%s by a deposed master changed something", c.name)
			}
		})
	}
}

package membership_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/dispatch"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// TestAdmissionAndOpeningNeverBothSucceed: a node that comes back races the
// master that opens its failover. etcd orders the two, and one of them loses.
func TestAdmissionAndOpeningNeverBothSucceed(t *testing.T) {
	l := newLab(t)
	const master = "/shaman/lab/master/1"
	term := cluster.Term{Key: master, Epoch: cluster.Epoch(l.put(master, "{}"))}
	ledger := dispatch.NewLedger(l.client, l.keys, zap.NewNop(), func() {})
	won := map[string]int{}
	for round := range 150 {
		inc := cluster.Incarnation(2 * round)
		mod := l.put(l.keys.Node(self), cluster.NodeRecord{V: 1, Name: "n1", Incarnation: inc})
		comes := inc // with its own incarnation, or with the one after a sealed failover
		if round%2 == 1 {
			comes++
		}
		var admitted, opened error
		var running sync.WaitGroup
		start := make(chan struct{})
		lease := l.lease()
		running.Go(func() {
			<-start
			_, admitted = l.members.Admit(t.Context(), l.admission(comes, lease))
		})
		running.Go(func() {
			<-start
			// Admission reads three times before its transaction: begin at any point of it.
			for range round % 7 {
				if _, err := l.client.Get(t.Context(), master); err != nil {
					t.Error(err)
				}
			}
			for range 4 {
				opened = ledger.Open(t.Context(), term, cluster.Opening{Failover: cluster.Failover{Node: self, Inc: inc, Phase: cluster.PhaseHeld}, NodeMod: mod})
				if opened == nil {
					return
				}
			}
		})
		close(start)
		running.Wait()
		switch {
		case admitted == nil && opened == nil:
			t.Fatalf("round %d: the node was admitted with incarnation %d, and its failover %d was opened", round, comes, inc)
		case admitted == nil:
			won["admission"]++
		case opened == nil:
			won["opening"]++
			if !errors.Is(admitted, cluster.ErrConflict) && !errors.Is(admitted, cluster.ErrFailoverOpen) {
				t.Errorf("round %d: the loser was told %v", round, admitted)
			}
		default:
			t.Errorf("round %d: neither succeeded: %v; %v", round, admitted, opened)
		}
		for _, op := range []clientv3.Op{
			clientv3.OpDelete(l.keys.Alive(self)), clientv3.OpDelete(l.keys.FailoversOf(self), clientv3.WithPrefix()),
		} {
			if _, err := l.client.Do(t.Context(), op); err != nil {
				t.Fatal(err)
			}
		}
	}
	if won["admission"] == 0 || won["opening"] == 0 {
		t.Errorf("won by %v: that was no race", won)
	}
}

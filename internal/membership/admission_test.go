package membership_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/membership"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (l *lab) admission(inc cluster.Incarnation, lease int64) cluster.Admission {
	return cluster.Admission{
		Node: self, Incarnation: inc, Lease: lease, Alive: cluster.AliveRecord{Incarnation: inc, Capacity: cluster.Capacity{CPUPool: "x86"}},
		BootID: "boot", HardwareID: "hw", Name: "n1", Address: "10.0.0.1",
	}
}

func TestAdmitBringsANodeIn(t *testing.T) {
	l := newLab(t)
	l.put(l.keys.Node(self), `{"v":1,"name":"old","incarnation":3,"maintenance":true,"stopped":"inactive","stopped_at":"then","released":3,"serial":2,"boot_id":"before","later":1}`)
	l.putFailover(2, cluster.PhaseDone)
	serial := l.putFailover(3, cluster.PhaseRelocating)
	lease := l.lease()
	if err := l.members.PutRecovering(t.Context(), self, lease, cluster.RecoveringRecord{}); err != nil {
		t.Fatal(err)
	}
	got, err := l.members.Admit(t.Context(), l.admission(4, lease))
	if err != nil {
		t.Fatal(err)
	}
	if got < serial {
		t.Errorf("serial %d, want at least %d of its last failover", got, serial)
	}
	want := map[string]any{
		"v": 1.0, "name": "n1", "address": "10.0.0.1", "incarnation": 4.0, "boot_id": "boot", "hardware_id": "hw", "cpu_pool": "x86",
		"maintenance": true, "serial": float64(got), "later": 1.0,
	}
	rec, _ := l.read(l.keys.Node(self))
	if diff := cmp.Diff(want, rec); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if alive, under := l.read(l.keys.Alive(self)); alive["incarnation"] != 4.0 || under != lease {
		t.Errorf("alive key %v under lease %d, want incarnation 4 under %d", alive, under, lease)
	}
	if rec, _ := l.read(l.keys.Recovering(self)); rec != nil {
		t.Errorf("an admitted node still is Recovering: %v", rec)
	}
}

func TestAdmitRefuses(t *testing.T) {
	anyError := errors.New("any error")
	for _, c := range []struct {
		name  string
		given func(l *lab, a *cluster.Admission)
		want  error // anyError = some error of no class
	}{
		{"nothing that speaks against it", func(*lab, *cluster.Admission) {}, nil},
		{"a node that has left", func(l *lab, _ *cluster.Admission) { l.client.Delete(l.t.Context(), l.keys.Node(self)) }, membership.ErrNotJoined},
		{"a failover that is held", func(l *lab, _ *cluster.Admission) { l.putFailover(3, cluster.PhaseHeld) }, membership.ErrFailoverOpen},
		{"a failover that is fencing", func(l *lab, _ *cluster.Admission) { l.putFailover(3, cluster.PhaseFencing) }, membership.ErrFailoverOpen},
		{"a failover that awaits an operator", func(l *lab, _ *cluster.Admission) { l.putFailover(3, cluster.PhaseAwaitingFence) }, membership.ErrFailoverOpen},
		{"a failover that is proven and not sealed", func(l *lab, _ *cluster.Admission) { l.putFailover(3, cluster.PhaseSealing) }, membership.ErrFailoverOpen},
		{"an older failover that is not sealed", func(l *lab, _ *cluster.Admission) { l.putFailover(1, cluster.PhaseHeld) }, membership.ErrFailoverOpen},
		{"a failover in a phase of a later version", func(l *lab, _ *cluster.Admission) { l.putFailover(3, "later") }, membership.ErrFailoverOpen},
		{"a failover that cannot be read", func(l *lab, _ *cluster.Admission) {
			l.put(l.keys.Failover(cluster.FailoverID{Node: self, Incarnation: 3}), "{")
		}, anyError},
		{"a sealed failover of this very incarnation", func(l *lab, _ *cluster.Admission) { l.putFailover(3, cluster.PhaseRelocating) }, anyError},
		{"a finished failover of this very incarnation", func(l *lab, _ *cluster.Admission) { l.putFailover(3, cluster.PhaseDone) }, anyError},
		{"a sealed failover and the next incarnation", func(l *lab, a *cluster.Admission) {
			l.putFailover(3, cluster.PhaseRelocating)
			a.Incarnation = 4
		}, nil},
		{"a failover of another node", func(l *lab, _ *cluster.Admission) {
			f := cluster.Failover{Node: other, Inc: 3, Phase: cluster.PhaseFencing}
			l.put(l.keys.Failover(f.ID()), f)
		}, nil},
		{"an incarnation that falls", func(_ *lab, a *cluster.Admission) { a.Incarnation = 2 }, anyError},
		{"an alive key under another lease", func(l *lab, _ *cluster.Admission) {
			l.put(l.keys.Alive(self), "{}", clientv3.WithLease(clientv3.LeaseID(l.lease())))
		}, membership.ErrOtherHolder},
		{"an alive key under no lease at all", func(l *lab, _ *cluster.Admission) { l.put(l.keys.Alive(self), "{}") }, membership.ErrOtherHolder},
		{"an alive key under the lease that it came with", func(l *lab, a *cluster.Admission) {
			l.put(l.keys.Alive(self), "{}", clientv3.WithLease(clientv3.LeaseID(a.Lease)))
		}, nil},
		{"an alive key under its former lease of this boot", func(l *lab, a *cluster.Admission) {
			a.Former = l.lease()
			l.put(l.keys.Alive(self), "{}", clientv3.WithLease(clientv3.LeaseID(a.Former)))
		}, nil},
		{"a lease that has ended", func(l *lab, a *cluster.Admission) {
			l.client.Revoke(l.t.Context(), clientv3.LeaseID(a.Lease))
		}, anyError},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			l.join(3)
			a := l.admission(3, l.lease())
			c.given(l, &a)
			_, holder := l.read(l.keys.Alive(self))
			_, err := l.members.Admit(t.Context(), a)
			alive, under := l.read(l.keys.Alive(self))
			switch {
			case c.want == nil && (err != nil || under != a.Lease || alive["incarnation"] == nil):
				t.Errorf("Admit returned %v, alive is %v under lease %d; want it under %d", err, alive, under, a.Lease)
			case errors.Is(c.want, anyError) && (err == nil || errors.Is(err, membership.ErrFailoverOpen) || errors.Is(err, membership.ErrOtherHolder) || errors.Is(err, membership.ErrNotJoined)):
				t.Errorf("Admit returned %v, want an error of no class", err)
			case c.want != nil && !errors.Is(c.want, anyError) && !errors.Is(err, c.want):
				t.Errorf("Admit returned %v, want %v", err, c.want)
			case c.want != nil && under != holder:
				t.Errorf("a refused Admit moved the alive key from lease %d to %d", holder, under)
			}
		})
	}
}

// TestAdmitObeysNoOrderOfAWithdrawnFailover: such a failover is gone from
// failovers/, and its order may still lie in the node's slot on the mount.
func TestAdmitObeysNoOrderOfAWithdrawnFailover(t *testing.T) {
	l := newLab(t)
	l.join(3)
	withdrawn := l.putFailover(3, cluster.PhaseFencing)
	if _, err := l.client.Delete(t.Context(), l.keys.Failover(cluster.FailoverID{Node: self, Incarnation: 3})); err != nil {
		t.Fatal(err)
	}
	serial, err := l.members.Admit(t.Context(), l.admission(3, l.lease()))
	if err != nil {
		t.Fatal(err)
	}
	if serial < withdrawn || l.record().Serial != serial {
		t.Errorf("orders up to serial %d are not obeyed (record: %d), want up to at least %d", serial, l.record().Serial, withdrawn)
	}
	if next := l.putFailover(3, cluster.PhaseHeld); next <= serial {
		t.Errorf("the next failover has serial %d, which would not be obeyed", next)
	}
}

func TestStop(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.join(3)
	lease := l.lease()
	if err := l.members.Stop(ctx, self, lease, cluster.StopInactive, "now"); !errors.Is(err, membership.ErrOtherHolder) {
		t.Errorf("Stop of a node that is not admitted: %v, want ErrOtherHolder", err)
	}
	l.putFailover(2, cluster.PhaseRelocating) // sealed: no matter
	if _, err := l.members.Admit(ctx, l.admission(3, lease)); err != nil {
		t.Fatal(err)
	}
	if err := l.members.Stop(ctx, self, l.lease(), cluster.StopDown, "now"); !errors.Is(err, membership.ErrOtherHolder) {
		t.Errorf("Stop under another lease: %v, want ErrOtherHolder", err)
	}
	if got := l.record(); got.Stopped != cluster.NotStopped {
		t.Errorf("a refused Stop left %q", got.Stopped)
	}
	if err := l.members.Stop(ctx, self, lease, cluster.StopInactive, "now"); err != nil {
		t.Fatal(err)
	}
	if got := l.record(); got.Stopped != cluster.StopInactive || got.StoppedAt != "now" {
		t.Errorf("record %+v, want it Inactive since now", got)
	}
	if alive, _ := l.read(l.keys.Alive(self)); alive != nil {
		t.Errorf("the alive key of a stopped node is %v", alive)
	}
	l.putFailover(3, cluster.PhaseHeld)
	if err := l.members.Stop(ctx, self, lease, cluster.StopInactive, "later"); !errors.Is(err, membership.ErrFailoverOpen) {
		t.Errorf("Stop while a failover is open: %v, want ErrFailoverOpen", err)
	}
	if err := l.members.Stop(ctx, other, lease, cluster.StopInactive, "now"); !errors.Is(err, membership.ErrNotJoined) {
		t.Errorf("Stop of a node that is not joined: %v, want ErrNotJoined", err)
	}
}

func TestLeave(t *testing.T) {
	l := newLab(t)
	ctx := t.Context()
	l.join(3)
	lease := l.lease()
	l.putFailover(1, cluster.PhaseDone)
	if err := l.members.Leave(ctx, self, lease); !errors.Is(err, cluster.ErrConflict) {
		t.Errorf("Leave of a node that is not admitted: %v, want ErrConflict", err)
	}
	if _, err := l.members.Admit(ctx, l.admission(3, lease)); err != nil {
		t.Fatal(err)
	}
	l.putFailover(2, cluster.PhaseRelocating)
	if err := l.members.Leave(ctx, self, lease); !errors.Is(err, membership.ErrFailoverOpen) {
		t.Errorf("Leave while a failover relocates: %v, want ErrFailoverOpen", err)
	}
	l.putFailover(2, cluster.PhaseDone)
	if err := l.members.Leave(ctx, self, l.lease()); !errors.Is(err, cluster.ErrConflict) {
		t.Errorf("Leave under another lease: %v, want ErrConflict", err)
	}
	if err := l.members.Leave(ctx, self, lease); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{l.keys.Node(self), l.keys.Alive(self), l.keys.Recovering(self)} {
		if got, _ := l.read(key); got != nil {
			t.Errorf("%s is still there: %v", key, got)
		}
	}
	if err := l.members.Leave(ctx, self, lease); !errors.Is(err, membership.ErrNotJoined) {
		t.Errorf("the second Leave: %v, want ErrNotJoined", err)
	}
}

package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

// TestVEsOfANodeThatLeftGoOn: its repository goes by its own hand, which is no
// seal. The word of its leaving may take long to reach the rest of the daemon.
func TestVEsOfANodeThatLeftGoOn(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/kept", drivertest.Definition{})
	s.Active = func(ctx context.Context, _ Admitted) error {
		s.members.onLeave = func() {
			s.mount.mu.Lock()
			s.mount.ownErr = cluster.ErrSealed // what a look finds from now on
			s.mount.mu.Unlock()
		}
		if err := s.Leave(ctx, anytime); err != nil {
			t.Error(err)
		}
		return sleep(ctx, guardEvery+guardEvery/2)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*guardEvery)
	defer cancel()
	if err := s.active(ctx, Admitted{Incarnation: 3, Lease: s.lease}); errors.Is(err, errQuiesced) {
		t.Errorf("it stopped everything: %v", err)
	}
	if !s.hv.Running("/ve/kept") {
		t.Error("a VE of a node that left was stopped")
	}
}

func TestANodeDoesNotLeaveOverAnObjection(t *testing.T) {
	s := newSite(t)
	s.setAdmitted(&Admitted{Incarnation: 3, Lease: s.lease})
	s.Gate.Open(3)
	no := errors.New("something came in")
	err := s.Leave(t.Context(), func(context.Context) error {
		if _, err := s.Gate.Hold(3); err == nil {
			t.Error("asked while something may still come in")
		}
		return no
	})
	if _, held := s.Gate.Hold(3); !errors.Is(err, no) || held != nil || s.tr.String() != "" {
		t.Errorf("Leave = %v, gate %v, steps %q; want to go on as before", err, held, s.tr)
	}
}

// TestALeaseOfAQuiescedAdmissionIsNotKeptUp: the revocation at the end of a
// quiesce was lost. As long as that lease lives no failover can open.
func TestALeaseOfAQuiescedAdmissionIsNotKeptUp(t *testing.T) {
	s := newSite(t)
	must(t, s.State.update(func(m *memory) { m.Lease, m.Incarnation, m.Closed = 9, 3, 3 }))
	alive := true
	s.Resume = func(context.Context, int64) (Lease, error) {
		if !alive {
			return nil, ErrLeaseGone
		}
		return revocable{s.lease, func() { alive = false }}, nil
	}
	s.Grant = func(context.Context) (Lease, error) {
		return &fakeLease{tr: s.tr, id: 10, lost: make(chan struct{})}, nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l, resumed, err := s.obtain(ctx)
	must(t, err)
	if alive || resumed || l.ID() != 10 {
		t.Errorf("lease %d, resumed %v, the old one lives: %v; want a new one, and the old one gone", l.ID(), resumed, alive)
	}
	must(t, s.State.update(func(m *memory) { m.Incarnation = 4 })) // admitted anew since
	alive = true
	if l, resumed, err = s.obtain(ctx); err != nil || !resumed || l.ID() != 9 {
		t.Errorf("lease %v, resumed %v, %v; want that of the admission that goes on", l, resumed, err)
	}
}

type revocable struct {
	*fakeLease
	revoked func()
}

func (l revocable) Revoke(context.Context) error { l.revoked(); return nil }

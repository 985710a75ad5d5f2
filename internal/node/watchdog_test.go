package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

func (s *site) withDog(want time.Duration) {
	inner := s.Settings
	s.Settings = func() Settings {
		st := inner()
		st.Watchdog = want
		return st
	}
}

func TestAdmissionPublishesTheArmedWatchdog(t *testing.T) {
	t.Run("armed", func(t *testing.T) {
		s := newSite(t)
		s.withDog(5 * time.Second)
		if _, _, err := s.step(t.Context(), s.lease); err != nil {
			t.Fatal(err)
		}
		want := cluster.Watchdog{Armed: true, Timeout: 5 * time.Second, SelfFenceTimeout: lab().SelfFence}
		if got := s.members.admitted[0].Watchdog; got != want {
			t.Errorf("the admission publishes %+v, want %+v", got, want)
		}
	})
	t.Run("a device that cannot be used keeps nobody out", func(t *testing.T) {
		s := newSite(t)
		s.withDog(5 * time.Second)
		s.dog.err = errors.New("busy")
		if _, _, err := s.step(t.Context(), s.lease); err != nil {
			t.Fatal(err)
		}
		if got := s.members.admitted[0].Watchdog; got != (cluster.Watchdog{}) {
			t.Errorf("the admission publishes %+v for a watchdog that is not armed", got)
		}
	})
}

// Numbers change only while none are published.
func TestTuneWatchdog(t *testing.T) {
	p := lab().SelfFence
	armed := func(w time.Duration) cluster.Watchdog {
		return cluster.Watchdog{Armed: true, Timeout: w, SelfFenceTimeout: p}
	}
	for name, c := range map[string]struct {
		have cluster.Watchdog
		want time.Duration
		dogs error
		pub  error
		did  string
	}{
		"as it should be":                {have: armed(5 * time.Second), want: 5 * time.Second},
		"off, as it should be":           {},
		"arm, then publish":              {want: 5 * time.Second, did: "arm 5s, publish 5s/" + p.String()},
		"not armed, nothing published":   {want: 5 * time.Second, dogs: errors.New("busy")},
		"take back, disarm":              {have: armed(5 * time.Second), did: "publish 0s/0s, disarm"},
		"not taken back, not disarmed":   {have: armed(5 * time.Second), pub: errors.New("etcd is away"), did: "publish 0s/0s"},
		"take back, change, publish":     {have: armed(5 * time.Second), want: 9 * time.Second, did: "publish 0s/0s, retune 9s/" + p.String() + ", publish 9s/" + p.String()},
		"not taken back, not changed":    {have: armed(5 * time.Second), want: 9 * time.Second, pub: errors.New("etcd is away"), did: "publish 0s/0s"},
		"SELF_FENCE_TIMEOUT has changed": {have: cluster.Watchdog{Armed: true, Timeout: 5 * time.Second, SelfFenceTimeout: time.Second}, want: 5 * time.Second, did: "publish 0s/0s, retune 5s/" + p.String() + ", publish 5s/" + p.String()},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.withDog(c.want)
			s.dog.now, s.dog.err, s.members.dogErr = c.have, c.dogs, c.pub
			err := s.tuneWatchdog(t.Context(), Admitted{Incarnation: 3, Lease: s.lease})
			if (err != nil) != (c.dogs != nil || c.pub != nil) {
				t.Errorf("error %v", err)
			}
			if s.tr.String() != c.did {
				t.Errorf("did %q, want %q", s.tr, c.did)
			}
			if err == nil {
				s.tr.steps = nil
				if err := s.tuneWatchdog(t.Context(), Admitted{Incarnation: 3, Lease: s.lease}); err != nil || s.tr.String() != "" {
					t.Errorf("again: did %q, %v; want nothing", s.tr, err)
				}
			}
		})
	}
}

// What is not stopped within STOP_BUDGET, the watchdog stops.
func TestQuiesceLimitsTheFeeding(t *testing.T) {
	s := newSite(t)
	s.dog.now = cluster.Watchdog{Armed: true}
	if err := s.quiesce(t.Context(), 3, errors.New("test")); err != nil {
		t.Fatal(err)
	}
	if got := s.tr.String(); !strings.HasPrefix(got, "limit, ") || !strings.HasSuffix(got, ", lift") {
		t.Errorf("did %q, want limit first and lift last", got)
	}
	s = newSite(t)
	s.dog.now = cluster.Watchdog{Armed: true}
	release, err := func() (func(), error) { s.Gate.Open(3); return s.Gate.Hold(3) }()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	inner := s.Settings
	s.Settings = func() Settings { st := inner(); st.StopBudget = time.Millisecond; return st }
	if err := s.quiesce(t.Context(), 3, errors.New("test")); err == nil || strings.Contains(s.tr.String(), "lift") {
		t.Errorf("a quiesce that failed with %v lets the dog go on: did %q", err, s.tr)
	}
}

// The watchdog is disarmed only after etcd has recorded that nobody may count on
// it, or when nothing runs here any more.
func TestRetireAndTheWatchdog(t *testing.T) {
	for name, c := range map[string]struct {
		lease   bool
		closed  bool
		stopErr error
		dogErr  error
		did     string
		armed   bool
		failed  bool
	}{
		"stopped on purpose":           {lease: true, did: "stop, disarm, revoke"},
		"etcd is away":                 {lease: true, stopErr: errors.New("away"), did: "stop", armed: true, failed: true},
		"the lease was lost: disowned": {lease: true, stopErr: cluster.ErrOtherHolder, did: "stop, disown, disarm"},
		"a failover counts with it":    {lease: true, stopErr: cluster.ErrOtherHolder, dogErr: errors.New("open"), did: "stop, disown", armed: true, failed: true},
		"never admitted":               {did: "disown, disarm"},
		"quiesced: nothing runs here":  {closed: true, did: "disarm"},
		"quiesced with a lease: no goodbye, or nobody would take it over": {lease: true, closed: true, did: "revoke, disarm"},
		"never admitted, and etcd is away":                                {dogErr: errors.New("away"), did: "disown", armed: true, failed: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.dog.now = cluster.Watchdog{Armed: true}
			s.members.stopErr, s.members.dogErr = c.stopErr, c.dogErr
			if c.closed {
				if err := s.State.update(func(m *memory) { m.Incarnation, m.Closed = 3, 3 }); err != nil {
					t.Fatal(err)
				}
			}
			var l Lease
			if c.lease {
				l = s.lease
			}
			_, err := s.Retire(t.Context(), l)
			if (err != nil) != c.failed || s.tr.String() != c.did || s.dog.State().Armed != c.armed {
				t.Errorf("did %q, armed %v, %v; want %q, armed %v", s.tr, s.dog.State().Armed, err, c.did, c.armed)
			}
		})
	}
}

func TestLeaseLostActionReboots(t *testing.T) {
	for _, reboot := range []bool{true, false} {
		s := newSite(t)
		inner := s.Settings
		s.Settings = func() Settings { st := inner(); st.Reboot = reboot; return st }
		if err := s.State.update(func(m *memory) { m.Incarnation = 3 }); err != nil {
			t.Fatal(err)
		}
		s.Heart.order = cluster.Order{V: 1, Failover: string(self) + ".3", Inc: 3, Serial: 5, State: cluster.Ordered}
		if err := s.obeyOnce(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := len(s.resets) == 1; got != reboot || s.State.get().Answered != 5 {
			t.Errorf("LEASE_LOST_ACTION=reboot %v: reset %v, answered %d", reboot, got, s.State.get().Answered)
		}
	}
}

// An orderly shutdown stops everything, records it, and only then disarms.
func TestShutDown(t *testing.T) {
	for name, c := range map[string]struct {
		stopErr error
		did     string
		armed   bool
	}{
		"recorded":     {did: "stop /ve/a, limit, stop /ve/a, barrier, sync, lift, stop, disarm, revoke"},
		"etcd is away": {stopErr: errors.New("away"), did: "stop /ve/a, limit, stop /ve/a, barrier, sync, lift, stop", armed: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.dog.now = cluster.Watchdog{Armed: true}
			s.members.stopErr = c.stopErr
			s.hv.Run("/ve/a", drivertest.Definition{})
			s.Gate.Open(3)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			s.setAdmitted(&Admitted{Incarnation: 3, Lease: s.lease})
			ended := make(chan error, 1)
			go func() {
				ended <- s.guard(ctx, Admitted{Incarnation: 3, Lease: s.lease}, func(err error) { cancel(err) })
			}()
			done := make(chan error, 1)
			go func() { done <- s.ShutDown(t.Context()) }()
			if err := <-ended; !errors.Is(err, ErrDown) {
				t.Errorf("the admission ends with %v", err)
			}
			s.setAdmitted(nil)
			if err := <-done; (err != nil) != (c.stopErr != nil) {
				t.Errorf("ShutDown: %v", err)
			}
			if s.tr.String() != c.did || s.dog.State().Armed != c.armed || (c.stopErr == nil && s.members.stopped != cluster.StopDown) {
				t.Errorf("did %q, recorded %q, armed %v; want %q", s.tr, s.members.stopped, s.dog.State().Armed, c.did)
			}
			if !s.shuttingDown() || s.State.get().Closed != 3 {
				t.Error("it would be admitted again, or its gate opens again")
			}
			// The end of the daemon that follows has nothing to add.
			if gone, err := s.Retire(t.Context(), s.lease); c.stopErr == nil && (gone || err != nil || s.tr.String() != c.did) {
				t.Errorf("Retire after that: %v, %v, did %q", gone, err, s.tr)
			}
		})
	}
}

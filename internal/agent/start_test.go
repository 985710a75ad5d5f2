package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

const web = cluster.ResourceID("ct-web")

// bubble runs a test with a site whose time passes at once.
func bubble(t *testing.T, test func(*testing.T, *site)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newSite(t)) })
}

func TestStartsThatAreAnswered(t *testing.T) {
	bad := errors.New("no such kernel")
	failing := func(times int, err error) func(*site) {
		return func(s *site) { s.hv.Inject("start", "/ve/web", drivertest.Fault{Times: times, Err: err}) }
	}
	tests := []struct {
		name   string
		given  func(*site)
		start  bool
		want   cluster.Outcome
		runs   bool
		starts int
	}{
		{name: "a start", given: func(*site) {}, start: true, want: cluster.OutcomeStarted, runs: true, starts: 1},
		{name: "what is only to be registered is not started", given: func(*site) {}, want: cluster.OutcomeRegistered},
		{name: "one that runs already is started, and not again", given: func(s *site) { s.hv.Run("/ve/web", drivertest.Definition{}) }, start: true, want: cluster.OutcomeStarted, runs: true},
		{name: "one failure is tried again", given: failing(1, bad), start: true, want: cluster.OutcomeStarted, runs: true, starts: 1},
		{name: "two failures are a failure", given: failing(2, bad), start: true, want: cluster.OutcomeFailed},
		{name: "a VE that cannot be registered is a failure", given: func(s *site) { s.hv.Inject("register", "/ve/web", drivertest.Fault{Err: bad}) }, start: true, want: cluster.OutcomeFailed},
		{
			name: "a registration that fails stops no VE that runs", start: true, want: cluster.OutcomeStarted, runs: true,
			given: func(s *site) {
				s.hv.Run("/ve/web", drivertest.Definition{})
				s.hv.Inject("register", "/ve/web", drivertest.Fault{Err: bad})
			},
		},
		{name: "an action that was withdrawn is not carried out", given: func(s *site) { s.inbox.withdraw("ct-web") }, start: true, want: cluster.OutcomeSuperseded},
		{name: "a resource that is gone is not started", given: func(s *site) { delete(s.repo.own, web) }, start: true, want: cluster.OutcomeGone},
		{name: "trouble of the storage is waited out, however long", given: failing(50, cluster.ErrHold), start: true, want: cluster.OutcomeStarted, runs: true, starts: 1},
		{name: "so is a lock that ends in time", given: failing(50, cluster.ErrLocked), start: true, want: cluster.OutcomeStarted, runs: true, starts: 1},
		{
			name: "and a hypervisor that cannot be asked to register", start: true, want: cluster.OutcomeStarted, runs: true, starts: 1,
			given: func(s *site) {
				s.hv.Inject("register", "/ve/web", drivertest.Fault{Times: 50, Err: cluster.ErrCannotAsk})
			},
		},
		{
			name: "and a mount that cannot be looked at", start: true, want: cluster.OutcomeStarted, runs: true, starts: 1,
			given: func(s *site) { s.repo.fail["look"] = []error{cluster.ErrHold, cluster.ErrSealed, cluster.ErrHold} },
		},
		{
			name: "a start that hangs past its deadline is stopped, then tried again", start: true, want: cluster.OutcomeStarted, runs: true, starts: 1,
			given: func(s *site) { s.hv.Inject("start", "/ve/web", drivertest.Fault{Times: 1, Hang: true}) },
		},
		{
			name: "starts whose outcome stays unknown are a failure once they are proven stopped", start: true, want: cluster.OutcomeFailed, starts: 2,
			given: func(s *site) { s.hv.Inject("start", "/ve/web", drivertest.Fault{Times: 2, Late: true}) },
		},
		{
			name: "a stop that cannot be proven is tried until it is", start: true, want: cluster.OutcomeFailed,
			given: func(s *site) {
				failing(2, bad)(s)
				s.hv.Inject("kill", "/ve/web", drivertest.Fault{Times: 20, Err: cluster.ErrCannotAsk})
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				s.ownVE(web, cluster.WantRunning)
				a := take(web, 0)
				a.Start = tt.start
				j := s.job(a)
				tt.given(s)
				s.bring(t.Context(), j)
				said := s.said()
				if len(said) != 1 || said[0].Outcome != tt.want || said[0].State != cluster.ActionDone {
					t.Fatalf("answers %+v, want one: %s", said, tt.want)
				}
				if got := s.hv.Running("/ve/web"); got != tt.runs {
					t.Errorf("runs: %v, want %v", got, tt.runs)
				}
				if got := s.hv.Starts("/ve/web"); got != tt.starts {
					t.Errorf("started %d times, want %d", got, tt.starts)
				}
			})
		})
	}
}

func TestALockThatStaysIsAFailure(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		set := s.Settings()
		set.LockRetryTimeout, set.StartRetries = 5*time.Millisecond, 0 // by the real clock: CLOCK_BOOTTIME
		s.Agent.Settings = func() Settings { return set }
		s.ownVE(web, cluster.WantRunning)
		s.hv.Inject("start", "/ve/web", drivertest.Fault{Err: cluster.ErrLocked})
		s.bring(t.Context(), s.job(take(web, 0)))
		if said := s.said(); len(said) != 1 || said[0].Outcome != cluster.OutcomeFailed {
			t.Errorf("answers %+v, want one failure", said)
		}
		tries := 0
		for _, c := range s.hv.Calls() {
			if c == "start /ve/web" {
				tries++
			}
		}
		if tries < 3 {
			t.Errorf("asked for the lock %d times only", tries)
		}
	})
}

// A condition that does not hold keeps the start back; the moment it holds, the
// VE starts.
func TestTheConditionsOfAStart(t *testing.T) {
	tests := []struct {
		name        string
		break_, fix func(*site)
	}{
		{"the gate is open", func(s *site) { s.gate.closed.Store(true) }, func(s *site) { s.gate.closed.Store(false) }},
		{"the lease is valid", func(s *site) { s.invalid.Store(true) }, func(s *site) { s.invalid.Store(false) }},
		{"the lease is valid still after the registration", func(s *site) {
			s.At = func(label string) {
				if label == "register:after" {
					s.invalid.Store(true)
					s.At = func(string) {}
				}
			}
		}, func(s *site) { s.invalid.Store(false) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				s.ownVE(web, cluster.WantRunning)
				tt.break_(s)
				j := s.job(take(web, 0))
				done := make(chan struct{})
				go func() { s.bring(t.Context(), j); close(done) }()
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if n := s.hv.Starts("/ve/web"); n != 0 || len(s.outcomes) != 0 {
					t.Fatalf("started %d times, %d answers", n, len(s.outcomes))
				}
				tt.fix(s)
				<-done
				if !s.hv.Running("/ve/web") {
					t.Error("not started once it holds")
				}
			})
		})
	}
}

func TestAnUnknownOutcomeIsNeverAnswered(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.ownVE(web, cluster.WantRunning)
		s.hv.Inject("start", "/ve/web", drivertest.Fault{Times: 1, Late: true})
		s.hv.Inject("kill", "/ve/web", drivertest.Fault{Err: cluster.ErrCannotAsk})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		j := s.job(take(web, 0))
		go func() { s.bring(ctx, j); close(done) }()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		cancel()
		<-done
		if said := s.said(); len(said) != 0 {
			t.Errorf("answered %+v, though nobody knows", said)
		}
	})
}

func TestAnUnknownOutcomeIsStoppedAlsoWhileTheMountIsAway(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.ownVE(web, cluster.WantRunning)
		s.hv.Inject("start", "/ve/web", drivertest.Fault{Times: 1, Hang: true})
		s.At = func(label string) {
			if label == "start:before" {
				s.repo.fail["look"] = slices.Repeat([]error{cluster.ErrHold}, 1000)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		j := s.job(take(web, 0))
		go func() { s.bring(ctx, j); close(done) }()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		cancel()
		<-done
		if calls := s.hv.Calls(); !slices.Contains(calls, "kill /ve/web") {
			t.Errorf("calls %q; want a stop by force", calls)
		}
	})
}

func TestAStartThatSucceedsClearsWhatKeptItBack(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		r := s.ownVE(web, cluster.WantStopped)
		r.Waiting, r.Migrating = "no room", other
		s.repo.own[web] = r
		s.repo.fail["update"] = []error{nil}
		s.bring(t.Context(), s.job(take(web, 0)))
		if got := s.repo.get(web); got.Waiting != "" || got.Migrating != "" || got.Want != cluster.WantRunning {
			t.Errorf("resource %+v; want running, waiting for nothing", got)
		}
	})
}

func TestWhyAVEWaitsIsWrittenDown(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.ownVE(web, cluster.WantRunning)
		a := take(web, 0)
		a.Start, a.Waiting = false, "no room"
		s.repo.fail["update"] = []error{cluster.ErrHold}
		s.bring(t.Context(), s.job(a))
		if got := s.repo.get(web); got.Waiting != "no room" || got.Want != cluster.WantRunning || s.hv.Running("/ve/web") {
			t.Errorf("resource %+v; want it to wait, and to run still", got)
		}
		if said := s.said(); len(said) != 1 || said[0].Outcome != cluster.OutcomeRegistered {
			t.Errorf("answers %+v, want registered", said)
		}
	})
}

func TestAStartAfterBoot(t *testing.T) {
	for name, fails := range map[string]bool{"that succeeds": false, "that fails": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				s.ownVE(web, cluster.WantRunning)
				if fails {
					s.hv.Inject("start", "/ve/web", drivertest.Fault{Err: errors.New("bad")})
				}
				s.boot.ids = []cluster.ResourceID{web, "ct-gone"}
				s.bootStarts()
				if !s.isBusy(web) {
					t.Error("not busy: its stopped VE would be taken for a stop")
				}
				for range 2 {
					s.bring(t.Context(), s.starts.pop(t.Context()))
				}
				if n := len(s.boot.Pending()); n != 0 || s.hv.Running("/ve/web") == fails || len(s.said()) != 0 {
					t.Errorf("%d left on the list, running %v", n, s.hv.Running("/ve/web"))
				}
				if got := s.repo.get(web).Want; got != cluster.WantRunning {
					t.Errorf("STATE %q; it should still run", got)
				}
			})
		})
	}
}

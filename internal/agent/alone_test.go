package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

// TestNothingIsStartedThatIsGivenAway: an operator moves a VE off while its
// start after boot is between looking for the resource and starting it. Such a
// start has no action that would stand in the way.
func TestNothingIsStartedThatIsGivenAway(t *testing.T) {
	for _, step := range []string{"register:before", "register:after", "start:before"} {
		for _, verb := range []cluster.Verb{cluster.VerbGiveBack, cluster.VerbBreak} {
			t.Run(step+" "+string(verb), func(t *testing.T) {
				bubble(t, func(t *testing.T, s *site) {
					s.ownVE(web, cluster.WantRunning)
					s.boot.ids = []cluster.ResourceID{web}
					errand, ended := s.job(action(verb, web)), make(chan struct{})
					s.At = func(label string) {
						if label == step {
							s.At = func(string) {}
							go func() { defer close(ended); s.errand(t.Context(), errand) }()
							synctest.Wait() // it goes as far as it can
						}
					}
					s.bring(t.Context(), &job{id: web, start: true, boot: true})
					<-ended
					if _, here := s.repo.own[web]; !here && s.hv.Running("/ve/web") {
						t.Errorf("its resource is another's (%+v), and it runs here", s.said())
					}
				})
			})
		}
	}
}

func TestAloneWaitsForTheOtherOrTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		release, err := s.alone(t.Context(), web)
		if err != nil {
			t.Fatal(err)
		}
		over := errors.New("the admission ended")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(over)
		if _, err := s.alone(ctx, web); !errors.Is(err, over) {
			t.Errorf("waiting ended with %v, want the cause", err)
		}
		if next, err := s.alone(ctx, "ct-other"); err != nil {
			t.Errorf("another resource had to wait: %v", err)
		} else {
			next()
		}
		got := make(chan struct{})
		go func() {
			if next, err := s.alone(t.Context(), web); err == nil {
				defer next()
			}
			close(got)
		}()
		synctest.Wait()
		select {
		case <-got:
			t.Error("two have it at once")
		default:
		}
		release()
		<-got
	})
}

// TestAFileWithoutAWordShouldRun: what an action starts should run, also where
// the file (of the original's format) does not say so. The driver's word,
// "stopped", must not be written down in between.
func TestAFileWithoutAWordShouldRun(t *testing.T) {
	bad := drivertest.Fault{Err: errors.New("no such kernel")}
	tests := []struct {
		name  string
		given func(*site, *cluster.Action)
		want  cluster.Outcome
	}{
		{"its start fails here", func(s *site, _ *cluster.Action) { s.hv.Inject("start", "/ve/web", bad) }, cluster.OutcomeFailed},
		{"there is no room for it", func(_ *site, a *cluster.Action) { a.Start, a.Waiting = false, "no room" }, cluster.OutcomeRegistered},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				s.ownVE(web, cluster.WantUnset)
				a := take(web, 0)
				tt.given(s, &a)
				s.bring(t.Context(), s.job(a))
				if said := s.said(); len(said) != 1 || said[0].Outcome != tt.want {
					t.Fatalf("answers %+v, want %s", said, tt.want)
				}
				if !s.hv.Registered("/ve/web") {
					t.Fatal("it is not registered, so the next look says nothing")
				}
				if _, err := s.reconcile(t.Context()); err != nil {
					t.Fatal(err)
				}
				if r := s.repo.get(web); r.Want != cluster.WantRunning {
					t.Errorf("STATE %q after the next look, want running", r.Want)
				}
			})
		})
	}
}

// TestNothingComesInWhileANodeLeaves: a take is claimed between the look at the
// empty repository and the closing of the gate.
func TestNothingComesInWhileANodeLeaves(t *testing.T) {
	for _, keep := range []bool{false, true} {
		bubble(t, func(t *testing.T, s *site) {
			s.pausing = func() {
				a := take(web, 0)
				a.State = cluster.ActionClaimed
				s.inbox.put(a)
				s.ownVE(web, cluster.WantRunning)
			}
			got := s.do(t, cluster.Action{ID: "1", Verb: cluster.VerbLeave, Node: self, Inc: 3, Force: keep})
			if got.Outcome != cluster.OutcomeRefused || s.left.Load() {
				t.Errorf("keep %v: answer %s, %q, left %v; the resource that came in is lost with the repository", keep, got.Outcome, got.Error, s.left.Load())
			}
		})
	}
}

// TestAStartAfterBootThatIsOutOfDate: the daemon ended before it had noted that
// the VE was moved away; by now it is back, for another reason than to run.
func TestAStartAfterBootThatIsOutOfDate(t *testing.T) {
	for name, change := range map[string]func(*cluster.Resource){
		"it was switched off elsewhere": func(r *cluster.Resource) { r.Want = cluster.WantStopped },
		"it waits for room here":        func(r *cluster.Resource) { r.Waiting = "no room" },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				r := s.ownVE(web, cluster.WantRunning)
				change(&r)
				s.repo.own[web], s.boot.ids = r, []cluster.ResourceID{web}
				s.bring(t.Context(), &job{id: web, start: true, boot: true})
				if s.hv.Running("/ve/web") || len(s.boot.Pending()) > 0 {
					t.Errorf("runs: %v, still to be started: %v", s.hv.Running("/ve/web"), s.boot.Pending())
				}
			})
		})
	}
}

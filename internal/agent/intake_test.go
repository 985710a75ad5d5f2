package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"pgregory.net/rapid"
)

// queued empties the queue of starts, in its order.
func (s *site) queued() (out []cluster.ResourceID) {
	for !s.starts.empty() {
		out = append(out, s.starts.pop(context.Background()).id)
	}
	return out
}

func TestASweepMarksClaimsAndQueues(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		for id, prio := range map[cluster.ResourceID]uint32{"ct-a": 1, "ct-b": 9, "ct-c": 5} {
			s.pooled(id)
			s.inbox.put(take(id, prio))
		}
		var order []string
		s.At = func(label string) { order = append(order, label) }
		s.sweep(t.Context())
		if diff := cmp.Diff([]string{"mark:before", "mark:after", "claim-rename:before", "claim-rename:after"}, order); diff != "" {
			t.Errorf("an action is marked before anything is touched (-want +got):\n%s", diff)
		}
		if got := s.inbox.get("ct-a"); got.State != cluster.ActionClaimed || got.ClaimedAt == "" {
			t.Errorf("action %+v, want claimed", got)
		}
		if len(s.repo.own) != 3 || !s.isBusy("ct-a") {
			t.Errorf("%d resources claimed, busy %v; want 3, busy", len(s.repo.own), s.isBusy("ct-a"))
		}
		s.sweep(t.Context())
		if diff := cmp.Diff([]cluster.ResourceID{"ct-b", "ct-c", "ct-a"}, s.queued()); diff != "" {
			t.Errorf("once each, the highest priority first (-want +got):\n%s", diff)
		}
	})
}

func TestWhatASweepLeavesAlone(t *testing.T) {
	older := take(web, 0)
	older.Inc = 2
	tests := []struct {
		name   string
		given  func(*site)
		action cluster.Action
		state  cluster.ActionState
		said   cluster.Outcome
		own    bool // the resource was claimed
	}{
		{name: "everything, while the lease is not valid", given: func(s *site) { s.invalid.Store(true) }, action: take(web, 0), state: cluster.ActionNew},
		{name: "an action of an older incarnation is superseded", given: func(*site) {}, action: older, state: cluster.ActionNew, said: cluster.OutcomeSuperseded},
		{name: "one whose mark was not written", given: func(s *site) { s.inbox.fail = []error{errors.New("etcd away")} }, action: take(web, 0), state: cluster.ActionNew},
		{name: "one whose mark was written, and the answer lost, waits for the next look", given: func(s *site) { s.inbox.fail, s.inbox.lost = []error{errors.New("timeout")}, true }, action: take(web, 0), state: cluster.ActionClaimed},
		{name: "one that is claimed while the gate is closed", given: func(s *site) { s.gate.closed.Store(true) }, action: take(web, 0), state: cluster.ActionClaimed},
		{name: "one whose pool cannot be reached", given: func(s *site) { s.repo.fail["claim"] = []error{cluster.ErrHold} }, action: take(web, 0), state: cluster.ActionClaimed},
		{name: "one whose resource is nowhere", given: func(s *site) { delete(s.repo.pools[pool], web) }, action: take(web, 0), state: cluster.ActionClaimed, said: cluster.OutcomeGone},
		{name: "one that names no pool", given: func(*site) {}, action: func() cluster.Action { a := take(web, 0); a.Pool = "../x"; return a }(), state: cluster.ActionClaimed, said: cluster.OutcomeRefused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				s.pooled(web)
				s.inbox.put(tt.action)
				tt.given(s)
				s.sweep(t.Context())
				if got := s.inbox.get("ct-web").State; got != tt.state {
					t.Errorf("action is %s, want %s", got, tt.state)
				}
				var said cluster.Outcome
				for _, a := range s.said() {
					said += a.Outcome
				}
				if _, own := s.repo.own[web]; said != tt.said || own != tt.own || len(s.queued()) != 0 {
					t.Errorf("answered %q, claimed %v; want %q, %v", said, own, tt.said, tt.own)
				}
				if tt.said != "" {
					return
				}
				s.invalid.Store(false)
				s.gate.closed.Store(false)
				s.sweep(t.Context())
				if diff := cmp.Diff([]cluster.ResourceID{web}, s.queued()); diff != "" {
					t.Errorf("once it can (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestAClaimOfAnEarlierProcessIsGoneOnWith(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		r := s.ownVE(web, cluster.WantRunning)
		renamed := web + "~" + cluster.ResourceID(other)
		delete(s.repo.own, web)
		r.ID = renamed
		s.repo.own[renamed] = r
		// Another VE has the name.
		s.repo.own[web] = cluster.Resource{ID: web, Kind: "ct", Path: "/ve/other"}
		a := take(web, 0)
		a.State, a.Path = cluster.ActionClaimed, "/ve/web"
		s.inbox.put(a)
		s.sweep(t.Context())
		s.bring(t.Context(), s.starts.pop(t.Context()))
		said := s.said()
		if len(said) != 1 || said[0].Outcome != cluster.OutcomeStarted || said[0].NewName != renamed || !s.hv.Running("/ve/web") {
			t.Errorf("answers %+v; want started, as %s", said, renamed)
		}
	})
}

// The local copy may lag behind for as long as a watch is broken.
func TestAFinishedActionIsNotDoneAgainWhileTheCopyLags(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.ownVE(web, cluster.WantRunning)
		j := s.job(action(cluster.VerbStart, web))
		s.setKnown(j.action.Value, true)
		s.inbox.lags = true
		s.errand(t.Context(), j)
		must(t, s.writeAnswers(t.Context(), []answer{<-s.outcomes}))
		s.hv.End("/ve/web", cluster.CauseStop) // its guest shut down since
		s.sweep(t.Context())
		if !s.errands.empty() {
			t.Error("the start is done again, against the guest's own stop")
		}
		s.inbox.lags = false
		again := action(cluster.VerbStart, web)
		again.ID = "another"
		s.inbox.put(again)
		s.sweep(t.Context())
		if s.errands.empty() {
			t.Error("a new action of that name is not taken in")
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnOlderAnswerDoesNotForgetANewerAction(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		older, newer := action(cluster.VerbStart, web), action(cluster.VerbStart, web)
		newer.ID = "newer"
		s.setKnown(newer, true)
		s.setKnown(older, false)
		if !s.isKnown(newer) {
			t.Error("the newer one would be done twice")
		}
	})
}

func TestOutcomesAreWritten(t *testing.T) {
	lost := errors.New("timeout")
	tests := []struct {
		name  string
		given func(*site)
		want  []cluster.Outcome
		ends  error
	}{
		{"once", func(*site) {}, []cluster.Outcome{cluster.OutcomeStarted}, nil},
		{"again after writes that failed", func(s *site) { s.inbox.fail = []error{lost, lost, lost} }, []cluster.Outcome{cluster.OutcomeStarted}, nil},
		{"not again after a write that took effect and whose answer was lost", func(s *site) { s.inbox.fail, s.inbox.lost = []error{lost}, true }, []cluster.Outcome{cluster.OutcomeStarted}, nil},
		{"again over an action that changed meanwhile", func(s *site) { s.inbox.put(s.inbox.get("ct-web")) }, []cluster.Outcome{cluster.OutcomeStarted}, nil},
		{"not into an action that was withdrawn", func(s *site) { s.inbox.withdraw("ct-web") }, nil, nil},
		{"not into another action of that name", func(s *site) { a := take(web, 0); a.ID = "another"; s.inbox.put(a) }, nil, nil},
		{"not over an outcome that the master wrote", func(s *site) {
			a := s.inbox.get("ct-web")
			a.State, a.Outcome = cluster.ActionDone, cluster.OutcomeSuperseded
			s.inbox.put(a)
		}, nil, nil},
		{"not under a lease that holds nothing any more", func(s *site) { s.inbox.fail = []error{cluster.ErrNotAlive} }, nil, cluster.ErrNotAlive},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				j := s.job(take(web, 0))
				s.answer(*j.action, cluster.OutcomeStarted, "", "")
				tt.given(s)
				if err := s.writeAnswers(t.Context(), []answer{<-s.outcomes}); !errors.Is(err, tt.ends) {
					t.Errorf("error %v, want %v", err, tt.ends)
				}
				if diff := cmp.Diff(tt.want, s.inbox.outcomes()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestOutcomesAreGathered(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		writes := 0
		s.At = func(label string) {
			if label == "outcome:before" {
				writes++
			}
		}
		for _, id := range []cluster.ResourceID{"ct-a", "ct-b", "ct-c"} {
			s.answer(*s.job(take(id, 0)).action, cluster.OutcomeStarted, "", "")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.answerAll(ctx) }()
		time.Sleep(time.Second)
		synctest.Wait()
		cancel()
		<-done
		if n := len(s.inbox.outcomes()); n != 3 || writes != 1 {
			t.Errorf("%d outcomes in %d transactions, want 3 in one", n, writes)
		}
	})
}

func TestQueueOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prios := rapid.SliceOf(rapid.Uint32Range(0, 4)).Draw(t, "priorities")
		q := newQueue()
		var want []*job
		for _, p := range prios {
			j := &job{priority: p}
			want = append(want, j)
			q.push(j)
		}
		slices.SortStableFunc(want, func(a, b *job) int { return int(b.priority) - int(a.priority) })
		for i, w := range want {
			if got := q.pop(context.Background()); got != w {
				t.Fatalf("job %d has priority %d and order %d, want %d and %d", i, got.priority, got.order, w.priority, w.order)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if !q.empty() || q.pop(ctx) != nil {
			t.Fatal("more jobs came out than went in")
		}
	})
}

// One admission from its beginning to its end, with all its workers.
func TestRun(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.ownVE("ct-boot", cluster.WantRunning)
		s.boot.ids = []cluster.ResourceID{"ct-boot"}
		for _, id := range []cluster.ResourceID{"ct-a", "ct-b", "ct-c", "ct-d", "ct-e"} {
			s.pooled(id)
			s.inbox.put(take(id, 0))
		}
		s.hv.Inject("start", "/ve/c", drivertest.Fault{Err: errors.New("bad")})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx, s.Session()) }()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		got := map[cluster.Outcome]int{}
		for _, o := range s.inbox.outcomes() {
			got[o]++
		}
		if diff := cmp.Diff(map[cluster.Outcome]int{cluster.OutcomeStarted: 4, cluster.OutcomeFailed: 1}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if !s.hv.Running("/ve/boot") || len(s.boot.Pending()) != 0 {
			t.Error("what ran before the boot was not started")
		}
		if rep := s.Report(); rep.Resources["ct"] != 6 || rep.Usage.Running["ct"] != 5 || rep.ByStatus["stopped"] != 1 {
			t.Errorf("report %+v; want 6 resources, 5 running, 1 stopped", rep)
		}
		late := action(cluster.VerbStart, "ct-c")
		late.ID = "late"
		s.hv.Mend("start", "/ve/c")
		s.inbox.put(late)
		s.Hint()
		time.Sleep(time.Second)
		if !s.hv.Running("/ve/c") {
			t.Error("an action that came later was not carried out")
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v, want the end of its context", err)
		}
	})
}

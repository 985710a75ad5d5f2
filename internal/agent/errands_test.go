package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

// do carries an errand out and returns its answer.
func (s *site) do(t *testing.T, a cluster.Action) cluster.Action {
	t.Helper()
	s.errand(t.Context(), s.job(a))
	said := s.said()
	if len(said) != 1 {
		t.Fatalf("%d answers, want one", len(said))
	}
	return said[0]
}

func TestAdd(t *testing.T) {
	prio := uint32(7)
	tests := []struct {
		name  string
		given func(*site)
		force bool
		want  cluster.Outcome
		error string
		path  string // of the own resource afterwards; "" = there is none
		state cluster.Want
	}{
		{name: "a VE that is stopped", given: func(*site) {}, want: cluster.OutcomeOK, path: "/ve/web", state: cluster.WantStopped},
		{name: "a VE that runs", given: func(s *site) { s.hv.Run("/ve/web", drivertest.Definition{NoHA: true}) }, want: cluster.OutcomeOK, path: "/ve/web", state: cluster.WantRunning},
		{name: "a path where there is no VE", given: func(s *site) { s.hv.Inject("register", "/ve/web", drivertest.Fault{Err: errors.New("no ve.conf")}) }, want: cluster.OutcomeFailed, error: "no ve.conf"},
		{name: "an id that is in use", given: func(s *site) { s.repo.own[web] = cluster.Resource{ID: web, Kind: "ct", Path: "/ve/old"} }, want: cluster.OutcomeRefused, error: "/ve/old", path: "/ve/old"},
		{name: "an id that is in use, with --force", given: func(s *site) { s.repo.own[web] = cluster.Resource{ID: web, Kind: "ct", Path: "/ve/old"} }, force: true, want: cluster.OutcomeOK, path: "/ve/web"},
		{name: "a VE that is another node's", given: func(s *site) { s.repo.others["ct-x"] = cluster.Resource{ID: "ct-x", Path: "/ve/web"} }, want: cluster.OutcomeRefused, error: "ct-x"},
		{
			name: "a VE that is another node's, also with --force", force: true, want: cluster.OutcomeRefused, error: "ct-x", path: "/ve/old",
			given: func(s *site) {
				s.repo.own[web] = cluster.Resource{ID: web, Kind: "ct", Path: "/ve/old"}
				s.repo.others["ct-x"] = cluster.Resource{ID: "ct-x", Path: "/ve/web"}
			},
		},
		{name: "a VE that waits in the pool", given: func(s *site) { s.pooled(web) }, want: cluster.OutcomeRefused, error: "pool directory"},
		{name: "a VE that is broken", given: func(s *site) { s.repo.broken[web] = cluster.BrokenReason{} }, want: cluster.OutcomeRefused, error: "broken"},
		{name: "another node's resource of the same id is another VE", given: func(s *site) { s.repo.others[web] = cluster.Resource{ID: web, Path: "/ve/x"} }, want: cluster.OutcomeOK, path: "/ve/web", state: cluster.WantStopped},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				s.hv.Define("/ve/web", drivertest.Definition{NoHA: true, Memory: 5})
				tt.given(s)
				a := action(cluster.VerbAdd, web)
				a.Path, a.Force, a.Priority = "/ve/web", tt.force, &prio
				got := s.do(t, a)
				if got.Outcome != tt.want || !strings.Contains(got.Error, tt.error) {
					t.Errorf("answer %s, %q; want %s, %q", got.Outcome, got.Error, tt.want, tt.error)
				}
				r := s.repo.get(web)
				if r.Path != tt.path || r.Want != tt.state {
					t.Errorf("resource %+v; want path %q, STATE %q", r, tt.path, tt.state)
				}
				if tt.want == cluster.OutcomeOK && r.Priority != prio {
					t.Errorf("priority %d, want %d", r.Priority, prio)
				}
				if ves, err := s.hv.List(t.Context()); err == nil && tt.state != "" && (!ves[0].HA || ves[0].Priority != prio) {
					t.Errorf("the VE itself says %+v; its word wins, so it has to be told", ves[0])
				}
			})
		})
	}
}

func TestSetDelAndRename(t *testing.T) {
	prio := uint32(7)
	set := action(cluster.VerbSet, web)
	set.Priority = &prio
	move := action(cluster.VerbSet, web)
	move.Path = "/ve/new"
	taken := action(cluster.VerbSet, web)
	taken.Path = "/ve/theirs"
	rename := action(cluster.VerbRename, web)
	rename.NewName = "ct-www"
	onto := action(cluster.VerbRename, web)
	onto.NewName = "ct-db"
	missing := action(cluster.VerbSet, "ct-none")
	missing.Priority = &prio
	tests := []struct {
		name  string
		given cluster.Action
		want  cluster.Outcome
		check func(*site) bool
	}{
		{"set changes the resource and the VE", set, cluster.OutcomeOK, func(s *site) bool { return s.repo.get(web).Priority == prio && s.ve("/ve/web").Priority == prio }},
		{"set of a path", move, cluster.OutcomeOK, func(s *site) bool { return s.repo.get(web).Path == "/ve/new" }},
		{"set of a path that another resource has", taken, cluster.OutcomeRefused, func(s *site) bool { return s.repo.get(web).Path == "/ve/web" }},
		{"set of a resource that is not here", missing, cluster.OutcomeGone, func(*site) bool { return true }},
		{"del switches HA off and leaves the VE alone", action(cluster.VerbDelete, web), cluster.OutcomeOK, func(s *site) bool { return s.repo.get(web).ID == "" && !s.ve("/ve/web").HA && s.hv.Running("/ve/web") }},
		{"del of a resource that is not here", action(cluster.VerbDelete, "ct-none"), cluster.OutcomeGone, func(*site) bool { return true }},
		{"rename", rename, cluster.OutcomeOK, func(s *site) bool { return s.repo.get("ct-www").Path == "/ve/web" && s.repo.get(web).ID == "" }},
		{"rename onto a name that is taken", onto, cluster.OutcomeRefused, func(s *site) bool { return s.repo.get(web).ID == web }},
		{"a verb of a newer version", action("dance", web), cluster.OutcomeRefused, func(*site) bool { return true }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				s.ownVE(web, cluster.WantRunning)
				s.ownVE("ct-db", cluster.WantRunning)
				s.hv.Run("/ve/web", drivertest.Definition{})
				s.repo.others["ct-x"] = cluster.Resource{ID: "ct-x", Path: "/ve/theirs"}
				if got := s.do(t, tt.given); got.Outcome != tt.want || (tt.want != cluster.OutcomeOK) != (got.Error != "") {
					t.Errorf("answer %s, %q; want %s", got.Outcome, got.Error, tt.want)
				}
				if !tt.check(s) {
					t.Errorf("resources %+v, VE %+v", s.repo.own, s.ve("/ve/web"))
				}
			})
		})
	}
}

// ve returns what the hypervisor says of a path.
func (s *site) ve(path string) cluster.VE {
	ves, _ := s.hv.List(context.Background())
	for _, v := range ves {
		if v.Path == path {
			return v
		}
	}
	return cluster.VE{}
}

func TestGiveBack(t *testing.T) {
	tests := []struct {
		name  string
		stop  bool
		given func(*site)
		want  cluster.Outcome
		back  bool
		runs  bool
	}{
		{name: "a stopped VE is unregistered and let go", given: func(*site) {}, want: cluster.OutcomeOK, back: true},
		{name: "a running one is not, unless it is to be stopped", given: func(s *site) { s.hv.Run("/ve/web", drivertest.Definition{}) }, want: cluster.OutcomeRefused, runs: true},
		{name: "a running one is stopped first", stop: true, given: func(s *site) { s.hv.Run("/ve/web", drivertest.Definition{}) }, want: cluster.OutcomeOK, back: true},
		{name: "one that does not shut down in time is left as it is", stop: true, given: func(s *site) { s.hv.Run("/ve/web", drivertest.Definition{Stubborn: true}) }, want: cluster.OutcomeRefused, runs: true},
		{name: "one that a late job starts again is not let go", stop: true, given: func(s *site) {
			s.hv.Run("/ve/web", drivertest.Definition{})
			s.hv.Inject("start", "/ve/web", drivertest.Fault{Times: 1, Late: true})
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			_ = s.hv.Start(ctx, "/ve/web")
		}, want: cluster.OutcomeRefused, runs: true},
		{name: "a resource that is not here", given: func(s *site) { delete(s.repo.own, web) }, want: cluster.OutcomeGone},
		{name: "one that the daemon before this one gave back, and died before its answer", given: func(s *site) {
			s.repo.pools[cluster.PoolID{Node: self}] = map[cluster.ResourceID]cluster.Resource{web: s.repo.own[web]}
			delete(s.repo.own, web)
			must(t, s.hv.Unregister(t.Context(), "/ve/web"))
		}, want: cluster.OutcomeOK},
		{name: "a hypervisor that cannot be asked is asked again", stop: true, given: func(s *site) {
			s.hv.Run("/ve/web", drivertest.Definition{})
			s.hv.Inject("list", "", drivertest.Fault{Times: 3, Err: cluster.ErrCannotAsk})
			s.hv.Inject("barrier", "", drivertest.Fault{Times: 3, Err: cluster.ErrCannotAsk})
		}, want: cluster.OutcomeOK, back: true},
		{name: "so is a mount", given: func(s *site) { s.repo.fail["give back"] = []error{cluster.ErrHold, cluster.ErrHold} }, want: cluster.OutcomeOK, back: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				r := s.ownVE(web, cluster.WantStopped)
				r.LastNode = ""
				s.repo.own[web] = r
				must(t, s.hv.Register(t.Context(), "/ve/web"))
				tt.given(s)
				a := action(cluster.VerbGiveBack, web)
				a.Stop, a.To, a.Path = tt.stop, other, "/ve/web"
				if got := s.do(t, a); got.Outcome != tt.want {
					t.Errorf("answer %s, %q; want %s", got.Outcome, got.Error, tt.want)
				}
				back, gone := s.repo.back[web]
				if gone != tt.back || s.hv.Running("/ve/web") != tt.runs {
					t.Errorf("let go %v, runs %v; want %v, %v", gone, s.hv.Running("/ve/web"), tt.back, tt.runs)
				}
				if tt.back && (s.hv.Registered("/ve/web") || back.LastNode != self || tt.stop != (back.Want == cluster.WantRunning)) {
					t.Errorf("registered %v, given back as %+v", s.hv.Registered("/ve/web"), back)
				}
			})
		})
	}
}

// Half of a hand-over is gone on with: only its answer says to whom it goes.
func TestAHandOverIsFinished(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.ownVE(web, cluster.WantRunning)
		must(t, s.hv.Register(t.Context(), "/ve/web"))
		s.repo.fail["give back"] = []error{cluster.ErrHold, cluster.ErrHold}
		a := action(cluster.VerbGiveBack, web)
		a.Adopt, a.To, a.Path = true, other, "/ve/web"
		if got := s.do(t, a); got.Outcome != cluster.OutcomeOK {
			t.Errorf("%s, %s; want it gone on with", got.Outcome, got.Error)
		}
		if _, gone := s.repo.back[web]; !gone {
			t.Error("not given back")
		}
	})
}

// A guest that shuts down after the relocation that asked it to was given up.
func TestALateStopByUsIsNoWordOfTheGuest(t *testing.T) {
	s := newSite(t)
	s.ownVE(web, cluster.WantRunning)
	s.hv.Run("/ve/web", drivertest.Definition{Stubborn: true})
	a := action(cluster.VerbGiveBack, web)
	a.Stop, a.Path = true, "/ve/web"
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.giveBack(ctx, a); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "started again") {
		t.Fatalf("%v; want it refused, and said what comes", err)
	}
	s.hv.End("/ve/web", cluster.CauseStop)
	if _, err := s.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := s.repo.get(web); r.Want != cluster.WantRunning || !strings.Contains(r.Waiting, "relocation") {
		t.Errorf("%+v; want it to wait to be started again", r)
	}
	s.asked.m["/ve/web"] = boottime.Now().Add(-2 * askedKept)
	if s.asked.lately("/ve/web") {
		t.Error("a stop long after it still counts as ours")
	}
}

func TestBreakProvesStoppedFirst(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.ownVE(web, cluster.WantRunning)
		s.hv.Run("/ve/web", drivertest.Definition{})
		s.hv.Inject("kill", "/ve/web", drivertest.Fault{Times: 2, Err: cluster.ErrCannotAsk})
		a := action(cluster.VerbBreak, web)
		a.Operation, a.Attempts, a.Reason = "start", 4, "no such kernel"
		if got := s.do(t, a); got.Outcome != cluster.OutcomeBroken {
			t.Errorf("answer %s, %q", got.Outcome, got.Error)
		}
		why := s.repo.broken[web]
		if s.hv.Registered("/ve/web") || why.Error != "no such kernel" || why.Operation != "start" || why.Attempts != 4 || why.Node != self {
			t.Errorf("registered %v, reason %+v", s.hv.Registered("/ve/web"), why)
		}
	})
}

// The daemon before this one quarantined it, and died before its answer.
func TestBreakIsAnsweredOnce(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.repo.broken[web] = cluster.BrokenReason{Node: self}
		a := action(cluster.VerbBreak, web)
		a.Path = "/ve/web"
		if got := s.do(t, a); got.Outcome != cluster.OutcomeBroken {
			t.Errorf("answer %s, %q", got.Outcome, got.Error)
		}
		s.repo.broken[web] = cluster.BrokenReason{Node: other}
		if got := s.do(t, a); got.Outcome != cluster.OutcomeGone {
			t.Errorf("what another node quarantined: %s, %q", got.Outcome, got.Error)
		}
	})
}

func TestLeaveIsRefusedWhileResourcesAreLeft(t *testing.T) {
	tests := []struct {
		name  string
		given func(*site)
		force bool
		left  bool
	}{
		{"an empty repository", func(*site) {}, false, true},
		{"a resource", func(s *site) { s.ownVE(web, cluster.WantStopped) }, false, false},
		{"a file that cannot be read", func(s *site) { s.repo.bad = []cluster.Unparseable{{ID: "ct-x"}} }, false, false},
		{"a resource, with --keep-ves", func(s *site) { s.ownVE(web, cluster.WantStopped) }, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				tt.given(s)
				a := cluster.Action{ID: "1", Verb: cluster.VerbLeave, Node: self, Inc: 3, Force: tt.force}
				want := cluster.OutcomeRefused
				if tt.left {
					want = cluster.OutcomeOK
				}
				if got := s.do(t, a); got.Outcome != want || s.left.Load() != tt.left {
					t.Errorf("answer %s, %q, left %v; want %s", got.Outcome, got.Error, s.left.Load(), want)
				}
			})
		})
	}
}

func TestNoErrandIsRunByANodeThatMayNotAct(t *testing.T) {
	for _, verb := range []cluster.Verb{cluster.VerbStart, cluster.VerbGiveBack, cluster.VerbBreak, cluster.VerbAdd, cluster.VerbSet, cluster.VerbDelete, cluster.VerbRename} {
		for name, shut := range map[string]func(*site){
			"its gate is closed":     func(s *site) { s.gate.closed.Store(true) },
			"its lease is not valid": func(s *site) { s.invalid.Store(true) },
		} {
			t.Run(string(verb)+" while "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T, s *site) {
					s.ownVE(web, cluster.WantRunning)
					shut(s)
					a := action(verb, web)
					a.Path, a.NewName = "/ve/web", "ct-www"
					j := s.job(a)
					ctx, cancel := context.WithCancel(t.Context())
					done := make(chan struct{})
					go func() { s.errand(ctx, j); close(done) }()
					time.Sleep(time.Hour)
					synctest.Wait()
					cancel()
					<-done
					if calls := append(s.hv.Calls(), s.repo.calls...); len(calls) != 0 || len(s.outcomes) != 0 {
						t.Errorf("did %v, and answered %d times", calls, len(s.outcomes))
					}
				})
			})
		}
	}
}

func TestAnErrandThatWasWithdrawnEnds(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.gate.closed.Store(true)
		j := s.job(action(cluster.VerbSet, web))
		s.inbox.withdraw("ct-web")
		s.errand(t.Context(), j)
		if len(s.outcomes) != 0 {
			t.Error("answered what nobody asks any more")
		}
	})
}

func TestLookTellsWhatIsSeen(t *testing.T) {
	const slot = "00000000000000b2"
	tests := []struct {
		name  string
		given func(*site)
		path  string
		want  cluster.Outcome
		saw   *cluster.Sighting
	}{
		{"a probe", func(*site) {}, slot, cluster.OutcomeOK, &cluster.Sighting{Found: true, Token: "t1"}},
		{"a name that is not there", func(*site) {}, slot + ".n1", cluster.OutcomeOK, &cluster.Sighting{}},
		{"with the gate closed: nothing is moved", func(s *site) { s.gate.closed.Store(true) }, slot, cluster.OutcomeOK, &cluster.Sighting{Found: true, Token: "t1"}},
		{"a mount that does not answer is told at once, not tried again", func(s *site) { s.repo.fail["sight"] = []error{cluster.ErrHold} }, slot, cluster.OutcomeFailed, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				s.repo.probes = map[string]string{slot: "t1"}
				tt.given(s)
				a := action(cluster.VerbLook, "")
				a.Path = tt.path
				got := s.do(t, a)
				if diff := cmp.Diff(tt.saw, got.Saw); got.Outcome != tt.want || diff != "" {
					t.Errorf("answer %s, %q (-want +got):\n%s", got.Outcome, got.Error, diff)
				}
				s.setKnown(a, true)
				s.written(got)
				if s.isKnown(a) {
					t.Error("the action is remembered for ever, though its name is never used again")
				}
			})
		})
	}
}

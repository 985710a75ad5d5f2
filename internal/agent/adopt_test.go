package agent

import (
	stdcmp "cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

func TestAdopt(t *testing.T) {
	runs := func(s *site) { s.hv.Run("/ve/web", drivertest.Definition{}) }
	tests := []struct {
		name  string
		given []func(*site)
		force bool
		want  cluster.Outcome
		error string
		own   bool // it is in the own repository afterwards
	}{
		{name: "what runs here comes out of quarantine", given: []func(*site){runs, breakWeb}, want: cluster.OutcomeOK, own: true},
		{name: "what somebody else has taken out is not made anew", given: []func(*site){runs}, want: cluster.OutcomeRefused, error: "not in quarantine any more"},
		{name: "what does not run here stays", given: []func(*site){runs, breakWeb, endWeb}, want: cluster.OutcomeRefused, error: "does not run here"},
		{name: "unless an operator wants it", given: []func(*site){runs, breakWeb, endWeb}, force: true, want: cluster.OutcomeOK, own: true},
		{name: "what may run here or not stays", given: []func(*site){func(s *site) { s.hv.Run("/ve/web", drivertest.Definition{Unsure: true}) }, breakWeb}, want: cluster.OutcomeRefused, error: "does not run here"},
		{name: "what is not known here stays", given: []func(*site){breakWeb}, want: cluster.OutcomeRefused, error: "does not know"},
		{name: "what cannot be highly available stays", given: []func(*site){func(s *site) { s.hv.Run("/ve/web", drivertest.Definition{Unfit: "disk /root/x"}) }}, want: cluster.OutcomeRefused, error: "disk /root/x"},
		{name: "what runs elsewhere too stays", given: []func(*site){runs, breakWeb, func(s *site) { s.words["/ve/web"] = []cluster.NodeID{other} }}, want: cluster.OutcomeRefused, error: string(other)},
		{name: "what another node owns stays", given: []func(*site){runs, func(s *site) { s.repo.others["ct-x"] = cluster.Resource{ID: "ct-x", Path: "/ve/web"} }}, want: cluster.OutcomeRefused, error: "repository of node " + string(other)},
		{name: "what waits in the pool stays", given: []func(*site){runs, func(s *site) { s.pooled(web) }}, want: cluster.OutcomeRefused, error: "pool directory"},
		{name: "done twice it is there once", given: []func(*site){runs, func(s *site) { s.ownVE(web, cluster.WantRunning) }}, want: cluster.OutcomeOK, own: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				for _, g := range tt.given {
					g(s)
				}
				a := action(cluster.VerbAdopt, web)
				a.Path, a.Force = "/ve/web", tt.force
				got := s.do(t, a)
				if got.Outcome != tt.want || !strings.Contains(got.Error, tt.error) {
					t.Errorf("answer %s, %q; want %s, %q", got.Outcome, got.Error, tt.want, tt.error)
				}
				if have := s.repo.get(web).Path == "/ve/web"; have != tt.own {
					t.Errorf("in the own repository: %v, want %v", have, tt.own)
				}
				if n := s.hv.Starts("/ve/web"); n != 0 {
					t.Errorf("started %d times; an adoption starts nothing", n)
				}
			})
		})
	}
}

func breakWeb(s *site) { s.repo.broken[web] = cluster.BrokenReason{Node: other} }
func endWeb(s *site)   { s.hv.End("/ve/web", cluster.CauseStop) }

// An owner lets go of what runs elsewhere, unless it runs here too.
func TestLettingGo(t *testing.T) {
	for state, want := range map[cluster.VEState]cluster.Outcome{cluster.VERunning: cluster.OutcomeRefused, cluster.VEUnknown: cluster.OutcomeRefused, cluster.VEStopped: cluster.OutcomeOK} {
		bubble(t, func(t *testing.T, s *site) {
			s.ownVE(web, cluster.WantRunning)
			s.hv.Run("/ve/web", drivertest.Definition{Unsure: state == cluster.VEUnknown})
			if state == cluster.VEStopped {
				endWeb(s)
			}
			a := action(cluster.VerbGiveBack, web)
			a.Adopt, a.To, a.Path = true, other, "/ve/web"
			if got := s.do(t, a); got.Outcome != want {
				t.Errorf("%s: %s, %s; want %s", state, got.Outcome, got.Error, want)
			}
			if state != cluster.VEStopped && !s.hv.Registered("/ve/web") {
				t.Errorf("%s: it was unregistered", state)
			}
		})
	}
}

// By the word of another node it runs there: nothing starts it here.
func TestAWordKeepsAVEFromBeingStarted(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.ownVE(web, cluster.WantRunning)
		s.words["/ve/web"] = []cluster.NodeID{other}
		got := s.do(t, action(cluster.VerbStart, web))
		if got.Outcome != cluster.OutcomeRefused || !strings.Contains(got.Error, string(other)) {
			t.Errorf("an operator's start: %s, %q; want it refused, with the node", got.Outcome, got.Error)
		}
		s.bring(t.Context(), &job{id: web, boot: true, start: true})
		if w := s.repo.get(web).Waiting; !strings.Contains(w, string(other)) {
			t.Errorf("after the boot it waits for %q; want the node named", w)
		}
		s.pooled("ct-db")
		s.words["/ve/db"] = []cluster.NodeID{other}
		s.repo.own["ct-db"] = s.repo.pools[pool]["ct-db"]
		s.bring(t.Context(), s.job(take("ct-db", 0)))
		said := s.said()
		if len(said) != 1 || said[0].Outcome != cluster.OutcomeRegistered || !strings.Contains(said[0].Waiting, string(other)) {
			t.Errorf("a failover's take: %+v; want it registered, waiting", said)
		}
		if s.hv.Starts("/ve/web")+s.hv.Starts("/ve/db") != 0 {
			t.Error("started all the same")
		}
	})
}

// Two resources of one VE: the node of the other may start it at the same moment.
func TestADuplicateIsNotStarted(t *testing.T) {
	bubble(t, func(t *testing.T, s *site) {
		s.ownVE(web, cluster.WantRunning)
		s.repo.others["ct-x"] = cluster.Resource{ID: "ct-x", Path: "/ve/web"}
		got := s.do(t, action(cluster.VerbStart, web))
		if got.Outcome != cluster.OutcomeRefused || !strings.Contains(got.Error, "2 resources") {
			t.Errorf("an operator's start: %s, %q; want it refused, with both", got.Outcome, got.Error)
		}
		s.bring(t.Context(), &job{id: web, boot: true, start: true})
		if w := s.repo.get(web).Waiting; !strings.Contains(w, "2 resources") {
			t.Errorf("after the boot it waits for %q; want both said", w)
		}
		if n := s.hv.Starts("/ve/web"); n != 0 {
			t.Errorf("started %d times", n)
		}
	})
}

// A power cut between the take's dispatch and its claim: nobody else would start it.
func TestWhatWasGivenAndDoesNotRunWaits(t *testing.T) {
	for _, runs := range []bool{true, false} {
		bubble(t, func(t *testing.T, s *site) {
			s.Agent.Settings = func() Settings {
				return Settings{LockTimeout: time.Minute, ActionTimeout: time.Minute, LockRetryTimeout: time.Hour, ParallelStarts: 2, StartRetries: 1}
			}
			s.ownVE(web, cluster.WantRunning)
			if runs {
				s.hv.Run("/ve/web", drivertest.Definition{})
			}
			a := take(web, 0)
			a.Start = false
			s.bring(t.Context(), s.job(a))
			if said := s.said(); len(said) != 1 || said[0].Outcome != cluster.OutcomeRegistered {
				t.Errorf("runs %v: %+v", runs, said)
			}
			look := func() cluster.Resource {
				t.Helper()
				if _, err := s.reconcile(t.Context()); err != nil {
					t.Fatal(err)
				}
				return s.repo.get(web)
			}
			if r := look(); r.Waiting != "" || (r.Migrating == self) == runs {
				t.Errorf("runs %v: at once %+v; want whoever moves it to have time to start it here", runs, r)
			}
			s.given["/ve/web"] = boottime.Now().Add(-time.Hour)
			if r := look(); (r.Waiting == "") != runs || r.Migrating != "" {
				t.Errorf("runs %v: later %+v; want it to wait unless it runs", runs, r)
			}
		})
	}
}

// The node to which a VE was migrated failed before it had the resource.
func TestAVEThatWasElsewhere(t *testing.T) {
	for _, want := range []cluster.Want{cluster.WantRunning, cluster.WantStopped} {
		s := newSite(t)
		s.ownVE(web, want)
		s.words["/ve/web"] = []cluster.NodeID{other}
		look := func() cluster.Resource {
			t.Helper()
			if _, err := s.reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			return s.repo.get(web)
		}
		if r := look(); r.Migrating != other || r.Waiting != "" {
			t.Errorf("%s: while it is there: %+v; want it written down", want, r)
		}
		delete(s.words, "/ve/web")
		if r := look(); r.Migrating != other || r.Waiting != "" {
			t.Errorf("%s: at once: %+v; want whoever moves it, or starts it there again, to have time", want, r)
		}
		s.given["/ve/web"] = boottime.Now().Add(-2 * time.Hour)
		if r := look(); r.Migrating != "" || (r.Waiting != "") != (want == cluster.WantRunning) {
			t.Errorf("%s: when it is not any more: %+v; want what should run to wait", want, r)
		}
	}
}

// What is not known of one type of VEs keeps the last word on it, and stops nothing else.
func TestAWordStaysWhileItsDriverCannotBeAsked(t *testing.T) {
	s := newSite(t)
	s.repo.others["vm-a"] = cluster.Resource{ID: "vm-a", Path: "/ve/a"}
	s.hv.Run("/ve/a", drivertest.Definition{Kind: cluster.KindVM})
	s.ownVE(web, cluster.WantUnset)
	if _, err := s.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Agent.Hypervisor = partly{s.Agent.Hypervisor}
	s.hv.Run("/ve/web", drivertest.Definition{})
	if _, err := s.reconcile(t.Context()); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("error %v; want to be told", err)
	}
	words, _ := s.Words()
	if len(words) != 1 || words[0].Path != "/ve/a" {
		t.Errorf("words %v; the VE of which nothing is known may still run", words)
	}
	if w := s.repo.get(web).Want; w != cluster.WantRunning {
		t.Errorf("STATE %q; what is known has to be kept true", w)
	}
}

// A new process knows no word but the one that is published.
func TestAWordStaysOverARestartWhileItsDriverCannotBeAsked(t *testing.T) {
	s := newSite(t)
	s.before = []cluster.RunningVE{{ID: "vm-a", Path: "/ve/a"}, {ID: "ct-b", Path: "/ve/b"}}
	s.Agent.Hypervisor = partly{s.Agent.Hypervisor}
	words, err := s.Elsewhere(t.Context())
	if !errors.Is(err, cluster.ErrCannotAsk) || len(words) != 1 || words[0].Path != "/ve/a" {
		t.Errorf("words %v, %v; want the one of which nothing new is known, and to be told", words, err)
	}
}

// Before etcd is heard that is not known: then nothing is said, rather than that nothing runs.
func TestNoWordBeforeTheLastOneIsKnown(t *testing.T) {
	s := newSite(t)
	s.unheard = true
	s.before = []cluster.RunningVE{{ID: "vm-a", Path: "/ve/a"}}
	s.Agent.Hypervisor = partly{s.Agent.Hypervisor}
	if _, err := s.reconcile(t.Context()); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("error %v; want to be told", err)
	}
	if words, said := s.Words(); said {
		t.Errorf("said %v", words)
	}
	var partial *cluster.UnansweredError
	if words, err := s.Elsewhere(t.Context()); err == nil || errors.As(err, &partial) {
		t.Errorf("answers %v, %v; want no answer at all", words, err)
	}
	s.unheard = false
	if _, err := s.reconcile(t.Context()); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Error(err)
	}
	if words, _ := s.Words(); len(words) != 1 {
		t.Errorf("words %v; want the one of before", words)
	}
}

// partly cannot be asked for virtual machines.
type partly struct{ Hypervisor }

func (p partly) List(ctx context.Context) ([]cluster.VE, error) {
	ves, err := p.Hypervisor.List(ctx)
	return slices.DeleteFunc(ves, func(v cluster.VE) bool { return v.Kind == cluster.KindVM }), errors.Join(err, &cluster.UnansweredError{Kinds: []cluster.Kind{cluster.KindVM}, Err: cluster.ErrCannotAsk})
}

// What rests on an earlier look never takes the place of a later one's word.
func TestAnOlderLookIsNoNewerWord(t *testing.T) {
	s := newSite(t)
	spoke := 0
	s.Agent.Spoke = func() { spoke++ }
	x := []cluster.RunningVE{{ID: "ct-x", Path: "/ve/x"}}
	s.say(4, x, true)
	if _, ok := s.Words(); ok {
		t.Error("an answer from before the first look is the session's word")
	}
	s.say(5, nil, false)
	s.say(9, x, true)
	s.say(7, nil, false)
	if words, ok := s.Words(); !ok || len(words) != 1 || spoke != 2 {
		t.Errorf("words %v %v, told %d times; want the word of the later look, told twice", words, ok, spoke)
	}
	s.forgetWords()
	if _, ok := s.Words(); ok {
		t.Error("a word without a session")
	}
}

// While it is not known what others say, nothing is started, adopted or written down.
func TestNothingIsDoneBeforeOthersWereHeard(t *testing.T) {
	s := newSite(t)
	s.unheard = true
	r := s.ownVE(web, cluster.WantRunning)
	r.Migrating = other
	s.repo.own[web] = r
	if _, err := s.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := s.repo.get(web); now != r {
		t.Errorf("%+v, want it as it was: %+v", now, r)
	}
	if _, _, err := s.once(t.Context(), s.job(take(web, 0))); !errors.Is(err, errClosed) || s.hv.Starts("/ve/web") != 0 {
		t.Errorf("a start: %v, started %d times; want it to be tried again later", err, s.hv.Starts("/ve/web"))
	}
	s.hv.Run("/ve/web", drivertest.Definition{})
	a := action(cluster.VerbAdopt, "ct-y")
	a.Path = "/ve/web"
	if _, err := s.adopt(t.Context(), a); err == nil {
		t.Error("adopted")
	}
}

// Two nodes on which one stopped VE is defined make its resource at the same moment.
func TestOneOfTwoThatMadeTheSameResourceGivesWay(t *testing.T) {
	lower := cluster.NodeID("0000000000000001")
	for _, tt := range []struct {
		name     string
		by       cluster.NodeID
		runs     bool
		mine     cluster.Want
		theirs   cluster.Want
		givesWay bool
	}{
		{name: "to the lower host id", by: lower, theirs: cluster.WantStopped, givesWay: true},
		{name: "not to the higher one", by: other, theirs: cluster.WantStopped},
		{name: "to the one that started it", by: other, theirs: cluster.WantRunning, givesWay: true},
		{name: "not what should run, to one that should not", by: lower, mine: cluster.WantRunning, theirs: cluster.WantStopped},
		{name: "not if it runs here", by: lower, runs: true, theirs: cluster.WantStopped},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.ownVE(web, stdcmp.Or(tt.mine, cluster.WantStopped))
			s.gap = boottime.Now() // no stop is taken for an operator's
			s.hv.Run("/ve/web", drivertest.Definition{})
			if !tt.runs {
				endWeb(s)
			}
			s.made["/ve/web"] = boottime.Now()
			s.repo.elsewhere = map[cluster.NodeID]cluster.Listing{tt.by: {Resources: []cluster.Resource{{ID: "ct-web", Path: "/ve/web", Want: tt.theirs}}}}
			if _, err := s.reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			if gone := s.repo.get(web).Path == ""; gone != tt.givesWay {
				t.Errorf("gives way: %v, want %v", gone, tt.givesWay)
			}
		})
	}
}

// The name is taken by the very VE: somebody else of this node was quicker.
func TestNoSecondResourceOfOneVE(t *testing.T) {
	s := newSite(t)
	s.ownVE(web, cluster.WantRunning)
	id, err := s.createAside(t.Context(), web, cluster.VE{Kind: "ct", Name: "web", Path: "/ve/web"})
	if err != nil || id != web || len(s.repo.own) != 1 {
		t.Errorf("%s, %v; %d resources, want the one that is there", id, err, len(s.repo.own))
	}
}

func TestRuns(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/web", drivertest.Definition{NoHA: true})
	s.hv.Run("/ve/down", drivertest.Definition{})
	s.hv.End("/ve/down", cluster.CauseStop)
	s.hv.Run("/ve/coming", drivertest.Definition{Unsure: true})
	ask := func(path string) cluster.Outcome {
		a := action(cluster.VerbRuns, "")
		a.ID, a.Path, a.Operation = "id"+path, path, "ct"
		return s.do(t, a).Outcome
	}
	got := []cluster.Outcome{ask("/ve/web"), ask("/ve/down"), ask("/ve/coming"), ask("/ve/none")}
	s.hv.Inject("list", "", drivertest.Fault{Err: cluster.ErrCannotAsk})
	got = append(got, ask("/ve/none"))
	want := []cluster.Outcome{cluster.OutcomeStarted, cluster.OutcomeOK, cluster.OutcomeStarted, cluster.OutcomeOK, cluster.OutcomeFailed}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The classes of drift, each as the five cases of the original's manual and more
// bring them about.
func TestDrift(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/foreign", drivertest.Definition{})
	s.repo.others["ct-foreign"] = cluster.Resource{ID: "ct-foreign", Path: "/ve/foreign"}
	s.hv.Run("/ve/plain", drivertest.Definition{NoHA: true})
	s.repo.others["ct-plain"] = cluster.Resource{ID: "ct-plain", Path: "/ve/plain"}
	s.hv.Run("/ve/new", drivertest.Definition{})
	s.hv.Run("/ve/unfit", drivertest.Definition{Unfit: "disk /root/x"})
	s.ownVE("ct-orphan", cluster.WantStopped)
	s.ownVE("ct-lost", cluster.WantStopped)
	s.repo.absent = map[string]bool{"/ve/lost": true}
	s.ownVE("ct-off", cluster.WantRunning)
	s.hv.Run("/ve/off", drivertest.Definition{NoHA: true})
	s.ownVE("ct-twice", cluster.WantRunning)
	s.hv.Run("/ve/twice", drivertest.Definition{})
	s.words["/ve/twice"] = []cluster.NodeID{other}
	s.repo.broken["ct-broken"] = cluster.BrokenReason{}
	s.hv.Run("/ve/broken", drivertest.Definition{})
	s.since["/ve/new"] = 1 // long ago, and nothing may be written now
	s.gate.closed.Store(true)
	if _, err := s.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[string]cluster.DriftClass{}
	for _, d := range s.Report().Drift {
		got[d.Path] = d.Class
		if d.Why == "" {
			t.Errorf("%s of %s without evidence", d.Class, d.Path)
		}
	}
	want := map[string]cluster.DriftClass{
		"/ve/foreign": cluster.DriftForeign, "/ve/plain": cluster.DriftForeign, "/ve/new": cluster.DriftMissing, "/ve/unfit": cluster.DriftMissing, "/ve/orphan": cluster.DriftOrphan,
		"/ve/lost": cluster.DriftBadPath, "/ve/off": cluster.DriftMismatch, "/ve/twice": cluster.DriftDuplicate, "/ve/broken": cluster.DriftForeign,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	words, ok := s.Words()
	if diff := cmp.Diff([]cluster.RunningVE{{ID: "ct-broken", Path: "/ve/broken"}, {ID: "ct-foreign", Path: "/ve/foreign"}, {ID: "ct-new", Path: "/ve/new"}, {ID: "ct-plain", Path: "/ve/plain"}}, words); !ok || diff != "" {
		t.Errorf("word %v (-want +got):\n%s", ok, diff)
	}
	s.gate.closed.Store(false)
	if _, err := s.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if m := s.repo.get("ct-twice").Migrating; m != other {
		t.Errorf("MIGRATING %q, want %q: a failover must not start it a third time", m, other)
	}
	delete(s.words, "/ve/twice")
	if _, err := s.reconcile(t.Context()); err != nil || s.repo.get("ct-twice").Migrating != "" {
		t.Errorf("MIGRATING %q after the other's word is gone, %v", s.repo.get("ct-twice").Migrating, err)
	}
}

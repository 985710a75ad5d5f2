package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

// TestDesiredState looks once at a VE, and then once more LOCK_TIMEOUT later.
func TestDesiredState(t *testing.T) {
	stopped := func(cause cluster.StopCause) func(*site) { return func(s *site) { s.hv.End("/ve/web", cause) } }
	tests := []struct {
		name    string
		was     cluster.Want
		waiting string
		given   func(*site) // before the first look
		between func(*site)
		first   cluster.Want
		then    cluster.Want
	}{
		{name: "a VE that runs should run", was: cluster.WantStopped, first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "a stop by the guest counts after LOCK_TIMEOUT", was: cluster.WantRunning, given: stopped(cluster.CauseStop), first: cluster.WantRunning, then: cluster.WantStopped},
		{name: "a crash never does", was: cluster.WantRunning, given: stopped(cluster.CauseCrash), first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "nor does a stop of which nothing is known", was: cluster.WantRunning, given: stopped(cluster.CauseUnknown), first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "nor one while the host goes down or has come up just now", was: cluster.WantRunning, given: func(s *site) { s.bringing.Store(true); stopped(cluster.CauseStop)(s) }, first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "nor one that was seen before the host goes down", was: cluster.WantRunning, given: stopped(cluster.CauseStop), between: func(s *site) { s.bringing.Store(true) }, first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "nor one without a valid lease", was: cluster.WantRunning, given: func(s *site) { s.invalid.Store(true); stopped(cluster.CauseStop)(s) }, first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "nor one whose lease is not valid later", was: cluster.WantRunning, given: stopped(cluster.CauseStop), between: func(s *site) { s.invalid.Store(true) }, first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "nor one whose lease had a gap in between", was: cluster.WantRunning, given: stopped(cluster.CauseStop), between: func(s *site) { s.gap = boottime.Now() }, first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "nor one that is written while the gate is closed", was: cluster.WantRunning, given: stopped(cluster.CauseStop), between: func(s *site) { s.gate.closed.Store(true) }, first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "nor one of a VE that is being worked on", was: cluster.WantRunning, given: func(s *site) { s.setBusy(web, 1); stopped(cluster.CauseStop)(s) }, first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "nor one of a VE that waits for room", was: cluster.WantRunning, waiting: "no room", given: stopped(cluster.CauseStop), first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "a VE that was started again in between should run", was: cluster.WantRunning, given: stopped(cluster.CauseStop), between: func(s *site) { s.hv.Run("/ve/web", drivertest.Definition{}) }, first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "a file without a word takes the driver's at the next look: running", was: cluster.WantUnset, first: cluster.WantRunning, then: cluster.WantRunning},
		{name: "a file without a word takes the driver's at the next look: stopped", was: cluster.WantUnset, given: stopped(cluster.CauseStop), first: cluster.WantStopped, then: cluster.WantStopped},
		{name: "but not while the host comes up", was: cluster.WantUnset, given: func(s *site) { s.bringing.Store(true); stopped(cluster.CauseUnknown)(s) }, first: cluster.WantUnset, then: cluster.WantUnset},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			r := s.ownVE(web, tt.was)
			r.Waiting = tt.waiting
			s.repo.own[web] = r
			s.hv.Run("/ve/web", drivertest.Definition{})
			if tt.given != nil {
				tt.given(s)
			}
			look := func(want cluster.Want) {
				t.Helper()
				if _, err := s.reconcile(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := s.repo.get(web).Want; got != want {
					t.Errorf("STATE %q, want %q", got, want)
				}
			}
			look(tt.first)
			look(tt.first) // at once: LOCK_TIMEOUT is an hour
			for id := range s.stops {
				s.stops[id] = stopSeen{at: boottime.Now().Add(-2 * time.Hour)}
			}
			if tt.between != nil {
				tt.between(s)
			}
			look(tt.then)
			look(tt.then)
		})
	}
}

func TestParametersFollowTheVE(t *testing.T) {
	s := newSite(t)
	r := s.ownVE(web, cluster.WantRunning)
	r.Waiting, r.LastNode, r.Priority = "no room", other, 1
	s.repo.own[web] = r
	s.hv.Run("/ve/web", drivertest.Definition{Priority: 8, Memory: 64, UUID: "u"})
	if _, err := s.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := cluster.Resource{ID: web, Kind: "ct", Path: "/ve/web", Want: cluster.WantRunning, Priority: 8, Memory: 64, UUID: "u", LastNode: self}
	if diff := cmp.Diff(want, s.repo.get(web)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s.repo.calls = nil
	if _, err := s.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"list"}, s.repo.calls); diff != "" {
		t.Errorf("what is true already is written again (-want +got):\n%s", diff)
	}
}

// A look can be a while old: a start that ended meanwhile has written that it waits.
func TestAnUpdateWritesOnlyWhatItsLookHasChanged(t *testing.T) {
	s := newSite(t)
	seen := s.ownVE(web, cluster.WantUnset)
	now := seen
	now.Want, now.Waiting, now.Migrating = cluster.WantRunning, "no room", self
	s.repo.own[web] = now
	next := seen
	next.Want, next.Memory = cluster.WantStopped, 64
	if err := s.rewrite(t.Context(), seen, next); err != nil {
		t.Fatal(err)
	}
	now.Memory = 64
	if diff := cmp.Diff(now, s.repo.get(web)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAnUpdateKeepsWhatAnOperatorChangedMeanwhile(t *testing.T) {
	s := newSite(t)
	r := s.ownVE(web, cluster.WantStopped)
	now := r
	now.Path = "/ve/new"
	s.repo.own[web] = now
	next := r
	next.Want, next.Priority = cluster.WantRunning, 4
	if err := s.rewrite(t.Context(), r, next); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(now, s.repo.get(web)); diff != "" {
		t.Errorf("the path that 'set' had written is gone (-want +got):\n%s", diff)
	}
}

func TestAHypervisorThatCannotBeAskedChangesNothing(t *testing.T) {
	s := newSite(t)
	s.ownVE(web, cluster.WantRunning)
	s.hv.Inject("list", "", drivertest.Fault{Err: cluster.ErrCannotAsk})
	again, err := s.reconcile(t.Context())
	if !again || !errors.Is(err, cluster.ErrCannotAsk) || !errors.Is(s.Report().Err, cluster.ErrCannotAsk) {
		t.Errorf("again %v, error %v, report %v", again, err, s.Report().Err)
	}
	if diff := cmp.Diff([]string{"list"}, s.repo.calls); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAdoptMissing(t *testing.T) {
	tests := []struct {
		name    string
		given   func(*site)
		between func(*site) // before the second look, a second later
		want    []cluster.ResourceID
		state   cluster.Want
	}{
		{name: "a VE without a resource, that runs", want: []cluster.ResourceID{web}, state: cluster.WantRunning},
		{name: "a VE without a resource, that does not", given: func(s *site) { s.hv.End("/ve/web", cluster.CauseStop) }, want: []cluster.ResourceID{web}, state: cluster.WantStopped},
		{name: "not one without HA", given: func(s *site) { s.hv.Run("/ve/web", drivertest.Definition{NoHA: true}) }},
		{name: "not one that was ignored at the join", given: func(s *site) { s.Agent.Ignored = func(string) bool { return true } }},
		{name: "not one whose resource lies elsewhere", given: func(s *site) { s.repo.others["ct-x"] = cluster.Resource{ID: "ct-x", Path: "/ve/web"} }},
		{name: "not one whose resource lies in the pool", given: func(s *site) { s.pooled(web) }},
		{name: "not one whose resource is broken", given: func(s *site) { s.repo.broken[web] = cluster.BrokenReason{} }},
		{name: "not one whose resource has come meanwhile", between: func(s *site) { s.pooled(web) }},
		{name: "not one that is gone meanwhile", between: func(s *site) { s.hv.End("/ve/web", ""); _ = s.hv.Unregister(t.Context(), "/ve/web") }},
		{name: "not while the mount cannot be read", between: func(s *site) { s.repo.fail["census"] = []error{cluster.ErrHold} }},
		{name: "not without a valid lease", between: func(s *site) { s.invalid.Store(true) }},
		{name: "not while the gate is closed", between: func(s *site) { s.gate.closed.Store(true) }},
		{name: "under another name if its own is taken", given: func(s *site) { s.repo.own[web] = cluster.Resource{ID: web, Path: "/ve/x"} }, want: []cluster.ResourceID{web + "~" + cluster.ResourceID(self)}, state: cluster.WantRunning},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.hv.Run("/ve/web", drivertest.Definition{})
			if tt.given != nil {
				tt.given(s)
			}
			adopted := func() (out []cluster.ResourceID) {
				for id, r := range s.repo.own {
					if r.Path == "/ve/web" {
						out = append(out, id)
					}
				}
				return out
			}
			for range 3 {
				if _, err := s.reconcile(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := adopted(); len(got) > 0 {
				t.Fatalf("adopted %v at the first look", got)
			}
			for p := range s.since {
				s.since[p] = boottime.Now().Add(-time.Minute)
			}
			if tt.between != nil {
				tt.between(s)
			}
			_, _ = s.reconcile(t.Context()) // one row makes it fail
			got := adopted()
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			if len(got) > 0 && s.repo.get(got[0]).Want != tt.state {
				t.Errorf("STATE %q, want %q", s.repo.get(got[0]).Want, tt.state)
			}
		})
	}
}

func TestElsewhere(t *testing.T) {
	s := newSite(t)
	s.ownVE(web, cluster.WantRunning)
	s.hv.Run("/ve/web", drivertest.Definition{})
	s.hv.Run("/ve/stray", drivertest.Definition{UUID: "u"})
	s.hv.Run("/ve/not-ha", drivertest.Definition{NoHA: true})
	s.hv.Run("/ve/down", drivertest.Definition{})
	s.hv.End("/ve/down", cluster.CauseStop)
	got, err := s.Elsewhere(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]cluster.RunningVE{{ID: "ct-stray", Path: "/ve/stray", UUID: "u"}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	s.hv.Inject("list", "", drivertest.Fault{Err: cluster.ErrCannotAsk})
	if _, err := s.Elsewhere(t.Context()); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("error %v; no answer is not the answer 'nothing'", err)
	}
}

package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

// mendAll runs sync or cleanup-broken and returns its report in lines.
func (s *site) mendAll(t *testing.T, a cluster.Action) (done, left []string, got cluster.Action) {
	t.Helper()
	got = s.do(t, a)
	if got.Report == nil {
		return nil, nil, got
	}
	for _, h := range got.Report.Done {
		done = append(done, fmt.Sprintf("%s: %s", h.Resource, h.What))
	}
	for _, h := range got.Report.Left {
		left = append(left, fmt.Sprintf("%s: %s", h.Resource, h.What))
	}
	return done, left, got
}

var sorted = cmpopts.SortSlices(func(a, b string) bool { return a < b })

func TestSync(t *testing.T) {
	given := func(s *site) {
		s.hv.Run("/ve/new", drivertest.Definition{})
		s.hv.Run("/ve/defined", drivertest.Definition{})
		s.hv.End("/ve/defined", cluster.CauseStop)
		s.ownVE("ct-tuned", cluster.WantRunning)
		s.hv.Run("/ve/tuned", drivertest.Definition{Priority: 7, Memory: 5, Stale: true})
		s.ownVE("ct-orphan", cluster.WantStopped)
		s.ownVE("ct-lost", cluster.WantStopped)
		s.repo.absent = map[string]bool{"/ve/lost": true}
		s.repo.broken["ct-up"] = cluster.BrokenReason{}
		s.hv.Run("/ve/up", drivertest.Definition{})
		s.hv.Run("/ve/away", drivertest.Definition{})
		s.repo.others["ct-away"] = cluster.Resource{ID: "ct-away", Path: "/ve/away"}
		s.hv.Run("/ve/plain", drivertest.Definition{NoHA: true})
	}
	wantDone := []string{
		"ct-new: it had no resource, and has one now", "ct-defined: it had no resource, and has one now",
		"ct-up: it runs here, and is out of quarantine now",
		"ct-tuned: its parameters are the VE's now: PRIORITY 0 → 7, MEMORY 0 → 5",
		"ct-orphan: its VE is registered here again, stopped", "ct-lost: there is nothing at its path /ve/lost: it went into quarantine",
	}
	for _, dry := range []bool{true, false} {
		bubble(t, func(t *testing.T, s *site) {
			given(s)
			a := action(cluster.VerbSync, "")
			a.DryRun = dry
			done, left, got := s.mendAll(t, a)
			if got.Outcome != cluster.OutcomeOK {
				t.Fatalf("dry %v: %s, %s", dry, got.Outcome, got.Error)
			}
			if diff := cmp.Diff(wantDone, done, sorted); diff != "" {
				t.Errorf("dry %v: done (-want +got):\n%s", dry, diff)
			}
			if len(left) != 1 || !strings.HasPrefix(left[0], "ct-away: it runs here and its resource lies in the repository of node "+string(other)) {
				t.Errorf("dry %v: left %v; want what the master has to ask for", dry, left)
			}
			_, lost := s.repo.broken["ct-lost"]
			if now := s.repo.get("ct-new").Path == "/ve/new" && s.repo.get("ct-tuned").Priority == 7 && s.hv.Registered("/ve/orphan") && lost && s.repo.get("ct-up").Path == "/ve/up"; now == dry {
				t.Errorf("dry %v: changed %v", dry, now)
			}
			if s.repo.get("ct-plain").Path != "" || s.hv.Starts("/ve/orphan") != 0 {
				t.Errorf("dry %v: touched what is not highly available, or started something", dry)
			}
		})
	}
}

func TestSyncDeletesOnlyWhatIsSurelyGone(t *testing.T) {
	many := func(s *site, n int) {
		s.repo.absent = map[string]bool{}
		for i := range 5 * freely { // of so many one fifth may go
			s.hv.Run(s.ownVE(cluster.ResourceID(fmt.Sprintf("ct-there-%d", i)), cluster.WantRunning).Path, drivertest.Definition{})
		}
		for i := range n {
			r := s.ownVE(cluster.ResourceID(fmt.Sprintf("ct-%d", i)), cluster.WantStopped)
			s.repo.absent[r.Path] = true
		}
	}
	for _, tt := range []struct {
		name  string
		given func(*site)
		force bool
		want  cluster.Outcome
		error string
		gone  int
	}{
		{name: "a few", given: func(s *site) { many(s, freely) }, want: cluster.OutcomeOK, gone: freely},
		{name: "one of few", given: func(s *site) { s.ownVE(web, cluster.WantStopped); s.repo.absent = map[string]bool{"/ve/web": true} }, want: cluster.OutcomeOK, gone: 1},
		{name: "not two of few", given: func(s *site) {
			s.ownVE(web, cluster.WantStopped)
			s.ownVE("ct-db", cluster.WantStopped)
			s.repo.absent = map[string]bool{"/ve/web": true, "/ve/db": true}
		}, want: cluster.OutcomeRefused, error: "2 of the 2"},
		{name: "not many at once", given: func(s *site) { many(s, freely+1) }, want: cluster.OutcomeRefused, error: "--force"},
		{name: "unless forced", given: func(s *site) { many(s, freely+1) }, force: true, want: cluster.OutcomeOK, gone: freely + 1},
		{name: "not if the hypervisor cannot be asked", given: func(s *site) {
			many(s, 1)
			s.hv.Inject("list", "", drivertest.Fault{Err: errors.New("no list")})
		}, want: cluster.OutcomeOK},
		{name: "not if it is not known what is at the path", given: func(s *site) {
			many(s, 1)
			s.repo.fail["absent"] = []error{cluster.ErrHold, cluster.ErrHold}
		}, want: cluster.OutcomeOK},
		{name: "not if there is something by the second look", given: func(s *site) {
			many(s, 1)
			time.AfterFunc(lookAge/2, func() { s.hv.Run("/ve/0", drivertest.Definition{}) })
		}, want: cluster.OutcomeOK},
		{name: "not while something is done with it", given: func(s *site) { many(s, 1); s.setBusy("ct-0", 1) }, want: cluster.OutcomeOK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, s *site) {
				tt.given(s)
				a := action(cluster.VerbSync, "")
				a.Force = tt.force
				_, left, got := s.mendAll(t, a)
				if got.Outcome != tt.want || !strings.Contains(got.Error, tt.error) || len(s.repo.broken) != tt.gone {
					t.Errorf("%s, %q, %d in quarantine, left %v; want %s, %q, %d", got.Outcome, got.Error, len(s.repo.broken), left, tt.want, tt.error, tt.gone)
				}
			})
		})
	}
}

func TestCleanupBroken(t *testing.T) {
	for _, dry := range []bool{true, false} {
		bubble(t, func(t *testing.T, s *site) {
			for _, id := range []cluster.ResourceID{"ct-valid", "ct-gone", "ct-elsewhere", "ct-dup", "foo-x"} {
				s.repo.broken[id] = cluster.BrokenReason{}
			}
			s.hv.Define("/ve/valid", drivertest.Definition{})
			s.repo.absent = map[string]bool{"/ve/gone": true}
			s.words["/ve/elsewhere"] = []cluster.NodeID{other}
			s.repo.others["ct-x"] = cluster.Resource{ID: "ct-x", Path: "/ve/dup"}
			a := action(cluster.VerbClean, "")
			a.DryRun = dry
			done, left, got := s.mendAll(t, a)
			want := []string{
				"ct-valid: it belongs to this node now, registered and not started; start it with 'shaman start ct-valid'",
				"ct-gone: there is nothing at its path /ve/gone: the resource is deleted",
			}
			if diff := cmp.Diff(want, done, sorted); diff != "" || got.Outcome != cluster.OutcomeOK {
				t.Errorf("dry %v: %s %s (-want +got):\n%s", dry, got.Outcome, got.Error, diff)
			}
			if len(left) != 3 {
				t.Errorf("dry %v: left %v; want what runs elsewhere, what has two resources, what no driver here runs", dry, left)
			}
			keep := 3
			if dry {
				keep = 5
			}
			if len(s.repo.broken) != keep || s.hv.Starts("/ve/valid") != 0 || s.hv.Registered("/ve/valid") == dry {
				t.Errorf("dry %v: %d in quarantine, want %d; started %d, registered %v", dry, len(s.repo.broken), keep, s.hv.Starts("/ve/valid"), s.hv.Registered("/ve/valid"))
			}
		})
	}
}

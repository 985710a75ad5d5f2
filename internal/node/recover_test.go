package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestOneStepOfAdmission(t *testing.T) {
	open := func(phase cluster.Phase, proof string) func(*site) {
		return func(s *site) {
			s.members.own = []cluster.Versioned[cluster.Failover]{failoverIn(cluster.PhaseDone, 2, "agent"), failoverIn(phase, 3, proof)}
		}
	}
	taken := func(pool cluster.Incarnation) func(*site) {
		return func(s *site) {
			s.mount.present, s.mount.pool = false, pool
			s.members.own = []cluster.Versioned[cluster.Failover]{failoverIn(cluster.PhaseRelocating, pool, "agent")}
		}
	}
	closed := func(s *site) { must(t, s.State.update(func(m *memory) { m.Closed = 3 })) }
	tests := []struct {
		name        string
		given       []func(*site)
		admitted    cluster.Incarnation // 0 = not
		waits       string              // part of what it waits for
		notQuiesced bool
		quiesced    bool
		steps       string // what was made on the mount
	}{
		{name: "nothing in the way", admitted: 3},
		{name: "its record cannot be read", given: []func(*site){func(s *site) { s.members.err = errors.New("etcd away") }}, waits: "etcd away"},
		{name: "a stranger beats in its slot", given: []func(*site){func(s *site) { s.Heart.foreign = cluster.ErrForeignNonce }}, waits: "duplicate-host-id"},
		{name: "the mount was never reached", given: []func(*site){func(s *site) { s.Heart.last = 0 }}, waits: "waiting for the mount"},
		{name: "the last probe of the mount failed", given: []func(*site){func(s *site) { s.Heart.err = errors.New("EIO") }}, waits: "EIO"},
		{name: "the census of the mount failed", given: []func(*site){func(s *site) { s.mount.err = errors.New("stale") }}, waits: "stale"},

		{name: "an open failover without a proof: it may be withdrawn", given: []func(*site){open(cluster.PhaseFencing, "")}, waits: "withdraw", notQuiesced: true},
		{name: "one that waits for an operator may be withdrawn too", given: []func(*site){open(cluster.PhaseAwaitingFence, "")}, waits: "withdraw", notQuiesced: true},
		{name: "a proven failover is never turned back", given: []func(*site){open(cluster.PhaseSealing, "agent")}, waits: "take the repository over"},
		{name: "one that began to quiesce does not turn it back either", given: []func(*site){open(cluster.PhaseFencing, ""), closed}, waits: "take the repository over", quiesced: true},
		{name: "a withdrawn failover is none", given: []func(*site){open(cluster.PhaseWithdrawn, "")}, admitted: 3},
		{name: "nothing is declared before all else is done", given: []func(*site){open(cluster.PhaseFencing, ""), func(s *site) { s.mount.err = errors.New("stale") }}, waits: "stale"},

		{name: "a repository that was taken over: a newer incarnation and a new repository", given: []func(*site){taken(3)}, admitted: 4, steps: "create"},
		{name: "a pool that is newer than etcd's word counts", given: []func(*site){taken(6)}, admitted: 7, steps: "create"},
		{name: "the gate that was closed counts, too", given: []func(*site){taken(3), closed}, admitted: 4, quiesced: true, steps: "create"},
		{name: "the new repository was made already", given: []func(*site){func(s *site) { s.mount.inc, s.mount.pool = 4, 3 }}, admitted: 4},

		{name: "a repository that is missing and was not taken over is never made", given: []func(*site){func(s *site) { s.mount.present = false }}, waits: "right file system"},
		{name: "an older repository than etcd knows", given: []func(*site){func(s *site) { s.mount.inc = 2 }}, waits: "join --recover"},
		{name: "a newer repository without the pool that explains it", given: []func(*site){func(s *site) { s.mount.inc = 5 }}, waits: "join --recover"},
		{name: "one that quiesced waits for the takeover", given: []func(*site){closed}, waits: "comes back with a newer one only", quiesced: true},

		{name: "the lease before the reboot still holds the alive key", given: []func(*site){func(s *site) { s.members.admitErr = cluster.ErrOtherHolder }}, waits: "before the reboot"},
		{name: "something changed meanwhile", given: []func(*site){func(s *site) { s.members.admitErr = cluster.ErrConflict }}, waits: "changed during admission"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			for _, given := range tt.given {
				given(s)
			}
			rec, a, err := s.step(t.Context(), s.lease)
			if tt.waits != "" && (err == nil || !strings.Contains(err.Error(), tt.waits)) || tt.waits == "" && err != nil {
				t.Errorf("error %v, want one with %q", err, tt.waits)
			}
			if a.Incarnation != tt.admitted || (len(s.members.admitted) == 1) != (tt.admitted != 0) {
				t.Errorf("admitted %d times, with incarnation %d; want %d", len(s.members.admitted), a.Incarnation, tt.admitted)
			}
			if rec.NotQuiesced != tt.notQuiesced || rec.Quiesced != tt.quiesced {
				t.Errorf("declares not quiesced: %v, quiesced: %v; want %v, %v", rec.NotQuiesced, rec.Quiesced, tt.notQuiesced, tt.quiesced)
			}
			if steps := strings.TrimPrefix(strings.TrimPrefix(s.tr.String(), "barrier"), ", "); steps != tt.steps {
				t.Errorf("did %q, want %q", steps, tt.steps)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAdmissionBringsAndKeepsWhatItNeeds(t *testing.T) {
	s := newSite(t)
	must(t, s.State.update(func(m *memory) { m.Lease = 5 }))
	_, _, err := s.step(t.Context(), s.lease)
	must(t, err)
	a := s.members.admitted[0]
	if a.Lease != 9 || a.Former != 5 || a.BootID != "boot" || a.Alive.Incarnation != 3 || a.Alive.Nonce != "nonce" {
		t.Errorf("admission %+v; want lease 9 after lease 5, this boot, incarnation 3", a)
	}
	mem := loadState(t, s.run, "boot").get()
	if mem.Lease != 9 || mem.Incarnation != 3 || mem.Serial != 77 {
		t.Errorf("kept %+v; want lease 9, incarnation 3, serial 77: no order up to it is obeyed", mem)
	}
}

// A daemon that is restarted finds VEs that were started by hand or migrated here.
func TestARestartedDaemonLeavesWhatCameHereAlone(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*site)
		stays  bool
	}{
		{name: "in the same life", change: func(*site) {}, stays: true},
		{name: "after a boot", change: func(s *site) { s.BootID = "another boot" }},
		{name: "after it was taken over", change: func(s *site) { must(t, s.State.update(func(m *memory) { m.Incarnation = 2 })) }},
		{name: "after it stopped everything for a fence", change: func(s *site) {
			must(t, s.State.update(func(m *memory) { m.Closed = 3 }))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			must(t, s.State.update(func(m *memory) { m.Incarnation = 3 }))
			s.hv.Run("/ve/theirs", def("uuid-theirs"))
			s.hv.Run("/ve/left", def("uuid-left"))
			s.hv.End("/ve/left", cluster.CauseStop)
			s.mount.census = cluster.Census{Repositories: map[cluster.NodeID]cluster.Listing{
				self: listing(3), other: listing(1, res("ct-theirs", "/ve/theirs"), res("ct-left", "/ve/left")),
			}}
			tt.change(s)
			_, _, _ = s.step(t.Context(), s.lease) // some of them wait for the master, after that
			if s.hv.Running("/ve/theirs") != tt.stays {
				t.Errorf("runs %v, want %v", s.hv.Running("/ve/theirs"), tt.stays)
			}
			if s.hv.Registered("/ve/left") {
				t.Error("a VE that is stopped, and another node's, is still registered")
			}
		})
	}
}

func TestNothingIsSentForADriverThatDoesNotAnswer(t *testing.T) {
	s := newSite(t)
	all := s.aliveRecord(Admitted{}).Kinds
	s.Usage = func() Usage { return Usage{Unasked: []cluster.Kind{cluster.KindVM}} }
	if got := s.aliveRecord(Admitted{}).Kinds; slices.Contains(got, cluster.KindVM) || len(got) != len(all)-1 {
		t.Errorf("types %v of %v; want all but those of the driver that does not answer", got, all)
	}
}

func TestVEsThatMovedAway(t *testing.T) {
	s := newSite(t)
	for _, name := range []string{"mine", "mine-down", "theirs", "pooled", "broken", "nobodys"} {
		s.hv.Run("/ve/"+name, def("uuid-"+name))
	}
	s.hv.Run("/local/renamed.xml", def("uuid-renamed"))
	s.hv.Run("/local/kept.xml", def("uuid-kept"))
	s.hv.End("/ve/mine-down", cluster.CauseStop)
	renamed, kept := res("ct-renamed", "/remote/renamed.xml"), res("ct-kept", "/local/kept.xml")
	renamed.UUID, kept.UUID = "uuid-renamed", "uuid-kept"
	twin := res("ct-twin", "/remote/kept.xml")
	twin.UUID = "uuid-kept"
	s.mount.census = cluster.Census{
		Repositories: map[cluster.NodeID]cluster.Listing{
			self:  listing(3, res("ct-mine", "/ve/mine"), res("ct-mine-down", "/ve/mine-down"), kept),
			other: listing(1, res("ct-theirs", "/ve/theirs"), renamed, twin),
		},
		Pools:  map[cluster.PoolID]cluster.Listing{{Node: self, Incarnation: 2}: listing(2, res("ct-pooled", "/ve/pooled"))},
		Broken: []cluster.BrokenResource{{Resource: res("ct-broken", "/ve/broken")}},
	}
	clean, err := s.prepare(t.Context(), false, false)
	must(t, err)
	if clean {
		t.Error("clean, while VEs of the own repository run")
	}
	got := map[string]bool{}
	for _, path := range []string{"/ve/mine", "/ve/mine-down", "/ve/theirs", "/ve/pooled", "/ve/broken", "/ve/nobodys", "/local/renamed.xml", "/local/kept.xml"} {
		got[path] = s.hv.Registered(path)
	}
	want := map[string]bool{
		"/ve/mine": true, "/ve/mine-down": true, "/ve/theirs": false, "/ve/pooled": false, "/ve/broken": false,
		"/ve/nobodys": true, "/local/renamed.xml": false, "/local/kept.xml": true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("still registered (-want +got):\n%s", diff)
	}
	if !s.hv.Running("/ve/mine") || !s.hv.Running("/ve/nobodys") || s.hv.Running("/ve/theirs") {
		t.Error("what is mine or nobody's runs on, and nothing else")
	}
}

func TestPrepareIsNotDoneUntilEverythingWas(t *testing.T) {
	tests := []struct {
		name, verb, path string
	}{
		{"the barrier", "barrier", ""},
		{"the list", "list", ""},
		{"the stop of what moved away", "kill", "/ve/theirs"},
		{"its removal", "unregister", "/ve/theirs"},
		{"switching autostart off", "register", "/ve/mine"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.hv.Run("/ve/theirs", def(""))
			mine := def("")
			mine.Autostart = true
			s.hv.Run("/ve/mine", mine)
			s.mount.census.Repositories[self] = listing(3, res("ct-mine", "/ve/mine"))
			s.mount.census.Repositories[other] = listing(1, res("ct-theirs", "/ve/theirs"))
			s.hv.Inject(tt.verb, tt.path, faultOf(errors.New("not now")))
			if _, _, err := s.step(t.Context(), s.lease); err == nil || len(s.members.admitted) > 0 {
				t.Errorf("error %v, admitted %d times; want to wait", err, len(s.members.admitted))
			}
			s.hv.Mend(tt.verb, tt.path)
			if _, _, err := s.step(t.Context(), s.lease); err != nil {
				t.Errorf("once it works again: %v", err)
			}
			ves, err := s.hv.List(t.Context())
			must(t, err)
			if len(ves) != 1 || ves[0].Path != "/ve/mine" || ves[0].Autostart {
				t.Errorf("listed %+v; want mine alone, without autostart", ves)
			}
		})
	}
}

func TestCleanMeansThatNothingOfMineRuns(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/mine", def(""))
	s.hv.Run("/ve/nobodys", def(""))
	s.mount.census.Repositories[self] = listing(3, res("ct-mine", "/ve/mine"))
	for _, want := range []bool{false, true} {
		if clean, err := s.prepare(t.Context(), false, false); err != nil || clean != want {
			t.Errorf("clean %v, %v; want %v", clean, err, want)
		}
		s.hv.End("/ve/mine", cluster.CauseUnknown)
	}
}

func TestOnlyANewBootIgnoresWhatWasThere(t *testing.T) {
	for _, newBoot := range []bool{true, false} {
		s := newSite(t)
		asked, why := false, errors.New("cannot keep the list")
		s.IgnoreNow = func(context.Context) error { asked = true; return why }
		_, err := s.prepare(t.Context(), newBoot, false)
		if asked != newBoot || errors.Is(err, why) != newBoot {
			t.Errorf("new boot %v: asked %v, error %v", newBoot, asked, err)
		}
	}
}

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

var errReason = errors.New("the reason")

func TestQuiesceGoesStepByStep(t *testing.T) {
	tests := []struct {
		name  string
		given func(*site)
		want  string // the steps
		err   string // beside errQuiesced and the reason
	}{
		{name: "gate, stops, barrier, sync, lease", given: func(*site) {}, want: "stop /ve/a, barrier, sync"},
		{name: "a VE that cannot be stopped ends it before the barrier", given: func(s *site) { s.hv.Inject("kill", "/ve/a", faultOf(errors.New("no"))) }, want: "stop /ve/a", err: "stop all VEs"},
		{name: "a stop that hangs does, when STOP_BUDGET is over", given: func(s *site) {
			s.hv.Inject("kill", "/ve/a", drivertest.Fault{Hang: true})
			s.Settings = func() Settings { return Settings{StopBudget: 20 * time.Millisecond} }
		}, want: "stop /ve/a", err: "deadline"},
		{name: "a VE that the hypervisor has forgotten is stopped", given: func(s *site) { s.hv.Inject("kill", "/ve/a", faultOf(cluster.ErrNoVE)); s.hv.End("/ve/a", "") }, want: "stop /ve/a, barrier, sync"},
		{name: "a barrier that fails ends it before the sync", given: func(s *site) { s.hv.Inject("barrier", "", faultOf(errors.New("jobs"))) }, want: "stop /ve/a, barrier", err: "jobs"},
		{name: "a flush that fails is told", given: func(s *site) { s.mount.syncErr = errors.New("EIO") }, want: "stop /ve/a, barrier, sync", err: "EIO"},
		{name: "what cannot be listed cannot be stopped", given: func(s *site) { s.hv.Inject("list", "", faultOf(errors.New("no list"))) }, want: "", err: "no list"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.hv.Run("/ve/a", drivertest.Definition{})
			s.hv.Run("/ve/not-ha", drivertest.Definition{NoHA: true})
			s.hv.Run("/ve/ignored", drivertest.Definition{})
			s.Ignored = func(path string) bool { return path == "/ve/ignored" }
			tt.given(s)
			s.Gate.Open(3)
			err := s.quiesce(t.Context(), 3, errReason)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v; want %q", err, tt.err)
			}
			if got := s.tr.String(); got != tt.want {
				t.Errorf("did %q, want %q", got, tt.want)
			}
			if _, err := s.Gate.Hold(3); err == nil {
				t.Error("the gate is open")
			}
			if got := loadState(t, s.run, "boot").get().Closed; got != 3 {
				t.Errorf("the next daemon finds the gate closed up to %d, want 3", got)
			}
			if !s.hv.Running("/ve/not-ha") || !s.hv.Running("/ve/ignored") {
				t.Error("stopped what is not protected")
			}
		})
	}
}

func TestQuiesceStopsNothingWhileSomebodyHoldsTheGate(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/a", drivertest.Definition{})
	s.Gate.Open(3)
	release, err := s.Gate.Hold(3)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- s.quiesce(t.Context(), 3, errReason) }()
	eventually(t, "the gate is closed", func() bool {
		r, err := s.Gate.Hold(3)
		if err == nil {
			r()
		}
		return err != nil
	})
	if got := s.tr.String(); got != "" {
		t.Errorf("did %q while a worker could still start something", got)
	}
	release()
	<-done
	if s.hv.Running("/ve/a") {
		t.Error("it runs")
	}
}

func TestQuiesceThatLosesItsLeaseGoesOn(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/a", drivertest.Definition{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = s.quiesce(ctx, 3, errReason)
	if s.hv.Running("/ve/a") {
		t.Error("the VE runs on, though its repository was taken over")
	}
}

func TestAStartThatComesAfterTheStopFailsTheQuiesce(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/a", drivertest.Definition{})
	s.hv.Inject("start", "/ve/a", drivertest.Fault{Times: 1, Late: true})
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_ = s.hv.Start(ctx, "/ve/a")
	err := s.quiesce(t.Context(), 3, errReason)
	if err == nil || !strings.Contains(err.Error(), "runs again") || strings.Contains(s.tr.String(), "sync") {
		t.Errorf("error %v after %q; want it to be noticed", err, s.tr)
	}
}

// activeSite is a site in the middle of an admission whose work holds the gate
// until its context ends.
func activeSite(t *testing.T) (s *site, done chan error) {
	s = newSite(t)
	s.hv.Run("/ve/a", drivertest.Definition{})
	working := make(chan struct{})
	s.Active = func(ctx context.Context, a Admitted) error {
		release, err := s.Gate.Hold(a.Incarnation)
		if err != nil {
			return err
		}
		defer release()
		close(working)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	done = make(chan error, 1)
	go func() { done <- s.active(t.Context(), Admitted{Incarnation: 3, Lease: s.lease}) }()
	<-working
	return s, done
}

func TestAnActiveNodeWhoseRepositoryIsGoneStopsEverything(t *testing.T) {
	for name, given := range map[string]func(*site){
		"the repository was taken over": func(s *site) {
			s.mount.mu.Lock()
			defer s.mount.mu.Unlock()
			s.mount.ownErr = cluster.ErrSealed
		},
		"a stranger beats in its slot": func(s *site) {
			s.Heart.mu.Lock()
			defer s.Heart.mu.Unlock()
			s.Heart.foreign = cluster.ErrForeignNonce
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, done := activeSite(t)
			given(s)
			if err := <-done; err == nil {
				t.Error("the admission ended without an error")
			}
			if got, want := s.tr.String(), "stop /ve/a, barrier, sync, revoke"; got != want {
				t.Errorf("did %q, want %q: the work must end before its gate is waited for", got, want)
			}
		})
	}
}

func TestAnActiveNodeThatCannotLookGoesOn(t *testing.T) {
	s, done := activeSite(t)
	s.mount.mu.Lock()
	s.mount.ownErr = errors.New("EIO")
	s.mount.mu.Unlock()
	select {
	case err := <-done:
		t.Errorf("an error that says nothing of the repository ended the admission: %v", err)
	case <-time.After(guardEvery + guardEvery/2):
	}
	if !s.hv.Running("/ve/a") || s.Gate.closed > 0 {
		t.Error("it was stopped")
	}
}

func TestRetire(t *testing.T) {
	s := newSite(t)
	must(t, s.State.update(func(m *memory) { m.Lease = 9 }))
	s.members.leaveErr = errors.New("a failover was opened")
	if done, err := s.Retire(t.Context(), s.lease); done || err == nil || s.State.get().Lease != 9 || s.tr.String() != "stop" {
		t.Errorf("Retire = %v after %q; a lease must not be given up unless the node is Inactive", err, s.tr)
	}
	s.members.leaveErr = nil
	done, err := s.Retire(t.Context(), s.lease)
	must(t, err)
	if !done || s.members.stopped != cluster.StopInactive || s.State.get().Lease != 0 || s.tr.String() != "stop, stop, revoke" {
		t.Errorf("stopped %q, lease %d, steps %q", s.members.stopped, s.State.get().Lease, s.tr)
	}
}

// A daemon that is stopped before it got to resume what the one before it held
// still leaves the node Inactive: its VEs run, and nobody must fail it over.
func TestRetireForTheDaemonBefore(t *testing.T) {
	s := newSite(t)
	if done, err := s.Retire(t.Context(), nil); done || err != nil || s.tr.String() != "" {
		t.Errorf("a node that was never admitted: %v, %v after %q", done, err, s.tr)
	}
	must(t, s.State.update(func(m *memory) { m.Lease = 9 }))
	s.members.leaveErr = cluster.ErrOtherHolder
	if done, err := s.Retire(t.Context(), nil); done || err != nil {
		t.Errorf("a node whose former lease is gone: %v, %v", done, err)
	}
	s.members.leaveErr = nil
	done, err := s.Retire(t.Context(), nil)
	must(t, err)
	if !done || s.members.stopped != cluster.StopInactive || s.State.get().Lease != 0 {
		t.Errorf("done %t, stopped %q, lease %d", done, s.members.stopped, s.State.get().Lease)
	}
}

// A VE that somebody took out of high availability by hand still has a resource,
// by which a failover would start it elsewhere.
func TestQuiesceStopsWhatHasAResource(t *testing.T) {
	s := newSite(t)
	s.mount.census.Repositories = map[cluster.NodeID]cluster.Listing{s.Self: {Resources: []cluster.Resource{{Path: "/ve/a"}}}}
	ours, _ := s.ours(t.Context())
	if !ours(cluster.VE{Path: "/ve/a"}) || ours(cluster.VE{Path: "/ve/b"}) || !ours(cluster.VE{Path: "/ve/c", HA: true}) {
		t.Error("ours are those with a resource, and those with high availability on")
	}
	s.mount.err = errors.New("no mount")
	if ours, err := s.ours(t.Context()); err == nil || !ours(cluster.VE{Path: "/ve/b"}) {
		t.Error("where the mount cannot be read, any VE may have a resource")
	}
}

// join --ignore-res is no word about what was added later, by whomever.
func TestQuiesceStopsWhatWasIgnoredOnce(t *testing.T) {
	s := newSite(t)
	s.hv.Run("/ve/a", drivertest.Definition{})
	s.Ignored = func(string) bool { return true }
	s.mount.census.Repositories = map[cluster.NodeID]cluster.Listing{s.Self: {Resources: []cluster.Resource{{Path: "/ve/a"}}}}
	s.Gate.Open(3)
	if err := s.quiesce(t.Context(), 3, errReason); err != nil || s.hv.Running("/ve/a") {
		t.Errorf("quiesce = %v, runs %v", err, s.hv.Running("/ve/a"))
	}
	s.hv.Run("/ve/a", drivertest.Definition{})
	s.mount.census, s.mount.err = cluster.Census{}, errors.New("no mount")
	if err := s.quiesce(t.Context(), 3, errReason); err == nil || !strings.Contains(err.Error(), "/ve/a was left alone") {
		t.Errorf("quiesce = %v; what is left alone may have a resource", err)
	}
}

func anytime(context.Context) error { return nil }

func TestLeave(t *testing.T) {
	s := newSite(t)
	if err := s.Leave(t.Context(), anytime); err == nil {
		t.Error("a node that is not admitted left")
	}
	s.setAdmitted(&Admitted{Incarnation: 3, Lease: s.lease})
	s.Gate.Open(3)
	hold := func() error {
		release, err := s.Gate.Hold(3)
		if err == nil {
			release()
		}
		return err
	}
	s.members.leaveErr = errors.New("etcd away")
	s.members.onLeave = func() {
		if hold() == nil {
			t.Error("the gate is open while the node leaves")
		}
	}
	if err := s.Leave(t.Context(), anytime); err == nil || hold() != nil || s.tr.String() != "leave" {
		t.Errorf("Leave = %v, gate %v, steps %q; want to go on as before", err, hold(), s.tr)
	}
	s.members.onLeave = func() { _ = s.quiesce(t.Context(), 3, errReason) }
	if err := s.Leave(t.Context(), anytime); err == nil || hold() == nil {
		t.Errorf("Leave = %v, gate %v; a gate that a quiesce closed meanwhile was opened", err, hold())
	}
	s.members.onLeave, s.members.leaveErr = nil, nil
	s.Gate.Open(3)
	s.tr.steps = nil
	must(t, s.State.update(func(m *memory) { m.Lease, m.Starts = 9, []cluster.ResourceID{"ct-a"} }))
	must(t, s.Leave(t.Context(), anytime))
	if mem := s.State.get(); mem.Lease != 0 || len(mem.Starts) > 0 || s.tr.String() != "leave, remove" || hold() == nil {
		t.Errorf("memory %+v, steps %q, gate %v; want it forgotten, the repository gone, the gate closed", mem, s.tr, hold())
	}
}

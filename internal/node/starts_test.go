package node

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

func def(uuid string) drivertest.Definition { return drivertest.Definition{UUID: uuid} }

func faultOf(err error) drivertest.Fault { return drivertest.Fault{Err: err} }

func TestWhatIsStartedAfterABoot(t *testing.T) {
	change := func(r cluster.Resource, f func(*cluster.Resource)) cluster.Resource { f(&r); return r }
	repo := listing(3,
		res("ct-low", "/ve/low"),
		change(res("ct-high", "/ve/high"), func(r *cluster.Resource) { r.Priority = 9 }),
		change(res("ct-unset", "/ve/unset"), func(r *cluster.Resource) { r.Want = cluster.WantUnset }),
		change(res("ct-down", "/ve/down"), func(r *cluster.Resource) { r.Want = cluster.WantStopped }),
		change(res("ct-waiting", "/ve/waiting"), func(r *cluster.Resource) { r.Waiting = "no room" }),
		change(res("ct-moving", "/ve/moving"), func(r *cluster.Resource) { r.Migrating = other }),
		res("ct-twice", "/ve/twice"), res("ct-pooled", "/ve/pooled"),
	)
	all := cluster.Census{
		Repositories: map[cluster.NodeID]cluster.Listing{self: repo, other: listing(1, res("ct-x", "/ve/twice"))},
		Pools:        map[cluster.PoolID]cluster.Listing{{Node: other, Incarnation: 1}: listing(1, res("ct-y", "/ve/pooled"))},
	}
	tests := []struct {
		name   string
		known  cluster.NodeRecord
		before memory
		given  func(*site)
		want   []cluster.ResourceID
	}{
		{name: "after a new boot: what should run and is nowhere else, highest priority first", known: cluster.NodeRecord{Incarnation: 3, BootID: "before"}, want: []cluster.ResourceID{"ct-high", "ct-low", "ct-unset"}},
		{name: "after a restart of the daemon: nothing", known: cluster.NodeRecord{Incarnation: 3, BootID: "boot"}},
		{name: "after a restart in the middle of the list: the rest of it", known: cluster.NodeRecord{Incarnation: 3, BootID: "boot"}, before: memory{Boot: "boot", Listed: true, Starts: []cluster.ResourceID{"ct-low"}}, want: []cluster.ResourceID{"ct-low"}},
		{name: "a list that was made is not made again", known: cluster.NodeRecord{Incarnation: 3, BootID: "before"}, before: memory{Boot: "boot", Listed: true, Starts: []cluster.ResourceID{"ct-low"}}, want: []cluster.ResourceID{"ct-low"}},
		{name: "a repository that was taken over leaves nothing to start", known: cluster.NodeRecord{Incarnation: 3, BootID: "before"}, given: func(s *site) { s.mount.present, s.mount.pool = false, 3 }},
		{
			name: "nor does the list that was made before it was taken over", known: cluster.NodeRecord{Incarnation: 3, BootID: "before"},
			before: memory{Boot: "boot", Listed: true, Starts: []cluster.ResourceID{"ct-low"}}, given: func(s *site) { s.mount.present, s.mount.pool = false, 3 },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.members.rec, s.mount.census = tt.known, all
			must(t, s.State.update(func(m *memory) {
				if tt.before.Listed {
					*m = tt.before
				}
			}))
			if tt.given != nil {
				tt.given(s)
			}
			_, _, err := s.step(t.Context(), s.lease)
			must(t, err)
			if diff := cmp.Diff(tt.want, loadState(t, s.run, "boot").Pending()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRecoverTellsTheOthersWhatItWaitsFor(t *testing.T) {
	s := newSite(t)
	s.members.own = []cluster.Versioned[cluster.Failover]{failoverIn(cluster.PhaseFencing, 3, "")}
	done := make(chan error, 1)
	go func() {
		a, err := s.recover(t.Context(), s.lease)
		if err == nil && a.Incarnation != 4 {
			err = errors.New("admitted with another incarnation than 4")
		}
		done <- err
	}()
	last := func() (rec cluster.RecoveringRecord) {
		s.members.mu.Lock()
		defer s.members.mu.Unlock()
		if n := len(s.members.put); n > 0 {
			rec = s.members.put[n-1]
		}
		return rec
	}
	eventually(t, "it says that it has not quiesced", func() bool { return last().NotQuiesced })
	s.members.mu.Lock()
	s.members.own[0].Value.Proof = "agent"
	s.members.mu.Unlock()
	eventually(t, "it takes that back once there is a proof", func() bool { r := last(); return !r.NotQuiesced && r.Waiting != "" })
	s.mount.mu.Lock()
	s.mount.present, s.mount.pool = false, 3
	s.mount.mu.Unlock()
	s.members.mu.Lock()
	s.members.own = nil
	s.members.mu.Unlock()
	must(t, <-done)
	if n := len(s.members.put); n != 2 {
		t.Errorf("wrote %d times, want once a change", n)
	}
}

func TestRecoverEndsWhenTheNodeIsNoMember(t *testing.T) {
	s := newSite(t)
	s.members.err = cluster.ErrNotJoined
	if _, err := s.recover(t.Context(), s.lease); !errors.Is(err, cluster.ErrNotJoined) {
		t.Errorf("recover = %v, want ErrNotJoined", err)
	}
}

func TestARestartedDaemonGoesOn(t *testing.T) {
	tests := []struct {
		name  string
		given func(*site)
		want  bool
	}{
		{"same lease, same repository", func(*site) {}, true},
		{"the alive key is not held any more", func(s *site) { s.members.held = false }, false},
		{"the repository was taken over", func(s *site) { s.mount.ownErr = cluster.ErrSealed }, false},
		{"the gate was closed for this incarnation", func(s *site) { must(t, s.State.update(func(m *memory) { m.Closed = 3 })) }, false},
		{"the gate was closed for an older one", func(s *site) { must(t, s.State.update(func(m *memory) { m.Closed = 2 })) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.members.alive, s.members.held = cluster.AliveRecord{Incarnation: 3}, true
			tt.given(s)
			a, ok := s.stillAdmitted(t.Context(), s.lease)
			if ok != tt.want || ok && (a.Incarnation != 3 || a.Lease != Lease(s.lease)) {
				t.Errorf("admitted %v with %+v, want %v", ok, a, tt.want)
			}
		})
	}
}

func TestWhatCannotBeAskedIsAskedAgain(t *testing.T) {
	s := newSite(t)
	s.members.alive, s.members.held = cluster.AliveRecord{Incarnation: 3}, true
	s.members.aliveErr = errors.New("etcd away")
	ctx, cancel := context.WithCancel(t.Context())
	s.Status = func(status string) {
		if status != "resuming after a restart" {
			s.members.mu.Lock()
			s.members.aliveErr = nil
			s.members.mu.Unlock()
		}
	}
	if _, ok := s.stillAdmitted(ctx, s.lease); !ok {
		t.Error("an error of etcd ended an admission that holds")
	}
	s.mount.ownErr = errors.New("EIO")
	s.Status = func(status string) {
		if status != "resuming after a restart" {
			cancel()
		}
	}
	if _, ok := s.stillAdmitted(ctx, s.lease); ok {
		t.Error("resumed with a repository that could not be looked at")
	}
}

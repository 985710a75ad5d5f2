package booted_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
)

func (s *site) bootID() string {
	s.t.Helper()
	resp, err := s.cl.Get(s.ctx, s.keys.Node(node1))
	must(s.t, err)
	var rec cluster.NodeRecord
	must(s.t, json.Unmarshal(resp.Kvs[0].Value, &rec))
	return rec.BootID
}

func TestTheBoxLosesPower(t *testing.T) {
	s := newSite(t, "power", "LOCK_TIMEOUT=2s")
	s.isTakenOver("agent", func() { must(t, s.box.PowerCut()) })
}

func TestTheBoxStallsAndItsPowerIsCut(t *testing.T) {
	s := newSite(t, "stall", "LOCK_TIMEOUT=2s")
	s.isTakenOver("agent", func() { must(t, s.box.Freeze()) }) // the rest is for its fence agent
}

func TestTheBoxIsRebootedInGoodOrder(t *testing.T) {
	// The LOCK_TIMEOUT is short: if a failover could follow, it would.
	s := newSite(t, "reboot", "LOCK_TIMEOUT=2s")
	m, boot := s.mark(), s.bootID()
	must(t, s.box.Poweroff(s.ctx))
	for _, l := range s.lives() {
		if !l.Stopped {
			t.Errorf("%s was not asked to stop before the box was off", l.VE)
		}
	}
	journal, err := s.box.Journal(s.ctx, unit)
	must(t, err)
	if i := strings.Index(journal, `"level":"error"`); i >= 0 {
		t.Errorf("nothing went wrong, and the daemon says %s", tail(journal))
	}
	s.waitStat("node1 to be Down, and node2 to be master", func(st stat) bool { return st.status(node1) == "Down" && st.Master == string(node2) })
	wait(t, "node2 to have looked at it as master", func() bool {
		return strings.Contains(s.get(node2, "/metrics"), `shaman_membership_nodes{status="Down"} 1`)
	})
	must(t, s.box.PowerOn(s.ctx))
	s.waitStat("all to be as before", func(st stat) bool {
		for _, r := range st.Resources {
			if r.HostID != string(node1) || r.State != "running" {
				return false
			}
		}
		return st.status(node1) == "Active" && len(st.Resources) == 2 && len(st.Failovers) == 0
	})
	if now := s.bootID(); now == boot {
		t.Errorf("it came back with the same boot id, %s", now)
	}
	s.noFailover(m)
	s.beat()
	if after := s.lives(); len(after) != 2*len(m.lives) {
		t.Errorf("VEs lived %d times in all, want %d: %+v", len(after), 2*len(m.lives), after)
	}
}

// isTakenOver lets the box fail, which is proven by a method: its VEs have to run on
// node2, and only there, also when it has booted again.
func (s *site) isTakenOver(proof string, fail func()) {
	t := s.t
	before, boot := s.lives(), s.bootID()
	fail()
	s.waitStat("its VEs to run on node2", func(st stat) bool {
		for _, r := range st.Resources {
			if r.HostID != string(node2) || r.State != "running" {
				return false
			}
		}
		return len(st.Failovers) == 1 && st.Failovers[0].Phase == "done" && st.Failovers[0].Proof == proof && len(st.Resources) == 2
	})
	if s.box.On() {
		t.Fatal("the box runs, and its VEs were started elsewhere")
	}
	must(t, s.box.PowerOn(s.ctx))
	s.waitStat("node1 to be back with a higher incarnation", func(st stat) bool { return st.status(node1) == "Active" && st.incarnation(node1) == 2 })
	wait(t, "its daemon to be ready", s.ready)
	if now := s.bootID(); now == boot {
		t.Errorf("it came back with the same boot id, %s", now)
	}
	// Nothing of it was started here again, and what runs on node2 still does.
	after := s.lives()
	if len(after) != 2*len(before) {
		t.Errorf("VEs lived %d times in all, want %d: %+v", len(after), 2*len(before), after)
	}
	for i, l := range after {
		if want := []string{"node1", "node2"}[i%2]; l.Node != want {
			t.Errorf("life %d of %s was on %s, want %s", i%2+1, l.VE, l.Node, want)
		}
	}
	s.beat()
}

package booted_test

import (
	"encoding/json"
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
	s.isTakenOver(func() { must(t, s.box.PowerCut()) })
}

func TestTheBoxStallsAndItsPowerIsCut(t *testing.T) {
	s := newSite(t, "stall", "LOCK_TIMEOUT=2s")
	s.isTakenOver(func() { must(t, s.box.Freeze()) }) // the rest is for its fence agent
}

// isTakenOver lets the box fail: its VEs have to run on node2, and only there,
// also when it has booted again.
func (s *site) isTakenOver(fail func()) {
	t := s.t
	before, boot := s.lives(), s.bootID()
	fail()
	s.waitStat("its VEs to run on node2", func(st stat) bool {
		for _, r := range st.Resources {
			if r.HostID != string(node2) || r.State != "running" {
				return false
			}
		}
		return len(st.Failovers) == 1 && st.Failovers[0].Phase == "done" && st.Failovers[0].Proof == "agent" && len(st.Resources) == 2
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

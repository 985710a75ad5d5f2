package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/lab"
)

func TestANodeDies(t *testing.T) {
	c := start(t, func(o *lab.Options) { o.StoppedVEs = 3 })
	master, others := c.master()
	victim := others[1]
	before := c.waitRunning()
	c.must(c.Kill(victim))
	c.waitDone(victim, 1)
	after := c.waitRunning()
	for id, was := range before {
		if was == victim.Name && after[id] == victim.Name {
			t.Errorf("%s still runs on %s", id, victim.Name)
		}
		if was != victim.Name && after[id] != was {
			t.Errorf("%s moved from %s to %s, though its node is well", id, was, after[id])
		}
	}
	s := c.mustStat()
	for _, r := range s.Resources {
		if r.Desired == "stopped" && r.HostID == string(victim.HostID) {
			t.Errorf("%s is still with the dead node", r.ID)
		}
	}
	f := s.Failovers[len(s.Failovers)-1]
	if f.Proof != "agent" || f.Total != 5 || f.Started != 4 || f.Stopped != 1 || f.Broken != 0 {
		t.Errorf("the failover says proof %s, %d resources, %d started, %d stopped, %d broken; want agent, 5, 4, 1, 0", f.Proof, f.Total, f.Started, f.Stopped, f.Broken)
	}
	// What should not run lies, stopped, with the master.
	stopped := 0
	for _, r := range s.Resources {
		if r.Desired == "stopped" && r.HostID == string(master.HostID) {
			stopped++
		}
	}
	if stopped != 2 { // its own one and the dead node's
		t.Errorf("%d stopped resources are with the master, want 2", stopped)
	}

	// It comes back empty, as a new incarnation, and nothing moves back by itself.
	c.must(c.Start(victim))
	c.waitActive()
	s = c.mustStat()
	if s.incarnation(victim) != 2 {
		t.Errorf("%s came back with incarnation %d, want 2", victim.Name, s.incarnation(victim))
	}
	if lives := c.lives(); lives != 12+4 {
		t.Errorf("VEs were started %d times in all, want 16", lives)
	}
}

func TestTheMasterDies(t *testing.T) {
	c := start(t, nil)
	master, _ := c.master()
	c.must(c.Kill(master))
	c.waitDone(master, 1)
	c.waitRunning()
	next, _ := c.master()
	if next.Name == master.Name {
		t.Errorf("%s is still master", master.Name)
	}
	c.must(c.Start(master))
	c.waitActive()
	if lives := c.lives(); lives != 16 {
		t.Errorf("VEs were started %d times in all, want 16", lives)
	}
}

func TestTheTargetDiesInTheMiddle(t *testing.T) {
	// One start at a time, so that the second power cut comes while some VEs of
	// the first node are up on the second one, some claimed, and some in the pool.
	c := start(t, func(o *lab.Options) { o.VEs = 120; o.Nodes = 4 })
	c.must(errOf(c.Shaman(c.ctx, c.Nodes[0], "set-config", "MAX_PARALLEL_STARTS=1")))
	for _, n := range c.Nodes { // taken over at the next admission
		c.must(c.CrashMonitor(n))
		c.must(c.Start(n))
	}
	c.waitActive()
	_, others := c.master()
	first, second := others[0], others[1]
	before := c.waitRunning()
	c.must(c.Kill(first))
	c.wait("a VE of the first node on the second one", func() bool {
		for id, was := range before {
			if was == first.Name {
				if now, _ := c.Where(id); now == second.Name {
					return true
				}
			}
		}
		return false
	})
	c.must(c.Kill(second))
	c.waitDone(first, 1)
	c.waitDone(second, 1)
	c.waitRunning()
	c.check()
}

func TestEverythingDiesAndComesBack(t *testing.T) {
	c := start(t, func(o *lab.Options) { o.StoppedVEs = 2 })
	before := c.waitRunning()
	for _, n := range c.Nodes {
		c.must(c.Kill(n))
	}
	for _, m := range c.Members {
		c.must(c.StopEtcd(m))
	}
	for _, m := range c.Members {
		c.must(c.StartEtcd(m))
	}
	c.must(c.AwaitEtcd(c.ctx))
	// Longer than a lease: whoever comes first finds the others lost.
	c.must(c.Start(c.Nodes[2]))
	c.waitStat("the first node to see that the others are lost", func(s stat) bool {
		return s.status(c.Nodes[0]) != "Active" && s.status(c.Nodes[1]) != "Active" && s.status(c.Nodes[2]) != ""
	})
	c.must(c.Start(c.Nodes[0]))
	c.must(c.Start(c.Nodes[1]))
	c.waitActive()
	after := c.waitRunning()
	for id, was := range before {
		if after[id] != was {
			t.Errorf("%s ran on %s and runs on %s; a cold start keeps every VE at home", id, was, after[id])
		}
	}
	for _, n := range c.Nodes {
		if inc := c.mustStat().incarnation(n); inc != 1 {
			t.Errorf("%s has incarnation %d, want 1: nothing was failed over", n.Name, inc)
		}
	}
}

func TestEtcdIsAwayForLong(t *testing.T) {
	c := start(t, nil)
	before := c.waitRunning()
	lives := c.lives()
	for _, m := range c.Members {
		c.must(c.StopEtcd(m))
	}
	time.Sleep(4 * c.LockTimeout) // the outage itself
	if out, err := c.Shaman(c.ctx, c.Nodes[0], "stat"); err == nil || !strings.Contains(err.Error(), "exit code 3") || !strings.Contains(out, "ve001") {
		t.Errorf("stat without etcd: %v\n%s", err, out)
	}
	for _, m := range c.Members {
		c.must(c.StartEtcd(m))
	}
	c.must(c.AwaitEtcd(c.ctx))
	c.waitActive()
	after := c.waitRunning()
	for id, was := range before {
		if after[id] != was {
			t.Errorf("%s moved from %s to %s", id, was, after[id])
		}
	}
	if now := c.lives(); now != lives {
		t.Errorf("%d VEs were started anew by an outage of etcd", now-lives)
	}
	for _, f := range c.mustStat().Failovers {
		t.Errorf("a failover of %s was opened (%s): an outage of etcd moves nothing", f.Node, f.Phase)
	}
}

func TestADaemonIsRestarted(t *testing.T) {
	// A lease that a busy machine does not miss: nothing at all may happen here.
	c := start(t, func(o *lab.Options) { o.LockTimeout = 5 * time.Second })
	lives := c.lives()
	for _, n := range c.Nodes {
		c.must(c.CrashMonitor(n))
		c.must(c.Start(n))
		c.waitActive()
	}
	n := c.Nodes[1]
	c.must(c.StopMonitor(n))
	c.waitStat("the node to be Inactive", func(s stat) bool { return s.status(n) == "Inactive" })
	time.Sleep(c.LockTimeout + time.Second) // its lease is over for long
	if s := c.mustStat(); s.status(n) != "Inactive" || len(s.Failovers) != 0 {
		t.Errorf("a stopped daemon led to status %s and %d failovers", s.status(n), len(s.Failovers))
	}
	c.must(c.Start(n))
	c.waitActive()
	c.waitRunning()
	if now := c.lives(); now != lives {
		t.Errorf("%d VEs were started anew by restarts of daemons", now-lives)
	}
	if inc := c.mustStat().incarnation(n); inc != 1 {
		t.Errorf("incarnation %d, want 1", inc)
	}
}

func TestNobodyCanProveIt(t *testing.T) {
	c := start(t, nil)
	_, others := c.master()
	victim := others[0]
	c.must(c.BreakFencing(victim, true))
	if e := errOf(c.Shaman(c.ctx, c.Nodes[0], "fence", "confirm", victim.Name, "--yes", victim.Name)); e == nil || !strings.Contains(e.Error(), "exit code 4") {
		t.Errorf("a confirm of a healthy node: %v", e)
	}
	c.must(c.Kill(victim))
	c.waitStat("the failover to await an operator", func(s stat) bool { return s.status(victim) == "AwaitingFence" })
	lives := c.lives()
	s := c.mustStat()
	f := s.Failovers[len(s.Failovers)-1]
	if want := "shaman fence confirm " + victim.Name; f.Command != want || !strings.Contains(f.Reason, "does not answer") {
		t.Errorf("the failover says %q, command %q; want the agent's own words and %q", f.Reason, f.Command, want)
	}
	if c.lives() != lives {
		t.Error("something was started past an unproven fence")
	}
	if e := errOf(c.Shaman(c.ctx, c.Nodes[0], "fence", "confirm", victim.Name, "--yes", "node9")); e == nil || !strings.Contains(e.Error(), "exit code 64") {
		t.Errorf("a confirm with the wrong name: %v", e)
	}
	c.must(errOf(c.Shaman(c.ctx, c.Nodes[0], "fence", "confirm", victim.Name, "--yes", victim.Name)))
	c.waitDone(victim, 1)
	c.waitRunning()
	s = c.mustStat()
	if f := s.Failovers[len(s.Failovers)-1]; f.Proof != "manual" {
		t.Errorf("proof %q, want manual", f.Proof)
	}
}

func TestTheNodeComesBackBeforeItIsProven(t *testing.T) {
	c := start(t, nil)
	_, others := c.master()
	victim := others[0]
	c.must(c.BreakFencing(victim, true))
	before := c.waitRunning()
	c.must(c.Kill(victim))
	c.waitStat("a failover", func(s stat) bool { return s.phase(victim, 1) != "" })
	c.must(c.Start(victim))
	// Either the failover is withdrawn, and its VEs start at home, or its own new
	// boot is the proof, and they start elsewhere: both are right, nothing else is.
	after := c.waitRunning()
	c.waitActive()
	home := 0
	for id, was := range before {
		if was == victim.Name && after[id] == was {
			home++
		}
	}
	if inc := c.mustStat().incarnation(victim); (inc == 1) != (home == 4) || home != 0 && home != 4 {
		t.Errorf("incarnation %d with %d of 4 VEs at home", inc, home)
	}
}

func TestAVEThatFailsEverywhereIsBroken(t *testing.T) {
	c := start(t, nil)
	_, others := c.master()
	victim := others[0]
	var id string
	for ve, was := range c.waitRunning() {
		if was == victim.Name {
			id = ve
		}
	}
	c.must(os.WriteFile(filepath.Join(c.veDir(id), "ve.conf"), []byte("COMMAND\n"), 0o644))
	c.must(c.Kill(victim))
	c.waitDone(victim, 1)
	s := c.mustStat()
	f := s.Failovers[len(s.Failovers)-1]
	if f.Broken != 1 || f.Started != 3 {
		t.Errorf("%d broken and %d started, want 1 and 3", f.Broken, f.Started)
	}
	for _, r := range s.Resources {
		if r.ID == id && (r.Status != "Broken" || !strings.Contains(r.Reason, "ve.conf:1")) {
			t.Errorf("%s is %s, reason %q; want Broken with the file and line that is wrong", id, r.Status, r.Reason)
		}
	}
}

func TestNothingFitsAndThenItDoes(t *testing.T) {
	// Each node has room for its own four VEs and one more.
	c := start(t, func(o *lab.Options) {
		o.Nodes, o.VEs, o.Policy = 3, 12, "drs"
		o.VEMemory, o.NodeMemory = 1<<30, 5<<30+512<<20
	})
	_, others := c.master()
	victim := others[0]
	c.must(c.Kill(victim))
	c.waitStat("the failover", func(s stat) bool { return s.phase(victim, 1) == "done" })
	s := c.mustStat()
	f := s.Failovers[len(s.Failovers)-1]
	if f.Started != 2 || f.Waiting != 2 {
		t.Fatalf("%d started and %d waiting, want 2 and 2", f.Started, f.Waiting)
	}
	for _, r := range s.Resources {
		if r.Waiting != "" && (r.Desired != "running" || r.State != "stopped" || !strings.Contains(r.Waiting, "GiB")) {
			t.Errorf("%s waits with desired %s, state %s: %q", r.ID, r.Desired, r.State, r.Waiting)
		}
	}
	// The dead node comes back empty, and is room enough.
	c.must(c.Start(victim))
	c.waitActive()
	c.waitRunning()
	c.waitStat("nobody to wait any more", func(s stat) bool {
		for _, r := range s.Resources {
			if r.Waiting != "" {
				return false
			}
		}
		return true
	})
}

func TestTooManyNodesAreLost(t *testing.T) {
	c := start(t, nil)
	_, others := c.master()
	for _, n := range others { // two of three
		c.must(c.Kill(n))
	}
	c.waitStat("the brake", func(s stat) bool { return s.Brake != "" })
	lives := c.lives()
	time.Sleep(3 * c.LockTimeout)
	if c.lives() != lives {
		t.Fatal("VEs were moved although RELOCATION_SKIP_THRESHOLD nodes are lost")
	}
	c.must(errOf(c.Shaman(c.ctx, c.Nodes[0], "failover", "release", "--all")))
	c.waitDone(others[0], 1)
	c.waitDone(others[1], 1)
	c.waitRunning()
}

func TestAnIsolatedNodeStopsItsVEsItself(t *testing.T) {
	// Cut off from etcd while the mount is fine: it obeys the order that lies in
	// its slot, and nobody cuts its power.
	for _, how := range []string{"error", "hang"} {
		t.Run(how, func(t *testing.T) {
			c := start(t, nil)
			master, others := c.master()
			victim := others[0]
			c.must(c.SetCut(victim, lab.Cut{Etcd: how}))
			c.waitDone(victim, 1)
			after := c.waitRunning()
			for id, now := range after {
				if now == victim.Name {
					t.Errorf("%s runs on the isolated node", id)
				}
			}
			s := c.mustStat()
			if f := s.Failovers[len(s.Failovers)-1]; f.Proof != "storage" || f.Started != 4 {
				t.Errorf("proof %q, %d started; want storage, 4", f.Proof, f.Started)
			}
			if c.Power(victim) != lab.On || c.Monitor(victim) == 0 {
				t.Error("its power was cut")
			}
			c.must(c.SetCut(victim, lab.Cut{}))
			c.waitActive()
			if inc := c.mustStat().incarnation(victim); inc != 2 {
				t.Errorf("incarnation %d, want 2", inc)
			}
			// The same for a master: the others elect a new one first.
			c.must(c.SetCut(master, lab.Cut{Etcd: how}))
			c.waitDone(master, c.mustStat().incarnation(master))
			c.waitRunning()
			c.must(c.SetCut(master, lab.Cut{}))
			c.waitActive()
		})
	}
}

func TestADaemonThatIsRestartedWhileIsolatedObeys(t *testing.T) {
	c := start(t, nil)
	_, others := c.master()
	victim := others[0]
	c.must(c.BreakFencing(victim, true)) // so that only its own answer can be the proof
	c.must(c.SetCut(victim, lab.Cut{Etcd: "error"}))
	c.must(c.CrashMonitor(victim))
	c.waitStat("a failover of it", func(s stat) bool { return s.phase(victim, 1) != "" })
	c.must(c.Start(victim))
	c.waitDone(victim, 1)
	c.waitRunning()
	c.must(c.SetCut(victim, lab.Cut{}))
	c.waitActive()
}

func TestAnIsolatedNodeThatCannotObeyIsCutOff(t *testing.T) {
	// Its daemon hangs, so the order is not read; its heartbeat stops with it.
	c := start(t, nil)
	c.must(errOf(c.Shaman(c.ctx, c.Nodes[0], "set-config", "STOP_BUDGET=2s")))
	_, others := c.master()
	victim := others[0]
	c.must(c.Pause(victim, false))
	c.waitDone(victim, 1)
	c.waitRunning()
	s := c.mustStat()
	if f := s.Failovers[len(s.Failovers)-1]; f.Proof != "agent" || c.Power(victim) != lab.Off {
		t.Errorf("proof %q, power %s; want agent, off", f.Proof, c.Power(victim))
	}
	c.must(c.Start(victim))
	c.waitActive()
}

func TestAMachineThatStallsAndWakesUp(t *testing.T) {
	// Everything of a node stops for longer than every time-out, its fence agent
	// cannot cut it, and an operator who looks at the wrong machine does not confirm.
	// When it wakes up, what was started elsewhere must not run here too.
	c := start(t, nil)
	_, others := c.master()
	victim := others[0]
	c.must(c.BreakFencing(victim, true))
	c.must(c.Pause(victim, true))
	c.waitStat("the failover to await an operator", func(s stat) bool { return s.status(victim) == "AwaitingFence" })
	time.Sleep(2 * c.LockTimeout)
	c.must(c.Resume(victim))
	// It finds the order, or its lease gone and nothing proven: it either stops
	// everything, or is let in again with all it had.
	c.waitActive()
	c.waitRunning()
	c.check()
}

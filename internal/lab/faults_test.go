package lab_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/lab"
)

// TestAReplacedMasterWakesUp: a master stands still in the middle of a failover, its
// successor goes on with it, and then it wakes up and goes on as well.
func TestAReplacedMasterWakesUp(t *testing.T) {
	t.Parallel()
	c := start(t, func(o *lab.Options) { o.Nodes, o.VEs = 5, 15 })
	for _, moment := range []time.Duration{0, 500 * time.Millisecond, 1800 * time.Millisecond, 2000 * time.Millisecond, 2200 * time.Millisecond, 2400 * time.Millisecond} {
		master, others := c.master()
		victim := others[0]
		inc := c.mustStat().incarnation(victim)
		// Nobody can cut the old master off: it really wakes up.
		c.must(c.BreakFencing(master, true))
		c.must(c.Kill(victim))
		time.Sleep(moment) // LOCK_TIMEOUT is 2 s: before the failover opens, and in the middle of it
		c.must(c.Pause(master, false))
		c.waitDone(victim, inc)
		c.wait("another master", func() bool {
			m, ok, err := c.Master(c.ctx, c.cl)
			return err == nil && ok && m.Name != master.Name
		})
		c.must(c.Resume(master))
		c.must(c.Start(victim))
		c.waitActive()
		c.must(c.BreakFencing(master, false))
		c.waitRunning()
		c.waitStat("the cluster to be quiet", stat.quiet)
		c.check()
		if t.Failed() {
			t.Fatalf("after a pause of the master %s after the power cut", moment)
		}
	}
}

// TestTwoMachinesWithOneHostID: the second one keeps out, and the first one is left
// in peace.
func TestTwoMachinesWithOneHostID(t *testing.T) {
	t.Parallel()
	c := start(t, nil)
	lives := c.lives()
	n := c.Nodes[1]
	conf, err := os.ReadFile(c.Conf(n))
	c.must(err)
	dir := filepath.Join(c.Dir, n.Name, "clone")
	c.must(os.MkdirAll(dir, 0o755))
	// A copy of the disk: all of it is the same, but what the machine itself is.
	text := string(conf)
	for k, v := range map[string]string{"RUN_DIR": dir + "/run", "STATE_DIR": dir + "/state", "BOOT_ID_FILE": dir + "/boot_id", "HARDWARE_ID": "the-clone", "LISTEN_ADDRESS": "127.0.0.1:0"} {
		i := strings.Index(text, k+"=")
		end := i + strings.IndexByte(text[i:], '\n')
		text = text[:i] + k + "=" + v + text[end:]
	}
	c.must(os.WriteFile(filepath.Join(dir, "boot_id"), []byte("a-boot-of-the-clone\n"), 0o644))
	c.must(os.WriteFile(filepath.Join(dir, "shaman.conf"), []byte(text), 0o600))
	clone := exec.Command(filepath.Join(bin, "shaman-monitor"), "--config", filepath.Join(dir, "shaman.conf"))
	var log bytes.Buffer
	clone.Stderr = &log
	clone.Env = append(os.Environ(), "SHAMAN_LAB_NODE="+filepath.Join(c.Dir, n.Name))
	c.must(clone.Start())
	time.Sleep(4 * c.LockTimeout)
	c.must(clone.Process.Kill())
	_ = clone.Wait() // it was killed
	if !strings.Contains(log.String(), "duplicate-host-id") {
		t.Errorf("the second machine does not say what is wrong:\n%s", log.String())
	}
	if strings.Contains(log.String(), `"msg":"admitted"`) {
		t.Error("both machines were admitted")
	}
	c.still("a second machine with the same host id", lives)
}

// TestAThirdOfTheNodesAtOnce: fewer than the brake holds are taken over together.
func TestAThirdOfTheNodesAtOnce(t *testing.T) {
	t.Parallel()
	c := start(t, func(o *lab.Options) { o.Nodes, o.VEs = 6, 18 })
	master, others := c.master()
	lives := c.lives()
	for _, n := range []lab.Node{master, others[0]} {
		c.must(c.Kill(n))
	}
	c.waitDone(master, 1)
	c.waitDone(others[0], 1)
	c.waitRunning()
	c.check()
	if now := c.lives(); now != lives+6 {
		t.Errorf("%d VEs were started, want the 6 of two nodes", now-lives)
	}
}

// TestAFenceAgentLies: it says that the node is off, and has done nothing. As long as
// the node beats it is not believed.
func TestAFenceAgentLies(t *testing.T) {
	t.Parallel()
	c := start(t, nil)
	c.must(errOf(c.Shaman(c.ctx, c.Nodes[0], "set-config", "STOP_BUDGET=2s", "FENCE_METHODS=agent,manual")))
	_, others := c.master()
	n := others[0]
	lives := c.lives()
	c.must(c.LieFencing(n, true))
	c.must(c.SetCut(n, lab.Cut{Etcd: "hang"}))
	c.waitStat("the failover to await an operator", func(s stat) bool {
		for _, f := range s.Failovers {
			if f.Node == string(n.HostID) && f.Phase == "awaiting-fence" {
				return strings.Contains(f.Reason, "its heartbeat goes on: the agent switches another machine")
			}
		}
		return false
	})
	if now := c.lives(); now != lives {
		t.Errorf("%d VEs were started upon a lie", now-lives)
	}
	if err := errOf(c.Shaman(c.ctx, c.Nodes[0], "fence", "confirm", n.Name, "--yes", n.Name)); err == nil || !strings.Contains(err.Error(), "exit code 4") {
		t.Errorf("a confirm of a node that beats: %v; want it refused", err)
	}
	c.must(c.SetCut(n, lab.Cut{}))
	c.must(c.LieFencing(n, false))
	c.waitActive()
	c.waitRunning()
	c.waitStat("the cluster to be quiet", stat.quiet)
	c.check()
	if now := c.lives(); now != lives {
		t.Errorf("%d VEs were started anew", now-lives)
	}
}

// TestTheSharedFileSystemIsFull, or read-only, for everybody: it is held and told,
// nothing becomes broken, and it goes on by itself.
func TestTheSharedFileSystemTakesNoWrites(t *testing.T) {
	t.Parallel()
	needMounts(t)
	for _, how := range []string{"full", "readonly"} {
		t.Run(how, func(t *testing.T) {
			c := start(t, nil)
			before := c.waitRunning()
			lives := c.lives()
			_, others := c.master()
			n := others[0]
			for _, o := range c.Nodes {
				c.must(c.SetCut(o, lab.Cut{Mount: how}))
			}
			c.must(c.Kill(n))
			c.must(c.SetCut(n, lab.Cut{}))
			time.Sleep(6 * c.LockTimeout)
			s, err := c.stat()
			c.must(err)
			for _, r := range s.Resources {
				if r.Status == "Broken" {
					t.Errorf("%s is broken: %s", r.ID, r.Reason)
				}
			}
			c.check()
			for _, o := range c.Nodes {
				c.must(c.SetCut(o, lab.Cut{}))
			}
			c.waitDone(n, 1)
			homes := c.waitRunning()
			for id, home := range homes {
				if before[id] != n.Name && home != before[id] {
					t.Errorf("%s moved from %s to %s", id, before[id], home)
				}
			}
			if now := c.lives(); now != lives+4 {
				t.Errorf("%d VEs were started, want the 4 of the dead node", now-lives)
			}
			c.must(c.Start(n))
			c.waitActive()
		})
	}
}

// TestANodeFlaps: it goes down and comes up, again and again, at other moments each
// time; and after NODE_CRASH_PER_HOUR_THRESHOLD times it gets no VEs any more.
func TestANodeFlaps(t *testing.T) {
	t.Parallel()
	c := start(t, func(o *lab.Options) { o.Nodes = 4 })
	_, others := c.master()
	n := others[0]
	desired := c.desired()
	for i := range 6 {
		c.must(c.Kill(n))
		time.Sleep(time.Duration(i) * 600 * time.Millisecond)
		c.must(c.Start(n))
		time.Sleep(time.Duration(5-i) * 300 * time.Millisecond)
	}
	c.waitActive()
	c.waitRunning()
	c.waitStat("the cluster to be quiet", stat.quiet)
	c.check()
	if fmt.Sprint(c.desired()) != fmt.Sprint(desired) {
		t.Errorf("desired states %v, before %v", c.desired(), desired)
	}
	c.must(errOf(c.Shaman(c.ctx, c.Nodes[0], "set-config", "NODE_CRASH_PER_HOUR_THRESHOLD=3")))
	// Only a crash of a node that was let in counts, and on a busy machine not all of
	// the above were: once more, until there are enough.
	suspended := false
	for range 3 {
		if suspended {
			break
		}
		inc := c.mustStat().incarnation(n)
		c.must(c.Kill(n))
		c.must(c.Start(n))
		c.waitStat("the node to be let in again", func(s stat) bool {
			suspended = s.status(n) == "Suspended"
			return suspended || s.status(n) == "Active" && s.incarnation(n) > inc && ready(n)
		})
	}
	if !suspended {
		t.Error("it is not suspended after more crashes than NODE_CRASH_PER_HOUR_THRESHOLD")
	}
	c.waitRunning()
}

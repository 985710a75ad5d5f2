package lab_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/shaman-ha/shaman/internal/lab"
)

// steps are the labelled steps of a failover, in their order: those of the
// master, of the target, and of a resource that fails on its way.
var steps = []string{
	"open", "proof", "seal", "sealed", "dispatch",
	"mark", "claim-rename", "claim", "register", "start", "outcome",
	"giveback", "broken", "done", "finish", "create",
}

// TestKilledAtEachStep lets the daemon that takes a step die right before and
// right after it, once as a crash of the daemon that systemd restarts, and once
// as a power cut of its whole machine. The end is always the same: every VE runs
// exactly once, and the one that cannot start is broken.
func TestKilledAtEachStep(t *testing.T) {
	for _, how := range []string{"the daemon crashes", "its machine dies"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			points := filepath.Join(t.TempDir(), "fail")
			t.Logf("%d crash points", 2*len(steps))
			c := start(t, func(o *lab.Options) {
				o.Nodes, o.VEs = 5, 15
				o.Env = []string{"SHAMAN_FAILPOINT=" + points}
			})
			for _, step := range steps {
				for _, side := range []string{"before", "after"} {
					c.killAt(points, step+":"+side, how == "its machine dies")
				}
			}
		})
	}
}

// killAt runs one failover in which somebody dies at a step, and heals everything.
func (c *cluster) killAt(points, label string, machine bool) {
	c.t.Helper()
	c.waitActive()
	c.waitStat("the cluster to be quiet", stat.quiet)
	victim, bad := c.busiestFollower(c.waitRunning())
	inc := c.mustStat().incarnation(victim)
	// One of its VEs cannot be started anywhere, so that giving back and
	// quarantine are steps of this failover too.
	conf := filepath.Join(c.veDir(bad), "ve.conf")
	good, err := os.ReadFile(conf)
	c.must(err)
	c.must(os.WriteFile(conf, []byte("not a definition\n"), 0o644))
	c.must(os.WriteFile(points, []byte(label), 0o644))
	c.must(c.Kill(victim))
	if strings.HasPrefix(label, "create") {
		// A step of the admission of the node that comes back.
		c.waitDone(victim, inc)
		c.must(c.Start(victim))
	}
	dead := c.whoDied(points, label)
	if machine {
		c.must(c.Kill(dead))
	}
	c.t.Logf("%s: %s lost its power, the daemon of %s died", label, victim.Name, dead.Name)
	c.wait(label+": the failover to end", func() bool {
		for _, n := range c.Nodes {
			// A dead daemon is started again at once, as systemd does; a machine
			// that was fenced meanwhile too, as operators do.
			if n.Name != victim.Name {
				c.must(c.Start(n))
			}
		}
		s, err := c.stat()
		return err == nil && s.phase(victim, inc) == "done"
	})
	c.must(c.Start(victim))
	c.waitActive()
	c.waitStat(label+": the bad VE to be broken", func(s stat) bool {
		for _, r := range s.Resources {
			if r.ID == bad {
				return r.Status == "Broken"
			}
		}
		return false
	})
	c.wait(label+": all other VEs to run", func() bool {
		for _, id := range c.VEs {
			if now, err := c.Where(id); id != bad && (err != nil || now == "") {
				return false
			}
		}
		return true
	})
	c.check()
	if c.t.Failed() {
		c.t.FailNow()
	}
	// Mended by hand, as an operator does: the definition, then the resource.
	c.must(os.WriteFile(conf, good, 0o644))
	c.unbreak(bad, victim)
}

// busiestFollower is the node on which most VEs run, the master aside, and one of them.
func (c *cluster) busiestFollower(homes map[string]string) (n lab.Node, ve string) {
	c.t.Helper()
	_, others := c.master()
	most := 0
	for _, o := range others {
		count, one := 0, ""
		for id, home := range homes {
			if home == o.Name {
				count++
				one = max(one, id)
			}
		}
		if count > most {
			n, ve, most = o, one, count
		}
	}
	if most < 2 {
		c.t.Fatalf("at most %d VEs run on a node, the master aside; a failover needs a good one and a bad one", most)
	}
	return n, ve
}

// whoDied waits until some daemon has died at the failpoint.
func (c *cluster) whoDied(points, label string) lab.Node {
	c.t.Helper()
	var dead lab.Node
	c.wait("somebody to die at "+label, func() bool {
		hit, _ := filepath.Glob(points + ".*")
		for _, f := range hit {
			pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Ext(f), "."))
			if err != nil {
				continue
			}
			for _, n := range c.Nodes {
				if have, _ := os.ReadFile(filepath.Join(c.Dir, n.Name, "shaman-monitor.pid")); strings.TrimSpace(string(have)) == strconv.Itoa(pid) {
					dead = n
				}
			}
			c.must(os.Remove(f))
		}
		return dead.Name != ""
	})
	return dead
}

// unbreak gives a resource back to a node by hand and starts it.
func (c *cluster) unbreak(id string, n lab.Node) {
	c.t.Helper()
	broken := filepath.Join(c.Mount(), ".shaman", "broken", id)
	c.must(os.Rename(broken, filepath.Join(c.Mount(), ".shaman", "md."+string(n.HostID), "resources", id)))
	c.must(os.Remove(broken + ".reason"))
	c.must(errOf(c.Shaman(c.ctx, n, "start", id)))
	c.waitRunning()
}

func errOf(_ string, e error) error { return e }

package lab_test

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/lab"
)

// needWatchdogs: the watchdogs are FUSE devices.
func needWatchdogs(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this has to run as root in CI: it needs watchdog devices")
		}
		t.Skip("NOT RUN: a watchdog device needs root")
	}
}

// dogEvent is a line of a watchdog's own log.
type dogEvent struct {
	at   time.Duration // CLOCK_BOOTTIME
	what string
}

func (c *cluster) dogEvents(n lab.Node) []dogEvent {
	c.t.Helper()
	f, err := os.Open(c.WatchdogLog(n))
	c.must(err)
	defer f.Close()
	var out []dogEvent
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var ns int64
		var e dogEvent
		if k, _ := fmt.Sscan(sc.Text(), &ns, &e.what); k == 2 {
			e.at = time.Duration(ns)
			out = append(out, e)
		}
	}
	return out
}

func (c *cluster) dogDid(n lab.Node, what string) (count int) {
	for _, e := range c.dogEvents(n) {
		if e.what == what {
			count++
		}
	}
	return count
}

func (c *cluster) waitArmed(nodes ...lab.Node) {
	c.t.Helper()
	c.waitStat("watchdogs to be armed", func(s stat) bool {
		for _, n := range nodes {
			if s.watchdog(n) != "armed" {
				return false
			}
		}
		return true
	})
}

// waitReset waits until a node was reset by its watchdog, and failed over for that.
func (c *cluster) waitReset(n lab.Node, inc int, proof string) {
	c.t.Helper()
	c.wait("the power of "+n.Name+" to go", func() bool { return c.Power(n) == lab.Off })
	c.waitDone(n, inc)
	for _, f := range c.mustStat().Failovers {
		if f.Node == string(n.HostID) && f.Incarnation == inc && f.Proof != proof {
			c.t.Errorf("proven by %q, want %s", f.Proof, proof)
		}
	}
	c.waitRunning()
	c.check()
}

// feedSlack is for a feed that was decided in time on a machine that is busy. One that
// is really late resets at once.
const feedSlack = 500 * time.Millisecond

// TestTheWatchdogFences: no fence agent works in this lab; what proves is silence.
func TestTheWatchdogFences(t *testing.T) {
	needWatchdogs(t)
	t.Parallel()
	c := start(t, func(o *lab.Options) { o.Nodes, o.Watchdog = 4, true })
	c.waitArmed(c.Nodes...)
	for _, n := range c.Nodes {
		c.must(c.BreakFencing(n, true))
	}
	// Each way in which a node can fall silent, and what becomes of its VEs before its
	// watchdog's time has come.
	for _, how := range []struct {
		name  string
		do    func(lab.Node) error
		bites bool // the watchdog itself, as its log tells
	}{
		{"cut off from everything, calls hang", func(n lab.Node) error { return c.SetCut(n, lab.Cut{Etcd: "hang", Mount: "hang"}) }, false},
		{"cut off from everything, calls fail", func(n lab.Node) error { return c.SetCut(n, lab.Cut{Etcd: "error", Mount: "error"}) }, false},
		{"its daemon stands still", func(n lab.Node) error { return c.Pause(n, false) }, true},
		{"the whole machine stands still", func(n lab.Node) error { return c.Pause(n, true) }, true},
		{"its daemon dies, and nothing starts it again", c.CrashMonitor, true},
		{"cut off, and its watchdog does not bite", func(n lab.Node) error {
			c.must(c.BreakWatchdog(n, true))
			return c.SetCut(n, lab.Cut{Etcd: "error", Mount: "hang"})
		}, false},
		{"its power is cut", c.Kill, false},
	} {
		t.Run(how.name, func(t *testing.T) {
			outer := c.t
			c.t = t
			defer func() { c.t = outer }()
			_, others := c.master()
			n := others[0]
			inc := c.mustStat().incarnation(n)
			bitten := c.dogDid(n, "expire")
			c.must(how.do(n))
			silent := time.Duration(boottime.Now())
			c.waitReset(n, inc, "watchdog")
			// By the watchdog's own log: no feed later than SELF_FENCE_TIMEOUT after the last
			// contact that there can have been.
			for _, e := range c.dogEvents(n) {
				if late := e.at - silent; e.what == "feed" && late > c.LockTimeout+feedSlack {
					t.Errorf("fed %s after the last contact", late)
				}
			}
			if how.bites && c.dogDid(n, "expire") == bitten {
				t.Error("the watchdog did not bite")
			}
			// It is on its way back: a new boot, nothing armed until it is admitted.
			c.must(c.SetCut(n, lab.Cut{}))
			c.must(c.BreakWatchdog(n, false))
			c.must(c.Start(n))
			c.waitActive()
			c.waitArmed(n)
		})
		if t.Failed() {
			return
		}
	}
}

// TestTheWatchdogIsQuiet: whatever is no loss of contact resets nobody.
func TestTheWatchdogIsQuiet(t *testing.T) {
	needWatchdogs(t)
	t.Parallel()
	c := start(t, func(o *lab.Options) { o.Watchdog = true })
	c.waitArmed(c.Nodes...)
	lives := c.lives()
	still := func(what string) {
		t.Helper()
		for _, n := range c.Nodes {
			if c.Power(n) == lab.Off || c.dogDid(n, "expire") != 0 {
				t.Errorf("%s: %s was reset", what, n.Name)
			}
		}
		if now := c.lives(); now != lives || len(c.mustStat().Failovers) != 0 {
			t.Errorf("%s: %d VEs were started, %d failovers", what, now-lives, len(c.mustStat().Failovers))
		}
	}
	master, others := c.master()
	for _, m := range c.Members {
		c.must(c.StopEtcd(m))
	}
	time.Sleep(5 * c.LockTimeout)
	for _, m := range c.Members {
		c.must(c.StartEtcd(m))
	}
	c.waitActive()
	still("etcd away for five LOCK_TIMEOUTs")

	c.must(c.SetCut(others[0], lab.Cut{Mount: "hang"}))
	time.Sleep(5 * c.LockTimeout)
	c.must(c.SetCut(others[0], lab.Cut{}))
	c.waitActive()
	still("the mount of one node hangs")

	for _, n := range []lab.Node{master, others[1]} {
		opened := c.dogDid(n, "open")
		c.must(c.CrashMonitor(n))
		c.must(c.Start(n))
		c.waitActive()
		if c.dogDid(n, "disarm") != 0 || c.dogDid(n, "open") != opened+1 {
			t.Errorf("%s: a daemon that was started again did not go on with its watchdog: %v", n.Name, c.dogEvents(n))
		}
	}
	still("daemons crash and are started again")

	// Stopped on purpose: disarmed after that was recorded, and armed again later.
	n := others[0]
	c.must(c.StopMonitor(n))
	if c.dogDid(n, "disarm") != 1 {
		t.Errorf("a daemon that was stopped left its watchdog armed: %v", c.dogEvents(n))
	}
	c.waitStat("the node to be Inactive", func(s stat) bool { return s.status(n) == "Inactive" && s.watchdog(n) == "off" })
	c.must(c.Start(n))
	c.waitActive()
	c.waitArmed(n)
	still("a daemon is stopped and started")

	// Numbers that change while everything runs.
	c.must(errOf(c.Shaman(c.ctx, n, "set-config", "WATCHDOG_TIMEOUT=0")))
	c.waitStat("all watchdogs to be off", func(s stat) bool {
		return s.watchdog(c.Nodes[0]) == "off" && s.watchdog(c.Nodes[1]) == "off" && s.watchdog(c.Nodes[2]) == "off"
	})
	c.must(errOf(c.Shaman(c.ctx, n, "set-config", "WATCHDOG_TIMEOUT=4s")))
	c.waitArmed(c.Nodes...)
	c.must(errOf(c.Shaman(c.ctx, n, "set-config", "WATCHDOG_TIMEOUT=2s")))
	c.wait("the watchdogs to take the new time-out", func() bool { return strings.Count(c.dump(), `"timeout":2000000000`) == len(c.Nodes) })
	still("WATCHDOG_TIMEOUT changes")
}

package lab_test

import (
	"fmt"
	"testing"

	"github.com/shaman-ha/shaman/internal/lab"
)

// TestAHostIsShutDown: its VEs are stopped in good order, nothing is fenced, and
// what should run still should.
func TestAHostIsShutDown(t *testing.T) {
	t.Parallel()
	needWatchdogs(t)
	c := start(t, func(o *lab.Options) { o.Watchdog, o.StoppedVEs = true, 3 })
	c.waitArmed(c.Nodes...)
	_, others := c.master()
	n, m := others[0], others[1]
	desired := c.desired()

	// freeze: they wait for their host.
	homes := c.waitRunning()
	c.must(c.Shutdown(n))
	c.waitStat("the node to be Down", func(s stat) bool { return s.status(n) == "Down" && s.watchdog(n) == "off" })
	if c.dogDid(n, "disarm") != 1 || c.dogDid(n, "expire") != 0 {
		t.Errorf("the watchdog was not disarmed: %v", c.dogEvents(n))
	}
	for id, home := range homes {
		lives, err := c.Lives(id)
		c.must(err)
		if last := lives[len(lives)-1]; home == n.Name && !last.Stopped {
			t.Errorf("%s was not asked to stop", id)
		}
	}
	if s := c.mustStat(); len(s.Failovers) != 0 || fmt.Sprint(c.desired()) != fmt.Sprint(desired) {
		t.Errorf("%d failovers; desired states %v, before %v", len(s.Failovers), c.desired(), desired)
	}
	c.must(c.Start(n))
	c.waitActive()
	for id, home := range c.waitRunning() {
		if home != homes[id] {
			t.Errorf("%s runs on %s; it waited for its host on %s", id, home, homes[id])
		}
	}

	// An operator moves them all the same.
	c.must(c.Shutdown(n))
	c.waitStat("the node to be Down", func(s stat) bool { return s.status(n) == "Down" })
	inc := c.mustStat().incarnation(n)
	c.must(errOf(c.Shaman(c.ctx, m, "fence", "confirm", n.Name, "--yes", n.Name)))
	c.waitDone(n, inc)
	c.waitRunning()
	c.must(c.Start(n))
	c.waitActive()

	// failover: they are started elsewhere, and nobody asks a fence agent.
	c.must(errOf(c.Shaman(c.ctx, m, "set-config", "SHUTDOWN_POLICY=failover")))
	c.must(c.BreakFencing(m, true))
	inc = c.mustStat().incarnation(m)
	c.must(c.Shutdown(m))
	c.waitDone(m, inc)
	for _, f := range c.mustStat().Failovers {
		if f.Node == string(m.HostID) && f.Incarnation == inc && (f.Proof != "down" || f.Started != f.Total-f.Stopped) {
			t.Errorf("failover %+v; want the node's own word as proof", f)
		}
	}
	c.waitRunning()
	if fmt.Sprint(c.desired()) != fmt.Sprint(desired) {
		t.Errorf("desired states %v, before %v", c.desired(), desired)
	}
	c.must(c.Start(m))
	c.waitActive()
}

// desired is what each resource should be, by its file.
func (c *cluster) desired() map[string]string {
	c.t.Helper()
	out := map[string]string{}
	for _, r := range c.mustStat().Resources {
		out[r.ID] = r.Desired
	}
	return out
}

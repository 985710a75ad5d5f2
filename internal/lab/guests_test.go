package lab_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/hypervisor/libvirt/libvirttest"
	"github.com/shaman-ha/shaman/internal/hypervisor/lxc/lxctest"
	"github.com/shaman-ha/shaman/internal/lab"
)

// needHypervisor: CI installs the hypervisors, and fails if they are not there.
func needHypervisor(t *testing.T, driver string) {
	t.Helper()
	missing := lxctest.Missing()
	if driver == "libvirt" {
		missing = libvirttest.Missing()
		for _, p := range []string{"ipmi_sim", "ipmitool", "fence_ipmilan"} {
			if _, err := exec.LookPath(p); err != nil && missing == nil {
				missing = err
			}
		}
	}
	if missing == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("this has to run in CI: %v", missing)
	}
	t.Skipf("NOT RUN: %v", missing)
}

// guests makes a lab whose guests are real ones: QEMU's with a simulated BMC a
// node, or LXC's.
func guests(t *testing.T, driver string, nodes, ves int) *cluster {
	t.Helper()
	needHypervisor(t, driver)
	c := start(t, func(o *lab.Options) {
		o.Driver, o.IPMI, o.Nodes, o.VEs, o.StoppedVEs = driver, driver == "libvirt", nodes, ves, 1
	})
	// A guest that runs counts its boot when its first instructions have run.
	c.wait("all guests to have booted", func() bool {
		for _, id := range c.VEs[:c.Running] {
			if n, err := c.Boots(id); err != nil || n == 0 {
				return false
			}
		}
		return true
	})
	return c
}

func (c *cluster) boots() map[string]int {
	c.t.Helper()
	out := map[string]int{}
	for _, id := range c.VEs {
		n, err := c.Boots(id)
		c.must(err)
		out[id] = n
	}
	return out
}

// TestGuestsOfANode: a node loses its power, a real fence agent proves it, and its
// guests boot on the others, each of them once.
func TestGuestsOfANode(t *testing.T) {
	for _, driver := range []string{"libvirt", "lxc"} {
		t.Run(driver, func(t *testing.T) {
			c := guests(t, driver, 3, 6)
			before, homes := c.boots(), c.waitRunning()
			_, others := c.master()
			victim := others[0]
			cut := time.Now()
			c.must(c.Kill(victim))
			c.waitDone(victim, 1)
			after := c.waitRunning()
			c.wait("all moved guests to have booted", func() bool {
				for _, id := range c.VEs[:c.Running] {
					n, err := c.Boots(id)
					if err != nil || homes[id] == victim.Name && n == before[id] {
						return false
					}
				}
				return true
			})
			for id, n := range c.boots() {
				want := before[id]
				if homes[id] == victim.Name {
					want++
				}
				if n != want || after[id] == victim.Name {
					t.Errorf("%s was booted %d times, want %d; it runs on %q", id, n, want, after[id])
				}
			}
			if stoppedID := c.VEs[c.Running]; c.boots()[stoppedID] != 0 {
				t.Errorf("%s, which should not run, was booted", stoppedID)
			}
			f, err := c.Failover(c.ctx, c.cl, victim)
			c.must(err)
			if f.Proof != "agent" {
				t.Errorf("proven by %s, want the agent", f.Proof)
			}
			c.tell(cut, f.LostAt, f.FencedAt, f.SealedAt, f.DispatchAt, f.DoneAt)

			// It comes back, with its definitions of yesterday, and takes nothing back.
			c.must(c.Start(victim))
			c.waitStat("the node to be back", func(s stat) bool { return s.status(victim) == "Active" })
			if now := c.waitRunning(); fmt.Sprint(now) != fmt.Sprint(after) {
				t.Errorf("after the node is back VEs run on %v, want %v", now, after)
			}
		})
	}
}

// tell prints the phases of a failover, in seconds from the power cut.
func (c *cluster) tell(cut time.Time, marks ...string) {
	c.t.Helper()
	var b strings.Builder
	for i, name := range []string{"noticed", "fenced", "sealed", "dispatched", "done"} {
		if at, err := time.Parse(time.RFC3339Nano, marks[i]); err == nil {
			fmt.Fprintf(&b, " %s +%.3fs", name, at.Sub(cut).Seconds())
		}
	}
	c.t.Logf("failover phases after the power cut:%s", b.String())
}

// TestAStorageHangBreaksNothing: the mount of one node hangs under its guests for
// longer than every time-out; nothing moves and nothing becomes broken.
func TestAStorageHangBreaksNothing(t *testing.T) {
	for _, driver := range []string{"libvirt", "lxc"} {
		t.Run(driver, func(t *testing.T) {
			c := guests(t, driver, 3, 3)
			before, homes := c.boots(), c.waitRunning()
			_, others := c.master()
			n := others[0]
			c.must(c.SetCut(n, lab.Cut{Mount: "hang"}))
			c.waitStat("the node's mount to be lost", func(s stat) bool {
				for _, have := range s.Nodes {
					if have.HostID == string(n.HostID) {
						return have.Mount == "lost"
					}
				}
				return false
			})
			time.Sleep(2 * c.LockTimeout) // longer than what could move something
			for _, r := range c.mustStat().Resources {
				if r.Status != "Active" {
					t.Errorf("%s is %s: %s", r.ID, r.Status, r.Reason)
				}
			}
			c.must(c.SetCut(n, lab.Cut{}))
			c.waitStat("all to be as it was", func(s stat) bool {
				for _, have := range s.Nodes {
					if have.Mount != "ok" || have.Status != "Active" {
						return false
					}
				}
				for _, r := range s.Resources {
					if r.Status != "Active" || r.State != r.Desired {
						return false
					}
				}
				return true
			})
			if now := c.waitRunning(); fmt.Sprint(now) != fmt.Sprint(homes) || fmt.Sprint(c.boots()) != fmt.Sprint(before) {
				t.Errorf("VEs run on %v and were booted %v; want %v, %v", now, c.boots(), homes, before)
			}
		})
	}
}

// TestALiveMigrationHandsItsResourceOver: virsh moves a running guest, without a
// word to shaman, and its resource follows; when its new node dies it is started
// elsewhere. A migration that fails half way leaves everything as it was.
func TestALiveMigrationHandsItsResourceOver(t *testing.T) {
	c := guests(t, "libvirt", 3, 3)
	before, homes := c.boots(), c.waitRunning()
	_, others := c.master()
	from, to := others[0], others[1]
	var id string
	for ve, node := range homes {
		if node == from.Name {
			id = ve
		}
	}
	name := strings.TrimPrefix(id, "vm-")
	virsh := func(n lab.Node, args ...string) (string, error) {
		out, err := exec.Command("virsh", append([]string{"-q", "-c", c.LibvirtURI(n)}, args...)...).CombinedOutput()
		return string(out), err
	}
	owner := func(want lab.Node) {
		t.Helper()
		c.waitStat(id+" to belong to "+want.Name, func(s stat) bool {
			for _, r := range s.Resources {
				if r.ID == id {
					return r.HostID == string(want.HostID) && r.State == "running"
				}
			}
			return false
		})
	}
	migrate := func(from, to lab.Node, more ...string) (string, error) {
		return virsh(from, append([]string{"migrate", "--live", "--unsafe", "--migrateuri", "tcp://127.0.0.1", name, c.LibvirtURI(to)}, more...)...)
	}
	// To a place that cannot take it.
	if out, err := migrate(from, to, "--dname", "other/name", "--persistent"); err == nil {
		t.Fatalf("a migration that has to fail succeeds: %s", out)
	}
	owner(from)
	if out, err := migrate(from, to, "--persistent", "--undefinesource"); err != nil {
		t.Fatalf("migrate: %v: %s", err, out)
	}
	owner(to)
	// Back again, this time the source keeps its definition.
	if out, err := migrate(to, from, "--persistent"); err != nil {
		t.Fatalf("migrate back: %v: %s", err, out)
	}
	owner(from)
	if n := c.boots()[id]; n != before[id] {
		t.Errorf("%s was booted %d times, want %d: migrations boot nothing", id, n, before[id])
	}
	c.must(c.Kill(from))
	c.waitDone(from, 1)
	c.waitRunning()
	c.wait("the guest to boot elsewhere", func() bool {
		n, err := c.Boots(id)
		return err == nil && n == before[id]+1
	})
}

// TestAContainerStartedByHandElsewhere: an operator starts a container on a node
// that does not own it; the resource follows, also out of quarantine.
func TestAContainerStartedByHandElsewhere(t *testing.T) {
	c := guests(t, "lxc", 3, 3)
	homes := c.waitRunning()
	id := c.VEs[0]
	to := c.Nodes[1]
	if homes[id] == to.Name {
		to = c.Nodes[2]
	}
	name := strings.TrimPrefix(id, "ct-")
	home, err := c.Node(homes[id])
	c.must(err)
	// By the guest's own tools, past shaman: stopped here, started there.
	on := func(n lab.Node, argv ...string) {
		t.Helper()
		code, err := c.Exec(n, argv)
		if err != nil || code != 0 {
			t.Fatalf("%v on %s: exit code %d, %v", argv, n.Name, code, err)
		}
	}
	lxcpath := strings.TrimSuffix(c.VEPath(id), "/"+name)
	on(home, "lxc-stop", "-P", lxcpath, "-n", name, "-t", "10")
	on(to, "lxc-start", "-P", lxcpath, "-n", name)
	c.waitStat(id+" to belong to "+to.Name, func(s stat) bool {
		for _, r := range s.Resources {
			if r.ID == id {
				return r.HostID == string(to.HostID) && r.State == "running"
			}
		}
		return false
	})
	if now := c.waitRunning(); now[id] != to.Name {
		t.Errorf("%s runs on %q, want %s", id, now[id], to.Name)
	}
}

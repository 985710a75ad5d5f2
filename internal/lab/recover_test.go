package lab_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// etcdData is where the only member keeps its data.
func (c *cluster) etcdData() string { return filepath.Join(c.Dir, "etcd1", "data") }

// recoverAll does what the manual says, on all nodes.
func (c *cluster) recoverAll() {
	c.t.Helper()
	if e := errOf(c.Shaman(c.ctx, c.Nodes[0], "join", "--recover")); e == nil || !strings.Contains(e.Error(), "exit code 4") || !strings.Contains(e.Error(), "daemons run") {
		c.t.Errorf("a recover while daemons run: %v", e)
	}
	for _, n := range c.Nodes {
		c.must(c.StopMonitor(n))
	}
	for _, n := range c.Nodes {
		c.must(errOf(c.Shaman(c.ctx, n, "join", "--recover")))
	}
	for _, n := range c.Nodes {
		c.must(c.Start(n))
	}
	c.waitActive()
}

func TestEtcdIsRebuilt(t *testing.T) {
	c := start(t, nil)
	before := c.waitRunning()
	lives := c.lives()
	m := c.Members[0]
	c.must(c.StopEtcd(m))
	c.must(os.RemoveAll(c.etcdData()))
	c.must(c.StartEtcd(m))
	c.must(c.AwaitEtcd(c.ctx))
	c.recoverAll()
	c.stayed(before, lives)
	if s := c.mustStat(); len(s.Failovers) != 0 {
		t.Errorf("%d failovers after a recovery", len(s.Failovers))
	}
}

func TestEtcdIsRestoredFromABackup(t *testing.T) {
	c := start(t, nil)
	m := c.Members[0]
	backup := filepath.Join(t.TempDir(), "data")
	c.must(c.StopEtcd(m))
	c.must(exec.Command("cp", "-r", c.etcdData(), backup).Run())
	c.must(c.StartEtcd(m))
	c.must(c.AwaitEtcd(c.ctx))
	c.waitActive()
	// After the backup much happens: a master is elected, far beyond it, and a node
	// is failed over and comes back.
	for range 1000 {
		_, err := c.cl.Put(c.ctx, "/elsewhere", "somebody else's")
		c.must(err)
	}
	master, _ := c.master()
	c.must(c.Kill(master))
	c.waitDone(master, 1)
	c.must(c.Start(master))
	c.waitActive()
	before := c.waitRunning()
	lives := c.lives()

	c.must(c.StopEtcd(m))
	c.must(os.RemoveAll(c.etcdData()))
	c.must(exec.Command("cp", "-r", backup, c.etcdData()).Run())
	c.must(c.StartEtcd(m))
	c.must(c.AwaitEtcd(c.ctx))
	c.recoverAll()
	c.stayed(before, lives)
	if inc := c.mustStat().incarnation(master); inc != 2 {
		t.Errorf("%s has incarnation %d, want 2: the mount knows better than a backup", master.Name, inc)
	}
	// And the cluster works again.
	_, others := c.master()
	inc := c.mustStat().incarnation(others[0])
	c.must(c.Kill(others[0]))
	c.waitDone(others[0], inc)
	c.waitRunning()
}

// stayed checks that nothing was moved or started anew.
func (c *cluster) stayed(before map[string]string, lives int) {
	c.t.Helper()
	after := c.waitRunning()
	for id, was := range before {
		if after[id] != was {
			c.t.Errorf("%s moved from %s to %s", id, was, after[id])
		}
	}
	if now := c.lives(); now != lives {
		c.t.Errorf("%d VEs were started anew", now-lives)
	}
}

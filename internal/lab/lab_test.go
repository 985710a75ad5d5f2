package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/lab"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// bin is where the programs under test were built: the daemon with the race
// detector and with failpoints, the others as users get them.
var bin string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "shaman-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	bin = dir
	for _, args := range [][]string{
		{"build", "-o", dir + "/", "github.com/shaman-ha/shaman/cmd/shaman", "github.com/shaman-ha/shaman/cmd/shaman-lab", "github.com/shaman-ha/shaman/cmd/shaman-lab-ve"},
		{"build", "-race", "-tags", "failpoint", "-o", dir + "/", "github.com/shaman-ha/shaman/cmd/shaman-monitor"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "build the programs under test:", err)
			os.Exit(1)
		}
	}
	os.Setenv("SHAMAN_LAB_BIN", dir)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// cluster is a lab under test, with one checker that runs at its end whatever
// the test does: both promises, and no data race in any daemon.
type cluster struct {
	*lab.Lab
	t   *testing.T
	ctx context.Context
	cl  *clientv3.Client
}

// start makes a lab. It lies in a short path, so that tests with long names have room.
func start(t *testing.T, change func(*lab.Options)) *cluster {
	t.Helper()
	tmp, err := os.MkdirTemp("", "shaman-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	o := lab.DefaultOptions()
	o.Dir = filepath.Join(tmp, "lab")
	if change != nil {
		change(&o)
	}
	l, err := lab.Up(t.Context(), o, func(f string, a ...any) { t.Logf(f, a...) })
	if err != nil {
		t.Fatalf("the lab does not come up: %v", err)
	}
	c := &cluster{Lab: l, t: t, ctx: context.WithoutCancel(t.Context())}
	t.Cleanup(func() {
		if err := l.Down(); err != nil {
			t.Errorf("the lab does not end: %v", err)
		}
		c.checkRaces()
		if t.Failed() {
			c.keepLogs()
		}
		if err := l.Remove(); err != nil {
			t.Error(err)
		}
		os.Remove(tmp)
	})
	if c.cl, err = l.Client(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.check()
		c.cl.Close()
	})
	return c
}

// check proves both promises now.
func (c *cluster) check() {
	c.t.Helper()
	f, err := c.Check(c.ctx)
	if err != nil {
		c.t.Errorf("check: %v", err)
	}
	for _, p := range f.Problems {
		c.t.Errorf("check: %s", p)
	}
}

func (c *cluster) checkRaces() {
	c.t.Helper()
	for _, n := range c.Nodes {
		log, err := os.ReadFile(c.MonitorLog(n))
		if err != nil {
			continue
		}
		for _, bad := range []string{"DATA RACE", "panic:", "fatal error:"} {
			if i := bytes.Index(log, []byte(bad)); i >= 0 {
				c.t.Errorf("the daemon of %s: %s", n.Name, log[i:min(len(log), i+4000)])
			}
		}
	}
}

// keepLogs shows the end of each daemon's log, and what the cluster's own events say.
func (c *cluster) keepLogs() {
	if out, err := c.Shaman(c.ctx, c.Nodes[0], "events"); err == nil {
		c.t.Logf("events:\n%s", out)
	}
	for _, n := range c.Nodes {
		log, err := os.ReadFile(c.MonitorLog(n))
		if err == nil {
			c.t.Logf("end of the log of %s:\n%s", n.Name, log[max(0, len(log)-6000):])
		}
	}
}

// stat is the part of the JSON contract that tests look at.
type stat struct {
	Master string
	Etcd   string
	Nodes  []struct {
		HostID      string `json:"host_id"`
		Name        string
		Status      string
		Mount       string
		Watchdog    string
		Incarnation int
	}
	Resources []struct {
		ID, State, Desired, Status, Waiting, Reason string
		HostID                                      string `json:"host_id"`
	}
	Failovers []struct {
		Node                                     string
		Incarnation                              int
		Phase, Proof, Reason, Command            string
		Total, Started, Stopped, Broken, Waiting int
		LostAt                                   string `json:"lease_lost_at"`
		FencedAt                                 string `json:"fenced_at"`
	}
	Brake string
}

// stat looks at the cluster with the command, as an operator would.
func (c *cluster) stat() (stat, error) {
	var s stat
	out, err := c.Shaman(c.ctx, c.Nodes[0], "stat", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

func (c *cluster) mustStat() stat {
	c.t.Helper()
	s, err := c.stat()
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (s stat) status(n lab.Node) string {
	for _, have := range s.Nodes {
		if have.HostID == string(n.HostID) {
			return have.Status
		}
	}
	return ""
}

func (s stat) watchdog(n lab.Node) string {
	for _, have := range s.Nodes {
		if have.HostID == string(n.HostID) {
			return have.Watchdog
		}
	}
	return ""
}

func (s stat) incarnation(n lab.Node) int {
	for _, have := range s.Nodes {
		if have.HostID == string(n.HostID) {
			return have.Incarnation
		}
	}
	return 0
}

// phase is that of a node's failover of an incarnation, "" if there is none.
func (s stat) phase(n lab.Node, inc int) string {
	phase := ""
	for _, f := range s.Failovers {
		if f.Node == string(n.HostID) && f.Incarnation == inc {
			phase = f.Phase // one that was withdrawn may come before
		}
	}
	return phase
}

// quiet tells whether no failover is under way.
func (s stat) quiet() bool {
	for _, f := range s.Failovers {
		if f.Phase != "done" && f.Phase != "withdrawn" {
			return false
		}
	}
	return true
}

// wait polls until f holds; patience is far beyond what a loaded machine needs.
func (c *cluster) wait(what string, f func() bool) {
	c.t.Helper()
	const patience = 90 * time.Second
	for deadline := time.Now().Add(patience); !f(); time.Sleep(30 * time.Millisecond) {
		if time.Now().After(deadline) {
			out, _ := c.Shaman(c.ctx, c.Nodes[0], "stat", "-v")
			c.t.Fatalf("waited %s for %s; the cluster is\n%s\n%s", patience, what, out, c.dump())
		}
	}
}

func decode(text string, into any) error { return json.Unmarshal([]byte(text), into) }

// dump is what etcd holds, for the log of a test that failed.
func (c *cluster) dump() string {
	ctx, cancel := context.WithTimeout(c.ctx, 3*time.Second)
	defer cancel()
	resp, err := c.cl.Get(ctx, "/shaman/", clientv3.WithPrefix())
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, kv := range resp.Kvs {
		fmt.Fprintf(&b, "%s = %s\n", kv.Key, kv.Value)
	}
	return b.String()
}

func (c *cluster) waitStat(what string, f func(stat) bool) {
	c.t.Helper()
	c.wait(what, func() bool {
		s, err := c.stat()
		return err == nil && f(s)
	})
}

// waitRunning waits until all VEs that should run do, each of them on a node that is on.
func (c *cluster) waitRunning() map[string]string {
	c.t.Helper()
	ids := c.VEs[:c.Running]
	var homes map[string]string
	c.wait("all VEs to run", func() bool {
		var err error
		homes, err = c.Homes(ids)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, id := range ids {
			if homes[id] == "" {
				return false
			}
		}
		return true
	})
	return homes
}

func (c *cluster) waitActive(nodes ...lab.Node) {
	c.t.Helper()
	if len(nodes) == 0 {
		nodes = c.Nodes
	}
	c.waitStat("nodes to be Active", func(s stat) bool {
		for _, n := range nodes {
			// Of a daemon that was just restarted the lease still says Active.
			if s.status(n) != "Active" || !ready(n) {
				return false
			}
		}
		return true
	})
}

// ready asks a daemon itself.
func ready(n lab.Node) bool {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", n.HTTP))
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// waitDone waits until a node's failover of an incarnation is over.
func (c *cluster) waitDone(n lab.Node, inc int) {
	c.t.Helper()
	c.waitStat(fmt.Sprintf("the failover of %s", n.Name), func(s stat) bool { return s.phase(n, inc) == "done" })
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// master waits for one, and returns it and the others.
func (c *cluster) master() (lab.Node, []lab.Node) {
	c.t.Helper()
	var m lab.Node
	c.wait("a master", func() bool {
		n, ok, err := c.Master(c.ctx, c.cl)
		m = n
		return err == nil && ok
	})
	var rest []lab.Node
	for _, n := range c.Nodes {
		if n.Name != m.Name {
			rest = append(rest, n)
		}
	}
	return m, rest
}

// lives counts how often VEs were started in all.
func (c *cluster) lives() int {
	c.t.Helper()
	n := 0
	for _, id := range c.VEs {
		ls, err := c.Lives(id)
		c.must(err)
		n += len(ls)
	}
	return n
}

// veDir is where a VE lies, past all nodes' mounts.
func (c *cluster) veDir(id string) string { return c.VEPath(id) }

package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/lab"
)

// diagnosis is what doctor says.
type diagnosis struct {
	HostID         string `json:"host_id"`
	Findings       []struct{ Check, Level, Subject, Message, Mend string }
	OK, Warn, Fail int
}

// has tells whether there is such a finding.
func (d diagnosis) has(level, check, subject string) bool {
	for _, f := range d.Findings {
		if f.Level == level && f.Check == check && f.Subject == subject {
			return true
		}
	}
	return false
}

// fails lists what fails, as "check subject".
func (d diagnosis) fails() (out []string) {
	for _, f := range d.Findings {
		if f.Level == "FAIL" {
			out = append(out, strings.TrimSpace(f.Check+" "+f.Subject))
		}
	}
	return out
}

// doctor runs the command on a node, in its namespace and with its cables.
func (c *cluster) doctor(n lab.Node, code int) diagnosis {
	c.t.Helper()
	file := filepath.Join(c.t.TempDir(), "doctor.json")
	begin := time.Now()
	got, err := c.Exec(n, []string{"sh", "-c", fmt.Sprintf("exec '%s/shaman' --config '%s' doctor -j >'%s'", bin, c.Conf(n), file)})
	c.must(err)
	if took := time.Since(begin); took > time.Minute {
		c.t.Errorf("doctor took %s", took)
	}
	text, err := os.ReadFile(file)
	c.must(err)
	var d diagnosis
	if err := decode(string(text), &d); err != nil {
		c.t.Fatalf("exit code %d, and %v in %q", got, err, text)
	}
	if got != code || d.HostID != string(n.HostID) {
		c.t.Errorf("exit code %d of node %s, want %d; it says\n%s", got, d.HostID, code, text)
	}
	return d
}

func (c *cluster) wantFails(d diagnosis, want ...string) {
	c.t.Helper()
	if got := d.fails(); strings.Join(got, "; ") != strings.Join(want, "; ") {
		c.t.Errorf("it fails %q, want %q", got, want)
	}
}

func TestDoctor(t *testing.T) {
	c := start(t, nil)
	n1, n2, n3 := c.Nodes[0], c.Nodes[1], c.Nodes[2]

	// What the lab lacks it warns of: members of etcd, a file system that it knows.
	d := c.doctor(n1, 0)
	c.wantFails(d)
	for _, want := range [][3]string{
		{"WARN", "etcd", "members"}, {"OK", "visibility", "node2"}, {"OK", "visibility", "node3"}, {"OK", "fencing", "node2"}, {"OK", "fencing", "node3"},
		{"OK", "cluster", "node1"}, {"WARN", "mount", c.Mount()}, {"OK", "watchdog", filepath.Join(c.Dir, n1.Name, "dog", "watchdog")}, {"OK", "timeouts", ""},
	} {
		if !d.has(want[0], want[1], want[2]) {
			t.Errorf("it does not say %s: %+v", want, d.Findings)
		}
	}
	// The daemons remember nothing of it, and nothing was left but the slot.
	left, err := os.ReadDir(filepath.Join(c.Mount(), ".shaman", "doctor"))
	c.must(err)
	if len(left) != 1 || left[0].Name() != string(n1.HostID) {
		t.Errorf("left on the mount: %v", left)
	}
	if out, err := c.Shaman(c.ctx, n1, "events"); err != nil || strings.Contains(out, "look") {
		t.Errorf("events: %v\n%s", err, out)
	}

	// A switch that does not work, and one that is another machine's.
	c.must(c.BreakFencing(n2, true))
	liar := filepath.Join(c.Dir, "bin", "liar")
	c.must(os.WriteFile(liar, []byte("#!/bin/sh\nexit 2\n"), 0o755))
	c.must(os.WriteFile(filepath.Join(c.Dir, "fence.d", "node3.conf"), []byte("agent="+liar+"\n"), 0o600))
	c.wantFails(c.doctor(n1, 1), "fencing node2", "fencing node3")
	c.must(c.BreakFencing(n2, false))
	c.must(os.WriteFile(filepath.Join(c.Dir, "fence.d", "node3.conf"), []byte("agent="+filepath.Join(c.Dir, "bin", "fence_lab")+"\nport=node3\n"), 0o600))

	// A node in maintenance answers as well.
	_, err = c.Shaman(c.ctx, n1, "maintenance", "on", "node2")
	c.must(err)
	if d := c.doctor(n1, 0); !d.has("OK", "visibility", "node2") {
		t.Errorf("a node in maintenance was not measured: %+v", d.Findings)
	}
	_, err = c.Shaman(c.ctx, n1, "maintenance", "off", "node2")
	c.must(err)

	if c.Namespaces {
		for how, subject := range map[string]string{"error": filepath.Join(c.Mount(), ".shaman", "cluster"), "hang": c.Mount()} {
			c.must(c.SetCut(n3, lab.Cut{Mount: how}))
			c.waitStat("the mount of node3 to be lost", func(s stat) bool { return s.Nodes[2].Mount == "lost" })
			c.wantFails(c.doctor(n3, 1), "mount "+subject, "cluster node3")
			c.must(c.SetCut(n3, lab.Cut{}))
			c.waitActive()
			c.waitStat("the mount of node3 to be back", func(s stat) bool { return s.Nodes[2].Mount == "ok" })
		}
	}

	for _, m := range c.Members {
		c.must(c.StopEtcd(m))
	}
	d = c.doctor(n1, 3)
	if len(d.fails()) == 0 || !strings.HasPrefix(d.fails()[0], "etcd") || !d.has("OK", "fencing", "node2") {
		t.Errorf("without etcd it says %+v", d.Findings)
	}
	for _, m := range c.Members {
		c.must(c.StartEtcd(m))
	}
	c.waitActive()
}

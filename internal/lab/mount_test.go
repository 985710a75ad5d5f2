package lab_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/lab"
)

// needMounts: cutting a mount needs a mount of its own, and that needs root. CI
// runs as root, and fails if it cannot do this there.
func needMounts(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this has to run as root in CI: it cuts nodes from their mounts")
		}
		t.Skip("NOT RUN: cutting a node from its mount needs root")
	}
}

func TestAMountIsLostWhileEtcdIsFine(t *testing.T) {
	needMounts(t)
	for _, how := range []string{"error", "hang"} {
		t.Run(how, func(t *testing.T) {
			// Four nodes: one without its mount and one that is dead are two lost
			// ones, and in a cluster of three the brake would hold.
			c := start(t, func(o *lab.Options) { o.Nodes = 4 })
			_, others := c.master()
			n := others[0]
			before := c.waitRunning()
			lives := c.lives()
			c.must(c.SetCut(n, lab.Cut{Mount: how}))
			c.waitStat("the node's mount to be lost", func(s stat) bool {
				for _, have := range s.Nodes {
					if have.HostID == string(n.HostID) {
						return have.Mount == "lost"
					}
				}
				return false
			})
			time.Sleep(2 * c.LockTimeout) // longer than every time-out that could move something
			s := c.mustStat()
			if s.status(n) != "Active" || len(s.Failovers) != 0 {
				t.Errorf("status %s, %d failovers; a lost mount alone moves nothing", s.status(n), len(s.Failovers))
			}
			for _, r := range s.Resources {
				if r.Status == "Broken" {
					t.Errorf("%s is broken: %s", r.ID, r.Reason)
				}
			}
			if ready(n) {
				t.Error("the daemon says that it is ready")
			}
			// It gets no VEs meanwhile.
			third := others[1]
			c.must(c.Kill(third))
			c.waitDone(third, 1)
			for _, r := range c.mustStat().Resources {
				if r.HostID == string(n.HostID) && before[r.ID] != n.Name {
					t.Errorf("%s was given to %s, which has no mount", r.ID, n.Name)
				}
			}
			c.must(c.SetCut(n, lab.Cut{}))
			c.must(c.Start(third))
			c.waitActive()
			c.waitRunning()
			if now := c.lives(); now != lives+3 {
				t.Errorf("%d VEs were started, want the 3 of the dead node", now-lives)
			}
		})
	}
}

func TestTheMasterLosesItsMount(t *testing.T) {
	needMounts(t)
	c := start(t, nil)
	master, _ := c.master()
	c.must(c.SetCut(master, lab.Cut{Mount: "hang"}))
	c.wait("another master", func() bool {
		m, ok, err := c.Master(c.ctx, c.cl)
		return err == nil && ok && m.Name != master.Name
	})
	c.must(c.SetCut(master, lab.Cut{}))
	c.waitActive()
	c.waitRunning()
}

func TestGarbageInTheRepositories(t *testing.T) {
	c := start(t, nil)
	_, others := c.master()
	n := others[0]
	repo := filepath.Join(c.Mount(), ".shaman", "md."+string(n.HostID), "resources")
	garbage := map[string]string{
		"ct-empty": "", "ct-binary": "\x00\x01\x02", "ct-half": "/ves/half\nPRIORI", "vm-relative": "ves/x\n", "ct-huge": "/ves/huge\n" + strings.Repeat("K=V\n", 40000),
	}
	for name, data := range garbage {
		c.must(os.WriteFile(filepath.Join(repo, name), []byte(data), 0o644))
	}
	unknown := "/ves/elsewhere\nSTATE=stopped\nX_MINE=keep me\n"
	c.must(os.WriteFile(filepath.Join(repo, "ct-unknown"), []byte(unknown), 0o644))
	var s struct {
		Unparseable []struct{ File, Error string }
	}
	c.wait("all garbage to be reported", func() bool {
		out, err := c.Shaman(c.ctx, c.Nodes[0], "stat", "-o", "json")
		return err == nil && decode(out, &s) == nil && len(s.Unparseable) == len(garbage)
	})
	c.must(c.Kill(n))
	c.waitDone(n, 1)
	c.waitRunning()
	// What cannot be parsed is in broken, byte for byte; what shaman does not know is kept.
	for name, data := range garbage {
		got, err := os.ReadFile(filepath.Join(c.Mount(), ".shaman", "broken", name))
		if err != nil || string(got) != data {
			t.Errorf("%s: %v; its %d bytes became %d", name, err, len(data), len(got))
		}
	}
	kept := false
	files, _ := filepath.Glob(filepath.Join(c.Mount(), ".shaman", "md.*", "resources", "ct-unknown"))
	broken, _ := filepath.Glob(filepath.Join(c.Mount(), ".shaman", "broken", "ct-unknown"))
	for _, f := range append(files, broken...) {
		data, _ := os.ReadFile(f)
		kept = kept || strings.Contains(string(data), "X_MINE=keep me\n")
	}
	if !kept || len(files)+len(broken) != 1 {
		t.Errorf("a resource with an unknown key is in %v and %v, key kept: %t", files, broken, kept)
	}
}

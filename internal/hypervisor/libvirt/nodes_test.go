package libvirt

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"github.com/shaman-ha/shaman/internal/hypervisor/libvirt/libvirttest"
	"go.uber.org/zap/zaptest"
)

// patience bounds what must come; no test that passes waits for it.
const patience = 60 * time.Second

// need skips where there is no libvirt, and fails where there has to be one.
func need(t *testing.T) {
	t.Helper()
	if err := libvirttest.Missing(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("NOT TESTED: %v", err)
	}
}

// site is two nodes with a shared file system.
type site struct {
	mount, hypervisor string
	a, b              *libvirttest.Node
	mu                sync.Mutex
	guests            map[string]libvirttest.Guest // by path
}

func newSite(t *testing.T, hypervisor string) *site {
	t.Helper()
	need(t)
	// Short: a socket's path has an end.
	base, err := os.MkdirTemp("", "lv")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{mount: filepath.Join(base, "m"), hypervisor: hypervisor, guests: map[string]libvirttest.Guest{}}
	if err := os.MkdirAll(filepath.Join(s.mount, DomainsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range []string{"a", "b"} {
				log, _ := os.ReadFile(filepath.Join(base, n, "log/libvirtd.log"))
				t.Logf("libvirtd of %s:\n%s", n, log[max(0, len(log)-4000):])
			}
		}
		removeCgroups()
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	s.a = s.boot(t, "a", base)
	// Looking at what QEMU can do takes seconds; the second node is spared that.
	if _, err := s.a.Virsh(t.Context(), "qemu", "capabilities"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(base, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", filepath.Join(base, "a/cache"), filepath.Join(base, "b/cache")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.b = s.boot(t, "b", base)
	return s
}

func (s *site) boot(t *testing.T, name, base string) *libvirttest.Node {
	t.Helper()
	n, err := libvirttest.Boot(t.Context(), name, filepath.Join(base, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Kill)
	return n
}

// removeCgroups removes the empty ones that a killed node leaves.
func removeCgroups() {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/machine/lxc-*")
	for _, d := range dirs {
		_ = filepath.WalkDir(d, func(p string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				defer os.Remove(p)
			}
			return nil
		})
		_ = os.Remove(d) // not empty: it is of somebody else
	}
	slices, _ := filepath.Glob("/sys/fs/cgroup/*/machine")
	for _, d := range slices {
		_ = os.Remove(d)
	}
}

func (s *site) open(t *testing.T, n *libvirttest.Node) *Driver {
	t.Helper()
	o := Options{
		Name: "libvirt", Kind: cluster.KindVM, URI: "qemu:///system", Socket: n.Socket(), Mount: s.mount,
		StateDir: filepath.Join(n.Dir, "state"), Logger: zaptest.NewLogger(t),
	}
	if s.hypervisor == "lxc" {
		o.Name, o.Kind, o.URI = "libvirt-lxc", cluster.KindCT, "lxc:///"
	}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// make makes a VE that no node knows, and its saved definition.
func (s *site) make(t *testing.T, name string, stubborn bool) string {
	t.Helper()
	dir := filepath.Join(s.mount, "ves")
	create := libvirttest.NewVM
	if s.hypervisor == "lxc" {
		create = libvirttest.NewContainer
	}
	g, err := create(dir, name, stubborn)
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.a.Canonical(g)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.mount, DomainsDir, g.UUID+".xml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guests[path] = g
	return path
}

func (s *site) guest(path string) libvirttest.Guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.guests[path]
}

func (s *site) virsh(t *testing.T, n *libvirttest.Node, args ...string) string {
	t.Helper()
	out, err := n.Virsh(t.Context(), s.hypervisor, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// end ends a guest from inside.
func (s *site) end(t *testing.T, path string, how cluster.StopCause) {
	t.Helper()
	g := s.guest(path)
	switch {
	case how == cluster.CauseCrash:
		pid := s.a.Guest(g.UUID, g.Name)
		if pid == 0 {
			t.Fatalf("%s has no process", g.Name)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	case s.hypervisor == "lxc":
		if err := os.WriteFile(filepath.Join(g.Disk, "off"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		s.virsh(t, s.a, "shutdown", g.UUID) // the power button: it is the guest that switches off
	}
}

func (s *site) harness() drivertest.Harness {
	return drivertest.Harness{
		Open: func(t *testing.T) hypervisor.Driver { return s.open(t, s.a) },
		Make: s.make,
		End:  s.end,
		Starts: func(t *testing.T, path string) int {
			n, err := s.guest(path).Starts()
			if err != nil {
				t.Fatal(err)
			}
			return n
		},
		Hang: func(t *testing.T) func() {
			resume, err := s.a.Hang()
			if err != nil {
				t.Fatal(err)
			}
			return resume
		},
		Kill: func(t *testing.T) {
			if err := s.a.KillDaemon(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		Other:  func(t *testing.T) hypervisor.Driver { return s.open(t, s.b) },
		Change: func(t *testing.T, path string) { s.virsh(t, s.a, "desc", "--config", s.guest(path).UUID, "changed") },
		Unfit:  s.unfit,
		SelfStart: func(t *testing.T, path string) {
			s.virsh(t, s.a, "autostart", s.guest(path).UUID)
		},
	}
}

// unfit defines a VE whose disk lies outside of the mount.
func (s *site) unfit(t *testing.T, name string) (path, names string) {
	t.Helper()
	create := libvirttest.NewVM
	if s.hypervisor == "lxc" {
		create = libvirttest.NewContainer
	}
	g, err := create(filepath.Join(filepath.Dir(s.mount), "local"), name, false)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "d.xml")
	if err := os.WriteFile(file, []byte(g.XML), 0o644); err != nil {
		t.Fatal(err)
	}
	s.virsh(t, s.a, "define", file)
	t.Cleanup(func() {
		if _, err := s.a.Virsh(context.Background(), s.hypervisor, "undefine", g.UUID); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(s.mount, DomainsDir, g.UUID+".xml"), g.Disk
}

func TestDriverOfVirtualMachines(t *testing.T) {
	s := newSite(t, "qemu")
	h := s.harness()
	h.Refuses = true // QEMU locks its images
	drivertest.Run(t, h)
	s.nothingLeft(t)
}

func TestDriverOfContainers(t *testing.T) {
	s := newSite(t, "lxc")
	h := s.harness()
	h.EndsAlike = true // libvirt-lxc says "shutdown" of a killed container as well
	drivertest.Run(t, h)
	s.nothingLeft(t)
}

// nothingLeft sees that no guest runs on.
func (s *site) nothingLeft(t *testing.T) {
	t.Helper()
	for _, n := range []*libvirttest.Node{s.a, s.b} {
		if out := strings.TrimSpace(s.virsh(t, n, "list", "--all", "--name")); out != "" {
			t.Errorf("left on %s: %s", n.Name, out)
		}
		for _, g := range s.guests {
			if pid := n.Guest(g.UUID, g.Name); pid != 0 {
				t.Errorf("%s runs on %s still, as process %d", g.Name, n.Name, pid)
			}
		}
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

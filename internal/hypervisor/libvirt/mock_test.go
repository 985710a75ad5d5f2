package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"github.com/shaman-ha/shaman/internal/hypervisor/libvirt/libvirttest"
	"go.uber.org/zap/zaptest"
)

// mock is libvirt's own test hypervisor, test:///default, behind a proxy: its
// guests are states in libvirtd's memory.
type mock struct {
	*Driver
	proxy *proxy
	node  *libvirttest.Node
	mount string
	paths []string
}

func newMock(t *testing.T, domains int) mock {
	t.Helper()
	need(t)
	base, err := os.MkdirTemp("", "lv")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	return bootMock(t, base, "n", domains)
}

func bootMock(t *testing.T, base, name string, domains int) mock {
	t.Helper()
	node, err := libvirttest.Boot(t.Context(), name, filepath.Join(base, name))
	must(t, err)
	t.Cleanup(node.Kill)
	m := mock{proxy: newProxy(t, node.Socket()), node: node, mount: filepath.Join(base, "m")}
	must(t, os.MkdirAll(filepath.Join(m.mount, DomainsDir), 0o755))
	m.Driver = m.open(t)
	// Its domains are there as long as somebody is connected.
	ready, end := make(chan error, 1), make(chan struct{})
	t.Cleanup(func() { close(end) })
	go func() {
		err := node.Call("test", func(l *golibvirt.Libvirt) error {
			for i := range domains {
				if _, err := l.DomainDefineXML(mockXML(fmt.Sprintf("vm%d", i), mockUUID(i), "")); err != nil {
					return err
				}
			}
			ready <- nil
			<-end
			return nil
		})
		if err != nil {
			ready <- err
		}
	}()
	must(t, <-ready)
	for i := range domains {
		m.paths = append(m.paths, m.file(mockUUID(i)))
	}
	return m
}

func (m mock) open(t *testing.T) *Driver {
	t.Helper()
	d, err := New(Options{
		Name: "libvirt", Kind: cluster.KindVM, URI: "test:///default", Socket: m.proxy.socket,
		Mount: m.mount, StateDir: filepath.Join(m.node.Dir, "state"), Logger: zaptest.NewLogger(t),
	})
	must(t, err)
	return d
}

func (m mock) file(uuid string) string { return filepath.Join(m.mount, DomainsDir, uuid+".xml") }

func (m mock) virsh(t *testing.T, args ...string) {
	t.Helper()
	_, err := m.node.Virsh(t.Context(), "test", args...)
	must(t, err)
}

func mockUUID(i int) string { return fmt.Sprintf("11111111-2222-4333-8444-%012x", i) }

func mockXML(name, uuid, more string) string {
	return "<domain type='test'><name>" + name + "</name><uuid>" + uuid + "</uuid>" + more +
		"<memory unit='MiB'>8</memory><os><type>hvm</type></os></domain>"
}

const mockHA = "<metadata><shaman:ha xmlns:shaman='" + metadataURI + "' enabled='yes'/></metadata>"

// TestDriverOfLibvirtsTestHypervisor covers what real guests cannot show: that the
// driver asks libvirt for nothing that only QEMU and LXC have.
func TestDriverOfLibvirtsTestHypervisor(t *testing.T) {
	need(t)
	base, err := os.MkdirTemp("", "lv")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	a, b := bootMock(t, base, "a", 0), bootMock(t, base, "b", 0)
	id := func(path string) uuid {
		u, ok := a.id(path)
		if !ok {
			t.Fatalf("%s is not of this driver", path)
		}
		return u
	}
	drivertest.Run(t, drivertest.Harness{
		Open:  func(t *testing.T) hypervisor.Driver { return a.open(t) },
		Other: func(t *testing.T) hypervisor.Driver { return b.open(t) },
		Make: func(t *testing.T, name string, stubborn bool) string {
			u := libvirttest.NewUUID()
			var text string
			must(t, a.node.Call("test", func(l *golibvirt.Libvirt) error {
				dom, err := l.DomainDefineXML(mockXML(name, u, mockHA))
				if err != nil {
					return err
				}
				text, err = l.DomainGetXMLDesc(dom, golibvirt.DomainXMLInactive)
				return errors.Join(err, l.DomainUndefineFlags(dom, 0))
			}))
			path := a.file(u)
			must(t, os.WriteFile(path, []byte(text), 0o600))
			for _, m := range []mock{a, b} {
				m.proxy.mu.Lock()
				m.proxy.deaf[id(path)] = stubborn
				m.proxy.mu.Unlock()
			}
			return path
		},
		End: func(t *testing.T, path string, how cluster.StopCause) {
			if how == cluster.CauseCrash {
				a.virsh(t, "dump", "--crash", id(path).String(), filepath.Join(t.TempDir(), "core"))
			} else {
				a.virsh(t, "shutdown", id(path).String())
			}
		},
		Starts: func(_ *testing.T, path string) int { return a.proxy.starts(id(path)) + b.proxy.starts(id(path)) },
		Hang: func(t *testing.T) func() {
			resume, err := a.node.Hang()
			must(t, err)
			return resume
		},
		Change: func(t *testing.T, path string) { a.virsh(t, "desc", "--config", id(path).String(), "changed") },
		Unfit: func(t *testing.T, name string) (path, names string) {
			u, disk := libvirttest.NewUUID(), "/srv/local/"+name+".img"
			text := mockXML(name, u, mockHA+"<devices><disk type='file'><source file='"+disk+"'/><target dev='vda'/></disk></devices>")
			file := filepath.Join(t.TempDir(), "d.xml")
			must(t, os.WriteFile(file, []byte(text), 0o644))
			a.virsh(t, "define", file)
			t.Cleanup(func() {
				if _, err := a.node.Virsh(context.Background(), "test", "undefine", u); err != nil {
					t.Error(err)
				}
			})
			return a.file(u), disk
		},
		SelfStart: func(t *testing.T, path string) { a.virsh(t, "autostart", id(path).String()) },
	})
}

package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/libvirt/libvirttest"
	"go.uber.org/zap/zaptest"
)

// Numbers of remote_protocol.x.
const (
	procGetXMLDesc      = 14
	procCreateWithFlags = 196
)

// proxy stands between the driver and a libvirtd, and knows the protocol's headers.
type proxy struct {
	socket, target string
	mu             sync.Mutex
	asked          map[uint32]int           // requests, by procedure
	held           map[uint32]chan struct{} // whose answers wait
	cut            map[uint32]bool          // whose request ends the connection instead of an answer
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	p := &proxy{
		socket: filepath.Join(t.TempDir(), "s"), target: target,
		asked: map[uint32]int{}, held: map[uint32]chan struct{}{}, cut: map[uint32]bool{},
	}
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", p.target)
	if err != nil {
		return
	}
	go func() {
		defer client.Close()
		for {
			data, proc, err := packet(server)
			if err != nil {
				return
			}
			p.mu.Lock()
			hold := p.held[proc]
			p.mu.Unlock()
			if hold != nil {
				<-hold
			}
			if _, err := client.Write(data); err != nil {
				return
			}
		}
	}()
	for {
		data, proc, err := packet(client)
		if err != nil {
			server.Close()
			return
		}
		p.mu.Lock()
		p.asked[proc]++
		cut := p.cut[proc]
		p.mu.Unlock()
		if _, err := server.Write(data); err != nil {
			return
		}
		if cut {
			return // libvirtd has the request, and its connection stays open
		}
	}
}

func packet(r io.Reader) (data []byte, proc uint32, err error) {
	head := make([]byte, 28)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, 0, err
	}
	n := binary.BigEndian.Uint32(head)
	data = append(head, make([]byte, int(n)-len(head))...)
	_, err = io.ReadFull(r, data[len(head):])
	return data, binary.BigEndian.Uint32(head[12:]), err
}

func (p *proxy) hold(proc uint32) (release func()) {
	c := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[proc] = c
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.held, proc)
		close(c)
	})
}

func (p *proxy) count(proc uint32) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[proc]
}

// mock is libvirt's own test hypervisor behind a proxy.
type mock struct {
	*Driver
	proxy *proxy
	node  *libvirttest.Node
	paths []string
}

func newMock(t *testing.T, domains int) mock {
	t.Helper()
	need(t)
	base, err := os.MkdirTemp("", "lv")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	node, err := libvirttest.Boot(t.Context(), "mock", filepath.Join(base, "n"))
	must(t, err)
	t.Cleanup(node.Kill)
	m := mock{proxy: newProxy(t, node.Socket()), node: node}
	mount := filepath.Join(base, "m")
	must(t, os.MkdirAll(filepath.Join(mount, DomainsDir), 0o755))
	m.Driver, err = New(Options{Name: "libvirt", Kind: cluster.KindVM, URI: "test:///default", Socket: m.proxy.socket, Mount: mount, StateDir: base, Logger: zaptest.NewLogger(t)})
	must(t, err)
	// Its domains are there as long as somebody is connected.
	ready, end := make(chan error, 1), make(chan struct{})
	t.Cleanup(func() { close(end) })
	go func() {
		err := node.Call("test", func(l *golibvirt.Libvirt) error {
			for i := range domains {
				if _, err := l.DomainDefineXML(mockXML(fmt.Sprintf("vm%d", i), mockUUID(i))); err != nil {
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
		m.paths = append(m.paths, filepath.Join(mount, DomainsDir, mockUUID(i)+".xml"))
	}
	return m
}

func mockUUID(i int) string { return fmt.Sprintf("11111111-2222-4333-8444-%012x", i) }

func mockXML(name, uuid string) string {
	return "<domain type='test'><name>" + name + "</name><uuid>" + uuid + "</uuid><memory unit='MiB'>8</memory><os><type>hvm</type></os></domain>"
}

const brief = 300 * time.Millisecond

func (m mock) barrier(t *testing.T, d time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	return m.Barrier(ctx)
}

func TestAVerbThatWasSentIsWaitedForBeyondItsDeadline(t *testing.T) {
	m := newMock(t, 1)
	path := m.paths[0]
	release := m.proxy.hold(procCreateWithFlags)
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), brief)
	defer cancel()
	if err := m.Start(ctx, path); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a start that has no answer = %v, want ErrCannotAsk", err)
	}
	if n := m.proxy.count(procCreateWithFlags); n != 1 {
		t.Fatalf("it was sent %d times; the test proves nothing", n)
	}
	if err := m.barrier(t, brief); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("barrier = %v; the start is under way still", err)
	}
	if _, err := m.List(t.Context()); err != nil {
		t.Errorf("list = %v; another VE's verb is no reason", err)
	}
	release()
	must(t, m.barrier(t, patience))
	if got := at(t, m.Driver, path); got != cluster.VERunning {
		t.Errorf("listed as %q after the barrier; the start was answered", got)
	}
}

func TestAVerbWhoseConnectionEndsIsFoundOut(t *testing.T) {
	m := newMock(t, 1)
	m.proxy.mu.Lock()
	m.proxy.cut[procCreateWithFlags] = true
	m.proxy.mu.Unlock()
	if err := m.Start(t.Context(), m.paths[0]); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a start whose connection ended = %v, want ErrCannotAsk", err)
	}
	must(t, m.barrier(t, patience))
	if got := at(t, m.Driver, m.paths[0]); got != cluster.VERunning {
		t.Errorf("listed as %q; libvirtd had the request", got)
	}
	must(t, m.Start(t.Context(), m.paths[0]))
}

func TestAListOfThousandReadsEachDefinitionOnce(t *testing.T) {
	m := newMock(t, 1000)
	began := time.Now()
	ves, err := m.List(t.Context())
	must(t, err)
	cold := time.Since(began)
	if len(ves) != 1001 { // the test hypervisor has one of its own
		t.Errorf("%d VEs listed, want 1001", len(ves))
	}
	read := m.proxy.count(procGetXMLDesc)
	began = time.Now()
	_, err = m.List(t.Context())
	must(t, err)
	t.Logf("first list %s, next %s", cold, time.Since(began))
	if n := m.proxy.count(procGetXMLDesc) - read; n > 0 && cold < definitionAge {
		t.Errorf("the next list read %d definitions again", n)
	}
}

func TestADaemonThatIsAwayIsNoEmptyList(t *testing.T) {
	d, err := New(Options{Name: "libvirt", Kind: cluster.KindVM, URI: "qemu:///system", Socket: filepath.Join(t.TempDir(), "none"), Mount: "/vms"})
	must(t, err)
	path := d.path(uuid{})
	yes := true
	for verb, call := range map[string]func(context.Context) error{
		"list":       func(ctx context.Context) error { _, err := d.List(ctx); return err },
		"start":      func(ctx context.Context) error { return d.Start(ctx, path) },
		"stop":       func(ctx context.Context) error { return d.Stop(ctx, path, true) },
		"unregister": func(ctx context.Context) error { return d.Unregister(ctx, path) },
		"configure":  func(ctx context.Context) error { return d.Configure(ctx, path, cluster.VEParams{HA: &yes}) },
		"save":       func(ctx context.Context) error { return d.Save(ctx, path) },
		"barrier":    d.Barrier,
		"capacity":   func(ctx context.Context) error { _, err := d.Capacity(ctx); return err },
	} {
		if err := call(t.Context()); !errors.Is(err, cluster.ErrCannotAsk) {
			t.Errorf("%s without a libvirtd = %v, want ErrCannotAsk", verb, err)
		}
	}
}

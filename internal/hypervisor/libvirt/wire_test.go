package libvirt

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

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

// A subscription that is taken back while its connection ends crashes libvirtd 9.0,
// a few times in a thousand. The end of the connection is enough.
func TestAWatchThatEndsTakesNoSubscriptionBack(t *testing.T) {
	m := newMock(t, 0)
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		// The first hint comes when it has subscribed.
		hint := func() { time.AfterFunc(time.Millisecond, cancel) }
		if err := m.Watch(ctx, hint); !errors.Is(err, context.Canceled) {
			t.Fatalf("Watch = %v, want the cause", err)
		}
	}
	if n := m.proxy.count(procDeregisterEvents); n != 0 {
		t.Errorf("%d subscriptions were taken back", n)
	}
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

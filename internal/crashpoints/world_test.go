package crashpoints

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cli"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/daemon"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// world is one cluster: machines, the directory that they share, and what must
// always hold.
type world struct {
	t        testing.TB
	name     string
	dir      string
	backing  string
	endpoint string
	cl       *clientv3.Client
	keys     etcd.Layout
	script   *script
	machines map[string]*machine
	log      lockedBuffer
	ends     []func()

	turn     sync.Mutex // held by who starts and ends daemons and machines
	mu       sync.Mutex // held while names move, and while VEs start
	hit      bool       // the point of the script was reached
	paths    []string   // of all VEs; none may ever be without a resource
	problems []string
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// machine is one node: what outlives its daemon, and its daemon.
type machine struct {
	w    *world
	name string
	id   cluster.NodeID
	fake *drivertest.Fake
	boot int
	life int
	on   bool

	p      *process
	cancel context.CancelFunc
	ended  chan struct{}
}

func (w *world) atEnd(f func()) { w.ends = append(w.ends, f) }

func (w *world) close() {
	for _, m := range w.machines {
		m.p.kill()
		m.cancel()
		<-m.ended
	}
	for i := len(w.ends) - 1; i >= 0; i-- {
		w.ends[i]()
	}
	_ = os.RemoveAll(w.dir)
}

func (w *world) problem(format string, args ...any) {
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// changing carries out what moves a name, and looks that no resource is lost.
func (w *world) changing(f func() syscall.Errno) syscall.Errno {
	w.mu.Lock()
	defer w.mu.Unlock()
	errno := f()
	if len(w.paths) == 0 {
		return errno
	}
	at := w.places()
	for _, p := range w.paths {
		if len(at[p]) == 0 {
			w.problem("%s has no resource any more", p)
		}
	}
	return errno
}

// starting starts a VE, and looks that it runs nowhere else.
func (w *world) starting(on, path string, f func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := f()
	for _, m := range w.machines {
		if m.name != on && m.fake.Running(path) && w.machines[on].fake.Running(path) {
			w.problem("%s was started on %s while it runs on %s", path, on, m.name)
		}
	}
	return err
}

// places tells where the resources of each path lie, past all mounts.
func (w *world) places() map[string][]string {
	out := map[string][]string{}
	for _, glob := range []string{"md.*/resources/*", "pool/*/*", "broken/*"} {
		files, _ := filepath.Glob(filepath.Join(w.backing, ".shaman", glob)) // a fixed pattern
		for _, f := range files {
			if base := filepath.Base(f); strings.HasPrefix(base, ".") || strings.HasSuffix(base, ".reason") {
				continue
			}
			data, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			path, _, _ := strings.Cut(string(data), "\n")
			rel, _ := filepath.Rel(filepath.Join(w.backing, ".shaman"), f)
			out[path] = append(out[path], rel)
		}
	}
	return out
}

const (
	lockTimeout = 2 * time.Second
	lockSetting = "LOCK_TIMEOUT=2s"
)

func newWorld(t testing.TB, endpoint string, cl *clientv3.Client, name string, s *script) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "shaman-crash-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, name: name, dir: dir, backing: filepath.Join(dir, "shared"), endpoint: endpoint, cl: cl, keys: etcd.NewLayout(name), script: s, machines: map[string]*machine{}}
	if err := os.MkdirAll(w.backing, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, n := range []string{"n1", "n2", "n3"} {
		m := &machine{w: w, name: n, id: cluster.NodeID(fmt.Sprintf("%016x", 0xa1+i)), fake: drivertest.NewFake(), on: true, ended: make(chan struct{})}
		w.machines[n] = m
		m.powerOn()
	}
	return w
}

// powerOn begins a boot: /run is empty.
func (m *machine) powerOn() {
	m.boot++
	m.on = true
	must(m.w.t, os.RemoveAll(m.path("run")))
	must(m.w.t, os.MkdirAll(m.path("run"), 0o755))
	must(m.w.t, os.WriteFile(m.path("boot_id"), []byte(fmt.Sprintf("boot-%s-%d\n", m.name, m.boot)), 0o644))
}

func (m *machine) path(name string) string { return filepath.Join(m.w.dir, m.name, name) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// configure writes a configuration of the machine for one mount.
func (m *machine) configure(name, mount string) string {
	file := m.path(name)
	must(m.w.t, os.MkdirAll(m.path("state"), 0o755))
	must(m.w.t, os.MkdirAll(mount, 0o755))
	must(m.w.t, os.WriteFile(file, []byte(strings.Join([]string{
		"CLUSTER_NAME=" + m.w.name, "CLUSTER_MOUNT=" + mount, "HOST_ID=" + string(m.id), "NODE_NAME=" + m.name,
		"ETCD_ENDPOINTS=" + m.w.endpoint, "STATE_DIR=" + m.path("state"), "RUN_DIR=" + m.path("run"), "BOOT_ID_FILE=" + m.path("boot_id"),
		"HARDWARE_ID=hw-" + m.name, "LISTEN_ADDRESS=127.0.0.1:0", "FENCE_DIR=" + m.path("fence.d"), "RESCAN_INTERVAL=100ms", "LOG_LEVEL=4", "",
	}, "\n")), 0o600))
	return file
}

// start starts a daemon: a new life, with a mount of its own, so that what is left
// of the life before cannot be mistaken for it.
func (m *machine) start() {
	m.life++
	p := newProcess(m.name, m.w.script)
	mount := m.path(fmt.Sprintf("mount.%d", m.life))
	file := m.configure("shaman.conf", mount)
	mountView(m.w.t, m.w.backing, mount, p, m.w)
	local, _, err := config.LoadLocal(file, nil)
	must(m.w.t, err)
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&m.w.log), zapcore.DebugLevel)).With(zap.String("host", m.name), zap.Int("life", m.life))
	d, err := daemon.New(daemon.Options{
		Local: local, Logger: log, Dial: p.dialOptions(), Drivers: []hypervisor.Driver{&mortal{m.fake.Reopen(), p, m.w}},
		Leaving: func() daemon.Leaving { return daemon.LeaveRestart },
	})
	must(m.w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	m.p, m.cancel, m.ended = p, cancel, ended
	go func() {
		defer close(ended)
		_ = d.Run(ctx) // its log tells
	}()
}

// bury ends what is left of a dead daemon. What it had kept in /run when it died is
// what the next one finds.
func (m *machine) bury(run map[string][]byte) {
	m.p.kill()
	m.cancel()
	<-m.ended
	for name, data := range run {
		must(m.w.t, os.WriteFile(m.path("run/"+name), data, 0o600))
	}
}

func (m *machine) keepRun() map[string][]byte {
	out := map[string][]byte{}
	if data, err := os.ReadFile(m.path("run/node.json")); err == nil {
		out["node.json"] = data
	}
	return out
}

// powerOff is the end of everything on a machine, and of its lease: that etcd lets
// it go a moment later by itself is not what is tested here.
func (m *machine) powerOff() {
	m.p.kill()
	m.w.mu.Lock()
	m.on = false
	ves, _ := m.fake.List(context.Background())
	for _, v := range ves {
		m.fake.End(v.Path, "")
	}
	m.w.mu.Unlock()
	m.cancel()
	<-m.ended
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, k := range []string{m.w.keys.Alive(m.id), m.w.keys.Recovering(m.id)} {
		if resp, err := m.w.cl.Get(ctx, k); err == nil && len(resp.Kvs) == 1 {
			_, _ = m.w.cl.Revoke(ctx, clientv3.LeaseID(resp.Kvs[0].Lease)) // it may have ended by itself
		}
	}
}

// shaman runs the command of an operator, on a mount that no fault touches.
func (w *world) shaman(on string, args ...string) error {
	conf := w.machines[on].configure("admin.conf", w.backing)
	var msg bytes.Buffer
	if code := cli.Run(context.Background(), append([]string{"--config", conf}, args...), cli.Streams{In: strings.NewReader(""), Out: io.Discard, Err: &msg}, "test"); code != 0 {
		return fmt.Errorf("shaman %s: exit code %d: %s", strings.Join(args, " "), code, msg.String())
	}
	return nil
}

// failovers reads those of etcd.
func (w *world) failovers() map[string]cluster.Versioned[cluster.Failover] {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out := map[string]cluster.Versioned[cluster.Failover]{}
	resp, err := w.cl.Get(ctx, w.keys.Failovers(), clientv3.WithPrefix())
	if err != nil {
		return out
	}
	for _, kv := range resp.Kvs {
		f := cluster.Versioned[cluster.Failover]{Create: kv.CreateRevision, Mod: kv.ModRevision}
		if json.Unmarshal(kv.Value, &f.Value) == nil {
			out[f.Value.ID().String()] = f
		}
	}
	return out
}

// confirm is the operator who confirms that machines which are off are off.
func (w *world) confirm(ctx context.Context) {
	for ctx.Err() == nil {
		for _, f := range w.failovers() {
			if f.Value.Phase != cluster.PhaseAwaitingFence || w.isOn(f.Value.Node) {
				continue
			}
			val, _ := etcd.Encode(cluster.Confirm{V: 1, By: "test", Serial: f.Create}) // plain data
			_, _ = w.cl.Put(ctx, w.keys.Confirm(f.Value.ID()), val)                    // tried again
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (w *world) isOn(id cluster.NodeID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.machines {
		if m.id == id {
			return m.on
		}
	}
	return false
}

// alive tells whether a machine's daemon is admitted.
func (w *world) alive(n string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := w.cl.Get(ctx, w.keys.Alive(w.machines[n].id))
	return err == nil && len(resp.Kvs) == 1
}

func decode(data []byte, into any) error { return json.Unmarshal(data, into) }

var errTimeout = errors.New("waited in vain")

// patience is far beyond what a loaded machine needs.
const patience = 3 * time.Minute

func wait(what string, f func() bool) error {
	for end := time.Now().Add(patience); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%w for %s", errTimeout, what)
		}
	}
	return nil
}

// runsOn lists the machines on which a VE runs.
func (w *world) runsOn(path string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for n, m := range w.machines {
		if m.fake.Running(path) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// Package daemon puts one shaman-monitor together: the only place that knows all
// adapters. It decides nothing about VEs itself.
package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/node"
	"github.com/shaman-ha/shaman/internal/resources"
	"github.com/shaman-ha/shaman/internal/watchdog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// Version is set when the program is built.
var Version = "devel"

// Options of a daemon.
type Options struct {
	Local   config.Local
	Logger  *zap.Logger
	Notify  func(state string)  // sd_notify; nil outside systemd
	Leaving func() Leaving      // asked once, when the daemon is told to end; nil = Inactive
	Drivers []hypervisor.Driver // nil = those that HYPERVISORS lists
	Reset   func(why string)    // resets the machine at once; nil = only said
	Dial    []grpc.DialOption   // added to those of the etcd client; for tests
	At      func(label string)  // called before and after each step that changes something; for tests
}

// Leaving is what becomes of the node when its daemon ends.
type Leaving int

// The ways of leaving.
const (
	LeaveInactive Leaving = iota // nobody looks after the VEs; no failover
	LeaveRestart                 // back in a moment: everything is kept
	LeaveDown                    // the host is shutting down: its VEs are stopped
)

// Daemon is one shaman-monitor.
type Daemon struct {
	Options
	registry  *prometheus.Registry
	host      cluster.NodeID
	boot      string
	hardware  string
	nonce     string
	client    *clientv3.Client
	keys      etcd.Layout
	store     *resources.Store
	drivers   *hypervisor.Set
	dog       *watchdog.Dog
	living    atomic.Pointer[node.Node]             // of the last membership
	goodbye   atomic.Pointer[func(context.Context)] // that one's orderly shutdown
	rounds    atomic.Pointer[atomic.Int64]          // of the heart, while it beats
	settings  atomic.Pointer[config.Cluster]
	status    atomic.Pointer[string]       // one sentence on what the daemon is at
	ready     atomic.Pointer[func() error] // why the node cannot do its work now; nil = it is no member yet
	gatherers atomic.Pointer[prometheus.Gatherers]
}

// New checks the options. It does no I/O but for the files of this node.
func New(o Options) (*Daemon, error) {
	d := &Daemon{Options: o, registry: prometheus.NewRegistry(), keys: etcd.NewLayout(o.Local.ClusterName)}
	if d.Notify == nil {
		d.Notify = func(string) {}
	}
	if d.Reset == nil {
		d.Reset = func(why string) { d.Logger.Error("this machine would be reset now", zap.String("reason", why)) }
	}
	d.say("starting")
	defaults := config.MustDefaults()
	d.settings.Store(&defaults)
	var err error
	if d.host, err = config.ResolveHostID(o.Local); err != nil {
		return nil, err
	}
	if d.boot, err = config.BootID(o.Local); err != nil {
		return nil, err
	}
	d.hardware = config.Hardware(o.Local)
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	d.nonce = hex.EncodeToString(b[:])
	for _, dir := range []string{o.Local.StateDir, o.Local.RunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make a directory for the daemon's state: %w", err)
		}
	}
	drivers := o.Drivers
	if drivers == nil {
		if drivers, err = openDrivers(o.Local, d.host, o.Logger); err != nil {
			return nil, err
		}
	}
	if d.drivers, err = hypervisor.NewSet(drivers...); err != nil {
		return nil, err
	}
	d.store = resources.NewStore(o.Local.ClusterMount, o.At)
	d.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "shaman_build_info", Help: "1, with the version of this daemon."}, []string{"version"})
	d.registry.MustRegister(info)
	info.WithLabelValues(Version).Set(1)
	d.gatherers.Store(&prometheus.Gatherers{d.registry})
	return d, nil
}

// Run serves until the context ends, and ends in good order.
func (d *Daemon) Run(ctx context.Context) error {
	unlock, err := lockRunDir(d.Local.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	// Before all else: a watchdog that the daemon before this one armed does not wait.
	if d.dog, err = watchdog.New(watchdog.Options{
		Device: d.Local.WatchdogDevice, RunDir: d.Local.RunDir, BootID: d.boot, Reset: d.Reset, Starved: d.starved, Log: d.Logger.Named("watchdog"),
	}); err != nil {
		return err
	}
	d.dog.Resume()
	defer d.dog.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.keepServing(ctx) })
	g.Go(func() error { return d.feedSystemd(ctx) })
	g.Go(func() error {
		if err := d.dial(ctx); err != nil {
			return err
		}
		defer d.client.Close()
		for {
			err := d.membership(ctx)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if !errors.Is(err, node.ErrLeft) {
				return err
			}
			d.dog.Disarm()                      // nobody counts on it any more
			_ = os.Remove(d.introductionFile()) // a node that is no member has to ask anew
			d.Logger.Info("this node left the cluster; waiting to be joined again")
		}
	})
	err = g.Wait()
	d.Notify("STOPPING=1")
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// ShutDown is called when this host begins to shut down. It returns when its VEs
// are stopped and etcd knows, or when that cannot be done.
func (d *Daemon) ShutDown(ctx context.Context) {
	if bye := d.goodbye.Load(); bye != nil {
		(*bye)(ctx)
	}
}

// starved is told that the watchdog is fed no more.
func (d *Daemon) starved(why string) {
	d.say("being reset: " + why)
	if n := d.living.Load(); n != nil {
		n.Starved(why)
	}
}

// dial prepares the client of etcd. With a user name it has to ask etcd for a
// token, so it waits for etcd like everything else.
func (d *Daemon) dial(ctx context.Context) error {
	return d.waitFor(ctx, "etcd", func() (err error) {
		d.client, err = etcd.Dial(etcd.Options{
			Endpoints: d.Local.EtcdEndpoints, CACert: d.Local.EtcdCACert, Cert: d.Local.EtcdCert, Key: d.Local.EtcdKey,
			Username: d.Local.EtcdUsername, PasswordFile: d.Local.EtcdPasswordFile, Logger: zap.NewNop(), Dial: d.Dial,
		})
		return etcd.Explain(err)
	})
}

// lockRunDir keeps a second daemon of this node out.
func lockRunDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock RUN_DIR: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another shaman-monitor runs with RUN_DIR %s; end that one first, or give this one its own RUN_DIR", dir)
	}
	return func() { _ = f.Close() }, nil
}

// say publishes one sentence about what the daemon is at.
func (d *Daemon) say(text string) {
	if old := d.status.Swap(&text); old == nil || *old != text {
		d.Notify("STATUS=" + text)
	}
}

// waitFor tries f until it succeeds, saying what is being waited for.
func (d *Daemon) waitFor(ctx context.Context, what string, f func() error) error {
	said := ""
	for {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if msg := err.Error(); msg != said {
			said = msg
			d.Logger.Warn("waiting for "+what, zap.Error(err))
		}
		d.say("waiting for " + what + ": " + cluster.OneLine(err))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(300 * time.Millisecond):
		}
	}
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cli"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/daemon"
	"github.com/shaman-ha/shaman/internal/election"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

const clusterName = "bench"

// site is one etcd member that flushes to disk, a mount that is a directory, and
// what a daemon needs beside these.
type site struct {
	dir    string
	server *embed.Etcd
	client *clientv3.Client
	keys   etcd.Layout
}

// newSite starts etcd in a new directory below parent.
func newSite(parent string) (*site, error) {
	dir, err := os.MkdirTemp(parent, "shaman-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the benchmark: %w", err)
	}
	s := &site{dir: dir, keys: etcd.NewLayout(clusterName)}
	for _, d := range []string{s.mount(), filepath.Join(dir, "fence.d")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel = filepath.Join(dir, "etcd"), "fatal"
	anyPort := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = anyPort, anyPort
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = anyPort, anyPort
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.MaxTxnOps = 128 // etcd's own default, as a real cluster has it
	if s.server, err = embed.StartEtcd(cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("start etcd: %w", err), s.close())
	}
	select {
	case <-s.server.Server.ReadyNotify():
	case <-time.After(time.Minute):
		return nil, errors.Join(errors.New("etcd did not become ready within a minute"), s.close())
	}
	if s.client, err = etcd.Dial(etcd.Options{Endpoints: []string{s.endpoint()}, Logger: zap.NewNop()}); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *site) endpoint() string { return s.server.Clients[0].Addr().String() }
func (s *site) mount() string    { return filepath.Join(s.dir, "mount") }

func (s *site) repository(id cluster.NodeID) string {
	return filepath.Join(s.mount(), ".shaman", "md."+string(id), "resources")
}

func (s *site) close() error {
	if s.client != nil {
		_ = s.client.Close() // it returns the end of its own context
	}
	if s.server != nil {
		s.server.Close()
	}
	return os.RemoveAll(s.dir)
}

// configure writes a node's configuration file, with a power switch that proves at once.
func (s *site) configure(id cluster.NodeID, name string) (file string, err error) {
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("configure %s: %w", name, err)
	}
	file = filepath.Join(dir, "shaman.conf")
	agent := filepath.Join(s.dir, "fence_bench")
	for path, f := range map[string]struct {
		data string
		mode os.FileMode
	}{
		file: {strings.Join([]string{
			"CLUSTER_NAME=" + clusterName, "CLUSTER_MOUNT=" + s.mount(), "HOST_ID=" + string(id), "NODE_NAME=" + name, "NODE_ADDRESS=127.0.0.1",
			"ETCD_ENDPOINTS=" + s.endpoint(), "HYPERVISORS=process", "FENCE_DIR=" + filepath.Join(s.dir, "fence.d"), "LISTEN_ADDRESS=127.0.0.1:0",
			"STATE_DIR=" + filepath.Join(dir, "state"), "RUN_DIR=" + filepath.Join(dir, "run"), "BOOT_ID_FILE=" + filepath.Join(dir, "boot_id"),
			"HARDWARE_ID=bench-" + name, "NODE_MEMORY=4096GiB", "LOG_LEVEL=1", "",
		}, "\n"), 0o600},
		filepath.Join(dir, "boot_id"):                 {fmt.Sprintf("00000000-0000-4000-8000-%s\n", string(id)[4:]), 0o600},
		filepath.Join(s.dir, "fence.d", name+".conf"): {"agent=" + agent + "\n", 0o600},
		agent: {"#!/bin/sh\nwhile read -r l; do case \"$l\" in action=off) exit 0;; action=status|action=monitor) exit 2;; esac; done\nexit 1\n", 0o755},
	} {
		if err := os.WriteFile(path, []byte(f.data), f.mode); err != nil {
			return "", fmt.Errorf("configure %s: %w", name, err)
		}
	}
	return file, nil
}

// shaman runs the command with a node's configuration.
func shaman(ctx context.Context, conf string, args ...string) error {
	var out, msg bytes.Buffer
	code := cli.Run(ctx, append([]string{"--config", conf}, args...), cli.Streams{In: strings.NewReader(""), Out: &out, Err: &msg}, "bench")
	if code != 0 {
		return fmt.Errorf("shaman %s: exit code %d: %s", strings.Join(args, " "), code, strings.TrimSpace(msg.String()))
	}
	return nil
}

// settings are the cluster-wide parameters that differ from the defaults.
func settings(ctx context.Context, conf string, lock time.Duration) error {
	return shaman(ctx, conf, "set-config", fmt.Sprintf("LOCK_TIMEOUT=%ds", int(lock.Seconds())), "LEASE_LOST_ACTION=none", "NODE_CRASH_PER_HOUR_THRESHOLD=0", "WATCHDOG_TIMEOUT=0")
}

// member is one node of a cluster in this process.
type member struct {
	id   cluster.NodeID
	conf string
	ves  *instant
	end  context.CancelFunc
	done chan error
}

// start joins nodes, runs their daemons and returns when all are admitted and
// one is master.
func (s *site) start(ctx context.Context, nodes int, lock time.Duration, at func(string)) ([]*member, error) {
	var ms []*member
	for i := range nodes {
		m := &member{id: cluster.NodeID(fmt.Sprintf("%016x", i+1)), done: make(chan error, 1)}
		var err error
		if m.conf, err = s.configure(m.id, fmt.Sprintf("node%d", i+1)); err != nil {
			return nil, err
		}
		if err := shaman(ctx, m.conf, "join", "-q"); err != nil {
			return nil, err
		}
		ms = append(ms, m)
	}
	if err := settings(ctx, ms[0].conf, lock); err != nil {
		return nil, err
	}
	for i, m := range ms {
		if err := m.run(ctx, at); err != nil {
			return ms[:i], err
		}
	}
	return ms, until(ctx, time.Minute, "all nodes are admitted and one is master", func() (bool, error) {
		n, err := s.count(ctx, s.keys.Alives())
		if err != nil || n < nodes {
			return false, err
		}
		master, err := s.master(ctx)
		return master != "", err
	})
}

// run starts the daemon. When it ends it keeps its lease, as one that restarts
// does, and never comes back: to the others the node has crashed.
func (m *member) run(ctx context.Context, at func(string)) error {
	local, _, err := config.LoadLocal(m.conf, nil)
	if err != nil {
		return err
	}
	m.ves = newInstant()
	d, err := daemon.New(daemon.Options{
		Local: local, Logger: zap.NewNop(), Drivers: []hypervisor.Driver{m.ves}, At: at,
		Leaving: func() daemon.Leaving { return daemon.LeaveRestart },
	})
	if err != nil {
		return err
	}
	ctx, m.end = context.WithCancel(ctx)
	go func() { m.done <- d.Run(ctx) }()
	return nil
}

// stop ends the daemon and waits for it.
func (m *member) stop() error {
	m.end()
	return <-m.done
}

// count returns how many keys there are below a prefix.
func (s *site) count(ctx context.Context, prefix string) (int, error) {
	resp, err := s.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("count %s: %w", prefix, err)
	}
	return int(resp.Count), nil
}

// master returns the node that leads; "" = none.
func (s *site) master(ctx context.Context) (cluster.NodeID, error) {
	resp, err := s.client.Get(ctx, s.keys.Masters(), clientv3.WithFirstCreate()...)
	if err != nil {
		return "", fmt.Errorf("look for the master: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return "", nil
	}
	var c election.Candidate
	if err := json.Unmarshal(resp.Kvs[0].Value, &c); err != nil {
		return "", fmt.Errorf("look for the master: %w", err)
	}
	return c.Node, nil
}

// until asks again and again whether something holds.
func until(ctx context.Context, limit time.Duration, what string, holds func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for {
		ok, err := holds()
		if ok || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited for %s in vain until %s", limit, what)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

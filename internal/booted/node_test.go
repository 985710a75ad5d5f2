package booted_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shaman-ha/shaman/internal/booted"
	"github.com/shaman-ha/shaman/internal/cli"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
	"github.com/shaman-ha/shaman/internal/lab"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	clusterName = "prod"
	unit        = "shaman-monitor"
)

// The nodes: node1 is a box, node2 a daemon beside it.
const (
	node1 cluster.NodeID = "0000000000000001"
	node2 cluster.NodeID = "0000000000000002"
)

// site is a cluster of a box, installed as docs/install.md says, and a second
// node, a plain daemon, that would take the box's VEs over if it could.
type site struct {
	t    *testing.T
	ctx  context.Context
	dir  string
	box  *booted.Box
	peer *booted.Capsule
	etcd *etcdtest.Server
	cl   *clientv3.Client
	keys etcd.Layout
	ves  *lab.Lab // only to read what VEs have written down, and to check it
}

// newSite makes a cluster in which node1, a box, runs two VEs as master, and
// node2 looks on.
func newSite(t *testing.T, name string, set ...string) *site {
	t.Helper()
	return newSiteWith(t, name, func(*site) {}, set...)
}

// newSiteWith is newSite with something more in the box, before it is switched on.
func newSiteWith(t *testing.T, name string, furnish func(*site), set ...string) *site {
	t.Helper()
	needSystemd(t)
	s := &site{t: t, ctx: t.Context(), dir: filepath.Join(room.Shared(), name), etcd: etcdtest.Start(t), keys: etcd.NewLayout(clusterName)}
	s.cl = s.etcd.Client(t)
	s.ves = &lab.Lab{Dir: s.dir, VEs: []string{"ct-a", "ct-b"}}
	for _, d := range []string{s.ves.Mount(), filepath.Join(s.dir, "velog"), s.fenceDir()} {
		must(t, os.MkdirAll(d, 0o755))
	}
	s.box = newBox(t, booted.Options{Name: name, Binds: map[string]string{}})
	s.box.Binds[s.box.Switch()] = reset
	s.install()
	furnish(s)
	must(t, s.box.PowerOn(s.ctx))
	t.Cleanup(s.report)

	s.exec("shaman", "join")
	s.exec("shaman", "set-config", "LEASE_LOST_ACTION=none", "WATCHDOG_TIMEOUT=0", "NODE_CRASH_PER_HOUR_THRESHOLD=0")
	for _, kv := range set {
		s.exec("shaman", "set-config", kv)
	}
	s.exec("systemctl", "enable", "--now", unit)
	s.waitStat("node1 to be Active, and master", func(st stat) bool { return st.status(node1) == "Active" && st.Master == string(node1) })
	s.startPeer()
	for _, id := range s.ves.VEs {
		dir := s.veDir(id)
		must(t, os.MkdirAll(dir, 0o755))
		conf := fmt.Sprintf("COMMAND=SHAMAN_LAB_NAME=${PEER:-node1} exec %s %s\nMEMORY=1MiB\n", s.guest(), filepath.Join(s.dir, "velog"))
		must(t, os.WriteFile(filepath.Join(dir, "ve.conf"), []byte(conf), 0o644))
		s.exec("shaman", "add", id, "--path", dir)
		s.exec("shaman", "start", id)
	}
	wait(t, "both VEs to run", func() bool { return len(s.lives()) == 2 })
	return s
}

// install does what docs/install.md says.
func (s *site) install() {
	s.t.Helper()
	repo := filepath.Join("..", "..")
	must(s.t, s.box.Copy(monitor(version), "/usr/bin/shaman-monitor", 0o755))
	must(s.t, s.box.Copy(filepath.Join(bin, "shaman"), "/usr/bin/shaman", 0o755))
	guest, err := os.ReadFile(filepath.Join(bin, "shaman-lab-ve"))
	must(s.t, err)
	must(s.t, os.WriteFile(s.guest(), guest, 0o755))
	must(s.t, s.box.Copy(filepath.Join(repo, "deploy", "systemd", unit+".service"), "/etc/systemd/system/"+unit+".service", 0o644))
	// Longer than any test: only the daemon's own word lets a shutdown go on.
	must(s.t, s.box.Write("/etc/systemd/logind.conf.d/patience.conf", "[Login]\nInhibitDelayMaxSec=10min\n", 0o644))
	// A program with the race detector sleeps for a second before it ends.
	must(s.t, s.box.Write("/etc/systemd/system.conf.d/race.conf", "[Manager]\nDefaultEnvironment=GORACE=atexit_sleep_ms=0\n", 0o644))
	s.configure(2)
	agent := fmt.Sprintf(fenceAgent, s.box.PowerFile(), s.box.Switch())
	must(s.t, os.WriteFile(filepath.Join(s.dir, "fence_box"), []byte(agent), 0o755))
	must(s.t, os.WriteFile(filepath.Join(s.fenceDir(), "node1.conf"), []byte("agent="+filepath.Join(s.dir, "fence_box")+"\n"), 0o600))
	// node2 has no watchdog; its reset must never be that of the machine the test runs on.
	peer := s.conf(node2, 2, "STATE_DIR="+filepath.Join(s.dir, "state"), "RUN_DIR="+filepath.Join(s.dir, "run"), "WATCHDOG_DEVICE="+filepath.Join(s.dir, "none"), "RESET_COMMAND=kill -KILL $PPID")
	must(s.t, os.WriteFile(s.peerConf(), []byte(peer), 0o600))
}

// fenceAgent is the power switch of the box, in the fence-agents' protocol.
const fenceAgent = `#!/bin/sh
power='%s' switch='%s'
while IFS= read -r line; do case $line in action=*) action=${line#action=} ;; esac; done
case $action in
off)
	[ ! -e "$power" ] || echo off >"$switch"
	n=0
	while [ -e "$power" ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 1; sleep 0.05; done ;;
status | monitor) [ -e "$power" ] || exit 2 ;;
*) exit 1 ;;
esac
`

func (s *site) fenceDir() string { return filepath.Join(s.dir, "fence.d") }
func (s *site) peerConf() string { return filepath.Join(s.dir, "node2.conf") }
func (s *site) guest() string    { return filepath.Join(s.dir, "guest") }
func (s *site) veDir(id string) string {
	return filepath.Join(s.ves.Mount(), "ves", strings.TrimPrefix(id, "ct-"))
}

// reset is where the box has its own switch, so that RESET_COMMAND is what it says.
const reset = "/srv/reset"

// configure writes the configuration of the box.
func (s *site) configure(logLevel int, more ...string) {
	s.t.Helper()
	must(s.t, s.box.Write("/etc/shaman/shaman.conf", s.conf(node1, logLevel, append(more, "RESET_COMMAND=echo reset >"+reset)...), 0o600))
}

// conf is a node's configuration. What is not given is the default, so that the
// unit's directories are used.
func (s *site) conf(n cluster.NodeID, logLevel int, more ...string) string {
	s.t.Helper()
	name := "node" + strings.TrimLeft(string(n), "0")
	return strings.Join(append([]string{
		"CLUSTER_NAME=" + clusterName, "CLUSTER_MOUNT=" + s.ves.Mount(), "ETCD_ENDPOINTS=" + s.etcd.Endpoint(),
		"HOST_ID=" + string(n), "NODE_NAME=" + name, "NODE_ADDRESS=" + name, "HARDWARE_ID=booted-" + name, "FENCE_DIR=" + s.fenceDir(),
		"NODE_MEMORY=1GiB", "LISTEN_ADDRESS=" + s.address(n), fmt.Sprintf("LOG_LEVEL=%d", logLevel),
	}, more...), "\n") + "\n"
}

// address is where a node serves its metrics: a port of the host, also for the
// box, that stays the same.
func (s *site) address(n cluster.NodeID) string {
	s.t.Helper()
	file := filepath.Join(s.dir, "address."+string(n))
	if old, err := os.ReadFile(file); err == nil {
		return string(old)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(s.t, err)
	defer l.Close()
	must(s.t, os.WriteFile(file, []byte(l.Addr().String()), 0o644))
	return l.Addr().String()
}

func (s *site) startPeer() {
	s.t.Helper()
	s.shaman("join")
	var err error
	s.peer, err = booted.Launch(filepath.Join(s.dir, "node2.log"), nil, "env", "PEER=node2", monitor(version), "--config", s.peerConf())
	must(s.t, err)
	s.t.Cleanup(func() { must(s.t, s.peer.Kill()) })
	s.waitStat("node2 to be Active", func(st stat) bool { return st.status(node2) == "Active" })
}

// exec runs a command in the box, which has to succeed.
func (s *site) exec(argv ...string) string {
	s.t.Helper()
	out, err := s.box.Exec(s.ctx, argv...)
	must(s.t, err)
	return out
}

// shaman runs the command on node2.
func (s *site) shaman(args ...string) string {
	s.t.Helper()
	out, err := s.ask(args...)
	must(s.t, err)
	return out
}

func (s *site) ask(args ...string) (string, error) {
	var out, msg strings.Builder
	code := cli.Run(context.WithoutCancel(s.ctx), append([]string{"--config", s.peerConf()}, args...), cli.Streams{In: strings.NewReader(""), Out: &out, Err: &msg}, version)
	if code != 0 {
		return "", fmt.Errorf("shaman %s: exit code %d: %s", strings.Join(args, " "), code, msg.String())
	}
	return out.String(), nil
}

// stat is the part of the JSON contract that these tests look at.
type stat struct {
	Master string
	Nodes  []struct {
		HostID           string `json:"host_id"`
		Status, Watchdog string
		Incarnation      int
	}
	Resources []struct {
		ID, State, Status string
		HostID            string `json:"host_id"`
	}
	Failovers []struct {
		Node, Phase, Proof string
		Incarnation        int
	}
}

func (st stat) status(n cluster.NodeID) string {
	for _, have := range st.Nodes {
		if have.HostID == string(n) {
			return have.Status
		}
	}
	return ""
}

func (st stat) watchdog(n cluster.NodeID) string {
	for _, have := range st.Nodes {
		if have.HostID == string(n) {
			return have.Watchdog
		}
	}
	return ""
}

func (st stat) incarnation(n cluster.NodeID) int {
	for _, have := range st.Nodes {
		if have.HostID == string(n) {
			return have.Incarnation
		}
	}
	return 0
}

func (s *site) waitStat(what string, f func(stat) bool) stat {
	s.t.Helper()
	var st stat
	wait(s.t, what, func() bool {
		out, err := s.ask("stat", "-o", "json")
		st = stat{}
		return err == nil && json.Unmarshal([]byte(out), &st) == nil && f(st)
	})
	return st
}

// lives are all lives of all VEs so far, by their own logs.
func (s *site) lives() []lab.Life {
	s.t.Helper()
	var out []lab.Life
	for _, id := range s.ves.VEs {
		l, err := s.ves.Lives(id)
		must(s.t, err)
		out = append(out, l...)
	}
	return out
}

// report checks both promises when the test ends, and shows the logs if it failed.
func (s *site) report() {
	ctx := context.WithoutCancel(s.ctx)
	f, err := s.ves.Check(ctx)
	if err != nil {
		s.t.Errorf("check: %v", err)
	}
	for _, p := range f.Problems {
		s.t.Errorf("check: %s", p)
	}
	journal, jerr := s.box.Journal(ctx, unit)
	peer, _ := os.ReadFile(filepath.Join(s.dir, "node2.log"))
	for _, bad := range []string{"DATA RACE", "panic:", "fatal error:"} {
		if strings.Contains(journal, bad) || strings.Contains(string(peer), bad) {
			s.t.Errorf("a daemon says %q", bad)
		}
	}
	if s.t.Failed() {
		out, err := s.ask("stat", "-v")
		s.t.Logf("the cluster (%v):\n%s", err, out)
		s.t.Logf("journal of node1 (%v):\n%s", jerr, tail(journal))
		s.t.Logf("log of node2:\n%s", tail(string(peer)))
	}
}

func tail(text string) string { return text[max(0, len(text)-8000):] }

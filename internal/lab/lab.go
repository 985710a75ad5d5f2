// Package lab runs a whole cluster on one machine: real etcd members, a real
// shaman-monitor a node, VEs that are real processes, and a power switch for
// every node behind a real fence agent.
//
// Nothing supervises the lab. Its state is what lies in its directory and which
// processes run; every command looks and acts by itself, so that it can be
// driven from a shell, from tests and from its own fence agent alike. Processes
// of a node carry the node in their environment; that is how a power cut finds
// all of them, and its end is that none is left.
package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
)

// Options of a new lab.
type Options struct {
	Dir         string
	Nodes       int
	VEs         int // that run, spread evenly
	StoppedVEs  int // on top of these
	Policy      string
	LockTimeout time.Duration
	NodeMemory  cluster.Bytes
	VEMemory    cluster.Bytes
	EtcdMembers int
	Watchdog    bool
	Driver      string   // one of Drivers; "" = process
	IPMI        bool     // nodes are fenced through simulated BMCs
	Env         []string // added to the environment of all daemons
}

// DefaultOptions are a lab of three nodes with twelve VEs.
func DefaultOptions() Options {
	return Options{Nodes: 3, VEs: 12, Policy: "drs", LockTimeout: 2 * time.Second, NodeMemory: 64 << 30, VEMemory: 64 << 20, EtcdMembers: 1}
}

// Lab is a lab in its directory.
type Lab struct {
	Dir         string        `json:"dir"`
	ClusterName string        `json:"cluster"`
	Bin         string        `json:"bin"` // directory of the programs
	Members     []Member      `json:"etcd"`
	Nodes       []Node        `json:"nodes"`
	VEs         []string      `json:"ves"` // ids of all VEs
	Guests      []VE          `json:"guests,omitempty"`
	Driver      string        `json:"driver"`
	IPMI        bool          `json:"ipmi,omitempty"`
	Running     int           `json:"running"`
	LockTimeout time.Duration `json:"lock_timeout"`
	Watchdog    bool          `json:"watchdog,omitempty"` // each node has one
	Env         []string      `json:"env,omitempty"`
	Namespaces  bool          `json:"namespaces"` // made as root: each node has a mount of its own
}

// Member is one etcd server.
type Member struct {
	Number int `json:"member"`
	Client int `json:"client_port"`
	Peer   int `json:"peer_port"`
}

// Endpoint is where its clients connect, unless through a node's cable.
func (m Member) Endpoint() string { return fmt.Sprintf("http://127.0.0.1:%d", m.Client) }

// Node is one machine of the lab.
type Node struct {
	Name   string         `json:"name"`
	HostID cluster.NodeID `json:"host_id"`
	Cables []int          `json:"cables"` // local ports that lead to the etcd members
	HTTP   int            `json:"http"`
	BMC    int            `json:"bmc,omitempty"` // port of its simulated BMC
}

// Power is the state of a node's power switch.
type Power string

// The positions of the switch.
const (
	On  Power = "on"
	Off Power = "off"
)

// Cut says how a node's cables are.
type Cut struct {
	Etcd  string `json:"etcd,omitempty"` // "", "error" or "hang"
	Mount string `json:"mount,omitempty"`
}

const labFile = "lab.json"

// Open reads the lab in a directory.
func Open(dir string) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the lab: %w", err)
	}
	data, err := os.ReadFile(filepath.Join(dir, labFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no lab in %s; make one with 'shaman-lab up --dir %s'", dir, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab: %w", err)
	}
	l := &Lab{}
	if err := json.Unmarshal(data, l); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, labFile), err)
	}
	l.Dir = dir
	return l, nil
}

func (l *Lab) save() error {
	data, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the lab: %w", err)
	}
	return os.WriteFile(filepath.Join(l.Dir, labFile), data, 0o644)
}

// Mount is CLUSTER_MOUNT; outside the nodes' namespaces the backing directory itself.
func (l *Lab) Mount() string { return filepath.Join(l.Dir, "mount") }

// VELog is the log of one VE.
func (l *Lab) VELog(id string) string { return filepath.Join(l.Dir, "velog", id+".log") }

func (l *Lab) nodeDir(n Node) string { return filepath.Join(l.Dir, n.Name) }

// Conf is a node's configuration file.
func (l *Lab) Conf(n Node) string { return filepath.Join(l.nodeDir(n), "shaman.conf") }

// MonitorLog is the log of a node's daemon.
func (l *Lab) MonitorLog(n Node) string { return filepath.Join(l.nodeDir(n), "monitor.log") }

// Node finds a node by its name.
func (l *Lab) Node(name string) (Node, error) {
	var names []string
	for _, n := range l.Nodes {
		if n.Name == name || string(n.HostID) == name {
			return n, nil
		}
		names = append(names, n.Name)
	}
	return Node{}, fmt.Errorf("no node %q in this lab; there are %s", name, strings.Join(names, ", "))
}

// Power reads a node's power switch.
func (l *Lab) Power(n Node) Power {
	data, err := os.ReadFile(filepath.Join(l.nodeDir(n), "power"))
	if err != nil || strings.TrimSpace(string(data)) != string(On) {
		return Off
	}
	return On
}

func (l *Lab) setPower(n Node, p Power) error {
	return replaceFile(filepath.Join(l.nodeDir(n), "power"), []byte(string(p)+"\n"))
}

// switchLock is held by whoever uses a node's power switch.
func (l *Lab) switchLock(n Node) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(l.nodeDir(n), "power.lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("use the power switch of %s: %w", n.Name, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("use the power switch of %s: %w", n.Name, err)
	}
	return func() { _ = f.Close() }, nil
}

// FencingBroken tells whether a node's fence agent fails.
func (l *Lab) FencingBroken(n Node) bool { return l.flagged(n, "fencing-broken") }

// BreakFencing makes a node's fence agent fail, or work again.
func (l *Lab) BreakFencing(n Node, broken bool) error {
	return l.flag(n, "fencing-broken", broken)
}

// LieFencing makes a node's fence agent say that it is off, without doing anything.
func (l *Lab) LieFencing(n Node, lies bool) error { return l.flag(n, "fencing-lies", lies) }

func (l *Lab) flagged(n Node, name string) bool {
	_, err := os.Stat(filepath.Join(l.nodeDir(n), name))
	return err == nil
}

// flag sets or takes back what commands of the lab look at.
func (l *Lab) flag(n Node, name string, on bool) error {
	file := filepath.Join(l.nodeDir(n), name)
	if on {
		return os.WriteFile(file, nil, 0o644)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mend %s: %w", n.Name, err)
	}
	return nil
}

func replaceFile(file string, data []byte) error {
	tmp := fmt.Sprintf("%s.%d.tmp", file, os.Getpid())
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

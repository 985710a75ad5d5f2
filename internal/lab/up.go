package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cli"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/resources"
)

// Say prints progress for people.
type Say func(format string, args ...any)

// Up makes a lab in a directory and starts it; it returns when all VEs run.
func Up(ctx context.Context, o Options, say Say) (l *Lab, err error) {
	if l, err = create(o); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = l.Down() // the reason for the failure counts
		}
	}()
	how := "each with a mount of its own"
	if !l.Namespaces {
		how = "all on one mount (run as root for a mount each)"
	}
	say("lab in %s: %d nodes, %s; %d VEs; an etcd of %d", l.Dir, len(l.Nodes), how, len(l.VEs), len(l.Members))
	for _, m := range l.Members {
		if err := l.StartEtcd(m); err != nil {
			return l, err
		}
	}
	if err := l.AwaitEtcd(ctx); err != nil {
		return l, err
	}
	say("etcd answers")
	for _, n := range l.Nodes {
		if err := l.shaman(ctx, n, "join", "-q"); err != nil {
			return l, err
		}
	}
	if err := l.configure(ctx, o); err != nil {
		return l, err
	}
	if err := l.makeVEs(ctx, o); err != nil {
		return l, err
	}
	for _, n := range l.Nodes {
		if l.IPMI {
			if err := l.startBMC(n); err != nil {
				return l, err
			}
		}
		if err := l.Start(n); err != nil {
			return l, err
		}
		say("%s is switched on (host id %s)", n.Name, n.HostID)
	}
	if err := l.AwaitRunning(ctx, l.runningIDs(), time.Minute+time.Duration(o.VEs)*100*time.Millisecond); err != nil {
		return l, fmt.Errorf("%w; see the logs %s/node*/monitor.log", err, l.Dir)
	}
	return l, l.awaitStat(ctx)
}

// awaitStat waits until the cluster says itself what the VEs' logs say: every
// node is admitted, and every VE in the state that it should be in.
func (l *Lab) awaitStat(ctx context.Context) error {
	return waitFor("all nodes to be Active", time.Minute, func() (bool, error) {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		out, err := l.Shaman(ctx, l.Nodes[0], "stat", "-o", "json")
		if err != nil {
			return false, err
		}
		var s struct {
			Nodes     []struct{ Status string }
			Resources []struct{ State, Desired string }
		}
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return false, fmt.Errorf("read what stat prints: %w", err)
		}
		for _, n := range s.Nodes {
			if n.Status != "Active" {
				return false, nil
			}
		}
		for _, r := range s.Resources {
			if r.State != r.Desired {
				return false, nil
			}
		}
		return true, nil
	})
}

func (l *Lab) runningIDs() []string { return l.VEs[:l.Running] }

// shaman runs the command in this process, as an operator on a node would.
func (l *Lab) shaman(ctx context.Context, n Node, args ...string) error {
	_, err := l.Shaman(ctx, n, args...)
	return err
}

// Shaman runs the command with a node's configuration and returns what it prints.
func (l *Lab) Shaman(ctx context.Context, n Node, args ...string) (string, error) {
	var out, msg bytes.Buffer
	local := append([]string{"--config", l.adminConf(n)}, args...)
	if code := cli.Run(ctx, local, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &msg}, "lab"); code != 0 {
		return out.String(), fmt.Errorf("shaman %s on %s: exit code %d: %s", strings.Join(args, " "), n.Name, code, strings.TrimSpace(msg.String()))
	}
	return out.String(), nil
}

// adminConf is a node's configuration with the way to etcd that passes its
// cables by: the lab looks at the cluster whatever becomes of the node.
func (l *Lab) adminConf(n Node) string { return filepath.Join(l.nodeDir(n), "admin.conf") }

// check tells why these options cannot be had here.
func (o Options) check() error {
	switch {
	case o.Nodes < 1 || o.Nodes > 64:
		return fmt.Errorf("--nodes %d is not allowed; want 1 to 64", o.Nodes)
	case o.EtcdMembers != 1 && o.EtcdMembers != 3:
		return fmt.Errorf("--etcd-members %d is not allowed; want 1 or 3", o.EtcdMembers)
	case o.Watchdog && os.Geteuid() != 0:
		return errors.New("--watchdog needs a FUSE device for each node, and that needs root; run the lab as root")
	case o.Watchdog && o.Driver == "lxc":
		return errors.New("--watchdog cannot be had with --driver lxc: the lab's watchdogs do not see what runs in another pid namespace")
	case o.missing() != nil:
		return o.missing()
	case o.IPMI && ipmiMissing() != nil:
		return ipmiMissing()
	case o.VEs < 0 || o.StoppedVEs < 0:
		return errors.New("--ves and --stopped-ves: want 0 or more")
	}
	return nil
}

func create(o Options) (*Lab, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("make the lab: %w", err)
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if old, err := Open(dir); err == nil {
		if old.running() {
			return nil, fmt.Errorf("a lab runs in %s already; end it with 'shaman-lab down --dir %s'", dir, dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("clear the old lab away: %w", err)
		}
	} else if left, _ := os.ReadDir(dir); len(left) > 0 {
		return nil, fmt.Errorf("%s is not empty and holds no lab; name another --dir", dir)
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the programs of the lab: %w", err)
	}
	bin := filepath.Dir(exe)
	if b := os.Getenv("SHAMAN_LAB_BIN"); b != "" {
		bin = b
	}
	for _, p := range []string{commMonitor, "shaman-lab", "shaman-lab-ve"} {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			return nil, fmt.Errorf("%s is not beside shaman-lab: %w; build all programs with 'make build'", p, err)
		}
	}
	l := &Lab{Dir: dir, ClusterName: "lab", Bin: bin, LockTimeout: o.LockTimeout, Watchdog: o.Watchdog, Namespaces: os.Geteuid() == 0, Running: o.VEs, Env: o.Env, Driver: cmp.Or(o.Driver, "process"), IPMI: o.IPMI}
	for _, d := range []string{l.Mount(), filepath.Join(dir, "velog"), filepath.Join(dir, "fence.d"), filepath.Join(dir, "bin")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("make the lab: %w", err)
		}
	}
	ports, err := freePorts(2*o.EtcdMembers + o.Nodes*(o.EtcdMembers+2))
	if err != nil {
		return nil, err
	}
	take := func() int {
		p := ports[0]
		ports = ports[1:]
		return p
	}
	for i := range o.EtcdMembers {
		l.Members = append(l.Members, Member{Number: i + 1, Client: take(), Peer: take()})
	}
	for i := range o.Nodes {
		n := Node{Name: "node" + strconv.Itoa(i+1), HostID: cluster.NodeID(fmt.Sprintf("%016x", i+1)), HTTP: take(), BMC: take()}
		for range l.Members {
			n.Cables = append(n.Cables, take())
		}
		l.Nodes = append(l.Nodes, n)
	}
	l.VEs = o.guestIDs()
	for _, n := range l.Nodes {
		if err := l.writeNode(n, o); err != nil {
			return nil, err
		}
		if !o.IPMI {
			continue
		}
		if err := l.writeBMC(n); err != nil {
			return nil, fmt.Errorf("make the BMC of %s: %w", n.Name, err)
		}
	}
	agent := fmt.Sprintf("#!/bin/sh\nexec %q fence-agent --dir %q\n", filepath.Join(bin, "shaman-lab"), dir)
	if err := os.WriteFile(filepath.Join(dir, "bin", "fence_lab"), []byte(agent), 0o755); err != nil {
		return nil, fmt.Errorf("make the fence agent: %w", err)
	}
	return l, l.save()
}

// Ports for the lab lie below those that the kernel hands out to clients, so
// that they are still free when a node comes back.
const portsFrom, portsTo = 10240, 32000

func freePorts(n int) ([]int, error) {
	var out []int
	for tries := 0; len(out) < n; tries++ {
		if tries > 20*n+1000 {
			return nil, errors.New("there are not enough free ports on 127.0.0.1")
		}
		p := portsFrom + rand.IntN(portsTo-portsFrom)
		ln, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p))
		if err != nil {
			continue
		}
		defer ln.Close() // all stay taken until all are found
		out = append(out, p)
	}
	return out, nil
}

func (l *Lab) writeNode(n Node, o Options) error {
	dir := l.nodeDir(n)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", n.Name, err)
	}
	conf := func(endpoints []string) string {
		return strings.Join(append(l.hypervisor(n), []string{
			"# A node of the lab, made by shaman-lab.",
			"CLUSTER_NAME=" + l.ClusterName, "CLUSTER_MOUNT=" + l.Mount(),
			"HOST_ID=" + string(n.HostID), "NODE_NAME=" + n.Name, "NODE_ADDRESS=10.0.0." + strings.TrimPrefix(n.Name, "node"),
			"ETCD_ENDPOINTS=" + strings.Join(endpoints, ","),
			"FENCE_DIR=" + filepath.Join(l.Dir, "fence.d"), "LISTEN_ADDRESS=127.0.0.1:" + strconv.Itoa(n.HTTP),
			"STATE_DIR=" + filepath.Join(dir, "state"), "RUN_DIR=" + filepath.Join(dir, "run"),
			"BOOT_ID_FILE=" + filepath.Join(dir, "boot_id"), "HARDWARE_ID=lab-" + n.Name,
			"WATCHDOG_DEVICE=" + filepath.Join(l.dogDir(n), "watchdog"),
			fmt.Sprintf("RESET_COMMAND=exec '%s' kill --dir '%s' %s", filepath.Join(l.Bin, "shaman-lab"), l.Dir, n.Name),
			"NODE_MEMORY=" + strconv.FormatInt(int64(o.NodeMemory), 10), "LOG_LEVEL=4", "",
		}...), "\n")
	}
	var cables, direct []string
	for _, p := range n.Cables {
		cables = append(cables, "127.0.0.1:"+strconv.Itoa(p))
	}
	for _, m := range l.Members {
		direct = append(direct, strings.TrimPrefix(m.Endpoint(), "http://"))
	}
	for file, data := range map[string]string{
		l.Conf(n): conf(cables), l.adminConf(n): conf(direct), filepath.Join(dir, "boot_id"): newUUID() + "\n", filepath.Join(dir, "power"): string(Off) + "\n",
		filepath.Join(l.Dir, "fence.d", n.Name+".conf"): "agent=" + filepath.Join(l.Dir, "bin", "fence_lab") + "\nport=" + n.Name + "\n",
	} {
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			return fmt.Errorf("make %s: %w", n.Name, err)
		}
	}
	return nil
}

func (l *Lab) configure(ctx context.Context, o Options) error {
	set := []string{
		"set-config", "LOCK_TIMEOUT=" + strconv.Itoa(int(o.LockTimeout/time.Second)) + "s", "RESOURCE_RELOCATION_MODE=" + o.Policy,
		"LEASE_LOST_ACTION=none", "NODE_CRASH_PER_HOUR_THRESHOLD=0", "POOL_CHECK_TIMEOUT=5s",
	}
	if o.Watchdog {
		set = append(set, "WATCHDOG_TIMEOUT="+watchdogTimeout, "WATCHDOG_TRUST_VIRTUAL=yes") // the lab's watchdogs are none of a virtual machine
	} else {
		set = append(set, "WATCHDOG_TIMEOUT=0")
	}
	return l.shaman(ctx, l.Nodes[0], set...)
}

// makeVEs lays the VEs' directories and their resources out, spread evenly, as
// if they had run before the whole site was switched off.
func (l *Lab) makeVEs(ctx context.Context, o Options) error {
	store := resources.NewStore(l.Mount(), nil)
	repos := map[cluster.NodeID]*resources.Repository{}
	for i, id := range l.VEs {
		n := l.Nodes[i%len(l.Nodes)]
		v, err := l.makeGuest(id, o.VEMemory)
		if err != nil {
			return fmt.Errorf("make %s: %w", id, err)
		}
		if l.Driver != "process" {
			l.Guests = append(l.Guests, v)
		}
		if repos[n.HostID] == nil {
			repos[n.HostID] = store.Own(n.HostID)
		}
		res := cluster.Resource{ID: cluster.ResourceID(id), Path: v.Path, UUID: v.UUID, Memory: o.VEMemory, Want: cluster.WantRunning, LastNode: n.HostID}
		if i >= o.VEs {
			res.Want = cluster.WantStopped
		}
		if err := repos[n.HostID].Create(ctx, 1, res); err != nil {
			return err
		}
	}
	return l.save() // the nodes' hosts read which guests there are
}

// running tells whether anything of the lab runs.
func (l *Lab) running() bool {
	for _, n := range l.Nodes {
		if ps, err := l.procs(n); err != nil || len(ps) > 0 || l.dog(n) != 0 || l.cage(n) != 0 {
			return true
		}
	}
	for _, m := range l.Members {
		if l.MemberPID(m) != 0 {
			return true
		}
	}
	return false
}

// Down ends everything of the lab. Its directory stays, with all logs.
func (l *Lab) Down() error {
	var errs []error
	for _, n := range l.Nodes {
		errs = append(errs, l.Kill(n), l.stopDog(n), l.stopBMC(n))
	}
	for _, m := range l.Members {
		errs = append(errs, killAll(envMember, l.memberDir(m)))
	}
	return errors.Join(errs...)
}

// Remove deletes the directory of a lab that is down.
func (l *Lab) Remove() error {
	if l.running() {
		return errors.New("the lab still runs")
	}
	if _, err := os.Stat(filepath.Join(l.Dir, labFile)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds no lab", l.Dir)
	}
	return os.RemoveAll(l.Dir)
}

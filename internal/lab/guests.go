package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/libvirt"
	"github.com/shaman-ha/shaman/internal/hypervisor/libvirt/libvirttest"
	"github.com/shaman-ha/shaman/internal/hypervisor/lxc/lxctest"
	"golang.org/x/sys/unix"
)

// Drivers are what the VEs of a lab can be.
var Drivers = []string{"process", "lxc", "libvirt"}

// VE is one VE of a lab whose guests are not processes of the lab's own.
type VE struct {
	ID   string `json:"id"`
	Path string `json:"path"` // as its resource has it
	Name string `json:"name"`
	UUID string `json:"uuid,omitempty"`
	Disk string `json:"disk,omitempty"` // where its boots are counted
}

// missing says what this machine lacks for the lab's driver.
func (o Options) missing() error {
	switch o.Driver {
	case "", "process":
		return nil
	case "lxc":
		return lxctest.Missing()
	case "libvirt":
		return libvirttest.Missing()
	}
	return fmt.Errorf("--driver %q is not allowed; want one of %s", o.Driver, strings.Join(Drivers, ", "))
}

// guestIDs names the VEs by what they are.
func (o Options) guestIDs() (ids []string) {
	kind := cluster.KindCT
	if o.Driver == "libvirt" {
		kind = cluster.KindVM
	}
	for i := range o.VEs + o.StoppedVEs {
		ids = append(ids, fmt.Sprintf("%s-ve%03d", kind, i+1))
	}
	return ids
}

// hypervisor are the lines of a node's configuration for the lab's driver.
func (l *Lab) hypervisor(n Node) []string {
	lines := []string{"HYPERVISORS=" + l.Driver}
	if l.Driver == "libvirt" {
		lines = append(lines, "LIBVIRT_URI=qemu:///system?socket="+filepath.Join(l.libvirtDir(n), "run/libvirt-sock"))
	}
	return lines
}

func (l *Lab) libvirtDir(n Node) string { return filepath.Join(l.nodeDir(n), "libvirt") }

// makeGuest lays one guest out on the mount.
func (l *Lab) makeGuest(id string, memory cluster.Bytes) (VE, error) {
	name := strings.TrimPrefix(strings.TrimPrefix(id, "ct-"), "vm-")
	v := VE{ID: id, Name: name, Path: filepath.Join(l.Mount(), "ves", name)}
	switch l.Driver {
	case "lxc":
		v.Disk = v.Path
		return v, lxctest.Make(lxctest.Container{Path: v.Path, HA: true})
	case "libvirt":
		g, err := libvirttest.NewVM(filepath.Join(l.Mount(), "disks"), name, false)
		if err != nil {
			return v, err
		}
		v.UUID, v.Disk = g.UUID, g.Disk
		v.Path = filepath.Join(l.Mount(), libvirt.DomainsDir, g.UUID+".xml")
		return v, errors.Join(os.MkdirAll(filepath.Dir(v.Path), 0o755), os.WriteFile(v.Path, []byte(g.XML), 0o644))
	}
	conf := fmt.Sprintf("COMMAND=exec %s %s\nMEMORY=%d\nHA_ENABLE=yes\n", filepath.Join(l.Bin, "shaman-lab-ve"), filepath.Join(l.Dir, "velog"), memory)
	return v, errors.Join(os.MkdirAll(v.Path, 0o755), os.WriteFile(filepath.Join(v.Path, "ve.conf"), []byte(conf), 0o644))
}

// VEPath is the path of a VE as its resource has it.
func (l *Lab) VEPath(id string) string {
	if i := slices.IndexFunc(l.Guests, func(v VE) bool { return v.ID == id }); i >= 0 {
		return l.Guests[i].Path
	}
	return filepath.Join(l.Mount(), "ves", strings.TrimPrefix(id, "ct-"))
}

// LibvirtURI is a node's libvirtd for virsh.
func (l *Lab) LibvirtURI(n Node) string {
	return "qemu+unix:///system?socket=" + filepath.Join(l.libvirtDir(n), "run/libvirt-sock")
}

// Boots counts on a guest's own disk how often it was booted.
func (l *Lab) Boots(id string) (int, error) {
	i := slices.IndexFunc(l.Guests, func(v VE) bool { return v.ID == id })
	if i < 0 {
		return 0, fmt.Errorf("the lab has no VE %s that counts its boots", id)
	}
	v := l.Guests[i]
	if l.Driver == "lxc" {
		return lxctest.Boots(v.Disk), nil
	}
	return libvirttest.Guest{Disk: v.Disk}.Starts()
}

// cage is where the guests of a node live, if they are not processes of the lab's
// own: a pid namespace, which ends as a whole, and what else makes it another
// machine to the hypervisor.
type cage struct{ init int }

func (l *Lab) cageFile(n Node) string { return filepath.Join(l.nodeDir(n), "cage.pid") }

// cage is the first process of a node's cage; 0 = there is none.
func (l *Lab) cage(n Node) int {
	data, err := os.ReadFile(l.cageFile(n))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || gone(pid) {
		return 0
	}
	// The pid may be somebody else's by now; a cage is a pid namespace of its own.
	own, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	mine, err2 := os.Readlink("/proc/self/ns/pid")
	if errors.Join(err1, err2) != nil || own == mine {
		return 0
	}
	return pid
}

// lxcCage is the first process of a cage for LXC: it waits for what is orphaned.
const lxcCage = `ip link set lo up; while :; do sleep 1000 & wait $!; done`

// startCage makes a node's cage; it is called by the node's host, in the node's
// mount namespace.
func (l *Lab) startCage(ctx context.Context, n Node) (*cage, error) {
	var pid int
	switch l.Driver {
	case "lxc":
		cmd := exec.Command("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--uts", "/bin/sh", "-c", lxcCage)
		cmd.Dir = "/"
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("make the cage of %s: %w", n.Name, err)
		}
		go func() { _ = cmd.Wait() }() // how it ended does not matter, it is killed
		if err := waitFor("the cage of "+n.Name, hostWait, func() (bool, error) {
			pid = childOf(cmd.Process.Pid)
			return pid != 0 && loopbackIsUp(pid), nil
		}); err != nil {
			return nil, err
		}
	case "libvirt":
		node, err := libvirttest.Boot(ctx, n.Name, l.libvirtDir(n))
		if err != nil {
			return nil, err
		}
		pid = node.Init()
	default:
		return nil, nil
	}
	return &cage{init: pid}, replaceFile(l.cageFile(n), []byte(strconv.Itoa(pid)))
}

// childOf is the only child of a process; 0 = it has none yet.
func childOf(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(data))
	if len(f) == 0 {
		return 0
	}
	child, err := strconv.Atoi(f[0])
	if err != nil {
		return 0
	}
	return child
}

func loopbackIsUp(pid int) bool {
	up := false
	_ = inNamespaces(pid, []string{"net"}, func() error { // one that has no such namespace yet is asked again
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		r, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r)
		up = err == nil && r.Uint16()&unix.IFF_UP != 0
		return err
	})
	own, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	mine, err2 := os.Readlink("/proc/self/ns/net")
	return up && errors.Join(err1, err2) == nil && own != mine
}

// killCage ends a cage, and returns when everything in it has ended.
func (l *Lab) killCage(n Node) error {
	pid := l.cage(n)
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end the guests of %s: %w", n.Name, err)
	}
	return waitFor("the end of all guests of "+n.Name, killTime, func() (bool, error) { return gone(pid), nil })
}

// running lists the guests that run in a cage, by their names, with their processes.
func (c *cage) running(driver string) map[string]int {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", c.init))
	if err != nil {
		return nil
	}
	out, coming, elsewhere := map[string]int{}, map[string]bool{}, map[string]bool{}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		if err != nil || ns != own && driver != "libvirt" {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		switch driver {
		case "libvirt":
			if name, ok := qemuName(line); ok && ns == own {
				out[name], coming[name] = pid, bytes.Contains(line, []byte("\x00-incoming\x00"))
			} else if ok {
				elsewhere[name] = true
			}
		case "lxc":
			// "[lxc monitor] PATH NAME"; the guest's first process is its child.
			if f := strings.Fields(strings.ReplaceAll(string(line), "\x00", " ")); len(f) == 4 && f[0] == "[lxc" && f[1] == "monitor]" {
				if child := childOf(pid); child != 0 {
					out[f[3]] = child
				}
			}
		}
	}
	for name := range coming {
		// A live migration that comes in: it runs once the one that it comes from has ended.
		if coming[name] && elsewhere[name] {
			delete(out, name)
		}
	}
	return out
}

// qemuName is the name of the guest that a process runs.
func qemuName(cmdline []byte) (string, bool) {
	args := bytes.Split(cmdline, []byte{0})
	if !bytes.Contains(args[0], []byte("qemu-system")) {
		return "", false
	}
	for i, a := range args {
		if string(a) == "-name" && i+1 < len(args) {
			for _, part := range strings.Split(string(args[i+1]), ",") {
				if name, ok := strings.CutPrefix(part, "guest="); ok {
					return name, true
				}
			}
		}
	}
	return "", false
}

const witnessBeat = 100 * time.Millisecond

// witness writes into the VEs' logs which guests run in a node's cage, until ctx
// ends: what a guest of a real hypervisor cannot write itself. It looks at
// processes only, and asks no hypervisor.
func (l *Lab) witness(ctx context.Context, n Node, c *cage) {
	files := map[string]*os.File{}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	was, last := map[string]int{}, map[string]at{}
	tick := time.NewTicker(witnessBeat)
	defer tick.Stop()
	for {
		begun := moment()
		now := c.running(l.Driver)
		seen := moment()
		for _, v := range l.Guests {
			pid, old := now[v.Name], was[v.Name]
			switch {
			case pid == 0 && old == 0:
				continue
			case pid == 0:
				l.testify(files, n, v.ID, old, "stop", last[v.ID]) // it lived until then for sure
			case pid != old:
				l.testify(files, n, v.ID, pid, "start", seen)
				last[v.ID] = seen
			default:
				l.testify(files, n, v.ID, pid, "beat", begun)
				last[v.ID] = begun
			}
		}
		was = now
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// at is a moment on both clocks.
type at struct {
	mono time.Duration
	wall time.Time
}

func moment() at { return at{monotonic(), time.Now()} }

// testify writes a line. What was seen to live did so when the look began, and
// what was seen to have started did so before the look ended: a line never says
// more than was seen.
func (l *Lab) testify(files map[string]*os.File, n Node, id string, pid int, what string, when at) {
	f := files[id]
	if f == nil {
		var err error
		if f, err = os.OpenFile(l.VELog(id), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
			return // check misses the line
		}
		files[id] = f
	}
	_, _ = fmt.Fprintf(f, "%d %d %s %d %s\n", int64(when.mono), when.wall.UnixNano(), n.Name, pid, what)
}

// chassis is a node's power switch as a simulated BMC uses it: "ADDR get power",
// or "ADDR set power 0".
func (l *Lab) chassis(n Node, args []string, out *bufio.Writer) error {
	if len(args) < 2 {
		return errors.New("want an address, get, set or check, and parameters")
	}
	params := args[2:]
	switch args[1] {
	case "get":
		for _, p := range params {
			value := "0"
			ps, err := l.procs(n)
			if err != nil {
				return err
			}
			if p == "power" && (l.Power(n) == On || len(ps) > 0 || l.cage(n) != 0) {
				value = "1"
			}
			_, _ = fmt.Fprintf(out, "%s:%s\n", p, value)
		}
	case "set":
		for i := 0; i+1 < len(params); i += 2 {
			if off := params[i] == "power" && params[i+1] == "0"; off || params[i] == "reset" {
				if l.FencingBroken(n) {
					return fmt.Errorf("the power switch of %s does not answer (break-fencing)", n.Name)
				}
				if err := l.Kill(n); err != nil {
					return err
				}
			}
		}
	}
	return out.Flush()
}

package lxc

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
)

// Whether a container runs is read from the kernel alone. Its files lie on a
// mount that can hang, and the lxc-* tools read them before they do anything.
//
// A container is a monitor, which is LXC's own process for it, and a payload,
// whose first process (init) is process 1 of a pid namespace. The kernel ends a
// pid namespace with its init, and calls the init a zombie only when all others
// in it are gone. So a container is proven stopped when its monitor and its init
// are both gone; control groups, which differ from host to host, are not needed
// for that. Each is found in more than one way:
//
//   - a hook that runs before the guest's first instruction writes down the
//     process ids and start times of both: exact, and cheap to look at;
//   - the monitor listens on an abstract socket that is named after the
//     container. It closes that before it ends, so its absence proves nothing;
//   - the monitor carries the container's name as its title;
//   - an init has the container's directory as its root.
//
// The last three also find what others started by hand.

// process is one process; its start time tells it from a later one of the same pid.
type process struct {
	pid   int
	start uint64 // in clock ticks since boot
}

// alive tells whether it is there and not a zombie.
func (p process) alive() bool {
	s, ok := readStat(p.pid)
	return ok && s.start == p.start && s.state != 'Z' && s.state != 'X'
}

// kill sends a signal to exactly this process, and not to one that has got its pid.
func (p process) kill(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

type stat struct {
	state byte
	ppid  int
	start uint64
}

func readStat(pid int) (stat, bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, false
	}
	_, rest, _ := strings.Cut(string(data[max(0, bytes.LastIndexByte(data, ')')):]), " ")
	f := strings.Fields(rest)
	if len(f) < 20 {
		return stat{}, false
	}
	ppid, err := strconv.Atoi(f[1])
	start, serr := strconv.ParseUint(f[19], 10, 64)
	return stat{state: f[0][0], ppid: ppid, start: start}, err == nil && serr == nil
}

// payload is the init of a container.
type payload struct {
	process
	ppid int
	// roots are the host's names of its root; empty if they are not known.
	roots []string
	// group is the name of the container by its control group, perhaps with a number added.
	group string
}

// monitor is LXC's process of a container.
type monitor struct {
	process
	title string // "<lxcpath> <name>"
}

// view is one look at the kernel.
type view struct {
	sockets  map[string]bool // names without @ and /command
	monitors []monitor
	payloads []payload
}

// sockets are the command sockets of this node's containers: abstract ones belong
// to a network namespace, so another node's are not among them.
func sockets() (map[string]bool, error) {
	data, err := os.ReadFile("/proc/self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("%w: read the kernel's list of sockets: %w", cluster.ErrCannotAsk, err)
	}
	out := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		_, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " @")
		if !ok {
			continue
		}
		if name, ok = strings.CutSuffix(name, "/command"); ok {
			out[name] = true
		}
	}
	return out, nil
}

// socketMax is the length in bytes, with /command, at which LXC hashes a name: it
// leaves room for two NULs in sun_path (unix(7)).
const socketMax = 106

// socketName is how LXC calls a container's socket, without @ and /command: a
// name that is too long is hashed (lxc_make_abstract_socket_name).
func socketName(lxcpath, name string) string {
	full := lxcpath + "/" + name
	if len(full)+len("/command") < socketMax {
		return full
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(full)) // cannot fail
	return fmt.Sprintf("lxc/%016x", h.Sum64())
}

// titlePrefix is how a monitor calls itself; the rest is "<lxcpath> <name>".
const titlePrefix = "[lxc monitor] "

// look reads all of it. It costs some system calls a process of the host.
func look() (view, error) {
	var v view
	var err error
	// Processes first: what ends in between is seen, and then said to run, which
	// errs on the safe side; the sockets tell what begins in between.
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return v, fmt.Errorf("%w: read the kernel's list of processes: %w", cluster.ErrCannotAsk, err)
	}
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return v, fmt.Errorf("%w: read the kernel's list of processes: %w", cluster.ErrCannotAsk, err)
	}
	var mounts []mountPoint
	for _, e := range dirs {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		ns, err := os.Readlink("/proc/" + e.Name() + "/ns/pid")
		if err != nil {
			continue // it is gone, a zombie, or the kernel's own
		}
		if ns == own {
			if m, ok := asMonitor(pid); ok {
				v.monitors = append(v.monitors, m)
			}
			continue
		}
		if mounts == nil {
			if mounts, err = readMounts("self"); err != nil {
				return v, fmt.Errorf("%w: read the kernel's list of mounts: %w", cluster.ErrCannotAsk, err)
			}
		}
		if p, ok := asPayload(pid, mounts); ok {
			v.payloads = append(v.payloads, p)
		}
	}
	v.sockets, err = sockets()
	return v, err
}

func asMonitor(pid int) (monitor, bool) {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || !bytes.HasPrefix(comm, []byte("lxc")) && !bytes.HasPrefix(comm, []byte("[lxc")) {
		return monitor{}, false
	}
	s, ok := readStat(pid)
	title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	text, is := strings.CutPrefix(strings.TrimRight(string(title), "\x00"), titlePrefix)
	return monitor{process{pid, s.start}, text}, ok && err == nil && is && s.state != 'Z'
}

// asPayload is the process if it is the first of its pid namespace.
func asPayload(pid int, mounts []mountPoint) (payload, bool) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return payload{}, false
	}
	_, ids, _ := strings.Cut(string(status), "\nNSpid:")
	ids, _, _ = strings.Cut(ids, "\n")
	if f := strings.Fields(ids); len(f) < 2 || f[len(f)-1] != "1" {
		return payload{}, false
	}
	s, ok := readStat(pid)
	if !ok || s.state == 'Z' || s.state == 'X' {
		return payload{}, false
	}
	p := payload{process: process{pid, s.start}, ppid: s.ppid, group: payloadGroup(pid)}
	if theirs, err := readMounts(strconv.Itoa(pid)); err == nil {
		p.roots = hostNames(theirs, mounts)
	}
	return p, true
}

// payloadGroup is the part of the control group's name that LXC makes of the
// container's, on hosts with any version of control groups.
func payloadGroup(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		_, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "/lxc.payload.")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, "/")
		return name
	}
	return ""
}

// sameGroup tells whether a control group can be that of a container: LXC adds a
// number if the name is taken.
func sameGroup(group, name string) bool {
	if group == name {
		return true
	}
	rest, ok := strings.CutPrefix(group, name+"-")
	_, err := strconv.ParseUint(rest, 10, 32)
	return ok && err == nil
}

// mountPoint is a line of mountinfo (proc_pid_mountinfo(5)).
type mountPoint struct{ dev, root, at string }

func readMounts(pid string) ([]mountPoint, error) {
	data, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []mountPoint
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 5 {
			out = append(out, mountPoint{f[2], unescape(f[3]), unescape(f[4])})
		}
	}
	return out, nil
}

// unescape undoes the octal escapes of mountinfo and fstab.
func unescape(s string) string {
	for i := 0; i+3 < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
			s = s[:i] + string([]byte{byte(n)}) + s[i+4:]
		}
	}
	return s
}

// hostNames are the names that the root of a process has on the host.
func hostNames(theirs, ours []mountPoint) (names []string) {
	for _, root := range slices.Backward(theirs) {
		if root.at != "/" {
			continue
		}
		for _, m := range ours {
			rest, ok := strings.CutPrefix(root.root, strings.TrimSuffix(m.root, "/"))
			if m.dev == root.dev && ok && (rest == "" || rest[0] == '/') {
				names = append(names, filepath.Join(m.at, rest))
			}
		}
		return names
	}
	return nil
}

// record is what the hook wrote down of the last start.
type record struct{ init, monitor process }

func (v *ve) record() (record, error) {
	data, err := os.ReadFile(filepath.Join(v.run, "init"))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	if err != nil {
		return record{}, fmt.Errorf("%w: read what was started: %w", cluster.ErrCannotAsk, err)
	}
	var r record
	if _, err := fmt.Sscan(string(data), &r.init.pid, &r.init.start, &r.monitor.pid, &r.monitor.start); err != nil {
		return record{}, fmt.Errorf("%w: %s cannot be read: %w; end the container by hand and remove the file", cluster.ErrCannotAsk, filepath.Join(v.run, "init"), err)
	}
	return r, nil
}

// life is what of a container is alive.
type life struct {
	socket   bool
	monitors []process
	inits    []process
	unsure   []process // inits that may be those of another container of the same name
}

func (l life) any() bool { return l.socket || len(l.monitors)+len(l.inits)+len(l.unsure) > 0 }

// life finds out what lives of a container. Where the kernel does not tell whose
// a payload is (an overlay's root has no name on the host) and its monitor is
// dead, it may be that of each container of the name.
func (v *ve) life(now view) (life, error) {
	r, err := v.record()
	if err != nil {
		return life{}, err
	}
	l := life{socket: now.sockets[socketName(v.lxcpath, v.name)]}
	add := func(to *[]process, p process) {
		if p.pid > 1 && !slices.Contains(*to, p) && p.alive() {
			*to = append(*to, p)
		}
	}
	add(&l.inits, r.init)
	add(&l.monitors, r.monitor)
	for _, m := range now.monitors {
		if m.title == v.lxcpath+" "+v.name {
			add(&l.monitors, m.process)
		}
	}
	for _, p := range now.payloads {
		ours := slices.ContainsFunc(p.roots, func(root string) bool { return below(v.path, root) })
		ours = ours || slices.ContainsFunc(l.monitors, func(m process) bool { return m.pid == p.ppid })
		switch {
		case ours:
			add(&l.inits, p.process)
		case len(p.roots) == 0 && sameGroup(p.group, v.name) && !hasMonitor(p):
			add(&l.unsure, p.process)
		}
	}
	return l, nil
}

// hasMonitor tells whether a payload's parent is LXC, which then says whose it is.
func hasMonitor(p payload) bool {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.ppid))
	return err == nil && bytes.HasPrefix(comm, []byte("lxc"))
}

// thaw lets the kernel deliver signals to a frozen container: version 1 of
// control groups holds even SIGKILL back.
func thaw(pid int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 && f[1] == "freezer" && strings.Contains(f[2], "/lxc") {
			// Where there is nothing to thaw this fails, and does no harm.
			_ = os.WriteFile(filepath.Join("/sys/fs/cgroup/freezer", f[2], "freezer.state"), []byte("THAWED"), 0)
		}
	}
}

package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is this machine's own files; Root is "/" outside of tests.
type Host struct{ Root string }

func (h Host) path(name string) string { return filepath.Join(h.Root, name) }

// word reads a small file; "" if it cannot be read.
func (h Host) word(name string) string {
	data, err := os.ReadFile(h.path(name))
	if err != nil {
		return "" // what is not there says nothing
	}
	return strings.TrimSpace(string(data))
}

func (h Host) exists(name string) bool {
	_, err := os.Lstat(h.path(name))
	return err == nil
}

// glob lists what matches, without the root.
func (h Host) glob(pattern string) []string {
	found, err := filepath.Glob(h.path(pattern))
	if err != nil {
		return nil // only a malformed pattern
	}
	for i := range found {
		if rel, err := filepath.Rel(h.Root, found[i]); err == nil {
			found[i] = "/" + rel
		}
	}
	return found
}

// MountFacts is which file system a path lies on, by the kernel's table: to read
// that touches no file system, so it cannot hang.
type MountFacts struct {
	Path    string // CLUSTER_MOUNT
	Point   string // where that file system is mounted
	Exact   bool   // right at the path
	Type    string
	Source  string
	Options []string // of the mount and of the file system
	Err     error    // the table cannot be read
}

// Mount finds the file system of a path.
func (h Host) Mount(path string) MountFacts {
	m := MountFacts{Path: path}
	data, err := os.ReadFile(h.path("proc/self/mountinfo"))
	if err != nil {
		m.Err = fmt.Errorf("read the table of mounts: %w", err)
		return m
	}
	for line := range strings.Lines(string(data)) {
		// 36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda rw,errors=continue
		left, right, ok := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 2 {
			continue
		}
		point := unescape(l[4])
		if point != path && point != "/" && !strings.HasPrefix(path, point+"/") || len(point) < len(m.Point) {
			continue // of two mounts at one point the later one counts: it lies on top
		}
		options := strings.Split(l[5], ",")
		if len(r) > 2 {
			options = append(options, strings.Split(r[2], ",")...)
		}
		m.Point, m.Exact, m.Type, m.Source, m.Options = point, point == path, r[0], unescape(r[1]), options
	}
	if m.Point == "" {
		m.Err = errors.New("the table of mounts names no file system for it")
	}
	return m
}

// unescape undoes the octal escapes of /proc/self/mountinfo; see proc(5).
func unescape(s string) string {
	for _, e := range []struct{ from, to string }{{`\040`, " "}, {`\011`, "\t"}, {`\012`, "\n"}, {`\134`, `\`}} {
		s = strings.ReplaceAll(s, e.from, e.to)
	}
	return s
}

// option is the value of a mount option; ok tells whether it is set.
func (m MountFacts) option(name string) (value string, ok bool) {
	for _, o := range m.Options {
		if k, v, _ := strings.Cut(o, "="); k == name {
			value, ok = v, true
		}
	}
	return value, ok
}

// ErrHangs is returned by Touch for a file system that does not answer.
var ErrHangs = errors.New("the file system does not answer")

// Touch reads a file in a process of its own, which is left behind if it hangs:
// a file system that does not answer keeps hold of whoever waits for it, past
// every signal, and this process would not end. A file that is not there, or not
// to be read, is an answer.
func Touch(ctx context.Context, file string, deadline time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	cmd := exec.Command("cat", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil // nothing is known; the reads that follow have deadlines too
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // that it ended is the answer
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		_ = cmd.Process.Kill() // takes effect when the file system answers
		return ErrHangs
	}
}

// Space is how full a file system is.
type Space struct {
	Blocks, Free uint64 // of any unit
	Files, Nodes uint64 // inodes, and those that are free; 0 of them = it does not count any
}

// Fullness asks a file system for its space. Call it for one that answers: it
// has a deadline, but what waits for a file system that hangs stays behind.
func Fullness(ctx context.Context, path string) (Space, error) {
	type answer struct {
		st  unix.Statfs_t
		err error
	}
	done := make(chan answer, 1)
	go func() {
		var a answer
		a.err = unix.Statfs(path, &a.st)
		done <- a
	}()
	select {
	case a := <-done:
		if a.err != nil {
			return Space{}, fmt.Errorf("ask for the space on %s: %w", path, a.err)
		}
		return Space{Blocks: a.st.Blocks, Free: a.st.Bavail, Files: a.st.Files, Nodes: a.st.Ffree}, nil
	case <-ctx.Done():
		return Space{}, fmt.Errorf("ask for the space on %s: %w", path, ErrHangs)
	}
}

// WatchdogFacts is what can be known of the watchdog without opening it, which
// would arm it.
type WatchdogFacts struct {
	Device   string // WATCHDOG_DEVICE
	Present  bool
	Err      error // why that is not known
	Identity string
	NoWayOut bool // it cannot be disarmed
	Holders  []Holder
	Virtual  bool // this machine is a virtual one
	Why      string
}

// Holder is a process that has the watchdog open.
type Holder struct {
	PID     int
	Command string
}

// Watchdog looks at the device and at who holds it.
func (h Host) Watchdog(device string) WatchdogFacts {
	w := WatchdogFacts{Device: device}
	_, err := os.Stat(h.path(device)) // not opened: that would arm it
	switch {
	case err == nil:
		w.Present = true
	case !errors.Is(err, fs.ErrNotExist):
		w.Err = err
	}
	target := device
	if to, err := filepath.EvalSymlinks(h.path(device)); err == nil && h.Root == "/" {
		target = to
	}
	same := []string{device, target}
	name := filepath.Base(target)
	if name == "watchdog" || name == "watchdog0" { // two names of the first one
		name = "watchdog0"
		same = append(same, "/dev/watchdog", "/dev/watchdog0")
	}
	w.Identity = h.word("sys/class/watchdog/" + name + "/identity")
	w.NoWayOut = h.word("sys/class/watchdog/"+name+"/nowayout") == "1"
	if w.Present {
		w.Holders = h.holders(same)
	}
	return w
}

// holders finds the processes that have one of these files open.
func (h Host) holders(files []string) (out []Holder) {
	for _, link := range h.glob("proc/[0-9]*/fd/*") {
		to, err := os.Readlink(h.path(link))
		if err != nil || !slices.Contains(files, to) {
			continue // also of a process that ended meanwhile
		}
		dir := filepath.Dir(filepath.Dir(link))
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || slices.ContainsFunc(out, func(o Holder) bool { return o.PID == pid }) {
			continue
		}
		out = append(out, Holder{PID: pid, Command: h.word(dir + "/comm")})
	}
	slices.SortFunc(out, func(a, b Holder) int { return a.PID - b.PID })
	return out
}

// ClockFacts is what the kernel says of this node's clock.
type ClockFacts struct {
	Synchronised bool
	MaxError     time.Duration
	Err          error
}

// ReadClock asks the kernel; it changes nothing.
func ReadClock() ClockFacts {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil {
		return ClockFacts{Err: fmt.Errorf("adjtimex: %w", err)}
	}
	return ClockFacts{
		Synchronised: t.Status&unix.STA_UNSYNC == 0 && state != unix.TIME_ERROR,
		MaxError:     time.Duration(t.Maxerror) * time.Microsecond,
	}
}

// StartFacts is what this machine starts by itself.
type StartFacts struct {
	Systemd bool     // the machine runs it
	Enabled bool     // it starts shaman-monitor at boot
	Guests  []string // what may start guests
}

// wants are the directories of units that a boot starts.
const wants = "etc/systemd/system/*.wants/"

// Starts looks at what a boot starts.
func (h Host) Starts() StartFacts {
	s := StartFacts{Systemd: h.exists("run/systemd/system"), Enabled: len(h.glob(wants+"shaman-monitor.service")) > 0}
	for _, unit := range []string{"libvirt-guests.service", "lxc.service", "lxc@*.service", "lxc-autostart.service", "lxd.service", "incus-startup.service", "pve-guests.service"} {
		s.Guests = append(s.Guests, h.glob(wants+unit)...)
	}
	s.Guests = append(s.Guests, h.glob("etc/libvirt/*/autostart/*.xml")...)
	return s
}

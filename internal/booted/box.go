package booted

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Patience bounds every wait for a box: far more than it takes, since the machine
// may be busy with other things.
const Patience = 60 * time.Second

// Options of a new box.
type Options struct {
	Name string
	// Binds are files and directories of the host that the box sees, and where:
	// devices made of FUSE files, shared directories. What the room shares is always there.
	Binds map[string]string
}

// Box is one machine with a systemd of its own.
type Box struct {
	Options
	room  *Room
	dir   string
	cgrps []string
	pipe  *os.File // the switch

	mu   sync.Mutex
	life *life // nil = it was never switched on
}

// life is a box from power on to power off.
type life struct {
	capsule *Capsule
	init    int           // pid of its process 1, as it is seen here
	over    chan struct{} // closed when nothing is left, the power file neither
}

// leftOut is what of the host's root is no part of a box: what is started at
// boot, what is mounted, what is known about this very machine.
var leftOut = []string{
	"etc/systemd/system/*.wants", "etc/systemd/system/*.requires", "etc/systemd/system/shaman*", "etc/rc?.d/*", "etc/fstab", "etc/crypttab",
	"etc/shaman", "var/lib/shaman", "etc/vstorage", "var/log/journal", "run",
}

// masked are units of systemd's own that have no work in a box.
var masked = []string{
	"console-getty.service", "systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service", "systemd-firstboot.service",
}

// NewBox makes a box, with an empty disk of its own over the host's root. It is off.
func (r *Room) NewBox(o Options) (*Box, error) {
	b := &Box{Options: o, room: r, dir: filepath.Join(r.dir, "boxes", o.Name)}
	for _, d := range []string{"disk", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make box %s: %w", b.Name, err)
		}
	}
	layers := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", filepath.Join(b.dir, "disk"), filepath.Join(b.dir, "work"))
	if err := unix.Mount("overlay", b.Path("/"), "overlay", 0, layers); err != nil {
		return nil, fmt.Errorf("make box %s: mount an overlay of /: %w", b.Name, err)
	}
	if err := errors.Join(b.furnish(), b.wire()); err != nil {
		return nil, errors.Join(fmt.Errorf("make box %s: %w", b.Name, err), b.Remove())
	}
	return b, nil
}

func (b *Box) furnish() error {
	for _, pattern := range leftOut {
		found, err := filepath.Glob(b.Path(pattern))
		if err != nil {
			return err
		}
		for _, f := range found {
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		}
	}
	for _, d := range []string{"run", "var/log/journal"} { // so that the journal outlives a power cut
		if err := os.MkdirAll(b.Path(d), 0o755); err != nil {
			return err
		}
	}
	units := b.Path("etc/systemd/system")
	links := map[string]string{"default.target": "/lib/systemd/system/multi-user.target"}
	for _, u := range masked {
		links[u] = os.DevNull
	}
	for name, to := range links {
		link := filepath.Join(units, name)
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(to, link); err != nil {
			return err
		}
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	return errors.Join(b.Write("/etc/machine-id", hex.EncodeToString(id[:])+"\n", 0o444), b.Write("/etc/hostname", b.Name+"\n", 0o644))
}

// Path is where a file of the box's disk lies outside of it, whether it is on or
// off. What is in /run, /tmp, /dev and in what is bound into it lies elsewhere.
func (b *Box) Path(file string) string { return filepath.Join(b.dir, "root", file) }

// Write puts a file on the box's disk, by rename: whoever has the old one open keeps it.
func (b *Box) Write(file, text string, mode os.FileMode) error {
	return b.put(file, []byte(text), mode)
}

// Copy copies a file of the host onto the box's disk, by rename.
func (b *Box) Copy(from, to string, mode os.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy to box %s: %w", b.Name, err)
	}
	return b.put(to, data, mode)
}

func (b *Box) put(file string, data []byte, mode os.FileMode) error {
	path := b.Path(file)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path+".new", data, mode)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("write %s in box %s: %w", file, b.Name, err)
	}
	return nil
}

// PowerFile is there while the box has power, and Switch is a pipe: whatever is
// written to it cuts the power. Fence agents use them, from any process namespace.
func (b *Box) PowerFile() string { return filepath.Join(b.dir, "power") }

// Switch is the pipe to cut the power by.
func (b *Box) Switch() string { return filepath.Join(b.dir, "switch") }

// wire connects the switch; it is served until the box is removed.
func (b *Box) wire() (err error) {
	if err := unix.Mkfifo(b.Switch(), 0o600); err != nil {
		return fmt.Errorf("make a switch: %w", err)
	}
	// For reading and writing, so that it has no end when a writer goes.
	if b.pipe, err = os.OpenFile(b.Switch(), os.O_RDWR, 0); err != nil {
		return fmt.Errorf("make a switch: %w", err)
	}
	go func() {
		for buf := make([]byte, 64); ; {
			if _, err := b.pipe.Read(buf); err != nil {
				return // closed
			}
			if l := b.now(); l != nil {
				_ = l.capsule.Kill() // the power file tells
			}
		}
	}()
	return nil
}

// On tells whether anything of the box runs.
func (b *Box) On() bool {
	l := b.now()
	if l == nil {
		return false
	}
	select {
	case <-l.over:
		return false
	default:
		return true
	}
}

// now is the present life, or the last one.
func (b *Box) now() *life {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.life
}

// PowerOn boots the box, and returns when its systemd has started all that it
// wants to.
func (b *Box) PowerOn(ctx context.Context) error {
	if b.On() {
		return fmt.Errorf("switch box %s on: it is on", b.Name)
	}
	if err := b.off(); err != nil { // somebody else may have cut the power
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, Patience, fmt.Errorf("it does not boot within %s", Patience))
	defer cancel()
	if err := b.boot(ctx); err != nil {
		said, _ := os.ReadFile(b.console())
		return fmt.Errorf("switch box %s on: %w; its console says: %s", b.Name, err, said)
	}
	return nil
}

func (b *Box) console() string { return filepath.Join(b.dir, "console") }

func (b *Box) boot(ctx context.Context) (err error) {
	if b.cgrps, err = cgroup(fmt.Sprintf("shaman-booted-%d-%s", os.Getpid(), b.Name)); err != nil {
		return err
	}
	argv := []string{
		"systemd-nspawn", "--quiet", "--boot", "--directory=" + b.Path("/"), "--machine=" + b.Name, "--hostname=" + b.Name,
		"--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe",
		"--bind=" + b.room.Shared(),
	}
	for from, to := range b.Binds {
		argv = append(argv, "--bind="+from+":"+to)
	}
	c, err := Launch(b.console(), b.cgrps, argv...)
	if err != nil {
		return err
	}
	l := &life{capsule: c, over: make(chan struct{})}
	b.mu.Lock()
	b.life = l
	b.mu.Unlock()
	err = os.WriteFile(b.PowerFile(), nil, 0o644)
	go func() {
		<-c.Done()
		_ = os.Remove(b.PowerFile())
		close(l.over)
	}()
	if err != nil {
		return err
	}
	if err := b.await(ctx, func() bool {
		l.init = initOf(c.first.Pid)
		return l.init != 0
	}); err != nil {
		return err
	}
	return b.await(ctx, func() bool {
		state, _ := b.Exec(ctx, "systemctl", "is-system-running") // it fails while it says "starting"
		return state == "running" || state == "degraded"
	})
}

// await asks again and again, until it is so or the box is off or the context ends.
func (b *Box) await(ctx context.Context, so func() bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		if !b.On() {
			return errors.New("it is off")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// initOf finds the process 1 of the box in a capsule: a systemd whose parent is
// the child of the capsule's first process. 0 = there is none yet.
func initOf(first int) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || parent(parent(pid)) != first {
			continue
		}
		if exe, err := os.Readlink(filepath.Join(d, "exe")); err == nil && filepath.Base(exe) == "systemd" {
			return pid
		}
	}
	return 0
}

// parent of a process; 0 = it has none that is seen here, or has ended.
func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// After the program's name, which is in parentheses: the state, the parent.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	ppid, err := strconv.Atoi(f[1])
	if err != nil {
		return 0
	}
	return ppid
}

// Exec runs a command in the box, as root, and returns what it prints. What it
// says besides is in the error.
func (b *Box) Exec(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Patience, fmt.Errorf("no answer within %s", Patience))
	defer cancel()
	l := b.now()
	if !b.On() || l.init == 0 { // its pid may be somebody else's by now
		return "", fmt.Errorf("box %s: %s: it is off", b.Name, strings.Join(argv, " "))
	}
	enter := []string{"--target", strconv.Itoa(l.init), "--all", "--", "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, argv...)...)
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	cmd.WaitDelay = time.Second
	text := func() string { return strings.TrimSpace(out.String()) }
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return text(), fmt.Errorf("box %s: %s: %w: %s", b.Name, strings.Join(argv, " "), err, strings.TrimSpace(msg.String()))
	}
	return text(), nil
}

// Journal is what a unit has said in all boots, with what systemd says of it. It
// is read from the disk, so the box may be off.
func (b *Box) Journal(ctx context.Context, unit string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, Patience, fmt.Errorf("no answer within %s", Patience))
	defer cancel()
	out, err := exec.CommandContext(ctx, "journalctl", "--directory="+b.Path("/var/log/journal"), "--no-pager", "--quiet", "--output=short-monotonic", "--unit="+unit).Output()
	if err != nil {
		return string(out), fmt.Errorf("read the journal of box %s: %w", b.Name, err)
	}
	return string(out), nil
}

// PowerCut ends everything of the box at once, and returns when nothing is left.
// Its disk stays.
func (b *Box) PowerCut() error {
	l := b.now()
	if l == nil {
		return nil
	}
	if err := l.capsule.Kill(); err != nil {
		return fmt.Errorf("cut the power of box %s: %w", b.Name, err)
	}
	<-l.over
	return b.off()
}

// Freeze stops everything of the box at once, as a machine that stalls. Only its
// power can be cut then.
func (b *Box) Freeze() error {
	for _, g := range b.cgrps {
		file := filepath.Join(g, "cgroup.freeze")
		if _, err := os.Stat(file); err != nil {
			continue // a hierarchy of version 1
		}
		if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
			return fmt.Errorf("freeze box %s: %w", b.Name, err)
		}
		return nil
	}
	return fmt.Errorf("freeze box %s: this kernel cannot", b.Name)
}

// Poweroff shuts the box down in good order, and returns when it is off.
func (b *Box) Poweroff(ctx context.Context) error {
	_, err := b.Exec(ctx, "systemctl", "poweroff")
	if off := b.AwaitOff(ctx); off != nil {
		return errors.Join(off, err)
	}
	return nil // what asked for it may have been ended by it
}

// AwaitOff waits until nothing of the box runs.
func (b *Box) AwaitOff(ctx context.Context) error {
	l := b.now()
	if l == nil {
		return nil
	}
	select {
	case <-l.over:
		return b.off()
	case <-ctx.Done():
		return fmt.Errorf("wait for box %s to be off: %w", b.Name, context.Cause(ctx))
	case <-time.After(Patience):
		return fmt.Errorf("box %s is not off after %s", b.Name, Patience)
	}
}

func (b *Box) off() error {
	if err := removeCgroups(b.cgrps); err != nil {
		return fmt.Errorf("remove the control groups of box %s: %w", b.Name, err)
	}
	b.cgrps = nil
	return nil
}

// Remove cuts the power of the box and throws its disk away.
func (b *Box) Remove() error {
	if err := b.PowerCut(); err != nil {
		return err
	}
	if b.pipe != nil {
		b.pipe.Close()
	}
	if err := unix.Unmount(b.Path("/"), 0); err != nil {
		return fmt.Errorf("remove box %s: %w", b.Name, err)
	}
	return os.RemoveAll(b.dir)
}

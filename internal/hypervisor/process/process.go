// Package process runs VEs as plain processes: for the lab, for tests, and for
// services that need nothing more.
//
// A VE is a directory with a ve.conf. What makes it run is a process group that
// outlives the daemon, as guests outlive theirs. Every process of it holds a
// lock on a file in RUN_DIR that it inherited; the kernel drops the lock with the
// last of them, so "it runs" and "it is proven stopped" need no pids, which
// could be recycled, and hold across restarts of the daemon.
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Options of the driver.
type Options struct {
	StateDir    string // registrations; survives a reboot
	RunDir      string // what runs; empty after a reboot
	HostMemory  cluster.Bytes
	StopTimeout time.Duration // for a graceful stop; 0 = 30 s
	Logger      *zap.Logger
}

// Driver runs VEs as processes.
type Driver struct {
	o     Options
	reg   sync.Mutex // held while the set of registrations changes
	mu    sync.Mutex
	ves   map[string]*ve // by path
	hints driverkit.Hints
}

const (
	pollGone = 5 * time.Millisecond
	// confAge is how old a definition may be before it is read again: it lies on
	// the shared file system, and listing must not wait for that.
	confAge = 30 * time.Second
	// adoptedPoll is how often VEs are looked at whose parent is another process.
	adoptedPoll = 2 * time.Second
	// adoptedShare is how many VEs may be looked at in that time; with more of
	// them it takes longer, since each look is some system calls.
	adoptedShare = 200
)

// New returns the driver with the VEs that are registered on this node.
func New(o Options) (*Driver, error) {
	if o.StopTimeout == 0 {
		o.StopTimeout = 30 * time.Second
	}
	d := &Driver{o: o, ves: map[string]*ve{}}
	for _, dir := range []string{d.stateDir(), d.runDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("driver process: %w", err)
		}
	}
	files, err := os.ReadDir(d.stateDir())
	if err != nil {
		return nil, fmt.Errorf("driver process: %w", err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		var reg registration
		data, err := os.ReadFile(filepath.Join(d.stateDir(), f.Name()))
		if err == nil {
			err = json.Unmarshal(data, &reg)
		}
		if err == nil && reg.Path == "" {
			err = errors.New("it names no path")
		}
		if err != nil {
			v := &ve{path: f.Name(), run: filepath.Join(d.runDir(), strings.TrimSuffix(f.Name(), ".json"))}
			if runs, rerr := v.running(); runs || rerr != nil {
				// It would be taken for stopped, and be started elsewhere.
				return nil, fmt.Errorf("driver process: the VE of registration %s runs, and which one it is cannot be read: %w; end it (its process id is in %s), remove the registration, and start again", filepath.Join(d.stateDir(), f.Name()), errors.Join(err, rerr), filepath.Join(v.run, "pid"))
			}
			o.Logger.Error("a registration cannot be read; the VE is unknown here until it is registered again", zap.String("path", f.Name()), zap.Error(err))
			continue
		}
		d.ves[reg.Path] = d.newVE(reg.Path)
	}
	return d, nil
}

type registration struct {
	Path string `json:"path"`
}

func (d *Driver) stateDir() string { return filepath.Join(d.o.StateDir, "process") }
func (d *Driver) runDir() string   { return filepath.Join(d.o.RunDir, "process") }

func (d *Driver) newVE(path string) *ve {
	return &ve{turn: make(chan struct{}, 1), path: path, run: filepath.Join(d.runDir(), key(path))}
}

// Name implements hypervisor.Driver.
func (*Driver) Name() string { return "process" }

// Kinds implements hypervisor.Driver.
func (*Driver) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindCT, cluster.KindVM} }

func (d *Driver) get(path string) *ve {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ves[path]
}

// verb returns the VE at path for one verb, to be released after it, or an error
// that wraps ErrNoVE. A VE that was unregistered while the verb waited for its
// turn is unknown: it must not be started by one who still has it.
func (d *Driver) verb(ctx context.Context, path string) (*ve, error) {
	for {
		v := d.get(path)
		if v == nil {
			return nil, fmt.Errorf("it is not registered here: %w", cluster.ErrNoVE)
		}
		if err := v.take(ctx); err != nil {
			return nil, err
		}
		if d.get(path) == v {
			return v, nil
		}
		v.release()
	}
}

// Register implements hypervisor.Driver. It is not flushed to disk: after a
// crash the resource still says that the VE belongs here, and it is registered again.
func (d *Driver) Register(ctx context.Context, path string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("register %s: %w: %w", path, cluster.ErrCannotAsk, context.Cause(ctx))
	}
	var c conf
	if err := driverkit.Guarded(ctx, func() (err error) { c, err = readConf(path); return err }); err != nil {
		return err
	}
	d.reg.Lock()
	defer d.reg.Unlock()
	if v := d.get(path); v != nil {
		v.setConf(c, nil)
		return nil
	}
	data, err := json.Marshal(registration{Path: path})
	if err != nil {
		return fmt.Errorf("register %s: %w", path, err)
	}
	file := filepath.Join(d.stateDir(), key(path)+".json")
	if err := os.WriteFile(file+".tmp", data, 0o644); err != nil {
		return fmt.Errorf("register %s: %w", path, driverkit.Classify(err))
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		return fmt.Errorf("register %s: %w", path, driverkit.Classify(err))
	}
	v := d.newVE(path)
	v.setConf(c, nil)
	d.mu.Lock()
	d.ves[path] = v
	d.mu.Unlock()
	return nil
}

// Unregister implements hypervisor.Driver.
func (d *Driver) Unregister(ctx context.Context, path string) error {
	v, err := d.verb(ctx, path)
	if errors.Is(err, cluster.ErrNoVE) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unregister %s: %w", path, err)
	}
	defer v.release()
	running, err := v.running()
	if err != nil {
		return err
	}
	if running {
		return fmt.Errorf("unregister %s: it runs; stop it first", path)
	}
	d.reg.Lock()
	defer d.reg.Unlock()
	if err := os.Remove(filepath.Join(d.stateDir(), key(path)+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unregister %s: %w", path, driverkit.Classify(err))
	}
	// Before it is forgotten: who registers it anew gets the same directory, and
	// the lock of what it starts there must not be taken away.
	err = os.RemoveAll(v.run)
	d.mu.Lock()
	delete(d.ves, path)
	d.mu.Unlock()
	return err
}

// List implements hypervisor.Driver. It does not wait for the shared file
// system, except for a VE whose definition was never read.
func (d *Driver) List(ctx context.Context) ([]cluster.VE, error) {
	d.mu.Lock()
	all := make([]*ve, 0, len(d.ves))
	for _, v := range d.ves {
		all = append(all, v)
	}
	d.mu.Unlock()
	out := make([]cluster.VE, 0, len(all))
	for _, v := range all {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("%w: %w", cluster.ErrCannotAsk, err)
		}
		c, known := v.params()
		if !known {
			_ = driverkit.Guarded(ctx, func() error { c, err := readConf(v.path); v.setConf(c, err); return err }) // a VE without a readable definition is listed all the same
			if c, known = v.params(); !known {
				// As a definition without a word says. Who stops all HA VEs must not pass this one by.
				c.ha = true
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("%w: %w", cluster.ErrCannotAsk, context.Cause(ctx))
			}
		}
		running, err := v.running()
		if err != nil {
			return nil, err
		}
		e := cluster.VE{Kind: c.kind, Name: c.name, Path: v.path, State: cluster.VEStopped, HA: c.ha, Priority: c.priority, Memory: c.memory}
		if e.Kind == "" {
			e.Kind, e.Name = cluster.KindCT, filepath.Base(v.path)
		}
		if running {
			e.State = cluster.VERunning
		} else {
			e.Cause = v.cause()
		}
		out = append(out, e)
	}
	return out, nil
}

// script runs the VE's command in its directory and writes down how it ended. It
// ignores the SIGTERM of a graceful stop, so that it lives to see the end; its
// pid is told once the command is there to hear that signal. fd 3 is the lock.
//
// It goes into the directory itself: a change of directory between fork and exec
// that hangs with the shared file system would stop the whole daemon.
// A guest is not worth less to the kernel than the daemon: its own standing when
// memory runs out begins anew.
const script = `trap : TERM INT
echo 0 2>/dev/null >/proc/self/oom_score_adj
(cd "$SHAMAN_VE_PATH" && exec /bin/sh -c "$SHAMAN_COMMAND") &
c=$!
echo $$ >"$SHAMAN_RUN/pid.tmp" && mv "$SHAMAN_RUN/pid.tmp" "$SHAMAN_RUN/pid"
while :; do wait $c; rc=$?; kill -0 $c 2>/dev/null || break; done
echo $rc >"$SHAMAN_RUN/exit.tmp" && mv "$SHAMAN_RUN/exit.tmp" "$SHAMAN_RUN/exit"`

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, path string) error {
	v, err := d.verb(ctx, path)
	if err != nil {
		return fmt.Errorf("start %s: %w", path, err)
	}
	defer v.release()
	// First of all: one that runs is not failed because its definition cannot be read.
	if running, err := v.running(); err != nil || running {
		return err
	}
	var c conf
	if err := driverkit.Guarded(ctx, func() (err error) { c, err = readConf(path); return err }); err != nil {
		return fmt.Errorf("start %s: %w", path, err)
	}
	v.setConf(c, nil)
	if err := os.MkdirAll(v.run, 0o755); err != nil {
		return fmt.Errorf("start %s: %w", path, driverkit.Classify(err))
	}
	lock, err := os.OpenFile(filepath.Join(v.run, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", path, driverkit.Classify(err))
	}
	defer lock.Close() // the processes of the VE have it by then
	running, err := v.acquire(ctx, lock)
	if err != nil || running {
		return err
	}
	for _, old := range []string{"exit", "pid"} {
		if err := os.Remove(filepath.Join(v.run, old)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("start %s: %w", path, driverkit.Classify(err))
		}
	}
	return d.spawn(v, c, lock)
}

func (d *Driver) spawn(v *ve, c conf, lock *os.File) error {
	out, err := os.OpenFile(filepath.Join(v.run, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", v.path, driverkit.Classify(err))
	}
	defer out.Close()
	cmd := exec.Command("/bin/sh", "-c", script) // not bound to ctx: it outlives us
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	id := cluster.MakeResourceID(c.kind, c.name)
	cmd.Env = append(driverkit.GuestEnviron(), "SHAMAN_RUN="+v.run, "SHAMAN_COMMAND="+c.command,
		"SHAMAN_VE_ID="+string(id), "SHAMAN_VE_NAME="+c.name, "SHAMAN_VE_KIND="+string(c.kind), "SHAMAN_VE_PATH="+v.path)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", v.path, driverkit.Classify(err))
	}
	go func() {
		_ = cmd.Wait() // its end is told by the lock and the exit file
		d.hints.Hint()
	}()
	d.hints.Hint()
	return nil
}

// Stop implements hypervisor.Driver.
func (d *Driver) Stop(ctx context.Context, path string, force bool) error {
	if v := d.get(path); v != nil && force {
		v.hurry.Add(1)
		defer v.hurry.Add(-1)
	}
	v, err := d.verb(ctx, path)
	if errors.Is(err, cluster.ErrNoVE) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", path, err)
	}
	defer v.release()
	sig, deadline, sent := unix.SIGTERM, time.Now().Add(d.o.StopTimeout), false
	for {
		if force = force || v.hurry.Load() > 0; force {
			sig = unix.SIGKILL
		}
		running, err := v.running()
		if err != nil || !running {
			if sent {
				d.hints.Hint()
			}
			return err
		}
		// The lock tells that something of this VE lives, so its group is not
		// recycled. By force again and again, in case something was being forked.
		if pgid := v.group(); pgid != 0 && (force || !sent) {
			if err := unix.Kill(-pgid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("stop %s: %w", path, err)
			}
			sent = true
		}
		if !force && time.Now().After(deadline) {
			return fmt.Errorf("stop %s: it did not shut down within %s", path, d.o.StopTimeout)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("stop %s: %w: %w", path, cluster.ErrCannotAsk, context.Cause(ctx))
		case <-time.After(pollGone):
		}
	}
}

// Barrier implements hypervisor.Driver: verbs on one VE exclude each other, and
// nothing is queued beyond them.
func (d *Driver) Barrier(ctx context.Context) error {
	d.mu.Lock()
	all := make([]*ve, 0, len(d.ves))
	for _, v := range d.ves {
		all = append(all, v)
	}
	d.mu.Unlock()
	for _, v := range all {
		if err := v.take(ctx); err != nil {
			return fmt.Errorf("wait for the verbs on %s: %w", v.path, err)
		}
		v.release()
	}
	return nil
}

// Watch implements hypervisor.Driver.
func (d *Driver) Watch(ctx context.Context, hint func()) error {
	remove := d.hints.Add(hint)
	defer remove()
	was := map[*ve]bool{} // that ran at the last look
	pause := adoptedPoll
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		d.mu.Lock()
		all := make([]*ve, 0, len(d.ves))
		for _, v := range d.ves {
			all = append(all, v)
		}
		d.mu.Unlock()
		pause = adoptedPoll * time.Duration(max(1, len(all)/adoptedShare))
		runs, changed := make(map[*ve]bool, len(was)), false
		for _, v := range all {
			r, err := v.running()
			runs[v] = err == nil && r
			changed = changed || runs[v] != was[v]
		}
		if changed && !first {
			hint()
		}
		was = runs
	}
}

// Capacity implements hypervisor.Driver.
func (d *Driver) Capacity(context.Context) (cluster.Capacity, error) {
	return driverkit.HostCapacity(d.o.HostMemory)
}

// Save implements hypervisor.Driver: all there is of a VE lies in its directory.
func (*Driver) Save(context.Context, string) error { return nil }

// Configure implements hypervisor.Driver.
func (d *Driver) Configure(ctx context.Context, path string, p cluster.VEParams) error {
	v, err := d.verb(ctx, path)
	if err != nil {
		return fmt.Errorf("configure %s: %w", path, err)
	}
	changes := map[string]string{}
	if p.HA != nil {
		changes["HA_ENABLE"] = map[bool]string{true: "yes", false: "no"}[*p.HA]
	}
	if p.Priority != nil {
		changes["PRIORITY"] = strconv.FormatUint(uint64(*p.Priority), 10)
	}
	if len(changes) == 0 {
		v.release()
		return nil
	}
	return driverkit.Guarded(ctx, func() error {
		defer v.release() // not before: a write that hangs still is work that a barrier waits for
		if err := rewriteConf(path, changes); err != nil {
			return err
		}
		c, err := readConf(path)
		if err != nil {
			return err
		}
		v.setConf(c, nil)
		return nil
	})
}

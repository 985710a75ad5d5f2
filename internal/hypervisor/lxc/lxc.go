// Package lxc runs plain LXC containers (the lxc-* tools) whose directory lies on
// the shared file system.
//
// A VE is a directory with LXC's config, and usually the rootfs; LXC calls it by
// the directory's name, below the directory's parent (lxcpath). Nothing is kept in
// /var/lib/lxc. Whether it runs is read from the kernel (kernel.go); the tools are
// used for what changes something, and not even for a stop by force, which has to
// work when the shared file system hangs. LXC does not refuse a container that
// runs on another node: fencing alone protects from that.
package lxc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
)

// Options of the driver.
type Options struct {
	Mount       string        // the shared file system; containers lie below it
	StateDir    string        // registrations; survives a reboot
	RunDir      string        // what runs; empty after a reboot
	HostMemory  cluster.Bytes // 0 = the host's
	StopTimeout time.Duration // for a graceful stop; 0 = 30 s
	Tools       string        // directory of lxc-start and lxc-stop; "" = they are looked up in PATH
	Logger      *zap.Logger
}

// Driver runs LXC containers.
type Driver struct {
	o      Options
	turns  driverkit.Turns
	hints  driverkit.Hints
	former *driverkit.Former
	reg    sync.Mutex // held while the set of registrations changes
	mu     sync.Mutex
	ves    map[string]*ve // by path: what is registered, and what ran at the last look
}

// readWait bounds how long a list waits for definitions on the shared file
// system. What is not read by then is listed as it was last read.
const readWait = time.Second

// ve is a container that the driver knows.
type ve struct {
	path, lxcpath, name string
	run                 string // its directory in RunDir

	mu         sync.Mutex
	registered bool
	conf       conf
	known      bool // conf was read at least once
	reading    chan struct{}
}

// New returns the driver with the containers that are registered on this node.
func New(o Options) (*Driver, error) {
	if o.StopTimeout == 0 {
		o.StopTimeout = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	o.Mount = filepath.Clean(o.Mount)
	if !filepath.IsAbs(o.Mount) {
		return nil, fmt.Errorf("driver lxc: the mount %q is not an absolute path", o.Mount)
	}
	d := &Driver{o: o, ves: map[string]*ve{}}
	for _, dir := range []string{d.stateDir(), d.runDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("driver lxc: %w", err)
		}
	}
	former, err := driverkit.NewFormer(d.runDir())
	if err != nil {
		return nil, fmt.Errorf("driver lxc: %w", err)
	}
	d.former = former
	files, err := os.ReadDir(d.stateDir())
	if err != nil {
		return nil, fmt.Errorf("driver lxc: %w", err)
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
		if err == nil {
			err = d.allowed(reg.Path)
		}
		if err != nil {
			// One that runs is found all the same.
			o.Logger.Error("a registration cannot be read; the container is unknown here until it is registered again or runs", zap.String("path", filepath.Join(d.stateDir(), f.Name())), zap.Error(err))
			continue
		}
		d.know(reg.Path).registered = true
	}
	return d, nil
}

type registration struct {
	Path string `json:"path"`
}

func (d *Driver) stateDir() string { return filepath.Join(d.o.StateDir, "lxc") }
func (d *Driver) runDir() string   { return filepath.Join(d.o.RunDir, "lxc") }

func key(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:10])
}

// allowed tells whether a path can be a container's.
func (d *Driver) allowed(path string) error {
	switch {
	case !filepath.IsAbs(path) || filepath.Clean(path) != path:
		return fmt.Errorf("%q is not a clean absolute path", path)
	case !below(d.o.Mount, path):
		return fmt.Errorf("%s does not lie on %s; move the container's directory there", path, d.o.Mount)
	case strings.ContainsAny(path, "\n\x00"):
		return fmt.Errorf("%q: a name with a line break cannot be had by LXC", path)
	}
	return nil
}

// Name implements hypervisor.Driver.
func (*Driver) Name() string { return "lxc" }

// Kinds implements hypervisor.Driver.
func (*Driver) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindCT} }

func (d *Driver) get(path string) *ve {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ves[path]
}

// of returns the container at path, which need not be known.
func (d *Driver) of(path string) *ve {
	if v := d.get(path); v != nil {
		return v
	}
	return &ve{path: path, lxcpath: filepath.Dir(path), name: filepath.Base(path), run: filepath.Join(d.runDir(), key(path))}
}

// know returns the container at path and keeps it.
func (d *Driver) know(path string) *ve {
	v := d.of(path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ves[path] == nil {
		d.ves[path] = v
	}
	return d.ves[path]
}

func (d *Driver) all() []*ve {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]*ve, 0, len(d.ves))
	for _, v := range d.ves {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *ve) int { return strings.Compare(a.path, b.path) })
	return out
}

func (v *ve) isRegistered() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.registered
}

func (v *ve) setRegistered(r bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.registered = r
}

func (v *ve) setConf(c conf) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.conf, v.known = c, true
}

// refresh has the definition read anew, and returns what is closed when that is
// done; nil if an earlier reading has not come back, as on a mount that hangs.
func (v *ve) refresh(mount string) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.reading != nil {
		return nil
	}
	done := make(chan struct{})
	v.reading = done
	go func() {
		c, err := readConf(v.path, mount)
		v.mu.Lock()
		defer v.mu.Unlock()
		// A definition that cannot be read is as it was.
		if err == nil {
			v.conf, v.known = c, true
		}
		v.reading = nil
		close(done)
	}()
	return done
}

// Register implements hypervisor.Driver. It is not flushed to disk: after a
// crash the resource still says that the VE belongs here, and it is registered again.
func (d *Driver) Register(ctx context.Context, path string) error {
	if err := d.allowed(path); err != nil {
		return fmt.Errorf("register %s: %w", path, err)
	}
	err := d.turns.Do(ctx, path, func() error {
		c, err := readConf(path, d.o.Mount)
		if err != nil {
			return err
		}
		if c.autostart {
			if err := stayOff(path); err != nil {
				return err
			}
			c.autostart = false
		}
		d.reg.Lock()
		defer d.reg.Unlock()
		data, err := json.Marshal(registration{Path: path})
		if err != nil {
			return err
		}
		file := filepath.Join(d.stateDir(), key(path)+".json")
		if err := os.WriteFile(file+".tmp", data, 0o644); err != nil {
			return err
		}
		if err := os.Rename(file+".tmp", file); err != nil {
			return err
		}
		v := d.know(path)
		v.setConf(c)
		v.setRegistered(true)
		return nil
	})
	if err != nil {
		return fmt.Errorf("register %s: %w", path, err)
	}
	return nil
}

// Unregister implements hypervisor.Driver.
func (d *Driver) Unregister(ctx context.Context, path string) error {
	err := d.turns.Do(ctx, path, func() error {
		v := d.of(path)
		now, err := look()
		if err != nil {
			return err
		}
		l, err := v.life(now)
		if err != nil {
			return err
		}
		if l.any() && v.isRegistered() {
			return errors.New("it runs; stop it first")
		}
		d.reg.Lock()
		defer d.reg.Unlock()
		if err := os.Remove(filepath.Join(d.stateDir(), key(path)+".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		v.setRegistered(false)
		if l.any() {
			return nil
		}
		d.mu.Lock()
		delete(d.ves, path)
		d.mu.Unlock()
		return os.RemoveAll(v.run)
	})
	if err != nil {
		return fmt.Errorf("unregister %s: %w", path, err)
	}
	return nil
}

// List implements hypervisor.Driver. It waits readWait at most for the shared
// file system, and not at all for a container whose last reading hangs.
func (d *Driver) List(ctx context.Context) ([]cluster.VE, error) {
	if ctx.Err() != nil {
		return nil, driverkit.Ended(ctx)
	}
	now, err := look()
	if err != nil {
		return nil, err
	}
	for _, path := range d.running(now) {
		d.know(path)
	}
	all := d.all()
	d.readAll(ctx, all)
	out := make([]cluster.VE, 0, len(all))
	for _, v := range all {
		if ctx.Err() != nil {
			return nil, driverkit.Ended(ctx)
		}
		l, err := v.life(now)
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", v.path, err)
		}
		registered := v.isRegistered()
		if !l.any() && !registered {
			d.forget(v)
			continue
		}
		if l.any() {
			v.forgetEnd(l)
		}
		out = append(out, v.listed(l.any()))
	}
	return out, nil
}

// forget drops a container that is neither registered nor runs.
func (d *Driver) forget(v *ve) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ves[v.path] == v && !v.isRegistered() {
		delete(d.ves, v.path)
	}
}

func (d *Driver) readAll(ctx context.Context, all []*ve) {
	ctx, cancel := context.WithTimeout(ctx, readWait)
	defer cancel()
	var reading []<-chan struct{}
	for _, v := range all {
		if done := v.refresh(d.o.Mount); done != nil {
			reading = append(reading, done)
		}
	}
	for _, done := range reading {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

func (v *ve) listed(runs bool) cluster.VE {
	v.mu.Lock()
	c, known := v.conf, v.known
	v.mu.Unlock()
	if !known {
		c.ha = true // who stops all HA VEs must not pass this one by
	}
	e := cluster.VE{
		Kind: cluster.KindCT, Name: v.name, Path: v.path, State: cluster.VEStopped, HA: c.ha && c.unfit == "", Autostart: c.autostart,
		Priority: c.priority, Memory: c.memory, VCPUs: c.vcpus, Unfit: c.unfit,
	}
	if !c.ha {
		e.Unfit = "" // nobody asks for it
	}
	if runs {
		e.State = cluster.VERunning
	} else {
		e.Cause = v.cause()
	}
	return e
}

// running are the paths of all containers below the mount that the kernel shows,
// registered or not.
func (d *Driver) running(now view) (paths []string) {
	add := func(path string) {
		if d.allowed(path) == nil && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	for name := range now.sockets {
		add(name)
	}
	for _, m := range now.monitors {
		// Both parts may have spaces; the socket says where the name begins.
		for i := range m.title {
			if m.title[i] == ' ' && now.sockets[socketName(m.title[:i], m.title[i+1:])] {
				add(m.title[:i] + "/" + m.title[i+1:])
			}
		}
	}
	return paths
}

// Capacity implements hypervisor.Driver.
func (d *Driver) Capacity(context.Context) (cluster.Capacity, error) {
	return driverkit.HostCapacity(d.o.HostMemory)
}

// Save implements hypervisor.Driver: all there is of a container lies in its directory.
func (*Driver) Save(context.Context, string) error { return nil }

// Configure implements hypervisor.Driver.
func (d *Driver) Configure(ctx context.Context, path string, p cluster.VEParams) error {
	changes := map[string]string{}
	if p.HA != nil {
		changes["HA_ENABLE"] = map[bool]string{true: "yes", false: "no"}[*p.HA]
	}
	if p.Priority != nil {
		changes["PRIORITY"] = strconv.FormatUint(uint64(*p.Priority), 10)
	}
	err := d.turns.Do(ctx, path, func() error {
		v := d.get(path)
		if v == nil {
			return fmt.Errorf("it is not registered here: %w", cluster.ErrNoVE)
		}
		if len(changes) == 0 {
			return nil
		}
		if err := writeParams(path, changes); err != nil {
			return err
		}
		c, err := readConf(path, d.o.Mount)
		if err != nil {
			return err
		}
		v.setConf(c)
		return nil
	})
	if err != nil {
		return fmt.Errorf("configure %s: %w", path, err)
	}
	return nil
}

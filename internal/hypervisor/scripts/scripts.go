// Package scripts runs resources of any type (iSCSI targets, services, whatever a
// script can start, stop and look at) by scripts, in the layout of the original
// shaman: common scripts and one directory a type, on this node and on the shared
// file system. docs/hypervisors/scripts.md is the contract with the scripts.
//
// A script is never trusted to have done what its exit code says: describe has to
// confirm each start and stop. What a script does not say is not known, and never
// "stopped". Scripts on the shared file system are run from a copy on this node.
package scripts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
)

// LocalDir is where scripts of this node are.
const LocalDir = "/usr/share/shaman"

// SharedDir is the directory of shared scripts, below the mount.
const SharedDir = ".shaman-scripts"

// identityFile is on every shared file system of a cluster: the package resources makes it.
const identityFile = ".shaman/cluster"

// Options of the driver.
type Options struct {
	// Dirs have the scripts; of two of the same name that in the first one counts.
	// nil = SharedDir of Mount, then LocalDir. Those below Mount are copied.
	Dirs       []string
	Mount      string         // the shared file system
	Node       cluster.NodeID // told to the scripts
	StateDir   string         // registrations and the copy of shared scripts; survives a reboot
	RunDir     string         // scripts' own notes on what runs; empty after a reboot
	HostMemory cluster.Bytes
	// StopTimeout is how long a graceful stop may take; 0 = 30 s.
	StopTimeout time.Duration
	// DescribeTimeout is how long one look at a resource, or one enumeration, may take; 0 = 10 s.
	DescribeTimeout time.Duration
	// DescribeAge is how old a look may be when List returns it, unless this driver
	// itself has done something to the resource since; 0 = 2 s. With very many
	// resources, or slow scripts, it grows: see Driver.age.
	DescribeAge time.Duration
	Logger      *zap.Logger
}

// parallel is how many resources are looked at at the same time.
const parallel = 8

// Driver runs resources by scripts.
type Driver struct {
	o       Options
	mirrors []*mirror
	kinds   []cluster.Kind
	turns   driverkit.Turns
	hints   driverkit.Hints
	former  *driverkit.Former
	// One element a look in the background: at what answers, and at what did not the last time.
	looks, suspects chan struct{}

	mu   sync.Mutex
	ves  map[string]*ve // by path
	cost time.Duration  // of one look, on average

	enum enumeration
}

// New returns the driver with the types that have scripts, and the resources
// that are registered on this node. Types that come later need a restart.
func New(o Options) (*Driver, error) {
	o = o.withDefaults()
	d := &Driver{o: o, ves: map[string]*ve{}, looks: make(chan struct{}, parallel), suspects: make(chan struct{}, 2)}
	d.enum.init()
	for _, dir := range []string{d.regDir(), d.hintDir(), d.runDir(""), d.begunDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("driver scripts: %w", err)
		}
	}
	former, err := driverkit.NewFormer(filepath.Join(o.RunDir, "scripts"))
	if err != nil {
		return nil, fmt.Errorf("driver scripts: %w", err)
	}
	d.former = former
	mirrors, err := newMirrors(o.Dirs, o.Mount, filepath.Join(o.StateDir, "scripts"), o.Logger)
	if err != nil {
		return nil, fmt.Errorf("driver scripts: %w", err)
	}
	d.mirrors = mirrors
	kinds, refused := d.finder().types()
	d.kinds = kinds
	for _, err := range refused {
		o.Logger.Warn("a type of resources is not used", zap.Error(err))
	}
	for _, k := range kinds {
		for _, purpose := range []string{purposeEnumerate, purposeDescribe, purposeRelocate, purposeRelease, purposeStart, purposeStop} {
			if _, err := d.finder().chain(purpose, k); err != nil {
				o.Logger.Error("resources of this type cannot be taken care of", zap.String("type", string(k)), zap.Error(err))
			}
		}
	}
	if len(kinds) == 0 {
		o.Logger.Warn("there are no types of resources: no directory <type>- with scripts to describe, start and stop", zap.Strings("path", o.Dirs))
	}
	if err := d.load(); err != nil {
		return nil, err
	}
	return d, nil
}

func (o Options) withDefaults() Options {
	if o.Dirs == nil {
		o.Dirs = []string{filepath.Join(o.Mount, SharedDir), LocalDir}
	}
	for _, x := range []struct {
		d *time.Duration
		v time.Duration
	}{{&o.StopTimeout, 30 * time.Second}, {&o.DescribeTimeout, 10 * time.Second}, {&o.DescribeAge, 2 * time.Second}} {
		if *x.d == 0 {
			*x.d = x.v
		}
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	return o
}

// newMirrors returns one mirror a directory, in their order; one that only has a
// name is a directory of this node. Shared ones have been looked at.
func newMirrors(dirs []string, mount, state string, log *zap.Logger) ([]*mirror, error) {
	out := make([]*mirror, 0, len(dirs))
	var wg sync.WaitGroup
	for _, dir := range dirs {
		m := &mirror{from: filepath.Clean(dir), mounted: filepath.Join(mount, identityFile), log: log}
		if mount != "" && strings.HasPrefix(m.from, filepath.Clean(mount)+"/") {
			m.to = filepath.Join(state, "shared", keyOf(m.from))
			if err := os.MkdirAll(m.to, 0o700); err != nil {
				return nil, err
			}
			wg.Go(func() { m.first(context.Background()) }) // it bounds itself
		}
		out = append(out, m)
	}
	wg.Wait()
	return out, nil
}

// finderOf returns where scripts are now.
func finderOf(mirrors []*mirror) finder {
	var f finder
	for _, m := range mirrors {
		if m.to == "" {
			f.dirs = append(f.dirs, m.from)
			continue
		}
		m.fresh()
		// Not by way of the link: it may be changed while scripts run.
		if version, err := os.Readlink(m.current()); err == nil {
			f.dirs = append(f.dirs, filepath.Join(m.to, version))
		}
	}
	return f
}

func (d *Driver) finder() finder { return finderOf(d.mirrors) }

func (d *Driver) regDir() string  { return filepath.Join(d.o.StateDir, "scripts", "registered") }
func (d *Driver) hintDir() string { return filepath.Join(d.o.RunDir, "scripts", "hints") }

// begunDir has a file a resource of which it is not known whether something of a
// start comes yet.
func (d *Driver) begunDir() string { return filepath.Join(d.o.RunDir, "scripts", "begun") }

// runDir is the directory in which the scripts of a resource keep notes until the next boot.
func (d *Driver) runDir(key string) string { return filepath.Join(d.o.RunDir, "scripts", "run", key) }

// registration is the file that says that a resource is registered here.
type registration struct {
	Path string       `json:"path"`
	Type cluster.Kind `json:"type"`
	Conf conf         `json:"conf"` // as it was last read: the shared file system may be away at the next start
}

func (d *Driver) regFile(v *ve) string { return filepath.Join(d.regDir(), v.key+".json") }

// load reads the registrations.
func (d *Driver) load() error {
	files, err := os.ReadDir(d.regDir())
	if err != nil {
		return fmt.Errorf("driver scripts: %w", err)
	}
	for _, f := range files {
		key, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || strings.HasPrefix(key, ".") {
			continue
		}
		file := filepath.Join(d.regDir(), f.Name())
		var reg registration
		data, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(data, &reg)
		}
		if err == nil && (reg.Path == "" || !typeName.MatchString(string(reg.Type))) {
			err = errors.New("it names no path or no type")
		}
		if err != nil {
			if _, serr := os.Stat(d.runDir(key)); !errors.Is(serr, fs.ErrNotExist) {
				// It would be taken for stopped, and be started elsewhere.
				return fmt.Errorf("driver scripts: the registration %s cannot be read, and its resource may have been started since this boot: %w; make sure that it does not run, remove the registration and %s, and start again", file, err, d.runDir(key))
			}
			d.o.Logger.Error("a registration cannot be read; the resource is unknown here until it is registered again", zap.String("path", file), zap.Error(err))
			continue
		}
		v := d.newVE(reg.Path, reg.Type, reg.Conf)
		v.registered = true
		d.ves[reg.Path] = v
	}
	return nil
}

// save writes the registration of v. It is flushed by replace.
func (d *Driver) save(v *ve, c conf) error {
	data, err := json.Marshal(registration{Path: v.path, Type: v.kind, Conf: c})
	if err != nil {
		return err
	}
	return replace(d.regFile(v), data)
}

// Name implements hypervisor.Driver.
func (*Driver) Name() string { return "scripts" }

// Kinds implements hypervisor.Driver: the types that had scripts when the daemon started.
func (d *Driver) Kinds() []cluster.Kind { return d.kinds }

// Capacity implements hypervisor.Driver.
func (d *Driver) Capacity(context.Context) (cluster.Capacity, error) {
	return driverkit.HostCapacity(d.o.HostMemory)
}

// Save implements hypervisor.Driver: all there is of a resource lies at its path.
func (*Driver) Save(context.Context, string) error { return nil }

// Barrier implements hypervisor.Driver: a script that was begun holds the turn of
// its resource until it, and all of its process group, is gone. What the daemon
// before this one began is killed and waited for.
func (d *Driver) Barrier(ctx context.Context) error {
	if err := d.former.Gone(ctx); err != nil {
		return err
	}
	return d.turns.Wait(ctx)
}

func (d *Driver) get(path string) *ve {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ves[path]
}

func (d *Driver) all() []*ve {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]*ve, 0, len(d.ves))
	for _, v := range d.ves {
		out = append(out, v)
	}
	return out
}

// run runs the scripts for a purpose on a resource.
func (d *Driver) run(ctx context.Context, v *ve, purpose string, force bool) (out string, err error) {
	c, name := v.params()
	id := string(cluster.MakeResourceID(v.kind, name))
	env := append(c.environ(),
		"SHAMAN_RESOURCE="+id, "SHAMAN_NAME="+name, "SHAMAN_PATH="+v.path,
		"SHAMAN_NODE="+string(d.o.Node), "SHAMAN_MOUNT="+d.o.Mount,
		"SHAMAN_RUN="+d.runDir(v.key), "SHAMAN_HINT="+filepath.Join(d.hintDir(), v.key),
		"SHAMAN_FORCE="+map[bool]string{true: "1", false: "0"}[force])
	former := d.former
	if purpose == purposeDescribe {
		former = nil // it changes nothing
	}
	out, ran, err := runChain(ctx, d.finder(), former, purpose, v.kind, []string{id, v.path}, env)
	if err == nil && ran == 0 {
		for _, p := range needed {
			if p == purpose {
				// Its scripts were removed under it: nothing was done, so nothing is known.
				return "", fmt.Errorf("%w: there is no script to %s resources of type %s in %s; put it back", cluster.ErrCannotAsk, purpose, v.kind, strings.Join(d.o.Dirs, " or "))
			}
		}
	}
	if err != nil {
		return out, fmt.Errorf("%s %s: %w", purpose, id, driverkit.Classify(err))
	}
	return out, nil
}

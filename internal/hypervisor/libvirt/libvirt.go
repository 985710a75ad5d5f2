// Package libvirt runs VEs by libvirt: virtual machines of QEMU/KVM, and
// containers of libvirt-lxc.
//
// libvirt keeps what it knows of a domain on each node by itself. What another
// node needs to run it is a copy of its definition on the shared file system,
// <mount>/.shaman/domains/<uuid>.xml: that file's path is the VE's identity for
// shaman, whether it is there yet or not. Save writes it, Register reads it.
//
// The library has no deadlines, and closing a connection takes no request back:
// libvirtd still reads and carries out what was sent. So a question is given up
// when its context ends, but a verb that was sent is waited for, beyond the
// deadline of its caller, and holds the VE's turn until then.
package libvirt

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
)

// Options of the driver.
type Options struct {
	Name string       // in HYPERVISORS: libvirt or libvirt-lxc
	Kind cluster.Kind // of all VEs that it runs
	// URI is of the local daemon: qemu:///system, lxc:///. Its ?socket= counts if
	// Socket is empty.
	URI string
	// Socket of libvirtd; empty = the usual ones are tried.
	Socket string
	Mount  string // of the shared file system
	// StateDir keeps what has to survive a restart of the daemon.
	StateDir    string
	HostMemory  cluster.Bytes // takes the place of what libvirt says; 0 = that
	StopTimeout time.Duration // for a graceful stop; 0 = 30 s
	Logger      *zap.Logger
}

// Driver runs VEs by libvirt.
type Driver struct {
	o       Options
	uri     string // as libvirtd knows it
	pool    pool
	turns   driverkit.Turns
	defs    definitions
	files   files
	stopped stops
}

// DomainsDir is where the definitions are kept, below the mount.
const DomainsDir = ".shaman/domains"

// New returns the driver. It does not speak to libvirtd, which may be down.
func New(o Options) (*Driver, error) {
	if o.StopTimeout == 0 {
		o.StopTimeout = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Mount == "" || o.Name == "" || o.Kind == "" {
		return nil, errors.New("driver libvirt: name, kind and mount are needed")
	}
	u, err := url.Parse(o.URI)
	if err != nil {
		return nil, fmt.Errorf("LIBVIRT_URI: %w", err)
	}
	if u.Host != "" || (strings.Contains(u.Scheme, "+") && !strings.HasSuffix(u.Scheme, "+unix")) {
		return nil, fmt.Errorf("LIBVIRT_URI %s names another host; each node asks its own libvirtd: use qemu:///system or lxc:///", o.URI)
	}
	if o.Socket == "" {
		o.Socket = u.Query().Get("socket")
	}
	u.Scheme, u.RawQuery = strings.TrimSuffix(u.Scheme, "+unix"), ""
	if u.Scheme == "" {
		return nil, fmt.Errorf("LIBVIRT_URI %q names no hypervisor; use qemu:///system or lxc:///", o.URI)
	}
	o.Mount = filepath.Clean(o.Mount)
	d := &Driver{o: o, uri: u.Scheme + "://" + u.Path}
	d.pool = pool{uri: d.uri, sockets: sockets(u.Scheme, o.Socket)}
	d.stopped.dir = filepath.Join(o.StateDir, o.Name)
	return d, nil
}

// sockets are tried in this order: the one daemon for all, and the one of its own.
func sockets(scheme, given string) []string {
	if given != "" {
		return []string{given}
	}
	own := map[string]string{"qemu": "virtqemud", "lxc": "virtlxcd"}[scheme]
	if own == "" {
		return []string{"/run/libvirt/libvirt-sock"}
	}
	return []string{"/run/libvirt/libvirt-sock", "/run/libvirt/" + own + "-sock"}
}

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return d.o.Name }

// Kinds implements hypervisor.Driver.
func (d *Driver) Kinds() []cluster.Kind { return []cluster.Kind{d.o.Kind} }

// lxc tells that containers are meant, which libvirt treats otherwise in places.
func (d *Driver) lxc() bool { return strings.HasPrefix(d.uri, "lxc:") }

func (d *Driver) path(id uuid) string {
	return filepath.Join(d.o.Mount, DomainsDir, id.String()+".xml")
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// id returns the UUID of the VE at path; not ok if no VE of this driver has such a path.
func (d *Driver) id(path string) (id uuid, ok bool) {
	text, xml := strings.CutSuffix(filepath.Base(path), ".xml")
	if !xml || !uuidForm.MatchString(text) || filepath.Dir(path) != filepath.Join(d.o.Mount, DomainsDir) {
		return uuid{}, false
	}
	id, err := parseUUID(text)
	return id, err == nil
}

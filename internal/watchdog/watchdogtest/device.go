// Package watchdogtest is a watchdog device without hardware: a file on a FUSE
// mount that answers the ioctls of Linux's watchdog API, so that the code under
// test is the code that runs (Linux: Documentation/watchdog/watchdog-api.rst).
//
// What it does as the real ones do: opening arms it, a second open is EBUSY, any
// write or KEEPALIVE feeds it, only a 'V' right before the close disarms it, and a
// close without that feeds it once more and lets it run.
package watchdogtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/shaman-ha/shaman/internal/boottime"
	"golang.org/x/sys/unix"
)

// Options of a device.
type Options struct {
	Expire func() // called when it was not fed in time; nil = nothing happens
	// Round maps a wanted time-out in seconds to the one it takes; nil = as it is.
	Round   func(int) int
	Support uint32    // WDIOF_ bits; 0 = what softdog has
	Log     io.Writer // one line an event: <CLOCK_BOOTTIME ns> open|feed|timeout <s>|disarm|close|expire
	Broken  bool      // never expires
}

// Device is one.
type Device struct {
	fs.Inode
	o   Options
	dir string

	mu      sync.Mutex
	open    bool
	magic   bool
	timeout time.Duration
	timer   *time.Timer
	due     time.Time
	fed     int
	running bool
	refuse  bool
}

// Mount makes the device dir/watchdog. It needs root.
func Mount(dir string, o Options) (*Device, error) {
	if o.Support == 0 {
		o.Support = unix.WDIOF_SETTIMEOUT | unix.WDIOF_KEEPALIVEPING | unix.WDIOF_MAGICCLOSE
	}
	d := &Device{o: o, timeout: time.Minute, dir: dir}
	root := &rootDir{d: d}
	_, err := fs.Mount(dir, root, &fs.Options{MountOptions: fuse.MountOptions{DirectMount: true, AllowOther: true, FsName: "watchdogtest", Name: "watchdogtest"}})
	if err != nil {
		return nil, fmt.Errorf("mount a watchdog at %s: %w", dir, err)
	}
	return d, nil
}

// Path is the device.
func (d *Device) Path() string { return filepath.Join(d.dir, "watchdog") }

// Unmount ends the device; a timer that runs is stopped. It does not wait for copies
// of the mount in other namespaces, which processes of others may have made.
func (d *Device) Unmount() error {
	d.Reset()
	return unix.Unmount(d.dir, unix.MNT_DETACH)
}

// Reset is what a reset of the machine does to it: it does not run any more.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.halt()
}

// Refuse makes all ioctls fail from now on, as those of a management controller do
// that is busy.
func (d *Device) Refuse() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = true
}

// Running tells whether it is armed, by whomever.
func (d *Device) Running() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.running
}

// Feeds counts the feeds so far.
func (d *Device) Feeds() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fed
}

func (d *Device) halt() {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.running = false
}

func (d *Device) log(what string) {
	if d.o.Log != nil {
		fmt.Fprintf(d.o.Log, "%d %s\n", int64(boottime.Now()), what)
	}
}

// feed is called with the lock held.
func (d *Device) feed(what string) {
	d.halt()
	d.running = true
	d.fed++
	d.due = time.Now().Add(d.timeout)
	d.log(what)
	var timer *time.Timer
	timer = time.AfterFunc(d.timeout, func() {
		d.mu.Lock()
		if d.timer != timer || !d.running { // fed or stopped meanwhile
			d.mu.Unlock()
			return
		}
		d.running = false
		d.log("expire")
		d.mu.Unlock()
		if d.o.Expire != nil && !d.o.Broken {
			d.o.Expire()
		}
	})
	d.timer = timer
}

type rootDir struct {
	fs.Inode
	d *Device
}

// OnAdd puts the device into the directory.
func (r *rootDir) OnAdd(ctx context.Context) {
	r.AddChild("watchdog", r.NewPersistentInode(ctx, r.d, fs.StableAttr{Mode: syscall.S_IFREG}), true)
}

// Getattr shows a file.
func (*Device) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o600
	return 0
}

// Setattr takes everything.
func (*Device) Setattr(context.Context, fs.FileHandle, *fuse.SetAttrIn, *fuse.AttrOut) syscall.Errno {
	return 0
}

// Open arms it.
func (d *Device) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open {
		return nil, 0, syscall.EBUSY
	}
	d.open, d.magic = true, false
	d.feed("open")
	return nil, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NONSEEKABLE, 0
}

// Write feeds it.
func (d *Device) Write(_ context.Context, _ fs.FileHandle, data []byte, _ int64) (uint32, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.magic = false
	for _, c := range data {
		d.magic = d.magic || c == 'V'
	}
	d.feed("feed")
	return uint32(len(data)), 0
}

// Flush is the close: unlike Release it is waited for, as the close of a real
// device is.
func (d *Device) Flush(context.Context, fs.FileHandle) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = false
	switch {
	case d.magic:
		d.halt()
		d.log("disarm")
	case d.running:
		d.feed("close")
	}
	return 0
}

// Ioctl is the watchdog API.
func (d *Device) Ioctl(_ context.Context, _ fs.FileHandle, cmd uint32, _ uint64, in, out []byte) (int32, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse {
		return 0, syscall.EIO
	}
	put := func(v uint32) { binary.LittleEndian.PutUint32(out, v) }
	switch cmd {
	case unix.WDIOC_GETSUPPORT:
		put(d.o.Support)
		binary.LittleEndian.PutUint32(out[4:], 1)
		copy(out[8:], "watchdogtest")
	case unix.WDIOC_GETSTATUS, unix.WDIOC_GETBOOTSTATUS:
		put(0)
	case unix.WDIOC_KEEPALIVE:
		d.feed("feed")
	case unix.WDIOC_SETTIMEOUT:
		s := int(binary.LittleEndian.Uint32(in))
		if d.o.Round != nil {
			s = d.o.Round(s)
		}
		if s <= 0 {
			return 0, syscall.EINVAL
		}
		d.timeout = time.Duration(s) * time.Second
		d.feed(fmt.Sprintf("timeout %d", s))
		put(uint32(s))
	case unix.WDIOC_GETTIMEOUT:
		put(uint32(d.timeout / time.Second))
	case unix.WDIOC_GETTIMELEFT:
		put(uint32(max(0, time.Until(d.due)) / time.Second))
	default:
		return 0, syscall.ENOTTY
	}
	return 0, 0
}

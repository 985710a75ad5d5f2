package watchdog

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errBusy: somebody else holds the device.
var errBusy = errors.New("another program holds it (systemd with RuntimeWatchdogSec=, sbd, watchdog, wd_keepalive); end that one, or name another WATCHDOG_DEVICE")

// ErrUnusable is wrapped by errors about a device that cannot serve; what it says
// tells what to do.
var ErrUnusable = errors.New("the watchdog is not used")

// device is an open watchdog, which runs from the moment it is opened (Linux:
// Documentation/watchdog/watchdog-api.rst).
type device struct {
	fd      int
	timeout time.Duration // as read back
	unused  int32
}

// openDevice opens, and so arms, a watchdog and sets its time-out. A device that
// could not be disarmed again, or would be disarmed by the death of its holder,
// is refused: the first could not be let go of in good order, the second keeps
// no promise.
func openDevice(path string, timeout time.Duration) (*device, error) {
	if err := checkNoWayOut(path); err != nil {
		return nil, err
	}
	d, err := open(path)
	if err != nil {
		return nil, err
	}
	if err := d.prepare(timeout); err != nil {
		d.disarm()
		return nil, fmt.Errorf("%w: %s: %w", ErrUnusable, path, err)
	}
	return d, nil
}

func open(path string) (*device, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return nil, fmt.Errorf("%w: %s is not there; load the hardware's module, or run 'modprobe softdog' and put the line softdog into /etc/modules-load.d/shaman.conf; or name another WATCHDOG_DEVICE, or run 'shaman set-config WATCHDOG_TIMEOUT=0' to do without", ErrUnusable, path)
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%w: %s: %w", ErrUnusable, path, errBusy)
	case err != nil:
		return nil, fmt.Errorf("%w: open %s: %w", ErrUnusable, path, err)
	}
	return &device{fd: fd}, nil
}

// reopenDevice opens a watchdog that others already count with: it has to take the
// time-out that was published, and is never disarmed. mayFeed is asked again after
// each step, all of which feed it.
func reopenDevice(path string, timeout time.Duration, mayFeed func() bool) (*device, error) {
	d, err := open(path)
	if err != nil {
		return nil, err
	}
	if err = d.readTimeout(); err == nil && d.timeout != timeout && mayFeed() {
		err = d.prepare(timeout)
	}
	switch {
	case err != nil:
	case !mayFeed():
		err = errLate
	case d.timeout > timeout:
		err = fmt.Errorf("its time-out is %s by now", d.timeout)
	default:
		return d, nil
	}
	d.leave()
	return nil, fmt.Errorf("%w: %s: %w", ErrUnusable, path, err)
}

// errLate: this process was held up, and has fed when it must not.
var errLate = errors.New("it was opened too late")

func (d *device) prepare(timeout time.Duration) error {
	info, err := unix.IoctlGetWatchdogInfo(d.fd)
	if err != nil {
		return fmt.Errorf("it does not answer as a watchdog does: %w; is WATCHDOG_DEVICE right?", err)
	}
	if info.Options&unix.WDIOF_MAGICCLOSE == 0 {
		return errors.New("its driver has no magic close, so it would stop when this daemon dies; use another device, e.g. softdog")
	}
	if err := unix.IoctlSetPointerInt(d.fd, unix.WDIOC_SETTIMEOUT, int(timeout/time.Second)); err != nil {
		return fmt.Errorf("it refuses WATCHDOG_TIMEOUT=%s: %w; run 'shaman set-config WATCHDOG_TIMEOUT=...' with one that it takes", timeout, err)
	}
	// Drivers round, some without saying so in the answer.
	return d.readTimeout()
}

func (d *device) readTimeout() error {
	got, err := unix.IoctlGetUint32(d.fd, unix.WDIOC_GETTIMEOUT)
	if err != nil {
		return fmt.Errorf("it does not tell its time-out: %w", err)
	}
	if got < 1 || got > math.MaxInt32 {
		return fmt.Errorf("it says that its time-out is %d s", got)
	}
	d.timeout = time.Duration(got) * time.Second
	return nil
}

// checkNoWayOut reads what the kernel says of a device, before it is opened.
func checkNoWayOut(path string) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil // opening it will tell
	}
	name := filepath.Base(target)
	if name == "watchdog" {
		name = "watchdog0" // the old name of the first one
	}
	data, err := os.ReadFile(filepath.Join("/sys/class/watchdog", name, "nowayout"))
	if err == nil && strings.TrimSpace(string(data)) == "1" {
		return fmt.Errorf("%w: %s cannot be stopped again once it runs (nowayout), so stopping this daemon would reset the machine; load its module with nowayout=0", ErrUnusable, path)
	}
	return nil
}

// feed allocates nothing and takes no lock.
func (d *device) feed() error {
	// The argument is not used, but its number says that it is read into.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), unix.WDIOC_KEEPALIVE, uintptr(unsafe.Pointer(&d.unused))); errno != 0 {
		return errno
	}
	return nil
}

// disarm is the magic close.
func (d *device) disarm() {
	_, _ = unix.Write(d.fd, []byte{'V'}) // if it fails, the dog bites: the safe direction
	d.leave()
}

// leave closes the device armed. The kernel feeds it once more.
func (d *device) leave() { _ = unix.Close(d.fd) }

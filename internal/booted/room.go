package booted

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// envRoom tells the process that it is in its room already, and where that is.
const envRoom = "BOOTED_ROOM"

// nspawnState is where systemd-nspawn keeps notes about its machines.
const nspawnState = "/run/systemd/nspawn"

// Room is where boxes stand: a directory in memory that nobody else sees.
type Room struct{ dir string }

// Shared is a directory that is there, on the same path, in all boxes too.
func (r *Room) Shared() string { return filepath.Join(r.dir, "shared") }

// Missing says what this machine lacks to boot a box; "" = nothing.
func Missing() string {
	if os.Geteuid() != 0 {
		return "booting a systemd needs root"
	}
	if _, err := os.Stat("/lib/systemd/systemd"); err != nil {
		return "there is no systemd to boot; install systemd"
	}
	if _, err := os.Stat("/lib/systemd/system/dbus.socket"); err != nil {
		return "there is no system bus; install dbus"
	}
	if _, err := exec.LookPath("systemd-nspawn"); err != nil {
		return "systemd-nspawn is missing; install systemd-container"
	}
	return ""
}

// Enter puts the whole process into a mount namespace of its own, with a new
// Room in it. A namespace is a thread's, so the process starts itself anew in it:
// Enter returns in the second life only, and has to be called before anything
// else is begun.
func Enter() (*Room, error) {
	if dir := os.Getenv(envRoom); dir != "" {
		r := &Room{dir: dir}
		return r, errors.Join(os.Unsetenv(envRoom), os.Mkdir(r.Shared(), 0o755))
	}
	// Not /tmp and not /run: a box has others of its own there.
	dir, err := os.MkdirTemp("/var/tmp", "shaman-booted-")
	if err != nil {
		return nil, fmt.Errorf("make a room: %w", err)
	}
	err = enter(dir)
	return nil, errors.Join(fmt.Errorf("make a room: %w", err), os.Remove(dir))
}

func enter(dir string) error {
	runtime.LockOSThread() // it is another one in all that follows
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("leave the mount namespace: %w", err)
	}
	// What is mounted outside later is seen here, and not the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cut mounts off: %w", err)
	}
	if err := os.MkdirAll(nspawnState, 0o755); err != nil {
		return err
	}
	for _, d := range []string{dir, nspawnState} {
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", d, err)
		}
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), envRoom+"="+dir))
}

// Leave removes the room. All boxes have to be off.
func (r *Room) Leave() error {
	if err := unix.Unmount(r.dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the room: %w", err)
	}
	return os.Remove(r.dir)
}

// cgroup makes a control group by this name in every hierarchy that systemd
// wants one of, so that two boxes do not meet in one, and returns their
// directories.
func cgroup(name string) ([]string, error) {
	roots := []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"} // one of them, or both
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil {
		roots = []string{"/sys/fs/cgroup"} // version 2 alone
	}
	var out []string
	for _, root := range roots {
		if _, err := os.Stat(root); err != nil {
			continue
		}
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make a control group: %w", err)
		}
		out = append(out, dir)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("make a control group: none of %s is there", strings.Join(roots, ", "))
	}
	return out, nil
}

// removeCgroups removes empty control groups with all that are in them.
func removeCgroups(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		var all []string
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return err
		})
		for i := len(all) - 1; i >= 0 && err == nil; i-- {
			err = unix.Rmdir(all[i]) // the files in it are the kernel's
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

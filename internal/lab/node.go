package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start switches a node on, or starts whatever of it does not run. After a power
// cut it is a new boot: /run is empty and the boot id another one.
func (l *Lab) Start(n Node) error {
	unlock, err := l.switchLock(n)
	if err != nil {
		return err
	}
	defer unlock()
	if l.Power(n) == Off {
		if err := errors.Join(l.killCage(n), killAll(envNode, l.nodeDir(n))); err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(l.nodeDir(n), "run")); err != nil {
			return fmt.Errorf("empty /run of %s: %w", n.Name, err)
		}
		if err := replaceFile(filepath.Join(l.nodeDir(n), "boot_id"), []byte(newUUID()+"\n")); err != nil {
			return err
		}
		if err := l.setPower(n, On); err != nil {
			return err
		}
	}
	if err := l.startDog(n); err != nil {
		return err
	}
	if l.host(n) == 0 {
		// Without its mount and cables nothing of a node works any more.
		if err := l.startHost(n); err != nil {
			return err
		}
	}
	if l.Monitor(n) != 0 {
		return nil
	}
	return l.startMonitor(n)
}

func (l *Lab) startMonitor(n Node) error {
	cmd := exec.Command(filepath.Join(l.Bin, commMonitor), "--config", l.Conf(n))
	cmd.Env = l.env(n)
	if err := l.inside(n, func() error { return launch(cmd, l.MonitorLog(n)) }); err != nil {
		return err
	}
	return replaceFile(filepath.Join(l.nodeDir(n), commMonitor+".pid"), []byte(strconv.Itoa(cmd.Process.Pid)))
}

// inside runs f, which starts a process, in a node's namespaces.
func (l *Lab) inside(n Node, f func() error) error {
	if !l.Namespaces {
		return f()
	}
	pid, spaces := l.host(n), []string{"mnt"}
	if l.Driver == "lxc" {
		// Another machine to LXC: its sockets, processes and the names of both.
		pid, spaces = l.cage(n), []string{"net", "uts", "pid", "mnt"}
	}
	if pid == 0 {
		return fmt.Errorf("%s is off; switch it on with 'shaman-lab start %s'", n.Name, n.Name)
	}
	if err := inNamespaces(pid, spaces, f); err != nil {
		return fmt.Errorf("on %s: %w", n.Name, err)
	}
	return nil
}

// inNamespaces runs f in namespaces of a process, by their names in /proc.
func inNamespaces(pid int, spaces []string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread stays in the other namespaces, so it is not given back: it ends
		// with this goroutine.
		runtime.LockOSThread()
		done <- func() error {
			var open []*os.File
			defer func() {
				for _, ns := range open {
					_ = ns.Close()
				}
			}()
			for _, name := range spaces { // all before the first: /proc may be another one then
				ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
				if err != nil {
					return err
				}
				open = append(open, ns)
			}
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			for i, ns := range open {
				if err := unix.Setns(int(ns.Fd()), 0); err != nil {
					return fmt.Errorf("enter the %s namespace of process %d: %w", spaces[i], pid, err)
				}
			}
			return f()
		}()
	}()
	return <-done
}

// Kill cuts a node's power: everything of it, at once. It returns when nothing
// of it is left.
func (l *Lab) Kill(n Node) error {
	unlock, err := l.switchLock(n)
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.setPower(n, Off); err != nil {
		return err
	}
	// First its mount, so that whatever hangs on it can end.
	if pid := l.host(n); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // what is left is told by killAll
	}
	return errors.Join(l.killCage(n), killAll(envNode, l.nodeDir(n)))
}

// CrashMonitor kills a node's daemon alone, as a bug of it would.
func (l *Lab) CrashMonitor(n Node) error { return l.signalMonitor(n, syscall.SIGKILL) }

// StopMonitor ends a node's daemon in good order, as systemctl stop does.
func (l *Lab) StopMonitor(n Node) error { return l.signalMonitor(n, syscall.SIGTERM) }

// Shutdown ends a node in good order: its daemon is told that the host goes down,
// and the power goes off when it has ended.
func (l *Lab) Shutdown(n Node) error {
	if err := l.signalMonitor(n, syscall.SIGPWR); err != nil {
		return err
	}
	return l.Kill(n)
}

func (l *Lab) signalMonitor(n Node, sig syscall.Signal) error {
	pid := l.Monitor(n)
	if pid == 0 {
		return fmt.Errorf("the daemon of %s does not run", n.Name)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return fmt.Errorf("end the daemon of %s: %w", n.Name, err)
	}
	return waitFor("the end of the daemon of "+n.Name, killTime, func() (bool, error) { return l.Monitor(n) == 0, nil })
}

// Pause stops a node's daemon, or with all everything of the node, as a machine
// that stalls. Resume goes on; it succeeds whatever became of the node meanwhile.
func (l *Lab) Pause(n Node, all bool) error {
	if !all {
		pid := l.Monitor(n)
		if pid == 0 {
			return fmt.Errorf("the daemon of %s does not run", n.Name)
		}
		return syscall.Kill(pid, syscall.SIGSTOP)
	}
	return l.signalAll(n, syscall.SIGSTOP)
}

// Resume lets a node go on that was paused.
func (l *Lab) Resume(n Node) error { return l.signalAll(n, syscall.SIGCONT) }

func (l *Lab) signalAll(n Node, sig syscall.Signal) error {
	ps, err := l.procs(n)
	if err != nil {
		return err
	}
	for _, p := range ps {
		if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal process %d of %s: %w", p.pid, n.Name, err)
		}
	}
	return nil
}

// Paused tells whether a node's daemon or host is stopped.
func (l *Lab) Paused(n Node) bool {
	for _, pid := range []int{l.Monitor(n), l.host(n)} {
		if pid != 0 && state(pid) == 'T' {
			return true
		}
	}
	return false
}

// Exec runs a command on a node and returns its exit code.
func (l *Lab) Exec(n Node, argv []string) (int, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(l.env(n), "PATH="+l.Bin+":"+os.Getenv("PATH"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := l.inside(n, cmd.Run)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

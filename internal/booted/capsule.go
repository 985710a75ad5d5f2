package booted

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Capsule is a program with everything that it begets, in a process namespace of
// its own: it can be ended as a whole by one signal to one process, and it ends
// with this process, however that ends.
type Capsule struct {
	first *os.Process
	done  chan struct{}
}

// inCapsule is the first process of a capsule: it takes the program into its
// control groups, with a /proc that fits, and adopts the orphans that it leaves.
const inCapsule = `mount -t proc proc /proc || exit
for g in $CAPSULE_CGROUPS; do echo 0 >"$g/cgroup.procs" || exit; done
unset CAPSULE_CGROUPS
"$@"
exit $?`

// Launch starts a program in a capsule, with its output in a file, and in these
// control groups.
func Launch(logFile string, groups []string, argv ...string) (*Capsule, error) {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	defer out.Close()
	cmd := exec.Command("/bin/sh", append([]string{"-c", inCapsule, "sh"}, argv...)...)
	cmd.Env = append(os.Environ(), "CAPSULE_CGROUPS="+strings.Join(groups, " "))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	c := &Capsule{done: make(chan struct{})}
	begun := make(chan error)
	go func() {
		// The signal comes when the thread dies that the program was started by:
		// this one has to last as long.
		runtime.LockOSThread()
		err := cmd.Start()
		c.first = cmd.Process
		begun <- err
		if err == nil {
			_ = cmd.Wait() // it returns when nothing of the namespace is left; how it ended is in the log
			close(c.done)
		}
	}()
	if err := <-begun; err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return c, nil
}

// Done is closed when nothing of the capsule is left.
func (c *Capsule) Done() <-chan struct{} { return c.done }

// Kill ends all of it, and returns when nothing is left.
func (c *Capsule) Kill() error {
	if err := c.first.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", c.first.Pid, err)
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(Patience):
		return fmt.Errorf("process %d was killed and does not end", c.first.Pid)
	}
}

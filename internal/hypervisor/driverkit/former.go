package driverkit

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// formerVar marks what a driver has started: <directory>#<session>#<which daemon>.
const formerVar = "SHAMAN_TOOL"

// Former ends what the daemon before this one, which was killed in the middle of a
// verb, has left at work: nobody waits for that any more, and it could start
// something after a barrier. Programs are known by a variable in their environment,
// so that nothing has to be written down before each of them.
//
// Only a program that is the first of its process group, in the session of the
// daemon that started it, is one that a verb waits for. What it leaves behind in the
// background, or makes a session of its own, is the guest or its keeper.
type Former struct {
	dir, mark string
	clear     atomic.Bool
}

// NewFormer ends what was left by another daemon of the same directory, which is this
// node's and this driver's alone.
func NewFormer(dir string) *Former {
	session, _ := unix.Getsid(0) // never fails for oneself
	f := &Former{dir: filepath.Clean(dir)}
	f.mark = fmt.Sprintf("%s#%d#%s", f.dir, session, rand.Text())
	ctx, cancel := context.WithTimeout(context.Background(), formerLook)
	defer cancel()
	f.gone(ctx)
	return f
}

// formerLook bounds the first look: to read of a process that hangs in the kernel
// can hang as well.
const formerLook = time.Second

// gone kills what is left, and tells whether nothing was.
func (f *Former) gone(ctx context.Context) bool {
	_ = Guarded(ctx, func() error { // it only fails by the end of ctx: then it is not known
		if !f.left() {
			f.clear.Store(true)
		}
		return nil
	})
	return f.clear.Load()
}

// Mark is for the environment of a program that changes something.
func (f *Former) Mark() string { return formerVar + "=" + f.mark }

// Gone returns when nothing is left of the daemon before.
func (f *Former) Gone(ctx context.Context) error {
	for !f.clear.Load() {
		if f.gone(ctx) {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a program that the daemon before this one has started cannot be ended: %w", Ended(ctx))
		case <-time.After(groupPoll):
		}
	}
	return nil
}

// left tells whether something is there, and kills it.
func (f *Former) left() (found bool) {
	for _, pid := range pids() {
		if group, err := unix.Getpgid(pid); err != nil || group != pid || !f.isFormer(pid) || !alive(pid) {
			continue
		}
		found = true
		_ = syscall.Kill(-pid, syscall.SIGKILL) // or it is gone, which the next look tells
	}
	return found
}

func (f *Former) isFormer(pid int) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	for _, v := range bytes.Split(env, []byte{0}) {
		mark, ok := strings.CutPrefix(string(v), formerVar+"=")
		if !ok || mark == f.mark {
			continue
		}
		rest, ok := strings.CutPrefix(mark, f.dir+"#")
		session, _, _ := strings.Cut(rest, "#")
		is, err := unix.Getsid(pid)
		return ok && err == nil && session == strconv.Itoa(is)
	}
	return false
}

func pids() (out []int) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // what was read of it
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// alive tells whether a process is there and not a zombie.
func alive(pid int) bool {
	state, _ := stateAndGroup(pid)
	return state != 0 && state != 'Z' && state != 'X'
}

// stateAndGroup reads /proc/<pid>/stat; 0 = there is no such process.
func stateAndGroup(pid int) (state byte, group int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	f := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(f) < 3 {
		return 0, 0
	}
	group, _ = strconv.Atoi(string(f[2]))
	return f[0][0], group
}

// groupPoll is how often it is looked whether a process group that was killed is gone.
const groupPoll = 20 * time.Millisecond

// awaitGroup returns when nothing of a process group that was killed is alive: a
// process that hangs in the kernel goes on with what it is at before it dies. The
// kernel does not give its number away while one is left.
func awaitGroup(group int) {
	for pause := time.Millisecond; ; pause = min(2*pause, 10*groupPoll) {
		left := false
		for _, pid := range pids() {
			if state, g := stateAndGroup(pid); g == group && state != 'Z' && state != 'X' {
				left = true
				break
			}
		}
		if !left {
			return
		}
		time.Sleep(pause)
	}
}

package driverkit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Former ends what the daemon before this one, which was killed in the middle of a
// verb, has left at work: nobody waits for that any more, and it could start
// something after a barrier. Each tool that runs is written down in a directory.
//
// A tool that has ended by itself is over, whatever it has left in the background:
// that is the guest.
type Former struct {
	dir string

	mu  sync.Mutex
	old []*formerTool
}

// formerTool is a tool of the daemon before.
type formerTool struct {
	file, start string // start tells it from a later process of the same number
	pid         int
	killed      bool
}

// NewFormer ends what was left by another daemon. The directory is this node's and
// this driver's alone, and empty after a boot.
func NewFormer(dir string) (*Former, error) {
	f := &Former{dir: filepath.Join(dir, "tools")}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return nil, err
	}
	notes, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, err
	}
	for _, n := range notes {
		t := &formerTool{file: filepath.Join(f.dir, n.Name())}
		data, err := os.ReadFile(t.file)
		if err != nil {
			return nil, err
		}
		if _, err := fmt.Sscan(string(data), &t.pid, &t.start); err != nil {
			_ = os.Remove(t.file) // half a note, or of one that had ended by then
			continue
		}
		f.old = append(f.old, t)
	}
	f.left()
	return f, nil
}

// note writes down that a tool runs, until done is called. What cannot be written
// down is carried out all the same, since it may be a stop; a daemon that is killed
// within the moment between a tool's begin and its note leaves it alone, too.
func (f *Former) note(pid int) (done func()) {
	file := filepath.Join(f.dir, strconv.Itoa(pid))
	_ = os.WriteFile(file, fmt.Appendf(nil, "%d %s\n", pid, readProcess(pid).start), 0o644)
	return func() { _ = os.Remove(file) }
}

// Gone returns when nothing is left of the daemon before.
func (f *Former) Gone(ctx context.Context) error {
	for f.left() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("a program that the daemon before this one has started cannot be ended: %w", Ended(ctx))
		case <-time.After(groupPoll):
		}
	}
	return nil
}

// left tells whether something is there, and kills it.
func (f *Former) left() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	var still []*formerTool
	for _, t := range f.old {
		if p := readProcess(t.pid); !t.killed && p.alive() && p.start == t.start {
			t.killed = syscall.Kill(-t.pid, syscall.SIGKILL) == nil
		}
		if t.killed && groupAlive(t.pid) {
			still = append(still, t)
			continue
		}
		_ = os.Remove(t.file) // or the next daemon finds that it is over
	}
	f.old = still
	return len(still) > 0
}

// process is what /proc/<pid>/stat says; the zero value is of none that is there.
type process struct {
	state byte
	group int
	start string // in clock ticks since boot
}

func (p process) alive() bool { return p.state != 0 && p.state != 'Z' && p.state != 'X' }

func readProcess(pid int) process {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:])) // the name before may hold anything
	if len(f) < 20 {
		return process{}
	}
	group, _ := strconv.Atoi(f[2])
	return process{state: f[0][0], group: group, start: f[19]}
}

// groupAlive tells whether something of a process group is alive. The kernel does
// not give its number away while a member is left.
func groupAlive(group int) bool {
	dir, err := os.Open("/proc")
	if err != nil {
		return true
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // what was read of it
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if p := readProcess(pid); p.group == group && p.alive() {
			return true
		}
	}
	return false
}

// groupPoll is the longest pause between two looks whether a process group that was
// killed is gone.
const groupPoll = 200 * time.Millisecond

// awaitGroup returns when nothing of a process group that was killed is alive: a
// process that hangs in the kernel goes on with what it is at before it dies.
func awaitGroup(group int) {
	for pause := time.Millisecond; groupAlive(group); pause = min(2*pause, groupPoll) {
		time.Sleep(pause)
	}
}

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The environment by which the processes of a lab are found again.
const (
	envNode   = "SHAMAN_LAB_NODE"   // directory of the node
	envName   = "SHAMAN_LAB_NAME"   // its name, for the VEs' logs
	envMember = "SHAMAN_LAB_MEMBER" // directory of an etcd member
)

// The programs' names, as the kernel cuts them (15 bytes).
const (
	commMonitor = "shaman-monitor"
	commLab     = "shaman-lab"
)

// proc is a living process of the lab.
type proc struct {
	pid  int
	comm string
}

// find lists living processes with an entry in their environment. A zombie has
// none any more.
func find(key, value string) ([]proc, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	want := []byte(key + "=" + value)
	var out []proc
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", d.Name(), "environ"))
		if err != nil || !slices.ContainsFunc(bytes.Split(env, []byte{0}), func(e []byte) bool { return bytes.Equal(e, want) }) {
			continue // gone meanwhile, or somebody else's
		}
		comm, err := os.ReadFile(filepath.Join("/proc", d.Name(), "comm"))
		if err != nil {
			continue
		}
		out = append(out, proc{pid: pid, comm: strings.TrimSpace(string(comm))})
	}
	return out, nil
}

func (l *Lab) procs(n Node) ([]proc, error) { return find(envNode, l.nodeDir(n)) }

// host is the process that holds a node's mount and cables; 0 = none.
func (l *Lab) host(n Node) int { return l.pidOf(n, commLab) }

// Monitor is the pid of a node's daemon; 0 = it does not run.
func (l *Lab) Monitor(n Node) int { return l.pidOf(n, commMonitor) }

func (l *Lab) pidOf(n Node, comm string) int {
	data, err := os.ReadFile(filepath.Join(l.nodeDir(n), comm+".pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	// The pid may be somebody else's by now.
	ps, err := l.procs(n)
	if err != nil || !slices.Contains(ps, proc{pid: pid, comm: comm}) {
		return 0
	}
	return pid
}

// state is the kernel's letter for what a process is at: T stopped, Z ended and
// not waited for; 0 = there is no such process.
func state(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The letter follows the program's name, which is in parentheses.
	if i := bytes.LastIndexByte(stat, ')'); i >= 0 && i+2 < len(stat) {
		return stat[i+2]
	}
	return 0
}

// killTime bounds how long SIGKILL may take.
const killTime = 15 * time.Second

// killAll ends all processes with an entry in their environment, those that are
// forked meanwhile too, and returns when none is left.
func killAll(key, value string) error {
	deadline := time.Now().Add(killTime)
	for clean := 0; clean < 2; {
		ps, err := find(key, value)
		if err != nil {
			return err
		}
		if len(ps) == 0 {
			clean++
			continue
		}
		clean = 0
		for _, p := range ps {
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill process %d: %w", p.pid, err)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes do not end (the first is %d, %s)", len(ps), ps[0].pid, ps[0].comm)
		}
		time.Sleep(2 * time.Millisecond) // the kernel needs a moment to end them
	}
	return nil
}

// launch starts a program that outlives this one, with its output in a file.
func launch(cmd *exec.Cmd, logFile string) error {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	go func() { _ = cmd.Wait() }() // so that it is no zombie while this program lives
	return nil
}

// waitFor polls until f says yes.
func waitFor(what string, timeout time.Duration, f func() (bool, error)) error {
	deadline := time.Now().Add(timeout)
	var last error
	for {
		ok, err := f()
		if err == nil && ok {
			return nil
		}
		last = err
		if time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("waited %s for %s", timeout, what), last)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

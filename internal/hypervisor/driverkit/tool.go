package driverkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// outputKept bounds what is kept of a program's output: one that runs wild must
// not take the daemon's memory.
const outputKept = 16 << 20

// waitDelay is how long output is read on after a program's end, if something
// that it started still holds it.
const waitDelay = 500 * time.Millisecond

// Tool is one run of a program.
type Tool struct {
	Path  string
	Args  []string
	Env   []string // added to GuestEnviron
	Dir   string   // "/" by default: a directory on a hung mount would hang the daemon
	Stdin string
	// Former, if not nil, knows that it runs, in case this daemon is killed.
	Former *Former
}

// Result is how a program ended.
type Result struct {
	Stdout, Stderr string
	Code           int // exit code; -1 if it was ended by a signal
}

// Text is what the program had to say, in one line.
func (r Result) Text() string {
	s := strings.TrimSpace(r.Stderr)
	if s == "" {
		s = strings.TrimSpace(r.Stdout)
	}
	return strings.Join(strings.Fields(strings.ReplaceAll(s, "\n", "; ")), " ")
}

// limited keeps the first outputKept bytes.
type limited struct{ kept bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := outputKept - l.kept.Len(); room > 0 {
		l.kept.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// Run runs the program and waits for its end. When ctx ends the program and all
// that it started in its process group is killed, and the error wraps
// cluster.ErrCannotAsk; Run returns when it is gone, so a program that cannot be
// killed (it hangs in the kernel) is waited for: call it in a turn. An exit code
// is no error.
func (t Tool) Run(ctx context.Context) (Result, error) {
	if ctx.Err() != nil {
		return Result{}, Ended(ctx)
	}
	cmd := exec.CommandContext(ctx, t.Path, t.Args...)
	cmd.Dir = t.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.Env = append(GuestEnviron(), append([]string{"LC_ALL=C"}, t.Env...)...)
	var out, errs limited
	cmd.Stdout, cmd.Stderr = &out, &errs
	if t.Stdin != "" {
		cmd.Stdin = strings.NewReader(t.Stdin)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	killed := false
	cmd.Cancel = func() error {
		killed = true
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	cmd.WaitDelay = waitDelay
	err := cmd.Start()
	if err == nil {
		if t.Former != nil {
			done := t.Former.note(cmd.Process.Pid)
			defer done()
		}
		err = cmd.Wait()
	}
	if killed {
		awaitGroup(cmd.Process.Pid)
	}
	r := Result{Stdout: out.kept.String(), Stderr: errs.kept.String(), Code: -1}
	if cmd.ProcessState != nil {
		r.Code = cmd.ProcessState.ExitCode()
	}
	var exit *exec.ExitError
	switch {
	case killed:
		return r, fmt.Errorf("run %s: %w", t.Path, Ended(ctx))
	case err == nil, errors.As(err, &exit) && r.Code >= 0:
		return r, nil
	case errors.Is(err, exec.ErrWaitDelay): // something that it started holds its output; it has ended itself
		return r, nil
	case errors.As(err, &exit):
		return r, fmt.Errorf("run %s: %w: %w", t.Path, cluster.ErrCannotAsk, err)
	}
	return r, fmt.Errorf("run %s: %w: %w", t.Path, cluster.ErrCannotAsk, Classify(err))
}

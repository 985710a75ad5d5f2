package fencing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// Deadline bounds one whole proof: agents do not bound themselves (a dead BMC
// costs fence_ipmilan 20 s), and power switches take some seconds. It is what an
// Agent without a Timeout takes.
const Deadline = 40 * time.Second

const (
	outputMax   = 64 << 10
	statusPause = 500 * time.Millisecond
)

// Power is what an agent's status says.
type Power string

// The answers of a status.
const (
	PowerOn      Power = "on"
	PowerOff     Power = "off"
	PowerUnknown Power = "unknown"
)

// Exit codes of "status" by the fence-agents API: 0 on, 2 off, anything else an error.
const (
	exitOn  = 0
	exitOff = 2
)

// Agent proves nodes harmless by switching them off. It is safe for concurrent use.
type Agent struct {
	Dir     string        // FENCE_DIR
	Timeout time.Duration // of one whole proof; 0 = Deadline
	// NotApplicable is what Prove wraps for a node without configuration.
	NotApplicable error
	// Silent and Beats tell whether a node that is said to be off still beats; neither
	// holds while its heartbeat cannot be judged. nil = nobody can tell. They must not
	// block.
	Silent, Beats func(cluster.NodeID) bool
	Timing        func() cluster.Timing
}

// Name is the word in FENCE_METHODS.
func (*Agent) Name() string { return "agent" }

// Gentle says that this method does not wait for the node's own doing.
func (*Agent) Gentle() bool { return false }

// Prove switches the node off and returns once a status says that it is off.
// check is asked right before each run of the agent.
func (a *Agent) Prove(ctx context.Context, t cluster.FenceTarget, check func() error) (string, error) {
	node, name := t.Node, t.Name
	c, err := Load(a.Dir, node, name)
	if errors.Is(err, ErrNotConfigured) {
		return "", fmt.Errorf("%w: %w", a.NotApplicable, err)
	}
	if err != nil {
		return "", err
	}
	limit := a.Timeout
	if limit == 0 {
		limit = Deadline
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the agent gave no proof within %s", limit))
	defer cancel()
	begin := time.Now()
	if err := check(); err != nil {
		return "", err
	}
	offCode, offErr := c.run(ctx, "off", name)
	if offCode == exitOff {
		// The same code means "off" as the answer to a status, and is what shells and
		// interpreters end with if they cannot read the agent at all. One that says so
		// to "off" is not believed when it says so to "status".
		return "", fmt.Errorf("%s: off ended with %d, which is no answer to it; a status by this agent proves nothing: %w", c.Agent, exitOff, offErr)
	}
	var last error
	for {
		if err := check(); err != nil {
			return "", err
		}
		power, err := c.Status(ctx, name)
		if power == PowerOff {
			if err := a.contradicted(ctx, node); err != nil {
				return "", fmt.Errorf("%s: off, then status says off, and %w", c.Agent, err)
			}
			return fmt.Sprintf("%s: off, then status says off, in %s", c.Agent, time.Since(begin).Round(time.Millisecond)), nil
		}
		last = errors.Join(offErr, err)
		if offErr != nil || ctx.Err() != nil {
			return "", fmt.Errorf("%s: status says %s: %w", c.Agent, power, errors.Join(last, context.Cause(ctx)))
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s: off was accepted, but status says %s: %w", c.Agent, power, errors.Join(last, context.Cause(ctx)))
		case <-time.After(statusPause):
		}
	}
}

// contradicted returns an error if the node goes on beating after its agent has
// said that it is off: the agent switches another machine, or lies. A node that is
// silent, as one that crashed has been for long, contradicts nothing, and neither
// does one whose heartbeat cannot be read.
func (a *Agent) contradicted(ctx context.Context, n cluster.NodeID) error {
	if a.Silent == nil {
		return nil
	}
	off, t := boottime.Now(), a.Timing()
	for {
		switch {
		case a.Silent(n):
			return nil
		case boottime.Since(off) <= contradictions*t.Silence():
		case a.Beats(n):
			return errors.New("its heartbeat goes on: the agent switches another machine. Correct its file; 'shaman fence test' shows what it says")
		default:
			return nil
		}
		if err := boottime.WaitUntil(ctx, boottime.Now().Add(t.Heartbeat/2)); err != nil {
			return err
		}
	}
}

// contradictions is for how many times the time of a silence a heartbeat may go on.
const contradictions = 3

// Status asks whether the node is on. It changes nothing.
func (c Config) Status(ctx context.Context, name string) (Power, error) {
	code, err := c.run(ctx, "status", name)
	switch {
	case err == nil && code == exitOn:
		return PowerOn, nil
	case code == exitOff:
		return PowerOff, nil
	}
	return PowerUnknown, err
}

// run runs the agent once. It is killed, with all that it started, when ctx
// ends, and by the kernel if this daemon dies.
func (c Config) run(ctx context.Context, action, name string) (code int, err error) {
	cmd := exec.Command(c.Agent)
	var in strings.Builder
	for _, o := range c.Options {
		fmt.Fprintf(&in, "%s=%s\n", o.Key, o.Value)
	}
	fmt.Fprintf(&in, "nodename=%s\naction=%s\n", name, action)
	cmd.Stdin = strings.NewReader(in.String())
	var out bounded
	cmd.Stdout, cmd.Stderr = io.Discard, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	done := make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the *thread* that started the agent ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			done <- err
			return
		}
		stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		defer stop()
		done <- cmd.Wait()
	}()
	err = <-done
	if ctx.Err() != nil {
		return -1, fmt.Errorf("%s %s was ended: %w", c.Agent, action, context.Cause(ctx))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), fmt.Errorf("%s %s ended with %d: %s", c.Agent, action, exit.ExitCode(), c.mask(out.String()))
	}
	if err != nil {
		return -1, fmt.Errorf("run %s %s: %w", c.Agent, action, err)
	}
	return 0, nil
}

// mask takes the configured values out of what an agent printed: any of them
// may be a secret.
func (c Config) mask(s string) string {
	options := slices.Clone(c.Options)
	// The longest first: a value within another must not leave the rest of it.
	slices.SortStableFunc(options, func(x, y Option) int { return len(y.Value) - len(x.Value) })
	for _, o := range options {
		secret := strings.Contains(o.Key, "pass") || strings.Contains(o.Key, "secret") || strings.Contains(o.Key, "token") || strings.Contains(o.Key, "key")
		if len(o.Value) > 3 || secret && o.Value != "" {
			s = strings.ReplaceAll(s, o.Value, "***")
		}
	}
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 400 {
		s = s[:400] + "…"
	}
	if s == "" {
		return "it printed nothing"
	}
	return s
}

// bounded keeps the first part of what is written to it.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := outputMax - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

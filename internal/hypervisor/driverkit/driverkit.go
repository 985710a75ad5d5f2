// Package driverkit is what drivers share: turns on a VE that outlive a deadline,
// programs that are run and ended, classes of errors, hints, and the host's capacity.
package driverkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
)

// Ended is the error of a call whose context has ended: what it asked for may
// happen, or not.
func Ended(ctx context.Context) error {
	return fmt.Errorf("%w: %w", cluster.ErrCannotAsk, context.Cause(ctx))
}

// Classify marks errors of storage or node, which say nothing of the VE.
func Classify(err error) error {
	for _, e := range []syscall.Errno{
		syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.ESTALE, syscall.ENOTCONN, syscall.ETIMEDOUT,
		syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE,
	} {
		if errors.Is(err, e) && !errors.Is(err, cluster.ErrHold) {
			return fmt.Errorf("%w: %w", cluster.ErrHold, err)
		}
	}
	return err
}

// Guarded runs f, which may hang on the shared file system, and does not wait
// for it past the end of ctx. f is always run. Use a turn where what f does must
// not be overtaken.
func Guarded(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return Classify(err)
	case <-ctx.Done():
		return Ended(ctx)
	}
}

// Turns lets one verb at a time work on a VE. The zero value is ready.
type Turns struct {
	mu sync.Mutex
	m  map[string]*turn
}

type turn struct {
	sem   chan struct{}
	users int // that hold it or wait
	rush  int
}

func (t *Turns) join(key string) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m == nil {
		t.m = map[string]*turn{}
	}
	x := t.m[key]
	if x == nil {
		x = &turn{sem: make(chan struct{}, 1)}
		t.m[key] = x
	}
	x.users++
	return x
}

func (t *Turns) leave(key string, x *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if x.users--; x.users == 0 {
		delete(t.m, key)
	}
}

// Do runs f when nobody else works on key. It returns when f does, or when ctx
// ends: then with an error that wraps cluster.ErrCannotAsk, and the turn is held
// until f has returned all the same, since what it began can still have an
// effect. f is not begun after ctx has ended.
func (t *Turns) Do(ctx context.Context, key string, f func() error) error {
	x := t.join(key)
	if ctx.Err() != nil {
		t.leave(key, x)
		return Ended(ctx)
	}
	select {
	case x.sem <- struct{}{}:
	case <-ctx.Done():
		t.leave(key, x)
		return Ended(ctx)
	}
	if ctx.Err() != nil {
		<-x.sem
		t.leave(key, x)
		return Ended(ctx)
	}
	done := make(chan error, 1)
	go func() {
		err := f()
		<-x.sem
		t.leave(key, x)
		done <- err
	}()
	select {
	case err := <-done:
		return Classify(err)
	case <-ctx.Done():
		return Ended(ctx)
	}
}

// Rush asks who works on key to take the short way, until the returned function
// is called: a stop by force does not wait for a graceful one.
func (t *Turns) Rush(key string) (end func()) {
	x := t.join(key)
	t.mu.Lock()
	x.rush++
	t.mu.Unlock()
	return func() {
		t.mu.Lock()
		x.rush--
		t.mu.Unlock()
		t.leave(key, x)
	}
}

// Rushed tells whether somebody waits for key who wants the short way.
func (t *Turns) Rushed(key string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.m[key]
	return x != nil && x.rush > 0
}

// Wait returns when all verbs that had begun, or waited, when it was called are over.
func (t *Turns) Wait(ctx context.Context) error {
	t.mu.Lock()
	keys := make([]string, 0, len(t.m))
	for k := range t.m {
		keys = append(keys, k)
	}
	t.mu.Unlock()
	slices.Sort(keys)
	for _, k := range keys {
		if err := t.Do(ctx, k, func() error { return nil }); err != nil {
			return fmt.Errorf("wait for the verbs on %s: %w", k, err)
		}
	}
	return nil
}

// Hints are the receivers of a driver's lifecycle events. The zero value is ready.
type Hints struct {
	mu sync.Mutex
	m  map[*func()]func()
}

// Add calls hint at every event until the returned function is called.
func (h *Hints) Add(hint func()) (remove func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.m == nil {
		h.m = map[*func()]func(){}
	}
	h.m[&hint] = hint
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.m, &hint)
	}
}

// Hint tells all receivers that something happened.
func (h *Hints) Hint() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.m {
		f()
	}
}

// HostCapacity is this host's memory and CPUs; memory, if it is not 0, takes the
// place of the host's.
func HostCapacity(memory cluster.Bytes) (cluster.Capacity, error) {
	c := cluster.Capacity{Memory: memory, CPUs: runtime.NumCPU()}
	if c.Memory == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return c, fmt.Errorf("read the host's memory: %w", err)
		}
		c.Memory = cluster.Bytes(info.Totalram) * cluster.Bytes(info.Unit)
	}
	return c, nil
}

// GuestEnviron is the daemon's environment without what systemd gave to the
// daemon alone: a guest, or a tool, must not speak to systemd in its name.
func GuestEnviron() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}, name)
	})
}

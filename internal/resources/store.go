package resources

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
)

// Store is the directory .shaman of the shared file system. All methods may be
// called concurrently; each ends after its context or the store's own deadline
// at the latest, even if the file system hangs.
type Store struct {
	root     string // <mount>/.shaman
	deadline time.Duration
	at       func(label string)
	rename   func(from, to string) error // rename(2), of which network file systems lie
	stuck    atomic.Int32                // workers whose callers have given up
	names    reserved                    // names that a change is under way for

	cache cache
}

const (
	// ioDeadline bounds one piece of work on the mount: far beyond what a healthy
	// network file system needs for a batch, and short enough to say "hung" soon.
	ioDeadline = 10 * time.Second
	// maxStuck bounds the workers that hang in the kernel at the same time; past
	// it a call fails at once, as the next one would hang just like them. Workers
	// that somebody waits for do not count: many at once are no sign of trouble.
	maxStuck = 64
)

// ErrHung is returned if the shared file system did not answer in time: what
// became of the operation is not known.
var ErrHung = fmt.Errorf("the shared file system does not answer: %w", cluster.ErrHold)

// NewStore returns the store below a mount point. at, if not nil, is called
// with the label of each step that changes something, before ("seal:before")
// and after it ("seal:after").
func NewStore(mount string, at func(label string)) *Store {
	if at == nil {
		at = func(string) {}
	}
	return &Store{root: filepath.Join(mount, ".shaman"), deadline: ioDeadline, at: at, rename: unix.Rename, names: newReserved(), cache: newCache()}
}

// Root is the directory .shaman.
func (s *Store) Root() string { return s.root }

// do runs one piece of I/O in a worker and waits for it within the deadline.
func (s *Store) do(ctx context.Context, what string, f func() error) error {
	_, err := fetch(ctx, s, what, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// fetch is do for work with a result. The worker shares no variable with the
// caller, who may be long gone when a hung call ends.
func fetch[T any](ctx context.Context, s *Store, what string, f func() (T, error)) (T, error) {
	return fetchWithin(ctx, s, s.deadline, what, f)
}

func fetchWithin[T any](ctx context.Context, s *Store, deadline time.Duration, what string, f func() (T, error)) (T, error) {
	if err := s.refuse(ctx, what); err != nil {
		var none T
		return none, err
	}
	return run(ctx, s, deadline, what, f)
}

// refuse tells why a piece of work must not even begin, or nil. A caller whose
// context has ended, a replaced master perhaps, changes nothing any more.
func (s *Store) refuse(ctx context.Context, what string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
	if s.stuck.Load() >= maxStuck {
		return fmt.Errorf("%s: %w", what, ErrHung)
	}
	return nil
}

// change is fetch for work that looks whether names are free or taken and then
// acts on it: such pieces of work on one name go one after the other. A worker
// that hangs keeps its names until it has ended.
func change[T any](ctx context.Context, s *Store, what string, names []string, f func() (T, error)) (T, error) {
	var none T
	begin := time.Now()
	release, err := s.reserve(ctx, what, names)
	if err != nil {
		return none, err
	}
	return handOver(ctx, s, s.deadline-time.Since(begin), what, release, f)
}

// handOver runs a worker that releases its names when it ends, though the
// caller may be gone by then.
func handOver[T any](ctx context.Context, s *Store, deadline time.Duration, what string, release func(), f func() (T, error)) (T, error) {
	if err := s.refuse(ctx, what); err != nil {
		release()
		var none T
		return none, err
	}
	return run(ctx, s, deadline, what, func() (T, error) {
		defer release()
		return f()
	})
}

// The states of a worker, of which the caller and the worker each set one.
const (
	workerAwaited int32 = iota
	workerAbandoned
	workerEnded
)

// run starts the worker, always, and waits for it.
func run[T any](ctx context.Context, s *Store, deadline time.Duration, what string, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	done := make(chan result, 1)
	state := &atomic.Int32{}
	go func() {
		v, err := f()
		done <- result{v, err}
		if state.Swap(workerEnded) == workerAbandoned {
			s.stuck.Add(-1)
		}
	}()
	abandon := func() {
		s.stuck.Add(1)
		if !state.CompareAndSwap(workerAwaited, workerAbandoned) {
			s.stuck.Add(-1) // it ended at this very moment
		}
	}
	timer := time.NewTimer(deadline)
	defer timer.Stop()
	select {
	case r := <-done:
		if r.err != nil {
			return none, fmt.Errorf("%s: %w", what, classify(r.err))
		}
		return r.value, nil
	case <-ctx.Done():
		abandon()
		return none, fmt.Errorf("%s: %w", what, context.Cause(ctx))
	case <-timer.C:
		abandon()
		return none, fmt.Errorf("%s: %w", what, ErrHung)
	}
}

// classify marks errors that say something of the storage, not of the resource.
func classify(err error) error {
	for _, e := range []syscall.Errno{syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.ESTALE, syscall.ENOTCONN, syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.ECONNABORTED} {
		if errors.Is(err, e) && !errors.Is(err, cluster.ErrHold) {
			return fmt.Errorf("%w: %w", cluster.ErrHold, err)
		}
	}
	return err
}

func (s *Store) nodeDir(n cluster.NodeID) string { return filepath.Join(s.root, "md."+string(n)) }

// RepositoryDir is where a node's resources lie.
func (s *Store) RepositoryDir(n cluster.NodeID) string {
	return filepath.Join(s.nodeDir(n), "resources")
}

func (s *Store) poolDir(p cluster.PoolID) string { return filepath.Join(s.root, "pool", p.String()) }
func (s *Store) brokenDir() string               { return filepath.Join(s.root, "broken") }

const (
	incFile  = ".inc"
	doneFile = ".done"
)

func incBytes(i cluster.Incarnation) []byte {
	return []byte(strconv.FormatInt(int64(i), 10) + "\n")
}

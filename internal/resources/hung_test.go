package resources

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
)

// hang makes every step that changes something wait for the returned release.
func hang(s *Store) (release func()) {
	c := make(chan struct{})
	s.at = func(string) { <-c }
	return sync.OnceFunc(func() { close(c) })
}

func TestACallOnAHungMountReturnsByItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestStore(t, n1, n2)
		write(t, s, own(n1, "vm-a"), "/a\n")
		release := hang(s)
		begin := time.Now()
		err := s.Seal(t.Context(), pool(n1, 1))
		if took := time.Since(begin); took != ioDeadline || !errors.Is(err, ErrHung) || !errors.Is(err, cluster.ErrHold) {
			t.Errorf("after %s: %v, want ErrHung, which is ErrHold, after %s", took, err, ioDeadline)
		}
		if n := s.stuck.Load(); n != 1 {
			t.Errorf("%d workers are stuck, want 1", n)
		}
		release()
		synctest.Wait()
		if n := s.stuck.Load(); n != 0 {
			t.Errorf("%d workers are stuck after the mount came back", n)
		}
		// Unknown was the right word: it was done after all.
		wantHoldings(t, s, map[string]string{inPool(pool(n1, 1), "vm-a"): "/a\n"})
	})
}

func TestACallOnAHungMountReturnsWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestStore(t, n1)
		release := hang(s)
		defer release()
		over := errors.New("lease validity ended")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, over)
		defer cancel()
		begin := time.Now()
		if err := s.Seal(ctx, pool(n1, 1)); !errors.Is(err, over) || time.Since(begin) != time.Second {
			t.Errorf("after %s: %v, want the cause of the end after 1s", time.Since(begin), err)
		}
	})
}

func TestWorkersThatHangAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestStore(t, n1)
		release := hang(s)
		var begun atomic.Int32
		gate := s.at
		s.at = func(l string) { begun.Add(1); gate(l) }
		for range maxStuck {
			go func() { _ = s.MarkDone(t.Context(), pool(n1, 1)) }() // its error is looked at below
		}
		time.Sleep(ioDeadline + time.Second)
		synctest.Wait()
		begin := time.Now()
		if err := s.MarkDone(t.Context(), pool(n1, 1)); !errors.Is(err, ErrHung) || time.Since(begin) != 0 {
			t.Errorf("after %s: %v, want ErrHung at once", time.Since(begin), err)
		}
		if begun.Load() != maxStuck {
			t.Errorf("%d workers hang, want at most %d", begun.Load(), maxStuck)
		}
		release()
		synctest.Wait()
		if _, err := s.Repository(t.Context(), n1, true); err != nil {
			t.Errorf("after the mount came back: %v", err)
		}
	})
}

// Many calls at once are no sign of a hung mount: a burst of starts must not
// take the heartbeat away.
func TestManyCallsAtOnceAreNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestStore(t, n1)
		release := hang(s)
		errs := make(chan error, 4*maxStuck)
		for range cap(errs) {
			go func() { errs <- s.CreateRepository(t.Context(), n1, 1) }()
		}
		synctest.Wait()
		if _, err := s.Repository(t.Context(), n1, false); err != nil {
			t.Errorf("one more call: %v", err)
		}
		release()
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestAWorkerThatHangsKeepsItsName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestStore(t, n1)
		write(t, s, own(n1, "vm-a"), "/a\n")
		write(t, s, own(n1, "vm-b"), "/b\n")
		release := hang(s)
		if _, err := s.GiveBack(t.Context(), n1, 1, "vm-a"); !errors.Is(err, ErrHung) {
			t.Errorf("give back: %v", err)
		}
		// Written now, it would be in two places when the hung rename is done.
		if err := s.Own(n1).Update(t.Context(), 1, "vm-a", func(r *cluster.Resource) { r.Priority = 1 }); !errors.Is(err, ErrHung) {
			t.Errorf("update of the same resource: %v, want ErrHung", err)
		}
		try(t, s.Own(n1).Update(t.Context(), 1, "vm-b", func(r *cluster.Resource) { r.Priority = 1 }))
		release()
		synctest.Wait()
		if err := s.Own(n1).Update(t.Context(), 1, "vm-a", func(r *cluster.Resource) { r.Priority = 1 }); !errors.Is(err, ErrGone) {
			t.Errorf("update when it is over: %v, want ErrGone", err)
		}
		wantHoldings(t, s, map[string]string{inPool(pool(n1, 0), "vm-a"): "/a\n", own(n1, "vm-b"): "/b\nPRIORITY=1\n"})
		if len(s.names.held) != 0 {
			t.Errorf("names are still held: %v", s.names.held)
		}
	})
}

// A node that says that it has stopped writes nothing any more.
func TestSyncWaitsForWorkersWhoseCallersAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestStore(t, n1)
		write(t, s, own(n1, "vm-a"), "/a\n")
		release := hang(s)
		if _, err := s.GiveBack(t.Context(), n1, 1, "vm-a"); !errors.Is(err, ErrHung) {
			t.Errorf("give back: %v", err)
		}
		budget := errors.New("STOP_BUDGET is over")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, budget)
		defer cancel()
		if err := s.Sync(ctx); !errors.Is(err, budget) {
			t.Errorf("Sync = %v while the rename hangs", err)
		}
		release()
		try(t, s.Sync(t.Context()))
		wantHoldings(t, s, map[string]string{inPool(pool(n1, 0), "vm-a"): "/a\n"})
	})
}

func TestWaitingForANameEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestStore(t, n1)
		release, err := s.reserve(t.Context(), "x", []string{"a", "b", "b"})
		try(t, err)
		over := errors.New("over")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, over)
		defer cancel()
		if _, err := s.reserve(ctx, "x", []string{"c", "b"}); !errors.Is(err, over) {
			t.Errorf("error is %v", err)
		}
		go func() { time.Sleep(time.Second); release() }()
		again, err := s.reserve(t.Context(), "x", []string{"b", "c"})
		try(t, err)
		again()
		if len(s.names.held) != 0 {
			t.Errorf("held: %v", s.names.held)
		}
	})
}

// A FIFO blocks whoever opens it, as a mount that does not answer would.
func TestAProbeThatHangsReturnsByItsDeadline(t *testing.T) {
	s := newTestStore(t, n1)
	id, err := s.Connect(t.Context(), "lab", 7)
	try(t, err)
	fifo := slotFile(s, slotOrder)
	try(t, os.Remove(fifo))
	try(t, unix.Mkfifo(fifo, 0o600))
	if _, err := s.Probe(t.Context(), beat("me", 1), nil, id, 500*time.Millisecond); !errors.Is(err, ErrHung) {
		t.Errorf("error is %v, want ErrHung", err)
	}
	other, err := os.OpenFile(fifo, os.O_RDWR, 0) // lets the worker's open return
	try(t, err)
	defer other.Close()
	eventually(t, "the worker has ended", func() bool { return s.stuck.Load() == 0 })
}

func TestStorageTroubleIsToldFromTroubleOfAResource(t *testing.T) {
	for _, tt := range []struct {
		err  error
		hold bool
	}{
		{unix.EIO, true}, {unix.EROFS, true}, {unix.ENOSPC, true}, {unix.EDQUOT, true}, {unix.ESTALE, true}, {unix.ENOTCONN, true}, {unix.ETIMEDOUT, true},
		{unix.ENOENT, false}, {unix.EEXIST, false}, {ErrGone, false}, {&ParseError{Path: "f"}, false},
	} {
		err := newTestStore(t).do(t.Context(), "x", func() error { return fmt.Errorf("wrapped: %w", tt.err) })
		if errors.Is(err, cluster.ErrHold) != tt.hold || !errors.Is(err, tt.err) {
			t.Errorf("%v became %v, want hold %v", tt.err, err, tt.hold)
		}
	}
}

// eventually waits for a condition that somebody else brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("in vain waited that %s", what)
}

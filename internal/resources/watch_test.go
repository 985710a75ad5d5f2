package resources

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// watch starts a watcher and returns its hints; it has ended when the test has.
func watch(t *testing.T, s *Store, n cluster.NodeID, rescan time.Duration) <-chan struct{} {
	t.Helper()
	hints := make(chan struct{}, 1)
	over := errors.New("the test is over")
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(t.Context())) // ended with its cause, in the clean-up
	ended := make(chan error, 1)
	go func() {
		ended <- s.Watch(ctx, n, rescan, zap.NewNop(), func() {
			select {
			case hints <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel(over)
		if err := <-ended; !errors.Is(err, over) {
			t.Errorf("Watch returned %v", err)
		}
	})
	return hints
}

// hintsAfter makes a change and waits for the hint that follows it. Hints of
// what was before are taken away first, until it is quiet.
func hintsAfter(t *testing.T, hints <-chan struct{}, what string, change func()) {
	t.Helper()
	quiet := time.NewTimer(200 * time.Millisecond)
	for still := false; !still; {
		select {
		case <-hints:
			quiet.Reset(200 * time.Millisecond)
		case <-quiet.C:
			still = true
		}
	}
	change()
	select {
	case <-hints:
	case <-time.After(30 * time.Second):
		t.Fatalf("no hint after %s", what)
	}
}

func TestWatchHintsAtWhateverChanges(t *testing.T) {
	s := newTestStore(t, n1, n2)
	hints := watch(t, s, n1, 20*time.Millisecond)
	<-hints // it looks once in any case
	file := filepath.Join(s.root, own(n1, "vm-a"))
	hintsAfter(t, hints, "a new file", func() { write(t, s, own(n1, "vm-a"), "/a\n") })
	// The directory's stamp does not change: only an event of the kernel tells.
	hintsAfter(t, hints, "an edit in place", func() { write(t, s, own(n1, "vm-a"), "/b\n") })
	hintsAfter(t, hints, "a replacement", func() { try(t, writeFile(s.RepositoryDir(n1), "vm-a", []byte("/c\n"))) })
	hintsAfter(t, hints, "a deletion", func() { try(t, os.Remove(file)) })
	hintsAfter(t, hints, "a seal", func() { try(t, s.Seal(t.Context(), pool(n1, 1))) })
	hintsAfter(t, hints, "the new repository", func() { try(t, s.CreateRepository(t.Context(), n1, 2)) })
	hintsAfter(t, hints, "a new file in the new repository", func() { write(t, s, own(n1, "vm-a"), "/d\n") })
	hintsAfter(t, hints, "an edit in place in the new repository", func() { write(t, s, own(n1, "vm-a"), "/e\n") })
}

// Between two looks a directory may have gone and another one come.
func TestWatchFollowsADirectoryThatWasExchangedBetweenTwoLooks(t *testing.T) {
	s := newTestStore(t, n1)
	other := filepath.Join(s.root, "other")
	try(t, os.Mkdir(other, 0o755))
	hints := watch(t, s, n1, 300*time.Millisecond)
	<-hints
	hintsAfter(t, hints, "a directory that was exchanged between two looks", func() {
		try(t, os.Rename(s.RepositoryDir(n1), filepath.Join(s.root, "away")))
		try(t, os.Rename(other, s.RepositoryDir(n1)))
	})
	write(t, s, own(n1, "vm-a"), "/a\n")
	hintsAfter(t, hints, "an edit in place in the exchanged directory", func() { write(t, s, own(n1, "vm-a"), "/b\n") })
}

func TestWatchBeginsBeforeTheRepositoryIsThere(t *testing.T) {
	s := newTestStore(t)
	try(t, os.Mkdir(s.nodeDir(n1), 0o755))
	hints := watch(t, s, n1, 20*time.Millisecond)
	hintsAfter(t, hints, "the first repository", func() { try(t, s.CreateRepository(t.Context(), n1, 1)) })
}

func TestTheStampTellsChangesOfNames(t *testing.T) {
	s := newTestStore(t, n1)
	stamp := func() string {
		t.Helper()
		st, err := s.RepositoryStamp(t.Context(), n1)
		try(t, err)
		return st
	}
	before := stamp()
	if again := stamp(); again != before {
		t.Errorf("nothing changed, and the stamp did: %s, %s", before, again)
	}
	// Coarse clocks of the kernel give two changes of one tick the same stamp.
	eventually(t, "a new name changes the stamp", func() bool {
		try(t, os.WriteFile(filepath.Join(s.RepositoryDir(n1), "vm-a"), []byte("/a\n"), 0o644))
		try(t, os.Remove(filepath.Join(s.RepositoryDir(n1), "vm-a")))
		return stamp() != before
	})
	try(t, s.Seal(t.Context(), pool(n1, 1)))
	if st, err := s.RepositoryStamp(t.Context(), n1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of a directory that is gone: %s, %v", st, err)
	}
}

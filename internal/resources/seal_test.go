package resources

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func pool(n cluster.NodeID, inc cluster.Incarnation) cluster.PoolID {
	return cluster.PoolID{Node: n, Incarnation: inc}
}

func inPool(p cluster.PoolID, name string) string { return "pool/" + p.String() + "/" + name }

func TestSealTakesTheRepositoryAway(t *testing.T) {
	s := newTestStore(t, n1)
	var steps []string
	s.at = func(label string) { steps = append(steps, label) }
	write(t, s, own(n1, "vm-a"), "/a\n")
	write(t, s, own(n1, "garbage"), "\x00\x01")
	for range 2 { // once more: it is idempotent
		try(t, s.Seal(t.Context(), pool(n1, 1)))
		wantHoldings(t, s, map[string]string{inPool(pool(n1, 1), "vm-a"): "/a\n", inPool(pool(n1, 1), "garbage"): "\x00\x01"})
	}
	if err := s.MustOwn(t.Context(), n1, 1); !errors.Is(err, ErrSealed) {
		t.Errorf("its former owner is told %v, want ErrSealed", err)
	}
	if diff := cmp.Diff([]string{"seal:before", "seal:after", "seal:before"}, steps); diff != "" {
		t.Error(diff)
	}
}

func TestASealOfAnotherIncarnationMovesNothing(t *testing.T) {
	for _, inc := range []cluster.Incarnation{1, 3} {
		s := newTestStore(t)
		try(t, s.PrepareNode(t.Context(), n1, 2))
		write(t, s, own(n1, "vm-a"), "/a\n")
		s.rename = func(from, _ string) error { t.Errorf("%s was renamed, if only to be renamed back", from); return nil }
		if err := s.Seal(t.Context(), pool(n1, inc)); !errors.Is(err, ErrSealed) {
			t.Errorf("incarnation %d: error is %v, want ErrSealed", inc, err)
		}
		wantHoldings(t, s, map[string]string{own(n1, "vm-a"): "/a\n"})
	}
}

// A replaced master may be stopped right before its rename, and go on when the
// node has long come back with a newer incarnation.
func TestALateSealIsUndone(t *testing.T) {
	s := newTestStore(t)
	try(t, s.PrepareNode(t.Context(), n1, 2))
	write(t, s, own(n1, "vm-a"), "/a\n")
	try(t, os.Rename(s.RepositoryDir(n1), s.poolDir(pool(n1, 1))))
	if claimed, err := newMount(t, filepath.Dir(s.root), n2).Claim(t.Context(), n2, 1, pool(n1, 1), []cluster.ResourceID{"vm-a"}); !errors.Is(err, ErrGone) {
		t.Errorf("claimed from it: %v, %v", claimed, err)
	}
	if err := s.Seal(t.Context(), pool(n1, 1)); !errors.Is(err, ErrSealed) {
		t.Errorf("error is %v, want ErrSealed", err)
	}
	wantHoldings(t, s, map[string]string{own(n1, "vm-a"): "/a\n"})
	try(t, s.MustOwn(t.Context(), n1, 2))
}

func TestTheNameOfASealedRepositoryIsTakenForEver(t *testing.T) {
	s := newTestStore(t, n1, n2)
	write(t, s, own(n1, "vm-old"), "/old\n")
	try(t, s.Seal(t.Context(), pool(n1, 1)))
	_, err := s.Claim(t.Context(), n2, 1, pool(n1, 1), []cluster.ResourceID{"vm-old"})
	try(t, err)
	try(t, s.MarkDone(t.Context(), pool(n1, 1)))
	try(t, s.CreateRepository(t.Context(), n1, 2))
	write(t, s, own(n1, "vm-new"), "/new\n")
	try(t, s.Seal(t.Context(), pool(n1, 1))) // done long ago
	if err := s.rename(s.RepositoryDir(n1), s.poolDir(pool(n1, 1))); err == nil {
		t.Error("a late rename replaced an emptied pool directory")
	}
	wantHoldings(t, s, map[string]string{own(n2, "vm-old"): "/old\n", own(n1, "vm-new"): "/new\n"})
	high, err := s.HighestPool(t.Context(), n1)
	if err != nil || high != 1 {
		t.Errorf("highest sealed incarnation %d, %v", high, err)
	}
}

func TestSealOfANodeWithoutARepositoryTakesTheName(t *testing.T) {
	s := newTestStore(t, n1)
	try(t, s.RemoveRepository(t.Context(), n1))
	for range 2 {
		try(t, s.Seal(t.Context(), pool(n1, 4)))
	}
	l, err := s.Pool(t.Context(), pool(n1, 4), true)
	if err != nil || l.Inc != 4 || len(l.Resources) != 0 {
		t.Errorf("%+v, %v", l, err)
	}
	wantNoTemporaryFiles(t, s)
}

func TestSealOnAMountThatIsGoneMakesNothing(t *testing.T) {
	for _, tt := range []struct{ name, lost string }{
		{"the whole mount", "."}, {"the pool", "pool"}, {"the node's directory", "md." + string(n1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestStore(t, n1)
			write(t, s, own(n1, "vm-a"), "/a\n")
			gone := filepath.Join(s.root, tt.lost)
			try(t, os.Rename(gone, filepath.Join(t.TempDir(), "away")))
			if err := s.Seal(t.Context(), pool(n1, 1)); err == nil || errors.Is(err, ErrSealed) {
				t.Errorf("error is %v, want one that leaves it unknown", err)
			}
			if _, err := os.Lstat(gone); err == nil {
				t.Errorf("%s was made", gone)
			}
			if there, err := exists(s.poolDir(pool(n1, 1))); there {
				t.Errorf("a pool directory was made, %v", err)
			}
		})
	}
}

func TestGiveBackOnAMountWithoutAPoolMakesNone(t *testing.T) {
	s := newTestStore(t, n1)
	write(t, s, own(n1, "vm-a"), "/a\n")
	try(t, os.Remove(filepath.Join(s.root, "pool")))
	if as, err := s.GiveBack(t.Context(), n1, 1, "vm-a"); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("given back as %q, %v", as, err)
	}
	if there, err := exists(filepath.Join(s.root, "pool")); there || err != nil {
		t.Errorf("the pool was made: %v, %v", there, err)
	}
	wantHoldings(t, s, map[string]string{own(n1, "vm-a"): "/a\n"})
}

func TestARepositoryWithoutReadableIncarnationIsNotLost(t *testing.T) {
	for _, tt := range []struct{ name, inc string }{{"missing", ""}, {"half written", "x"}, {"negative", "-1"}} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestStore(t, n1)
			write(t, s, own(n1, "vm-a"), "/a\n")
			try(t, os.Remove(filepath.Join(s.RepositoryDir(n1), incFile)))
			if tt.inc != "" {
				write(t, s, own(n1, incFile), tt.inc)
			}
			for range 2 {
				if err := s.Seal(t.Context(), pool(n1, 1)); err == nil || errors.Is(err, ErrSealed) {
					t.Errorf("error is %v", err)
				}
			}
			if got := holdings(t, s); len(got) != 1 {
				t.Errorf("%v", got)
			}
		})
	}
}

func TestAnEndedContextChangesNothing(t *testing.T) {
	s := newTestStore(t, n1, n2)
	write(t, s, own(n1, "vm-a"), "/a\n")
	ctx, cancel := context.WithCancelCause(t.Context())
	deposed := errors.New("not master any more")
	cancel(deposed)
	touched := make(chan string, 100)
	s.at = func(label string) { touched <- label }
	_, giveBack := s.GiveBack(ctx, n1, 1, "vm-a")
	for what, err := range map[string]error{
		"seal": s.Seal(ctx, pool(n1, 1)), "broken": s.MarkBroken(ctx, Place{Node: n1, Incarnation: 1}, "vm-a", cluster.BrokenReason{Node: n1}), "give back": giveBack,
		"delete": s.Delete(ctx, n1, 1, "vm-a"), "rename": s.Rename(ctx, n1, 1, "vm-a", "vm-b"), "create": s.CreateRepository(ctx, n3, 1), "done": s.MarkDone(ctx, pool(n1, 1)),
	} {
		if !errors.Is(err, deposed) {
			t.Errorf("%s: error is %v, want the cause of the end", what, err)
		}
	}
	if len(touched) > 0 {
		t.Errorf("begun all the same: %s", <-touched)
	}
	wantHoldings(t, s, map[string]string{own(n1, "vm-a"): "/a\n"})
}

func TestMarkDoneOnlyIfEmpty(t *testing.T) {
	s := newTestStore(t, n1, n2)
	p := pool(n1, 1)
	if err := s.MarkDone(t.Context(), p); err == nil {
		t.Error("a directory that is not there is done")
	}
	write(t, s, own(n1, "vm-a"), "/a\n")
	write(t, s, own(n1, "garbage"), "")
	try(t, s.Seal(t.Context(), p))
	for _, name := range []string{"vm-a", "garbage"} {
		if err := s.MarkDone(t.Context(), p); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error is %v, want one that names %s", err, name)
		}
		if l, err := s.Pool(t.Context(), p, false); err != nil || l.Done {
			t.Errorf("done with %s in it: %v", name, err)
		}
		try(t, s.MarkBroken(t.Context(), Place{Pool: p}, name, cluster.BrokenReason{Node: n2}))
	}
	for range 2 {
		try(t, s.MarkDone(t.Context(), p))
	}
	if l, err := s.Pool(t.Context(), p, false); err != nil || !l.Done {
		t.Errorf("not done: %v", err)
	}
}

func TestCreateRepository(t *testing.T) {
	s := newTestStore(t, n1)
	write(t, s, own(n1, "vm-a"), "/a\n")
	try(t, s.CreateRepository(t.Context(), n1, 1)) // is there: nothing to do
	if err := s.CreateRepository(t.Context(), n1, 2); !errors.Is(err, ErrTaken) {
		t.Errorf("over another incarnation: %v, want ErrTaken", err)
	}
	try(t, s.Seal(t.Context(), pool(n1, 1)))
	write(t, s, "md."+string(n1)+"/.resources.2/half", "left over by an attempt that ended half way")
	try(t, s.CreateRepository(t.Context(), n1, 2))
	wantHoldings(t, s, map[string]string{inPool(pool(n1, 1), "vm-a"): "/a\n"})
	if inc, present, err := s.Incarnation(t.Context(), n1); inc != 2 || !present || err != nil {
		t.Errorf("incarnation %d, %v, %v", inc, present, err)
	}
	// Files without an .inc may be the original's: they are not replaced.
	try(t, os.Mkdir(s.nodeDir(n2), 0o755))
	write(t, s, own(n2, "vm-b"), "/b\n")
	if err := s.CreateRepository(t.Context(), n2, 1); err == nil {
		t.Error("made over a directory that holds files")
	}
	wantHoldings(t, s, map[string]string{inPool(pool(n1, 1), "vm-a"): "/a\n", own(n2, "vm-b"): "/b\n"})
}

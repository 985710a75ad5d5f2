package resources

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// liar renames, or does not, and answers what it likes.
type liar struct {
	does   bool
	says   error
	before func() // what others do just before
}

func (l liar) rename(from, to string) error {
	if l.before != nil {
		l.before()
	}
	if l.does {
		if err := unix.Rename(from, to); err != nil {
			return err
		}
	}
	return l.says
}

func TestARenameWhoseErrorLied(t *testing.T) {
	for _, says := range []error{unix.ENOENT, unix.EIO, unix.ESTALE, unix.EEXIST, unix.ETIMEDOUT} {
		t.Run("done although it says "+says.Error(), func(t *testing.T) {
			s := newTestStore(t, n1, n2)
			write(t, s, own(n1, "vm-a"), "/a\n")
			s.rename = liar{does: true, says: says}.rename
			try(t, s.Seal(t.Context(), pool(n1, 1)))
			got, err := s.Claim(t.Context(), n2, 1, pool(n1, 1), []cluster.ResourceID{"vm-a"})
			if err != nil || got[0] != (Claimed{ID: "vm-a"}) {
				t.Fatalf("claim: %v, %v", got, err)
			}
			try(t, s.Rename(t.Context(), n2, 1, "vm-a", "vm-b"))
			as, err := s.GiveBack(t.Context(), n2, 1, "vm-b")
			if err != nil || as != "vm-b" {
				t.Fatalf("give back: %q, %v", as, err)
			}
			try(t, s.MarkBroken(t.Context(), Place{Pool: pool(n2, 0)}, "vm-b", cluster.BrokenReason{Node: n1}))
			try(t, s.CreateRepository(t.Context(), n1, 2))
			if _, there := holdings(t, s)["broken/vm-b"]; !there {
				t.Errorf("%v", holdings(t, s))
			}
		})
		t.Run("not done, and it says "+says.Error(), func(t *testing.T) {
			s := newTestStore(t, n1, n2)
			write(t, s, own(n1, "vm-a"), "/a\n")
			write(t, s, inPool(pool(n3, 1), incFile), "1\n")
			write(t, s, inPool(pool(n3, 1), "vm-p"), "/p\n")
			want := holdings(t, s)
			s.rename = liar{says: says}.rename
			seal := s.Seal(t.Context(), pool(n1, 1))
			got, err := s.Claim(t.Context(), n2, 1, pool(n3, 1), []cluster.ResourceID{"vm-p"})
			try(t, err)
			_, back := s.GiveBack(t.Context(), n1, 1, "vm-a")
			for what, err := range map[string]error{"seal": seal, "claim": got[0].Err, "rename": s.Rename(t.Context(), n1, 1, "vm-a", "vm-b"), "give back": back} {
				if err == nil || errors.Is(err, ErrGone) || errors.Is(err, ErrSealed) || errors.Is(err, ErrTaken) {
					t.Errorf("%s: error is %v, want one that decides nothing", what, err)
				}
			}
			wantHoldings(t, s, want)
			wantNoTemporaryFiles(t, s)
		})
	}
}

func TestARenameThatFindsItsSourceTaken(t *testing.T) {
	s := sealed(t, "vm-a")
	other := NewStore(filepath.Dir(s.root), nil)
	s.rename = liar{does: true, before: func() {
		if got, err := other.Claim(t.Context(), n3, 1, pool(n1, 1), []cluster.ResourceID{"vm-a"}); err != nil || got[0].Err != nil {
			t.Errorf("the other node: %v, %v", got, err)
		}
	}}.rename
	got, err := s.Claim(t.Context(), n2, 1, pool(n1, 1), []cluster.ResourceID{"vm-a"})
	if err != nil || !errors.Is(got[0].Err, ErrGone) {
		t.Errorf("claimed %v, %v; want ErrGone", got, err)
	}
	wantHoldings(t, s, map[string]string{own(n3, "vm-a"): "/vm-a\n"})
}

// A look that fails because a directory is missing must not be taken for the
// proof that somebody else has the resource.
func TestGoneIsSaidOnlyAfterALookThatWorked(t *testing.T) {
	for _, tt := range []struct {
		name string
		lose func(s *Store) string
	}{
		{"the repository was sealed under it", func(s *Store) string { return s.RepositoryDir(n2) }},
		{"the pool directory is not seen", func(s *Store) string { return s.poolDir(pool(n1, 1)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := sealed(t, "vm-a")
			s.rename = liar{does: true, before: func() {
				if err := os.Rename(tt.lose(s), filepath.Join(s.root, ".lost")); err != nil {
					t.Error(err)
				}
			}}.rename
			got, err := s.Claim(t.Context(), n2, 1, pool(n1, 1), []cluster.ResourceID{"vm-a"})
			if err == nil && (got[0].Err == nil || errors.Is(got[0].Err, ErrGone)) || errors.Is(err, ErrGone) {
				t.Errorf("%v, %v; want an error that leaves it unknown", got, err)
			}
		})
	}
	s := newTestStore(t, n1)
	write(t, s, own(n1, "vm-a"), "/a\n")
	try(t, os.Remove(s.brokenDir()))
	if err := s.MarkBroken(t.Context(), Place{Node: n1, Incarnation: 1}, "vm-a", cluster.BrokenReason{Node: n1}); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("with broken missing: %v", err)
	}
}

// Whatever every rename does and says, nothing is lost, nothing is in two
// places, and repetition without lies ends well.
func TestNothingIsLostWhateverRenamesSay(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		mount, err := os.MkdirTemp(base, "")
		try(rt, err)
		s := newMount(t, mount, n1, n2)
		names := []cluster.ResourceID{"vm-a", "vm-b", "ct-1"}
		for _, n := range names {
			write(rt, s, own(n1, string(n)), "/"+string(n)+"\n")
		}
		honest := s.rename
		s.rename = func(from, to string) error {
			l := liar{does: rapid.Bool().Draw(rt, "does")}
			if rapid.Bool().Draw(rt, "lies") {
				l.says = rapid.SampledFrom([]error{unix.ENOENT, unix.EIO, unix.ESTALE}).Draw(rt, "says")
			} else {
				l.does = true
			}
			return l.rename(from, to)
		}
		once := func() {
			seen := map[string]int{}
			for _, content := range holdings(rt, s) {
				seen[content]++
			}
			for _, n := range names {
				if seen["/"+string(n)+"\n"] != 1 {
					rt.Fatalf("%s is in %d places: %v", n, seen["/"+string(n)+"\n"], holdings(rt, s))
				}
			}
		}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			id := rapid.SampledFrom(names).Draw(rt, "resource")
			// Every error is fine here: what lies where is what counts.
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0:
				_ = s.Seal(t.Context(), pool(n1, 1))
			case 1:
				_, _ = s.Claim(t.Context(), n2, 1, pool(n1, 1), names)
			case 2:
				_, _ = s.GiveBack(t.Context(), n2, 1, id)
			case 3:
				_, _ = s.Claim(t.Context(), n2, 1, pool(n2, 0), names)
			case 4:
				_ = s.MarkBroken(t.Context(), Place{Node: n2, Incarnation: 1}, string(id), cluster.BrokenReason{Node: n2})
			}
			once()
		}
		s.rename = honest
		try(rt, s.Seal(t.Context(), pool(n1, 1)))
		_, err = s.Claim(t.Context(), n2, 1, pool(n1, 1), names)
		try(rt, err)
		try(rt, s.MarkDone(t.Context(), pool(n1, 1)))
		once()
	})
}

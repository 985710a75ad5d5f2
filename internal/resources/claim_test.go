package resources

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// sealed makes a store in which n1 was taken over with these resources.
func sealed(t testing.TB, names ...string) *Store {
	t.Helper()
	s := newTestStore(t, n1, n2, n3)
	for _, n := range names {
		write(t, s, own(n1, n), "/"+n+"\n")
	}
	try(t, s.Seal(t.Context(), pool(n1, 1)))
	return s
}

func TestClaimMovesABatch(t *testing.T) {
	s := sealed(t, "vm-a", "vm-b", "vm-c", "vm-d")
	write(t, s, own(n2, "vm-b"), "/another-b\n")
	write(t, s, own(n2, "vm-c"), "/another-c\n")
	write(t, s, own(n2, "vm-c~"+string(n1)), "/yet-another-c\n")
	got, err := s.Claim(t.Context(), n2, 1, pool(n1, 1), []cluster.ResourceID{"vm-a", "vm-b", "vm-c", "vm-x"})
	try(t, err)
	want := []Claimed{{ID: "vm-a"}, {ID: "vm-b~0000000000000001"}, {ID: "vm-c", Err: ErrTaken}, {ID: "vm-x", Err: ErrGone}}
	if diff := cmp.Diff(want, got, cmpopts.EquateErrors()); diff != "" {
		t.Error(diff)
	}
	wantHoldings(t, s, map[string]string{
		own(n2, "vm-a"): "/vm-a\n", own(n2, "vm-b"): "/another-b\n", own(n2, "vm-b~"+string(n1)): "/vm-b\n",
		own(n2, "vm-c"): "/another-c\n", own(n2, "vm-c~"+string(n1)): "/yet-another-c\n",
		inPool(pool(n1, 1), "vm-c"): "/vm-c\n", inPool(pool(n1, 1), "vm-d"): "/vm-d\n",
	})
}

func TestANameThatIsTakenTwiceAndLongStaysUsable(t *testing.T) {
	long := "vm-" + strings.Repeat("x", 245)
	s := sealed(t, long)
	write(t, s, own(n2, long), "/another\n")
	got, err := s.Claim(t.Context(), n2, 1, pool(n1, 1), []cluster.ResourceID{cluster.ResourceID(long)})
	if err != nil || got[0].Err != nil {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := cluster.ParseResourceID(string(got[0].ID)); err != nil {
		t.Errorf("the new name cannot be used: %v", err)
	}
	try(t, s.MarkBroken(t.Context(), Place{Node: n2, Incarnation: 1}, string(got[0].ID), cluster.BrokenReason{Node: n2}))
}

func TestClaimsThatMoveNothing(t *testing.T) {
	for _, tt := range []struct {
		name    string
		self    cluster.NodeID
		inc     cluster.Incarnation
		pool    cluster.PoolID
		prepare func(t *testing.T, s *Store)
		want    error
	}{
		{name: "this node was taken over and is of a newer incarnation", self: n2, inc: 2, pool: pool(n1, 1), want: ErrSealed},
		{name: "this node's repository is missing", self: n2, inc: 1, pool: pool(n1, 1), want: ErrSealed, prepare: func(t *testing.T, s *Store) { try(t, s.Seal(t.Context(), pool(n2, 1))) }},
		{name: "the pool directory is of another incarnation", self: n2, inc: 1, pool: pool(n1, 1), want: ErrGone, prepare: func(t *testing.T, s *Store) { write(t, s, inPool(pool(n1, 1), incFile), "2\n") }},
		{name: "the pool directory says nothing of its incarnation", self: n2, inc: 1, pool: pool(n1, 1), want: ErrGone, prepare: func(t *testing.T, s *Store) {
			try(t, os.Remove(filepath.Join(s.poolDir(pool(n1, 1)), incFile)))
		}},
		{name: "what was given back says nothing of its incarnation", self: n2, inc: 1, pool: pool(n1, 0), want: ErrGone, prepare: func(t *testing.T, s *Store) {
			try(t, os.Mkdir(s.poolDir(pool(n1, 0)), 0o755))
		}},
		{name: "there is no such pool directory", self: n2, inc: 1, pool: pool(n1, 9), want: ErrGone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := sealed(t, "vm-a")
			if tt.prepare != nil {
				tt.prepare(t, s)
			}
			if got, err := s.Claim(t.Context(), tt.self, tt.inc, tt.pool, []cluster.ResourceID{"vm-a"}); !errors.Is(err, tt.want) {
				t.Errorf("claimed %v, %v; want %v", got, err, tt.want)
			}
			wantHoldings(t, s, map[string]string{inPool(pool(n1, 1), "vm-a"): "/vm-a\n"})
		})
	}
}

func TestGiveBackAndItsClaim(t *testing.T) {
	s := newTestStore(t, n1, n2)
	for _, name := range []string{"vm-a", "vm-b"} {
		write(t, s, own(n1, name), "/"+name+"\n")
	}
	back := pool(n1, 0)
	for _, id := range []cluster.ResourceID{"vm-a", "vm-b"} {
		if as, err := s.GiveBack(t.Context(), n1, 1, id); as != id || err != nil {
			t.Errorf("given back as %q, %v", as, err)
		}
	}
	if _, err := s.GiveBack(t.Context(), n1, 1, "vm-a"); !errors.Is(err, ErrGone) {
		t.Errorf("once more: %v, want ErrGone", err)
	}
	write(t, s, own(n1, "vm-a"), "/second-a\n")
	if as, err := s.GiveBack(t.Context(), n1, 1, "vm-a"); as != "vm-a~0000000000000001" || err != nil {
		t.Errorf("a name that is taken there: %q, %v", as, err)
	}
	if _, err := s.GiveBack(t.Context(), n1, 2, "vm-x"); !errors.Is(err, ErrSealed) {
		t.Errorf("by another incarnation: %v, want ErrSealed", err)
	}
	got, err := s.Claim(t.Context(), n2, 1, back, []cluster.ResourceID{"vm-a", "vm-b"})
	try(t, err)
	if diff := cmp.Diff([]Claimed{{ID: "vm-a"}, {ID: "vm-b"}}, got); diff != "" {
		t.Error(diff)
	}
	wantHoldings(t, s, map[string]string{own(n2, "vm-a"): "/vm-a\n", own(n2, "vm-b"): "/vm-b\n", inPool(back, "vm-a~"+string(n1)): "/second-a\n"})
	wantNoTemporaryFiles(t, s)
}

func TestPutRenameDelete(t *testing.T) {
	s := newTestStore(t, n1)
	a, b := Document{Path: "/a"}, Document{Path: "/b"}
	for _, step := range []struct {
		name string
		do   func() error
		want error
	}{
		{"an update of what is missing", func() error { return s.Put(t.Context(), n1, 1, "vm-a", a, false) }, ErrGone},
		{"a new resource", func() error { return s.Put(t.Context(), n1, 1, "vm-a", a, true) }, nil},
		{"a new resource over one that is there", func() error { return s.Put(t.Context(), n1, 1, "vm-a", b, true) }, ErrTaken},
		{"an update by another incarnation", func() error { return s.Put(t.Context(), n1, 2, "vm-a", b, false) }, ErrSealed},
		{"a rename", func() error { return s.Rename(t.Context(), n1, 1, "vm-a", "vm-c") }, nil},
		{"a rename of what is missing", func() error { return s.Rename(t.Context(), n1, 1, "vm-a", "vm-d") }, ErrGone},
		{"a second resource", func() error { return s.Put(t.Context(), n1, 1, "vm-b", b, true) }, nil},
		{"a rename onto a name that is taken", func() error { return s.Rename(t.Context(), n1, 1, "vm-b", "vm-c") }, ErrTaken},
		{"a rename by another incarnation", func() error { return s.Rename(t.Context(), n1, 2, "vm-b", "vm-d") }, ErrSealed},
		{"a deletion by another incarnation", func() error { return s.Delete(t.Context(), n1, 2, "vm-b") }, ErrSealed},
		{"a deletion", func() error { return s.Delete(t.Context(), n1, 1, "vm-b") }, nil},
		{"a deletion of what is missing", func() error { return s.Delete(t.Context(), n1, 1, "vm-b") }, ErrGone},
	} {
		if err := step.do(); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.name, err, step.want)
		}
	}
	wantHoldings(t, s, map[string]string{own(n1, "vm-c"): "/a\n"})
	wantNoTemporaryFiles(t, s)
}

func TestUpdateKeepsWhatItDoesNotKnow(t *testing.T) {
	s := newTestStore(t, n1)
	write(t, s, own(n1, "vm-a"), "/a\nCOLOR=red\nSTATE=running\n# end\n")
	r := s.Own(n1)
	try(t, r.Update(t.Context(), 1, "vm-a", func(res *cluster.Resource) { res.Want = cluster.WantStopped }))
	wantHoldings(t, s, map[string]string{own(n1, "vm-a"): "/a\nCOLOR=red\nSTATE=stopped\n# end\n"})
	before, err := os.Stat(filepath.Join(s.root, own(n1, "vm-a")))
	try(t, err)
	try(t, r.Update(t.Context(), 1, "vm-a", func(*cluster.Resource) {}))
	after, err := os.Stat(filepath.Join(s.root, own(n1, "vm-a")))
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("written although nothing changed, %v", err)
	}
	if err := r.Update(t.Context(), 2, "vm-a", func(res *cluster.Resource) { res.Priority = 1 }); !errors.Is(err, ErrSealed) {
		t.Errorf("by another incarnation: %v", err)
	}
	if err := r.Update(t.Context(), 1, "vm-x", func(res *cluster.Resource) { res.Priority = 1 }); !errors.Is(err, ErrGone) {
		t.Errorf("of what is missing: %v", err)
	}
	if len(s.names.held) > 0 {
		t.Errorf("names are still held: %v", s.names.held)
	}
}

func TestLook(t *testing.T) {
	s := newTestStore(t, n1)
	write(t, s, own(n1, "vm-a"), "/a\nPRIORITY=3\n")
	r := s.Own(n1)
	got, err := r.Look(t.Context(), 1, "vm-a")
	try(t, err)
	if diff := cmp.Diff(cluster.Resource{ID: "vm-a", Kind: "vm", Path: "/a", Owner: n1, Priority: 3}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := r.Look(t.Context(), 2, "vm-a"); !errors.Is(err, ErrSealed) {
		t.Errorf("by another incarnation: %v", err)
	}
	if _, err := r.Look(t.Context(), 1, "vm-x"); !errors.Is(err, ErrGone) {
		t.Errorf("what is missing: %v", err)
	}
}

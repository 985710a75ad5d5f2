package resources

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"pgregory.net/rapid"
)

// exactlyOnce checks that each content lies in one place, whatever its name is there.
func exactlyOnce(t tester, s *Store, contents []string) {
	t.Helper()
	seen := map[string]int{}
	for name, c := range holdings(t, s) {
		if !strings.HasSuffix(name, reasonSuffix) {
			seen[c]++
		}
	}
	want := map[string]int{}
	for _, c := range contents {
		want[c] = 1
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("how often each resource is there:\n%s\n%v", diff, holdings(t, s))
	}
}

// Each claimer has a store of its own, as each process does.
func TestManyNodesClaimTheSamePool(t *testing.T) {
	s := newTestStore(t, n1)
	var ids []cluster.ResourceID
	var contents []string
	for i := range 40 {
		id := cluster.ResourceID(fmt.Sprintf("vm-%02d", i))
		ids, contents = append(ids, id), append(contents, "/"+string(id)+"\n")
		write(t, s, own(n1, string(id)), "/"+string(id)+"\n")
	}
	const claimers = 8
	var mu sync.Mutex
	winners := map[cluster.ResourceID]int{}
	var wg sync.WaitGroup
	for i := range claimers {
		self := cluster.NodeID(fmt.Sprintf("%016x", 0x10+i))
		mine := newMount(t, filepath.Dir(s.root), self)
		wg.Go(func() {
			try(asserting{t}, mine.Seal(t.Context(), pool(n1, 1))) // masters may be many, too
			for at := 0; at < len(ids); at += 10 {
				got, err := mine.Claim(t.Context(), self, 1, pool(n1, 1), ids[at:at+10])
				try(asserting{t}, err)
				mu.Lock()
				for _, c := range got {
					switch {
					case c.Err == nil:
						winners[c.ID]++
					case !errors.Is(c.Err, ErrGone):
						t.Error(c.Err)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	exactlyOnce(t, s, contents)
	for _, id := range ids {
		if winners[id] != 1 {
			t.Errorf("%d claimed %s", winners[id], id)
		}
	}
}

// asserting lets goroutines other than the test's own use helpers.
type asserting struct{ *testing.T }

func (a asserting) Fatal(args ...any)            { a.T.Helper(); a.T.Error(args...) }
func (a asserting) Fatalf(f string, args ...any) { a.T.Helper(); a.T.Errorf(f, args...) }

// One process claims from several pools, makes and renames resources at the
// same time; all of them want the same name.
func TestOneNodeTakesTheSameNameManyTimesAtOnce(t *testing.T) {
	for range 20 {
		s := newTestStore(t, n1)
		var contents []string
		var wg sync.WaitGroup
		for i := range 4 {
			from := pool(cluster.NodeID(fmt.Sprintf("%016x", 0x20+i)), 1)
			write(t, s, inPool(from, incFile), "1\n")
			content := fmt.Sprintf("/claimed-%d\n", i)
			write(t, s, inPool(from, "vm-a"), content)
			write(t, s, own(n1, fmt.Sprintf("vm-r%d", i)), fmt.Sprintf("/renamed-%d\n", i))
			contents = append(contents, content, fmt.Sprintf("/renamed-%d\n", i))
			wg.Go(func() {
				got, err := s.Claim(t.Context(), n1, 1, from, []cluster.ResourceID{"vm-a"})
				try(asserting{t}, errors.Join(err, got[0].Err))
			})
			wg.Go(func() {
				if err := s.Rename(t.Context(), n1, 1, cluster.ResourceID(fmt.Sprintf("vm-r%d", i)), "vm-a"); err != nil && !errors.Is(err, ErrTaken) {
					t.Error(err)
				}
			})
		}
		made := make(chan string, 4)
		for i := range cap(made) {
			wg.Go(func() {
				err := s.Own(n1).Create(t.Context(), 1, cluster.Resource{ID: "vm-a", Path: fmt.Sprintf("/made-%d", i)})
				if err == nil {
					made <- fmt.Sprintf("/made-%d\n", i)
				} else if !errors.Is(err, ErrTaken) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		close(made)
		for m := range made {
			contents = append(contents, m)
		}
		exactlyOnce(t, s, contents)
	}
}

func TestManyBreakTheSameNameAtOnce(t *testing.T) {
	for range 20 {
		s := newTestStore(t)
		var contents []string
		var wg sync.WaitGroup
		for i := range 6 {
			self := cluster.NodeID(fmt.Sprintf("%016x", 0x30+i))
			mine := newMount(t, filepath.Dir(s.root), self)
			content := fmt.Sprintf("/%d\n", i)
			write(t, s, own(self, "vm-a"), content)
			contents = append(contents, content)
			wg.Go(func() {
				try(asserting{t}, mine.MarkBroken(t.Context(), Place{Node: self, Incarnation: 1}, "vm-a", reason(self)))
			})
		}
		wg.Wait()
		exactlyOnce(t, s, contents)
		all, err := s.Broken(t.Context())
		try(t, err)
		for _, b := range all {
			var i int
			_, err := fmt.Sscanf(b.Resource.Path, "/%d", &i)
			if want := cluster.NodeID(fmt.Sprintf("%016x", 0x30+i)); err != nil || b.Err != nil || b.Reason.Node != want {
				t.Errorf("%s of %s has the reason of %s, %v", b.Resource.Path, want, b.Reason.Node, b.Err)
			}
		}
	}
}

// The reconciler writes parameters while errands give the resource away.
func TestAnUpdateNeverBringsBackWhatWasGivenAway(t *testing.T) {
	leave := map[string]func(s *Store) error{
		"given back": func(s *Store) error { _, err := s.GiveBack(t.Context(), n1, 1, "vm-a"); return err },
		"broken": func(s *Store) error {
			return s.MarkBroken(t.Context(), Place{Node: n1, Incarnation: 1}, "vm-a", reason(n1))
		},
		"renamed": func(s *Store) error { return s.Rename(t.Context(), n1, 1, "vm-a", "vm-b") },
		"deleted": func(s *Store) error { return s.Delete(t.Context(), n1, 1, "vm-a") },
		"updated too": func(s *Store) error {
			return s.Own(n1).Update(t.Context(), 1, "vm-a", func(r *cluster.Resource) { r.UUID = "u" })
		},
	}
	for name, f := range leave {
		t.Run(name, func(t *testing.T) {
			for range 10 {
				s := newTestStore(t, n1)
				write(t, s, own(n1, "vm-a"), "/a\n")
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						err := s.Own(n1).Update(t.Context(), 1, "vm-a", func(r *cluster.Resource) { r.Priority++ })
						if err != nil && !errors.Is(err, ErrGone) {
							t.Error(err)
						}
					})
				}
				wg.Go(func() { try(asserting{t}, f(s)) })
				wg.Wait()
				places := 0
				for file, content := range holdings(t, s) {
					if !strings.HasSuffix(file, reasonSuffix) {
						places++
					}
					if name == "updated too" && content != "/a\nPRIORITY=4\nUUID=u\n" && content != "/a\nUUID=u\nPRIORITY=4\n" {
						t.Errorf("an update was lost: %q", content)
					}
				}
				if want := map[bool]int{true: 0, false: 1}[name == "deleted"]; places != want {
					t.Fatalf("it is in %d places, want %d: %v", places, want, holdings(t, s))
				}
			}
		})
	}
}

// Nodes fail, come back, claim, give back and break in any order and at the same
// time; when all is quiet each resource is in exactly one place.
func TestEveryResourceEndsInExactlyOnePlace(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		mount, err := os.MkdirTemp(base, "")
		try(rt, err)
		nodes := []cluster.NodeID{n1, n2, n3}
		s := newMount(t, mount, nodes...)
		var contents []string
		ids := []cluster.ResourceID{"vm-a", "vm-b"}
		for _, n := range nodes { // the same names on each
			for _, id := range ids {
				c := "/" + string(n) + "/" + string(id) + "\n"
				write(rt, s, own(n, string(id)), c)
				contents = append(contents, c)
			}
		}
		stores := map[cluster.NodeID]*Store{}
		for _, n := range nodes {
			stores[n] = newMount(t, mount)
		}
		for range rapid.IntRange(1, 5).Draw(rt, "rounds") {
			var wg sync.WaitGroup
			for range rapid.IntRange(1, 6).Draw(rt, "at once") {
				self := rapid.SampledFrom(nodes).Draw(rt, "who")
				of := rapid.SampledFrom(nodes).Draw(rt, "of")
				inc := cluster.Incarnation(rapid.IntRange(0, 2).Draw(rt, "incarnation"))
				id := rapid.SampledFrom(ids).Draw(rt, "resource")
				step := rapid.IntRange(0, 4).Draw(rt, "step")
				wg.Go(func() {
					mine := stores[self]
					// Refusals are right in most orders: where things lie is what counts.
					switch step {
					case 0:
						_ = mine.Seal(t.Context(), pool(of, max(inc, 1)))
					case 1:
						_, _ = mine.Claim(t.Context(), self, max(inc, 1), pool(of, inc), ids)
					case 2:
						_, _ = mine.GiveBack(t.Context(), self, max(inc, 1), id)
					case 3:
						_ = mine.MarkBroken(t.Context(), Place{Node: self, Incarnation: max(inc, 1)}, string(id), reason(self))
					case 4:
						if sealed, err := exists(mine.poolDir(pool(self, 1))); err == nil && sealed {
							_ = mine.CreateRepository(t.Context(), self, 2)
						}
					}
				})
			}
			wg.Wait()
			exactlyOnce(rt, s, contents)
		}
	})
}

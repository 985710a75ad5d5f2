package resources

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestANodeThatIsJoinedAgainFindsAWholeRepositoryOrNone: 'shaman leave' returns
// as soon as the node's record is gone, and its files go after that.
func TestANodeThatIsJoinedAgainFindsAWholeRepositoryOrNone(t *testing.T) {
	s := newTestStore(t, n1)
	write(t, s, own(n1, "vm-old"), "/old\n")
	s.rename = func(from, to string) error {
		s.rename = unix.Rename
		if err := s.rename(from, to); err != nil {
			return err
		}
		if err := s.CreateRepository(t.Context(), n1, 7); err != nil { // as a join does
			return err
		}
		return os.WriteFile(filepath.Join(s.root, own(n1, "vm-new")), []byte("/new\n"), 0o644)
	}
	try(t, s.RemoveRepository(t.Context(), n1))
	wantHoldings(t, s, map[string]string{own(n1, "vm-new"): "/new\n"})
	if inc, present, err := s.Incarnation(t.Context(), n1); err != nil || !present || inc != 7 {
		t.Errorf("incarnation %d, there: %v, %v; want that of the new one", inc, present, err)
	}
	left, err := os.ReadDir(s.nodeDir(n1))
	try(t, err)
	for _, e := range left {
		if strings.HasPrefix(e.Name(), ".left") {
			t.Errorf("%s is left over", e.Name())
		}
	}
	try(t, s.RemoveRepository(t.Context(), n1))
	try(t, s.RemoveRepository(t.Context(), n1)) // nothing there: done
}

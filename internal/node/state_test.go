package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func loadState(t *testing.T, dir, boot string) *State {
	t.Helper()
	s, err := LoadState(dir, boot)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStateOutlivesTheDaemonAndNotTheBoot(t *testing.T) {
	dir := t.TempDir()
	want := memory{
		Boot: "one", Lease: 7, Nonces: []string{"x"}, Incarnation: 3, Serial: 9, Closed: 2,
		Starts: []cluster.ResourceID{"ct-a", "ct-b"}, Listed: true,
	}
	if err := loadState(t, dir, "one").update(func(m *memory) { *m = want }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, loadState(t, dir, "one").get()); diff != "" {
		t.Errorf("the next daemon of this boot (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(memory{Boot: "two"}, loadState(t, dir, "two").get()); diff != "" {
		t.Errorf("the first daemon of the next boot (-want +got):\n%s", diff)
	}
}

func TestStateThatCannotBeReadIsNoState(t *testing.T) {
	for _, text := range []string{"", "{", "null x", `{"closed":"x"}`} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "node.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadState(dir, "one"); err == nil || !strings.Contains(err.Error(), "node.json") {
			t.Errorf("%q: error %v; a gate that was closed must not open because its memory is torn", text, err)
		}
	}
}

func TestAChangeThatCannotBeKeptIsNotMade(t *testing.T) {
	dir := t.TempDir()
	s := loadState(t, dir, "one")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := s.update(func(m *memory) { m.Serial = 5 }); err == nil {
		t.Fatal("kept in a directory that is gone")
	}
	if got := s.get().Serial; got != 0 {
		t.Errorf("serial %d in memory, and none on disk", got)
	}
}

func TestStartsThatAreDoneAreTakenOff(t *testing.T) {
	dir := t.TempDir()
	s := loadState(t, dir, "one")
	if err := s.update(func(m *memory) { m.Starts = []cluster.ResourceID{"ct-a", "ct-b", "ct-c"} }); err != nil {
		t.Fatal(err)
	}
	before := s.Pending()
	for _, id := range []cluster.ResourceID{"ct-b", "ct-b", "ct-unknown"} {
		if err := s.Done(id); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]cluster.ResourceID{"ct-a", "ct-b", "ct-c"}, before); diff != "" {
		t.Errorf("a list that was handed out changed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]cluster.ResourceID{"ct-a", "ct-c"}, loadState(t, dir, "one").Pending()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNoncesOfFormerDaemonsAreKeptAndBounded(t *testing.T) {
	dir := t.TempDir()
	s := loadState(t, dir, "one")
	for i := range 300 {
		if err := s.AddNonce(string(rune('a' + i%26))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.AddNonce("last"); err != nil {
		t.Fatal(err)
	}
	got := loadState(t, dir, "one").FormerNonces()
	if len(got) > 101 || !slices.Contains(got, "last") {
		t.Errorf("%d nonces, the last one among them: %v", len(got), slices.Contains(got, "last"))
	}
}

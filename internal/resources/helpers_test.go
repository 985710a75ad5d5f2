package resources

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

const (
	n1 cluster.NodeID = "0000000000000001"
	n2 cluster.NodeID = "0000000000000002"
	n3 cluster.NodeID = "0000000000000003"
)

// tester is what testing.T and rapid.T have in common.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

func try(t tester, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newMount founds a cluster below a directory and prepares nodes of incarnation 1.
func newMount(t testing.TB, mount string, nodes ...cluster.NodeID) *Store {
	t.Helper()
	s := NewStore(mount, nil)
	_, err := s.Found(t.Context(), testIdentity())
	try(t, err)
	for _, n := range nodes {
		try(t, s.PrepareNode(t.Context(), n, 1))
	}
	return s
}

func newTestStore(t testing.TB, nodes ...cluster.NodeID) *Store {
	t.Helper()
	return newMount(t, t.TempDir(), nodes...)
}

func testIdentity() Identity {
	return Identity{V: 1, Name: "lab", UUID: "8c0c9a5e", EtcdClusterID: 7, Generation: 1}
}

// write makes files as other programs would: by a path below .shaman, past the store.
func write(t tester, s *Store, name, content string) {
	t.Helper()
	try(t, os.MkdirAll(filepath.Dir(filepath.Join(s.root, name)), 0o755))
	try(t, os.WriteFile(filepath.Join(s.root, name), []byte(content), 0o644))
}

func own(n cluster.NodeID, name string) string { return "md." + string(n) + "/resources/" + name }

// holdings returns every file below .shaman that is no dot file, slot, identity
// or event log, by its path, with its content.
func holdings(t tester, s *Store) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, part := range []string{"md.*/resources", "pool/*", "broken"} {
		dirs, err := filepath.Glob(filepath.Join(s.root, part))
		try(t, err)
		for _, dir := range dirs {
			entries, err := os.ReadDir(dir)
			try(t, err)
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), ".") || strings.HasPrefix(filepath.Base(dir), ".") {
					continue
				}
				rel, err := filepath.Rel(s.root, filepath.Join(dir, e.Name()))
				try(t, err)
				data, err := os.ReadFile(filepath.Join(dir, e.Name()))
				if err != nil {
					data = []byte("(" + e.Type().String() + ")")
				}
				out[rel] = string(data)
			}
		}
	}
	return out
}

func wantHoldings(t tester, s *Store, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, holdings(t, s)); diff != "" {
		t.Errorf("what lies where:\n%s", diff)
	}
}

func wantNoTemporaryFiles(t tester, s *Store) {
	t.Helper()
	try(t, filepath.WalkDir(s.root, func(p string, d fs.DirEntry, err error) error {
		if name := d.Name(); err == nil && p != s.root && strings.HasPrefix(name, ".") && name != incFile && name != doneFile {
			t.Errorf("left behind: %s", p)
		}
		return err
	}))
}

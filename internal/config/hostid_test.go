package config

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// vendorsOwn is the id that a node of the original's storage has, which counts
// before anything that is made.
func vendorsOwn(t *testing.T) (cluster.NodeID, bool) {
	t.Helper()
	_, err := os.Stat(vendorHostID)
	if err != nil {
		return "", false
	}
	id, err := ResolveHostID(Local{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return id, true
}

func TestAHostIDIsMadeOnceThoughManyAskAtTheSameTime(t *testing.T) {
	l := Local{StateDir: filepath.Join(t.TempDir(), "made", "with", "parents")}
	const askers = 32
	ids := make([]cluster.NodeID, askers)
	var wg sync.WaitGroup
	for i := range askers {
		wg.Go(func() {
			id, err := ResolveHostID(l)
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || id == "" {
			t.Fatalf("two ids of one node: %v", ids)
		}
	}
	if want, has := vendorsOwn(t); has {
		if ids[0] != want {
			t.Fatalf("host id %s, want the vendor's %s", ids[0], want)
		}
		return
	}
	left, err := os.ReadDir(l.StateDir)
	if err != nil || len(left) != 1 {
		t.Errorf("%d files are left in STATE_DIR (%v), want host_id alone", len(left), err)
	}
}

func TestTheConfiguredHostIDCountsFirst(t *testing.T) {
	got, err := ResolveHostID(Local{HostID: "00000000000000aa", StateDir: "/nowhere"})
	if err != nil || got != "00000000000000aa" {
		t.Errorf("%s, %v", got, err)
	}
}

func TestADamagedHostIDIsNotReplaced(t *testing.T) {
	if _, has := vendorsOwn(t); has {
		return // STATE_DIR is not looked at on such a node
	}
	l := Local{StateDir: t.TempDir()}
	file := filepath.Join(l.StateDir, "host_id")
	if err := os.WriteFile(file, []byte("0123"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := ResolveHostID(l); err == nil {
		t.Errorf("a damaged file gave the id %s", got)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "0123" {
		t.Errorf("the file holds %q now, %v", data, err)
	}
}

func TestBootID(t *testing.T) {
	file := filepath.Join(t.TempDir(), "boot_id")
	if _, err := BootID(Local{BootIDFile: file}); err == nil {
		t.Error("a missing file gave an id")
	}
	for text, want := range map[string]string{"b1\n": "b1", " b2 ": "b2", "": "", "\n": ""} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := BootID(Local{BootIDFile: file}); got != want || (err == nil) != (want != "") {
			t.Errorf("%q gave %q, %v", text, got, err)
		}
	}
}

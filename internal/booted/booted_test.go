package booted_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/booted"
)

// The versions that the daemon is built as: upgrade is what comes after version.
const version, upgrade = "1.0.0", "1.0.1"

// envBin hands the programs under test to the second life of this process.
const envBin = "BOOTED_BIN"

// room is where all boxes of these tests stand; nil = none can be booted, and
// cannot says why.
var (
	room   *booted.Room
	cannot string
)

// bin is where the programs under test were built.
var bin string

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if cannot = booted.Missing(); cannot != "" {
		return m.Run(), nil
	}
	if bin = os.Getenv(envBin); bin == "" {
		if bin, err = os.MkdirTemp("", "shaman-bin-"); err != nil {
			return 0, err
		}
		if err := build(); err != nil {
			return 0, err
		}
		os.Setenv(envBin, bin)
	}
	defer os.RemoveAll(bin)
	if room, err = booted.Enter(); err != nil {
		cannot = err.Error() // root, but not of this machine
		return m.Run(), nil
	}
	defer func() {
		if lerr := room.Leave(); lerr != nil && err == nil {
			err = lerr
		}
	}()
	return m.Run(), nil
}

// build makes the daemon with the race detector, in two versions, and the others as users get them.
func build() error {
	const path = "github.com/shaman-ha/shaman/"
	for _, args := range [][]string{
		{"build", "-o", bin + "/", path + "cmd/shaman", path + "cmd/shaman-lab-ve"},
		{"build", "-race", "-ldflags", "-X " + path + "internal/daemon.Version=" + version, "-o", filepath.Join(bin, version) + "/", path + "cmd/shaman-monitor"},
		{"build", "-race", "-ldflags", "-X " + path + "internal/daemon.Version=" + upgrade, "-o", filepath.Join(bin, upgrade) + "/", path + "cmd/shaman-monitor"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build the programs under test: %w", err)
		}
	}
	return nil
}

// needSystemd: CI runs where a systemd can be booted, and fails if it cannot be there.
func needSystemd(t *testing.T) {
	t.Helper()
	if cannot == "" {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("this has to run in CI: it boots a systemd; %s", cannot)
	}
	t.Skipf("NOT RUN: these tests boot a systemd; %s", cannot)
}

// monitor is the daemon of a version.
func monitor(version string) string { return filepath.Join(bin, version, "shaman-monitor") }

// newBox makes a box that is on, and thrown away when the test ends.
func newBox(t *testing.T, o booted.Options) *booted.Box {
	t.Helper()
	needSystemd(t)
	b, err := room.NewBox(o)
	must(t, err)
	t.Cleanup(func() {
		if err := b.Remove(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wait polls until f holds; patience is far beyond what a loaded machine needs.
func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(booted.Patience); !f(); time.Sleep(30 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", booted.Patience, what)
		}
	}
}

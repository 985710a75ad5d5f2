package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"go.uber.org/zap"
)

// lab is a directory of VEs, whose commands write their pids down.
type lab struct{ mount, state, run string }

func newLab(t *testing.T) lab {
	return lab{mount: t.TempDir(), state: t.TempDir(), run: t.TempDir()}
}

func (l lab) options() Options {
	return Options{StateDir: l.state, RunDir: l.run, Logger: zap.NewNop()}
}

func (l lab) open(t *testing.T) *Driver {
	t.Helper()
	d, err := New(l.options())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// make makes a VE. Its command appends its pid to the file pids beside ve.conf,
// named without a directory: a VE runs in its own.
func (l lab) make(t *testing.T, name string, stubborn bool) string {
	t.Helper()
	command := "echo $$ >>pids; exec sleep 1000"
	if stubborn {
		command = "trap '' TERM; echo $$ >>pids; while :; do sleep 0.05; done"
	}
	path := filepath.Join(l.mount, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	l.conf(t, path, "COMMAND="+command+"\n")
	return path
}

func (l lab) conf(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(path, "ve.conf"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// pids are those of the VE's commands, one a start.
func (l lab) pids(t *testing.T, path string) (out []int) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path, "pids"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(string(data)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, n)
	}
	return out
}

func (l lab) end(t *testing.T, path string, how cluster.StopCause) {
	t.Helper()
	pids := l.pids(t, path)
	sig := syscall.SIGTERM
	if how == cluster.CauseCrash {
		sig = syscall.SIGKILL
	}
	if err := syscall.Kill(pids[len(pids)-1], sig); err != nil {
		t.Fatal(err)
	}
}

// state returns what a driver says of a path.
func state(t *testing.T, d *Driver, path string) cluster.VE {
	t.Helper()
	ves, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range ves {
		if v.Path == path {
			return v
		}
	}
	return cluster.VE{}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

// runVE makes a VE that runs until the test ends.
func (l lab) runVE(t *testing.T, d *Driver, name string) string {
	t.Helper()
	path := l.make(t, name, false)
	t.Cleanup(func() {
		if err := d.Stop(context.Background(), path, true); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(d.Register(t.Context(), path), d.Start(t.Context(), path)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the command runs", func() bool { return len(l.pids(t, path)) == 1 })
	return path
}

func TestDriver(t *testing.T) {
	l := newLab(t)
	drivertest.Run(t, drivertest.Harness{
		Open:   func(t *testing.T) hypervisor.Driver { return l.open(t) },
		Make:   l.make,
		End:    l.end,
		Starts: func(t *testing.T, path string) int { return len(l.pids(t, path)) },
		Other: func(t *testing.T) hypervisor.Driver {
			o := l.options()
			o.StateDir, o.RunDir = t.TempDir(), t.TempDir()
			d, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
	})
	dirs, err := filepath.Glob(filepath.Join(l.mount, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range dirs {
		for _, pid := range l.pids(t, path) {
			if syscall.Kill(pid, 0) == nil && cwd(pid) == path {
				t.Errorf("process %d of %s is left running", pid, path)
			}
		}
	}
}

func cwd(pid int) string {
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return ""
	}
	return dir
}

func TestARunningVENeedsNoDefinition(t *testing.T) {
	l := newLab(t)
	d := l.open(t)
	path := l.runVE(t, d, "a")
	if err := os.Remove(filepath.Join(path, "ve.conf")); err != nil {
		t.Fatal(err)
	}
	t.Run("starting it again is no failure", func(t *testing.T) {
		if err := d.Start(t.Context(), path); err != nil {
			t.Errorf("start = %v: whoever starts it would take the VE for failed and stop it", err)
		}
	})
	t.Run("a driver that never read it lists it as running and protected", func(t *testing.T) {
		v := state(t, l.open(t), path)
		if v.State != cluster.VERunning || !v.HA {
			t.Errorf("state %q, HA %v: who stops all HA VEs would pass it by", v.State, v.HA)
		}
	})
}

func TestAVEOutlivesTheDriver(t *testing.T) {
	l := newLab(t)
	path := l.runVE(t, l.open(t), "a")
	next := l.open(t)
	l.end(t, path, cluster.CauseCrash)
	eventually(t, "the crash is seen by the next daemon", func() bool {
		v := state(t, next, path)
		return v.State == cluster.VEStopped && v.Cause == cluster.CauseCrash
	})
}

// The kernel blocks a whole thread of the daemon between fork and exec: what
// happens there must not wait for the shared file system.
func TestTheCommandAloneLivesInTheVEsDirectory(t *testing.T) {
	l := newLab(t)
	d := l.open(t)
	path := l.runVE(t, d, "a")
	if got := cwd(l.pids(t, path)[0]); got != path {
		t.Errorf("the command runs in %q, want %q", got, path)
	}
	v := d.get(path)
	eventually(t, "the group is known", func() bool { return v.group() != 0 })
	if got := cwd(v.group()); got != "/" {
		t.Errorf("the process that the daemon forked is in %q, want /", got)
	}
}

func TestACommandThatFailsIsACrash(t *testing.T) {
	l := newLab(t)
	d := l.open(t)
	path := l.runVE(t, d, "a")
	l.conf(t, path, "COMMAND=exit 3\n")
	if err := errors.Join(d.Stop(t.Context(), path, true), d.Start(t.Context(), path)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a command that fails is a crash", func() bool {
		v := state(t, d, path)
		return v.State == cluster.VEStopped && v.Cause == cluster.CauseCrash
	})
}

// What runs, and is not known, would be told to be stopped.
func TestARegistrationOfARunningVEHasToBeRead(t *testing.T) {
	l := newLab(t)
	path := l.runVE(t, l.open(t), "a")
	file := filepath.Join(l.state, "process", key(path)+".json")
	if err := os.WriteFile(file, []byte(`{"pa`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(l.options()); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("New = %v; want one that names %s", err, file)
	}
	l.end(t, path, cluster.CauseCrash)
	eventually(t, "it is let go once its VE has ended", func() bool {
		_, err := New(l.options())
		return err == nil
	})
}

func TestARegistrationThatCannotBeReadHoldsNobodyElse(t *testing.T) {
	l := newLab(t)
	path := l.make(t, "a", false)
	if err := l.open(t).Register(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"torn.json": `{"pa`, "empty.json": "", "none.json": `{}`, "other": "x"} {
		if err := os.WriteFile(filepath.Join(l.state, "process", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ves, err := l.open(t).List(t.Context())
	if err != nil || len(ves) != 1 || ves[0].Path != path {
		t.Errorf("List = %v, %v; want %s alone", ves, err, path)
	}
}

package lxc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/lxc/lxctest"
)

// shell runs a command on a node, as an operator does, and returns its output.
func (h host) shell(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"-t", strconv.Itoa(h.Init(t)), "-m", "-p", "-n", "-u", "--"}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

func (h host) byHand(t *testing.T, path string) {
	t.Helper()
	h.shell(t, "lxc-start", "-P", filepath.Dir(path), "-n", filepath.Base(path), "-d")
}

// parent is the parent of a process.
func parent(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "\nPPid:")
	var ppid int
	_, err = fmt.Sscan(rest, &ppid)
	must(t, err)
	return ppid
}

func theInit(t *testing.T, path string) int {
	t.Helper()
	var pids []int
	eventually(t, "it has one first process", func() bool { pids = lxctest.Inits(path); return len(pids) == 1 })
	return pids[0]
}

func TestWhatRunsWithoutARegistrationIsListedAndStopped(t *testing.T) {
	mount := t.TempDir()
	h := newHost(t, mount)
	d := h.open(t)
	for _, name := range []string{"by hand", "long-" + strings.Repeat("x", 120)} {
		path := made(t, lxctest.Container{Path: filepath.Join(mount, "ct", name), HA: true})
		h.byHand(t, path)
		if v, listed := find(t, d, path); !listed || v.State != cluster.VERunning || !v.HA {
			t.Errorf("%s: listed %v, as %+v; want running and HA", name, listed, v)
		}
		if err := d.Start(t.Context(), path); !errors.Is(err, cluster.ErrNoVE) {
			t.Errorf("start of one that is not registered = %v, want ErrNoVE", err)
		}
		must(t, errors.Join(d.Register(t.Context(), path), d.Start(t.Context(), path)))
		if n := lxctest.Boots(path); n > 1 {
			t.Errorf("%s: booted %d times, want once: it ran already", name, n)
		}
		must(t, d.Stop(t.Context(), path, true))
		if pids := lxctest.Inits(path); len(pids) > 0 {
			t.Errorf("%s: lives after its stop", name)
		}
		must(t, d.Unregister(t.Context(), path))
	}
}

// A start by hand does not tell how it ends, and how the one before ended is no word on it.
func TestTheEndOfAStartByHandIsNotThatOfTheOneBefore(t *testing.T) {
	mount := t.TempDir()
	h := newHost(t, mount)
	d := h.open(t)
	path := made(t, lxctest.Container{Path: filepath.Join(mount, "ct", "twice"), HA: true})
	must(t, errors.Join(d.Register(t.Context(), path), d.Start(t.Context(), path)))
	eventually(t, "it has booted", func() bool { return lxctest.Boots(path) == 1 })
	must(t, d.Stop(t.Context(), path, false))
	if v, _ := find(t, d, path); v.Cause != cluster.CauseStop {
		t.Fatalf("stopped by %q, want a stop", v.Cause)
	}
	h.byHand(t, path)
	if v, _ := find(t, d, path); v.State != cluster.VERunning {
		t.Fatalf("listed as %q, want running", v.State)
	}
	must(t, syscall.Kill(theInit(t, path), syscall.SIGKILL))
	eventually(t, "it is listed as stopped", func() bool { v, _ := find(t, d, path); return v.State == cluster.VEStopped })
	if v, _ := find(t, d, path); v.Cause == cluster.CauseStop {
		t.Error("the crash of one that was started by hand is told as the guest's own stop")
	}
	must(t, errors.Join(d.Start(t.Context(), path), d.Stop(t.Context(), path, true), d.Unregister(t.Context(), path)))
}

func TestAnotherNameOfTheSameDirectoryIsTheSameContainer(t *testing.T) {
	mount, elsewhere := t.TempDir(), t.TempDir()
	h := newHost(t, mount)
	d := h.open(t)
	path := made(t, lxctest.Container{Path: filepath.Join(mount, "ct", "linked"), HA: true})
	must(t, errors.Join(d.Register(t.Context(), path), os.Symlink(path, filepath.Join(elsewhere, "linked"))))
	h.byHand(t, filepath.Join(elsewhere, "linked"))
	if v, _ := find(t, d, path); v.State != cluster.VERunning {
		t.Errorf("state %q of one that runs under a link; want running", v.State)
	}
	must(t, d.Stop(t.Context(), path, true))
	eventually(t, "its monitor is gone", func() bool { return len(lxctest.Inits(path)) == 0 })
}

func TestAMonitorThatIsKilled(t *testing.T) {
	mount := t.TempDir()
	h := newHost(t, mount)
	d := h.open(t)
	t.Run("takes its guest with it, and that is no stop", func(t *testing.T) {
		path := running(t, d, lxctest.Container{Path: filepath.Join(mount, "ct", "mon"), HA: true})
		must(t, syscall.Kill(parent(t, theInit(t, path)), syscall.SIGKILL))
		eventually(t, "it is listed as stopped", func() bool { v, _ := find(t, d, path); return v.State == cluster.VEStopped })
		if v, _ := find(t, d, path); v.Cause == cluster.CauseStop {
			t.Error("it is told to have been stopped")
		}
		must(t, d.Start(t.Context(), path))
		eventually(t, "it boots again", func() bool { return lxctest.Boots(path) == 2 })
		must(t, d.Stop(t.Context(), path, true))
	})
	for _, registered := range []bool{true, false} {
		t.Run(fmt.Sprintf("and leaves a guest that outlives it, registered %v", registered), func(t *testing.T) {
			// Signal 0 is none: the guest is not told of its monitor's death.
			path := made(t, lxctest.Container{Path: filepath.Join(mount, "ct", fmt.Sprint("orphan", registered)), HA: true, Config: "lxc.monitor.signal.pdeath = 0\n"})
			must(t, d.Register(t.Context(), path))
			if registered {
				must(t, d.Start(t.Context(), path))
			} else {
				h.byHand(t, path)
			}
			init := theInit(t, path)
			must(t, syscall.Kill(parent(t, init), syscall.SIGKILL))
			eventually(t, "its monitor is gone", func() bool {
				status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", init))
				return err != nil || !strings.Contains(string(status), "lxc") && parent(t, init) == h.Init(t)
			})
			if len(lxctest.Inits(path)) == 0 {
				t.Skip("this version of LXC has no guest outlive its monitor")
			}
			for _, on := range []struct{ v cluster.VE }{{first(find(t, d, path))}, {first(find(t, h.open(t), path))}} {
				if on.v.State != cluster.VERunning {
					t.Errorf("state %q of a guest that lives; want running", on.v.State)
				}
			}
			must(t, d.Start(t.Context(), path))
			if n := len(lxctest.Inits(path)); n != 1 {
				t.Errorf("%d guests on one root", n)
			}
			must(t, d.Stop(t.Context(), path, true))
			if n := len(lxctest.Inits(path)); n != 0 {
				t.Error("it outlived a stop by force")
			}
		})
	}
}

func first(v cluster.VE, _ bool) cluster.VE { return v }

func TestNames(t *testing.T) {
	mount := t.TempDir()
	h := newHost(t, mount)
	d := h.open(t)
	for _, name := range []string{"a b;c", "$(exit 3)'\"", "-n", "üñ", `back\slash`, "#x", "dot.ted-1", "long-" + strings.Repeat("y", 150)} {
		t.Run(name, func(t *testing.T) {
			path := running(t, d, lxctest.Container{Path: filepath.Join(mount, "c t", name), HA: true})
			if v, _ := find(t, d, path); v.State != cluster.VERunning || v.Name != name {
				t.Errorf("listed as %+v", v)
			}
			must(t, d.Stop(t.Context(), path, false))
			if v, _ := find(t, d, path); v.State != cluster.VEStopped || v.Cause != cluster.CauseStop {
				t.Errorf("after a stop listed as %+v", v)
			}
		})
	}
}

func TestTwoOfOneNameAreTwo(t *testing.T) {
	mount := t.TempDir()
	d := newHost(t, mount).open(t)
	a := running(t, d, lxctest.Container{Path: filepath.Join(mount, "a", "web"), HA: true})
	b := made(t, lxctest.Container{Path: filepath.Join(mount, "b", "web"), HA: true})
	must(t, d.Register(t.Context(), b))
	if v, _ := find(t, d, b); v.State != cluster.VEStopped {
		t.Errorf("the other one is %q, want stopped", v.State)
	}
	must(t, errors.Join(d.Start(t.Context(), b), d.Stop(t.Context(), a, true)))
	if va, vb := first(find(t, d, a)), first(find(t, d, b)); va.State != cluster.VEStopped || vb.State != cluster.VERunning {
		t.Errorf("a is %q, b is %q; want stopped, running", va.State, vb.State)
	}
	must(t, d.Stop(t.Context(), b, false))
}

func TestAGuestThatRebootsRunsOn(t *testing.T) {
	mount := t.TempDir()
	d := newHost(t, mount).open(t)
	path := running(t, d, lxctest.Container{Path: filepath.Join(mount, "ct", "again"), HA: true})
	must(t, os.WriteFile(filepath.Join(path, "rootfs/reboot"), nil, 0o644))
	eventually(t, "it boots again", func() bool {
		if v, _ := find(t, d, path); v.State != cluster.VERunning {
			t.Fatalf("state %q while it reboots", v.State)
		}
		return lxctest.Boots(path) == 2
	})
	must(t, os.WriteFile(filepath.Join(path, "rootfs/poweroff"), nil, 0o644))
	eventually(t, "it is stopped", func() bool { v, _ := find(t, d, path); return v.State == cluster.VEStopped })
	if v, _ := find(t, d, path); v.Cause != cluster.CauseStop {
		t.Errorf("cause %q after a power-off, want stop", v.Cause)
	}
}

func TestAFrozenContainerIsStoppedByForce(t *testing.T) {
	mount := t.TempDir()
	h := newHost(t, mount)
	d := h.open(t)
	path := running(t, d, lxctest.Container{Path: filepath.Join(mount, "ct", "ice"), HA: true})
	h.shell(t, "lxc-freeze", "-P", filepath.Dir(path), "-n", "ice")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	must(t, d.Stop(ctx, path, true))
}

func TestADefinitionThatCannotBeRead(t *testing.T) {
	mount := t.TempDir()
	h := newHost(t, mount)
	d := h.open(t)
	path := running(t, d, lxctest.Container{Path: filepath.Join(mount, "ct", "torn"), HA: true})
	must(t, errors.Join(os.Remove(filepath.Join(path, "config")), os.WriteFile(filepath.Join(path, "shaman.conf"), []byte("HA_ENABLE"), 0o644)))
	if v, _ := find(t, h.open(t), path); v.State != cluster.VERunning || !v.HA {
		t.Errorf("listed as %+v; want running, and HA: who stops all HA VEs must not pass it by", v)
	}
	must(t, d.Start(t.Context(), path))
	must(t, d.Stop(t.Context(), path, true))
	if err := d.Start(t.Context(), path); err == nil || errors.Is(err, cluster.ErrHold) {
		t.Errorf("start without a config = %v, want one of the container's own", err)
	}
}

func TestAContainerThatCannotStartSaysWhy(t *testing.T) {
	mount := t.TempDir()
	d := newHost(t, mount).open(t)
	path := made(t, lxctest.Container{Path: filepath.Join(mount, "ct", "bad"), HA: true, Config: "lxc.init.cmd = /no/such/init\n"})
	must(t, d.Register(t.Context(), path))
	if err := d.Start(t.Context(), path); err == nil || !strings.Contains(err.Error(), "/no/such/init") || errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("start = %v; want one that names the init that is not there", err)
	}
	if v, _ := find(t, d, path); v.State != cluster.VEStopped || v.Cause == cluster.CauseStop {
		t.Errorf("listed as %+v after a start that failed", v)
	}
}

func TestAMountThatHangs(t *testing.T) {
	lxctest.Need(t)
	m := lxctest.MountFUSE(t)
	h := newHost(t, m.Dir)
	d := h.open(t)
	up := running(t, d, lxctest.Container{Path: filepath.Join(m.Dir, "ct", "up"), HA: true})
	down := made(t, lxctest.Container{Path: filepath.Join(m.Dir, "ct", "down"), HA: true})
	must(t, d.Register(t.Context(), down))
	t.Cleanup(func() {
		m.Resume()
		for _, path := range []string{up, down} {
			if err := d.Stop(context.Background(), path, true); err != nil {
				t.Error(err)
			}
		}
	})
	m.Hang()
	for _, on := range []string{"the driver that knows it", "a driver that never read it"} {
		if on != "the driver that knows it" {
			d = h.open(t)
		}
		for path, want := range map[string]cluster.VEState{up: cluster.VERunning, down: cluster.VEStopped} {
			begun := time.Now()
			if v, listed := find(t, d, path); !listed || v.State != want || !v.HA {
				t.Errorf("%s: listed %v, as %+v; want %s and HA", on, listed, v, want)
			}
			if took := time.Since(begun); took > 20*time.Second {
				t.Errorf("%s: the list took %s", on, took)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := d.Start(ctx, down); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("start on a mount that hangs = %v, want ErrCannotAsk", err)
	}
	if err := d.Barrier(ctx); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("barrier = %v, want ErrCannotAsk: a start is under way", err)
	}
	// The guest may hang in the kernel with its files: then it is not proven stopped.
	fctx, fcancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer fcancel()
	if err := d.Stop(fctx, up, true); err != nil && !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("stop by force on a mount that hangs = %v", err)
	}
	m.Resume()
	must(t, d.Barrier(t.Context()))
	must(t, errors.Join(d.Stop(t.Context(), up, true), d.Stop(t.Context(), down, true), d.Start(t.Context(), down)))
}

// An overlay has no name on the host that would tell whose it is.
func TestAGuestWithoutAMonitorThatMayBeOneOfTwo(t *testing.T) {
	mount := t.TempDir()
	h := newHost(t, mount)
	d := h.open(t)
	path := filepath.Join(mount, "a", "twin")
	made(t, lxctest.Container{Path: path, HA: true, Config: fmt.Sprintf("lxc.monitor.signal.pdeath = 0\nlxc.rootfs.path = overlay:%s/rootfs:%s/delta\n", path, path)})
	must(t, os.Mkdir(filepath.Join(path, "delta"), 0o755))
	other := made(t, lxctest.Container{Path: filepath.Join(mount, "b", "twin"), HA: true})
	must(t, errors.Join(d.Register(t.Context(), path), d.Register(t.Context(), other)))
	h.byHand(t, path)
	if v, _ := find(t, d, other); v.State != cluster.VEStopped {
		t.Errorf("the other is %q while a monitor tells whose guest it is; want stopped", v.State)
	}
	init := h.shell(t, "lxc-info", "-P", filepath.Dir(path), "-n", "twin", "-p", "-H")
	h.shell(t, "sh", "-c", `kill -9 "$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$1/status)"`, "sh", init)
	eventually(t, "both count as running", func() bool {
		return first(find(t, d, path)).State == cluster.VERunning && first(find(t, d, other)).State == cluster.VERunning
	})
	if err := d.Stop(t.Context(), path, true); err == nil || !strings.Contains(err.Error(), "process "+init) {
		t.Errorf("stop by force = %v; want one that names process %s: it may be the other's", err, init)
	}
	h.shell(t, "kill", "-9", init)
	eventually(t, "both are stopped", func() bool {
		return first(find(t, d, path)).State == cluster.VEStopped && first(find(t, d, other)).State == cluster.VEStopped
	})
	must(t, errors.Join(d.Stop(t.Context(), path, true), d.Stop(t.Context(), other, true)))
}

func TestAConfigWithALogOfItsOwn(t *testing.T) {
	mount := t.TempDir()
	d := newHost(t, mount).open(t)
	log := filepath.Join(t.TempDir(), "log")
	path := running(t, d, lxctest.Container{Path: filepath.Join(mount, "ct", "logs"), HA: true, Config: "lxc.log.level = ERROR\nlxc.log.file = " + log + "\n"})
	killInit(t, path)
	eventually(t, "it is stopped", func() bool { return first(find(t, d, path)).State == cluster.VEStopped })
	if v, _ := find(t, d, path); v.Cause != cluster.CauseCrash {
		t.Errorf("cause %q, want crash", v.Cause)
	}
}

package lxc_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"github.com/shaman-ha/shaman/internal/hypervisor/lxc"
	"github.com/shaman-ha/shaman/internal/hypervisor/lxc/lxctest"
)

func TestMain(m *testing.M) {
	if os.Getenv("SHAMAN_LXC_NODE") != "" {
		lxctest.Main(func(options []byte) (hypervisor.Driver, error) {
			var o lxc.Options
			if err := json.Unmarshal(options, &o); err != nil {
				return nil, err
			}
			return lxc.New(o)
		})
		return
	}
	m.Run()
}

// options are lxc.Options as a node is told them.
type options struct {
	Mount, StateDir, RunDir, Tools string
	StopTimeout                    time.Duration
}

// host is a node with a mount that others may share.
type host struct {
	*lxctest.Node
	o options
}

// newHost starts a node.
func newHost(t *testing.T, mount string) host {
	t.Helper()
	lxctest.Need(t)
	return host{lxctest.StartNode(t), options{Mount: mount, StateDir: t.TempDir(), RunDir: t.TempDir(), Tools: tools(t), StopTimeout: time.Minute}}
}

func (h host) open(t *testing.T) hypervisor.Driver {
	t.Helper()
	return h.Driver(t, h.o)
}

// tools makes a directory of tools that hang while there is a file named hang in it.
func tools(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"lxc-start", "lxc-stop"} {
		text := fmt.Sprintf("#!/bin/sh\nwhile [ -e '%s/hang' ]; do sleep 0.05; done\nexec /usr/bin/%s \"$@\"\n", dir, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func made(t *testing.T, c lxctest.Container) string {
	t.Helper()
	t.Cleanup(func() { lxctest.RemoveGroups(filepath.Base(c.Path)) })
	if err := lxctest.Make(c); err != nil {
		t.Fatal(err)
	}
	return c.Path
}

// patience bounds the wait for what must come; no test that passes waits for it.
const patience = 60 * time.Second

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDriver(t *testing.T) {
	mount := t.TempDir()
	one, two := newHost(t, mount), newHost(t, mount)
	var opened hypervisor.Driver // the last one
	drivertest.Run(t, drivertest.Harness{
		Open: func(t *testing.T) hypervisor.Driver {
			opened = one.open(t)
			return opened
		},
		Make: func(t *testing.T, name string, stubborn bool) string {
			return made(t, lxctest.Container{Path: filepath.Join(mount, "ct", name), Stubborn: stubborn, HA: true})
		},
		End: func(t *testing.T, path string, how cluster.StopCause) {
			if how == cluster.CauseStop {
				must(t, lxctest.Shutdown(path))
				return
			}
			killInit(t, path)
		},
		Starts: func(_ *testing.T, path string) int { return lxctest.Boots(path) },
		Hang: func(t *testing.T) func() {
			file := filepath.Join(one.o.Tools, "hang")
			must(t, os.WriteFile(file, nil, 0o644))
			return func() { os.Remove(file) }
		},
		Spared: []string{"list", "kill"},
		Other:  two.open,
		SelfStart: func(t *testing.T, path string) {
			appendTo(t, filepath.Join(path, "config"), "lxc.start.auto = 1\n")
		},
		Unfit: func(t *testing.T, name string) (string, string) {
			path := made(t, lxctest.Container{Path: filepath.Join(mount, "ct", name), HA: true, Config: "lxc.mount.entry = /srv/local srv none bind,rw 0 0\n"})
			must(t, opened.Register(t.Context(), path))
			return path, "/srv/local"
		},
	})
	if left, err := filepath.Glob(filepath.Join(mount, "ct", "*")); err == nil {
		for _, path := range left {
			if pids := lxctest.Inits(path); len(pids) > 0 {
				t.Errorf("%s is left running", path)
			}
		}
	}
}

func appendTo(t *testing.T, file, text string) {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, append(data, text...), 0o644))
}

// killInit kills the first process of a container, which runs once.
func killInit(t *testing.T, path string) {
	t.Helper()
	var pids []int
	eventually(t, "its first process is found", func() bool { pids = lxctest.Inits(path); return len(pids) == 1 })
	must(t, syscall.Kill(pids[0], syscall.SIGKILL))
}

// find returns what a driver lists of a path.
func find(t *testing.T, d hypervisor.Driver, path string) (cluster.VE, bool) {
	t.Helper()
	ves, err := d.List(t.Context())
	must(t, err)
	for _, v := range ves {
		if v.Path == path {
			return v, true
		}
	}
	return cluster.VE{}, false
}

// running registers and starts a container.
func running(t *testing.T, d hypervisor.Driver, c lxctest.Container) string {
	t.Helper()
	path := made(t, c)
	n := lxctest.Boots(path)
	must(t, errors.Join(d.Register(t.Context(), path), d.Start(t.Context(), path)))
	eventually(t, "it counts its boot", func() bool { return lxctest.Boots(path) == n+1 })
	return path
}

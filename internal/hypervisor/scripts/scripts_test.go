package scripts

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

//go:embed testdata/demo/*
var demo embed.FS

// lab is a shared file system and one node: scripts, resources, and what the
// driver keeps. The type demo runs real processes by real shell scripts.
type lab struct {
	mount, state, run, local string
	log                      *zap.Logger
	logs                     *observer.ObservedLogs
}

func newLab(t *testing.T) *lab {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	l := &lab{mount: t.TempDir(), state: t.TempDir(), run: t.TempDir(), local: t.TempDir(), log: zap.New(core), logs: logs}
	files, err := demo.ReadDir("testdata/demo")
	must(t, err)
	for _, f := range files {
		data, err := demo.ReadFile("testdata/demo/" + f.Name())
		must(t, err)
		l.script(t, l.shared(), "demo-/"+f.Name(), string(data))
	}
	must(t, os.MkdirAll(filepath.Join(l.mount, ".shaman"), 0o755))
	must(t, os.WriteFile(filepath.Join(l.mount, identityFile), []byte("NAME=lab\n"), 0o644))
	return l
}

func (l *lab) shared() string { return filepath.Join(l.mount, SharedDir) }

func (l *lab) options() Options {
	return Options{
		Dirs: []string{l.shared(), l.local}, Mount: l.mount, Node: "00000000000000aa", StateDir: l.state, RunDir: l.run,
		DescribeAge: time.Millisecond, DescribeTimeout: 20 * time.Second, Logger: l.log,
	}
}

func (l *lab) open(t *testing.T) *Driver { t.Helper(); return open(t, l.options()) }

func open(t *testing.T, o Options) *Driver {
	t.Helper()
	d, err := New(o)
	must(t, err)
	return d
}

// script makes one, whole before it has its name.
func (l *lab) script(t *testing.T, dir, name, text string) string {
	t.Helper()
	if !strings.HasPrefix(text, "#!") {
		text = "#!/bin/sh\n" + text + "\n"
	}
	path := filepath.Join(dir, name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path+".new", []byte(text), 0o755))
	must(t, os.Rename(path+".new", path))
	return path
}

// make makes a resource of type demo.
func (l *lab) make(t *testing.T, name string, stubborn bool) string {
	t.Helper()
	path := filepath.Join(l.mount, "demo", name)
	must(t, os.MkdirAll(path, 0o755))
	if stubborn {
		must(t, os.WriteFile(filepath.Join(path, "shaman.conf"), []byte("# deaf\nSTUBBORN=yes\n"), 0o644))
	}
	return path
}

// one makes a registered resource of a type of its own, whose scripts are these.
func (l *lab) one(t *testing.T, scripts map[string]string) string {
	t.Helper()
	for name, text := range scripts {
		l.script(t, l.local, "own-/"+name, text)
	}
	for _, name := range needed {
		if _, err := os.Stat(filepath.Join(l.local, "own-", name)); err != nil {
			l.script(t, l.local, "own-/"+name, map[string]string{"describe": "echo STATE=stopped"}[name])
		}
	}
	path := filepath.Join(l.mount, "own", "it")
	must(t, os.MkdirAll(path, 0o755))
	return path
}

func (l *lab) pids(t *testing.T, path string) (out []int) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path, "pids"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(string(data)) {
		n, err := strconv.Atoi(f)
		must(t, err)
		out = append(out, n)
	}
	return out
}

func (l *lab) end(t *testing.T, path string, how cluster.StopCause) {
	t.Helper()
	pids := l.pids(t, path)
	sig := syscall.SIGTERM
	if how == cluster.CauseCrash {
		sig = syscall.SIGKILL
	}
	must(t, syscall.Kill(pids[len(pids)-1], sig))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

// state returns what a driver says of a path.
func state(t *testing.T, d *Driver, path string) cluster.VE {
	t.Helper()
	ves, err := d.List(t.Context())
	must(t, err)
	for _, v := range ves {
		if v.Path == path {
			return v
		}
	}
	return cluster.VE{}
}

func TestDriver(t *testing.T) {
	l := newLab(t)
	hang := filepath.Join(l.mount, "hang")
	for _, purpose := range []string{"describe", "start", "stop"} {
		l.script(t, l.local, "00-"+purpose, `while [ -e "$SHAMAN_MOUNT/hang" ]; do sleep 0.02; done`)
	}
	var d *Driver // the one under test
	drivertest.Run(t, drivertest.Harness{
		Open:   func(t *testing.T) hypervisor.Driver { d = l.open(t); return d },
		Make:   l.make,
		End:    l.end,
		Starts: func(t *testing.T, path string) int { return len(l.pids(t, path)) },
		Hang: func(t *testing.T) func() {
			must(t, os.WriteFile(hang, nil, 0o644))
			return func() { _ = os.Remove(hang) }
		},
		Other: func(t *testing.T) hypervisor.Driver {
			o := l.options()
			o.StateDir, o.RunDir, o.Node = t.TempDir(), t.TempDir(), "00000000000000bb"
			return open(t, o)
		},
		Unfit: func(t *testing.T, _ string) (string, string) {
			path := filepath.Join(t.TempDir(), "demo", "homebound")
			must(t, os.MkdirAll(path, 0o755))
			must(t, d.Register(t.Context(), path))
			t.Cleanup(func() { must(t, d.Unregister(context.Background(), path)) })
			return path, "not on the shared file system"
		},
		SelfStart: func(t *testing.T, path string) {
			must(t, os.WriteFile(filepath.Join(d.runDir(keyOf(path)), "autostart"), nil, 0o644))
		},
	})
	dirs, err := filepath.Glob(filepath.Join(l.mount, "demo", "*"))
	must(t, err)
	for _, path := range dirs {
		for _, pid := range l.pids(t, path) {
			env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
			if slices.Contains(strings.Split(string(env), "\x00"), "SHAMAN_PATH="+path) {
				t.Errorf("process %d of %s is left running", pid, path)
			}
		}
	}
}

// runVE makes a resource of type demo that runs until the test ends.
func (l *lab) runVE(t *testing.T, d *Driver, name string) string {
	t.Helper()
	path := l.make(t, name, false)
	t.Cleanup(func() { must(t, d.Stop(context.Background(), path, true)) })
	must(t, errors.Join(d.Register(t.Context(), path), d.Start(t.Context(), path)))
	eventually(t, "it counts its start", func() bool { return len(l.pids(t, path)) == 1 })
	return path
}

func TestExitCodesAreClasses(t *testing.T) {
	for code, want := range map[int]error{exitNoVE: cluster.ErrNoVE, exitCannotAsk: cluster.ErrCannotAsk, exitHold: cluster.ErrHold, exitLocked: cluster.ErrLocked, 1: nil, 2: nil, 127: nil} {
		l := newLab(t)
		path := l.one(t, map[string]string{"start": fmt.Sprintf("echo the reason >&2; exit %d", code)})
		d := l.open(t)
		must(t, d.Register(t.Context(), path))
		err := d.Start(t.Context(), path)
		for _, class := range []error{cluster.ErrNoVE, cluster.ErrCannotAsk, cluster.ErrHold, cluster.ErrLocked} {
			if got := errors.Is(err, class); got != errors.Is(want, class) {
				t.Errorf("exit code %d is %v: %v; error %v", code, class, got, err)
			}
		}
		if err == nil || !strings.Contains(err.Error(), "the reason") || !strings.Contains(err.Error(), strconv.Itoa(code)) {
			t.Errorf("exit code %d: %v; want the script's words and the code", code, err)
		}
	}
}

func TestWhatAScriptIsGiven(t *testing.T) {
	l := newLab(t)
	path := l.one(t, map[string]string{"start": `echo "$@" >"$SHAMAN_PATH/args"; env | grep ^SHAMAN_ >"$SHAMAN_PATH/env"; pwd >"$SHAMAN_PATH/pwd"; exit 1`})
	must(t, os.WriteFile(filepath.Join(path, "shaman.conf"), []byte("NAME=my disk\nTARGET=iqn.x\n"), 0o644))
	d := l.open(t)
	must(t, d.Register(t.Context(), path))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_ = d.Start(ctx, path)
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(path, name))
		must(t, err)
		return string(data)
	}
	if got, want := read("args"), "start own-my%20disk "+path+"\n"; got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	if got := read("pwd"); got != "/\n" {
		t.Errorf("it runs in %q, want /", got)
	}
	env := strings.Split(read("env"), "\n")
	for _, want := range []string{
		"SHAMAN_PURPOSE=start", "SHAMAN_TYPE=own", "SHAMAN_RESOURCE=own-my%20disk", "SHAMAN_NAME=my disk", "SHAMAN_PATH=" + path, "SHAMAN_NODE=00000000000000aa",
		"SHAMAN_MOUNT=" + l.mount, "SHAMAN_FORCE=0", "SHAMAN_CONF_TARGET=iqn.x", "SHAMAN_RUN=" + d.runDir(keyOf(path)), "SHAMAN_HINT=" + filepath.Join(d.hintDir(), keyOf(path)),
	} {
		if !slices.Contains(env, want) {
			t.Errorf("%s is missing in %q", want, env)
		}
	}
	if !slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "SHAMAN_TIMEOUT=5") }) {
		t.Errorf("SHAMAN_TIMEOUT is missing in %q", env)
	}
}

func TestScriptsAreNotTakenAtTheirWord(t *testing.T) {
	t.Run("a start that did nothing", func(t *testing.T) {
		l := newLab(t)
		path := l.one(t, nil)
		d := l.open(t)
		must(t, d.Register(t.Context(), path))
		if err := d.Start(t.Context(), path); err == nil || errors.Is(err, cluster.ErrCannotAsk) || !strings.Contains(err.Error(), "does not run") {
			t.Errorf("start = %v", err)
		}
	})
	for _, force := range []bool{false, true} {
		t.Run(fmt.Sprintf("a stop that did nothing, force %v", force), func(t *testing.T) {
			l := newLab(t)
			path := l.one(t, map[string]string{"describe": "echo STATE=running"})
			o := l.options()
			o.StopTimeout = 300 * time.Millisecond
			d := open(t, o)
			must(t, d.Register(t.Context(), path))
			if err := d.Stop(t.Context(), path, force); err == nil {
				t.Error("stop succeeded, and it runs")
			}
			if err := d.Unregister(t.Context(), path); err == nil {
				t.Error("unregistered while it runs")
			}
		})
	}
}

func TestAnUnknownStateIsNeitherRunningNorStopped(t *testing.T) {
	for name, describe := range map[string]string{
		"it says so": "echo STATE=unknown", "it fails": "exit 1", "it says nothing": "exit 0", "it babbles": "echo hello", "a bad value": "echo STATE=up",
		"a bad key": "echo STATE=stopped; echo COLOUR=red", "killed": "kill -9 $$", "no interpreter": "#!/no/such/interpreter\n",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			path := l.one(t, map[string]string{"describe": describe, "start": `touch "$SHAMAN_PATH/started"`})
			d := l.open(t)
			must(t, d.Register(t.Context(), path))
			for range 3 {
				if v := state(t, d, path); v.State != cluster.VEUnknown || !v.HA {
					t.Errorf("listed as %q, HA %v; want unknown and protected", v.State, v.HA)
				}
			}
			want := 1
			if name == "it says so" {
				want = 0
			}
			if n := l.logs.FilterMessageSnippet("cannot be described").Len(); n != want {
				t.Errorf("said %d times, want %d", n, want)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := d.Start(ctx, path); !errors.Is(err, cluster.ErrCannotAsk) {
				t.Errorf("start = %v, want ErrCannotAsk", err)
			}
			if err := d.Unregister(ctx, path); !errors.Is(err, cluster.ErrCannotAsk) {
				t.Errorf("unregister = %v, want ErrCannotAsk", err)
			}
			if _, err := os.Stat(filepath.Join(path, "started")); err == nil {
				t.Error("it was started, and may have run already")
			}
		})
	}
}

func TestNoSuchResourceDoesNotRun(t *testing.T) {
	l := newLab(t)
	path := l.one(t, map[string]string{"describe": "exit 66"})
	d := l.open(t)
	must(t, d.Register(t.Context(), path))
	if v := state(t, d, path); v.State != cluster.VEStopped {
		t.Errorf("listed as %q", v.State)
	}
	must(t, errors.Join(d.Stop(t.Context(), path, true), d.Unregister(t.Context(), path)))
}

func TestAStartPastItsDeadlineIsUnknownAndOver(t *testing.T) {
	l := newLab(t)
	path := l.one(t, map[string]string{"start": `echo $$ >"$SHAMAN_PATH/pid.new"; mv "$SHAMAN_PATH/pid.new" "$SHAMAN_PATH/pid"; sleep 1000 & wait`})
	d := l.open(t)
	must(t, d.Register(t.Context(), path))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(path, "pid")); err == nil {
				cancel()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if err := d.Start(ctx, path); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("start = %v, want ErrCannotAsk", err)
	}
	must(t, d.Barrier(t.Context()))
	data, err := os.ReadFile(filepath.Join(path, "pid"))
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	must(t, err)
	if groupLives(pid) {
		t.Error("after the barrier something of the script's process group is there")
	}
}

// A daemon that is killed leaves a start at work: the next one ends it before its
// barrier, and does not believe a describe that has not seen the start's work yet.
func TestTheNextDaemonEndsWhatWasBegun(t *testing.T) {
	l := newLab(t)
	path := l.one(t, map[string]string{
		"start":    `echo $$ >"$SHAMAN_PATH/pid.new"; mv "$SHAMAN_PATH/pid.new" "$SHAMAN_PATH/pid"; sleep 1000 & wait`,
		"describe": "echo STATE=stopped", "stop": `touch "$SHAMAN_PATH/stopped"`,
	})
	before := l.open(t)
	must(t, before.Register(t.Context(), path))
	done := make(chan error, 1)
	go func() { done <- before.Start(t.Context(), path) }()
	var pid int
	eventually(t, "the start is at work", func() bool {
		data, err := os.ReadFile(filepath.Join(path, "pid"))
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
		}
		notes, _ := os.ReadDir(filepath.Join(l.run, "scripts", "tools"))
		return err == nil && len(notes) == 1
	})
	next := l.open(t)
	must(t, next.Barrier(t.Context()))
	if groupLives(pid) {
		t.Error("after the barrier the start is at work still")
	}
	if err := next.Unregister(t.Context(), path); err == nil {
		t.Error("unregistered, though something of the start may come yet")
	}
	must(t, next.Stop(t.Context(), path, true))
	if _, err := os.Stat(filepath.Join(path, "stopped")); err != nil {
		t.Error("the scripts for stop were not run, since describe says that it is stopped already")
	}
	must(t, next.Unregister(t.Context(), path))
	if err := <-done; !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("the start that was ended = %v, want ErrCannotAsk", err)
	}
}

// groupLives tells whether a process that is not a zombie is in the group.
func groupLives(pgid int) bool {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, s := range stats {
		data, _ := os.ReadFile(s)
		_, rest, _ := strings.Cut(string(data), ") ")
		f := strings.Fields(rest) // state ppid pgrp
		if len(f) > 2 && f[2] == strconv.Itoa(pgid) && f[0] != "Z" {
			return true
		}
	}
	return false
}

func TestAStopByForceDoesNotNeedDescribeFirst(t *testing.T) {
	l := newLab(t)
	path := l.one(t, map[string]string{"describe": `[ -e "$SHAMAN_PATH/stopped" ] || exit 69; echo STATE=stopped`, "stop": `touch "$SHAMAN_PATH/stopped"`})
	d := l.open(t)
	must(t, d.Register(t.Context(), path))
	if err := d.Stop(t.Context(), path, false); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a graceful stop = %v, want ErrCannotAsk", err)
	}
	must(t, d.Stop(t.Context(), path, true))
}

func TestAResourceThatHangsHoldsUpNoOther(t *testing.T) {
	l := newLab(t)
	path := l.one(t, map[string]string{"describe": "exec sleep 1000"})
	o := l.options()
	o.DescribeTimeout = 500 * time.Millisecond
	d := open(t, o)
	must(t, errors.Join(d.Register(t.Context(), path), d.Register(t.Context(), l.make(t, "good", false))))
	if v := state(t, d, path); v.State != cluster.VEUnknown {
		t.Errorf("listed as %q, want unknown", v.State)
	}
	for range 5 {
		begun := time.Now()
		v := state(t, d, filepath.Join(l.mount, "demo", "good"))
		// The good one itself may be slow on a busy machine; lists that wait for the hanging one take 5 times its time.
		if v.State == cluster.VEStopped && time.Since(begun) < o.DescribeTimeout {
			return
		}
	}
	t.Error("every list waited for the resource that hangs")
}

func TestListsAreNotMadeForNothing(t *testing.T) {
	l := newLab(t)
	path := l.one(t, map[string]string{"describe": `echo x >>"$SHAMAN_PATH/looks"; echo STATE=stopped`})
	o := l.options()
	o.DescribeAge = time.Hour
	d := open(t, o)
	must(t, d.Register(t.Context(), path))
	looks := func() int {
		data, _ := os.ReadFile(filepath.Join(path, "looks"))
		return len(data) / 2
	}
	for range 20 {
		state(t, d, path)
	}
	if n := looks(); n != 1 {
		t.Errorf("%d looks for 20 lists, want 1", n)
	}
	must(t, d.Register(t.Context(), path))
	state(t, d, path)
	if n := looks(); n != 2 {
		t.Errorf("%d looks, want one more after a verb", n)
	}
	go func() { _ = d.Watch(t.Context(), func() {}) }()
	eventually(t, "a look after a script's hint", func() bool {
		must(t, os.WriteFile(filepath.Join(d.hintDir(), keyOf(path)), nil, 0o644))
		state(t, d, path)
		return looks() > 2
	})
}

func TestEnumerate(t *testing.T) {
	l := newLab(t)
	path := l.one(t, map[string]string{"enumerate": `cat "$SHAMAN_MOUNT/known" && exit $(cat "$SHAMAN_MOUNT/code")`})
	say := func(code int, lines string) {
		must(t, os.WriteFile(filepath.Join(l.mount, "known"), []byte(lines), 0o644))
		must(t, os.WriteFile(filepath.Join(l.mount, "code"), []byte(strconv.Itoa(code)), 0o644))
	}
	again := func(d *Driver) { // what is found is asked for anew
		d.enum.mu.Lock()
		defer d.enum.mu.Unlock()
		d.enum.began = time.Time{}
	}
	d := l.open(t)
	say(1, "")
	if _, err := d.List(t.Context()); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("list = %v; what runs here is not known", err)
	}
	say(0, path+"\tgiven\n")
	if v := state(t, d, path); v.Name != "given" || v.State != cluster.VEStopped {
		t.Errorf("listed as %+v", v)
	}
	if err := d.Start(t.Context(), path); !errors.Is(err, cluster.ErrNoVE) {
		t.Errorf("start = %v; it is known here, and not registered", err)
	}
	say(1, "")
	again(d)
	if v := state(t, d, path); v.Path == "" {
		t.Error("forgotten, since enumerate failed")
	}
	must(t, d.Unregister(t.Context(), path))
	if v := state(t, d, path); v.Path != "" {
		t.Error("listed after it was unregistered")
	}
	say(0, path+"\n")
	again(d)
	state(t, d, path)
	say(0, "")
	again(d)
	if v := state(t, d, path); v.Path != "" {
		t.Error("listed, and enumerate does not print it any more")
	}
	say(0, "not/absolute\n")
	again(d)
	state(t, d, path)
	if l.logs.FilterMessageSnippet("cannot be enumerated").Len() == 0 {
		t.Error("a bad line is not told")
	}
}

package scripts

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestOrder(t *testing.T) {
	l := newLab(t)
	shared := filepath.Join(t.TempDir(), "shared")
	f := finder{dirs: []string{shared, l.local}}
	for _, name := range []string{"50-start", "own-/50-start", "own-/10-start", "start"} {
		l.script(t, shared, name, "")
	}
	for _, name := range []string{"50-start", "05-start", "own-/50-start", "own-/60-start", "own-/start", "own-/start.bak", "own-/7-start", "own-/070-start", "own-/xx-start", "other-/01-start", "10-stop"} {
		l.script(t, l.local, name, "")
	}
	want := []string{
		l.local + "/05-start", shared + "/own-/10-start", shared + "/50-start", shared + "/own-/50-start", // of two of one name the first directory's
		l.local + "/own-/60-start", shared + "/start", l.local + "/own-/start",
	}
	chain, err := f.chain("start", "own")
	must(t, err)
	var got []string
	for _, s := range chain {
		got = append(got, s.path)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("another order (-want +got):\n%s", diff)
	}
	if chain, err := f.chain("start", ""); err != nil || len(chain) != 3 {
		t.Errorf("common scripts %v, %v; want three", chain, err)
	}
}

func TestTheFirstFailureEndsTheChain(t *testing.T) {
	l := newLab(t)
	path := l.one(t, map[string]string{
		"describe": "echo STATE=stopped; echo PRIORITY=1", "90-describe": "echo PRIORITY=9", "10-describe": "echo PRIORITY=5; printf VCPUS=3",
		"10-start": `echo 10 >>"$SHAMAN_PATH/ran"`, "20-start": `echo 20 >>"$SHAMAN_PATH/ran"; exit 75`, "30-start": `echo 30 >>"$SHAMAN_PATH/ran"`,
	})
	d := l.open(t)
	must(t, d.Register(t.Context(), path))
	if err := d.Start(t.Context(), path); !errors.Is(err, cluster.ErrLocked) {
		t.Errorf("start = %v, want the second script's ErrLocked", err)
	}
	if got, _ := os.ReadFile(filepath.Join(path, "ran")); string(got) != "10\n20\n" {
		t.Errorf("ran %q, want 10 and 20", got)
	}
	if v := state(t, d, path); v.Priority != 1 || v.VCPUs != 3 {
		t.Errorf("priority %d, CPUs %d; want 1, which is printed last, and 3", v.Priority, v.VCPUs)
	}
}

func TestRefusals(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: files of other users cannot be made")
	}
	for name, tt := range map[string]struct {
		spoil func(path string) error
		want  string
	}{
		"not executable":        {func(p string) error { return os.Chmod(p, 0o644) }, "chmod u+x"},
		"written by everybody":  {func(p string) error { return os.Chmod(p, 0o757) }, "chmod o-w"},
		"directory of all":      {func(p string) error { return os.Chmod(filepath.Dir(p), 0o777) }, "chmod o-w"},
		"a directory":           {func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) }, "not a regular file"},
		"of another user":       {func(p string) error { return os.Chown(p, 12345, 0) }, "belongs to user 12345"},
		"written by some group": {func(p string) error { return errors.Join(os.Chmod(p, 0o775), os.Chown(p, 0, 12345)) }, "group 12345"},
		"leads nowhere":         {func(p string) error { return errors.Join(os.Remove(p), os.Symlink("/no/such", p)) }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 && strings.Contains(tt.want, "12345") {
				t.Skip("NOT RUN: it gives a file to another user, and needs root")
			}
			l := newLab(t)
			path := l.one(t, map[string]string{"start": `touch "$SHAMAN_PATH/ran"`, "describe": `[ -e "$SHAMAN_PATH/ran" ] && echo STATE=running || echo STATE=stopped`})
			script := filepath.Join(l.local, "own-", "start")
			must(t, tt.spoil(script))
			d := l.open(t)
			if l.logs.FilterMessageSnippet("cannot be taken care of").Len() == 0 {
				t.Error("not told when the daemon starts")
			}
			err := d.Register(t.Context(), path)
			if err == nil {
				err = d.Start(t.Context(), path)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("start = %v; want one that says %q", err, tt.want)
			}
			if _, err := os.Stat(filepath.Join(path, "ran")); err == nil {
				t.Error("it was run all the same")
			}
		})
	}
}

func TestTypes(t *testing.T) {
	l := newLab(t)
	for _, name := range []string{"good", "vm", "Bad", "9x", "half"} {
		for _, p := range needed {
			l.script(t, l.local, name+"-/10-"+p, "")
		}
	}
	must(t, os.Remove(filepath.Join(l.local, "half-", "10-stop")))
	l.script(t, l.shared(), "demo-/90-stop", "") // a part of a type in each directory
	if got, want := l.open(t).Kinds(), []cluster.Kind{"demo", "good"}; !cmp.Equal(got, want) {
		t.Errorf("types %v, want %v", got, want)
	}
	if n := l.logs.FilterMessageSnippet("type of resources is not used").Len(); n != 4 {
		t.Errorf("%d types are said not to be used, want 4: %v", n, l.logs.All())
	}
	other := filepath.Join(l.mount, "Bad", "x")
	must(t, os.MkdirAll(other, 0o755))
	if err := l.open(t).Register(t.Context(), other); err == nil || !strings.Contains(err.Error(), `"Bad"`) {
		t.Errorf("register = %v; want one that names the type", err)
	}
}

func TestSharedScriptsAreCopied(t *testing.T) {
	l := newLab(t)
	m := &mirror{from: l.shared(), mounted: filepath.Join(l.mount, identityFile), to: t.TempDir(), log: l.log}
	version := func() string {
		t.Helper()
		must(t, m.copy())
		v, err := os.Readlink(m.current())
		must(t, err)
		return v
	}
	one := version()
	if version() != one {
		t.Error("the same scripts are another version")
	}
	l.script(t, l.shared(), "demo-/10-start", "")
	two := version()
	must(t, os.Remove(filepath.Join(l.shared(), "demo-", "10-start")))
	if two == one || version() != one {
		t.Error("a change is not seen")
	}
	// A copy that a loss of power has torn is made anew by the next daemon.
	torn := filepath.Join(m.current(), "demo-")
	scripts, err := os.ReadDir(torn)
	must(t, err)
	must(t, os.Truncate(filepath.Join(torn, scripts[0].Name()), 0))
	m.checked = false
	version()
	if fi, err := os.Stat(filepath.Join(torn, scripts[0].Name())); err != nil || fi.Size() == 0 {
		t.Errorf("it is torn still (%v)", err)
	}
	// Old versions do not pile up.
	l.script(t, l.shared(), "demo-/11-start", "")
	version()
	if entries, _ := os.ReadDir(m.to); len(entries) != 3 {
		t.Errorf("%d entries, want the current version, the one before, and the link", len(entries))
	}
	must(t, os.WriteFile(filepath.Join(l.shared(), "demo-", "huge"), make([]byte, mirrorFile+1), 0o600))
	if err := m.copy(); err == nil || !strings.Contains(err.Error(), "huge") {
		t.Errorf("copy = %v; want one that names the huge file", err)
	}
	must(t, os.Remove(filepath.Join(l.shared(), "demo-", "huge")))
	must(t, os.Chmod(l.shared(), 0o777))
	if err := m.copy(); err == nil || !strings.Contains(err.Error(), "o-w") {
		t.Errorf("copy = %v; anybody could have written these", err)
	}
	must(t, os.RemoveAll(l.shared()))
	if v := version(); v == one || v == two {
		t.Error("scripts that were removed are kept")
	}
	must(t, os.RemoveAll(filepath.Join(l.mount, ".shaman"))) // what an empty mount point looks like
	if err := m.copy(); err == nil {
		t.Error("a mount that is away counts as one without scripts")
	}
}

// gatedFS is a shared file system that can hang.
type gatedFS struct {
	fuse.RawFileSystem
	mu   sync.Mutex
	gate chan struct{} // nil = open
}

func (g *gatedFS) pass() {
	g.mu.Lock()
	gate := g.gate
	g.mu.Unlock()
	if gate != nil {
		<-gate
	}
}

func (g *gatedFS) hang() (resume func()) {
	gate := make(chan struct{})
	g.mu.Lock()
	g.gate = gate
	g.mu.Unlock()
	return sync.OnceFunc(func() {
		g.mu.Lock()
		g.gate = nil
		g.mu.Unlock()
		close(gate)
	})
}

func (g *gatedFS) Lookup(c <-chan struct{}, h *fuse.InHeader, n string, o *fuse.EntryOut) fuse.Status {
	g.pass()
	return g.RawFileSystem.Lookup(c, h, n, o)
}

func (g *gatedFS) GetAttr(c <-chan struct{}, i *fuse.GetAttrIn, o *fuse.AttrOut) fuse.Status {
	g.pass()
	return g.RawFileSystem.GetAttr(c, i, o)
}

func (g *gatedFS) OpenDir(c <-chan struct{}, i *fuse.OpenIn, o *fuse.OpenOut) fuse.Status {
	g.pass()
	return g.RawFileSystem.OpenDir(c, i, o)
}

func (g *gatedFS) Open(c <-chan struct{}, i *fuse.OpenIn, o *fuse.OpenOut) fuse.Status {
	g.pass()
	return g.RawFileSystem.Open(c, i, o)
}

// mountGated mounts l's shared file system anew, so that it can hang.
func mountGated(t *testing.T, l *lab) *gatedFS {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this has to run in CI: it needs root and /dev/fuse")
		}
		t.Skip("NOT RUN: a shared file system that hangs needs root and /dev/fuse")
	}
	root, err := fs.NewLoopbackRoot(l.mount)
	must(t, err)
	none := time.Duration(0)
	g := &gatedFS{RawFileSystem: fs.NewNodeFS(root, &fs.Options{EntryTimeout: &none, AttrTimeout: &none})}
	l.mount = t.TempDir()
	srv, err := fuse.NewServer(g, l.mount, &fuse.MountOptions{DirectMount: true, FsName: "gated", Name: "gated"})
	must(t, err)
	go srv.Serve()
	must(t, srv.WaitMount())
	t.Cleanup(func() { must(t, srv.Unmount()) })
	return g
}

func TestTheSharedFileSystemHangs(t *testing.T) {
	l := newLab(t)
	g := mountGated(t, l)
	d := l.open(t)
	path, down := l.runVE(t, d, "a"), l.make(t, "b", false)
	must(t, d.Register(t.Context(), down))
	resume := g.hang()
	defer resume()
	t.Run("a daemon that starts meanwhile knows its types and what runs", func(t *testing.T) {
		next := l.open(t)
		if !cmp.Equal(next.Kinds(), []cluster.Kind{"demo"}) {
			t.Errorf("types %v", next.Kinds())
		}
	})
	t.Run("what runs is stopped by force, by the copies of the scripts", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		must(t, d.Stop(ctx, path, true))
	})
	t.Run("a resource whose describe hangs is unknown, and holds up no other", func(t *testing.T) {
		o := l.options()
		o.DescribeTimeout = 500 * time.Millisecond
		next := open(t, o)
		must(t, os.WriteFile(filepath.Join(next.runDir(keyOf(down)), "touchy"), nil, 0o644))
		for range 2 {
			if v := state(t, next, down); v.State != cluster.VEUnknown {
				t.Errorf("listed as %q, want unknown", v.State)
			}
			eventually(t, "the other is listed as stopped", func() bool { return state(t, next, path).State == cluster.VEStopped })
		}
		must(t, os.Remove(filepath.Join(next.runDir(keyOf(down)), "touchy")))
	})
	t.Run("a verb ends with its context, and holds its turn", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := d.Register(ctx, down); !errors.Is(err, cluster.ErrCannotAsk) {
			t.Errorf("register = %v, want ErrCannotAsk", err)
		}
		if err := d.Barrier(ctx); !errors.Is(err, cluster.ErrCannotAsk) {
			t.Errorf("barrier = %v: what the verb does still can have an effect", err)
		}
	})
	resume()
	must(t, d.Barrier(t.Context()))
	eventually(t, "the guest is found stopped, and not to have shut itself down", func() bool {
		v := state(t, d, path)
		return v.State == cluster.VEStopped && v.Cause != cluster.CauseStop
	})
}

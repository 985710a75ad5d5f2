package crashpoints

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// view is one process's mount of the shared directory.
type view struct {
	p       *process
	backing string
	world   *world

	mu    sync.Mutex
	names map[string]map[string]bool // directories, as they were listed last
}

// mountView mounts backing for one process.
func mountView(t testing.TB, backing, dir string, p *process, w *world) *view {
	t.Helper()
	v := &view{p: p, backing: backing, world: w, names: map[string]map[string]bool{}}
	root := &node{view: v, LoopbackNode: fs.LoopbackNode{RootData: &fs.LoopbackRoot{Path: backing}}}
	root.RootData.RootNode = root
	none := time.Duration(0)
	_, err := fs.Mount(dir, root, &fs.Options{
		EntryTimeout: &none, AttrTimeout: &none, NegativeTimeout: &none,
		MountOptions: fuse.MountOptions{DirectMount: true, AllowOther: true, FsName: "crashpoints", Name: "crashpoints", MaxBackground: 64},
	})
	if err != nil {
		t.Fatalf("mount %s: %v", dir, err)
	}
	w.atEnd(func() {
		p.kill()
		// Without waiting for copies of the mount in other namespaces.
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return v
}

// quietFiles are written and read all the time, whatever is under way.
func quietFile(rel string) bool {
	base := filepath.Base(rel)
	return slices.Contains([]string{"heartbeat", "fence", "fenced"}, base) || strings.HasPrefix(rel, ".shaman/events")
}

type node struct {
	fs.LoopbackNode
	view *view
}

// WrapChild makes every name of the mount a node.
func (n *node) WrapChild(context.Context, fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{view: n.view, LoopbackNode: fs.LoopbackNode{RootData: n.RootData}}
}

func (n *node) rel(name string) string {
	return filepath.Join(n.Path(n.Root()), name)
}

// do is an operation that changes nothing but itself.
func (n *node) do(kind, rel string, f func() syscall.Errno) syscall.Errno {
	if quietFile(rel) {
		if n.view.p.isDead() {
			return syscall.EIO
		}
		return f()
	}
	return op(n.view.p, kind+" "+normal(rel), f, syscall.EIO, syscall.EIO)
}

// change is one that moves names; the world looks at it.
func (n *node) change(kind, rel string, f func() syscall.Errno) syscall.Errno {
	return n.do(kind, rel, func() syscall.Errno { return n.view.world.changing(f) })
}

// Rename lies as network file systems do: a rename that succeeded may say ENOENT.
func (n *node) Rename(ctx context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to := newParent.(*node).rel(newName)
	label := "rename " + normal(n.rel(name)) + " → " + normal(to)
	f := func() syscall.Errno {
		return n.view.world.changing(func() syscall.Errno { return n.LoopbackNode.Rename(ctx, name, newParent, newName, flags) })
	}
	return op(n.view.p, label, f, syscall.EIO, syscall.ENOENT)
}

// Unlink removes a name.
func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.change("unlink", n.rel(name), func() syscall.Errno { return n.LoopbackNode.Unlink(ctx, name) })
}

// Rmdir removes a directory.
func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.change("rmdir", n.rel(name), func() syscall.Errno { return n.LoopbackNode.Rmdir(ctx, name) })
}

// Mkdir makes a directory.
func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (child *fs.Inode, errno syscall.Errno) {
	errno = n.do("mkdir", n.rel(name), func() syscall.Errno {
		var e syscall.Errno
		child, e = n.LoopbackNode.Mkdir(ctx, name, mode, out)
		return e
	})
	return child, errno
}

// Link makes a second name.
func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (child *fs.Inode, errno syscall.Errno) {
	errno = n.do("link", n.rel(name), func() syscall.Errno {
		var e syscall.Errno
		child, e = n.LoopbackNode.Link(ctx, target, name, out)
		return e
	})
	return child, errno
}

// Create makes a file.
func (n *node) Create(ctx context.Context, name string, flags uint32, mode uint32, out *fuse.EntryOut) (inode *fs.Inode, fh fs.FileHandle, fuseFlags uint32, errno syscall.Errno) {
	rel := n.rel(name)
	errno = n.do("create", rel, func() syscall.Errno {
		var e syscall.Errno
		inode, fh, fuseFlags, e = n.LoopbackNode.Create(ctx, name, flags&^syscall.O_DIRECT, mode, out)
		return e
	})
	return inode, &file{FileHandle: fh, n: n, rel: rel}, fuseFlags&^fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_DIRECT_IO, errno
}

// Open opens a file.
func (n *node) Open(ctx context.Context, flags uint32) (fh fs.FileHandle, fuseFlags uint32, errno syscall.Errno) {
	rel := n.rel("")
	errno = n.do("open", rel, func() syscall.Errno {
		var e syscall.Errno
		fh, fuseFlags, e = n.LoopbackNode.Open(ctx, flags&^syscall.O_DIRECT)
		return e
	})
	return &file{FileHandle: fh, n: n, rel: rel}, fuseFlags&^fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_DIRECT_IO, errno
}

// Lookup looks a name up. A stale one knows the names of the last listing.
func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (child *fs.Inode, errno syscall.Errno) {
	if n.view.p.isDead() {
		return nil, syscall.EIO
	}
	rel := n.rel(name)
	look := func() syscall.Errno {
		var e syscall.Errno
		child, e = n.LoopbackNode.Lookup(ctx, name, out)
		return e
	}
	if quietFile(rel) || !n.view.interesting(rel) {
		return child, look()
	}
	errno = n.do("lookup", rel, look)
	return child, errno
}

// interesting are the names in the directories that VEs are owned by.
func (v *view) interesting(rel string) bool {
	for _, d := range []string{"/resources/", ".shaman/pool/", ".shaman/broken/"} {
		if strings.Contains(rel, d) {
			return true
		}
	}
	return false
}

// OpendirHandle lists a directory. A stale listing shows it as it was the time
// before.
func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fh fs.FileHandle, fuseFlags uint32, errno syscall.Errno) {
	rel := n.rel("")
	if n.view.p.isDead() {
		return nil, 0, syscall.EIO
	}
	read := func() ([]fuse.DirEntry, syscall.Errno) {
		stream, e := fs.NewLoopbackDirStream(filepath.Join(n.view.backing, rel))
		if e != 0 {
			return nil, e
		}
		defer stream.Close()
		var out []fuse.DirEntry
		for stream.HasNext() {
			d, e := stream.Next()
			if e != 0 {
				return nil, e
			}
			out = append(out, d)
		}
		return out, 0
	}
	type listing struct {
		entries []fuse.DirEntry
		errno   syscall.Errno
	}
	do := func() listing {
		entries, e := read()
		return listing{entries, e}
	}
	label := "list " + normal(rel)
	var l listing
	switch m := n.view.p.reach(label); m {
	case stale:
		l = listing{entries: n.view.last(rel)}
	default:
		l = opAt(n.view.p, m, do, listing{errno: syscall.EIO}, listing{errno: syscall.EIO})
	}
	if l.errno != 0 {
		return nil, 0, l.errno
	}
	n.view.remember(rel, l.entries)
	return &dirHandle{entries: l.entries, n: n, rel: rel}, 0, 0
}

func (v *view) remember(rel string, entries []fuse.DirEntry) {
	v.mu.Lock()
	defer v.mu.Unlock()
	names := map[string]bool{}
	for _, e := range entries {
		names[fmt.Sprintf("%d %s", e.Mode, e.Name)] = true
	}
	v.names[rel] = names
}

// last is the listing of the time before.
func (v *view) last(rel string) []fuse.DirEntry {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []fuse.DirEntry
	for k := range v.names[rel] {
		var e fuse.DirEntry
		if _, err := fmt.Sscanf(k, "%d %s", &e.Mode, &e.Name); err == nil {
			out = append(out, e)
		}
	}
	return out
}

// dirHandle is an opened directory with a fixed listing.
type dirHandle struct {
	n   *node
	rel string

	mu      sync.Mutex
	entries []fuse.DirEntry
	at      int
}

// Readdirent returns the next name.
func (d *dirHandle) Readdirent(context.Context) (*fuse.DirEntry, syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at >= len(d.entries) {
		return nil, 0
	}
	e := d.entries[d.at]
	d.at++
	e.Off = uint64(d.at)
	return &e, 0
}

// Seekdir goes back to a name.
func (d *dirHandle) Seekdir(_ context.Context, off uint64) syscall.Errno {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = int(min(off, uint64(len(d.entries))))
	return 0
}

// Fsyncdir makes what was done in it durable; here it is so already.
func (d *dirHandle) Fsyncdir(context.Context, uint32) syscall.Errno {
	return d.n.do("fsyncdir", d.rel, func() syscall.Errno { return 0 })
}

// Fsync on a directory or file that has no handle of its own.
func (n *node) Fsync(_ context.Context, _ fs.FileHandle, _ uint32) syscall.Errno {
	return n.do("fsync", n.rel(""), func() syscall.Errno { return 0 })
}

// file is an opened file.
type file struct {
	fs.FileHandle
	n   *node
	rel string
}

// Read reads.
func (f *file) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	var r fuse.ReadResult
	errno := f.n.do("read", f.rel, func() (e syscall.Errno) {
		r, e = f.FileHandle.(fs.FileReader).Read(ctx, dest, off)
		return e
	})
	return r, errno
}

// Write writes.
func (f *file) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	var k uint32
	errno := f.n.do("write", f.rel, func() (e syscall.Errno) {
		k, e = f.FileHandle.(fs.FileWriter).Write(ctx, data, off)
		return e
	})
	return k, errno
}

// Fsync makes it durable.
func (f *file) Fsync(context.Context, uint32) syscall.Errno {
	return f.n.do("fsync", f.rel, func() syscall.Errno { return 0 })
}

// Flush is the close.
func (f *file) Flush(ctx context.Context) syscall.Errno {
	return f.FileHandle.(fs.FileFlusher).Flush(ctx)
}

// Release ends it.
func (f *file) Release(ctx context.Context) syscall.Errno {
	return f.FileHandle.(fs.FileReleaser).Release(ctx)
}

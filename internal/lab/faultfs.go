package lab

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// gatedFS is a FUSE file system that shows a directory, and can be made to fail
// or to hang as a whole, as a network file system does whose server is gone.
type gatedFS struct {
	fuse.RawFileSystem

	names io.Writer // what is done to names

	mu   sync.Mutex
	how  string
	open chan struct{}
}

// noted lets a change of names through, and writes it down first: a node that dies
// in the middle of it has done it, perhaps.
func (g *gatedFS) noted(what string, names ...string) fuse.Status {
	s := g.gate()
	if s == fuse.OK {
		s = g.refuses(what == "create" || what == "mkdir" || what == "symlink")
	}
	if s == fuse.OK {
		fmt.Fprintf(g.names, "%d %s %s\n", time.Now().UnixNano(), what, strings.Join(names, " "))
	}
	return s
}

// mountGated mounts backing over dir. It needs root, and serves until the
// process ends.
func mountGated(backing, dir string, names io.Writer) (*gatedFS, error) {
	root, err := fs.NewLoopbackRoot(backing)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	g := &gatedFS{RawFileSystem: fs.NewNodeFS(root, &fs.Options{}), names: names}
	srv, err := fuse.NewServer(g, dir, &fuse.MountOptions{FsName: "shaman-lab", Name: "shamanlab", AllowOther: true, DirectMount: true, MaxBackground: 128})
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	go srv.Serve()
	if err := srv.WaitMount(); err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	return g, nil
}

func (g *gatedFS) set(how string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if how == g.how {
		return
	}
	if g.how == "hang" {
		close(g.open)
	}
	if g.how = how; how == "hang" {
		g.open = make(chan struct{})
	}
}

// refuses is what a full or read-only file system says to a change; grows tells
// whether it needs room.
func (g *gatedFS) refuses(grows bool) fuse.Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.how == "readonly":
		return fuse.EROFS
	case g.how == "full" && grows:
		return fuse.Status(unix.ENOSPC)
	}
	return fuse.OK
}

// slotBytes is the size of what is overwritten in place, which needs no room.
const slotBytes = 4096

// gate lets an operation through, fails it or holds it. A held one ignores
// interrupts, as a hard mount does.
func (g *gatedFS) gate() fuse.Status {
	for {
		g.mu.Lock()
		how, open := g.how, g.open
		g.mu.Unlock()
		switch how {
		case "error":
			return fuse.EIO
		case "hang":
			<-open
		default:
			return fuse.OK
		}
	}
}

// mend makes opened files honest: as root, newer kernels would read and write
// past this process, and the backing file must not ask for aligned buffers.
func mend(in *uint32) { *in &^= unix.O_DIRECT }

func (g *gatedFS) Lookup(c <-chan struct{}, h *fuse.InHeader, n string, o *fuse.EntryOut) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Lookup(c, h, n, o)
}

func (g *gatedFS) GetAttr(c <-chan struct{}, i *fuse.GetAttrIn, o *fuse.AttrOut) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.GetAttr(c, i, o)
}

func (g *gatedFS) SetAttr(c <-chan struct{}, i *fuse.SetAttrIn, o *fuse.AttrOut) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.SetAttr(c, i, o)
}

func (g *gatedFS) Mkdir(c <-chan struct{}, i *fuse.MkdirIn, n string, o *fuse.EntryOut) fuse.Status {
	if s := g.noted("mkdir", n); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Mkdir(c, i, n, o)
}

func (g *gatedFS) Unlink(c <-chan struct{}, h *fuse.InHeader, n string) fuse.Status {
	if s := g.noted("unlink", n); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Unlink(c, h, n)
}

func (g *gatedFS) Rmdir(c <-chan struct{}, h *fuse.InHeader, n string) fuse.Status {
	if s := g.noted("rmdir", n); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Rmdir(c, h, n)
}

func (g *gatedFS) Rename(c <-chan struct{}, i *fuse.RenameIn, a, b string) fuse.Status {
	if s := g.noted("rename", a, b); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Rename(c, i, a, b)
}

func (g *gatedFS) Link(c <-chan struct{}, i *fuse.LinkIn, n string, o *fuse.EntryOut) fuse.Status {
	if s := g.noted("link", n); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Link(c, i, n, o)
}

func (g *gatedFS) Symlink(c <-chan struct{}, h *fuse.InHeader, to, n string, o *fuse.EntryOut) fuse.Status {
	if s := g.noted("symlink", n); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Symlink(c, h, to, n, o)
}

func (g *gatedFS) Create(c <-chan struct{}, i *fuse.CreateIn, n string, o *fuse.CreateOut) fuse.Status {
	if s := g.noted("create", n); s != fuse.OK {
		return s
	}
	mend(&i.Flags)
	s := g.RawFileSystem.Create(c, i, n, o)
	o.OpenFlags = o.OpenFlags&^fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_DIRECT_IO
	o.BackingID = 0
	return s
}

func (g *gatedFS) Open(c <-chan struct{}, i *fuse.OpenIn, o *fuse.OpenOut) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	mend(&i.Flags)
	s := g.RawFileSystem.Open(c, i, o)
	o.OpenFlags = o.OpenFlags&^fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_DIRECT_IO
	o.BackingID = 0
	return s
}

func (g *gatedFS) Read(c <-chan struct{}, i *fuse.ReadIn, b []byte) (fuse.ReadResult, fuse.Status) {
	if s := g.gate(); s != fuse.OK {
		return nil, s
	}
	return g.RawFileSystem.Read(c, i, b)
}

func (g *gatedFS) Write(c <-chan struct{}, i *fuse.WriteIn, d []byte) (uint32, fuse.Status) {
	if s := g.gate(); s != fuse.OK {
		return 0, s
	}
	if s := g.refuses(i.Offset != 0 || i.Size != slotBytes); s != fuse.OK {
		return 0, s
	}
	return g.RawFileSystem.Write(c, i, d)
}

func (g *gatedFS) Writev(c <-chan struct{}, i *fuse.WriteIn, d [][]byte) (uint32, fuse.Status) {
	if s := g.gate(); s != fuse.OK {
		return 0, s
	}
	if s := g.refuses(i.Offset != 0 || i.Size != slotBytes); s != fuse.OK {
		return 0, s
	}
	return g.RawFileSystem.Writev(c, i, d)
}

func (g *gatedFS) Flush(c <-chan struct{}, i *fuse.FlushIn) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Flush(c, i)
}

func (g *gatedFS) Fsync(c <-chan struct{}, i *fuse.FsyncIn) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.Fsync(c, i)
}

func (g *gatedFS) FsyncDir(c <-chan struct{}, i *fuse.FsyncIn) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.FsyncDir(c, i)
}

func (g *gatedFS) OpenDir(c <-chan struct{}, i *fuse.OpenIn, o *fuse.OpenOut) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.OpenDir(c, i, o)
}

func (g *gatedFS) ReadDir(c <-chan struct{}, i *fuse.ReadIn, l *fuse.DirEntryList) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.ReadDir(c, i, l)
}

func (g *gatedFS) ReadDirPlus(c <-chan struct{}, i *fuse.ReadIn, l *fuse.DirEntryList) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.ReadDirPlus(c, i, l)
}

func (g *gatedFS) StatFs(c <-chan struct{}, h *fuse.InHeader, o *fuse.StatfsOut) fuse.Status {
	if s := g.gate(); s != fuse.OK {
		return s
	}
	return g.RawFileSystem.StatFs(c, h, o)
}

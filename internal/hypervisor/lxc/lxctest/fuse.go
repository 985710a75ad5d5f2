package lxctest

import (
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Mount is a shared file system that can be made to hang.
type Mount struct {
	Dir string

	mu   sync.Mutex
	gate chan struct{} // closed while it answers
}

// MountFUSE mounts a directory that ends with the test.
func MountFUSE(t *testing.T) *Mount {
	t.Helper()
	root, err := fs.NewLoopbackRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := &Mount{Dir: t.TempDir(), gate: make(chan struct{})}
	close(m.gate)
	srv, err := fuse.NewServer(&hanging{fs.NewNodeFS(root, &fs.Options{}), m}, m.Dir, &fuse.MountOptions{FsName: "lxctest", AllowOther: true, DirectMount: true})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve()
	if err := srv.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Resume()
		if err := srv.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// Hang lets nothing on the mount come back until Resume.
func (m *Mount) Hang() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gate = make(chan struct{})
}

// Resume lets all go on.
func (m *Mount) Resume() {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.gate:
	default:
		close(m.gate)
	}
}

func (m *Mount) wait() {
	m.mu.Lock()
	gate := m.gate
	m.mu.Unlock()
	<-gate
}

// hanging holds what a tool, a guest and a driver do first to any file.
type hanging struct {
	fuse.RawFileSystem
	m *Mount
}

func (h *hanging) Lookup(c <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	h.m.wait()
	return h.RawFileSystem.Lookup(c, in, name, out)
}

func (h *hanging) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	h.m.wait()
	return h.RawFileSystem.GetAttr(c, in, out)
}

// Open makes opened files honest: as root, newer kernels would read and write past
// this process.
func (h *hanging) Open(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h.m.wait()
	s := h.RawFileSystem.Open(c, in, out)
	out.OpenFlags &^= fuse.FOPEN_PASSTHROUGH
	out.BackingID = 0
	return s
}

func (h *hanging) Create(c <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	h.m.wait()
	s := h.RawFileSystem.Create(c, in, name, out)
	out.OpenFlags &^= fuse.FOPEN_PASSTHROUGH
	out.BackingID = 0
	return s
}

func (h *hanging) Read(c <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h.m.wait()
	return h.RawFileSystem.Read(c, in, buf)
}

func (h *hanging) Write(c <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h.m.wait()
	return h.RawFileSystem.Write(c, in, data)
}

func (h *hanging) OpenDir(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h.m.wait()
	return h.RawFileSystem.OpenDir(c, in, out)
}

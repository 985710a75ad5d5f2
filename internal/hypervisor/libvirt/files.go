package libvirt

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
)

// fileAge is how old may be what is known of the files on the shared file system:
// other nodes write them seldom.
const fileAge = 30 * time.Second

// files are the saved definitions as they were last seen. They lie on the shared
// file system, which may hang, so a list takes what is known, and has them looked
// at in the background.
type files struct {
	mu      sync.Mutex
	m       map[uuid]seen
	at      time.Time // of the last look at all
	looking bool
}

type seen struct {
	sum   [sha256.Size]byte // of the content
	there bool
	stamp stamp
}

// stamp tells whether a file is still the one that was read: Save replaces it, so
// that its inode changes with its content.
type stamp struct {
	mtime time.Time
	size  int64
	inode uint64
}

func stampOf(i fs.FileInfo) stamp {
	s := stamp{mtime: i.ModTime(), size: i.Size()}
	if st, ok := i.Sys().(*syscall.Stat_t); ok {
		s.inode = st.Ino
	}
	return s
}

func (f *files) set(id uuid, s seen) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		f.m = map[uuid]seen{}
	}
	f.m[id] = s
}

func (f *files) get(id uuid) (seen, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.m[id]
	return s, ok
}

// stale tells that the file is not there or says something else. Of one that was
// not looked at yet nothing is claimed.
func (f *files) stale(id uuid, text string) bool {
	s, ok := f.get(id)
	return ok && (!s.there || s.sum != sha256.Sum256([]byte(text)))
}

// refresh looks at all files in the background: at those that were never looked
// at, and at all of them when that is long ago.
func (f *files) refresh(path func(uuid) string, ids []uuid) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.looking {
		return
	}
	all := time.Since(f.at) > fileAge
	todo := make([]uuid, 0, len(ids))
	there := make(map[uuid]bool, len(ids))
	for _, id := range ids {
		there[id] = true
		if _, ok := f.m[id]; all || !ok {
			todo = append(todo, id)
		}
	}
	for id := range f.m {
		if !there[id] {
			delete(f.m, id)
		}
	}
	if len(todo) == 0 {
		return
	}
	if all {
		f.at = time.Now()
	}
	f.looking = true
	go func() {
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.looking = false
		}()
		for _, id := range todo {
			if _, err := f.look(id, path(id)); err != nil {
				return // storage trouble: what was known stays
			}
		}
	}()
}

// look reads the file if it has changed, and returns its text if it was read.
func (f *files) look(id uuid, path string) (string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		f.set(id, seen{})
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if s, ok := f.get(id); ok && s.there && s.stamp == stampOf(info) {
		return "", nil
	}
	return f.read(id, path)
}

// fileLimit is far above any definition.
const fileLimit = 8 << 20

// read reads the file. Its stamp is taken from the open file, so that the two belong together.
func (f *files) read(id uuid, path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if info.Size() > fileLimit {
		return "", fmt.Errorf("%s is too large for a domain's definition", path)
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(file, data); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	f.set(id, seen{sum: sha256.Sum256(data), there: true, stamp: stampOf(info)})
	return string(data), nil
}

// Save implements hypervisor.Driver.
func (d *Driver) Save(ctx context.Context, path string) error {
	id, ok := d.id(path)
	if !ok {
		return fmt.Errorf("save %s: %w", path, cluster.ErrNoVE)
	}
	err := d.turns.Do(ctx, path, func() error {
		var text string
		err := d.pool.ask(ctx, func(l *golibvirt.Libvirt) error {
			dom, err := l.DomainLookupByUUID(golibvirt.UUID(id))
			if err != nil {
				return err
			}
			text, err = dump(l, dom)
			return err
		})
		if err != nil {
			return classify(err)
		}
		if ctx.Err() != nil {
			return driverkit.Ended(ctx)
		}
		return d.files.write(id, path, text)
	})
	if err != nil {
		return fmt.Errorf("save %s: %w", path, err)
	}
	return nil
}

// write replaces the file, unless it says the same already. After it, neither a
// crash of this node nor of the storage leaves half of it.
func (f *files) write(id uuid, path, text string) (err error) {
	if have, err := f.read(id, path); err == nil && have == text {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// A name of its own: two nodes may write at the same time while a VE moves.
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.WriteString(text)
	err = errors.Join(err, tmp.Chmod(0o600), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err = dir.Sync(); err != nil {
		return err
	}
	_, err = f.read(id, path)
	return err
}

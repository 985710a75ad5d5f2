package scripts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// What of a shared directory is copied at most.
const (
	mirrorFile  = 1 << 20 // bytes of one file
	mirrorFiles = 1000
	// mirrorAge is how old the copy may be before the directory is looked at again.
	mirrorAge = 10 * time.Second
	// mirrorWait bounds the first look of a daemon that starts.
	mirrorWait = 5 * time.Second
)

// mirror is this node's own copy of a script directory on the shared file system.
// Scripts are run from the copy: what must be stopped because the shared file
// system is lost can be stopped, and no process of the daemon's ever hangs
// between fork and exec, which would stop the whole daemon.
type mirror struct {
	from    string // on the shared file system
	mounted string // a file that is there whenever the shared file system is
	to      string // holds one directory a version, and a link "current"
	log     *zap.Logger

	mu      sync.Mutex
	at      time.Time // of the last look
	looking bool
	checked bool   // the current version was compared with the shared directory by this process
	said    string // the last complaint: each is logged once
}

// file is one file of a version.
type file struct {
	name string // below the directory
	mode fs.FileMode
	data []byte
}

func (m *mirror) current() string { return filepath.Join(m.to, "current") }

// first looks at the shared directory and waits for that, for a bounded time. A
// shared file system that hangs leaves the copy of the last time.
func (m *mirror) first(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, mirrorWait)
	defer cancel()
	m.mu.Lock()
	m.looking = true
	m.mu.Unlock()
	err := driverkit.Guarded(ctx, m.look)
	if ctx.Err() != nil {
		m.complain(fmt.Errorf("the shared scripts in %s do not answer within %s: %w; this node's copy of them is used", m.from, mirrorWait, err))
	}
}

// fresh has the shared directory looked at again if that is due, and does not wait.
func (m *mirror) fresh() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.looking || time.Since(m.at) < mirrorAge {
		return
	}
	m.looking = true
	go func() { _ = m.look() }() // what is wrong is logged there
}

func (m *mirror) look() error {
	err := m.copy()
	if err != nil {
		err = fmt.Errorf("copy the shared scripts in %s: %w; this node's last copy of them is used", m.from, err)
	}
	m.mu.Lock()
	m.at, m.looking = time.Now(), false
	m.mu.Unlock()
	m.complain(err)
	return err
}

// complain logs an error when it is a new one.
func (m *mirror) complain(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	m.mu.Lock()
	said := m.said
	m.said = text
	m.mu.Unlock()
	if text != "" && text != said {
		m.log.Error("the shared scripts cannot be read", zap.Error(err))
	}
}

// copy makes the directory's present content the current version.
func (m *mirror) copy() error {
	files, err := m.read()
	if err != nil {
		return err
	}
	sum := sha256.New()
	for _, f := range files {
		fmt.Fprintf(sum, "%q %o ", f.name, f.mode)
		_ = binary.Write(sum, binary.BigEndian, int64(len(f.data))) // a hash takes everything
		sum.Write(f.data)
	}
	version := hex.EncodeToString(sum.Sum(nil)[:10])
	old, err := os.Readlink(m.current())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// A copy of its name can be torn: by a loss of power, say.
	if old == version && (m.checked || m.whole(version, files)) {
		m.checked = true
		return nil
	}
	if err := m.write(version, files); err != nil {
		return err
	}
	m.checked = true
	tmp := m.current() + ".tmp"
	_ = os.Remove(tmp)
	if err := os.Symlink(version, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, m.current()); err != nil {
		return err
	}
	m.log.Info("took over the shared scripts", zap.String("path", m.from), zap.Int("files", len(files)))
	// The version before is kept: scripts that run may read what lies beside them.
	entries, err := os.ReadDir(m.to)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if n := e.Name(); n != "current" && n != version && n != old {
			_ = os.RemoveAll(filepath.Join(m.to, n))
		}
	}
	return nil
}

// whole tells whether a version is what was read.
func (m *mirror) whole(version string, files []file) bool {
	for _, f := range files {
		path := filepath.Join(m.to, version, f.name)
		fi, err := os.Lstat(path)
		if err != nil || fi.IsDir() != f.mode.IsDir() {
			return false
		}
		if fi.IsDir() {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(data, f.data) || fi.Mode() != copyMode(f.mode) {
			return false
		}
	}
	return true
}

// copyMode is the mode of a copy. A script of the wrong mode is refused when it is to
// run, with the copy's name.
func copyMode(m fs.FileMode) fs.FileMode { return m.Perm()&0o700 | 0o400 }

// write makes a version. After it, neither a crash nor a loss of power leaves half of it.
func (m *mirror) write(version string, files []file) error {
	dir := filepath.Join(m.to, version)
	if err := os.RemoveAll(dir); err != nil { // of an attempt that was cut short
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if f.mode.IsDir() {
			if err := os.Mkdir(path, 0o700); err != nil {
				return err
			}
			continue
		}
		if err := os.WriteFile(path, f.data, copyMode(f.mode)); err != nil {
			return err
		}
	}
	return flush(dir)
}

// flush waits until a file system has all that was written to it.
func flush(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// read returns what lies in the shared directory and in its types' directories,
// sorted. It refuses all of it if somebody else than root could have written some.
func (m *mirror) read() ([]file, error) {
	fi, err := os.Stat(m.from)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(m.mounted); err != nil { // nothing is mounted there, which does not say that there are no scripts
			return nil, fmt.Errorf("the shared file system is not there: %w", err)
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := trustInfo(m.from, fi, false); err != nil {
		return nil, err
	}
	var out []file
	err = filepath.WalkDir(m.from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(m.from, path)
		if err != nil || name == "." {
			return err
		}
		if e.IsDir() && (!strings.HasSuffix(name, "-") || strings.Contains(name, "/")) {
			return fs.SkipDir
		}
		if !e.IsDir() && !e.Type().IsRegular() {
			return nil // a link could lead to what others write
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if err := trustInfo(path, fi, false); err != nil {
			return err
		}
		f := file{name: name, mode: fi.Mode()}
		if !e.IsDir() {
			if f.data, err = readSmall(path); err != nil {
				return err
			}
		}
		if out = append(out, f); len(out) > mirrorFiles {
			return fmt.Errorf("%s has more than %d files; keep other things elsewhere", m.from, mirrorFiles)
		}
		return nil
	})
	slices.SortFunc(out, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return out, err
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, mirrorFile+1))
	if err == nil && len(data) > mirrorFile {
		return nil, fmt.Errorf("%s has more than %d bytes; it is no script", path, mirrorFile)
	}
	return data, err
}

package resources

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// writeFile writes a file whole or not at all: temporary file, fsync, rename,
// fsync of the directory. An existing file is replaced.
func writeFile(dir, name string, data []byte) error {
	tmp := filepath.Join(dir, fmt.Sprintf(".%s.%08x.tmp", clipName(name), rand.Uint32()))
	if err := createSynced(tmp, data); err != nil {
		_ = os.Remove(tmp) // best effort: the name starts with a dot, so it is no resource
		return err
	}
	if err := unix.Rename(tmp, filepath.Join(dir, name)); err != nil {
		_ = os.Remove(tmp)
		return &os.LinkError{Op: "rename", Old: tmp, New: filepath.Join(dir, name), Err: err}
	}
	return syncDir(dir)
}

func clipName(name string) string { return name[:min(len(name), 200)] }

func createSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// readBounded reads at most MaxSize+1 bytes of a regular file, through a fresh
// open: network file systems revalidate their caches at that moment.
func readBounded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil, &ParseError{Path: path, Msg: "a symbolic link, socket or device; a resource is a regular file"}
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &ParseError{Path: path, Msg: "not a regular file; a resource is one"}
	}
	return io.ReadAll(io.LimitReader(f, MaxSize+1))
}

// touch makes a change in the directory that undoes itself, which forces
// network file systems to forget what they remember of it.
func touch(dir string) error {
	name := filepath.Join(dir, fmt.Sprintf(".look.%08x", rand.Uint32()))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(name))
}

// names lists the names in a directory that do not start with a dot, sorted.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			out = append(out, e.Name())
		}
	}
	sort.Strings(out)
	return out, nil
}

// forcedTries bounds the readings until two agree.
const forcedTries = 10

// forcedNames is for listings that decide: touch, then read until two listings agree.
func forcedNames(dir string) ([]string, error) {
	if err := touch(dir); err != nil {
		return nil, err
	}
	last, err := names(dir)
	for range forcedTries {
		if err != nil {
			return nil, err
		}
		var next []string
		next, err = names(dir)
		if err == nil && equal(last, next) {
			return next, nil
		}
		last = next
	}
	return nil, fmt.Errorf("%s: the listing does not come to rest", dir)
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// errNowhere is returned by move if a fresh look found the name in neither
// place. It is not fs.ErrNotExist, which a look that failed may well return: a
// parent directory that is missing (the mount is gone) proves nothing.
var errNowhere = errors.New("it is in neither place")

// move renames and, after any error, finds out by looking what became of it:
// nil means that the name is at its destination now, errNowhere that it is in
// neither place. After any other error it is not known.
func (s *Store) move(from, to string) error {
	rerr := s.rename(from, to)
	if rerr == nil {
		return nil
	}
	if err := errors.Join(touch(filepath.Dir(from)), touch(filepath.Dir(to))); err != nil {
		return fmt.Errorf("rename %s to %s: %w; what became of it is not known: %w", from, to, rerr, err)
	}
	at, err := exists(to)
	if err != nil {
		return errors.Join(rerr, err)
	}
	still, err := exists(from)
	switch {
	case err != nil:
		return errors.Join(rerr, err)
	case still:
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: rerr}
	case at:
		return nil
	}
	return fmt.Errorf("rename %s to %s: %w", from, to, errNowhere)
}

func syncfs(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

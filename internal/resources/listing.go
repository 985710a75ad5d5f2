package resources

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
)

// Listing is what one directory of resources holds.
type Listing = cluster.Listing

// Unparseable is a resource file that cannot be used.
type Unparseable = cluster.Unparseable

// Census is everything that the mount holds of resources.
type Census = cluster.Census

// BrokenResource is a quarantined resource.
type BrokenResource = cluster.BrokenResource

// cache remembers parsed files by what lstat says of them.
type cache struct {
	mu    *sync.Mutex
	files map[string]cached
}

type cached struct {
	ino   uint64
	size  int64
	mtime unix.Timespec
	ctime unix.Timespec
	res   cluster.Resource
	err   error
}

func newCache() cache { return cache{mu: &sync.Mutex{}, files: map[string]cached{}} }

// settled is the age from which a file's time stamp tells all its later changes
// apart; a younger file is read again (time stamps of some file systems have
// steps of a second or two).
const settled = 3 * time.Second

// load reads one resource file, through the cache.
func (s *Store) load(dir, name string, now time.Time) (cluster.Resource, error) {
	file := filepath.Join(dir, name)
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		return cluster.Resource{}, &fs.PathError{Op: "lstat", Path: file, Err: err}
	}
	s.cache.mu.Lock()
	c, ok := s.cache.files[file]
	s.cache.mu.Unlock()
	if ok && c.ino == st.Ino && c.size == st.Size && c.mtime == st.Mtim && c.ctime == st.Ctim {
		return c.res, c.err
	}
	c = cached{ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
	c.res, c.err = parseFile(file, name)
	var pe *ParseError
	if c.err != nil && !errors.As(c.err, &pe) {
		return c.res, c.err
	}
	if now.Sub(time.Unix(st.Ctim.Sec, st.Ctim.Nsec)) > settled {
		s.cache.mu.Lock()
		s.cache.files[file] = c
		s.cache.mu.Unlock()
	}
	return c.res, c.err
}

func parseFile(file, name string) (cluster.Resource, error) {
	id, err := cluster.ParseResourceID(name)
	if err != nil {
		return cluster.Resource{}, &ParseError{Path: file, Msg: err.Error()}
	}
	data, err := readBounded(file)
	if err != nil {
		return cluster.Resource{}, err
	}
	d, err := ParseDocument(file, data)
	if err != nil {
		return cluster.Resource{}, err
	}
	return d.Resource(id), nil
}

// list reads a directory. A file that vanishes meanwhile is left out.
func (s *Store) list(dir string, owner cluster.NodeID, forced bool) (Listing, error) {
	var l Listing
	read := names
	if forced {
		read = forcedNames
	}
	all, err := read(dir)
	if err != nil {
		return l, err
	}
	// An .inc that cannot be parsed counts as none: nobody claims from such a
	// directory, and all others are still read. Who owns it asks mustOwn.
	var pe *ParseError
	if l.Inc, l.HasInc, err = readInc(dir); err != nil && !errors.As(err, &pe) {
		return l, err
	}
	if l.Done, err = exists(filepath.Join(dir, doneFile)); err != nil {
		return l, err
	}
	now := time.Now()
	l.Resources = make([]cluster.Resource, 0, len(all))
	for _, name := range all {
		r, err := s.load(dir, name, now)
		switch {
		case err == nil:
			l.Resources = append(l.Resources, r)
		case errors.Is(err, fs.ErrNotExist):
		case errors.As(err, &pe):
			l.Unparseable = append(l.Unparseable, Unparseable{File: filepath.Join(dir, name), ID: name, Owner: owner, Err: err})
		default:
			return l, err
		}
	}
	s.forget(dir, all)
	return l, nil
}

// forget drops cached files of a directory that are not in it any more.
func (s *Store) forget(dir string, present []string) {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	if len(s.cache.files) <= 2*len(present)+1024 {
		return
	}
	keep := make(map[string]bool, len(present))
	for _, n := range present {
		keep[filepath.Join(dir, n)] = true
	}
	for f := range s.cache.files {
		if filepath.Dir(f) == dir && !keep[f] {
			delete(s.cache.files, f)
		}
	}
}

func readInc(dir string) (cluster.Incarnation, bool, error) {
	b, err := readBounded(filepath.Join(dir, incFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n < 0 {
		return 0, false, &ParseError{Path: filepath.Join(dir, incFile), Msg: fmt.Sprintf("%q is no incarnation", clip(string(b)))}
	}
	return cluster.Incarnation(n), true, nil
}

// Repository lists a node's repository. With forced, the listing decides
// something and caches are not trusted.
func (s *Store) Repository(ctx context.Context, n cluster.NodeID, forced bool) (Listing, error) {
	return fetch(ctx, s, "list the repository of "+string(n), func() (Listing, error) {
		l, err := s.list(s.RepositoryDir(n), n, forced)
		for i := range l.Resources {
			l.Resources[i].Owner = n
		}
		return l, err
	})
}

// Pool lists a sealed repository.
func (s *Store) Pool(ctx context.Context, p cluster.PoolID, forced bool) (Listing, error) {
	return fetch(ctx, s, "list pool directory "+p.String(), func() (Listing, error) {
		l, err := s.list(s.poolDir(p), p.Node, forced)
		for i := range l.Resources {
			l.Resources[i].Pool = p
		}
		return l, err
	})
}

// Pools returns the names of all sealed repositories. Names that are none are left out.
func (s *Store) Pools(ctx context.Context) ([]cluster.PoolID, error) {
	return fetch(ctx, s, "list the pool", func() ([]cluster.PoolID, error) {
		all, err := names(filepath.Join(s.root, "pool"))
		if err != nil {
			return nil, err
		}
		var out []cluster.PoolID
		for _, n := range all {
			if p, err := cluster.ParsePoolID(n); err == nil {
				out = append(out, p)
			}
		}
		return out, nil
	})
}

// Owners returns the host ids that have a directory on the mount.
func (s *Store) Owners(ctx context.Context) ([]cluster.NodeID, error) {
	return fetch(ctx, s, "list the nodes' directories", func() ([]cluster.NodeID, error) {
		all, err := names(s.root)
		if err != nil {
			return nil, err
		}
		var out []cluster.NodeID
		for _, n := range all {
			if host, ok := strings.CutPrefix(n, "md."); ok {
				if id, err := cluster.ParseNodeID(host); err == nil {
					out = append(out, id)
				}
			}
		}
		return out, nil
	})
}

// Census reads all repositories, the pool and broken.
func (s *Store) Census(ctx context.Context) (Census, error) { return s.census(ctx, false) }

// FreshCensus is Census for what decides: each directory is listed until two
// listings agree, past what the file system has cached. What moves from one
// directory to another meanwhile can be missed all the same, so where it counts
// that something is nowhere, two of them have to agree.
func (s *Store) FreshCensus(ctx context.Context) (Census, error) { return s.census(ctx, true) }

func (s *Store) census(ctx context.Context, forced bool) (Census, error) {
	c := Census{Repositories: map[cluster.NodeID]Listing{}, Pools: map[cluster.PoolID]Listing{}}
	owners, err := s.Owners(ctx)
	if err != nil {
		return c, err
	}
	for _, n := range owners {
		l, err := s.Repository(ctx, n, forced)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, err
		}
		c.Repositories[n] = l
		c.Unparseable = append(c.Unparseable, l.Unparseable...)
		c.Unparseable = append(c.Unparseable, s.damagedInc(ctx, l, s.RepositoryDir(n), n)...)
	}
	pools, err := s.Pools(ctx)
	if err != nil {
		return c, err
	}
	for _, p := range pools {
		l, err := s.Pool(ctx, p, forced)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, err
		}
		c.Pools[p] = l
		c.Unparseable = append(c.Unparseable, l.Unparseable...)
		c.Unparseable = append(c.Unparseable, s.damagedInc(ctx, l, s.poolDir(p), p.Node)...)
	}
	if c.Broken, err = s.Broken(ctx); err != nil {
		return c, err
	}
	return c, nil
}

// damagedInc returns the .inc of a directory if it is there and cannot be
// parsed. It is shown, and never moved away as a resource file would be.
func (s *Store) damagedInc(ctx context.Context, l Listing, dir string, owner cluster.NodeID) []Unparseable {
	if l.HasInc {
		return nil
	}
	err := s.do(ctx, "read "+filepath.Join(dir, incFile), func() error {
		_, _, err := readInc(dir)
		return err
	})
	var pe *ParseError
	if !errors.As(err, &pe) {
		return nil // it is absent, or the next look tells
	}
	return []Unparseable{{File: pe.Path, ID: incFile, Owner: owner, Err: pe}}
}

// RepositoryStamp changes whenever a name in a repository does; a rescan that
// finds it unchanged need not read the directory.
func (s *Store) RepositoryStamp(ctx context.Context, n cluster.NodeID) (string, error) {
	return fetch(ctx, s, "look at the repository of "+string(n), func() (string, error) {
		var st unix.Stat_t
		if err := unix.Stat(s.RepositoryDir(n), &st); err != nil {
			return "", &fs.PathError{Op: "stat", Path: s.RepositoryDir(n), Err: err}
		}
		return fmt.Sprint(st.Ino, st.Mtim, st.Ctim), nil
	})
}

// Incarnation reads the .inc of a node's repository. present is false if the
// directory or the file is not there.
func (s *Store) Incarnation(ctx context.Context, n cluster.NodeID) (inc cluster.Incarnation, present bool, err error) {
	type answer struct {
		inc     cluster.Incarnation
		present bool
	}
	a, err := fetch(ctx, s, "read the incarnation of "+string(n), func() (a answer, err error) {
		a.inc, a.present, err = readInc(s.RepositoryDir(n))
		return a, err
	})
	return a.inc, a.present, err
}

// Document reads one file of a node's repository.
func (s *Store) Document(ctx context.Context, n cluster.NodeID, id cluster.ResourceID) (Document, error) {
	file := filepath.Join(s.RepositoryDir(n), string(id))
	return fetch(ctx, s, "read resource "+string(id), func() (Document, error) {
		data, err := readBounded(file)
		if errors.Is(err, fs.ErrNotExist) {
			return Document{}, ErrGone
		}
		if err != nil {
			return Document{}, err
		}
		return ParseDocument(file, data)
	})
}

func (s *Store) readOwn(n cluster.NodeID, id cluster.ResourceID) (cluster.Resource, error) {
	file := filepath.Join(s.RepositoryDir(n), string(id))
	data, err := readBounded(file)
	if errors.Is(err, fs.ErrNotExist) {
		return cluster.Resource{}, ErrGone
	}
	if err != nil {
		return cluster.Resource{}, err
	}
	d, err := ParseDocument(file, data)
	if err != nil {
		return cluster.Resource{}, err
	}
	return d.Resource(id), nil
}

package resources

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// The errors that callers decide by.
var (
	ErrGone   = cluster.ErrGone
	ErrTaken  = cluster.ErrTaken
	ErrSealed = cluster.ErrSealed
)

// CreateRepository makes a node's empty repository for an incarnation. Only
// join and admission call it: a repository that is missing otherwise was sealed.
func (s *Store) CreateRepository(ctx context.Context, n cluster.NodeID, inc cluster.Incarnation) error {
	return s.do(ctx, "create the repository of "+string(n), func() error {
		s.at("create:before")
		dir := s.RepositoryDir(n)
		have, present, err := readInc(dir)
		if err != nil {
			return err
		}
		if present {
			if have == inc {
				return nil
			}
			return fmt.Errorf("%s belongs to incarnation %d, not %d: %w", dir, have, inc, ErrTaken)
		}
		tmp := filepath.Join(s.nodeDir(n), fmt.Sprintf(".resources.%d", inc))
		if err := os.RemoveAll(tmp); err != nil {
			return err
		}
		if err := os.MkdirAll(tmp, 0o755); err != nil {
			return err
		}
		if err := createSynced(filepath.Join(tmp, incFile), incBytes(inc)); err != nil {
			return err
		}
		if err := syncDir(tmp); err != nil {
			return err
		}
		if err := s.move(tmp, dir); err != nil {
			return err
		}
		if err := syncDir(s.nodeDir(n)); err != nil {
			return err
		}
		s.at("create:after")
		return nil
	})
}

// HighestPool is the highest incarnation of a node that was ever sealed; 0 = none.
func (s *Store) HighestPool(ctx context.Context, n cluster.NodeID) (cluster.Incarnation, error) {
	pools, err := s.Pools(ctx)
	if err != nil {
		return 0, err
	}
	var high cluster.Incarnation
	for _, p := range pools {
		if p.Node == n {
			high = max(high, p.Incarnation)
		}
	}
	return high, nil
}

// Seal takes a dead node's repository away: one rename into the pool, after
// which .inc is verified. It is idempotent. A directory of another incarnation
// is renamed back and ErrSealed returned: this failover came too late.
func (s *Store) Seal(ctx context.Context, id cluster.FailoverID) error {
	return s.do(ctx, "seal "+id.String(), func() error {
		s.at("seal:before")
		from, to := s.RepositoryDir(id.Node), s.poolDir(id)
		if there, err := exists(to); err != nil || there {
			if err == nil {
				err = s.verifySeal(id)
			}
			return err
		}
		inc, present, err := readInc(from)
		if err != nil {
			return err
		}
		if present && inc != id.Incarnation {
			return fmt.Errorf("the repository is of incarnation %d: %w", inc, ErrSealed)
		}
		err = s.move(from, to)
		if errors.Is(err, errNowhere) {
			// In neither place: the node never had one. An empty directory takes the name.
			err = s.emptyPool(id)
		}
		if err != nil {
			return err
		}
		if err := errors.Join(syncDir(s.nodeDir(id.Node)), syncDir(filepath.Join(s.root, "pool"))); err != nil {
			return err
		}
		s.at("seal:after")
		return s.verifySeal(id)
	})
}

// emptyPool makes an empty pool directory, unless one of this name is there.
// The directory pool itself is never made: under a lost mount it would be a
// local one.
func (s *Store) emptyPool(id cluster.FailoverID) error {
	tmp := filepath.Join(s.root, "pool", fmt.Sprintf(".%s.%08x", id, rand.Uint32()))
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // it is not there any more if all goes well
	if err := errors.Join(createSynced(filepath.Join(tmp, incFile), incBytes(id.Incarnation)), syncDir(tmp)); err != nil {
		return err
	}
	if err := s.move(tmp, s.poolDir(id)); err != nil {
		if there, eerr := exists(s.poolDir(id)); eerr == nil && there {
			return nil // somebody else made it at the same time
		}
		return err
	}
	return syncDir(filepath.Join(s.root, "pool"))
}

// verifySeal undoes a seal that landed after the node had come back with a
// newer incarnation.
func (s *Store) verifySeal(id cluster.FailoverID) error {
	inc, present, err := readInc(s.poolDir(id))
	if err != nil {
		return err
	}
	if present && inc == id.Incarnation {
		return nil
	}
	if !present {
		return fmt.Errorf("pool directory %s has no %s file; it was not made by a seal, look at it by hand", id, incFile)
	}
	if err := s.move(s.poolDir(id), s.RepositoryDir(id.Node)); err != nil {
		return fmt.Errorf("pool directory %s holds incarnation %d and cannot be renamed back: %w", id, inc, err)
	}
	if err := errors.Join(syncDir(s.nodeDir(id.Node)), syncDir(filepath.Join(s.root, "pool"))); err != nil {
		return err
	}
	return fmt.Errorf("pool directory %s held incarnation %d and was renamed back: %w", id, inc, ErrSealed)
}

// Claimed is the result of one claim.
type Claimed = cluster.Claimed

// Claim gives resources of a pool directory to this node: one rename each, and
// one fsync of both directories for all. It is the only commit point of a
// relocation. A name that is taken here gets "~<host id of the former owner>".
// The repository must be of incarnation inc, else ErrSealed is returned.
func (s *Store) Claim(ctx context.Context, self cluster.NodeID, inc cluster.Incarnation, pool cluster.PoolID, ids []cluster.ResourceID) ([]Claimed, error) {
	own, dir := s.RepositoryDir(self), s.poolDir(pool)
	names := make([]string, 0, 2*len(ids))
	for _, id := range ids {
		names = append(names, filepath.Join(own, string(id)), filepath.Join(own, suffixed(string(id), pool.Node)))
	}
	return change(ctx, s, fmt.Sprintf("claim %d resources from pool directory %s", len(ids), pool), names, func() ([]Claimed, error) {
		s.at("claim:before")
		if err := s.mustOwn(self, inc); err != nil {
			return nil, err
		}
		poolInc, present, err := readInc(dir)
		if err != nil {
			return nil, err
		}
		if !present || poolInc != pool.Incarnation {
			return nil, fmt.Errorf("pool directory %s holds incarnation %d; nobody claims from it: %w", pool, poolInc, ErrGone)
		}
		out := make([]Claimed, len(ids))
		for i, id := range ids {
			out[i] = s.claimOne(dir, own, pool.Node, id)
		}
		if err := errors.Join(syncDir(own), syncDir(dir)); err != nil {
			return nil, err
		}
		s.at("claim:after")
		return out, nil
	})
}

func (s *Store) claimOne(dir, own string, former cluster.NodeID, id cluster.ResourceID) Claimed {
	name := id
	taken, err := exists(filepath.Join(own, string(name)))
	if err == nil && taken {
		name = cluster.ResourceID(suffixed(string(id), former))
		taken, err = exists(filepath.Join(own, string(name)))
		if err == nil && taken {
			err = ErrTaken
		}
	}
	if err != nil {
		return Claimed{ID: id, Err: fmt.Errorf("claim %s: %w", id, classify(err))}
	}
	if err := s.move(filepath.Join(dir, string(id)), filepath.Join(own, string(name))); err != nil {
		if errors.Is(err, errNowhere) {
			err = ErrGone
		}
		return Claimed{ID: id, Err: fmt.Errorf("claim %s: %w", id, classify(err))}
	}
	return Claimed{ID: name}
}

// mustOwn checks that the repository is there and of this incarnation. It looks
// twice, since one stale answer of the file system must not look like a seal.
func (s *Store) mustOwn(self cluster.NodeID, inc cluster.Incarnation) error {
	have, present, err := readInc(s.RepositoryDir(self))
	if err == nil && present && have == inc {
		return nil
	}
	if err := touch(s.nodeDir(self)); err != nil {
		return err
	}
	have, present, err = readInc(s.RepositoryDir(self))
	switch {
	case err != nil:
		return err
	case !present:
		return fmt.Errorf("%s is missing: %w", s.RepositoryDir(self), ErrSealed)
	case have != inc:
		return fmt.Errorf("%s is of incarnation %d, not %d: %w", s.RepositoryDir(self), have, inc, ErrSealed)
	}
	return nil
}

// MustOwn returns nil if the repository is this node's and of this incarnation,
// ErrSealed if it is proven not to be, and another error if that is not known.
func (s *Store) MustOwn(ctx context.Context, self cluster.NodeID, inc cluster.Incarnation) error {
	return s.do(ctx, "look at the own repository", func() error { return s.mustOwn(self, inc) })
}

// Put writes a resource into the own repository. With create, the name must be
// free (ErrTaken); without, it must be there (ErrGone).
func (s *Store) Put(ctx context.Context, self cluster.NodeID, inc cluster.Incarnation, id cluster.ResourceID, d Document, create bool) error {
	data, err := d.Bytes()
	if err != nil {
		return fmt.Errorf("write resource %s: %w", id, err)
	}
	return s.alter(ctx, "write resource "+string(id), s.ownNames(self, id), func() error {
		return s.put(self, inc, id, data, create)
	})
}

func (s *Store) put(self cluster.NodeID, inc cluster.Incarnation, id cluster.ResourceID, data []byte, create bool) error {
	if err := s.mustOwn(self, inc); err != nil {
		return err
	}
	there, err := exists(filepath.Join(s.RepositoryDir(self), string(id)))
	switch {
	case err != nil:
		return err
	case create && there:
		return ErrTaken
	case !create && !there:
		return ErrGone
	}
	return writeFile(s.RepositoryDir(self), string(id), data)
}

// alter is change for work without a result.
func (s *Store) alter(ctx context.Context, what string, names []string, f func() error) error {
	_, err := change(ctx, s, what, names, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

func (s *Store) ownNames(self cluster.NodeID, ids ...cluster.ResourceID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = filepath.Join(s.RepositoryDir(self), string(id))
	}
	return out
}

// Rename gives a resource of the own repository another name.
func (s *Store) Rename(ctx context.Context, self cluster.NodeID, inc cluster.Incarnation, id, to cluster.ResourceID) error {
	return s.alter(ctx, "rename resource "+string(id), s.ownNames(self, id, to), func() error {
		dir := s.RepositoryDir(self)
		if err := s.mustOwn(self, inc); err != nil {
			return err
		}
		if there, err := exists(filepath.Join(dir, string(to))); err != nil {
			return err
		} else if there {
			return ErrTaken
		}
		if err := s.move(filepath.Join(dir, string(id)), filepath.Join(dir, string(to))); err != nil {
			if errors.Is(err, errNowhere) {
				return ErrGone
			}
			return err
		}
		return syncDir(dir)
	})
}

// Delete removes a resource from the own repository, for an operator who takes
// a VE out of shaman's protection.
func (s *Store) Delete(ctx context.Context, self cluster.NodeID, inc cluster.Incarnation, id cluster.ResourceID) error {
	return s.alter(ctx, "delete resource "+string(id), s.ownNames(self, id), func() error {
		if err := s.mustOwn(self, inc); err != nil {
			return err
		}
		err := os.Remove(filepath.Join(s.RepositoryDir(self), string(id)))
		if errors.Is(err, fs.ErrNotExist) {
			return ErrGone
		}
		if err != nil {
			return err
		}
		return syncDir(s.RepositoryDir(self))
	})
}

// GiveBack moves a resource that is proven stopped and unregistered into
// pool/<self>.0, for another node to claim. It returns its name there.
func (s *Store) GiveBack(ctx context.Context, self cluster.NodeID, inc cluster.Incarnation, id cluster.ResourceID) (cluster.ResourceID, error) {
	pool := cluster.PoolID{Node: self}
	busy := append(s.ownNames(self, id), filepath.Join(s.poolDir(pool), string(id)), filepath.Join(s.poolDir(pool), suffixed(string(id), self)))
	return change(ctx, s, "give back resource "+string(id), busy, func() (cluster.ResourceID, error) {
		s.at("giveback:before")
		if err := s.mustOwn(self, inc); err != nil {
			return "", err
		}
		if there, err := exists(s.poolDir(pool)); err != nil {
			return "", err
		} else if !there {
			if err := s.emptyPool(pool); err != nil {
				return "", err
			}
		}
		c := s.claimOne(s.RepositoryDir(self), s.poolDir(pool), self, id)
		if c.Err != nil {
			return "", c.Err
		}
		if err := errors.Join(syncDir(s.poolDir(pool)), syncDir(s.RepositoryDir(self))); err != nil {
			return "", err
		}
		s.at("giveback:after")
		return c.ID, nil
	})
}

// MarkDone writes .done into a sealed repository that is empty, by a listing
// that decides. It returns an error if something lies in it.
func (s *Store) MarkDone(ctx context.Context, p cluster.PoolID) error {
	return s.do(ctx, "finish pool directory "+p.String(), func() error {
		s.at("done:before")
		left, err := forcedNames(s.poolDir(p))
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return fmt.Errorf("still holds %s", strings.Join(left[:min(len(left), 5)], ", "))
		}
		err = createSynced(filepath.Join(s.poolDir(p), doneFile), nil)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		s.at("done:after")
		return nil
	})
}

// Place is where a resource file lies.
type Place = cluster.Place

const (
	reasonSuffix = ".reason"
	maxFileName  = 255 // NAME_MAX of every file system that matters here
)

// suffixed is the name that a file gets where its own is taken: with the host id
// of its former owner, and never ending in ".reason". A long one is shortened as
// in cluster.MakeResourceID, so that its reason fits beside it.
func suffixed(name string, node cluster.NodeID) string {
	if len(name)+1+len(node)+len(reasonSuffix) > maxFileName {
		sum := sha256.Sum256([]byte(name))
		name = name[:160] + "~" + hex.EncodeToString(sum[:8])
	}
	return name + "~" + string(node)
}

package resources

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Broken lists the quarantine.
func (s *Store) Broken(ctx context.Context) ([]BrokenResource, error) {
	return fetch(ctx, s, "list broken resources", func() ([]BrokenResource, error) {
		all, err := names(s.brokenDir())
		if err != nil {
			return nil, err
		}
		var out []BrokenResource
		for _, name := range all {
			if strings.HasSuffix(name, reasonSuffix) {
				continue
			}
			b := BrokenResource{File: filepath.Join(s.brokenDir(), name)}
			b.Resource, b.Err = parseFile(b.File, name)
			b.Resource.ID = cluster.ResourceID(name)
			b.Resource.Kind = b.Resource.ID.Kind()
			if data, err := readBounded(b.File + reasonSuffix); err == nil {
				if err := json.Unmarshal(data, &b.Reason); err != nil && b.Err == nil {
					b.Err = fmt.Errorf("read %s.reason: %w", b.File, err)
				}
			}
			out = append(out, b)
		}
		return out, nil
	})
}

// MarkBroken moves a file, byte for byte, from the own repository or a sealed
// one into quarantine, with the reason beside it. The right to a name there is
// won by creating the reason first; a loser adds "~<host id>".
func (s *Store) MarkBroken(ctx context.Context, from Place, name string, why cluster.BrokenReason) error {
	data, err := json.MarshalIndent(why, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the reason: %w", err)
	}
	dir := s.poolDir(from.Pool)
	if from.Pool == (cluster.PoolID{}) {
		dir = s.RepositoryDir(from.Node)
	}
	busy := []string{filepath.Join(dir, name), filepath.Join(s.brokenDir(), name), filepath.Join(s.brokenDir(), suffixed(name, why.Node))}
	return s.alter(ctx, "quarantine "+name, busy, func() error {
		s.at("broken:before")
		if from.Pool == (cluster.PoolID{}) {
			if err := s.mustOwn(from.Node, from.Incarnation); err != nil {
				return err
			}
		}
		if there, err := exists(filepath.Join(dir, name)); err != nil {
			return err
		} else if !there {
			return ErrGone
		}
		as, err := s.winBroken(name, why.Node, append(data, '\n'))
		if err != nil {
			return err
		}
		if err := s.move(filepath.Join(dir, name), filepath.Join(s.brokenDir(), as)); err != nil {
			if errors.Is(err, errNowhere) {
				err = ErrGone
			}
			return err
		}
		if err := errors.Join(syncDir(s.brokenDir()), syncDir(dir)); err != nil {
			return err
		}
		s.at("broken:after")
		return nil
	})
}

// winBroken returns the name in broken that the caller has won.
func (s *Store) winBroken(name string, node cluster.NodeID, reason []byte) (string, error) {
	as := []string{name, suffixed(name, node)}
	if strings.HasSuffix(name, reasonSuffix) || len(name)+len(reasonSuffix) > maxFileName {
		as = as[1:] // it would be taken for a reason, or leave no room for its own
	}
	for _, as := range as {
		won, err := s.winName(as, node, reason)
		if err != nil || won {
			return as, err
		}
	}
	return "", ErrTaken
}

// winName wins a name by creating the reason. A resource that lies there
// without a reason keeps its place too, since rename replaces.
func (s *Store) winName(as string, node cluster.NodeID, reason []byte) (bool, error) {
	file := filepath.Join(s.brokenDir(), as)
	err := createSynced(file+reasonSuffix, reason)
	fresh := err == nil
	if !fresh && !errors.Is(err, fs.ErrExist) {
		return false, err
	}
	there, err := exists(file)
	switch {
	case err != nil:
		return false, err
	case fresh && there:
		return false, os.Remove(file + reasonSuffix)
	case fresh:
		return true, nil
	case there:
		return false, nil
	}
	var left cluster.BrokenReason
	data, err := readBounded(file + reasonSuffix)
	if err != nil || json.Unmarshal(data, &left) != nil || left.Node != node {
		return false, nil // somebody else's, who may be writing it just now
	}
	// Left over from an attempt of this node that ended half way.
	return true, writeFile(s.brokenDir(), as+reasonSuffix, reason)
}

// ClaimBroken gives a quarantined resource to this node: one rename into the own
// repository. A name that is taken there gets "~<host id>" appended. The path of
// the resource has to be what the caller has seen (ErrGone): names are used again.
func (s *Store) ClaimBroken(ctx context.Context, self cluster.NodeID, inc cluster.Incarnation, id cluster.ResourceID, path string) (cluster.ResourceID, error) {
	own := s.RepositoryDir(self)
	file := filepath.Join(s.brokenDir(), string(id))
	busy := []string{file, filepath.Join(own, string(id)), filepath.Join(own, suffixed(string(id), self))}
	return change(ctx, s, "take resource "+string(id)+" out of broken", busy, func() (cluster.ResourceID, error) {
		s.at("unbreak:before")
		if err := s.mustOwn(self, inc); err != nil {
			return "", err
		}
		if err := mustBe(file, id, path); err != nil {
			return "", err
		}
		reason, err := readBounded(file + reasonSuffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		c := s.claimOne(s.brokenDir(), own, self, id)
		if c.Err != nil {
			return "", c.Err
		}
		if err := errors.Join(syncDir(own), syncDir(s.brokenDir())); err != nil {
			return "", err
		}
		s.at("unbreak:after")
		return c.ID, s.dropReason(file, reason)
	})
}

// mustBe makes sure that a quarantined file still is the resource of that VE.
func mustBe(file string, id cluster.ResourceID, path string) error {
	res, err := parseFile(file, string(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", file, ErrGone)
	case err != nil:
		return err
	case res.Path != path:
		return fmt.Errorf("%s is the resource of another VE by now, %s: %w", file, res.Path, ErrGone)
	}
	return nil
}

// dropReason removes the reason of what has left the quarantine, unless somebody
// has won the name for something else since.
func (s *Store) dropReason(file string, was []byte) error {
	if was == nil {
		return nil
	}
	now, err := readBounded(file + reasonSuffix)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Equal(now, was) {
		return nil
	}
	if err != nil {
		return err
	}
	if there, err := exists(file); err != nil || there {
		return err
	}
	if err := os.Remove(file + reasonSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(s.brokenDir())
}

// DropBroken deletes a quarantined resource whose VE is not there any more. The
// path of the resource has to be what the caller has seen, and absent at this moment.
func (s *Store) DropBroken(ctx context.Context, id cluster.ResourceID, path string) error {
	file := filepath.Join(s.brokenDir(), string(id))
	return s.alter(ctx, "delete broken resource "+string(id), []string{file}, func() error {
		if err := mustBe(file, id, path); err != nil {
			return err
		}
		if absent, err := s.absent(path); err != nil || !absent {
			return errors.Join(fmt.Errorf("there is something at %s, or that is not known", path), err)
		}
		reason, err := readBounded(file + reasonSuffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return errors.Join(syncDir(s.brokenDir()), s.dropReason(file, reason))
	})
}

// Absent tells whether there is nothing at a VE's path while its parent lists
// fine; what lies elsewhere than on the shared file system is never said to be
// absent. An error means that it is not known.
func (s *Store) Absent(ctx context.Context, path string) (bool, error) {
	return fetch(ctx, s, "look at "+path, func() (bool, error) { return s.absent(path) })
}

func (s *Store) absent(path string) (bool, error) {
	if !strings.HasPrefix(path, filepath.Dir(s.root)+"/") {
		return false, nil
	}
	// First the parent: under a lost mount it lists nothing, or is not there at all.
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Name() == filepath.Base(path) {
			return false, nil
		}
	}
	if _, err := os.Stat(s.identityFile()); err != nil {
		return false, fmt.Errorf("the mount cannot be told from an empty directory: %w", err)
	}
	there, err := exists(path)
	return err == nil && !there, err
}

package resources

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
)

// Identity is the file .shaman/cluster: whose mount this is. Made once by the
// first join, never by a daemon.
type Identity struct {
	V             int           `json:"v"`
	Name          string        `json:"name"`
	UUID          string        `json:"uuid"`
	EtcdClusterID uint64        `json:"etcd_cluster_id"`
	Generation    int           `json:"generation"`
	Epoch         cluster.Epoch `json:"epoch"`          // highest mastership that acted
	Mark          string        `json:"mark,omitempty"` // of a master, known to its etcd; see cluster.Marks
}

// identitySize is the fixed size of the file, so that it can be overwritten in
// place by one small write.
const identitySize = 512

var (
	// ErrNoCluster is returned if the mount has no identity: nothing was ever
	// joined, or the file system is not mounted.
	ErrNoCluster = errors.New("there is no cluster on this mount")
	// ErrOtherCluster is returned if the mount belongs to another cluster.
	ErrOtherCluster = errors.New("the mount belongs to another cluster")
)

func (s *Store) identityFile() string { return filepath.Join(s.root, "cluster") }

// ReadIdentity reads whose mount this is, and the device that it lies on.
func (s *Store) ReadIdentity(ctx context.Context) (Identity, uint64, error) {
	type answer struct {
		id  Identity
		dev uint64
	}
	a, err := fetch(ctx, s, "read the identity of the mount", func() (a answer, err error) {
		a.id, a.dev, err = s.readIdentity()
		return a, err
	})
	return a.id, a.dev, err
}

func (s *Store) readIdentity() (id Identity, dev uint64, err error) {
	data, err := readBounded(s.identityFile())
	if errors.Is(err, fs.ErrNotExist) {
		return id, 0, fmt.Errorf("%s is missing: %w; is the shared file system mounted at %s? If this is a new cluster, run 'shaman join'", s.identityFile(), ErrNoCluster, filepath.Dir(s.root))
	}
	if err != nil {
		return id, 0, err
	}
	err = json.Unmarshal(bytes.TrimSpace(data), &id)
	if err == nil && id.UUID == "" {
		err = errors.New("it has no uuid")
	}
	if err != nil {
		return Identity{}, 0, fmt.Errorf("%s is damaged: %w; restore it from a backup, its uuid identifies the cluster", s.identityFile(), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(s.root, &st); err != nil {
		return id, 0, &fs.PathError{Op: "stat", Path: s.root, Err: err}
	}
	return id, st.Dev, nil
}

func (id Identity) bytes() ([]byte, error) {
	b, err := json.Marshal(id)
	if err != nil {
		return nil, fmt.Errorf("encode the identity: %w", err)
	}
	if len(b) >= identitySize {
		return nil, fmt.Errorf("the identity has %d bytes, at most %d fit", len(b), identitySize-1)
	}
	out := bytes.Repeat([]byte{' '}, identitySize)
	copy(out, b)
	out[identitySize-1] = '\n'
	return out, nil
}

// Found makes the mount a cluster's, unless it is one already; the identity
// that holds afterwards is returned.
func (s *Store) Found(ctx context.Context, id Identity) (Identity, error) {
	data, err := id.bytes()
	if err != nil {
		return Identity{}, err
	}
	return fetch(ctx, s, "found the cluster on the mount", func() (Identity, error) {
		// The mount point itself must be there: it is never made, or a local
		// directory under a missing mount would become a cluster of its own.
		for _, d := range []string{s.root, filepath.Join(s.root, "pool"), s.brokenDir(), filepath.Join(s.root, "events"), filepath.Join(s.root, "domains")} {
			if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return Identity{}, err
			}
		}
		tmp := filepath.Join(s.root, ".cluster."+id.UUID)
		if err := createSynced(tmp, data); err != nil {
			return Identity{}, err
		}
		defer os.Remove(tmp)
		// A link, unlike a rename, does not replace: the first join wins.
		if err := os.Link(tmp, s.identityFile()); err != nil && !errors.Is(err, fs.ErrExist) {
			if err := createSynced(s.identityFile(), data); err != nil && !errors.Is(err, fs.ErrExist) {
				return Identity{}, err // neither links nor exclusive creation work here
			}
		}
		if err := syncDir(s.root); err != nil {
			return Identity{}, err
		}
		have, _, err := s.readIdentity()
		return have, err
	})
}

// RecordEpoch writes a new master's epoch into the identity, in place. It
// returns an error if the mount knows a higher one: etcd then went back in time.
func (s *Store) RecordEpoch(ctx context.Context, epoch cluster.Epoch) error {
	return s.do(ctx, "record the epoch on the mount", func() error {
		id, _, err := s.readIdentity()
		if err != nil {
			return err
		}
		if id.Epoch == epoch {
			return nil
		}
		if id.Epoch > epoch {
			return fmt.Errorf("the mount knows epoch %d, this mastership is %d: %w; %s: %w", id.Epoch, epoch, cluster.ErrWentBack, recoverHint, ErrOtherCluster)
		}
		id.Epoch = epoch
		return s.overwriteIdentity(id)
	})
}

// recoverHint is what an operator does about it.
const recoverHint = "stop shaman-monitor on all nodes (VEs run on), make sure that etcd is the right one, and run 'shaman join --recover' on each"

// CheckMark returns ErrWentBack if the mark on the mount is not one of those that
// etcd knows.
func (s *Store) CheckMark(ctx context.Context, known cluster.Marks) error {
	id, _, err := s.ReadIdentity(ctx)
	if err != nil {
		return err
	}
	if !known.Knows(id.Mark) {
		return fmt.Errorf("etcd does not know the last mark on the mount: %w; %s", cluster.ErrWentBack, recoverHint)
	}
	return nil
}

// PutMark leaves a master's mark on the mount.
func (s *Store) PutMark(ctx context.Context, mark string) error {
	return s.do(ctx, "leave a mark on the mount", func() error {
		id, _, err := s.readIdentity()
		if err != nil {
			return err
		}
		id.Mark = mark
		return s.overwriteIdentity(id)
	})
}

// overwriteIdentity writes in place: the file's name is never away.
func (s *Store) overwriteIdentity(id Identity) error {
	data, err := id.bytes()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.identityFile(), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// Rebind ties the mount to another etcd, or to one that was restored from a
// backup: the epochs of before count no more. No daemon may run anywhere: its
// mastership, or its lease, is by the etcd of before.
func (s *Store) Rebind(ctx context.Context, etcdClusterID uint64) error {
	return s.do(ctx, "tie the mount to another etcd", func() error {
		id, _, err := s.readIdentity()
		if err != nil {
			return err
		}
		id.EtcdClusterID, id.Epoch, id.Mark = etcdClusterID, 0, ""
		id.Generation++
		return s.overwriteIdentity(id)
	})
}

// PrepareNode makes what a node needs on the mount before its daemon runs: its
// directory, its slots and its first, empty repository.
func (s *Store) PrepareNode(ctx context.Context, n cluster.NodeID, inc cluster.Incarnation) error {
	err := s.do(ctx, "prepare the directory of node "+string(n), func() error {
		if err := os.Mkdir(s.nodeDir(n), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		for _, slot := range []string{slotHeartbeat, slotOrder, slotAnswer} {
			err := createSynced(filepath.Join(s.nodeDir(n), slot), make([]byte, slotSize))
			if err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		return errors.Join(syncDir(s.nodeDir(n)), syncDir(s.root))
	})
	if err != nil {
		return err
	}
	return s.CreateRepository(ctx, n, inc)
}

// RemoveRepository deletes the files of a node that left with its VEs kept, or
// without any. Its directory stays: the slots' names may be cached elsewhere.
// It is gone with the first step: the node may be joined again meanwhile, and
// must find the whole of it or nothing.
func (s *Store) RemoveRepository(ctx context.Context, n cluster.NodeID) error {
	return s.do(ctx, "remove the repository of "+string(n), func() error {
		going := filepath.Join(s.nodeDir(n), fmt.Sprintf(".left.%08x", rand.Uint32()))
		if err := s.move(s.RepositoryDir(n), going); err != nil {
			if errors.Is(err, errNowhere) {
				return nil
			}
			return err
		}
		return errors.Join(syncDir(s.nodeDir(n)), os.RemoveAll(going))
	})
}

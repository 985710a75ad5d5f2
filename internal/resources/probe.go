package resources

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// probe is the record in a probe file: doctor overwrites it, and has other nodes
// tell what they see of it.
type probe struct {
	V     int            `json:"v"`
	Host  cluster.NodeID `json:"host"`
	Token string         `json:"token"`
}

// probeName is <host_id>, the slot of a node, or <host_id>.<n>, a name that
// exists for as long as it takes to see it from elsewhere.
var probeName = regexp.MustCompile(`^[0-9a-f]{16}(\.[0-9a-z]{1,32})?$`)

// ErrProbeName is returned for a name that cannot be a probe file's.
var ErrProbeName = errors.New("not the name of a probe file")

func (s *Store) probeDir() string { return filepath.Join(s.root, "doctor") }

// WriteProbe overwrites a node's probe slot durably. The slot is made at its
// first use and then left there, since network file systems cache names.
func (s *Store) WriteProbe(ctx context.Context, n cluster.NodeID, token string) error {
	return s.do(ctx, "write the probe file of "+string(n), func() error {
		path := filepath.Join(s.probeDir(), string(n))
		record := probe{V: cluster.RecordVersion, Host: n, Token: token}
		err := writeSlot(path, record)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// .shaman itself is never made here: it is the mount's, or this is no mount.
		if err := os.Mkdir(s.probeDir(), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := createSynced(path, make([]byte, slotSize)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := errors.Join(syncDir(s.probeDir()), syncDir(s.root)); err != nil {
			return err
		}
		return writeSlot(path, record)
	})
}

// CreateProbe makes a probe file under a new name.
func (s *Store) CreateProbe(ctx context.Context, name, token string) error {
	if !probeName.MatchString(name) {
		return fmt.Errorf("%.80q: %w", name, ErrProbeName)
	}
	return s.do(ctx, "make the probe file "+name, func() error {
		data := make([]byte, slotSize)
		if err := block(data, probe{V: cluster.RecordVersion, Host: cluster.NodeID(name[:16]), Token: token}); err != nil {
			return err
		}
		if err := createSynced(filepath.Join(s.probeDir(), name), data); err != nil {
			return err
		}
		return syncDir(s.probeDir())
	})
}

// ClearProbes removes what CreateProbe made for a node, also in former runs.
func (s *Store) ClearProbes(ctx context.Context, n cluster.NodeID) error {
	return s.do(ctx, "remove the probe files of "+string(n), func() error {
		all, err := names(s.probeDir())
		if err != nil {
			return err
		}
		var errs []error
		for _, name := range all {
			if strings.HasPrefix(name, string(n)+".") && probeName.MatchString(name) {
				errs = append(errs, os.Remove(filepath.Join(s.probeDir(), name)))
			}
		}
		return errors.Join(errs...)
	})
}

// Sight reads a probe file fresh. The name comes from another node: anything but
// a plain name of a probe file is refused.
func (s *Store) Sight(ctx context.Context, name string) (cluster.Sighting, error) {
	if !probeName.MatchString(name) {
		return cluster.Sighting{}, fmt.Errorf("%.80q: %w", name, ErrProbeName)
	}
	return fetch(ctx, s, "read the probe file "+name, func() (cluster.Sighting, error) {
		var p probe
		err := readSlot(filepath.Join(s.probeDir(), name), &p)
		at := time.Now().UTC().Format(time.RFC3339Nano)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return cluster.Sighting{At: at}, nil
		case errors.Is(err, ErrTorn):
			return cluster.Sighting{Found: true, At: at}, nil
		case err != nil:
			return cluster.Sighting{}, err
		}
		return cluster.Sighting{Found: true, Token: p.Token, At: at}, nil
	})
}

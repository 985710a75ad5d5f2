package libvirt

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
)

// stops remembers which VEs this driver stopped gracefully, for a hypervisor that
// does not tell how a VE ended (libvirt-lxc): a file each, which is forgotten when
// the VE runs again, whoever started it.
type stops struct {
	dir string
	mu  sync.Mutex
	m   map[uuid]bool // what is known of the files
}

func (s *stops) file(id uuid) string { return filepath.Join(s.dir, id.String()+".stopped") }

// remember writes down that it was stopped.
func (s *stops) remember(id uuid) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(id, true)
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return driverkit.Classify(err)
	}
	return driverkit.Classify(os.WriteFile(s.file(id), nil, 0o644))
}

func (s *stops) note(id uuid, stopped bool) {
	if s.m == nil {
		s.m = map[uuid]bool{}
	}
	s.m[id] = stopped
}

// forget is for a VE that runs, or is no longer known here.
func (s *stops) forget(id uuid) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stopped, known := s.m[id]; known && !stopped {
		return nil
	}
	if err := os.Remove(s.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return driverkit.Classify(err)
	}
	s.note(id, false)
	return nil
}

func (s *stops) stopped(id uuid) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	stopped, known := s.m[id]
	if !known {
		_, err := os.Stat(s.file(id))
		stopped = err == nil
		s.note(id, stopped)
	}
	return stopped
}

// see lets what is remembered complete, or be corrected by, what is listed.
func (s *stops) see(id uuid, v *cluster.VE) {
	switch {
	case v.State != cluster.VEStopped:
		_ = s.forget(id) // tried again at the next list
	case v.Cause == cluster.CauseUnknown && s.stopped(id):
		v.Cause = cluster.CauseStop
	}
}

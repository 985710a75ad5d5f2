package agent

import (
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
)

// askedKept is for how long after a relocation that was given up a stop of its VE
// counts as our own doing.
const askedKept = 5 * time.Minute

// askedStops are the VEs that were asked to shut down for a relocation: when, by path.
type askedStops struct {
	mu sync.Mutex
	m  map[string]boottime.Time
}

func (s *askedStops) note(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string]boottime.Time{}
	}
	s.m[path] = boottime.Now()
}

func (s *askedStops) forget(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, path)
}

func (s *askedStops) lately(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, asked := s.m[path]
	if asked && boottime.Since(at) > askedKept {
		delete(s.m, path)
		return false
	}
	return asked
}

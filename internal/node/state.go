package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// memory is what a daemon leaves to the next one of the same boot, in RUN_DIR.
type memory struct {
	Boot        string               `json:"boot"`
	Lease       int64                `json:"lease"`        // that may still hold the alive key
	Nonces      []string             `json:"nonces"`       // of the daemons of this boot, which may have written the heartbeat
	Incarnation cluster.Incarnation  `json:"incarnation"`  // of the last admission
	Serial      int64                `json:"serial"`       // no order up to it is obeyed
	Closed      cluster.Incarnation  `json:"closed"`       // the gate stays closed for incarnations up to it
	Stopped     cluster.Incarnation  `json:"stopped"`      // up to it everything was stopped, and proven to be
	Answered    int64                `json:"answered"`     // serial of the last order that was answered
	Starts      []cluster.ResourceID `json:"starts"`       // still to be started after this boot
	Listed      bool                 `json:"starts_known"` // that list was made for this boot
}

// State is that memory. All methods may be called concurrently.
type State struct {
	file string

	mu  sync.Mutex
	now memory
}

// LoadState reads RUN_DIR. What another boot left there does not count.
func LoadState(runDir, bootID string) (*State, error) {
	s := &State{file: filepath.Join(runDir, "node.json"), now: memory{Boot: bootID}}
	data, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of this boot: %w", err)
	}
	var old memory
	if err := json.Unmarshal(data, &old); err != nil {
		return nil, fmt.Errorf("read %s: %w; it is written by this daemon only. If no VE of this node can be running, remove it and start again", s.file, err)
	}
	if old.Boot == bootID {
		s.now = old
	}
	return s, nil
}

func (s *State) get() memory {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.now
	m.Starts = slices.Clone(m.Starts)
	return m
}

// update changes the memory, on disk first.
func (s *State) update(change func(*memory)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.now
	next.Starts = slices.Clone(next.Starts)
	change(&next)
	data, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode the state of this boot: %w", err)
	}
	tmp := s.file + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("keep the state of this boot: %w", err)
	}
	if err := os.Rename(tmp, s.file); err != nil {
		return fmt.Errorf("keep the state of this boot: %w", err)
	}
	s.now = next
	return nil
}

// Pending returns what is still to be started after this boot.
func (s *State) Pending() []cluster.ResourceID { return s.get().Starts }

// quiesced tells whether the last admission was ended by closing the gate: this node
// comes back with a newer incarnation only.
func (s *State) quiesced() bool {
	m := s.get()
	return m.Incarnation != 0 && m.Closed >= m.Incarnation
}

// harmless tells whether everything of the last admission was stopped, too.
func (s *State) harmless() bool {
	m := s.get()
	return m.Incarnation != 0 && m.Stopped >= m.Incarnation
}

// Done takes a resource off that list: its outcome is known.
func (s *State) Done(id cluster.ResourceID) error {
	return s.update(func(m *memory) {
		m.Starts = slices.DeleteFunc(m.Starts, func(have cluster.ResourceID) bool { return have == id })
	})
}

// FormerNonces are those of the daemons of this boot before this one, which
// have all ended.
func (s *State) FormerNonces() []string { return slices.Clone(s.get().Nonces) }

// AddNonce keeps this process's nonce for those after it. It comes before the
// first heartbeat, or a crash in between would make the next daemon take this
// one for a stranger.
func (s *State) AddNonce(nonce string) error {
	return s.update(func(m *memory) { m.Nonces = append(m.Nonces[max(0, len(m.Nonces)-100):], nonce) })
}

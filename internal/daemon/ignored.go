package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/shaman-ha/shaman/internal/cluster"
)

func (m *member) ignoredFile() string { return filepath.Join(m.Local.StateDir, "ignored.json") }

func (m *member) loadIgnored() {
	data, err := os.ReadFile(m.ignoredFile())
	var paths []string
	if err != nil || json.Unmarshal(data, &paths) != nil {
		return // none
	}
	for _, p := range paths {
		m.ignored[p] = true
	}
}

func (m *member) isIgnored(path string) bool {
	m.imu.Lock()
	defer m.imu.Unlock()
	return m.ignored[path]
}

// ignoreNow writes down, once after 'join --ignore-res', which VEs were here
// before: they are none of shaman's business.
func (m *member) ignoreNow(ctx context.Context) error {
	rec, _, err := m.members.Get(ctx, m.host)
	if err != nil || !rec.IgnoreExist {
		return err
	}
	ves, err := m.drivers.List(ctx)
	if err != nil {
		return err
	}
	paths := []string{}
	m.imu.Lock()
	for _, v := range ves {
		m.ignored[v.Path] = true
		paths = append(paths, v.Path)
	}
	m.imu.Unlock()
	data, err := json.Marshal(paths)
	if err != nil {
		return fmt.Errorf("encode the list of VEs to leave alone: %w", err)
	}
	if err := os.WriteFile(m.ignoredFile(), data, 0o600); err != nil {
		return fmt.Errorf("keep the list of VEs to leave alone: %w", err)
	}
	return m.members.Update(ctx, m.host, func(r *cluster.NodeRecord) error {
		r.IgnoreExist = false
		return nil
	})
}

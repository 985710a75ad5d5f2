package prlctl

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
)

// causes remembers which VEs this driver stopped gracefully: prlctl does not tell
// how a VE came to stop. It is forgotten when the VE is seen in any other state
// than stopped, when it is started or unregistered, and at a boot of the host.
type causes struct {
	dir  string
	boot string
	mu   sync.Mutex
	seq  int
	m    map[string]int // by path, the number of its stop
}

type note struct {
	Path string `json:"path"`
	Boot string `json:"boot"`
}

func openCauses(dir string) (*causes, error) {
	c := &causes{dir: dir, m: map[string]int{}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("driver prlctl: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("driver prlctl: %w", err)
	}
	c.boot = strings.TrimSpace(string(boot))
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("driver prlctl: %w", err)
	}
	for _, f := range files {
		file := filepath.Join(dir, f.Name())
		var n note
		data, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(data, &n)
		}
		if err != nil || n.Boot != c.boot || file != c.file(n.Path) {
			_ = os.Remove(file) // without it the cause is not known, which starts a VE too many rather than one too few
			continue
		}
		c.m[n.Path] = 0
	}
	return c, nil
}

func (c *causes) file(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(c.dir, hex.EncodeToString(sum[:10])+".json")
}

// stopped remembers a graceful stop.
func (c *causes) stopped(path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	data, err := json.Marshal(note{path, c.boot})
	if err != nil {
		return err
	}
	file := c.file(path)
	if err := os.WriteFile(file+".tmp", data, 0o644); err != nil {
		return driverkit.Classify(err)
	}
	if err := os.Rename(file+".tmp", file); err != nil {
		return driverkit.Classify(err)
	}
	c.seq++
	c.m[path] = c.seq
	return nil
}

// now is handed to forget by who has looked before it: what is remembered after
// the look is not contradicted by it.
func (c *causes) now() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seq
}

func (c *causes) known(path string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.m[path]
	return ok
}

// forget forgets what was remembered of the VE up to seq.
func (c *causes) forget(path string, seq int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.m[path]; !ok || have > seq {
		return nil
	}
	delete(c.m, path)
	if err := os.Remove(c.file(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget that it was stopped: %w", driverkit.Classify(err))
	}
	return nil
}

// Package fencing runs fence agents: the field's own executables that speak the
// stdin protocol of the fence-agents project, one configuration file a node.
//
// Proof by agent is "off, then status says off". The exit code of "off" alone
// proves nothing. Agents are only ever asked for off, status, monitor and
// metadata: a node is never switched on or rebooted from here.
package fencing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// ErrNotConfigured is returned if there is no file for a node.
var ErrNotConfigured = errors.New("no fence agent is configured for this node")

// Config is how one node's power is switched.
type Config struct {
	File    string
	Agent   string // path of the executable
	Options []Option
	Changed time.Time // when the file was
}

// Option is one line for the agent's standard input. Its value may be a secret:
// it is never logged.
type Option struct{ Key, Value string }

const confMax = 64 << 10

// searched is where agents without a slash in their name are looked for.
var searched = []string{"/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin"}

// Load reads <dir>/<name>.conf or <dir>/<host id>.conf.
func Load(dir string, node cluster.NodeID, name string) (Config, error) {
	if strings.ContainsAny(name, "/\n\x00") {
		return Config{}, fmt.Errorf("node %s has the name %q, which can neither name a file nor be told to an agent", node, name)
	}
	var found []string
	for _, base := range []string{name, string(node)} {
		file := filepath.Join(dir, base+".conf")
		if base == "" || len(found) > 0 && found[0] == file {
			continue
		}
		_, err := os.Lstat(file)
		if err == nil {
			found = append(found, file)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return Config{}, fmt.Errorf("read the fence configuration: %w", err)
		}
	}
	switch len(found) {
	case 0:
		return Config{}, fmt.Errorf("%w; make %s", ErrNotConfigured, filepath.Join(dir, name+".conf"))
	case 2:
		return Config{}, fmt.Errorf("both %s and %s are there; remove one of them", found[0], found[1])
	}
	return load(found[0])
}

func load(file string) (Config, error) {
	st, err := os.Lstat(file)
	if err != nil {
		return Config{}, fmt.Errorf("read the fence configuration: %w", err)
	}
	if !st.Mode().IsRegular() {
		return Config{}, fmt.Errorf("%s is not a regular file", file)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return Config{}, fmt.Errorf("%s holds secrets and others may read or write it (mode %04o); run 'chmod 600 %s'", file, st.Mode().Perm(), file)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Geteuid() && sys.Uid != 0 {
		return Config{}, fmt.Errorf("%s belongs to user %d; run 'chown root %s'", file, sys.Uid, file)
	}
	if st.Size() > confMax {
		return Config{}, fmt.Errorf("%s has more than %d bytes; it is no fence configuration", file, confMax)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("read the fence configuration: %w", err)
	}
	c, err := parse(file, data)
	if err != nil {
		return Config{}, err
	}
	c.Changed = st.ModTime()
	c.Agent, err = findAgent(c.Agent)
	if err != nil {
		return Config{}, fmt.Errorf("%s: agent: %w", file, err)
	}
	return c, nil
}

// parse reads KEY=VALUE lines. Values do not appear in errors.
func parse(file string, data []byte) (Config, error) {
	c := Config{File: file}
	seen := map[string]bool{}
	for i, text := range strings.Split(string(data), "\n") {
		text = strings.TrimSpace(strings.TrimSuffix(text, "\r"))
		if text == "" || text[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		key = strings.TrimSpace(key)
		switch {
		case !ok || key == "":
			return c, fmt.Errorf("%s:%d: want key=value", file, i+1)
		case strings.ContainsRune(text, 0):
			return c, fmt.Errorf("%s:%d: has a NUL byte", file, i+1)
		case seen[key]:
			return c, fmt.Errorf("%s:%d: %s is set twice", file, i+1, key)
		case key == "action" || key == "nodename":
			return c, fmt.Errorf("%s:%d: %s is set by shaman; remove the line", file, i+1, key)
		}
		seen[key] = true
		if key == "agent" {
			c.Agent = strings.TrimSpace(value)
			continue
		}
		c.Options = append(c.Options, Option{Key: key, Value: value})
	}
	if c.Agent == "" {
		return c, fmt.Errorf("%s: agent= is missing; name an executable such as fence_ipmilan", file)
	}
	return c, nil
}

func findAgent(name string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			return "", fmt.Errorf("%s: want an absolute path or a name", name)
		}
		if _, err := exec.LookPath(name); err != nil {
			return "", fmt.Errorf("%s cannot be run: %w", name, err)
		}
		return name, nil
	}
	for _, dir := range searched {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is in none of %s; install the package that has it (fence-agents)", name, strings.Join(searched, ", "))
}

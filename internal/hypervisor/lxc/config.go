package lxc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
)

const (
	// fileMax bounds a configuration file in bytes.
	fileMax = 1 << 20
	// includeDepth bounds lxc.include, which can name itself.
	includeDepth = 8
	// paramsFile lies beside the container's config and holds what shaman itself
	// needs to know of it.
	paramsFile = "shaman.conf"
)

// conf is what a container's files say.
type conf struct {
	ha        bool
	priority  uint32
	autostart bool
	memory    cluster.Bytes
	vcpus     int
	unfit     string
}

// readConf reads <dir>/config, what it includes, and <dir>/shaman.conf. It waits
// for the shared file system.
func readConf(dir, mount string) (conf, error) {
	p := parser{mount: mount}
	if err := p.file(filepath.Join(dir, "config"), 0); err != nil {
		return conf{}, err
	}
	p.judge()
	data, err := os.ReadFile(filepath.Join(dir, paramsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return p.conf, nil // nobody asked for HA
	}
	if err != nil {
		return conf{}, fmt.Errorf("read the container's HA parameters: %w", err)
	}
	if err := p.params(filepath.Join(dir, paramsFile), string(data)); err != nil {
		return conf{}, err
	}
	return p.conf, nil
}

// parser collects what counts of a config: of most keys the last word.
type parser struct {
	conf
	mount   string
	rootfs  string
	entries []string // lxc.mount.entry
	fstab   string
	hostPID bool
}

func readBounded(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the container's configuration: %w", err)
	}
	if len(data) > fileMax {
		return "", fmt.Errorf("%s: has more than %d bytes; it is no configuration of LXC", file, fileMax)
	}
	return string(data), nil
}

func (p *parser) file(file string, depth int) error {
	if depth > includeDepth {
		return fmt.Errorf("%s: lxc.include is nested more than %d times", file, includeDepth)
	}
	text, err := readBounded(file)
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		key, value, ok := keyValue(line)
		if !ok {
			continue
		}
		if key == "lxc.include" {
			if err := p.include(value, depth+1); err != nil {
				return err
			}
			continue
		}
		p.set(key, value)
	}
	return nil
}

// keyValue splits a line as LXC does.
func keyValue(line string) (key, value string, ok bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", "", false
	}
	key, value, ok = strings.Cut(line, "=")
	value = strings.TrimSpace(value)
	if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
		value = value[1 : n-1]
	}
	return strings.TrimSpace(key), value, ok
}

func (p *parser) include(name string, depth int) error {
	files, err := filepath.Glob(filepath.Join(escapeGlob(name), "*.conf"))
	if err != nil || len(files) == 0 {
		info, err := os.Stat(name)
		if err == nil && info.IsDir() {
			return nil
		}
		return p.file(name, depth)
	}
	for _, f := range files {
		if err := p.file(f, depth); err != nil {
			return err
		}
	}
	return nil
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func (p *parser) set(key, value string) {
	switch key {
	case "lxc.start.auto":
		n, err := strconv.ParseUint(value, 10, 32)
		p.autostart = err == nil && n != 0
	case "lxc.rootfs.path", "lxc.rootfs":
		p.rootfs = value
	case "lxc.mount.fstab", "lxc.mount":
		p.fstab = value
	case "lxc.mount.entry":
		if p.entries = append(p.entries, value); value == "" {
			p.entries = nil
		}
	case "lxc.cgroup2.memory.max", "lxc.cgroup.memory.limit_in_bytes":
		p.memory = parseMemory(value)
	case "lxc.cgroup2.cpuset.cpus", "lxc.cgroup.cpuset.cpus":
		p.vcpus = countCPUs(value)
	case "lxc.namespace.keep":
		p.hostPID = p.hostPID || slices.Contains(strings.Fields(value), "pid")
	case "lxc.namespace.share.pid":
		p.hostPID = p.hostPID || value != ""
	}
}

// parseMemory reads a limit as the kernel does; 0 = none, or not known.
func parseMemory(s string) cluster.Bytes {
	shift := uint(0)
	if n := len(s); n > 0 {
		switch s[n-1] {
		case 'k', 'K':
			shift = 10
		case 'm', 'M':
			shift = 20
		case 'g', 'G':
			shift = 30
		case 't', 'T':
			shift = 40
		}
		if shift != 0 {
			s = s[:n-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n<<shift>>shift != n {
		return 0
	}
	return cluster.Bytes(n << shift)
}

// countCPUs counts a list such as 0-2,5; 0 = not known.
func countCPUs(s string) int {
	count := 0
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		a, aerr := strconv.ParseUint(first, 10, 16)
		b, berr := strconv.ParseUint(last, 10, 16)
		if aerr != nil || berr != nil || b < a {
			return 0
		}
		count += int(b-a) + 1
	}
	return count
}

// below tells whether path lies in dir.
func below(dir, path string) bool {
	return strings.HasPrefix(filepath.Clean(path), strings.TrimSuffix(dir, "/")+"/")
}

// judge says why another node could not run the container.
func (p *parser) judge() {
	switch {
	case p.hostPID:
		// Its processes do not end with its init, so its end could not be proven.
		p.unfit = "it shares a pid namespace (lxc.namespace.keep or lxc.namespace.share.pid)"
		return
	case p.rootfs == "":
		p.unfit = "lxc.rootfs.path is not set: it would run on the host's own root"
		return
	}
	for _, part := range rootfsParts(p.rootfs) {
		if !below(p.mount, part) {
			p.unfit = fmt.Sprintf("lxc.rootfs.path: %s does not lie on %s", part, p.mount)
			return
		}
	}
	entries := p.entries
	if p.fstab != "" {
		text, err := readBounded(p.fstab)
		if !below(p.mount, p.fstab) || err != nil {
			p.unfit = fmt.Sprintf("lxc.mount.fstab: %s does not lie on %s, or cannot be read", p.fstab, p.mount)
			return
		}
		entries = append(strings.Split(text, "\n"), entries...)
	}
	for _, e := range entries {
		if source := localSource(e); source != "" && !below(p.mount, source) {
			p.unfit = fmt.Sprintf("lxc.mount.entry: %s does not lie on %s, and can be written to", source, p.mount)
			return
		}
	}
}

// rootfsParts are the places that a root file system consists of.
func rootfsParts(rootfs string) []string {
	kind, rest, ok := strings.Cut(rootfs, ":")
	if !ok || strings.HasPrefix(rootfs, "/") {
		return []string{rootfs}
	}
	if kind == "overlay" || kind == "overlayfs" {
		return strings.Split(rest, ":")
	}
	return []string{rest}
}

// localSource is what a mount entry takes from the host and can change; "" = nothing.
func localSource(entry string) string {
	f := strings.Fields(entry)
	if len(f) == 0 || !strings.HasPrefix(f[0], "/") {
		return "" // proc, tmpfs and the like have no source
	}
	if len(f) > 3 && slices.Contains(strings.Split(f[3], ","), "ro") {
		return ""
	}
	source := unescape(f[0])
	for _, virtual := range []string{"/proc", "/sys", "/dev"} {
		if source == virtual || below(virtual, source) {
			return ""
		}
	}
	return source
}

// params reads shaman.conf.
func (p *parser) params(file, text string) error {
	p.ha = true // a file without a word on it was made by somebody who wants HA
	n := 0
	for line := range strings.Lines(text) {
		n++
		key, value, ok := keyValue(line)
		if !ok {
			if t := strings.TrimSpace(line); t != "" && t[0] != '#' {
				return fmt.Errorf("%s:%d: %q is not KEY=VALUE", file, n, t)
			}
			continue
		}
		switch key {
		case "HA_ENABLE":
			if p.ha = value == "yes"; !p.ha && value != "no" {
				return fmt.Errorf("%s:%d: HA_ENABLE: %q is not allowed; want yes or no", file, n, value)
			}
		case "PRIORITY":
			v, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return fmt.Errorf("%s:%d: PRIORITY: %q is not allowed; want a whole number from 0 to 4294967295", file, n, value)
			}
			p.priority = uint32(v)
		default:
			return fmt.Errorf("%s:%d: %s is not known; known are HA_ENABLE, PRIORITY", file, n, key)
		}
	}
	return nil
}

// replace writes a file so that a reader finds the old or the new one whole.
func replace(file, text string, mode fs.FileMode) error {
	f, err := os.OpenFile(file+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		os.Remove(file + ".tmp")
		return err
	}
	return os.Rename(file+".tmp", file)
}

// writeParams changes values in <dir>/shaman.conf and keeps its other lines.
func writeParams(dir string, changes map[string]string) error {
	file := filepath.Join(dir, paramsFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = []byte("HA_ENABLE=no\n"), nil
	}
	if err != nil {
		return fmt.Errorf("read the container's HA parameters: %w", err)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	for key, value := range changes {
		done := false
		for i, l := range lines {
			if k, _, ok := keyValue(l); ok && k == key {
				lines[i], done = key+"="+value, true
			}
		}
		if !done {
			lines = append(lines, key+"="+value)
		}
	}
	if err := replace(file, strings.Join(lines, "\n")+"\n", 0o644); err != nil {
		return fmt.Errorf("write the container's HA parameters: %w", err)
	}
	return nil
}

// stayOff switches LXC's own autostart off in <dir>/config: on the way back from
// a failure this node would start what by then runs on another. All else stays
// as it is, byte for byte; where an included file switches it on, a line that
// takes that back is added, since the last word counts.
func stayOff(dir string) error {
	file := filepath.Join(dir, "config")
	text, err := readBounded(file)
	if err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("read the container's configuration: %w", err)
	}
	var out strings.Builder
	off := false
	for line := range strings.Lines(text) {
		key, value, ok := keyValue(line)
		switch {
		case ok && key == "lxc.start.auto" && value != "0":
			before, _, _ := strings.Cut(line, "=")
			rest := strings.TrimRight(line, " \t\r\n")
			out.WriteString(before + "= 0" + line[len(rest):])
			off = true
		default:
			off = off && key != "lxc.include" || ok && key == "lxc.start.auto"
			out.WriteString(line)
		}
	}
	if !off {
		if s := out.String(); s != "" && !strings.HasSuffix(s, "\n") {
			out.WriteString("\n")
		}
		out.WriteString("lxc.start.auto = 0\n")
	}
	if err := replace(file, out.String(), info.Mode().Perm()); err != nil {
		return fmt.Errorf("switch LXC's autostart off in %s: %w", file, err)
	}
	return nil
}

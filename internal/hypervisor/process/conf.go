package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// confMax bounds ve.conf in bytes.
const confMax = 64 << 10

// conf is what ve.conf says.
type conf struct {
	command  string
	name     string
	kind     cluster.Kind
	memory   cluster.Bytes
	priority uint32
	ha       bool
}

// readConf reads <dir>/ve.conf.
func readConf(dir string) (conf, error) {
	file := filepath.Join(dir, "ve.conf")
	data, err := os.ReadFile(file)
	if err != nil {
		return conf{}, fmt.Errorf("read the VE's definition: %w", err)
	}
	return parseConf(file, dir, data)
}

func parseConf(file, dir string, data []byte) (conf, error) {
	c := conf{name: filepath.Base(dir), kind: cluster.KindCT, ha: true}
	if len(data) > confMax {
		return c, fmt.Errorf("%s: has more than %d bytes; it is no ve.conf", file, confMax)
	}
	seen := map[string]bool{}
	for i, text := range strings.Split(string(data), "\n") {
		text = strings.TrimSpace(text)
		if text == "" || text[0] == '#' {
			continue
		}
		fail := func(msg string) (conf, error) { return c, fmt.Errorf("%s:%d: %s", file, i+1, msg) }
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return fail(fmt.Sprintf("%q is not KEY=VALUE", text))
		}
		if strings.ContainsRune(text, 0) {
			return fail("has a NUL byte")
		}
		if seen[key] {
			return fail(key + " is set twice")
		}
		seen[key] = true
		if err := c.set(key, value); err != nil {
			return fail(key + ": " + err.Error())
		}
	}
	if c.command == "" {
		return c, fmt.Errorf("%s: COMMAND is missing; it is what the VE runs", file)
	}
	return c, nil
}

func (c *conf) set(key, value string) error {
	var err error
	switch key {
	case "COMMAND":
		c.command = value
	case "NAME":
		if c.name = value; value == "" {
			err = errors.New("is empty")
		}
	case "TYPE":
		c.kind = cluster.Kind(value)
		if c.kind != cluster.KindCT && c.kind != cluster.KindVM {
			err = fmt.Errorf("%q is not allowed; want ct or vm", value)
		}
	case "MEMORY":
		c.memory, err = parseSize(value)
	case "PRIORITY":
		var n uint64
		if n, err = strconv.ParseUint(value, 10, 32); err != nil {
			err = fmt.Errorf("%q is not allowed; want a whole number from 0 to 4294967295", value)
		}
		c.priority = uint32(n)
	case "HA_ENABLE":
		if c.ha = value == "yes"; !c.ha && value != "no" {
			err = fmt.Errorf("%q is not allowed; want yes or no", value)
		}
	default:
		err = errors.New("is not known; known are COMMAND, NAME, TYPE, MEMORY, PRIORITY, HA_ENABLE")
	}
	return err
}

func parseSize(s string) (cluster.Bytes, error) {
	units := []struct {
		suffix string
		shift  uint
	}{{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}, {"", 0}}
	for _, u := range units {
		num, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(num, 10, 64)
		if err == nil && n >= 0 && n<<u.shift>>u.shift == n {
			return cluster.Bytes(n << u.shift), nil
		}
		break
	}
	return 0, fmt.Errorf("%q is not allowed; want bytes, or a number with KiB, MiB, GiB or TiB", s)
}

// rewriteConf changes values in ve.conf and keeps all other lines.
func rewriteConf(dir string, changes map[string]string) error {
	file := filepath.Join(dir, "ve.conf")
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the VE's definition: %w", err)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	for key, value := range changes {
		done := false
		for i, l := range lines {
			if k, _, ok := strings.Cut(strings.TrimSpace(l), "="); ok && k == key {
				lines[i], done = key+"="+value, true
			}
		}
		if !done {
			lines = append(lines, key+"="+value)
		}
	}
	tmp := file + ".tmp"
	f, err := os.Create(tmp)
	if err != nil {
		return fmt.Errorf("write the VE's definition: %w", err)
	}
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write the VE's definition: %w", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("write the VE's definition: %w", err)
	}
	return nil
}

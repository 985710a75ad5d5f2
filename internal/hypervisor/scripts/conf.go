package scripts

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// confMax bounds a parameter file in bytes.
const confMax = 64 << 10

var confKey = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// conf is what a resource's parameter file says. Its keys are the file's; those
// that mean nothing to shaman are for the scripts.
type conf map[string]string

// confFile is where the parameters of the resource at path are: in a directory,
// or beside a file.
func confFile(path string, dir bool) string {
	if dir {
		return filepath.Join(path, "shaman.conf")
	}
	return path + ".shaman"
}

// readConf reads the parameters of the resource at path, which has to be there.
func readConf(path string) (conf, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("look at the resource: %w", err)
	}
	data, err := readConfFile(confFile(path, fi.IsDir()))
	if err != nil {
		return nil, err
	}
	return parseConf(confFile(path, fi.IsDir()), data)
}

// readConfFile returns nothing for a file that is not there.
func readConfFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the resource's parameters: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, confMax+1))
	if err != nil {
		return nil, fmt.Errorf("read the resource's parameters: %w", err)
	}
	return data, nil
}

func parseConf(file string, data []byte) (conf, error) {
	c := conf{}
	if len(data) > confMax {
		return nil, fmt.Errorf("%s: has more than %d bytes; it is no file of parameters", file, confMax)
	}
	for i, text := range strings.Split(string(data), "\n") {
		text = strings.TrimSpace(text)
		if text == "" || text[0] == '#' {
			continue
		}
		fail := func(msg string) (conf, error) { return nil, fmt.Errorf("%s:%d: %s", file, i+1, msg) }
		key, value, ok := strings.Cut(text, "=")
		if !ok || !confKey.MatchString(key) {
			return fail(fmt.Sprintf("%q is not KEY=VALUE, with a key of capital letters, digits and '_'", text))
		}
		if strings.ContainsRune(text, 0) {
			return fail("has a NUL byte")
		}
		if _, dup := c[key]; dup {
			return fail(key + " is set twice")
		}
		if err := checkParam(key, value); err != nil {
			return fail(key + ": " + err.Error())
		}
		c[key] = value
	}
	return c, nil
}

func checkParam(key, value string) error {
	var err error
	switch key {
	case "TYPE":
		if !typeName.MatchString(value) {
			err = fmt.Errorf("%q is not a type", value)
		}
	case "NAME":
		if value == "" {
			err = errors.New("is empty")
		}
	case "HA_ENABLE":
		_, err = parseYes(value)
	case "PRIORITY":
		_, err = parsePriority(value)
	case "MEMORY":
		_, err = parseSize(value)
	case "VCPUS":
		_, err = parseCount(value)
	}
	return err
}

// kind is the type of the resource at path: TYPE, else the name of the
// directory that it lies in, with or without a dash at the end.
func (c conf) kind(path string) cluster.Kind {
	if t := c["TYPE"]; t != "" {
		return cluster.Kind(t)
	}
	return cluster.Kind(strings.TrimSuffix(filepath.Base(filepath.Dir(path)), "-"))
}

// name is the name of the resource at path: NAME, else that of its file without ".conf".
func (c conf) name(path string) string {
	if n := c["NAME"]; n != "" {
		return n
	}
	base := filepath.Base(path)
	if n := strings.TrimSuffix(base, ".conf"); n != "" {
		return n
	}
	return base
}

// environ is the file for scripts.
func (c conf) environ() []string {
	out := make([]string, 0, len(c))
	for k, v := range c {
		out = append(out, "SHAMAN_CONF_"+k+"="+v)
	}
	slices.Sort(out)
	return out
}

// writeConf changes values in the parameter file of the resource at path and
// keeps all other lines.
func writeConf(path string, changes map[string]string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at the resource: %w", err)
	}
	file := confFile(path, fi.IsDir())
	data, err := readConfFile(file)
	if err != nil {
		return err
	}
	var lines []string
	if text := strings.TrimSuffix(string(data), "\n"); text != "" {
		lines = strings.Split(text, "\n")
	}
	for _, key := range []string{"HA_ENABLE", "PRIORITY"} {
		value, ok := changes[key]
		if !ok {
			continue
		}
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), key+"=") })
		if i < 0 {
			lines, i = append(lines, ""), len(lines)
		}
		lines[i] = key + "=" + value
	}
	if err := replace(file, []byte(strings.Join(lines, "\n")+"\n")); err != nil {
		return fmt.Errorf("write the resource's parameters: %w", err)
	}
	return nil
}

// replace writes a file whole, or leaves it as it was.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func parseYes(s string) (bool, error) {
	if s != "yes" && s != "no" {
		return false, fmt.Errorf("%q is not allowed; want yes or no", s)
	}
	return s == "yes", nil
}

func parsePriority(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not allowed; want a whole number from 0 to 4294967295", s)
	}
	return uint32(n), nil
}

func parseCount(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%q is not allowed; want a whole number", s)
	}
	return int(n), nil
}

func parseSize(s string) (cluster.Bytes, error) {
	num, shift := s, uint(0)
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			num, shift = n, uint(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n < 0 || n<<shift>>shift != n {
		return 0, fmt.Errorf("%q is not allowed; want bytes, or a number with KiB, MiB, GiB or TiB", s)
	}
	return cluster.Bytes(n << shift), nil
}

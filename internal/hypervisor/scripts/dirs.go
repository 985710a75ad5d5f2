package scripts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// The purposes that scripts can have; docs/hypervisors/scripts.md says what each is for.
const (
	purposeEnumerate = "enumerate"
	purposeDescribe  = "describe"
	purposeRelocate  = "relocate"
	purposeRelease   = "release"
	purposeStart     = "start"
	purposeStop      = "stop"
	purposeNotify    = "notify"
	purposeSchedule  = "schedule"
	purposeLeave     = "leave"
)

// needed are the purposes without which a type cannot be carried out.
var needed = []string{purposeDescribe, purposeStart, purposeStop}

// last is the order of a script without a number: after all that have one.
const last = 100

var typeName = regexp.MustCompile(`^[a-z][a-z0-9]*$`)

// script is one script of a chain.
type script struct {
	path  string
	order int
}

// finder finds scripts in directories, the first of which wins.
type finder struct{ dirs []string }

// orderOf returns the order of a file with this name among the scripts for a
// purpose, and whether it is one.
func orderOf(name, purpose string) (int, bool) {
	if name == purpose {
		return last, true
	}
	number, rest, ok := strings.Cut(name, "-")
	if !ok || rest != purpose || len(number) != 2 {
		return 0, false
	}
	n, err := strconv.ParseUint(number, 10, 8)
	return int(n), err == nil
}

// chain returns the scripts for a purpose in the order in which they run: the
// common ones, and those of type kind unless it is "". Of two of the same name
// only that of the first directory is there. A script that must not be run as
// root is an error: to leave one out in silence could leave out what it guards.
func (f finder) chain(purpose string, kind cluster.Kind) ([]script, error) {
	var out []script
	seen := map[string]bool{}
	subs := []string{""}
	if kind != "" {
		subs = append(subs, string(kind)+"-")
	}
	for _, dir := range f.dirs {
		for _, sub := range subs {
			in := filepath.Join(dir, sub)
			entries, err := os.ReadDir(in)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("look for scripts: %w", err)
			}
			trusted := false
			for _, e := range entries {
				order, ok := orderOf(e.Name(), purpose)
				name := filepath.Join(sub, e.Name())
				if !ok || seen[name] {
					continue
				}
				seen[name] = true
				if !trusted {
					if err := trust(in, false); err != nil {
						return nil, err
					}
					trusted = true
				}
				path := filepath.Join(in, e.Name())
				if err := trust(path, true); err != nil {
					return nil, err
				}
				out = append(out, script{path: path, order: order})
			}
		}
	}
	// Stable: with the same number the first directory comes first, and in it the common ones.
	slices.SortStableFunc(out, func(a, b script) int { return a.order - b.order })
	return out, nil
}

// trust tells why a file, or the directory that it lies in, must not be used by
// one who is root.
func trust(path string, isScript bool) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at a script: %w", err)
	}
	return trustInfo(path, fi, isScript)
}

func trustInfo(path string, fi fs.FileInfo, isScript bool) error {
	refuse := func(why, remedy string) error {
		return fmt.Errorf("%s is refused: %s; %s", path, why, remedy)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case isScript && !fi.Mode().IsRegular():
		return refuse("it is not a regular file", "put a script there, or remove it")
	case ok && st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return refuse(fmt.Sprintf("it belongs to user %d, who could have it do anything as root", st.Uid), "chown root "+path)
	case fi.Mode().Perm()&0o002 != 0:
		return refuse("everybody may write to it, and could have it do anything as root", "chmod o-w "+path)
	case fi.Mode().Perm()&0o020 != 0 && ok && st.Gid != 0 && int(st.Gid) != os.Getegid():
		return refuse(fmt.Sprintf("group %d may write to it, and could have it do anything as root", st.Gid), "chmod g-w "+path)
	case isScript && fi.Mode().Perm()&0o100 == 0:
		return refuse("it is not executable", "chmod u+x "+path+", or give it another name if it is no script")
	}
	return nil
}

// types returns the types that have all scripts they need, and for the others
// why they are not used.
func (f finder) types() (kinds []cluster.Kind, refused []error) {
	seen := map[string]bool{}
	for _, dir := range f.dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			refused = append(refused, fmt.Errorf("look for types: %w", err))
		}
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), "-")
			if fi, err := os.Stat(filepath.Join(dir, e.Name())); !ok || seen[name] || err != nil || !fi.IsDir() {
				continue
			}
			seen[name] = true
			if err := f.complete(name); err != nil {
				refused = append(refused, err)
				continue
			}
			kinds = append(kinds, cluster.Kind(name))
		}
	}
	slices.Sort(kinds)
	return kinds, refused
}

// complete tells what a type lacks.
func (f finder) complete(name string) error {
	if k := cluster.Kind(name); k == cluster.KindVM || k == cluster.KindCT {
		return fmt.Errorf("directory %s-: %s is the type of a hypervisor's VEs; give scripts a type of their own", name, name)
	}
	if !typeName.MatchString(name) {
		return fmt.Errorf("directory %s-: a type is a small letter, and small letters and digits after it", name)
	}
	var missing []string
	for _, purpose := range needed {
		if !f.has(name, purpose) {
			missing = append(missing, purpose)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("type %s has no script for: %s; it is not used", name, strings.Join(missing, ", "))
	}
	return nil
}

// has tells whether a type has a script of its own for a purpose, runnable or not.
func (f finder) has(name, purpose string) bool {
	for _, dir := range f.dirs {
		entries, _ := os.ReadDir(filepath.Join(dir, name+"-")) // one that cannot be read has none
		for _, e := range entries {
			if _, ok := orderOf(e.Name(), purpose); ok {
				return true
			}
		}
	}
	return false
}

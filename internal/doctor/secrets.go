package doctor

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// SecretFact is one file that others must not read.
type SecretFact struct {
	Key    string // of the configuration that names it
	File   string
	Fence  bool // a fence agent's file: refused by the daemon unless it is for its user alone
	Absent bool
	Mode   fs.FileMode
	UID    int
	Err    error
}

// Secret looks at a file of the configuration.
func Secret(key, file string) SecretFact {
	s := SecretFact{Key: key, File: file, Fence: key == "FENCE_DIR"}
	st, err := os.Stat(file)
	switch {
	case os.IsNotExist(err):
		s.Absent = true
	case err != nil:
		s.Err = err
	default:
		s.Mode = st.Mode()
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			s.UID = int(sys.Uid)
		}
	}
	return s
}

// FenceFiles are the fence agents' files of a directory, as names of nodes.
func FenceFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".conf"); ok && name != "" {
			out = append(out, name)
		}
	}
	return out, nil
}

// JudgeSecrets judges the files' owners and modes. uid is that of who asks.
func JudgeSecrets(files []SecretFact, uid int) []Finding {
	j := judgement{check: Secrets}
	good := 0
	for _, f := range files {
		perm := f.Mode.Perm()
		chmod := "chmod 600 " + f.File
		switch {
		case f.Absent:
			j.fail(f.File, "make it, or mend "+f.Key, "%s names it and it is not there", f.Key)
		case f.Err != nil:
			j.warn(f.File, "run 'shaman doctor' as root", "it cannot be looked at: %v", f.Err)
		case f.Mode.IsDir() && f.Fence && perm&0o022 == 0 && (f.UID == 0 || f.UID == uid): // it is no secret itself
		case f.Mode.IsDir() && f.Fence:
			j.fail(f.File, "chown root "+f.File+"; chmod 700 "+f.File, "others than root can put files there (mode %04o, user %d), and the daemon runs the programs that they name", perm, f.UID)
		case f.Mode.IsDir():
			j.fail(f.File, "mend "+f.Key, "%s names it, and it is a directory", f.Key)
		case perm&0o022 != 0:
			j.fail(f.File, chmod, "others than its owner may write it (mode %04o)", perm)
		case f.Fence && perm&0o077 != 0, perm&0o007 != 0:
			why := ""
			if f.Fence {
				why = "; the daemon refuses it, so this node cannot be fenced by its agent"
			}
			j.fail(f.File, chmod, "it holds secrets and others may read it (mode %04o)%s", perm, why)
		case perm&0o077 != 0:
			j.warn(f.File, chmod, "it holds secrets and its group may read it (mode %04o)", perm)
		case f.UID != 0 && f.UID != uid:
			j.fail(f.File, "chown root "+f.File, "it belongs to user %d, who can change it", f.UID)
		default:
			good++
		}
	}
	if good > 0 {
		j.ok("", "%s for their owner alone", plural(good, "file is", "files are"))
	}
	return j.found
}

func plural(n int, one, many string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, one)
	}
	return fmt.Sprintf("%d %s", n, many)
}

// SecretFiles lists what the local configuration keeps secret.
func SecretFiles(fenceDir, passwordFile, key, webConfig string) []SecretFact {
	var out []SecretFact
	names, err := FenceFiles(fenceDir)
	if err == nil {
		out = append(out, Secret("FENCE_DIR", fenceDir))
	}
	if err != nil && !os.IsNotExist(err) {
		out = append(out, SecretFact{Key: "FENCE_DIR", File: fenceDir, Err: err})
	}
	for _, n := range names {
		out = append(out, Secret("FENCE_DIR", filepath.Join(fenceDir, n+".conf")))
	}
	for _, f := range []struct{ key, file string }{{"ETCD_PASSWORD_FILE", passwordFile}, {"ETCD_KEY", key}, {"WEB_CONFIG_FILE", webConfig}} {
		if f.file != "" {
			out = append(out, Secret(f.key, f.file))
		}
	}
	return out
}

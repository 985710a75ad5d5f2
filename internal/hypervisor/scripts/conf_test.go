package scripts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestParametersBesideAFile(t *testing.T) {
	l := newLab(t)
	dir := filepath.Join(l.mount, "somewhere")
	must(t, os.MkdirAll(dir, 0o755))
	path, params := filepath.Join(dir, "target1.conf"), filepath.Join(dir, "target1.conf.shaman")
	must(t, os.WriteFile(path, []byte("anything\n"), 0o644))
	must(t, os.WriteFile(params, []byte("# mine\nTYPE=demo\n\nPRIORITY=3\nMEMORY=64MiB\nOTHER=a=b\n"), 0o644))
	d := l.open(t)
	must(t, d.Register(t.Context(), path))
	v := state(t, d, path)
	want := cluster.VE{Kind: "demo", Name: "target1", Path: path, State: cluster.VEStopped, HA: true, Priority: 3, Memory: 64 << 20}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Errorf("listed otherwise (-want +got):\n%s", diff)
	}
	no, prio := false, uint32(8)
	must(t, d.Configure(t.Context(), path, cluster.VEParams{HA: &no, Priority: &prio}))
	data, err := os.ReadFile(params)
	must(t, err)
	if got, want := string(data), "# mine\nTYPE=demo\n\nPRIORITY=8\nMEMORY=64MiB\nOTHER=a=b\nHA_ENABLE=no\n"; got != want {
		t.Errorf("the file is\n%s\nwant\n%s", got, want)
	}
	if v := state(t, d, path); v.HA || v.Priority != 8 {
		t.Errorf("HA %v, priority %d", v.HA, v.Priority)
	}
	if files, _ := os.ReadDir(dir); len(files) != 2 {
		t.Errorf("something is left: %v", files)
	}
}

func TestBadParameters(t *testing.T) {
	for text, want := range map[string]string{
		"PRIORITY=-1": "PRIORITY", "HA_ENABLE=on": "yes or no", "lower=x": "capital letters", "word": "KEY=VALUE", "A=1\nA=2": "twice", "TYPE=X": "type", "NAME=": "empty",
		"MEMORY=9999999TiB": "MEMORY", "VCPUS=x": "VCPUS", "X=\x00": "NUL", strings.Repeat("#", confMax+1): "bytes",
	} {
		if _, err := parseConf("f", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v; want one that says %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("STATE=running\nPRIORITY=1\n")
	f.Add("/a\tb\n")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := parseDescription(s); err == nil && d.state == "" {
			t.Error("a description without a state")
		}
		_, _ = parseEnumeration(s)
		_, _ = parseConf("f", []byte(s))
	})
}

func TestARegistrationThatCannotBeRead(t *testing.T) {
	l := newLab(t)
	path := l.runVE(t, l.open(t), "a")
	file := filepath.Join(l.state, "scripts", "registered", keyOf(path)+".json")
	was, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, []byte(`{"pa`), 0o644))
	if _, err := New(l.options()); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("New = %v; the resource may run, and would be taken for stopped", err)
	}
	o := l.options()
	o.RunDir = t.TempDir() // as after a reboot
	if _, err := New(o); err != nil {
		t.Errorf("New = %v; nothing runs since the reboot", err)
	}
	must(t, os.WriteFile(file, was, 0o644))
}

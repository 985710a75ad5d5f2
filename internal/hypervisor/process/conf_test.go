package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestParseConf(t *testing.T) {
	tests := []struct {
		name, given string
		want        conf
		fails       string // part of the error
	}{
		{name: "a command is enough, and HA is on", given: "COMMAND=sleep 1\n", want: conf{command: "sleep 1", name: "web", kind: cluster.KindCT, ha: true}},
		{
			name:  "all keys, with comments and blank lines",
			given: "# a VE\n\n COMMAND=a=b c \nNAME=other\nTYPE=vm\nMEMORY=64MiB\nPRIORITY=4294967295\nHA_ENABLE=no\r\n",
			want:  conf{command: "a=b c", name: "other", kind: cluster.KindVM, memory: 64 << 20, priority: 4294967295},
		},
		{name: "no command", given: "NAME=a\n", fails: "COMMAND is missing"},
		{name: "an empty file", given: "", fails: "COMMAND is missing"},
		{name: "an empty name", given: "COMMAND=a\nNAME=\n", fails: "f:2: NAME: is empty"},
		{name: "an unknown key is told with its line", given: "COMMAND=a\nCOMAND=b\n", fails: "f:2: COMAND: is not known"},
		{name: "a line without a value", given: "COMMAND\n", fails: "f:1: \"COMMAND\" is not KEY=VALUE"},
		{name: "a key twice", given: "COMMAND=a\nCOMMAND=b\n", fails: "f:2: COMMAND is set twice"},
		{name: "a priority that is negative", given: "COMMAND=a\nPRIORITY=-1\n", fails: "f:2: PRIORITY"},
		{name: "a priority that is too large", given: "COMMAND=a\nPRIORITY=4294967296\n", fails: "f:2: PRIORITY"},
		{name: "an HA switch that is neither yes nor no", given: "COMMAND=a\nHA_ENABLE=maybe\n", fails: "want yes or no"},
		{name: "a type that no process has", given: "COMMAND=a\nTYPE=iscsi\n", fails: "want ct or vm"},
		{name: "a NUL byte, which no process can be given", given: "COMMAND=a\x00b\n", fails: "f:1: has a NUL byte"},
		{name: "a file that is too large", given: strings.Repeat("#", confMax+1), fails: "no ve.conf"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseConf("f", "/mnt/web", []byte(tt.given))
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Fatalf("error %v, want one with %q", err, tt.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(conf{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	tests := []struct {
		given string
		want  cluster.Bytes
		ok    bool
	}{
		{"0", 0, true}, {"1024", 1024, true}, {"3KiB", 3 << 10, true}, {"2GiB", 2 << 30, true}, {"8388607TiB", 8388607 << 40, true},
		{"8388608TiB", 0, false}, {"9223372036854775808", 0, false}, {"-1", 0, false}, {"1.5GiB", 0, false}, {"1GB", 0, false}, {"GiB", 0, false}, {"", 0, false}, {"1 GiB", 0, false},
	}
	for _, tt := range tests {
		if got, err := parseSize(tt.given); got != tt.want || (err == nil) != tt.ok {
			t.Errorf("parseSize(%q) = %d, %v; want %d, allowed %v", tt.given, got, err, tt.want, tt.ok)
		}
	}
}

func FuzzParseConf(f *testing.F) {
	for _, s := range []string{"", "COMMAND=sleep 1\n", "COMMAND=a\nNAME=b\nTYPE=vm\nMEMORY=1TiB\nPRIORITY=7\nHA_ENABLE=no\n", "# x\n\nCOMMAND=a=b", "MEMORY=9223372036854775807KiB", "COMMAND=\x00", "=\n", "COMMAND=a\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConf("f", "/mnt/web", data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Errorf("the error does not name the file: %v", err)
			}
			return
		}
		if c.command == "" || c.name == "" || c.memory < 0 || strings.ContainsAny(c.command+c.name, "\x00\n") || c.kind != cluster.KindCT && c.kind != cluster.KindVM {
			t.Errorf("accepted as %+v", c)
		}
		// What was accepted stays acceptable after a change, and says the new value.
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "ve.conf"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := rewriteConf(dir, map[string]string{"PRIORITY": "77", "HA_ENABLE": "yes"}); err != nil {
			t.Fatal(err)
		}
		after, err := parseConf("f", "/mnt/web", read(t, dir))
		c.priority, c.ha = 77, true
		if diff := cmp.Diff(c, after, cmp.AllowUnexported(conf{})); err != nil || diff != "" {
			t.Errorf("after a change: %v (-want +got):\n%s", err, diff)
		}
	})
}

func TestRewriteKeepsAllOtherLines(t *testing.T) {
	dir := t.TempDir()
	const before = "# mine\nCOMMAND=a\n\n  PRIORITY=1\n#PRIORITY=9\n"
	if err := os.WriteFile(filepath.Join(dir, "ve.conf"), []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := rewriteConf(dir, map[string]string{"PRIORITY": "5", "HA_ENABLE": "no"}); err != nil {
		t.Fatal(err)
	}
	const want = "# mine\nCOMMAND=a\n\nPRIORITY=5\n#PRIORITY=9\nHA_ENABLE=no\n"
	if diff := cmp.Diff(want, string(read(t, dir))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func read(t *testing.T, dir string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "ve.conf"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

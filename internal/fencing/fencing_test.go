package fencing

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/fencing/fencetest"
)

func TestAgentProves(t *testing.T) {
	none := errors.New("not applicable")
	fencetest.Run(t, fencetest.Harness{
		New: func(dir string, timeout time.Duration) fencetest.Prover {
			return &Agent{Dir: dir, Timeout: timeout, NotApplicable: none}
		},
		NotApplicable: none,
	})
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, given string
		want        Config
		fails       string // part of the error
	}{
		{
			name:  "options keep their order and their values, also with blanks and equal signs",
			given: "# mine\n\nagent = fence_ipmilan \nip=10.0.0.2\r\npasswd=a=b c\nlanplus=1\n",
			want:  Config{File: "f", Agent: "fence_ipmilan", Options: []Option{{"ip", "10.0.0.2"}, {"passwd", "a=b c"}, {"lanplus", "1"}}},
		},
		{name: "an agent alone", given: "agent=x", want: Config{File: "f", Agent: "x"}},
		{name: "no agent", given: "ip=secret\n", fails: "f: agent= is missing"},
		{name: "an empty agent", given: "agent=\n", fails: "f: agent= is missing"},
		{name: "a line without a value", given: "agent=x\nsecret\n", fails: "f:2: want key=value"},
		{name: "a line without a key", given: "agent=x\n=secret\n", fails: "f:2: want key=value"},
		{name: "a key twice", given: "agent=x\nip=secret\nip=secret\n", fails: "f:3: ip is set twice"},
		{name: "an action of the file's own", given: "agent=x\naction=reboot\n", fails: "f:2: action is set by shaman"},
		{name: "a node name of the file's own", given: "nodename=secret\nagent=x\n", fails: "f:1: nodename is set by shaman"},
		{name: "a NUL byte", given: "agent=x\nip=secret\x00\n", fails: "f:2: has a NUL byte"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parse("f", []byte(tt.given))
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) || strings.Contains(err.Error(), "secret") {
					t.Fatalf("error %v, want one with %q and no value", err, tt.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "agent=x", "agent=x\nip=1\npasswd=a=b\n", "# c\n\nagent = x \r\n", "agent=x\nip=1\nip=1", "action=on\nagent=x", "agent=x\n=\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse("f", data)
		if err != nil {
			return
		}
		// What an agent reads must be exactly these options: none can add a line,
		// or a second action.
		seen := map[string]bool{"action": true, "nodename": true, "agent": true}
		for _, o := range c.Options {
			if o.Key == "" || seen[o.Key] || strings.ContainsAny(o.Key+o.Value, "\n\x00") || strings.Contains(o.Key, "=") {
				t.Errorf("accepted the option %q=%q", o.Key, o.Value)
			}
			seen[o.Key] = true
		}
		if c.Agent == "" {
			t.Error("accepted without an agent")
		}
	})
}

const hostID = "00000000000000a2"

func TestLoad(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agent, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	good := "agent=" + agent + "\nip=1\n"
	type file struct {
		name, text string
		mode       os.FileMode
	}
	tests := []struct {
		name, node string
		files      []file
		fails      string // part of the error
	}{
		{name: "by the node's name", node: "n2", files: []file{{"n2.conf", good, 0o600}}},
		{name: "by its host id", node: "n2", files: []file{{hostID + ".conf", good, 0o400}}},
		{name: "a node named by its host id has one file", node: hostID, files: []file{{hostID + ".conf", good, 0o600}}},
		{name: "both files are one too many", node: "n2", files: []file{{"n2.conf", good, 0o600}, {hostID + ".conf", good, 0o600}}, fails: "remove one of them"},
		{name: "none", node: "n2", files: []file{{"n3.conf", good, 0o600}}, fails: "no fence agent is configured"},
		{name: "a file that the group may read", node: "n2", files: []file{{"n2.conf", good, 0o640}}, fails: "chmod 600"},
		{name: "a file that others may write", node: "n2", files: []file{{"n2.conf", good, 0o602}}, fails: "chmod 600"},
		{name: "a file that is too large", node: "n2", files: []file{{"n2.conf", good + strings.Repeat("#", confMax), 0o600}}, fails: "is no fence configuration"},
		{name: "an agent that is not there", node: "n2", files: []file{{"n2.conf", "agent=/no/such/agent\n", 0o600}}, fails: "cannot be run"},
		{name: "an agent that is in no directory of agents", node: "n2", files: []file{{"n2.conf", "agent=fence_no_such_agent\n", 0o600}}, fails: "install the package"},
		{name: "an agent by a relative path", node: "n2", files: []file{{"n2.conf", "agent=./agent\n", 0o600}}, fails: "want an absolute path"},
		{name: "a name that leads out of the directory", node: "../n2", files: []file{{"n2.conf", good, 0o600}}, fails: "can neither name a file"},
		{name: "a name that would add a line for the agent", node: "n2\naction=on", files: []file{{hostID + ".conf", good, 0o600}}, fails: "nor be told to an agent"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range tt.files {
				if err := os.WriteFile(filepath.Join(dir, f.name), []byte(f.text), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(filepath.Join(dir, f.name), f.mode); err != nil {
					t.Fatal(err)
				}
			}
			c, err := Load(dir, hostID, tt.node)
			switch {
			case tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)):
				t.Errorf("error %v, want one with %q", err, tt.fails)
			case tt.fails == "" && (err != nil || c.Agent != agent):
				t.Errorf("agent %q, error %v; want %q", c.Agent, err, agent)
			}
		})
	}
}

func TestLoadRefusesWhatIsNotAFileOfOurs(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "real"), filepath.Join(dir, "n2.conf")
	if err := errors.Join(os.WriteFile(file, []byte("agent=/bin/sh\n"), 0o600), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, hostID, "n2"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a link: error %v, want a refusal", err)
	}
	if os.Geteuid() != 0 {
		return // only root can give a file away
	}
	if err := errors.Join(os.Remove(link), os.Rename(file, link), os.Chown(link, 12345, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, hostID, "n2"); err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("a file of somebody else: error %v, want a refusal", err)
	}
}

func TestMask(t *testing.T) {
	tests := []struct {
		name    string
		options []Option
		printed string
		want    string
	}{
		{"a value is taken out wherever it stands", []Option{{"login", "admin"}}, "admin@bmc: admin denied", "***@bmc: *** denied"},
		{"a short value stays, unless its key says that it is secret", []Option{{"port", "7"}, {"passwd", "7x"}}, "port 7: bad 7x", "port 7: bad ***"},
		{"a secret that begins with another value is taken out whole", []Option{{"login", "admin"}, {"passwd", "admin123"}}, "bad admin123 of admin", "bad *** of ***"},
		{"an empty secret changes nothing", []Option{{"passwd", ""}}, "a b", "a b"},
		{"lines become one", nil, " a\n\tb \n", "a b"},
		{"nothing", nil, " \n", "it printed nothing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := (Config{Options: tt.options}).mask(tt.printed); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	if got := (Config{}).mask(strings.Repeat("x", 1000)); len(got) > 410 {
		t.Errorf("%d bytes of output are kept", len(got))
	}
}

func TestBoundedKeepsTheFirstPart(t *testing.T) {
	var b bounded
	for i := range 5 {
		chunk := strings.Repeat(fmt.Sprint(i), outputMax/4+1)
		if n, err := b.Write([]byte(chunk)); n != len(chunk) || err != nil {
			t.Fatalf("Write = %d, %v; an agent must be able to go on printing", n, err)
		}
	}
	if b.Len() != outputMax || !strings.HasPrefix(b.String(), "000") {
		t.Errorf("kept %d bytes, want the first %d", b.Len(), outputMax)
	}
}

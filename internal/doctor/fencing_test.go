package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/fencing"
)

var (
	alive = Member{ID: "00000000000000b2", Name: "node2", Alive: true}
	armed = cluster.Watchdog{Armed: true, Timeout: 5 * time.Second}
	all   = FencePolicy{Dir: "/etc/shaman/fence.d", Methods: []string{"storage", "agent", "watchdog", "manual"}}
)

func TestJudgeFencing(t *testing.T) {
	none := fmt.Errorf("%w; make it", fencing.ErrNotConfigured)
	with := func(w cluster.Watchdog) Member {
		m := alive
		m.Watchdog = w
		return m
	}
	trusting, noAgent, noWatchdog := all, all, all
	trusting.TrustVirtual = true
	noAgent.Methods = []string{"storage", "watchdog"}
	noWatchdog.Methods = []string{"agent", "manual"}
	virtual := cluster.Watchdog{Armed: true, Virtual: true}
	tests := []struct {
		name   string
		given  FenceFact
		policy FencePolicy
		want   string
		says   string
	}{
		{"its agent says on", FenceFact{Member: alive, Agent: "/usr/sbin/fence_ipmilan", Power: fencing.PowerOn}, all, "OK node2", "on by fence_ipmilan"},
		{"agent and watchdog", FenceFact{Member: with(armed), Power: fencing.PowerOn}, all, "OK node2", "watchdog counts as well"},
		{"off, and it lives: the wrong plug, or a lie", FenceFact{Member: alive, Agent: "/a/fence_x", Power: fencing.PowerOff}, all, "FAIL node2", "another machine"},
		{"off, and it lives, though its watchdog is armed", FenceFact{Member: with(armed), Power: fencing.PowerOff}, all, "FAIL node2", "NOW"},
		{"off, and it is not alive", FenceFact{Member: Member{Name: "node2"}, Power: fencing.PowerOff}, all, "OK node2", "off"},
		{"no agent and no watchdog", FenceFact{Member: alive, Power: fencing.PowerUnknown, ConfErr: none}, all, "FAIL node2", "nothing of it moves until an operator confirms"},
		{"no agent, and a watchdog", FenceFact{Member: with(armed), Power: fencing.PowerUnknown, ConfErr: none}, all, "WARN node2", "what is left: its watchdog"},
		{"no agent, and the watchdog of a virtual machine", FenceFact{Member: with(virtual), Power: fencing.PowerUnknown, ConfErr: none}, all, "FAIL node2", ""},
		{"no agent, and a virtual machine's that is trusted", FenceFact{Member: with(virtual), Power: fencing.PowerUnknown, ConfErr: none}, trusting, "WARN node2", ""},
		{"no agent, and a watchdog that FENCE_METHODS leaves out", FenceFact{Member: with(armed), Power: fencing.PowerUnknown, ConfErr: none}, noWatchdog, "FAIL node2", "your word"},
		{"a file that cannot be used", FenceFact{Member: alive, Power: fencing.PowerUnknown, ConfErr: errors.New("/etc/n2.conf:3: ip is set twice")}, all, "FAIL node2", "n2.conf:3: ip is set twice"},
		{"the agent fails", FenceFact{Member: alive, Power: fencing.PowerUnknown, Err: errors.New("no route to host")}, all, "FAIL node2", "no route to host"},
		{"the agent fails, and a watchdog", FenceFact{Member: with(armed), Power: fencing.PowerUnknown, Err: errors.New("no route to host")}, all, "WARN node2", "fence test node2"},
		{"an agent that FENCE_METHODS leaves out", FenceFact{Member: alive, Power: fencing.PowerOn}, noAgent, "FAIL node2", "FENCE_METHODS=storage,watchdog,agent"},
		{"an agent that takes its time", FenceFact{Member: alive, Power: fencing.PowerOn, Took: 15 * time.Second}, all, "WARN node2", "15s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			verdict(t, JudgeFencing([]FenceFact{tt.given}, tt.policy), []string{tt.want}, tt.says)
		})
	}
}

func TestJudgeAlone(t *testing.T) {
	m := Member{Name: "node2"}
	verdict(t, JudgeAlone([]FenceFact{
		{Member: m, Power: fencing.PowerOn}, {Member: m, Power: fencing.PowerUnknown, Err: errors.New("no route")}, {Member: m, ConfErr: errors.New("agent= is missing")},
	}), []string{"OK node2", "FAIL node2", "FAIL node2"}, "no route", "agent= is missing")
}

func TestJudgeStrays(t *testing.T) {
	verdict(t, JudgeStrays("/f", []string{"node2", "00000000000000b2", "ndoe2"}, []Member{alive}), []string{"WARN /f/ndoe2.conf"}, `"ndoe2"`)
}

// Agents are real executables here; one that was asked for anything but status says so.
func TestAskAgents(t *testing.T) {
	dir := t.TempDir()
	agent := func(name, script string) {
		file := filepath.Join(dir, name+".sh")
		if err := os.WriteFile(file, []byte("#!/bin/sh\ngrep -q '^action=status$' || touch "+dir+"/switched\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".conf"), []byte("agent="+file+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	agent("on", "exit 0")
	agent("off", "exit 2")
	agent("fails", "echo no route >&2; exit 1")
	agent("hangs", "sleep 60")
	var ms []Member
	for _, n := range []string{"on", "off", "fails", "hangs", "none"} {
		ms = append(ms, Member{ID: "00000000000000b2", Name: n, Alive: true})
	}
	begin := time.Now()
	got := JudgeFencing(AskAgents(t.Context(), dir, ms, 2*time.Second), FencePolicy{Dir: dir, Methods: all.Methods})
	verdict(t, got, []string{"OK on", "FAIL off", "FAIL fails", "FAIL hangs", "FAIL none"}, "another machine", "no route", "no answer within 2s", "make "+dir+"/none.conf")
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %s: agents are not asked side by side, or a hung one is waited for", took)
	}
	if _, err := os.Stat(filepath.Join(dir, "switched")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an agent was asked for more than its status")
	}
}

func TestJudgeSecrets(t *testing.T) {
	file := func(key string, mode fs.FileMode, uid int) SecretFact {
		return SecretFact{Key: key, File: "/f", Fence: key == "FENCE_DIR", Mode: mode, UID: uid}
	}
	tests := []struct {
		name  string
		given SecretFact
		want  []string
		says  string
	}{
		{"root's alone", file("FENCE_DIR", 0o600, 0), []string{"OK"}, "1 file is"},
		{"of the user who asks", file("ETCD_KEY", 0o600, 1000), []string{"OK"}, ""},
		{"a fence file that the group may read", file("FENCE_DIR", 0o640, 0), []string{"FAIL /f"}, "the daemon refuses it"},
		{"a key that the group may read", file("ETCD_KEY", 0o640, 0), []string{"WARN /f"}, "chmod 600"},
		{"a key that all may read", file("ETCD_KEY", 0o644, 0), []string{"FAIL /f"}, "others may read"},
		{"a file that others may write", file("WEB_CONFIG_FILE", 0o622, 0), []string{"FAIL /f"}, "may write"},
		{"somebody else's", file("FENCE_DIR", 0o600, 1234), []string{"FAIL /f"}, "chown root"},
		{"not there", SecretFact{Key: "ETCD_KEY", File: "/f", Absent: true}, []string{"FAIL /f"}, "ETCD_KEY"},
		{"not to be looked at", SecretFact{Key: "ETCD_KEY", File: "/f", Err: fs.ErrPermission}, []string{"WARN /f"}, "as root"},
		{"the directory of fence files", file("FENCE_DIR", fs.ModeDir|0o755, 0), nil, ""},
		{"a directory where all may put fence files", file("FENCE_DIR", fs.ModeDir|0o777, 0), []string{"FAIL /f"}, "chmod 700"},
		{"a directory instead of a key", file("ETCD_KEY", fs.ModeDir|0o700, 0), []string{"FAIL /f"}, "directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { verdict(t, JudgeSecrets([]SecretFact{tt.given}, 1000), tt.want, tt.says) })
	}
}

func TestSecretFiles(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]fs.FileMode{"node2.conf": 0o640, "notes.txt": 0o644, "key": 0o644} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	got := JudgeSecrets(SecretFiles(dir, filepath.Join(dir, "password"), filepath.Join(dir, "key"), ""), os.Geteuid())
	verdict(t, got, []string{"FAIL " + dir + "/node2.conf", "FAIL " + dir + "/password", "FAIL " + dir + "/key"})
	if fs := SecretFiles(filepath.Join(dir, "none"), "", "", ""); len(fs) != 0 {
		t.Errorf("without a directory of fence files there is %v", fs)
	}
}

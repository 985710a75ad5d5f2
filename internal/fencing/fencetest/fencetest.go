// Package fencetest is the contract of a proof by fence agent as a suite of
// tests, which runs real executables that speak the stdin protocol.
package fencetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// Prover is what is tested: failover.Method, as far as it proves.
type Prover interface {
	Prove(ctx context.Context, t cluster.FenceTarget, check func() error) (evidence string, err error)
}

// Harness makes provers.
type Harness struct {
	// New returns a prover that reads its configuration from dir and gives up after timeout.
	New           func(dir string, timeout time.Duration) Prover
	NotApplicable error // what is wrapped for a node without configuration
}

const (
	node = cluster.NodeID("00000000000000a2")
	name = "n2"
	// patient is a deadline that no test waits for, brief one that some do.
	patient = 30 * time.Second
	brief   = 500 * time.Millisecond
)

var target = cluster.FenceTarget{Node: node, Name: name}

// script is a power switch with a memory: $dir/power says on or off, $dir/log
// what was asked for. mode tells how it misbehaves.
const script = `#!/bin/sh
dir=$(dirname "$0")
mode=good
while IFS= read -r line; do
	case $line in
	action=*) action=${line#action=} ;;
	mode=*) mode=${line#mode=} ;;
	passwd=*) passwd=${line#passwd=} ;;
	esac
	echo "$line" >>"$dir/stdin"
done
echo "$action" >>"$dir/log"
case $mode:$action in
lying:off) exit 0 ;;
failing:*) echo "cannot log in with $passwd" >&2; exit 1 ;;
clumsy:off) echo off >"$dir/power"; echo "lost the connection" >&2; exit 1 ;;
unreadable:*) exit 2 ;;
slow:off) echo off >"$dir/soon"; exit 0 ;;
slow:status) if [ -f "$dir/soon" ]; then mv "$dir/soon" "$dir/power"; exit 0; fi ;;
hanging:off) sleep 1000 & echo $$ $! >"$dir/pids"; wait ;;
mute:status) exit 1 ;;
esac
case $action in
off) echo off >"$dir/power" ;;
status) [ "$(cat "$dir/power")" = off ] && exit 2 ;;
*) exit 1 ;;
esac
exit 0
`

// bench is one agent and its configuration.
type bench struct{ dir string }

func newBench(t *testing.T, mode, power string) bench {
	t.Helper()
	b := bench{t.TempDir()}
	b.write(t, "agent", script, 0o700)
	b.write(t, "power", power+"\n", 0o600)
	b.write(t, name+".conf", fmt.Sprintf("agent=%s\nip=10.0.0.2\npasswd=s3cr=t word\nmode=%s\n", filepath.Join(b.dir, "agent"), mode), 0o600)
	return b
}

func (b bench) write(t *testing.T, file, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, file), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// lines returns a file's lines; none if it is not there.
func (b bench) lines(t *testing.T, file string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, file))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func allowed() error { return nil }

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	tests := []struct {
		name, mode, power string
		timeout           time.Duration
		proven            bool
		says              string // part of the error
		asked             string // for what, at the beginning
	}{
		{name: "off, then status off, is a proof", mode: "good", power: "on", timeout: patient, proven: true, asked: "off status"},
		{name: "one that is off already is a proof too, and is asked for off all the same", mode: "good", power: "off", timeout: patient, proven: true, asked: "off status"},
		{name: "status is asked again while it says on", mode: "slow", power: "on", timeout: patient, proven: true, asked: "off status status"},
		{name: "an off that fails, and status says off, is a proof", mode: "clumsy", power: "on", timeout: patient, proven: true, asked: "off status"},
		{name: "the exit code of off alone proves nothing", mode: "lying", power: "on", timeout: brief, says: "status says on", asked: "off status"},
		{name: "a status that fails proves nothing", mode: "mute", power: "on", timeout: brief, says: "status says unknown", asked: "off status"},
		{name: "an agent that fails is told with its words", mode: "failing", power: "off", timeout: patient, says: "cannot log in", asked: "off status"},
		{name: "one that ends with the code of off whatever it is asked proves nothing", mode: "unreadable", power: "on", timeout: patient, says: "proves nothing", asked: "off"},
		{name: "an agent that hangs proves nothing", mode: "hanging", power: "off", timeout: brief, says: "no proof within", asked: "off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, tt.mode, tt.power)
			evidence, err := h.New(b.dir, tt.timeout).Prove(t.Context(), target, allowed)
			switch {
			case tt.proven && (err != nil || !strings.Contains(evidence, "status says off")):
				t.Errorf("evidence %q, error %v; want a proof", evidence, err)
			case !tt.proven && (err == nil || !strings.Contains(err.Error(), tt.says)):
				t.Errorf("error %v, want one with %q", err, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), "s3cr") {
				t.Errorf("the error tells a secret: %v", err)
			}
			asked := strings.Join(b.lines(t, "log"), " ")
			if !strings.HasPrefix(asked, tt.asked) {
				t.Errorf("asked for %q, want first %q", asked, tt.asked)
			}
			if rest := strings.Fields(strings.NewReplacer("off", "", "status", "").Replace(asked)); len(rest) > 0 {
				t.Errorf("asked for %q; only ever off and status", asked)
			}
		})
	}
	t.Run("options, name and action come by standard input", func(t *testing.T) { stdin(t, h) })
	t.Run("an agent that hangs is killed with what it started", func(t *testing.T) { killed(t, h) })
	t.Run("it is killed when the context ends, too", func(t *testing.T) { cancelled(t, h) })
	t.Run("a node without configuration is none of this method's", func(t *testing.T) { notConfigured(t, h) })
	t.Run("a configuration that cannot be used is an error, not an absence", func(t *testing.T) { unusable(t, h) })
	t.Run("nothing is run without mastership", func(t *testing.T) { refused(t, h, 0, "") })
	t.Run("mastership that ends after off ends the proof", func(t *testing.T) { refused(t, h, 1, "off") })
}

func stdin(t *testing.T, h Harness) {
	b := newBench(t, "good", "on")
	if _, err := h.New(b.dir, patient).Prove(t.Context(), target, allowed); err != nil {
		t.Fatal(err)
	}
	options := []string{"ip=10.0.0.2", "passwd=s3cr=t word", "mode=good", "nodename=n2"}
	want := append(append(append([]string{}, options...), "action=off"), append(options, "action=status")...)
	if diff := cmp.Diff(want, b.lines(t, "stdin")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// gone tells whether a process has ended; one that nobody has waited for counts.
func gone(pid string) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return true
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "Z")
}

func (b bench) wantKilled(t *testing.T) {
	t.Helper()
	pids := strings.Fields(b.lines(t, "pids")[0])
	if len(pids) != 2 {
		t.Fatalf("pids %q; want the agent and its child", pids)
	}
	for _, pid := range pids {
		for end := time.Now().Add(patient); !gone(pid); time.Sleep(2 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("process %s still runs", pid)
			}
		}
	}
}

func killed(t *testing.T, h Harness) {
	b := newBench(t, "hanging", "on")
	if _, err := h.New(b.dir, brief).Prove(t.Context(), target, allowed); err == nil {
		t.Error("an agent that was killed gave a proof")
	}
	b.wantKilled(t)
}

func cancelled(t *testing.T, h Harness) {
	b := newBench(t, "hanging", "on")
	why := errors.New("deposed")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for end := time.Now().Add(patient); len(b.lines(t, "pids")[0]) == 0 && time.Now().Before(end); {
			time.Sleep(2 * time.Millisecond)
		}
		cancel(why)
	}()
	if _, err := h.New(b.dir, patient).Prove(ctx, target, allowed); !errors.Is(err, why) {
		t.Errorf("error %v, want the cause %q", err, why)
	}
	b.wantKilled(t)
}

func notConfigured(t *testing.T, h Harness) {
	_, err := h.New(t.TempDir(), patient).Prove(t.Context(), target, allowed)
	if !errors.Is(err, h.NotApplicable) {
		t.Errorf("error %v, want one that wraps %q", err, h.NotApplicable)
	}
}

func unusable(t *testing.T, h Harness) {
	b := newBench(t, "good", "on")
	if err := os.Chmod(filepath.Join(b.dir, name+".conf"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.New(b.dir, patient).Prove(t.Context(), target, allowed); err == nil || errors.Is(err, h.NotApplicable) {
		t.Errorf("error %v; want one that is retried and shown", err)
	}
	if asked := b.lines(t, "log")[0]; asked != "" {
		t.Errorf("asked for %q all the same", asked)
	}
}

func refused(t *testing.T, h Harness, after int, asked string) {
	b := newBench(t, "good", "on")
	why, n := errors.New("not master any more"), 0
	_, err := h.New(b.dir, patient).Prove(t.Context(), target, func() error {
		if n++; n > after {
			return why
		}
		return nil
	})
	if !errors.Is(err, why) {
		t.Errorf("error %v, want %q", err, why)
	}
	if got := strings.Join(b.lines(t, "log"), " "); got != asked {
		t.Errorf("asked for %q, want %q", got, asked)
	}
}

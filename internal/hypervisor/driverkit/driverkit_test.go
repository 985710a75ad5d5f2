package driverkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

func TestTroubleOfTheNodeHolds(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EROFS, syscall.ENOSPC, syscall.EIO, syscall.ESTALE, syscall.ENOTCONN, syscall.ETIMEDOUT, syscall.EAGAIN, syscall.EMFILE} {
		err := Classify(&os.PathError{Op: "open", Path: "x", Err: errno})
		if !errors.Is(err, cluster.ErrHold) || !errors.Is(err, errno) {
			t.Errorf("Classify(%v) = %v; want both ErrHold and the error itself", errno, err)
		}
	}
	for _, err := range []error{nil, syscall.ENOENT, errors.New("COMMAND is missing")} {
		if got := Classify(err); errors.Is(got, cluster.ErrHold) || !errors.Is(got, err) {
			t.Errorf("Classify(%v) = %v; want it as it is: it is the VE's own", err, got)
		}
	}
}

func TestATurnOutlivesItsDeadline(t *testing.T) {
	var turns Turns
	ctx, cancel := context.WithCancel(t.Context())
	release, begun := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- turns.Do(ctx, "a", func() error { close(begun); <-release; return nil })
	}()
	<-begun
	cancel()
	if err := <-first; !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a verb past its deadline = %v, want ErrCannotAsk", err)
	}
	short, end := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer end()
	if err := turns.Do(short, "a", func() error { t.Error("two verbs on one VE"); return nil }); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a second verb = %v, want ErrCannotAsk: the first still works", err)
	}
	if err := turns.Wait(short); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a barrier = %v, want ErrCannotAsk: a verb still works", err)
	}
	if err := turns.Do(t.Context(), "b", func() error { return nil }); err != nil {
		t.Errorf("a verb on another VE = %v", err)
	}
	close(release)
	if err := turns.Wait(t.Context()); err != nil {
		t.Errorf("a barrier after the verb = %v", err)
	}
	if err := turns.Do(ctx, "a", func() error { t.Error("begun after its context ended"); return nil }); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a verb whose context has ended = %v, want ErrCannotAsk", err)
	}
	for end := time.Now().Add(20 * time.Second); turns.kept() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d turns are kept for nobody", turns.kept())
		}
	}
}

func (t *Turns) kept() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.m)
}

func TestRush(t *testing.T) {
	var turns Turns
	begun, first := make(chan struct{}), make(chan error, 1)
	go func() {
		first <- turns.Do(t.Context(), "a", func() error {
			close(begun)
			for !turns.Rushed("a") {
				time.Sleep(time.Millisecond)
			}
			return nil
		})
	}()
	<-begun
	end := turns.Rush("a")
	if err := turns.Do(t.Context(), "a", func() error { return nil }); err != nil {
		t.Error(err)
	}
	end()
	if err := <-first; err != nil || turns.Rushed("a") {
		t.Errorf("the first = %v, still rushed %v", err, turns.Rushed("a"))
	}
}

func TestToolIsEndedWithWhatItStarted(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begun := time.Now()
	pid := filepath.Join(t.TempDir(), "pid")
	_, err := Tool{Path: "/bin/sh", Args: []string{"-c", "sleep 100 & echo $! >" + pid + "; sleep 100"}}.Run(ctx)
	if text, rerr := os.ReadFile(pid); rerr == nil {
		if child, _ := strconv.Atoi(strings.TrimSpace(string(text))); child != 0 && readProcess(child).alive() {
			t.Error("what it had started is there still")
		}
	}
	if !errors.Is(err, cluster.ErrCannotAsk) || time.Since(begun) > 20*time.Second {
		t.Errorf("a tool past its deadline = %v after %s, want ErrCannotAsk at once", err, time.Since(begun))
	}
}

func TestToolTellsItsCodeAndOutput(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/x")
	r, err := Tool{Path: "/bin/sh", Args: []string{"-c", "cat; echo out; echo \"bad: $A $NOTIFY_SOCKET\" >&2; exit 7"}, Env: []string{"A=b"}, Stdin: "in\n"}.Run(t.Context())
	if err != nil || r.Code != 7 || r.Stdout != "in\nout\n" || r.Text() != "bad: b" {
		t.Errorf("Run = %+v, %v", r, err)
	}
	r, err = Tool{Path: "/bin/sh", Args: []string{"-c", "yes | head -c 40000000"}}.Run(t.Context())
	if err != nil || len(r.Stdout) != outputKept || !strings.HasPrefix(r.Stdout, "y\ny") {
		t.Errorf("a tool that runs wild: %d bytes kept, %v", len(r.Stdout), err)
	}
	if _, err := (Tool{Path: "/bin/sh", Args: []string{"-c", "kill -9 $$"}}).Run(t.Context()); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a tool that was killed = %v, want ErrCannotAsk", err)
	}
	if _, err := (Tool{Path: "/no/such/tool"}).Run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a tool that is not there = %v", err)
	}
}

// TestWhatTheDaemonBeforeLeftIsEnded: a tool is at work still when its daemon is
// killed; what one has left in the background when it ended is the guest.
func TestWhatTheDaemonBeforeLeftIsEnded(t *testing.T) {
	dir := t.TempDir()
	before, err := NewFormer(dir)
	if err != nil {
		t.Fatal(err)
	}
	// begin runs a tool whose daemon does not live to see its end.
	begin := func(script string) *exec.Cmd {
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
		before.note(cmd.Process.Pid)
		return cmd
	}
	number := func(file string) (pid int) {
		eventually(t, "a number in "+file, func() bool {
			text, err := os.ReadFile(filepath.Join(dir, file))
			pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
			return err == nil && strings.HasSuffix(string(text), "\n")
		})
		return pid
	}
	tool := begin("sleep 100 & echo $! >" + dir + "/child; sleep 100")
	child := number("child")
	left := begin("sleep 100 & echo $! >" + dir + "/guest")
	guest := number("guest")
	if err := left.Wait(); err != nil {
		t.Fatal(err)
	}
	again := begin("exec sleep 100") // has the number of one that is written down, and is another
	if err := os.WriteFile(filepath.Join(dir, "tools", strconv.Itoa(again.Process.Pid)), fmt.Appendf(nil, "%d 1\n", again.Process.Pid), 0o644); err != nil {
		t.Fatal(err)
	}
	now, err := NewFormer(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := now.Gone(t.Context()); err != nil {
		t.Fatal(err)
	}
	if readProcess(tool.Process.Pid).alive() || readProcess(child).alive() {
		t.Error("a tool of the daemon before is at work still")
	}
	if !readProcess(guest).alive() || !readProcess(again.Process.Pid).alive() {
		t.Error("what a tool had left, or another process, was ended")
	}
	if notes, _ := os.ReadDir(filepath.Join(dir, "tools")); len(notes) > 0 {
		t.Errorf("%d notes are kept of what is over", len(notes))
	}
}

func TestAToolIsWrittenDownWhileItRuns(t *testing.T) {
	dir := t.TempDir()
	f, err := NewFormer(dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Tool{Path: "/bin/sh", Args: []string{"-c", "while [ ! -s " + dir + "/tools/$$ ]; do sleep 0.01; done; cat " + dir + "/tools/$$"}, Former: f}.Run(t.Context())
	if err != nil || !strings.Contains(r.Stdout, " ") {
		t.Errorf("it reads %q of itself (%v)", r.Stdout, err)
	}
	if notes, _ := os.ReadDir(filepath.Join(dir, "tools")); len(notes) > 0 {
		t.Errorf("%d notes are left", len(notes))
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

package booted_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shaman-ha/shaman/internal/booted"
)

// holder delays a shutdown as a daemon does that has something to do first: it
// says that it has heard of it, and lets go when it is allowed to.
const holder = `until busctl get-property org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager PreparingForShutdown | grep -q true; do sleep 0.05; done
: >"$1/heard"
until [ -e "$1/go" ]; do sleep 0.05; done
: >"$1/let-go"`

func TestABoxHasLogindAndItHonoursADelay(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	const handed = "/srv/handed" // where the box has that directory
	b := newBox(t, booted.Options{Name: "logind", Binds: map[string]string{dir: handed}})
	must(t, b.PowerOn(ctx))
	names, err := b.Exec(ctx, "busctl", "list", "--acquired")
	must(t, err)
	if !strings.Contains(names, "org.freedesktop.login1 ") {
		t.Fatalf("logind is not on the bus: %s", names)
	}
	// Longer than any test: only the inhibitor's own end lets the shutdown go on.
	must(t, b.Write("/etc/systemd/logind.conf.d/patience.conf", "[Login]\nInhibitDelayMaxSec=10min\n", 0o644))
	_, err = b.Exec(ctx, "systemctl", "restart", "systemd-logind")
	must(t, err)
	_, err = b.Exec(ctx, "systemd-run", "--quiet", "--unit=holder", "systemd-inhibit", "--what=shutdown", "--mode=delay", "--who=holder", "--why=test", "sh", "-c", holder, "sh", handed)
	must(t, err)
	wait(t, "the inhibitor to be listed", func() bool {
		list, err := b.Exec(ctx, "systemd-inhibit", "--list", "--no-legend")
		return err == nil && strings.Contains(list, "holder")
	})
	done := make(chan error, 1)
	go func() { done <- b.Poweroff(ctx) }()
	wait(t, "the shutdown to be heard of", func() bool { return exists(filepath.Join(dir, "heard")) })
	if state, err := b.Exec(ctx, "systemctl", "is-active", "holder"); err != nil || !b.On() {
		t.Errorf("the shutdown did not wait: %q, %v", state, err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "go"), nil, 0o644))
	must(t, <-done)
	if !exists(filepath.Join(dir, "let-go")) {
		t.Error("the box went down before its inhibitor let go")
	}
	if b.On() {
		t.Error("the box is on after a poweroff")
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

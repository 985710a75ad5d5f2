package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/shaman-ha/shaman/internal/watchdog/watchdogtest"
	"golang.org/x/sys/unix"
)

// envDog names the node in the environment of its watchdog. A watchdog is none of
// the node's processes: it runs on while the whole node is paused, and survives a
// power cut, after which it does nothing until it is opened anew.
const envDog = "SHAMAN_LAB_WATCHDOG"

// watchdogTimeout is WATCHDOG_TIMEOUT of a lab with watchdogs.
const watchdogTimeout = "2s"

func (l *Lab) dogDir(n Node) string     { return filepath.Join(l.nodeDir(n), "dog") }
func (l *Lab) dogPIDFile(n Node) string { return filepath.Join(l.nodeDir(n), "watchdog.pid") }

// WatchdogLog is what a node's watchdog saw, a line an event (watchdogtest.Options).
func (l *Lab) WatchdogLog(n Node) string { return filepath.Join(l.nodeDir(n), "watchdog.log") }

// WatchdogBroken tells whether a node's watchdog does not bite.
func (l *Lab) WatchdogBroken(n Node) bool { return l.flagged(n, "watchdog-broken") }

// BreakWatchdog makes a node's watchdog run out without doing anything, or mends it.
func (l *Lab) BreakWatchdog(n Node, broken bool) error {
	if !l.Watchdog {
		return errors.New("this lab has no watchdogs; make it with --watchdog")
	}
	return l.flag(n, "watchdog-broken", broken)
}

// Dog is the process of a node's watchdog. It lives until SIGTERM.
func (l *Lab) Dog(ctx context.Context, n Node) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	log, err := os.OpenFile(l.WatchdogLog(n), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make the watchdog of %s: %w", n.Name, err)
	}
	defer log.Close()
	armed := &bootLog{file: log, boot: filepath.Join(l.nodeDir(n), "boot_id")}
	dev, err := watchdogtest.Mount(l.dogDir(n), watchdogtest.Options{Log: armed, Expire: func() {
		switch {
		case l.Power(n) == Off || armed.now() != armed.opened:
			// Armed before a power cut; the machine that it would reset is gone.
		case l.WatchdogBroken(n):
			_, _ = fmt.Fprintln(log, "# did not bite: break-watchdog")
		default:
			if err := l.Kill(n); err != nil {
				_, _ = fmt.Fprintln(log, "# could not cut the power:", err)
			}
		}
	}})
	if err != nil {
		return err
	}
	if err := replaceFile(l.dogPIDFile(n), []byte(strconv.Itoa(os.Getpid()))); err != nil {
		return err
	}
	<-ctx.Done()
	return dev.Unmount()
}

// bootLog is the watchdog's log; it notices in which boot the device was opened.
type bootLog struct {
	file   *os.File
	boot   string
	opened string
}

func (b *bootLog) now() string {
	data, err := os.ReadFile(b.boot)
	if err != nil {
		return "unknown"
	}
	return string(data)
}

// Write is called with the device's lock held.
func (b *bootLog) Write(line []byte) (int, error) {
	if strings.HasSuffix(string(line), " open\n") {
		b.opened = b.now()
	}
	return b.file.Write(line)
}

func (l *Lab) dog(n Node) int {
	ps, err := find(envDog, l.nodeDir(n))
	if err != nil || len(ps) == 0 {
		return 0
	}
	data, err := os.ReadFile(l.dogPIDFile(n))
	if err != nil || strings.TrimSpace(string(data)) != strconv.Itoa(ps[0].pid) {
		return 0
	}
	return ps[0].pid
}

// startDog starts a node's watchdog, before the node's own mount namespace is made.
func (l *Lab) startDog(n Node) error {
	if !l.Watchdog || l.dog(n) != 0 {
		return nil
	}
	if err := os.MkdirAll(l.dogDir(n), 0o755); err != nil {
		return fmt.Errorf("make the watchdog of %s: %w", n.Name, err)
	}
	cmd := exec.Command(filepath.Join(l.Bin, "shaman-lab"), "watchdog", "--dir", l.Dir, n.Name)
	cmd.Env = append(os.Environ(), envDog+"="+l.nodeDir(n))
	if err := launch(cmd, filepath.Join(l.nodeDir(n), "watchdog-process.log")); err != nil {
		return err
	}
	return waitFor("the watchdog of "+n.Name, hostWait, func() (bool, error) { return l.dog(n) != 0, nil })
}

// stopDog takes a node's watchdog out.
func (l *Lab) stopDog(n Node) error {
	if !l.Watchdog {
		return nil
	}
	if pid := l.dog(n); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGTERM); err == nil {
			_ = waitFor("the end of the watchdog", hostWait, func() (bool, error) { return l.dog(n) == 0, nil }) // else by force
		}
	}
	err := killAll(envDog, l.nodeDir(n))
	_ = unix.Unmount(l.dogDir(n), unix.MNT_DETACH) // mostly done already
	return err
}

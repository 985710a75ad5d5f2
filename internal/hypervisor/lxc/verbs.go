package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// pollGone is how often a container that ends is looked at.
	pollGone = 20 * time.Millisecond
	// watchPoll is how often containers are looked at for what happened by itself.
	watchPoll = time.Second
	// monitorGrace is how long a monitor may take to tidy up after its container was
	// killed (network, mounts, hooks of the config) before it is killed too.
	monitorGrace = 5 * time.Second
)

// startHook runs on the host before the guest's first instruction and writes down
// who it is. LXC runs it again when the guest reboots. If it fails, LXC gives the
// start up: nothing runs that is not written down. Its parent is the monitor.
const startHook = `set -e
began() { read -r l <"/proc/$1/stat"; l=${l##*") "}; set -- $l; echo "${20}"; }
cd "${0%/*}"
rm -f exit forced
echo "$LXC_PID $(began "$LXC_PID") $PPID $(began "$PPID")" >init.tmp
mv init.tmp init
`

// endHook runs when the container has ended, and writes down how. LXC tells a hook
// nothing of that, but its log does, at the level INFO: that the init was started,
// and how it ended, if not by an exit with 0. A container that could not be started
// was not stopped either: nothing is written down. A reboot is no end; its log is
// let go, or it would grow for ever.
const endHook = `cd "${0%/*}" || exit 0
if [ "$LXC_TARGET" = reboot ]; then : >log; exit 0; fi
read -r pid rest <init || exit 0
grep -q "Started .* with pid \"$pid\"" log || exit 0
line=$(grep -F "Child <$pid> ended on " log | tail -n 1)
n=${line##*"("}; n=${n%%")"*}
case $line in
*" ended on signal "*) echo "signal $n" ;;
*" ended on error "*) echo "exit $n" ;;
*) echo "exit 0" ;;
esac >exit.tmp && mv exit.tmp exit
exit 0
`

// cause tells how a container that does not run came to stop. A guest that powers
// off ends by SIGINT, by the kernel's hand (reboot(2)).
func (v *ve) cause() cluster.StopCause {
	if _, err := os.Stat(filepath.Join(v.run, "forced")); err == nil {
		return cluster.CauseUnknown
	}
	data, err := os.ReadFile(filepath.Join(v.run, "exit"))
	if err != nil {
		return cluster.CauseUnknown
	}
	switch strings.TrimSpace(string(data)) {
	case "exit 0", "signal " + strconv.Itoa(int(unix.SIGINT)):
		return cluster.CauseStop
	case "":
		return cluster.CauseUnknown
	}
	return cluster.CauseCrash
}

// forgetEnd drops what is known of how a container ended that runs again, started by
// somebody without our hooks, who will not say how it ends this time. As long as
// something of the start lives that is written down, the end that is written down is
// that one's: its monitor tidies up.
func (v *ve) forgetEnd(l life) {
	r, err := v.record()
	if err != nil || r.init.pid == 0 || r.init.alive() || r.monitor.alive() || len(l.monitors)+len(l.inits) == 0 {
		return
	}
	for _, old := range []string{"exit", "forced"} {
		_ = os.Remove(filepath.Join(v.run, old)) // tried again at the next list
	}
}

// prepare makes the directory of a start, without what the last one left.
func (v *ve) prepare() error {
	if err := os.MkdirAll(v.run, 0o755); err != nil {
		return err
	}
	for _, old := range []string{"init", "exit", "forced", "log"} {
		if err := os.Remove(filepath.Join(v.run, old)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(v.run, "start.sh"), []byte(startHook), 0o644),
		os.WriteFile(filepath.Join(v.run, "end.sh"), []byte(endHook), 0o644))
}

// hook is an option that adds a hook to those of the config. LXC gives it to a
// shell and appends the container's name, which may say anything: a comment.
func hook(when, script string) string {
	return "lxc.hook." + when + "=/bin/sh '" + strings.ReplaceAll(script, "'", `'\''`) + "' #"
}

func (d *Driver) tool(name string) (string, error) {
	if d.o.Tools != "" {
		return filepath.Join(d.o.Tools, name), nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: %s is not installed; install the package lxc: %w", cluster.ErrHold, name, err)
	}
	return path, nil
}

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, path string) error {
	err := d.turns.Do(ctx, path, func() error {
		v := d.get(path)
		if v == nil || !v.isRegistered() {
			return fmt.Errorf("it is not registered here: %w", cluster.ErrNoVE)
		}
		l, err := v.look()
		if err != nil {
			return err
		}
		if l.any() {
			return nil
		}
		return d.start(ctx, v)
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", path, err)
	}
	return nil
}

func (v *ve) look() (life, error) {
	now, err := look()
	if err != nil {
		return life{}, err
	}
	return v.life(now)
}

// startScript lets the guest be an ordinary candidate when memory runs out: the
// daemon's own standing is not inherited.
const startScript = `echo 0 2>/dev/null >/proc/self/oom_score_adj; exec "$@"`

func (d *Driver) start(ctx context.Context, v *ve) error {
	c, err := readConf(v.path, d.o.Mount) // an error of storage is told as such, which LXC does not
	if err != nil {
		return err
	}
	v.setConf(c)
	tool, err := d.tool("lxc-start")
	if err != nil {
		return err
	}
	if err := v.prepare(); err != nil {
		return err
	}
	defer d.hints.Hint()
	// With -d it returns when the container runs. Its socket is there before the
	// monitor leaves it, so a start that goes on after the tool was killed is seen.
	r, err := driverkit.Tool{Path: "/bin/sh", Former: d.former, Args: []string{
		"-c", startScript, "sh", tool, "-P", v.lxcpath, "-n", v.name, "-d", "-l", "INFO", "-o", filepath.Join(v.run, "log"),
		"-s", hook("start-host", filepath.Join(v.run, "start.sh")), "-s", hook("post-stop", filepath.Join(v.run, "end.sh")),
	}}.Run(ctx)
	if err != nil {
		return err
	}
	if r.Code == 0 {
		return nil // also "Container is already running", which somebody else did meanwhile
	}
	text := v.logged()
	if text == "" {
		text = r.Text()
	}
	err = fmt.Errorf("lxc-start ended with %d: %s", r.Code, text)
	if storageTrouble(text) {
		err = fmt.Errorf("%w: %w", cluster.ErrHold, err)
	}
	// What is left of it ends by itself; only then it has failed.
	for end := time.Now().Add(monitorGrace); ; {
		l, lerr := v.look()
		if lerr != nil {
			return fmt.Errorf("%w: %w", err, lerr)
		}
		if !l.any() {
			return err
		}
		if ctx.Err() != nil || time.Now().After(end) || d.turns.Rushed(v.path) {
			return fmt.Errorf("%w: %w: something of it still lives", cluster.ErrCannotAsk, err)
		}
		time.Sleep(pollGone)
	}
}

// logged are the errors in LXC's log of the last start: the first, which is the
// reason, and the last.
func (v *ve) logged() string {
	data, err := os.ReadFile(filepath.Join(v.run, "log"))
	if err != nil {
		return ""
	}
	var errs []string
	for line := range strings.Lines(string(data)) {
		if _, text, ok := strings.Cut(line, " ERROR "); ok {
			if _, after, ok := strings.Cut(text, " - "); ok {
				text = after
			}
			errs = append(errs, strings.Join(strings.Fields(text), " "))
		}
	}
	if len(errs) > 2 {
		errs = []string{errs[0], errs[len(errs)-1]}
	}
	return strings.Join(errs, "; ")
}

// storageTrouble tells whether LXC's words are those of a node or a storage in trouble.
func storageTrouble(text string) bool {
	for _, e := range []unix.Errno{
		unix.EROFS, unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.ESTALE, unix.ENOTCONN, unix.ETIMEDOUT, unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE,
	} {
		if strings.Contains(strings.ToLower(text), e.Error()) {
			return true
		}
	}
	return false
}

// Stop implements hypervisor.Driver. It also stops what is not registered, since
// that is listed when it runs.
func (d *Driver) Stop(ctx context.Context, path string, force bool) error {
	if force {
		end := d.turns.Rush(path)
		defer end()
	}
	err := d.turns.Do(ctx, path, func() error {
		s := &stop{Driver: d, ve: d.of(path), deadline: time.Now().Add(d.o.StopTimeout)}
		return s.until(ctx, force)
	})
	if err != nil {
		return fmt.Errorf("stop %s: %w", path, err)
	}
	return nil
}

// stop is a stop under way.
type stop struct {
	*Driver
	*ve
	deadline time.Time
	acted    bool
	asked    chan error // the result of lxc-stop; nil if it was not called
	endTool  context.CancelFunc
	killed   time.Time // when the first signal was sent by force
}

func (s *stop) until(ctx context.Context, force bool) error {
	defer s.wait()
	for {
		l, err := s.look()
		if err != nil {
			return err
		}
		if !l.any() {
			if s.acted {
				s.hints.Hint()
			}
			return nil
		}
		s.acted = true
		if force = force || s.turns.Rushed(s.path); force {
			err = s.kill(l)
		} else {
			err = s.ask(ctx, l)
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return driverkit.Ended(ctx)
		case <-time.After(pollGone):
		}
	}
}

// wait ends the tool and waits until it is gone: it could stop what is started next.
func (s *stop) wait() {
	if s.asked != nil {
		s.endTool()
		if err := <-s.asked; err != nil {
			s.asked = nil // it was ended, which is what was wanted
		}
	}
}

// ask has the guest shut down: by the tool, which knows what signal its init
// expects, or without a monitor by SIGPWR, which is what most expect.
func (s *stop) ask(ctx context.Context, l life) error {
	if time.Now().After(s.deadline) {
		return fmt.Errorf("it did not shut down within %s", s.o.StopTimeout)
	}
	if s.asked != nil {
		return nil
	}
	s.asked = make(chan error, 1)
	ctx, s.endTool = context.WithCancel(ctx)
	if !l.socket {
		s.asked <- nil
		for _, p := range append(slices.Clone(l.inits), l.unsure...) {
			if err := p.kill(unix.SIGPWR); err != nil {
				return err
			}
		}
		return nil
	}
	tool, err := s.tool("lxc-stop")
	if err != nil {
		s.asked <- err
		return err
	}
	// Rounded up: 0 would be no waiting at all, and our own deadline is the exact one.
	t := driverkit.Tool{Path: tool, Former: s.former, Args: []string{"-P", s.lxcpath, "-n", s.name, "--nokill", "-t", strconv.Itoa(int(s.o.StopTimeout/time.Second) + 1)}}
	go func() {
		r, err := t.Run(ctx)
		if err == nil && r.Code != 0 {
			s.o.Logger.Debug("lxc-stop did not stop it", zap.String("path", s.path), zap.Int("code", r.Code), zap.String("error", r.Text()))
		}
		s.asked <- err
	}()
	return nil
}

// kill ends it without LXC's help: the tools read the config first, which hangs
// with the shared file system. The kernel ends all processes of the guest with
// its init; the monitor sees that and tidies up. One that takes too long, or has
// not come to make an init, is ended as well.
func (s *stop) kill(l life) error {
	if len(l.unsure) > 0 && len(l.inits) == 0 {
		for _, other := range s.all() {
			if other.name == s.name && other.path != s.path {
				return fmt.Errorf("process %d is the first of a container %q whose monitor is dead; it cannot be told from that of %s; end it by hand", l.unsure[0].pid, s.name, other.path)
			}
		}
		l.inits = l.unsure
	}
	if s.killed.IsZero() {
		s.killed = time.Now()
		if s.asked != nil {
			s.endTool()
		}
		// Before the signal: who reads how it ended must not take our work for a crash.
		if err := os.MkdirAll(s.ve.run, 0o755); err == nil {
			_ = os.WriteFile(filepath.Join(s.ve.run, "forced"), nil, 0o644) // a full RunDir must not keep it alive
		}
	}
	for _, p := range l.inits {
		thaw(p.pid)
		if err := p.kill(unix.SIGKILL); err != nil {
			return err
		}
	}
	if time.Since(s.killed) > monitorGrace {
		for _, p := range l.monitors {
			if err := p.kill(unix.SIGKILL); err != nil {
				return err
			}
		}
	}
	return nil
}

// Barrier implements hypervisor.Driver: verbs on one container exclude each other,
// and hold their turn until their tool is gone; nothing is queued beyond them. The
// tools of the daemon before this one are killed and waited for.
func (d *Driver) Barrier(ctx context.Context) error {
	if err := d.former.Gone(ctx); err != nil {
		return err
	}
	return d.turns.Wait(ctx)
}

// Watch implements hypervisor.Driver. What it looks at is cheap: one file for all
// containers, and the processes that are written down.
func (d *Driver) Watch(ctx context.Context, hint func()) error {
	remove := d.hints.Add(hint)
	defer remove()
	tick := time.NewTicker(watchPoll)
	defer tick.Stop()
	was := d.signature()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if is := d.signature(); is != was {
			was = is
			hint()
		}
	}
}

// signature changes when a container begins or ends.
func (d *Driver) signature() string {
	var seen []string
	socks, err := sockets()
	if err != nil {
		return err.Error()
	}
	for name := range socks {
		if below(d.o.Mount, name) || strings.HasPrefix(name, "lxc/") {
			seen = append(seen, name)
		}
	}
	for _, v := range d.all() {
		r, err := v.record()
		if err != nil || r.init.pid == 0 {
			continue
		}
		// Which one it is counts too: it may have begun and ended since the last look.
		seen = append(seen, fmt.Sprint(v.path, r, r.init.alive(), r.monitor.alive()))
	}
	slices.Sort(seen)
	return strings.Join(seen, "\n")
}

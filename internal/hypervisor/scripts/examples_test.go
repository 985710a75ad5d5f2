package scripts

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// need ends a test of an example that needs programs which are not here. In CI
// they have to be: scripttest/packages.txt lists Debian's packages.
func need(t *testing.T, programs ...string) {
	t.Helper()
	var missing []string
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p)
		}
	}
	var why string
	switch {
	case len(missing) > 0:
		why = "it needs " + strings.Join(missing, ", ")
	case os.Geteuid() != 0:
		why = "it needs root"
	default:
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this has to run in CI: " + why)
	}
	t.Skip("NOT RUN: " + why)
}

// example installs a shipped type, as an administrator would, and makes a resource of it.
func (l *lab) example(t *testing.T, kind, name, params string) (path string) {
	t.Helper()
	from := filepath.Join("..", "..", "..", "deploy", "scripts", kind+"-")
	files, err := os.ReadDir(from)
	must(t, err)
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(from, f.Name()))
		must(t, err)
		fi, err := f.Info()
		must(t, err)
		must(t, os.MkdirAll(filepath.Join(l.shared(), kind+"-"), 0o755))
		must(t, os.WriteFile(filepath.Join(l.shared(), kind+"-", f.Name()), data, fi.Mode().Perm()&^0o022))
	}
	path = filepath.Join(l.mount, kind, name)
	must(t, os.MkdirAll(path, 0o755))
	must(t, os.WriteFile(filepath.Join(path, "shaman.conf"), []byte(params), 0o644))
	return path
}

func wantState(t *testing.T, d *Driver, path string, want cluster.VEState, cause cluster.StopCause) {
	t.Helper()
	var v cluster.VE
	eventually(t, "it is "+string(want), func() bool {
		v = state(t, d, path)
		return v.State == want
	})
	if v.Cause != cause {
		t.Errorf("it is %s by %q, want %q", v.State, v.Cause, cause)
	}
}

// child starts a program that ends with the test.
func child(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// login is the beginning of an iSCSI session, by RFC 7143: does the portal accept
// an initiator for this target?
func login(t *testing.T, addr, target string) bool {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(5*time.Second)))
	text := "InitiatorName=iqn.2024-01.org.example:test\x00SessionType=Normal\x00TargetName=" + target + "\x00AuthMethod=None\x00"
	pdu := make([]byte, 48)
	pdu[0], pdu[1] = 0x43, 0x81 // login, immediate; transit from the security stage to the operational one
	pdu[5], pdu[6], pdu[7] = byte(len(text)>>16), byte(len(text)>>8), byte(len(text))
	pdu[8], pdu[13] = 0x80, 1 // an ISID
	data := append(pdu, text...)
	data = append(data, make([]byte, (4-len(text)%4)%4)...)
	if _, err := c.Write(data); err != nil {
		return false
	}
	answer := make([]byte, 48)
	if _, err := readFull(c, answer); err != nil {
		return false
	}
	return answer[0]&0x3f == 0x23 && answer[36] == 0 // a login response of status class "success"
}

func readFull(c net.Conn, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = c.Read(b[n:])
		n += m
	}
	return n, err
}

func TestExampleISCSI(t *testing.T) {
	need(t, "tgtd", "tgtadm", "pidof")
	t.Setenv("TGT_IPC_SOCKET", filepath.Join(t.TempDir(), "socket"))
	l := newLab(t)
	const target = "iqn.2024-01.org.example:disk1"
	path := l.example(t, "iscsi", "disk1", "TARGET="+target+"\nBACKING=disk.img\nINITIATORS=127.0.0.0/8,::1\n")
	must(t, os.WriteFile(filepath.Join(path, "disk.img"), nil, 0o600))
	must(t, os.Truncate(filepath.Join(path, "disk.img"), 8<<20))
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	up := func() *exec.Cmd {
		cmd := child(t, "tgtd", "-f", "--iscsi", "portal="+addr)
		eventually(t, "tgtd answers", func() bool { return exec.Command("tgtadm", "--op", "show", "--mode", "sys").Run() == nil })
		return cmd
	}
	tgtd := up()
	d := l.open(t)
	must(t, d.Register(t.Context(), path))
	wantState(t, d, path, cluster.VEStopped, "")
	must(t, errors.Join(d.Start(t.Context(), path), d.Start(t.Context(), path)))
	wantState(t, d, path, cluster.VERunning, "")
	eventually(t, "an initiator is let in", func() bool { return login(t, addr, target) })
	must(t, d.Stop(t.Context(), path, false))
	wantState(t, d, path, cluster.VEStopped, cluster.CauseStop)
	if login(t, addr, target) {
		t.Error("an initiator is let in to a target that was stopped")
	}
	must(t, d.Start(t.Context(), path))
	must(t, d.Stop(t.Context(), path, true))
	wantState(t, d, path, cluster.VEStopped, cluster.CauseCrash)
	must(t, d.Start(t.Context(), path))
	must(t, tgtd.Process.Signal(syscall.SIGSTOP))
	eventually(t, "a list that fails, since tgtd hangs", func() bool { // not before the last look is old enough
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := d.List(ctx)
		return errors.Is(err, cluster.ErrCannotAsk)
	})
	must(t, tgtd.Process.Signal(syscall.SIGKILL))
	_ = tgtd.Wait()
	_ = os.Remove(os.Getenv("TGT_IPC_SOCKET"))
	up()
	wantState(t, d, path, cluster.VEStopped, cluster.CauseCrash)
	must(t, errors.Join(d.Start(t.Context(), path), d.Stop(t.Context(), path, false), d.Unregister(t.Context(), path)))
}

func TestExamplePodman(t *testing.T) {
	need(t, "podman", "crun", "busybox", "unshare", "nsenter")
	l := newLab(t)
	path := l.example(t, "podman", "web", "ROOTFS=rootfs\nOPTIONS=--network=none --cgroups=disabled --ulimit=nofile=20000:20000 --ulimit=nproc=1000:1000\nCOMMAND=/bin/sh /guest\n")
	root := filepath.Join(path, "rootfs")
	for _, dir := range []string{"bin", "proc", "sys", "dev", "tmp", "etc", "run"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	busybox, err := exec.LookPath("busybox")
	must(t, err)
	data, err := os.ReadFile(busybox)
	must(t, err)
	for _, name := range []string{"sh", "sleep"} {
		must(t, os.WriteFile(filepath.Join(root, "bin", name), data, 0o755))
	}
	must(t, os.WriteFile(filepath.Join(root, "guest"), []byte("trap 'exit 0' TERM; echo x >>/starts; while :; do sleep 1 & wait $!; done\n"), 0o644))
	// A podman with a store of its own, in mounts of its own without the unified
	// cgroups, which this podman does not get on with beside the others.
	store := t.TempDir()
	room := child(t, "unshare", "-m", "sh", "-c", "umount /sys/fs/cgroup/unified 2>/dev/null; touch "+store+"/ready; exec sleep 1000")
	eventually(t, "the mounts are there", func() bool { _, err := os.Stat(store + "/ready"); return err == nil })
	podman, err := exec.LookPath("podman")
	must(t, err)
	bin := t.TempDir()
	plain := fmt.Sprintf(`exec nsenter -t %d -m -- %s --root %s/root --runroot %s/run --runtime crun --cgroup-manager cgroupfs --events-backend none --log-level error "$@"`, room.Process.Pid, podman, store, store)
	l.script(t, bin, "podman", plain)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))

	starts := func() int { data, _ := os.ReadFile(filepath.Join(root, "starts")); return len(data) / 2 }
	o := l.options()
	o.DescribeAge = 200 * time.Millisecond
	d := open(t, o)
	must(t, d.Register(t.Context(), path))
	t.Cleanup(func() {
		must(t, errors.Join(d.Stop(context.Background(), path, true), d.Unregister(context.Background(), path)))
	})
	wantState(t, d, path, cluster.VEStopped, "")
	must(t, errors.Join(d.Start(t.Context(), path), d.Start(t.Context(), path)))
	wantState(t, d, path, cluster.VERunning, "")
	eventually(t, "it counts its start", func() bool { return starts() == 1 })
	must(t, d.Stop(t.Context(), path, false))
	wantState(t, d, path, cluster.VEStopped, cluster.CauseStop)
	must(t, d.Start(t.Context(), path))
	eventually(t, "it counts its second start", func() bool { return starts() == 2 })
	must(t, d.Stop(t.Context(), path, true))
	wantState(t, d, path, cluster.VEStopped, cluster.CauseCrash)

	// A paused one is stopped by force as well. What podman does then is played: without
	// control groups it cannot pause.
	must(t, d.Start(t.Context(), path))
	eventually(t, "it counts its third start", func() bool { return starts() == 3 })
	paused := filepath.Join(bin, "paused")
	l.script(t, bin, "podman", fmt.Sprintf(`if [ -e %[1]s ]; then case $2 in
inspect) echo "paused 0"; exit 0 ;;
stop) echo "Error: can only stop created or running containers" >&2; exit 125 ;;
unpause) rm %[1]s; exit 0 ;;
esac; fi
%[2]s`, paused, plain))
	must(t, os.WriteFile(paused, nil, 0o644))
	wantState(t, d, path, cluster.VERunning, "")
	must(t, d.Stop(t.Context(), path, true))
	wantState(t, d, path, cluster.VEStopped, cluster.CauseCrash)
	// What podman says after a boot is no word of the guest.
	must(t, d.Start(t.Context(), path))
	eventually(t, "it counts its fourth start", func() bool { return starts() == 4 })
	must(t, d.Stop(t.Context(), path, false))
	wantState(t, d, path, cluster.VEStopped, cluster.CauseStop)
	must(t, os.RemoveAll(d.runDir(d.get(path).key)))
	eventually(t, "its end is not known any more", func() bool { return state(t, d, path).Cause == "" })
}

// A faithful stand-in for systemctl: the verbs and properties that the scripts
// use, over processes of its own. Property names, values and exit codes are
// those of systemctl(1) and org.freedesktop.systemd1(5).
const systemctl = `#!/bin/sh
[ -e "$S/away" ] && { echo "Failed to connect to bus" >&2; exit 1; }
verb=$1; for unit; do :; done
u=$S/$unit; pid=$(cat "$u.pid" 2>/dev/null)
alive() { [ -n "$pid" ] && [ -e /proc/$pid ] && ! grep -q '^State:.Z' /proc/$pid/status; }
[ -e "$u" ] || { [ $verb = show ] && { printf 'LoadState=not-found\nActiveState=inactive\nInactiveEnterTimestampMonotonic=0\n' | if [ "$3" = --value ]; then sed -n 's/^LoadState=//p'; else cat; fi; exit 0; }; echo "Unit $unit not loaded." >&2; exit 5; }
case $verb in
show)
	[ "$3" = --value ] && { echo loaded; exit 0; }
	echo LoadState=loaded
	if alive; then echo ActiveState=active; elif [ -e "$u.stopped" ]; then echo ActiveState=inactive; elif [ -n "$pid" ]; then echo ActiveState=failed; else echo ActiveState=inactive; fi
	if [ -e "$u.enabled" ]; then echo UnitFileState=enabled; else echo UnitFileState=disabled; fi
	if [ -n "$pid" ]; then echo InactiveEnterTimestampMonotonic=1; else echo InactiveEnterTimestampMonotonic=0; fi
	if [ -e "$u.job" ]; then echo Job=17; fi ;;
disable) rm -f "$u.enabled" ;;
start)
	alive && exit 0
	if [ -e "$u.waits" ]; then touch "$u.job"; while [ -e "$u.waits" ]; do sleep 0.02; done; rm -f "$u.job"; fi
	rm -f "$u.stopped"; setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $! >"$u.pid" ;;
kill) alive && kill -KILL $pid && touch "$u.killed" ;;
stop)
	alive && [ ! -e "$u.killed" ] && { kill $pid; touch "$u.stopped"; }
	rm -f "$u.killed" "$u.job"; while alive; do sleep 0.02; done ;;
esac
exit 0
`

func TestExampleService(t *testing.T) {
	l := newLab(t)
	bin, units := t.TempDir(), t.TempDir()
	l.script(t, bin, "systemctl", systemctl)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("S", units)
	path := l.example(t, "service", "web", "")
	d := l.open(t)
	if err := d.Register(t.Context(), path); err == nil || !strings.Contains(err.Error(), "install it") {
		t.Errorf("register = %v; the unit is not installed", err)
	}
	must(t, errors.Join(os.WriteFile(filepath.Join(units, "web.service"), nil, 0o644), os.WriteFile(filepath.Join(units, "web.service.enabled"), nil, 0o644)))
	must(t, d.Register(t.Context(), path))
	if v := state(t, d, path); v.State != cluster.VEStopped || v.Cause != "" || v.Autostart {
		t.Errorf("listed as %+v", v)
	}
	t.Cleanup(func() { must(t, d.Stop(context.Background(), path, true)) })
	must(t, d.Start(t.Context(), path))
	wantState(t, d, path, cluster.VERunning, "")
	must(t, d.Stop(t.Context(), path, false))
	wantState(t, d, path, cluster.VEStopped, cluster.CauseStop)
	must(t, errors.Join(d.Start(t.Context(), path), d.Stop(t.Context(), path, true)))
	wantState(t, d, path, cluster.VEStopped, cluster.CauseCrash)
	must(t, os.WriteFile(filepath.Join(units, "away"), nil, 0o644))
	wantState(t, d, path, cluster.VEUnknown, "") // systemd cannot be asked
	must(t, os.Remove(filepath.Join(units, "away")))

	// Its start is queued behind another unit's, and who asked for it is gone: systemd
	// starts it in the end, unless it is stopped.
	must(t, os.WriteFile(filepath.Join(units, "web.service.waits"), nil, 0o644))
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := d.Start(ctx, path); !errors.Is(err, cluster.ErrCannotAsk) {
		t.Errorf("a start that waits for another unit = %v, want ErrCannotAsk", err)
	}
	must(t, d.Barrier(t.Context()))
	wantState(t, d, path, cluster.VEUnknown, "")
	must(t, d.Stop(t.Context(), path, true))
	if _, err := os.Stat(filepath.Join(units, "web.service.job")); err == nil {
		t.Error("its job is still queued after a stop by force")
	}
	if v := state(t, d, path); v.State != cluster.VEStopped {
		t.Errorf("after the stop it is %s", v.State)
	}
}

package booted_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/watchdog/watchdogtest"
	"golang.org/x/sys/unix"
)

// kennel is the watchdog of a box: its bite is a power cut.
type kennel struct {
	dev *watchdogtest.Device
	log string
}

// dogPath is where the box has its watchdog, which is the default.
const dogPath = "/dev/watchdog"

// withWatchdog furnishes a box with a watchdog. The device lies in the room and
// outlives the box, as it outlives the power of a real one.
func withWatchdog(t *testing.T) (*kennel, func(*site)) {
	t.Helper()
	k := &kennel{}
	return k, func(s *site) {
		t.Helper()
		dir := filepath.Join(room.Shared(), "watchdog-of-"+s.box.Name)
		k.log = dir + ".log"
		must(t, os.Mkdir(dir, 0o755))
		log, err := os.Create(k.log)
		must(t, err)
		k.dev, err = watchdogtest.Mount(dir, watchdogtest.Options{Log: log, Expire: func() {
			if err := os.WriteFile(s.box.Switch(), []byte("expire"), 0); err != nil {
				t.Errorf("the watchdog has expired and cannot reset its box: %v", err)
				return
			}
			for exists(s.box.PowerFile()) {
				time.Sleep(time.Millisecond)
			}
			k.dev.Reset()
		}})
		must(t, err)
		s.box.Binds[k.dev.Path()] = dogPath
		t.Cleanup(func() {
			must(t, s.box.PowerCut()) // whoever has the device open is gone
			must(t, k.dev.Unmount())
			must(t, log.Close())
		})
	}
}

// dogEvent is a line of the device's own log.
type dogEvent struct {
	at   boottime.Time
	what string
}

func (k *kennel) events(t *testing.T) (out []dogEvent) {
	t.Helper()
	data, err := os.ReadFile(k.log)
	must(t, err)
	for line := range strings.Lines(string(data)) {
		at, what, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		var e dogEvent
		_, err := fmt.Sscan(at, &e.at)
		must(t, err)
		e.what = what
		out = append(out, e)
	}
	return out
}

// told is how many events there are so far.
func (k *kennel) told(t *testing.T) int { return len(k.events(t)) }

// story is what happened after the first n events, but for feeds.
func (k *kennel) story(t *testing.T, n int) string {
	t.Helper()
	var out []string
	for _, e := range k.events(t)[n:] {
		if e.what != "feed" {
			out = append(out, e.what)
		}
	}
	return strings.Join(out, ", ")
}

// fedAfter waits for a feed after a moment.
func (k *kennel) fedAfter(t *testing.T, at boottime.Time) {
	t.Helper()
	wait(t, "the watchdog to be fed", func() bool {
		for _, e := range k.events(t) {
			if e.what == "feed" && e.at > at {
				return true
			}
		}
		return false
	})
}

// What a device's log has when a daemon arms it, goes on with that of the daemon
// before it, and lets go of it.
const (
	armed    = "open, timeout 5"
	wentOn   = "close, open"
	disarmed = "disarm"
	sleepy   = "open, timeout 60, disarm"
)

// sleepy gives the device a time-out that whoever never feeds it can live with.
func (k *kennel) sleepy(t *testing.T) {
	t.Helper()
	fd, err := unix.Open(k.dev.Path(), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, 60))
	_, err = unix.Write(fd, []byte("V"))
	must(t, err)
	must(t, unix.Close(fd))
}

// watched is a site whose box has a watchdog.
type watched struct {
	*site
	dog *kennel
}

func TestTheWatchdogUnderTheUnit(t *testing.T) {
	needSystemd(t)
	t.Parallel() // what takes long here is waiting
	dog, furnish := withWatchdog(t)
	// All time-outs are the defaults, and so are their distances to those of the unit.
	s := newSiteWith(t, "dog", func(s *site) {
		furnish(s)
		// node2 is always on, so that the doctor finds nothing worse than what it is to find.
		must(t, os.WriteFile(filepath.Join(s.dir, "fence_on"), fmt.Appendf(nil, fenceAgent, s.dir, os.DevNull), 0o755))
		must(t, os.WriteFile(filepath.Join(s.fenceDir(), "node2.conf"), []byte("agent="+filepath.Join(s.dir, "fence_on")+"\n"), 0o600))
	}, "WATCHDOG_TIMEOUT=5s", "WATCHDOG_TRUST_VIRTUAL=yes")
	w := &watched{site: s, dog: dog}
	w.waitArmed()
	if metrics := s.get(node1, "/metrics"); !strings.Contains(metrics, "\nshaman_fencing_watchdog_armed 1\n") {
		t.Error("the metric does not say that the watchdog is armed")
	}
	if got := s.shaman("fence", "status", "node1"); !strings.Contains(got, "watchdog:  armed, time-out 5s") {
		t.Errorf("fence status prints\n%s", got)
	}
	for _, c := range []struct {
		name, story string
		do          func(*watched)
	}{
		{"systemctl restart", wentOn, func(w *watched) { w.itIsRestarted() }},
		{"it is killed", wentOn, func(w *watched) { w.itEndsBadly("KILL", "code=killed, status=9/KILL") }},
		{"it hangs", wentOn, func(w *watched) { w.itEndsBadly("STOP", "Watchdog timeout") }},
		{"an upgrade", wentOn, func(w *watched) { w.itIsUpgraded() }},
		{"systemctl restart without etcd", wentOn, (*watched).restartWithoutEtcd},
		{"systemctl stop and start", disarmed + ", " + armed, func(w *watched) { w.itIsStopped() }},
		{"systemctl stop while etcd is away", disarmed + ", " + armed, (*watched).stopWithoutEtcd},
		{"no device", disarmed, (*watched).noDevice},
		{"another program holds it", sleepy + ", open, close, " + armed, (*watched).heldByAnother},
		{"the host is shut down", disarmed, (*watched).hostIsShutDown},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := *s
			in.t = t
			n := dog.told(t)
			c.do(&watched{site: &in, dog: dog})
			if got := dog.story(t, n); got != c.story {
				t.Errorf("the watchdog tells %q, want %q", got, c.story)
			}
		})
		if t.Failed() {
			return // what follows would only repeat it
		}
	}
}

func (w *watched) waitArmed() {
	w.t.Helper()
	w.waitStat("the watchdog of node1 to be armed", func(st stat) bool { return st.watchdog(node1) == "armed" })
	if rec := w.record(); !rec.Watchdog.Armed || rec.Watchdog.SelfFenceTimeout == 0 || !w.dog.dev.Running() {
		w.t.Errorf("etcd has %+v, and the device runs: %t", rec.Watchdog, w.dog.dev.Running())
	}
}

func (s *site) record() (rec cluster.NodeRecord) {
	s.t.Helper()
	resp, err := s.cl.Get(s.ctx, s.keys.Node(node1))
	must(s.t, err)
	must(s.t, json.Unmarshal(resp.Kvs[0].Value, &rec))
	return rec
}

// says waits until the daemon has said something since the first n bytes of its journal.
func (w *watched) says(n int, what string) {
	w.t.Helper()
	wait(w.t, fmt.Sprintf("the daemon to say %q", what), func() bool { return strings.Contains(w.journal()[n:], what) })
}

func (w *watched) journal() string {
	w.t.Helper()
	j, err := w.box.Journal(w.ctx, unit)
	must(w.t, err)
	return j
}

// selfFence is SELF_FENCE_TIMEOUT.
const selfFence = 10 * time.Second

// restartWithoutEtcd: contact with the mount is contact, for as long as it takes.
func (w *watched) restartWithoutEtcd() {
	m := w.mark()
	w.etcd.Stop()
	w.exec("systemctl", "restart", unit)
	w.dog.fedAfter(w.t, boottime.Now().Add(selfFence))
	w.etcd.Restart()
	w.back(m)
	w.untouched(m)
	w.waitArmed()
}

// stopWithoutEtcd: nobody knows yet that the daemon stops on purpose, so the dog
// stays armed until that is recorded, and it is said.
func (w *watched) stopWithoutEtcd() {
	m, said := w.mark(), len(w.journal())
	w.etcd.Stop()
	done := make(chan error, 1)
	go func() {
		_, err := w.box.Exec(w.ctx, "systemctl", "stop", unit)
		done <- err
	}()
	w.says(said, "the watchdog stays armed until etcd has recorded that this daemon stops")
	w.dog.fedAfter(w.t, boottime.Now().Add(selfFence))
	select {
	case err := <-done:
		w.t.Fatalf("the daemon ended before that was recorded (%v)", err)
	default:
	}
	w.etcd.Restart()
	must(w.t, <-done)
	if st := w.waitStat("an answer", func(stat) bool { return true }); st.status(node1) != "Inactive" || st.watchdog(node1) != "off" || w.dog.dev.Running() {
		w.t.Errorf("node1 is %s, its watchdog %s, and it runs: %t", st.status(node1), st.watchdog(node1), w.dog.dev.Running())
	}
	w.exec("systemctl", "start", unit)
	w.back(m)
	w.untouched(m)
}

// noDevice: the node is admitted without, and is told what to do.
func (w *watched) noDevice() {
	m, said := w.mark(), len(w.journal())
	w.exec("systemctl", "stop", unit)
	w.configure(2, "WATCHDOG_DEVICE=/dev/watchdog7")
	w.exec("systemctl", "start", unit)
	w.back(m)
	w.says(said, "/dev/watchdog7 is not there; load the hardware's module, or run 'modprobe softdog'")
	w.untouched(m)
	w.doctorWarns("/dev/watchdog7: there is no such device", "modprobe softdog")
}

// heldByAnother: the same, until that one lets go.
func (w *watched) heldByAnother() {
	m, said := w.mark(), len(w.journal())
	w.dog.sleepy(w.t)
	w.exec("systemd-run", "--quiet", "--unit=holder", "flock", "--no-fork", dogPath, "sleep", "infinity")
	wait(w.t, "another program to hold the watchdog", w.dog.dev.Running)
	w.configure(2)
	w.exec("systemctl", "restart", unit)
	w.back(m)
	w.says(said, dogPath+": another program holds it")
	w.untouched(m)
	w.doctorWarns(" (sleep) holds it, so shaman cannot arm it", "stop it")
	w.exec("systemctl", "stop", "holder")
	w.waitArmed()
}

// doctorWarns checks that the doctor, in the box, warns of the watchdog, and says
// what to do, and that a warning is no failure.
func (w *watched) doctorWarns(what, next string) {
	w.t.Helper()
	out, err := w.box.Exec(w.ctx, "shaman", "doctor")
	if err != nil {
		w.t.Errorf("a node without a watchdog fails: %v\n%s", err, out)
	}
	lines := strings.Split(out, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "  WARN  ") && strings.Contains(line, what) && i+1 < len(lines) && strings.Contains(lines[i+1], next) {
			return
		}
	}
	w.t.Errorf("the doctor does not warn of %q, or does not say %q:\n%s", what, next, out)
}

// hostIsShutDown: nothing runs any more when the watchdog is let go of.
func (w *watched) hostIsShutDown() {
	must(w.t, w.box.Poweroff(w.ctx))
	for _, l := range w.lives() {
		if !l.Stopped {
			w.t.Errorf("%s was not asked to stop before the box was off", l.VE)
		}
	}
	w.waitStat("node1 to be Down", func(st stat) bool { return st.status(node1) == "Down" && st.watchdog(node1) == "off" })
	if w.dog.dev.Running() {
		w.t.Error("the watchdog runs")
	}
}

func TestTheWatchdogBitesWhoHangs(t *testing.T) {
	needSystemd(t)
	t.Parallel() // what takes long here is waiting
	dog, furnish := withWatchdog(t)
	s := newSiteWith(t, "bite", func(s *site) {
		furnish(s)
		// Nobody but the watchdog sees that the daemon hangs, and nobody cuts its power.
		must(t, s.box.Write("/etc/systemd/system/"+unit+".service.d/blind.conf", "[Service]\nWatchdogSec=0\n", 0o644))
		must(t, os.Remove(filepath.Join(s.fenceDir(), "node1.conf")))
	}, "LOCK_TIMEOUT=3s", "WATCHDOG_TIMEOUT=3s", "WATCHDOG_TRUST_VIRTUAL=yes")
	w := &watched{site: s, dog: dog}
	w.waitArmed()
	n := dog.told(t)
	w.isTakenOver("watchdog", func() { w.exec("systemctl", "kill", "--kill-whom=main", "--signal=STOP", unit) })
	w.waitArmed()
	if got, want := dog.story(t, n), "expire, open, timeout 3"; got != want {
		t.Errorf("the watchdog tells %q, want %q", got, want)
	}
}

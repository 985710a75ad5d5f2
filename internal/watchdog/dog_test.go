package watchdog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/watchdog/watchdogtest"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"
)

// bench is one machine: a device, and what became of it.
type bench struct {
	dev    *watchdogtest.Device
	log    *syncBuffer
	reset  chan string
	stopd  chan string
	expire chan struct{}
	run    string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newBench(t *testing.T, o watchdogtest.Options) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("the watchdog is tested with a FUSE device, which needs root, and is expected to be tested here")
		}
		t.Skip("THE WATCHDOG IS NOT TESTED: a FUSE device needs root")
	}
	b := &bench{log: &syncBuffer{}, reset: make(chan string, 9), stopd: make(chan string, 9), expire: make(chan struct{}, 9), run: t.TempDir()}
	o.Log = b.log
	o.Expire = func() { b.expire <- struct{}{} }
	dir := t.TempDir()
	var err error
	if b.dev, err = watchdogtest.Mount(dir, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.dev.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) dog(t *testing.T, boot string) *Dog {
	t.Helper()
	d, err := New(Options{
		Device: b.dev.Path(), RunDir: b.run, BootID: boot, Log: zaptest.NewLogger(t),
		Reset: func(why string) { b.reset <- why }, Starved: func(why string) { b.stopd <- why },
	})
	if err != nil {
		t.Fatal(err)
	}
	d.virtual = false
	t.Cleanup(d.Close)
	return d
}

// armed is a dog of 2 s whose last contact was now.
func (b *bench) armed(t *testing.T, selfFence time.Duration) *Dog {
	t.Helper()
	d := b.dog(t, "boot")
	d.Contact(boottime.Now())
	if _, err := d.Arm(2*time.Second, selfFence); err != nil {
		t.Fatal(err)
	}
	return d
}

func within[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("waited 20 s for %s", what)
	}
	panic("unreachable")
}

func feedsOn(t *testing.T, b *bench) {
	t.Helper()
	n := b.dev.Feeds()
	for deadline := time.Now().Add(20 * time.Second); b.dev.Feeds() < n+2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the dog is not fed:\n%s", b.log)
		}
	}
}

// keepContact is a node whose channels work, until stop is called.
func keepContact(d *Dog) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			d.Contact(boottime.Now())
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return sync.OnceFunc(func() { close(done); <-ended })
}

func TestArmFeedDisarm(t *testing.T) {
	b := newBench(t, watchdogtest.Options{})
	d := b.dog(t, "boot")
	if _, err := d.Arm(2*time.Second, time.Second); err == nil || b.dev.Running() {
		t.Fatalf("armed before there was any contact: %v", err)
	}
	stop := keepContact(d)
	defer stop()
	d.Contact(boottime.Now())
	got, err := d.Arm(2*time.Second, time.Second)
	want := cluster.Watchdog{Armed: true, Timeout: 2 * time.Second, SelfFenceTimeout: time.Second}
	if err != nil || got != want || d.State() != want {
		t.Fatalf("Arm: %+v, %v; want %+v", got, err, want)
	}
	feedsOn(t, b)
	if err := d.Retune(3*time.Second, 2*time.Second); err != nil {
		t.Fatal(err)
	}
	want.Timeout, want.SelfFenceTimeout = 3*time.Second, 2*time.Second
	if d.State() != want {
		t.Errorf("after Retune: %+v, want %+v", d.State(), want)
	}
	feedsOn(t, b)
	d.Disarm()
	if b.dev.Running() || d.State().Armed || !strings.HasSuffix(b.log.String(), "disarm\n") {
		t.Errorf("Disarm leaves it running:\n%s", b.log)
	}
}

// The promise itself: without contact for P no feed follows, and it bites.
func TestNoContactNoFeed(t *testing.T) {
	b := newBench(t, watchdogtest.Options{})
	d := b.dog(t, "boot")
	const selfFence = 500 * time.Millisecond
	stop := keepContact(d)
	d.Contact(boottime.Now())
	if _, err := d.Arm(2*time.Second, selfFence); err != nil {
		t.Fatal(err)
	}
	feedsOn(t, b)
	stop()
	last := boottime.Time(d.rec.contact.Load())
	if why := within(t, "the end of the feeding", b.stopd); !strings.Contains(why, "SELF_FENCE_TIMEOUT is 500ms") {
		t.Errorf("the reason is %q", why)
	}
	within(t, "the reset", b.reset)
	within(t, "the watchdog to bite", b.expire)
	d.Contact(boottime.Now()) // too late: the end of the feeding is for good
	d.Disarm()
	if !d.State().Armed {
		t.Error("a dog that starves was let off")
	}
	// By the device's own log: no feed begun after contact + P, with a thread that was
	// not held up (a held-up one resets at once).
	for _, line := range strings.Split(strings.TrimSpace(b.log.String()), "\n") {
		var at int64
		var what string
		if _, err := fmt.Sscan(line, &at, &what); err != nil {
			t.Fatal(err)
		}
		if what == "feed" && boottime.Time(at).Sub(last) > selfFence && !d.late.Load() {
			t.Errorf("fed %s after the last contact; SELF_FENCE_TIMEOUT is %s", boottime.Time(at).Sub(last), selfFence)
		}
	}
}

func TestLimit(t *testing.T) {
	b := newBench(t, watchdogtest.Options{})
	d := b.dog(t, "boot")
	stop := keepContact(d)
	defer stop()
	d.Contact(boottime.Now())
	if _, err := d.Arm(2*time.Second, time.Minute); err != nil {
		t.Fatal(err)
	}
	d.Limit(boottime.Now().Add(time.Hour))
	d.Limit(boottime.Now().Add(2 * time.Hour)) // the earliest counts
	d.Lift()
	feedsOn(t, b)
	d.Limit(boottime.Now().Add(200 * time.Millisecond))
	d.Limit(boottime.Now().Add(time.Hour))
	if why := within(t, "the end of the feeding", b.stopd); !strings.Contains(why, "STOP_BUDGET") {
		t.Errorf("the reason is %q", why)
	}
	within(t, "the watchdog to bite", b.expire)
}

// A daemon that is killed and started again keeps the dog fed; one that comes
// back too late looks at the last contact before it opens the device.
func TestResume(t *testing.T) {
	t.Run("in time", func(t *testing.T) {
		b := newBench(t, watchdogtest.Options{})
		d := b.armed(t, time.Minute)
		d.Close() // as the death of the process does
		if !b.dev.Running() {
			t.Fatal("the end of the process stopped the dog")
		}
		next := b.dog(t, "boot")
		next.Resume()
		want := cluster.Watchdog{Armed: true, Timeout: 2 * time.Second, SelfFenceTimeout: time.Minute}
		if next.State() != want {
			t.Errorf("State: %+v, want %+v", next.State(), want)
		}
		feedsOn(t, b)
	})
	t.Run("too late", func(t *testing.T) {
		b := newBench(t, watchdogtest.Options{})
		d := b.armed(t, 100*time.Millisecond)
		d.Close()
		if err := boottime.WaitUntil(t.Context(), boottime.Time(d.rec.contact.Load()).Add(101*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		fed := b.dev.Feeds()
		b.dog(t, "boot").Resume()
		within(t, "the reset", b.reset)
		if b.dev.Feeds() != fed {
			t.Errorf("the device was touched, which feeds it:\n%s", b.log)
		}
		within(t, "the watchdog to bite", b.expire)
	})
	t.Run("another boot", func(t *testing.T) {
		b := newBench(t, watchdogtest.Options{})
		d := b.armed(t, time.Minute)
		d.Close()
		b.dev.Reset()
		next := b.dog(t, "another")
		next.Resume()
		if next.State().Armed || b.dev.Running() {
			t.Error("what was armed before a reboot counts after it")
		}
	})
	t.Run("a limit outlives the process", func(t *testing.T) {
		b := newBench(t, watchdogtest.Options{})
		d := b.armed(t, time.Minute)
		d.Limit(boottime.Now())
		d.Close()
		b.dog(t, "boot").Resume()
		within(t, "the reset", b.reset)
	})
}

func TestDevicesThatCannotServe(t *testing.T) {
	arm := func(t *testing.T, b *bench, path string, w time.Duration) (cluster.Watchdog, error) {
		d := b.dog(t, "boot")
		if path != "" {
			d.Device = path
		}
		d.Contact(boottime.Now())
		wd, err := d.Arm(w, time.Minute)
		if err != nil && (wd.Armed || d.State().Armed) {
			t.Error("it says that it is armed")
		}
		return wd, err
	}
	for name, c := range map[string]struct {
		o    watchdogtest.Options
		path func(t *testing.T, b *bench) string
		want string
	}{
		"missing": {path: func(t *testing.T, _ *bench) string { return filepath.Join(t.TempDir(), "watchdog") }, want: "modprobe softdog"},
		"busy": {path: func(t *testing.T, b *bench) string {
			f, err := os.OpenFile(b.dev.Path(), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = f.WriteString("V"); _ = f.Close() })
			return b.dev.Path()
		}, want: "another program holds it"},
		"no watchdog": {path: func(t *testing.T, _ *bench) string {
			p := filepath.Join(t.TempDir(), "fifo")
			if err := unix.Mkfifo(p, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			return p
		}, want: "does not answer as a watchdog does"},
		"no magic close":   {o: watchdogtest.Options{Support: unix.WDIOF_SETTIMEOUT | unix.WDIOF_KEEPALIVEPING}, want: "no magic close"},
		"time-out refused": {o: watchdogtest.Options{Round: func(int) int { return 0 }}, want: "refuses WATCHDOG_TIMEOUT=2s"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, c.o)
			path := ""
			if c.path != nil {
				path = c.path(t, b)
			}
			_, err := arm(t, b, path, 2*time.Second)
			if !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Arm: %v; want ErrUnusable with %q", err, c.want)
			}
			if name != "busy" && b.dev.Running() && c.o.Support == 0 {
				t.Errorf("a device that is not used was left armed:\n%s", b.log)
			}
		})
	}
	t.Run("rounded", func(t *testing.T) {
		b := newBench(t, watchdogtest.Options{Round: func(s int) int { return (s + 3) / 4 * 4 }})
		if wd, err := arm(t, b, "", 2*time.Second); err != nil || wd.Timeout != 4*time.Second {
			t.Errorf("Arm: %+v, %v; want the 4 s that were read back", wd, err)
		}
	})
}

// Disarm lets nobody off who has something left to stop.
func TestDisarmKeepsWhatHasToBite(t *testing.T) {
	for name, spoil := range map[string]func(*Dog){
		"an order runs out of its time": func(d *Dog) { d.Limit(boottime.Now().Add(time.Hour)) },
		"there is no contact":           func(d *Dog) { d.rec.selfP.Store(1) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, watchdogtest.Options{})
			d := b.armed(t, time.Minute)
			spoil(d)
			d.Disarm()
			if !d.State().Armed || !b.dev.Running() {
				t.Errorf("it was disarmed:\n%s", b.log)
			}
		})
	}
}

// A device that the next daemon cannot take over may run or not: nobody knows, and
// others count on it. It is not disarmed, not said to be armed by us, and the machine
// is reset.
func TestResumeOfADeviceThatWasTaken(t *testing.T) {
	for name, c := range map[string]struct {
		take bool
	}{
		"by another program":     {take: true},
		"it answers nothing now": {},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, watchdogtest.Options{})
			d := b.armed(t, time.Minute)
			d.Close()
			if c.take {
				f, err := os.OpenFile(b.dev.Path(), os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
			} else {
				b.dev.Refuse()
			}
			b.dog(t, "boot").Resume()
			within(t, "the reset", b.reset)
			if strings.Contains(b.log.String(), "disarm") {
				t.Errorf("a device that others count on was disarmed:\n%s", b.log)
			}
		})
	}
}

// A machine that was suspended for longer than it may be without contact does not get
// the time to stop things in good order.
func TestAMachineThatWakesUpTooLateIsResetAtOnce(t *testing.T) {
	b := newBench(t, watchdogtest.Options{})
	d := b.armed(t, time.Minute)
	d.rec.contact.Store(int64(boottime.Now().Add(-2 * time.Minute)))
	within(t, "the reset", b.reset)
	select {
	case why := <-b.stopd:
		t.Errorf("it was given time to stop things: %s", why)
	default:
	}
}

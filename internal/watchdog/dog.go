package watchdog

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Options of a dog.
type Options struct {
	Device string // WATCHDOG_DEVICE
	RunDir string
	BootID string
	// Reset resets the machine at once, and only returns if it cannot.
	Reset func(why string)
	// Starved is called once, by a goroutine of its own, when the dog is fed no
	// more: the machine will be reset within W.
	Starved func(why string)
	Log     *zap.Logger
}

// Dog is this machine's watchdog. All methods may be called concurrently.
type Dog struct {
	Options
	rec     *record
	virtual bool

	mu      sync.Mutex // arming and disarming
	dev     *device
	stop    atomic.Bool   // the feeder is to end
	ended   chan struct{} // closed by the feeder
	starved atomic.Bool
	late    atomic.Bool // a feed came too late: the reset is under way
	failed  atomic.Bool // a feed failed, and that was told
}

// New prepares a dog; it does not touch the device.
func New(o Options) (*Dog, error) {
	rec, err := openRecord(o.RunDir, o.BootID)
	if err != nil {
		return nil, err
	}
	virtual, _ := Virtual()
	return &Dog{Options: o, rec: rec, virtual: virtual}, nil
}

// Resume goes on with the dog that an earlier process of this boot has armed. It
// has to come first of all: that dog bites W after the end of that process. The
// last contact is looked at before the device is opened, which feeds it; if it is
// too old the machine is reset, as the earlier process would have done.
func (d *Dog) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := time.Duration(d.rec.timeout.Load())
	if w == 0 || d.dev != nil {
		return
	}
	if now := boottime.Now(); !d.rec.mayFeed(now) {
		d.starve(d.rec.why(now))
		return
	}
	mayFeed := func() bool { return d.rec.mayFeed(boottime.Now()) }
	dev, err := reopenDevice(d.Device, w, mayFeed)
	// The kernel may still be closing the files of the daemon before.
	for end := boottime.Now().Add(w / 4); err != nil && !errors.Is(err, errLate) && boottime.Now() < end; dev, err = reopenDevice(d.Device, w, mayFeed) {
		time.Sleep(busyPause)
	}
	if err != nil {
		// Others count on it, and nobody can tell whether it still runs.
		d.Log.Error("the watchdog that the daemon before this one armed cannot be fed any more; this machine is reset", zap.Error(err))
		d.late.Store(true)
		d.starve("its watchdog cannot be fed any more: " + err.Error())
		return
	}
	d.run(dev)
	d.Log.Info("feeding the watchdog that the daemon before this one armed", zap.Duration("timeout", w))
}

// Arm opens the device with a time-out of timeout, or what it rounds that to, and
// feeds it while the last contact is at most selfFence old. An armed dog stays as
// it is. Errors wrap ErrUnusable and say what to do; the dog is not armed then.
func (d *Dog) Arm(timeout, selfFence time.Duration) (cluster.Watchdog, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dev != nil {
		return d.state(), nil
	}
	if d.starved.Load() {
		return cluster.Watchdog{}, errors.New("the watchdog is fed no more; it resets this machine")
	}
	d.rec.selfP.Store(int64(selfFence))
	if now := boottime.Now(); !d.rec.mayFeed(now) {
		return cluster.Watchdog{}, errors.New("the watchdog is not armed: " + d.rec.why(now))
	}
	// Should this process end before the next line, nobody counts with it yet; the
	// machine is reset once, and nothing is wrong with that but the time.
	dev, err := openDevice(d.Device, timeout)
	if err != nil {
		return cluster.Watchdog{}, err
	}
	d.rec.timeout.Store(int64(dev.timeout))
	d.run(dev)
	if dev.timeout != timeout {
		d.Log.Warn("the watchdog rounds WATCHDOG_TIMEOUT; what it says is used and published", zap.Duration("wanted", timeout), zap.Duration("timeout", dev.timeout))
	}
	d.Log.Info("the watchdog is armed", zap.String("device", d.Device), zap.Duration("timeout", dev.timeout), zap.Duration("self_fence", selfFence))
	return d.state(), nil
}

// Retune changes the numbers of an armed dog. Only to be called while nothing is
// published: nobody may count with the numbers of before. With an error they stay.
func (d *Dog) Retune(timeout, selfFence time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dev == nil || d.starved.Load() {
		return errors.New("change the watchdog's numbers: it is not fed by this daemon")
	}
	d.stop.Store(true)
	<-d.ended
	if d.starved.Load() {
		return errors.New("change the watchdog's numbers: it is fed no more")
	}
	was := d.dev.timeout
	err := d.dev.prepare(timeout)
	if err == nil {
		d.rec.selfP.Store(int64(selfFence))
		d.rec.timeout.Store(int64(d.dev.timeout))
		d.Log.Info("the watchdog's numbers have changed", zap.Duration("timeout", d.dev.timeout), zap.Duration("before", was), zap.Duration("self_fence", selfFence))
	}
	d.run(d.dev)
	return err
}

// Disarm stops the device by its magic close. Only to be called once nobody may
// take silence for proof any more, or nothing runs here. A dog that starves, or is
// about to, is not let off, and neither is one with a limit: something that was to
// be stopped still runs.
func (d *Dog) Disarm() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dev == nil || d.starved.Load() {
		return
	}
	if d.rec.limit.Load() != 0 || !d.rec.mayFeed(boottime.Now()) {
		d.Log.Error("the watchdog stays armed: not everything that had to be stopped here was")
		return
	}
	d.stop.Store(true)
	<-d.ended
	if d.starved.Load() {
		return
	}
	d.rec.timeout.Store(0) // first: a dog that is not known is not taken for one that was let down
	d.dev.disarm()
	d.dev = nil
	d.Log.Info("the watchdog is disarmed")
}

// Close ends the feeding and leaves the device armed, for the next process.
func (d *Dog) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dev == nil {
		return
	}
	d.stop.Store(true)
	<-d.ended
	d.dev.leave()
	d.dev = nil
}

// Contact tells of a proven contact with etcd or the mount, by the moment at
// which it was begun.
func (d *Dog) Contact(issued boottime.Time) { d.rec.touch(issued) }

// Limit ends the feeding at a moment, whatever the contact; the earliest counts.
// Lift takes it back.
func (d *Dog) Limit(until boottime.Time) {
	for {
		have := d.rec.limit.Load()
		if have != 0 && have <= int64(until) || d.rec.limit.CompareAndSwap(have, int64(until)) {
			return
		}
	}
}

// Lift takes the limit back: everything was stopped.
func (d *Dog) Lift() { d.rec.limit.Store(0) }

// State is what there is to publish.
func (d *Dog) State() cluster.Watchdog {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state()
}

func (d *Dog) state() cluster.Watchdog {
	w := time.Duration(d.rec.timeout.Load())
	if w == 0 || d.dev == nil && !d.starved.Load() {
		return cluster.Watchdog{}
	}
	return cluster.Watchdog{Armed: true, Timeout: w, SelfFenceTimeout: time.Duration(d.rec.selfP.Load()), Virtual: d.virtual}
}

// busyPause is the pause between two tries of a device that cannot be taken over yet.
const busyPause = 20 * time.Millisecond

// longestPause bounds the pause between two looks, whatever the time-out: the end of
// the contact is noticed soon, and who waits for the feeder does not wait for long.
const longestPause = time.Second

// feedsPerTimeout is how often the dog is fed within its time-out.
const feedsPerTimeout = 5

func (d *Dog) run(dev *device) {
	d.dev, d.ended = dev, make(chan struct{})
	d.stop.Store(false)
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		d.Log.Debug("the daemon's memory cannot be locked; under pressure of memory it may feed late", zap.Error(err))
	}
	go d.feeder(dev)
}

// feeder feeds on a thread of its own. It touches neither the mount nor a
// driver, takes no lock and allocates nothing until the feeding ends.
func (d *Dog) feeder(dev *device) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(d.ended)
	pause := unix.NsecToTimespec(int64(min(dev.timeout/feedsPerTimeout, longestPause)))
	for !d.stop.Load() {
		if !d.rec.mayFeed(boottime.Now()) {
			d.starve(d.rec.why(boottime.Now()))
			return
		}
		err := dev.feed()
		if now := boottime.Now(); !d.rec.mayFeed(now) {
			// This thread was held up between the look and the feed: the dog has been
			// fed when it must not be.
			d.late.Store(true)
			d.starve(d.rec.why(now))
			return
		}
		if err != nil && !d.failed.Swap(true) {
			d.Log.Error("the watchdog cannot be fed; it resets this machine unless that passes", zap.Error(err))
		}
		left := pause
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &left, nil) // one that is cut short only feeds sooner
	}
}

// starve is the end of the feeding, for good. After a feed that came too late the
// machine is reset at once; else what runs here is given the time until the dog
// bites to be stopped in good order.
func (d *Dog) starve(why string) {
	if d.starved.Swap(true) {
		return
	}
	// One that should have bitten by now (this machine was suspended) does not get more
	// time either.
	w, contact := d.rec.timeout.Load(), d.rec.contact.Load()
	if contact != 0 && int64(boottime.Now())-contact > d.rec.selfP.Load()+w {
		d.late.Store(true)
	}
	late := d.late.Load()
	go func() {
		d.Log.Error("the watchdog is fed no more; it resets this machine", zap.String("reason", why), zap.Duration("within", time.Duration(d.rec.timeout.Load())), zap.Bool("late", late))
		if !late && d.Starved != nil {
			d.Starved(why)
		}
		d.Reset(why)
	}()
}

// Starving tells whether the dog is fed no more.
func (d *Dog) Starving() bool { return d.starved.Load() }

package watchdog

import (
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/shaman-ha/shaman/internal/boottime"
	"golang.org/x/sys/unix"
)

// record is what a process leaves to the next one of the same boot, in RUN_DIR:
// what is armed, and until when it may be fed. It is mapped, so that it is kept
// by one store, without a system call, and survives SIGKILL.
type record struct {
	magic   uint64
	boot    uint64
	timeout atomic.Int64 // W in nanoseconds; 0 = not armed
	selfP   atomic.Int64 // P, SELF_FENCE_TIMEOUT
	contact atomic.Int64 // moment of issue of the last proven contact; 0 = none yet
	limit   atomic.Int64 // no feed after this moment; 0 = no limit
}

const recordMagic = 0x7368616d616e7701 // "shamanw", version 1

// openRecord maps the record, and clears one of another boot.
func openRecord(runDir, bootID string) (*record, error) {
	file := filepath.Join(runDir, "watchdog")
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keep the last contact: %w", err)
	}
	defer f.Close()
	size := int(unsafe.Sizeof(record{}))
	if err := f.Truncate(int64(size)); err != nil {
		return nil, fmt.Errorf("keep the last contact in %s: %w", file, err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", file, err)
	}
	r := (*record)(unsafe.Pointer(&mem[0])) // never unmapped: it lives as long as the process
	h := fnv.New64a()
	_, _ = h.Write([]byte(bootID)) // a hash takes everything
	if boot := h.Sum64(); r.magic != recordMagic || r.boot != boot {
		r.timeout.Store(0)
		r.selfP.Store(0)
		r.contact.Store(0)
		r.limit.Store(0)
		r.magic, r.boot = recordMagic, boot
	}
	return r, nil
}

// mayFeed is the rule: the last contact is at most P old, and no order to stop
// everything has run out of its time.
func (r *record) mayFeed(now boottime.Time) bool {
	contact, limit := r.contact.Load(), r.limit.Load()
	return contact != 0 && int64(now)-contact <= r.selfP.Load() && (limit == 0 || int64(now) <= limit)
}

// why says in words which part of the rule does not hold.
func (r *record) why(now boottime.Time) string {
	if limit := r.limit.Load(); limit != 0 && int64(now) > limit {
		return "everything here had to be stopped within STOP_BUDGET, and that was not done in time"
	}
	if r.contact.Load() == 0 {
		return "there was no contact with etcd or the mount yet"
	}
	return fmt.Sprintf("the last contact with etcd or the mount was %s ago, SELF_FENCE_TIMEOUT is %s",
		now.Sub(boottime.Time(r.contact.Load())).Round(time.Millisecond), time.Duration(r.selfP.Load()))
}

// touch keeps the moment of issue of a contact; the latest counts.
func (r *record) touch(at boottime.Time) {
	for {
		have := r.contact.Load()
		if int64(at) <= have || r.contact.CompareAndSwap(have, int64(at)) {
			return
		}
	}
}

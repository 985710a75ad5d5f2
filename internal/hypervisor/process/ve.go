package process

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"golang.org/x/sys/unix"
)

// ve is a registered VE.
type ve struct {
	turn    chan struct{} // filled while a verb is at work: one at a time
	hurry   atomic.Int32  // stops by force that wait for their turn: a graceful one gives way
	path    string
	run     string // its directory in RUN_DIR
	cmu     sync.Mutex
	conf    conf
	confErr error
	confAt  time.Time
	reading bool
}

func key(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:10])
}

// take waits until no other verb is at work on this VE.
func (v *ve) take(ctx context.Context) error {
	if ctx.Err() == nil {
		select {
		case v.turn <- struct{}{}:
			return nil
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("%w: %w", cluster.ErrCannotAsk, context.Cause(ctx))
}

func (v *ve) release() { <-v.turn }

// running tells whether any process of the VE holds its lock.
func (v *ve) running() (bool, error) {
	f, err := os.Open(filepath.Join(v.run, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%w: %w", cluster.ErrCannotAsk, err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("%w: look at the lock of %s: %w", cluster.ErrCannotAsk, v.path, err)
	}
	return false, nil
}

// cause tells how a VE that does not run came to stop.
func (v *ve) cause() cluster.StopCause {
	data, err := os.ReadFile(filepath.Join(v.run, "exit"))
	if err != nil {
		return cluster.CauseUnknown
	}
	switch strings.TrimSpace(string(data)) {
	case "0", "143": // of itself, or by SIGTERM
		return cluster.CauseStop
	case "":
		return cluster.CauseUnknown
	}
	return cluster.CauseCrash
}

func (v *ve) setConf(c conf, err error) {
	v.cmu.Lock()
	defer v.cmu.Unlock()
	if err == nil {
		v.conf = c
	}
	v.confErr, v.confAt, v.reading = err, time.Now(), false
}

// params returns the definition as it was last read, and has it read anew in
// the background when it is old.
func (v *ve) params() (conf, bool) {
	v.cmu.Lock()
	defer v.cmu.Unlock()
	if time.Since(v.confAt) > confAge && !v.reading {
		v.reading = true
		go func() { v.setConf(readConf(v.path)) }()
	}
	return v.conf, v.conf.command != ""
}

// acquire takes the VE's lock for the processes that are about to be started.
// Somebody who only looks holds it, shared, for a moment; that is not running.
func (v *ve) acquire(ctx context.Context, lock *os.File) (running bool, err error) {
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			if err != nil {
				return false, fmt.Errorf("start %s: %w", v.path, driverkit.Classify(err))
			}
			return false, nil
		}
		if running, err := v.running(); err != nil || running {
			return running, err
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("start %s: %w: %w", v.path, cluster.ErrCannotAsk, context.Cause(ctx))
		case <-time.After(time.Millisecond):
		}
	}
}

// group returns the process group of a running VE; 0 = not known yet.
func (v *ve) group() int {
	data, err := os.ReadFile(filepath.Join(v.run, "pid"))
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || n <= 1 {
		return 0
	}
	return n
}

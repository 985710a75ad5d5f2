package scripts

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// ve is a resource that this node knows.
type ve struct {
	path string
	key  string // of its files in StateDir and RunDir
	kind cluster.Kind
	// unfit says why it cannot be highly available, whatever describe says.
	unfit string

	mu         sync.Mutex
	registered bool
	given      string // the name by enumerate
	conf       conf
	confAt     time.Time // when it was last read from the shared file system
	reading    bool      // it is being read

	desc      description // the last good one
	described bool        // there was a good one
	err       error       // of the last look; nil = desc is true
	began     time.Time   // of the last look
	notBefore time.Time   // a look that began earlier does not count: something was done since
	flight    *flight     // the look that is under way in the background
	stuck     bool        // its last look in the background did not end in time: lists do not wait for it
	hangs     int         // describes that were killed and are not gone
	said      string      // the last complaint: each is logged once
}

// flight is a look in the background. done is closed when its result is there.
type flight struct{ done chan struct{} }

func keyOf(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:10])
}

func newVE(path string, kind cluster.Kind, c conf) *ve {
	return &ve{path: path, key: keyOf(path), kind: kind, conf: c}
}

// changed makes every look so far too old.
func (v *ve) changed() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.notBefore = time.Now()
}

// set takes the result of a look over, unless a later one is there already.
func (v *ve) set(began time.Time, d description, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if began.Before(v.began) {
		return
	}
	v.began, v.err = began, err
	if err == nil {
		v.desc, v.described = d, true
	}
}

func (v *ve) setConf(c conf) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.conf, v.confAt = c, time.Now()
}

func (v *ve) params() (c conf, name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.conf, v.nameLocked()
}

func (v *ve) nameLocked() string {
	if v.given != "" && v.conf["NAME"] == "" {
		return v.given
	}
	return v.conf.name(v.path)
}

func (v *ve) isRegistered() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.registered
}

// fresh tells whether there is a look that began at need or later, and after the
// last change of it.
func (v *ve) fresh(need time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.began.Before(need) && !v.began.Before(v.notBefore) && !v.began.IsZero()
}

// report is the VE as the last look had it, and what that look failed with. A
// VE of which nothing is known counts as protected: who stops all HA VEs must
// not pass it by.
func (v *ve) report() (cluster.VE, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := cluster.VE{Kind: v.kind, Name: v.nameLocked(), Path: v.path, State: cluster.VEUnknown, HA: true}
	if v.described {
		d := v.desc
		out.UUID, out.Memory, out.VCPUs, out.Autostart, out.Unfit = d.uuid, d.memory, d.vcpus, d.autostart, d.unfit
		out.HA = d.ha != "no"
		if d.priority != nil {
			out.Priority = *d.priority
		}
	}
	if v.described && v.err == nil {
		if out.State = v.desc.state; out.State == cluster.VEStopped {
			out.Cause = v.desc.cause
		}
	}
	// The parameter file wins: it is what Configure writes. It was checked when it was read.
	if s := v.conf["HA_ENABLE"]; s != "" {
		out.HA = s == "yes"
	}
	if s := v.conf["PRIORITY"]; s != "" {
		out.Priority, _ = parsePriority(s)
	}
	if s := v.conf["MEMORY"]; s != "" && out.Memory == 0 {
		out.Memory, _ = parseSize(s)
	}
	if s := v.conf["VCPUS"]; s != "" && out.VCPUs == 0 {
		out.VCPUs, _ = parseCount(s)
	}
	if s := v.conf["UUID"]; s != "" && out.UUID == "" {
		out.UUID = s
	}
	if v.unfit != "" {
		out.Unfit = v.unfit
	}
	if !out.HA {
		out.Unfit = "" // nobody asks for it
	}
	out.HA = out.HA && out.Unfit == ""
	return out, v.err
}

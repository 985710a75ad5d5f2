package fencing

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
)

var errNot = errors.New("not applicable")

type silence = func(cluster.NodeID) (from, to boottime.Time, ok bool)

// quiet is a node whose heartbeat has been silent for a while, by reads that go on.
func quiet(long time.Duration) func() silence {
	return func() silence {
		since := boottime.Now().Add(-long)
		return func(cluster.NodeID) (from, to boottime.Time, ok bool) { return since, boottime.Now(), true }
	}
}

func TestWatchdogProves(t *testing.T) {
	wd := cluster.Watchdog{Armed: true, Timeout: 2 * time.Second, SelfFenceTimeout: 2 * time.Second}
	timing := cluster.NewTiming(2*time.Second, 20*time.Millisecond, 0)
	need := cluster.WatchdogProof(wd.SelfFenceTimeout, wd.Timeout, timing.Heartbeat)
	ago := func(d time.Duration) boottime.Time { return boottime.Now().Add(-d) }
	virtual := wd
	virtual.Virtual = true
	blind := func() silence {
		return func(cluster.NodeID) (from, to boottime.Time, ok bool) { return 0, 0, false }
	}
	quietLongAgo := func() silence {
		return func(cluster.NodeID) (from, to boottime.Time, ok bool) {
			return ago(time.Hour), ago(time.Hour - time.Second), true
		}
	}
	const soon = 300 * time.Millisecond
	type fact struct {
		wd      cluster.Watchdog
		lost    time.Duration
		silence func() silence
		beats   bool
		trust   bool
	}
	for name, c := range map[string]struct {
		fact
		waits bool   // not before some time has passed
		err   string // "" = proven
	}{
		"silent for long enough on both channels":  {fact: fact{wd: wd, lost: need, silence: quiet(need)}},
		"the lease ended later than the heartbeat": {fact: fact{wd: wd, lost: need - soon, silence: quiet(time.Hour)}, waits: true},
		"the heartbeat ended later than the lease": {fact: fact{wd: wd, lost: time.Hour, silence: quiet(need - soon)}, waits: true},
		"no watchdog":                                     {fact: fact{lost: time.Hour, silence: quiet(time.Hour)}, err: errNot.Error()},
		"numbers that are none":                           {fact: fact{wd: cluster.Watchdog{Armed: true}, lost: time.Hour, silence: quiet(time.Hour)}, err: errNot.Error()},
		"a virtual machine":                               {fact: fact{wd: virtual, lost: time.Hour, silence: quiet(time.Hour)}, err: errNot.Error()},
		"a virtual machine that is trusted":               {fact: fact{wd: virtual, trust: true, lost: time.Hour, silence: quiet(time.Hour)}},
		"its heartbeat goes on":                           {fact: fact{wd: wd, lost: time.Hour, silence: quiet(0), beats: true}, err: "its heartbeat goes on"},
		"reads fail: no silence, however long ago it was": {fact: fact{wd: wd, lost: time.Hour, silence: blind}, err: "cannot be read"},
		"nothing was read for long: that is no silence":   {fact: fact{wd: wd, lost: time.Hour, silence: quietLongAgo}, err: "context"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := &Watchdog{Silence: c.silence(), Beats: func(cluster.NodeID) bool { return c.beats }, Timing: func() cluster.Timing { return timing }, TrustVirtual: func() bool { return c.trust }, NotApplicable: errNot}
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			if c.err == "context" {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), time.Second)
			}
			defer cancel()
			begin := time.Now()
			evidence, err := f.Prove(ctx, cluster.FenceTarget{Node: "n", Watchdog: c.wd, LostFor: c.lost}, func() error { return nil })
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("Prove: %q, %v; want an error with %q", evidence, err, c.err)
				}
				return
			}
			if err != nil || !strings.Contains(evidence, "no sign of life") {
				t.Fatalf("Prove: %q, %v", evidence, err)
			}
			if took := time.Since(begin); c.waits != (took >= soon/3) {
				t.Errorf("took %s; want it to wait for the later of the two: %v", took, c.waits)
			}
		})
	}
	t.Run("a replaced master proves nothing", func(t *testing.T) {
		f := &Watchdog{Silence: quiet(time.Hour)(), Beats: func(cluster.NodeID) bool { return false }, Timing: func() cluster.Timing { return timing }, TrustVirtual: func() bool { return false }}
		gone := errors.New("not master")
		if _, err := f.Prove(t.Context(), cluster.FenceTarget{Watchdog: wd, LostFor: time.Hour}, func() error { return gone }); !errors.Is(err, gone) {
			t.Errorf("Prove: %v", err)
		}
	})
}

// An agent that says off of a node which goes on beating is not believed.
func TestAgentIsContradicted(t *testing.T) {
	timing := cluster.NewTiming(2*time.Second, 20*time.Millisecond, 0)
	yes, no := func(cluster.NodeID) bool { return true }, func(cluster.NodeID) bool { return false }
	for name, c := range map[string]struct {
		silent, beats func(cluster.NodeID) bool
		lie           bool
	}{
		"it goes on":                  {silent: no, beats: yes, lie: true},
		"it is silent":                {silent: yes, beats: no},
		"its heartbeat is unreadable": {silent: no, beats: no},
		"nobody watches it":           {},
	} {
		t.Run(name, func(t *testing.T) {
			a := &Agent{Silent: c.silent, Beats: c.beats, Timing: func() cluster.Timing { return timing }}
			if err := a.contradicted(t.Context(), "n"); (err != nil) != c.lie {
				t.Errorf("contradicted: %v", err)
			}
		})
	}
}

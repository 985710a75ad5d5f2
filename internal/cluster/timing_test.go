package cluster

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestNewTiming(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		name                 string
		lease, beat, selfish time.Duration
		want                 Timing
	}{
		{"the defaults", 10 * time.Second, 0, 0, Timing{Lease: 10000 * ms, Renew: 2000 * ms, Attempt: 1000 * ms, Margin: 1020 * ms, Heartbeat: 1000 * ms, Probe: 2000 * ms, SelfFence: 10000 * ms}},
		{"the lab", 2 * time.Second, 0, 0, Timing{Lease: 2000 * ms, Renew: 250 * ms, Attempt: 250 * ms, Margin: 200 * ms, Heartbeat: 200 * ms, Probe: 400 * ms, SelfFence: 2000 * ms}},
		{"just below five seconds the tight set holds", 4 * time.Second, 0, 0, Timing{Lease: 4000 * ms, Renew: 500 * ms, Attempt: 500 * ms, Margin: 400 * ms, Heartbeat: 400 * ms, Probe: 800 * ms, SelfFence: 4000 * ms}},
		{"at five seconds renewals are tight, and the margin has its floor", 5 * time.Second, 0, 0, Timing{Lease: 5000 * ms, Renew: 625 * ms, Attempt: 625 * ms, Margin: 510 * ms, Heartbeat: 500 * ms, Probe: 1000 * ms, SelfFence: 5000 * ms}},
		{"above five seconds renewals are a fifth", 6 * time.Second, 0, 0, Timing{Lease: 6000 * ms, Renew: 1200 * ms, Attempt: 1000 * ms, Margin: 612 * ms, Heartbeat: 600 * ms, Probe: 1200 * ms, SelfFence: 6000 * ms}},
		{"what is given is taken", 20 * time.Second, 2 * time.Second, 30 * time.Second, Timing{Lease: 20000 * ms, Renew: 4000 * ms, Attempt: 1000 * ms, Margin: 2040 * ms, Heartbeat: 2000 * ms, Probe: 4000 * ms, SelfFence: 30000 * ms}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, NewTiming(tt.lease, tt.beat, tt.selfish)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDerivedTiming(t *testing.T) {
	d := NewTiming(10*time.Second, 0, 0)
	got := map[string]time.Duration{"silence": d.Silence(), "settle": d.Settle()}
	if diff := cmp.Diff(map[string]time.Duration{"silence": 6 * time.Second, "settle": 15 * time.Second}, got); diff != "" {
		t.Error(diff)
	}
}

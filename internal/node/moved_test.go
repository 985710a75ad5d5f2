package node

import (
	"strings"
	"testing"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// TestAnotherMachineProvesNothing: only a new boot of the same hardware tells
// that what ran in the boot before is over. A copy of a node's disk that boots
// while the node itself is cut off would start its VEs a second time.
func TestAnotherMachineProvesNothing(t *testing.T) {
	tests := []struct {
		name        string
		hw          string // of the machine that was admitted last
		boot        string // of that one
		own         []cluster.Versioned[cluster.Failover]
		sealed      bool
		admitted    cluster.Incarnation
		notQuiesced bool
	}{
		{name: "the same machine", hw: "hw", boot: "before", admitted: 3},
		{name: "the same machine, whose failover is open", hw: "hw", boot: "before", own: []cluster.Versioned[cluster.Failover]{failoverIn(cluster.PhaseFencing, 3, "")}, notQuiesced: true},
		{name: "another one", hw: "other", boot: "before"},
		{name: "another one, whose failover is open", hw: "other", boot: "before", own: []cluster.Versioned[cluster.Failover]{failoverIn(cluster.PhaseFencing, 3, "")}},
		{name: "another one, after the takeover", hw: "other", boot: "before", own: []cluster.Versioned[cluster.Failover]{failoverIn(cluster.PhaseRelocating, 3, "agent")}, sealed: true, admitted: 4},
		{name: "hardware that tells no id", hw: "", boot: "before", admitted: 3},
		{name: "a restart within the boot, with an id that was set anew", hw: "other", boot: "boot", admitted: 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.members.rec.HardwareID, s.members.rec.BootID, s.members.own = tt.hw, tt.boot, tt.own
			if tt.sealed {
				s.mount.present, s.mount.pool = false, 3
			}
			rec, a, err := s.step(t.Context(), s.lease)
			if a.Incarnation != tt.admitted || rec.NotQuiesced != tt.notQuiesced {
				t.Errorf("admitted with incarnation %d (%v), declares not quiesced: %v; want %d, %v", a.Incarnation, err, rec.NotQuiesced, tt.admitted, tt.notQuiesced)
			}
			if tt.hw == "other" && tt.admitted == 0 && (err == nil || !strings.Contains(err.Error(), "HARDWARE_ID=other")) {
				t.Errorf("it says %v; want what ends this", err)
			}
		})
	}
}

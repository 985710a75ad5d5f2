package membership_test

import (
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A crash is another boot after which nobody had said goodbye.
func TestAdmissionCountsCrashes(t *testing.T) {
	l := newLab(t)
	l.join(1)
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	admit := func(boot string) cluster.NodeRecord {
		t.Helper()
		lease := l.lease()
		a := l.admission(1, lease)
		a.BootID, a.At, a.CrashLimit = boot, at, 2
		if _, err := l.members.Admit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		rec := l.record()
		if boot == "stopped" {
			if err := l.members.Stop(t.Context(), self, lease, cluster.StopInactive, "now"); err != nil {
				t.Fatal(err)
			}
		} else if _, err := l.client.Revoke(t.Context(), clientv3.LeaseID(lease)); err != nil {
			t.Fatal(err)
		}
		return rec
	}
	for _, tt := range []struct {
		boot    string
		crashes int
		tokens  int
	}{
		{"first", 0, 0},   // the first admission of all
		{"first", 0, 0},   // a daemon that was restarted, or lost its lease
		{"stopped", 1, 0}, // another boot
		{"third", 1, 0},   // another boot after a clean stop
		{"fourth", 2, 1},
		{"fifth", 3, 1}, // suspended once
	} {
		if rec := admit(tt.boot); len(rec.Crashes) != tt.crashes || len(rec.SuspendTokens) != tt.tokens {
			t.Errorf("boot %s: %d crashes, %d tokens; want %d, %d", tt.boot, len(rec.Crashes), len(rec.SuspendTokens), tt.crashes, tt.tokens)
		}
	}
}

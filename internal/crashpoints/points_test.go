package crashpoints

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/etcd/etcdtest"
)

// fault is one run: what happens at one point.
type fault struct {
	point
	mode  mode
	death death // with the modes that kill
}

func (f fault) String() string {
	out := f.point.String() + " | " + string(f.mode)
	if f.mode == killBefore || f.mode == killAfter {
		out += " | " + string(f.death)
	}
	return out
}

// class is what kind of operation a label names.
func class(label string) string {
	verb, _, _ := strings.Cut(label, " ")
	switch verb {
	case "get", "lookup", "open", "read":
		return "read"
	case "list":
		return "list"
	case "rename", "txn", "put", "delete":
		return "commit"
	case "driver":
		return "driver"
	}
	return "change"
}

// often bounds how often the same operation of the same daemon is a point of its
// own: the first time, and once more for what changes something.
func often(label string) int {
	switch class(label) {
	case "read", "list":
		return 1
	}
	return 2
}

// faultsAt are all that can happen at a point.
func faultsAt(p point) []fault {
	if p.n > often(p.label) {
		return nil
	}
	out := []fault{{p, killBefore, daemonDies}, {p, killAfter, daemonDies}, {p, refuse, ""}, {p, late, ""}}
	switch class(p.label) {
	case "read":
		return out
	case "list":
		return append(out, fault{p, stale, ""})
	case "commit":
		out = append(out, fault{p, twice, ""})
	}
	return append(out, fault{p, lie, ""}, fault{p, killBefore, machineDies}, fault{p, killAfter, machineDies})
}

// setting reads a whole number from the environment, for longer or other runs.
func setting(t *testing.T, name string, normal int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return normal
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestCrashPoints lets everything happen at each point of the story that can happen
// there. However it goes, it ends in the same way, and what must always hold does so
// all along.
//
// There are some 1900, which takes an hour: 'make crashpoints'. Without that every
// sixteenth is run, other ones each day. CRASHPOINTS_EVERY=n runs every n-th,
// CRASHPOINTS_FROM=n begins with the n-th, CRASHPOINTS_ONLY=text runs
// those whose name has that text in it.
func TestCrashPoints(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("crash points need FUSE mounts, which need root, and are expected to run here")
		}
		t.Skip("CRASH POINTS NOT RUN: they need FUSE mounts, and these need root")
	}
	srv := etcdtest.Start(t)
	cl := srv.Client(t)
	// The points are those of two undisturbed runs: what happens side by side does so
	// in either order.
	var faults []fault
	known := map[point]bool{}
	for i := range 2 {
		points, _, err := tell(t, srv.Endpoint(), cl, fmt.Sprintf("calm%d", i), point{}, "", "")
		if err != nil {
			t.Fatalf("undisturbed: %v", err)
		}
		for _, p := range points {
			if !known[p] {
				known[p] = true
				faults = append(faults, faultsAt(p)...)
			}
		}
	}
	all := len(faults)
	if only := os.Getenv("CRASHPOINTS_ONLY"); only != "" {
		faults = slices.DeleteFunc(faults, func(f fault) bool { return !strings.Contains(f.String(), only) })
	} else {
		every := setting(t, "CRASHPOINTS_EVERY", 16)
		from := setting(t, "CRASHPOINTS_FROM", int(time.Now().Unix()/86400)%every)
		t.Logf("CRASHPOINTS_EVERY=%d CRASHPOINTS_FROM=%d", every, from)
		i := -1
		faults = slices.DeleteFunc(faults, func(fault) bool { i++; return i < from || (i-from)%every != 0 })
	}
	var next, hit atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	missed := []string{}
	begin := time.Now()
	for range setting(t, "CRASHPOINTS_PARALLEL", 6) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(faults) || t.Failed() {
					return
				}
				f := faults[i]
				_, reached, err := tell(t, srv.Endpoint(), cl, fmt.Sprintf("c%d", i), f.point, f.mode, f.death)
				switch {
				case err != nil:
					t.Errorf("%s:\n%v", f, err)
				case reached:
					hit.Add(1)
				default:
					mu.Lock()
					missed = append(missed, f.String())
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d points, at which %d faults can happen; %d were tried in %s: %d happened, %d runs went another way",
		len(known), all, len(faults), time.Since(begin).Round(time.Second), hit.Load(), len(missed))
	for _, m := range missed {
		t.Log("not reached: ", m)
	}
}

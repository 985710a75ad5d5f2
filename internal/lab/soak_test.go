package lab_test

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/lab"
)

// setting reads a whole number from the environment, for longer runs by hand.
func setting(t *testing.T, name string, normal uint64) uint64 {
	t.Helper()
	v := os.Getenv(name)
	if v == "" || v == "0" {
		return normal
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestRandomPowerCuts kills and starts random nodes, at random moments of
// whatever is under way, and proves both promises after each of them. A few runs
// here; 'make soak RUNS=200' for many. A failed run is repeated with its seed,
// though not to the microsecond: the cluster itself is real.
func TestRandomPowerCuts(t *testing.T) {
	runs, seed := setting(t, "SHAMAN_SOAK_RUNS", 12), setting(t, "SHAMAN_SOAK_SEED", uint64(time.Now().UnixNano()))
	t.Logf("seed %d, %d runs", seed, runs)
	rnd := rand.New(rand.NewPCG(seed, 0))
	c := start(t, func(o *lab.Options) { o.StoppedVEs = 2 })
	var times []time.Duration
	for run := range int(runs) {
		var off []lab.Node
		for _, n := range c.Nodes {
			if c.Power(n) == lab.Off {
				off = append(off, n)
			}
		}
		n := c.Nodes[rnd.IntN(len(c.Nodes))]
		switch {
		case len(off) > 0 && (len(off) == len(c.Nodes)-1 || rnd.IntN(2) == 0):
			n = off[rnd.IntN(len(off))]
			t.Logf("run %d: start %s", run, n.Name)
			c.must(c.Start(n))
		case c.Power(n) == lab.Off:
			continue
		default:
			t.Logf("run %d: cut the power of %s", run, n.Name)
			c.must(c.Kill(n))
		}
		if rnd.IntN(3) > 0 {
			// Let everything come to rest, as it can: with two of three nodes off
			// the brake holds, by design, until one of them is back.
			begin := time.Now()
			if len(off) == 0 {
				c.waitRunning()
				times = append(times, time.Since(begin))
			}
		} else {
			time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond) // or go on in the middle of it
		}
		c.check()
		if t.Failed() {
			t.FailNow()
		}
	}
	for _, n := range c.Nodes {
		c.must(c.Start(n))
	}
	c.waitActive()
	c.waitRunning()
	slices.Sort(times)
	if len(times) > 0 {
		t.Logf("back after a power cut: median %s, worst %s, of %d", times[len(times)/2].Round(10*time.Millisecond), times[len(times)-1].Round(10*time.Millisecond), len(times))
	}
}

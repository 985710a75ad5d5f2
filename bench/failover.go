package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sys/unix"
)

// size is one failover: how many nodes there are, and how many VEs the dead one has.
type size struct{ nodes, ves int }

// targets are the promises of design section 14, from the proof to the last start.
var targets = map[int]time.Duration{100: 200 * time.Millisecond, 1_000: time.Second, 10_000: 8 * time.Second}

// maxRatio is the promise about the raw cost of the same work.
const maxRatio = 2

// watch remembers when the steps of a failover happened, on whatever node.
type watch struct {
	mu    sync.Mutex
	first map[string]time.Time
	last  map[string]time.Time
	count map[string]int
	ended chan struct{} // closed with the failover
}

func newWatch() *watch {
	return &watch{first: map[string]time.Time{}, last: map[string]time.Time{}, count: map[string]int{}, ended: make(chan struct{})}
}

// at is what the daemons call before and after each step.
func (w *watch) at(label string) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count[label] == 0 {
		w.first[label] = now
	}
	w.last[label] = now
	w.count[label]++
	if label == "finish:after" && w.count[label] == 1 {
		close(w.ended)
	}
}

// timeline is when each phase of one failover was over, counted from its proof.
type timeline struct {
	seal, dispatching, dispatched, firstStart, lastStart, done, cleared time.Duration
	sends                                                               int // how often the master dispatched
	raw                                                                 raw
}

func (t timeline) ratio() float64 {
	return t.lastStart.Seconds() / t.raw.toStart().Seconds()
}

func (t timeline) ratioAll() float64 {
	return t.cleared.Seconds() / t.raw.all().Seconds()
}

func benchFailover(ctx context.Context, o options) error {
	fmt.Println("\nFailover overhead: seconds from the recorded proof; a driver that starts in no time, one etcd member with fsync, all in one process.")
	fmt.Println("Raw is the same renames (two directory fsyncs per 200) and etcd transactions (100 operations, 4 at once) without shaman, in the same run.")
	fmt.Println("dispatch: the first action is sent; done: recorded as done; cleared: the last action is deleted; sends: how often the master sent actions.")
	fmt.Println("start/raw: last start against raw renames and etcd; cleared/raw: everything against everything. Raw work has the machine for itself, so below some hundred VEs it says little.")
	for _, s := range o.sizes {
		var ts []timeline
		for range o.runs {
			t, err := failover(ctx, o, s, len(ts))
			if err != nil {
				return fmt.Errorf("%d VEs on one of %d nodes: %w", s.ves, s.nodes, err)
			}
			ts = append(ts, t)
		}
		report(s, ts)
	}
	return nil
}

func report(s size, ts []timeline) {
	columns := []struct {
		name string
		of   func(timeline) time.Duration
	}{
		{"sealed", func(t timeline) time.Duration { return t.seal }},
		{"dispatch", func(t timeline) time.Duration { return t.dispatching }},
		{"dispatched", func(t timeline) time.Duration { return t.dispatched }},
		{"first start", func(t timeline) time.Duration { return t.firstStart }},
		{"last start", func(t timeline) time.Duration { return t.lastStart }},
		{"done", func(t timeline) time.Duration { return t.done }},
		{"cleared", func(t timeline) time.Duration { return t.cleared }},
		{"raw renames", func(t timeline) time.Duration { return t.raw.renames }},
		{"raw etcd", func(t timeline) time.Duration { return t.raw.dispatch + t.raw.marks + t.raw.outcomes }},
		{"raw deletes", func(t timeline) time.Duration { return t.raw.deletes }},
	}
	rows := [][]string{{""}, {"median"}, {"worst"}}
	for _, c := range columns {
		var ds []time.Duration
		for _, t := range ts {
			ds = append(ds, c.of(t))
		}
		rows[0] = append(rows[0], c.name)
		rows[1] = append(rows[1], seconds(median(ds)))
		rows[2] = append(rows[2], seconds(worst(ds)))
	}
	var sends []int
	for _, t := range ts {
		sends = append(sends, t.sends)
	}
	slices.Sort(sends)
	rows[0] = append(rows[0], "sends")
	rows[1] = append(rows[1], fmt.Sprint(sends[len(sends)/2]))
	rows[2] = append(rows[2], fmt.Sprint(sends[len(sends)-1]))
	var start, all []time.Duration // ratios, as if they were seconds
	for _, t := range ts {
		start = append(start, time.Duration(t.ratio()*float64(time.Second)))
		all = append(all, time.Duration(t.ratioAll()*float64(time.Second)))
	}
	for i, f := range []func([]time.Duration) time.Duration{nil, median, worst} {
		if f == nil {
			rows[i] = append(rows[i], "start/raw", "cleared/raw")
			continue
		}
		rows[i] = append(rows[i], fmt.Sprintf("%.2f", f(start).Seconds()), fmt.Sprintf("%.2f", f(all).Seconds()))
	}
	want := "no target"
	if t, ok := targets[s.ves]; ok {
		want = fmt.Sprintf("target: last start %s, ratio %d", seconds(t), maxRatio)
	}
	table(fmt.Sprintf("%d VEs on the dead one of %d nodes (%s)", s.ves, s.nodes, want), rows)
}

// failover measures one, in a cluster of its own.
func failover(ctx context.Context, o options, s size, run int) (t timeline, err error) {
	st, err := newSite(o.dir)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, st.close()) }()
	w := newWatch()
	members, err := st.start(ctx, s.nodes, o.lock, w.at)
	defer func() {
		for _, m := range members {
			if m != nil {
				err = errors.Join(err, m.stop())
			}
		}
	}()
	if err != nil {
		return t, err
	}
	master, err := st.master(ctx)
	if err != nil {
		return t, err
	}
	victim := members[len(members)-1]
	if victim.id == master {
		victim = members[0]
	}
	if err := st.fill(victim.id, s.ves); err != nil {
		return t, err
	}
	stopProfile, err := profile(o.profile, s, run)
	if err != nil {
		return t, err
	}
	defer stopProfile()
	if err := victim.stop(); err != nil {
		return t, err
	}
	for i, m := range members {
		if m == victim {
			members[i] = nil
		}
	}
	select {
	case <-w.ended:
	case <-ctx.Done():
		return t, context.Cause(ctx)
	case <-time.After(5 * time.Minute):
		return t, errors.New("the failover did not end within 5 minutes")
	}
	err = until(ctx, time.Minute, "all actions are cleared away", func() (bool, error) {
		n, err := st.count(ctx, st.keys.Actions())
		return n == 0, err
	})
	if err != nil {
		return t, err
	}
	cleared := time.Now()
	stopProfile()
	for i, m := range members {
		if m != nil {
			err = errors.Join(err, m.stop())
			members[i] = nil
		}
	}
	if err != nil {
		return t, err
	}
	if t, err = w.timeline(s.ves, cleared); err != nil {
		return t, err
	}
	t.raw, err = st.rawCost(ctx, s, victim.id)
	return t, err
}

func (w *watch) timeline(ves int, cleared time.Time) (timeline, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.count["start:after"]; n != ves {
		return timeline{}, fmt.Errorf("%d VEs were started, want %d", n, ves)
	}
	proof := w.first["proof:after"]
	return timeline{
		seal: w.first["sealed:after"].Sub(proof), dispatching: w.first["dispatch:before"].Sub(proof), dispatched: w.last["dispatch:after"].Sub(proof),
		firstStart: w.first["start:after"].Sub(proof), lastStart: w.last["start:after"].Sub(proof),
		done: w.first["finish:after"].Sub(proof), cleared: cleared.Sub(proof), sends: w.count["dispatch:before"],
	}, nil
}

// fill puts resources into a repository as if they had lain there for long.
func (s *site) fill(id cluster.NodeID, ves int) error {
	dir := s.repository(id)
	for i := range ves {
		name := veName(i)
		data := fmt.Sprintf("%s\nSTATE=running\nMEMORY=%d\nLAST_NODE=%s\n", filepath.Join("/ve", name), veMemory, id)
		if err := os.WriteFile(filepath.Join(dir, "ct-"+name), []byte(data), 0o644); err != nil {
			return fmt.Errorf("fill the repository of %s: %w", id, err)
		}
	}
	return flush(dir)
}

func veName(i int) string { return fmt.Sprintf("ve%05d", i) }

// flush writes everything to disk, so that it is not done while something is measured.
func flush(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("flush %s: %w", dir, err)
	}
	err = unix.Syncfs(int(d.Fd()))
	return errors.Join(err, d.Close())
}

// profile starts a CPU profile; the function it returns ends it, once.
func profile(prefix string, s size, run int) (stop func(), err error) {
	if prefix == "" {
		return func() {}, nil
	}
	f, err := os.Create(fmt.Sprintf("%s-%dx%d-%d.pprof", prefix, s.nodes, s.ves, run))
	if err != nil {
		return nil, fmt.Errorf("write a profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("write a profile: %w", err), f.Close())
	}
	return sync.OnceFunc(func() {
		pprof.StopCPUProfile()
		_ = f.Close() // a profile that is cut short says so when it is read
	}), nil
}

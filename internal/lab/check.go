package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/resources"
	"golang.org/x/sys/unix"
)

// Life is one life of one VE, by its own log.
type Life struct {
	VE          string
	Node        string
	PID         int
	First, Last time.Duration // on CLOCK_MONOTONIC
	Started     time.Time
	Stopped     bool // by itself
}

// Lives reads a VE's log. A line that the end of its writer cut short does not count.
func (l *Lab) Lives(id string) ([]Life, error) {
	f, err := os.Open(l.VELog(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the log of %s: %w", id, err)
	}
	defer f.Close()
	var runs []Life
	at := map[string]int{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		w := strings.Fields(sc.Text())
		if len(w) != 5 {
			continue
		}
		mono, err1 := strconv.ParseInt(w[0], 10, 64)
		unixNS, err2 := strconv.ParseInt(w[1], 10, 64)
		pid, err3 := strconv.Atoi(w[3])
		if errors.Join(err1, err2, err3) != nil {
			continue
		}
		key := w[2] + "/" + w[3]
		i, seen := at[key]
		if !seen || w[4] == "start" {
			i = len(runs)
			at[key] = i
			runs = append(runs, Life{VE: id, Node: w[2], PID: pid, First: time.Duration(mono), Started: time.Unix(0, unixNS)})
		}
		runs[i].Last = max(runs[i].Last, time.Duration(mono))
		runs[i].Stopped = w[4] == "stop"
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read the log of %s: %w", id, err)
	}
	sort.Slice(runs, func(i, j int) bool { return runs[i].First < runs[j].First })
	return runs, nil
}

func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // cannot happen on Linux; nothing counts as fresh then
	}
	return time.Duration(ts.Nano())
}

// fresh is how old the last beat of a running VE may be: ten beats.
const fresh = time.Second

// Where tells on which node a VE runs now, by its own log; "" = nowhere.
func (l *Lab) Where(id string) (string, error) {
	runs, err := l.Lives(id)
	if err != nil || len(runs) == 0 {
		return "", err
	}
	last := slices.MaxFunc(runs, func(a, b Life) int { return int(a.Last - b.Last) })
	if last.Stopped || monotonic()-last.Last > fresh || gone(last.PID) {
		return "", nil
	}
	return last.Node, nil
}

// gone tells whether a process has ended; one that nobody has waited for yet, too.
func gone(pid int) bool { return state(pid) == 0 || state(pid) == 'Z' }

// Homes tells for VEs on which node each of them runs.
func (l *Lab) Homes(ids []string) (map[string]string, error) {
	out := map[string]string{}
	for _, id := range ids {
		n, err := l.Where(id)
		if err != nil {
			return nil, err
		}
		out[id] = n
	}
	return out, nil
}

// AwaitRunning waits until all of these VEs run.
func (l *Lab) AwaitRunning(ctx context.Context, ids []string, timeout time.Duration) error {
	var missing []string
	err := waitFor(fmt.Sprintf("%d VEs to run", len(ids)), timeout, func() (bool, error) {
		if ctx.Err() != nil {
			return true, nil
		}
		homes, err := l.Homes(ids)
		missing = missing[:0]
		for _, id := range ids {
			if homes[id] == "" {
				missing = append(missing, id)
			}
		}
		return len(missing) == 0, err
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w; %d do not run: %s", err, len(missing), strings.Join(missing[:min(10, len(missing))], ", "))
	}
	return nil
}

// Findings is what Check found wrong, and what it looked at.
type Findings struct {
	Problems []string
	VEs      int // resources found, each in exactly one place
	Runs     int // lives of VEs that were compared
	Overlaps int
	Uncaused int // lives whose cause no event tells: the daemon died before it wrote it
}

// Check proves both promises, by the VEs' own logs and by what lies on the
// mount: no VE ran twice at the same time, and each resource is in exactly one
// place. It also holds what the cluster says of itself against that: a failover
// starts nothing before its proof, and a node that has said that everything is
// stopped touches nothing until it is admitted again.
func (l *Lab) Check(ctx context.Context) (Findings, error) {
	var f Findings
	for _, id := range l.VEs {
		runs, err := l.Lives(id)
		if err != nil {
			return f, err
		}
		f.Runs += len(runs)
		for i := range runs {
			for _, later := range runs[i+1:] {
				if later.First >= runs[i].Last {
					continue
				}
				f.Overlaps++
				f.Problems = append(f.Problems, fmt.Sprintf("%s ran twice for %s: on %s (pid %d, until %s) and on %s (pid %d, from %s); see %s",
					id, min(runs[i].Last, later.Last)-later.First, runs[i].Node, runs[i].PID, runs[i].Last, later.Node, later.PID, later.First, l.VELog(id)))
			}
		}
	}
	places, err := l.places(ctx)
	if err != nil {
		return f, err
	}
	for _, id := range l.VEs {
		path := l.VEPath(id)
		switch at := places[path]; len(at) {
		case 1:
			f.VEs++
		case 0:
			f.Problems = append(f.Problems, fmt.Sprintf("%s is lost: no repository, pool directory or broken has a resource for %s", id, path))
		default:
			f.Problems = append(f.Problems, fmt.Sprintf("%s has %d resources: %s", id, len(at), strings.Join(at, ", ")))
		}
	}
	return f, l.checkStory(ctx, &f)
}

// places maps paths to where their resources lie. Between two readings of a
// directory a rename may hide a resource or show it twice, so it is read until
// two censuses agree.
func (l *Lab) places(ctx context.Context) (map[string][]string, error) {
	store := resources.NewStore(l.Mount(), nil)
	var last string
	for range 200 {
		c, err := store.Census(ctx)
		if err != nil {
			return nil, err
		}
		out := map[string][]string{}
		add := func(where string, rs []cluster.Resource) {
			for _, r := range rs {
				out[r.Path] = append(out[r.Path], where+"/"+string(r.ID))
			}
		}
		for n, li := range c.Repositories {
			add("md."+string(n), li.Resources)
		}
		for p, li := range c.Pools {
			add("pool/"+p.String(), li.Resources)
		}
		for _, b := range c.Broken {
			add("broken", []cluster.Resource{b.Resource})
		}
		for _, at := range out {
			sort.Strings(at)
		}
		if now := fmt.Sprint(out); now == last {
			return out, nil
		} else {
			last = now
		}
	}
	return nil, errors.New("the repositories do not come to rest")
}

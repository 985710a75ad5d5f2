package failover

import (
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

const (
	// countEvery bounds how often progress is written into a failover's record.
	countEvery = 500 * time.Millisecond
	// foldAfter is how long a finished action of a failover that goes on keeps its key:
	// for as long, nothing else can be done with its resource. foldAtOnce of them go
	// with one write.
	foldAfter  = 5 * time.Second
	foldAtOnce = 50
)

// decideFinish counts what a sealed failover has come to, and ends it when its
// directory is empty and all outcomes are in.
func decideFinish(o *Observation, f cluster.Versioned[cluster.Failover]) []Step {
	id := f.Value.ID()
	next := f.Value
	was := f.Value.Folded
	next.Started, next.Stopped, next.Broken, next.Waiting = was.Started, was.Stopped, was.Broken, 0
	open := 0
	var swaps, fold []cluster.Swap
	var first time.Time // when the first action was sent
	l, read := o.Pools[id]
	for _, a := range o.Actions {
		if a.Err != nil || a.Value.Failover != id.String() {
			continue
		}
		if at, err := time.Parse(time.RFC3339Nano, a.Value.CreatedAt); err == nil && (first.IsZero() || at.Before(first)) {
			first = at
		}
		old := read && !holds(l, a.Value.Resource) && finishedFor(o, a.Value) > foldAfter && len(fold) < foldAtOnce
		count := func(n, folded *int) {
			if *n++; old {
				*folded++
				fold = append(fold, cluster.Swap{Old: &a})
			}
		}
		switch v := a.Value; {
		case v.State != cluster.ActionDone || v.Outcome == cluster.OutcomeFailed:
			open++
		case v.Verb == cluster.VerbGiveBack && v.Outcome == cluster.OutcomeOK:
			open++ // nobody has claimed it yet
		case v.Outcome == cluster.OutcomeStarted:
			count(&next.Started, &next.Folded.Started)
		case v.Outcome == cluster.OutcomeRegistered && v.Waiting != "":
			next.Waiting++ // its action is what lets it be started when there is room
		case v.Outcome == cluster.OutcomeRegistered:
			count(&next.Stopped, &next.Folded.Stopped)
		case v.Outcome == cluster.OutcomeBroken:
			count(&next.Broken, &next.Folded.Broken)
		}
		swaps = append(swaps, cluster.Swap{Old: &a})
	}
	next.Broken += next.Unreadable
	if next.DispatchAt == "" && !first.IsZero() {
		next.DispatchAt = first.UTC().Format(time.RFC3339Nano)
	}
	if read && len(l.Resources) == 0 && len(l.Unparseable) == 0 && open == 0 {
		next.Phase, next.Reason = cluster.PhaseDone, "every resource has its outcome"
		next.DoneAt = o.Clock.UTC().Format(time.RFC3339Nano)
		return []Step{{Do: ActFinish, Failover: id, Was: f, Now: next, Swaps: swaps, Reason: next.Reason}}
	}
	at, counted := o.CountedAt[id]
	if next != f.Value && (!counted || after(o.Now, at, true, countEvery)) {
		return []Step{{Do: ActUpdate, Failover: id, Was: f, Now: next, Swaps: fold, Reason: "progress"}}
	}
	return nil
}

// finishedFor is how long ago an action was answered; 0 if it was not.
func finishedFor(o *Observation, v cluster.Action) time.Duration {
	at, err := time.Parse(time.RFC3339Nano, v.DoneAt)
	if v.State != cluster.ActionDone || err != nil {
		return 0
	}
	return o.Clock.Sub(at)
}

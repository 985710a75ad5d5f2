package failover

import (
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// countEvery bounds how often progress is written into a failover's record.
const countEvery = 500 * time.Millisecond

// decideFinish counts what a sealed failover has come to, and ends it when its
// directory is empty and all outcomes are in.
func decideFinish(o *Observation, f cluster.Versioned[cluster.Failover]) []Step {
	id := f.Value.ID()
	next := f.Value
	next.Started, next.Stopped, next.Broken, next.Waiting = 0, 0, 0, 0
	open := 0
	var swaps []cluster.Swap
	var first time.Time // when the first action was sent
	for _, a := range o.Actions {
		if a.Err != nil || a.Value.Failover != id.String() {
			continue
		}
		if at, err := time.Parse(time.RFC3339Nano, a.Value.CreatedAt); err == nil && (first.IsZero() || at.Before(first)) {
			first = at
		}
		switch v := a.Value; {
		case v.State != cluster.ActionDone || v.Outcome == cluster.OutcomeFailed:
			open++
		case v.Verb == cluster.VerbGiveBack && v.Outcome == cluster.OutcomeOK:
			open++ // nobody has claimed it yet

		case v.Outcome == cluster.OutcomeStarted:
			next.Started++
		case v.Outcome == cluster.OutcomeRegistered && v.Waiting != "":
			next.Waiting++
		case v.Outcome == cluster.OutcomeRegistered:
			next.Stopped++
		case v.Outcome == cluster.OutcomeBroken:
			next.Broken++
		}
		swaps = append(swaps, cluster.Swap{Old: &a})
	}
	next.Broken += next.Unreadable
	if next.DispatchAt == "" && !first.IsZero() {
		next.DispatchAt = first.UTC().Format(time.RFC3339Nano)
	}
	l, read := o.Pools[id]
	if read && len(l.Resources) == 0 && len(l.Unparseable) == 0 && open == 0 {
		next.Phase, next.Reason = cluster.PhaseDone, "every resource has its outcome"
		next.DoneAt = o.Clock.UTC().Format(time.RFC3339Nano)
		return []Step{{Do: ActFinish, Failover: id, Was: f, Now: next, Swaps: swaps, Reason: next.Reason}}
	}
	at, counted := o.CountedAt[id]
	if next != f.Value && (!counted || after(o.Now, at, true, countEvery)) {
		return []Step{{Do: ActUpdate, Failover: id, Was: f, Now: next, Reason: "progress"}}
	}
	return nil
}

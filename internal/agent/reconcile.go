package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

const (
	// lookEvery bounds the time between two comparisons without a hint, lookPause
	// the time between two with hints.
	lookEvery = 10 * time.Second
	lookPause = 200 * time.Millisecond
	// busyPause is that time while VEs are being brought up: each look reads the
	// whole repository, and lists everything that was claimed a moment ago anew.
	busyPause = time.Second
	// calm is how long nothing was brought up before LAST_NODE is written, and
	// calmBudget to how many resources in one look: each costs two flushes of the
	// mount, which a failover that still goes on somewhere needs for itself.
	calm       = 5 * time.Second
	calmBudget = 50
)

// stopSeen is a stop by guest or operator that may become desired state.
type stopSeen struct{ at boottime.Time }

// reconcileAll keeps the repository true until the context ends.
func (r *session) reconcileAll(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		begin := time.Now()
		again, err := r.reconcile(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			r.Log.Warn("cannot compare the repository with the hypervisor; tried again", zap.Error(err))
		default:
			r.Metrics.Scan.Observe(time.Since(begin).Seconds())
			r.Metrics.LastScan.SetToCurrentTime()
		}
		pause := lookPause
		if r.broughtWithin(busyPause) {
			pause = busyPause
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		var soon <-chan time.Time
		if again {
			soon = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.looks:
		case <-soon:
		case <-tick.C:
		}
	}
}

// reconcile compares once. again asks for a look soon, since something is being
// watched over time.
func (r *session) reconcile(ctx context.Context) (again bool, err error) {
	begun := boottime.Now()
	l, err := r.Repository.List(ctx, false)
	if err != nil {
		return true, err
	}
	ves, unasked := r.ves(ctx)
	var partly *cluster.UnansweredError
	if unasked != nil && (!errors.As(unasked, &partly) || len(partly.Kinds) == len(r.Hypervisor.Kinds())) {
		rep := r.Report()
		rep.Err = unasked
		r.report.Store(&rep)
		return true, unasked
	}
	byPath := make(map[string]cluster.VE, len(ves))
	for _, v := range ves {
		byPath[v.Path] = v
	}
	own := make(map[string]bool, len(l.Resources))
	r.budget = 0
	if !r.broughtWithin(calm) {
		r.budget = calmBudget
	}
	var drift drifts
	for _, res := range l.Resources {
		own[res.Path] = true
		v, here := byPath[res.Path]
		busy := r.isBusy(res.ID)
		if !busy && cluster.Known(unasked, res.Kind) == nil && r.Valid() && (!here || v.State == cluster.VEStopped) {
			moved, err := r.away(ctx, res)
			if err != nil {
				r.Log.Warn("cannot bring a resource up to date", zap.String("resource", string(res.ID)), zap.Error(err))
			}
			if again = again || err != nil || r.given[res.Path] != 0; moved {
				continue
			}
		}
		switch {
		case busy || cluster.Known(unasked, res.Kind) != nil:
		case here:
			r.driftOf(&drift, res, v)
		default:
			r.unknownVE(ctx, &drift, res)
		}
		if !here || busy || !r.Valid() {
			delete(r.stops, res.ID)
			continue
		}
		watch, err := r.settle(ctx, res, v)
		if err != nil {
			r.Log.Warn("cannot bring a resource up to date", zap.String("resource", string(res.ID)), zap.Error(err))
		}
		again = again || watch || err != nil
	}
	more, err := r.strangers(ctx, begun, &drift, ves, own, unasked)
	err = errors.Join(err, r.yield(ctx, l, byPath))
	r.publish(l, ves, byPath, drift, unasked)
	return again || more || unasked != nil, errors.Join(err, unasked)
}

// publish counts for stat, metrics and placement.
func (r *session) publish(l cluster.Listing, ves []cluster.VE, byPath map[string]cluster.VE, drift drifts, unasked error) {
	slices.SortFunc(drift.first, func(x, y cluster.Drift) int {
		return cmp.Or(strings.Compare(string(x.Class), string(y.Class)), strings.Compare(x.Path, y.Path))
	})
	rep := Report{
		Drift: drift.first, Drifts: drift.counts, Err: unasked,
		Usage:       cluster.Usage{Running: map[cluster.Kind]int{}},
		Resources:   map[cluster.Kind]int{},
		Differs:     map[cluster.ResourceID]cluster.VEState{},
		ByStatus:    map[string]int{string(cluster.VERunning): 0, string(cluster.VEStopped): 0, string(cluster.VEUnknown): 0},
		Unparseable: len(l.Unparseable),
	}
	for _, v := range ves {
		if v.State != cluster.VEStopped {
			rep.Usage.Memory += v.Memory
			rep.Usage.Running[v.Kind]++
		}
	}
	waiting := 0
	for _, res := range l.Resources {
		rep.Resources[res.Kind]++
		state := cluster.VEUnknown
		if v, ok := byPath[res.Path]; ok {
			state = v.State
		} else if expected(res) == cluster.VEStopped {
			state = cluster.VEStopped // it need not even be registered
		}
		rep.ByStatus[string(state)]++
		if state != expected(res) && !r.isBusy(res.ID) && len(rep.Differs) < maxDiffers {
			rep.Differs[res.ID] = state
		}
		if res.Waiting != "" {
			waiting++
		}
	}
	for s, n := range rep.ByStatus {
		r.Metrics.Resources.WithLabelValues(s).Set(float64(n))
	}
	for _, c := range cluster.DriftClasses {
		r.Metrics.Drift.WithLabelValues(string(c)).Set(float64(drift.counts[c]))
	}
	r.Metrics.Waiting.Set(float64(waiting))
	r.Metrics.Unparseable.Set(float64(rep.Unparseable))
	for _, u := range l.Unparseable {
		r.Log.Error("a resource file cannot be used; it was left as it is: mend or remove it", zap.String("resource", u.ID), zap.Error(u.Err))
	}
	r.report.Store(&rep)
}

// maxDiffers bounds what a node publishes of VEs that are not as they should be.
const maxDiffers = 500

// expected is the state in which a resource's VE should be now.
func expected(res cluster.Resource) cluster.VEState {
	switch {
	case res.Waiting != "", res.Want == cluster.WantStopped:
		return cluster.VEStopped
	case res.Want == cluster.WantRunning:
		return cluster.VERunning
	}
	return cluster.VEUnknown
}

// settle brings one resource up to date with its VE. STATE becomes stopped only
// by a stop of guest or operator, seen with a valid lease then and LOCK_TIMEOUT
// later: otherwise a node that is on its way down, or fences itself, would
// record that nothing was running.
func (r *session) settle(ctx context.Context, res cluster.Resource, v cluster.VE) (watch bool, err error) {
	next := res
	stopNow := v.State == cluster.VEStopped && v.Cause == cluster.CauseStop && res.Want == cluster.WantRunning && res.Waiting == "" && !r.Bringing()
	seen, was := r.stops[res.ID]
	if !stopNow {
		delete(r.stops, res.ID)
	}
	switch {
	case v.State == cluster.VERunning:
		next.Want, next.Waiting = cluster.WantRunning, ""
		// Of no hurry: rewriting hundreds of files must not slow down a failover.
		switch {
		case res.LastNode == r.Self:
		case r.budget > 0:
			r.budget--
			next.LastNode = r.Self
		default:
			watch = true
		}
	case stopNow && r.asked.lately(res.Path):
		// By us, for a relocation that did not wait so long: nobody wants it stopped.
		next.Waiting = "it was asked to shut down for a relocation, and did so after that had been given up"
	case stopNow && !was:
		r.stops[res.ID] = stopSeen{at: boottime.Now()}
		watch = true
	case stopNow && r.ValidSince() > seen.at:
		r.stops[res.ID] = stopSeen{at: boottime.Now()} // the lease had a gap: begin anew
		watch = true
	case stopNow && boottime.Since(seen.at) < r.Settings().LockTimeout:
		watch = true
	case stopNow:
		next.Want = cluster.WantStopped
		delete(r.stops, res.ID)
	case v.State == cluster.VEStopped && res.Want == cluster.WantUnset && res.Waiting == "" && !r.Bringing():
		next.Want = cluster.WantStopped
	}
	fromVE(&next, v)
	if v.State != cluster.VEStopped {
		if to, known := r.RunsOn(res.Path); known {
			next.Migrating = ""
			if len(to) > 0 {
				next.Migrating = to[0] // or it runs twice, and then nobody may start it a third time either
			}
		}
	}
	if v.Stale || v.Autostart {
		if err := r.refresh(ctx, res, v); err != nil {
			return true, err
		}
	}
	if next == res {
		return watch, nil
	}
	return watch, r.rewrite(ctx, res, next)
}

// away looks after a resource whose VE does not run here. While it runs on another
// node, or comes up there, that node is written down, so that a failover of this one
// asks it first. If it is not there any more, the node failed before it had the
// resource, say, the VE waits to be started like any other that found no room.
func (r *session) away(ctx context.Context, res cluster.Resource) (moved bool, err error) {
	next := res
	on, known := r.RunsOn(res.Path)
	switch {
	case !known:
		return false, nil
	case len(on) > 0:
		delete(r.given, res.Path)
		next.Migrating = on[0]
	case res.Migrating == "":
		delete(r.given, res.Path)
		return false, nil
	case r.given[res.Path] == 0:
		r.given[res.Path] = boottime.Now()
		return true, nil
	case boottime.Since(r.given[res.Path]) < r.Settings().LockTimeout:
		return true, nil // whoever moves it may be about to start it, here or there
	default:
		delete(r.given, res.Path)
		next.Migrating = ""
		if res.Want == cluster.WantRunning && res.Waiting == "" {
			next.Waiting = fmt.Sprintf("it was on node %s, and is not there any more", res.Migrating)
		}
	}
	if next == res {
		return true, nil
	}
	return true, r.rewrite(ctx, res, next)
}

// fromVE takes over the VE's own parameters, which win.
func fromVE(res *cluster.Resource, v cluster.VE) {
	if v.Memory != 0 {
		res.Memory = v.Memory
	}
	if v.VCPUs != 0 {
		res.VCPUs = v.VCPUs
	}
	if v.UUID != "" {
		res.UUID = v.UUID
	}
	res.Priority = v.Priority
}

// refresh saves a definition that was changed for the other nodes, and switches
// the hypervisor's own autostart off again.
func (r *session) refresh(ctx context.Context, res cluster.Resource, v cluster.VE) error {
	release, err := r.gated()
	if err != nil {
		return nil // not now; the next look finds the same
	}
	defer release()
	return r.call(ctx, func(ctx context.Context) error {
		if v.Stale {
			if err := r.Hypervisor.Save(ctx, res.Kind, res.Path); err != nil {
				return fmt.Errorf("save the definition of %s for the other nodes: %w", res.Path, err)
			}
		}
		if v.Autostart {
			if err := r.Hypervisor.Register(ctx, res.Kind, res.Path); err != nil {
				return fmt.Errorf("switch the hypervisor's own autostart of %s off: %w", res.Path, err)
			}
		}
		return nil
	})
}

// gated lets work through, until release is called, while this node may change
// something.
func (r *session) gated() (release func(), err error) {
	release, err = r.Gate.Hold(r.Incarnation)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errClosed, err)
	}
	if !r.Valid() {
		release()
		return nil, errClosed
	}
	return release, nil
}

func (r *session) rewrite(ctx context.Context, res, next cluster.Resource) error {
	release, err := r.gated()
	if err != nil {
		return nil // not now; the next look finds the same
	}
	defer release()
	if next.Want != res.Want {
		r.Log.Info("desired state follows the VE", zap.String("resource", string(res.ID)), zap.String("from", string(res.Want)), zap.String("to", string(next.Want)))
		r.Event(cluster.Event{Kind: "state", Resource: res.ID, Message: "should be " + string(next.Want) + " from now on: the VE was started or stopped on this node"})
	}
	return r.Repository.Update(ctx, r.Incarnation, res.ID, func(now *cluster.Resource) {
		if now.Path != res.Path {
			return // it became another VE's meanwhile
		}
		// Only what this look has changed, and what should be only if nobody else has
		// meanwhile: the look may be a while old.
		change(&now.Want, res.Want, next.Want)
		change(&now.Waiting, res.Waiting, next.Waiting)
		change(&now.Migrating, res.Migrating, next.Migrating)
		change(&now.LastNode, res.LastNode, next.LastNode)
		change(&now.Memory, res.Memory, next.Memory)
		change(&now.VCPUs, res.VCPUs, next.VCPUs)
		change(&now.UUID, res.UUID, next.UUID)
		change(&now.Priority, res.Priority, next.Priority)
	})
}

// change sets a field that was changed from was to next, if it still says what it said.
func change[T comparable](field *T, was, next T) {
	if next != was && *field == was {
		*field = next
	}
}

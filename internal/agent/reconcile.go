package agent

import (
	"context"
	"errors"
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
	l, err := r.Repository.List(ctx, false)
	if err != nil {
		return true, err
	}
	ves, err := r.ves(ctx)
	if err != nil {
		rep := r.Report()
		rep.Err = err
		r.report.Store(&rep)
		return true, err
	}
	byPath := make(map[string]cluster.VE, len(ves))
	for _, v := range ves {
		byPath[v.Path] = v
	}
	r.publish(l, ves, byPath)
	own := make(map[string]bool, len(l.Resources))
	r.budget = 0
	if !r.broughtWithin(calm) {
		r.budget = calmBudget
	}
	for _, res := range l.Resources {
		own[res.Path] = true
		v, here := byPath[res.Path]
		if !here || r.isBusy(res.ID) || !r.Valid() {
			delete(r.stops, res.ID)
			continue
		}
		watch, err := r.settle(ctx, res, v)
		if err != nil {
			r.Log.Warn("cannot bring a resource up to date", zap.String("resource", string(res.ID)), zap.Error(err))
		}
		again = again || watch || err != nil
	}
	more, err := r.adoptMissing(ctx, ves, own)
	return again || more, err
}

// publish counts for stat, metrics and placement.
func (r *session) publish(l cluster.Listing, ves []cluster.VE, byPath map[string]cluster.VE) {
	rep := Report{
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
	if v.Memory != 0 {
		next.Memory = v.Memory
	}
	if v.VCPUs != 0 {
		next.VCPUs = v.VCPUs
	}
	if v.UUID != "" {
		next.UUID = v.UUID
	}
	next.Priority = v.Priority
	if next == res {
		return watch, nil
	}
	return watch, r.rewrite(ctx, res, next)
}

func (r *session) rewrite(ctx context.Context, res, next cluster.Resource) error {
	release, err := r.Gate.Hold(r.Incarnation)
	if err != nil || !r.Valid() {
		if err == nil {
			release()
		}
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
		now.Want, now.Waiting, now.LastNode = next.Want, next.Waiting, next.LastNode
		now.Memory, now.VCPUs, now.UUID, now.Priority = next.Memory, next.VCPUs, next.UUID, next.Priority
	})
}

// adoptMissing makes resources for HA VEs of this node that have none anywhere:
// new ones, and what ran here before the node joined. Two looks at the whole
// mount, some time apart, have to agree.
func (r *session) adoptMissing(ctx context.Context, ves []cluster.VE, own map[string]bool) (again bool, err error) {
	var without []cluster.VE
	present := map[string]bool{}
	for _, v := range ves {
		if v.HA && v.Path != "" && !own[v.Path] && !r.Ignored(v.Path) {
			without = append(without, v)
			present[v.Path] = true
		}
	}
	for p := range r.since {
		if !present[p] {
			delete(r.since, p)
		}
	}
	if len(without) == 0 || !r.Valid() {
		return false, nil
	}
	all, err := r.Repository.Census(ctx)
	if err != nil {
		return true, err
	}
	known := knownPaths(all)
	for _, v := range without {
		if known[v.Path] {
			delete(r.since, v.Path)
			continue // its resource lies elsewhere: shown, nothing moves
		}
		if first, seen := r.since[v.Path]; !seen || boottime.Since(first) < time.Second {
			if !seen {
				r.since[v.Path] = boottime.Now()
			}
			again = true
			continue
		}
		if err := r.adopt(ctx, v); err != nil {
			return true, err
		}
	}
	return again, nil
}

func knownPaths(all cluster.Census) map[string]bool {
	known := map[string]bool{}
	for _, l := range all.Repositories {
		for _, res := range l.Resources {
			known[res.Path] = true
		}
	}
	for _, l := range all.Pools {
		for _, res := range l.Resources {
			known[res.Path] = true
		}
	}
	for _, b := range all.Broken {
		known[b.Resource.Path] = true
	}
	return known
}

func (r *session) adopt(ctx context.Context, v cluster.VE) error {
	release, err := r.Gate.Hold(r.Incarnation)
	if err != nil || !r.Valid() {
		if err == nil {
			release()
		}
		return nil // not now
	}
	defer release()
	res := cluster.Resource{
		ID: v.ID(), Path: v.Path, Want: cluster.WantStopped, Memory: v.Memory, VCPUs: v.VCPUs,
		UUID: v.UUID, Priority: v.Priority, LastNode: r.Self,
	}
	if v.State != cluster.VEStopped {
		res.Want = cluster.WantRunning
	}
	err = r.Repository.Create(ctx, r.Incarnation, res)
	if errors.Is(err, cluster.ErrTaken) {
		res.ID = cluster.ResourceID(string(res.ID) + "~" + string(r.Self))
		err = r.Repository.Create(ctx, r.Incarnation, res)
	}
	if err != nil {
		return err
	}
	delete(r.since, v.Path)
	r.Log.Info("a VE is protected from now on", zap.String("resource", string(res.ID)), zap.String("path", v.Path))
	r.Event(cluster.Event{Kind: "added", Resource: res.ID, Message: "found on this node without a resource; protected from now on"})
	return nil
}

// Elsewhere lists the HA VEs that run here without being in the own repository:
// the answer to the question that every opening failover asks.
func (a *Agent) Elsewhere(ctx context.Context) ([]cluster.RunningVE, error) {
	l, err := a.Repository.List(ctx, false)
	if err != nil {
		return nil, err
	}
	ves, err := a.Hypervisor.List(ctx)
	if err != nil {
		return nil, err
	}
	own := make(map[string]bool, len(l.Resources))
	for _, res := range l.Resources {
		own[res.Path] = true
	}
	var out []cluster.RunningVE
	for _, v := range ves {
		if v.HA && v.State != cluster.VEStopped && !own[v.Path] && !a.Ignored(v.Path) {
			out = append(out, cluster.RunningVE{ID: v.ID(), Path: v.Path, UUID: v.UUID})
		}
	}
	return out, nil
}

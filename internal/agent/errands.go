package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// errand carries out an action other than a take, and answers it. Nothing of
// it happens while the gate is closed or the lease not valid.
func (r *session) errand(ctx context.Context, j *job) {
	e := *j.action
	if e.Value.Verb == cluster.VerbLook {
		r.sight(ctx, e)
		return
	}
	if e.Value.Verb == cluster.VerbRuns {
		r.tellRuns(ctx, e)
		return
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		outcome, renamed, err := r.runErrand(ctx, &e)
		switch {
		case ctx.Err() != nil:
			return
		case outcome != "":
			msg := ""
			if err != nil {
				msg = cluster.OneLine(err)
			}
			r.answer(e, outcome, msg, renamed)
			return
		case (e.Value.Adopt || e.Value.Verb == cluster.VerbAdopt) && !errors.Is(err, errHalfDone):
			// The master asks again, if it still is so by then; nobody waits for it here.
			r.answer(e, cluster.OutcomeRefused, cluster.OneLine(err), "")
			return
		case errors.Is(err, errRefused), !errors.Is(err, cluster.ErrHold) && !errors.Is(err, cluster.ErrCannotAsk) && !errors.Is(err, errClosed) && !errors.Is(err, cluster.ErrLocked):
			r.answer(e, failedOutcome(err), cluster.OneLine(err), "")
			return
		case !r.Inbox.Has(e.Value):
			r.setKnown(e.Value, false)
			return
		}
		if sleep(ctx, pause) != nil {
			return
		}
	}
}

// sight answers what this node sees of a probe file on the mount. It moves and
// starts nothing, so it needs neither the gate nor a driver, and what fails is
// told and not tried again: doctor measures this very moment.
func (r *session) sight(ctx context.Context, e cluster.Versioned[cluster.Action]) {
	saw, err := r.Repository.Sight(ctx, e.Value.Path)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		r.answer(e, failedOutcome(err), cluster.OneLine(err), "")
	default:
		e.Value.Saw = &saw
		r.answer(e, cluster.OutcomeOK, "", "")
	}
}

func failedOutcome(err error) cluster.Outcome {
	switch {
	case errors.Is(err, cluster.ErrGone), errors.Is(err, cluster.ErrSealed):
		return cluster.OutcomeGone
	case errors.Is(err, cluster.ErrTaken), errors.Is(err, errRefused):
		return cluster.OutcomeRefused
	}
	return cluster.OutcomeFailed
}

// errRefused marks errors after which nothing was done.
var errRefused = errors.New("refused")

// errHalfDone marks errors after which a part may be done. A hand-over is gone on
// with then: the resource may lie where others take it from, and only the answer
// says to whom it goes.
var errHalfDone = errors.New("not finished")

// runErrand does the work of one verb. An empty outcome leaves it to the error.
func (r *session) runErrand(ctx context.Context, e *cluster.Versioned[cluster.Action]) (cluster.Outcome, cluster.ResourceID, error) {
	a := e.Value
	if a.Verb == cluster.VerbSync || a.Verb == cluster.VerbClean {
		rep, err := r.mend(ctx, a)
		e.Value.Report = rep
		if err != nil {
			return "", "", err
		}
		return cluster.OutcomeOK, "", nil
	}
	if a.Verb == cluster.VerbLeave {
		return r.leave(ctx, a)
	}
	if a.Verb == cluster.VerbStart {
		o, err := r.startErrand(ctx, *e)
		return o, "", err
	}
	done, err := r.alone(ctx, a.Resource)
	if err != nil {
		return "", "", err
	}
	defer done()
	release, err := r.gated()
	if err != nil {
		return "", "", err
	}
	defer release()
	switch a.Verb {
	case cluster.VerbGiveBack:
		as, err := r.giveBack(ctx, a)
		if err != nil {
			return "", "", err
		}
		return cluster.OutcomeOK, as, nil
	case cluster.VerbBreak:
		if err := r.quarantine(ctx, a); err != nil {
			return "", "", err
		}
		return cluster.OutcomeBroken, "", nil
	case cluster.VerbAdd:
		return r.simple(r.add(ctx, a))
	case cluster.VerbSet:
		return r.simple(r.set(ctx, a))
	case cluster.VerbDelete:
		return r.simple(r.remove(ctx, a))
	case cluster.VerbAdopt:
		as, err := r.adopt(ctx, a)
		if err != nil {
			return "", "", err
		}
		return cluster.OutcomeOK, as, nil
	case cluster.VerbRename:
		return r.simple(r.Repository.Rename(ctx, r.Incarnation, a.Resource, a.NewName))
	case cluster.VerbTake, cluster.VerbStart, cluster.VerbLeave, cluster.VerbLook, cluster.VerbRuns, cluster.VerbSync, cluster.VerbClean: // handled elsewhere
	}
	return cluster.OutcomeRefused, "", fmt.Errorf("this version of shaman-monitor does not know the action %q; upgrade this node", a.Verb)
}

func (r *session) simple(err error) (cluster.Outcome, cluster.ResourceID, error) {
	if err != nil {
		return "", "", err
	}
	return cluster.OutcomeOK, "", nil
}

// startErrand starts what lies in the own repository, as an operator asked.
func (r *session) startErrand(ctx context.Context, e cluster.Versioned[cluster.Action]) (cluster.Outcome, error) {
	tries := 1 + r.Settings().StartRetries
	var err error
	for range tries {
		var o cluster.Outcome
		o, err = r.attempt(ctx, &job{id: e.Value.Resource, action: &e, start: true})
		if err == nil || errors.Is(err, cluster.ErrGone) || errors.Is(err, errNotWanted) || ctx.Err() != nil {
			return o, err
		}
		if errors.Is(err, errElsewhere) {
			return cluster.OutcomeRefused, err
		}
	}
	return cluster.OutcomeFailed, err
}

// giveBack lets go of a resource: stopped if asked, proven stopped in any case,
// unregistered, then moved where another node can claim it.
func (r *session) giveBack(ctx context.Context, a cluster.Action) (cluster.ResourceID, error) {
	res, err := r.Repository.Look(ctx, r.Incarnation, a.Resource)
	if errors.Is(err, cluster.ErrGone) {
		return r.gaveBack(ctx, a, err)
	}
	if err != nil {
		return "", err
	}
	running, err := r.runs(ctx, res)
	if err != nil {
		return "", err
	}
	switch {
	case running && a.Adopt:
		return "", fmt.Errorf("%w: %s: %w", errRefused, res.Path, cluster.ErrRunsHere)
	case running && !a.Stop:
		return "", fmt.Errorf("%w: %s runs here; stop it first or use 'shaman relocate %s'", errRefused, res.Path, a.Resource)
	}
	if running {
		r.asked.note(res.Path)
		if err := r.call(ctx, func(ctx context.Context) error { return r.Hypervisor.Stop(ctx, res.Kind, res.Path, false) }); err != nil {
			return "", fmt.Errorf("%w: %s did not shut down: %w; it stays here, and if it shuts down within %s after all, it is started again", errRefused, res.Path, err, askedKept)
		}
	}
	if err := r.call(ctx, func(ctx context.Context) error { return r.Hypervisor.BarrierKind(ctx, res.Kind) }); err != nil {
		return "", err
	}
	still, err := r.runs(ctx, res)
	if err != nil {
		return "", err
	}
	if still {
		return "", fmt.Errorf("%w: %s runs again", errRefused, res.Path)
	}
	as, err := r.letGo(ctx, a, res)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errHalfDone, err)
	}
	r.asked.forget(res.Path)
	return as, nil
}

// letGo moves the resource of a VE that is proven stopped to where others claim it.
func (r *session) letGo(ctx context.Context, a cluster.Action, res cluster.Resource) (cluster.ResourceID, error) {
	if err := r.call(ctx, func(ctx context.Context) error { return r.Hypervisor.Unregister(ctx, res.Kind, res.Path) }); err != nil && !errors.Is(err, cluster.ErrNoVE) {
		return "", err
	}
	if err := r.Repository.Update(ctx, r.Incarnation, a.Resource, func(res *cluster.Resource) {
		res.LastNode, res.Migrating = r.Self, ""
		if a.Stop {
			res.Want = cluster.WantRunning // it is moved, not switched off
		}
	}); err != nil {
		return "", err
	}
	return r.Repository.GiveBack(ctx, r.Incarnation, a.Resource)
}

// runs asks the hypervisor whether a resource's VE runs here; what it does not
// know for certain counts as running.
func (r *session) runs(ctx context.Context, res cluster.Resource) (bool, error) {
	v, here, err := r.ve(ctx, res.Kind, res.Path)
	return here && v.State != cluster.VEStopped, err
}

// ve asks the hypervisor for one VE.
func (r *session) ve(ctx context.Context, kind cluster.Kind, path string) (v cluster.VE, here bool, err error) {
	var ves []cluster.VE
	err = r.call(ctx, func(ctx context.Context) error {
		ves, err = r.Hypervisor.ListKind(ctx, kind)
		return err
	})
	if err != nil {
		return v, false, err
	}
	for _, v := range ves {
		if v.Path == path {
			return v, true, nil
		}
	}
	return v, false, nil
}

// listWithin bounds how long one driver that hangs keeps the others' VEs from
// being looked after.
const listWithin = 15 * time.Second

func (r *session) ves(ctx context.Context) ([]cluster.VE, error) {
	ctx, cancel := context.WithTimeout(ctx, min(listWithin, r.Settings().ActionTimeout))
	defer cancel()
	return r.Hypervisor.List(ctx)
}

// quarantine proves a VE stopped, forgets it here and moves its resource to broken.
func (r *session) quarantine(ctx context.Context, a cluster.Action) error {
	res, err := r.Repository.Look(ctx, r.Incarnation, a.Resource)
	if errors.Is(err, cluster.ErrGone) {
		return r.quarantined(ctx, a, err)
	}
	if err != nil {
		return err
	}
	if err := r.forceStop(ctx, &job{id: a.Resource, kind: res.Kind, path: res.Path}); err != nil {
		return err
	}
	if err := r.call(ctx, func(ctx context.Context) error { return r.Hypervisor.Unregister(ctx, res.Kind, res.Path) }); err != nil && !errors.Is(err, cluster.ErrNoVE) {
		return err
	}
	return r.Repository.MarkBroken(ctx, r.Incarnation, a.Resource, cluster.BrokenReason{
		Node: r.Self, Operation: a.Operation, Error: a.Reason, Attempts: a.Attempts, Time: time.Now().UTC().Format(time.RFC3339),
	})
}

// gaveBack finds what an earlier process of this node gave back, which died
// before its answer; gone is returned if there is no such thing.
func (r *session) gaveBack(ctx context.Context, a cluster.Action, gone error) (cluster.ResourceID, error) {
	all, err := r.Repository.Census(ctx)
	if err != nil {
		return "", err
	}
	for _, res := range all.Pools[cluster.PoolID{Node: r.Self}].Resources {
		if res.Path == a.Path {
			return res.ID, nil
		}
	}
	return "", gone
}

// quarantined is the same for what an earlier process put into quarantine.
func (r *session) quarantined(ctx context.Context, a cluster.Action, gone error) error {
	all, err := r.Repository.Census(ctx)
	if err != nil {
		return err
	}
	for _, b := range all.Broken {
		if b.Resource.Path == a.Path && b.Reason.Node == r.Self {
			return nil
		}
	}
	return gone
}

// add makes a resource of the VE at a path.
func (r *session) add(ctx context.Context, a cluster.Action) error {
	own, err := r.free(ctx, a.Path, a.Resource)
	if err != nil {
		return err
	}
	if own != nil {
		if !a.Force {
			return fmt.Errorf("%w: %s is the VE at %s", cluster.ErrTaken, own.ID, own.Path)
		}
		return r.set(ctx, a)
	}
	if err := r.call(ctx, func(ctx context.Context) error { return r.Hypervisor.Register(ctx, a.Resource.Kind(), a.Path) }); err != nil {
		return fmt.Errorf("register %s: %w", a.Path, err)
	}
	yes := true
	if err := r.call(ctx, func(ctx context.Context) error {
		return r.Hypervisor.Configure(ctx, a.Resource.Kind(), a.Path, cluster.VEParams{HA: &yes, Priority: a.Priority})
	}); err != nil {
		return fmt.Errorf("switch high availability on for %s: %w", a.Path, err)
	}
	v, here, err := r.ve(ctx, a.Resource.Kind(), a.Path)
	switch {
	case err != nil:
		return err
	case !here:
		return fmt.Errorf("%w: the hypervisor of this node does not know %s, though it was registered", errRefused, a.Path)
	case v.Unfit != "":
		no := false
		err := r.call(ctx, func(ctx context.Context) error {
			return r.Hypervisor.Configure(ctx, a.Resource.Kind(), a.Path, cluster.VEParams{HA: &no})
		})
		return fmt.Errorf("%w: %s cannot be highly available: %s", errors.Join(errRefused, err), a.Path, v.Unfit)
	}
	on, known := r.RunsOn(a.Path)
	if !known {
		return errUnheard
	}
	if len(on) > 0 && v.State == cluster.VEStopped {
		return fmt.Errorf("%w: %s runs on node %s; protect it there", errRefused, a.Path, on[0])
	}
	if a.Priority != nil {
		v.Priority = *a.Priority
	}
	_, err = r.create(ctx, a.Resource, v)
	return err
}

// free makes sure that no other resource, wherever it lies, is the VE at a path:
// two resources of one VE would start it twice. It returns the own resource of
// that id if there is one.
func (r *session) free(ctx context.Context, path string, id cluster.ResourceID) (own *cluster.Resource, err error) {
	all, err := r.Repository.Census(ctx)
	if err != nil {
		return nil, err
	}
	for node, l := range all.Repositories {
		for _, res := range l.Resources {
			switch {
			case node == r.Self && res.ID == id:
				own = &res
			case res.Path == path:
				return nil, fmt.Errorf("%w: resource %s of node %s is this VE already", cluster.ErrTaken, res.ID, node)
			}
		}
	}
	for pool, l := range all.Pools {
		for _, res := range l.Resources {
			if res.Path == path {
				return nil, fmt.Errorf("%w: resource %s in pool directory %s is this VE already; it is on its way to a node", cluster.ErrTaken, res.ID, pool)
			}
		}
	}
	for _, b := range all.Broken {
		if b.Resource.Path == path {
			return nil, fmt.Errorf("%w: broken resource %s is this VE already", cluster.ErrTaken, b.Resource.ID)
		}
	}
	return own, nil
}

// set changes a resource's parameters, and the VE's own where it carries them.
func (r *session) set(ctx context.Context, a cluster.Action) error {
	res, err := r.Repository.Look(ctx, r.Incarnation, a.Resource)
	if err != nil {
		return err
	}
	path := res.Path
	if a.Path != "" && a.Path != res.Path {
		path = a.Path
		if _, err := r.free(ctx, path, a.Resource); err != nil {
			return err
		}
	}
	if a.Priority != nil {
		err := r.call(ctx, func(ctx context.Context) error {
			return r.Hypervisor.Configure(ctx, res.Kind, path, cluster.VEParams{Priority: a.Priority})
		})
		if err != nil && !errors.Is(err, cluster.ErrNoVE) {
			return fmt.Errorf("set the priority of %s: %w", path, err)
		}
	}
	return r.Repository.Update(ctx, r.Incarnation, a.Resource, func(res *cluster.Resource) {
		res.Path = path
		if a.Priority != nil {
			res.Priority = *a.Priority
		}
	})
}

// remove takes a VE out of shaman's protection; it goes on as it is.
func (r *session) remove(ctx context.Context, a cluster.Action) error {
	res, err := r.Repository.Look(ctx, r.Incarnation, a.Resource)
	if err != nil {
		return err
	}
	no := false
	err = r.call(ctx, func(ctx context.Context) error {
		return r.Hypervisor.Configure(ctx, res.Kind, res.Path, cluster.VEParams{HA: &no})
	})
	if err != nil && !errors.Is(err, cluster.ErrNoVE) {
		return fmt.Errorf("switch high availability off for %s: %w", res.Path, err)
	}
	return r.Repository.Delete(ctx, r.Incarnation, a.Resource)
}

// leave ends this node's membership; the answer is written before that.
func (r *session) leave(ctx context.Context, a cluster.Action) (cluster.Outcome, cluster.ResourceID, error) {
	ready := func(ctx context.Context) error { return r.mayLeave(ctx, a.Force) }
	// First without the gate, which must not be closed in vain; what counts is the
	// second look, when nothing can be claimed any more.
	if err := ready(ctx); errors.Is(err, errRefused) {
		return cluster.OutcomeRefused, "", err
	} else if err != nil {
		return "", "", err
	}
	if err := r.Leave(ctx, ready); err != nil {
		return cluster.OutcomeRefused, "", err
	}
	return cluster.OutcomeOK, "", nil
}

// mayLeave tells why this node must not leave now, or nil. What is on its way here
// is nobody's to keep: it is stopped, and its file would go with the repository.
func (r *session) mayLeave(ctx context.Context, keep bool) error {
	coming := 0
	for _, e := range r.Inbox.Pending() {
		if e.Value.Verb == cluster.VerbTake && (e.Value.State == cluster.ActionClaimed || r.isKnown(e.Value)) {
			coming++
		}
	}
	if coming > 0 {
		return fmt.Errorf("%w: %d resources are on their way to this node; wait until they are up, then relocate them or use --keep-ves", errRefused, coming)
	}
	l, err := r.Repository.List(ctx, true)
	if err != nil {
		return err
	}
	if n := len(l.Resources) + len(l.Unparseable); n > 0 && !keep {
		return fmt.Errorf("%w: this node still has %d resources; relocate them first, or use --keep-ves to take them out of high availability", errRefused, n)
	}
	return nil
}

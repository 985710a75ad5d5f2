package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// maxWorkers bounds MAX_PARALLEL_STARTS, errandWorkers the operators' actions
// that are carried out at the same time.
const (
	maxWorkers    = 256
	errandWorkers = 8
)

// work runs the workers until the context ends.
func (r *session) work(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range min(max(r.Settings().ParallelStarts, 1), maxWorkers) {
		g.Go(func() error {
			for {
				j := r.starts.pop(ctx)
				if j == nil {
					return context.Cause(ctx)
				}
				r.noteBrought()
				r.bring(ctx, j)
				r.noteBrought()
				r.setBusy(j.id, -1)
			}
		})
	}
	for range errandWorkers {
		g.Go(func() error {
			for {
				j := r.errands.pop(ctx)
				if j == nil {
					return context.Cause(ctx)
				}
				r.errand(ctx, j)
				r.setBusy(j.action.Value.Resource, -1)
				if j.action.Value.Moves() {
					r.Look()
				}
			}
		})
	}
	return g.Wait()
}

// bring registers and, if it is to run, starts one resource that lies in the
// own repository, and answers.
func (r *session) bring(ctx context.Context, j *job) {
	tries := 1 + r.Settings().StartRetries
	var failure error
	for try := 1; try <= tries; try++ {
		outcome, err := r.attempt(ctx, j)
		if ctx.Err() != nil {
			return // the next admission, or the master, goes on from what is on the mount
		}
		switch {
		case errors.Is(err, errNotWanted):
			r.finish(j, cluster.OutcomeSuperseded, err)
			return
		case errors.Is(err, cluster.ErrGone):
			r.finish(j, cluster.OutcomeGone, err)
			return
		case errors.Is(err, errElsewhere):
			r.waitForWord(ctx, j, err)
			return
		case err == nil:
			r.finish(j, outcome, nil)
			return
		}
		failure = err
		r.Log.Warn("a VE could not be brought up", zap.String("resource", string(j.id)), zap.Int("attempt", try), zap.Int("attempts", tries), zap.Error(err))
	}
	r.finish(j, cluster.OutcomeFailed, failure)
}

// waitForWord leaves a resource waiting whose VE runs on another node by that
// node's word: the master gives it to that node, or starts it once the word is gone.
func (r *session) waitForWord(ctx context.Context, j *job, why error) {
	release, err := r.gated()
	if err == nil {
		err = r.Repository.Update(ctx, r.Incarnation, j.id, func(res *cluster.Resource) { res.Waiting = cluster.OneLine(why) })
		release()
	}
	if err != nil {
		r.Log.Warn("cannot write down why a VE waits; stat shows that it does not run", zap.String("resource", string(j.id)), zap.Error(err))
	}
	if j.action != nil {
		j.waits(cluster.OneLine(why))
	}
	r.finish(j, cluster.OutcomeRegistered, why)
}

// errNotWanted ends a job whose action was withdrawn or belongs to an older admission.
var errNotWanted = errors.New("the action was withdrawn or this node was admitted anew")

func (r *session) finish(j *job, o cluster.Outcome, err error) {
	msg := ""
	if err != nil {
		msg = cluster.OneLine(err)
	}
	if j.boot {
		// A failure stays here: STATE stays running, and stat shows that it does not.
		if derr := r.Boot.Done(j.id); derr != nil {
			r.Log.Warn("cannot take a resource off the list of starts after boot", zap.String("resource", string(j.id)), zap.Error(derr))
		}
		r.Log.Info("start after boot", zap.String("resource", string(j.id)), zap.String("outcome", string(o)), zap.String("error", msg))
		r.Event(cluster.Event{Kind: "boot-" + string(o), Resource: j.id, Message: strings.TrimSpace("start after boot: " + string(o) + " " + msg)})
		r.Look()
		return
	}
	renamed := cluster.ResourceID("")
	if j.id != j.action.Value.Resource {
		renamed = j.id
	}
	r.answer(*j.action, o, msg, renamed)
	r.Look()
}

// attempt is one try. A nil error has an outcome; any other is a failure after
// which the VE is proven stopped. Trouble of storage or hypervisor is no
// failure: it is waited out here.
func (r *session) attempt(ctx context.Context, j *job) (cluster.Outcome, error) {
	lockedSince, held := boottime.Time(0), false
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		outcome, started, err := r.once(ctx, j)
		switch {
		case err == nil:
			return outcome, nil
		case ctx.Err() != nil, errors.Is(err, errNotWanted), errors.Is(err, cluster.ErrGone), errors.Is(err, errElsewhere):
			return "", err
		case errors.Is(err, cluster.ErrLocked):
			if lockedSince == 0 {
				lockedSince = boottime.Now()
			}
			if boottime.Since(lockedSince) > r.Settings().LockRetryTimeout {
				return "", r.provenStopped(ctx, j, err)
			}
		case errors.Is(err, cluster.ErrHold), errors.Is(err, cluster.ErrSealed), errors.Is(err, errClosed):
		case errors.Is(err, cluster.ErrCannotAsk):
			if started {
				// The outcome of the start is not known: stop by force until it is.
				return "", r.provenStopped(ctx, j, err)
			}
		default:
			if !started && r.runsAnyway(ctx, j) {
				// What failed came before any start of ours: the VE is where and how it should be.
				r.Log.Warn("a VE cannot be registered, and runs already; left as it is", zap.String("resource", string(j.id)), zap.Error(err))
				if j.start {
					return cluster.OutcomeStarted, nil
				}
				return cluster.OutcomeRegistered, nil
			}
			return "", r.provenStopped(ctx, j, err)
		}
		if !held {
			held = true
			r.Metrics.Held.Inc()
			defer r.Metrics.Held.Dec()
		}
		r.Log.Warn("bringing a VE up waits", zap.String("resource", string(j.id)), zap.Duration("elapsed", pause), zap.Error(err))
		if err := sleep(ctx, pause); err != nil {
			return "", err
		}
	}
}

// runsAnyway tells whether a job's VE certainly runs here.
func (r *session) runsAnyway(ctx context.Context, j *job) bool {
	v, here, err := r.ve(ctx, j.kind, j.path)
	return err == nil && j.path != "" && here && v.State == cluster.VERunning
}

// errClosed is returned while this node may not start anything.
var errClosed = errors.New("this node may not start anything now: its lease cannot be proven valid or its gate is closed")

// errUnheard is returned while this daemon has not heard yet what others say runs
// on them; it is tried again like everything that errClosed is the class of.
var errUnheard = fmt.Errorf("%w: what other nodes say runs on them is not known yet", errClosed)

// errElsewhere ends a start of a VE that runs on another node. It is no failure of
// the VE: the node that runs it is given the resource.
var errElsewhere = errors.New("not started")

// once checks all conditions of a start at that moment and starts. started
// tells whether the hypervisor was asked to.
func (r *session) once(ctx context.Context, j *job) (o cluster.Outcome, started bool, err error) {
	done, err := r.alone(ctx, j.id)
	if err != nil {
		return "", false, err
	}
	defer done()
	release, err := r.gated()
	if err != nil {
		return "", false, err
	}
	defer release()
	if j.action != nil && !r.Inbox.Has(j.action.Value) {
		return "", false, errNotWanted
	}
	res, err := r.Repository.Look(ctx, r.Incarnation, j.id)
	if err != nil {
		return "", false, err
	}
	if j.boot && (!res.ShouldRun() || res.Waiting != "") {
		return "", false, errNotWanted // it was moved away since the boot, and came back like that
	}
	j.kind, j.path = res.Kind, res.Path
	if j.start && res.Want == cluster.WantUnset {
		// A file without a word takes the driver's, which is "stopped" until the start
		// succeeds: if it fails here, the next node must still know that it should run.
		if err := r.Repository.Update(ctx, r.Incarnation, j.id, func(res *cluster.Resource) { res.Want = cluster.WantRunning }); err != nil {
			return "", false, err
		}
	}
	r.At("register:before")
	if err := r.call(ctx, func(ctx context.Context) error { return r.Hypervisor.Register(ctx, res.Kind, res.Path) }); err != nil {
		return "", false, fmt.Errorf("register %s: %w", res.Path, err)
	}
	r.At("register:after")
	if !j.start {
		return cluster.OutcomeRegistered, false, r.noteWaiting(ctx, j, res)
	}
	if !r.Valid() {
		return "", false, errClosed
	}
	on, known := r.RunsOn(res.Path)
	if !known {
		return "", false, errUnheard
	}
	if len(on) > 0 {
		// A failover looks before it places; this is for the starts of operators and after
		// boots, and for what was started by hand since.
		return "", false, fmt.Errorf("%w: by the word of node %s it runs there, or comes up there (if that node is gone for good: shaman fence confirm)", errElsewhere, on[0])
	}
	if err := r.soleResource(ctx, j, res); err != nil {
		return "", false, err
	}
	r.At("start:before")
	if err := r.call(ctx, func(ctx context.Context) error { return r.Hypervisor.Start(ctx, res.Kind, res.Path) }); err != nil {
		return "", true, fmt.Errorf("start %s: %w", res.Path, err)
	}
	r.At("start:after")
	if res.Waiting != "" || res.Migrating != "" || res.Want == cluster.WantStopped {
		err := r.Repository.Update(ctx, r.Incarnation, j.id, func(res *cluster.Resource) {
			res.Waiting, res.Migrating, res.Want = "", "", cluster.WantRunning
		})
		if err != nil {
			r.Log.Warn("the VE runs, but its resource still says that it waits; the next rescan mends it", zap.String("resource", string(j.id)), zap.Error(err))
		}
	}
	return cluster.OutcomeStarted, true, nil
}

// soleResource makes sure that no other resource is the same VE: the node of that one
// may start it at the same moment, and neither tells the other. The master looks
// itself before it places anything.
func (r *session) soleResource(ctx context.Context, j *job, res cluster.Resource) error {
	if !j.boot && (j.action == nil || j.action.Value.Verb != cluster.VerbStart || j.action.Value.Policy != "") {
		return nil
	}
	r.census.Lock()
	defer r.census.Unlock()
	if r.census.at == 0 || boottime.Since(r.census.at) > lookAge {
		begun := boottime.Now()
		all, err := r.Repository.FreshCensus(ctx)
		if err != nil {
			return err
		}
		r.census.spots, r.census.at = all.Spots(), begun
	}
	if at := r.census.spots.At(res.Path); len(at) > 1 {
		return fmt.Errorf("%w: %d resources are the VE at %s (%s): keep the one of the node where it runs or ran, and 'shaman del' the others", errElsewhere, len(at), res.Path, placesOf(at))
	}
	return nil
}

// noteWaiting writes down why a resource that should run does not, and that it
// should: a file without a word would take the driver's, and wait for nothing.
// One that was given to this node because it runs here, and does not, since the
// power was lost in between, say, or a tool is about to start it, is watched: else
// nobody would start it.
func (r *session) noteWaiting(ctx context.Context, j *job, res cluster.Resource) error {
	if j.action == nil {
		return nil
	}
	why, given := j.action.Value.Waiting, false
	if why == "" && res.ShouldRun() {
		v, here, err := r.ve(ctx, res.Kind, res.Path)
		if err != nil {
			return err
		}
		given = !here || v.State == cluster.VEStopped
	}
	if why == res.Waiting && !given {
		return nil
	}
	return r.Repository.Update(ctx, r.Incarnation, j.id, func(res *cluster.Resource) {
		if given {
			res.Migrating = r.Self // it comes up here, or it did: away looks after it
		}
		res.Waiting = why
		if res.Waiting != "" && res.Want == cluster.WantUnset {
			res.Want = cluster.WantRunning
		}
	})
}

// waits lets the outcome say why the VE waits.
func (j *job) waits(why string) {
	e := *j.action
	e.Value.Waiting = why
	j.action = &e
}

// provenStopped stops a VE by force until it is proven not to run, and returns
// the failure that led here.
func (r *session) provenStopped(ctx context.Context, j *job, failure error) error {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := r.forceStop(ctx, j)
		if err == nil {
			return failure
		}
		r.Log.Warn("the outcome of a start is not known; stopped by force until it is", zap.String("resource", string(j.id)), zap.NamedError("failure", failure), zap.Error(err))
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// forceStop proves a job's VE stopped. It looks at the resource only if nobody
// has yet: what may be running must be stopped also while the mount is away.
func (r *session) forceStop(ctx context.Context, j *job) error {
	if j.path == "" {
		res, err := r.Repository.Look(ctx, r.Incarnation, j.id)
		if err != nil {
			return err
		}
		j.kind, j.path = res.Kind, res.Path
	}
	stop := func(ctx context.Context) error { return r.Hypervisor.Stop(ctx, j.kind, j.path, true) }
	if err := r.call(ctx, stop); err != nil && !errors.Is(err, cluster.ErrNoVE) {
		return err
	}
	if err := r.call(ctx, func(ctx context.Context) error { return r.Hypervisor.BarrierKind(ctx, j.kind) }); err != nil {
		return err
	}
	// A job that the barrier let through may have started it after the first stop.
	if err := r.call(ctx, stop); err != nil && !errors.Is(err, cluster.ErrNoVE) {
		return err
	}
	return nil
}

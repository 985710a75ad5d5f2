package agent

import (
	"context"
	"errors"
	"sort"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

const (
	// intakeEvery is how often actions are looked at without a hint: hints are
	// lost with watches, and work that was held is tried again.
	intakeEvery = time.Second
	// claimBatch is how many resources are claimed with one pair of fsyncs, and
	// how soon the first of many can start.
	claimBatch = 200
)

// intake takes actions in until the context ends.
func (r *session) intake(ctx context.Context) error {
	tick := time.NewTicker(intakeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.hints:
		case <-tick.C:
		}
		r.sweep(ctx)
	}
}

// sweep starts the work for all actions that are not in work yet. One that was
// marked by an earlier process of this incarnation is simply gone on with.
func (r *session) sweep(ctx context.Context) {
	if !r.Valid() {
		return // starts and moves nothing
	}
	var takes, errands []cluster.Versioned[cluster.Action]
	for _, e := range r.Inbox.Pending() {
		switch {
		case r.isKnown(e.Value):
		case e.Value.Inc != r.Incarnation:
			r.supersede(e)
		case e.Value.Verb == cluster.VerbTake:
			takes = append(takes, e)
		default:
			errands = append(errands, e)
		}
	}
	sort.SliceStable(takes, func(i, j int) bool {
		return priority(takes[i].Value) > priority(takes[j].Value)
	})
	for _, e := range r.mark(ctx, errands) {
		r.setBusy(e.Value.Resource, 1)
		r.errands.push(&job{id: e.Value.Resource, action: &e})
	}
	before := r.heldClaims
	r.heldClaims = 0
	for len(takes) > 0 && ctx.Err() == nil {
		n := min(len(takes), claimBatch)
		r.take(ctx, takes[:n])
		takes = takes[n:]
	}
	r.Metrics.Held.Add(float64(r.heldClaims - before))
}

func priority(a cluster.Action) uint32 {
	if a.Priority == nil {
		return 0
	}
	return *a.Priority
}

func (r *session) isKnown(a cluster.Action) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[a.Name()] == a.ID
}

func (r *session) setKnown(a cluster.Action, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known {
		r.known[a.Name()] = a.ID
	} else if r.known[a.Name()] == a.ID {
		delete(r.known, a.Name())
	}
}

// supersede answers an action of an older admission: what it asks for belongs
// to an incarnation that was, or will be, failed over.
func (r *session) supersede(e cluster.Versioned[cluster.Action]) {
	r.setKnown(e.Value, true)
	r.answer(e, cluster.OutcomeSuperseded, "this node was admitted anew since the action was sent", "")
}

// mark tells the master that actions are in work, before anything is touched,
// and returns those that are ours now.
func (r *session) mark(ctx context.Context, es []cluster.Versioned[cluster.Action]) []cluster.Versioned[cluster.Action] {
	var ours, was []cluster.Versioned[cluster.Action]
	var now []cluster.Action
	at := time.Now().UTC().Format(time.RFC3339Nano)
	for _, e := range es {
		if e.Value.State == cluster.ActionClaimed {
			r.setKnown(e.Value, true)
			ours = append(ours, e)
			continue
		}
		a := e.Value
		a.State, a.ClaimedAt = cluster.ActionClaimed, at
		was, now = append(was, e), append(now, a)
	}
	if len(now) == 0 {
		return ours
	}
	r.At("mark:before")
	revs, err := r.Inbox.Write(ctx, r.Lease, was, now)
	if err != nil {
		// Those whose mark took effect are found marked at the next look.
		r.Log.Warn("could not mark actions as in work; tried again", zap.Int("actions", len(now)), zap.Error(err))
	}
	r.At("mark:after")
	for i, rev := range revs {
		if rev == 0 {
			continue
		}
		e := was[i]
		e.Value, e.Mod = now[i], rev
		r.setKnown(e.Value, true)
		ours = append(ours, e)
	}
	return ours
}

// take claims a batch, and queues what follows the claims.
func (r *session) take(ctx context.Context, es []cluster.Versioned[cluster.Action]) {
	byPool := map[string][]cluster.Versioned[cluster.Action]{}
	for _, e := range r.mark(ctx, es) {
		byPool[e.Value.Pool] = append(byPool[e.Value.Pool], e)
	}
	for pool, batch := range byPool {
		r.claim(ctx, pool, batch)
	}
}

func (r *session) claim(ctx context.Context, poolName string, es []cluster.Versioned[cluster.Action]) {
	pool, err := cluster.ParsePoolID(poolName)
	if err != nil {
		for _, e := range es {
			r.answer(e, cluster.OutcomeRefused, err.Error(), "")
		}
		return
	}
	release, err := r.Gate.Hold(r.Incarnation)
	if err != nil || !r.Valid() {
		if err == nil {
			release()
		}
		r.retryLater(es, errors.Join(err, errors.New("this node may not move anything now")))
		return
	}
	ids := make([]cluster.ResourceID, len(es))
	for i, e := range es {
		ids[i] = e.Value.Resource
	}
	r.At("claim-rename:before")
	claimed, err := r.Repository.Claim(ctx, r.Incarnation, pool, ids)
	r.At("claim-rename:after")
	release()
	if err != nil {
		r.retryLater(es, err)
		return
	}
	for i, c := range claimed {
		r.claimed(ctx, es[i], c)
	}
}

func (r *session) claimed(ctx context.Context, e cluster.Versioned[cluster.Action], c cluster.Claimed) {
	id := c.ID
	switch {
	case errors.Is(c.Err, cluster.ErrGone):
		// Perhaps claimed by an earlier process of ours, which died before its outcome.
		found, err := r.earlierClaim(ctx, e.Value)
		if err != nil {
			r.retryLater([]cluster.Versioned[cluster.Action]{e}, err)
			return
		}
		if found == "" {
			r.answer(e, cluster.OutcomeGone, "it is neither in the pool nor here", "")
			return
		}
		id = found
	case c.Err != nil:
		r.retryLater([]cluster.Versioned[cluster.Action]{e}, c.Err)
		return
	}
	r.setBusy(id, 1)
	r.starts.push(&job{id: id, action: &e, start: e.Value.Start, priority: priority(e.Value), reason: e.Value.Reason})
}

// earlierClaim looks in the own repository for a resource that an action names.
func (r *session) earlierClaim(ctx context.Context, a cluster.Action) (cluster.ResourceID, error) {
	ids := []cluster.ResourceID{a.Resource}
	if pool, err := cluster.ParsePoolID(a.Pool); err == nil {
		ids = append(ids, cluster.ResourceID(string(a.Resource)+"~"+string(pool.Node)))
	}
	for _, id := range ids {
		res, err := r.Repository.Look(ctx, r.Incarnation, id)
		switch {
		case errors.Is(err, cluster.ErrGone):
		case err != nil:
			return "", err
		case a.Path == "" || res.Path == a.Path:
			return id, nil
		}
	}
	return "", nil
}

// retryLater leaves actions in work's reach: the next sweep goes on with them.
func (r *session) retryLater(es []cluster.Versioned[cluster.Action], err error) {
	r.Log.Warn("cannot move resources now; held and tried again", zap.Int("resources", len(es)), zap.Error(err))
	r.heldClaims += len(es)
	for _, e := range es {
		r.setKnown(e.Value, false)
	}
}

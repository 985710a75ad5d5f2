package agent

import (
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

// plainKept is how long a VE that is not highly available, and had no resource
// anywhere, is not looked for again: a look reads the whole mount, and who makes
// a resource of a VE asks all nodes whether it runs there.
const plainKept = 30 * time.Second

// strangers looks after the VEs that are here without being in the own
// repository: it tells the others which of them run, and makes resources of
// those that have none anywhere.
func (r *session) strangers(ctx context.Context, begun boottime.Time, drift *drifts, ves []cluster.VE, own map[string]bool, unasked error) (again bool, err error) {
	var those []cluster.VE
	look := false
	for _, v := range ves {
		if v.Path == "" || own[v.Path] {
			continue
		}
		those = append(those, v)
		seen, plain := r.plain[v.Path]
		look = look || v.HA || v.Unfit != "" || v.State != cluster.VEStopped && (!plain || boottime.Since(seen) > plainKept)
	}
	forgetOthers(r.since, those)
	forgetOthers(r.plain, those)
	if !look {
		return r.sayWith(begun, nil, unasked), nil
	}
	all, err := r.Repository.Census(ctx)
	if err != nil {
		return true, err
	}
	spots := all.Spots()
	words := r.wordsOn(those, spots)
	again = r.sayWith(begun, words, unasked)
	// Past all caches; read only if something rests on it, and again when it is old.
	var fresh cluster.Spots
	var taken boottime.Time
	nowhere := func(v cluster.VE) (bool, error) {
		if taken == 0 || boottime.Since(taken) > lookAge {
			all, err := r.Repository.FreshCensus(ctx)
			if err != nil {
				return false, err
			}
			fresh, taken = all.Spots(), boottime.Now()
		}
		return len(fresh.Of(v)) == 0, nil
	}
	var errs []error
	for _, v := range those {
		at := spots.Of(v)
		switch {
		case len(at) > 0:
			delete(r.since, v.Path)
			r.foreign(drift, v, at)
		case v.Unfit != "" && !r.Ignored(v.Path):
			drift.add(cluster.Drift{Class: cluster.DriftMissing, Resource: v.ID(), Path: v.Path, Why: "high availability is on for it, and it cannot be had: " + v.Unfit, Next: "mend that, or switch it off in the VE's own parameters"})
		case !v.HA || r.Ignored(v.Path):
			if v.State != cluster.VEStopped {
				r.plain[v.Path] = boottime.Now()
			}
		default:
			wait, err := r.protect(ctx, drift, v, nowhere)
			if err != nil { // the others are protected all the same
				errs = append(errs, err)
				drift.add(cluster.Drift{Class: cluster.DriftMissing, Resource: v.ID(), Path: v.Path, Why: "it is here with high availability on, and its resource cannot be made: " + cluster.OneLine(err)})
			}
			again = again || wait && err == nil
		}
	}
	return again, errors.Join(errs...)
}

// forgetOthers drops what is remembered of VEs that are not strangers any more.
func forgetOthers(m map[string]boottime.Time, those []cluster.VE) {
	present := make(map[string]bool, len(those))
	for _, v := range those {
		present[v.Path] = true
	}
	for p := range m {
		if !present[p] {
			delete(m, p)
		}
	}
}

// wordsOn is this node's word on VEs that are not in its repository. One that is
// not highly available matters if it has a resource somewhere.
func (a *Agent) wordsOn(those []cluster.VE, spots cluster.Spots) []cluster.RunningVE {
	var out []cluster.RunningVE
	for _, v := range those {
		known := len(spots.Of(v)) > 0
		if v.State != cluster.VEStopped && (known || v.HA && !a.Ignored(v.Path)) {
			out = append(out, cluster.RunningVE{ID: v.ID(), Path: v.Path, UUID: v.UUID, Unsure: v.State != cluster.VERunning})
		}
	}
	slices.SortFunc(out, func(x, y cluster.RunningVE) int { return strings.Compare(x.Path, y.Path) })
	return out
}

// sayWith says what a look has found, unless the words on what could not be asked
// are not known yet: to leave them out would take them back. It asks for another
// look then.
func (r *session) sayWith(begun boottime.Time, words []cluster.RunningVE, unasked error) (again bool) {
	words, known := r.withUnasked(words, unasked)
	if known {
		r.say(begun, words, false)
	}
	return !known
}

// withUnasked adds the last words on what cannot be asked now: it may still be so.
func (a *Agent) withUnasked(words []cluster.RunningVE, unasked error) (all []cluster.RunningVE, known bool) {
	if unasked == nil {
		return words, true
	}
	last, ok := a.Words()
	if !ok {
		if last, ok = a.Said(); !ok { // of the process before this one, or the session
			return nil, false
		}
	}
	for _, w := range last {
		if cluster.Known(unasked, w.ID.Kind()) != nil {
			words = append(words, w)
		}
	}
	slices.SortFunc(words, func(x, y cluster.RunningVE) int { return strings.Compare(x.Path, y.Path) })
	return words, true
}

// spoken is a word, and when the look that it rests on began.
type spoken struct {
	begun boottime.Time
	words []cluster.RunningVE
}

// say keeps the word for whoever publishes it. One that rests on an earlier look
// never takes the place of a later one's, and an answer (which may come after the
// session's end) never is the first.
func (a *Agent) say(begun boottime.Time, words []cluster.RunningVE, answer bool) {
	a.said.Lock()
	old := a.words
	if old == nil && answer {
		a.said.Unlock()
		return
	}
	if old == nil || old.begun <= begun {
		a.words = &spoken{begun, words}
	}
	changed := old == nil || old.begun <= begun && !slices.Equal(old.words, words)
	a.said.Unlock()
	if changed {
		a.Spoke()
	}
}

func (a *Agent) forgetWords() {
	a.said.Lock()
	defer a.said.Unlock()
	a.words = nil
}

// Words returns this node's newest word; ok is false before the first look of a
// session, and while none runs.
func (a *Agent) Words() (words []cluster.RunningVE, ok bool) {
	a.said.Lock()
	defer a.said.Unlock()
	if a.words == nil {
		return nil, false
	}
	return a.words.words, true
}

// Elsewhere makes a fresh word: the answer to the question that every opening
// failover asks. A driver that does not answer within a part of the time leaves
// the rest of it for what the others say; the error tells which types the answer
// says nothing new of then, and the words are good all the same.
func (a *Agent) Elsewhere(ctx context.Context) ([]cluster.RunningVE, error) {
	begun := boottime.Now()
	l, err := a.Repository.List(ctx, false)
	if err != nil {
		return nil, err
	}
	lctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	ves, unasked := a.Hypervisor.List(lctx)
	var partly *cluster.UnansweredError
	if unasked != nil && (!errors.As(unasked, &partly) || len(partly.Kinds) == len(a.Hypervisor.Kinds())) {
		return nil, unasked
	}
	own := make(map[string]bool, len(l.Resources))
	for _, res := range l.Resources {
		own[res.Path] = true
	}
	those := slices.DeleteFunc(ves, func(v cluster.VE) bool { return v.Path == "" || own[v.Path] || v.State == cluster.VEStopped })
	var words []cluster.RunningVE
	if len(those) > 0 {
		all, err := a.Repository.Census(ctx)
		if err != nil {
			return nil, err
		}
		words = a.wordsOn(those, all.Spots())
	}
	words, known := a.withUnasked(words, unasked)
	if !known {
		return nil, fmt.Errorf("%w: what this node has said before is not known yet (%s)", cluster.ErrCannotAsk, cluster.OneLine(unasked))
	}
	a.say(begun, words, true)
	return words, unasked
}

// answerWithin is the drivers' part of the time for an answer.
const answerWithin = time.Second

// foreign notes a VE that is here while its resource lies elsewhere.
func (r *session) foreign(drift *drifts, v cluster.VE, at []cluster.Spot) {
	places := make([]string, len(at))
	for i, s := range at {
		places[i] = s.String()
	}
	d := cluster.Drift{Class: cluster.DriftForeign, Resource: at[0].Resource.ID, Path: v.Path}
	where := strings.Join(places, " and in ")
	switch {
	case v.State == cluster.VERunning:
		d.Why = "it runs here, its resource lies in " + where
		if p := at[0].Resource.Path; p != v.Path {
			d.Next = fmt.Sprintf("its resource has another path, %s: 'shaman set %s --path %s'", p, at[0].Resource.ID, v.Path)
		}
		if len(at) > 1 {
			d.Next = fmt.Sprintf("'shaman del' the wrong one of its %d resources", len(at))
		}
	case v.State == cluster.VEUnknown:
		d.Why = "it may run here (is it migrating?), its resource lies in " + where
	case at[0].Broken():
		d.Why, d.Next = "it is known here, stopped, and its resource is in quarantine", "'shaman cleanup-broken', or start it"
	default:
		d.Why, d.Next = "it is known here, stopped, its resource lies in "+where, "unregister it from this node's hypervisor; it is run where its resource lies"
	}
	drift.add(d)
}

// protect makes a resource of a VE that has none anywhere: a new one, or what
// ran here before the node joined. Two looks at the whole mount, some time apart
// and past its caches, have to agree. wait asks for another look.
func (r *session) protect(ctx context.Context, drift *drifts, v cluster.VE, nowhere func(cluster.VE) (bool, error)) (wait bool, err error) {
	d := cluster.Drift{Class: cluster.DriftMissing, Resource: v.ID(), Path: v.Path, Why: "it is here with high availability on, and has no resource"}
	first, seen := r.since[v.Path]
	if !seen {
		r.since[v.Path] = boottime.Now()
	}
	on, known := r.RunsOn(v.Path)
	switch {
	case !known, !seen, boottime.Since(first) < time.Second:
		return true, nil
	case !r.Valid():
	case len(on) > 0 && v.State == cluster.VEStopped:
		d.Why += fmt.Sprintf("; it runs on node %s, which protects it", on[0])
	case len(on) > 0:
		d.Class, d.Why, d.Next = cluster.DriftDuplicate, fmt.Sprintf("it runs here and, by the word of node %s, there", on[0]), "stop it on one of the two, at once"
	default:
		wait = true
		none, err := nowhere(v)
		if err != nil {
			return true, err
		}
		if !none {
			return true, nil // it has come meanwhile
		}
		if done, err := r.adoptNew(ctx, v); done || err != nil {
			return true, err
		}
	}
	drift.add(d)
	return wait, nil
}

// adoptNew makes the resource, if this node may do so now.
func (r *session) adoptNew(ctx context.Context, v cluster.VE) (done bool, err error) {
	let, err := r.alone(ctx, v.ID())
	if err != nil {
		return false, err
	}
	defer let()
	release, err := r.gated()
	if err != nil {
		return false, nil
	}
	defer release()
	id, err := r.createAside(ctx, v.ID(), v)
	if err != nil {
		return false, err
	}
	delete(r.since, v.Path)
	if v.State == cluster.VEStopped {
		r.made[v.Path] = boottime.Now()
	}
	r.Log.Info("a VE is protected from now on", zap.String("resource", string(id)), zap.String("path", v.Path))
	r.Event(cluster.Event{Kind: "added", Resource: id, Message: "found on this node without a resource; protected from now on"})
	return true, nil
}

// createAside is create under another name if the VE's own is taken by another VE.
func (r *session) createAside(ctx context.Context, id cluster.ResourceID, v cluster.VE) (cluster.ResourceID, error) {
	as, err := r.create(ctx, id, v)
	if errors.Is(err, cluster.ErrTaken) {
		if have, lerr := r.Repository.Look(ctx, r.Incarnation, id); lerr != nil || have.Path == v.Path {
			return id, lerr // somebody else of this node was quicker
		}
		return r.create(ctx, cluster.ResourceID(string(id)+"~"+string(r.Self)), v)
	}
	return as, err
}

// create writes the resource of a VE that is here. Its definition is saved first:
// a resource whose VE no other node could register would be none.
func (r *session) create(ctx context.Context, id cluster.ResourceID, v cluster.VE) (cluster.ResourceID, error) {
	if v.Stale {
		if err := r.call(ctx, func(ctx context.Context) error { return r.Hypervisor.Save(ctx, v.Kind, v.Path) }); err != nil {
			return "", fmt.Errorf("save the definition of %s for the other nodes: %w", v.Path, err)
		}
	}
	res := cluster.Resource{
		ID: id, Path: v.Path, Want: cluster.WantStopped, Memory: v.Memory, VCPUs: v.VCPUs,
		UUID: v.UUID, Priority: v.Priority, LastNode: r.Self,
	}
	if v.State != cluster.VEStopped {
		res.Want = cluster.WantRunning
	}
	if err := r.Repository.Create(ctx, r.Incarnation, res); err != nil {
		return "", err
	}
	return id, nil
}

// madeKept is for how long it is looked whether another node has made a resource
// of the same VE at the same moment.
const madeKept = 10 * time.Second

// yield gives way where two nodes on which a VE is defined, and runs on neither,
// have both made its resource: the one with the lower host id keeps it, unless it
// was started meanwhile.
func (r *session) yield(ctx context.Context, l cluster.Listing, byPath map[string]cluster.VE) error {
	for p, at := range r.made {
		if boottime.Since(at) > madeKept {
			delete(r.made, p)
		}
	}
	if len(r.made) == 0 {
		return nil
	}
	all, err := r.Repository.FreshCensus(ctx)
	if err != nil {
		return err
	}
	spots := all.Spots()
	var errs []error
	for _, res := range l.Resources {
		if _, made := r.made[res.Path]; !made || byPath[res.Path].State != cluster.VEStopped {
			continue
		}
		for _, s := range spots.At(res.Path) {
			mine, theirs := res.Want == cluster.WantRunning, s.Resource.Want == cluster.WantRunning
			if s.Owner == "" || s.Owner == r.Self || mine && !theirs || mine == theirs && s.Owner > r.Self {
				continue
			}
			errs = append(errs, r.giveWay(ctx, res, s.Owner))
			break
		}
	}
	return errors.Join(errs...)
}

func (r *session) giveWay(ctx context.Context, res cluster.Resource, to cluster.NodeID) error {
	let, err := r.alone(ctx, res.ID)
	if err != nil {
		return err
	}
	defer let()
	release, err := r.gated()
	if err != nil {
		return nil // not now; the next look finds the same
	}
	defer release()
	if now, err := r.Repository.Look(ctx, r.Incarnation, res.ID); err != nil || now.Path != res.Path || now.Want != res.Want {
		return err
	}
	if running, err := r.runs(ctx, res); err != nil || running {
		return err
	}
	delete(r.made, res.Path)
	r.Event(cluster.Event{Kind: "yielded", Resource: res.ID, Message: fmt.Sprintf("node %s has made a resource of this VE at the same moment, and keeps it", to)})
	return r.Repository.Delete(ctx, r.Incarnation, res.ID)
}

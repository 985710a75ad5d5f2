package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// tellRuns answers whether a VE runs here. It needs no gate, since it changes
// nothing; a driver that cannot be asked is an error, and never "no".
func (r *session) tellRuns(ctx context.Context, e cluster.Versioned[cluster.Action]) {
	v, here, err := r.ve(ctx, cluster.Kind(e.Value.Operation), e.Value.Path)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		r.answer(e, cluster.OutcomeFailed, cluster.OneLine(err), "")
	case here && v.State != cluster.VEStopped:
		r.answer(e, cluster.OutcomeStarted, "", "")
	default:
		r.answer(e, cluster.OutcomeOK, "", "")
	}
}

// adopt takes the resource of a VE that is here out of quarantine into the own
// repository. It starts nothing. Without Force the VE has to run here. It can be done
// twice.
func (r *session) adopt(ctx context.Context, a cluster.Action) (cluster.ResourceID, error) {
	v, here, err := r.ve(ctx, a.Resource.Kind(), a.Path)
	if err != nil {
		return "", err
	}
	if !here {
		return "", fmt.Errorf("%w: the hypervisor of this node does not know %s", errRefused, a.Path)
	}
	all, err := r.Repository.FreshCensus(ctx)
	if err != nil {
		return "", err
	}
	return r.adoptAt(ctx, a, v, all.Spots(), true)
}

// adoptAt adopts a VE that is here, whose resources lie where spots says. One that is
// to come out of quarantine and is not there is never made anew: somebody else has
// taken it out, and a look can miss what is on its way.
func (r *session) adoptAt(ctx context.Context, a cluster.Action, v cluster.VE, spots cluster.Spots, quarantined bool) (cluster.ResourceID, error) {
	switch {
	case v.State != cluster.VERunning && !a.Force:
		return "", fmt.Errorf("%w: %s does not run here", errRefused, a.Path)
	case v.Unfit != "":
		return "", fmt.Errorf("%w: %s cannot be highly available: %s", errRefused, a.Path, v.Unfit)
	}
	on, known := r.RunsOn(a.Path)
	if !known {
		return "", errUnheard
	}
	if len(on) > 0 {
		return "", fmt.Errorf("%w: by the word of node %s, %s runs there", errRefused, on[0], a.Path)
	}
	var broken cluster.ResourceID
	for _, s := range spots.At(a.Path) {
		switch {
		case s.Owner == r.Self:
			return s.Resource.ID, nil // by an earlier try
		case s.Broken() && broken == "":
			broken = s.Resource.ID
		case s.Broken():
			return "", fmt.Errorf("%w: both %s and %s in quarantine are %s; 'shaman cleanup-broken' tells what to do", errRefused, broken, s.Resource.ID, a.Path)
		default:
			return "", fmt.Errorf("%w: the resource of %s lies in %s", cluster.ErrTaken, a.Path, s)
		}
	}
	if broken == "" && quarantined {
		return "", fmt.Errorf("%w: %s is not in quarantine any more", cluster.ErrGone, a.Resource)
	}
	if broken == "" {
		id, err := r.createAside(ctx, a.Resource, v)
		return r.adopted(id, v, "it had none", err)
	}
	if v.Stale {
		if err := r.call(ctx, func(ctx context.Context) error { return r.Hypervisor.Save(ctx, v.Kind, v.Path) }); err != nil {
			return "", fmt.Errorf("save the definition of %s for the other nodes: %w", v.Path, err)
		}
	}
	id, err := r.Repository.ClaimBroken(ctx, r.Incarnation, broken, a.Path)
	return r.adopted(id, v, "it was in quarantine", err)
}

func (r *session) adopted(id cluster.ResourceID, v cluster.VE, why string, err error) (cluster.ResourceID, error) {
	if err != nil && id == "" {
		return "", err
	}
	r.Event(cluster.Event{Kind: "adopted", Resource: id, Message: fmt.Sprintf("%s belongs to this node from now on: %s, and the VE is here, %s", v.Path, why, v.State)})
	if err != nil && !errors.Is(err, cluster.ErrGone) {
		r.Log.Warn("the reason of a resource that left the quarantine is still there; it does no harm: " + err.Error())
	}
	return id, nil
}

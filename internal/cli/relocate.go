package cli

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/dispatch"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/spf13/cobra"
)

func (a *app) relocateCmd() *cobra.Command {
	return &cobra.Command{Use: "relocate RES [NODE]", Short: "Stop a VE where it is and start it elsewhere", Args: cobra.RangeArgs(1, 2),
		Long: "Stop a VE where it is and start it on NODE, or where the relocation policy chooses. A VE that was stopped is moved without being started. If there is no room for one that runs, nothing is done. It waits until the VE is there.",
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			to := ""
			if len(args) > 1 {
				to = args[1]
			}
			return a.reach(a.relocate(c.Context(), args[0], to))
		}}
}

func (a *app) relocate(ctx context.Context, word, to string) error {
	res, s, inc, err := a.owner(ctx, word)
	if err != nil {
		return err
	}
	act := cluster.Action{
		Verb: cluster.VerbGiveBack, Node: res.Owner, Inc: inc, Resource: res.ID, Path: res.Path, Memory: res.Memory,
		Start: res.Want == cluster.WantRunning, Stop: res.Want == cluster.WantRunning, Reason: "relocated by an operator",
	}
	if to != "" {
		n, err := s.node(to)
		if err != nil {
			return err
		}
		switch {
		case n.ID == res.Owner:
			return fail(exitState, "%s is on node %s already", res.ID, n.Name)
		case n.Liveness != cluster.Active:
			return fail(exitRefused, "node %s is %s; only an Active one can take it", n.Name, n.Status())
		case len(n.Flags) > 0:
			return fail(exitRefused, "node %s is %s; resume it first", n.Name, n.Status())
		}
		act.To = n.ID
	}
	if s.facts.Master == "" {
		return fail(exitReach, "there is no master now, and a relocation needs one; see 'shaman stat'")
	}
	if act.Start {
		if err := roomFor(s, res, act.To); err != nil {
			return err
		}
	}
	sent, err := a.ask(ctx, act)
	if err != nil && (errors.Is(err, dispatch.ErrBusy) || errors.Is(err, dispatch.ErrNodeAway) || !a.handedOn(ctx, sent)) {
		return err
	}
	return a.arrival(ctx, s, res, act)
}

// handedOn tells whether the master has turned an action that was sent into the
// next one already, so that its outcome was not seen: it was a good one then.
func (a *app) handedOn(ctx context.Context, sent cluster.Action) bool {
	if sent.State == cluster.ActionDone || sent.ID == "" {
		return false
	}
	now, ok, err := a.action(ctx, sent)
	switch {
	case err != nil:
		return false
	case ok:
		return now.ID != sent.ID
	}
	c, _, err := a.census(ctx)
	return err == nil && !slices.ContainsFunc(c.Repositories[sent.Node].Resources, func(r cluster.Resource) bool { return r.Path == sent.Path })
}

// arrival waits until a resource that was given back has come to rest.
func (a *app) arrival(ctx context.Context, s *snapshot, res cluster.Resource, act cluster.Action) error {
	deadline := time.Now().Add(a.timeout)
	said := ""
	for time.Now().Before(deadline) {
		c, _, err := a.census(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		place := "is in the pool"
		for _, b := range c.Broken {
			if b.Resource.Path == res.Path {
				return fail(exitFailed, "%s is broken now: %s", b.Resource.ID, brokenWhy(b))
			}
		}
		for owner, l := range c.Repositories {
			for _, r := range l.Resources {
				if r.Path != res.Path {
					continue
				}
				place = "is on node " + s.name(owner)
				busy, err := a.underWay(ctx, owner, r.ID, res.ID) // a claim may have renamed it
				if err != nil {
					return err
				}
				if busy || owner == act.Node && r.Waiting == "" {
					break
				}
				switch {
				case act.Adopt && owner == act.To:
					a.say("%s belongs to node %s now", r.ID, s.name(owner))
					return nil
				case r.Waiting != "":
					return fail(exitPart, "%s is on node %s, stopped, and waits for room: %s", r.ID, s.name(owner), r.Waiting)
				case act.To != "" && owner != act.To:
					return fail(exitPart, "%s runs on node %s: node %s could not take it", r.ID, s.name(owner), s.name(act.To))
				}
				a.say("%s is on node %s%s", r.ID, s.name(owner), map[bool]string{true: " and runs", false: ", stopped"}[act.Start])
				return nil
			}
		}
		if place != said && a.terminal() {
			said = place
			a.say("%s %s …", res.ID, place)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	return fail(exitFailed, "%s has not arrived within %s; it goes on, and 'shaman stat' and 'shaman events --resource %s' tell what becomes of it", res.ID, a.timeout, res.ID)
}

// underWay tells whether a node has an action for a resource, by one of its names,
// that is not finished, or that the master makes another one of in a moment: after
// a failure, or when the resource was given back.
func (a *app) underWay(ctx context.Context, n cluster.NodeID, names ...cluster.ResourceID) (bool, error) {
	for _, id := range names {
		act, ok, err := a.action(ctx, cluster.Action{Node: n, Resource: id})
		if err != nil {
			return false, err
		}
		handedOn := act.Verb == cluster.VerbTake && act.Outcome == cluster.OutcomeFailed || act.Verb == cluster.VerbGiveBack && act.Outcome == cluster.OutcomeOK
		if ok && (act.State != cluster.ActionDone || handedOn) {
			return true, nil
		}
	}
	return false, nil
}

// action reads the action that has the key of act. One that cannot be read counts as none.
func (a *app) action(ctx context.Context, act cluster.Action) (got cluster.Action, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := a.client.Get(ctx, a.keys.Action(act))
	if err != nil || len(resp.Kvs) == 0 {
		return got, false, err
	}
	return got, decode(resp.Kvs[0].Value, &got) == nil, nil
}

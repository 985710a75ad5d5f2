package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// askRuns bounds the wait for one node's answer whether a VE runs there.
const askRuns = 5 * time.Second

// runsNowhereElse asks all other living nodes whether a VE runs there: whoever
// makes a resource of it here will start it here. A node that does not answer is
// told, and does not keep others from being protected.
func (a *app) runsNowhereElse(ctx context.Context, s *snapshot, kind cluster.Kind, path string) error {
	g, gctx := errgroup.WithContext(ctx)
	for id, alive := range s.facts.Alive {
		if id == a.self {
			continue
		}
		g.Go(func() error {
			qctx, cancel := context.WithTimeout(gctx, askRuns)
			defer cancel()
			got, err := a.send(qctx, cluster.Action{Verb: cluster.VerbRuns, Node: id, Inc: alive.Incarnation, Path: path, Operation: string(kind), Reason: "asked before a VE is protected"}, func(cluster.Action) {})
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil || got.Outcome != cluster.OutcomeStarted && got.Outcome != cluster.OutcomeOK:
				a.say("node %s did not say whether %s runs there (%s)", s.name(id), path, strings.TrimSpace(fmt.Sprint(err, " ", got.Error)))
			case got.Outcome == cluster.OutcomeStarted:
				return fail(exitRefused, "%s runs on node %s, or may: protect it there, or stop it first; nothing was done", path, s.name(id))
			}
			return nil
		})
	}
	return g.Wait()
}

// reported is one node's report.
type reported struct {
	node   cluster.NodeID
	name   string
	report cluster.Report
	err    error
}

type reportJSON struct {
	HostID string           `json:"host_id"`
	Name   string           `json:"name"`
	Done   []cluster.Healed `json:"done"`
	Left   []cluster.Healed `json:"left"`
	Count  int              `json:"done_count"`
	Kept   int              `json:"left_count"`
	Error  string           `json:"error"`
}

func (a *app) syncCmd() *cobra.Command {
	var dry, all, force bool
	c := &cobra.Command{Use: "sync", Short: "Make this node's repository true", Args: cobra.NoArgs,
		Long: `Compare this node's repository with its hypervisor, and make it true:
a VE that is here and has no resource gets one; a resource whose VE is gone goes
into quarantine, and one whose VE is only not registered is registered again;
where parameters differ, the VE's own win. A VE that runs here while its resource
lies with another node is given its resource by the master, without this command.
What is ambiguous is left as it is, and said (exit code 5). Nothing is started.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.mend(c.Context(), cluster.Action{Verb: cluster.VerbSync, DryRun: dry, Force: force}, all)
		}}
	c.Flags().BoolVarP(&dry, "dry-run", "D", false, "only say what would be done")
	c.Flags().BoolVar(&all, "all-nodes", false, "on all nodes whose daemons are admitted")
	c.Flags().BoolVar(&force, "force", false, "also if more than 5 resources, or more than 20 % of the node's, would go into quarantine")
	return c
}

func (a *app) cleanupBrokenCmd() *cobra.Command {
	var dry bool
	c := &cobra.Command{Use: "cleanup-broken", Short: "Take what is valid out of quarantine", Args: cobra.NoArgs,
		Long: `Look through the quarantine: what has a VE is registered on this node, and
belongs to it from then on, not started; a resource that has nothing at its path
is deleted. What is ambiguous is left as it is, and said (exit code 5). Mend first
what broke it: 'shaman stat' shows the reasons.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.mend(c.Context(), cluster.Action{Verb: cluster.VerbClean, DryRun: dry}, false)
		}}
	c.Flags().BoolVarP(&dry, "dry-run", "D", false, "only say what would be done")
	return c
}

// mend asks nodes to make the truth, and prints their reports.
func (a *app) mend(ctx context.Context, act cluster.Action, all bool) error {
	if err := a.connect(ctx); err != nil {
		return err
	}
	s := a.look(ctx)
	if err := s.trouble(); err != nil {
		return a.reach(err)
	}
	if _, joined := s.facts.Nodes[a.self]; !joined {
		return cluster.ErrNotJoined
	}
	var on []reported
	for _, n := range s.view.Nodes {
		_, alive := s.facts.Alive[n.ID]
		switch {
		case !all && n.ID != a.self:
		case alive:
			on = append(on, reported{node: n.ID, name: n.Name})
		case !all:
			return fail(exitReach, "this node's daemon is not admitted; see 'shaman stat'")
		default:
			a.say("node %s is %s and is left out", n.Name, n.Status())
		}
	}
	act.Reason = "asked for by an operator"
	g, gctx := errgroup.WithContext(ctx)
	for i := range on {
		g.Go(func() error {
			mine := act
			mine.Node, mine.Inc = on[i].node, s.facts.Alive[on[i].node].Incarnation
			got, err := a.ask(gctx, mine)
			if got.Report != nil {
				on[i].report = *got.Report
			}
			on[i].err = err
			if len(on) > 1 && err == nil {
				a.say("node %s: %d done, %d left", on[i].name, on[i].report.Count, on[i].report.Kept)
			}
			return nil // one node's trouble does not stop the others
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return a.printReports(on, act.DryRun)
}

func (a *app) printReports(on []reported, dry bool) error {
	var errs []error
	left, worked := 0, 0
	out := []reportJSON{}
	for _, r := range on {
		j := reportJSON{HostID: string(r.node), Name: r.name, Done: append([]cluster.Healed{}, r.report.Done...), Left: append([]cluster.Healed{}, r.report.Left...), Count: r.report.Count, Kept: r.report.Kept}
		if r.err != nil {
			j.Error = cluster.OneLine(r.err)
			errs = append(errs, fmt.Errorf("node %s: %w", r.name, r.err))
		} else {
			worked++
		}
		left += r.report.Kept
		out = append(out, j)
	}
	if a.output == "json" {
		if err := a.printJSON(out); err != nil {
			return err
		}
	} else {
		for _, r := range on {
			a.printReport(r, dry, len(on) > 1)
		}
	}
	switch err := errors.Join(errs...); {
	case err != nil && worked > 0:
		return fail(exitPart, "%w", err)
	case err != nil:
		return on[0].err
	case left > 0 && !dry:
		return fail(exitPart, "%d were left as they are; see above", left)
	}
	return nil
}

func (a *app) printReport(r reported, dry, named bool) {
	head := ""
	if named {
		head = r.name + " "
	}
	verb := "done"
	if dry {
		verb = "would be done"
	}
	if r.err == nil && r.report.Count+r.report.Kept == 0 {
		a.print("%snothing to do\n", head)
		return
	}
	for _, h := range r.report.Done {
		a.print("%s%s: %s: %s\n", head, verb, h.Resource, clean(h.What))
	}
	if more := r.report.Count - len(r.report.Done); more > 0 {
		a.print("%s%s: %d more\n", head, verb, more)
	}
	for _, h := range r.report.Left {
		a.print("%sleft: %s\n", head, strings.TrimPrefix(string(h.Resource)+": "+clean(h.What), ": "))
	}
	if more := r.report.Kept - len(r.report.Left); more > 0 {
		a.print("%sleft: %d more\n", head, more)
	}
}

func (a *app) moveFromCmd() *cobra.Command {
	return &cobra.Command{Use: "move-from RES NODE", Short: "Take a resource over from NODE, whose VE was migrated here", Args: cobra.ExactArgs(2),
		Long: `For tools that migrate VEs: take the resource over from NODE to this one. NODE
lets go only once it does not run the VE; until then the resource follows by
itself as soon as the VE runs here, which is no error. Nothing is stopped.`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.moveResource(c.Context(), args[0], args[1], "")
		}}
}

func (a *app) moveToCmd() *cobra.Command {
	return &cobra.Command{Use: "move-to RES NODE", Short: "Give a resource of this node back to NODE", Args: cobra.ExactArgs(2),
		Long: `For tools that migrate VEs: undo move-from. The resource is given to NODE, unless
its VE runs here. Nothing is stopped.`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.moveResource(c.Context(), args[0], "", args[1])
		}}
}

// moveResource moves a resource without its VE: from a node to this one, or from
// this one to a node.
func (a *app) moveResource(ctx context.Context, word, from, to string) error {
	if err := a.connect(ctx); err != nil {
		return err
	}
	res, s, inc, err := a.owner(ctx, word)
	if err != nil {
		return a.reach(err)
	}
	source, target := a.self, a.self
	for _, w := range []struct {
		word string
		id   *cluster.NodeID
	}{{from, &source}, {to, &target}} {
		if w.word == "" {
			continue
		}
		n, err := s.node(w.word)
		if err != nil {
			return err
		}
		*w.id = n.ID
	}
	switch {
	case res.Owner == target:
		a.say("%s belongs to node %s already", res.ID, s.name(target))
		return nil
	case res.Owner != source:
		return fail(exitState, "%s belongs to node %s, not to %s", res.ID, s.name(res.Owner), s.name(source))
	}
	if _, alive := s.facts.Alive[target]; !alive {
		return fail(exitReach, "the daemon of node %s is not admitted; see 'shaman stat'", s.name(target))
	}
	act := cluster.Action{Verb: cluster.VerbGiveBack, Adopt: true, Node: source, Inc: inc, Resource: res.ID, Path: res.Path, To: target, Reason: "moved by a tool that migrates it"}
	sent, err := a.ask(ctx, act)
	switch {
	case sent.Outcome == cluster.OutcomeRefused && strings.Contains(sent.Error, cluster.ErrRunsHere.Error()):
		a.say("%s still runs on node %s: its resource follows as soon as it runs on node %s, and not there", res.ID, s.name(source), s.name(target))
		return nil
	case err != nil && !a.handedOn(ctx, sent):
		return err
	}
	return a.arrival(ctx, s, res, act)
}

package cli

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/spf13/cobra"
)

// priorityFlag is --prio: unset leaves the priority as it is.
type priorityFlag struct{ value *uint32 }

func (p *priorityFlag) String() string { return "" }
func (p *priorityFlag) Type() string   { return "number" }
func (p *priorityFlag) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return errors.New("want a whole number from 0 to 4294967295; higher comes first")
	}
	v := uint32(n)
	p.value = &v
	return nil
}

// owner returns the resource and the Active node that owns it.
func (a *app) owner(ctx context.Context, word string) (cluster.Resource, *snapshot, cluster.Incarnation, error) {
	id, err := cluster.ParseResourceID(word)
	if err != nil {
		return cluster.Resource{}, nil, 0, fail(exitUsage, "%w", err)
	}
	s := a.look(ctx)
	if s.mountErr != nil {
		return cluster.Resource{}, s, 0, s.mountErr
	}
	res, err := s.find(string(id), string(a.self))
	if err != nil {
		return res, s, 0, err
	}
	if err := s.trouble(); err != nil {
		return res, s, 0, err
	}
	alive, ok := s.facts.Alive[res.Owner]
	if !ok {
		return res, s, 0, fail(exitReach, "%s belongs to node %s, whose daemon is not admitted; its own daemon has to carry this out", res.ID, s.name(res.Owner))
	}
	return res, s, alive.Incarnation, nil
}

// toOwner sends an action to the owner of a resource.
func (a *app) toOwner(ctx context.Context, word string, fill func(*cluster.Action)) (cluster.Action, error) {
	if err := a.connect(ctx); err != nil {
		return cluster.Action{}, err
	}
	res, _, inc, err := a.owner(ctx, word)
	if err != nil {
		return cluster.Action{}, a.reach(err)
	}
	act := cluster.Action{Node: res.Owner, Inc: inc, Resource: res.ID, Reason: "asked for by an operator"}
	fill(&act)
	if a.ignore && res.Owner != a.self {
		return act, errElsewhere
	}
	if done, err := a.hooked(ctx, res.ID); done || err != nil {
		return act, cmp.Or(err, errHooked)
	}
	return a.ask(ctx, act)
}

// With -i it is a hypervisor's hook that calls.
var (
	// errHooked ends a command whose work is under way: shaman itself made the
	// hypervisor call the hook, and waits for it.
	errHooked = errors.New("it is being done by shaman itself")
	// errElsewhere ends one about a resource that another node owns by now.
	errElsewhere = fail(exitState, "the resource belongs to another node")
)

// hooked tells whether a hook is called because of what shaman does just now.
func (a *app) hooked(ctx context.Context, id cluster.ResourceID) (bool, error) {
	if !a.ignore {
		return false, nil
	}
	if os.Getenv("SHAMAN_DRIVER") != "" {
		return true, nil // a driver's own tool calls it
	}
	busy, err := a.underWay(ctx, a.self, id)
	if err != nil {
		return false, a.reach(err)
	}
	return busy, nil
}

// checkPath refuses what cannot be the path of a VE in a resource file.
func checkPath(path string) error {
	if !filepath.IsAbs(path) || strings.ContainsFunc(path, unicode.IsControl) {
		return fail(exitUsage, "--path %q is not allowed; want the absolute path of the VE, without line breaks", path)
	}
	return nil
}

func (a *app) addCmd() *cobra.Command {
	var path string
	var prio priorityFlag
	var force bool
	c := &cobra.Command{Use: "add RES --path PATH", Short: "Protect a VE of this node", Args: cobra.ExactArgs(1),
		Long: "Protect a VE of this node: make its resource, and switch high availability on in the VE's own parameters. RES is <type>-<name>, such as vm-web or ct-101. With --force a resource of that name that is here already is changed instead.",
		RunE: func(c *cobra.Command, args []string) error {
			id, err := cluster.ParseResourceID(args[0])
			if err != nil {
				return fail(exitUsage, "%w", err)
			}
			if err := checkPath(path); err != nil {
				return err
			}
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			s := a.look(c.Context())
			if err := s.trouble(); err != nil {
				return a.reach(err)
			}
			if _, ok := s.facts.Nodes[a.self]; !ok {
				return cluster.ErrNotJoined
			}
			alive, ok := s.facts.Alive[a.self]
			if !ok {
				return fail(exitReach, "this node's daemon is not admitted; see 'shaman stat'")
			}
			if done, err := a.hooked(c.Context(), id); done || err != nil {
				return err
			}
			if len(s.census.Spots().At(filepath.Clean(path))) == 0 { // else this node's daemon has the answer
				if err := a.runsNowhereElse(c.Context(), s, id.Kind(), filepath.Clean(path)); err != nil {
					return err
				}
			}
			_, err = a.ask(c.Context(), cluster.Action{Verb: cluster.VerbAdd, Node: a.self, Inc: alive.Incarnation, Resource: id, Path: filepath.Clean(path), Priority: prio.value, Force: force, Reason: "asked for by an operator"})
			return err
		}}
	c.Flags().StringVar(&path, "path", "", "the `path` of the VE")
	c.Flags().Var(&prio, "prio", "priority; higher comes first")
	c.Flags().BoolVar(&force, "force", false, "change the resource if it is here already")
	return c
}

func (a *app) setCmd() *cobra.Command {
	var path string
	var prio priorityFlag
	c := &cobra.Command{Use: "set RES", Short: "Change a resource's parameters", Args: cobra.ExactArgs(1),
		Long: "Change a resource's path or priority. The priority is written into the VE's own parameters too, where its hypervisor has them, since these win.",
		RunE: func(c *cobra.Command, args []string) error {
			if path == "" && prio.value == nil {
				return fail(exitUsage, "nothing to change; use --path or --prio")
			}
			if path != "" {
				if err := checkPath(path); err != nil {
					return err
				}
				path = filepath.Clean(path)
			}
			_, err := a.toOwner(c.Context(), args[0], func(act *cluster.Action) {
				act.Verb, act.Path, act.Priority = cluster.VerbSet, path, prio.value
			})
			if errors.Is(err, errHooked) {
				return nil
			}
			return err
		}}
	c.Flags().StringVar(&path, "path", "", "the new `path` of the VE")
	c.Flags().Var(&prio, "prio", "priority; higher comes first")
	return c
}

func (a *app) delCmd() *cobra.Command {
	return &cobra.Command{Use: "del RES", Short: "Take a VE out of high availability; it goes on as it is", Args: cobra.ExactArgs(1),
		Long: "Take a VE out of high availability: high availability is switched off in the VE's own parameters, and the resource deleted; the VE goes on as it is. With -i, as a hypervisor's hooks call it, a resource that another node owns by now is left to that node.",
		RunE: func(c *cobra.Command, args []string) error {
			_, err := a.toOwner(c.Context(), args[0], func(act *cluster.Action) { act.Verb = cluster.VerbDelete })
			if errors.Is(err, errHooked) || errors.Is(err, errElsewhere) {
				return nil
			}
			return err
		}}
}

func (a *app) delEverywhereCmd() *cobra.Command {
	return &cobra.Command{Use: "del-everywhere RES", Short: "Delete a resource from the repositories of all nodes", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := cluster.ParseResourceID(args[0])
			if err != nil {
				return fail(exitUsage, "%w", err)
			}
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			s := a.look(c.Context())
			if err := s.trouble(); err != nil {
				return a.reach(err)
			}
			if s.mountErr != nil {
				return s.mountErr
			}
			return a.reach(a.delEverywhere(c.Context(), s, id))
		}}
}

func (a *app) delEverywhere(ctx context.Context, s *snapshot, id cluster.ResourceID) error {
	done, left := 0, []error{}
	for _, owner := range slices.Sorted(maps.Keys(s.census.Repositories)) {
		l := s.census.Repositories[owner]
		for _, r := range l.Resources {
			if r.ID != id {
				continue
			}
			alive, ok := s.facts.Alive[owner]
			if !ok {
				left = append(left, fail(exitReach, "node %s still has it, and its daemon is not admitted; run this again when 'shaman stat' shows the node as Active", s.name(owner)))
				continue
			}
			if _, err := a.ask(ctx, cluster.Action{Verb: cluster.VerbDelete, Node: owner, Inc: alive.Incarnation, Resource: id, Reason: "asked for by an operator"}); err != nil {
				left = append(left, err)
				continue
			}
			done++
		}
	}
	for p, l := range s.census.Pools {
		if slices.ContainsFunc(l.Resources, func(r cluster.Resource) bool { return r.ID == id }) {
			left = append(left, fail(exitState, "it is in the pool (%s), being relocated; try again when it is on a node", p))
		}
	}
	if err := errors.Join(left...); err != nil {
		if done > 0 {
			return fail(exitPart, "deleted from %d nodes, but: %w", done, err)
		}
		return err
	}
	if done == 0 {
		_, err := s.find(string(id), "") // it may be broken, or a file that cannot be used
		return err
	}
	a.say("%s is deleted from %d repositories; the VE goes on as it is", id, done)
	return nil
}

func (a *app) renameCmd() *cobra.Command {
	return &cobra.Command{Use: "rename RES NEW", Short: "Give a resource another name", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			to, err := cluster.ParseResourceID(args[1])
			if err != nil {
				return fail(exitUsage, "%w", err)
			}
			from, err := cluster.ParseResourceID(args[0])
			if err != nil {
				return fail(exitUsage, "%w", err)
			}
			if from.Kind() != to.Kind() {
				return fail(exitUsage, "a rename keeps the type: %s is of type %s, %s of type %s", from, from.Kind(), to, to.Kind())
			}
			_, err = a.toOwner(c.Context(), args[0], func(act *cluster.Action) { act.Verb, act.NewName = cluster.VerbRename, to })
			return err
		}}
}

func (a *app) lastNodeCmd() *cobra.Command {
	return &cobra.Command{Use: "get-last-node RES", Short: "Print on which node a resource ran last", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := cluster.ParseResourceID(args[0])
			if err != nil {
				return fail(exitUsage, "%w", err)
			}
			// The mount knows it, so etcd need not be up; -i asks who is a member.
			if a.ignore {
				err = a.connect(c.Context())
			} else {
				err = a.loadLocal()
			}
			if err != nil {
				return err
			}
			s := newSnapshot()
			if s.census, _, err = a.census(c.Context()); err != nil {
				return err
			}
			res, err := s.find(string(id), string(a.self))
			if err != nil && res.ID == "" {
				return err
			}
			last := cmp.Or(res.LastNode, res.Owner)
			for _, b := range s.census.Broken {
				if b.Resource.ID == id && err != nil { // it lies nowhere else
					last = cmp.Or(last, b.Reason.Node)
				}
			}
			if last == "" {
				return fail(exitState, "it is not known where %s ran last", res.ID)
			}
			if a.output == "json" {
				return a.printJSON(map[string]string{"resource": string(res.ID), "last_node": string(last)})
			}
			a.print("Resource last node ID : %s\n", last)
			return nil
		}}
}

func (a *app) startCmd() *cobra.Command {
	return &cobra.Command{Use: "start RES", Short: "Start a VE on the node that owns it", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			act, err := a.toOwner(c.Context(), args[0], func(act *cluster.Action) { act.Verb, act.Start = cluster.VerbStart, true })
			if err == nil {
				a.say("%s runs", act.Resource)
			}
			return err
		}}
}

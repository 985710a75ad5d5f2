package cli

import (
	"cmp"
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/spf13/cobra"
)

var supportedRoles = []cluster.Role{"VM", "CT", "ISCSI", "S3", cluster.RoleSpare}

func (a *app) listRolesCmd() *cobra.Command {
	return &cobra.Command{Use: "list-supported-roles", Short: "Print the roles that a node can have", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		if a.output == "json" {
			return a.printJSON(supportedRoles)
		}
		for _, r := range supportedRoles {
			a.print("%s\n", r)
		}
		return nil
	}}
}

func (a *app) getRolesCmd() *cobra.Command {
	return &cobra.Command{Use: "get-roles", Short: "Print this node's roles", Args: cobra.NoArgs,
		Long: "Print which types of resources this node may receive. A node without roles receives every type that its drivers can run.",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			rec, _, err := a.members().Get(c.Context(), a.self)
			if err != nil {
				return a.reach(err)
			}
			if a.output == "json" {
				return a.printJSON(append([]cluster.Role{}, rec.Roles...))
			}
			for _, r := range rec.Roles {
				a.print("%s\n", r)
			}
			if len(rec.Roles) == 0 {
				a.say("no roles are set: the node receives every type that its drivers can run")
			}
			return nil
		}}
}

var roleForm = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,31}$`)

// setRolesCmd is set-roles, which replaces, and add-role, which adds one.
func (a *app) setRolesCmd(use string) *cobra.Command {
	c := &cobra.Command{Use: use + " ROLE...", Short: "Set which types of resources this node may receive", Args: cobra.ArbitraryArgs,
		Long: "Set which types of resources this node may receive (VM, CT, ISCSI, S3, or a script's type), and SPARE for a node that is kept empty. Without any the node receives every type that its drivers can run."}
	if use == "add-role" {
		c.Use, c.Short, c.Args = "add-role ROLE", "Add a type of resources that this node may receive", cobra.ExactArgs(1)
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		var roles []cluster.Role
		for _, r := range args {
			if !roleForm.MatchString(r) {
				return fail(exitUsage, "role %q is not allowed; want capital letters, such as %s", r, join(supportedRoles))
			}
			if !slices.Contains(roles, cluster.Role(r)) {
				roles = append(roles, cluster.Role(r))
			}
		}
		if err := a.connect(c.Context()); err != nil {
			return err
		}
		alone := false
		err := a.reach(a.members().Update(c.Context(), a.self, func(rec *cluster.NodeRecord) error {
			if use == "add-role" && slices.Contains(rec.Roles, roles[0]) {
				return fail(exitState, "this node has role %s already", roles[0])
			}
			if use != "add-role" {
				rec.Roles = roles
				return nil
			}
			alone = roles[0] != cluster.RoleSpare && len(rec.Roles) == 0
			rec.Roles = append(rec.Roles, roles[0])
			return nil
		}))
		if err == nil && alone {
			a.say("this node had no roles, so it received every type that its drivers can run; from now on it receives %s only", roles[0])
		}
		return err
	}
	return c
}

func join[T ~string](words []T) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = string(w)
	}
	return strings.Join(out, ", ")
}

func (a *app) suspendCmd() *cobra.Command {
	var token, reason string
	c := &cobra.Command{Use: "suspend [NODE]", Short: "Keep a node from getting new VEs", Args: cobra.MaximumNArgs(1),
		Long: "Keep a node from getting new VEs. What runs on it goes on, and fails over like any other. A node can be suspended for several reasons at once, each under a token of its own.",
		RunE: func(c *cobra.Command, args []string) error {
			return a.changeNode(c.Context(), args, func(n cluster.Node, rec *cluster.NodeRecord) error {
				for i, t := range rec.SuspendTokens {
					if t.ID == token {
						rec.SuspendTokens[i].Description = reason
						return nil
					}
				}
				rec.SuspendTokens = append(rec.SuspendTokens, cluster.SuspendToken{ID: token, Description: reason, Timestamp: now()})
				return nil
			})
		}}
	c.Flags().StringVar(&token, "token", "operator", "name of this suspension")
	c.Flags().StringVar(&reason, "reason", "", "why, for people")
	return c
}

func (a *app) maintenanceCmd() *cobra.Command {
	return &cobra.Command{Use: "maintenance on|off [NODE]", Short: "Keep a node from getting new VEs while it is worked on", Args: cobra.RangeArgs(1, 2),
		Long: "Keep a node from getting new VEs while it is worked on. What runs on it goes on, and fails over like any other; 'shaman relocate' moves it away.",
		RunE: func(c *cobra.Command, args []string) error {
			on := args[0] == "on"
			if !on && args[0] != "off" {
				return fail(exitUsage, "maintenance %q is not allowed; want on or off", args[0])
			}
			return a.changeNode(c.Context(), args[1:], func(n cluster.Node, rec *cluster.NodeRecord) error {
				if rec.Maintenance == on {
					return fail(exitState, "maintenance of node %s is %s already", n.Name, args[0])
				}
				rec.Maintenance = on
				return nil
			})
		}}
}

func (a *app) resumeCmd() *cobra.Command {
	var token string
	c := &cobra.Command{Use: "resume [NODE]", Short: "Take a suspension back", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.changeNode(c.Context(), args, func(n cluster.Node, rec *cluster.NodeRecord) error {
				before := len(rec.SuspendTokens)
				rec.SuspendTokens = slices.DeleteFunc(rec.SuspendTokens, func(t cluster.SuspendToken) bool { return t.ID == token })
				if len(rec.SuspendTokens) == before {
					var have []string
					for _, t := range rec.SuspendTokens {
						have = append(have, t.ID)
					}
					return fail(exitState, "node %s is not suspended with token %q (it has: %s)", n.Name, token, cmp.Or(strings.Join(have, ", "), "none"))
				}
				if left := len(rec.SuspendTokens); left > 0 {
					a.say("node %s stays suspended: %d more tokens, see 'shaman stat -v'", n.Name, left)
				}
				return nil
			})
		}}
	c.Flags().StringVar(&token, "token", "operator", "name of the suspension")
	return c
}

// changeNode changes the record of the node that is named, or of this one.
func (a *app) changeNode(ctx context.Context, args []string, change func(cluster.Node, *cluster.NodeRecord) error) error {
	if err := a.connect(ctx); err != nil {
		return err
	}
	s := a.look(ctx)
	if err := s.trouble(); err != nil {
		return a.reach(err)
	}
	word := string(a.self)
	if len(args) > 0 {
		word = args[0]
	} else if _, ok := s.facts.Nodes[a.self]; !ok {
		return cluster.ErrNotJoined
	}
	n, err := s.node(word)
	if err != nil {
		return err
	}
	return a.reach(a.members().Update(ctx, n.ID, func(rec *cluster.NodeRecord) error { return change(n, rec) }))
}

// lost tells whether a node has, or is about to get, a failover that the brake
// can hold. A node that was never admitted has nothing to fail over.
func (s *snapshot) lost(n cluster.Node) bool {
	if s.facts.Nodes[n.ID].BootID == "" {
		return false
	}
	switch n.Liveness {
	case cluster.Active, cluster.Inactive, cluster.Down, cluster.Fenced:
		return false
	case cluster.Isolated, cluster.Crashed, cluster.AwaitingFence, cluster.Recovering:
	}
	return true
}

func (a *app) failoverCmd() *cobra.Command {
	c := &cobra.Command{Use: "failover", Short: "Steer failovers", RunE: group}
	all := false
	release := &cobra.Command{Use: "release NODE | --all", Short: "Let failovers go on that RELOCATION_SKIP_THRESHOLD holds back", Args: cobra.MaximumNArgs(1),
		Long: "Let failovers go on although RELOCATION_SKIP_THRESHOLD nodes or more are lost at once. It holds for the incarnation in which the node was lost, and not for the next time.",
		RunE: func(c *cobra.Command, args []string) error {
			if all == (len(args) == 1) {
				return fail(exitUsage, "name one node, or use --all")
			}
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			s := a.look(c.Context())
			if err := s.trouble(); err != nil {
				return a.reach(err)
			}
			var nodes []cluster.Node
			for _, n := range s.view.Nodes {
				if all && s.lost(n) {
					nodes = append(nodes, n)
				}
			}
			if !all {
				n, err := s.node(args[0])
				if err != nil {
					return err
				}
				if !s.lost(n) {
					return fail(exitState, "node %s is %s, not lost: there is nothing to release", n.Name, n.Status())
				}
				nodes = append(nodes, n)
			}
			var errs []error
			for _, n := range nodes {
				if err := a.members().Update(c.Context(), n.ID, func(rec *cluster.NodeRecord) error {
					rec.Released = rec.Incarnation
					return nil
				}); err != nil {
					errs = append(errs, a.reach(err))
					continue
				}
				a.say("node %s is released: its failover goes on once it is proven harmless", n.Name)
			}
			if len(nodes) == 0 {
				return fail(exitState, "no node is lost")
			}
			if err := errors.Join(errs...); err != nil && len(errs) < len(nodes) {
				return fail(exitPart, "%d of %d nodes were not released: %w", len(errs), len(nodes), err)
			}
			return errors.Join(errs...)
		}}
	release.Flags().BoolVar(&all, "all", false, "all nodes that are lost now")
	c.AddCommand(release)
	return c
}

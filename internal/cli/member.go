package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/membership"
	"github.com/shaman-ha/shaman/internal/resources"
	"github.com/spf13/cobra"
)

func (a *app) joinCmd() *cobra.Command {
	ignoreRes := false
	c := &cobra.Command{
		Use: "join", Short: "Make this node a member of the cluster", Args: cobra.NoArgs,
		Long: `Make this node a member of the cluster that its configuration names. The first
node to join makes the cluster, on the mount and in etcd.

What runs on the node is put under shaman's protection once its daemon is up:
every VE whose hypervisor says that high availability is on for it.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			return a.reach(a.join(c.Context(), ignoreRes))
		},
	}
	c.Flags().BoolVarP(&ignoreRes, "ignore-res", "r", false, "leave the VEs alone that are here already")
	return c
}

func (a *app) join(ctx context.Context, ignoreRes bool) error {
	m := a.members()
	if rec, _, err := m.Get(ctx, a.self); err == nil {
		if rec.Name != a.local.NodeName {
			return fail(exitState, "host id %s is joined already, as node %q; two machines must not share one: give this one a HOST_ID of its own in %s", a.self, rec.Name, a.configFile)
		}
		return fail(exitState, "this node (%s, host id %s) is joined already", rec.Name, a.self)
	} else if !errors.Is(err, cluster.ErrNotJoined) {
		return err
	}
	s := a.look(ctx)
	if s.etcdErr != nil {
		return s.etcdErr
	}
	for _, n := range s.view.Nodes {
		if n.Name == a.local.NodeName {
			return fail(exitState, "node %s has the name %q already; names are what operators and fence agents go by: set another NODE_NAME in %s", n.ID, n.Name, a.configFile)
		}
	}
	set, err := config.NewStore(a.client, a.keys).Get(ctx)
	if err != nil {
		return err
	}
	if _, _, err := config.ParseCluster(set, len(s.view.Nodes)+1); err != nil {
		return err
	}
	id, err := a.identify(ctx, m)
	if err != nil {
		return err
	}
	inc, err := a.firstIncarnation(ctx)
	if err != nil {
		return err
	}
	if err := a.store.PrepareNode(ctx, a.self, inc); err != nil {
		return err
	}
	if err := m.Join(ctx, a.self, cluster.NodeRecord{
		Name: a.local.NodeName, Address: a.local.NodeAddress, Incarnation: inc, IgnoreExist: ignoreRes,
	}); err != nil {
		return err
	}
	a.say("node %s (host id %s) joined cluster %s on %s", a.local.NodeName, a.self, id.Name, a.local.ClusterMount)
	a.say("next: start shaman-monitor here (systemctl enable --now shaman-monitor), then look at 'shaman stat'")
	return nil
}

// identify finds the cluster on the mount, or makes it if this is the first
// node of all. A mount without identity in a cluster that has one is not mounted.
func (a *app) identify(ctx context.Context, m *membership.Members) (resources.Identity, error) {
	known, etcdCluster, err := m.MountUUID(ctx)
	if err != nil {
		return resources.Identity{}, err
	}
	id, _, err := a.store.ReadIdentity(ctx)
	switch {
	case errors.Is(err, resources.ErrNoCluster) && known != "":
		return id, fail(exitFailed, "cluster %s lives on a shared file system that is not mounted at %s here (%v); mount it, then run 'shaman join' again", a.local.ClusterName, a.local.ClusterMount, err)
	case errors.Is(err, resources.ErrNoCluster):
		if st, serr := os.Stat(a.local.ClusterMount); serr != nil || !st.IsDir() {
			return id, fail(exitFailed, "CLUSTER_MOUNT %s is not there; mount the shared file system first (%v)", a.local.ClusterMount, serr)
		}
		var u [16]byte
		_, _ = rand.Read(u[:]) // never fails: crypto/rand ends the process instead
		u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
		h := hex.EncodeToString(u[:])
		id, err = a.store.Found(ctx, resources.Identity{
			V: cluster.RecordVersion, Name: a.local.ClusterName, Generation: 1, EtcdClusterID: etcdCluster,
			UUID: strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-"),
		})
		if err != nil {
			if errors.Is(err, fs.ErrPermission) {
				return id, fail(exitFailed, "%w; run this as root", err)
			}
			return id, err
		}
		a.say("made cluster %s on %s", id.Name, a.local.ClusterMount)
	case err != nil:
		return id, err
	}
	if _, err := a.store.Connect(ctx, a.local.ClusterName, etcdCluster); err != nil {
		return id, fail(exitFailed, "%w", err)
	}
	if err := m.Bind(ctx, id.UUID); err != nil {
		if errors.Is(err, membership.ErrOtherMount) {
			return id, fail(exitRefused, "%w; is the right file system mounted at %s?", err, a.local.ClusterMount)
		}
		return id, err
	}
	return id, nil
}

// firstIncarnation is the one that a joining node starts with: above all that
// were ever taken over, or that of a repository which a former join has left.
func (a *app) firstIncarnation(ctx context.Context) (cluster.Incarnation, error) {
	have, present, err := a.store.Incarnation(ctx, a.self)
	if err != nil || present {
		return have, err
	}
	high, err := a.store.HighestPool(ctx, a.self)
	return high + 1, err
}

func (a *app) leaveCmd() *cobra.Command {
	var ip, id string
	keep := false
	c := &cobra.Command{
		Use: "leave", Short: "End the membership of this node, or of another one", Args: cobra.NoArgs,
		Long: `End the membership of a node. It is refused while the node has resources;
relocate them first, or take them out of high availability with --keep-ves: the
VEs go on where they are, and nobody restarts them after a failure.

A node that was failed over (status Fenced) is removed from the list.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			return a.reach(a.leave(c.Context(), ip, id, keep))
		},
	}
	c.Flags().StringVarP(&ip, "node-ip", "n", "", "the node of this `address` instead of this one")
	c.Flags().StringVarP(&id, "node-id", "N", "", "the node of this `host id` instead of this one")
	c.Flags().BoolVar(&keep, "keep-ves", false, "take its VEs out of high availability and leave them as they are")
	return c
}

// nodeOf finds the node that -n or -N means; without both it is this one.
func (a *app) nodeOf(s *snapshot, ip, id string) (cluster.Node, error) {
	word := string(a.self)
	switch {
	case ip != "" && id != "":
		return cluster.Node{}, fail(exitUsage, "use --node-ip or --node-id, not both")
	case ip != "":
		word = ip
	case id != "":
		word = id
	default:
		if _, ok := s.facts.Nodes[a.self]; !ok {
			return cluster.Node{}, cluster.ErrNotJoined
		}
	}
	return s.node(word)
}

func (a *app) leave(ctx context.Context, ip, id string, keep bool) error {
	s := a.look(ctx)
	if s.etcdErr != nil {
		return s.etcdErr
	}
	n, err := a.nodeOf(s, ip, id)
	if err != nil {
		return err
	}
	_, admitted := s.facts.Alive[n.ID]
	never := s.facts.Nodes[n.ID].BootID == ""
	switch {
	case admitted:
		act := cluster.Action{Verb: cluster.VerbLeave, Node: n.ID, Inc: s.facts.Alive[n.ID].Incarnation, Force: keep, Reason: "asked for by an operator"}
		if _, err := a.ask(ctx, act); err != nil {
			return err
		}
	case n.Liveness == cluster.Fenced || never:
		if err := a.members().Remove(ctx, n.ID); err != nil {
			return fail(exitRefused, "%w; wait until 'shaman stat' shows its failover as done", err)
		}
	case n.Liveness == cluster.Inactive:
		return fail(exitRefused, "node %s is Inactive: its daemon is stopped and its VEs may run. Start shaman-monitor there and leave then; or, if the machine is gone for good, run 'shaman fence confirm %s' first, which moves its VEs", n.Name, n.Name)
	default:
		return fail(exitRefused, "node %s is %s: its VEs have to be taken over first; wait until 'shaman stat' shows it as Fenced, then run this again", n.Name, n.Status())
	}
	a.say("node %s left cluster %s", n.Name, a.local.ClusterName)
	return nil
}

func (a *app) infoCmd() *cobra.Command {
	return &cobra.Command{Use: "info", Short: "Print this node's identity", Args: cobra.NoArgs,
		Long: "Print this node's identity. The exit code is 0 if the node is joined to a cluster.",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			rec, _, err := a.members().Get(c.Context(), a.self)
			if err != nil {
				return a.reach(err)
			}
			if a.output == "json" {
				return a.printJSON(map[string]any{"id": a.self, "cluster": a.local.ClusterName, "name": rec.Name, "address": rec.Address, "incarnation": rec.Incarnation, "mount": a.local.ClusterMount})
			}
			a.print("ID : %s\nCluster : %s\nName : %s\nAddress : %s\nIncarnation : %d\nMount : %s\n", a.self, a.local.ClusterName, rec.Name, rec.Address, rec.Incarnation, a.local.ClusterMount)
			return nil
		}}
}

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
			if err := a.connect(); err != nil {
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
		if err := a.connect(); err != nil {
			return err
		}
		return a.reach(a.members().Update(c.Context(), a.self, func(rec *cluster.NodeRecord) error {
			if use == "add-role" && slices.Contains(rec.Roles, roles[0]) {
				return fail(exitState, "this node has role %s already", roles[0])
			}
			if use == "add-role" {
				rec.Roles = append(rec.Roles, roles[0])
			} else {
				rec.Roles = roles
			}
			return nil
		}))
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

func (a *app) getConfigCmd() *cobra.Command {
	return &cobra.Command{Use: "get-config", Short: "Print the cluster-wide parameters", Args: cobra.NoArgs,
		Long: "Print the cluster-wide parameters in force. With -v also the times that follow from them: how long until a lost node is proven harmless, by each method.",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.connect(); err != nil {
				return err
			}
			set, err := config.NewStore(a.client, a.keys).Get(c.Context())
			if err != nil {
				return a.reach(err)
			}
			cfg, _, err := config.ParseCluster(set, a.countNodes(c.Context()))
			if err != nil {
				return err
			}
			if a.output == "json" {
				out := map[string]string{}
				for _, l := range cfg.Lines(false) {
					k, v, _ := strings.Cut(l, "=")
					out[k] = v
				}
				return a.printJSON(out)
			}
			for _, l := range cfg.Lines(a.verbose) {
				a.print("%s\n", l)
			}
			return nil
		}}
}

func (a *app) countNodes(ctx context.Context) int {
	s := a.look(ctx)
	return len(s.facts.Nodes)
}

func (a *app) setConfigCmd() *cobra.Command {
	return &cobra.Command{Use: "set-config KEY=VALUE...", Short: "Change cluster-wide parameters, all or none", Args: cobra.MinimumNArgs(1),
		Long: "Change cluster-wide parameters, all or none. KEY= returns to the default. Values between which the safety argument does not hold are refused (exit code 4).",
		RunE: func(c *cobra.Command, args []string) error {
			changes, err := config.ParseSet(args)
			if err != nil {
				return err
			}
			if err := a.connect(); err != nil {
				return err
			}
			n := a.countNodes(c.Context())
			var warns []config.Warning
			err = config.NewStore(a.client, a.keys).Set(c.Context(), changes, func(merged map[string]string) (err error) {
				_, warns, err = config.ParseCluster(merged, n)
				return err
			})
			if err != nil {
				return a.reach(err)
			}
			for _, w := range warns {
				if k, _, _ := strings.Cut(string(w), " "); changes[strings.SplitN(k, "=", 2)[0]] != "" {
					a.say("warning: %s", w)
				}
			}
			for _, k := range []string{"LOCK_TIMEOUT", "SELF_FENCE_TIMEOUT", "HEARTBEAT_INTERVAL"} {
				if _, ok := changes[k]; ok {
					a.say("%s is taken over by each daemon when it restarts ('systemctl restart shaman-monitor' on one node after the other; VEs run on)", k)
				}
			}
			return nil
		}}
}

func (a *app) getConfigLocalCmd() *cobra.Command {
	return &cobra.Command{Use: "get-config-local", Short: "Print this node's configuration; with -v where each value comes from", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := a.loadLocal(); err != nil {
				return err
			}
			if a.output == "json" {
				out := map[string]string{}
				for _, l := range a.local.Lines(false) {
					k, v, _ := strings.Cut(l, "=")
					out[k] = v
				}
				return a.printJSON(out)
			}
			for _, l := range a.local.Lines(a.verbose) {
				a.print("%s\n", l)
			}
			return nil
		}}
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
	if err := a.connect(); err != nil {
		return err
	}
	s := a.look(ctx)
	if s.etcdErr != nil {
		return a.reach(s.etcdErr)
	}
	word := ""
	if len(args) > 0 {
		word = args[0]
	}
	var n cluster.Node
	var err error
	if word == "" {
		n, err = a.nodeOf(s, "", "")
	} else {
		n, err = s.node(word)
	}
	if err != nil {
		return err
	}
	return a.reach(a.members().Update(ctx, n.ID, func(rec *cluster.NodeRecord) error { return change(n, rec) }))
}

func (a *app) failoverCmd() *cobra.Command {
	c := &cobra.Command{Use: "failover", Short: "Steer failovers"}
	all := false
	release := &cobra.Command{Use: "release NODE | --all", Short: "Let failovers go on that RELOCATION_SKIP_THRESHOLD holds back", Args: cobra.MaximumNArgs(1),
		Long: "Let failovers go on although RELOCATION_SKIP_THRESHOLD nodes or more are lost at once. It holds for the incarnation in which the node was lost, and not for the next time.",
		RunE: func(c *cobra.Command, args []string) error {
			if all == (len(args) == 1) {
				return fail(exitUsage, "name one node, or use --all")
			}
			if err := a.connect(); err != nil {
				return err
			}
			s := a.look(c.Context())
			if s.etcdErr != nil {
				return a.reach(s.etcdErr)
			}
			var nodes []cluster.Node
			for _, n := range s.view.Nodes {
				if all && n.Liveness != cluster.Active && n.Liveness != cluster.Inactive && n.Liveness != cluster.Down && n.Liveness != cluster.Fenced {
					nodes = append(nodes, n)
				}
			}
			if !all {
				n, err := s.node(args[0])
				if err != nil {
					return err
				}
				nodes = append(nodes, n)
			}
			for _, n := range nodes {
				if n.Liveness == cluster.Active {
					return fail(exitState, "node %s is Active: there is nothing to release", n.Name)
				}
				if err := a.members().Update(c.Context(), n.ID, func(rec *cluster.NodeRecord) error {
					rec.Released = rec.Incarnation
					return nil
				}); err != nil {
					return a.reach(err)
				}
				a.say("node %s is released: its failover goes on once it is proven harmless", n.Name)
			}
			if len(nodes) == 0 {
				return fail(exitState, "no node is lost")
			}
			return nil
		}}
	release.Flags().BoolVar(&all, "all", false, "all nodes that are lost now")
	c.AddCommand(release)
	return c
}

// printJSON renders a value for programs.
func (a *app) printJSON(v any) error {
	b, err := jsonBytes(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	a.print("%s\n", b)
	return nil
}

package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/membership"
	"github.com/shaman-ha/shaman/internal/resources"
	"github.com/spf13/cobra"
)

func (a *app) joinCmd() *cobra.Command {
	ignoreRes, recovering := false, false
	c := &cobra.Command{
		Use: "join", Short: "Make this node a member of the cluster", Args: cobra.NoArgs,
		Long: `Make this node a member of the cluster that its configuration names. The first
node to join makes the cluster, on the mount and in etcd.

What runs on the node is put under shaman's protection once its daemon is up:
every VE whose hypervisor says that high availability is on for it.

After etcd was rebuilt or restored from a backup: stop shaman-monitor on all
nodes (VEs run on), run 'shaman join --recover' on each, then start it again.`,
		RunE: func(c *cobra.Command, _ []string) error {
			a.joining = true
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			if recovering && ignoreRes {
				return fail(exitUsage, "--recover brings a node back with what the mount says is its own; it does not go with --ignore-res")
			}
			if recovering {
				return a.reach(a.recover(c.Context()))
			}
			return a.reach(a.join(c.Context(), ignoreRes))
		},
	}
	c.Flags().BoolVarP(&ignoreRes, "ignore-res", "r", false, "leave the VEs alone that are here already")
	c.Flags().BoolVar(&recovering, "recover", false, "come back after etcd was rebuilt or restored from a backup; all daemons have to be stopped")
	return c
}

func (a *app) join(ctx context.Context, ignoreRes bool) error {
	m := a.members()
	if rec, _, err := m.Get(ctx, a.self); err == nil {
		if hw := config.Hardware(a.local); hw != "" && rec.HardwareID != "" && rec.HardwareID != hw {
			return fail(exitState, "host id %s is joined already, by another machine (node %q, hardware %s; this one is %s); two machines must not share one: give this one a HOST_ID of its own in %s", a.self, rec.Name, rec.HardwareID, hw, a.configFile)
		}
		if rec.Name != a.local.NodeName {
			return fail(exitState, "host id %s is joined already, as node %q; two machines must not share one: give this one a HOST_ID of its own in %s", a.self, rec.Name, a.configFile)
		}
		return fail(exitState, "this node (%s, host id %s) is joined already", rec.Name, a.self)
	} else if !errors.Is(err, cluster.ErrNotJoined) {
		return err
	}
	s := a.look(ctx)
	if err := s.trouble(); err != nil {
		return err
	}
	for _, n := range s.view.Nodes {
		if n.Name == a.local.NodeName || n.Address == a.local.NodeName || string(n.ID) == a.local.NodeName {
			return fail(exitState, "node %s has the name, address or id %q already; names are what operators and fence agents go by: set another NODE_NAME in %s", n.ID, a.local.NodeName, a.configFile)
		}
	}
	set, err := config.NewStore(a.client, a.keys).Get(ctx)
	if err != nil {
		return err
	}
	if _, err := stored(set); err != nil {
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
		if errors.Is(err, resources.ErrOtherCluster) {
			return id, fail(exitRefused, "%w; nothing was done", err)
		}
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
	var which nodeFlags
	keep := false
	c := &cobra.Command{
		Use: "leave", Short: "End the membership of this node, or of another one", Args: cobra.NoArgs,
		Long: `End the membership of a node. It is refused while the node has resources;
relocate them first, or take them out of high availability with --keep-ves: the
VEs go on where they are, and nobody restarts them after a failure.

A node that was failed over (status Fenced) is removed from the list.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			return a.reach(a.leave(c.Context(), which, keep))
		},
	}
	which.add(c, "the node of this %s instead of this one")
	c.Flags().BoolVar(&keep, "keep-ves", false, "take its VEs out of high availability and leave them as they are")
	return c
}

// nodeFlags are -n and -N, which name a node other than this one.
type nodeFlags struct {
	cmd    *cobra.Command
	ip, id string
}

func (f *nodeFlags) add(c *cobra.Command, help string) {
	f.cmd = c
	c.Flags().StringVarP(&f.ip, "node-ip", "n", "", fmt.Sprintf(help, "`address`"))
	c.Flags().StringVarP(&f.id, "node-id", "N", "", fmt.Sprintf(help, "`host id`"))
}

// given tells whether one was used. An empty value counts: a script whose
// variable is empty must not make this node leave.
func (f *nodeFlags) given() bool {
	return f.cmd.Flags().Changed("node-ip") || f.cmd.Flags().Changed("node-id")
}

// nodeOf finds the node that -n or -N means; without both it is this one. When
// etcd is away, a host id that has a repository on the mount will do.
func (a *app) nodeOf(s *snapshot, f nodeFlags) (cluster.Node, error) {
	if f.cmd.Flags().Changed("node-ip") && f.cmd.Flags().Changed("node-id") {
		return cluster.Node{}, fail(exitUsage, "use --node-ip or --node-id, not both")
	}
	if f.given() {
		return s.anyNode(f.ip + f.id)
	}
	if _, ok := s.facts.Nodes[a.self]; !ok && s.etcdErr == nil {
		return cluster.Node{}, cluster.ErrNotJoined
	}
	return s.anyNode(string(a.self))
}

func (a *app) leave(ctx context.Context, which nodeFlags, keep bool) error {
	s := a.look(ctx)
	if err := s.trouble(); err != nil {
		return err
	}
	n, err := a.nodeOf(s, which)
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
		err := a.members().Remove(ctx, n.ID)
		if errors.Is(err, cluster.ErrFailoverOpen) || errors.Is(err, cluster.ErrOtherHolder) {
			return fail(exitRefused, "%w; wait until 'shaman stat' shows its failover as done", err)
		}
		if err != nil {
			return err
		}
	case n.Liveness == cluster.Inactive:
		return fail(exitRefused, "node %s is Inactive: its daemon is stopped and its VEs may run. Start shaman-monitor there and leave then; or, if the machine is gone for good, run 'shaman fence confirm %s' first, which moves its VEs", n.Name, n.Name)
	case n.Liveness == cluster.Recovering:
		return fail(exitRefused, "node %s is Recovering: it is back and not admitted yet; wait until 'shaman stat' shows it as Active, then run this again", n.Name)
	case n.Liveness == cluster.Down:
		return fail(exitRefused, "node %s was shut down in good order and its VEs wait for it; start it and leave then, or run 'shaman fence confirm %s' first, which moves its VEs", n.Name, n.Name)
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
			if err := a.connect(c.Context()); err != nil {
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

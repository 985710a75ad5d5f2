package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/fencing"
	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a *app) fenceCmd() *cobra.Command {
	c := &cobra.Command{Use: "fence", Short: "Prove a lost node harmless, and test the means for it", RunE: group}
	yes := ""
	confirm := &cobra.Command{Use: "confirm NODE", Short: "Give your word that a node is off", Args: cobra.ExactArgs(1),
		Long: `Give your word that a node is off, so that its VEs can be started elsewhere.

If the node is NOT off, its VEs will run twice and destroy their disks. Go and
look, or switch it off at the plug. It is refused while the node shows any sign
of life, or while its fence agent says that it is on.`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			return a.reach(a.confirm(c.Context(), args[0], yes))
		}}
	confirm.Flags().StringVar(&yes, "yes", "", "the node's `name`, instead of being asked for it")
	c.AddCommand(confirm,
		&cobra.Command{Use: "status NODE", Short: "Show what is known of a node's life, and its power", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			return a.reach(a.fenceStatus(c.Context(), args[0]))
		}},
		&cobra.Command{Use: "test NODE", Short: "Test a node's fence agent without switching anything", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			return a.reach(a.fenceTest(c.Context(), args[0]))
		}})
	return c
}

// evidence is what can be seen of a node's life from here.
type evidence struct {
	node     cluster.Node
	alive    bool
	heart    string // for people
	beats    bool   // something new was written while we looked
	unknown  bool   // the heartbeat cannot be read
	failover *cluster.Failover
	versions versions
	methods  []string      // FENCE_METHODS
	interval time.Duration // HEARTBEAT_INTERVAL
}

// examine reads the heartbeat for as long as a silent one has to be watched.
func (a *app) examine(ctx context.Context, s *snapshot, word string) (evidence, error) {
	n, err := s.node(word)
	if err != nil {
		return evidence{}, err
	}
	e := evidence{node: n}
	_, e.alive = s.facts.Alive[n.ID]
	for i := range s.facts.Failovers {
		f := &s.facts.Failovers[i]
		if f.Node == n.ID && f.Inc == n.Incarnation {
			e.failover, e.versions = f, s.serials[f.ID()]
		}
	}
	cfg, err := stored(s.config)
	if err != nil {
		return e, err
	}
	e.methods = cfg.FenceMethods
	t := cfg.Timing()
	e.interval = t.Heartbeat
	first, err := a.store.ReadHeartbeat(ctx, n.ID, t.Probe)
	if err != nil {
		e.unknown, e.heart = !errors.Is(err, cluster.ErrTorn), "cannot be read: "+err.Error()
		return e, nil
	}
	if a.terminal() {
		a.say("watching the heartbeat of node %s for %s …", n.Name, t.Silence().Round(100*time.Millisecond))
	}
	deadline := time.Now().Add(t.Silence())
	for time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return e, context.Cause(ctx)
		case <-time.After(t.Heartbeat):
		}
		next, err := a.store.ReadHeartbeat(ctx, n.ID, t.Probe)
		switch {
		case err != nil:
			e.unknown, e.heart = true, "cannot be read: "+err.Error()
			return e, nil
		case next.Seq != first.Seq || next.Nonce != first.Nonce:
			e.beats, e.heart = true, fmt.Sprintf("goes on (beat %d, boot %s)", next.Seq, next.Boot)
			return e, nil
		}
	}
	e.heart = fmt.Sprintf("silent for %s or more (last beat %d, boot %s)", t.Silence().Round(100*time.Millisecond), first.Seq, first.Boot)
	return e, nil
}

func (e evidence) String() string {
	lease := "gone"
	if e.alive {
		lease = "held: the daemon is in contact with etcd"
	}
	dog := "off"
	if w := e.node.Watchdog; w.Armed {
		dog = fmt.Sprintf("armed, time-out %s; proves the node harmless after %s of silence on both channels", w.Timeout, cluster.WatchdogProof(w.SelfFenceTimeout, w.Timeout, e.interval))
		if w.Virtual {
			dog += "; it is a virtual machine's, which counts only with WATCHDOG_TRUST_VIRTUAL=yes"
		}
	}
	out := fmt.Sprintf("node %s (%s, %s)\n  status:    %s\n  lease:     %s\n  heartbeat: %s\n  watchdog:  %s", e.node.Name, e.node.ID, e.node.Address, e.node.Status(), lease, e.heart, dog)
	if f := e.failover; f != nil {
		out += fmt.Sprintf("\n  failover:  %s, phase %s: %s", f.ID(), f.Phase, clean(f.Reason))
	}
	return out
}

func (a *app) fenceStatus(ctx context.Context, word string) error {
	s := a.look(ctx)
	if err := s.trouble(); err != nil {
		return err
	}
	e, err := a.examine(ctx, s, word)
	if err != nil {
		return err
	}
	power, why := a.power(ctx, e.node)
	if a.output == "json" {
		out := map[string]any{"node": e.node.ID, "name": e.node.Name, "status": e.node.Status(), "alive": e.alive, "heartbeat": e.heart, "beats": e.beats, "power": power, "power_reason": why, "failover": ""}
		if e.failover != nil {
			out["failover"] = e.failover.ID().String() + " " + string(e.failover.Phase)
		}
		return a.printJSON(out)
	}
	a.print("%s\n  power:     %s %s\n", e, power, why)
	return nil
}

// power asks the node's fence agent; it changes nothing.
func (a *app) power(ctx context.Context, n cluster.Node) (fencing.Power, string) {
	c, err := fencing.Load(a.local.FenceDir, n.ID, n.Name)
	if err != nil {
		return fencing.PowerUnknown, "(" + err.Error() + ")"
	}
	ctx, cancel := context.WithTimeout(ctx, fencing.Deadline)
	defer cancel()
	p, err := c.Status(ctx, n.Name)
	if err != nil && p == fencing.PowerUnknown {
		return p, "(" + err.Error() + ")"
	}
	return p, "(by " + c.Agent + ")"
}

func (a *app) fenceTest(ctx context.Context, word string) error {
	s := a.look(ctx)
	if err := s.trouble(); err != nil {
		return err
	}
	n, err := s.node(word)
	if err != nil {
		return err
	}
	power, why := a.power(ctx, n)
	_, alive := s.facts.Alive[n.ID]
	switch {
	case power == fencing.PowerUnknown:
		return fail(exitFailed, "the fence agent of node %s does not work from here: %s", n.Name, why)
	case power == fencing.PowerOff && alive:
		return fail(exitFailed, "the fence agent says that node %s is off, and its daemon is alive: it is configured for another machine; a failover would cut the wrong one's power", n.Name)
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{"node": n.ID, "name": n.Name, "power": power, "power_reason": why})
	}
	a.print("node %s: power is %s %s\n", n.Name, power, why)
	return nil
}

// confirm records an operator's word. It counts for this failover only.
func (a *app) confirm(ctx context.Context, word, yes string) error {
	s := a.look(ctx)
	if err := s.trouble(); err != nil {
		return err
	}
	e, err := a.examine(ctx, s, word)
	if err != nil {
		return err
	}
	n := e.node
	a.say("%s", e)
	inactive := s.facts.Nodes[n.ID].Stopped != cluster.NotStopped && e.failover == nil
	switch {
	case e.alive:
		return fail(exitRefused, "node %s is alive; nothing was done", n.Name)
	case e.beats:
		return fail(exitRefused, "node %s still writes its heartbeat: its machine is on and its VEs run; nothing was done. Switch it off first", n.Name)
	case e.unknown:
		return fail(exitRefused, "the heartbeat of node %s %s, so nobody knows whether it is alive; nothing was done. Mend the mount here or run this on another node", n.Name, e.heart)
	case e.failover == nil && !inactive:
		return fail(exitState, "node %s has no failover that waits for a word; see 'shaman stat'", n.Name)
	case e.failover != nil && e.failover.Phase != cluster.PhaseAwaitingFence:
		return fail(exitState, "failover %s is in phase %s, which waits for nobody's word", e.failover.ID(), e.failover.Phase)
	case !slices.Contains(e.methods, "manual"):
		return fail(exitRefused, "FENCE_METHODS=%s: an operator's word counts for nothing here; nothing was done. To allow it run 'shaman set-config FENCE_METHODS=%[1]s,manual'", strings.Join(e.methods, ","))
	}
	if power, why := a.power(ctx, n); power == fencing.PowerOn {
		return fail(exitRefused, "the fence agent says that node %s is on %s; nothing was done. Switch it off, or at the plug if it does not obey. If the agent asks the wrong machine, correct its file in %s; 'shaman fence test %s' shows what it says", n.Name, why, a.local.FenceDir, n.Name)
	}
	if err := a.askName(n, yes); err != nil {
		return err
	}
	by := "an operator"
	if u, err := user.Current(); err == nil {
		by = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		by += " on " + host
	}
	id := cluster.FailoverID{Node: n.ID, Incarnation: n.Incarnation}
	rec := s.facts.Nodes[n.ID]
	c := cluster.Confirm{V: cluster.RecordVersion, By: by, At: now(), Serial: e.versions.create}
	cmps := []clientv3.Cmp{etcd.Absent(a.keys.Alive(n.ID)), etcd.Unchanged(a.keys.Node(n.ID), s.nodeMods[n.ID])}
	var ops []clientv3.Op
	if inactive {
		rec.Stopped, rec.StoppedAt = cluster.NotStopped, ""
		val, err := etcd.Merge(s.nodeRaw[n.ID], rec)
		if err != nil {
			return err
		}
		ops = append(ops, clientv3.OpPut(a.keys.Node(n.ID), val))
	} else {
		cmps = append(cmps, etcd.Unchanged(a.keys.Failover(id), e.versions.mod))
	}
	val, err := etcd.Encode(c)
	if err != nil {
		return err
	}
	ops = append(ops, clientv3.OpPut(a.keys.Confirm(id), val))
	_, err = etcd.Commit(ctx, a.client, cmps, ops)
	if errors.Is(err, etcd.ErrConflict) {
		return fail(exitRefused, "node %s changed while you looked: it came back, or its failover went on; look again with 'shaman stat'", n.Name)
	}
	if err != nil {
		return err
	}
	a.say("recorded: node %s is off. Its VEs are taken over now; see 'shaman stat'", n.Name)
	return nil
}

// askName makes sure that the operator means this node.
func (a *app) askName(n cluster.Node, yes string) error {
	if yes != "" {
		if yes != n.Name {
			return fail(exitUsage, "--yes %q is not the name of the node, which is %q; nothing was done", yes, n.Name)
		}
		return nil
	}
	if !isTerminal(a.in) {
		return fail(exitUsage, "this needs an answer and there is no terminal; use --yes %s", n.Name)
	}
	a.say("\nIf node %s is NOT off, its VEs will run twice and destroy their disks.", n.Name)
	_, _ = fmt.Fprintf(a.err, "Type the name of the node to go on: ")
	line, _ := bufio.NewReader(a.in).ReadString('\n')
	if strings.TrimSpace(line) != n.Name {
		return fail(exitRefused, "that is not %q; nothing was done", n.Name)
	}
	return nil
}

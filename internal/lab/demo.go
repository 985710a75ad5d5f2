package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Failover reads what etcd holds of a node's failovers, the newest first.
func (l *Lab) Failover(ctx context.Context, cl *clientv3.Client, n Node) (*cluster.Failover, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	resp, err := cl.Get(ctx, etcd.NewLayout(l.ClusterName).FailoversOf(n.HostID), clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend))
	if err != nil || len(resp.Kvs) == 0 {
		return nil, err
	}
	f := &cluster.Failover{}
	if err := json.Unmarshal(resp.Kvs[0].Value, f); err != nil {
		return nil, fmt.Errorf("read %s: %w", resp.Kvs[0].Key, err)
	}
	return f, nil
}

// Master returns the node that is master now; false = there is none.
func (l *Lab) Master(ctx context.Context, cl *clientv3.Client) (Node, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	resp, err := cl.Get(ctx, etcd.NewLayout(l.ClusterName).Masters(), clientv3.WithFirstCreate()...)
	if err != nil || len(resp.Kvs) == 0 {
		return Node{}, false, err
	}
	var c struct {
		Node string `json:"node"`
	}
	if err := json.Unmarshal(resp.Kvs[0].Value, &c); err != nil {
		return Node{}, false, fmt.Errorf("read %s: %w", resp.Kvs[0].Key, err)
	}
	n, err := l.Node(c.Node)
	return n, err == nil, err
}

// busiest is the node on which most VEs run; of equal ones the last, so that the
// demo's cluster keeps its first master.
func (l *Lab) busiest(homes map[string]string) Node {
	count := map[string]int{}
	for _, n := range homes {
		count[n]++
	}
	nodes := slices.Clone(l.Nodes)
	slices.SortStableFunc(nodes, func(a, b Node) int { return cmp.Compare(count[a.Name], count[b.Name]) })
	return nodes[len(nodes)-1]
}

// Demo makes a lab, cuts the power of the busiest node, tells the failover as a
// timeline, and proves that every VE is back exactly once.
func Demo(ctx context.Context, o Options, out io.Writer) (err error) {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }
	l, err := Up(ctx, o, say)
	if err != nil {
		return err
	}
	defer func() {
		derr := l.Down()
		if err == nil {
			err = derr
		}
		if err == nil {
			err = l.Remove()
		} else {
			say("\nthe lab's logs are in %s", l.Dir)
		}
	}()
	cl, err := l.Client()
	if err != nil {
		return err
	}
	defer cl.Close()
	before, err := l.Homes(l.VEs)
	if err != nil {
		return err
	}
	if err := l.showStat(ctx, out); err != nil {
		return err
	}
	victim := l.busiest(before)
	say("\nCutting the power of %s …", victim.Name)
	cut := time.Now()
	if err := l.Kill(victim); err != nil {
		return err
	}
	f, err := l.awaitFailover(ctx, cl, victim, say)
	if err != nil {
		return err
	}
	if err := l.AwaitRunning(ctx, l.runningIDs(), 30*time.Second); err != nil {
		return err
	}
	after, err := l.Homes(l.VEs)
	if err != nil {
		return err
	}
	if err := l.timeline(out, victim, cut, f, before); err != nil {
		return err
	}
	l.summary(out, before, after)
	found, err := l.Check(ctx)
	if err != nil {
		return err
	}
	say("\nCheck: %d resources, each in exactly one place; %d lives of VEs compared, %d overlaps.", found.VEs, found.Runs, found.Overlaps)
	for _, p := range found.Problems {
		say("  PROBLEM %s", p)
	}
	if len(found.Problems) > 0 {
		return fmt.Errorf("%d problems found", len(found.Problems))
	}
	say("Every VE is back, exactly once.")
	return nil
}

func (l *Lab) showStat(ctx context.Context, out io.Writer) error {
	text, err := l.Shaman(ctx, l.Nodes[0], "stat")
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "\n$ shaman stat\n%s", text)
	return nil
}

// awaitFailover tells each phase as it comes.
func (l *Lab) awaitFailover(ctx context.Context, cl *clientv3.Client, n Node, say Say) (*cluster.Failover, error) {
	var f *cluster.Failover
	said := cluster.Phase("")
	words := map[cluster.Phase]string{
		cluster.PhaseHeld: "the failover is held", cluster.PhaseFencing: "its lease ended; proving that it is off",
		cluster.PhaseAwaitingFence: "nobody could prove that it is off", cluster.PhaseSealing: "proven; taking its repository over",
		cluster.PhaseRelocating: "its repository is taken over; starting its VEs elsewhere", cluster.PhaseDone: "done",
	}
	err := waitFor("the failover of "+n.Name, 2*time.Minute, func() (bool, error) {
		if ctx.Err() != nil {
			return true, nil
		}
		next, err := l.Failover(ctx, cl, n)
		if err != nil || next == nil {
			return false, err
		}
		if f = next; f.Phase != said {
			said = f.Phase
			say("  %s: %s", n.Name, words[f.Phase])
		}
		return f.Phase == cluster.PhaseDone, nil
	})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return f, err
}

// timeline tells the failover with times since the power cut.
func (l *Lab) timeline(out io.Writer, victim Node, cut time.Time, f *cluster.Failover, before map[string]string) error {
	type mark struct {
		at   time.Time
		what string
	}
	parse := func(s string) time.Time {
		t, _ := time.Parse(time.RFC3339Nano, s) // a missing mark is zero, and left out
		return t
	}
	marks := []mark{
		{cut, "power of " + victim.Name + " cut"},
		{parse(f.LostAt), "its lease has ended (LOCK_TIMEOUT " + l.LockTimeout.String() + ")"},
		{parse(f.OpenedAt), "failover opened: " + cmp.Or(string(f.Liveness), "lost")},
		{parse(f.FencedAt), "proven off by " + f.Proof},
		{parse(f.SealedAt), fmt.Sprintf("repository sealed: %d resources", f.Total)},
	}
	var starts []Life
	for id, was := range before {
		if was != victim.Name {
			continue
		}
		runs, err := l.Lives(id)
		if err != nil {
			return err
		}
		for _, r := range runs {
			if r.Started.After(cut) {
				starts = append(starts, r)
				break
			}
		}
	}
	slices.SortFunc(starts, func(a, b Life) int { return a.Started.Compare(b.Started) })
	for _, r := range starts {
		marks = append(marks, mark{r.Started, fmt.Sprintf("%s runs on %s", r.VE, r.Node)})
	}
	marks = append(marks, mark{parse(f.DoneAt), "failover done"})
	slices.SortStableFunc(marks, func(a, b mark) int { return a.at.Compare(b.at) })
	_, _ = fmt.Fprintf(out, "\nTimeline\n")
	for _, m := range marks {
		if !m.at.IsZero() {
			_, _ = fmt.Fprintf(out, "  %+8.3f s  %s\n", m.at.Sub(cut).Seconds(), m.what)
		}
	}
	if fenced := parse(f.FencedAt); len(starts) > 0 && !fenced.IsZero() {
		last := starts[len(starts)-1].Started
		_, _ = fmt.Fprintf(out, "\n%d VEs were down for %.1f s at most: %.1f s to notice and prove it, %.2f s to bring them up elsewhere.\n",
			len(starts), last.Sub(cut).Seconds(), fenced.Sub(cut).Seconds(), last.Sub(fenced).Seconds())
	}
	return nil
}

// summary is where the VEs were and are.
func (l *Lab) summary(out io.Writer, before, after map[string]string) {
	count := func(homes map[string]string, node string) (ids []string) {
		for _, id := range l.VEs {
			if homes[id] == node {
				ids = append(ids, strings.TrimPrefix(id, "ct-"))
			}
		}
		return ids
	}
	_, _ = fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 2, 8, 3, ' ', 0)
	_, _ = fmt.Fprintln(w, "NODE\tBEFORE\tAFTER\tVEs NOW")
	for _, n := range l.Nodes {
		b, a := count(before, n.Name), count(after, n.Name)
		list := strings.Join(a[:min(8, len(a))], " ")
		if len(a) > 8 {
			list += " …"
		}
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%s\n", n.Name, len(b), len(a), list)
	}
	_ = w.Flush()
}

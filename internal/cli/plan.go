package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/relocation"
	"github.com/spf13/cobra"
)

func decode(data []byte, into any) error { return json.Unmarshal(data, into) }

// planned is one line of a plan.
type planned struct {
	Resource string          `json:"resource"`
	From     string          `json:"from"`
	To       string          `json:"to"` // "" = it would wait, stopped, on the master's node
	Start    bool            `json:"start"`
	Policy   string          `json:"policy"`
	Reason   string          `json:"reason"`
	Rejected []rejectionJSON `json:"rejected"`
}

type rejectionJSON struct {
	Node   string `json:"node"`
	Reason string `json:"reason"`
}

func (a *app) planCmd() *cobra.Command {
	return &cobra.Command{Use: "plan NODE...", Short: "Show what would happen if these nodes failed now", Args: cobra.MinimumNArgs(1),
		Long: "Show where the resources of these nodes would go if all of them failed now, by the policies that a failover uses. With -v also why every other node was not chosen. Nothing is changed.",
		RunE: func(c *cobra.Command, args []string) error {
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
			out, names, err := a.plan(s, args)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(out)
			}
			renderPlan(a.out, out, names, a.verbose)
			return nil
		}}
}

// placing returns the policies that a failover would use now, and a request to
// them that has no resources yet.
func placing(s *snapshot) (relocation.Policy, relocation.Request, error) {
	cfg, err := stored(s.config)
	if err != nil {
		return nil, relocation.Request{}, err
	}
	policy, err := relocation.Parse(cfg.RelocationMode)
	req := relocation.Request{View: s.view, Reserve: cfg.HostMemoryReserve, Turn: int(s.facts.Epoch), Explain: true, CPUPools: map[cluster.NodeID]string{}}
	req.View.Nodes = slices.Clone(s.view.Nodes)
	for _, n := range req.View.Nodes {
		req.CPUPools[n.ID] = cmp.Or(n.Capacity.CPUPool, s.facts.Nodes[n.ID].CPUPool)
	}
	return policy, req, err
}

// roomFor returns an error if the policies would not let a resource run on a
// node, or, without one, on any but its own.
func roomFor(s *snapshot, res cluster.Resource, to cluster.NodeID) error {
	policy, req, err := placing(s)
	if err != nil {
		return err
	}
	if to != "" {
		req.View.Nodes = slices.DeleteFunc(req.View.Nodes, func(n cluster.Node) bool { return n.ID != to })
	}
	req.Resources = []cluster.Resource{res}
	p := policy.Place(req)[0]
	if p.To != "" {
		return nil
	}
	why := []string{}
	for _, r := range p.Rejected {
		if r.Node != res.Owner {
			why = append(why, s.name(r.Node)+": "+r.Reason)
		}
	}
	if len(why) == 0 {
		why = append(why, p.Reason)
	}
	return fail(exitRefused, "there is no room for %s now, so it was left as it is (%s)", res.ID, strings.Join(why, "; "))
}

// plan asks the policies about a view in which the nodes have failed.
func (a *app) plan(s *snapshot, words []string) ([]planned, map[string]string, error) {
	policy, req, err := placing(s)
	if err != nil {
		return nil, nil, err
	}
	failed := map[cluster.NodeID]bool{}
	for _, w := range words {
		n, err := s.node(w)
		if err != nil {
			return nil, nil, err
		}
		failed[n.ID] = true
	}
	keeper := cluster.NodeID("")
	for i, n := range req.View.Nodes {
		if failed[n.ID] {
			req.View.Nodes[i].Liveness = cluster.Crashed
		} else if n.Liveness == cluster.Active && len(n.Flags) == 0 && n.Mount == cluster.MountOK && (n.Master || keeper == "") {
			keeper = n.ID
		}
	}
	names := map[string]string{"": "-"}
	var out []planned
	for id := range s.facts.Nodes {
		names[string(id)] = s.name(id)
		if !failed[id] {
			continue
		}
		for _, r := range s.census.Repositories[id].Resources {
			if r.ShouldRun() {
				req.Resources = append(req.Resources, r)
				continue
			}
			out = append(out, planned{Resource: string(r.ID), From: string(id), To: string(keeper), Reason: "it should not run: registered there and left stopped", Rejected: []rejectionJSON{}})
		}
	}
	for _, p := range policy.Place(req) {
		line := planned{Resource: string(p.Resource), From: string(p.From), To: string(p.To), Start: p.To != "", Policy: p.Policy, Reason: p.Reason, Rejected: []rejectionJSON{}}
		if p.To == "" {
			line.To = string(keeper)
			line.Reason = "nobody can run it: registered there, stopped, until there is room (" + p.Reason + ")"
		}
		for _, rj := range p.Rejected {
			if failed[rj.Node] { // that is what was asked
				continue
			}
			line.Rejected = append(line.Rejected, rejectionJSON{Node: string(rj.Node), Reason: rj.Reason})
		}
		out = append(out, line)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Resource < out[j].Resource })
	if out == nil {
		out = []planned{}
	}
	return out, names, nil
}

func renderPlan(to io.Writer, out []planned, names map[string]string, verbose bool) {
	w := tabwriter.NewWriter(to, 2, 8, 2, ' ', 0)
	fmt.Fprintln(w, "RESOURCE\tFROM\tTO\tSTARTED\tPOLICY\tREASON")
	started := 0
	for _, p := range out {
		yes := "no"
		if p.Start {
			yes = "yes"
			started++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Resource, names[p.From], names[p.To], yes, cmp.Or(p.Policy, "-"), clean(p.Reason))
		if verbose {
			for _, r := range p.Rejected {
				fmt.Fprintf(w, "\t\t%s\tnot\t\t%s\n", names[r.Node], r.Reason)
			}
		}
	}
	_ = w.Flush()
	fmt.Fprintf(to, "%d resources: %d would be started elsewhere, %d would stay stopped\n", len(out), started, len(out)-started)
}

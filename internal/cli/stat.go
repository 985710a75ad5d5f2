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
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/spf13/cobra"
)

func jsonBytes(v any) ([]byte, error) { return json.MarshalIndent(v, "", "  ") }

func now() string { return time.Now().UTC().Format(time.RFC3339Nano) }

// statView says what of the cluster is shown, and how.
type statView struct {
	self    cluster.NodeID
	only    cluster.NodeID // resources of this node only
	verbose bool
	grouped bool
}

func (a *app) statCmd() *cobra.Command {
	var ip, id string
	var group, asJSON bool
	c := &cobra.Command{Use: "stat", Short: "Show the cluster: nodes, resources, failovers", Args: cobra.NoArgs,
		Long: `Show the cluster: nodes (M is the master, * is this node), resources and
failovers. When etcd is out of reach it shows what the mount says, and the exit
code is 3.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if asJSON {
				a.output = "json"
			}
			if err := a.connect(); err != nil {
				return err
			}
			s := a.look(c.Context())
			v := statView{self: a.self, verbose: a.verbose, grouped: group}
			if ip != "" || id != "" {
				n, err := a.nodeOf(s, ip, id)
				if err != nil {
					return err
				}
				v.only = n.ID
			}
			if s.etcdErr == nil && len(s.facts.Nodes) == 0 {
				return fail(exitState, "cluster %s has no nodes; run 'shaman join' on its first one", a.local.ClusterName)
			}
			j := a.stat(s)
			j.filter(v.only)
			if a.output == "json" {
				if err := a.printJSON(j); err != nil {
					return err
				}
			} else {
				renderStat(a.out, j, v)
			}
			switch {
			case s.etcdErr != nil:
				return fail(exitReach, "%w; what you see is what the mount says", s.etcdErr)
			case s.mountErr != nil:
				return fail(exitFailed, "the mount cannot be read, so resources are not shown: %w", s.mountErr)
			}
			return nil
		}}
	f := c.Flags()
	f.StringVarP(&ip, "node-ip", "n", "", "resources of the node with this `address` only")
	f.StringVarP(&id, "node-id", "N", "", "resources of the node with this `host id` only")
	f.BoolVarP(&group, "group", "g", false, "group resources by status: Active, Broken, Pool")
	f.BoolVarP(&asJSON, "json", "j", false, "the same as -o json")
	return c
}

// filter leaves the resources of one node.
func (j *statJSON) filter(only cluster.NodeID) {
	if only == "" {
		return
	}
	j.Resources = slices.DeleteFunc(j.Resources, func(r resourceJSON) bool { return r.HostID != string(only) })
	j.Unparseable = slices.DeleteFunc(j.Unparseable, func(u unparseableJSON) bool { return u.HostID != string(only) })
}

// renderStat prints the tables that operators of the original know.
func renderStat(out io.Writer, j statJSON, v statView) {
	fmt.Fprintf(out, "Cluster '%s'\nNodes: %d\nResources: %d\n", j.Cluster, len(j.Nodes), len(j.Resources))
	if j.Etcd != "ok" {
		fmt.Fprintf(out, "Etcd: %s\n", j.Etcd)
	}
	if j.Brake != "" {
		fmt.Fprintf(out, "HELD: %s\n", j.Brake)
	}
	fmt.Fprintln(out)
	renderNodes(out, j, v)
	address := map[string]string{}
	for _, n := range j.Nodes {
		address[n.HostID] = n.Address
		if n.Address == "" {
			address[n.HostID] = n.HostID
		}
	}
	groups := []string{""}
	if v.grouped {
		groups = []string{"Active", "Broken", "Pool"}
	}
	for _, g := range groups {
		var rs []resourceJSON
		for _, r := range j.Resources {
			if g == "" || r.Status == g {
				rs = append(rs, r)
			}
		}
		if g != "" {
			fmt.Fprintf(out, "\n%s: %d\n", g, len(rs))
		}
		renderResources(out, rs, address, v)
	}
	for _, u := range j.Unparseable {
		fmt.Fprintf(out, "\nUNPARSEABLE %s\n  %s\n", u.File, u.Error)
	}
	renderFailovers(out, j)
	for _, class := range []string{"duplicate"} {
		if n := j.Drift[class]; n > 0 {
			fmt.Fprintf(out, "\nDrift: %d paths have two resources; none of them is started twice, but one resource has to go ('shaman del')\n", n)
		}
	}
}

func renderNodes(out io.Writer, j statJSON, v statView) {
	w := tabwriter.NewWriter(out, 2, 8, 2, ' ', 0)
	head := "   \tNODE_IP\tSTATUS\tRESOURCES"
	if v.verbose {
		head = "   \tNODE_IP\tNAME\tSTATUS\tNODE_ID\tINC\tMOUNT\tMEMORY\tRESOURCES"
	}
	fmt.Fprintln(w, head)
	for _, n := range j.Nodes {
		mark := " "
		if n.Master {
			mark = "M"
		}
		if n.HostID == string(v.self) {
			mark += "*"
		}
		addr := n.Address
		if addr == "" {
			addr = n.HostID
		}
		if v.verbose {
			fmt.Fprintf(w, "%3s\t%s\t%s\t%s\t%s\t%d\t%s\t%s/%s\t%s\n", mark, addr, n.Name, n.Status, n.HostID, n.Incarnation, n.Mount, gib(n.MemoryUsed), gib(n.MemoryTotal), countWords(n.Counts))
		} else {
			fmt.Fprintf(w, "%3s\t%s\t%s\t%s\n", mark, addr, n.Status, countWords(n.Counts))
		}
	}
	_ = w.Flush()
	for _, n := range j.Nodes {
		if n.Waiting != "" {
			fmt.Fprintf(out, "    %s: %s\n", n.Name, n.Waiting)
		}
		for _, t := range n.SuspendTokens {
			if v.verbose {
				fmt.Fprintf(out, "    %s: suspended with token %q since %s %s\n", n.Name, t.ID, t.Timestamp, t.Description)
			}
		}
	}
}

func gib(b int64) string { return fmt.Sprintf("%.1fGiB", float64(b)/(1<<30)) }

func countWords(c map[string]int) string {
	kinds := []string{"ct", "vm"}
	for k := range c {
		if k != "ct" && k != "vm" && c[k] > 0 {
			kinds = append(kinds, k)
		}
	}
	sort.Strings(kinds[2:])
	var parts []string
	for _, k := range kinds {
		parts = append(parts, fmt.Sprintf("%d %s", c[k], strings.ToUpper(k)))
	}
	return strings.Join(parts, ", ")
}

// nameColumn heads the table of a type as the original does.
func nameColumn(kind string) string {
	if kind == "vm" {
		return "VM NAME"
	}
	return strings.ToUpper(kind) + " ID"
}

func renderResources(out io.Writer, rs []resourceJSON, address map[string]string, v statView) {
	byType := map[string][]resourceJSON{}
	var types []string
	for _, r := range rs {
		if byType[r.Type] == nil {
			types = append(types, r.Type)
		}
		byType[r.Type] = append(byType[r.Type], r)
	}
	sort.Strings(types)
	for _, t := range types {
		fmt.Fprintln(out)
		w := tabwriter.NewWriter(out, 2, 8, 2, ' ', 0)
		fmt.Fprintf(w, "   \t%s\tSTATE\tSTATUS\tOWNER_IP\tPRIORITY", nameColumn(t))
		if v.verbose {
			fmt.Fprint(w, "\tDESIRED\tPATH")
		}
		fmt.Fprintln(w)
		for _, r := range byType[t] {
			mark := " "
			if r.Status == "Broken" {
				mark = "B"
			}
			owner := address[r.HostID]
			if owner == "" {
				owner = "-"
			}
			fmt.Fprintf(w, "%3s\t%s\t%s\t%s\t%s\t%d", mark, strings.TrimPrefix(r.ID, r.Type+"-"), r.State, r.Status, owner, r.Priority)
			if v.verbose {
				fmt.Fprintf(w, "\t%s\t%s", r.Desired, r.Path)
			}
			fmt.Fprintln(w)
		}
		_ = w.Flush()
		for _, r := range byType[t] {
			switch {
			case r.Waiting != "":
				fmt.Fprintf(out, "    %s waits for room: %s\n", r.ID, r.Waiting)
			case r.Status == "Broken":
				fmt.Fprintf(out, "    %s is broken: %s\n", r.ID, r.Reason)
			case r.Status == "Pool" && v.verbose:
				fmt.Fprintf(out, "    %s %s\n", r.ID, r.Reason)
			}
		}
	}
}

func renderFailovers(out io.Writer, j statJSON) {
	if len(j.Failovers) == 0 {
		return
	}
	name := map[string]string{}
	for _, n := range j.Nodes {
		name[n.HostID] = n.Name
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 2, 8, 2, ' ', 0)
	fmt.Fprintln(w, "   \tFAILOVER\tPHASE\tPROOF\tTOTAL\tSTARTED\tSTOPPED\tWAITING\tBROKEN\tTIME")
	for _, f := range j.Failovers {
		n := name[f.Node]
		if n == "" {
			n = f.Node
		}
		fmt.Fprintf(w, "   \t%s.%d\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", n, f.Incarnation, f.Phase, cmp.Or(f.Proof, "-"), f.Total, f.Started, f.Stopped, f.Waiting, f.Broken, took(f))
	}
	_ = w.Flush()
	for _, f := range j.Failovers {
		if f.Command != "" && f.DoneAt == "" {
			fmt.Fprintf(out, "    %s: %s\n    next: make sure of it, then run '%s'\n", cmp.Or(name[f.Node], f.Node), f.Reason, f.Command)
		}
	}
}

// took is how long a failover took, or has taken until now.
func took(f failoverJSON) string {
	begin, err := time.Parse(time.RFC3339Nano, f.LeaseLostAt)
	if err != nil {
		return "-"
	}
	end := time.Now()
	if d, err := time.Parse(time.RFC3339Nano, f.DoneAt); err == nil {
		end = d
	}
	return max(0, end.Sub(begin)).Round(10 * time.Millisecond).String()
}

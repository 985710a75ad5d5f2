package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
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
	var which nodeFlags
	var grouped, asJSON bool
	c := &cobra.Command{Use: "stat", Short: "Show the cluster: nodes, resources, failovers", Args: cobra.NoArgs,
		Long: `Show the cluster: nodes (M is the master, * is this node), resources and
failovers. When etcd is out of reach it shows what the mount says, and the exit
code is 3.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if asJSON {
				a.output = "json"
			}
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			s := a.look(c.Context())
			v := statView{self: a.self, verbose: a.verbose, grouped: grouped}
			if which.given() {
				n, err := a.nodeOf(s, which)
				if err != nil {
					return err
				}
				v.only = n.ID
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
			case s.etcdErr != nil && s.mountErr != nil:
				return fail(exitReach, "%w; and the mount cannot be read either: %w", s.etcdErr, s.mountErr)
			case s.etcdErr != nil:
				return fail(exitReach, "%w; what you see is what the mount says", s.etcdErr)
			case s.damaged != nil:
				return s.damaged
			case len(s.facts.Nodes) == 0:
				return fail(exitState, "cluster %s has no nodes; run 'shaman join' on its first one", a.local.ClusterName)
			case s.mountErr != nil:
				return fail(exitFailed, "the mount cannot be read, so resources are not shown: %w", s.mountErr)
			}
			return nil
		}}
	f := c.Flags()
	which.add(c, "resources of the node with this %s only")
	f.BoolVarP(&grouped, "group", "g", false, "group resources by status: Active, Broken, Pool")
	f.BoolVarP(&asJSON, "json", "j", false, "the same as -o json")
	return c
}

// filter leaves the resources of one node.
func (j *statJSON) filter(only cluster.NodeID) {
	if only == "" {
		return
	}
	j.Resources = slices.DeleteFunc(j.Resources, func(r resourceJSON) bool { return r.HostID != string(only) })
	j.Drifts = slices.DeleteFunc(j.Drifts, func(d driftJSON) bool { return d.HostID != string(only) })
	j.Unparseable = slices.DeleteFunc(j.Unparseable, func(u unparseableJSON) bool { return u.HostID != string(only) })
}

// renderStat prints the tables that operators of the original know.
func renderStat(out io.Writer, j statJSON, v statView) {
	fmt.Fprintf(out, "Cluster '%s'\nNodes: %d\nResources: %d\n", j.Cluster, len(j.Nodes), len(j.Resources))
	if j.Etcd != "ok" {
		fmt.Fprintf(out, "Etcd: %s\n", j.Etcd)
	}
	if j.Brake != "" {
		fmt.Fprintf(out, "HELD: %s\n", clean(j.Brake))
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
		renderResources(out, rs, address, v, drifting(j))
	}
	for _, u := range j.Unparseable {
		fmt.Fprintf(out, "\nUNPARSEABLE %s\n  %s\n", clean(u.File), clean(u.Error))
	}
	renderFailovers(out, j)
	renderDuplicates(out, j)
	renderDrift(out, j)
}

// drifting are the resources, by owner and id, that differ from the truth.
func drifting(j statJSON) map[[2]string]bool {
	out := map[[2]string]bool{}
	for _, d := range j.Drifts {
		out[[2]string{d.HostID, d.Resource}] = true
	}
	return out
}

// renderDrift tells each difference with its evidence and what to do.
func renderDrift(out io.Writer, j statJSON) {
	if len(j.Drifts) == 0 {
		return
	}
	name := map[string]string{}
	for _, n := range j.Nodes {
		name[n.HostID] = n.Name
	}
	fmt.Fprintln(out, "\nDRIFT")
	for _, d := range j.Drifts {
		fmt.Fprintf(out, "    %s on %s: %s (%s): %s", d.Class, clean(cmp.Or(name[d.HostID], d.HostID)), d.Resource, clean(d.Path), clean(nodeNames(d.Why, name)))
		if d.Next != "" {
			fmt.Fprintf(out, "; next: %s", clean(d.Next))
		}
		fmt.Fprintln(out)
	}
	total := 0
	for _, c := range cluster.DriftClasses {
		total += j.Drift[string(c)]
	}
	if more := total - len(j.Drifts); more > 0 && len(j.Drifts) >= 100 {
		fmt.Fprintf(out, "    … and %d more\n", more)
	}
}

// nodeNames puts names in the place of the host ids in a text.
func nodeNames(text string, name map[string]string) string {
	for id, n := range name {
		if id != "" && n != "" {
			text = strings.ReplaceAll(text, "node "+id, "node "+n)
		}
	}
	return text
}

// renderDuplicates names the VEs that have more than one resource.
func renderDuplicates(out io.Writer, j statJSON) {
	byPath := map[string][]string{}
	for _, r := range j.Resources {
		if r.Path != "" { // a broken one whose file cannot be read
			byPath[r.Path] = append(byPath[r.Path], r.ID)
		}
	}
	maps.DeleteFunc(byPath, func(_ string, ids []string) bool { return len(ids) < 2 })
	if len(byPath) == 0 {
		return
	}
	fmt.Fprintf(out, "\nDUPLICATE resources: %d VEs have more than one; next: 'shaman del' the wrong ones\n", len(byPath))
	for _, path := range slices.Sorted(maps.Keys(byPath)) {
		fmt.Fprintf(out, "    %s: %s\n", clean(path), strings.Join(byPath[path], ", "))
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
			fmt.Fprintf(w, "%3s\t%s\t%s\t%s\t%s\t%d\t%s\t%s/%s\t%s\n", mark, addr, clean(n.Name), n.Status, n.HostID, n.Incarnation, n.Mount, gib(n.MemoryUsed), gib(n.MemoryTotal), countWords(n.Counts))
		} else {
			fmt.Fprintf(w, "%3s\t%s\t%s\t%s\n", mark, clean(addr), n.Status, countWords(n.Counts))
		}
	}
	_ = w.Flush()
	for _, n := range j.Nodes {
		if n.Waiting != "" {
			fmt.Fprintf(out, "    %s: %s\n", clean(n.Name), clean(n.Waiting))
		}
		if n.Mount == string(cluster.MountLost) && n.Liveness == string(cluster.Active) {
			fmt.Fprintf(out, "    %s: its shared file system is out of contact: its VEs run on, nothing is started or moved there; next: 'shaman doctor' on it\n", clean(n.Name))
		}
		for _, t := range n.SuspendTokens {
			if v.verbose {
				fmt.Fprintf(out, "    %s: suspended with token %q since %s %s\n", n.Name, t.ID, t.Timestamp, clean(t.Description))
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

func renderResources(out io.Writer, rs []resourceJSON, address map[string]string, v statView, drifts map[[2]string]bool) {
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
			switch {
			case r.Status == "Broken":
				mark = "B"
			case drifts[[2]string{r.HostID, r.ID}]:
				mark = "D"
			}
			owner := address[r.HostID]
			if owner == "" {
				owner = "-"
			}
			fmt.Fprintf(w, "%3s\t%s\t%s\t%s\t%s\t%d", mark, strings.TrimPrefix(r.ID, r.Type+"-"), r.State, r.Status, owner, r.Priority)
			if v.verbose {
				fmt.Fprintf(w, "\t%s\t%s", r.Desired, clean(r.Path))
			}
			fmt.Fprintln(w)
		}
		_ = w.Flush()
		for _, r := range byType[t] {
			switch {
			case r.Waiting != "":
				fmt.Fprintf(out, "    %s waits for room: %s\n", r.ID, clean(r.Waiting))
			case r.Status == "Broken":
				fmt.Fprintf(out, "    %s is broken: %s\n", r.ID, clean(r.Reason))
			case r.Status == "Pool" && (v.verbose || strings.HasPrefix(r.Reason, "held")):
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
		if f.Command != "" && cluster.Phase(f.Phase).Open() {
			fmt.Fprintf(out, "    %s: %s\n    next: make sure of it, then run '%s'\n", cmp.Or(name[f.Node], f.Node), clean(f.Reason), f.Command)
		}
	}
}

// took is how long a failover took, or has taken until now.
func took(f failoverJSON) string {
	begin, err := time.Parse(time.RFC3339Nano, f.LeaseLostAt)
	if err != nil {
		return "-"
	}
	if f.DoneAt == "" && !cluster.Phase(f.Phase).Open() {
		return "-"
	}
	end := time.Now()
	if d, err := time.Parse(time.RFC3339Nano, f.DoneAt); err == nil {
		end = d
	}
	return max(0, end.Sub(begin)).Round(10 * time.Millisecond).String()
}

package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/doctor"
	"github.com/spf13/cobra"
)

func (a *app) doctorCmd() *cobra.Command {
	asJSON := false
	c := &cobra.Command{Use: "doctor", Short: "Find what is wrong with this node's set-up, and say how to mend it", Args: cobra.NoArgs,
		Long: `Find what is wrong with this node's set-up before a failover does. Run it on every
node: before 'shaman join', after each change of configuration, and when in doubt.

It changes nothing: fence agents are asked for their status only, the watchdog is
not opened. On the mount it overwrites a small probe file of its own, below
.shaman/doctor, and has the daemons of the other nodes tell what they see of it.

Each line is OK, WARN or FAIL, and says what to do next. The exit code is 0 if
nothing fails (warnings are allowed), 1 if something does, 3 if it is only that
etcd is out of reach. With --quiet the OK lines are left out. It ends within a minute also if etcd, the mount or the
daemons are away.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if asJSON {
				a.output = "json"
			}
			return a.doctor(c.Context())
		}}
	c.Flags().BoolVarP(&asJSON, "json", "j", false, "the same as -o json")
	return c
}

// doctorJSON is the answer for programs: a written contract, as stat's.
type doctorJSON struct {
	HostID   string           `json:"host_id"`
	Findings []doctor.Finding `json:"findings"`
	OK       int              `json:"ok"`
	Warn     int              `json:"warn"`
	Fail     int              `json:"fail"`
}

func (a *app) doctor(ctx context.Context) error {
	e := &examination{app: a, host: doctor.Host{Root: "/"}, clock: doctor.ReadClock}
	if err := e.run(ctx); err != nil {
		return err
	}
	doctor.Sort(e.findings)
	out := doctorJSON{
		HostID: string(a.self), Findings: e.findings,
		OK: doctor.Count(e.findings, doctor.OK), Warn: doctor.Count(e.findings, doctor.Warn), Fail: doctor.Count(e.findings, doctor.Fail),
	}
	if a.quiet {
		out.Findings = slices.DeleteFunc(out.Findings, func(f doctor.Finding) bool { return f.Level == doctor.OK })
	}
	if a.output == "json" {
		if err := a.printJSON(out); err != nil {
			return err
		}
	} else {
		renderDoctor(a.out, out, isTerminal(a.tty))
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case out.Fail == 0:
		return nil
	case e.away && doctor.OnlyEtcd(e.findings):
		return fail(exitReach, "etcd is out of reach, so most could not be checked")
	case out.Fail == 1:
		return fail(exitFailed, "1 check failed; its line says what to do next")
	}
	return fail(exitFailed, "%d checks failed; their lines say what to do next", out.Fail)
}

// renderDoctor prints the findings for people: the level first, so that a FAIL
// is seen without reading.
func renderDoctor(out io.Writer, j doctorJSON, colour bool) {
	paint := func(l doctor.Level) string {
		word := fmt.Sprintf("%-4s", l)
		if !colour {
			return word
		}
		return map[doctor.Level]string{doctor.OK: "\x1b[32m", doctor.Warn: "\x1b[33m", doctor.Fail: "\x1b[1;31m"}[l] + word + "\x1b[0m"
	}
	last := doctor.Check("")
	for _, f := range j.Findings {
		if f.Check != last {
			if last != "" {
				fmt.Fprintln(out)
			}
			fmt.Fprintf(out, "%s\n", f.Check)
			last = f.Check
		}
		subject := clean(f.Subject)
		if subject != "" {
			subject += ": "
		}
		fmt.Fprintf(out, "  %s  %s%s\n", paint(f.Level), subject, clean(f.Message))
		if f.Mend != "" && f.Level != doctor.OK {
			fmt.Fprintf(out, "        next: %s\n", clean(f.Mend))
		}
	}
	fmt.Fprintf(out, "\n%d OK, %d WARN, %d FAIL", j.OK, j.Warn, j.Fail)
	if j.HostID != "" {
		fmt.Fprintf(out, " (host id %s)", j.HostID)
	}
	fmt.Fprintln(out)
	for _, f := range j.Findings {
		if f.Level == doctor.Fail {
			fmt.Fprintf(out, "%s\n", strings.TrimSuffix(fmt.Sprintf("%s  %s: %s", paint(f.Level), f.Check, clean(f.Subject)), ": "))
		}
	}
}

// memberList is the members as etcd has them, in the order of stat.
func memberList(s *snapshot, self cluster.NodeID) []doctor.Member {
	var out []doctor.Member
	for _, n := range s.view.Nodes {
		rec, alive := s.facts.Alive[n.ID]
		out = append(out, doctor.Member{
			ID: n.ID, Name: n.Name, Self: n.ID == self, Alive: alive, Status: n.Status(), Version: rec.Version, Mount: n.Mount, Watchdog: n.Watchdog, Inc: rec.Incarnation,
		})
	}
	return out
}

// fenceNames are members made of the names of fence files, for when nobody
// knows who is one.
func fenceNames(files []string) []doctor.Member {
	var out []doctor.Member
	for _, f := range files {
		out = append(out, doctor.Member{Name: f})
	}
	return out
}

func identityFile(mount string) string { return filepath.Join(mount, ".shaman", "cluster") }

package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/shaman-ha/shaman/internal/config"
	"github.com/spf13/cobra"
)

const exitUsage = 64

// exitCode ends the command with a code and no message of its own.
type exitCode int

func (e exitCode) Error() string { return "exit code " + strconv.Itoa(int(e)) }

// usage is an error of the command line.
type usage struct{ error }

// command is one run of shaman-lab.
type command struct {
	dir      string
	in       io.Reader
	out, err io.Writer
}

// Run runs shaman-lab and returns its exit code.
func Run(ctx context.Context, args []string, in io.Reader, out, msg io.Writer) int {
	c := &command{in: in, out: out, err: msg}
	root := &cobra.Command{Use: "shaman-lab", Short: "A whole cluster on one machine", SilenceUsage: true, SilenceErrors: true,
		Long: `A whole cluster on one machine: real etcd, a real shaman-monitor a node, VEs
that are real processes, and a fence agent that cuts a node's power.

As root each node has a mount namespace with a mount of its own, which can be cut.`}
	root.PersistentFlags().StringVar(&c.dir, "dir", ".lab", "`directory` of the lab")
	root.AddCommand(c.up(), c.demo(), c.status(), c.check(), c.down(), c.kill(), c.startCmd(), c.pause(), c.cutCmd(), c.execCmd(), c.hidden("host", (*Lab).Host), c.hidden("watchdog", (*Lab).Dog), c.etcdMember(), c.fenceAgent(), c.chassis())
	each := func(use, short string, f func(*Lab, Node) error) {
		root.AddCommand(&cobra.Command{Use: use + " NODE...", Short: short, Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, args []string) error { return c.nodes(args, f) }})
	}
	each("crash-monitor", "Kill a node's daemon alone; 'start' starts it again", (*Lab).CrashMonitor)
	each("stop-monitor", "Stop a node's daemon in good order, as 'systemctl stop' does", (*Lab).StopMonitor)
	each("shutdown", "Shut a node down in good order: its VEs are stopped, then its power goes off", (*Lab).Shutdown)
	each("resume", "Let a node go on that was paused", (*Lab).Resume)
	each("heal", "Mend all cables of a node", func(l *Lab, n Node) error { return l.SetCut(n, Cut{}) })
	each("break-fencing", "Make a node's fence agent fail", func(l *Lab, n Node) error { return l.BreakFencing(n, true) })
	each("lie-fencing", "Make a node's fence agent say that it is off, and do nothing", func(l *Lab, n Node) error { return l.LieFencing(n, true) })
	each("fix-fencing", "Make a node's fence agent work again", func(l *Lab, n Node) error {
		return errors.Join(l.BreakFencing(n, false), l.LieFencing(n, false))
	})
	each("break-watchdog", "Make a node's watchdog run out without doing anything", func(l *Lab, n Node) error { return l.BreakWatchdog(n, true) })
	each("fix-watchdog", "Make a node's watchdog work again", func(l *Lab, n Node) error { return l.BreakWatchdog(n, false) })
	root.AddCommand(c.member("stop-etcd", "Stop an etcd member, or all", (*Lab).StopEtcd), c.member("start-etcd", "Start an etcd member, or all", (*Lab).StartEtcd),
		c.member("pause-etcd", "Let an etcd member, or all, hang", (*Lab).PauseEtcd), c.member("resume-etcd", "Let an etcd member, or all, go on that was paused", (*Lab).ResumeEtcd))
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(msg)
	err := root.ExecuteContext(ctx)
	var code exitCode
	var use usage
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	_, _ = fmt.Fprintln(msg, "shaman-lab:", err)
	if errors.As(err, &use) || strings.Contains(err.Error(), "unknown command") || strings.Contains(err.Error(), "unknown flag") {
		return exitUsage
	}
	return 1
}

func (c *command) nodes(names []string, f func(*Lab, Node) error) error {
	l, err := Open(c.dir)
	if err != nil {
		return err
	}
	var nodes []Node
	for _, name := range names {
		n, err := l.Node(name)
		if err != nil {
			return usage{err}
		}
		nodes = append(nodes, n)
	}
	var errs []error
	for _, n := range nodes {
		errs = append(errs, f(l, n))
	}
	return errors.Join(errs...)
}

// options adds the flags of up and demo.
func (c *command) options(cmd *cobra.Command) func() (Options, error) {
	o := DefaultOptions()
	f := cmd.Flags()
	f.IntVar(&o.Nodes, "nodes", o.Nodes, "number of nodes")
	f.IntVar(&o.VEs, "ves", o.VEs, "number of VEs that run")
	f.IntVar(&o.StoppedVEs, "stopped-ves", o.StoppedVEs, "number of VEs that are stopped, on top")
	f.StringVar(&o.Policy, "policy", o.Policy, "RESOURCE_RELOCATION_MODE")
	f.IntVar(&o.EtcdMembers, "etcd-members", o.EtcdMembers, "1 or 3")
	lock := f.String("lock-timeout", "2s", "LOCK_TIMEOUT")
	nodeMemory := f.String("node-memory", "64GiB", "memory of a node")
	veMemory := f.String("ve-memory", "64MiB", "memory of a VE")
	f.StringVar(&o.Driver, "driver", "process", "what the VEs are: `process`, lxc or libvirt (QEMU); the latter two need root and their packages")
	f.BoolVar(&o.IPMI, "ipmi", false, "fence the nodes by fence_ipmilan through simulated BMCs")
	f.BoolVar(&o.Watchdog, "watchdog", false, "give each node a watchdog, which cuts its power (needs root)")
	return func() (Options, error) {
		var err error
		o.Dir = c.dir
		if o.LockTimeout, err = config.ParseDuration(*lock); err != nil {
			return o, usage{fmt.Errorf("--lock-timeout: %w", err)}
		}
		if o.NodeMemory, err = config.ParseSize(*nodeMemory); err != nil {
			return o, usage{fmt.Errorf("--node-memory: %w", err)}
		}
		if o.VEMemory, err = config.ParseSize(*veMemory); err != nil {
			return o, usage{fmt.Errorf("--ve-memory: %w", err)}
		}
		return o, nil
	}
}

func (c *command) say(format string, args ...any) { _, _ = fmt.Fprintf(c.out, format+"\n", args...) }

func (c *command) up() *cobra.Command {
	detach := false
	cmd := &cobra.Command{Use: "up", Short: "Make a lab and start it", Args: cobra.NoArgs,
		Long: "Make a lab and start it. Without --detach it prints 'ready' when all VEs run, and takes the lab down when it is interrupted."}
	options := c.options(cmd)
	cmd.Flags().BoolVar(&detach, "detach", false, "return when all VEs run, and leave the lab running")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := options()
		if err != nil {
			return err
		}
		l, err := Up(cmd.Context(), o, c.say)
		if err != nil {
			return err
		}
		c.say("try: shaman --config %s stat", l.Conf(l.Nodes[0]))
		c.say("ready")
		if detach {
			return nil
		}
		<-cmd.Context().Done()
		return l.Down()
	}
	return cmd
}

func (c *command) demo() *cobra.Command {
	cmd := &cobra.Command{Use: "demo", Short: "Show a failover: a lab, a power cut, a timeline, the proof", Args: cobra.NoArgs}
	options := c.options(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := options()
		if err != nil {
			return err
		}
		if !cmd.Flags().Changed("dir") {
			tmp, err := os.MkdirTemp("", "shaman-demo-")
			if err != nil {
				return fmt.Errorf("make a directory for the demo: %w", err)
			}
			o.Dir = filepath.Join(tmp, "lab")
			defer os.Remove(tmp) // empty only if all went well
		}
		return Demo(cmd.Context(), o, c.out)
	}
	return cmd
}

// The JSON of status: a written contract.
type statusJSON struct {
	Dir   string       `json:"dir"`
	Etcd  []memberJSON `json:"etcd"`
	Nodes []nodeJSON   `json:"nodes"`
}

type memberJSON struct {
	Member   int    `json:"member"`
	Endpoint string `json:"endpoint"`
	PID      int    `json:"pid"`
	Up       bool   `json:"up"`
}

type nodeJSON struct {
	Name       string   `json:"name"`
	HostID     string   `json:"host_id"`
	Conf       string   `json:"conf"`
	Power      string   `json:"power"`
	MonitorPID int      `json:"monitor_pid"`
	Cut        []string `json:"cut"`
	Paused     bool     `json:"paused"`
	Fencing    string   `json:"fencing"`
}

func (l *Lab) status() statusJSON {
	s := statusJSON{Dir: l.Dir, Etcd: []memberJSON{}, Nodes: []nodeJSON{}}
	for _, m := range l.Members {
		pid := l.MemberPID(m)
		s.Etcd = append(s.Etcd, memberJSON{Member: m.Number, Endpoint: m.Endpoint(), PID: pid, Up: pid != 0})
	}
	for _, n := range l.Nodes {
		j := nodeJSON{Name: n.Name, HostID: string(n.HostID), Conf: l.Conf(n), Power: string(l.Power(n)), MonitorPID: l.Monitor(n), Cut: []string{}, Paused: l.Paused(n), Fencing: "ok"}
		cut := l.Cuts(n)
		if cut.Etcd != "" {
			j.Cut = append(j.Cut, "etcd:"+cut.Etcd)
		}
		if cut.Mount != "" {
			j.Cut = append(j.Cut, "mount:"+cut.Mount)
		}
		if l.FencingBroken(n) {
			j.Fencing = "broken"
		}
		s.Nodes = append(s.Nodes, j)
	}
	return s
}

func (c *command) status() *cobra.Command {
	output := "table"
	cmd := &cobra.Command{Use: "status", Short: "Show what of the lab runs", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		l, err := Open(c.dir)
		if err != nil {
			return err
		}
		s := l.status()
		if output == "json" {
			enc := json.NewEncoder(c.out)
			enc.SetIndent("", "  ")
			return enc.Encode(s)
		}
		if output != "table" {
			return usage{fmt.Errorf("--output %q is not allowed; want table or json", output)}
		}
		w := tabwriter.NewWriter(c.out, 2, 8, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "ETCD\tENDPOINT\tPID\tUP")
		for _, m := range s.Etcd {
			_, _ = fmt.Fprintf(w, "%d\t%s\t%d\t%t\n", m.Member, m.Endpoint, m.PID, m.Up)
		}
		_, _ = fmt.Fprintln(w, "\nNODE\tHOST_ID\tPOWER\tMONITOR\tCUT\tPAUSED\tFENCING")
		for _, n := range s.Nodes {
			cut := strings.Join(n.Cut, ",")
			if cut == "" {
				cut = "-"
			}
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%t\t%s\n", n.Name, n.HostID, n.Power, n.MonitorPID, cut, n.Paused, n.Fencing)
		}
		return w.Flush()
	}}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "`table` or json")
	return cmd
}

func (c *command) check() *cobra.Command {
	return &cobra.Command{Use: "check", Short: "Prove that no VE ran twice and none is lost", Args: cobra.NoArgs,
		Long: "Prove, by the VEs' own logs and by what lies on the mount, that no two processes of one VE overlapped in time and that every resource is in exactly one place. Exit code 1, with the evidence, otherwise.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := Open(c.dir)
			if err != nil {
				return err
			}
			f, err := l.Check(cmd.Context())
			if err != nil {
				return err
			}
			for _, p := range f.Problems {
				c.say("PROBLEM %s", p)
			}
			c.say("%d of %d resources in exactly one place; %d lives of VEs compared, %d overlaps", f.VEs, len(l.VEs), f.Runs, f.Overlaps)
			if len(f.Problems) > 0 {
				return exitCode(1)
			}
			return nil
		}}
}

func (c *command) down() *cobra.Command {
	return &cobra.Command{Use: "down", Short: "End everything of the lab; its directory stays, with all logs", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		l, err := Open(c.dir)
		if err != nil {
			return err
		}
		return l.Down()
	}}
}

func (c *command) kill() *cobra.Command {
	return &cobra.Command{Use: "kill NODE...", Short: "Cut the power of nodes: everything of them, at once", Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		return c.nodes(args, (*Lab).Kill)
	}}
}

func (c *command) startCmd() *cobra.Command {
	return &cobra.Command{Use: "start NODE...", Short: "Switch nodes on, or start whatever of them does not run", Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		return c.nodes(args, (*Lab).Start)
	}}
}

func (c *command) pause() *cobra.Command {
	all := false
	cmd := &cobra.Command{Use: "pause NODE...", Short: "Stop a node's daemon (SIGSTOP) until 'resume'", Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		return c.nodes(args, func(l *Lab, n Node) error { return l.Pause(n, all) })
	}}
	cmd.Flags().BoolVar(&all, "all", false, "everything of the node, as a machine that stalls")
	return cmd
}

func (c *command) cutCmd() *cobra.Command {
	var from, how string
	cmd := &cobra.Command{Use: "cut NODE...", Short: "Cut a node from etcd, from the mount, or both", Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		switch {
		case how == "error", how == "hang":
		case from == "mount" && (how == "full" || how == "readonly"):
		default:
			return usage{fmt.Errorf("--how %q is not allowed; want error or hang, or with --from mount full or readonly", how)}
		}
		return c.nodes(args, func(l *Lab, n Node) error {
			cut := l.Cuts(n)
			switch from {
			case "etcd":
				cut.Etcd = how
			case "mount":
				cut.Mount = how
			case "all":
				cut = Cut{Etcd: how, Mount: how}
			default:
				return usage{fmt.Errorf("--from %q is not allowed; want etcd, mount or all", from)}
			}
			return l.SetCut(n, cut)
		})
	}}
	cmd.Flags().StringVar(&from, "from", "", "etcd, mount or all")
	cmd.Flags().StringVar(&how, "how", "error", "error or hang; a mount also full or readonly")
	return cmd
}

func (c *command) execCmd() *cobra.Command {
	return &cobra.Command{Use: "exec NODE -- COMMAND...", Short: "Run a command on a node", Args: cobra.MinimumNArgs(2), RunE: func(_ *cobra.Command, args []string) error {
		l, err := Open(c.dir)
		if err != nil {
			return err
		}
		n, err := l.Node(args[0])
		if err != nil {
			return usage{err}
		}
		code, err := l.Exec(n, args[1:])
		if err == nil && code != 0 {
			return exitCode(code)
		}
		return err
	}}
}

func (c *command) member(use, short string, f func(*Lab, Member) error) *cobra.Command {
	return &cobra.Command{Use: use + " [MEMBER]", Short: short, Args: cobra.MaximumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		l, err := Open(c.dir)
		if err != nil {
			return err
		}
		members := l.Members
		if len(args) == 1 {
			number, err := strconv.Atoi(args[0])
			if err != nil {
				return usage{fmt.Errorf("member %q: want a number from 1 to %d", args[0], len(l.Members))}
			}
			m, err := l.Member(number)
			if err != nil {
				return usage{err}
			}
			members = []Member{m}
		}
		var errs []error
		for _, m := range members {
			errs = append(errs, f(l, m))
		}
		return errors.Join(errs...)
	}}
}

// The three commands below are run by the lab itself.

// hidden is a process of one node, which other commands start.
func (c *command) hidden(use string, run func(*Lab, context.Context, Node) error) *cobra.Command {
	return &cobra.Command{Use: use + " NODE", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		l, err := Open(c.dir)
		if err != nil {
			return err
		}
		n, err := l.Node(args[0])
		if err != nil {
			return err
		}
		return run(l, cmd.Context(), n)
	}}
}

func (c *command) etcdMember() *cobra.Command {
	return &cobra.Command{Use: "etcd-member NUMBER", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		l, err := Open(c.dir)
		if err != nil {
			return err
		}
		number, err := strconv.Atoi(args[0])
		if err != nil {
			return usage{err}
		}
		m, err := l.Member(number)
		if err != nil {
			return err
		}
		return l.ServeEtcd(cmd.Context(), m)
	}}
}

func (c *command) fenceAgent() *cobra.Command {
	return &cobra.Command{Use: "fence-agent", Hidden: true, Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		l, err := Open(c.dir)
		if err != nil {
			return err
		}
		if code := l.FenceAgent(c.in, c.out, c.err); code != 0 {
			return exitCode(code)
		}
		return nil
	}}
}

func (c *command) chassis() *cobra.Command {
	return &cobra.Command{Use: "chassis NODE ADDRESS get|set|check PARAMETER...", Hidden: true, Args: cobra.MinimumNArgs(2), RunE: func(_ *cobra.Command, args []string) error {
		l, err := Open(c.dir)
		if err != nil {
			return err
		}
		n, err := l.Node(args[0])
		if err != nil {
			return err
		}
		return l.chassis(n, args[1:], bufio.NewWriter(c.out))
	}}
}

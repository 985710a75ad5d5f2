// Package cli is the shaman command: what operators type.
//
// Data goes to stdout, messages to stderr. The exit code is 0 done, 1 failed,
// 2 wrong verb for the present state, 3 etcd or master out of reach, 4 refused
// for safety, 5 done in part, 64 usage.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/dispatch"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/membership"
	"github.com/shaman-ha/shaman/internal/resources"
	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/term"
)

// Exit codes.
const (
	exitFailed  = 1
	exitState   = 2
	exitReach   = 3
	exitRefused = 4
	exitPart    = 5
	exitUsage   = 64
)

// codeError is an error with its exit code.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

func fail(code int, format string, args ...any) error {
	return &codeError{code, fmt.Errorf(format, args...)}
}

// app is one run of the command.
type app struct {
	in       io.Reader
	out, err io.Writer
	version  string

	configFile, clusterName, output string
	quiet, verbose, ignore          bool
	timeout                         time.Duration

	local  config.Local
	client *clientv3.Client
	keys   etcd.Layout
	store  *resources.Store
	self   cluster.NodeID
}

// Streams are where a run reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

const defaultConfig = "/etc/shaman/shaman.conf"

// Run runs the command and returns its exit code.
func Run(ctx context.Context, args []string, s Streams, version string) int {
	a := &app{in: s.In, out: s.Out, err: s.Err, version: version}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	if a.client != nil {
		_ = a.client.Close() // nothing is left to be done about it
	}
	return a.report(err)
}

func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	if a.ignore && (errors.Is(err, cluster.ErrNotJoined) || errors.Is(err, os.ErrNotExist)) {
		return 0
	}
	code := exitUsage // cobra's own errors: unknown commands, flags, arguments
	var ce *codeError
	var usage *config.UsageError
	var unsafe *config.UnsafeError
	switch {
	case errors.As(err, &ce):
		code = ce.code
	case errors.As(err, &usage):
	case errors.As(err, &unsafe):
		code = exitRefused
	case errors.Is(err, cluster.ErrNotJoined), errors.Is(err, membership.ErrJoined):
		code = exitState
	case errors.Is(err, cluster.ErrForeignNonce), errors.Is(err, dispatch.ErrBusy):
		code = exitFailed
	case errors.Is(err, dispatch.ErrNodeAway):
		code = exitReach
	}
	if !a.quiet {
		_, _ = fmt.Fprintln(a.err, "shaman:", err)
	}
	return code
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "shaman", Short: "Operate a cluster that keeps virtual machines and containers running",
		SilenceUsage: true, SilenceErrors: true,
	}
	f := root.PersistentFlags()
	f.StringVarP(&a.clusterName, "cluster", "c", "", "the cluster; reads /etc/shaman/`NAME`.conf if there is one")
	f.StringVar(&a.configFile, "config", defaultConfig, "this node's configuration `file`")
	f.StringVarP(&a.output, "output", "o", "table", "`table` or json")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print no messages")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "say more")
	f.BoolVarP(&a.ignore, "ignore", "i", false, "exit 0 quietly where this node is in no cluster")
	f.DurationVar(&a.timeout, "timeout", 120*time.Second, "how long to wait for what others have to do")
	root.AddCommand(
		a.joinCmd(), a.leaveCmd(), a.statCmd(), a.topCmd(), a.infoCmd(), a.eventsCmd(),
		a.getConfigCmd(), a.setConfigCmd(), a.getConfigLocalCmd(),
		a.getRolesCmd(), a.setRolesCmd("set-roles"), a.setRolesCmd("add-role"), a.listRolesCmd(),
		a.addCmd(), a.setCmd(), a.delCmd(), a.delEverywhereCmd(), a.renameCmd(), a.lastNodeCmd(),
		a.relocateCmd(), a.startCmd(), a.planCmd(), a.fenceCmd(), a.suspendCmd(), a.resumeCmd(), a.failoverCmd(), a.versionCmd(),
	)
	return root
}

// loadLocal reads the configuration of this node.
func (a *app) loadLocal() error {
	file := a.configFile
	if a.clusterName != "" && file == defaultConfig {
		named := filepath.Join("/etc/shaman", a.clusterName+".conf")
		if !strings.Contains(a.clusterName, "/") {
			if _, err := os.Stat(named); err == nil {
				file = named
			}
		}
	}
	l, warns, err := config.LoadLocal(file, os.Environ())
	for _, w := range warns {
		a.say("warning: %s", w)
	}
	if err != nil {
		return err
	}
	if a.clusterName != "" && a.clusterName != l.ClusterName {
		return fail(exitUsage, "%s is of cluster %q, not %q", file, l.ClusterName, a.clusterName)
	}
	if a.output != "table" && a.output != "json" {
		return fail(exitUsage, "--output %q is not allowed; want table or json", a.output)
	}
	a.local = l
	if a.self, err = config.ResolveHostID(l); err != nil {
		return err
	}
	a.keys = etcd.NewLayout(l.ClusterName)
	a.store = resources.NewStore(l.ClusterMount, nil)
	return nil
}

// connect reads the configuration and prepares the client of etcd.
func (a *app) connect() error {
	if err := a.loadLocal(); err != nil {
		return err
	}
	cl, err := etcd.Dial(etcd.Options{
		Endpoints: a.local.EtcdEndpoints, CACert: a.local.EtcdCACert, Cert: a.local.EtcdCert, Key: a.local.EtcdKey,
		Username: a.local.EtcdUsername, PasswordFile: a.local.EtcdPasswordFile, Logger: zap.NewNop(),
	})
	if err != nil {
		return fail(exitReach, "%w", err)
	}
	a.client = cl
	return nil
}

// reach gives an error of etcd its words and its exit code.
func (a *app) reach(err error) error {
	if err == nil || errors.Is(err, cluster.ErrNotJoined) || errors.Is(err, membership.ErrJoined) {
		return err
	}
	var ce *codeError
	if errors.As(err, &ce) {
		return err
	}
	if e := etcd.Explain(err); e.Error() != err.Error() {
		return fail(exitReach, "%w", e)
	}
	return err
}

func (a *app) members() *membership.Members {
	return membership.New(a.client, a.keys, zap.NewNop(), func() {})
}

// say prints a message for people.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		_, _ = fmt.Fprintf(a.err, format+"\n", args...)
	}
}

func (a *app) print(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format, args...) }

// terminal tells whether messages go to a person's screen.
func (a *app) terminal() bool {
	f, ok := a.err.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// interactive tells whether a person can answer.
func (a *app) interactive() bool {
	f, ok := a.in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// ask sends an action and shows its progress; the outcome decides the error.
func (a *app) ask(ctx context.Context, act cluster.Action) (cluster.Action, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.timeout, fmt.Errorf("no outcome within %s; it goes on, and 'shaman events' tells what becomes of it", a.timeout))
	defer cancel()
	last := ""
	got, err := dispatch.Ask(ctx, a.client, a.keys, act, func(p cluster.Action) {
		if s := string(p.State); s != last && a.terminal() && p.State != cluster.ActionDone {
			last = s
			a.say("%s %s: %s …", p.Verb, p.Resource, map[cluster.ActionState]string{cluster.ActionNew: "sent", cluster.ActionClaimed: "in work"}[p.State])
		}
	})
	if err != nil {
		return got, a.reach(err)
	}
	switch got.Outcome {
	case cluster.OutcomeOK, cluster.OutcomeStarted, cluster.OutcomeRegistered, cluster.OutcomeBroken:
		return got, nil
	case cluster.OutcomeRefused:
		code := exitRefused
		if strings.Contains(got.Error, cluster.ErrTaken.Error()) {
			code = exitState
		}
		return got, fail(code, "%s %s: %s", got.Verb, got.Resource, got.Error)
	case cluster.OutcomeGone:
		return got, fail(exitState, "%s %s: %s", got.Verb, got.Resource, got.Error)
	default:
		return got, fail(exitFailed, "%s %s: %s: %s", got.Verb, got.Resource, got.Outcome, got.Error)
	}
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		a.print("shaman %s\n", a.version)
		return nil
	}}
}

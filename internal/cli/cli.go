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
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode"

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
	tty      io.Writer // out itself, for top
	lost     *sink
	version  string

	configFile, clusterName, output string
	quiet, verbose, ignore          bool
	timeout                         time.Duration
	started                         bool       // the command line was understood
	joining                         bool       // the command is join itself
	noConfig                        bool       // there is no configuration file
	saying                          sync.Mutex // nodes are asked side by side

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
	lost := &sink{to: s.Out}
	a := &app{in: s.In, out: lost, err: s.Err, tty: s.Out, lost: lost, version: version}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(s.Err)
	err := root.ExecuteContext(ctx)
	if a.client != nil {
		_ = a.client.Close() // nothing is left to be done about it
	}
	if err == nil && lost.err != nil {
		err = fail(exitFailed, "write the answer: %w", lost.err)
	}
	if err != nil && ctx.Err() != nil {
		err = fail(exitFailed, "interrupted; what was sent already goes on, and 'shaman events' tells what becomes of it")
	}
	return a.report(err)
}

// sink remembers that what was printed did not arrive, e.g. on a full disk.
type sink struct {
	to  io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.to.Write(p)
	if err != nil && s.err == nil {
		s.err = err
	}
	return n, err
}

func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	if a.ignore && !a.joining && (errors.Is(err, cluster.ErrNotJoined) || a.noConfig) {
		return 0
	}
	code := exitFailed
	if !a.started { // cobra's own errors: unknown commands, flags, arguments
		code = exitUsage
	}
	var ce *codeError
	var usage *config.UsageError
	var unsafe *config.UnsafeError
	switch {
	case errors.As(err, &ce):
		code = ce.code
	case errors.As(err, &usage):
		code = exitUsage
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
		_, _ = fmt.Fprintln(a.err, "shaman:", cleanLines(err.Error()))
	}
	return code
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "shaman", Short: "Operate a cluster that keeps virtual machines and containers running",
		SilenceUsage: true, SilenceErrors: true, RunE: group,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "table" && a.output != "json" {
				return fail(exitUsage, "--output %q is not allowed; want table or json", a.output)
			}
			a.started = true
			return nil
		},
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
		a.relocateCmd(), a.startCmd(), a.moveFromCmd(), a.moveToCmd(), a.syncCmd(), a.cleanupBrokenCmd(), a.planCmd(), a.fenceCmd(), a.suspendCmd(), a.maintenanceCmd(), a.resumeCmd(), a.failoverCmd(), a.doctorCmd(), a.versionCmd(),
	)
	return root
}

// group is a command that only has others below it.
func group(c *cobra.Command, args []string) error {
	var have []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			have = append(have, sub.Name())
		}
	}
	if len(args) > 0 {
		return fail(exitUsage, "unknown command %q for %q; want %s", args[0], c.CommandPath(), strings.Join(have, ", "))
	}
	return fail(exitUsage, "name a command: %s; '%s --help' tells what they do", strings.Join(have, ", "), c.CommandPath())
}

// localFile is the configuration file that the flags mean.
func (a *app) localFile() string {
	file := a.configFile
	if a.clusterName != "" && file == defaultConfig {
		named := filepath.Join("/etc/shaman", a.clusterName+".conf")
		if !strings.Contains(a.clusterName, "/") {
			if _, err := os.Stat(named); err == nil {
				file = named
			}
		}
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		a.noConfig = true
	}
	return file
}

// loadLocal reads the configuration of this node.
func (a *app) loadLocal() error {
	file := a.localFile()
	l, warns, err := config.LoadLocal(file, os.Environ())
	for _, w := range warns {
		a.say("warning: %s", w)
	}
	if err != nil {
		return err
	}
	if err := a.named(file, l); err != nil {
		return err
	}
	a.local = l
	if a.self, err = config.ResolveHostID(l); err != nil {
		return err
	}
	a.keys = etcd.NewLayout(l.ClusterName)
	a.store = resources.NewStore(l.ClusterMount, nil)
	return nil
}

// named makes sure that a file is of the cluster that -c means.
func (a *app) named(file string, l config.Local) error {
	if a.clusterName != "" && a.clusterName != l.ClusterName {
		return fail(exitUsage, "%s is of cluster %q, not %q", file, l.ClusterName, a.clusterName)
	}
	return nil
}

// connect reads the configuration and prepares the client of etcd.
func (a *app) connect(ctx context.Context) error {
	if err := a.loadLocal(); err != nil {
		return err
	}
	if err := a.dial(); err != nil {
		return err
	}
	if a.ignore && !a.joining {
		// A caller that passes -i means this node's own VEs: where it is no member
		// nothing is done, also not to another node's resource of the same name.
		ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
		defer cancel()
		if _, _, err := a.members().Get(ctx, a.self); errors.Is(err, cluster.ErrNotJoined) {
			return err
		}
	}
	return nil
}

// dial prepares the client of etcd.
func (a *app) dial() error {
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
	if errors.Is(err, cluster.ErrHold) { // the mount's time-outs are none of etcd's
		return fail(exitFailed, "%w", err)
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
		a.saying.Lock()
		defer a.saying.Unlock()
		_, _ = fmt.Fprintln(a.err, cleanLines(fmt.Sprintf(format, args...)))
	}
}

func (a *app) print(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format, args...) }

// clean keeps text that others wrote from breaking a table or a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// cleanLines is clean for what may have several lines.
func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// terminal tells whether messages go to a person's screen.
func (a *app) terminal() bool { return isTerminal(a.err) }

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// ask sends an action and shows its progress; the outcome decides the error.
func (a *app) ask(ctx context.Context, act cluster.Action) (cluster.Action, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.timeout, fmt.Errorf("no outcome within %s; it goes on, and 'shaman events' tells what becomes of it", a.timeout))
	defer cancel()
	last := ""
	got, err := a.send(ctx, act, func(p cluster.Action) {
		if s := string(p.State); s != last && a.terminal() && p.State != cluster.ActionDone {
			last = s
			a.say("%s %s: %s …", p.Verb, p.Resource, map[cluster.ActionState]string{cluster.ActionNew: "sent", cluster.ActionClaimed: "in work"}[p.State])
		}
	})
	if err != nil {
		return got, a.reach(err)
	}
	what, why := strings.TrimSpace(string(got.Verb)+" "+string(got.Resource)), strings.TrimPrefix(got.Error, "refused: ")
	switch got.Outcome {
	case cluster.OutcomeOK, cluster.OutcomeStarted, cluster.OutcomeRegistered:
		return got, nil
	case cluster.OutcomeRefused:
		code := exitRefused
		if strings.Contains(got.Error, cluster.ErrTaken.Error()) {
			code = exitState
		}
		return got, fail(code, "%s: %s", what, why)
	case cluster.OutcomeGone:
		return got, fail(exitState, "%s: %s", what, why)
	default:
		return got, fail(exitFailed, "%s: %s: %s", what, got.Outcome, why)
	}
}

// leftover is how long a finished action may wait for being archived.
const leftover = 5 * time.Second

// send asks again while only a finished action, which the master has yet to
// archive, is in the way: nothing is under way then.
func (a *app) send(ctx context.Context, act cluster.Action, progress func(cluster.Action)) (cluster.Action, error) {
	for deadline := time.Now().Add(leftover); ; {
		got, err := dispatch.Ask(ctx, a.client, a.keys, act, progress)
		again := false
		switch {
		case time.Now().After(deadline):
		case errors.Is(err, dispatch.ErrBusy):
			other, ok, rerr := a.action(ctx, act)
			again = rerr == nil && (!ok || other.State == cluster.ActionDone)
		case errors.Is(err, dispatch.ErrNodeAway): // also if what was in the way went before it was looked at
			again = a.alive(ctx, act.Node)
		}
		if !again {
			return got, err
		}
		select {
		case <-ctx.Done():
			return got, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// alive tells whether a node is admitted now.
func (a *app) alive(ctx context.Context, n cluster.NodeID) bool {
	ctx, cancel := context.WithTimeout(ctx, etcd.RequestTimeout)
	defer cancel()
	resp, err := a.client.Get(ctx, a.keys.Alive(n), clientv3.WithKeysOnly())
	return err == nil && len(resp.Kvs) > 0
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		a.print("shaman %s\n", a.version)
		return nil
	}}
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

package cli

import (
	"context"
	"strings"

	"github.com/shaman-ha/shaman/internal/config"
	"github.com/spf13/cobra"
)

func (a *app) getConfigCmd() *cobra.Command {
	return &cobra.Command{Use: "get-config", Short: "Print the cluster-wide parameters", Args: cobra.NoArgs,
		Long: "Print the cluster-wide parameters in force. With -v also the times that follow from them: how long until a lost node is proven harmless, by each method.",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			set, err := config.NewStore(a.client, a.keys).Get(c.Context())
			if err != nil {
				return a.reach(err)
			}
			n, err := a.countNodes(c.Context())
			if err != nil {
				return a.reach(err)
			}
			cfg, err := stored(set)
			if err != nil {
				return err
			}
			if a.output == "json" {
				out := map[string]string{}
				for _, l := range cfg.Lines(false, n) {
					k, v, _ := strings.Cut(l, "=")
					out[k] = v
				}
				return a.printJSON(out)
			}
			for _, l := range cfg.Lines(a.verbose, n) {
				a.print("%s\n", l)
			}
			return nil
		}}
}

// stored reads the parameters that etcd holds. That they cannot be used is no
// mistake of who runs the command.
func stored(set map[string]string) (config.Cluster, error) {
	cfg, _, err := config.ParseCluster(set)
	if err != nil {
		return cfg, fail(exitFailed, "the cluster-wide parameters in etcd cannot be used: %w; 'shaman set-config KEY=' returns one to its default", err)
	}
	return cfg, nil
}

// countNodes counts the members; one default depends on it.
func (a *app) countNodes(ctx context.Context) (int, error) {
	s := newSnapshot()
	err := a.lookEtcd(ctx, s)
	return len(s.facts.Nodes), err
}

func (a *app) setConfigCmd() *cobra.Command {
	return &cobra.Command{Use: "set-config KEY=VALUE...", Short: "Change cluster-wide parameters, all or none", Args: cobra.MinimumNArgs(1),
		Long: "Change cluster-wide parameters, all or none. KEY= returns to the default. Values between which the safety argument does not hold are refused (exit code 4).",
		RunE: func(c *cobra.Command, args []string) error {
			changes, err := config.ParseSet(args)
			if err != nil {
				return err
			}
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			var warns []config.Warning
			err = config.NewStore(a.client, a.keys).Set(c.Context(), changes, func(merged map[string]string) (err error) {
				_, warns, err = config.ParseCluster(merged)
				return err
			})
			if err != nil {
				return a.reach(err)
			}
			for _, w := range warns {
				if k, _, _ := strings.Cut(string(w), " "); changes[strings.SplitN(k, "=", 2)[0]] != "" {
					a.say("warning: %s", w)
				}
			}
			for _, k := range []string{"LOCK_TIMEOUT", "SELF_FENCE_TIMEOUT", "HEARTBEAT_INTERVAL"} {
				if _, ok := changes[k]; ok {
					a.say("%s is taken over by each daemon when it restarts ('systemctl restart shaman-monitor' on one node after the other; VEs run on)", k)
				}
			}
			return nil
		}}
}

func (a *app) getConfigLocalCmd() *cobra.Command {
	return &cobra.Command{Use: "get-config-local", Short: "Print this node's configuration; with -v where each value comes from", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := a.loadLocal(); err != nil {
				return err
			}
			if a.output == "json" {
				out := map[string]string{}
				for _, l := range a.local.Lines(false) {
					k, v, _ := strings.Cut(l, "=")
					out[k] = v
				}
				return a.printJSON(out)
			}
			for _, l := range a.local.Lines(a.verbose) {
				a.print("%s\n", l)
			}
			return nil
		}}
}

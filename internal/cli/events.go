package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/spf13/cobra"
)

// eventFilter says which events are wanted.
type eventFilter struct {
	since    time.Time
	resource string
	node     cluster.NodeID
}

func (f eventFilter) wants(e cluster.Event) bool {
	return !e.Time.Before(f.since) && (f.resource == "" || string(e.Resource) == f.resource) && (f.node == "" || e.Node == f.node || e.Subject == f.node)
}

func (a *app) eventsCmd() *cobra.Command {
	var follow bool
	var since, resource, node string
	c := &cobra.Command{Use: "events", Short: "Show what happened and why", Args: cobra.NoArgs,
		Long: "Show what happened and why, merged from the event logs of all nodes on the mount. It works without etcd.",
		RunE: func(c *cobra.Command, _ []string) error {
			f := eventFilter{resource: resource}
			if c.Flags().Changed("resource") {
				if _, err := cluster.ParseResourceID(resource); err != nil {
					return fail(exitUsage, "--resource: %w", err)
				}
			}
			if since != "" {
				d, err := config.ParseDuration(since)
				if err != nil {
					return fail(exitUsage, "--since: %w", err)
				}
				f.since = time.Now().Add(-d)
			}
			if err := a.connect(c.Context()); err != nil {
				return err
			}
			s := a.look(c.Context())
			if c.Flags().Changed("node") {
				n, err := s.node(node)
				switch id, idErr := cluster.ParseNodeID(node); {
				case err == nil:
					f.node = n.ID
				case idErr == nil: // also of a node that has left
					f.node = id
				case s.etcdErr != nil:
					return fail(exitReach, "%w; without etcd --node takes a host id only", s.etcdErr)
				default:
					return err
				}
			}
			if s.mountErr != nil {
				return fmt.Errorf("the event logs are on the mount: %w", s.mountErr)
			}
			return a.events(c.Context(), f, follow, s)
		}}
	fl := c.Flags()
	fl.BoolVarP(&follow, "follow", "f", false, "go on with new events until interrupted")
	fl.StringVar(&since, "since", "", "only the last `duration`, such as 10m")
	fl.StringVar(&resource, "resource", "", "only of this resource")
	fl.StringVar(&node, "node", "", "only by or about this node")
	return c
}

// events prints, by the place in the merged logs; a follower looks again and
// prints what it has not printed.
func (a *app) events(ctx context.Context, f eventFilter, follow bool, s *snapshot) error {
	printed := map[string]bool{}
	for {
		all, damaged, err := a.store.Events(ctx)
		if err != nil {
			return fail(exitFailed, "%w; is the shared file system mounted at %s?", err, a.local.ClusterMount)
		}
		for _, e := range all {
			b, err := json.Marshal(e)
			if err != nil {
				return fmt.Errorf("encode an event: %w", err)
			}
			if !f.wants(e) || printed[string(b)] {
				continue
			}
			printed[string(b)] = true
			if a.output == "json" {
				a.print("%s\n", b)
				continue
			}
			about := ""
			switch {
			case e.Resource != "":
				about = string(e.Resource) + ": "
			case e.Subject != "" && e.Subject != e.Node:
				about = s.name(e.Subject) + ": "
			}
			if strings.HasPrefix(e.Message, "node "+about) {
				about = ""
			}
			a.print("%s  %-8s  %-18s  %s%s\n", e.Time.Local().Format("2006-01-02 15:04:05.000"), s.name(e.Node), e.Kind, about, clean(e.Message))
		}
		if damaged > 0 && !follow {
			a.say("warning: %d lines of the event logs cannot be read", damaged)
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
	}
}

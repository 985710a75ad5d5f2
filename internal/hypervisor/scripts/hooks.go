package scripts

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
)

// HookOptions are the options of Hooks. Dirs, Mount and StateDir are those of the driver.
type HookOptions struct {
	Dirs     []string
	Mount    string
	StateDir string
	Cluster  string
	Node     cluster.NodeID
	// Address tells a node's address for IP_ADDRESS; nil, or "" = not known. It does not block.
	Address func(cluster.NodeID) string
	// Timeout is how long one script may take; 0 = 10 s.
	Timeout time.Duration
	// Queue is how many events may wait for their scripts; 0 = 1000.
	Queue  int
	Logger *zap.Logger
}

// Hooks run the common scripts that are told of events (notify), asked where
// resources go (schedule), and run when the node leaves the cluster (leave). What
// they do, or fail to do, holds up nothing.
type Hooks struct {
	o       HookOptions
	mirrors []*mirror
	events  chan cluster.Event
	lost    atomic.Int64
	turns   driverkit.Turns // a script that cannot be killed holds up only those for its purpose
}

// NewHooks returns the hooks. It waits for the shared scripts for a bounded time.
func NewHooks(o HookOptions) (*Hooks, error) {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Queue == 0 {
		o.Queue = 1000
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Dirs == nil {
		o.Dirs = Options{Mount: o.Mount}.withDefaults().Dirs
	}
	mirrors, err := newMirrors(o.Dirs, o.Mount, filepath.Join(o.StateDir, "hooks"), o.Logger)
	if err != nil {
		return nil, fmt.Errorf("hook scripts: %w", err)
	}
	return &Hooks{o: o, mirrors: mirrors, events: make(chan cluster.Event, o.Queue)}, nil
}

// Notify has the scripts for notify told of an event. It never blocks; when more
// events wait than fit, the event is dropped, counted, and the loss is logged.
func (h *Hooks) Notify(e cluster.Event) {
	select {
	case h.events <- e:
	default:
		h.lost.Add(1)
	}
}

// Lost is how many events were dropped.
func (h *Hooks) Lost() int64 { return h.lost.Load() }

// Run runs the scripts for notify, one event after the other, until ctx ends.
func (h *Hooks) Run(ctx context.Context) error {
	var told int64
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case e := <-h.events:
			h.notify(ctx, e)
		}
		if lost := h.lost.Load(); lost > told {
			h.o.Logger.Error("events were not told to the scripts for notify, which are too slow", zap.Int64("events", lost-told))
			told = lost
		}
	}
}

// notify runs all scripts for notify: one that fails takes nothing from the next.
func (h *Hooks) notify(ctx context.Context, e cluster.Event) {
	subject := e.Subject
	if subject == "" {
		subject = e.Node
	}
	address := ""
	if h.o.Address != nil {
		address = h.o.Address(subject)
	}
	env := []string{
		"EVENT=" + strings.ToUpper(strings.ReplaceAll(e.Kind, "-", "_")), "SRC_NODE_ID=" + string(subject), "IP_ADDRESS=" + address, "RESOURCE=" + string(e.Resource),
		"SHAMAN_EVENT=" + e.Kind, "SHAMAN_WRITER=" + string(e.Node), "SHAMAN_SUBJECT=" + string(subject), "SHAMAN_RESOURCE=" + string(e.Resource),
		"SHAMAN_FAILOVER=" + e.Failover, "SHAMAN_EPOCH=" + strconv.FormatInt(int64(e.Epoch), 10), "SHAMAN_TIME=" + e.Time.Format(time.RFC3339Nano),
		"SHAMAN_MESSAGE=" + strings.ReplaceAll(e.Message, "\x00", ""),
	}
	h.each(ctx, purposeNotify, []string{e.Kind, string(subject), string(e.Resource)}, env, func() string { return "" }, nil)
}

// Leave runs the scripts for leave: this node leaves the cluster. Their failure
// is logged, and keeps no node in the cluster.
func (h *Hooks) Leave(ctx context.Context) {
	h.each(ctx, purposeLeave, []string{string(h.o.Node)}, nil, func() string { return "" }, nil)
}

// Schedule asks the scripts for schedule where resources go, each for those that
// the ones before it left open. What is not in the answer is for
// RESOURCE_RELOCATION_MODE to place. Only a node of nodes is ever in the answer.
func (h *Hooks) Schedule(ctx context.Context, resources []cluster.Resource, nodes []cluster.Node) map[cluster.ResourceID]cluster.NodeID {
	out := map[cluster.ResourceID]cluster.NodeID{}
	byWord := map[string]cluster.NodeID{}
	var head strings.Builder
	for _, n := range nodes {
		byWord[string(n.ID)] = n.ID
		fmt.Fprintf(&head, "node\t%s\t%s\t%s\t%d\t%d\t%s\n", n.ID, n.Name, n.Address, n.Capacity.Memory, n.Usage.Memory, rolesOf(n))
	}
	left := slices.Clone(resources)
	stdin := func() string {
		if len(left) == 0 {
			return ""
		}
		var b strings.Builder
		b.WriteString(head.String())
		for _, r := range left {
			fmt.Fprintf(&b, "resource\t%s\t%s\t%s\t%d\t%d\t%s\n", r.ID, r.Kind, r.LastNode, r.Priority, r.Memory, r.Path)
		}
		return b.String()
	}
	h.each(ctx, purposeSchedule, nil, nil, stdin, func(path, printed string) {
		left = h.placed(path, printed, left, byWord, out)
	})
	return out
}

// placed takes the lines "<resource> <node>" that a script printed into out, and
// returns the resources that are left.
func (h *Hooks) placed(path, printed string, left []cluster.Resource, nodes map[string]cluster.NodeID, out map[cluster.ResourceID]cluster.NodeID) []cluster.Resource {
	open := map[cluster.ResourceID]bool{}
	for _, r := range left {
		open[r.ID] = true
	}
	for _, line := range strings.Split(printed, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		var node cluster.NodeID
		if len(f) == 2 {
			node = nodes[f[1]]
		}
		if node == "" || !open[cluster.ResourceID(f[0])] {
			h.o.Logger.Warn("a line of a script for schedule is not used: want the id of a resource and of a node that it was given", zap.String("path", path), zap.String("line", brief(line)))
			continue
		}
		out[cluster.ResourceID(f[0])] = node
		delete(open, cluster.ResourceID(f[0]))
	}
	return slices.DeleteFunc(left, func(r cluster.Resource) bool { return !open[r.ID] })
}

func rolesOf(n cluster.Node) string {
	var words []string
	for _, r := range n.Roles {
		words = append(words, string(r))
	}
	return strings.Join(words, ",")
}

// each runs the scripts for a purpose one after the other, whatever becomes of
// each, and hands on what the good ones printed. It ends early when stdin, which
// is asked before each, was not empty and is now.
func (h *Hooks) each(ctx context.Context, purpose string, args, env []string, stdin func() string, printed func(path, out string)) {
	chain, err := finderOf(h.mirrors).chain(purpose, "")
	if err != nil {
		h.o.Logger.Error("the scripts are not run", zap.String("purpose", purpose), zap.Error(err))
		return
	}
	args = append([]string{purpose}, args...)
	env = append([]string{"SHAMAN_PURPOSE=" + purpose, "SHAMAN_CLUSTER=" + h.o.Cluster, "SHAMAN_NODE=" + string(h.o.Node), "SHAMAN_MOUNT=" + h.o.Mount}, env...)
	for _, s := range chain {
		in := stdin()
		if in == "" && printed != nil {
			return
		}
		sctx, cancel := context.WithTimeout(ctx, h.o.Timeout)
		var out string
		err := h.turns.Do(sctx, purpose, func() error {
			r, err := runScript(sctx, nil, s.path, args, env, in)
			out = r.Stdout
			return err
		})
		cancel()
		if ctx.Err() != nil && err != nil {
			return
		}
		if err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("it had %s: %w", h.o.Timeout, err)
			}
			h.o.Logger.Error("a hook script failed", zap.String("purpose", purpose), zap.String("path", s.path), zap.Error(err))
			continue
		}
		if printed != nil {
			printed(s.path, out)
		}
	}
}

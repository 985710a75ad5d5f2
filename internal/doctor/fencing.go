package doctor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/fencing"
)

// FenceFact is what a node's fence agent answers from here.
type FenceFact struct {
	Member  Member // of a file without a member, and while etcd is away, only the name is set
	Agent   string
	ConfErr error // its configuration is missing (fencing.ErrNotConfigured) or cannot be used
	Power   fencing.Power
	Err     error // of the status
	Took    time.Duration
}

// agentsAtOnce bounds the agents that run side by side.
const agentsAtOnce = 32

// AskAgents asks each member's agent for its status, which changes nothing.
func AskAgents(ctx context.Context, dir string, members []Member, deadline time.Duration) []FenceFact {
	out := make([]FenceFact, len(members))
	slots := make(chan struct{}, agentsAtOnce)
	var running sync.WaitGroup
	for i, m := range members {
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeoutCause(ctx, deadline, fmt.Errorf("no answer within %s", deadline))
			defer cancel()
			f := FenceFact{Member: m, Power: fencing.PowerUnknown}
			begin := time.Now()
			var c fencing.Config
			if c, f.ConfErr = fencing.Load(dir, m.ID, m.Name); f.ConfErr == nil {
				f.Agent = c.Agent
				f.Power, f.Err = c.Status(ctx, m.Name)
				f.Took = time.Since(begin)
			}
			out[i] = f
		})
	}
	running.Wait()
	return out
}

// FencePolicy is what of the cluster-wide parameters decides which proof counts.
type FencePolicy struct {
	Dir          string   // FENCE_DIR
	Methods      []string // FENCE_METHODS
	TrustVirtual bool     // WATCHDOG_TRUST_VIRTUAL
}

// watchdogCounts tells whether a node's own watchdog would prove it harmless.
func (p FencePolicy) watchdogCounts(m Member) bool {
	return slices.Contains(p.Methods, "watchdog") && m.Watchdog.Counts(p.TrustVirtual)
}

// left names the methods that are there without a node's agent.
func (p FencePolicy) left(m Member) string {
	var out []string
	if p.watchdogCounts(m) {
		out = append(out, "its watchdog")
	}
	if slices.Contains(p.Methods, "storage") {
		out = append(out, "its own answer through the mount, if it lives and has only lost etcd")
	}
	out = append(out, "its own reboot")
	if slices.Contains(p.Methods, "manual") {
		out = append(out, "your word")
	}
	return strings.Join(out, "; ")
}

// slowAgent is an answer that eats up much of the deadline of a whole proof.
const slowAgent = 10 * time.Second

// JudgeFencing judges how the other nodes could be proven harmless.
func JudgeFencing(facts []FenceFact, p FencePolicy) []Finding {
	j := judgement{check: Fencing}
	for _, f := range facts {
		name, file := f.Member.Name, filepath.Join(p.Dir, f.Member.Name+".conf")
		counts := p.watchdogCounts(f.Member)
		lacking := func(mend, format string, args ...any) {
			why := fmt.Sprintf(format, args...)
			if counts {
				j.warn(name, mend, "%s; what is left: %s", why, p.left(f.Member))
				return
			}
			j.fail(name, mend, "%s, and it has no armed watchdog that counts: if it loses power nothing of it moves until an operator confirms; what is left: %s", why, p.left(f.Member))
		}
		switch {
		case errors.Is(f.ConfErr, fencing.ErrNotConfigured):
			lacking(fmt.Sprintf("make %s (mode 0600), then 'shaman fence test %s'", file, name), "no fence agent is configured for it here")
		case f.ConfErr != nil:
			lacking(fmt.Sprintf("mend %s, then 'shaman fence test %s'", file, name), "its fence agent cannot be used: %s", cluster.OneLine(f.ConfErr))
		case f.Power == fencing.PowerUnknown:
			lacking(fmt.Sprintf("mend the agent, its file %s or the way to the power switch, then 'shaman fence test %s'", file, name), "its fence agent gives no status from here: %s", cluster.OneLine(f.Err))
		case f.Power == fencing.PowerOff && f.Member.Alive:
			j.fail(name, fmt.Sprintf("NOW: mend the plug, port or address in %s, then 'shaman fence test %s'", file, name),
				"its fence agent (%s) says that it is off, and its daemon is alive: the file is for another machine, or the agent does not tell the truth. A failover would cut that machine's power and prove nothing of this one", filepath.Base(f.Agent))
		case !slices.Contains(p.Methods, "agent"):
			lacking("shaman set-config FENCE_METHODS="+strings.Join(append(slices.Clone(p.Methods), "agent"), ","), "its fence agent works, and FENCE_METHODS=%s does not use it", strings.Join(p.Methods, ","))
		case f.Took > slowAgent:
			j.warn(name, "look at the power switch's load and network", "power is %s by %s, whose status took %s; all of a proof has to be done within %s", f.Power, filepath.Base(f.Agent), round(f.Took), fencing.Deadline)
		default:
			also := ""
			if counts {
				also = "; its watchdog counts as well"
			}
			j.ok(name, "power is %s by %s (%s)%s", f.Power, filepath.Base(f.Agent), round(f.Took), also)
		}
	}
	return j.found
}

// JudgeAlone judges agents when nobody knows who is a member: each file is
// named after a node.
func JudgeAlone(facts []FenceFact) []Finding {
	j := judgement{check: Fencing}
	for _, f := range facts {
		mend := fmt.Sprintf("mend it; 'shaman fence test %s' once etcd is back", f.Member.Name)
		switch {
		case f.ConfErr != nil:
			j.fail(f.Member.Name, mend, "its fence agent cannot be used: %s", cluster.OneLine(f.ConfErr))
		case f.Power == fencing.PowerUnknown:
			j.fail(f.Member.Name, mend, "its fence agent gives no status from here: %s", cluster.OneLine(f.Err))
		default:
			j.ok(f.Member.Name, "power is %s by %s (%s); without etcd it cannot be compared with what is alive", f.Power, filepath.Base(f.Agent), round(f.Took))
		}
	}
	return j.found
}

// JudgeStrays finds fence files that are for no member, most often a slip in a name.
func JudgeStrays(dir string, files []string, members []Member) []Finding {
	j := judgement{check: Secrets}
	var names []string
	for _, m := range members {
		names = append(names, m.Name, string(m.ID))
	}
	for _, f := range files {
		if slices.Contains(names, f) {
			continue
		}
		j.warn(filepath.Join(dir, f+".conf"), "name it <node's name>.conf or <host id>.conf, or remove it", "no member has the name or host id %q, so nobody is fenced by it", f)
	}
	return j.found
}

package failover

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// recent bounds how long a lost node counts for the brake.
const recent = time.Hour

// Decide returns what to do next, in order. It is pure, and deciding again after
// the steps have taken effect returns nothing that was done already.
func Decide(o Observation, place Place) []Step {
	var steps []Step
	lost := lostNodes(&o)
	brake := decideBrake(&o, lost)
	if s, changed := brakeStep(&o, brake); changed {
		steps = append(steps, s)
	}
	for _, n := range lost {
		if s, ok := decideOpen(&o, n, brake); ok {
			steps = append(steps, s)
		}
	}
	for _, id := range sortedFailovers(o.Failovers) {
		f := o.Failovers[id]
		if f.Err == nil && !f.Value.Phase.Sealed() && f.Value.Phase != cluster.PhaseWithdrawn {
			steps = append(steps, decideUnsealed(&o, f, brake)...)
		}
	}
	steps = append(steps, decideActions(&o, place)...)
	for _, id := range sortedFailovers(o.Failovers) {
		f := o.Failovers[id]
		if f.Err == nil && f.Value.Phase == cluster.PhaseRelocating {
			steps = append(steps, decideFinish(&o, f)...)
		}
	}
	return append(steps, decideForget(&o)...)
}

func sortedFailovers(m map[cluster.FailoverID]cluster.Versioned[cluster.Failover]) []cluster.FailoverID {
	return slices.SortedFunc(maps.Keys(m), func(a, b cluster.FailoverID) int { return strings.Compare(a.String(), b.String()) })
}

// lostNodes are the members that were admitted once, are not alive, and did not
// say goodbye, or did it by shutting their host down and are to be moved for that.
func lostNodes(o *Observation) []cluster.NodeID {
	var out []cluster.NodeID
	for id, e := range o.Nodes {
		_, alive := o.Alive[id]
		lost := e.Value.Stopped == cluster.NotStopped || e.Value.Stopped == cluster.StopDown && o.MoveDown
		if e.Err == nil && !alive && lost && e.Value.BootID != "" {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// brakeNodes are the nodes that count for the brake. A node counts as soon as it
// is silent on either channel: nodes that are lost together are counted together
// although their leases end at different moments. One that an operator has
// confirmed or released does not count.
func brakeNodes(o *Observation, lost []cluster.NodeID) []cluster.NodeID {
	counts := func(id cluster.NodeID) bool {
		rec := o.Nodes[id].Value
		f, open := o.Failovers[cluster.FailoverID{Node: id, Incarnation: rec.Incarnation}]
		_, back := o.Recovering[id]
		switch {
		case back, rec.Released == rec.Incarnation && rec.Incarnation != 0, rec.Stopped == cluster.StopDown:
			return false
		case open && (f.Value.Phase.Sealed() || f.Value.Phase == cluster.PhaseAwaitingFence || f.Value.Proof == manual):
			return false
		}
		since, seen := o.LostSince[id]
		return !seen || o.Now.Sub(since) < recent
	}
	var out []cluster.NodeID
	for _, id := range lost {
		if counts(id) {
			out = append(out, id)
		}
	}
	for id := range o.Alive {
		if e, ok := o.Nodes[id]; ok && o.Pulses[id] == PulseSilent && id != o.Self && e.Value.Stopped == cluster.NotStopped && counts(id) {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// decideBrake returns the nodes that are held back, if they are too many. Once
// the brake is on, it stays on for a while after fewer are lost: a site that
// comes back after a power cut comes node by node, and the last one on its way
// must not be taken for the only one that is gone.
func decideBrake(o *Observation, lost []cluster.NodeID) []cluster.NodeID {
	out := brakeNodes(o, lost)
	if len(out) >= o.SkipThreshold {
		return out
	}
	if o.Brake != nil && !after(o.Now, o.FewerSince, o.FewerSince != 0, o.Timing.Settle()) {
		return out
	}
	return nil
}

func brakeStep(o *Observation, brake []cluster.NodeID) (Step, bool) {
	if len(brake) == 0 {
		return Step{Do: ActBrake, Reason: "fewer nodes are lost than RELOCATION_SKIP_THRESHOLD"}, o.Brake != nil
	}
	if o.Brake != nil && slices.Equal(o.Brake.Nodes, brake) && o.Brake.Threshold == o.SkipThreshold {
		return Step{}, false
	}
	names := make([]string, len(brake))
	for i, id := range brake {
		names[i] = o.name(id)
	}
	reason := fmt.Sprintf("%d nodes are lost at once (%s) and RELOCATION_SKIP_THRESHOLD is %d: nothing more is taken over until fewer are, or 'shaman failover release NODE' (or --all) says that they may be",
		len(brake), strings.Join(names, ", "), o.SkipThreshold)
	if len(brake) < o.SkipThreshold {
		reason = fmt.Sprintf("after RELOCATION_SKIP_THRESHOLD (%d) nodes were lost at once, others are back and %s may be on the way: nothing is taken over until no more have come for %s, or 'shaman failover release NODE' (or --all) says that it may be",
			o.SkipThreshold, strings.Join(names, ", "), o.Timing.Settle())
	}
	since := o.Clock.UTC().Format(time.RFC3339Nano)
	if o.Brake != nil {
		since = o.Brake.Since
	}
	return Step{Do: ActBrake, Reason: reason, Brake: &cluster.Brake{Threshold: o.SkipThreshold, Nodes: brake, Since: since, Reason: reason}}, true
}

func decideOpen(o *Observation, id cluster.NodeID, brake []cluster.NodeID) (Step, bool) {
	rec := o.Nodes[id]
	fid := cluster.FailoverID{Node: id, Incarnation: rec.Value.Incarnation}
	if _, there := o.Failovers[fid]; there || len(brake) > 0 && rec.Value.Released != rec.Value.Incarnation {
		return Step{}, false
	}
	since, seen := o.LostSince[id]
	if !seen || o.Now.Sub(since) < o.Patience {
		return Step{}, false
	}
	rg, back := o.Recovering[id]
	if id == o.Self && !rg.Value.Quiesced {
		return Step{}, false // it comes in by itself, or another master looks after it
	}
	if back {
		// On its way in. Only one that does not get on is failed over.
		at, seen := o.RecoveringSince[id]
		if rg.Value.NotQuiesced || !seen || o.Now.Sub(at) < o.Timing.Lease {
			return Step{}, false
		}
	}
	pulse := o.Pulses[id]
	down := rec.Value.Stopped == cluster.StopDown
	if !down && !o.Settled && !back && pulse != PulseSilent {
		// A new master, or one whose etcd was away: whoever still beats may be
		// back in a moment, and an etcd outage must move nothing.
		return Step{}, false
	}
	live, how := cluster.Crashed, "its lease ended and its heartbeat is silent"
	switch pulse {
	case PulseBeats:
		live, how = cluster.Isolated, "its lease ended while its heartbeat goes on"
	case PulseUnknown:
		how = "its lease ended; its heartbeat cannot be judged"
	case PulseSilent:
	}
	if down {
		live, how = cluster.Down, "its host was shut down in good order, and SHUTDOWN_POLICY is failover"
	}
	at := o.Clock.UTC().Format(time.RFC3339Nano)
	lostAt := o.Clock.Add(-o.Now.Sub(since)).UTC().Format(time.RFC3339Nano)
	return Step{Do: ActOpen, Failover: fid, Reason: how, Opening: cluster.Opening{
		NodeMod: rec.Mod, RecoveringMod: rg.Mod,
		Failover: cluster.Failover{
			Node: id, Name: rec.Value.Name, Inc: rec.Value.Incarnation, Phase: cluster.PhaseFencing,
			Reason: how, Liveness: live, OpenedBy: o.Self, LostAt: lostAt, OpenedAt: at,
		},
	}}, true
}

// decideUnsealed brings one failover towards its seal.
func decideUnsealed(o *Observation, f cluster.Versioned[cluster.Failover], brake []cluster.NodeID) []Step {
	id := f.Value.ID()
	update := func(reason string, change func(*cluster.Failover)) []Step {
		next := f.Value
		change(&next)
		next.Reason = reason
		if next == f.Value {
			return nil
		}
		return []Step{{Do: ActUpdate, Failover: id, Reason: reason, Was: f, Now: next}}
	}
	rec := o.Nodes[id.Node].Value
	rg, back := o.Recovering[id.Node]
	if back && rg.Value.NotQuiesced && f.Value.Proof == "" {
		return []Step{{Do: ActWithdraw, Failover: id, Was: f, Now: f.Value, Mod: rg.Mod,
			Reason: "the node is back, nothing of it was moved, and its VEs are at home"}}
	}
	held := len(brake) > 0 && rec.Released != id.Incarnation && f.Value.Phase != cluster.PhaseAwaitingFence && f.Value.Proof != manual
	if held {
		return update(fmt.Sprintf("held: too many nodes were lost at once, RELOCATION_SKIP_THRESHOLD is %d", o.SkipThreshold), func(n *cluster.Failover) {
			n.Phase, n.Command = cluster.PhaseHeld, "shaman failover release "+o.name(id.Node)
		})
	}
	if f.Value.Proof != "" {
		if f.Value.Phase != cluster.PhaseSealing {
			return update("proven by "+f.Value.Proof, func(n *cluster.Failover) { n.Phase, n.Command = cluster.PhaseSealing, "" })
		}
		return []Step{{Do: ActSeal, Failover: id, Was: f, Now: f.Value, Reason: "proven harmless by " + f.Value.Proof}}
	}
	if p, ok := proofOf(o, f); ok {
		return update("proven by "+p.Method, func(n *cluster.Failover) {
			n.Phase, n.Proof, n.Evidence, n.Command = cluster.PhaseSealing, p.Method, p.Evidence, ""
			n.FencedAt = o.Clock.UTC().Format(time.RFC3339Nano)
		})
	}
	var steps []Step
	why, stuck := o.Stuck[id]
	const itsOwn = "it is the master's own, which does not cut its own power; stop shaman-monitor on it, and the next master goes on"
	if id.Node == o.Self && !rg.Value.Quiesced {
		why, stuck = itsOwn, true
	} else {
		delay := agentDelay(o, id)
		if id.Node == o.Self && len(o.Alive) == 0 {
			// The only node left may be the one that came back. It must not switch itself
			// off, but its answer to an order counts: nothing runs here.
			delay = holdAgents
			if opened, seen := o.OpenSince[id]; after(o.Now, opened, seen, o.StopBudget+o.Timing.Silence()) {
				why, stuck = itsOwn, true
			}
		}
		steps = append(steps, Step{Do: ActFence, Failover: id, Was: f, Reason: f.Value.Reason, Delay: delay})
	}
	phase, reason, command := cluster.PhaseFencing, f.Value.Reason, ""
	if stuck {
		phase = cluster.PhaseAwaitingFence
		reason = "no method could prove that the node is harmless (" + why + "); nothing of it moves until one does"
		command = "shaman fence confirm " + o.name(id.Node)
	} else if f.Value.Phase != cluster.PhaseFencing {
		reason = "fencing"
	}
	live := f.Value.Liveness
	switch o.Pulses[id.Node] {
	case PulseBeats:
		live = cluster.Isolated
	case PulseSilent:
		live = cluster.Crashed
	case PulseUnknown:
	}
	return append(steps, update(reason, func(n *cluster.Failover) {
		n.Phase, n.Command, n.Liveness = phase, command, live
	})...)
}

// holdAgents is the delay of agents that are not to run at all; it begins anew in
// each round.
const holdAgents = 24 * time.Hour

// agentDelay keeps agents from cutting a node in the middle of its own quiesce.
// It holds while the node may live: its heartbeat goes on, or has not been
// watched for long enough to tell.
func agentDelay(o *Observation, id cluster.FailoverID) time.Duration {
	if o.Pulses[id.Node] == PulseSilent {
		return 0
	}
	return max(0, o.StopBudget+time.Second-o.Now.Sub(o.OpenSince[id]))
}

// manual is the method that rests on an operator's word.
const manual = "manual"

// proofOf returns the first proof that there is.
func proofOf(o *Observation, f cluster.Versioned[cluster.Failover]) (Proof, bool) {
	id := f.Value.ID()
	if p, ok := o.Proofs[id]; ok {
		return p, true
	}
	rec, rg := o.Nodes[id.Node], o.Recovering[id.Node]
	if o.RebootedCounts && rg.Value.Clean && rg.Value.BootID != "" && rg.Value.BootID != rec.Value.BootID &&
		rg.Value.HardwareID != "" && rg.Value.HardwareID == rec.Value.HardwareID && rg.Value.Incarnation == id.Incarnation {
		return Proof{Method: "rebooted", Evidence: fmt.Sprintf("hardware %s runs boot %s, was admitted with boot %s, and says that nothing of its repository runs", rg.Value.HardwareID, rg.Value.BootID, rec.Value.BootID)}, true
	}
	if rec.Value.Stopped == cluster.StopDown && rec.Value.Incarnation == id.Incarnation {
		return Proof{Method: "down", Evidence: fmt.Sprintf("the node stopped everything and recorded that at %s, before its host was shut down", rec.Value.StoppedAt)}, true
	}
	c, ok := o.Confirms[id]
	if ok && o.ManualAllowed && c.Err == nil && (c.Value.Serial == f.Create || c.Value.Serial == 0 && c.Mod == rec.Mod) {
		return Proof{Method: manual, Evidence: fmt.Sprintf("confirmed by %s at %s", c.Value.By, c.Value.At)}, true
	}
	return Proof{}, false
}

// keepDone is how many finished failovers are kept for stat.
const keepDone = 20

func decideForget(o *Observation) []Step {
	var done []cluster.Versioned[cluster.Failover]
	for _, f := range o.Failovers {
		rec, member := o.Nodes[f.Value.Node]
		if f.Value.Phase == cluster.PhaseDone && (!member || rec.Value.Incarnation > f.Value.Inc) {
			done = append(done, f)
		}
	}
	if len(done) <= keepDone {
		return nil
	}
	slices.SortFunc(done, func(a, b cluster.Versioned[cluster.Failover]) int { return int(a.Create - b.Create) })
	return []Step{{Do: ActForget, Reason: "finished long ago", Old: done[:len(done)-keepDone]}}
}

// after tells whether d has passed since a moment; a moment that is not known has just begun.
func after(now boottime.Time, since boottime.Time, known bool, d time.Duration) bool {
	return known && now.Sub(since) >= d
}

package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Probes are this node's probe files on the mount.
type Probes interface {
	// Write overwrites the slot durably.
	Write(ctx context.Context, token string) error
	// Create makes a file under a new name, whose name is the slot's and a suffix.
	Create(ctx context.Context, suffix, token string) error
	// Clear removes what Create made.
	Clear(ctx context.Context) error
}

// Ask has another node's daemon tell what it sees of a probe file; suffix "" is
// the slot. It returns ErrOlder if that daemon does not know the question.
type Ask func(ctx context.Context, node Member, suffix string) (cluster.Sighting, error)

// ErrOlder is returned by an Ask of a node whose daemon is of an older version.
var ErrOlder = errors.New("its daemon is of a version that cannot be asked")

// Sightings is what was measured of the axiom that all rests on: an acknowledged
// write is seen by any later fresh read on any node.
type Sightings struct {
	Err    error           // why it could not be measured at all
	Failed error           // of a write, which ended it
	Away   bool            // etcd is out of reach, through which others are asked
	Writes []time.Duration // how long each write took
	Peers  []Peer
}

// Peer is what one other node saw.
type Peer struct {
	Node   Member
	Err    error // nothing, or nothing more, is known from it
	Unseen bool  // it does not even see the slot's name
	Rounds int   // asked after a write
	Stale  int   // saw something older
	Names  bool  // the new name was asked for
	Never  bool  // it was not seen for as long as it was watched
	Delay  time.Duration
	Missed int           // how often it was not there yet
	Ahead  time.Duration // of its wall clock
	Within time.Duration // how far that may be off; 0 = not measured
}

// Limits of a measurement.
type Limits struct {
	Rounds int
	Name   time.Duration // how long a new name is waited for
	Answer time.Duration // of one question
	AtOnce int           // questions under way at the same time
}

// DefaultLimits suit a cluster of any size.
func DefaultLimits() Limits {
	return Limits{Rounds: 5, Name: 10 * time.Second, Answer: 5 * time.Second, AtOnce: 32}
}

// measurement is one run.
type measurement struct {
	Limits
	probes Probes
	ask    Ask
	run    string // makes the tokens of this run its own
	out    *Sightings
}

// Measure writes and has the others read. run must be new each time, and no
// other run of this node may be under way.
func Measure(ctx context.Context, p Probes, ask Ask, nodes []Member, run string, l Limits) Sightings {
	out := Sightings{Peers: make([]Peer, len(nodes))}
	for i, n := range nodes {
		out.Peers[i].Node = n
	}
	m := &measurement{Limits: l, probes: p, ask: ask, run: run, out: &out}
	if !m.write(ctx, m.token(0)) {
		return out
	}
	if len(nodes) == 0 {
		for i := range l.Rounds - 1 { // the writes are worth knowing by themselves
			if !m.write(ctx, m.token(i+1)) {
				return out
			}
		}
		return out
	}
	m.each(func(peer *Peer) { m.meet(ctx, peer) })
	for i := range l.Rounds {
		token := m.token(i + 1)
		if !m.write(ctx, token) {
			return out
		}
		m.each(func(peer *Peer) { m.compare(ctx, peer, token) })
	}
	m.newName(ctx)
	return out
}

func (m *measurement) token(i int) string { return fmt.Sprintf("%s-%d", m.run, i) }

func (m *measurement) write(ctx context.Context, token string) bool {
	begin := time.Now()
	err := m.probes.Write(ctx, token)
	if err == nil {
		m.out.Writes = append(m.out.Writes, time.Since(begin))
	}
	return m.noted(ctx, err)
}

// noted keeps an error of the mount, unless it is only that time is up.
func (m *measurement) noted(ctx context.Context, err error) bool {
	switch {
	case err == nil:
		return true
	case ctx.Err() != nil:
		m.out.Err = context.Cause(ctx)
	default:
		m.out.Failed = err
	}
	return false
}

// each calls f for every peer that still answers, side by side.
func (m *measurement) each(f func(*Peer)) {
	slots := make(chan struct{}, m.AtOnce)
	var running sync.WaitGroup
	for i := range m.out.Peers {
		peer := &m.out.Peers[i]
		if peer.Err != nil || peer.Unseen {
			continue
		}
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			f(peer)
		})
	}
	running.Wait()
}

// look asks a peer once, and compares its wall clock with this node's.
func (m *measurement) look(ctx context.Context, peer *Peer, suffix string) (cluster.Sighting, bool) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.Answer, fmt.Errorf("no answer within %s", m.Answer))
	defer cancel()
	sent := time.Now()
	saw, err := m.ask(ctx, peer.Node, suffix)
	took := time.Since(sent)
	if err != nil {
		peer.Err = err
		return saw, false
	}
	at, err := time.Parse(time.RFC3339Nano, saw.At)
	if half := took / 2; err == nil && (peer.Within == 0 || half < peer.Within) {
		peer.Ahead, peer.Within = at.Sub(sent.Add(half)), max(half, 1)
	}
	return saw, true
}

// meet waits until a peer sees the slot's name, which may be new.
func (m *measurement) meet(ctx context.Context, peer *Peer) {
	for deadline := time.Now().Add(m.Name); ; {
		saw, ok := m.look(ctx, peer, "")
		switch {
		case !ok, saw.Found:
			return
		case time.Now().After(deadline):
			peer.Unseen = true
			return
		}
		pause(ctx, nameEvery)
	}
}

// nameEvery is the pause between two looks for a name.
const nameEvery = 20 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (m *measurement) compare(ctx context.Context, peer *Peer, token string) {
	saw, ok := m.look(ctx, peer, "")
	if !ok {
		return
	}
	peer.Rounds++
	if saw.Token != token {
		peer.Stale++
	}
}

// newName measures how late a name is seen that was looked for before it was
// there: network file systems remember absent names too.
func (m *measurement) newName(ctx context.Context) {
	m.each(func(peer *Peer) { m.look(ctx, peer, m.run) })
	err := m.probes.Create(ctx, m.run, m.token(m.Rounds+1))
	made := time.Now()
	if !m.noted(ctx, err) {
		return
	}
	m.each(func(peer *Peer) {
		for {
			asked := time.Now()
			saw, ok := m.look(ctx, peer, m.run)
			switch {
			case !ok:
				return
			case saw.Found:
				// One that is seen at the first look was not late, however long the question took.
				if peer.Missed > 0 {
					peer.Delay = asked.Sub(made)
				}
				return
			case asked.Sub(made) > m.Name:
				peer.Never, peer.Delay = true, asked.Sub(made)
				return
			}
			peer.Missed++
			pause(ctx, nameEvery)
		}
	})
	m.noted(ctx, m.probes.Clear(ctx))
}

// axiomMend is what to do about a mount that shows old data.
const axiomMend = "mount options (NFS: vers=4.2,hard,lookupcache=positive,acdirmax=3; never 'nocto'), and the server's export ('sync', never 'async'). Until then FENCE_METHODS without storage and watchdog"

// JudgeVisibility judges what was measured. beat is HEARTBEAT_INTERVAL.
func JudgeVisibility(s Sightings, beat time.Duration) []Finding {
	j := judgement{check: Visibility}
	switch {
	case errors.Is(s.Failed, fs.ErrPermission):
		j.warn("this node", "run 'shaman doctor' as root", "it could not be measured whether writes are seen at once: %s", cluster.OneLine(s.Failed))
	case s.Failed != nil:
		j.fail("this node", "look at the storage server, its space and the network", "the probe file cannot be written, so a heartbeat cannot either: %s", cluster.OneLine(s.Failed))
	case s.Err != nil:
		j.warn("this node", "run 'shaman doctor' again", "it was not measured whether writes are seen at once: %s", cluster.OneLine(s.Err))
	case s.Away:
		j.warn("this node", "shaman doctor, once etcd is back", "etcd is out of reach, so no other node could be asked whether writes are seen there at once")
	case len(s.Peers) == 0:
		j.warn("this node", "run 'shaman doctor' again when another node is Active", "there is no other node that is alive, so it was not measured whether writes are seen there at once")
	}
	for _, p := range s.Peers {
		name := p.Node.Name
		switch {
		case p.Stale > 0:
			j.fail(name, axiomMend, "%d of %d writes that were acknowledged here were not seen there: a proof that rests on the mount (storage, watchdog) cannot be trusted", p.Stale, p.Rounds)
		case p.Unseen:
			j.fail(name, "compare 'findmnt' on both nodes", "it does not see the file that this node has made: another file system is mounted there, or names are seen far too late")
		case errors.Is(p.Err, ErrOlder):
			j.warn(name, "upgrade shaman-monitor there", "what it sees of this node's writes is not known: %v", p.Err)
		case p.Err != nil:
			j.warn(name, "shaman stat -v; if its MOUNT is not ok, mend that first", "what it sees of this node's writes is not known (after %s): %s", plural(p.Rounds, "round", "rounds"), cluster.OneLine(p.Err))
		case p.Never:
			j.warn(name, axiomMend, "%d of %d writes were seen at once; a new name was not seen for %s: what is given to it is found late", p.Rounds, p.Rounds, round(p.Delay))
		case p.Delay > beat:
			j.warn(name, axiomMend, "%d of %d writes were seen at once; a new name after %s, want at most %s (HEARTBEAT_INTERVAL): what is given to it is found late", p.Rounds, p.Rounds, round(p.Delay), beat)
		case p.Rounds > 0:
			late := "a new name too"
			if p.Missed > 0 {
				late = "a new name after " + round(p.Delay).String()
			}
			j.ok(name, "%d of %d writes were seen at once, %s", p.Rounds, p.Rounds, late)
		}
	}
	return j.found
}

// clockLimit is how far wall clocks may be apart before their times confuse people.
const clockLimit = time.Second

// JudgeClock judges this node's clock, and those of the nodes that were asked.
func JudgeClock(c ClockFacts, peers []Peer) []Finding {
	j := judgement{check: Clock}
	const why = "wall clocks are for people (events, logs): nothing is decided by them"
	switch {
	case c.Err != nil:
		j.warn("this node", "chronyc tracking; timedatectl", "whether the clock is right cannot be told: %v", c.Err)
	case !c.Synchronised:
		j.warn("this node", "systemctl enable --now chronyd (or systemd-timesyncd)", "the clock is not synchronised; %s, but the story of a failover is told by several nodes", why)
	default:
		j.ok("this node", "the clock is synchronised")
	}
	var measured []Peer
	for _, p := range peers {
		if p.Within > 0 {
			measured = append(measured, p)
		}
	}
	worst := time.Duration(0)
	for _, p := range measured {
		off := max(p.Ahead.Abs()-p.Within, 0)
		worst = max(worst, off)
		if off <= clockLimit {
			continue
		}
		word := "ahead of"
		if p.Ahead < 0 {
			word = "behind"
		}
		j.warn(p.Node.Name, "systemctl enable --now chronyd on both", "its clock is at least %s %s this node's; %s", round(off), word, why)
	}
	if len(measured) > 0 && worst <= clockLimit {
		widest := slices.MaxFunc(measured, func(a, b Peer) int { return cmp.Compare(a.Within, b.Within) })
		j.ok(names(measured), "no clock differs from this node's by more than what can be measured (%s) and %s", round(widest.Within), clockLimit)
	}
	return j.found
}

func names(ps []Peer) string {
	var out []string
	for _, p := range ps {
		out = append(out, p.Node.Name)
	}
	return strings.Join(out, ", ")
}

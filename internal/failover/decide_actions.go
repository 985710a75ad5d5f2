package failover

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// answersWait bounds how long a dispatch waits for the nodes' answers to the
// question what runs where; the last word of a silent node counts after that.
const answersWait = 2 * time.Second

// answerKept is how long an operator's finished action may lie around before the
// master clears it away: its command is gone by then.
const answerKept = 10 * time.Minute

// actionBoard is the actions of one round, and what is decided about them.
type actionBoard struct {
	o       *Observation
	byPool  map[string]map[cluster.ResourceID]cluster.Versioned[cluster.Action] // takes: pool → resource
	keys    map[string]bool                                                     // node/name of every action that has to stay
	names   map[cluster.ResourceID][]cluster.NodeID                             // where an action may have that name for long
	read    map[string]cluster.Versioned[cluster.Action]                        // node/name of operators' finished ones: they may give way
	kept    map[string]cluster.Versioned[cluster.Action]                        // node/name of finished takes that left a VE waiting
	given   map[string]cluster.Versioned[cluster.Action]                        // finished give-backs: pool/resource
	giving  map[string]bool                                                     // give-backs without an outcome: pool/path
	paths   map[string]int                                                      // how often the pool holds a path
	swaps   []cluster.Swap
	steps   []Step
	pending map[cluster.NodeID]cluster.Usage
	toPlace []placing
	failed  []cluster.Versioned[cluster.Action] // starts of VEs that had waited
	view    *cluster.View
	words   map[cluster.NodeID]map[string]word // elsewhere, by the node that is left out
	byKey   map[string]cluster.Versioned[cluster.Action]
	changed map[string]bool        // node/name of what this round changes
	letting map[cluster.NodeID]int // how many resources an owner is being asked to let go of
}

// placing is a resource that needs a node, and the action that gives way to the new one.
type placing struct {
	res      cluster.Resource
	pool     cluster.PoolID
	old      *cluster.Versioned[cluster.Action]
	failover string
	tried    []cluster.NodeID
	attempts int
	want     cluster.NodeID // an operator's choice
	reason   string
}

// decideActions dispatches what lies in the pool, follows up what failed, and
// finds room for what waits.
func decideActions(o *Observation, place Place) []Step {
	b := &actionBoard{
		o: o, byPool: map[string]map[cluster.ResourceID]cluster.Versioned[cluster.Action]{}, keys: map[string]bool{}, names: map[cluster.ResourceID][]cluster.NodeID{}, read: map[string]cluster.Versioned[cluster.Action]{},
		byKey: map[string]cluster.Versioned[cluster.Action]{}, changed: map[string]bool{},
		kept: map[string]cluster.Versioned[cluster.Action]{}, given: map[string]cluster.Versioned[cluster.Action]{}, giving: map[string]bool{}, paths: map[string]int{}, pending: map[cluster.NodeID]cluster.Usage{},
	}
	for _, a := range o.Actions {
		b.sort(a)
	}
	for _, a := range o.Actions {
		if a.Err == nil {
			b.followUp(a)
		}
	}
	for _, l := range o.Pools {
		for _, r := range l.Resources {
			b.paths[r.Path]++
		}
	}
	pools := slices.SortedFunc(maps.Keys(o.Pools), func(x, y cluster.PoolID) int { return strings.Compare(x.String(), y.String()) })
	for _, p := range pools {
		b.pool(p, o.Pools[p])
	}
	// What waits comes last: it must not take the room of what was promised it,
	// or two of them would drive each other out for ever.
	b.place(place)
	b.afterWaiting(place)
	b.waiting(place)
	b.adopt()
	if len(b.swaps) > 0 {
		b.steps = append(b.steps, Step{Do: ActDispatch, Swaps: b.swaps, Reason: fmt.Sprintf("%d actions", len(b.swaps))})
	}
	return b.steps
}

func (b *actionBoard) sort(a cluster.Versioned[cluster.Action]) {
	v := a.Value
	key := string(v.Node) + "/" + v.Name()
	b.byKey[key] = a
	if a.Err == nil && b.wasRead(v) {
		b.read[key] = a
	} else {
		b.keys[key] = true
	}
	if a.Err != nil {
		return
	}
	if v.State != cluster.ActionDone || v.Failover != "" { // an operator's finished one goes soon
		b.names[v.Resource] = append(b.names[v.Resource], v.Node)
	}
	switch v.Verb {
	case cluster.VerbTake:
		if v.State == cluster.ActionDone && v.Outcome == cluster.OutcomeRegistered && v.Waiting != "" && !b.loose(v) {
			b.kept[key] = a
		}
		m := b.byPool[v.Pool]
		if m == nil {
			m = map[cluster.ResourceID]cluster.Versioned[cluster.Action]{}
			b.byPool[v.Pool] = m
		}
		// Of two for one resource the unfinished one counts.
		if have, dup := m[v.Resource]; !dup || have.Value.State == cluster.ActionDone {
			m[v.Resource] = a
		}
	case cluster.VerbGiveBack:
		pool := cluster.PoolID{Node: v.Node}.String()
		switch {
		case v.State != cluster.ActionDone:
			b.giving[pool+"/"+v.Path] = b.alive(v)
		case v.Outcome == cluster.OutcomeOK:
			name := v.Resource
			if v.NewName != "" {
				name = v.NewName
			}
			b.given[pool+"/"+string(name)] = a
		}
	default:
	}
	if on, under := underWay(v); under && !b.ownedBy(v.Path, on) {
		b.expect(on, v.Resource.Kind(), v.Memory, 1)
	}
}

// answerRead is how long a command needs at most to see the outcome that it asks for.
const answerRead = 2 * time.Second

// wasRead tells whether an action is an operator's, finished, and its outcome
// was surely seen: it stays for a while, but in nobody's way.
func (b *actionBoard) wasRead(v cluster.Action) bool {
	done, err := time.Parse(time.RFC3339Nano, v.DoneAt)
	kept := v.Adopt && v.Outcome != cluster.OutcomeOK // the owner did not let go: nothing follows
	handsOver := v.Verb == cluster.VerbTake || v.Verb == cluster.VerbGiveBack && !kept || failedHere(v)
	return v.State == cluster.ActionDone && v.Failover == "" && !handsOver && err == nil && b.o.Clock.Sub(done) > answerRead
}

// failedHere tells whether a VE that had waited could not be started where it
// waited. An operator's start that failed is the operator's to look after.
func failedHere(v cluster.Action) bool {
	return v.Verb == cluster.VerbStart && v.Policy != "" && v.State == cluster.ActionDone && v.Outcome == cluster.OutcomeFailed
}

// ownedBy tells whether a path lies in a node's repository, and is counted there.
func (b *actionBoard) ownedBy(path string, n cluster.NodeID) bool {
	return slices.ContainsFunc(b.o.Paths[path], func(l Located) bool { return l.Owner == n })
}

// underWay tells whether an action is about to bring a running VE to a node, and to which.
func underWay(v cluster.Action) (cluster.NodeID, bool) {
	switch v.Verb {
	case cluster.VerbTake, cluster.VerbStart:
		return v.Node, v.State != cluster.ActionDone && v.Start
	case cluster.VerbGiveBack:
		return v.To, v.To != "" && (v.State != cluster.ActionDone || v.Outcome == cluster.OutcomeOK)
	default:
		return "", false
	}
}

// expect counts VEs that are on their way to a node, so that their room is not
// given away twice; a count of -1 takes one back.
func (b *actionBoard) expect(on cluster.NodeID, kind cluster.Kind, memory cluster.Bytes, count int) {
	u := b.pending[on]
	if u.Running == nil {
		u.Running = map[cluster.Kind]int{}
	}
	u.Memory += memory * cluster.Bytes(count)
	u.Running[kind] += count
	b.pending[on] = u
}

// unexpect takes back what an action that gives way counted.
func (b *actionBoard) unexpect(v cluster.Action) {
	if on, under := underWay(v); under && !b.ownedBy(v.Path, on) {
		b.expect(on, v.Resource.Kind(), v.Memory, -1)
	}
}

// over tells whether an action's node can neither claim it nor answer it any more:
// that incarnation was taken over, or the node has left the cluster.
func (b *actionBoard) over(a cluster.Action) bool {
	_, member := b.o.Nodes[a.Node]
	_, alive := b.o.Alive[a.Node]
	return b.o.sealed(a.Node, a.Inc) || !member && !alive
}

// alive tells whether an action's node is still in the admission that it names.
func (b *actionBoard) alive(a cluster.Action) bool {
	e, ok := b.o.Alive[a.Node]
	return ok && e.Value.Incarnation == a.Inc
}

func (b *actionBoard) swap(old *cluster.Versioned[cluster.Action], next *cluster.Action) {
	s := cluster.Swap{Old: old, New: next}
	if old != nil && old.Value.State == cluster.ActionClaimed && !b.over(old.Value) {
		// Marked by a node that has stopped since: only while it stays so. One that is
		// admitted again may still carry it out.
		s.NodeMod = b.o.Nodes[old.Value.Node].Mod
	}
	for _, a := range []*cluster.Action{next, oldValue(old)} {
		if a != nil {
			b.changed[string(a.Node)+"/"+a.Name()] = true
		}
	}
	b.swaps = append(b.swaps, s)
}

func oldValue(old *cluster.Versioned[cluster.Action]) *cluster.Action {
	if old == nil {
		return nil
	}
	return &old.Value
}

// followUp decides about one action by itself; those for resources that lie in
// the pool are decided there.
func (b *actionBoard) followUp(a cluster.Versioned[cluster.Action]) {
	v := a.Value
	switch {
	case v.State != cluster.ActionDone:
		// A claimed one stays until its outcome, or until its node's incarnation is
		// sealed: the resource is then in that pool directory, or still in this one.
		if b.over(v) && !b.inPool(v) {
			b.swap(&a, nil)
		}
	case failedHere(v) && b.alive(v):
		b.failed = append(b.failed, a)
	case failedHere(v), v.Outcome == cluster.OutcomeFailed && (v.Verb == cluster.VerbTake || v.Verb == cluster.VerbGiveBack && !v.Adopt && (v.Failover != "" || v.Attempts > 0)):
		b.afterFailure(a)
	case v.Verb == cluster.VerbBreak && v.Outcome == cluster.OutcomeFailed:
		b.breakAgain(a)
	case v.Verb == cluster.VerbGiveBack && v.Outcome == cluster.OutcomeOK:
		if !b.inGiven(v) && b.poolRead(cluster.PoolID{Node: v.Node}) {
			b.swap(&a, nil) // somebody has it by now
		}
	case b.loose(v) && !b.inPool(v):
		b.swap(&a, nil)
	}
}

// loose tells whether nobody waits for a finished action any more.
func (b *actionBoard) loose(v cluster.Action) bool {
	if v.Failover != "" {
		id, err := cluster.ParsePoolID(v.Failover)
		f, open := b.o.Failovers[id]
		return err != nil || !open || f.Value.Phase == cluster.PhaseDone
	}
	if v.Verb == cluster.VerbTake || v.Verb == cluster.VerbBreak {
		return true // never an operator's
	}
	done, err := time.Parse(time.RFC3339Nano, v.DoneAt)
	return err != nil || b.o.Clock.Sub(done) > answerKept
}

func (b *actionBoard) poolRead(p cluster.PoolID) bool {
	_, ok := b.o.Pools[p]
	return ok
}

// inPool tells whether the resource of a take still lies where it is to be
// claimed from, or that is not known.
func (b *actionBoard) inPool(v cluster.Action) bool {
	if v.Verb != cluster.VerbTake {
		return false
	}
	p, err := cluster.ParsePoolID(v.Pool)
	if err != nil {
		return false
	}
	l, read := b.o.Pools[p]
	return !read || holds(l, v.Resource)
}

func (b *actionBoard) inGiven(v cluster.Action) bool {
	name := v.Resource
	if v.NewName != "" {
		name = v.NewName
	}
	l, read := b.o.Pools[cluster.PoolID{Node: v.Node}]
	return read && holds(l, name)
}

func holds(l cluster.Listing, id cluster.ResourceID) bool {
	for _, r := range l.Resources {
		if r.ID == id {
			return true
		}
	}
	return false
}

// afterFailure sends a resource that could not be brought up, and is proven
// stopped, to another node, or into quarantine after enough nodes.
func (b *actionBoard) afterFailure(a cluster.Versioned[cluster.Action]) {
	v := a.Value
	if !b.alive(v) {
		if b.over(v) {
			b.swap(&a, nil) // the resource is in that node's pool directory, or went with it
		}
		return
	}
	next := cluster.Action{
		Node: v.Node, Inc: v.Inc, Resource: v.Resource, Failover: v.Failover, Path: v.Path, Priority: v.Priority, Memory: v.Memory,
		Attempts: v.Attempts + 1, Tried: append(slices.Clone(v.Tried), v.Node), Reason: v.Error, Start: v.Start, To: "",
	}
	if v.NewName != "" {
		next.Resource = v.NewName
	}
	if v.Verb == cluster.VerbTake && len(next.Tried) <= b.o.RelocateTries && len(b.o.Alive) > len(next.Tried) {
		next.Verb = cluster.VerbGiveBack
	} else {
		next.Verb, next.Operation = cluster.VerbBreak, "start"
		if !v.Start {
			next.Operation = "register"
		}
	}
	b.swap(&a, &next)
}

// breakPause is the time between two tries to quarantine a resource.
const breakPause = 10 * time.Second

// breakAgain tries once more to quarantine a resource whose VE could not be
// unregistered, say: until it is, somebody must go on looking after it.
func (b *actionBoard) breakAgain(a cluster.Versioned[cluster.Action]) {
	done, err := time.Parse(time.RFC3339Nano, a.Value.DoneAt)
	switch {
	case b.over(a.Value):
		b.swap(&a, nil)
	case b.alive(a.Value) && (err != nil || b.o.Clock.Sub(done) > breakPause):
		next := a.Value
		next.State, next.Outcome, next.Error, next.ClaimedAt, next.DoneAt, next.Progress = cluster.ActionNew, "", "", "", "", ""
		b.swap(&a, &next)
	}
}

// pool decides about one sealed directory.
func (b *actionBoard) pool(p cluster.PoolID, l cluster.Listing) {
	if !l.HasInc || l.Inc != p.Incarnation {
		return // no failover; nobody claims from it
	}
	f, known := b.o.Failovers[p]
	if known && !f.Value.Phase.Sealed() {
		return // sealed, but not recorded yet
	}
	if n := len(l.Unparseable); n > 0 {
		b.steps = append(b.steps, Step{Do: ActQuarantine, Failover: p, Unparseable: l.Unparseable, Reason: fmt.Sprintf("%d resource files cannot be read", n)})
	}
	if len(l.Resources) == 0 || b.o.Paths == nil || !b.answered(p, f) {
		return
	}
	var except cluster.NodeID
	if p.Incarnation == 0 {
		except = p.Node // what it said before is out of date: it gives back what is proven stopped
	}
	elsewhere := b.elsewhere(except)
	for _, r := range l.Resources {
		b.pooled(p, known, r, elsewhere)
	}
}

// answered tells whether every living node has said what runs on it since the
// failover opened, or has had its time.
func (b *actionBoard) answered(p cluster.PoolID, f cluster.Versioned[cluster.Failover]) bool {
	since, seen := b.o.OpenSince[p]
	if p.Incarnation == 0 || f.Create == 0 || after(b.o.Now, since, seen, answersWait) {
		return true
	}
	for id := range b.o.Alive {
		if b.o.Nodes[id].Value.Elsewhere.Asked < f.Create {
			return false
		}
	}
	return true
}

func (b *actionBoard) pooled(p cluster.PoolID, known bool, r cluster.Resource, elsewhere map[string]word) {
	pl := placing{res: r, pool: p, reason: "its node " + b.o.name(p.Node) + " failed"}
	if known {
		pl.failover = p.String()
	}
	if p.Incarnation == 0 {
		pl.reason = "given back by " + b.o.name(p.Node)
	}
	if p.Incarnation == 0 && b.giving[p.String()+"/"+r.Path] {
		return // the answer, which says where it is to go, is on its way
	}
	g, gaveBack := b.given[p.String()+"/"+string(r.ID)]
	if gaveBack {
		b.unexpect(g.Value)
		pl.old, pl.failover, pl.tried, pl.attempts, pl.want = &g, g.Value.Failover, g.Value.Tried, g.Value.Attempts, g.Value.To
		pl.reason = g.Value.Reason
	}
	if a, ok := b.byPool[p.String()][r.ID]; ok {
		// A finished one from before it was given back says nothing about this time.
		if !b.replaceable(a) && (!gaveBack || a.Value.State != cluster.ActionDone) {
			return
		}
		b.unexpect(a.Value)
		if pl.old != nil {
			b.swap(pl.old, nil)
		}
		pl.old = &a
		if !gaveBack {
			pl.tried, pl.attempts = a.Value.Tried, a.Value.Attempts
		}
		if a.Value.Failover != "" {
			pl.failover = a.Value.Failover
		}
	}
	if len(b.o.Paths[r.Path]) > 0 || b.paths[r.Path] > 1 {
		return // two resources of one VE: held, shown as duplicate, never started twice
	}
	if w, said := elsewhere[r.Path]; said {
		if w.sure {
			b.take(pl, w.on, false, "", "", "it runs there already")
		}
		return // else it may run there, or on two nodes: held until that is known
	}
	if movedWord(elsewhere, r) {
		return // held, and shown as foreign
	}
	if gaveBack && g.Value.Adopt {
		// Given to whom it runs on: that node's word may be on its way, or it has just
		// stopped there. The node itself says then that it waits to be started.
		to := g.Value.To
		_, alive := b.o.Alive[to]
		if _, member := b.o.Nodes[to]; alive {
			b.take(pl, to, false, "", "", pl.reason)
			return
		} else if member && !b.o.sealed(to, b.o.Nodes[to].Value.Incarnation) {
			return // it may still run there
		}
	}
	if r.Migrating != "" && !b.o.sealed(r.Migrating, b.o.Nodes[r.Migrating].Value.Incarnation) {
		if _, alive := b.o.Alive[r.Migrating]; !alive {
			return // the other end of its migration may run it
		}
	}
	b.toPlace = append(b.toPlace, pl)
}

// replaceable tells whether an action for a resource that still lies in the
// pool can give way to another: it was answered without a claim, its node
// cannot claim any more, or it was not even marked for too long.
func (b *actionBoard) replaceable(a cluster.Versioned[cluster.Action]) bool {
	v := a.Value
	switch v.State {
	case cluster.ActionDone:
		return v.Outcome == cluster.OutcomeSuperseded || v.Outcome == cluster.OutcomeGone || v.Outcome == cluster.OutcomeRefused
	case cluster.ActionClaimed:
		// One whose node has stopped on purpose between its mark and its rename would
		// lie in the pool for as long as that node stays away.
		_, alive := b.o.Alive[v.Node]
		return b.over(v) || !alive && b.o.Nodes[v.Node].Value.Stopped != cluster.NotStopped
	case cluster.ActionNew:
	}
	if !b.alive(v) {
		// One whose daemon was stopped on purpose, or that has left, may stay away for
		// ever without a failover.
		_, failing := b.o.Failovers[cluster.FailoverID{Node: v.Node, Incarnation: v.Inc}]
		return failing || b.over(v) || b.o.Nodes[v.Node].Value.Stopped != cluster.NotStopped || b.o.Alive[v.Node].Value.Incarnation > v.Inc
	}
	created, err := time.Parse(time.RFC3339Nano, v.CreatedAt)
	age := b.o.Clock.Sub(created)
	// One from the future is by a clock that was set since, or another master's: how
	// old it is nobody knows, and it must not wait until this clock gets there.
	return err != nil || age > b.o.ActionTimeout || age < -b.o.ActionTimeout
}

package failover

import (
	"maps"
	"slices"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// word is what nodes say of a VE that runs without being in their repositories.
type word struct {
	on   cluster.NodeID
	sure bool // it certainly runs there, and by nobody else's word anywhere else
	uuid string
}

// elsewhere maps the paths of VEs to the nodes that say they run them without
// owning them. A node that was proven harmless since runs nothing; except is a
// node whose word does not count.
func (b *actionBoard) elsewhere(except cluster.NodeID) map[string]word {
	if out, made := b.words[except]; made {
		return out
	}
	out := map[string]word{}
	for _, id := range slices.Sorted(maps.Keys(b.o.Nodes)) {
		e := b.o.Nodes[id]
		if _, alive := b.o.Alive[id]; id == except || !alive && b.o.sealed(id, e.Value.Incarnation) {
			continue
		}
		for _, v := range e.Value.Elsewhere.VEs {
			_, twice := out[v.Path]
			out[v.Path] = word{on: id, sure: !v.Unsure && !twice, uuid: v.UUID}
		}
	}
	if b.words == nil {
		b.words = map[cluster.NodeID]map[string]word{}
	}
	b.words[except] = out
	return out
}

// movedWord tells whether a node says that it runs the VE of a resource at another
// path: a path can change, and which of the two is right nobody knows here.
func movedWord(words map[string]word, r cluster.Resource) bool {
	if r.UUID == "" {
		return false
	}
	for path, w := range words {
		if w.uuid == r.UUID && path != r.Path {
			return true
		}
	}
	return false
}

// askAgain is how long an owner that refused to let go is left alone, twice as long
// after each time, and askAtMost the longest.
const (
	askAgain  = 5 * time.Second
	askAtMost = 5 * time.Minute
)

// adopt gives VEs the resources that belong to them: what runs on a living node,
// and lies in the repository of another or in quarantine. The owner lets go only
// if it does not run the VE too. Nothing is started by this, and what lies in the
// pool is taken there by the same word. A VE without any resource gets one from
// its node, which looks twice.
func (b *actionBoard) adopt() {
	if b.o.Paths == nil {
		return
	}
	words := b.elsewhere("")
	b.letting = map[cluster.NodeID]int{}
	for _, a := range b.o.Actions {
		if v := a.Value; a.Err == nil && v.Adopt && v.State != cluster.ActionDone {
			b.letting[v.Node]++
		}
	}
	for _, path := range slices.Sorted(maps.Keys(words)) {
		w := words[path]
		runner, alive := b.o.Alive[w.on]
		owners, broken := b.o.Paths[path], b.o.Broken[path]
		switch {
		case !w.sure || !alive || b.o.sealed(w.on, runner.Value.Incarnation) || b.paths[path] > 0:
		case len(owners) == 1 && owners[0].Owner != w.on:
			b.letGo(path, owners[0], w.on)
		case len(owners) == 0 && len(broken) == 1:
			b.ask(cluster.Action{
				Verb: cluster.VerbAdopt, Node: w.on, Inc: runner.Value.Incarnation, Resource: broken[0], Path: path,
				Reason: "it runs there, and its resource is in quarantine",
			})
		}
	}
}

// lettingAtOnce bounds how many resources an owner is asked for at the same time: it
// has other errands, and a hypervisor that hangs keeps each of them for a while.
const lettingAtOnce = 4

// letGo asks the owner of a resource whose VE runs on another node.
func (b *actionBoard) letGo(path string, at Located, on cluster.NodeID) {
	owner, alive := b.o.Alive[at.Owner]
	if !alive || b.o.sealed(at.Owner, owner.Value.Incarnation) {
		return // its daemon has to do it, or its failover finds out where the VE runs
	}
	if b.letting[at.Owner] >= lettingAtOnce {
		return
	}
	if b.ask(cluster.Action{
		Verb: cluster.VerbGiveBack, Adopt: true, Node: at.Owner, Inc: owner.Value.Incarnation, Resource: at.Resource, Path: path, To: on,
		Reason: "its VE runs on node " + b.o.name(on),
	}) {
		b.letting[at.Owner]++ // one that is not asked for now is in nobody's way
	}
}

// ask dispatches an action unless one of its key is under way, or was refused a
// moment ago. It tells whether it did.
func (b *actionBoard) ask(a cluster.Action) bool {
	key := string(a.Node) + "/" + a.Name()
	if b.changed[key] {
		return false
	}
	old, there := b.byKey[key]
	if there {
		done, err := time.Parse(time.RFC3339Nano, old.Value.DoneAt)
		age := b.o.Clock.Sub(done)
		pause := askAgain
		if old.Value.Verb == a.Verb && old.Value.To == a.To {
			a.Attempts = old.Value.Attempts + 1
			pause = min(askAgain<<min(old.Value.Attempts, 10), askAtMost)
		}
		if old.Err != nil || old.Value.State != cluster.ActionDone || old.Value.Failover != "" || err == nil && age < pause && age > -pause {
			return false
		}
		b.swap(&old, &a)
		return true
	}
	b.swap(nil, &a)
	return true
}

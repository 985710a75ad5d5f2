package failover

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"pgregory.net/rapid"
)

// check holds after every step whatever happens.
func (w *world) check() {
	places := map[string][]string{}
	add := func(where string, d *dir) {
		for id, r := range d.res {
			places[r.Path] = append(places[r.Path], where+"/"+string(id))
		}
	}
	for n, d := range w.repos {
		add(nick(n), d)
	}
	for p, d := range w.pools {
		add("pool "+p.String(), d)
	}
	for path := range w.broken {
		places[path] = append(places[path], "broken")
	}
	for _, path := range w.all {
		if len(places[path]) != 1 {
			w.t.Fatalf("%s lies in %d places: %v", path, len(places[path]), places[path])
		}
		var on []string
		for _, n := range slices.Sorted(maps.Keys(w.machines)) {
			if w.machines[n].running[path] {
				on = append(on, nick(n))
			}
		}
		if len(on) > 1 {
			w.t.Fatalf("%s runs on %v", path, on)
		}
	}
	for n, m := range w.machines {
		if own := w.repos[n]; m.acts() && own != nil && own.inc != w.nodes[n].Value.Incarnation {
			w.t.Fatalf("%s was admitted with incarnation %d and owns a repository of %d", nick(n), w.nodes[n].Value.Incarnation, own.inc)
		}
	}
}

// look observes and decides.
func (w *world) look(l *lead) {
	o, ok, err := l.observe(w.t.Context())
	if err != nil || !ok {
		w.t.Fatalf("observe: %v %v", ok, err)
	}
	// The engine's own maps go on changing; the steps belong to this moment.
	l.o, l.steps = o, Decide(o, l.Place)
}

// step carries out the next step of a master, which may have been replaced.
func (w *world) step(l *lead) {
	if len(l.steps) == 0 {
		return
	}
	s := l.steps[0]
	l.steps = l.steps[1:]
	err := l.apply(w.t.Context(), l.o, s)
	switch {
	case errors.Is(err, cluster.ErrDeposed):
		l.steps = nil
	case err != nil && !w.faults && l == w.master && !errors.Is(err, cluster.ErrConflict):
		w.t.Fatalf("%s: %v", lines([]Step{s}), err)
	}
	w.check()
}

func (w *world) any(what string, ok func(*machine) bool) *machine {
	var ms []*machine
	for _, n := range slices.Sorted(maps.Keys(w.machines)) {
		if ok(w.machines[n]) {
			ms = append(ms, w.machines[n])
		}
	}
	if len(ms) == 0 {
		w.t.Skip("no machine for this")
	}
	return rapid.SampledFrom(ms).Draw(w.t, what)
}

func anyMachine(*machine) bool  { return true }
func reachable(m *machine) bool { return m.on && !m.cut }
func acting(m *machine) bool    { return m.acts() }

// prove lets the agent of a machine without power succeed, if it is asked.
func (w *world) prove(m *machine) {
	for id, run := range w.master.prover.runs {
		if id.Node == m.id && !m.on {
			run.proof = &Proof{Method: "agent", Evidence: "off"}
		}
	}
}

func (w *world) confirm(m *machine) {
	id := of(m.id, w.nodes[m.id].Value.Incarnation)
	if f, ok := w.failovers[id]; ok && !m.on {
		w.confirms[id] = cluster.Versioned[cluster.Confirm]{Mod: w.next(), Value: cluster.Confirm{By: "ann", Serial: f.Create}}
	}
}

func (w *world) release(m *machine) {
	r := w.nodes[m.id].Value
	r.Released = r.Incarnation
	w.putNode(m.id, r)
}

// relocate is an operator's wish.
func (w *world) relocate(m, to *machine) {
	own := w.repos[m.id]
	if own == nil || len(own.res) == 0 {
		return
	}
	id := slices.Sorted(maps.Keys(own.res))[0]
	a := cluster.Action{ID: fmt.Sprint("op", w.next()), Verb: cluster.VerbGiveBack, Node: m.id, Inc: own.inc, Resource: id, Path: own.res[id].Path, State: cluster.ActionNew, To: to.id, Stop: own.res[id].ShouldRun()}
	if _, taken := w.actions[key(a)]; !taken {
		m.put(cluster.Versioned[cluster.Action]{}, a)
	}
}

// events are what can happen, in any order.
func (w *world) events() map[string]func(*rapid.T) {
	on := func(what string, ok func(*machine) bool, f func(*machine)) func(*rapid.T) {
		return func(*rapid.T) { f(w.any(what, ok)) }
	}
	work := func(*rapid.T) {
		keys := slices.Sorted(maps.Keys(w.actions))
		if len(keys) == 0 {
			w.t.Skip("no actions")
		}
		e := w.actions[rapid.SampledFrom(keys).Draw(w.t, "action")]
		w.machines[e.Value.Node].work(e)
	}
	look := func(*rapid.T) { w.look(w.master) }
	step := func(*rapid.T) { w.step(w.master) }
	round := func(*rapid.T) {
		w.look(w.master)
		for len(w.master.steps) > 0 {
			w.step(w.master)
		}
	}
	return map[string]func(*rapid.T){
		"":                 func(*rapid.T) { w.check() },
		"the master looks": look, "the master takes a step": step, "a round": round, "a second round": round,
		"a node works": work, "a node works on": work, "a node goes on": work,
		"power off":      on("machine", anyMachine, (*machine).powerOff),
		"power on":       on("machine", func(m *machine) bool { return !m.on }, (*machine).powerOn),
		"daemon restart": on("machine", anyMachine, (*machine).restart),
		"etcd cut":       on("machine", anyMachine, func(m *machine) { m.cut = true }),
		"etcd healed":    on("machine", func(m *machine) bool { return m.cut }, func(m *machine) { m.cut = false }),
		"lease ends":     on("machine", anyMachine, (*machine).expire), "another lease ends": on("machine", anyMachine, (*machine).expire),
		"clean stop":     on("machine", acting, (*machine).stop),
		"comes back":     on("machine", reachable, func(m *machine) { m.comeBack(rapid.Bool().Draw(w.t, "not quiesced")) }),
		"admission":      on("machine", reachable, (*machine).admit),
		"answers":        on("machine", acting, (*machine).answer),
		"rescan":         on("machine", acting, (*machine).rescan),
		"agent succeeds": on("machine", anyMachine, w.prove), "confirmed": on("machine", anyMachine, w.confirm), "released": on("machine", anyMachine, w.release),
		"new master": on("machine", reachable, func(m *machine) { w.elect(m.id) }),
		"a replaced master wakes up": func(*rapid.T) {
			if len(w.former) == 0 {
				w.t.Skip("none")
			}
			w.step(rapid.SampledFrom(w.former).Draw(w.t, "which"))
		},
		"started by hand": func(*rapid.T) { w.withPath(func(path string) { w.any("on", acting).startByHand(path) }) },
		"a live migration begins": func(*rapid.T) {
			w.withPath(func(path string) {
				w.any("from", func(m *machine) bool { return m.running[path] && m.acts() }).migrate(w.any("to", acting), path)
			})
		},
		"a live migration ends": func(*rapid.T) {
			w.any("to", func(m *machine) bool { return len(m.coming) > 0 }).arrive(rapid.IntRange(0, 2).Draw(w.t, "fails") > 0)
		},
		"relocate": func(*rapid.T) { w.relocate(w.any("from", acting), w.any("to", anyMachine)) },
	}
}

// withPath does something to one of the VEs.
func (w *world) withPath(f func(path string)) {
	if len(w.all) == 0 {
		w.t.Skip("no VEs")
	}
	f(rapid.SampledFrom(w.all).Draw(w.t, "VE"))
}

// settle ends the faults and gives everything time.
func (w *world) settle(stayOff map[cluster.NodeID]bool) {
	w.faults = false
	quiet := 0
	var story []string // what was done of late
	for range 100 {
		w.elapse(stayOff)
		before := w.rev
		w.look(w.master)
		story = append(story[max(0, len(story)-6):], fmt.Sprint(lines(w.master.steps)))
		for len(w.master.steps) > 0 {
			w.step(w.master)
		}
		for again := true; again; {
			again = false
			for _, k := range slices.Sorted(maps.Keys(w.actions)) {
				e := w.actions[k]
				again = w.machines[e.Value.Node].work(e) || again
				w.check()
			}
		}
		for n := range w.master.counted {
			delete(w.master.counted, n) // progress may be written again
		}
		// Some steps, such as asking for a proof, leave no trace by themselves.
		if quiet++; w.rev != before {
			quiet = 0
		}
		if quiet == 3 {
			return
		}
	}
	w.t.Fatalf("the world does not come to rest:\n%s", strings.Join(story, "\n"))
}

func (w *world) elapse(stayOff map[cluster.NodeID]bool) {
	for _, n := range slices.Sorted(maps.Keys(w.machines)) {
		m := w.machines[n]
		switch {
		case stayOff[n] && m.on:
			m.powerOff()
		case !stayOff[n] && !m.on:
			m.powerOn()
		}
		m.cut = false
		m.expire()
		if rg, back := w.recovering[n]; !back || !rg.Value.NotQuiesced && w.repos[n] != nil {
			m.comeBack(true) // all else of admission is done
		}
		m.admit()
		for len(m.coming) > 0 {
			m.arrive(false)
		}
		m.rescan()
		if m.acts() && w.nodes[n].Value.Elsewhere.Asked < w.newest() {
			m.answer()
		}
		w.prove(m)
		if stayOff[n] && w.nodes[n].Value.Released == 0 {
			w.release(m)
		}
		w.check()
	}
}

// newest is the highest serial of the failovers.
func (w *world) newest() int64 {
	var s int64
	for _, f := range w.failovers {
		s = max(s, f.Create)
	}
	return s
}

// atRest tells what is wrong with a world in which nothing happens any more.
func (w *world) atRest() {
	w.look(w.master)
	steps := slices.DeleteFunc(w.master.steps, func(s Step) bool { return s.Do == ActFence })
	if d := cmp.Diff([]string{}, lines(steps)); d != "" {
		w.t.Fatalf("at rest there is something to do (-want +got):\n%s", d)
	}
	for id, f := range w.failovers {
		if f.Value.Phase != cluster.PhaseDone {
			w.t.Fatalf("failover %s ends %s: %s", id, f.Value.Phase, f.Value.Reason)
		}
	}
	for p, d := range w.pools {
		for id := range d.res {
			w.t.Fatalf("%s was forgotten in the pool directory %s", id, p)
		}
	}
	for n, m := range w.machines {
		for path := range m.running {
			if m.acts() && !slices.ContainsFunc(slices.Collect(maps.Values(w.repos[n].res)), func(r cluster.Resource) bool { return r.Path == path }) && w.owner(path) {
				w.t.Fatalf("%s runs on %s, which does not own it", path, nick(n))
			}
		}
	}
	for n, d := range w.repos {
		for id, r := range d.res {
			switch {
			case !w.machines[n].acts() && w.nodes[n].Value.Stopped == cluster.NotStopped:
				w.t.Fatalf("%s lies in the repository of %s, which is not alive", id, nick(n))
			case r.ShouldRun() && r.Waiting == "" && !w.runs(r.Path) && w.machines[n].acts():
				w.t.Fatalf("%s on %s should run, does not, and does not say why", id, nick(n))
			}
		}
	}
}

// owner tells whether who owns a VE could let go of it: nobody does for a daemon
// that is stopped.
func (w *world) owner(path string) bool {
	for n, d := range w.repos {
		for _, r := range d.res {
			if r.Path == path {
				return w.machines[n].acts()
			}
		}
	}
	return true
}

func (w *world) runs(path string) bool {
	for _, m := range w.machines {
		if m.running[path] {
			return true
		}
	}
	return false
}

func TestTheWorldKeepsItsPromisesAndComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		t.Repeat(w.events())
		on := slices.Sorted(maps.Keys(w.machines))
		stayOff := map[cluster.NodeID]bool{}
		for _, n := range on[1:] {
			stayOff[n] = rapid.Bool().Draw(t, "stays off: "+nick(n)) && w.nodes[n].Value.Stopped == cluster.NotStopped
		}
		if !reachable(w.machines[w.master.Self]) || stayOff[w.master.Self] || rapid.Bool().Draw(t, "a last election") {
			w.elect(on[0])
		}
		w.settle(stayOff)
		w.atRest()
	})
}

// TestDecidingAgainRepeatsNothing: what one round has done, the next does not do again.
func TestDecidingAgainRepeatsNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.settings.ActionTimeout = 1 << 50
		events := w.events()
		t.Repeat(events)
		w.faults = false
		w.look(w.master)
		once := append([]Step{}, w.master.steps...)
		for len(w.master.steps) > 0 {
			w.step(w.master)
		}
		w.look(w.master)
		did := map[string]bool{}
		for _, l := range lines(once) {
			did[l] = true
		}
		for _, l := range lines(w.master.steps) {
			if did[l] && !strings.HasPrefix(l, "fence ") {
				t.Fatalf("%q was decided again right after it was done", l)
			}
		}
	})
}

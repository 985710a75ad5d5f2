package failover

import (
	"fmt"
	"maps"
	"slices"

	"github.com/shaman-ha/shaman/internal/cluster"
	"pgregory.net/rapid"
)

// machine is one node: what it is, as opposed to what etcd says of it.
type machine struct {
	w       *world
	id      cluster.NodeID
	on      bool // it has power
	cut     bool // it does not reach etcd
	session bool // its daemon was admitted and knows of no end of that
	boots   int
	room    int
	running map[string]bool
	coming  map[string]cluster.NodeID     // live migrations that come in: path → source
	claims  map[string]cluster.ResourceID // action → the name of what it renamed; forgotten by a restart
}

func (m *machine) bootID() string { return fmt.Sprintf("boot-%d", m.boots) }

// acts tells whether the machine may start and move things: it is admitted and
// its lease holds.
func (m *machine) acts() bool {
	_, alive := m.w.alive[m.id]
	return m.on && !m.cut && m.session && alive
}

func (m *machine) powerOff() {
	m.on, m.session, m.running, m.claims, m.coming = false, false, map[string]bool{}, nil, nil
	delete(m.w.recovering, m.id)
	for _, o := range m.w.machines {
		maps.DeleteFunc(o.coming, func(_ string, from cluster.NodeID) bool { return from == m.id })
	}
}

func (m *machine) powerOn() {
	m.on, m.boots = true, m.boots+1
}

// restart ends the daemon; its VEs run on.
func (m *machine) restart() { m.session, m.claims = false, nil }

// expire ends the lease of a machine that does not renew it any more.
func (m *machine) expire() {
	if m.on && !m.cut && m.session {
		return
	}
	delete(m.w.alive, m.id)
	m.session = false
}

// stop is a clean stop of the daemon.
func (m *machine) stop() {
	if !m.acts() || m.openFailover() {
		return
	}
	r := m.w.nodes[m.id].Value
	r.Stopped = cluster.StopInactive
	m.w.putNode(m.id, r)
	delete(m.w.alive, m.id)
	m.restart()
}

func (m *machine) openFailover() bool {
	for id, f := range m.w.failovers {
		if id.Node == m.id && !f.Value.Phase.Sealed() {
			return true
		}
	}
	return false
}

// comeBack announces a machine that is not admitted.
func (m *machine) comeBack(notQuiesced bool) {
	if _, alive := m.w.alive[m.id]; alive || !m.on || m.cut || m.session {
		return
	}
	inc := m.w.nodes[m.id].Value.Incarnation
	home := m.w.repos[m.id] != nil && m.w.repos[m.id].inc == inc
	rev := m.w.next()
	m.w.recovering[m.id] = cluster.Versioned[cluster.RecoveringRecord]{Mod: rev, Create: rev, Value: cluster.RecoveringRecord{
		Incarnation: inc, BootID: m.bootID(), HardwareID: string(m.id), Clean: len(m.running) == 0, NotQuiesced: notQuiesced && home,
	}}
}

// admit lets a machine in if no failover of it is in a phase before the seal.
func (m *machine) admit() {
	w := m.w
	_, alive := w.alive[m.id]
	if alive || !m.on || m.cut || m.session || m.openFailover() {
		return
	}
	r := w.nodes[m.id].Value
	reboot := r.BootID != m.bootID()
	if w.repos[m.id] == nil {
		m.running = map[string]bool{} // all of it moved away: stopped before the admission
		r.Incarnation++
		w.repos[m.id] = &dir{inc: r.Incarnation, res: map[cluster.ResourceID]cluster.Resource{}}
		reboot = false
	}
	r.BootID, r.Stopped, r.Released = m.bootID(), cluster.NotStopped, 0
	w.putNode(m.id, r)
	delete(w.recovering, m.id)
	m.session = true
	w.putAlive(m)
	for id, res := range w.repos[m.id].res {
		if reboot && res.ShouldRun() && res.Waiting == "" && res.Migrating == "" {
			if _, said := m.elsewhere(res.Path); said {
				res.Waiting = "by the word of another node it runs there"
				w.repos[m.id].res[id] = res
			} else {
				m.running[res.Path] = true // at home before the boot
			}
		}
	}
	m.say()
}

// say publishes what runs here, or comes in, without being in the own repository.
func (m *machine) say() {
	if !m.acts() {
		return
	}
	r := m.w.nodes[m.id].Value
	var own map[cluster.ResourceID]cluster.Resource
	if d := m.w.repos[m.id]; d != nil {
		own = d.res
	}
	mine := map[string]bool{}
	for _, res := range own {
		mine[res.Path] = true
	}
	var words []cluster.RunningVE
	for _, path := range m.w.all {
		_, coming := m.coming[path]
		if (m.running[path] || coming) && !mine[path] {
			words = append(words, cluster.RunningVE{Path: path, Unsure: !m.running[path]})
		}
	}
	if !slices.Equal(words, r.Elsewhere.VEs) {
		r.Elsewhere.VEs = words
		m.w.putNode(m.id, r)
	}
}

// elsewhere tells whether another node says that it runs a VE, or may.
func (m *machine) elsewhere(path string) (on cluster.NodeID, said bool) {
	for n, e := range m.w.nodes {
		_, alive := m.w.alive[n]
		harmless := !alive && m.w.sealed(n, e.Value.Incarnation)
		if n != m.id && !harmless && slices.ContainsFunc(e.Value.Elsewhere.VEs, func(v cluster.RunningVE) bool { return v.Path == path }) {
			return n, true
		}
	}
	return "", false
}

// startByHand starts a VE that runs nowhere on a machine that need not own it.
func (m *machine) startByHand(path string) {
	for _, o := range m.w.machines {
		if _, coming := o.coming[path]; coming || o.running[path] {
			return
		}
	}
	m.running[path] = true
	m.say()
}

// migrate begins a live migration to another machine.
func (m *machine) migrate(to *machine, path string) {
	if _, said := m.elsewhere(path); m == to || !m.running[path] || said {
		return
	}
	if to.coming == nil {
		to.coming = map[string]cluster.NodeID{}
	}
	to.coming[path] = m.id
	to.say()
	m.rescan()
}

// arrive ends one live migration that comes in, well or not.
func (m *machine) arrive(well bool) {
	if paths := slices.Sorted(maps.Keys(m.coming)); len(paths) > 0 {
		path := paths[0]
		from := m.w.machines[m.coming[path]]
		delete(m.coming, path)
		if well && from.running[path] {
			delete(from.running, path)
			m.running[path] = true
		}
		m.say()
		from.rescan()
	}
}

// rescan mends what a restart in the middle of an action left behind: what runs
// does not wait.
func (m *machine) rescan() {
	own := m.w.repos[m.id]
	if !m.acts() || own == nil {
		return
	}
	for id, r := range own.res {
		if on, said := m.elsewhere(r.Path); !m.running[r.Path] {
			switch {
			case said:
				r.Migrating = on
			case r.Migrating != "":
				r.Migrating = ""
				if r.Want == cluster.WantRunning && r.Waiting == "" {
					r.Waiting = "it is not there any more"
				}
			}
			own.res[id] = r
			continue
		}
		r.Want, r.Waiting = cluster.WantRunning, ""
		r.Migrating, _ = m.elsewhere(r.Path)
		own.res[id] = r
	}
	m.say()
}

// answer tells what runs here without being in the own repository.
func (m *machine) answer() {
	m.say()
	if m.acts() {
		r := m.w.nodes[m.id].Value
		r.Elsewhere.Asked = m.w.rev
		m.w.putNode(m.id, r)
	}
}

// work goes one step on with an action: mark, rename, the rest with the
// outcome. It tells whether there was anything to do.
func (m *machine) work(e cluster.Versioned[cluster.Action]) bool {
	a := e.Value
	if !m.acts() || a.Node != m.id || a.State == cluster.ActionDone {
		return false
	}
	own := m.w.repos[m.id]
	switch {
	case a.Inc != m.w.nodes[m.id].Value.Incarnation:
		m.finish(e, cluster.OutcomeSuperseded, "")
	case a.State == cluster.ActionNew:
		a.State = cluster.ActionClaimed
		m.put(e, a)
	case own == nil || own.inc != a.Inc:
		return false // taken over, or about to be: nothing is touched
	case a.Verb == cluster.VerbTake:
		m.take(e, own)
	default:
		m.errand(e, own)
	}
	return true
}

func (m *machine) put(e cluster.Versioned[cluster.Action], a cluster.Action) {
	m.w.actions[key(a)] = cluster.Versioned[cluster.Action]{Value: a, Mod: m.w.next(), Create: e.Create}
}

func (m *machine) finish(e cluster.Versioned[cluster.Action], o cluster.Outcome, name cluster.ResourceID) {
	a := e.Value
	a.State, a.Outcome, a.DoneAt = cluster.ActionDone, o, "long ago"
	if name != "" && name != a.Resource {
		a.NewName = name
	}
	m.put(e, a)
	delete(m.claims, a.ID)
	m.w.putAlive(m)
}

func (m *machine) take(e cluster.Versioned[cluster.Action], own *dir) {
	a := e.Value
	id, renamed := m.claims[a.ID]
	if !renamed {
		pool, err := cluster.ParsePoolID(a.Pool)
		if err != nil {
			m.w.t.Fatal(err)
		}
		from := m.w.pools[pool]
		other := cluster.ResourceID(string(a.Resource) + "~" + string(pool.Node))
		if _, there := from.res[a.Resource]; there {
			id = a.Resource
			if _, taken := own.res[id]; taken {
				id = other
			}
			m.w.move(from, a.Resource, own, id)
		} else if own.res[a.Resource].Path == a.Path {
			id = a.Resource // claimed before the daemon was restarted
		} else if own.res[other].Path == a.Path {
			id = other
		} else {
			m.finish(e, cluster.OutcomeGone, "")
			return
		}
		if m.claims == nil {
			m.claims = map[string]cluster.ResourceID{}
		}
		m.claims[a.ID] = id
		return
	}
	m.bring(e, own, id)
}

// bring registers and perhaps starts what lies in the own repository.
func (m *machine) bring(e cluster.Versioned[cluster.Action], own *dir, id cluster.ResourceID) {
	r, there := own.res[id]
	_, said := m.elsewhere(r.Path)
	switch {
	case !there:
		m.finish(e, cluster.OutcomeGone, "")
	case e.Value.Start && said:
		r.Waiting = "by the word of another node it runs there"
		own.res[id] = r
		e.Value.Waiting = r.Waiting
		m.finish(e, cluster.OutcomeRegistered, id)
	case !m.running[r.Path] && m.fails():
		m.finish(e, cluster.OutcomeFailed, id)
	case !e.Value.Start:
		if r.Waiting = e.Value.Waiting; r.Waiting == "" && r.ShouldRun() && !m.running[r.Path] {
			r.Migrating = m.id
		}
		own.res[id] = r
		m.finish(e, cluster.OutcomeRegistered, id)
	default:
		m.running[r.Path] = true
		r.Waiting, r.Want = "", cluster.WantRunning
		own.res[id] = r
		m.finish(e, cluster.OutcomeStarted, id)
	}
}

func (m *machine) fails() bool {
	return m.w.faults && rapid.IntRange(0, 3).Draw(m.w.t, "a start fails") == 0
}

func (m *machine) errand(e cluster.Versioned[cluster.Action], own *dir) {
	a := e.Value
	r, there := own.res[a.Resource]
	switch {
	case !there && a.Verb == cluster.VerbAdopt:
		b, broken := m.w.broken[a.Path]
		if !broken || !m.running[a.Path] {
			m.finish(e, cluster.OutcomeRefused, "")
			return
		}
		delete(m.w.broken, a.Path)
		own.res[a.Resource] = b
		m.finish(e, cluster.OutcomeOK, "")
	case !there:
		m.finish(e, cluster.OutcomeGone, "")
	case a.Verb == cluster.VerbStart:
		m.bring(e, own, a.Resource)
	case a.Verb == cluster.VerbAdopt:
		m.finish(e, cluster.OutcomeOK, "") // done before
	case a.Verb == cluster.VerbGiveBack && m.running[r.Path] && (!a.Stop || a.Adopt):
		m.finish(e, cluster.OutcomeRefused, "")
	case a.Verb == cluster.VerbGiveBack:
		// The rename and the answer are two steps: the daemon may die in between.
		delete(m.running, r.Path)
		r.Migrating = ""
		own.res[a.Resource] = r
		zero := cluster.PoolID{Node: m.id}
		if m.w.pools[zero] == nil {
			m.w.pools[zero] = &dir{res: map[cluster.ResourceID]cluster.Resource{}}
		}
		name := a.Resource
		if _, taken := m.w.pools[zero].res[name]; taken {
			name = cluster.ResourceID(string(name) + "~" + string(m.id))
		}
		m.w.move(own, a.Resource, m.w.pools[zero], name)
		if m.w.faults && rapid.IntRange(0, 3).Draw(m.w.t, "dies before its answer") == 0 {
			m.restart()
			return
		}
		m.finish(e, cluster.OutcomeOK, name)
	case a.Verb == cluster.VerbBreak:
		delete(m.running, r.Path)
		delete(own.res, a.Resource)
		r.ID = a.Resource
		m.w.broken[r.Path] = r
		m.finish(e, cluster.OutcomeBroken, "")
	default:
		m.w.t.Fatalf("an unexpected action: %+v", a)
	}
}

// move is the one rename.
func (w *world) move(from *dir, id cluster.ResourceID, to *dir, as cluster.ResourceID) {
	if _, taken := to.res[as]; taken {
		w.t.Fatalf("a rename onto %s replaces another resource", as)
	}
	to.res[as] = from.res[id]
	delete(from.res, id)
	for _, n := range slices.Sorted(maps.Keys(w.machines)) {
		w.machines[n].say()
	}
}

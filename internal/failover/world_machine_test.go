package failover

import (
	"fmt"

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
	m.on, m.session, m.running, m.claims = false, false, map[string]bool{}, nil
	delete(m.w.recovering, m.id)
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
	for _, res := range w.repos[m.id].res {
		if reboot && res.ShouldRun() && res.Waiting == "" {
			m.running[res.Path] = true // at home before the boot
		}
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
		if m.running[r.Path] && r.Waiting != "" {
			r.Waiting = ""
			own.res[id] = r
		}
	}
}

// answer tells what runs here without being in the own repository: nothing.
func (m *machine) answer() {
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
	switch {
	case !there:
		m.finish(e, cluster.OutcomeGone, "")
	case m.fails():
		delete(m.running, r.Path)
		m.finish(e, cluster.OutcomeFailed, id)
	case !e.Value.Start:
		r.Waiting = e.Value.Waiting
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
	case !there:
		m.finish(e, cluster.OutcomeGone, "")
	case a.Verb == cluster.VerbStart:
		m.bring(e, own, a.Resource)
	case a.Verb == cluster.VerbGiveBack && m.running[r.Path] && !a.Stop:
		m.finish(e, cluster.OutcomeRefused, "")
	case a.Verb == cluster.VerbGiveBack:
		// The rename and the answer are two steps: the daemon may die in between.
		delete(m.running, r.Path)
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
}

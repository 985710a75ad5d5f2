package crashpoints

import (
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"
)

// mode is what happens at a point.
type mode string

const (
	killBefore mode = "killed before"
	killAfter  mode = "killed after"
	lie        mode = "fails after success" // the call took effect, and says that it has not
	refuse     mode = "fails"               // without effect
	late       mode = "answers late"
	twice      mode = "is repeated" // what a retransmission does; the second answer counts
	stale      mode = "shows what was"
)

// point is one operation of one machine's daemon: the n-th with this label.
type point struct {
	machine string
	label   string
	n       int
}

func (p point) String() string { return fmt.Sprintf("%s %s #%d", p.machine, p.label, p.n) }

// script is what is to happen in a run, and what has happened. All processes of a
// run share it.
type script struct {
	at   point
	mode mode
	once sync.Once
	hit  chan *process // gets the process that reached the point

	mu   sync.Mutex
	seen []point // in the order in which they were reached
	on   bool    // only then points are counted: not while the cluster comes up
}

func newScript(at point, m mode) *script {
	return &script{at: at, mode: m, hit: make(chan *process, 1)}
}

func (s *script) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.on = true
}

func (s *script) points() []point {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// process is one life of a daemon: its operations have effect until it is dead.
type process struct {
	machine string
	script  *script

	mu     sync.Mutex
	counts map[string]int
	dead   bool
	died   chan struct{}
}

func newProcess(machine string, s *script) *process {
	return &process{machine: machine, script: s, counts: map[string]int{}, died: make(chan struct{})}
}

func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.dead {
		p.dead = true
		close(p.died)
	}
}

func (p *process) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// reach counts an operation and tells what happens to it: "" = nothing special.
func (p *process) reach(label string) mode {
	p.script.mu.Lock()
	on := p.script.on
	p.script.mu.Unlock()
	if !on {
		return ""
	}
	p.mu.Lock()
	p.counts[label]++
	at := point{p.machine, label, p.counts[label]}
	p.mu.Unlock()
	s := p.script
	s.mu.Lock()
	s.seen = append(s.seen, at)
	s.mu.Unlock()
	if at != s.at {
		return ""
	}
	m := mode("")
	s.once.Do(func() {
		m = s.mode
		s.hit <- p
	})
	return m
}

// answerLate is how long a late answer takes: longer than heartbeats, shorter than
// what calls are given.
const answerLate = 400 * time.Millisecond

// op carries one operation out, as the script wants it. do is the operation itself;
// gone and failed are the answers of a dead process and of a failed call.
func op[T any](p *process, label string, do func() T, gone, failed T) T {
	if p.isDead() {
		return gone
	}
	return opAt(p, p.reach(label), do, gone, failed)
}

// opAt is op with the mode already known.
func opAt[T any](p *process, m mode, do func() T, gone, failed T) T {
	switch m {
	case killBefore:
		p.kill()
		return gone
	case killAfter:
		do()
		p.kill()
		return gone
	case lie:
		do()
		return failed
	case refuse:
		return failed
	case late:
		v := do()
		time.Sleep(answerLate)
		return v
	case twice:
		do()
	case stale: // only listings know what was
	}
	v := do()
	if p.isDead() {
		return gone
	}
	return v
}

var (
	randomName = regexp.MustCompile(`\.[0-9a-f]{8}(\.tmp)?(/|$)`)
	hostID     = regexp.MustCompile(`00000000000000([0-9a-f]{2})`)
)

// normal takes what differs between runs out of a name.
func normal(name string) string {
	name = randomName.ReplaceAllString(name, ".RANDOM$1$2")
	return hostID.ReplaceAllString(name, "n$1")
}

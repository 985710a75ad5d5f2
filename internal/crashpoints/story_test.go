package crashpoints

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
	"github.com/shaman-ha/shaman/internal/resources"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The VEs of the story, all of them on n2 at first.
const (
	good    = "/ve/good"    // runs, and can be started anywhere
	better  = "/ve/better"  // too
	stopped = "/ve/stopped" // should not run
	bad     = "/ve/bad"     // runs, and cannot be started anywhere else
)

// keep is a line that shaman does not know, and has to keep.
const keep = "X_MINE=keep me\n"

// death is who dies with a daemon that is killed.
type death string

const (
	daemonDies  death = "its daemon is started again"
	machineDies death = "its machine loses its power"
)

// tell runs the whole story: a machine dies and its VEs are taken over, one of them
// in vain; the machine comes back; an operator moves a VE to it; the hypervisors move
// it on, without a word to anybody. At one point of it
// something happens. It returns the points that were reached, and whether the one
// that was meant was among them.
func tell(t testing.TB, endpoint string, cl *clientv3.Client, name string, at point, m mode, d death) (points []point, reached bool, err error) {
	s := newScript(at, m)
	w := newWorld(t, endpoint, cl, name, s)
	defer w.close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.problems) > 0 {
			err = errors.Join(err, errors.New(strings.Join(w.problems, "\n")))
		}
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, w.evidence())
		}
	}()
	for _, n := range []string{"n1", "n2", "n3"} {
		if err := w.shaman(n, "join", "-q"); err != nil {
			return nil, false, err
		}
	}
	if err := w.shaman("n1", "set-config", lockSetting, "HEARTBEAT_INTERVAL=100ms", "WATCHDOG_TIMEOUT=0", "FENCE_METHODS=manual", "LEASE_LOST_ACTION=none",
		"RELOCATION_SKIP_THRESHOLD=9", "NODE_CRASH_PER_HOUR_THRESHOLD=0", "START_RETRIES=0", "RELOCATE_RETRIES=1", "POOL_CHECK_TIMEOUT=1s", "ACTION_TIMEOUT=5s", "STOP_BUDGET=2s"); err != nil {
		return nil, false, err
	}
	w.furnish(t)
	go w.confirm(ctx)
	go w.mend(ctx, d)
	w.machines["n1"].start()
	if err := wait("n1 to be admitted", func() bool { return w.alive("n1") }); err != nil {
		return nil, false, err
	}
	w.machines["n2"].start()
	w.machines["n3"].start()
	if err := wait("all machines to be admitted, and their VEs to run", func() bool {
		return w.alive("n2") && w.alive("n3") && len(w.runsOn(good))*len(w.runsOn(better))*len(w.runsOn(bad)) == 1
	}); err != nil {
		return nil, false, err
	}
	w.mu.Lock()
	w.paths = []string{good, better, stopped, bad}
	w.mu.Unlock()
	s.begin()

	w.turn.Lock()
	w.machines["n2"].powerOff()
	w.turn.Unlock()
	if err := wait("the failover of n2", func() bool {
		return w.done(w.machines["n2"].id, 1) && w.runs(good) && w.runs(better) && w.lies(bad, "broken/") && w.settled()
	}); err != nil {
		return s.points(), false, err
	}
	w.turn.Lock()
	w.machines["n2"].powerOn()
	w.machines["n2"].start()
	w.turn.Unlock()
	if err := wait("n2 to come back", func() bool { return w.alive("n2") && w.settled() }); err != nil {
		return s.points(), false, err
	}
	// The operator insists: whoever carries it out may die in the middle.
	res := w.idOf(good)
	if err := wait("the operator's move", func() bool {
		return strings.HasPrefix(w.place(good), "md."+string(w.machines["n2"].id)) && w.runs(good) || w.settled() && w.shaman("n3", "--timeout", "20s", "relocate", res, "n2") == nil
	}); err != nil {
		return s.points(), false, err
	}
	if err := wait("a live migration", w.migrate); err != nil {
		return s.points(), false, err
	}
	down := time.Time{}
	if err := wait("the resource to follow its VE", func() bool {
		on := w.runsOn(good)
		if len(on) > 0 || !w.settled() {
			down = time.Time{}
		} else if down.IsZero() {
			down = time.Now()
		}
		if !down.IsZero() && time.Since(down) > downFor {
			// Its new machine has failed before it could say a word: nobody knows where the VE
			// went. stat shows that it should run and does not, and the operator starts it.
			_ = w.shaman("n1", "--timeout", "5s", "start", w.idOf(good)) // tried again
			down = time.Time{}
		}
		return len(on) == 1 && w.lies(good, "md."+string(w.machines[on[0]].id)+"/") && w.settled()
	}); err != nil {
		return s.points(), false, err
	}
	if err := wait("everything to come to rest", w.rest); err != nil {
		return s.points(), false, err
	}
	return s.points(), w.wasHit(), w.verdict()
}

// downFor is how long the VE has to be down, with nothing under way, before the
// operator acts: longer than anything that starts it by itself takes.
const downFor = 4 * time.Second

// migrate moves the good VE to another machine, as hypervisors do by themselves.
func (w *world) migrate() bool {
	on := w.runsOn(good)
	if len(on) != 1 || !w.settled() {
		return false
	}
	w.turn.Lock() // nobody's power is cut in the middle
	defer w.turn.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range []string{"n3", "n1", "n2"} {
		to, from := w.machines[n], w.machines[on[0]]
		if n == on[0] || !to.on || !from.on || !from.fake.Running(good) {
			continue
		}
		from.fake.End(good, cluster.CauseUnknown)
		if from.fake.Unregister(context.Background(), good) != nil {
			return false
		}
		to.fake.Run(good, drivertest.Definition{})
		return true
	}
	return false
}

// furnish lays the VEs out, as if they had run before the site was switched off.
func (w *world) furnish(t testing.TB) {
	store := resources.NewStore(w.backing, nil)
	n2 := w.machines["n2"]
	for _, v := range []struct {
		path string
		want cluster.Want
	}{{good, cluster.WantRunning}, {better, cluster.WantRunning}, {stopped, cluster.WantStopped}, {bad, cluster.WantRunning}} {
		for _, m := range w.machines {
			m.fake.Define(v.path, drivertest.Definition{})
		}
		must(t, store.Own(n2.id).Create(t.Context(), 1, cluster.Resource{ID: cluster.ResourceID("ct-" + filepath.Base(v.path)), Path: v.path, Want: v.want, LastNode: n2.id}))
		file := filepath.Join(w.backing, ".shaman", "md."+string(n2.id), "resources", "ct-"+filepath.Base(v.path))
		f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteString(keep)
		must(t, errors.Join(err, f.Close()))
	}
	for _, n := range []string{"n1", "n3"} {
		w.machines[n].fake.Inject("start", bad, drivertest.Fault{Err: errDriver})
	}
}

// mend is what the world does after somebody died: systemd starts a daemon again,
// an operator a machine once its VEs were taken over.
func (w *world) mend(ctx context.Context, d death) {
	var p *process
	select {
	case <-ctx.Done():
		return
	case p = <-w.script.hit:
	}
	w.turn.Lock()
	defer w.turn.Unlock()
	m := w.machines[p.machine]
	w.mu.Lock()
	w.hit = true
	w.mu.Unlock()
	if w.script.mode != killBefore && w.script.mode != killAfter || m.p != p {
		return
	}
	select {
	case <-p.died:
	case <-time.After(5 * time.Second):
	}
	run := m.keepRun()
	if d == daemonDies {
		m.bury(run)
		m.start()
		return
	}
	inc := w.incarnation(m.id)
	m.powerOff()
	_ = wait("its failover", func() bool { return ctx.Err() != nil || w.done(m.id, inc) }) // else it comes back before that
	if ctx.Err() != nil {
		return
	}
	m.powerOn()
	m.start()
}

func (w *world) wasHit() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hit
}

func (w *world) runs(path string) bool { return len(w.runsOn(path)) == 1 }

// place is where the resource of a path lies; "" unless it is exactly one place.
func (w *world) place(path string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at := w.places()[path]; len(at) == 1 {
		return at[0]
	}
	return ""
}

func (w *world) lies(path, below string) bool { return strings.HasPrefix(w.place(path), below) }

func (w *world) idOf(path string) string { return filepath.Base(w.place(path)) }

func (w *world) done(n cluster.NodeID, inc cluster.Incarnation) bool {
	f, ok := w.failovers()[cluster.FailoverID{Node: n, Incarnation: inc}.String()]
	return ok && f.Value.Phase == cluster.PhaseDone
}

// settled: every machine is on and admitted, no failover is under way.
func (w *world) settled() bool {
	for _, f := range w.failovers() {
		if f.Value.Phase.Open() {
			return false
		}
	}
	for n := range w.machines {
		if w.isOn(w.machines[n].id) && !w.alive(n) {
			return false
		}
	}
	return true
}

func (w *world) incarnation(n cluster.NodeID) cluster.Incarnation {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var rec cluster.NodeRecord
	if resp, err := w.cl.Get(ctx, w.keys.Node(n)); err == nil && len(resp.Kvs) == 1 {
		_ = decode(resp.Kvs[0].Value, &rec)
	}
	return rec.Incarnation
}

// rest: nothing is under way any more, and everything is where it should be.
func (w *world) rest() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	acts, err := w.cl.Get(ctx, w.keys.Actions(), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil || len(acts.Kvs) != 0 || !w.settled() {
		return false
	}
	for n := range w.machines {
		if !w.alive(n) {
			return false
		}
	}
	return w.verdict() == nil
}

// verdict says what is not as it should be in the end, however the story went.
func (w *world) verdict() error {
	var errs []error
	for _, p := range []string{good, better} {
		home := w.place(p)
		on := w.runsOn(p)
		if len(on) != 1 || home == "" || !strings.HasPrefix(home, "md."+string(w.machines[on[0]].id)+"/") {
			errs = append(errs, fmt.Errorf("%s runs on %v, its resource is %q", p, on, home))
		}
	}
	if !w.lies(stopped, "md.") || len(w.runsOn(stopped)) != 0 {
		errs = append(errs, fmt.Errorf("%s runs on %v, its resource is %q", stopped, w.runsOn(stopped), w.place(stopped)))
	}
	if !w.lies(bad, "broken/") || len(w.runsOn(bad)) != 0 {
		errs = append(errs, fmt.Errorf("%s runs on %v, its resource is %q", bad, w.runsOn(bad), w.place(bad)))
	}
	for _, p := range []string{good, better, stopped, bad} {
		data, err := os.ReadFile(filepath.Join(w.backing, ".shaman", strings.TrimPrefix(w.place(p), ".shaman/")))
		want := "STATE=running\n"
		if p == stopped {
			want = "STATE=stopped\n"
		}
		if err != nil || !strings.Contains(string(data), keep) || !strings.Contains(string(data), want) {
			errs = append(errs, fmt.Errorf("%s: its resource is %q, %w", p, data, err))
		}
	}
	return errors.Join(errs...)
}

// evidence is for whoever has to find out what went wrong; the lock is held.
func (w *world) evidence() string {
	log := w.log.String()
	return fmt.Sprintf("places: %v\nlog:\n%s", w.places(), log[max(0, len(log)-20000):])
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sync/errgroup"
)

const (
	// mendWorkers is how many resources are mended at the same time.
	mendWorkers = 16
	// freely and freelyShare (percent, but one is always allowed) bound how many
	// resources one sync may put into quarantine without Force: a hypervisor that lost its list for a moment
	// must not empty a repository.
	freely      = 5
	freelyShare = 20
)

// errMany refuses a sync that would delete too many resources.
var errMany = fmt.Errorf("%w: too many at once", errRefused)

// truth is what a mending starts from.
type truth struct {
	own   cluster.Listing
	all   cluster.Census
	spots cluster.Spots
	list  []cluster.VE
	here  map[string]cluster.VE
	err   error // kinds that nothing is known of
}

func (r *session) truth(ctx context.Context) (t truth, err error) {
	var un *cluster.UnansweredError
	if t.list, t.err = r.ves(ctx); t.err != nil && !errors.As(t.err, &un) {
		return t, t.err
	}
	if t.all, err = r.Repository.FreshCensus(ctx); err != nil {
		return t, err
	}
	t.own, t.spots, t.here = t.all.Repositories[r.Self], t.all.Spots(), map[string]cluster.VE{}
	for _, v := range t.list {
		t.here[v.Path] = v
	}
	return t, nil
}

// mend carries out sync or cleanup-broken. The report is complete also with an error.
func (r *session) mend(ctx context.Context, a cluster.Action) (*cluster.Report, error) {
	t, err := r.truth(ctx)
	if err != nil {
		return nil, err
	}
	m := &mending{session: r, truth: t, dry: a.DryRun, force: a.Force, report: &cluster.Report{}}
	if t.err != nil {
		m.report.Leaves("", "not everything is known, so what concerns it was left as it is: "+cluster.OneLine(t.err))
	}
	if a.Verb == cluster.VerbClean {
		return m.report, m.run(ctx, m.broken(ctx))
	}
	jobs, err := m.sync(ctx)
	if err != nil {
		return m.report, err
	}
	err = m.run(ctx, jobs)
	r.Look()
	return m.report, err
}

// mending is one sync or cleanup-broken.
type mending struct {
	*session
	truth
	dry, force bool
	report     *cluster.Report

	mu    sync.Mutex
	last  truth
	taken boottime.Time // when last was taken
}

// lookAge is how old the look may be that a job rests on: one for each of a
// thousand would take minutes.
const lookAge = time.Second

// fresh returns a look that is at most lookAge old.
func (m *mending) fresh(ctx context.Context) (truth, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.taken != 0 && boottime.Since(m.taken) < lookAge {
		return m.last, nil
	}
	t, err := m.session.truth(ctx)
	if err == nil {
		m.last, m.taken = t, boottime.Now()
	}
	return t, err
}

// known returns what the hypervisor says of a VE in a fresh look.
func (m *mending) known(ctx context.Context, res cluster.Resource) (v cluster.VE, here bool, err error) {
	t, err := m.fresh(ctx)
	if err == nil {
		err = cluster.Known(t.err, res.Kind)
	}
	v, here = t.here[res.Path]
	return v, here, err
}

// mendJob is one thing to mend.
type mendJob struct {
	id   cluster.ResourceID
	what string
	do   func(ctx context.Context) error
}

// run does the jobs, or says what they would do. One that fails is left, and
// does not stop the others; trouble of the storage stops them all.
func (m *mending) run(ctx context.Context, jobs []mendJob) error {
	if m.dry {
		for _, j := range jobs {
			m.report.Did(j.id, j.what)
		}
		return nil
	}
	errs := make([]error, len(jobs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(mendWorkers)
	for i, j := range jobs {
		g.Go(func() error {
			errs[i] = m.one(gctx, j)
			if errors.Is(errs[i], cluster.ErrHold) || errors.Is(errs[i], errClosed) {
				return errs[i]
			}
			return nil
		})
	}
	stopped := g.Wait()
	for i, j := range jobs {
		switch {
		case errs[i] == nil:
			m.report.Did(j.id, j.what)
		case stopped != nil && errors.Is(errs[i], context.Canceled):
		default:
			m.report.Leaves(j.id, strings.TrimPrefix(cluster.OneLine(errs[i]), "refused: "))
		}
	}
	return stopped
}

func (m *mending) one(ctx context.Context, j mendJob) error {
	done, err := m.alone(ctx, j.id)
	if err != nil {
		return err
	}
	defer done()
	release, err := m.gated()
	if err != nil {
		return err
	}
	defer release()
	return j.do(ctx)
}

// sync applies three rules. A VE that is here and has no resource gets one, one
// that runs here while its resource lies elsewhere is given it by the master; a
// resource whose VE is not here goes; where parameters differ, the VE's win.
func (m *mending) sync(ctx context.Context) (jobs []mendJob, err error) {
	own := map[string]bool{}
	var orphans []cluster.Resource
	for _, res := range m.own.Resources {
		own[res.Path] = true
		switch v, here := m.here[res.Path]; {
		case m.isBusy(res.ID):
			m.report.Leaves(res.ID, "something is being done with it just now; run this again in a moment")
		case cluster.Known(m.err, res.Kind) != nil:
		case !here:
			orphans = append(orphans, res)
		default:
			jobs = append(jobs, m.parameters(res, v)...)
		}
		if n := len(m.spots.At(res.Path)); n > 1 {
			m.report.Leaves(res.ID, fmt.Sprintf("%d resources are the VE at %s (%s): keep the one of the node where it runs, and 'shaman del' the others", n, res.Path, placesOf(m.spots.At(res.Path))))
		}
	}
	for _, u := range m.own.Unparseable {
		m.report.Leaves(cluster.ResourceID(u.ID), "the file cannot be used: "+cluster.OneLine(u.Err)+"; mend or remove it")
	}
	for _, v := range m.list {
		if v.Path != "" && !own[v.Path] {
			jobs = append(jobs, m.stranger(v)...)
		}
	}
	lost, err := m.orphans(ctx, orphans)
	return append(jobs, lost...), err
}

func placesOf(at []cluster.Spot) string {
	var out []string
	for _, s := range at {
		out = append(out, fmt.Sprintf("%s in %s", s.Resource.ID, s))
	}
	return strings.Join(out, ", ")
}

// parameters are mended by the same comparison as in every look.
func (m *mending) parameters(res cluster.Resource, v cluster.VE) []mendJob {
	switch {
	case v.Unfit != "":
		m.report.Leaves(res.ID, "it cannot be highly available: "+v.Unfit)
		return nil
	case !v.HA:
		m.report.Leaves(res.ID, fmt.Sprintf("high availability is off in the VE's own parameters: 'shaman del %s', or switch it on there", res.ID))
		return nil
	}
	next := res
	fromVE(&next, v)
	if next == res && !v.Stale {
		return nil
	}
	what := "its parameters are the VE's now: " + changes(res, next)
	if next == res {
		what = "its definition is saved for the other nodes"
	}
	return []mendJob{{res.ID, what, func(ctx context.Context) error {
		if v.Stale {
			if err := m.call(ctx, func(ctx context.Context) error { return m.Hypervisor.Save(ctx, res.Kind, res.Path) }); err != nil {
				return err
			}
		}
		return m.Repository.Update(ctx, m.Incarnation, res.ID, func(now *cluster.Resource) {
			if now.Path == res.Path {
				fromVE(now, v)
			}
		})
	}}}
}

func changes(was, now cluster.Resource) string {
	var out []string
	add := func(key string, a, b any) {
		if a != b {
			out = append(out, fmt.Sprintf("%s %v → %v", key, a, b))
		}
	}
	add("PRIORITY", was.Priority, now.Priority)
	add("MEMORY", was.Memory, now.Memory)
	add("VCPUS", was.VCPUs, now.VCPUs)
	add("UUID", was.UUID, now.UUID)
	return strings.Join(out, ", ")
}

// stranger is a VE that is here while its resource is not.
func (m *mending) stranger(v cluster.VE) []mendJob {
	at := m.spots.Of(v)
	switch {
	case len(at) == 0 && (!v.HA || m.Ignored(v.Path)):
		return nil // not ours
	case len(at) == 0, len(at) == 1 && at[0].Broken() && v.State == cluster.VERunning && at[0].Resource.Path == v.Path:
		id, what := v.ID(), "it had no resource, and has one now"
		if len(at) > 0 {
			id, what = at[0].Resource.ID, "it runs here, and is out of quarantine now"
		}
		return []mendJob{{id, what, func(ctx context.Context) error {
			t, err := m.fresh(ctx)
			if err != nil {
				return err
			}
			now, here := t.here[v.Path]
			if !here || len(at) > 0 && now.State != cluster.VERunning {
				return fmt.Errorf("%w: it is not here any more, or does not run; run this again", errRefused)
			}
			_, err = m.adoptAt(ctx, cluster.Action{Resource: id, Path: v.Path, Force: true}, now, t.spots, len(at) > 0)
			return err
		}}}
	case len(at) > 1:
		m.report.Leaves(v.ID(), fmt.Sprintf("it is here, %s, and has %d resources (%s): 'shaman del' the wrong ones", v.State, len(at), placesOf(at)))
	case v.State == cluster.VERunning && at[0].Owner != "":
		m.report.Leaves(at[0].Resource.ID, fmt.Sprintf("it runs here and its resource lies in %s: the master asks that node for it, which lets go unless it runs the VE too; 'shaman stat' shows when it is here", at[0]))
	case at[0].Broken():
		m.report.Leaves(at[0].Resource.ID, "it is in quarantine, and known here, stopped: start it, or use 'shaman cleanup-broken'")
	default:
		m.report.Leaves(at[0].Resource.ID, fmt.Sprintf("it is known here, %s, and its resource lies in %s: if it is not wanted here, unregister it from this node's hypervisor", v.State, at[0]))
	}
	return nil
}

// orphans are resources whose VE the hypervisor does not know. What is there is
// registered again, what is gone goes into quarantine: after a second look, and
// not too many at once.
func (m *mending) orphans(ctx context.Context, rs []cluster.Resource) (jobs []mendJob, err error) {
	if len(rs) == 0 {
		return nil, nil
	}
	if err := sleep(ctx, time.Second); err != nil {
		return nil, err
	}
	again, err := m.session.truth(ctx)
	if err != nil {
		return nil, err
	}
	gone := 0
	for _, res := range rs {
		if _, here := again.here[res.Path]; here || cluster.Known(again.err, res.Kind) != nil {
			m.report.Leaves(res.ID, "the hypervisor did not know its VE, and now it does, or cannot be asked; run this again")
			continue
		}
		if on, known := m.RunsOn(res.Path); !known || len(on) > 0 {
			m.report.Leaves(res.ID, "its VE is not here, and another node may run it: its resource follows it there; 'shaman stat' shows when it has")
			continue
		}
		absent, err := m.Repository.Absent(ctx, res.Path)
		switch {
		case err != nil:
			m.report.Leaves(res.ID, fmt.Sprintf("whether there is anything at %s is not known: %v", res.Path, err))
		case absent:
			gone++
			jobs = append(jobs, mendJob{res.ID, "there is nothing at its path " + res.Path + ": it went into quarantine", func(ctx context.Context) error { return m.orphan(ctx, res) }})
		default:
			jobs = append(jobs, mendJob{res.ID, "its VE is registered here again, stopped", func(ctx context.Context) error {
				if now, err := m.Repository.Look(ctx, m.Incarnation, res.ID); err != nil || now.Path != res.Path {
					return errors.Join(err, cluster.ErrGone)
				}
				return m.call(ctx, func(ctx context.Context) error { return m.Hypervisor.Register(ctx, res.Kind, res.Path) })
			}})
		}
	}
	if total := len(m.own.Resources); gone > min(freely, max(1, freelyShare*total/100)) && !m.force && !m.dry {
		return nil, fmt.Errorf("%w: %d of the %d resources of this node have nothing at their paths. If that is true, run 'shaman sync --force'; nothing was changed", errMany, gone, total)
	}
	return jobs, nil
}

// orphan puts a resource without a VE into quarantine.
func (m *mending) orphan(ctx context.Context, res cluster.Resource) error {
	now, err := m.Repository.Look(ctx, m.Incarnation, res.ID)
	if err != nil || now.Path != res.Path {
		return errors.Join(err, cluster.ErrGone)
	}
	if absent, err := m.Repository.Absent(ctx, res.Path); err != nil || !absent {
		return fmt.Errorf("%w: there is something at %s by now, or that is not known: %w", errRefused, res.Path, err)
	}
	if v, here, err := m.known(ctx, res); err != nil || here {
		return fmt.Errorf("%w: the hypervisor knows its VE by now (%s): %w", errRefused, v.State, err)
	}
	return m.Repository.MarkBroken(ctx, m.Incarnation, res.ID, cluster.BrokenReason{
		Node: m.Self, Operation: "orphan", Error: "there is nothing at " + res.Path + ", and the hypervisor of its node does not know it", Time: time.Now().UTC().Format(time.RFC3339),
	})
}

// broken are the jobs of cleanup-broken: what has a VE is registered here, and
// belongs here from then on; what has nothing at its path is dropped.
func (m *mending) broken(ctx context.Context) (jobs []mendJob) {
	for _, b := range m.all.Broken {
		res := b.Resource
		others := len(m.spots.At(res.Path)) - 1
		on, heard := m.RunsOn(res.Path)
		absent, aerr := m.Repository.Absent(ctx, res.Path)
		switch {
		case b.Err != nil || res.Path == "":
			m.report.Leaves(res.ID, fmt.Sprintf("the file cannot be used: %s; mend or remove %s", cluster.OneLine(b.Err), b.File))
		case !slices.Contains(m.Hypervisor.Kinds(), res.Kind):
			m.report.Leaves(res.ID, fmt.Sprintf("no driver of this node runs VEs of type %s; run this on a node that has one", res.Kind))
		case others > 0:
			m.report.Leaves(res.ID, fmt.Sprintf("%d resources are the VE at %s (%s); remove the wrong ones", others+1, res.Path, placesOf(m.spots.At(res.Path))))
		case !heard:
			m.report.Leaves(res.ID, "what other nodes say runs on them is not known yet; run this again")
		case len(on) > 0:
			m.report.Leaves(res.ID, fmt.Sprintf("by the word of node %s it runs there, which takes it out of quarantine by itself", on[0]))
		case aerr != nil:
			m.report.Leaves(res.ID, fmt.Sprintf("whether there is anything at %s is not known: %v", res.Path, aerr))
		default:
			jobs = append(jobs, m.unbreak(res, absent))
		}
	}
	return jobs
}

func (m *mending) unbreak(res cluster.Resource, absent bool) mendJob {
	if absent {
		return mendJob{res.ID, "there is nothing at its path " + res.Path + ": the resource is deleted", func(ctx context.Context) error {
			if v, here, err := m.known(ctx, res); err != nil || here {
				return fmt.Errorf("%w: the hypervisor knows its VE all the same (%s): %w", errRefused, v.State, err)
			}
			return m.Repository.DropBroken(ctx, res.ID, res.Path)
		}}
	}
	return mendJob{res.ID, "it belongs to this node now, registered and not started; start it with 'shaman start " + string(res.ID) + "'", func(ctx context.Context) error {
		if err := m.call(ctx, func(ctx context.Context) error { return m.Hypervisor.Register(ctx, res.Kind, res.Path) }); err != nil {
			return fmt.Errorf("register %s: %w", res.Path, err)
		}
		v, here, err := m.ve(ctx, res.Kind, res.Path)
		if err != nil {
			return err
		}
		if !here {
			return fmt.Errorf("%w: the hypervisor does not know %s, though it was registered", errRefused, res.Path)
		}
		t, err := m.fresh(ctx)
		if err != nil {
			return err
		}
		_, err = m.adoptAt(ctx, cluster.Action{Resource: res.ID, Path: res.Path, Force: true}, v, t.spots, true)
		return err
	}}
}

package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/dispatch"
	"github.com/shaman-ha/shaman/internal/doctor"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/fencing"
	"github.com/shaman-ha/shaman/internal/resources"
	"github.com/shaman-ha/shaman/internal/watchdog"
	"golang.org/x/sys/unix"
)

// How long the steps of an examination may take at most.
const (
	mountPatience = 5 * time.Second
	sightPatience = 30 * time.Second
)

// examination is one run of doctor: it gathers facts, and has them judged.
type examination struct {
	*app
	host  doctor.Host
	clock func() doctor.ClockFacts

	findings []doctor.Finding
	away     bool // etcd is out of reach

	snap    *snapshot
	members []doctor.Member
	cfg     config.Cluster
	etcd    doctor.EtcdFacts
	place   doctor.MountFacts
	store   doctor.StoreFacts
}

func (e *examination) add(fs []doctor.Finding) { e.findings = append(e.findings, fs...) }

// run examines all that can be reached; it returns an error only if nothing is
// to be shown.
func (e *examination) run(ctx context.Context) error {
	file := e.localFile()
	if e.ignore && e.noConfig {
		return cluster.ErrNotJoined // turned into silence
	}
	l, warns, err := config.LoadLocal(file, os.Environ())
	words := []string{}
	for _, w := range warns {
		words = append(words, string(w))
	}
	e.add(doctor.JudgeLocal(file, words, err))
	if err != nil {
		e.add(doctor.JudgeClock(e.clock(), nil))
		e.add(doctor.JudgeStarts(e.host.Starts(), false))
		return nil
	}
	if err := e.named(file, l); err != nil {
		return err
	}
	e.local, e.keys = l, etcd.NewLayout(l.ClusterName)
	e.app.store = resources.NewStore(l.ClusterMount, nil)
	id, err := config.KnownHostID(l)
	e.self = id
	e.add(doctor.JudgeHostID(id, err))
	var both sync.WaitGroup
	both.Go(func() { e.askEtcd(ctx) })
	both.Go(func() { e.askMount(ctx) })
	both.Wait()
	if _, joined := e.snap.facts.Nodes[e.self]; e.ignore && !joined && e.snap.etcdErr == nil {
		return cluster.ErrNotJoined
	}
	e.judge(ctx)
	return nil
}

// askEtcd reads the cluster's keys, and asks each endpoint how it is.
func (e *examination) askEtcd(ctx context.Context) {
	e.snap = newSnapshot()
	if err := e.dial(); err != nil {
		e.snap.etcdErr = err
	} else {
		var both sync.WaitGroup
		both.Go(func() {
			s := newSnapshot()
			if err := e.lookEtcd(ctx, s); err != nil {
				s = newSnapshot() // half of etcd's word is no word
				s.etcdErr = err
			}
			e.snap = s
		})
		both.Go(func() { e.etcd = doctor.AskEtcd(ctx, e.client, e.local.EtcdEndpoints) })
		both.Wait()
	}
	e.etcd.Err, e.etcd.TLS = e.snap.etcdErr, e.local.EtcdCACert != "" || e.local.EtcdCert != ""
	e.away = e.snap.etcdErr != nil
	e.snap.view = cluster.NewView(e.snap.facts)
	e.members = memberList(e.snap, e.self)
}

// askMount reads whose mount this is. The first touch is by a process of its
// own: where that hangs nothing else is tried, or this command could not end.
func (e *examination) askMount(ctx context.Context) {
	mount := e.local.ClusterMount
	e.place = e.host.Mount(mount)
	if errors.Is(doctor.Touch(ctx, identityFile(mount), mountPatience), doctor.ErrHangs) {
		e.store.Hangs = true
		return
	}
	ctx, cancel := context.WithTimeout(ctx, mountPatience)
	defer cancel()
	if to, err := filepath.EvalSymlinks(mount); err == nil && to != mount {
		e.place = e.host.Mount(to)
	}
	id, _, err := e.app.store.ReadIdentity(ctx)
	switch {
	case errors.Is(err, resources.ErrNoCluster):
	case err != nil:
		e.store.IdentErr = err
	default:
		e.store.Founded, e.store.Cluster, e.store.UUID, e.store.EtcdID = true, id.Name, id.UUID, id.EtcdClusterID
	}
	e.store.Space, e.store.SpaceErr = doctor.Fullness(ctx, mount)
}

// judge asks the rest, and has everything judged.
func (e *examination) judge(ctx context.Context) {
	budget := e.parameters()
	t := e.cfg.Timing()
	e.store.WantCluster, e.store.WantUUID, e.store.WantEtcdID = e.local.ClusterName, e.snap.bound, e.etcd.ClusterID
	e.add(doctor.JudgeEtcd(e.etcd, t.Lease))
	e.add(doctor.JudgePlace(e.place, e.store.Founded || e.store.Hangs || e.store.IdentErr != nil))
	e.add(doctor.JudgeStore(e.local.ClusterMount, e.store))
	files, _ := doctor.FenceFiles(e.local.FenceDir) // why it cannot be read is told below
	e.add(doctor.JudgeSecrets(doctor.SecretFiles(e.local.FenceDir, e.local.EtcdPasswordFile, e.local.EtcdKey, e.local.WebConfigFile), os.Geteuid()))
	var agents []doctor.FenceFact
	var sights doctor.Sightings
	var both sync.WaitGroup
	both.Go(func() { agents = e.askAgents(ctx, files) })
	both.Go(func() { sights = e.measure(ctx) })
	both.Wait()
	for _, f := range agents {
		if f.Err == nil {
			budget.Agent = max(budget.Agent, f.Took)
		}
	}
	e.judgeSights(sights, t)
	e.judgeCluster(agents, files)
	e.add(doctor.JudgeBudget(budget))
	e.judgeWatchdogs(len(files) > 0)
	_, joined := e.snap.facts.Nodes[e.self]
	e.add(doctor.JudgeStarts(e.host.Starts(), joined))
}

// parameters reads the cluster-wide ones; the defaults are taken where they cannot be used.
func (e *examination) parameters() doctor.Budget {
	if e.away {
		e.cfg = config.MustDefaults()
		return doctor.Budget{Unknown: true}
	}
	cfg, warns, err := config.ParseCluster(e.snap.config)
	if err != nil {
		e.cfg = config.MustDefaults()
		return doctor.Budget{Err: err}
	}
	e.cfg = cfg
	b := doctor.Budget{Noticed: cfg.Timing().Lease + 500*time.Millisecond + cfg.Patience, Storage: cfg.StopBudget}
	if cfg.WatchdogTimeout > 0 {
		b.Watchdog = cfg.WatchdogProof()
	}
	for _, w := range warns {
		b.Warnings = append(b.Warnings, string(w))
	}
	return b
}

func (e *examination) askAgents(ctx context.Context, files []string) []doctor.FenceFact {
	who := fenceNames(files)
	if !e.away {
		who = nil
		for _, m := range e.members {
			if !m.Self {
				who = append(who, m)
			}
		}
	}
	return doctor.AskAgents(ctx, e.local.FenceDir, who, min(fencing.Deadline, e.timeout))
}

func (e *examination) judgeCluster(agents []doctor.FenceFact, files []string) {
	if e.away {
		e.add(doctor.JudgeAlone(agents))
		return
	}
	e.add(doctor.JudgeFencing(agents, doctor.FencePolicy{Dir: e.local.FenceDir, Methods: e.cfg.FenceMethods, TrustVirtual: e.cfg.WatchdogTrustVirtual}))
	if len(e.members) > 0 {
		known := e.members
		if e.self != "" || e.local.NodeName != "" { // the directory is often copied as a whole, before the join too
			known = append(known[:len(known):len(known)], doctor.Member{ID: e.self, Name: e.local.NodeName})
		}
		e.add(doctor.JudgeStrays(e.local.FenceDir, files, known))
	}
	f := doctor.MemberFacts{
		Self: e.self, Name: e.local.NodeName, Hardware: config.Hardware(e.local), Recorded: e.snap.facts.Nodes[e.self].HardwareID,
		Members: e.members, Threshold: e.cfg.SkipThreshold(len(e.members)), Damaged: e.snap.damaged,
	}
	if e.snap.brake != nil {
		f.Brake = e.snap.brake.Reason
	}
	for _, fo := range e.snap.facts.Failovers {
		if fo.Phase == cluster.PhaseAwaitingFence {
			f.Waiting = append(f.Waiting, e.snap.name(fo.Node))
		}
	}
	f.Uncounted = e.snap.mountErr
	f.Broken, f.Bad = len(e.snap.census.Broken), len(e.snap.census.Unparseable)
	e.add(doctor.JudgeMembers(f))
	e.add(doctor.JudgeVersions(e.members, e.version))
}

func (e *examination) judgeWatchdogs(agents bool) {
	w := e.host.Watchdog(e.local.WatchdogDevice)
	w.Virtual, w.Why = watchdog.VirtualAt(e.host.Root)
	p := doctor.WatchdogPolicy{Timeout: e.cfg.WatchdogTimeout, TrustVirtual: e.cfg.WatchdogTrustVirtual, Methods: e.cfg.FenceMethods, Agents: agents}
	self := doctor.Member{}
	for _, m := range e.members {
		if m.Self {
			self = m
		}
	}
	e.add(doctor.JudgeWatchdog(w, p, self))
	e.add(doctor.JudgeWatchdogs(e.members, p))
}

// judgeSights judges what was measured on the mount, if it could be.
func (e *examination) judgeSights(s doctor.Sightings, t cluster.Timing) {
	if s.Away = e.away; e.sightable() {
		e.add(doctor.JudgeWrites(e.local.ClusterMount, s.Writes, t.Probe))
		e.add(doctor.JudgeVisibility(s, t.Heartbeat))
	}
	e.add(doctor.JudgeClock(e.clock(), s.Peers))
}

// sightable tells whether there is anything to measure on: a cluster's mount,
// and a node that has an id.
func (e *examination) sightable() bool {
	return e.self != "" && e.store.Founded && e.store.Cluster == e.local.ClusterName &&
		(e.snap.bound == "" || e.snap.bound == e.store.UUID)
}

// measure writes the probe file and has the other nodes look at it.
func (e *examination) measure(ctx context.Context) doctor.Sightings {
	if !e.sightable() {
		return doctor.Sightings{}
	}
	mctx, cancel := context.WithTimeout(ctx, mountPatience)
	e.snap.census, e.snap.mountErr = e.app.store.Census(mctx)
	cancel()
	unlock, err := e.alone()
	if err != nil {
		return doctor.Sightings{Err: err}
	}
	defer unlock()
	ctx, cancel = context.WithTimeoutCause(ctx, sightPatience, fmt.Errorf("not done within %s", sightPatience))
	defer cancel()
	var others []doctor.Member
	for _, m := range e.members {
		if !m.Self && m.Alive {
			others = append(others, m)
		}
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return doctor.Measure(ctx, probes{e.app.store, e.self}, e.askSight, others, hex.EncodeToString(b[:]), doctor.DefaultLimits())
}

// alone makes sure that no other doctor of this node overwrites the probe file.
// A process that hangs in the kernel with a write keeps the lock.
func (e *examination) alone() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(e.local.RunDir, "doctor.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, os.ErrNotExist) { // no daemon has run since the boot
		if err = os.MkdirAll(e.local.RunDir, 0o755); err == nil {
			f, err = os.OpenFile(filepath.Join(e.local.RunDir, "doctor.lock"), os.O_CREATE|os.O_RDWR, 0o600)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make sure that no other doctor runs: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, errors.New("another 'shaman doctor' measures on this node now")
	}
	return func() { _ = f.Close() }, nil
}

// askSight sends the question to another node's daemon.
func (e *examination) askSight(ctx context.Context, n doctor.Member, suffix string) (cluster.Sighting, error) {
	name := string(e.self)
	if suffix != "" {
		name += "." + suffix
	}
	act := cluster.Action{Verb: cluster.VerbLook, Node: n.ID, Inc: n.Inc, Path: name, Reason: "doctor on " + e.local.NodeName}
	got, err := dispatch.Ask(ctx, e.client, e.keys, act, func(cluster.Action) {})
	switch {
	case err != nil:
		return cluster.Sighting{}, err
	case got.Outcome == cluster.OutcomeOK && got.Saw != nil:
		return *got.Saw, nil
	case got.Outcome == cluster.OutcomeRefused: // a daemon that knows the question refuses no name of ours
		return cluster.Sighting{}, fmt.Errorf("%w: %s", doctor.ErrOlder, strings.TrimPrefix(got.Error, "refused: "))
	}
	return cluster.Sighting{}, fmt.Errorf("%s: %s", got.Outcome, got.Error)
}

// probes are the probe files of this node.
type probes struct {
	store *resources.Store
	self  cluster.NodeID
}

func (p probes) Write(ctx context.Context, token string) error {
	return p.store.WriteProbe(ctx, p.self, token)
}

func (p probes) Create(ctx context.Context, suffix, token string) error {
	if err := p.store.ClearProbes(ctx, p.self); err != nil { // of a run that did not end
		return err
	}
	return p.store.CreateProbe(ctx, string(p.self)+"."+suffix, token)
}

func (p probes) Clear(ctx context.Context) error { return p.store.ClearProbes(ctx, p.self) }

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/shaman-ha/shaman/internal/agent"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/dispatch"
	"github.com/shaman-ha/shaman/internal/election"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/failover"
	"github.com/shaman-ha/shaman/internal/fencing"
	"github.com/shaman-ha/shaman/internal/hypervisor/scripts"
	"github.com/shaman-ha/shaman/internal/membership"
	"github.com/shaman-ha/shaman/internal/node"
	"github.com/shaman-ha/shaman/internal/resources"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// member is this daemon while its node is joined.
type member struct {
	*Daemon
	known         introduction
	name, address string
	contact       *resources.Contact
	members       *membership.Members
	ledger        *dispatch.Ledger
	inbox         *dispatch.Inbox
	masters       *etcd.Mirror[election.Candidate]
	config        *etcd.Mirror[json.RawMessage]
	brake         *etcd.Mirror[cluster.Brake]
	events        *resources.EventLog
	state         *node.State
	heart         *node.Heart
	node          *node.Node
	agent         *agent.Agent
	engine        *failover.Engine
	pulses        *failover.Pulses
	electionM     *election.Metrics

	asked    chan struct{}
	lease    sync.Mutex
	current  *election.Lease
	capacity atomic.Pointer[cluster.Capacity]
	hooks    *scripts.Hooks
	begun    time.Time
	ignored  map[string]bool
	imu      sync.Mutex
	reg      *prometheus.Registry
}

// membership lives from being joined to leaving (node.ErrLeft) or the end of the context.
func (d *Daemon) membership(ctx context.Context) error {
	known, err := d.introduce(ctx)
	if err != nil {
		return err
	}
	m := &member{Daemon: d, known: known, asked: make(chan struct{}, 1), begun: time.Now(), ignored: map[string]bool{}}
	if err := d.waitFor(ctx, "the cluster-wide configuration", func() error {
		err := m.adopt(m.known.Config)
		if err != nil { // perhaps an operator has mended it meanwhile
			if next, aerr := d.ask(ctx, membership.New(d.client, d.keys, d.Logger, func() {})); aerr == nil {
				m.known = next
			}
		}
		return err
	}); err != nil {
		return err
	}
	if err := d.waitFor(ctx, "the mount", func() (err error) {
		m.contact, err = d.store.Connect(ctx, d.Local.ClusterName, known.EtcdCluster)
		if err == nil && known.MountUUID != "" && m.contact.UUID() != known.MountUUID {
			err = fmt.Errorf("the file system at CLUSTER_MOUNT %s has uuid %s, the cluster lives on %s: %w; mount the right one", d.Local.ClusterMount, m.contact.UUID(), known.MountUUID, resources.ErrOtherCluster)
		}
		return err
	}); err != nil {
		return err
	}
	m.name, m.address = known.Name, known.Address
	m.loadIgnored()
	if err := m.build(); err != nil {
		return err
	}
	return m.run(ctx)
}

// adopt takes cluster-wide parameters over.
func (m *member) adopt(set map[string]string) error {
	c, warns, err := config.ParseCluster(set)
	if err != nil {
		return fmt.Errorf("the cluster-wide configuration cannot be used: %w; mend it with 'shaman set-config'", err)
	}
	for _, w := range warns {
		m.Logger.Debug("configuration", zap.String("reason", string(w)))
	}
	if old := m.settings.Load(); m.node != nil && old.Timing() != c.Timing() {
		// The lease was granted with the numbers of before; they hold until the next start.
		m.Logger.Warn("LOCK_TIMEOUT, SELF_FENCE_TIMEOUT or HEARTBEAT_INTERVAL changed; this daemon takes them over when it restarts")
		c.LockTimeout, c.SelfFenceTimeout, c.HeartbeatInterval = old.LockTimeout, old.SelfFenceTimeout, old.HeartbeatInterval
	}
	m.settings.Store(&c)
	return nil
}

// registerer makes a registry for the metrics of this membership; a second
// membership of the same process makes its own.
func (m *member) registerer() prometheus.Registerer {
	m.reg = prometheus.NewRegistry()
	m.gatherers.Store(&prometheus.Gatherers{m.registry, m.reg})
	return m.reg
}

func (m *member) build() (err error) {
	reg := m.registerer()
	log := m.Logger
	m.agent = &agent.Agent{}
	m.engine = &failover.Engine{}
	m.members = membership.New(m.client, m.keys, log.Named("membership"), func() { m.engine.Hint() })
	m.ledger = dispatch.NewLedger(m.client, m.keys, log.Named("dispatch"), func() { m.engine.Hint(); poke(m.asked) })
	m.inbox = dispatch.NewInbox(m.client, m.keys, m.host, log.Named("dispatch"), func() { m.agent.Hint() })
	m.masters = etcd.NewMirror[election.Candidate](m.client, m.keys.Masters(), log, func() {})
	m.config = etcd.NewMirror[json.RawMessage](m.client, m.keys.Config(), log, func() { m.reload() })
	m.brake = etcd.NewMirror[cluster.Brake](m.client, m.keys.Brake(), log, func() {})
	m.events = resources.NewEventLog(m.store, m.host, log.Named("events"))
	m.electionM = election.NewMetrics(reg)
	if err := m.openHooks(); err != nil {
		return err
	}
	if m.state, err = node.LoadState(m.Local.RunDir, m.boot); err != nil {
		return err
	}
	if err := m.buildNode(); err != nil {
		return err
	}
	*m.agent = agent.Agent{
		Self: m.host, Inbox: m.inbox, Repository: m.store.Own(m.host), Hypervisor: m.drivers,
		Gate: m.node.Gate, Boot: m.state, Settings: m.agentSettings, Ignored: m.isIgnored,
		RunsOn: m.runsOn, Said: m.saidBefore, Spoke: func() { poke(m.asked) }, Event: m.event, Leave: m.leave, At: m.At, Log: log.Named("agent"), Metrics: agent.NewMetrics(reg),
	}
	m.agent.Init()
	m.pulses = &failover.Pulses{Read: m.store.ReadHeartbeat, Targets: m.pulseTargets, Timing: m.timing}
	*m.engine = failover.Engine{
		Self: m.host, Nodes: m.members.Nodes, Alive: m.members.Alive, Recovering: m.members.Recovering,
		Failovers: m.ledger.Failovers, Actions: dispatch.Written{Ledger: m.ledger}, Confirms: m.ledger.Confirms, Brake: m.publishedBrake,
		Ledger: m.ledger, Mount: m.store, Methods: m.methods, Pulses: m.pulses, Settings: m.engineSettings,
		Place: m.place, ValidSince: m.validSince, Valid: m.leaseValid, NewID: dispatch.NewID, At: m.At, Event: m.event,
		Log: log.Named("failover"), Metrics: failover.NewMetrics(reg),
	}
	m.engine.Init()
	m.gauges(reg)
	reg.MustRegister(newReadiness(m))
	return nil
}

func (m *member) buildNode() error {
	former := m.state.FormerNonces()
	if err := m.state.AddNonce(m.nonce); err != nil {
		return err
	}
	m.heart = node.NewHeart(func(ctx context.Context, hb cluster.Heartbeat, former []string, deadline time.Duration) (cluster.Order, error) {
		return m.store.Probe(ctx, hb, former, m.contact, deadline)
	}, func(ctx context.Context, deadline time.Duration) (cluster.Heartbeat, error) {
		return m.store.ReadHeartbeat(ctx, m.host, deadline)
	}, m.timing, cluster.Heartbeat{Host: m.host, Boot: m.boot, HW: m.hardware, Nonce: m.nonce}, former, m.Logger.Named("mount"))
	m.heart.Contacted = m.dog.Contact
	m.node = &node.Node{
		Self: m.host, Name: m.name, Address: m.address, BootID: m.boot, HardwareID: m.hardware, Nonce: m.nonce, Version: Version,
		Members: m.members, Mount: m.store, Hypervisor: m.drivers, Watchdog: m.dog, Heart: m.heart, Gate: &node.Gate{}, State: m.state,
		Settings: m.nodeSettings, Usage: m.usage, Ignored: m.isIgnored, IgnoreNow: m.ignoreNow,
		Grant: func(ctx context.Context) (node.Lease, error) {
			l, err := election.Grant(ctx, m.client, m.timing(), m.Logger.Named("lease"))
			return m.leased(l), etcd.Explain(err)
		},
		Resume: func(ctx context.Context, id int64) (node.Lease, error) {
			l, err := election.Resume(ctx, m.client, m.timing(), id, m.Logger.Named("lease"))
			if errors.Is(err, election.ErrLost) {
				return nil, node.ErrLeaseGone
			}
			return m.leased(l), etcd.Explain(err)
		},
		Elect: m.elect, Active: m.active, Reset: m.Reset,
		Status: m.say,
		Event:  m.event, Log: m.Logger.Named("node"),
	}
	m.living.Store(m.node)
	bye := m.shutDown
	m.goodbye.Store(&bye)
	return nil
}

// leased remembers the lease for those that ask about validity.
func (m *member) leased(l *election.Lease) node.Lease {
	if l == nil {
		return nil
	}
	m.lease.Lock()
	m.current = l
	m.lease.Unlock()
	return l
}

func (m *member) currentLease() *election.Lease {
	m.lease.Lock()
	defer m.lease.Unlock()
	return m.current
}

func (m *member) validSince() boottime.Time {
	if l := m.currentLease(); l != nil {
		return l.ValidSince()
	}
	return boottime.Now()
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run runs all parts of a membership; the first one to end ends all.
func (m *member) run(outer context.Context) error {
	// Everything goes on until this node has said goodbye, if it is to.
	ctx, end := context.WithCancelCause(context.WithoutCancel(outer))
	defer end(nil)
	leaving := LeaveInactive
	farewell := context.AfterFunc(outer, func() {
		if m.Leaving != nil {
			leaving = m.Leaving()
		}
		if leaving == LeaveDown {
			m.shutDown(ctx)
		}
		end(context.Cause(outer))
	})
	defer farewell()
	defer m.gatherers.Store(&prometheus.Gatherers{m.registry})
	ready := m.whyNotReady
	m.ready.Store(&ready)
	defer m.ready.Store(nil)
	ectx, stopEvents := context.WithCancel(context.WithoutCancel(ctx))
	eventsDone := make(chan struct{})
	go func() {
		defer close(eventsDone)
		_ = m.events.Run(ectx) // ends with its context only
	}()
	defer func() { stopEvents(); <-eventsDone }()
	// The heart goes on until this node has said goodbye: as long as its watchdog is
	// armed, contact with the mount keeps the machine up.
	heartDone := make(chan struct{})
	go func() {
		defer close(heartDone)
		m.heart.Round.Store(int64(boottime.Now()))
		m.rounds.Store(&m.heart.Round)
		defer m.rounds.Store(nil)
		_ = m.heart.Run(ectx) // ends with its context only
	}()
	defer func() { stopEvents(); <-heartDone }()

	var last node.Admitted
	g, gctx := errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{
		m.members.Run, m.inbox.Run, m.ledger.Failovers.Run, m.ledger.Confirms.Run, m.masters.Run, m.config.Run, m.brake.Run,
		m.pulses.Run, m.answerQuestions, m.learnCapacity, m.hooks.Run,
		func(ctx context.Context) error {
			return m.store.Watch(ctx, m.host, m.Local.RescanInterval, m.Logger.Named("resources"), m.agent.Look)
		},
		func(ctx context.Context) error { return m.drivers.Watch(ctx, m.agent.Look) },
	} {
		g.Go(func() error { return part(gctx) })
	}
	m.node.OnAdmit = func(a node.Admitted) { last = a }
	g.Go(func() error { return m.node.Run(gctx) })
	err := g.Wait()
	if ctx.Err() != nil {
		m.retire(ctx, last.Lease, leaving)
	}
	return err
}

// leave ends the membership, and runs the scripts for it.
func (m *member) leave(ctx context.Context, ready func(context.Context) error) error {
	err := m.node.Leave(ctx, ready)
	if err == nil {
		m.hooks.Leave(context.WithoutCancel(ctx))
	}
	return err
}

func (m *member) leaseValid() bool {
	l := m.currentLease()
	return l != nil && l.Valid()
}

// whyNotReady says why this node could not take a VE now.
func (m *member) whyNotReady() error {
	switch {
	case m.node.Admitted() == nil:
		return errors.New(*m.status.Load())
	case !m.leaseValid():
		return errors.New("out of contact with etcd: the lease cannot be proven valid; VEs run on, nothing is started or moved")
	}
	return m.heart.InContact()
}

// elect campaigns under a lease, and leads.
func (m *member) elect(ctx context.Context, l node.Lease) error {
	lease, ok := l.(*election.Lease)
	if !ok {
		return fmt.Errorf("campaign with a %T", l)
	}
	e := &election.Elector{
		Client: m.client, Prefix: m.keys.Masters(), Lease: lease, Eligible: m.heart.InContact,
		Self: election.Candidate{Node: m.host, Name: m.name, Nonce: m.nonce}, Log: m.Logger.Named("election"), Metrics: m.electionM,
	}
	return e.Run(ctx, func(ctx context.Context, t cluster.Term) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return m.ledger.Actions.Run(ctx) })
		g.Go(func() error { return m.engine.Lead(ctx, t) })
		return g.Wait()
	})
}

// active is the agent's work in one admission.
func (m *member) active(ctx context.Context, a node.Admitted) error {
	return m.agent.Run(ctx, agent.Session{
		Incarnation: a.Incarnation, Lease: a.Lease.ID(), Valid: a.Lease.Valid, ValidSince: a.Lease.ValidSince,
		Bringing: func() bool { return ctx.Err() != nil || len(m.state.Pending()) > 0 },
	})
}

// pulseTargets are the nodes whose heartbeats are watched: all by the master,
// the master's by everybody else, so that its successor knows at once.
func (m *member) pulseTargets() []cluster.NodeID {
	master := m.master()
	if master != m.host {
		if master == "" {
			return nil
		}
		return []cluster.NodeID{master}
	}
	var out []cluster.NodeID
	m.members.Nodes.Read(func(e map[string]etcd.Entry[cluster.NodeRecord]) {
		for id := range e {
			if id != string(m.host) {
				out = append(out, cluster.NodeID(id))
			}
		}
	})
	return out
}

// master is the candidate of the lowest create revision, as far as is known here.
func (m *member) master() (id cluster.NodeID) {
	var first int64
	m.masters.Read(func(e map[string]etcd.Entry[election.Candidate]) {
		for _, c := range e {
			if first == 0 || c.Create < first {
				first, id = c.Create, c.Value.Node
			}
		}
	})
	return id
}

func (m *member) publishedBrake() *cluster.Brake {
	e, ok := m.brake.Get("")
	if !ok || e.Err != nil {
		return nil
	}
	return &e.Value
}

func (m *member) beats(n cluster.NodeID) bool  { return m.pulses.Of(n) == failover.PulseBeats }
func (m *member) silent(n cluster.NodeID) bool { return m.pulses.Of(n) == failover.PulseSilent }

func (m *member) methods() []failover.Method {
	// rebooted and manual need nobody to run them: the engine sees them in etcd.
	known := map[string]failover.Method{
		"storage": &fencing.Storage{
			Slots: m.store, Timing: m.timing, Budget: func() time.Duration { return m.settings.Load().StopBudget },
			Beats: func(n cluster.NodeID) bool { return m.pulses.Of(n) != failover.PulseSilent },
		},
		"watchdog": &fencing.Watchdog{
			Silence: m.pulses.Silence, Timing: m.timing, TrustVirtual: func() bool { return m.settings.Load().WatchdogTrustVirtual },
			Beats:         m.beats,
			NotApplicable: failover.ErrNotApplicable,
		},
		"agent": &fencing.Agent{Dir: m.Local.FenceDir, NotApplicable: failover.ErrNotApplicable, Silent: m.silent, Beats: m.beats, Timing: m.timing},
	}
	var out []failover.Method
	for _, word := range m.settings.Load().FenceMethods {
		if method, ok := known[word]; ok {
			out = append(out, method)
		}
	}
	return out
}

// usage is what the node publishes about itself.
func (m *member) usage() node.Usage {
	r := m.agent.Report()
	var c cluster.Capacity
	if known := m.capacity.Load(); known != nil {
		c = *known
	}
	if m.Local.NodeMemory != 0 {
		c.Memory = m.Local.NodeMemory
	}
	c.CPUPool, c.MaxVMs, c.MaxCTs, c.MaxVEs = m.Local.CPUPool, m.Local.MaxVMs, m.Local.MaxCTs, m.Local.MaxVEs
	u := node.Usage{Capacity: c, Usage: r.Usage, Resources: r.Resources, Differs: r.Differs, Drift: r.Drift, Drifts: r.Drifts}
	var unasked *cluster.UnansweredError
	if errors.As(r.Err, &unasked) {
		u.Unasked = unasked.Kinds
	}
	return u
}

func (m *member) gauges(reg prometheus.Registerer) {
	f := promauto.With(reg)
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "shaman_election_lease_validity_seconds", Help: "For how long this daemon's lease can be proven valid; 0 = not. Alert at 0."}, func() float64 {
		if l := m.currentLease(); l != nil {
			return max(0, l.ValidUntil().Sub(boottime.Now()).Seconds())
		}
		return 0
	})
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "shaman_resources_mount_contact_age_seconds", Help: "Time since the last proven contact with the mount. Alert above some heartbeats."}, func() float64 {
		last, _ := m.heart.Contact()
		return boottime.Since(last).Seconds()
	})
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "shaman_fencing_watchdog_armed", Help: "1 while this node's watchdog is armed. Alert at 0 where one is expected."}, func() float64 {
		if m.dog.State().Armed {
			return 1
		}
		return 0
	})
	f.NewGaugeFunc(prometheus.GaugeOpts{Name: "shaman_membership_admitted", Help: "1 while this node is admitted. Alert at 0."}, func() float64 {
		if m.node.Admitted() != nil {
			return 1
		}
		return 0
	})
}

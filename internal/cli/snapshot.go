package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/election"
	"github.com/shaman-ha/shaman/internal/resources"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// snapshot is the cluster as etcd and the mount have it at one moment.
type snapshot struct {
	facts    cluster.Facts
	view     cluster.View
	history  []cluster.Failover
	brake    *cluster.Brake
	config   map[string]string
	serials  map[cluster.FailoverID]versions
	nodeMods map[cluster.NodeID]int64
	nodeRaw  map[cluster.NodeID][]byte
	census   cluster.Census
	identity resources.Identity // of the mount
	bound    string             // uuid of the mount that etcd knows the cluster by
	etcdErr  error
	damaged  error // keys in etcd that cannot be read; the others were
	nospace  bool
	mountErr error
}

// trouble is why what etcd holds is not, or not all, known.
func (s *snapshot) trouble() error { return cmp.Or(s.etcdErr, s.damaged) }

type versions struct{ create, mod int64 }

// look reads everything. Errors are kept in the snapshot: half a picture at
// 3 a.m. is better than none.
func (a *app) look(ctx context.Context) *snapshot {
	s := newSnapshot()
	done := make(chan struct{})
	go func() {
		defer close(done)
		mctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		s.census, s.identity, s.mountErr = a.census(mctx)
	}()
	err := a.lookEtcd(ctx, s)
	<-done
	switch {
	case err != nil: // half of etcd's word would hide what the mount says
		whole := newSnapshot()
		whole.census, whole.identity, whole.mountErr = s.census, s.identity, s.mountErr
		s = whole
		s.etcdErr = err
	case s.mountErr == nil && s.bound != "" && s.identity.UUID != s.bound:
		s.census = cluster.Census{}
		s.mountErr = fail(exitFailed, "another file system is mounted at %s: its uuid is %s, cluster %s lives on %s; mount the right one", a.local.ClusterMount, s.identity.UUID, a.local.ClusterName, s.bound)
	}
	s.view = cluster.NewView(s.facts)
	return s
}

// census reads what the mount holds, if it is this cluster's.
func (a *app) census(ctx context.Context) (cluster.Census, resources.Identity, error) {
	id, _, err := a.store.ReadIdentity(ctx)
	if err != nil {
		return cluster.Census{}, id, fail(exitFailed, "%w", err)
	}
	if id.Name != a.local.ClusterName {
		return cluster.Census{}, id, fail(exitFailed, "the file system at %s is of cluster %q, not %q; mount the right one, or mend CLUSTER_MOUNT", a.local.ClusterMount, id.Name, a.local.ClusterName)
	}
	c, err := a.store.Census(ctx)
	if err != nil {
		return cluster.Census{}, id, fail(exitFailed, "%w", err)
	}
	return c, id, nil
}

func newSnapshot() *snapshot {
	return &snapshot{
		facts:  cluster.Facts{At: time.Now(), Nodes: map[cluster.NodeID]cluster.NodeRecord{}, Alive: map[cluster.NodeID]cluster.AliveRecord{}, Recovering: map[cluster.NodeID]cluster.RecoveringRecord{}},
		config: map[string]string{}, serials: map[cluster.FailoverID]versions{}, nodeMods: map[cluster.NodeID]int64{}, nodeRaw: map[cluster.NodeID][]byte{},
	}
}

func (a *app) lookEtcd(ctx context.Context, s *snapshot) error {
	rctx, cancel := context.WithTimeout(ctx, 2500*time.Millisecond)
	defer cancel()
	l := a.keys
	prefixes := []string{l.Nodes(), l.Alives(), l.Recoverings(), l.Failovers(), l.History(), l.Masters(), l.Config(), l.Brake(), l.Identity()}
	ops := make([]clientv3.Op, len(prefixes))
	for i, p := range prefixes {
		ops[i] = clientv3.OpGet(p, clientv3.WithPrefix())
	}
	// One transaction: all of it is of one moment, a failover that ends while we
	// read is not shown with the state of its node from before.
	resp, err := a.client.Txn(rctx).Then(ops...).Commit()
	if err != nil {
		return a.reach(err)
	}
	var first int64
	for i, p := range prefixes {
		for _, kv := range resp.Responses[i].GetResponseRange().Kvs {
			name := strings.TrimPrefix(string(kv.Key), p)
			var err error
			switch p {
			case l.Nodes():
				err = put(s.facts.Nodes, cluster.NodeID(name), kv.Value)
				s.nodeMods[cluster.NodeID(name)], s.nodeRaw[cluster.NodeID(name)] = kv.ModRevision, kv.Value
			case l.Alives():
				err = put(s.facts.Alive, cluster.NodeID(name), kv.Value)
			case l.Recoverings():
				err = put(s.facts.Recovering, cluster.NodeID(name), kv.Value)
			case l.Failovers():
				var f cluster.Failover
				if err = json.Unmarshal(kv.Value, &f); err == nil {
					s.facts.Failovers = append(s.facts.Failovers, f)
					s.serials[f.ID()] = versions{kv.CreateRevision, kv.ModRevision}
				}
			case l.History():
				var f cluster.Failover
				if err = json.Unmarshal(kv.Value, &f); err == nil {
					s.history = append(s.history, f)
				}
			case l.Masters():
				var c election.Candidate
				if err = json.Unmarshal(kv.Value, &c); err == nil && (first == 0 || kv.CreateRevision < first) {
					first = kv.CreateRevision
					s.facts.Master, s.facts.Epoch = c.Node, cluster.Epoch(kv.CreateRevision)
				}
			case l.Config():
				s.config[name] = string(kv.Value)
			case l.Brake():
				s.brake = &cluster.Brake{}
				err = json.Unmarshal(kv.Value, s.brake)
			case l.Identity():
				s.bound = string(kv.Value)
			}
			if err != nil && s.damaged == nil {
				s.damaged = fail(exitFailed, "key %s in etcd cannot be read: %w; it was not written by this version: upgrade shaman here, or mend the key", kv.Key, err)
			}
		}
	}
	if alarms, err := a.client.AlarmList(rctx); err == nil {
		for _, al := range alarms.Alarms {
			s.nospace = s.nospace || al.Alarm.String() == "NOSPACE"
		}
	}
	return nil
}

func put[T any](m map[cluster.NodeID]T, id cluster.NodeID, data []byte) error {
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	m[id] = v
	return nil
}

// The JSON of stat: a written contract. Fields may be added; arrays and strings
// are never null.
type statJSON struct {
	Cluster     string            `json:"cluster"`
	Master      string            `json:"master"`
	Epoch       int64             `json:"epoch"`
	Etcd        string            `json:"etcd"`
	Nodes       []nodeJSON        `json:"nodes"`
	Resources   []resourceJSON    `json:"resources"`
	Drift       map[string]int    `json:"drift"`
	Drifts      []driftJSON       `json:"drifts"`
	Unparseable []unparseableJSON `json:"unparseable"`
	Failovers   []failoverJSON    `json:"failovers"`
	Brake       string            `json:"brake"`
}

type nodeJSON struct {
	HostID        string                 `json:"host_id"`
	Name          string                 `json:"name"`
	Address       string                 `json:"address"`
	Status        string                 `json:"status"`
	Liveness      string                 `json:"liveness"`
	Flags         []string               `json:"flags"`
	Master        bool                   `json:"master"`
	Incarnation   int64                  `json:"incarnation"`
	Mount         string                 `json:"mount"`
	Roles         []string               `json:"roles"`
	MemoryTotal   int64                  `json:"memory_total"`
	MemoryUsed    int64                  `json:"memory_used"`
	Counts        map[string]int         `json:"counts"`
	Watchdog      string                 `json:"watchdog"`
	SuspendTokens []cluster.SuspendToken `json:"suspend_tokens"`
	Waiting       string                 `json:"waiting"`
}

type resourceJSON struct {
	ID       string `json:"id"`
	Type     string `json:"type"`
	Path     string `json:"path"`
	State    string `json:"state"`
	Desired  string `json:"desired"`
	Status   string `json:"status"`
	HostID   string `json:"host_id"`
	Priority uint32 `json:"priority"`
	Memory   int64  `json:"memory"`
	Waiting  string `json:"waiting"`
	Reason   string `json:"reason"`
}

type unparseableJSON struct {
	File   string `json:"file"`
	HostID string `json:"host_id"`
	Error  string `json:"error"`
}

type driftJSON struct {
	Class    string `json:"class"`
	HostID   string `json:"host_id"` // of the node that found it
	Resource string `json:"resource"`
	Path     string `json:"path"`
	Why      string `json:"why"`
	Next     string `json:"next"` // what an operator can do; "" = it heals by itself
}

type failoverJSON struct {
	Node         string `json:"node"`
	Incarnation  int64  `json:"incarnation"`
	Phase        string `json:"phase"`
	Reason       string `json:"reason"`
	Command      string `json:"command"`
	Proof        string `json:"proof"`
	Evidence     string `json:"evidence"`
	Total        int    `json:"total"`
	Started      int    `json:"started"`
	Stopped      int    `json:"stopped"`
	Broken       int    `json:"broken"`
	Waiting      int    `json:"waiting"`
	LeaseLostAt  string `json:"lease_lost_at"`
	OpenedAt     string `json:"opened_at"`
	FencedAt     string `json:"fenced_at"`
	SealedAt     string `json:"sealed_at"`
	DispatchedAt string `json:"dispatched_at"`
	DoneAt       string `json:"done_at"`
}

// keepDone is how many finished failovers stat shows.
const keepDone = 20

// stat renders a snapshot as the contract has it.
func (a *app) stat(s *snapshot) statJSON {
	out := statJSON{
		Cluster: a.local.ClusterName, Master: string(s.facts.Master), Epoch: int64(s.facts.Epoch), Etcd: "ok",
		Nodes: []nodeJSON{}, Resources: []resourceJSON{}, Unparseable: []unparseableJSON{}, Failovers: []failoverJSON{},
		Drift: map[string]int{string(cluster.DriftUnreadable): len(s.census.Unparseable)}, Drifts: driftsOut(s),
	}
	for _, c := range cluster.DriftClasses {
		out.Drift[string(c)] = 0
		for _, a := range s.facts.Alive {
			out.Drift[string(c)] += a.Drifts[c]
		}
	}
	switch {
	case s.etcdErr != nil:
		out.Etcd = "unreachable"
	case s.nospace:
		out.Etcd = "nospace"
	}
	if s.brake != nil {
		out.Brake = s.brake.Reason
	}
	liveness := map[cluster.NodeID]cluster.Liveness{}
	for _, n := range s.view.Nodes {
		liveness[n.ID] = n.Liveness
		out.Nodes = append(out.Nodes, nodeOut(s, n))
	}
	if s.etcdErr != nil {
		for id := range s.census.Repositories {
			out.Nodes = append(out.Nodes, nodeJSON{HostID: string(id), Name: string(id), Status: "unknown", Liveness: "unknown", Flags: []string{}, Roles: []string{}, Mount: "lost", Counts: counts(s.census.Repositories[id].Resources), Watchdog: "off", SuspendTokens: []cluster.SuspendToken{}})
		}
		sort.Slice(out.Nodes, func(i, j int) bool { return out.Nodes[i].HostID < out.Nodes[j].HostID })
	}
	paths := map[string]int{}
	for owner, l := range s.census.Repositories {
		for _, r := range l.Resources {
			paths[r.Path]++
			live := liveness[owner]
			state := "unknown"
			if live == cluster.Active { // only its daemon knows
				state = actual(r, s.facts.Alive[owner].Differs)
			}
			out.Resources = append(out.Resources, resourceOut(r, state, "Active", owner, ""))
		}
	}
	for p, l := range s.census.Pools {
		for _, r := range l.Resources {
			paths[r.Path]++
			why := "waits for relocation from " + s.name(p.Node)
			if on := s.saidToRunOn(r.Path); on != "" {
				why = "held: by the word of node " + on + " it runs there, or may; if that node is gone for good, 'shaman fence confirm " + on + "'"
			}
			out.Resources = append(out.Resources, resourceOut(r, "stopped", "Pool", "", why))
		}
	}
	for _, b := range s.census.Broken {
		out.Resources = append(out.Resources, resourceOut(b.Resource, "stopped", "Broken", b.Reason.Node, brokenWhy(b)))
	}
	for _, n := range paths {
		if n > 1 {
			out.Drift[string(cluster.DriftDuplicate)]++
		}
	}
	slices.SortFunc(out.Resources, func(a, b resourceJSON) int { // a name is unique within a node only
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.HostID, b.HostID), cmp.Compare(a.Path, b.Path))
	})
	for _, u := range s.census.Unparseable {
		out.Unparseable = append(out.Unparseable, unparseableJSON{File: u.File, HostID: string(u.Owner), Error: u.Err.Error()})
	}
	out.Failovers = failoversOut(s)
	return out
}

// saidToRunOn names a node by whose word a VE runs there without being its own.
func (s *snapshot) saidToRunOn(path string) string {
	for _, n := range s.view.Nodes {
		if slices.ContainsFunc(s.facts.Nodes[n.ID].Elsewhere.VEs, func(v cluster.RunningVE) bool { return v.Path == path }) {
			return n.Name
		}
	}
	return ""
}

// driftsOut are the differences that living nodes have found, one by one.
func driftsOut(s *snapshot) []driftJSON {
	out := []driftJSON{}
	for _, n := range s.view.Nodes {
		for _, d := range s.facts.Alive[n.ID].Drift {
			out = append(out, driftJSON{Class: string(d.Class), HostID: string(n.ID), Resource: string(d.Resource), Path: d.Path, Why: d.Why, Next: d.Next})
		}
	}
	return out
}

// actual is the state of a resource's VE: as it should be, unless its node has
// published that it differs.
func actual(r cluster.Resource, differs map[cluster.ResourceID]cluster.VEState) string {
	if is, ok := differs[r.ID]; ok {
		return string(is)
	}
	switch {
	case r.Waiting != "":
		return string(cluster.VEStopped)
	case r.Want == cluster.WantUnset:
		return string(cluster.VEUnknown)
	}
	return string(r.Want)
}

func counts(rs []cluster.Resource) map[string]int {
	out := map[string]int{"vm": 0, "ct": 0}
	for _, r := range rs {
		out[string(r.Kind)]++
	}
	return out
}

func nodeOut(s *snapshot, n cluster.Node) nodeJSON {
	j := nodeJSON{
		HostID: string(n.ID), Name: n.Name, Address: n.Address, Status: n.Status(), Liveness: string(n.Liveness), Flags: []string{}, Master: n.Master,
		Incarnation: int64(n.Incarnation), Mount: string(n.Mount), Roles: []string{}, MemoryTotal: int64(n.Capacity.Memory), MemoryUsed: int64(n.Usage.Memory),
		Counts: counts(s.census.Repositories[n.ID].Resources), Watchdog: "off", SuspendTokens: n.SuspendTokens, Waiting: s.facts.Recovering[n.ID].Waiting,
	}
	if n.Watchdog.Armed {
		j.Watchdog = "armed"
	}
	for _, f := range n.Flags {
		j.Flags = append(j.Flags, string(f))
	}
	roles := n.Roles
	if len(roles) == 0 {
		for _, k := range n.Kinds {
			roles = append(roles, cluster.RoleOf(k))
		}
		slices.Sort(roles)
		slices.Reverse(roles)
	}
	for _, r := range roles {
		j.Roles = append(j.Roles, string(r))
	}
	if j.SuspendTokens == nil {
		j.SuspendTokens = []cluster.SuspendToken{}
	}
	return j
}

func resourceOut(r cluster.Resource, state, status string, host cluster.NodeID, reason string) resourceJSON {
	desired := string(r.Want)
	if desired == "" {
		desired = "unknown"
	}
	return resourceJSON{ID: string(r.ID), Type: string(r.Kind), Path: r.Path, State: state, Desired: desired, Status: status,
		HostID: string(host), Priority: r.Priority, Memory: int64(r.Memory), Waiting: r.Waiting, Reason: reason}
}

func failoversOut(s *snapshot) []failoverJSON {
	open, done := []cluster.Failover{}, slices.Clone(s.history)
	held := map[cluster.NodeID]bool{}
	for _, f := range s.facts.Failovers {
		if f.Phase.Open() {
			open = append(open, f)
			held[f.Node] = true
		} else {
			done = append(done, f)
		}
	}
	if s.brake != nil { // nodes whose failover is not even opened
		for _, id := range s.brake.Nodes {
			if !held[id] {
				open = append(open, cluster.Failover{Node: id, Name: s.name(id), Inc: s.facts.Nodes[id].Incarnation, Phase: cluster.PhaseHeld, Reason: s.brake.Reason, Command: "shaman failover release " + s.name(id)})
			}
		}
	}
	sort.SliceStable(done, func(i, j int) bool { return when(done[i]) < when(done[j]) })
	if len(done) > keepDone {
		done = done[len(done)-keepDone:]
	}
	out := []failoverJSON{}
	for _, f := range append(done, open...) {
		out = append(out, failoverJSON{
			Node: string(f.Node), Incarnation: int64(f.Inc), Phase: string(f.Phase), Reason: f.Reason, Command: f.Command, Proof: f.Proof, Evidence: f.Evidence,
			Total: f.Total, Started: f.Started, Stopped: f.Stopped, Broken: f.Broken, Waiting: f.Waiting,
			LeaseLostAt: f.LostAt, OpenedAt: f.OpenedAt, FencedAt: f.FencedAt, SealedAt: f.SealedAt, DispatchedAt: f.DispatchAt, DoneAt: f.DoneAt,
		})
	}
	return out
}

func when(f cluster.Failover) string { return max(f.DoneAt, f.OpenedAt) }

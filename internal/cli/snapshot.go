package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/election"
	"github.com/shaman-ha/shaman/internal/etcd"
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
	etcdErr  error
	nospace  bool
	mountErr error
}

type versions struct{ create, mod int64 }

// look reads everything. Errors are kept in the snapshot: half a picture at
// 3 a.m. is better than none.
func (a *app) look(ctx context.Context) *snapshot {
	s := &snapshot{
		facts:  cluster.Facts{At: time.Now(), Nodes: map[cluster.NodeID]cluster.NodeRecord{}, Alive: map[cluster.NodeID]cluster.AliveRecord{}, Recovering: map[cluster.NodeID]cluster.RecoveringRecord{}},
		config: map[string]string{}, serials: map[cluster.FailoverID]versions{}, nodeMods: map[cluster.NodeID]int64{}, nodeRaw: map[cluster.NodeID][]byte{},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		mctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if _, _, s.mountErr = a.store.ReadIdentity(mctx); s.mountErr == nil {
			s.census, s.mountErr = a.store.Census(mctx)
		}
	}()
	s.etcdErr = a.lookEtcd(ctx, s)
	<-done
	s.view = cluster.NewView(s.facts)
	return s
}

func (a *app) lookEtcd(ctx context.Context, s *snapshot) error {
	rctx, cancel := context.WithTimeout(ctx, 2500*time.Millisecond)
	defer cancel()
	l := a.keys
	var first int64
	for _, p := range []string{l.Nodes(), l.Alives(), l.Recoverings(), l.Failovers(), l.History(), l.Masters(), l.Config(), l.Brake()} {
		resp, err := a.client.Get(rctx, p, clientv3.WithPrefix())
		if err != nil {
			return etcd.Explain(err)
		}
		for _, kv := range resp.Kvs {
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
			}
			if err != nil {
				return fmt.Errorf("key %s in etcd cannot be read: %w; it was not written by this version", kv.Key, err)
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

// node finds a node by host id, name or address.
func (s *snapshot) node(word string) (cluster.Node, error) {
	var found []cluster.Node
	for _, n := range s.view.Nodes {
		if string(n.ID) == word || n.Name == word || n.Address == word {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		var names []string
		for _, n := range s.view.Nodes {
			names = append(names, n.Name)
		}
		return cluster.Node{}, fail(exitState, "no node %q; nodes are %s (a host id or an address does as well)", word, strings.Join(names, ", "))
	}
	return cluster.Node{}, fail(exitState, "%q names more than one node; use the host id", word)
}

func (s *snapshot) name(id cluster.NodeID) string {
	if n, ok := s.facts.Nodes[id]; ok && n.Name != "" {
		return n.Name
	}
	return string(id)
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
		Drift: map[string]int{"missing": 0, "foreign": 0, "orphan": 0, "duplicate": 0, "mismatch": 0, "bad-path": 0, "unparseable": len(s.census.Unparseable)},
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
			if live == cluster.Active || live == cluster.Inactive {
				if state = string(r.Want); state == "" {
					state = "unknown"
				}
				if r.Waiting != "" {
					state = "stopped"
				}
			}
			out.Resources = append(out.Resources, resourceOut(r, state, "Active", owner, ""))
		}
	}
	for p, l := range s.census.Pools {
		for _, r := range l.Resources {
			paths[r.Path]++
			out.Resources = append(out.Resources, resourceOut(r, "stopped", "Pool", "", "waits for relocation from "+s.name(p.Node)))
		}
	}
	for _, b := range s.census.Broken {
		reason := b.Reason.Error
		if b.Reason.Operation != "" {
			reason = b.Reason.Operation + ": " + reason
		}
		if b.Err != nil {
			reason = b.Err.Error()
		}
		out.Resources = append(out.Resources, resourceOut(b.Resource, "stopped", "Broken", b.Reason.Node, reason))
	}
	for _, n := range paths {
		if n > 1 {
			out.Drift["duplicate"]++
		}
	}
	sort.Slice(out.Resources, func(i, j int) bool { return out.Resources[i].ID < out.Resources[j].ID })
	for _, u := range s.census.Unparseable {
		out.Unparseable = append(out.Unparseable, unparseableJSON{File: u.File, HostID: string(u.Owner), Error: u.Err.Error()})
	}
	out.Failovers = failoversOut(s)
	return out
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

// find looks a resource up on the mount. It returns where it lies.
func (a *app) find(ctx context.Context, word string) (cluster.Resource, error) {
	id, err := cluster.ParseResourceID(word)
	if err != nil {
		return cluster.Resource{}, fail(exitUsage, "%w", err)
	}
	c, err := a.store.Census(ctx)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return cluster.Resource{}, fail(exitFailed, "%w; is the shared file system mounted at %s, and this node joined?", err, a.local.ClusterMount)
		}
		return cluster.Resource{}, err
	}
	var found []cluster.Resource
	for _, l := range c.Repositories {
		for _, r := range l.Resources {
			if r.ID == id {
				found = append(found, r)
			}
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return found[0], fail(exitState, "%s is in the repositories of %d nodes; remove all but the right one first ('shaman stat -v' shows them)", id, len(found))
	}
	for p, l := range c.Pools {
		for _, r := range l.Resources {
			if r.ID == id {
				return r, fail(exitState, "%s is in the pool (%s): it is being relocated; try again when 'shaman stat' shows it on a node", id, p)
			}
		}
	}
	for _, b := range c.Broken {
		if b.Resource.ID == id {
			return b.Resource, fail(exitState, "%s is broken: %s", id, b.Reason.Error)
		}
	}
	return cluster.Resource{}, fail(exitState, "no resource %s", id)
}

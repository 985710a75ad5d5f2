package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
)

// statContract is every field that stat's JSON must have, as the contract
// writes it: scripts of other programs read these names and types.
const statContract = `{"cluster":"lab","master":"id","epoch":57,"etcd":"ok",
 "nodes":[{"host_id":"id","name":"node1","address":"10.0.0.1","status":"Active","liveness":"Active","flags":[],"master":true,"incarnation":3,"mount":"ok",
           "roles":["VM","CT"],"memory_total":0,"memory_used":0,"counts":{"vm":0,"ct":4},"watchdog":"off","suspend_tokens":[]}],
 "resources":[{"id":"ct-c7","type":"ct","path":"p","state":"running","desired":"running","status":"Active","host_id":"id","priority":0,"memory":0,"waiting":"","reason":""}],
 "drift":{"missing":0,"foreign":0,"orphan":0,"duplicate":0,"mismatch":0,"bad-path":0,"unparseable":0},
 "unparseable":[{"file":"f","host_id":"id","error":"e"}],
 "failovers":[{"node":"id","incarnation":2,"phase":"held","reason":"r","proof":"agent","total":30,"started":28,"stopped":2,"broken":0,"waiting":0,
               "lease_lost_at":"t","fenced_at":"t","dispatched_at":"t","done_at":"t"}]}`

// words are the values that the contract lists.
var words = map[string][]string{
	"etcd":              {"ok", "unreachable", "nospace"},
	"nodes.liveness":    {"Active", "Inactive", "Isolated", "Crashed", "AwaitingFence", "Fenced", "Recovering", "Down", "unknown"},
	"nodes.status":      {"Active", "Inactive", "Isolated", "Crashed", "AwaitingFence", "Fenced", "Recovering", "Down", "Maintenance", "Suspended", "unknown"},
	"nodes.mount":       {"ok", "slow", "lost"},
	"nodes.watchdog":    {"armed", "off"},
	"resources.state":   {"running", "stopped", "unknown"},
	"resources.desired": {"running", "stopped", "unknown"},
	"resources.status":  {"Active", "Broken", "Pool"},
	"failovers.phase":   {"held", "fencing", "awaiting-fence", "sealing", "relocating", "done", "withdrawn"},
	"nodes.flags":       {"Maintenance", "Suspended"},
}

// checkContract tells what of a stat's JSON is not as the contract has it.
func checkContract(data []byte) error {
	var want, got any
	if err := json.Unmarshal([]byte(statContract), &want); err != nil {
		return err
	}
	if err := json.Unmarshal(data, &got); err != nil {
		return fmt.Errorf("%w in %q", err, data)
	}
	return errors.Join(compare("", want, got)...)
}

func compare(path string, want, got any) (errs []error) {
	if got == nil {
		return []error{fmt.Errorf("%s is null", path)}
	}
	if w, g := reflect.TypeOf(want), reflect.TypeOf(got); w != g {
		return []error{fmt.Errorf("%s is a %s, want a %s", path, g, w)}
	}
	switch w := want.(type) {
	case map[string]any:
		g := got.(map[string]any)
		for k, sub := range w {
			v, ok := g[k]
			if !ok {
				errs = append(errs, fmt.Errorf("%s has no %q", path, k))
				continue
			}
			errs = append(errs, compare(strings.TrimPrefix(path+"."+k, "."), sub, v)...)
		}
		for k, v := range g {
			if _, ok := w[k]; !ok && v == nil {
				errs = append(errs, fmt.Errorf("%s.%s is null", path, k))
			}
		}
	case []any:
		for _, g := range got.([]any) {
			switch {
			case len(w) > 0:
				errs = append(errs, compare(path, w[0], g)...)
			case words[path] != nil:
				errs = append(errs, compare(path, "", g)...)
			}
		}
	case string:
		if allowed := words[path]; allowed != nil {
			for _, a := range allowed {
				if got == a {
					return nil
				}
			}
			return []error{fmt.Errorf("%s is %q, want of %q", path, got, allowed)}
		}
	}
	return errs
}

const (
	n1 = "0000000000000001"
	n2 = "0000000000000002"
	n3 = "0000000000000003"
	n4 = "0000000000000004"
)

func testApp() *app { return &app{local: config.Local{ClusterName: "lab"}, self: n1} }

// fullSnapshot has one of everything that can be seen.
func fullSnapshot() *snapshot {
	s := newSnapshot()
	pool := cluster.PoolID{Node: n3, Incarnation: 4}
	s.facts = cluster.Facts{
		Master: n2, Epoch: 57,
		Nodes: map[cluster.NodeID]cluster.NodeRecord{
			n1: {Name: "node1", Address: "10.0.0.1", Incarnation: 3, Watchdog: cluster.Watchdog{Armed: true}},
			n2: {Name: "node2", Address: "10.0.0.2", Incarnation: 1, Roles: []cluster.Role{"VM"}, Maintenance: true,
				SuspendTokens: []cluster.SuspendToken{{ID: "operator", Description: "memory\n\x1b[31mtest", Timestamp: "2026-01-02T03:04:05Z"}}},
			n3: {Name: "node3", Address: "10.0.0.3", Incarnation: 4},
			n4: {Name: "node4", Incarnation: 2},
		},
		Alive: map[cluster.NodeID]cluster.AliveRecord{
			n1: {Incarnation: 3, Mount: cluster.MountOK, Kinds: []cluster.Kind{"ct", "vm"}, Capacity: cluster.Capacity{Memory: 64 << 30}, Usage: cluster.Usage{Memory: 3 << 30}},
			n2: {Incarnation: 1, Mount: cluster.MountSlow, Kinds: []cluster.Kind{"ct", "vm", "iscsi"}, Capacity: cluster.Capacity{Memory: 32 << 30}},
		},
		Recovering: map[cluster.NodeID]cluster.RecoveringRecord{n4: {Incarnation: 2, Waiting: "waits for its failover"}},
		Failovers: []cluster.Failover{
			{Node: n3, Inc: 4, Phase: cluster.PhaseAwaitingFence, Reason: "no method could prove it\nharmless", Command: "shaman fence confirm node3", Total: 4, LostAt: "2026-01-02T03:00:00Z"},
			{Node: n4, Inc: 1, Phase: cluster.PhaseDone, Proof: "agent", Total: 30, Started: 26, Stopped: 2, Broken: 1, Waiting: 1, Command: "stale",
				LostAt: "2026-01-02T02:00:00Z", FencedAt: "2026-01-02T02:00:01Z", DispatchAt: "2026-01-02T02:00:02Z", DoneAt: "2026-01-02T02:00:03.25Z"},
		},
	}
	s.history = []cluster.Failover{{Node: n2, Inc: 1, Phase: cluster.PhaseWithdrawn, Reason: "it is back", LostAt: "2026-01-01T00:00:00Z", Command: "shaman fence confirm node2"}}
	s.brake = &cluster.Brake{Threshold: 2, Nodes: []cluster.NodeID{n3, n4}, Reason: "2 nodes are lost at once"}
	s.view = cluster.NewView(s.facts)
	res := func(id cluster.ResourceID, owner cluster.NodeID, path string, want cluster.Want) cluster.Resource {
		return cluster.Resource{ID: id, Kind: id.Kind(), Owner: owner, Path: path, Want: want, Memory: 1 << 30}
	}
	waiting := res("vm-big", n2, "/ves/big", cluster.WantRunning)
	waiting.Waiting, waiting.Priority = "drs finds no node: memory", 10
	s.census = cluster.Census{
		Repositories: map[cluster.NodeID]cluster.Listing{
			n1: {Resources: []cluster.Resource{res("ct-a", n1, "/ves/a", cluster.WantRunning), res("ct-unset", n1, "/ves/unset", cluster.WantUnset)}},
			n2: {Resources: []cluster.Resource{waiting, res("iscsi-t%3A1", n2, "/ves/t", cluster.WantStopped), res("ct-a2", n2, "/ves/a", cluster.WantStopped)}},
			n3: {Resources: []cluster.Resource{res("ct-lost", n3, "/ves/lo\tst", cluster.WantRunning)}},
		},
		Pools:       map[cluster.PoolID]cluster.Listing{pool: {Resources: []cluster.Resource{res("ct-pool", "", "/ves/pool", cluster.WantRunning)}}},
		Broken:      []cluster.BrokenResource{{Resource: res("ct-brk", "", "/ves/brk", cluster.WantRunning), Reason: cluster.BrokenReason{Node: n1, Operation: "start", Error: "line 1\nline 2"}}},
		Unparseable: []cluster.Unparseable{{File: "/m/.shaman/md.x/resources/ct-half", ID: "ct-half", Owner: n1, Err: errors.New("the first line is \"half\"")}},
	}
	return s
}

// awaySnapshot is what is seen while etcd is out of reach.
func awaySnapshot() *snapshot {
	s := newSnapshot()
	s.census = fullSnapshot().census
	s.etcdErr = errors.New("etcd does not answer")
	return s
}

func TestStatJSONIsAsTheContractHasIt(t *testing.T) {
	lost := newSnapshot()
	lost.etcdErr, lost.mountErr = errors.New("etcd"), errors.New("mount")
	for _, tt := range []struct {
		name   string
		s      *snapshot
		golden string
	}{
		{name: "a cluster with one of everything", s: fullSnapshot(), golden: "full.json"},
		{name: "etcd out of reach", s: awaySnapshot(), golden: "away.json"},
		{name: "no node, no resource", s: newSnapshot(), golden: "empty.json"},
		{name: "neither etcd nor mount", s: lost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := jsonBytes(testApp().stat(tt.s))
			if err != nil {
				t.Fatal(err)
			}
			if err := checkContract(b); err != nil {
				t.Error(err)
			}
			if bytes.Contains(b, []byte("null")) {
				t.Errorf("something is null in %s", b)
			}
			if tt.golden != "" {
				golden(t, tt.golden, string(b)+"\n")
			}
		})
	}
}

// The check itself must see what breaks the contract.
func TestContractCheckSeesWhatIsWrong(t *testing.T) {
	for _, change := range [][2]string{
		{`"epoch":57`, `"epoch":"57"`}, {`"flags":[]`, `"flags":null`}, {`"flags":[]`, `"flags":["Odd"]`}, {`"proof":"agent"`, `"proof":null`},
		{`"waiting":""`, `"wait":""`}, {`"orphan":0,`, ``}, {`"etcd":"ok"`, `"etcd":"fine"`}, {`"status":"Active","host_id"`, `"status":"OK","host_id"`},
	} {
		bad := strings.Replace(statContract, change[0], change[1], 1)
		if bad == statContract {
			t.Fatalf("%s is not in the contract", change[0])
		}
		if checkContract([]byte(bad)) == nil {
			t.Errorf("%s instead of %s was accepted", change[1], change[0])
		}
	}
	if err := checkContract([]byte(statContract)); err != nil {
		t.Error(err)
	}
}

func TestStatKeepsTheLastFinishedFailovers(t *testing.T) {
	s := newSnapshot()
	for i := range keepDone + 5 {
		s.history = append(s.history, cluster.Failover{Node: n1, Inc: cluster.Incarnation(i), Phase: cluster.PhaseDone, DoneAt: time.Unix(int64(1e9+i), 0).UTC().Format(time.RFC3339Nano)})
	}
	s.facts.Failovers = []cluster.Failover{{Node: n2, Inc: 1, Phase: cluster.PhaseFencing}}
	got := failoversOut(s)
	if len(got) != keepDone+1 || got[0].Incarnation != 5 || got[keepDone].Phase != "fencing" {
		t.Errorf("got %d failovers, the first is %+v, the last %+v; want the last %d done ones and the open one", len(got), got[0], got[len(got)-1], keepDone)
	}
}

func TestStatTables(t *testing.T) {
	open := fullSnapshot() // the time of an open failover goes on, so it has none here
	for i := range open.facts.Failovers {
		if open.facts.Failovers[i].DoneAt == "" {
			open.facts.Failovers[i].LostAt = ""
		}
	}
	for _, tt := range []struct {
		golden string
		s      *snapshot
		view   statView
	}{
		{"table.txt", open, statView{self: n1}},
		{"verbose.txt", open, statView{self: n1, verbose: true}},
		{"grouped.txt", open, statView{self: n1, grouped: true}},
		{"node2.txt", open, statView{self: n1, only: n2}},
		{"away.txt", awaySnapshot(), statView{self: n1}},
		{"empty.txt", newSnapshot(), statView{self: n1}},
	} {
		t.Run(tt.golden, func(t *testing.T) {
			var b bytes.Buffer
			j := testApp().stat(tt.s)
			j.filter(tt.view.only)
			renderStat(&b, j, tt.view)
			golden(t, tt.golden, b.String())
		})
	}
}

func TestPlanTable(t *testing.T) {
	lines := []planned{
		{Resource: "ct-a", From: n1, To: n2, Start: true, Policy: "drs", Reason: "most free memory", Rejected: []rejectionJSON{{Node: n3, Reason: "is Suspended"}}},
		{Resource: "vm-b", From: n1, To: "", Reason: "nobody can\nrun it"},
	}
	names := map[string]string{"": "-", n1: "node1", n2: "node2", n3: "node3"}
	var b bytes.Buffer
	renderPlan(&b, lines, names, false)
	b.WriteString("\n")
	renderPlan(&b, lines, names, true)
	golden(t, "plan.txt", b.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got, -update rewrites it):\n%s", name, diff)
	}
}

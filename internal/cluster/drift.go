package cluster

import (
	"cmp"
	"slices"
	"strings"
)

// DriftClass is a way in which the hypervisor's truth, the repository and the
// cluster differ. The classes are label values of a metric and keys in the JSON
// of stat.
type DriftClass string

// The classes.
const (
	DriftMissing    DriftClass = "missing"     // a VE with HA on is here, and has no resource anywhere
	DriftForeign    DriftClass = "foreign"     // a VE is here, its resource elsewhere
	DriftOrphan     DriftClass = "orphan"      // a resource is here, and the hypervisor does not know its VE
	DriftDuplicate  DriftClass = "duplicate"   // two resources are one VE, or one VE runs twice
	DriftMismatch   DriftClass = "mismatch"    // the parameters of resource and VE differ
	DriftBadPath    DriftClass = "bad-path"    // a resource is here, and there is nothing at its path
	DriftUnreadable DriftClass = "unparseable" // a resource file that cannot be used; counted from the mount
)

// DriftClasses are all classes that a node finds, in the order in which people see them.
var DriftClasses = []DriftClass{DriftMissing, DriftForeign, DriftOrphan, DriftDuplicate, DriftMismatch, DriftBadPath}

// Drift is one difference, with its evidence and what an operator can do.
type Drift struct {
	Class    DriftClass `json:"class"`
	Resource ResourceID `json:"resource,omitempty"` // as it is called, or would be
	Path     string     `json:"path"`
	Why      string     `json:"why"`
	Next     string     `json:"next,omitempty"` // what to do; "" = it heals by itself
}

// Report is what sync and cleanup-broken did, or would do.
type Report struct {
	Done  []Healed `json:"done,omitempty"` // the first reportLines of them
	Left  []Healed `json:"left,omitempty"` // what was left as it is, and why
	Count int      `json:"count"`          // of Done, all of them
	Kept  int      `json:"kept"`           // of Left, all of them
}

// Healed is one line of a report.
type Healed struct {
	Resource ResourceID `json:"resource"`
	What     string     `json:"what"`
}

// reportLines bounds a report, which is a value in etcd.
const reportLines = 500

// Did adds a line of what was done.
func (r *Report) Did(id ResourceID, what string) {
	if r.Count++; len(r.Done) < reportLines {
		r.Done = append(r.Done, Healed{id, what})
	}
}

// Leaves adds a line of what was left as it is.
func (r *Report) Leaves(id ResourceID, why string) {
	if r.Kept++; len(r.Left) < reportLines {
		r.Left = append(r.Left, Healed{id, why})
	}
}

// Spot is where a resource lies: in the repository of Owner, in the pool
// directory Pool, or, if both are zero, in broken.
type Spot struct {
	Owner    NodeID
	Pool     PoolID
	Resource Resource
}

// Broken tells whether it lies in quarantine.
func (s Spot) Broken() bool { return s.Owner == "" && s.Pool == (PoolID{}) }

// String names the place for people.
func (s Spot) String() string {
	switch {
	case s.Owner != "":
		return "the repository of node " + string(s.Owner)
	case s.Broken():
		return "broken"
	}
	return "pool directory " + s.Pool.String()
}

// Spots tell where the resources of a VE lie, by its path or its UUID.
type Spots struct{ byPath, byUUID map[string][]Spot }

// Spots indexes a census.
func (c Census) Spots() Spots {
	s := Spots{byPath: map[string][]Spot{}, byUUID: map[string][]Spot{}}
	put := func(at Spot) {
		s.byPath[at.Resource.Path] = append(s.byPath[at.Resource.Path], at)
		if u := at.Resource.UUID; u != "" {
			s.byUUID[u] = append(s.byUUID[u], at)
		}
	}
	for owner, l := range c.Repositories {
		for _, r := range l.Resources {
			put(Spot{Owner: owner, Resource: r})
		}
	}
	for p, l := range c.Pools {
		for _, r := range l.Resources {
			put(Spot{Pool: p, Resource: r})
		}
	}
	for _, b := range c.Broken {
		put(Spot{Resource: b.Resource})
	}
	for _, m := range []map[string][]Spot{s.byPath, s.byUUID} { // a map has no order, and people compare
		for _, at := range m {
			slices.SortFunc(at, func(x, y Spot) int {
				return cmp.Or(strings.Compare(string(x.Owner), string(y.Owner)), strings.Compare(x.Pool.String(), y.Pool.String()), strings.Compare(string(x.Resource.ID), string(y.Resource.ID)))
			})
		}
	}
	return s
}

// At returns where the resources of this path lie.
func (s Spots) At(path string) []Spot { return s.byPath[path] }

// Of returns where the resources of a VE lie: by its path, and if there are none
// by its UUID, since a path can change.
func (s Spots) Of(v VE) []Spot {
	if at := s.byPath[v.Path]; len(at) > 0 || v.UUID == "" {
		return at
	}
	return s.byUUID[v.UUID]
}

package cli

import (
	"slices"
	"strings"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// node finds a node by host id, name or address.
func (s *snapshot) node(word string) (cluster.Node, error) {
	if word == "" {
		return cluster.Node{}, fail(exitUsage, "the node's name is empty; want a host id, a name or an address")
	}
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

// anyNode is node for commands that work without etcd: then host ids on the mount count.
func (s *snapshot) anyNode(word string) (cluster.Node, error) {
	if s.etcdErr == nil || word == "" {
		return s.node(word)
	}
	id, err := cluster.ParseNodeID(word)
	if _, ok := s.census.Repositories[id]; err != nil || !ok {
		return cluster.Node{}, fail(exitReach, "%w; without etcd a node can be named by its host id only, and %q is none that the mount has", s.etcdErr, word)
	}
	return cluster.Node{ID: id, Name: word}, nil
}

func (s *snapshot) name(id cluster.NodeID) string {
	if n, ok := s.facts.Nodes[id]; ok && n.Name != "" {
		return n.Name
	}
	return string(id)
}

// find looks a resource up. The error says where it lies instead, in which case
// the resource is returned as well.
func (s *snapshot) find(id, self string) (cluster.Resource, error) {
	var found []cluster.Resource
	var owners []string
	for owner, l := range s.census.Repositories {
		for _, r := range l.Resources {
			if string(r.ID) == id {
				found, owners = append(found, r), append(owners, s.name(owner))
			}
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	for _, r := range found { // a name is unique within a node only: here it means this node's
		if string(r.Owner) == self {
			return r, nil
		}
	}
	if len(found) > 1 {
		slices.Sort(owners)
		return found[0], fail(exitState, "%s is in the repositories of the nodes %s; run this on the one whose resource is meant", id, strings.Join(owners, ", "))
	}
	for p, l := range s.census.Pools {
		for _, r := range l.Resources {
			if string(r.ID) == id {
				return r, fail(exitState, "%s is in the pool (%s): it is being relocated; try again when 'shaman stat' shows it on a node", id, p)
			}
		}
	}
	for _, b := range s.census.Broken {
		if string(b.Resource.ID) == id {
			return b.Resource, fail(exitState, "%s is broken (%s): mend the cause and start its VE on a node; what is broken is left alone until then", id, brokenWhy(b))
		}
	}
	for _, u := range s.census.Unparseable {
		if u.ID == id {
			return cluster.Resource{}, fail(exitState, "the file of %s cannot be used (%w); mend or remove it by hand", id, u.Err)
		}
	}
	return cluster.Resource{}, fail(exitState, "no resource %s; 'shaman stat' lists them", id)
}

// brokenWhy is what is known of why a resource is broken.
func brokenWhy(b cluster.BrokenResource) string {
	switch {
	case b.Err != nil:
		return b.Err.Error()
	case b.Reason.Operation != "":
		return b.Reason.Operation + ": " + b.Reason.Error
	}
	return b.Reason.Error
}

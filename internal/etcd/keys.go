// Package etcd is what the packages that speak to etcd have in common: the
// layout of the keys, how to connect, guarded transactions, and a mirror of a
// key prefix. It decides nothing.
package etcd

import (
	"fmt"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Layout names the keys of one cluster.
type Layout struct{ prefix string }

// NewLayout returns the keys of the cluster of this name.
func NewLayout(clusterName string) Layout { return Layout{prefix: "/shaman/" + clusterName + "/"} }

// Prefix is the start of every key of the cluster.
func (l Layout) Prefix() string { return l.prefix }

// Nodes is the prefix of the joined members.
func (l Layout) Nodes() string { return l.prefix + "nodes/" }

// Node is a joined member.
func (l Layout) Node(n cluster.NodeID) string { return l.Nodes() + string(n) }

// Alives is the prefix of the members that hold their lease.
func (l Layout) Alives() string { return l.prefix + "alive/" }

// Alive is a member's key under its lease.
func (l Layout) Alive(n cluster.NodeID) string { return l.Alives() + string(n) }

// Recoverings is the prefix of the members that are back and not yet admitted.
func (l Layout) Recoverings() string { return l.prefix + "recovering/" }

// Recovering is such a member's key under its lease.
func (l Layout) Recovering(n cluster.NodeID) string { return l.Recoverings() + string(n) }

// Masters is the prefix of the candidates for mastership; the one of the lowest
// create revision is master.
func (l Layout) Masters() string { return l.prefix + "master/" }

// Config is the prefix of the cluster-wide parameters.
func (l Layout) Config() string { return l.prefix + "config/" }

// Failovers is the prefix of all failovers.
func (l Layout) Failovers() string { return l.prefix + "failovers/" }

// Failover is one failover.
func (l Layout) Failover(id cluster.FailoverID) string { return l.Failovers() + id.String() }

// FailoversOf is the prefix of one node's failovers.
func (l Layout) FailoversOf(n cluster.NodeID) string { return l.Failovers() + string(n) + "." }

// Actions is the prefix of all actions.
func (l Layout) Actions() string { return l.prefix + "actions/" }

// ActionsOf is the prefix of the actions for one node.
func (l Layout) ActionsOf(n cluster.NodeID) string { return l.Actions() + string(n) + "/" }

// Action is one action.
func (l Layout) Action(a cluster.Action) string { return l.ActionsOf(a.Node) + a.Name() }

// Brake is where the master says that it holds failovers back.
func (l Layout) Brake() string { return l.prefix + "brake" }

// History is the prefix of withdrawn failovers.
func (l Layout) History() string { return l.prefix + "history/" }

// Withdrawn is a withdrawn failover, by its serial.
func (l Layout) Withdrawn(serial int64) string { return fmt.Sprintf("%s%020d", l.History(), serial) }

// Confirms is the prefix of operators' words that a node is off.
func (l Layout) Confirms() string { return l.prefix + "confirms/" }

// Confirm is an operator's word for one failover.
func (l Layout) Confirm(id cluster.FailoverID) string { return l.Confirms() + id.String() }

// Mark is where masters leave their marks.
func (l Layout) Mark() string { return l.prefix + "mark" }

// Identity is the uuid of the mount that this cluster lives on.
func (l Layout) Identity() string { return l.prefix + "identity" }

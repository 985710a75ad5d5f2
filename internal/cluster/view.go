package cluster

import (
	"slices"
	"strings"
	"time"
)

// Facts is what etcd holds of a cluster at one moment, and what the observer
// knows besides.
type Facts struct {
	At         time.Time
	Master     NodeID
	Epoch      Epoch
	Nodes      map[NodeID]NodeRecord
	Alive      map[NodeID]AliveRecord
	Recovering map[NodeID]RecoveringRecord
	Failovers  []Failover
	Beating    map[NodeID]bool // the heartbeat goes on, as far as the observer knows
}

// NewView tells for every joined node how it is. Nodes are in order of their
// names, then ids.
func NewView(f Facts) View {
	v := View{Epoch: f.Epoch, At: f.At}
	for id, rec := range f.Nodes {
		n := Node{
			ID: id, Name: rec.Name, Address: rec.Address, Incarnation: rec.Incarnation,
			Flags: rec.Flags(), Master: id == f.Master, Roles: rec.Roles, Mount: MountLost,
			Watchdog: rec.Watchdog, SuspendTokens: rec.SuspendTokens,
		}
		if a, ok := f.Alive[id]; ok {
			n.Mount, n.Kinds, n.Capacity, n.Usage, n.Resources = a.Mount, a.Kinds, a.Capacity, a.Usage, a.Resources
		}
		n.Liveness = liveness(f, id, rec)
		v.Nodes = append(v.Nodes, n)
	}
	slices.SortFunc(v.Nodes, func(a, b Node) int {
		if c := naturalCompare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	return v
}

func liveness(f Facts, id NodeID, rec NodeRecord) Liveness {
	if _, ok := f.Alive[id]; ok {
		return Active
	}
	var open, sealed *Failover
	for i := range f.Failovers {
		fo := &f.Failovers[i]
		switch {
		case fo.Node != id || fo.Inc < rec.Incarnation || fo.Phase == PhaseWithdrawn:
		case fo.Phase.Sealed():
			sealed = fo
		default:
			open = fo
		}
	}
	_, recovering := f.Recovering[id]
	switch {
	case open != nil && open.Phase == PhaseAwaitingFence:
		return AwaitingFence
	case recovering:
		return Recovering
	case open != nil && open.Liveness != "":
		return open.Liveness
	case sealed != nil:
		return Fenced
	case rec.Stopped == StopDown:
		return Down
	case rec.Stopped == StopInactive, rec.BootID == "":
		return Inactive // stopped, or joined and never started
	case f.Beating[id]:
		return Isolated
	}
	return Crashed
}

// naturalCompare orders node2 before node10.
func naturalCompare(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na > 0 && nb > 0 {
			x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) int {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	return i
}

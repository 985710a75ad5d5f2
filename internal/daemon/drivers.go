package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/config"
	"github.com/shaman-ha/shaman/internal/failover"
	"github.com/shaman-ha/shaman/internal/hypervisor"
	"github.com/shaman-ha/shaman/internal/hypervisor/libvirt"
	"github.com/shaman-ha/shaman/internal/hypervisor/lxc"
	"github.com/shaman-ha/shaman/internal/hypervisor/prlctl"
	"github.com/shaman-ha/shaman/internal/hypervisor/process"
	"github.com/shaman-ha/shaman/internal/hypervisor/scripts"
	"github.com/shaman-ha/shaman/internal/relocation"
	"go.uber.org/zap"
)

// openDrivers makes the drivers that HYPERVISORS lists. A hypervisor that is not
// up yet is waited for later, when it is asked.
func openDrivers(l config.Local, host cluster.NodeID, log *zap.Logger) ([]hypervisor.Driver, error) {
	var out []hypervisor.Driver
	for _, name := range l.Hypervisors {
		d, err := openDriver(name, l, host, log.Named(name))
		if err != nil {
			return nil, fmt.Errorf("HYPERVISORS: driver %s: %w", name, err)
		}
		out = append(out, d)
	}
	return out, nil
}

func openDriver(name string, l config.Local, host cluster.NodeID, log *zap.Logger) (hypervisor.Driver, error) {
	switch name {
	case "process":
		return process.New(process.Options{StateDir: l.StateDir, RunDir: l.RunDir, HostMemory: l.NodeMemory, Logger: log})
	case "libvirt":
		return libvirt.New(libvirt.Options{Name: name, Kind: cluster.KindVM, URI: l.LibvirtURI, Mount: l.ClusterMount, StateDir: l.StateDir, HostMemory: l.NodeMemory, Logger: log})
	case "libvirt-lxc":
		return libvirt.New(libvirt.Options{Name: name, Kind: cluster.KindCT, URI: l.LibvirtLXCURI, Mount: l.ClusterMount, StateDir: l.StateDir, HostMemory: l.NodeMemory, Logger: log})
	case "lxc":
		return lxc.New(lxc.Options{Mount: l.ClusterMount, StateDir: l.StateDir, RunDir: l.RunDir, HostMemory: l.NodeMemory, Logger: log})
	case "prlctl":
		return prlctl.New(prlctl.Options{Mount: l.ClusterMount, StateDir: l.StateDir, HostMemory: l.NodeMemory, Logger: log})
	case "scripts":
		return scripts.New(scripts.Options{Mount: l.ClusterMount, Node: host, StateDir: l.StateDir, RunDir: l.RunDir, HostMemory: l.NodeMemory, Logger: log})
	}
	return nil, fmt.Errorf("there is no such driver") // the configuration was checked
}

// openHooks makes the hooks of the common scripts.
func (m *member) openHooks() (err error) {
	m.hooks, err = scripts.NewHooks(scripts.HookOptions{
		Mount: m.Local.ClusterMount, StateDir: m.Local.StateDir, Cluster: m.Local.ClusterName, Node: m.host, Logger: m.Logger.Named("hooks"),
		Address: func(n cluster.NodeID) string { e, _ := m.members.Nodes.Get(string(n)); return e.Value.Address },
	})
	return err
}

// event writes an event down, and has the scripts told of it.
func (m *member) event(e cluster.Event) {
	m.events.Add(e)
	if e.Node == "" {
		e.Node = m.host
	}
	m.hooks.Notify(e)
}

// capacityEvery is how often a hypervisor that could not be asked is asked again
// what this node can carry.
const capacityEvery = 5 * time.Second

// learnCapacity asks until it is known what this node can carry.
func (m *member) learnCapacity(ctx context.Context) error {
	said := false
	for {
		cctx, cancel := context.WithTimeout(ctx, capacityEvery)
		c, err := m.drivers.Capacity(cctx)
		cancel()
		if err == nil {
			m.capacity.Store(&c)
			<-ctx.Done()
			return context.Cause(ctx)
		}
		if !said && ctx.Err() == nil {
			said = true
			m.Logger.Warn("the capacity of this node is not known; nothing is relocated here by memory until it is", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(capacityEvery):
		}
	}
}

// scheduleWithin bounds how long the scripts may hold up a placement.
const scheduleWithin = 10 * time.Second

// place asks the scripts for schedule, if there are any, then the relocation
// policies of the moment. A script's choice has to pass the same filters.
func (m *member) place(r failover.PlaceRequest) []cluster.Placement {
	p, err := relocation.Parse(m.settings.Load().RelocationMode)
	if err != nil {
		m.Logger.Error("the relocation mode cannot be used; nothing is placed", zap.Error(err))
		return nil
	}
	ask := func(v cluster.View, rs []cluster.Resource) []cluster.Placement {
		return p.Place(relocation.Request{
			View: v, Resources: rs, Avoid: r.Avoid, Pending: r.Pending, CPUPools: r.CPUPools, Reserve: r.Reserve, Turn: r.Turn,
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), scheduleWithin)
	defer cancel()
	return scheduled(r, m.hooks.Schedule(ctx, r.Resources, r.View.Nodes), ask)
}

// scheduled lets the policies see only the node that was chosen for a resource;
// what does not fit there is placed like the others.
func scheduled(r failover.PlaceRequest, chosen map[cluster.ResourceID]cluster.NodeID, ask func(cluster.View, []cluster.Resource) []cluster.Placement) []cluster.Placement {
	if len(chosen) == 0 {
		return ask(r.View, r.Resources)
	}
	byNode := map[cluster.NodeID][]cluster.Resource{}
	var rest []cluster.Resource
	for _, res := range r.Resources {
		if n, ok := chosen[res.ID]; ok {
			byNode[n] = append(byNode[n], res)
		} else {
			rest = append(rest, res)
		}
	}
	view := r.View
	view.Nodes = append([]cluster.Node{}, r.View.Nodes...)
	var out []cluster.Placement
	for i, n := range view.Nodes {
		only := view
		only.Nodes = []cluster.Node{n}
		for _, p := range ask(only, byNode[n.ID]) {
			if p.To == "" {
				for _, res := range byNode[n.ID] {
					if res.ID == p.Resource {
						rest = append(rest, res)
					}
				}
				continue
			}
			p.Policy, p.Reason = "schedule", "a script chose it; "+p.Reason
			out = append(out, p)
			for _, res := range byNode[n.ID] {
				if res.ID == p.Resource {
					view.Nodes[i] = loaded(view.Nodes[i], res)
				}
			}
		}
	}
	if len(rest) > 0 {
		out = append(out, ask(view, rest)...)
	}
	return out
}

// loaded is a node with one more VE on it.
func loaded(n cluster.Node, r cluster.Resource) cluster.Node {
	running := map[cluster.Kind]int{}
	for k, c := range n.Usage.Running {
		running[k] = c
	}
	running[r.Kind]++
	n.Usage = cluster.Usage{Memory: n.Usage.Memory + r.Memory, Running: running}
	return n
}

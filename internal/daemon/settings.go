package daemon

import (
	"github.com/shaman-ha/shaman/internal/agent"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/failover"
	"github.com/shaman-ha/shaman/internal/node"

	"encoding/json"
	"maps"
	"slices"

	"go.uber.org/zap"
)

// reload takes a change of the cluster-wide parameters over. What cannot be used
// is told and leaves everything as it was.
func (m *member) reload() {
	set := map[string]string{}
	if !m.config.Read(func(e map[string]etcd.Entry[json.RawMessage]) {
		for k, v := range e {
			set[k] = string(v.Raw)
		}
	}) {
		return
	}
	if err := m.adopt(set); err != nil {
		m.Logger.Error("a change of the configuration was not taken over", zap.Error(err))
		return
	}
	if !maps.Equal(set, m.known.Config) {
		m.known.Config = set
		m.keep(m.known)
	}
}

func (m *member) timing() cluster.Timing { return m.settings.Load().Timing() }

func (m *member) agentSettings() agent.Settings {
	c := m.settings.Load()
	return agent.Settings{
		LockTimeout: c.LockTimeout, ActionTimeout: c.ActionTimeout, LockRetryTimeout: c.LockRetryTimeout,
		ParallelStarts: c.MaxParallelStarts, StartRetries: c.StartRetries,
	}
}

func (m *member) nodeSettings() node.Settings {
	c := m.settings.Load()
	return node.Settings{Timing: c.Timing(), StopBudget: c.StopBudget, ActionTimeout: c.ActionTimeout, CrashLimit: c.NodeCrashThreshold, Watchdog: c.WatchdogTimeout, Reboot: c.LeaseLostAction == "reboot"}
}

func (m *member) engineSettings() failover.Settings {
	c := m.settings.Load()
	nodes := 0
	m.members.Nodes.Read(func(e map[string]etcd.Entry[cluster.NodeRecord]) { nodes = len(e) })
	return failover.Settings{
		Timing: c.Timing(), Patience: c.Patience, SkipThreshold: c.SkipThreshold(nodes), StopBudget: c.StopBudget,
		PoolCheck: c.PoolCheckTimeout, ActionTimeout: c.ActionTimeout, RelocateTries: c.RelocateTries,
		Reserve: c.HostMemoryReserve, ManualAllowed: slices.Contains(c.FenceMethods, "manual"), RebootedCounts: true, MoveDown: c.ShutdownPolicy == "failover",
	}
}

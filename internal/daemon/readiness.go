package daemon

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/fencing"
)

// readiness tells at each scrape how many of the other nodes could be proven harmless
// from here if they lost their power now, by method, and how many by none.
type readiness struct {
	m             *member
	ready, beyond *prometheus.Desc
}

func newReadiness(m *member) *readiness {
	return &readiness{
		m:      m,
		ready:  prometheus.NewDesc("shaman_fencing_ready_nodes", "Other nodes that this daemon could prove harmless without their help: method agent, a configuration for them is here; watchdog, theirs is armed and counts.", []string{"method"}, nil),
		beyond: prometheus.NewDesc("shaman_fencing_unfenceable_nodes", "Other nodes for which neither is so: if one loses its power an operator has to act. Alert above 0.", nil, nil),
	}
}

// Describe sends the descriptions.
func (r *readiness) Describe(ch chan<- *prometheus.Desc) {
	ch <- r.ready
	ch <- r.beyond
}

// Collect counts.
func (r *readiness) Collect(ch chan<- prometheus.Metric) {
	c := r.m.settings.Load()
	agents, dogs, none := 0, 0, 0
	r.m.members.Nodes.Read(func(nodes map[string]etcd.Entry[cluster.NodeRecord]) {
		for id, n := range nodes {
			if id == string(r.m.host) || n.Err != nil {
				continue
			}
			_, err := fencing.Load(r.m.Local.FenceDir, cluster.NodeID(id), n.Value.Name)
			agent := err == nil && slices.Contains(c.FenceMethods, "agent")
			dog := n.Value.Watchdog.Counts(c.WatchdogTrustVirtual) && slices.Contains(c.FenceMethods, "watchdog")
			if agent {
				agents++
			}
			if dog {
				dogs++
			}
			if !agent && !dog {
				none++
			}
		}
	})
	ch <- prometheus.MustNewConstMetric(r.ready, prometheus.GaugeValue, float64(agents), "agent")
	ch <- prometheus.MustNewConstMetric(r.ready, prometheus.GaugeValue, float64(dogs), "watchdog")
	ch <- prometheus.MustNewConstMetric(r.beyond, prometheus.GaugeValue, float64(none))
}

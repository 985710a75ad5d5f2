package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// Metrics of a node's agent.
type Metrics struct {
	Actions     *prometheus.CounterVec
	Resources   *prometheus.GaugeVec
	Waiting     prometheus.Gauge
	Unparseable prometheus.Gauge
	Scan        prometheus.Histogram
	LastScan    prometheus.Gauge
	Held        prometheus.Gauge
	Drift       *prometheus.GaugeVec
}

// NewMetrics registers the agent's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	m := &Metrics{
		Actions:     f.NewCounterVec(prometheus.CounterOpts{Name: "shaman_agent_actions_total", Help: "Actions that this node answered. Alert on any increase of failed or unknown."}, []string{"verb", "result"}),
		Resources:   f.NewGaugeVec(prometheus.GaugeOpts{Name: "shaman_resources", Help: "Resources in this node's repository, by the state of their VEs."}, []string{"state"}),
		Waiting:     f.NewGauge(prometheus.GaugeOpts{Name: "shaman_resources_waiting", Help: "Resources here that should run and found no room. Alert if it stays above 0."}),
		Unparseable: f.NewGauge(prometheus.GaugeOpts{Name: "shaman_resources_unparseable", Help: "Files in this node's repository that cannot be read as resources. Alert on anything above 0."}),
		Scan:        f.NewHistogram(prometheus.HistogramOpts{Name: "shaman_resources_scan_duration_seconds", Help: "Time to compare the repository with the hypervisor.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}),
		LastScan:    f.NewGauge(prometheus.GaugeOpts{Name: "shaman_resources_last_success_timestamp_seconds", Help: "When that last succeeded, as Unix time. Alert if it is older than some minutes."}),
		Held:        f.NewGauge(prometheus.GaugeOpts{Name: "shaman_agent_held", Help: "Actions that wait for storage, lock or hypervisor trouble on this node to end. Alert if it stays above 0 for a minute."}),
		Drift:       f.NewGaugeVec(prometheus.GaugeOpts{Name: "shaman_drift", Help: "Differences between the hypervisor, this node's repository and the cluster, by class. Alert if one stays above 0 for some minutes; 'shaman stat' names them."}, []string{"class"}),
	}
	for _, c := range cluster.DriftClasses {
		m.Drift.WithLabelValues(string(c)).Set(0)
	}
	return m
}

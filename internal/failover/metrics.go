package failover

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics of the engine.
type Metrics struct {
	Steps       *prometheus.CounterVec
	Done        *prometheus.CounterVec
	Phase       *prometheus.HistogramVec
	LastSuccess prometheus.Gauge
	Attempts    *prometheus.CounterVec
	Placements  *prometheus.CounterVec
	Brake       prometheus.Gauge
	Open        *prometheus.GaugeVec
	Nodes       *prometheus.GaugeVec
}

// NewMetrics registers the engine's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	f := promauto.With(reg)
	return &Metrics{
		Steps:       f.NewCounterVec(prometheus.CounterOpts{Name: "shaman_failover_steps_total", Help: "Steps that this master took. Alert on repeated failures."}, []string{"action", "result"}),
		Done:        f.NewCounterVec(prometheus.CounterOpts{Name: "shaman_failover_failovers_total", Help: "Failovers that ended, by result. Alert on any increase."}, []string{"result"}),
		Phase:       f.NewHistogramVec(prometheus.HistogramOpts{Name: "shaman_failover_phase_duration_seconds", Help: "Time that a failover spent in detect, fence, seal, dispatch and start.", Buckets: prometheus.ExponentialBuckets(0.01, 3, 10)}, []string{"phase"}),
		LastSuccess: f.NewGauge(prometheus.GaugeOpts{Name: "shaman_failover_last_success_timestamp_seconds", Help: "When a failover was last finished by this master, as Unix time."}),
		Attempts:    f.NewCounterVec(prometheus.CounterOpts{Name: "shaman_fencing_attempts_total", Help: "Attempts to prove a node harmless. Alert on failed."}, []string{"method", "result"}),
		Placements:  f.NewCounterVec(prometheus.CounterOpts{Name: "shaman_relocation_placements_total", Help: "Placements, by policy and result. Alert on result=\"none\"."}, []string{"policy", "result"}),
		Brake:       f.NewGauge(prometheus.GaugeOpts{Name: "shaman_failover_brake_engaged", Help: "1 while too many nodes are lost at once and nothing more is taken over. Alert at once."}),
		Open:        f.NewGaugeVec(prometheus.GaugeOpts{Name: "shaman_failover_open", Help: "Failovers under way, by phase. Alert on held or awaiting-fence at once."}, []string{"phase"}),
		Nodes:       f.NewGaugeVec(prometheus.GaugeOpts{Name: "shaman_membership_nodes", Help: "Nodes by status, as this master sees them. Alert on anything but Active."}, []string{"status"}),
	}
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// servePause is the pause before metrics are tried to be served again.
const servePause = 5 * time.Second

// keepServing serves for as long as the daemon lives. That nobody can look at it, for
// a port that is taken or a file that cannot be read, is no reason to end: its VEs
// would be unprotected, and an armed watchdog does not wait.
func (d *Daemon) keepServing(ctx context.Context) error {
	said := ""
	for {
		err := d.serveHTTP(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if msg := fmt.Sprint(err); msg != said {
			said = msg
			d.Logger.Error("metrics and probes are not served; tried again", zap.Error(err))
		}
		d.Notify("READY=1")
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(servePause):
		}
	}
}

// serveHTTP serves metrics and probes, whatever else works.
func (d *Daemon) serveHTTP(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		return d.gatherers.Load().Gather()
	}), promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		text := *d.status.Load()
		ready := d.ready.Load()
		if ready == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		} else if err := (*ready)(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			text = err.Error()
		}
		_, _ = fmt.Fprintln(w, text)
	})
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", d.Local.ListenAddress)
	if err != nil {
		return fmt.Errorf("serve metrics on LISTEN_ADDRESS: %w", err)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	no, file := false, d.Local.WebConfigFile
	if file != "" {
		if err := web.Validate(file); err != nil {
			_ = l.Close()
			return fmt.Errorf("WEB_CONFIG_FILE: %w", err)
		}
	}
	d.Notify("READY=1")
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := web.Serve(l, srv, &web.FlagConfig{WebSystemdSocket: &no, WebConfigFile: &file}, slog.New(slog.DiscardHandler))
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("serve metrics: %w", err)
	})
	g.Go(func() error {
		<-gctx.Done()
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := srv.Shutdown(sctx); err != nil {
			_ = srv.Close() // a client that does not end its request
		}
		return context.Cause(ctx)
	})
	return g.Wait()
}

// feedSystemd keeps systemd's watchdog of this service content, as long as the
// daemon's own heart goes round: it does even while the mount hangs, and stops when
// something in here is stuck.
func (d *Daemon) feedSystemd(ctx context.Context) error {
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	tick := time.NewTicker(time.Duration(usec) * time.Microsecond / 4)
	defer tick.Stop()
	for {
		if d.goesRound() {
			d.Notify("WATCHDOG=1")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// goesRound tells whether the heart has begun a round lately; while there is none
// the daemon waits, for etcd or to be joined. The longest round is one probe of a
// mount that hangs, or two and a half heartbeats of listening.
func (d *Daemon) goesRound() bool {
	beat := d.rounds.Load()
	if beat == nil {
		return true
	}
	t := d.settings.Load().Timing()
	return boottime.Since(boottime.Time(beat.Load())) <= longestRound(t)
}

// longestRound is how long the heart may take for one. With the defaults, together
// with the unit's WatchdogSec and TimeoutAbortSec, it is less than SELF_FENCE_TIMEOUT.
func longestRound(t cluster.Timing) time.Duration { return 2*t.Heartbeat + t.Probe + roundSlack }

// roundSlack is for a machine that is busy.
const roundSlack = time.Second

package daemon

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// systemd is asked over D-Bus, at its well-known names (org.freedesktop.systemd1(5),
// org.freedesktop.login1(5)).
const (
	systemd1 = "org.freedesktop.systemd1"
	login1   = "org.freedesktop.login1"
)

func property(ctx context.Context, conn *dbus.Conn, path dbus.ObjectPath, iface, name string, into any) error {
	var v dbus.Variant
	if err := conn.Object(systemd1, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, iface, name).Store(&v); err != nil {
		return err
	}
	return v.Store(into)
}

// AskSystemd tells why this service is being ended, by the state of the system and
// the job that systemd has for its unit. Whatever cannot be found out is Inactive.
func AskSystemd() Leaving {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return LeaveInactive
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return LeaveInactive
	}
	defer conn.Close()
	const manager dbus.ObjectPath = "/org/freedesktop/systemd1"
	var state string
	if err := property(ctx, conn, manager, systemd1+".Manager", "SystemState", &state); err == nil && state == "stopping" {
		return LeaveDown
	}
	var unit dbus.ObjectPath
	if err := conn.Object(systemd1, manager).CallWithContext(ctx, systemd1+".Manager.GetUnitByPID", 0, uint32(os.Getpid())).Store(&unit); err != nil {
		return LeaveInactive
	}
	var job struct {
		ID   uint32
		Path dbus.ObjectPath
	}
	if err := property(ctx, conn, unit, systemd1+".Unit", "Job", &job); err != nil || job.ID == 0 {
		return LeaveInactive
	}
	var kind string
	if err := property(ctx, conn, job.Path, systemd1+".Job", "JobType", &kind); err == nil && (kind == "restart" || kind == "try-restart") {
		return LeaveRestart
	}
	return LeaveInactive
}

// loginRetry is the pause before the login manager is looked for again.
const loginRetry = 30 * time.Second

// WatchShutdown holds up shutdowns of this host for a moment (a delay inhibitor of
// logind), and calls begin as soon as one is announced: before other services, and
// the VEs' hypervisor among them, are stopped. Where there is no logind the end of
// the service tells the same, a little later.
func WatchShutdown(ctx context.Context, begin func(context.Context), log *zap.Logger) {
	for ctx.Err() == nil {
		if err := inhibit(ctx, begin); err != nil && ctx.Err() == nil {
			log.Debug("shutdowns of this host are not announced to this daemon", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(loginRetry):
		}
	}
}

// inhibit holds one inhibitor until a shutdown is announced or the bus goes away.
func inhibit(ctx context.Context, begin func(context.Context)) error {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("reach the system's message bus: %w", err)
	}
	defer conn.Close()
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(login1+".Manager"), dbus.WithMatchMember("PrepareForShutdown")); err != nil {
		return fmt.Errorf("listen to the login manager: %w", err)
	}
	signals := make(chan *dbus.Signal, 8)
	conn.Signal(signals)
	var fd dbus.UnixFD
	if err := conn.Object(login1, "/org/freedesktop/login1").CallWithContext(ctx, login1+".Manager.Inhibit", 0,
		"shutdown", "shaman-monitor", "stops the VEs of this node", "delay").Store(&fd); err != nil {
		return fmt.Errorf("ask the login manager for a moment before a shutdown: %w", err)
	}
	defer unix.Close(int(fd))
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-signals:
			if !ok {
				return fmt.Errorf("the system's message bus is gone")
			}
			if s.Name != login1+".Manager.PrepareForShutdown" || len(s.Body) != 1 {
				continue
			}
			if on, _ := s.Body[0].(bool); on {
				begin(ctx)
			}
		}
	}
}

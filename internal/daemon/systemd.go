package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"
	"go.uber.org/zap"
)

// systemd is asked over D-Bus, at its well-known names (org.freedesktop.systemd1(5),
// org.freedesktop.login1(5)).
const (
	systemd1                     = "org.freedesktop.systemd1"
	systemd1Path dbus.ObjectPath = "/org/freedesktop/systemd1"
	login1                       = "org.freedesktop.login1"
)

// AskSystemd tells why this service is being ended, by the state of the system and
// the job that systemd has for its unit. Whatever cannot be found out is Inactive.
func AskSystemd() Leaving {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return LeaveInactive
	}
	// The bus may be away, or be no part of this system, while systemd is there.
	for _, connect := range []func(...dbus.ConnOption) (*dbus.Conn, error){dbus.ConnectSystemBus, connectPrivate} {
		if why, err := askManager(connect); err == nil {
			return why
		}
	}
	return LeaveInactive
}

// connectPrivate dials systemd itself, as systemctl does.
func connectPrivate(opts ...dbus.ConnOption) (*dbus.Conn, error) {
	conn, err := dbus.Dial("unix:path=/run/systemd/private", opts...)
	if err != nil {
		return nil, err
	}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	// systemd does not see a message that arrives together with the end of the
	// handshake before another one follows.
	ping := func() error {
		ctx, cancel := context.WithTimeout(conn.Context(), 50*time.Millisecond)
		defer cancel()
		return conn.Object(systemd1, systemd1Path).CallWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0).Err
	}
	for err = ping(); errors.Is(err, context.DeadlineExceeded) && conn.Context().Err() == nil; err = ping() {
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// askManager asks what the whole system is at, and what is being done with the
// unit of this process.
func askManager(connect func(...dbus.ConnOption) (*dbus.Conn, error)) (Leaving, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := connect(dbus.WithContext(ctx))
	if err != nil {
		return LeaveInactive, fmt.Errorf("ask systemd: %w", err)
	}
	defer conn.Close()
	get := func(path dbus.ObjectPath, iface, prop string, into any) error {
		var v dbus.Variant
		if err := conn.Object(systemd1, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, systemd1+"."+iface, prop).Store(&v); err != nil {
			return fmt.Errorf("ask systemd for %s: %w", prop, err)
		}
		return v.Store(into)
	}
	var state string
	if err := get(systemd1Path, "Manager", "SystemState", &state); err != nil {
		return LeaveInactive, err
	}
	if state == "stopping" {
		return LeaveDown, nil
	}
	var unit dbus.ObjectPath
	if err := conn.Object(systemd1, systemd1Path).CallWithContext(ctx, systemd1+".Manager.GetUnitByPID", 0, uint32(os.Getpid())).Store(&unit); err != nil {
		return LeaveInactive, fmt.Errorf("ask systemd for the unit: %w", err)
	}
	var job struct {
		ID   uint32
		Path dbus.ObjectPath
	}
	if err := get(unit, "Unit", "Job", &job); err != nil || job.ID == 0 {
		return LeaveInactive, err
	}
	var kind string
	if err := get(job.Path, "Job", "JobType", &kind); err != nil {
		return LeaveInactive, err
	}
	if kind == "restart" || kind == "try-restart" {
		return LeaveRestart, nil
	}
	return LeaveInactive, nil
}

// loginRetry is the pause before the login manager is looked for again.
const loginRetry = 30 * time.Second

// WatchShutdown holds up shutdowns of this host for a moment (a delay inhibitor of
// logind), and calls begin as soon as one is announced: before other services, and
// the VEs' hypervisor among them, are stopped; and givenUp if it does not happen
// after all. Where there is no logind the end of the service tells the same, a
// little later.
func WatchShutdown(ctx context.Context, begin func(context.Context), givenUp func(), log *zap.Logger) {
	for ctx.Err() == nil {
		if err := inhibit(ctx, begin, givenUp); err != nil && ctx.Err() == nil {
			log.Debug("shutdowns of this host are not announced to this daemon", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(loginRetry):
		}
	}
}

const (
	login1Path    dbus.ObjectPath = "/org/freedesktop/login1"
	login1Manager                 = login1 + ".Manager"
	// preparingEvery is how often it is looked whether a shutdown was given up.
	preparingEvery = 2 * time.Second
)

// preparing asks logind itself whether the host is about to shut down. Everybody may
// send a signal that says so.
func preparing(ctx context.Context, conn *dbus.Conn) (yes bool, err error) {
	var v dbus.Variant
	if err := conn.Object(login1, login1Path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, login1Manager, "PreparingForShutdown").Store(&v); err != nil {
		return false, fmt.Errorf("ask the login manager: %w", err)
	}
	return yes, v.Store(&yes)
}

// inhibit holds one inhibitor until a shutdown is announced or the bus goes away.
func inhibit(ctx context.Context, begin func(context.Context), givenUp func()) error {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("reach the system's message bus: %w", err)
	}
	defer conn.Close()
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchSender(login1), dbus.WithMatchInterface(login1Manager), dbus.WithMatchMember("PrepareForShutdown")); err != nil {
		return fmt.Errorf("listen to the login manager: %w", err)
	}
	signals := make(chan *dbus.Signal, 8)
	conn.Signal(signals)
	var fd dbus.UnixFD
	if err := conn.Object(login1, login1Path).CallWithContext(ctx, login1Manager+".Inhibit", 0,
		"shutdown", "shaman-monitor", "stops the VEs of this node", "delay").Store(&fd); err != nil {
		return fmt.Errorf("ask the login manager for a moment before a shutdown: %w", err)
	}
	inhibitor := os.NewFile(uintptr(fd), "inhibitor")
	defer inhibitor.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-signals:
			if !ok {
				return errors.New("the system's message bus is gone")
			}
			if s.Name != login1Manager+".PrepareForShutdown" {
				continue
			}
		}
		if yes, err := preparing(ctx, conn); err != nil || !yes {
			continue
		}
		begin(ctx)
		_ = inhibitor.Close() // and let the shutdown go on
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(preparingEvery):
			}
			if yes, err := preparing(ctx, conn); err != nil {
				return err
			} else if !yes {
				givenUp()
				return nil
			}
		}
	}
}

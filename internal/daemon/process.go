package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/config"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// levels maps LOG_LEVEL, the original's numbers.
var levels = map[int]zapcore.Level{0: zapcore.ErrorLevel, 1: zapcore.WarnLevel, 2: zapcore.InfoLevel, 3: zapcore.InfoLevel, 4: zapcore.DebugLevel}

// NewLogger returns the daemon's log, and its level to change it by.
func NewLogger(l config.Local, w io.Writer) (*zap.Logger, zap.AtomicLevel) {
	level := zap.NewAtomicLevelAt(levels[l.LogLevel])
	c := zap.NewProductionEncoderConfig()
	c.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	c.EncodeDuration = zapcore.StringDurationEncoder
	enc := zapcore.NewJSONEncoder(c)
	if l.LogFormat == "console" {
		c.EncodeLevel = zapcore.CapitalLevelEncoder
		enc = zapcore.NewConsoleEncoder(c)
	}
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), level)).With(zap.String("host", l.NodeName)), level
}

// ReloadOn takes LOG_LEVEL over from the file at each signal; everything else
// of the file is taken over by a restart, which VEs do not notice.
func (d *Daemon) ReloadOn(ctx context.Context, hup <-chan os.Signal, file string, level zap.AtomicLevel) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		d.Notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", time.Duration(boottime.Now()).Microseconds()))
		l, _, err := config.LoadLocal(file, os.Environ())
		if err != nil {
			d.Logger.Error("the configuration was not reloaded; what was in force stays so", zap.Error(err))
		} else {
			level.SetLevel(levels[l.LogLevel])
			d.Logger.Info("configuration reloaded: LOG_LEVEL; other keys need a restart of this daemon")
		}
		d.Notify("READY=1")
	}
}

// AskSystemd tells why this service is being ended, by the job that systemd has
// for its unit. Whatever is not a restart, or cannot be found out, is Inactive.
func AskSystemd() Leaving {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return LeaveInactive
	}
	// The bus may be away, or be no part of this system, while systemd is there.
	for _, connect := range []func(...dbus.ConnOption) (*dbus.Conn, error){dbus.ConnectSystemBus, connectPrivate} {
		kind, err := jobType(connect)
		switch {
		case err != nil:
		case kind == "restart" || kind == "try-restart":
			return LeaveRestart
		default:
			return LeaveInactive
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
		return conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").CallWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0).Err
	}
	for err = ping(); errors.Is(err, context.DeadlineExceeded) && conn.Context().Err() == nil; err = ping() {
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// jobType is what systemd is doing with the unit of this process; "" = nothing.
func jobType(connect func(...dbus.ConnOption) (*dbus.Conn, error)) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := connect(dbus.WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("ask systemd: %w", err)
	}
	defer conn.Close()
	const dest = "org.freedesktop.systemd1"
	var unit dbus.ObjectPath
	manager := conn.Object(dest, "/org/freedesktop/systemd1")
	if err := manager.CallWithContext(ctx, dest+".Manager.GetUnitByPID", 0, uint32(os.Getpid())).Store(&unit); err != nil {
		return "", fmt.Errorf("ask systemd for the unit: %w", err)
	}
	get := func(path dbus.ObjectPath, iface, prop string, into any) error {
		var v dbus.Variant
		if err := conn.Object(dest, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, iface, prop).Store(&v); err != nil {
			return fmt.Errorf("ask systemd for %s: %w", prop, err)
		}
		return v.Store(into)
	}
	var job struct {
		ID   uint32
		Path dbus.ObjectPath
	}
	if err := get(unit, dest+".Unit", "Job", &job); err != nil || job.ID == 0 {
		return "", err
	}
	var kind string
	err = get(job.Path, dest+".Job", "JobType", &kind)
	return kind, err
}

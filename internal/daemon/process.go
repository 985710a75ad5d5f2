package daemon

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

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

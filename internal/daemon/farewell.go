package daemon

import (
	"context"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/etcd"
	"github.com/shaman-ha/shaman/internal/node"
	"go.uber.org/zap"
)

// shutDown is the orderly end of this host: VEs are asked, then forced, and the alive
// key lasts for LOCK_TIMEOUT more in which that can be recorded.
func (m *member) shutDown(ctx context.Context) {
	c := m.settings.Load()
	ctx, cancel := context.WithTimeout(ctx, c.ActionTimeout+c.StopBudget+c.LockTimeout)
	defer cancel()
	m.say("the host is shutting down; stopping its VEs")
	if err := m.node.ShutDown(ctx); err != nil {
		m.Logger.Warn("this host shuts down without a record of it", zap.Error(err))
	}
}

// retire is the end of a daemon that was told to stop.
func (m *member) retire(ctx context.Context, l node.Lease, leaving Leaving) {
	if leaving == LeaveRestart {
		m.Logger.Info("the daemon restarts: lease and VEs are kept")
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.goodbyeTime())
	defer cancel()
	said := ""
	for {
		done, err := m.node.Retire(ctx, l)
		switch {
		case done && leaving == LeaveDown:
			m.Logger.Info("the node is Down: everything here is stopped")
			return
		case done:
			m.Logger.Info("the node is Inactive: its VEs run on, and are not protected until the daemon starts again")
			return
		case err == nil:
			return
		case m.dog.Starving() || !m.dog.State().Armed || boottime.WaitUntil(ctx, boottime.Now().Add(retirePause)) != nil:
			m.Logger.Error("could not record that this daemon was stopped on purpose; the others may fail this node over, and an armed watchdog resets this machine", zap.Bool("armed", m.dog.State().Armed), zap.Error(etcd.Explain(err)))
			return
		}
		if msg := err.Error(); msg != said {
			said = msg
			m.Logger.Error("the watchdog stays armed until etcd has recorded that this daemon stops: without that the machine is reset; tried again", zap.Duration("for", m.goodbyeTime()), zap.Error(etcd.Explain(err)))
		}
	}
}

// retirePause is the pause between two tries to say goodbye.
const retirePause = 500 * time.Millisecond

// goodbyeTime bounds them. With an armed watchdog the machine is reset after it,
// so it is worth waiting for; the unit's TimeoutStopSec is longer.
func (m *member) goodbyeTime() time.Duration {
	if m.dog.State().Armed {
		return time.Minute
	}
	return 5 * time.Second
}

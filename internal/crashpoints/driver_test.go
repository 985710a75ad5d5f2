package crashpoints

import (
	"context"
	"errors"
	"fmt"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/drivertest"
)

var errDriver = errors.New("the driver says no")

// mortal is a driver as one process uses it.
type mortal struct {
	*drivertest.Fake
	p *process
	w *world
}

// errDeadDriver is what a dead process gets.
var errDeadDriver = fmt.Errorf("%w: this process is dead", cluster.ErrCannotAsk)

// errUnknown is how a call fails whose answer is lost.
var errUnknown = fmt.Errorf("%w: the answer was lost", cluster.ErrCannotAsk)

func (m *mortal) call(label string, do func() error) error {
	return op(m.p, "driver "+label, do, errDeadDriver, errUnknown)
}

// List lists.
func (m *mortal) List(ctx context.Context) ([]cluster.VE, error) {
	if m.p.isDead() {
		return nil, errDeadDriver
	}
	return m.Fake.List(ctx)
}

// Register registers.
func (m *mortal) Register(ctx context.Context, path string) error {
	return m.call("register "+path, func() error { return m.Fake.Register(ctx, path) })
}

// Unregister unregisters.
func (m *mortal) Unregister(ctx context.Context, path string) error {
	return m.call("unregister "+path, func() error { return m.Fake.Unregister(ctx, path) })
}

// Start starts, and the world looks whether that was right.
func (m *mortal) Start(ctx context.Context, path string) error {
	return m.call("start "+path, func() error {
		return m.w.starting(m.p.machine, path, func() error { return m.Fake.Start(ctx, path) })
	})
}

// Stop stops.
func (m *mortal) Stop(ctx context.Context, path string, force bool) error {
	return m.call(fmt.Sprintf("stop %s force=%v", path, force), func() error { return m.Fake.Stop(ctx, path, force) })
}

// Barrier waits for the driver's own jobs.
func (m *mortal) Barrier(ctx context.Context) error {
	if m.p.isDead() {
		return errDeadDriver
	}
	return m.Fake.Barrier(ctx)
}

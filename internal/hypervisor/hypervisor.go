// Package hypervisor says what shaman needs of a virtualization technology, and
// joins the drivers of one node into one (Set). The drivers themselves live one
// folder a technology below; drivertest is the suite that all of them pass.
package hypervisor

import (
	"context"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// Driver is one virtualization technology on this node.
//
// A VE is named by its path. Verbs are idempotent: registering a registered VE
// of the same path, starting a running one and stopping a stopped one succeed.
// Each call ends when its context does; it then returns an error that wraps
// cluster.ErrCannotAsk, which means that the outcome is not known. Errors wrap
// one of the classes in cluster/errors.go where one fits. All methods may be
// called concurrently.
type Driver interface {
	// Name is the word for this driver in HYPERVISORS.
	Name() string
	// Kinds are the types of VEs that it runs.
	Kinds() []cluster.Kind
	// List returns all VEs that are registered or run here. An error means that
	// nothing is known, never that nothing is there.
	List(ctx context.Context) ([]cluster.VE, error)
	// Register makes the VE at path known here, stopped, and switches the
	// hypervisor's own autostart off for it.
	Register(ctx context.Context, path string) error
	// Unregister makes this node forget the VE and leaves its files alone. It
	// refuses a running VE; an unknown one is a success.
	Unregister(ctx context.Context, path string) error
	// Start returns when the VE runs.
	Start(ctx context.Context, path string) error
	// Stop returns when the VE is proven not to run: by the guest's own
	// shutdown, or with force at once. An unknown VE is a success.
	Stop(ctx context.Context, path string, force bool) error
	// Barrier returns when no job that was queued before the call can still have
	// an effect, and images of stopped VEs are closed.
	Barrier(ctx context.Context) error
	// Watch calls hint, which does not block, after lifecycle events, until ctx
	// ends. Events may be lost; List is the truth.
	Watch(ctx context.Context, hint func()) error
	// Capacity returns what this node can carry, as far as the driver knows it.
	Capacity(ctx context.Context) (cluster.Capacity, error)
	// Configure writes the VE's own HA parameters; nil fields stay as they are.
	Configure(ctx context.Context, path string, p Params) error
	// Save writes what another node needs to register the VE to the shared file
	// system, where that is kept apart from the VE itself; else it does nothing.
	// Only the owner of the VE's resource calls it, for a VE that List says is Stale,
	// and before it makes a resource of a VE.
	Save(ctx context.Context, path string) error
}

// Params are the HA parameters that a VE itself carries, and which win over its resource.
type Params = cluster.VEParams

package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/shaman-ha/shaman/internal/cluster"
	"golang.org/x/sync/errgroup"
)

// Set is all drivers of one node as one; verbs go to the driver of the VE's kind.
type Set struct {
	drivers []Driver
	byKind  map[cluster.Kind]Driver
}

// NewSet joins drivers. Two drivers for one kind are refused.
func NewSet(drivers ...Driver) (*Set, error) {
	s := &Set{drivers: drivers, byKind: map[cluster.Kind]Driver{}}
	for _, d := range drivers {
		for _, k := range d.Kinds() {
			if have, dup := s.byKind[k]; dup {
				return nil, fmt.Errorf("HYPERVISORS: both %s and %s run VEs of type %s; use one of them", have.Name(), d.Name(), k)
			}
			s.byKind[k] = d
		}
	}
	return s, nil
}

// Kinds are the types of VEs that this node can run, sorted.
func (s *Set) Kinds() []cluster.Kind {
	var out []cluster.Kind
	for k := range s.byKind {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (s *Set) driver(k cluster.Kind) (Driver, error) {
	d, ok := s.byKind[k]
	if !ok {
		return nil, fmt.Errorf("no driver of this node runs VEs of type %s; HYPERVISORS lists those that it has", k)
	}
	return d, nil
}

// List returns the VEs of all drivers. Of those that cannot be asked the error, a
// *cluster.UnansweredError, tells the kinds: of others the list is whole. All are
// asked at the same time, so that one that hangs costs the others nothing but
// the end of ctx.
func (s *Set) List(ctx context.Context) ([]cluster.VE, error) {
	lists, errs := make([][]cluster.VE, len(s.drivers)), make([]error, len(s.drivers))
	var wg sync.WaitGroup
	for i, d := range s.drivers {
		wg.Go(func() { lists[i], errs[i] = d.List(ctx) })
	}
	wg.Wait()
	un := &cluster.UnansweredError{}
	for i, d := range s.drivers {
		if errs[i] != nil {
			un.Kinds = append(un.Kinds, d.Kinds()...)
			errs[i] = fmt.Errorf("driver %s: %w", d.Name(), errs[i])
		}
	}
	if len(un.Kinds) > 0 {
		un.Err = errors.Join(errs...)
		return slices.Concat(lists...), un
	}
	return slices.Concat(lists...), nil
}

// ListKind returns the VEs of the driver for one type: whoever asks about one VE
// does not wait for the others. A type that no driver here runs has none.
func (s *Set) ListKind(ctx context.Context, k cluster.Kind) ([]cluster.VE, error) {
	d, ok := s.byKind[k]
	if !ok {
		return nil, nil
	}
	ves, err := d.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("driver %s: %w", d.Name(), err)
	}
	return ves, nil
}

// Register makes a VE known here.
func (s *Set) Register(ctx context.Context, k cluster.Kind, path string) error {
	d, err := s.driver(k)
	if err != nil {
		return err
	}
	return d.Register(ctx, path)
}

// Unregister makes this node forget a VE.
func (s *Set) Unregister(ctx context.Context, k cluster.Kind, path string) error {
	d, err := s.driver(k)
	if err != nil {
		return err
	}
	return d.Unregister(ctx, path)
}

// Start returns when the VE runs.
func (s *Set) Start(ctx context.Context, k cluster.Kind, path string) error {
	d, err := s.driver(k)
	if err != nil {
		return err
	}
	return d.Start(ctx, path)
}

// Stop returns when the VE is proven not to run.
func (s *Set) Stop(ctx context.Context, k cluster.Kind, path string, force bool) error {
	d, err := s.driver(k)
	if err != nil {
		return err
	}
	return d.Stop(ctx, path, force)
}

// Configure writes a VE's own HA parameters.
func (s *Set) Configure(ctx context.Context, k cluster.Kind, path string, p Params) error {
	d, err := s.driver(k)
	if err != nil {
		return err
	}
	return d.Configure(ctx, path, p)
}

// Save writes what other nodes need of a VE to the shared file system.
func (s *Set) Save(ctx context.Context, k cluster.Kind, path string) error {
	d, err := s.driver(k)
	if err != nil {
		return err
	}
	return d.Save(ctx, path)
}

// Barrier waits for all drivers, side by side.
func (s *Set) Barrier(ctx context.Context) error {
	errs := make([]error, len(s.drivers))
	var wg sync.WaitGroup
	for i, d := range s.drivers {
		wg.Go(func() {
			if err := d.Barrier(ctx); err != nil {
				errs[i] = fmt.Errorf("driver %s: %w", d.Name(), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// BarrierKind waits for the driver of one type.
func (s *Set) BarrierKind(ctx context.Context, k cluster.Kind) error {
	d, err := s.driver(k)
	if err != nil {
		return err
	}
	return d.Barrier(ctx)
}

// Watch calls hint after lifecycle events of any driver, until the context ends.
func (s *Set) Watch(ctx context.Context, hint func()) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range s.drivers {
		g.Go(func() error { return d.Watch(ctx, hint) })
	}
	return g.Wait()
}

// Capacity is what this node can carry: the largest that any driver says, of
// those that can be asked.
func (s *Set) Capacity(ctx context.Context) (cluster.Capacity, error) {
	var out cluster.Capacity
	var errs []error
	for _, d := range s.drivers {
		c, err := d.Capacity(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("driver %s: %w", d.Name(), err))
			continue
		}
		out.Memory, out.CPUs = max(out.Memory, c.Memory), max(out.CPUs, c.CPUs)
	}
	if out == (cluster.Capacity{}) {
		return out, errors.Join(errs...)
	}
	return out, nil
}

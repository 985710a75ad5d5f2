package main

import (
	"context"
	"path/filepath"
	"sync"

	"github.com/shaman-ha/shaman/internal/cluster"
)

// veMemory is what every VE of the benchmark needs, in bytes.
const veMemory cluster.Bytes = 64 << 20

// instant is a driver whose verbs take no time: what is left is shaman's own.
type instant struct {
	mu   sync.Mutex
	ves  map[string]cluster.VEState
	prio uint32 // of all
	hint chan struct{}
}

func newInstant() *instant {
	return &instant{ves: map[string]cluster.VEState{}, hint: make(chan struct{}, 1)}
}

// Name implements hypervisor.Driver.
func (*instant) Name() string { return "instant" }

// Kinds implements hypervisor.Driver.
func (*instant) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindCT} }

// List implements hypervisor.Driver.
func (d *instant) List(context.Context) ([]cluster.VE, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]cluster.VE, 0, len(d.ves))
	for path, state := range d.ves {
		out = append(out, cluster.VE{Kind: cluster.KindCT, Name: filepath.Base(path), Path: path, State: state, HA: true, Priority: d.prio, Memory: veMemory})
	}
	return out, nil
}

// Register implements hypervisor.Driver.
func (d *instant) Register(_ context.Context, path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.ves[path]; !known {
		d.ves[path] = cluster.VEStopped
	}
	return nil
}

// Unregister implements hypervisor.Driver.
func (d *instant) Unregister(_ context.Context, path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.ves, path)
	return nil
}

// Start implements hypervisor.Driver.
func (d *instant) Start(_ context.Context, path string) error {
	d.set(path, cluster.VERunning)
	return nil
}

// Stop implements hypervisor.Driver.
func (d *instant) Stop(_ context.Context, path string, _ bool) error {
	d.set(path, cluster.VEStopped)
	return nil
}

func (d *instant) set(path string, state cluster.VEState) {
	d.mu.Lock()
	d.ves[path] = state
	d.mu.Unlock()
	select {
	case d.hint <- struct{}{}:
	default:
	}
}

// Barrier implements hypervisor.Driver.
func (*instant) Barrier(context.Context) error { return nil }

// Watch implements hypervisor.Driver.
func (d *instant) Watch(ctx context.Context, hint func()) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-d.hint:
			hint()
		}
	}
}

// Capacity implements hypervisor.Driver.
func (*instant) Capacity(context.Context) (cluster.Capacity, error) {
	return cluster.Capacity{Memory: 4 << 40, CPUs: 64}, nil
}

// Configure implements hypervisor.Driver.
func (*instant) Configure(context.Context, string, cluster.VEParams) error { return nil }

// Save implements hypervisor.Driver.
func (*instant) Save(context.Context, string) error { return nil }

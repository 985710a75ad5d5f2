package libvirt

import (
	"context"
	"fmt"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
)

// Stop implements hypervisor.Driver.
func (d *Driver) Stop(ctx context.Context, path string, force bool) error {
	if _, ok := d.id(path); !ok {
		return nil
	}
	if force {
		end := d.turns.Rush(path)
		defer end()
	}
	return d.verb(ctx, "stop", path, func(id uuid) error {
		err := d.stop(ctx, path, id, force)
		if isCode(err, golibvirt.ErrNoDomain) {
			return nil
		}
		return err
	})
}

func (d *Driver) stop(ctx context.Context, path string, id uuid, force bool) error {
	began := time.Now()
	var asked time.Time
	var refused error // the first request, by the hypervisor
	for requests := 0; ; {
		x, err := d.look(ctx, id)
		if err != nil {
			return err
		}
		if s, _ := x.judge(d.lxc()); s == cluster.VEStopped {
			if requests > 0 && !force && d.lxc() {
				return d.stopped.remember(id)
			}
			return nil
		}
		force = force || d.turns.Rushed(path)
		switch {
		case !force && refused != nil:
			return refused
		case force:
			err = d.act(ctx, id, nil, func(l *golibvirt.Libvirt) error { return l.DomainDestroyFlags(x.Domain, 0) })
			if err != nil && !isCode(err, golibvirt.ErrOperationInvalid) { // else it has ended meanwhile, or has not begun yet
				return err
			}
		case time.Since(began) > d.o.StopTimeout:
			return fmt.Errorf("it did not shut down within %s", d.o.StopTimeout)
		case requests == 0 || time.Since(asked) > askAgain:
			how := d.shutdownBy(requests)
			err = d.act(ctx, id, d.hurry(ctx, path, id, 0), func(l *golibvirt.Libvirt) error { return l.DomainShutdownFlags(x.Domain, how) })
			if err != nil {
				d.o.Logger.Warn("a guest could not be asked to shut down", zap.String("ve", path), zap.Error(err))
				// It may have ended under the request, which the next look tells. A
				// container is asked another way the next time.
				if requests == 0 && !isCode(err, golibvirt.ErrOperationInvalid) && !d.lxc() {
					refused = err
				}
			}
			requests, asked = requests+1, time.Now()
		}
		select {
		case <-ctx.Done():
			return driverkit.Ended(ctx)
		case <-time.After(pollState):
		}
	}
}

// shutdownBy is how a guest is asked. libvirt-lxc left to itself says that it has
// asked, and some containers never hear of it: the two ways are taken in turn.
func (d *Driver) shutdownBy(request int) golibvirt.DomainShutdownFlagValues {
	switch {
	case !d.lxc():
		return golibvirt.DomainShutdownDefault
	case request%2 == 0:
		return golibvirt.DomainShutdownSignal
	}
	return golibvirt.DomainShutdownInitctl
}

// Barrier implements hypervisor.Driver. What this daemon sent is waited for by
// the turns. What another program sent, or this daemon before it was started
// anew, came to libvirtd before the question of this call, and shows as a domain
// that is starting.
func (d *Driver) Barrier(ctx context.Context) error {
	if err := d.turns.Wait(ctx); err != nil {
		return err
	}
	for {
		starting := ""
		err := d.pool.ask(ctx, func(l *golibvirt.Libvirt) error {
			all, err := d.allStates(l)
			for _, x := range all {
				if x.starting() {
					starting = x.Name
				}
			}
			return err
		})
		if err != nil {
			return cannotAsk("wait for libvirt", err)
		}
		if starting == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("domain %s is being started; if that does not end, 'virsh destroy' it: %w", starting, driverkit.Ended(ctx))
		case <-time.After(pollState):
		}
	}
}

// Configure implements hypervisor.Driver.
func (d *Driver) Configure(ctx context.Context, path string, p cluster.VEParams) error {
	return d.verb(ctx, "configure", path, func(id uuid) error {
		var x domain
		var have definition
		var err error
		err = d.pool.ask(ctx, func(l *golibvirt.Libvirt) error {
			y, err := state(l, id)
			if err != nil {
				return err
			}
			text, err := dump(l, y.Domain)
			if err != nil {
				return err
			}
			def, err := d.place().parse(text)
			x, have = y, def
			return err
		})
		if err != nil || (p.HA == nil && p.Priority == nil) {
			return err
		}
		if p.HA != nil {
			have.ha = *p.HA
		}
		if p.Priority != nil {
			have.priority = *p.Priority
		}
		flags := golibvirt.DomainAffectConfig
		persistent, err := d.persistent(ctx, x)
		if err != nil {
			return err
		}
		if !persistent {
			flags = golibvirt.DomainAffectLive
		} else if x.ID != inactive {
			flags |= golibvirt.DomainAffectLive
		}
		err = d.act(ctx, id, nil, func(l *golibvirt.Libvirt) error {
			return l.DomainSetMetadata(x.Domain, int32(golibvirt.DomainMetadataElement), golibvirt.OptString{element(have.ha, have.priority)},
				golibvirt.OptString{"shaman"}, golibvirt.OptString{metadataURI}, flags)
		})
		d.defs.forget(id)
		return err
	})
}

// Capacity implements hypervisor.Driver.
func (d *Driver) Capacity(ctx context.Context) (cluster.Capacity, error) {
	c := cluster.Capacity{Memory: d.o.HostMemory}
	err := d.pool.ask(ctx, func(l *golibvirt.Libvirt) error {
		_, kib, cpus, _, _, _, _, _, err := l.NodeGetInfo()
		if c.Memory == 0 {
			c.Memory = cluster.Bytes(kib) << 10
		}
		c.CPUs = int(cpus)
		return err
	})
	if err != nil {
		return cluster.Capacity{}, cannotAsk("ask libvirt what this node can carry", err)
	}
	return c, nil
}

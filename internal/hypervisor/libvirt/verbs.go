package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
)

const (
	// pollState is how often a domain is looked at that is about to change.
	pollState = 50 * time.Millisecond
	// askAgain is how often a guest is asked to shut down: one that boots does not
	// hear the first time.
	askAgain = 5 * time.Second
	// startTakes is how long a start is left alone by who wants the VE stopped: one
	// that was cut short is a failed attempt.
	startTakes = 10 * time.Second
)

// verb runs f in the VE's turn, and says what was done to what.
func (d *Driver) verb(ctx context.Context, what, path string, f func(id uuid) error) error {
	id, ok := d.id(path)
	if !ok {
		return fmt.Errorf("%s %s: it is not of the form %s: %w", what, path, d.path(uuid{}), cluster.ErrNoVE)
	}
	if err := d.turns.Do(ctx, path, func() error { return classify(f(id)) }); err != nil {
		return fmt.Errorf("%s %s: %w", what, path, err)
	}
	return nil
}

// look asks for the domain's state.
func (d *Driver) look(ctx context.Context, id uuid) (domain, error) {
	return question(ctx, &d.pool, func(l *golibvirt.Libvirt) (domain, error) { return state(l, id) })
}

// settled waits until the domain surely runs or is stopped.
func (d *Driver) settled(ctx context.Context, id uuid) (x domain, s cluster.VEState, err error) {
	for {
		if x, err = d.look(ctx, id); err != nil {
			return x, "", err
		}
		if s, _ = x.judge(d.lxc()); s != cluster.VEUnknown {
			return x, s, nil
		}
		select {
		case <-ctx.Done():
			return x, s, fmt.Errorf("domain %s is between two states (%d, reason %d; see 'virsh domstate --reason'): %w", x.Name, x.state, x.reason, driverkit.Ended(ctx))
		case <-time.After(pollState):
		}
	}
}

// act sends what has an effect on a domain, and returns when that is over.
//
// If the connection ends before the answer, libvirtd has ended, as a rule: then
// nothing more is carried out, but the next libvirtd takes up, or clears away,
// what the last one left. It can also have dropped this client alone, and goes on
// with the work. In both cases it is over once a new connection says of the
// domain that nobody works on it: libvirtd takes requests up in the order in
// which they came, so ours comes after the lost one.
func (d *Driver) act(ctx context.Context, id uuid, impatient func(), f func(*golibvirt.Libvirt) error) error {
	unsure, err := d.pool.send(ctx, impatient, f)
	if !unsure {
		return err
	}
	d.o.Logger.Warn("libvirtd ended the connection while it carried out a request; waiting until it says how that ended", zap.String("ve", id.String()), zap.Error(err))
	for free := false; !free; {
		time.Sleep(pollState) // not bound to ctx: the turn is held until it is known
		qctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialTimeout)
		free = d.free(qctx, id) == nil
		cancel()
	}
	return classify(err)
}

var errBusy = errors.New("libvirt works on the domain")

// free returns nil if nobody works on the domain.
func (d *Driver) free(ctx context.Context, id uuid) error {
	err := d.pool.ask(ctx, func(l *golibvirt.Libvirt) error {
		x, err := state(l, id)
		if err != nil {
			return err
		}
		if s, _ := x.judge(d.lxc()); s == cluster.VEUnknown && x.starting() {
			return errBusy
		}
		if x.ID == inactive {
			return nil
		}
		control, _, _, err := l.DomainGetControlInfo(x.Domain, 0)
		switch {
		case unsupported(err), isCode(err, golibvirt.ErrOperationInvalid): // it has ended meanwhile
			return nil
		case err != nil:
			return err
		case golibvirt.DomainControlState(control) == golibvirt.DomainControlJob, golibvirt.DomainControlState(control) == golibvirt.DomainControlOccupied:
			return errBusy
		}
		return nil
	})
	if isCode(err, golibvirt.ErrNoDomain) {
		return nil
	}
	return err
}

// starting tells that a start is under way, or has been left half-way.
func (x domain) starting() bool {
	if x.ID == inactive {
		return false
	}
	return x.state == golibvirt.DomainShutoff || x.state == golibvirt.DomainNostate ||
		(x.state == golibvirt.DomainPaused && golibvirt.DomainPausedReason(x.reason) == golibvirt.DomainPausedStartingUp)
}

// Register implements hypervisor.Driver. A managed save of the VE on this node
// is removed: the VE may have run elsewhere since, and its memory of that time on
// the disks of today would destroy them.
func (d *Driver) Register(ctx context.Context, path string) error {
	if _, ok := d.id(path); !ok {
		return fmt.Errorf("register %s: definitions are files %s", path, d.path(uuid{}))
	}
	return d.verb(ctx, "register", path, func(id uuid) error {
		x, err := d.look(ctx, id)
		defined := err == nil
		if err != nil && !isCode(err, golibvirt.ErrNoDomain) {
			return err
		}
		persistent := false
		if defined {
			if persistent, err = d.persistent(ctx, x); err != nil {
				return err
			}
		}
		// A running one keeps its definition; one that is not kept by libvirt gets one.
		if x.ID == inactive && defined || !defined || !persistent {
			// What is defined here and was never saved is the only definition there is.
			if err := d.define(ctx, id, path); err != nil && (!defined || !errors.Is(err, fs.ErrNotExist)) {
				return err
			}
		}
		if x, err = d.look(ctx, id); err != nil {
			return err
		}
		if x.ID == inactive && !d.lxc() {
			if err := d.dropSave(ctx, x); err != nil {
				return err
			}
		}
		return d.act(ctx, id, nil, func(l *golibvirt.Libvirt) error { return l.DomainSetAutostart(x.Domain, 0) })
	})
}

func (d *Driver) persistent(ctx context.Context, x domain) (bool, error) {
	return question(ctx, &d.pool, func(l *golibvirt.Libvirt) (bool, error) {
		n, err := l.DomainIsPersistent(x.Domain)
		return n == 1, err
	})
}

// define gives libvirt the definition on the shared file system.
func (d *Driver) define(ctx context.Context, id uuid, path string) error {
	text, err := d.files.read(id, path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no definition: %w; 'shaman add' on the node that has the VE writes it", err)
	}
	if err != nil {
		return driverkit.Classify(err)
	}
	def, err := d.place().parse(text)
	if err != nil {
		return fmt.Errorf("%w; save it anew on the node that has the VE ('shaman sync')", err)
	}
	if def.uuid != id {
		return fmt.Errorf("the definition is of UUID %s; a file of another name was copied there: put the right one back", def.uuid)
	}
	same := false
	err = d.pool.ask(ctx, func(l *golibvirt.Libvirt) error {
		dom, err := l.DomainLookupByUUID(golibvirt.UUID(id))
		if err != nil {
			return err
		}
		have, err := dump(l, dom)
		persistent, perr := l.DomainIsPersistent(dom)
		same = have == text && persistent == 1
		return errors.Join(err, perr)
	})
	if err != nil && !isCode(err, golibvirt.ErrNoDomain) {
		return err
	}
	if same {
		return nil
	}
	err = d.act(ctx, id, nil, func(l *golibvirt.Libvirt) error {
		_, err := l.DomainDefineXML(text)
		return err
	})
	d.defs.forget(id)
	if isCode(err, golibvirt.ErrOperationFailed, golibvirt.ErrDomExist) {
		return fmt.Errorf("%w; rename or undefine the domain of this node that has the name %q or the UUID %s", err, def.name, id)
	}
	return err
}

func (d *Driver) dropSave(ctx context.Context, x domain) error {
	saved := false
	err := d.pool.ask(ctx, func(l *golibvirt.Libvirt) error {
		n, err := l.DomainHasManagedSaveImage(x.Domain, 0)
		saved = n == 1
		return err
	})
	if err != nil || !saved {
		if unsupported(err) {
			return nil
		}
		return err
	}
	d.o.Logger.Warn("removing the managed save of a VE: it may have run elsewhere since, so it starts from its disks", zap.String("ve", x.Name))
	return d.act(ctx, uuid(x.UUID), nil, func(l *golibvirt.Libvirt) error { return l.DomainManagedSaveRemove(x.Domain, 0) })
}

// Unregister implements hypervisor.Driver. Disks and NVRAM stay. A managed save
// goes, for the reason that Register gives, and libvirt's list of snapshots.
func (d *Driver) Unregister(ctx context.Context, path string) error {
	if _, ok := d.id(path); !ok {
		return nil
	}
	return d.verb(ctx, "unregister", path, func(id uuid) error {
		x, err := d.look(ctx, id)
		if isCode(err, golibvirt.ErrNoDomain) {
			return d.stopped.forget(id)
		}
		if err != nil {
			return err
		}
		if s, _ := x.judge(d.lxc()); s != cluster.VEStopped {
			return fmt.Errorf("it is %s; stop it first", s)
		}
		err = d.act(ctx, id, nil, func(l *golibvirt.Libvirt) error { return d.undefine(l, x.Domain) })
		d.defs.forget(id)
		if err != nil && !isCode(err, golibvirt.ErrNoDomain) {
			return err
		}
		return d.stopped.forget(id)
	})
}

func (d *Driver) undefine(l *golibvirt.Libvirt, dom golibvirt.Domain) error {
	if d.lxc() {
		return l.DomainUndefineFlags(dom, 0)
	}
	const base = golibvirt.DomainUndefineManagedSave | golibvirt.DomainUndefineSnapshotsMetadata
	err := l.DomainUndefineFlags(dom, base|golibvirt.DomainUndefineCheckpointsMetadata|golibvirt.DomainUndefineKeepNvram)
	if isCode(err, golibvirt.ErrInvalidArg) || unsupported(err) { // an old libvirt, or a hypervisor without NVRAM
		err = l.DomainUndefineFlags(dom, base)
	}
	return err
}

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, path string) error {
	return d.verb(ctx, "start", path, func(id uuid) error {
		x, s, err := d.settled(ctx, id)
		if err != nil || s == cluster.VERunning {
			return err
		}
		if err := d.stopped.forget(id); err != nil {
			return err
		}
		// Who stops it by force need not wait for a start that hangs.
		err = d.act(ctx, id, d.hurry(ctx, path, id, startTakes), func(l *golibvirt.Libvirt) error {
			_, err := l.DomainCreateWithFlags(x.Domain, 0)
			return err
		})
		if isCode(err, golibvirt.ErrOperationInvalid) { // somebody else has started it
			if _, s, lerr := d.settled(ctx, id); lerr == nil && s == cluster.VERunning {
				return nil
			}
		}
		return err
	})
}

// hurry returns what ends the domain by force if somebody waits for that, once
// the call under way has had its time.
func (d *Driver) hurry(ctx context.Context, path string, id uuid, patience time.Duration) func() {
	next := time.Now().Add(patience)
	return func() {
		if !d.turns.Rushed(path) || time.Now().Before(next) {
			return
		}
		next = time.Now().Add(askAgain)
		qctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askAgain)
		go func() {
			defer cancel()
			// Its outcome is seen by who waits for the turn. The question's deadline does
			// not matter: to destroy twice does no harm.
			_ = d.pool.ask(qctx, func(l *golibvirt.Libvirt) error {
				x, err := state(l, id)
				if err != nil || x.ID == inactive {
					return err
				}
				return l.DomainDestroyFlags(x.Domain, 0)
			})
		}()
	}
}

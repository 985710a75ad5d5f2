package libvirt

import (
	"context"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// domain is a domain as libvirt knows it now.
type domain struct {
	golibvirt.Domain // its ID is -1 while it is not active
	state            golibvirt.DomainState
	reason           int32
	autostart        bool
	outgoing         bool // it is paused by a migration to another node
}

// inactive is libvirt's word for "no process of it is there".
const inactive = -1

// judge reads libvirt's state. What is active holds its disks, so it runs,
// unless libvirt itself is between two states.
func (x domain) judge(lxc bool) (cluster.VEState, cluster.StopCause) {
	if x.ID == inactive {
		switch x.state {
		case golibvirt.DomainShutoff, golibvirt.DomainCrashed:
			return cluster.VEStopped, x.cause(lxc)
		default: // asked for at different moments
			return cluster.VEUnknown, ""
		}
	}
	switch x.state {
	case golibvirt.DomainRunning, golibvirt.DomainBlocked, golibvirt.DomainShutdown, golibvirt.DomainPmsuspended, golibvirt.DomainCrashed:
		return cluster.VERunning, "" // crashed and active: kept for inspection, with its disks
	case golibvirt.DomainPaused:
		switch golibvirt.DomainPausedReason(x.reason) {
		case golibvirt.DomainPausedMigration:
			if x.outgoing {
				return cluster.VERunning, ""
			}
			// It waits for its memory, or nobody knows whether the other node has begun.
			return cluster.VEUnknown, ""
		case golibvirt.DomainPausedUnknown, golibvirt.DomainPausedStartingUp, golibvirt.DomainPausedPostcopy, golibvirt.DomainPausedPostcopyFailed:
			return cluster.VEUnknown, ""
		default: // by a user, an I/O error, a snapshot …
			return cluster.VERunning, ""
		}
	default:
		return cluster.VEUnknown, "" // no state, or shut off with its process still there: it is starting or ending
	}
}

// cause reads why a domain is off. A save was asked for by somebody, as a
// shutdown was. Destroyed can mean anything: a stop by force is no word of the
// guest, and libvirt-guests destroys at a host's shutdown.
//
// libvirt-lxc says "shutdown" of any end, a killed init as well: it is no word
// either. What this driver stopped itself is known apart from that.
func (x domain) cause(lxc bool) cluster.StopCause {
	if x.state == golibvirt.DomainCrashed {
		return cluster.CauseCrash
	}
	switch golibvirt.DomainShutoffReason(x.reason) {
	case golibvirt.DomainShutoffShutdown:
		if lxc {
			return cluster.CauseUnknown
		}
		return cluster.CauseStop
	case golibvirt.DomainShutoffSaved, golibvirt.DomainShutoffFromSnapshot:
		return cluster.CauseStop
	case golibvirt.DomainShutoffCrashed, golibvirt.DomainShutoffFailed, golibvirt.DomainShutoffDaemon:
		return cluster.CauseCrash
	default:
		return cluster.CauseUnknown
	}
}

// states asks for all domains and their states.
func (d *Driver) states(l *golibvirt.Libvirt) ([]domain, error) {
	auto, _, err := l.ConnectListAllDomains(1, golibvirt.ConnectListDomainsAutostart)
	if err != nil {
		return nil, err
	}
	selfStarting := make(map[uuid]bool, len(auto))
	for _, x := range auto {
		selfStarting[uuid(x.UUID)] = true
	}
	all, err := d.allStates(l)
	if err != nil {
		return nil, err
	}
	for i := range all {
		x := &all[i]
		x.autostart = selfStarting[uuid(x.UUID)]
		x.outgoing = x.leaves(l)
	}
	return all, nil
}

// leaves tells whether a domain that is paused by a migration is its source.
func (x domain) leaves(l *golibvirt.Libvirt) bool {
	if x.ID == inactive || x.state != golibvirt.DomainPaused || golibvirt.DomainPausedReason(x.reason) != golibvirt.DomainPausedMigration {
		return false
	}
	_, params, err := l.DomainGetJobStats(x.Domain, 0)
	if err != nil {
		return false // not known: then its state is not, either
	}
	for _, p := range params {
		if p.Field == golibvirt.DomainJobOperationStr {
			n, ok := number(p.Value)
			return ok && golibvirt.DomainJobOperation(n) == golibvirt.DomainJobOperationStrMigrationOut
		}
	}
	return false
}

func number(v golibvirt.TypedParamValue) (int32, bool) {
	switch n := v.I.(type) {
	case int32:
		return n, true
	case uint32:
		return int32(n), true
	}
	return 0, false
}

// allStates asks for all states in one call, where the hypervisor has that.
func (d *Driver) allStates(l *golibvirt.Libvirt) ([]domain, error) {
	stats, err := l.ConnectGetAllDomainStats(nil, uint32(golibvirt.DomainStatsState), 0)
	if err != nil && !unsupported(err) {
		return nil, err
	}
	if err == nil {
		out := make([]domain, 0, len(stats))
		for _, s := range stats {
			x := domain{Domain: s.Dom}
			for _, p := range s.Params {
				n, ok := number(p.Value)
				switch {
				case ok && p.Field == golibvirt.DomainStatsStateState:
					x.state = golibvirt.DomainState(n)
				case ok && p.Field == golibvirt.DomainStatsStateReason:
					x.reason = n
				}
			}
			out = append(out, x)
		}
		return out, nil
	}
	doms, _, err := l.ConnectListAllDomains(1, golibvirt.ConnectListDomainsActive|golibvirt.ConnectListDomainsInactive)
	if err != nil {
		return nil, err
	}
	out := make([]domain, 0, len(doms))
	for _, dom := range doms {
		x, err := state(l, uuid(dom.UUID))
		if isCode(err, golibvirt.ErrNoDomain) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

// state asks for one domain.
func state(l *golibvirt.Libvirt, id uuid) (domain, error) {
	dom, err := l.DomainLookupByUUID(golibvirt.UUID(id))
	if err != nil {
		return domain{}, err
	}
	s, reason, err := l.DomainGetState(dom, 0)
	if err != nil {
		return domain{}, err
	}
	x := domain{Domain: dom, state: golibvirt.DomainState(s), reason: reason}
	x.outgoing = x.leaves(l)
	return x, nil
}

// List implements hypervisor.Driver. States are always asked for; definitions
// are those that were last read, and the shared file system is not waited for.
func (d *Driver) List(ctx context.Context) ([]cluster.VE, error) {
	var all []domain
	var out []cluster.VE
	err := d.pool.ask(ctx, func(l *golibvirt.Libvirt) (err error) {
		if all, err = d.states(l); err != nil {
			return err
		}
		ves := make([]cluster.VE, 0, len(all))
		for _, x := range all {
			k, ok := d.defs.get(uuid(x.UUID))
			if !ok {
				if k, err = d.read(l, x.Domain); isCode(err, golibvirt.ErrNoDomain) {
					continue // undefined since
				} else if err != nil {
					return err
				}
			}
			v := d.ve(x, k)
			d.stopped.see(uuid(x.UUID), &v)
			ves = append(ves, v)
		}
		out = ves
		return nil
	})
	if err != nil {
		return nil, cannotAsk("list the domains", err)
	}
	old, done := d.defs.keep(all)
	if len(old) > 0 {
		d.reread(ctx, old, done)
	}
	ids := make([]uuid, 0, len(all))
	for _, x := range all {
		ids = append(ids, uuid(x.UUID))
	}
	d.files.refresh(d.path, ids)
	return out, nil
}

// cannotAsk is the error of a question: whatever it is, nothing is known.
func cannotAsk(what string, err error) error {
	return fmt.Errorf("%s: %w: %w", what, cluster.ErrCannotAsk, classify(err))
}

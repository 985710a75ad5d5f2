package libvirt

import (
	"context"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/shaman-ha/shaman/internal/cluster"
)

// A definition is read again when libvirt says that it has changed, and at the
// latest after these times: a change can be missed while nobody watches.
const (
	definitionAge    = 2 * time.Second
	definitionAgeFar = time.Minute // while libvirt's events come in
)

// definitions are those of this node, as they were last read: reading all of
// 1,000 takes longer than asking for all their states.
type definitions struct {
	mu      sync.Mutex
	m       map[uuid]*known
	watched int
	reading bool
	changes uint64 // counts what was forgotten, so that no older answer comes back
}

type known struct {
	definition
	err error // it was read, and cannot be understood
	at  time.Time
}

// forget makes the next list read the definition anew.
func (d *definitions) forget(id uuid) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.m, id)
	d.changes++
}

// forgetAll is for when events were missed.
func (d *definitions) forgetAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.m = nil
	d.changes++
}

// watch tells that events come in, until end is called.
func (d *definitions) watch() (end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watched++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.watched--
	}
}

func (d *definitions) get(id uuid) (known, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k, ok := d.m[id]
	if !ok {
		return known{}, false
	}
	return *k, true
}

func (d *definitions) mark() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changes
}

// set keeps what was read; since is the mark from before it was asked for.
func (d *definitions) set(id uuid, k known, since uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changes != since {
		return
	}
	if d.m == nil {
		d.m = map[uuid]*known{}
	}
	d.m[id] = &k
}

// keep forgets all domains but those that are there, and tells which of them are
// to be read in the background, once at a time: done is called then.
func (d *definitions) keep(there []domain) (old []domain, done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	age := definitionAge
	if d.watched > 0 {
		age = definitionAgeFar
	}
	seen := make(map[uuid]bool, len(there))
	for _, x := range there {
		seen[uuid(x.UUID)] = true
		if k := d.m[uuid(x.UUID)]; k != nil && time.Since(k.at) > age {
			old = append(old, x)
		}
	}
	for id := range d.m {
		if !seen[id] {
			delete(d.m, id)
		}
	}
	if d.reading || len(old) == 0 {
		return nil, func() {}
	}
	d.reading = true
	return old, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.reading = false
	}
}

// dump returns the domain's definition for its next start, without passwords:
// the live one would name this node's interfaces, labels and process.
func dump(l *golibvirt.Libvirt, dom golibvirt.Domain) (string, error) {
	return l.DomainGetXMLDesc(dom, golibvirt.DomainXMLInactive)
}

// read reads one definition and keeps it.
func (d *Driver) read(l *golibvirt.Libvirt, dom golibvirt.Domain) (known, error) {
	id, since := uuid(dom.UUID), d.defs.mark()
	text, err := dump(l, dom)
	if err != nil {
		return known{}, err
	}
	k := known{at: time.Now()}
	k.definition, k.err = d.place().parse(text)
	if k.err != nil { // libvirt wrote it; show the domain all the same
		k.definition = definition{text: text, name: dom.Name, uuid: id, unfit: k.err.Error()}
	}
	d.defs.set(id, k, since)
	return k, nil
}

func (d *Driver) place() place { return place{d.o.Mount} }

// rereadTimeout ends a background pass that libvirtd does not answer.
const rereadTimeout = time.Minute

// reread reads old definitions in the background, for the next list.
func (d *Driver) reread(ctx context.Context, old []domain, done func()) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rereadTimeout)
	go func() {
		defer cancel()
		defer done()
		_ = d.pool.ask(ctx, func(l *golibvirt.Libvirt) error { // what could not be read is tried at the next list
			for _, x := range old {
				if ctx.Err() != nil {
					return nil
				}
				if _, err := d.read(l, x.Domain); lost(err) {
					return err
				}
			}
			return nil
		})
	}()
}

// ve joins what is known of a domain.
func (d *Driver) ve(x domain, k known) cluster.VE {
	v := cluster.VE{
		Kind: d.o.Kind, Name: k.name, Path: d.path(k.uuid), UUID: k.uuid.String(), Memory: k.memory, VCPUs: k.vcpus,
		HA: k.ha && k.unfit == "", Priority: k.priority, Autostart: x.autostart, Unfit: k.unfit,
		Stale: d.files.stale(k.uuid, k.text),
	}
	if !k.asked {
		v.Unfit = ""
	}
	v.State, v.Cause = x.judge(d.lxc())
	return v
}

package scripts

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

const (
	// ageMost bounds the age of a look, however many resources there are.
	ageMost = time.Minute
	// ageShare is the part of the time that may be spent with looking.
	ageShare = 10
	// watchMin is the least pause between two looks that nobody asked for.
	watchMin = 100 * time.Millisecond
	// killGrace is how long a script may take to be gone after it was killed.
	killGrace = time.Second
	// enumAge is how old the answer of enumerate may be.
	enumAge = 10 * time.Second
)

// enumeration is what enumerate printed last.
type enumeration struct {
	sem       chan struct{} // one at a time
	mu        sync.Mutex
	began     time.Time
	answered  map[cluster.Kind]bool // that have, once or more
	said      map[cluster.Kind]string
	forgotten map[string]time.Time // when what was enumerated was unregistered
}

func (e *enumeration) init() {
	e.sem = make(chan struct{}, 1)
	e.answered, e.said, e.forgotten = map[cluster.Kind]bool{}, map[cluster.Kind]string{}, map[string]time.Time{}
}

func (e *enumeration) forget(path string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.forgotten[path] = time.Now()
}

// age is how old a look may be. It grows so that looking takes at most a tenth of
// the time, up to a minute.
func (d *Driver) age(n int) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.cost * time.Duration(n) / parallel
	return max(d.o.DescribeAge, min(ageShare*all, ageMost))
}

// learn takes the time that a look took into the average.
func (d *Driver) learn(took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cost = (7*d.cost + took) / 8
}

func (d *Driver) newVE(path string, kind cluster.Kind, c conf) *ve {
	v := newVE(path, kind, c)
	if m := d.o.Mount; m != "" && !strings.HasPrefix(path, filepath.Clean(m)+"/") {
		v.unfit = fmt.Sprintf("%s is not on the shared file system %s", path, m)
	}
	return v
}

// enumerate brings what is known on this node, and not registered, up to date.
func (d *Driver) enumerate(ctx context.Context) error {
	select {
	case d.enum.sem <- struct{}{}:
		defer func() { <-d.enum.sem }()
	case <-ctx.Done():
		return driverkit.Ended(ctx)
	}
	d.enum.mu.Lock()
	due := time.Since(d.enum.began) > max(enumAge, d.o.DescribeAge) || d.enum.began.IsZero()
	d.enum.mu.Unlock()
	if !due {
		return nil
	}
	began := time.Now()
	var g errgroup.Group
	g.SetLimit(parallel)
	var mu sync.Mutex
	var errs []error
	for _, kind := range d.kinds {
		g.Go(func() error {
			err := d.enumerateKind(ctx, kind, began)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.enum.mu.Lock()
	defer d.enum.mu.Unlock()
	d.enum.began = began
	for path, at := range d.enum.forgotten {
		if at.Before(began) {
			delete(d.enum.forgotten, path)
		}
	}
	return nil
}

// enumerateKind runs the scripts for enumerate of one type. When they fail the
// answer before stands; without one, nothing is known.
func (d *Driver) enumerateKind(ctx context.Context, kind cluster.Kind, began time.Time) error {
	ectx, cancel := context.WithTimeout(ctx, d.o.DescribeTimeout)
	defer cancel()
	var all []found
	err := driverkit.Guarded(ectx, func() error {
		env := []string{"SHAMAN_NODE=" + string(d.o.Node), "SHAMAN_MOUNT=" + d.o.Mount}
		out, _, err := runChain(ectx, d.finder(), nil, purposeEnumerate, kind, nil, env)
		if err == nil {
			all, err = parseEnumeration(out)
		}
		return err
	})
	if ctx.Err() != nil {
		return driverkit.Ended(ctx)
	}
	d.enum.mu.Lock()
	defer d.enum.mu.Unlock()
	text := cluster.OneLine(err)
	if text != "" && text != d.enum.said[kind] {
		d.o.Logger.Error("the resources of a type cannot be enumerated", zap.String("type", string(kind)), zap.Error(err))
	}
	d.enum.said[kind] = text
	if err != nil {
		if d.enum.answered[kind] {
			return nil
		}
		return fmt.Errorf("%w: enumerate the resources of type %s: %w; without an answer it is not known what runs here", cluster.ErrCannotAsk, kind, err)
	}
	d.enum.answered[kind] = true
	d.merge(kind, all, began)
	return nil
}

// merge makes what was enumerated known, and forgets what was and is not any more.
func (d *Driver) merge(kind cluster.Kind, all []found, began time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	here := map[string]bool{}
	for _, f := range all {
		if at, ok := d.enum.forgotten[f.path]; ok && at.After(began) {
			continue
		}
		here[f.path] = true
		v := d.ves[f.path]
		if v == nil {
			v = d.newVE(f.path, kind, nil)
			d.ves[f.path] = v
		}
		v.mu.Lock()
		v.given = f.name
		v.mu.Unlock()
	}
	maps.DeleteFunc(d.ves, func(path string, v *ve) bool { return v.kind == kind && !here[path] && !v.isRegistered() })
}

// List implements hypervisor.Driver. A resource that cannot be described is
// listed as unknown. What was not changed by this driver is as it was at most
// age ago.
func (d *Driver) List(ctx context.Context) ([]cluster.VE, error) {
	if ctx.Err() != nil {
		return nil, driverkit.Ended(ctx)
	}
	if err := d.enumerate(ctx); err != nil {
		return nil, err
	}
	ves := d.all()
	need := time.Now().Add(-d.age(len(ves)))
	for _, v := range ves {
		if !v.fresh(need) {
			d.fly(ctx, v)
		}
	}
	out := make([]cluster.VE, 0, len(ves))
	for _, v := range ves {
		if err := d.await(ctx, v, need); err != nil {
			return nil, err
		}
		e, err := v.report()
		d.complain(v, err)
		if d.get(v.path) == v { // it was not unregistered meanwhile
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b cluster.VE) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// await waits until there is a look at v that is young enough. It does not wait
// for one that did not answer in time the last time.
func (d *Driver) await(ctx context.Context, v *ve, need time.Time) error {
	for !v.fresh(need) {
		f, stuck := d.fly(ctx, v)
		if stuck {
			return nil
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return fmt.Errorf("describe %s: %w", v.path, driverkit.Ended(ctx))
		}
	}
	return nil
}

// fly has v looked at in the background, unless it is already.
func (d *Driver) fly(ctx context.Context, v *ve) (f *flight, stuck bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.flight == nil {
		v.flight = &flight{done: make(chan struct{})}
		go d.flight(context.WithoutCancel(ctx), v, v.flight, v.stuck) // its answer is of use for the next list too
	}
	return v.flight, v.stuck
}

func (d *Driver) flight(ctx context.Context, v *ve, f *flight, suspect bool) {
	slots := d.looks
	if suspect {
		slots = d.suspects // those that hang must not hold up the others
	}
	slots <- struct{}{}
	began := time.Now()
	_, err := d.look(ctx, v)
	<-slots
	v.mu.Lock()
	v.stuck = err != nil && time.Since(began) >= d.o.DescribeTimeout || v.hangs > 0
	v.flight = nil
	v.mu.Unlock()
	close(f.done)
}

// complain logs that a resource cannot be described, once, and once that it can again.
func (d *Driver) complain(v *ve, err error) {
	text := cluster.OneLine(err)
	v.mu.Lock()
	said := v.said
	v.said = text
	v.mu.Unlock()
	switch text {
	case said:
	case "":
		d.o.Logger.Info("a resource can be described again", zap.String("ve", v.path))
	default:
		d.o.Logger.Error("a resource cannot be described; its state counts as unknown, and it is neither started nor taken for stopped", zap.String("ve", v.path), zap.Error(err))
	}
}

// Watch implements hypervisor.Driver. What scripts hint at is told at once; all
// other changes when the next look finds them.
func (d *Driver) Watch(ctx context.Context, hint func()) error {
	remove := d.hints.Add(hint)
	defer remove()
	go func() {
		if err := watchDir(ctx, d.hintDir(), d.hinted); err != nil {
			d.o.Logger.Warn("scripts' hints are not seen; changes are found by looking", zap.Error(err))
		}
	}()
	was := map[string]cluster.VEState{}
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(max(d.age(len(was)), watchMin)):
		}
		ves, err := d.List(ctx)
		if err != nil {
			continue // whoever lists is told
		}
		now := make(map[string]cluster.VEState, len(ves))
		for _, v := range ves {
			now[v.Path] = v.State
		}
		if !first && !maps.Equal(was, now) {
			hint()
		}
		was = now
	}
}

// hinted is called with the name of a hint that was touched; "" = any.
func (d *Driver) hinted(key string) {
	for _, v := range d.all() {
		if key == "" || v.key == key {
			v.changed()
		}
	}
	d.hints.Hint()
}

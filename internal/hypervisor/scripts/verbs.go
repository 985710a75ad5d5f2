package scripts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/shaman-ha/shaman/internal/cluster"
	"github.com/shaman-ha/shaman/internal/hypervisor/driverkit"
)

// rushPoll is how often a graceful stop looks whether somebody wants it by force.
const rushPoll = 10 * time.Millisecond

// forceLook is how long a stop by force waits for a look that could make it needless.
const forceLook = 2 * time.Second

// The pauses between two looks at a resource that is not yet where it should be.
const (
	confirmMin = 20 * time.Millisecond
	confirmMax = time.Second
)

// look runs describe. What it cannot tell is an error that wraps ErrCannotAsk.
func (d *Driver) look(ctx context.Context, v *ve) (description, error) {
	began := time.Now()
	lctx, cancel := context.WithTimeout(ctx, d.o.DescribeTimeout)
	defer cancel()
	d.readParams(lctx, v)
	desc, err := d.describe(lctx, v)
	switch {
	case errors.Is(err, cluster.ErrNoVE):
		desc, err = description{state: cluster.VEStopped}, nil // it does not run here, then
	case err != nil && ctx.Err() != nil:
		return desc, err // it was not given the time: nothing is learned of it
	case err != nil && !errors.Is(err, cluster.ErrCannotAsk):
		err = fmt.Errorf("%w: %w", cluster.ErrCannotAsk, err)
	}
	if err == nil {
		d.learn(time.Since(began))
	}
	v.set(began, desc, err)
	return desc, err
}

// describe runs the scripts for describe. It changes nothing, so it needs no turn,
// and one that cannot be killed, since it hangs in the kernel, is not waited for;
// but no other is begun until it is gone.
func (d *Driver) describe(ctx context.Context, v *ve) (description, error) {
	v.mu.Lock()
	hangs := v.hangs > 0
	v.mu.Unlock()
	if hangs {
		return description{}, fmt.Errorf("%w: a describe that was killed hangs in the kernel; it looks at something, the shared file system for one, that does not answer", cluster.ErrCannotAsk)
	}
	type result struct {
		desc description
		err  error
	}
	done := make(chan result, 1)
	over := make(chan struct{})
	go func() {
		defer close(over)
		out, err := d.run(ctx, v, purposeDescribe, false)
		var desc description
		if err == nil {
			desc, err = parseDescription(out)
		}
		done <- result{desc, err}
	}()
	select {
	case r := <-done:
		return r.desc, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done: // it was killed, or has just made it
		return r.desc, r.err
	case <-time.After(killGrace):
	}
	v.mu.Lock()
	v.hangs++
	v.mu.Unlock()
	go func() {
		<-over
		v.mu.Lock()
		defer v.mu.Unlock()
		v.hangs--
	}()
	return description{}, driverkit.Ended(ctx)
}

// readParams has the parameter file read when it was not for a while. It waits
// only if it was never read: the shared file system may hang.
func (d *Driver) readParams(ctx context.Context, v *ve) {
	v.mu.Lock()
	known, due := v.conf != nil, time.Since(v.confAt) > confAge && !v.reading
	v.reading = v.reading || due
	v.mu.Unlock()
	if !due {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		began := time.Now()
		c, err := readConf(v.path)
		v.mu.Lock()
		defer v.mu.Unlock()
		v.reading = false
		if err == nil && !v.confAt.After(began) {
			v.conf = c
		}
		if !v.confAt.After(began) {
			v.confAt = time.Now() // one that cannot be read is not tried again at once either
		}
	}()
	if !known {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
}

// confAge is how old the parameters may be before they are read again.
const confAge = 30 * time.Second

// turn runs f when no other verb works on the resource.
func (d *Driver) turn(ctx context.Context, verb, path string, f func() error) error {
	if err := d.turns.Do(ctx, path, f); err != nil {
		return fmt.Errorf("%s %s: %w", verb, path, err)
	}
	return nil
}

var errNotRegistered = fmt.Errorf("it is not registered here: %w", cluster.ErrNoVE)

// Register implements hypervisor.Driver. It runs the scripts for relocate each
// time: this node takes the resource over.
func (d *Driver) Register(ctx context.Context, path string) error {
	return d.turn(ctx, "register", path, func() error {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return errors.New("want an absolute path, without . and .. in it")
		}
		c, err := readConf(path)
		if err != nil {
			return err
		}
		kind := c.kind(path)
		if !slices.Contains(d.kinds, kind) {
			return fmt.Errorf("its type is %q, for which this node had no scripts when the daemon was started (it has: %v); put the resource into a directory that is named after its type, or set TYPE in %s", kind, d.kinds, confFile(path, false))
		}
		v := d.get(path)
		switch {
		case v == nil, v.kind != kind && !v.isRegistered():
			v = d.newVE(path, kind, c)
		case v.kind != kind:
			return fmt.Errorf("it is registered with type %s, and its type is %s now; unregister it first", v.kind, kind)
		}
		v.setConf(c)
		if err := os.MkdirAll(d.runDir(v.key), 0o755); err != nil {
			return err
		}
		_, err = d.run(ctx, v, purposeRelocate, false)
		v.changed()
		if err != nil {
			return err
		}
		if err := d.save(v, c); err != nil {
			return err
		}
		v.mu.Lock()
		v.registered = true
		v.mu.Unlock()
		d.mu.Lock()
		d.ves[path] = v
		d.mu.Unlock()
		d.hints.Hint()
		return nil
	})
}

// Unregister implements hypervisor.Driver.
func (d *Driver) Unregister(ctx context.Context, path string) error {
	return d.turn(ctx, "unregister", path, func() error {
		v := d.get(path)
		if v == nil {
			return nil
		}
		desc, err := d.look(ctx, v)
		switch {
		case err != nil:
			return err
		case desc.state == cluster.VERunning:
			return errors.New("it runs; stop it first")
		case desc.state != cluster.VEStopped:
			return fmt.Errorf("%w: describe does not know whether it runs", cluster.ErrCannotAsk)
		case d.begun(v):
			return errors.New("how its last start ended is not known, and something of it may come yet; stop it first")
		}
		_, err = d.run(ctx, v, purposeRelease, false)
		v.changed()
		if err != nil && !errors.Is(err, cluster.ErrNoVE) {
			return err
		}
		if err := os.Remove(d.regFile(v)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		err = errors.Join(os.RemoveAll(d.runDir(v.key)), os.RemoveAll(filepath.Join(d.hintDir(), v.key)))
		d.enum.forget(path)
		d.mu.Lock()
		delete(d.ves, path)
		d.mu.Unlock()
		d.hints.Hint()
		return err
	})
}

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, path string) error {
	return d.turn(ctx, "start", path, func() error {
		v := d.get(path)
		if v == nil || !v.isRegistered() {
			return errNotRegistered
		}
		desc, err := d.look(ctx, v)
		if err != nil || desc.state == cluster.VERunning {
			return err
		}
		if desc.state != cluster.VEStopped {
			return fmt.Errorf("%w: describe does not know whether it runs already", cluster.ErrCannotAsk)
		}
		if err := d.renew(v); err != nil {
			return err
		}
		defer d.hints.Hint()
		return d.start(ctx, v)
	})
}

// start runs the scripts for start. Until they have said how it ended, or the ones
// for stop have ended well, there is a note of it: whatever they had asked for may
// come later, when describe has said "stopped" for long (a queued job, say).
func (d *Driver) start(ctx context.Context, v *ve) error {
	if err := os.WriteFile(filepath.Join(d.begunDir(), v.key), nil, 0o644); err != nil {
		return err
	}
	_, err := d.run(ctx, v, purposeStart, false)
	v.changed()
	if err != nil {
		if !errors.Is(err, cluster.ErrCannotAsk) {
			d.over(v)
		}
		return err
	}
	desc, err := d.settle(ctx, v, func(s cluster.VEState) bool { return s != cluster.VEUnknown })
	if err == nil {
		d.over(v)
	}
	if err == nil && desc.state != cluster.VERunning {
		err = errors.New("the scripts for start ended well, and describe says that it does not run")
	}
	return err
}

// over forgets that a start was begun. A note that cannot be removed costs one run
// of the scripts for stop.
func (d *Driver) over(v *ve) { _ = os.Remove(filepath.Join(d.begunDir(), v.key)) }

// begun tells whether a start may not be over. What cannot be told counts as begun.
func (d *Driver) begun(v *ve) bool {
	_, err := os.Lstat(filepath.Join(d.begunDir(), v.key))
	return !errors.Is(err, fs.ErrNotExist)
}

// renew reads the parameters of a resource that is about to be started.
func (d *Driver) renew(v *ve) error {
	c, err := readConf(v.path)
	if err != nil {
		return err
	}
	if kind := c.kind(v.path); kind != v.kind {
		return fmt.Errorf("it is registered with type %s, and its type is %s now; unregister it first", v.kind, kind)
	}
	if was, _ := v.params(); !maps.Equal(was, c) {
		if err := d.save(v, c); err != nil {
			return err
		}
	}
	v.setConf(c)
	return os.MkdirAll(d.runDir(v.key), 0o755) // it is gone after a reboot
}

// settle looks at a resource until its state is a settled one.
func (d *Driver) settle(ctx context.Context, v *ve, settled func(cluster.VEState) bool) (description, error) {
	for pause := confirmMin; ; pause = min(2*pause, confirmMax) {
		desc, err := d.look(ctx, v)
		if err != nil || settled(desc.state) {
			return desc, err
		}
		select {
		case <-ctx.Done():
			return desc, fmt.Errorf("describe says STATE=%s: %w", desc.state, driverkit.Ended(ctx))
		case <-time.After(pause):
		}
	}
}

// Stop implements hypervisor.Driver.
func (d *Driver) Stop(ctx context.Context, path string, force bool) error {
	if force {
		end := d.turns.Rush(path)
		defer end()
	}
	return d.turn(ctx, "stop", path, func() error {
		v := d.get(path)
		if v == nil {
			return nil
		}
		lctx, cancel := ctx, context.CancelFunc(func() {})
		if force {
			lctx, cancel = context.WithTimeout(ctx, forceLook)
		}
		desc, err := d.look(lctx, v)
		cancel()
		if err == nil && desc.state == cluster.VEStopped && !d.begun(v) {
			return nil
		}
		if ctx.Err() != nil {
			return driverkit.Ended(ctx)
		}
		// By force it is stopped all the same: whatever it is that cannot be asked.
		if err != nil && !force {
			return err
		}
		defer d.hints.Hint()
		if !force {
			done, err := d.stopGently(ctx, v)
			if done {
				return err
			}
		}
		return d.stopBy(ctx, v, true)
	})
}

// stopGently asks a resource to stop. It is not done when somebody came who
// wants it stopped by force.
func (d *Driver) stopGently(ctx context.Context, v *ve) (done bool, err error) {
	gctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(rushPoll)
		defer tick.Stop()
		for {
			select {
			case <-gctx.Done():
				return
			case <-tick.C:
				if d.turns.Rushed(v.path) {
					cancel()
					return
				}
			}
		}
	}()
	err = d.stopBy(gctx, v, false)
	rushed := gctx.Err() != nil && ctx.Err() == nil
	cancel()
	<-over
	return err == nil || !rushed, err
}

// stopBy runs the scripts for stop, and looks until the resource has stopped.
func (d *Driver) stopBy(ctx context.Context, v *ve, force bool) error {
	sctx, cancel := context.WithTimeout(ctx, d.o.StopTimeout)
	defer cancel()
	_, err := d.run(sctx, v, purposeStop, force)
	v.changed()
	late := err != nil && sctx.Err() != nil
	if err == nil || errors.Is(err, cluster.ErrNoVE) {
		_, err = d.settle(sctx, v, func(s cluster.VEState) bool { return s == cluster.VEStopped })
	}
	if err == nil {
		d.over(v)
	}
	if err == nil || ctx.Err() != nil || sctx.Err() == nil {
		return err
	}
	// Its time is over, and the caller's is not: what is the case in the end?
	if desc, lerr := d.look(ctx, v); lerr == nil && desc.state == cluster.VEStopped && !d.begun(v) {
		return nil
	}
	if late {
		return fmt.Errorf("it did not stop within %s: the scripts for stop were ended", d.o.StopTimeout)
	}
	return fmt.Errorf("the scripts for stop ended well, and describe does not say within %s that it has stopped", d.o.StopTimeout)
}

// Configure implements hypervisor.Driver.
func (d *Driver) Configure(ctx context.Context, path string, p cluster.VEParams) error {
	return d.turn(ctx, "configure", path, func() error {
		v := d.get(path)
		if v == nil {
			return errNotRegistered
		}
		changes := map[string]string{}
		if p.HA != nil {
			changes["HA_ENABLE"] = map[bool]string{true: "yes", false: "no"}[*p.HA]
		}
		if p.Priority != nil {
			changes["PRIORITY"] = strconv.FormatUint(uint64(*p.Priority), 10)
		}
		if len(changes) == 0 {
			return nil
		}
		if err := writeConf(path, changes); err != nil {
			return err
		}
		c, err := readConf(path)
		if err != nil {
			return err
		}
		v.setConf(c)
		if v.isRegistered() {
			err = d.save(v, c)
		}
		d.hints.Hint()
		return err
	})
}

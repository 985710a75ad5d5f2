package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/shaman-ha/shaman/internal/boottime"
	"github.com/shaman-ha/shaman/internal/cluster"
	"go.uber.org/zap"
)

// errWait is why admission cannot go on yet.
type errWait struct{ why string }

func (e errWait) Error() string { return e.why }

// recover brings this node in: it is Recovering until the admission
// transaction succeeds.
func (n *Node) recover(ctx context.Context, l Lease) (Admitted, error) {
	var said cluster.RecoveringRecord
	for {
		rec, a, err := n.step(ctx, l)
		if err == nil {
			return a, nil
		}
		if ctx.Err() != nil {
			return Admitted{}, context.Cause(ctx)
		}
		rec.Waiting = cluster.OneLine(err)
		n.Status("Recovering: " + rec.Waiting)
		if rec != said {
			if rec.Waiting != said.Waiting {
				n.Log.Info("recovering", zap.String("reason", rec.Waiting), zap.Int64("incarnation", int64(rec.Incarnation)))
			}
			if perr := n.Members.PutRecovering(ctx, n.Self, l.ID(), rec); perr == nil {
				said = rec
			} else if errors.Is(perr, cluster.ErrNotJoined) {
				return Admitted{}, perr
			}
		}
		if err := sleep(ctx, min(retryPause, n.Settings().Timing.Heartbeat)); err != nil {
			return Admitted{}, err
		}
	}
}

// step tries once. With an error it returns what to tell the others meanwhile.
func (n *Node) step(ctx context.Context, l Lease) (rec cluster.RecoveringRecord, a Admitted, err error) {
	mem := n.State.get()
	rec = cluster.RecoveringRecord{BootID: n.BootID, HardwareID: n.HardwareID, Nonce: n.Nonce}
	known, _, err := n.Members.Get(ctx, n.Self)
	if err != nil {
		return rec, a, err
	}
	if known.Stopped == cluster.StopDown && known.BootID == n.BootID {
		// The shutdown did not happen. What ran here was stopped for good: it comes back
		// as after every quiesce, with the next incarnation.
		if err := n.Members.Update(ctx, n.Self, func(r *cluster.NodeRecord) error { r.Stopped, r.StoppedAt = cluster.NotStopped, ""; return nil }); err != nil {
			return rec, a, err
		}
	}
	rec.Incarnation = known.Incarnation
	rec.Quiesced = mem.Closed >= known.Incarnation
	if err := n.Heart.Foreign(); err != nil {
		return rec, a, fmt.Errorf("duplicate-host-id: %w", err)
	}
	if last, err := n.Heart.Contact(); last == 0 || err != nil {
		return rec, a, errWait{"waiting for the mount: " + fmt.Sprint(err)}
	}
	newBoot := known.BootID != n.BootID
	// A new boot of the same machine proves that the one before is over. One of
	// another machine (a disk that was moved, or copied) proves nothing.
	moved := newBoot && known.HardwareID != "" && known.HardwareID != n.HardwareID
	// A daemon that was restarted under running VEs. Nothing of this node was taken over
	// meanwhile, so what runs here and is another's by now came here since, by hand or by a
	// live migration: it is told to the others, and not stopped.
	have, present, err := n.Mount.Incarnation(ctx, n.Self)
	if err != nil {
		return rec, a, err
	}
	sameLife := !newBoot && mem.Incarnation == known.Incarnation && mem.Closed < known.Incarnation && present && have == mem.Incarnation
	rec.Clean, err = n.prepare(ctx, newBoot, sameLife)
	if err != nil {
		return rec, a, err
	}
	n.Heart.Tell(known.Incarnation, rec.Clean)
	own, err := n.Members.OwnFailovers(ctx, n.Self)
	if err != nil {
		return rec, a, err
	}
	for _, f := range own {
		if f.Value.Phase.Sealed() || f.Value.Phase == cluster.PhaseWithdrawn {
			continue
		}
		// All else is done: say so, unless it is too late to turn back.
		rec.NotQuiesced = !rec.Quiesced && f.Value.Proof == "" && !moved
		why := "the master to withdraw it"
		switch {
		case rec.NotQuiesced:
		case moved && f.Value.Proof == "":
			why = n.otherMachine(known)
		default:
			why = "the master to take the repository over"
		}
		return rec, a, errWait{fmt.Sprintf("failover %s of this node is in phase %s; waiting for %s", f.Value.ID(), f.Value.Phase, why)}
	}
	inc, fresh, err := n.incarnation(ctx, known, mem)
	if err != nil {
		return rec, a, err
	}
	if moved && inc == known.Incarnation {
		return rec, a, errWait{"waiting for " + n.otherMachine(known)}
	}
	if fresh {
		if err := n.Mount.CreateRepository(ctx, n.Self, inc); err != nil {
			return rec, a, err
		}
	}
	a, err = n.admit(ctx, l, known, inc, newBoot)
	return rec, a, err
}

// otherMachine says what a node waits for whose host id another machine had.
func (n *Node) otherMachine(known cluster.NodeRecord) string {
	return fmt.Sprintf("a proof that the machine which had this host id before (hardware %s; this one is %s) is off. If it is off for good, set HARDWARE_ID=%[1]s in this node's configuration and restart shaman-monitor; if both are in use, give this one another HOST_ID", known.HardwareID, n.HardwareID)
}

// incarnation returns the one to come in with; fresh: its repository has to be made.
func (n *Node) incarnation(ctx context.Context, known cluster.NodeRecord, mem memory) (inc cluster.Incarnation, fresh bool, err error) {
	have, present, err := n.Mount.Incarnation(ctx, n.Self)
	if err != nil {
		return 0, false, err
	}
	sealed, err := n.Mount.HighestPool(ctx, n.Self)
	if err != nil {
		return 0, false, err
	}
	switch {
	case present && have <= mem.Closed:
		return 0, false, errWait{"this node stopped all its VEs as incarnation " + fmt.Sprint(have) + " and comes back with a newer one only; waiting for the master to take its repository over"}
	case present && have == known.Incarnation, present && have > known.Incarnation && sealed == have-1:
		return have, false, nil
	case present:
		return 0, false, errWait{fmt.Sprintf("the repository on the mount is of incarnation %d, etcd knows %d; if etcd was rebuilt or restored, run 'shaman join --recover'", have, known.Incarnation)}
	case sealed < known.Incarnation:
		return 0, false, errWait{"the repository " + string(n.Self) + " is missing on the mount and was not taken over; is the right file system mounted?"}
	}
	return 1 + max(known.Incarnation, sealed, mem.Closed), true, nil
}

// prepare does all else that admission needs: the hypervisor answers, VEs that
// moved away are stopped and forgotten here, and autostart is off for what is
// ours. clean tells that nothing of the own repository runs, and no job is queued.
func (n *Node) prepare(ctx context.Context, newBoot, sameLife bool) (clean bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, n.Settings().ActionTimeout)
	defer cancel()
	if newBoot {
		if err := n.IgnoreNow(ctx); err != nil {
			return false, err
		}
	}
	if err := n.Hypervisor.Barrier(ctx); err != nil {
		return false, fmt.Errorf("waiting for the hypervisor: %w", err)
	}
	ves, err := n.Hypervisor.List(ctx)
	if err != nil {
		return false, fmt.Errorf("waiting for the hypervisor: %w", err)
	}
	all, err := n.Mount.Census(ctx)
	if err != nil {
		return false, err
	}
	mine, others := placesOf(n.Self, all)
	clean = true
	for _, v := range ves {
		_, own := mine.of(v)
		where, away := others.of(v)
		switch {
		case own:
			if v.Autostart {
				if err := n.Hypervisor.Register(ctx, v.Kind, v.Path); err != nil {
					return false, fmt.Errorf("switch autostart off for %s: %w", v.Path, err)
				}
			}
			clean = clean && v.State == cluster.VEStopped
		case away && sameLife && v.State != cluster.VEStopped:
		case away:
			if err := n.dropMoved(ctx, v, where); err != nil {
				return false, err
			}
		}
	}
	return clean, nil
}

// places tell where the resource of a VE lies, by its path and by its UUID.
type places struct{ byPath, byUUID map[string]string }

func newPlaces() places {
	return places{byPath: map[string]string{}, byUUID: map[string]string{}}
}

func (p places) put(r cluster.Resource, where string) {
	p.byPath[r.Path] = where
	if r.UUID != "" {
		p.byUUID[r.UUID] = where
	}
}

func (p places) of(v cluster.VE) (where string, ok bool) {
	if where, ok = p.byPath[v.Path]; !ok && v.UUID != "" {
		where, ok = p.byUUID[v.UUID]
	}
	return where, ok
}

// placesOf sorts everything on the mount into what lies in the own repository
// and what lies elsewhere.
func placesOf(self cluster.NodeID, all cluster.Census) (mine, others places) {
	mine, others = newPlaces(), newPlaces()
	for owner, l := range all.Repositories {
		for _, r := range l.Resources {
			if owner == self {
				mine.put(r, "the own repository")
			} else {
				others.put(r, "the repository of node "+string(owner))
			}
		}
	}
	for p, l := range all.Pools {
		for _, r := range l.Resources {
			others.put(r, "pool directory "+p.String())
		}
	}
	for _, b := range all.Broken {
		others.put(b.Resource, "broken")
	}
	return mine, others
}

// dropMoved stops and forgets a VE that belongs elsewhere by now.
func (n *Node) dropMoved(ctx context.Context, v cluster.VE, where string) error {
	if v.State != cluster.VEStopped {
		n.Log.Warn("stopping a VE that was taken over while this node was away", zap.String("ve", v.Path), zap.String("from", where))
		if err := n.Hypervisor.Stop(ctx, v.Kind, v.Path, true); err != nil && !errors.Is(err, cluster.ErrNoVE) {
			return fmt.Errorf("stop %s, whose resource lies in %s: %w", v.Path, where, err)
		}
	}
	if err := n.Hypervisor.Unregister(ctx, v.Kind, v.Path); err != nil && !errors.Is(err, cluster.ErrNoVE) {
		return fmt.Errorf("unregister %s, whose resource lies in %s: %w", v.Path, where, err)
	}
	n.Event(cluster.Event{Kind: "moved-away", Message: fmt.Sprintf("%s was unregistered here: its resource lies in %s", v.Path, where)})
	return nil
}

// admit keeps what the new incarnation needs, then asks etcd.
func (n *Node) admit(ctx context.Context, l Lease, known cluster.NodeRecord, inc cluster.Incarnation, newBoot bool) (Admitted, error) {
	if err := n.listStarts(ctx, inc, known, newBoot); err != nil {
		return Admitted{}, err
	}
	a := Admitted{Incarnation: inc, Lease: l}
	former := n.State.get().Lease
	wd := n.arm()
	serial, err := n.Members.Admit(ctx, cluster.Admission{
		Node: n.Self, Incarnation: inc, Lease: l.ID(), Former: former,
		Alive: n.aliveRecord(a), BootID: n.BootID, HardwareID: n.HardwareID, Name: n.Name, Address: n.Address,
		At: time.Now(), CrashLimit: n.Settings().CrashLimit, Watchdog: wd,
	})
	switch {
	case errors.Is(err, cluster.ErrOtherHolder):
		return Admitted{}, errWait{"waiting for the end of the lease of the daemon before the reboot"}
	case errors.Is(err, cluster.ErrConflict):
		return Admitted{}, errWait{"something changed during admission; tried again"}
	case err != nil:
		return Admitted{}, err
	}
	if err := n.State.update(func(m *memory) {
		// The serial covers all orders so far, and begins low again in a rebuilt etcd.
		m.Lease, m.Incarnation, m.Serial, m.Answered = l.ID(), inc, serial, 0
	}); err != nil {
		return Admitted{}, err
	}
	n.Watchdog.Lift() // what an earlier incarnation did not stop in time was failed over
	n.Log.Info("admitted", zap.Int64("incarnation", int64(inc)))
	n.Event(cluster.Event{Kind: "admitted", Subject: n.Self, Message: fmt.Sprintf("admitted with incarnation %d", inc)})
	return a, nil
}

// listStarts writes down, before the first admission after a boot, what ran
// here before it: the second of the two reasons to start a VE. The highest
// priority comes first. A repository that was taken over takes its list along:
// what lies in the new one came by an action.
func (n *Node) listStarts(ctx context.Context, inc cluster.Incarnation, known cluster.NodeRecord, newBoot bool) error {
	mem := n.State.get()
	if inc != known.Incarnation {
		if mem.Listed && len(mem.Starts) == 0 {
			return nil
		}
		return n.State.update(func(m *memory) { m.Starts, m.Listed = nil, true })
	}
	if !newBoot || mem.Listed {
		return nil
	}
	all, err := n.Mount.Census(ctx)
	if err != nil {
		return err
	}
	_, elsewhere := placesOf(n.Self, all)
	var run []cluster.Resource
	for _, r := range all.Repositories[n.Self].Resources {
		_, twice := elsewhere.byPath[r.Path]
		if r.ShouldRun() && r.Waiting == "" && r.Migrating == "" && !twice {
			run = append(run, r)
		}
	}
	slices.SortStableFunc(run, func(a, b cluster.Resource) int { return cmp.Compare(b.Priority, a.Priority) })
	var starts []cluster.ResourceID
	for _, r := range run {
		starts = append(starts, r.ID)
	}
	return n.State.update(func(m *memory) { m.Starts, m.Listed = starts, true })
}

// quiesce makes this node harmless: it closes the gate and waits for its
// holders, then stops all HA VEs by force, waits until the hypervisor has no
// job of ours queued, and flushes the mount. A nil error means that it is
// harmless; the lease is to be given up then, so that a failover can open. Once
// begun it goes on, within STOP_BUDGET, whatever becomes of ctx: a lease that is
// lost meanwhile is one more reason to finish.
func (n *Node) quiesce(ctx context.Context, inc cluster.Incarnation, reason error) error {
	if err := n.State.update(func(m *memory) { m.Closed = max(m.Closed, inc) }); err != nil {
		n.Log.Error("cannot keep the gate closed across a restart", zap.Error(err))
	}
	ctx = context.WithoutCancel(ctx)
	qctx, cancel := context.WithTimeout(ctx, n.Settings().StopBudget)
	defer cancel()
	begin := boottime.Now()
	// Not done in time: the watchdog does it. Others may have been told already that
	// nothing runs here.
	n.Watchdog.Limit(begin.Add(n.Settings().StopBudget))
	err := n.Gate.Close(qctx)
	if err == nil {
		err = n.stopAll(qctx)
	}
	if err == nil {
		err = n.Mount.Sync(qctx)
	}
	if err != nil {
		n.Event(cluster.Event{Kind: "quiesced", Subject: n.Self, Message: fmt.Sprintf("could not stop everything in time: %v; it had to be, since %v", err, reason)})
		n.Log.Error("could not stop everything in time", zap.Duration("elapsed", boottime.Since(begin)), zap.Error(err))
	} else {
		n.Event(cluster.Event{Kind: "quiesced", Subject: n.Self, Message: fmt.Sprintf("stopped everything: %v", reason)})
		if uerr := n.State.update(func(m *memory) { m.Stopped = max(m.Stopped, inc) }); uerr != nil {
			n.Log.Warn("the next daemon does not know that everything is stopped", zap.Error(uerr))
		}
		n.Watchdog.Lift()
		n.Log.Warn("stopped everything", zap.Duration("elapsed", boottime.Since(begin)), zap.NamedError("reason", reason))
	}
	return err
}

// stopOurs stops all VEs that this node has to let go of.
func (n *Node) stopOurs(ctx context.Context, force bool) error {
	// Of what can be asked all is stopped, also if something else cannot.
	ves, unasked := n.Hypervisor.List(ctx)
	ours, _ := n.ours(ctx)
	done := make(chan error, len(ves))
	waiting := 0
	for _, v := range ves {
		if !ours(v) {
			continue
		}
		waiting++
		go func() { done <- n.Hypervisor.Stop(ctx, v.Kind, v.Path, force) }()
	}
	errs := []error{unasked}
	for range waiting {
		if err := <-done; err != nil && !errors.Is(err, cluster.ErrNoVE) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop all VEs: %w", err)
	}
	return nil
}

// stopAll stops them by force, and proves that none runs.
func (n *Node) stopAll(ctx context.Context) error {
	if err := n.stopOurs(ctx, true); err != nil {
		return err
	}
	if err := n.Hypervisor.Barrier(ctx); err != nil {
		return err
	}
	ves, err := n.Hypervisor.List(ctx)
	if err != nil {
		return err
	}
	ours, blind := n.ours(ctx)
	for _, v := range ves {
		if ours(v) && v.State != cluster.VEStopped {
			return fmt.Errorf("%s runs again after everything was stopped", v.Path)
		}
		if blind != nil && v.State != cluster.VEStopped {
			return fmt.Errorf("%s was left alone, and may have a resource: %w", v.Path, blind)
		}
	}
	return nil
}

// ours tells of which VEs this node has to let go: those that are highly
// available by the hypervisor's word, and those that have a resource anywhere,
// whatever it says now, also if it was to be left alone once. Where the mount
// cannot be read, which blind tells, all others may have one.
func (n *Node) ours(ctx context.Context) (ours func(cluster.VE) bool, blind error) {
	all, blind := n.Mount.Census(ctx)
	paths := map[string]bool{}
	add := func(rs []cluster.Resource) {
		for _, r := range rs {
			paths[r.Path] = true
		}
	}
	for _, l := range all.Repositories {
		add(l.Resources)
	}
	for _, l := range all.Pools {
		add(l.Resources)
	}
	return func(v cluster.VE) bool { return paths[v.Path] || !n.Ignored(v.Path) && (v.HA || blind != nil) }, blind
}

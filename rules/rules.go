package main

// rules are the safety rules of docs/safety.md, each by the line that keeps it.
var rules = []rule{
	{
		name: "nothing is sealed before a proof is recorded", file: "internal/failover/decide.go",
		code: `	if f.Value.Proof != "" {
		if f.Value.Phase`, without: `	if f.Value.Proof != "" || f.Value.Phase == cluster.PhaseFencing {
		if f.Value.Phase`,
		pkg: "./internal/failover", test: "TestDecideProofsAndSeal",
	},
	{
		name: "a proven failover is not withdrawn", file: "internal/failover/decide.go",
		code: `rg.Value.NotQuiesced && f.Value.Proof == ""`, without: `rg.Value.NotQuiesced`,
		pkg: "./internal/failover", test: "TestDecideWithdraws|TestTheWorld",
	},
	{
		name: "a mark is left before a withdrawal", file: "internal/failover/apply.go",
		code: `		if err := m.mark(ctx, m.Term); err != nil {
			return err
		}
		err := m.Ledger.Withdraw`, without: `		err := m.Ledger.Withdraw`,
		pkg: "./internal/failover", test: "TestWithdrawingEndsTheMethodsFirst",
	},
	{
		name: "the brake holds when too many nodes are lost", file: "internal/failover/decide.go",
		code: `	if len(out) >= o.SkipThreshold {
		return out
	}`, without: `	if false {
		return out
	}`,
		pkg: "./internal/failover", test: "TestDecideBrake",
	},
	{
		name: "a new master opens nothing against a node that beats", file: "internal/failover/decide.go",
		code: `!down && !o.Settled && !back && pulse != PulseSilent`, without: `false && pulse != PulseSilent`,
		pkg: "./internal/failover", test: "TestDecideOpens",
	},
	{
		name: "a quiesce that failed is not harmless", file: "internal/node/stop.go",
		code: `	if !n.State.harmless() {`, without: `	if !n.State.quiesced() {`,
		pkg: "./internal/node", test: "TestRetireAndTheWatchdog",
	},
	{
		name: "a clean stop is no failure", file: "internal/failover/decide.go",
		code: `lost := e.Value.Stopped == cluster.NotStopped ||`, without: `lost := true ||`,
		pkg: "./internal/failover", test: "TestDecideOpens",
	},
	{
		name: "a new boot is a proof only of the same hardware", file: "internal/failover/decide.go",
		code: `rg.Value.HardwareID == rec.Value.HardwareID &&`, without: `true &&`,
		pkg: "./internal/failover", test: "TestDecideProofsAndSeal",
	},
	{
		name: "a marked action stays with its node", file: "internal/failover/decide_actions.go",
		code: `return b.over(v) || !alive && b.o.Nodes[v.Node].Value.Stopped != cluster.NotStopped`, without: `return !alive || alive`,
		pkg: "./internal/failover", test: "TestDecideReplacesOnlyWhatCannotBeClaimed",
	},
	{
		name: "two resources of one VE are never dispatched", file: "internal/failover/decide_actions.go",
		code: `if len(b.o.Paths[r.Path]) > 0 || b.paths[r.Path] > 1 {`, without: `if false {`,
		pkg: "./internal/failover", test: "TestDecideDispatches|TestTheWorld",
	},
	{
		name: "what runs elsewhere is not started", file: "internal/failover/decide_actions.go",
		code: `if w, said := elsewhere[r.Path]; said {`, without: `if w, said := elsewhere[r.Path]; said && false {`,
		pkg: "./internal/failover", test: "TestDecideDispatches",
	},
	{
		name: "agents wait for a node that may be stopping its VEs", file: "internal/failover/fence.go",
		code: `	for !m.Gentle() {`, without: `	for false {`,
		pkg: "./internal/failover", test: "TestOnlyGentleMethodsRunBeforeTheDelayHasPassed",
	},
	{
		name: "a read that fails is no silence", file: "internal/failover/pulse.go",
		code: `		s.since = 0 // unknown`, without: `		// unknown`,
		pkg: "./internal/failover", test: "TestAFailedRead",
	},
	{
		name: "watchdog: silence counts on both channels", file: "internal/fencing/watchdog.go",
		code: `to.Sub(max(from, gone))`, without: `to.Sub(max(from, 0*gone))`,
		pkg: "./internal/fencing", test: "TestWatchdogProves",
	},
	{
		name: "watchdog: a virtual machine's does not count", file: "internal/cluster/node.go",
		code: ` && (trustVirtual || !w.Virtual)`, without: ``,
		pkg: "./internal/fencing", test: "TestWatchdogProves",
	},
	{
		name: "watchdog: T_wd has three time-outs", file: "internal/cluster/timing.go",
		code: `selfFence + 3*timeout + time.Second`, without: `selfFence + 2*timeout + time.Second`,
		pkg: "./internal/config", test: "TestWatchdogProof",
	},
	{
		name: "watchdog: no contact, no feed", file: "internal/watchdog/record.go",
		code: `contact != 0 && int64(now)-contact <= r.selfP.Load() &&`, without: `contact != 0 &&`,
		pkg: "./internal/watchdog", test: "TestNoContactNoFeed",
	},
	{
		name: "watchdog: the last contact is looked at before the device is opened", file: "internal/watchdog/dog.go",
		code: `	if now := boottime.Now(); !d.rec.mayFeed(now) {
		d.starve(d.rec.why(now))
		return
	}
	mayFeed :=`, without: `	mayFeed :=`,
		pkg: "./internal/watchdog", test: "TestResume",
	},
	{
		name: "watchdog: a device that cannot be taken over resets the machine", file: "internal/watchdog/dog.go",
		code: `		d.starve("its watchdog cannot be fed any more: " + err.Error())`, without: ``,
		pkg: "./internal/watchdog", test: "TestResumeOfADevice",
	},
	{
		name: "watchdog: one with a limit is not disarmed", file: "internal/watchdog/dog.go",
		code: `d.rec.limit.Load() != 0 || !d.rec.mayFeed(boottime.Now())`, without: `!d.rec.mayFeed(boottime.Now())`,
		pkg: "./internal/watchdog", test: "TestDisarmKeeps",
	},
	{
		name: "watchdog: an order that is not carried out in time ends the feeding", file: "internal/watchdog/record.go",
		code: ` && (limit == 0 || int64(now) <= limit)`, without: ` && limit < 1<<62`,
		pkg: "./internal/watchdog", test: "TestLimit",
	},
	{
		name: "watchdog: disarmed only after etcd has recorded it", file: "internal/node/stop.go",
		code: `		if err := n.Members.DisownWatchdog(ctx, n.Self); err != nil {
			return err
		}`, without: ``,
		pkg: "./internal/node", test: "TestRetireAndTheWatchdog",
	},
	{
		name: "watchdog: numbers change only while none are published", file: "internal/node/watchdog.go",
		code: `		if err := publish(cluster.Watchdog{}); err != nil {
			return err
		}`, without: ``,
		pkg: "./internal/node", test: "TestTuneWatchdog",
	},
	{
		name: "watchdog: a device that its holder's death stops is not used", file: "internal/watchdog/device.go",
		code: `info.Options&unix.WDIOF_MAGICCLOSE == 0`, without: `info.Options&unix.WDIOF_MAGICCLOSE == 1`,
		pkg: "./internal/watchdog", test: "TestDevicesThatCannotServe",
	},
	{
		name: "an agent is not believed while the node beats", file: "internal/fencing/agent.go",
		code: `		case a.Beats(n):`, without: `		case false:`,
		pkg: "./internal/fencing", test: "TestAgentIsContradicted",
	},
	{
		name: "an agent's exit code alone is no proof", file: "internal/fencing/agent.go",
		code: `		if power == PowerOff {
			if err`, without: `		if power == PowerOff || offErr == nil {
			if err`,
		pkg: "./internal/fencing", test: "Test.*",
	},
	{
		name: "an order is answered by its serial", file: "internal/node/orders.go",
		code: ` && o.Serial > mem.Serial`, without: ``,
		pkg: "./internal/node", test: "Order|Obey|Serial",
	},
	{
		name: "quiesce: the gate's holders are waited for before anything is stopped", file: "internal/node/recover.go",
		code: `	err := n.Gate.Close(qctx)
	if err == nil {
		err = n.stopAll(qctx)`, without: `	err := n.stopAll(qctx)
	if err == nil {
		err = n.Gate.Close(qctx)`,
		pkg: "./internal/node", test: "TestQuiesce",
	},
	{
		name: "quiesce: no answer while the hypervisor has a job queued", file: "internal/node/recover.go",
		code: `	if err := n.Hypervisor.Barrier(ctx); err != nil {
		return err
	}
	ves, err := n.Hypervisor.List(ctx)
	if err != nil {
		return err
	}
	ours, blind`, without: `	ves, err := n.Hypervisor.List(ctx)
	if err != nil {
		return err
	}
	ours, blind`,
		pkg: "./internal/node", test: "TestQuiesce",
	},
	{
		name: "quiesce: the gate stays closed across a restart", file: "internal/node/recover.go",
		code: `	if err := n.State.update(func(m *memory) { m.Closed = max(m.Closed, inc) }); err != nil {`, without: `	if err := error(nil); err != nil {`,
		pkg: "./internal/node", test: "TestQuiesce",
	},
	{
		name: "a node whose repository was taken over stops everything", file: "internal/node/node.go",
		code: `errors.Is(err, cluster.ErrSealed) && !n.hasLeft()`, without: `false && !n.hasLeft()`,
		pkg: "./internal/node", test: "TestAnActiveNodeWhoseRepositoryIsGone",
	},
	{
		name: "two machines with one host id: the second keeps out", file: "internal/node/recover.go",
		code: `	if err := n.Heart.Foreign(); err != nil {
		return rec, a, fmt.Errorf("duplicate-host-id: %w", err)
	}`, without: ``,
		pkg: "./internal/node", test: "Test.*",
	},
	{
		name: "a node that quiesced says no goodbye", file: "internal/node/stop.go",
		code: `	case n.State.quiesced():`, without: `	case false:`,
		pkg: "./internal/node", test: "TestRetireAndTheWatchdog",
	},
	{
		name: "admission waits while a failover is not sealed", file: "internal/membership/admission.go",
		code: `		if !f.Value.Phase.Sealed() && f.Value.Phase != cluster.PhaseWithdrawn {
			return 0, fmt.Errorf`, without: `		if false {
			return 0, fmt.Errorf`,
		pkg: "./internal/membership", test: "Admi|Race",
	},
	{
		name: "the alive key is taken over only from the own former lease", file: "internal/membership/admission.go",
		code: `kv.Lease != a.Lease && (a.Former == 0 || kv.Lease != a.Former)`, without: `false`,
		pkg: "./internal/membership", test: "Test.*",
	},
	{
		name: "a master's writes compare its term", file: "internal/etcd/txn.go",
		code: `append([]clientv3.Cmp{Guard(t)}, cmps...)`, without: `append([]clientv3.Cmp{}, cmps...)`,
		pkg: "./internal/etcd", test: "Test.*",
	},
	{
		name: "a lease is valid from the sending of its renewal", file: "internal/election/lease.go",
		code: `	l.validUntil = max(l.validUntil, sent.Add(l.timing.Lease-l.timing.Margin))`, without: `	l.validUntil = max(l.validUntil, boottime.Now().Add(l.timing.Lease-l.timing.Margin))`,
		pkg: "./internal/election", test: "Test.*",
	},
	{
		name: "a pool directory's name is taken for ever", file: "internal/resources/ownership.go",
		code: `		if there, err := exists(to); err != nil || there {`, without: `		if there, err := false, error(nil); err != nil || there {`,
		pkg: "./internal/resources", test: "Seal",
	},
	{
		name: "a late seal is undone", file: "internal/resources/ownership.go",
		code: `	if present && inc == id.Incarnation {
		return nil
	}
	if !present {`, without: `	if present {
		return nil
	}
	if !present {`,
		pkg: "./internal/resources", test: "Seal",
	},
	{
		name: "a rename that failed is found out about by looking", file: "internal/resources/fsops.go",
		code: `	case at:
		return nil
	}`, without: `	case at:
		return rerr
	}`,
		pkg: "./internal/resources", test: "Lie|Rename",
	},
	{
		name: "a name that is taken here is not overwritten by a claim", file: "internal/resources/ownership.go",
		code: `	taken, err := exists(filepath.Join(own, string(name)))`, without: `	taken, err := false, error(nil)`,
		pkg: "./internal/resources", test: "Claim",
	},
	{
		name: "contact needs the file system of the cluster", file: "internal/resources/slots.go",
		code: `if st.Dev != wantDev`, without: `if false && st.Dev != wantDev`,
		pkg: "./internal/resources", test: "Test.*",
	},
	{
		name: "nothing is started while the lease is not valid", file: "internal/agent/reconcile.go",
		code: `	if !r.Valid() {
		release()
		return nil, errClosed
	}`, without: `	if false {
		release()
		return nil, errClosed
	}`,
		pkg: "./internal/agent", test: "Test.*",
	},
	{
		name: "nothing is started whose action was withdrawn", file: "internal/agent/start.go",
		code: `j.action != nil && !r.Inbox.Has(j.action.Value)`, without: `false`,
		pkg: "./internal/agent", test: "Test.*",
	},
	{
		name: "an action of an older admission is not carried out", file: "internal/agent/intake.go",
		code: `		case e.Value.Inc != r.Incarnation:
			r.supersede(e)`, without: `		case false:
			r.supersede(e)`,
		pkg: "./internal/agent", test: "Test.*",
	},
	{
		name: "a start of unknown outcome is stopped by force", file: "internal/agent/start.go",
		code: `			if started {
				// The outcome`, without: `			if false {
				// The outcome`,
		pkg: "./internal/agent", test: "Test.*",
	},
	{
		name: "trouble of the storage makes nothing broken", file: "internal/agent/start.go",
		code: `		case errors.Is(err, cluster.ErrHold), errors.Is(err, cluster.ErrSealed), errors.Is(err, errClosed):`, without: `		case errors.Is(err, cluster.ErrSealed), errors.Is(err, errClosed):`,
		pkg: "./internal/agent", test: "Test.*",
	},
	{
		name: "a proof compares the record that it rests on", file: "internal/failover/decide.go",
		code: `			steps[i].Mod = o.Nodes[id.Node].Mod`, without: `			steps[i].Mod = 0`,
		pkg: "./internal/failover", test: "TestProofIsRecorded",
	},
	{
		name: "storage fencing: the answer is for this very failover", file: "internal/fencing/storage.go",
		code: `	return err == nil && got == want, err`, without: `	return err == nil && got.State == want.State, err`,
		pkg: "./internal/fencing", test: "TestStorage",
	},
	{
		name: "what may run elsewhere is held", file: "internal/failover/decide_actions.go",
		code: `		if w.sure {`, without: `		if true {`,
		pkg: "./internal/failover", test: "TestDecideDispatches",
	},
	{
		name: "two words on one VE are no word", file: "internal/failover/decide_adopt.go",
		code: `sure: !v.Unsure && !twice`, without: `sure: !v.Unsure`,
		pkg: "./internal/failover", test: "TestDecide",
	},
	{
		name: "the word of a node that was proven harmless does not count", file: "internal/failover/decide_adopt.go",
		code: `id == except || !alive && b.o.sealed(id, e.Value.Incarnation)`, without: `id == except`,
		pkg: "./internal/failover", test: "TestDecideDispatches",
	},
	{
		name: "a resource with two owners is given to nobody", file: "internal/failover/decide_adopt.go",
		code: `case len(owners) == 1 && owners[0].Owner != w.on:`, without: `case len(owners) > 0 && owners[0].Owner != w.on:`,
		pkg: "./internal/failover", test: "TestDecideGivesVEsTheirResources",
	},
	{
		name: "an owner lets go only of what it does not run", file: "internal/agent/errands.go",
		code: `	case running && a.Adopt:`, without: `	case false:`,
		pkg: "./internal/agent", test: "TestLettingGo",
	},
	{
		name: "what runs on another node by its word is not started", file: "internal/agent/start.go",
		code: `	if len(on) > 0 {
		// A failover`, without: `	if false {
		// A failover`,
		pkg: "./internal/agent", test: "TestAWordKeepsAVEFromBeingStarted",
	},
	{
		name: "what was given to a node that does not run it any more waits", file: "internal/agent/start.go",
		code: `			res.Migrating = r.Self // it comes up`, without: `			res.Migrating = "" // it comes up`,
		pkg: "./internal/agent", test: "TestWhatWasGivenAndDoesNotRunWaits",
	},
	{
		name: "what was elsewhere and is not any more waits to be started", file: "internal/agent/reconcile.go",
		code: `		if res.Want == cluster.WantRunning && res.Waiting == "" {
			next.Waiting`, without: `		if false {
			next.Waiting`,
		pkg: "./internal/agent", test: "TestAVEThatWasElsewhere",
	},
	{
		name: "an adoption needs the VE to run here", file: "internal/agent/adopt.go",
		code: `	case v.State != cluster.VERunning && !a.Force:`, without: `	case false:`,
		pkg: "./internal/agent", test: "TestAdopt",
	},
	{
		name: "what another node owns is not adopted", file: "internal/agent/adopt.go",
		code: `			return "", fmt.Errorf("%w: the resource of %s lies in %s", cluster.ErrTaken, a.Path, s)`, without: `			continue`,
		pkg: "./internal/agent", test: "TestAdopt",
	},
	{
		name: "sync deletes not many at once", file: "internal/agent/mend.go",
		code: `gone > min(freely, max(1, freelyShare*total/100)) && !m.force && !m.dry`, without: `false`,
		pkg: "./internal/agent", test: "TestSyncDeletesOnlyWhatIsSurelyGone",
	},
	{
		name: "nothing is absent where the parent does not list", file: "internal/resources/quarantine.go",
		code: `	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return false, err
	}`, without: `	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return true, nil
	}`,
		pkg: "./internal/resources", test: "TestAbsentAndDropBroken",
	},
	{
		name: "a restarted daemon leaves what came here alone", file: "internal/node/recover.go",
		code: `		case away && sameLife && v.State != cluster.VEStopped:`, without: `		case false:`,
		pkg: "./internal/node", test: "TestARestartedDaemonLeavesWhatCameHereAlone",
	},
	{
		name: "a node that was taken over leaves nothing running of what moved", file: "internal/node/recover.go",
		code: `sameLife := !newBoot && mem.Incarnation == known.Incarnation && mem.Closed < known.Incarnation && present && have == mem.Incarnation`, without: `sameLife := !newBoot`,
		pkg: "./internal/node", test: "TestARestartedDaemonLeavesWhatCameHereAlone",
	},
	{
		name: "a driver that cannot be asked is not one without VEs", file: "internal/hypervisor/set.go",
		code: `	if len(un.Kinds) > 0 {`, without: `	if false {`,
		pkg: "./internal/hypervisor", test: "TestOneDriverDoesNotHideTheOthers",
	},
}

/*
 * Is silence on both channels proof that a node has reset itself? With clocks,
 * for SPIN. README.md says what is assumed and what each switch takes out.
 *
 * One node with an armed watchdog, its lease, its heartbeat, and a master that
 * watches both. Time is a tick that makes every age one older; ages stop where
 * they make no difference any more. Bound to time are only three things: etcd
 * ends a lease not before its time, the hardware resets not later than its time
 * after the last feed, and the master waits WAIT. All else, on the node, on the
 * master and on the way between them, may take as long as it likes.
 */
#define P 2                      /* LOCK_TIMEOUT and SELF_FENCE_TIMEOUT, in ticks */
#define W 4                      /* WATCHDOG_TIMEOUT */
#ifndef WAIT
#define WAIT (P + 3*W)
#endif

bit  up = 1;                     /* as long as there is power the VEs may run */
bit  etcdReached = 1, writes = 1, reads = 1, masterReads = 1;

byte leaseAge; bit key = 1;      /* etcd: since the last renewal; alive/ is there */
byte feedAge;                    /* the hardware: since the last feed */
byte renewalAge, beatAge;        /* since the renewal was sent, the heartbeat begun, that is under way */
byte etcdContact, mountContact;  /* the node: age of its last proven contact on each channel */
bit  news;                       /* the slot holds a heartbeat that the master has not read yet */
byte quiet;                      /* the master: since the last sign of life on either channel */

mtype = { LOOKS, FEEDS, CHECKS, DEAD };
mtype feeder = LOOKS;

#define fresh       (etcdContact < P || mountContact < P)
#define age(a, cap) if :: a < cap -> a++ :: else fi

active proctype Time() {
	do
	:: d_step { up ->
		age(leaseAge, P); age(renewalAge, P); age(beatAge, P); age(etcdContact, P); age(mountContact, P); age(quiet, WAIT);
		feedAge++;
		if :: feedAge >= W -> up = 0; printf("the watchdog resets the machine\n") :: else -> printf("tick\n") fi }
	:: d_step { !up && quiet < WAIT -> quiet++ }
	:: d_step { key && leaseAge >= P -> key = 0; printf("the lease ends\n") }
	od
}

active proctype Renewal() {
	do
	:: d_step { up -> renewalAge = 0 };
		if
		:: d_step { up && etcdReached -> key = 1; leaseAge = 0; quiet = 0; printf("etcd has the renewal\n") };
			if
#ifdef FROM_REPLY                /* validity counts from the moment the reply came in */
			:: d_step { up && etcdReached -> etcdContact = 0; printf("the node has the reply\n") }
#else
			:: d_step { up && etcdReached -> etcdContact = renewalAge; printf("the node has the reply to what it sent %d ago\n", renewalAge) }
#endif
			:: d_step { up && !etcdReached -> skip }
			fi
		:: d_step { up && !etcdReached -> skip }
		fi
	od
}

active proctype Heartbeat() {
	do
	:: d_step { up -> beatAge = 0 };
		if
		:: d_step { up && writes -> news = 1; printf("a heartbeat is written\n") };
			d_step { up -> mountContact = beatAge; printf("the node knows that, begun %d ago\n", beatAge) }
#ifdef READING_IS_CONTACT        /* the mount counts as reached when it can be read */
		:: d_step { up && !writes && reads -> mountContact = 0; printf("the node has read the mount\n") }
#else
		:: d_step { up && !writes -> skip }
#endif
		fi
	od
}

/* Look whether a contact is fresh, feed, look again. It may be held up before
 * each of these, or die; the kernel then feeds once more as it closes the device.
 */
active proctype Feeder() {
	do
	:: d_step { up && feeder == LOOKS && fresh -> feeder = FEEDS }
	:: d_step { up && feeder == FEEDS -> feedAge = 0; feeder = CHECKS; printf("fed (etcd %d, mount %d)\n", etcdContact, mountContact) }
#ifdef NO_RECHECK                /* nobody looks again after a feed */
	:: d_step { up && feeder == CHECKS -> feeder = LOOKS }
#else
	:: d_step { up && feeder == CHECKS -> feeder = LOOKS; if :: fresh :: else -> up = 0; printf("that was late: the node resets itself\n") fi }
#endif
	:: d_step { up && feeder != DEAD -> feeder = DEAD; feedAge = 0; printf("* the feeder dies, and the kernel feeds\n") }
#ifdef OPEN_FIRST                /* the next one opens the device, which feeds it, before it looks at the last contact */
	:: d_step { up && feeder == DEAD -> feeder = LOOKS; feedAge = 0; printf("a new feeder opens the device\n") }
#else
	:: d_step { up && feeder == DEAD && fresh -> feeder = FEEDS; printf("a new feeder may open the device\n") }
#endif
	od
}

active proctype Master() {
	do
	:: d_step { masterReads && news -> news = 0; quiet = 0; printf("the master reads a new heartbeat\n") }
#ifdef FAILED_READ_IS_SILENCE
	:: d_step { (!masterReads || !news) && !key && quiet >= WAIT -> printf("the master takes the node for dead\n"); assert(!up) }
#else
	:: d_step { masterReads && !news && !key && quiet >= WAIT -> printf("the master takes the node for dead\n"); assert(!up) }
#endif
	od
}

active proctype Faults() {
	do
	:: d_step { etcdReached = !etcdReached; printf("* etcd: %d\n", etcdReached) }
	:: d_step { writes = !writes; printf("* writes to the mount: %d\n", writes) }
	:: d_step { masterReads = !masterReads; printf("* reads of the master: %d\n", masterReads) }
#ifdef READING_IS_CONTACT
	:: d_step { reads = !reads; printf("* reads of the node: %d\n", reads) }
#endif
	od
}

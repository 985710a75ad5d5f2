/*
 * The failover protocol, for the model checker SPIN. README.md says what is
 * assumed, which rule each switch takes out, and how far the search went.
 *
 * Three nodes run the same code. One VE lives on node 2 at first; node 0 is the
 * first master. There is no clock: whoever is slow, paused or hung is simply not
 * scheduled, between any two steps. A "step" (d_step) is what one transaction,
 * one rename, one call of the hypervisor or one look at things does at once.
 *
 * Everything that a power cut or the death of a daemon takes away is data, not a
 * place in a program, so that one step can take it away.
 */
#ifndef FAULTS
#define FAULTS 1                 /* things that go wrong, see World */
#endif
#ifndef STARTS
#define STARTS 1                 /* how often a daemon is started again, with its machine if that is off */
#endif
#ifndef STOPS
#define STOPS 0                  /* clean stops of a daemon */
#endif
#ifndef BAD
#define BAD 0                    /* starts of the VE that fail, or whose outcome is not known in time */
#endif
#define N 3
#define POOLS 12                 /* pool/<f>.<i>, i from 0 (given back) to 3 */
#define DIR(f, i)   ((f)*4 + (i))

/* etcd */
byte recInc[N] = 1;              /* nodes/: incarnation */
bit  inactive[N];                /* nodes/: stopped on purpose */
byte alive[N] = 1;               /* alive/: incarnation; 0 = the key is absent */
bit  notQuiesced[N];             /* recovering/: all else of admission is done */
byte holder = 1;                 /* the election: its winner + 1, or 0 */
byte open[N];                    /* failovers/: incarnation of the one that is not sealed yet, or 0 */
byte serial[N];                  /* of the last one opened */
bit  proven[N];
byte sealed[N];                  /* highest incarnation whose failover is recorded as sealed */
byte actNode, actInc, actPool;   /* the action: its node + 1 (0 = none) and that node's incarnation; where the VE lies */
bit  actMarked;

/* the mount */
bit  repo[N] = 1;                /* md.<n>/resources is there */
byte repoInc[N] = 1;             /* its .inc */
bit  inRepo[N], inPool[POOLS], inBroken;      /* where the resource of the VE lies */
bit  taken[POOLS];               /* pool/<f>.<i> is there */
#ifdef REMOVED
byte poolInc[POOLS];             /* its .inc, where that may differ from its name */
#define genuine(d)  (poolInc[d] == (d)%4)
#else
#define genuine(d)  true
#endif
byte order[N], orderInc[N];      /* the slot fence: serial and incarnation */
byte answer[N];                  /* the slot fenced: serial (the incarnation, with ANSWER_BY_INCARNATION) */

/* machines and links */
bit  power[N] = 1, toEtcd[N] = 1, toMount[N] = 1;
bit  runs[N];                    /* the VE runs here */
bit  queued[N];                  /* the hypervisor has a start of it in its queue; outlives the daemon */
bit  wasOff[N];                  /* power was lost since the last admission: what an agent, a new boot id and
                                    an operator who went to look have in common */

/* RUN_DIR: outlives the daemon, not a power cut */
bit  closed[N];                  /* the gate stays closed for the present incarnation */
byte memInc[N] = 1, memSerial[N];             /* of the last admission that was written down, and of the last answer */
bit  memLease[N] = 1;            /* the lease that holds alive/ is written down */
bit  bootStart[N];               /* the VE is to be started after this boot */

/* the daemon */
mtype = { OFF, RECOVERING, READY, ADMITTED, ACTIVE };
mtype life[N] = ACTIVE;
byte want[N];                    /* READY: the incarnation to come in with. ADMITTED: the serial to write down */
mtype = { NONE, CLOSING, STOPPED };
mtype quiesce[N] = NONE;
mtype = { IDLE, MARKED, RENAMING, CLAIMED, ASKING, CALLING, UNSURE, FAILED, ENDED };
mtype job[N] = IDLE;             /* RENAMING, ASKING and CALLING hold the gate */
byte jobPool[N], jobInc[N];
bit  jobBoot[N];

/* the master's engine in it: its term, and the step that it has decided on and not yet carried out */
mtype = { NO, OVER, YES };
mtype leading[N] = NO;           /* OVER: the term has ended, and a step of it may still be carried out */
mtype = { NOTHING, CUT, SEAL, VERIFY, DISPATCH, ORDER, WITHDRAW, PROVE, OPEN };
mtype step[N] = NOTHING;
byte on[N], with[N], seen[N];    /* the node that it is about; incarnation, serial or pool; what was compared */

byte faults = FAULTS, starts = STARTS, stops = STOPS, bad = BAD;
hidden byte x;

/* ---- The promises. ---- */

#define S1  assert(runs[0] + runs[1] + runs[2] <= 1)
#define PLACES (inRepo[0]+inRepo[1]+inRepo[2]+inBroken+inPool[0]+inPool[1]+inPool[2]+inPool[3]+inPool[4]+inPool[5]+inPool[6]+inPool[7]+inPool[8]+inPool[9]+inPool[10]+inPool[11])
#define S2  assert(PLACES == 1)
#define S3(n) assert(holder == n+1 && leading[n] == YES)
#define S4(f) assert(!inactive[f])

/* ---- Words. ---- */

#define up(n)       (life[n] != OFF)
#define reaches(n)  (up(n) && toEtcd[n])
#define sees(n)     (up(n) && toMount[n])
/* Belief in the own lease is true: validity counts from the moment a renewal was sent. */
#define valid(n)    (life[n] == ACTIVE && toEtcd[n] && alive[n] != 0 && !closed[n])
#define leads(n)    (leading[n] == YES && toEtcd[n])
#define holding(n)  (job[n] == RENAMING || job[n] == ASKING || job[n] == CALLING)
#define gate(n)     (life[n] == ACTIVE && !closed[n])
#define owns(n)     (repo[n] && repoInc[n] == recInc[n])

inline dropJob(n) { job[n] = IDLE; jobPool[n] = 0; jobInc[n] = 0; jobBoot[n] = 0 }
inline undecide(n) {
	step[n] = NOTHING; on[n] = 0; with[n] = 0; seen[n] = 0;
	if :: leading[n] == OVER -> leading[n] = NO :: else fi
}
inline termEnds(n) {
	if
	:: holder == n+1 -> holder = 0; if :: leading[n] == YES -> leading[n] = (step[n] == NOTHING -> NO : OVER) :: else fi
	:: else
	fi
}
inline daemonEnds(n) { life[n] = OFF; want[n] = 0; quiesce[n] = NONE; dropJob(n); leading[n] = NO; undecide(n) }
inline powerEnds(n) {
	power[n] = 0; runs[n] = 0; queued[n] = 0; wasOff[n] = 1;
	closed[n] = 0; memInc[n] = 0; memSerial[n] = 0; memLease[n] = 0; bootStart[n] = 0;
	daemonEnds(n)
}
inline leaseEnds(n) {
	alive[n] = 0; notQuiesced[n] = 0; termEnds(n)
}

/* ---- The master. ---- */

#ifdef UNGUARDED                 /* a master's writes do not compare its term */
#define guard(n)    (up(n) && toEtcd[n])
#else
#define guard(n)    leads(n)
#endif
#ifdef OPEN_ALIVE                /* opening does not compare that alive/ is absent */
#define GONE(f)     true
#else
#define GONE(f)     (alive[f] == 0)
#endif
#ifdef OPEN_INACTIVE             /* ... nor that nodes/ is as it was read */
#define LOST(f)     true
#else
#define LOST(f)     (!inactive[f])
#endif
#ifdef OPEN_RETURNED             /* ... nor that recovering/ is */
#define AWAY(f)     true
#else
#define AWAY(f)     (!notQuiesced[f])
#endif
#ifdef NO_PROOF                  /* nothing has to be proven */
#define evidence(n,f) true
#else
#ifdef ANSWER_BY_INCARNATION     /* order and answer carry the incarnation, and no serial */
#define answered(f) (answer[f] == open[f])
#else
#define answered(f) (answer[f] == serial[f])
#endif
#define evidence(n,f) (wasOff[f] || (answered(f) && fences(n,f)))
#endif
#ifdef UNRECORDED                /* the seal follows evidence that no transaction has recorded */
#define sealable(n,f) evidence(n,f)
#else
#define sealable(n,f) proven[f]
#endif
#ifdef WITHDRAW_PROVEN           /* a proven failover is withdrawn like any other */
#define unproven(f) true
#else
#define unproven(f) (!proven[f])
#endif
#define others      (alive[0] != 0 || alive[1] != 0 || alive[2] != 0)
#define cuts(n,f)   ((f) != n || (closed[f] && others))   /* a master does not cut its own power, unless nothing runs there and somebody can go on */
#ifdef LAST_WAITS                /* nor does it send itself an order then, or use the answer */
#define fences(n,f) cuts(n,f)
#else
#define fences(n,f) ((f) != n || closed[f])
#endif

/* May the action give way to another? Not while its node may still carry it out. */
#define itsNode     (actNode-1)
#define itsAlive    (alive[itsNode] == actInc)
#define itsOver     (sealed[itsNode] >= actInc)
#define itsGone     (!itsAlive && (open[itsNode] == actInc || itsOver || inactive[itsNode] || alive[itsNode] > actInc))
#ifdef MARK_IGNORED              /* a marked action is like any other */
#define replaceable (actNode == 0 || itsGone)
#else
#ifdef MARKED_FOR_EVER           /* a marked action waits for its outcome, whatever becomes of its node */
#define replaceable (actNode == 0 || (!actMarked && itsGone))
#else
#ifdef INACTIVE_KEEPS            /* a marked action stays with a node that was stopped on purpose */
#define replaceable (actNode == 0 || (actMarked -> itsOver : itsGone))
#else
#define replaceable (actNode == 0 || (actMarked -> itsOver || inactive[itsNode] : itsGone))
#ifndef INACTIVE_UNCOMPARED      /* the transaction does not compare that its node still is stopped */
#define still       (actNode == 0 || !actMarked || itsOver || inactive[itsNode])
#endif
#endif
#endif
#endif
#ifndef still
#define still       true
#endif
#define snapshot    (actNode*16 + actInc*2 + actMarked)
#ifdef REMOVED
#define POOLED(d)   (inPool[d] && (genuine(d) || UNCHECKED))
#else
#define POOLED(d)   inPool[d]
#endif
#ifdef NO_INC_CHECK              /* nobody looks at .inc after a seal */
#define UNCHECKED   true
#else
#define UNCHECKED   false
#endif
#define POOLED_ANY  (POOLED(0)||POOLED(1)||POOLED(2)||POOLED(3)||POOLED(4)||POOLED(5)||POOLED(6)||POOLED(7)||POOLED(8)||POOLED(9)||POOLED(10)||POOLED(11))

#define may(n)      (leads(n) && step[n] == NOTHING)
#define DECIDED     printf("n%d decides: %e, about n%d\n", n, step[n], on[n])
#define opens(n,f)  (GONE(f) && LOST(f) && AWAY(f) && open[f] == 0 && sealed[f] < recInc[f] && ((f) != n || closed[f]))
inline doOpen(n, f) {
	S3(n); S4(f); open[f] = recInc[f]; proven[f] = 0; serial[f]++;
	printf("n%d: failover n%d.%d is open, serial %d\n", n, f, open[f], serial[f])
}

#ifdef LATE                      /* also these may come much later than they were decided */
#define DECIDE_OPEN(f) :: d_step { may(n) && opens(n,f) -> step[n] = OPEN; on[n] = f; with[n] = recInc[f]; seen[n] = serial[f]; DECIDED }
#define DECIDE_ORDER(f) :: d_step { may(n) && toMount[n] && open[f] != 0 && !proven[f] && fences(n,f) && order[f] != serial[f] \
	-> step[n] = ORDER; on[n] = f; with[n] = open[f]; seen[n] = serial[f]; DECIDED }
#define DECIDE_WITHDRAW(f) :: d_step { may(n) && open[f] != 0 && notQuiesced[f] && unproven(f) -> step[n] = WITHDRAW; on[n] = f; with[n] = open[f]; seen[n] = serial[f]; DECIDED }
#define DECIDE_PROVEN(f) :: d_step { may(n) && open[f] != 0 && !proven[f] && evidence(n,f) && !notQuiesced[f] -> step[n] = PROVE; on[n] = f; with[n] = open[f]; seen[n] = serial[f]; DECIDED }
#else
#define DECIDE_OPEN(f) :: d_step { may(n) && guard(n) && opens(n,f) -> doOpen(n,f) }
#define DECIDE_ORDER(f) :: d_step { may(n) && toMount[n] && open[f] != 0 && !proven[f] && fences(n,f) && order[f] != serial[f] \
	-> order[f] = serial[f]; orderInc[f] = open[f]; printf("n%d orders n%d.%d to stop everything, serial %d\n", n, f, open[f], order[f]) }
#define DECIDE_WITHDRAW(f) :: d_step { may(n) && open[f] != 0 && notQuiesced[f] && unproven(f) \
	-> S3(n); open[f] = 0; proven[f] = 0; printf("n%d withdraws failover %d of n%d\n", n, serial[f], f) }
#define DECIDE_PROVEN(f) :: d_step { may(n) && open[f] != 0 && !proven[f] && evidence(n,f) && !notQuiesced[f] \
	-> S3(n); proven[f] = 1; printf("n%d records the proof of n%d.%d\n", n, f, open[f]) }
#endif
#define FOR_NODE(f) \
	DECIDE_OPEN(f) DECIDE_ORDER(f) DECIDE_WITHDRAW(f) DECIDE_PROVEN(f) \
	:: d_step { may(n) && open[f] != 0 && !proven[f] && !wasOff[f] && cuts(n,f) -> step[n] = CUT; on[n] = f; DECIDED } \
	:: d_step { may(n) && toMount[n] && open[f] != 0 && sealable(n,f) && !taken[DIR(f,open[f])] -> step[n] = SEAL; on[n] = f; with[n] = open[f]; DECIDED } \
	:: d_step { may(n) && toMount[n] && open[f] != 0 && taken[DIR(f,open[f])] && genuine(DIR(f,open[f])) \
		-> S3(n); sealed[f] = open[f]; open[f] = 0; proven[f] = 0; printf("n%d records: n%d.%d is sealed\n", n, f, sealed[f]) }
#define DISPATCH_TO(t) \
	:: d_step { may(n) && toMount[n] && POOLED_ANY && alive[t] == recInc[t] && replaceable -> step[n] = DISPATCH; on[n] = t; seen[n] = snapshot; \
		x = 0; do :: POOLED(x) -> break :: else -> x++ od; with[n] = x; DECIDED }
#define unchanged(n) (open[on[n]] == with[n] && serial[on[n]] == seen[n])

inline doSeal(n, f, d) {
	if
	:: !taken[d] && repo[f] ->
		taken[d] = 1; repo[f] = 0; inPool[d] = inRepo[f]; inRepo[f] = 0;
#ifdef REMOVED
		poolInc[d] = repoInc[f];
#endif
		printf("n%d renames md.n%d/resources (.inc %d) to pool/n%d.%d\n", n, f, repoInc[f], f, d%4); S2;
#ifdef REMOVED
		step[n] = VERIFY
#else
		undecide(n)
#endif
	:: else -> printf("n%d: the name pool/n%d.%d is taken\n", n, f, d%4); undecide(n)
	fi
}

/* ---- Recovering, admission. ---- */

#ifdef LOOSE_ADMISSION           /* admission does not look for a failover of the node */
#define unhindered(n) true
#else
#ifdef WAIT_FOR_DONE             /* admission waits until the failover is done, not only sealed */
#define unhindered(n) (open[n] == 0 && !inPool[DIR(n,1)] && !inPool[DIR(n,2)])
#else
#define unhindered(n) (open[n] == 0)
#endif
#endif
#ifdef QUIESCED_RETURNS          /* the gate is open again after a restart of the daemon */
#define FORGET_GATE(n) closed[n] = 0
#else
#define FORGET_GATE(n) skip
#endif
#ifdef STARTS_IN_MEMORY          /* what is to be started after a boot is not written down */
#define FORGET_STARTS(n) bootStart[n] = 0
#else
#define FORGET_STARTS(n) skip
#endif
#ifdef OTHER_LEASE               /* whoever holds alive/ of this incarnation is taken for this daemon */
#define ownLease(n) true
#else
#define ownLease(n) (alive[n] == 0 || memLease[n])
#endif
#ifdef OLD_ORDERS                /* an order of before the admission is obeyed */
#define ordered(n)  (orderInc[n] == memInc[n] && order[n] != 0 && (!closed[n] || order[n] != memSerial[n]))
#else
#define ordered(n)  (orderInc[n] == memInc[n] && order[n] > memSerial[n])
#endif
#ifdef ANSWER_BY_INCARNATION
#define ANSWER(n)   orderInc[n]
#else
#define ANSWER(n)   order[n]
#endif
#ifdef STOP_THEN_WAIT            /* everything is stopped first, and those who hold the gate are waited for then */
#define STOPPABLE(n) true
#define ANSWERABLE(n) (!holding(n) && !queued[n])
#else
#ifdef NO_WAIT                   /* nobody waits for those who hold the gate */
#define STOPPABLE(n) true
#define ANSWERABLE(n) (!runs[n] && !queued[n])
#else
#define STOPPABLE(n) (!holding(n))
#ifdef NO_BARRIER                /* nobody asks whether the hypervisor has something queued */
#define ANSWERABLE(n) (!runs[n])
#else
#define ANSWERABLE(n) (!runs[n] && !queued[n])
#endif
#endif
#endif
#ifdef KEEP_LEASE                /* a node that has stopped everything keeps its lease */
#define REVOKE(n)   skip
#define unrenewed(n) (!reaches(n) || wasOff[n])
#else
#define REVOKE(n)   if :: toEtcd[n] && alive[n] != 0 -> leaseEnds(n) :: else fi
#define unrenewed(n) (!reaches(n) || wasOff[n] || closed[n] || (!memLease[n] && life[n] != ADMITTED))
#endif
#ifdef GUESS                     /* a start whose outcome is not known counts as failed, and nobody looks again */
#define CERTAIN(n)  true
#else
#define CERTAIN(n)  (!runs[n] && !queued[n])
#endif
#ifdef OLD_WORK                  /* what began under one incarnation goes on under the next */
#define SAME(n)     true
#else
#define SAME(n)     (jobInc[n] == recInc[n])
#endif
#define mine(n)     (actNode == n+1 && actInc == recInc[n])

/* All that admission needs besides the transaction: the hypervisor has nothing queued, what runs and lies elsewhere is stopped. */
#define looks(n)    (life[n] == RECOVERING && reaches(n) && toMount[n] && !queued[n] && !(alive[n] != 0 && memLease[n]))

inline begin(n) { closed[n] = 1; quiesce[n] = CLOSING }

proctype Node(byte n) {
	do
	/* -- election: any daemon that sees the mount -- */
	:: d_step { reaches(n) && toMount[n] && holder == 0 && leading[n] == NO -> holder = n+1; leading[n] = YES; printf("n%d is elected\n", n) }
	FOR_NODE(0) FOR_NODE(1) FOR_NODE(2)
	DISPATCH_TO(0) DISPATCH_TO(1) DISPATCH_TO(2)
	/* -- what it decided is carried out, if the transaction allows it -- */
	:: d_step { step[n] == CUT -> x = on[n]; undecide(n); printf("n%d has the power of n%d cut\n", n, x); powerEnds(x) }
	:: d_step { step[n] == SEAL && toMount[n] -> x = DIR(on[n],with[n]); doSeal(n,on[n],x) }
	:: d_step { (step[n] == SEAL || step[n] == ORDER) && !toMount[n] -> undecide(n) }
#ifdef REMOVED
	:: d_step { step[n] == VERIFY && toMount[n] -> x = DIR(on[n],with[n]);
		if
		:: !genuine(x) && !UNCHECKED && !repo[on[n]] ->
			taken[x] = 0; repo[on[n]] = 1; repoInc[on[n]] = poolInc[x]; poolInc[x] = 0; inRepo[on[n]] = inPool[x]; inPool[x] = 0;
			printf("n%d came too late and renames pool/n%d.%d back\n", n, on[n], with[n]); S2
		:: else
		fi; undecide(n) }
#endif
	:: d_step { step[n] == DISPATCH ->
		if
		:: guard(n) && seen[n] == snapshot && still -> S3(n); actNode = on[n]+1; actInc = recInc[on[n]]; actPool = with[n]; actMarked = 0; printf("n%d: an action for n%d, from pool/n%d.%d\n", n, on[n], with[n]/4, with[n]%4)
		:: else
		fi; undecide(n) }
#ifdef LATE
	:: d_step { step[n] == ORDER && toMount[n] -> order[on[n]] = seen[n]; orderInc[on[n]] = with[n]; printf("n%d orders n%d.%d to stop everything, serial %d\n", n, on[n], with[n], seen[n]); undecide(n) }
	:: d_step { step[n] == OPEN ->
		if :: guard(n) && opens(n,on[n]) && recInc[on[n]] == with[n] && serial[on[n]] == seen[n] -> doOpen(n,on[n]) :: else fi; undecide(n) }
	:: d_step { step[n] == WITHDRAW ->
		if :: guard(n) && unchanged(n) && notQuiesced[on[n]] && unproven(on[n]) -> S3(n); open[on[n]] = 0; proven[on[n]] = 0; printf("n%d withdraws failover %d of n%d\n", n, seen[n], on[n]) :: else fi; undecide(n) }
	:: d_step { step[n] == PROVE ->
		if :: guard(n) && unchanged(n) && !proven[on[n]] -> S3(n); proven[on[n]] = 1; printf("n%d records the proof of n%d.%d\n", n, on[n], with[n]) :: else fi; undecide(n) }
#endif
	/* -- the agent: mark, claim, start, answer -- */
	:: d_step { valid(n) && job[n] == IDLE && mine(n) && !bootStart[n] -> actMarked = 1; job[n] = MARKED; jobPool[n] = actPool; jobInc[n] = actInc; printf("n%d marks the action\n", n) }
	:: d_step { valid(n) && job[n] == IDLE && actNode == n+1 && actInc != recInc[n] -> actNode = 0; actInc = 0; actPool = 0; actMarked = 0; printf("n%d: the action is superseded\n", n) }
	:: d_step { valid(n) && job[n] == IDLE && bootStart[n] -> job[n] = CLAIMED; jobBoot[n] = 1; jobInc[n] = recInc[n]; printf("n%d takes up a start after its boot\n", n) }
	:: d_step { job[n] == MARKED && valid(n) && SAME(n) -> job[n] = RENAMING }
	:: d_step { job[n] == RENAMING && up(n) ->
		if
		:: toMount[n] && owns(n) && SAME(n) && POOLED(jobPool[n]) ->
			inRepo[n] = 1; job[n] = CLAIMED; printf("n%d claims the VE\n", n);
#ifdef COPY_CLAIM                /* a claim is a copy and a removal */
			S2;
#endif
			inPool[jobPool[n]] = 0; S2
		:: toMount[n] && !POOLED(jobPool[n]) -> if :: inRepo[n] -> job[n] = CLAIMED :: else -> job[n] = ENDED; printf("n%d: the VE is gone\n", n) fi
		:: else -> job[n] = MARKED
		fi }
	:: d_step { job[n] == CLAIMED && valid(n) && SAME(n) && toMount[n] ->
		if
		:: owns(n) && inRepo[n] && (jobBoot[n] || mine(n)) -> job[n] = ASKING
		:: else -> job[n] = ENDED
		fi }
	:: d_step { job[n] == ASKING && up(n) -> if :: runs[n] -> job[n] = ENDED :: else -> job[n] = CALLING; queued[n] = 1; printf("n%d asks its hypervisor to start the VE\n", n) fi }
	:: d_step { queued[n] && power[n] -> queued[n] = 0; runs[n] = 1; printf("the hypervisor of n%d starts the VE\n", n); S1 }
	:: d_step { job[n] == CALLING && up(n) && !queued[n] -> job[n] = ENDED }
	:: d_step { job[n] == CALLING && up(n) && queued[n] && bad > 0 && !jobBoot[n] -> bad--; job[n] = UNSURE; printf("* n%d does not know whether the start succeeds\n", n) }
	:: d_step { job[n] == CALLING && up(n) && queued[n] && bad > 0 && !jobBoot[n] -> bad--; queued[n] = 0; job[n] = UNSURE; printf("* the start on n%d fails\n", n) }
#ifdef GUESS
	:: d_step { job[n] == UNSURE && up(n) -> job[n] = FAILED }
#else
	:: d_step { job[n] == UNSURE && up(n) && !queued[n] -> runs[n] = 0; job[n] = FAILED; printf("n%d has stopped the VE by force\n", n) }
#endif
	:: d_step { job[n] == FAILED && valid(n) && toMount[n] && owns(n) && inRepo[n] && mine(n) && CERTAIN(n) -> inRepo[n] = 0; taken[DIR(n,0)] = 1; inPool[DIR(n,0)] = 1; job[n] = ENDED; printf("n%d gives the VE back\n", n); S2 }
	:: d_step { job[n] == FAILED && valid(n) && toMount[n] && owns(n) && inRepo[n] && mine(n) && CERTAIN(n) -> inRepo[n] = 0; inBroken = 1; job[n] = ENDED; printf("n%d: the VE is broken\n", n); S2 }
	:: d_step { job[n] == ENDED && jobBoot[n] -> bootStart[n] = 0; dropJob(n) }
	:: d_step { job[n] == ENDED && !jobBoot[n] && valid(n) -> if :: mine(n) && SAME(n) -> actNode = 0; actInc = 0; actPool = 0; actMarked = 0 :: else fi; dropJob(n) }
	:: d_step { (job[n] == MARKED || job[n] == CLAIMED || job[n] == UNSURE || job[n] == FAILED || job[n] == ENDED) && (!gate(n) || alive[n] == 0 || !SAME(n)) -> dropJob(n) }
	/* -- lease lost -- */
	:: d_step { life[n] == ACTIVE && quiesce[n] == NONE && alive[n] == 0 -> life[n] = RECOVERING; printf("n%d.%d is not admitted any more\n", n, recInc[n]) }
	/* -- order, or repository gone: close the gate, wait for its holders, stop, look, answer -- */
	:: d_step { sees(n) && quiesce[n] == NONE && ordered(n) -> begin(n); printf("n%d.%d obeys the order %d\n", n, recInc[n], order[n]) }
	:: d_step { sees(n) && quiesce[n] == NONE && life[n] == ACTIVE && !owns(n) -> begin(n); printf("n%d.%d: its repository is gone\n", n, recInc[n]) }
	:: d_step { quiesce[n] == CLOSING && STOPPABLE(n) -> runs[n] = 0; quiesce[n] = STOPPED; printf("n%d stops everything\n", n) }
#ifndef STOP_THEN_WAIT
	:: d_step { quiesce[n] == STOPPED && runs[n] -> quiesce[n] = CLOSING }
#endif
	:: d_step { quiesce[n] == STOPPED && ANSWERABLE(n) && toMount[n] ->
		if :: ordered(n) -> answer[n] = ANSWER(n); memSerial[n] = order[n]; printf("n%d answers %d\n", n, order[n]) :: else fi;
		quiesce[n] = NONE;
		if :: life[n] == ACTIVE -> REVOKE(n); life[n] = RECOVERING :: else fi }
	/* -- back: resume, or look, make the next repository, declare, come in -- */
	:: d_step { life[n] == RECOVERING && reaches(n) && toMount[n] && alive[n] != 0 && memLease[n] && quiesce[n] == NONE ->
		if
		:: !closed[n] && owns(n) -> life[n] = ACTIVE; printf("n%d.%d goes on where its daemon ended\n", n, recInc[n])
		:: closed[n] -> leaseEnds(n)
		:: else -> memLease[n] = 0
		fi }
	:: d_step { looks(n) && runs[n] && !inRepo[n] -> runs[n] = 0; printf("n%d stops what lies elsewhere by now\n", n) }
	:: d_step { looks(n) && !(runs[n] && !inRepo[n]) && repo[n] && repoInc[n] == recInc[n] && !closed[n] -> want[n] = recInc[n]; life[n] = READY; printf("n%d looks: all is as it was\n", n) }
	:: d_step { looks(n) && !(runs[n] && !inRepo[n]) && taken[DIR(n,recInc[n])] && open[n] == 0 && (repo[n] -> repoInc[n] == recInc[n]+1 : recInc[n] < 3) ->
		repo[n] = 1; repoInc[n] = recInc[n]+1; want[n] = repoInc[n]; life[n] = READY; printf("n%d has its repository %d\n", n, repoInc[n]) }
	:: d_step { life[n] == READY && reaches(n) && open[n] != 0 && !proven[n] && !closed[n] && !notQuiesced[n] -> notQuiesced[n] = 1; printf("n%d.%d declares: not quiesced\n", n, recInc[n]) }
	:: d_step { reaches(n) && notQuiesced[n] && (proven[n] || closed[n]) -> notQuiesced[n] = 0 }
	:: d_step { life[n] == READY && (open[n] != 0 && proven[n] || closed[n] || sealed[n] >= want[n]) && quiesce[n] == NONE -> life[n] = RECOVERING; want[n] = 0 }
	:: d_step { life[n] == READY && reaches(n) && unhindered(n) && sealed[n] < want[n] && ownLease(n) ->
		if :: want[n] == recInc[n] && wasOff[n] && inRepo[n] && repo[n] -> bootStart[n] = 1 :: want[n] > recInc[n] -> bootStart[n] = 0; closed[n] = 0 :: else fi;
		recInc[n] = want[n]; alive[n] = want[n]; inactive[n] = 0; notQuiesced[n] = 0; wasOff[n] = 0; memLease[n] = 0;
		want[n] = serial[n]; life[n] = ADMITTED; printf("n%d.%d is admitted\n", n, recInc[n]) }
	:: d_step { life[n] == ADMITTED && quiesce[n] == NONE ->
		memInc[n] = recInc[n]; memSerial[n] = want[n]; memLease[n] = 1; want[n] = 0;
		if :: closed[n] -> life[n] = RECOVERING :: else -> life[n] = ACTIVE fi }
	/* -- leases that nobody renews end -- */
	:: d_step { alive[n] != 0 && unrenewed(n) -> alive[n] = 0; printf("the lease of n%d ends\n", n) }
	:: d_step { (notQuiesced[n] || holder == n+1) && !reaches(n) -> notQuiesced[n] = 0; termEnds(n) }
	:: d_step { holder == n+1 && leading[n] != YES -> holder = 0 }
	od
}

/* ---- What goes wrong, and what people do. ---- */

#ifdef AUTOSTART                 /* the hypervisor starts by itself what it knows of */
#define KNOWN(n)    ((n) == 2)
#else
#define KNOWN(n)    0
#endif
#ifndef CUT_ONLY                 /* bit n: power of node n may be cut */
#define CUT_ONLY 7
#endif
#ifndef LAPSE_ONLY               /* bit n: its lease may end though it lives */
#define LAPSE_ONLY 7
#endif
#define HAS(mask,n) (((mask) >> (n)) & 1)
#ifdef ONLY_CUTS_AND_LAPSES      /* nothing else goes wrong */
#define OTHER       false
#else
#define OTHER       (faults > 0)
#endif

#define BEFALLS(n) \
	:: d_step { faults > 0 && HAS(CUT_ONLY,n) && power[n] -> faults--; printf("* the power of n%d is cut\n", n); powerEnds(n) } \
	:: d_step { OTHER && up(n) -> faults--; daemonEnds(n); FORGET_GATE(n); FORGET_STARTS(n); printf("* the daemon of n%d dies\n", n) } \
	:: d_step { faults > 0 && HAS(LAPSE_ONLY,n) && (alive[n] != 0 || holder == n+1) && reaches(n) -> faults--; leaseEnds(n); printf("* the lease of n%d ends, for it was slow or paused\n", n) } \
	:: d_step { OTHER && toEtcd[n] -> faults--; toEtcd[n] = 0; printf("* n%d loses etcd\n", n) } \
	:: d_step { OTHER && toMount[n] -> faults--; toMount[n] = 0; printf("* n%d loses the mount\n", n) } \
	STRANGER_ON(n) \
	:: d_step { !toEtcd[n] -> toEtcd[n] = 1; printf("n%d has etcd again\n", n) } \
	:: d_step { !toMount[n] -> toMount[n] = 1; printf("n%d has the mount again\n", n) }
#define PEOPLE(n) \
	:: d_step { starts > 0 && !up(n) -> starts--; if :: !power[n] -> power[n] = 1; runs[n] = KNOWN(n) :: else fi; life[n] = RECOVERING; printf("n%d: the daemon starts\n", n); S1 } \
	STOP_OF(n)
#ifdef QUIESCED_INACTIVE         /* a node that has begun to stop everything is recorded as Inactive like any other */
#define halfway(n)  false
#else
#define halfway(n)  closed[n]
#endif
#if STOPS > 0
#define STOP_OF(n) \
	:: d_step { stops > 0 && up(n) -> stops--; \
		if :: toEtcd[n] && alive[n] != 0 && memLease[n] && open[n] == 0 && !halfway(n) -> inactive[n] = 1; leaseEnds(n); memLease[n] = 0; printf("* n%d is stopped on purpose: Inactive\n", n) \
		:: else -> printf("* n%d is stopped on purpose, and cannot say so\n", n) fi; daemonEnds(n) } \
	:: d_step { inactive[n] && !power[n] -> inactive[n] = 0; printf("an operator confirms that n%d is off\n", n) }
#else
#define STOP_OF(n)
#endif
#ifdef STRANGER                  /* somebody else writes the node's heartbeat: a reason to quiesce without an order */
#define STRANGER_ON(n) :: d_step { OTHER && life[n] == ACTIVE && quiesce[n] == NONE && toMount[n] -> faults--; begin(n); printf("* n%d sees a stranger in its slot\n", n) }
#else
#define STRANGER_ON(n)
#endif
#ifndef SPARED                   /* bit n: nothing befalls node n */
#define SPARED 0
#endif
#if SPARED & 1
#define VICTIM0
#else
#define VICTIM0 BEFALLS(0) PEOPLE(0)
#endif
#if SPARED & 2
#define VICTIM1
#else
#define VICTIM1 BEFALLS(1) PEOPLE(1)
#endif

proctype World() {
	do
	VICTIM0 VICTIM1 BEFALLS(2) PEOPLE(2)
#ifdef REMOVED                   /* an operator removes the sealed directory of incarnation 1 of node 2, once it is empty */
	:: d_step { faults > 0 && taken[DIR(2,1)] && !inPool[DIR(2,1)] && recInc[2] > 1 -> faults--; taken[DIR(2,1)] = 0; poolInc[DIR(2,1)] = 0; printf("* somebody removes pool/n2.1\n") }
#endif
#ifdef NO_TOMBSTONE              /* ... and nobody looks at .inc afterwards: the name is all that protects */
	:: d_step { taken[DIR(2,1)] && !inPool[DIR(2,1)] && recInc[2] > 1 -> taken[DIR(2,1)] = 0; printf("pool/n2.1 is removed\n") }
#endif
	od
}

/* Where nothing can move any more: the VE runs, or is broken, or stays with a node that was stopped on purpose. */
#define resting(n)  (inactive[n] && !up(n) && inRepo[n])
#define L1  assert(!(up(0) || up(1) || up(2)) || runs[0] || runs[1] || runs[2] || inBroken || resting(0) || resting(1) || resting(2) EXCUSED)
#define L2  assert(!(up(0) || up(1) || up(2)) || open[0] + open[1] + open[2] == 0 EXCUSED)
#ifndef EXCUSED
#define EXCUSED
#endif
proctype Quiet() {
#ifndef ONLY_SAFETY
	timeout -> d_step { printf("nothing moves any more\n"); L1; L2 }
#else
	skip
#endif
}

init {
	atomic {
		inRepo[2] = 1; runs[2] = 1; leading[0] = YES;
		run World(); run Node(0); run Node(1); run Node(2); run Quiet()
	}
}

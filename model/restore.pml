/*
 * What if etcd is put back to an older state, from a backup, under a cluster
 * that runs? For SPIN. README.md says what is assumed.
 *
 * Node n fails and returns while a master takes it over or does not; its VE is
 * started elsewhere then. A backup of etcd is taken at some moment and put back
 * at a later one. Mount, machines and daemons are not put back. Terms are numbered
 * by etcd's revision, which may be above that on the mount again by then: the
 * epoch is not modelled as a protection, only the marks are.
 */
#ifndef TERMS
#define TERMS 2                  /* masters after the first one */
#endif
#ifndef LOSSES
#define LOSSES 2                 /* how often the lease or the power of the node is lost */
#endif

/* etcd, and the backup of it */
typedef Etcd { byte mark, serial, open, inc, term; bit proven, alive, declared; }
Etcd now, backup;                /* set up by Operator */
bit haveBackup, restored;

/* the mount: the last mark; is the repository there, and of which incarnation; is pool/n.1 taken; the answer */
byte mark, answer, repoInc = 1;
bit  repo = 1, taken;
mtype = { REPO, POOL, ELSEWHERE };
mtype place = REPO;

/* the node; its power was lost since it came in last */
bit  running = 1, closed, admitted = 1, off;
byte memSerial;
bit  runsElsewhere;

/* the master: its term, 0 if it has stopped; the highest mark and term there ever were */
byte me = 1, marks, terms = 1;
bit  sealing;                    /* it has seen a recorded proof and is about to rename */
byte losses = LOSSES;

#define S1        assert(!(running && runsElsewhere))
#define leads     (me != 0 && now.term == me)
#define known     (now.mark >= mark)   /* etcd knows the mark on the mount: marks are numbered, and kept */

#ifdef NO_MARKS                  /* nobody leaves marks, or looks at them */
inline leaveMark() { skip }
#define MARKED true
#else
inline leaveMark() { marks++; now.mark = marks; mark = marks }
#define MARKED known
#endif
#ifdef WITHDRAWN_UNMARKED        /* a mark is left before an opening, and none before a withdrawal */
inline markWithdrawal() { skip }
#else
inline markWithdrawal() { leaveMark() }
#endif

active proctype Master() {
	do
	:: d_step { terms <= TERMS && !(leads) && !sealing -> terms++; me = terms; now.term = me; printf("a new master, term %d\n", me);
		if :: MARKED -> leaveMark() :: else -> me = 0; printf("it finds marks that etcd does not know, and does nothing\n") fi }
	:: d_step { leads && terms <= TERMS -> now.term = 0; printf("* the master is slow; its term ends\n") }
	:: d_step { leads && !now.alive && now.open == 0 && !now.declared && now.inc == 1 && !(taken) && MARKED && now.serial < 4 ->
		leaveMark(); now.serial++; now.open = now.serial; now.proven = 0; printf("the failover is open, serial %d\n", now.open) }
	:: d_step { leads && now.open != 0 && now.declared && !now.proven && MARKED -> markWithdrawal(); now.open = 0; printf("it is withdrawn\n") }
	:: d_step { leads && now.open != 0 && !now.declared && !now.proven && (off || answer == now.open) -> now.proven = 1; printf("its proof is recorded\n") }
	:: d_step { leads && now.open != 0 && now.proven && !taken && !sealing -> sealing = 1 }
	:: d_step { sealing -> sealing = 0;
		if :: !taken && repo && repoInc == 1 -> taken = 1; repo = 0; if :: place == REPO -> place = POOL :: else fi; printf("the repository is sealed\n") :: else fi }
	:: d_step { leads && now.open != 0 && taken -> now.open = 0; now.proven = 0; printf("the seal is recorded\n") }
	:: d_step { leads && place == POOL && now.open == 0 -> place = ELSEWHERE; runsElsewhere = 1; printf("the VE is started elsewhere\n"); S1 }
	od
}

active proctype Node() {
	do
	:: d_step { losses > 0 -> losses--; now.alive = 0; now.declared = 0; admitted = 0; printf("* the lease of the node ends\n") }
	:: d_step { losses > 0 -> losses--; running = 0; closed = 0; admitted = 0; memSerial = 0; off = 1; now.alive = 0; now.declared = 0; printf("* the node is rebooted\n") }
	:: d_step { admitted && !now.alive -> admitted = 0; now.declared = 0 }
	:: d_step { now.open > memSerial && !closed && !off -> closed = 1; printf("the node obeys the order %d\n", now.open) }
	:: d_step { closed && running -> running = 0 }
	:: d_step { closed && !running && now.open > memSerial -> answer = now.open; memSerial = now.open; printf("it answers %d\n", answer) }
	:: d_step { (admitted || running) && !repo -> admitted = 0; closed = 1; running = 0; printf("the repository is gone: the node stops everything\n") }
	:: d_step { !admitted && repo && repoInc == 1 && !closed && now.open != 0 && !now.proven && !now.declared -> now.declared = 1; printf("the node declares: not quiesced\n") }
	:: d_step { now.declared && (closed || now.proven) -> now.declared = 0 }
	:: d_step { !admitted && repo && repoInc == 1 && !closed && now.open == 0 && now.inc == 1 && !now.alive -> now.alive = 1; now.declared = 0; admitted = 1; off = 0; memSerial = now.serial;
		if :: place == REPO -> running = 1; S1 :: else fi; printf("the node is admitted, and runs what it ran\n") }
	:: d_step { !admitted && !repo && taken && !running && now.open == 0 -> repo = 1; repoInc = 2 }
	:: d_step { !admitted && repo && repoInc == 2 && now.open == 0 -> now.inc = 2; now.alive = 1; now.declared = 0; admitted = 1; closed = 0; off = 0; memSerial = now.serial; printf("the node is admitted anew, empty\n") }
	od
}

inline copy(a, b) { b.mark = a.mark; b.serial = a.serial; b.open = a.open; b.inc = a.inc; b.term = a.term; b.proven = a.proven; b.alive = a.alive; b.declared = a.declared }
active proctype Operator() {
	atomic { now.mark == 0 -> now.inc = 1; now.term = 1; now.alive = 1 };
	d_step { !haveBackup -> haveBackup = 1; copy(now, backup); printf("* a backup of etcd is taken\n") };
	d_step { !restored -> restored = 1; copy(backup, now);
#ifndef FAST                     /* all this takes less time than a lease lasts, so that a term outlives it */
		me = 0; sealing = 0;
#endif
		printf("* etcd is put back to that\n") }
}

/* Sleeping and waking: no wake-up is lost, although nothing bounds a sleep here. (The library bounds it by 10 ms.)
 *
 * stands for: src/watch/wait.c: fe_watch_wait wait_slowly sleep_on_bell fe_watch_ring abort_rank fe_watch_abort
 * stands for: src/watch/blame.c: fe_watch_cells cell_reached
 * stands for: src/link/near.h: fe_link_signal
 * stands for: src/base/os.h: fe_futex_wait fe_futex_wake
 *
 * Rank 0 waits, in two threads (two streams), each for notes of its own kind from both other ranks, ROUNDS times. Ranks 1 and 2 write
 * both kinds; one that fails on the way aborts the group. Spinning and yielding are left out, being more looks at the same thing; so is
 * the wrap of the bell after 2^32 rings between two lines of one thread.
 *
 * What can go wrong is a rank that sleeps for ever: an end state that is none.
 *
 * good:
 * good: -DABORTS
 * good: -DABORTS -DTHREADS=1 -DROUNDS=3
 * good: -DBUFFER -DTHREADS=1 -DROUNDS=3
 * broken: deadlock -DBREAK_NO_LOOK                goes to sleep without another look
 * broken: deadlock -DBREAK_LOOK_FIRST             looks before it says that it sleeps
 * broken: deadlock -DBREAK_SEEN_LATE              reads the bell after that look
 * broken: deadlock -DBREAK_RING_FIRST             looks for sleepers before the epoch is stored
 * broken: deadlock -DBUFFER -DBREAK_RELEASE       stores the epoch with release only: it may still be in the store buffer
 * broken: deadlock -DBREAK_SAME_BELL              wakes without changing the bell
 * broken: deadlock -DBREAK_WAKE_ONE               wakes one thread of two
 * broken: deadlock -DABORTS -DBREAK_ABORT_UNSEEN  that other look leaves out the abort
 * broken: deadlock -DABORTS -DBREAK_ABORT_MUTE    the abort wakes nobody
 */
#ifndef ROUNDS
#define ROUNDS 1
#endif
#ifndef THREADS
#define THREADS 2
#endif
#define WRITERS 2

#define CELL(thread, writer) ((thread) * WRITERS + (writer))

byte epoch[4];      /* rank 0's cells, by kind (a kind a thread) and source */
byte bell, sleepers; /* of rank 0's control block */
bool aborted;
bool asleep[2];

#define READY (epoch[CELL(me, from)] >= round)

inline futex_wait(seen) {
    atomic {
        if
        :: bell == seen -> asleep[me] = true
        :: else
        fi
    }
    !asleep[me]
}

inline futex_wake() {
#ifdef BREAK_WAKE_ONE
    atomic {
        if
        :: asleep[0] -> asleep[0] = false
        :: asleep[1] -> asleep[1] = false
        :: !asleep[0] && !asleep[1]
        fi
    }
#else
    d_step {
        asleep[0] = false;
        asleep[1] = false
    }
#endif
}

/* Two looks, one after the other, of which the first may be out of date at the second. */
inline look() {
    quiet = !READY;
#ifndef BREAK_ABORT_UNSEEN
    quiet = quiet && !aborted
#endif
}

inline sleep_on_bell() {
    seen = bell;
#ifdef BREAK_LOOK_FIRST
    look();
    sleepers++;
#else
    sleepers++;
#ifdef BREAK_NO_LOOK
    quiet = true;
#else
    look();
#endif
#endif
#ifdef BREAK_SEEN_LATE
    seen = bell;
#endif
    if
    :: quiet -> futex_wait(seen)
    :: else
    fi;
    d_step { /* what is not used any more does not make states differ */
        sleepers--;
        seen = 0;
        quiet = false
    }
}

proctype waiter(byte me) {
    byte round = 1, from, seen;
    bool quiet;
    do
    :: round <= ROUNDS ->
        from = 0;
        do
        :: from < WRITERS ->
            do
            :: READY -> break
#ifdef ABORTS
            :: !READY && aborted -> goto over
#endif
            :: !READY && !aborted -> sleep_on_bell()
            od;
            from++
        :: else -> break
        od;
        round++
    :: else -> break
    od;
over:
    skip
}

/* Through a store buffer, as a processor has one: a sequentially consistent store is in memory before its rank goes on, another one at
 * some later time. */
#ifdef BUFFER
byte buffered[4]; /* stored by a writer, not yet in memory; 0: nothing */

proctype memory(byte cell) {
end:
    do
    :: atomic { buffered[cell] -> epoch[cell] = buffered[cell]; buffered[cell] = 0 }
    od
}
#endif

inline store(thread, value) {
#ifdef BUFFER
    atomic { !buffered[CELL(thread, me)] -> buffered[CELL(thread, me)] = value }
#ifndef BREAK_RELEASE
    !buffered[CELL(thread, me)]
#endif
#else
    epoch[CELL(thread, me)] = value
#endif
}

inline ring() {
    if
    :: sleepers ->
#ifndef BREAK_SAME_BELL
        bell++;
#endif
        futex_wake()
    :: else
    fi
}

inline signal(thread) {
#ifdef BREAK_RING_FIRST
    ring();
    store(thread, round)
#else
    store(thread, round);
    ring()
#endif
}

proctype writer(byte me) {
    byte round = 1;
    do
    :: round <= ROUNDS ->
#ifdef ABORTS
        if
        :: break /* a rank that failed */
        :: true
        fi;
#endif
        signal(0);
#if THREADS > 1
        signal(1);
#endif
        round++
    :: else -> break
    od;
#ifdef ABORTS
    if
    :: round <= ROUNDS -> /* who may abort the group, if it is one that lives on */
        aborted = true;
#ifndef BREAK_ABORT_MUTE
        bell++;
        futex_wake()
#endif
    :: else
    fi
#endif
}

init {
    atomic {
        run waiter(0);
#if THREADS > 1
        run waiter(1);
#endif
#ifdef BUFFER
        run memory(0);
        run memory(1);
        run memory(2);
        run memory(3);
#endif
        run writer(0);
        run writer(1)
    }
}

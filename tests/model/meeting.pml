/* Meetings: nobody leaves one before all have come, no scratch and no MEET is written over before it is read, and nobody waits for ever.
 *
 * stands for: src/group/meet.c: round_pass carry hold call_meeting
 * stands for: src/group/group.c: fe_flight_await fe_flight_mark
 * stands for: src/cpu/space.c: fe_cpu_publish fe_cpu_collect
 * notes: FE_MEET
 *
 * Three ranks come to STEPS meetings, one process a rank, since meetings wait for each other whatever their streams. Each is a barrier, an
 * all-gather, or a broadcast by rank 0: any sequence of them, the same on all ranks. A meeting of many bytes is several rounds, each
 * like a meeting of its own.
 *
 * good: -DSTEPS=4
 * good: -DSTEPS=5 -DFUSED
 * broken: assertion -DBREAK_SIGNAL_FIRST     the epoch of MEET before its words
 * broken: assertion -DBREAK_MEET_FIRST       MEET before the scratch is written
 * broken: assertion -DBREAK_NO_SETTLE        leaves without MEET of all
 * broken: assertion -DBREAK_ONE_SCRATCH      one scratch for two meetings
 * broken: assertion -DBREAK_ONE_HALF         one scratch and one cell for two meetings
 * broken: assertion -DBREAK_NO_FLIGHT        comes to the next meeting with the bytes of this one still to be collected
 * broken: deadlock -DBREAK_MEET_LATE         MEET of all is awaited before the own is said
 */
#include "note.pml"
#ifndef STEPS
#define STEPS 4
#endif

#define MEET 0

#define BARRIER   1
#define GATHER    2
#define BROADCAST 3

byte kind[STEPS + 1]; /* of each meeting; 0: nobody has come yet */
byte came[RANKS];     /* the last meeting that each rank came to */
byte scratch[RANKS * 2];
#ifdef BREAK_ONE_SCRATCH
#define SCRATCH(rank, n) scratch[rank]
#else
#define SCRATCH(rank, n) scratch[(rank) * 2 + HALF(n)]
#endif

#define HAS_BYTES(rank, n) (kind[n] == GATHER || (kind[n] == BROADCAST && rank == 0))

inline come(n) {
    atomic {
        if
        :: !kind[n] -> kind[n] = BARRIER
        :: !kind[n] -> kind[n] = GATHER
        :: !kind[n] -> kind[n] = BROADCAST
        :: else
        fi;
        came[me] = n
    }
}

inline publish(n) {
    if
    :: HAS_BYTES(me, n) -> SCRATCH(me, n) = n
    :: else
    fi
}

inline meet(n) {
    come(n);
#ifdef BREAK_MEET_LATE
    publish(n);
    hear_all(MEET, HALF(n), n);
    tell_all(MEET, n);
#else
#ifdef BREAK_MEET_FIRST
    tell_all(MEET, n);
    publish(n);
#else
    publish(n);
    tell_all(MEET, n);
#endif
#ifndef BREAK_NO_SETTLE
    hear_all(MEET, HALF(n), n);
#endif
#endif
    i = FIRST;
    do
    :: i != me ->
        d_step {
            assert(came[i] >= n);
            assert(word[AT(me, HALF(n), i)] == n);
            i = NEXT(i)
        }
    :: else -> break
    od;
    i = 0
}

/* Each scratch is read for a while. */
inline collect(n) {
    i = FIRST;
    do
    :: i != me && HAS_BYTES(i, n) ->
        assert(SCRATCH(i, n) == n);
        d_step {
            assert(SCRATCH(i, n) == n);
            i = NEXT(i)
        }
    :: i != me && !HAS_BYTES(i, n) -> i = NEXT(i)
    :: i == me -> break
    od;
    i = 0
}

proctype rank(byte me) {
    byte i, n = 1;
    do
    :: n <= STEPS ->
        meet(n);
#ifdef BREAK_NO_FLIGHT
        if
        :: n > 1 -> collect(n - 1)
        :: else
        fi;
#else
        collect(n);
#endif
        n++
    :: else -> break
    od
}

init {
    atomic {
        run rank(0);
        run rank(1);
        run rank(2)
    }
}

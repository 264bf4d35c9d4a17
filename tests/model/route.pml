/* Exchange of counts: no row of counts is written over before it is read, none is read before it is there, and nobody waits for ever.
 *
 * stands for: src/exchange/route.c: spread_pass place_pass make
 * stands for: src/group/group.c: fe_flight_await fe_flight_mark
 * stands for: src/cpu/route.c: fe_cpu_spread fe_cpu_place
 * notes: FE_COUNTS FE_COUNTED
 *
 * Three ranks make STEPS exchanges, each in two passes. Two things keep counts from being written over, and either is enough: that exchanges
 * wait for each other whatever their streams, so that a rank is one process (SERIAL); and COUNTED, which needs no such order: without SERIAL
 * a rank places on another stream than it spreads on.
 *
 * good: -DSTEPS=5 -DSERIAL
 * good: -DSTEPS=9 -DSERIAL -DFUSED
 * good: -DSTEPS=5 -DSERIAL -DBREAK_NO_COUNTED     the order alone
 * good: -DSTEPS=3 -DFUSED                         COUNTED alone
 * broken: assertion -DFUSED -DBREAK_NO_COUNTED     neither of them
 * broken: assertion -DFUSED -DBREAK_COUNTED_AGO    COUNTED of one exchange earlier is enough
 * broken: assertion -DFUSED -DBREAK_COUNTED_FIRST  COUNTED before the counts are read
 * broken: assertion -DSERIAL -DBREAK_SIGNAL_FIRST the epoch of COUNTS before its words
 * broken: assertion -DSERIAL -DBREAK_COUNTS_FIRST COUNTS before the counts
 * broken: assertion -DSERIAL -DBREAK_NO_COUNTS    places without COUNTS of all
 * broken: assertion -DSERIAL -DBREAK_ONE_HALF     one table and one cell for two exchanges
 * broken: deadlock -DSERIAL -DBREAK_COUNTED_NOW   COUNTED of this very exchange is awaited
 */
#include "note.pml"
#ifndef STEPS
#define STEPS 4
#endif

#define COUNTS  0
#define COUNTED 1

byte counts[RANKS * 2 * RANKS];  /* [owner][half][source] is of that exchange */
byte heard[RANKS], placed[RANKS]; /* how far each rank is */

inline spread(n) {
    i = FIRST;
    do
    :: true ->
        counts[AT(i, HALF(n), me)] = n;
        if
        :: i == me -> break
        :: else -> i = NEXT(i)
        fi
    od;
    i = 0
}

#if defined(BREAK_COUNTED_AGO)
#define BEFORE(n) AGO(AGO(n))
#elif defined(BREAK_COUNTED_NOW)
#define BEFORE(n) (n)
#else
#define BEFORE(n) AGO(n)
#endif

inline spread_pass(n) {
#ifndef BREAK_NO_COUNTED
    placed[me] >= BEFORE(n); /* its note to itself */
    hear_all(COUNTED, HALF(n), BEFORE(n));
#endif
#ifdef BREAK_COUNTS_FIRST
    tell_all(COUNTS, n);
    spread(n);
#else
    spread(n);
    tell_all(COUNTS, n);
#endif
#ifndef BREAK_NO_COUNTS
    hear_all(COUNTS, HALF(n), n);
#endif
    d_step { /* what must be the same on all ranks */
        i = FIRST;
        do
        :: i != me ->
            assert(word[AT(me, HALF(n), i)] == n);
            i = NEXT(i)
        :: else -> break
        od;
        i = 0
    }
}

inline all_counts_are(n) {
    d_step {
        i = 0;
        do
        :: i < RANKS ->
            assert(counts[AT(me, HALF(n), i)] == n);
            i++
        :: else -> break
        od;
        i = 0
    }
}

/* What is right at the beginning and at the end was right all the time: epochs only grow. */
inline place(n) {
    all_counts_are(n);
    all_counts_are(n)
}

inline place_pass(n) {
#ifdef BREAK_COUNTED_FIRST
    tell_all_bare(COUNTED, n);
    place(n)
#else
    place(n);
    tell_all_bare(COUNTED, n)
#endif
}

#ifdef SERIAL

proctype rank(byte me) {
    byte i, n = 1;
    do
    :: n <= STEPS ->
        spread_pass(n);
        place_pass(n);
        placed[me] = n;
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

#else

proctype spreader(byte me) {
    byte i, n = 1;
    do
    :: n <= STEPS ->
        spread_pass(n);
        heard[me] = n;
        n++
    :: else -> break
    od
}

proctype placer(byte me) {
    byte i, n = 1;
    do
    :: n <= STEPS ->
        n <= heard[me];
        place_pass(n);
        placed[me] = n;
        n++
    :: else -> break
    od
}

init {
    atomic {
        run spreader(0);
        run spreader(1);
        run spreader(2);
        run placer(0);
        run placer(1);
        run placer(2)
    }
}

#endif

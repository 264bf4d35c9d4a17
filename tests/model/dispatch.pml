/* Dispatch: what a rank shows its caller is not written by others, no row is read before it is there, no READY is written over before it
 * is read, and nobody waits for ever.
 *
 * stands for: src/exchange/dispatch.c: send_pass recv_pass whole_pass send receive submit
 * stands for: src/exchange/route.c: fe_flight_free fe_flight_of
 * stands for: src/group/group.c: fe_flight_await fe_flight_mark
 * notes: FE_READY FE_ROWS
 *
 * Three ranks make STEPS dispatches in two halves. With one stream, or none, each of them receives when it likes, in any order, two at
 * most being under way: a dispatch in one call is a send and a receive with nothing between. With STREAMS=2 sends and receives are on streams of their
 * own, and what the group makes them wait for is what flights await. A row stands for all that one rank writes to another: rows, scales,
 * source, ids, weights, and in LATENCY mode counts. What was received is shown until the next send of that half begins.
 *
 * good: -DSTEPS=4
 * good: -DSTEPS=7 -DFUSED
 * good: -DSTEPS=4 -DFUSED -DSTREAMS=2
 * broken: assertion -DBREAK_SIGNAL_FIRST             the epoch of READY before its offsets
 * broken: assertion -DBREAK_NO_READY                 rows are written without READY
 * broken: assertion -DBREAK_READY_AGO                READY of the step before the last is enough
 * broken: assertion -DBREAK_READY_AGO -DFIXED        the same, where no offset is read that would be another's
 * broken: assertion -DBREAK_READY_EARLY              READY of the next step of this half is said when this one is received
 * broken: assertion -DBREAK_ROWS_FIRST               ROWS before the rows
 * broken: assertion -DBREAK_NO_ROWS                  receives without ROWS
 * broken: assertion -DBREAK_ONE_HALF                 one buffer and one cell for two steps under way
 * broken: assertion -DBREAK_NO_FLIGHT -DSTREAMS=2 -DFUSED    a send does not wait for the receive of its half on another stream
 * broken: assertion -DBREAK_NO_SEND -DSTREAMS=2 -DFUSED      a receive does not wait for its send on another stream
 * broken: deadlock -DBREAK_READY_LATE                READY is awaited before it is said
 */
#include "note.pml"
#ifndef STEPS
#define STEPS 4
#endif
#ifndef STREAMS
#define STREAMS 1
#endif

#define READY 0
#define ROWS  1

byte row[RANKS * 2 * RANKS]; /* the receive buffers: [owner][half][source] holds the row of that dispatch */
byte shown[2 * RANKS];       /* the dispatch whose rows the caller may read; 0: others may write */
#define SHOWN(rank, n) shown[(rank) * 2 + HALF(n)]

inline all_rows_are(n) {
    i = 0;
    do
    :: i < RANKS ->
        assert(row[AT(me, HALF(n), i)] == n);
        i++
    :: else -> break
    od;
    i = 0
}

inline scatter(n) {
    i = FIRST;
    do
    :: true ->
        if
#ifndef FIXED
        :: i != me -> assert(word[AT(me, HALF(n), i)] == n)
#endif
        :: else
        fi;
        d_step {
            assert(!SHOWN(i, n));
            row[AT(i, HALF(n), me)] = n;
        }
        if
        :: i == me -> break
        :: else -> i = NEXT(i)
        fi
    od;
    i = 0
}

inline send_pass(n) {
#ifndef BREAK_READY_EARLY
    d_step { /* the caller has had this half to the last moment */
        if
        :: n > 2 && SHOWN(me, n) -> all_rows_are(SHOWN(me, n))
        :: else
        fi;
        SHOWN(me, n) = 0
    }
#ifndef BREAK_READY_LATE
    tell_all(READY, n);
#endif
#else
    if
    :: n <= 2 -> tell_all(READY, n)
    :: else -> SHOWN(me, n) = 0
    fi;
#endif
#if defined(BREAK_READY_AGO)
    hear_all(READY, HALF(n), AGO(n));
#elif !defined(BREAK_NO_READY)
    hear_all(READY, HALF(n), n);
#endif
#ifdef BREAK_READY_LATE
    tell_all(READY, n);
#endif
#ifdef BREAK_ROWS_FIRST
    tell_all_bare(ROWS, n);
    scatter(n)
#else
    scatter(n);
    tell_all_bare(ROWS, n)
#endif
}

inline recv_pass(n) {
#ifndef BREAK_NO_ROWS
    hear_all(ROWS, HALF(n), n);
#endif
    d_step {
        all_rows_are(n);
        SHOWN(me, n) = n
    }
#ifdef BREAK_READY_EARLY
    tell_all(READY, n + 2)
#endif
}

#if STREAMS == 1

proctype rank(byte me) {
    byte i, sent, got, flight[2]; /* the dispatch under way in each half */
    do
    :: sent < STEPS && !flight[EVEN_ODD(sent + 1)] ->
        sent++;
        send_pass(sent);
        flight[EVEN_ODD(sent)] = sent
    :: flight[0] ->
        recv_pass(flight[0]);
        flight[0] = 0
    :: flight[1] ->
        recv_pass(flight[1]);
        flight[1] = 0
    :: sent == STEPS && !flight[0] && !flight[1] -> break
    od
}

init {
    atomic { run rank(0); run rank(1); run rank(2) }
}

#else

byte sent[RANKS], received[RANKS]; /* how far each rank's two streams are */

proctype sender(byte me) {
    byte i, n = 1;
    do
    :: n <= STEPS ->
#ifndef BREAK_NO_FLIGHT
        n <= received[me] + 2;
#endif
        send_pass(n);
        sent[me] = n;
        n++
    :: else -> break
    od
}

proctype receiver(byte me) {
    byte i, n = 1;
    do
    :: n <= STEPS ->
#ifndef BREAK_NO_SEND
        n <= sent[me];
#endif
        recv_pass(n);
        received[me] = n;
        n++
    :: else -> break
    od
}

init {
    atomic {
        run sender(0); run sender(1); run sender(2);
        run receiver(0); run receiver(1); run receiver(2)
    }
}

#endif

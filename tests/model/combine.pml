/* Combine: outputs are not written over while others pull them, none is pulled before it is there, no OFFER is written over before it is
 * read, and nobody waits for ever.
 *
 * stands for: src/exchange/combine.c: send_pass recv_pass whole_pass send receive submit ferry_combine_buffer
 * stands for: src/exchange/route.c: fe_flight_free fe_flight_of
 * stands for: src/group/group.c: fe_flight_await fe_flight_mark
 * notes: FE_OFFER FE_PULLED
 *
 * Three ranks make STEPS combines in two halves. With one stream, or none, each of them receives when it likes, the older one first, as
 * fe_flight_of finds it: a combine in one call is a send and a receive with nothing between. ANY_ORDER has the newer one received first, by all
 * ranks alike: receives that wait for PULLED are collective, and ranks that differ in their order wait for each other. With STREAMS=2 sends
 * and receives are on streams of their own, and what the group makes them wait for is what flights await. What a rank offers is its
 * buffer of that half, or the caller's own rows; either is written over as soon as the combine is complete.
 *
 * good: -DSTEPS=4
 * good: -DSTEPS=7 -DFUSED
 * good: -DSTEPS=5 -DFUSED -DANY_ORDER
 * good: -DSTEPS=4 -DFUSED -DSTREAMS=2
 * broken: assertion -DBREAK_SIGNAL_FIRST                the epoch of OFFER before its offset
 * broken: assertion -DBREAK_OFFER_FIRST                 OFFER before the rows are in the heap
 * broken: assertion -DBREAK_NO_OFFER                    pulls without OFFER
 * broken: assertion -DBREAK_PULLED_FIRST                PULLED before the rows are read
 * broken: assertion -DBREAK_NO_SETTLE                   complete without PULLED of all
 * broken: assertion -DBREAK_SETTLE_AGO                  PULLED of the step before the last is enough
 * broken: assertion -DBREAK_ONE_HALF                    one buffer and one cell for two steps under way
 * broken: assertion -DBREAK_NO_FLIGHT -DSTREAMS=2       a send does not wait for the receive of its half on another stream
 * broken: deadlock -DBREAK_PULLED_LATE                  PULLED is awaited before it is said
 * broken: deadlock -DANY_ORDER -DBREAK_OWN_ORDER        each rank receives in an order of its own
 */
#include "note.pml"
#ifndef STEPS
#define STEPS 4
#endif
#ifndef STREAMS
#define STREAMS 1
#endif

#define OFFER  0
#define PULLED 1

byte rows[RANKS * 2]; /* what each rank offers, by half: those of that combine; 0: something else */
#define ROWS(rank, n) rows[(rank) * 2 + HALF(n)]

inline send_pass(n) {
#ifdef BREAK_OFFER_FIRST
    tell_all(OFFER, n);
    ROWS(me, n) = n
#else
    ROWS(me, n) = n;
    tell_all(OFFER, n)
#endif
}

/* Each rank's rows are read for a while. */
inline pull(n) {
    i = FIRST;
    do
    :: i != me ->
        assert(word[AT(me, HALF(n), i)] == n);
        assert(ROWS(i, n) == n);
        d_step {
            assert(ROWS(i, n) == n);
            i = NEXT(i)
        }
    :: else -> break
    od;
    i = 0
}

inline recv_pass(n) {
#ifndef BREAK_NO_OFFER
    hear_all(OFFER, HALF(n), n);
#endif
#ifdef BREAK_PULLED_FIRST
    tell_all_bare(PULLED, n);
    pull(n);
#else
    pull(n);
#ifndef BREAK_PULLED_LATE
    tell_all_bare(PULLED, n);
#endif
#endif
#if defined(BREAK_SETTLE_AGO)
    hear_all(PULLED, HALF(n), AGO(n));
#elif !defined(BREAK_NO_SETTLE)
    hear_all(PULLED, HALF(n), n);
#endif
#ifdef BREAK_PULLED_LATE
    tell_all_bare(PULLED, n);
#endif
    ROWS(me, n) = 0 /* the caller's again */
}

#if STREAMS == 1

#ifdef ANY_ORDER
byte order[STEPS + 1]; /* the combine to be received next, after so many; 0: not agreed upon */
byte agreed;           /* how many are */
#define AGREEABLE(half) (flight[half] && (agreed == received || order[received] == flight[half]))
#endif

#ifdef ANY_ORDER
/* The first rank to receive next decides for all. */
inline agree(half) {
    if
    :: agreed == received ->
        order[received] = flight[half];
        agreed++
    :: else
    fi
}
#endif

inline receive(half) {
    recv_pass(flight[half]);
    flight[half] = 0;
    received++
}

#define OLDER(half) (flight[half] && (!flight[1 - half] || flight[half] < flight[1 - half]))

proctype rank(byte me) {
    byte i, sent, received, flight[2]; /* the combine under way in each half */
    do
    :: sent < STEPS && !flight[EVEN_ODD(sent + 1)] ->
        sent++;
        send_pass(sent);
        flight[EVEN_ODD(sent)] = sent
#ifdef ANY_ORDER
#ifdef BREAK_OWN_ORDER
    :: flight[0] -> receive(0)
    :: flight[1] -> receive(1)
#else
    :: atomic { AGREEABLE(0) -> agree(0) };
        receive(0)
    :: atomic { AGREEABLE(1) -> agree(1) };
        receive(1)
#endif
#else
    :: OLDER(0) -> receive(0)
    :: OLDER(1) -> receive(1)
#endif
    :: sent == STEPS && !flight[0] && !flight[1] -> break
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
        n <= sent[me];
        recv_pass(n);
        received[me] = n;
        n++
    :: else -> break
    od
}

init {
    atomic {
        run sender(0);
        run sender(1);
        run sender(2);
        run receiver(0);
        run receiver(1);
        run receiver(2)
    }
}

#endif

/* Notes between three ranks, as every pass says and hears them; included by the models of the steps.
 *
 * stands for: src/cpu/pass.c: tell_all hear_all run
 * stands for: src/link/near.h: fe_link_signal fe_link_words
 * stands for: src/watch/blame.c: fe_watch_cells
 * stands for: src/heap/heap.h: fe_heap_cell
 *
 * A payload is one word, which is the epoch that it belongs to; so whoever reads a payload knows which one it should be. Stores are seen in
 * program order, as release and acquire promise for those before an epoch; BREAK_SIGNAL_FIRST is what a missing release could do. A
 * rank's note to itself is left out: it is read after it is written. Waits have no deadline here: one that passes ends the group.
 *
 * With FUSED a note goes to all ranks in one step. That leaves out no behaviour that matters: who has not heard yet cannot be told from who
 * has not run yet, and between the stores of one note nothing is waited for. It makes models of more steps small enough.
 *
 * The including model has, in each process: byte me (the rank), i (for loops).
 */
#define RANKS 3

#define EVEN_ODD(n) ((n) % 2)
#ifdef BREAK_ONE_HALF
#define HALF(n) 0
#else
#define HALF(n) EVEN_ODD(n)
#endif

#define AGO(n) (((n) > 2) * ((n) - 2)) /* the step before the last */

#define AT(owner, half, source) (((owner) * 2 + (half)) * RANKS + (source))
#define CELL(kind, owner, half, source) ((kind) * RANKS * 2 * RANKS + AT(owner, half, source))

byte epoch[2 * RANKS * 2 * RANKS]; /* cells of two kinds */
byte word[RANKS * 2 * RANKS];      /* payloads; only the first kind has any */

#define FIRST ((me + 1) % RANKS)
#define NEXT(rank) ((rank + 1) % RANKS)

#if defined(FUSED) && !defined(BREAK_SIGNAL_FIRST)
#define TOGETHER d_step
#else
#define TOGETHER
#endif

inline tell_all(kind, n) {
    TOGETHER {
        i = FIRST;
        do
        :: i != me ->
#ifdef BREAK_SIGNAL_FIRST
            epoch[CELL(kind, i, HALF(n), me)] = n;
            word[AT(i, HALF(n), me)] = n;
#else
            word[AT(i, HALF(n), me)] = n;
            epoch[CELL(kind, i, HALF(n), me)] = n;
#endif
            i = NEXT(i)
        :: else -> break
        od;
        i = 0
    }
}

/* A note without a payload. */
inline tell_all_bare(kind, n) {
    TOGETHER {
        i = FIRST;
        do
        :: i != me ->
            epoch[CELL(kind, i, HALF(n), me)] = n;
            i = NEXT(i)
        :: else -> break
        od;
        i = 0
    }
}

#define HEARD(kind, half, n) \
    (epoch[CELL(kind, me, half, FIRST)] >= n && epoch[CELL(kind, me, half, NEXT(FIRST))] >= n)

/* One after the other or both at once is the same: epochs only grow. */
inline hear_all(kind, half, n) {
    HEARD(kind, half, n)
}

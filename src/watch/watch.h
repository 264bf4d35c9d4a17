/* Bounded waiting. Every wait of Ferry for another rank goes through here: it spins, yields, sleeps, and ends by the value's
 * arrival, the deadline or an abort. */
#ifndef FERRY_WATCH_WATCH_H
#define FERRY_WATCH_WATCH_H

#include "watch/recorder.h"

typedef struct fe_watch {
    const fe_heap *heap;
    int64_t timeout_ns;
    fe_recorder *recorder; /* NULL: nothing is recorded */
    const char *dump_dir;  /* FERRY_DUMP_DIR; NULL: none */
    int spin;              /* pauses before the first yield; 0 where ranks outnumber cores */
    /* What the network has to say of a far rank; NULL: nothing, or there is no network. The text lives as long as `far`. */
    const char *(*trouble)(const void *far, int rank);
    const void *far;
    /* Puts a collective call in words (watch/calls.h). NULL: none are kept. */
    void (*describe)(uint64_t call, char *text, size_t size);
} fe_watch;

/* Opens the recorder. Reads FERRY_SPIN, FERRY_DUMP_DIR. */
ferry_status fe_watch_init(fe_watch *watch, const fe_heap *heap, int timeout_ms);

/* True when the thing waited for is there. Must load with acquire. */
typedef bool (*fe_ready_fn)(const void *what);

typedef enum fe_waited { FE_ARRIVED, FE_LATE, FE_ABORTED } fe_waited;

/* deadline: by fe_now_ns(). */
fe_waited fe_watch_wait(const fe_watch *watch, fe_ready_fn ready, const void *what, int64_t deadline);
/* Its two parts, for who looks at no clock before spinning has been in vain. */
bool fe_watch_spin(const fe_watch *watch, fe_ready_fn ready, const void *what);
fe_waited fe_watch_rest(const fe_watch *watch, fe_ready_fn ready, const void *what, int64_t deadline);

/* The same at an agreement, to which nobody need call any more: only an abort ends it early. */
fe_waited fe_watch_wait_on(const fe_watch *watch, fe_ready_fn ready, const void *what, int64_t deadline);

/* Waits until the cell [kind][half] in this rank's heap of every rank that says such notes to it has reached epoch. `step` is what the sentence calls it;
 * `record` its record, or NULL. */
ferry_status fe_watch_cells(const fe_watch *watch, fe_kind kind, int half, uint64_t epoch, const char *step,
                            fe_step *record);

/* FERRY_TIMEOUT, with a sentence that names whose fault it is: of the ranks that have not reached the epoch, by what was seen of each. Writes the
 * table of who waits for whom where FERRY_DUMP_DIR says. */
ferry_status fe_watch_blame(const fe_watch *watch, const char *step, uint64_t epoch, const uint64_t *seen);

/* For whom this rank waits, past spinning; -1: nobody. For others' sentences (fe_watch_blame). */
void fe_watch_await(const fe_heap *heap, int rank);

/* Cell `cell` and whatever else was just written to `rank` is to be noticed: wakes its sleepers. Call after a sequentially consistent store
 * (fe_link_signal does). */
void fe_watch_ring(const fe_heap *heap, int rank);

/* Marks this rank's group as aborted in every near rank's memory and wakes them; proxies carry it to other hosts. */
void fe_watch_abort(const fe_heap *heap);
/* This rank alone gives up: what still waits on one of its streams ends as if the group were aborted. */
void fe_watch_give_up(const fe_heap *heap);
ferry_status fe_watch_aborted(const fe_heap *heap); /* FERRY_OK, or FERRY_ABORTED with a sentence */
/* The same, of one cause alone: the others go on without this rank, so what it has done since is not what the group has done. */
ferry_status fe_watch_still_counts(const fe_heap *heap);
/* FERRY_ABORTED, with the sentence: why, and `during`, " while ...". */
ferry_status fe_watch_ended(const fe_heap *heap, const char *during);

/* Calls a rank of this rank's era to an agreement: what it waits for ends at once. */
void fe_watch_recall(const fe_heap *heap, int rank);
/* A rank that this rank's era is without: its next look ends what it does. */
void fe_watch_mask(const fe_heap *heap, int rank);
/* The others go on without this rank, and it knows. */
void fe_watch_exclude(const fe_heap *heap);
/* This rank begins its era. false: the group is aborted. */
bool fe_watch_resume(const fe_heap *heap);
/* This rank leaves the group, and nothing of it runs any more: nobody need wait for it. hurt: because something has failed, which is to blame for
 * what others miss of it. */
void fe_watch_leave(const fe_heap *heap, bool hurt);

/* What can be seen of a rank's process. A rank of this process is ALIVE. */
typedef enum fe_fate { FE_ALIVE, FE_STOPPED, FE_DEAD, FE_LEFT } fe_fate;
fe_fate fe_watch_fate(const fe_heap *heap, int rank);
/* Of a process; FE_ALIVE where we may not look. */
fe_fate fe_process_fate(int pid);

#endif

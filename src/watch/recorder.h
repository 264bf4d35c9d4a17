/* The flight recorder: a rank's last FE_STEPS steps, the one that it is in, and its dealings with each other rank, in its memfd behind the
 * control block. A process outside reads it while the rank is stuck or stopped, and needs nothing of it (snap.h); so does a rank whose wait has
 * ended in a timeout.
 *
 * A step has one writer from begin to end: the thread that runs it. Every word is atomic, so a reader never sees half a word; the first
 * word of a step says whose words the others are. */
#ifndef FERRY_WATCH_RECORDER_H
#define FERRY_WATCH_RECORDER_H

#include "heap/heap.h"

#define FE_STEPS     1024
#define FE_STEP_TEXT 40 /* bytes of "dispatch 17 (send)" */

enum { FE_STEP_START, FE_STEP_HEARD, FE_STEP_MOVED, FE_STEP_END, FE_STEP_STAMPS };
enum { FE_STEP_FILLING = 1, FE_STEP_LIVE = 2, FE_STEP_OVER = 3, FE_STEP_STATES = 4 }; /* 0: never used */

typedef struct fe_step {    /* two cache lines */
    _Atomic uint64_t state; /* number * FE_STEP_STATES + one of the above */
    _Atomic uint64_t text[FE_STEP_TEXT / 8];
    _Atomic uint64_t what;               /* fe_step_pack */
    _Atomic uint64_t route;              /* its number; 0: none */
    _Atomic uint64_t epoch[2];           /* awaited before the move, and after */
    _Atomic uint64_t bytes;              /* that the move carried */
    _Atomic uint64_t at[FE_STEP_STAMPS]; /* by fe_recorder_now; 0: not yet, or nothing to tell apart */
    _Atomic uint64_t
        late; /* ticks past spinning for the rank that kept it longest, and that rank + 1 in the low 16 bits */
} fe_step;

/* What moved between this rank and another. Words of a half are written by the steps of that half, which come one after another: plain
 * additions do. */
typedef struct fe_traffic {
    _Atomic uint64_t rows_sent, bytes_sent, rows_received, bytes_received, rows_returned, bytes_returned, rows_dropped;
    uint64_t spare;
} fe_traffic;

enum { FE_PEER_NEAR = 1, FE_PEER_COLUMN = 2, FE_PEER_MASKED = 4 };

typedef struct fe_peer {
    fe_traffic traffic[2];
    _Alignas(FE_CACHE_LINE) _Atomic uint64_t waits; /* for its notes, past spinning */
    _Atomic uint64_t wait_ticks;
    _Atomic uint64_t seen;  /* of its notes, when a wait failed */
    _Atomic uint64_t place; /* FE_PEER_... */
} fe_peer;

typedef struct fe_recorder {
    _Atomic uint64_t magic; /* FE_RECORDER_MAGIC, once all else is there */
    uint64_t group;         /* the same on all its ranks */
    uint64_t cells_at;      /* in the memfd; 0: they are in a GPU's memory */
    uint64_t began_ticks;
    int64_t began_ns;  /* the same moment by fe_now_ns */
    uint32_t counter;  /* ticks are the processor's; else nanoseconds */
    uint32_t one_host; /* every note comes from every rank */
    _Alignas(FE_CACHE_LINE) _Atomic uint64_t next;
    _Alignas(FE_CACHE_LINE) _Atomic uint64_t
        verdict; /* a wait has failed; what follows, and fe_peer.seen, was written before */
    _Atomic uint64_t failed_epoch, failed_ns;
    _Atomic uint64_t failed_step[FE_STEP_TEXT / 8];
    _Alignas(FE_CACHE_LINE) fe_step step[FE_STEPS];
    fe_peer peer[]; /* [ranks] */
} fe_recorder;

#define FE_RECORDER_MAGIC 0x4645525245433032ull /* "FERREC02": another layout has another number */

static inline size_t fe_recorder_bytes(int ranks) {
    return sizeof(fe_recorder) + (size_t)ranks * sizeof(fe_peer);
}

/* Of a near rank. */
static inline fe_recorder *fe_recorder_of(const fe_heap *heap, int rank) {
    return (fe_recorder *)(void *)(heap->base[rank] + FE_HEAP_RECORDER_AT);
}

/* Begins this rank's. Reads FERRY_RECORDER: *recorder is NULL where it says 0. */
ferry_status fe_recorder_open(const fe_heap *heap, fe_recorder **recorder);

/* An era begins: who is masked, as the heap has it now; what failed before is forgotten. */
void fe_recorder_renew(fe_recorder *recorder, const fe_heap *heap);

/* The processor's counter where it runs evenly on all cores, else nanoseconds. */
static inline uint64_t fe_recorder_now(const fe_recorder *recorder) {
#if defined(__x86_64__)
    if (recorder->counter) return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    if (recorder->counter) return ticks;
#endif
    return (uint64_t)fe_now_ns();
}

/* kind 0, 1: awaited before and after the move, -1: nothing. */
static inline uint64_t fe_step_pack(int lane, int half, int before, int after, int status) {
    return (uint64_t)(uint16_t)lane | (uint64_t)(half & 1) << 16 | (uint64_t)(uint8_t)(before + 1) << 24 |
           (uint64_t)(uint8_t)(after + 1) << 32 | (uint64_t)(uint8_t)status << 40;
}

/* What there is to say of a step when it begins. */
typedef struct fe_step_about {
    const char *text; /* [FE_STEP_TEXT] */
    int lane;         /* which of the rank's threads of work: 0 for calls with a NULL stream, then the streams */
    int half, kind[2];
    uint64_t route, epoch[2];
} fe_step_about;

/* Every `recorder` below may be NULL, and every `step` of one that is: then nothing happens. */
fe_step *fe_step_begin(fe_recorder *recorder, const fe_step_about *about);
/* It has got as far as `stamp`. */
static inline void fe_step_reach(const fe_recorder *recorder, fe_step *step, int stamp) {
    if (step) atomic_store_explicit(&step->at[stamp], fe_recorder_now(recorder), memory_order_release);
}
/* It has got as far as `stamp`, at a moment that is worth a look at the clock (which takes longer than everything else here), or else at once. */
static inline void fe_step_pass(const fe_recorder *recorder, fe_step *step, int stamp, bool look) {
    if (!step) return;
    uint64_t at = look ? fe_recorder_now(recorder) : atomic_load_explicit(&step->at[stamp - 1], memory_order_relaxed);
    if (!at) at = atomic_load_explicit(&step->at[FE_STEP_START], memory_order_relaxed); /* there was nothing to hear */
    atomic_store_explicit(&step->at[stamp], at, memory_order_release);
}
/* Has it waited past spinning? */
static inline bool fe_step_waited(const fe_step *step) {
    return step && atomic_load_explicit(&step->late, memory_order_relaxed) != 0;
}
/* over: false when only its being queued is known here (a GPU runs it). */
void fe_step_end(const fe_recorder *recorder, fe_step *step, ferry_status status, uint64_t bytes, bool over);

/* This rank waited for `rank`, past spinning, since then. */
void fe_recorder_waited(fe_recorder *recorder, fe_step *step, int rank, uint64_t since);
/* A wait of this rank has failed: what it had seen of each. */
void fe_recorder_verdict(fe_recorder *recorder, const char *step, uint64_t epoch, const uint64_t *seen, int ranks);

/* One writer: see fe_traffic. */
static inline void fe_traffic_add(_Atomic uint64_t *to, uint64_t n) {
    atomic_store_explicit(to, atomic_load_explicit(to, memory_order_relaxed) + n, memory_order_relaxed);
}

#endif

#include "watch/recorder.h"
#include "base/env.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* Does the processor's counter run at one rate, whatever the core and its state? (AMD64 Architecture Programmer's Manual volume 3, CPUID
 * Fn8000_0007_EDX[8]; Intel's SDM, volume 3, "Invariant TSC". The generic timer of aarch64 always does.) */
static bool counter_is_even(void) {
#if defined(__x86_64__)
    unsigned a, b, c, d;
    return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d >> 8 & 1);
#elif defined(__aarch64__)
    return true;
#else
    return false;
#endif
}

static uint64_t place_of(const fe_heap *heap, int rank) {
    return (fe_heap_near(heap, rank) ? FE_PEER_NEAR : 0u) |
           (heap->hosts.index_of[rank] == heap->hosts.index ? FE_PEER_COLUMN : 0u) |
           (fe_heap_masked(heap, rank) ? FE_PEER_MASKED : 0u);
}

ferry_status fe_recorder_open(const fe_heap *heap, fe_recorder **recorder) {
    int64_t on;
    fe_recorder *r = fe_recorder_of(heap, heap->rank);
    FE_TRY(fe_env_number(FE_ENV_FERRY_RECORDER, 1, 0, 1, &on));
    *recorder = NULL;
    r->group = heap->group;
    r->cells_at = !heap->memory || fe_heap_staged(heap) ? (uint64_t)heap->lead : 0;
    r->counter = counter_is_even();
    r->one_host = heap->hosts.count == 1;
    for (int i = 0; i < heap->ranks; i++) atomic_store(&r->peer[i].place, place_of(heap, i));
    for (int i = 0; i < FE_STEPS; i++) atomic_store(&r->step[i].state, 0); /* the first touch of its page */
    r->began_ns = fe_now_ns();
    r->began_ticks = fe_recorder_now(r);
    atomic_store_explicit(&r->magic, on ? FE_RECORDER_MAGIC : 0,
                          memory_order_release); /* who acquires it sees the rest */
    if (on) *recorder = r;
    return FERRY_OK;
}

/* A step that goes on is never overwritten, however long it lasts: its slot is passed over. `next` is only a hint, and goes
 * back when a thread is held up on its way to it: a slot's own number says how far the numbers have come. Relaxed: what
 * follows is released (put). */
static fe_step *claim(fe_recorder *r, uint64_t *number) {
    uint64_t n = atomic_load_explicit(&r->next, memory_order_relaxed);
    for (int tries = 0; tries < 2 * FE_STEPS; tries++, n++) {
        fe_step *step = &r->step[n % FE_STEPS];
        uint64_t held = atomic_load_explicit(&step->state, memory_order_relaxed);
        bool busy = held % FE_STEP_STATES == FE_STEP_FILLING || held % FE_STEP_STATES == FE_STEP_LIVE;
        bool newer = held && held / FE_STEP_STATES >= n;
        if (newer) n = held / FE_STEP_STATES;
        if (busy || newer) continue;
        if (!atomic_compare_exchange_strong_explicit(&step->state, &held, n * FE_STEP_STATES + FE_STEP_FILLING,
                                                     memory_order_relaxed, memory_order_relaxed))
            continue;
        atomic_store_explicit(&r->next, n + 1, memory_order_relaxed);
        *number = n;
        return step;
    }
    return NULL; /* as many threads at work as there are steps */
}

/* Release: who acquires one of a step's new words sees FILLING, or what came after it, in its `state`. (A fence before them all would do,
 * but the thread sanitizer knows none. On x86-64 it is a plain store.) */
static void put(_Atomic uint64_t *to, uint64_t value) {
    atomic_store_explicit(to, value, memory_order_release);
}

static void put_text(_Atomic uint64_t *to, const char *text) {
    for (int i = 0; i < FE_STEP_TEXT / 8; i++) {
        uint64_t word;
        memcpy(&word, text + i * 8, sizeof word);
        put(&to[i], word);
    }
}

fe_step *fe_step_begin(fe_recorder *r, const fe_step_about *about) {
    uint64_t number;
    fe_step *step = r ? claim(r, &number) : NULL;
    if (!step) return NULL;
    put_text(step->text, about->text);
    put(&step->what, fe_step_pack(about->lane, about->half, about->kind[0], about->kind[1], FERRY_OK));
    put(&step->route, about->route);
    put(&step->epoch[0], about->epoch[0]);
    put(&step->epoch[1], about->epoch[1]);
    put(&step->bytes, 0);
    put(&step->late, 0);
    put(&step->at[FE_STEP_HEARD], 0);
    put(&step->at[FE_STEP_MOVED], 0);
    put(&step->at[FE_STEP_END], 0);
    put(&step->at[FE_STEP_START], fe_recorder_now(r));
    /* Release: who acquires LIVE sees the words. */
    atomic_store_explicit(&step->state, number * FE_STEP_STATES + FE_STEP_LIVE, memory_order_release);
    return step;
}

void fe_step_end(const fe_recorder *r, fe_step *step, ferry_status status, uint64_t bytes, bool over) {
    if (!step) return;
    if (over) fe_step_reach(r, step, FE_STEP_END);
    if (bytes) put(&step->bytes, bytes);
    if (status != FERRY_OK)
        put(&step->what, atomic_load_explicit(&step->what, memory_order_relaxed) | (uint64_t)(uint8_t)status << 40);
    uint64_t number = atomic_load_explicit(&step->state, memory_order_relaxed) / FE_STEP_STATES;
    __builtin_prefetch(&r->step[(number + 1) % FE_STEPS].state,
                       1); /* the next step begins at once, and it is long since it was there */
    __builtin_prefetch(&r->step[(number + 1) % FE_STEPS].epoch[0], 1);
    /* Release: who acquires OVER sees the last words; and the slot's next owner comes after them. */
    atomic_store_explicit(&step->state, number * FE_STEP_STATES + FE_STEP_OVER, memory_order_release);
}

void fe_recorder_waited(fe_recorder *r, fe_step *step, int rank, uint64_t since) {
    if (!r) return;
    uint64_t ticks = fe_recorder_now(r) - since;
    atomic_fetch_add_explicit(&r->peer[rank].waits, 1, memory_order_relaxed); /* streams may wait at once */
    atomic_fetch_add_explicit(&r->peer[rank].wait_ticks, ticks, memory_order_relaxed);
    uint64_t most = UINT64_MAX >> 16;
    if (ticks > most) ticks = most;
    if (step && ticks > atomic_load_explicit(&step->late, memory_order_relaxed) >> 16)
        put(&step->late, ticks << 16 | (uint64_t)(rank + 1));
}

void fe_recorder_verdict(fe_recorder *r, const char *step, uint64_t epoch, const uint64_t *seen, int ranks) {
    char text[FE_STEP_TEXT] = "";
    if (!r) return;
    for (size_t i = 0; i + 1 < sizeof text && step[i]; i++) text[i] = step[i];
    for (int i = 0; i < ranks; i++) put(&r->peer[i].seen, seen[i]);
    put_text(r->failed_step, text);
    put(&r->failed_epoch, epoch);
    put(&r->failed_ns, (uint64_t)fe_now_ns());
    atomic_store_explicit(&r->verdict, 1, memory_order_release); /* who acquires it sees what was seen */
}

void fe_recorder_renew(fe_recorder *r, const fe_heap *heap) {
    if (!r) return;
    for (int i = 0; i < heap->ranks; i++) put(&r->peer[i].place, place_of(heap, i));
    put(&r->verdict, 0);
}

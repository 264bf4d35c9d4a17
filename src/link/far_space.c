/* The caller's puts, gets and words on ranks of other hosts. Data passes through buffers in the heap: the network may still be at it when
 * a call has given up, and the caller's memory is the caller's again then. */
#include "link/proxy.h"

#include <stdio.h>

#include <time.h>

typedef struct awaited {
    fe_far *far;
    int rank;
    const _Atomic uint32_t *bounce;   /* it has left state 1 */
    const _Atomic uint64_t *answered; /* it has reached number */
    uint64_t number;
} awaited;

static bool is_over(const void *what) {
    const awaited *a = what;
    if (a->bounce && atomic_load(a->bounce) != 1) return true;
    if (a->answered && atomic_load(a->answered) >= a->number) return true;
    return a->answered && (atomic_load(&a->far->lost[a->rank]) || atomic_load(&a->far->gone[a->rank]));
}

static ferry_status broken(fe_far *f, int rank, const char *doing) {
    pthread_mutex_lock(&f->lock);
    ferry_status status = fe_fail(FERRY_SYSTEM, "rank %d: %s rank %d, on another host: %s", f->heap->rank, doing, rank,
                                  f->why[rank][0] ? f->why[rank] : "it has left the group");
    pthread_mutex_unlock(&f->lock);
    return status;
}

static ferry_status late(const fe_far *f, int rank, const char *doing) {
    return fe_fail(FERRY_TIMEOUT, "rank %d waited %lld ms while %s rank %d, on another host", f->heap->rank,
                   (long long)(f->watch->timeout_ns / 1000000), doing, rank);
}

static ferry_status ended(const fe_far *f, int rank, const char *doing) {
    char during[96];
    snprintf(during, sizeof during, " while %.60s rank %d", doing, rank);
    return fe_watch_ended(f->heap, during);
}

static ferry_status await(fe_far *f, const awaited *a, int64_t deadline, const char *doing) {
    fe_watch_await(f->heap, a->rank);
    fe_waited waited = fe_watch_wait(f->watch, is_over, a, deadline);
    fe_watch_await(f->heap, -1);
    if (waited == FE_ARRIVED) return FERRY_OK;
    if (waited == FE_ABORTED) return ended(f, a->rank, doing);
    return late(f, a->rank, doing);
}

/* A buffer of our own, in state 1. */
static ferry_status take_bounce(fe_far *f, int rank, int *taken) {
    int64_t deadline = fe_now_ns() + f->watch->timeout_ns;
    for (;; sched_yield()) {
        for (int i = 0; i < FE_BOUNCES; i++) {
            uint32_t state = atomic_load(&f->bounce[i]);
            if ((state & 0xff) != 0 || !atomic_compare_exchange_strong(&f->bounce[i], &state, 1)) continue;
            *taken = i;
            return FERRY_OK;
        }
        FE_TRY(fe_watch_aborted(f->heap));
        if (fe_now_ns() > deadline)
            return fe_fail(FERRY_TIMEOUT, "rank %d waited %lld ms for a buffer to reach rank %d, on another host",
                           f->heap->rank, (long long)(f->watch->timeout_ns / 1000000), rank);
    }
}

static fe_order put_order(const fe_far *f, int rank, uint64_t at, uint64_t from, size_t bytes) {
    return (fe_order){.peer = rank,
                      .immediate = fe_immediate_pack(FE_CHUNK, FE_OF_PUTS, 0, f->heap->rank),
                      .local = from,
                      .remote = at,
                      .bytes = bytes};
}

/* Counted, a put is announced before it can arrive: who waits for it then waits long enough. Where the order of orders says that it has
 * arrived, it is announced when it has its place among them: a request that speaks of it comes after it. */
static ferry_status submit_put(fe_far *f, const fe_order *order) {
    if (!f->inbox.ordered) atomic_fetch_add(&f->puts[order->peer], 1);
    ferry_status status = fe_far_submit(f, order);
    if (f->inbox.ordered) atomic_fetch_add(&f->puts[order->peer], 1);
    return status;
}

/* Bytes in a buffer of our own, and their order. */
static ferry_status load_put(fe_far *f, int rank, uint64_t at, const char *from, size_t bytes, fe_order *order) {
    const fe_heap *heap = f->heap;
    int i;
    FE_TRY(take_bounce(f, rank, &i));
    ferry_status status = fe_heap_copy(heap, fe_post(heap, heap->rank, fe_room_bounce(heap, i)), from, bytes);
    *order = put_order(f, rank, at, fe_room_bounce(heap, i), bytes);
    order->done = &f->bounce[i];
    if (status != FERRY_OK) atomic_store(&f->bounce[i], 0);
    return status;
}

ferry_status fe_far_put_own(fe_far *f, int rank, uint64_t at, uint64_t from, size_t bytes) {
    fe_order order = put_order(f, rank, at, from, bytes);
    return submit_put(f, &order);
}

static ferry_status get_piece(fe_far *f, int rank, uint64_t at, char *to, size_t bytes) {
    const fe_heap *heap = f->heap;
    int i;
    FE_TRY(take_bounce(f, rank, &i));
    fe_order order = {.peer = rank,
                      .read = true,
                      .local = fe_room_bounce(heap, i),
                      .remote = at,
                      .bytes = bytes,
                      .done = &f->bounce[i],
                      .then = 2};
    awaited a = {.far = f, .rank = rank, .bounce = &f->bounce[i]};
    FE_TRY(fe_far_submit(f, &order));
    int64_t deadline = fe_now_ns() + f->watch->timeout_ns;
    FE_TRY(
        await(f, &a, deadline, "getting from")); /* else the buffer stays closed: the network may still write to it */
    bool failed = atomic_load(&f->bounce[i]) != 2;
    ferry_status status = failed ? broken(f, rank, "getting from") : FERRY_OK;
    if (!failed) status = fe_heap_copy(heap, to, fe_post(heap, heap->rank, fe_room_bounce(heap, i)), bytes);
    atomic_store(&f->bounce[i], 0);
    return status;
}

/* By whoever's turn it is. A request that was given up may still lie in its box for the network to read: until its answer has come there
 * is no other. */
static ferry_status await_box(fe_far *f, int rank, int64_t deadline) {
    awaited before = {.far = f, .rank = rank, .answered = &f->answered[rank], .number = f->asked[rank]};
    FE_TRY(await(f, &before, deadline, "asking"));
    return atomic_load(&f->answered[rank]) < f->asked[rank] ? broken(f, rank, "asking") : FERRY_OK;
}

/* Once the box is free. parcel: bytes that the request speaks of; NULL: none. */
static ferry_status ask(fe_far *f, int rank, fe_mail *mail, const fe_order *parcel, int64_t deadline, uint64_t *old) {
    const fe_heap *heap = f->heap;
    uint64_t out = fe_room_mail(heap, FE_MAIL_OUT, rank);
    fe_mail *text = fe_post(heap, heap->rank, out);
    if (parcel) FE_TRY(submit_put(f, parcel));
    mail->puts = atomic_load(&f->puts[rank]);
    mail->number = ++f->asked[rank];
    *text = *mail;
    fe_order order = {.peer = rank,
                      .immediate = fe_immediate_pack(FE_MAIL, 0, 0, heap->rank),
                      .local = out,
                      .remote = fe_room_mail(heap, FE_MAIL_IN, heap->rank),
                      .bytes = sizeof *text};
    awaited a = {.far = f, .rank = rank, .answered = &f->answered[rank], .number = f->asked[rank]};
    FE_TRY(fe_far_submit(f, &order));
    FE_TRY(await(f, &a, deadline, "asking"));
    if (atomic_load(&f->answered[rank]) < a.number) return broken(f, rank, "asking");
    const fe_mail *answer = fe_post(heap, heap->rank, fe_room_mail(heap, FE_REPLY_IN, rank));
    if (answer->refused) return fe_fail(FERRY_SYSTEM, "rank %d: rank %d refuses its request", heap->rank, rank);
    if (old) *old = answer->old;
    if (mail->puts > atomic_load(&f->flushed[rank])) atomic_store(&f->flushed[rank], mail->puts);
    return FERRY_OK;
}

/* One request at a time: whose turn it is keeps the boxes until end_turn. */
static ferry_status begin_turn(fe_far *f, int rank) {
    /* Not pthread_mutex_clocklock, which thread sanitizers of before 2022 take for no lock at all. */
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += f->watch->timeout_ns / 1000000000;
    end.tv_nsec += f->watch->timeout_ns % 1000000000;
    end.tv_sec += end.tv_nsec / 1000000000;
    end.tv_nsec %= 1000000000;
    return pthread_mutex_timedlock(&f->asking[rank].lock, &end) == 0 ? FERRY_OK : late(f, rank, "asking");
}

static void end_turn(fe_far *f, int rank) {
    pthread_mutex_unlock(&f->asking[rank].lock);
}

ferry_status fe_far_word(fe_far *f, int rank, fe_errand errand, uint64_t at, uint64_t value, uint64_t expected,
                         uint64_t *old) {
    int64_t deadline = fe_now_ns() + f->watch->timeout_ns;
    fe_mail mail = {.errand = errand, .at = at, .value = value, .expected = expected};
    FE_TRY(begin_turn(f, rank));
    ferry_status status = await_box(f, rank, deadline);
    if (status == FERRY_OK) status = ask(f, rank, &mail, NULL, deadline, old);
    end_turn(f, rank);
    return status;
}

/* ---- ranges ---- */

/* A piece for a space that the network does not reach: into the parcel that its owner keeps for this rank, who then brings it there. */
static ferry_status stow(fe_far *f, int rank, uint64_t at, const char *from, size_t bytes) {
    int64_t deadline = fe_now_ns() + f->watch->timeout_ns;
    fe_mail mail = {.errand = FE_STOW, .at = at, .value = bytes};
    fe_order parcel;
    FE_TRY(load_put(f, rank, fe_room_parcel(f->heap, false, f->heap->rank), from, bytes, &parcel));
    ferry_status turn = begin_turn(f, rank), status = turn;
    if (status == FERRY_OK) status = await_box(f, rank, deadline);
    if (status != FERRY_OK) atomic_store(parcel.done, 0); /* it was not sent */
    if (status == FERRY_OK) status = ask(f, rank, &mail, &parcel, deadline, NULL);
    if (turn == FERRY_OK) end_turn(f, rank);
    return status;
}

static ferry_status fetch(fe_far *f, int rank, uint64_t at, char *to, size_t bytes) {
    int64_t deadline = fe_now_ns() + f->watch->timeout_ns;
    fe_mail mail = {.errand = FE_FETCH, .at = at, .value = bytes};
    FE_TRY(begin_turn(f, rank));
    ferry_status status = await_box(f, rank, deadline);
    if (status == FERRY_OK) status = ask(f, rank, &mail, NULL, deadline, NULL);
    if (status == FERRY_OK) status = get_piece(f, rank, fe_room_parcel(f->heap, true, f->heap->rank), to, bytes);
    end_turn(f, rank);
    return status;
}

static ferry_status put_piece(fe_far *f, int rank, uint64_t at, const char *from, size_t bytes) {
    fe_order order;
    if (fe_heap_staged(f->heap)) return stow(f, rank, at, from, bytes);
    FE_TRY(load_put(f, rank, at, from, bytes, &order));
    return submit_put(f, &order);
}

static size_t most_at_once(const fe_far *f) {
    return fe_heap_staged(f->heap) ? FE_PARCEL : FE_BOUNCE;
}

ferry_status fe_far_put(fe_far *f, int rank, uint64_t at, const void *from, size_t bytes) {
    size_t most = most_at_once(f);
    if (atomic_load(&f->lost[rank])) return broken(f, rank, "putting to");
    for (size_t done = 0; done < bytes; done += most)
        FE_TRY(put_piece(f, rank, at + done, (const char *)from + done, bytes - done < most ? bytes - done : most));
    return FERRY_OK;
}

ferry_status fe_far_get(fe_far *f, int rank, uint64_t at, void *to, size_t bytes) {
    size_t most = most_at_once(f);
    for (size_t done = 0; done < bytes; done += most) {
        size_t n = bytes - done < most ? bytes - done : most;
        FE_TRY(fe_heap_staged(f->heap) ? fetch(f, rank, at + done, (char *)to + done, n)
                                       : get_piece(f, rank, at + done, (char *)to + done, n));
    }
    return FERRY_OK;
}

ferry_status fe_far_quiet(fe_far *f) {
    for (int r = 0; r < f->heap->ranks; r++)
        if (!fe_heap_near(f->heap, r) && atomic_load(&f->puts[r]) != atomic_load(&f->flushed[r]))
            FE_TRY(fe_far_word(f, r, FE_FLUSH, 0, 0, 0, NULL));
    return FERRY_OK;
}

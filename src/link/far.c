#include "link/far.h"
#include "base/env.h"
#include "base/log.h"
#include "link/proxy.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- making ---- */

static void send_answer(void *context, int rank, const fe_mail *answer) {
    fe_far *f = context;
    const fe_heap *heap = f->heap;
    uint64_t out = fe_room_mail(heap, FE_REPLY_OUT, rank);
    memcpy(fe_post(heap, heap->rank, out), answer, sizeof *answer);
    fe_order order = {.peer = rank,
                      .immediate = fe_immediate_pack(FE_REPLY, 0, 0, heap->rank),
                      .local = out,
                      .remote = fe_room_mail(heap, FE_REPLY_IN, heap->rank),
                      .bytes = sizeof *answer};
    fe_proxy_hold(f, &order);
}

static void take_answer(void *context, int rank) {
    fe_far *f = context;
    const fe_mail *answer = fe_post(f->heap, f->heap->rank, fe_room_mail(f->heap, FE_REPLY_IN, rank));
    atomic_store(&f->answered[rank], answer->number);
    fe_watch_ring(f->heap, f->heap->rank);
}

static void take_abort(void *context) {
    fe_watch_abort(((fe_far *)context)->heap);
}

static ferry_status make_tables(fe_far *f) {
    const fe_heap *heap = f->heap;
    size_t ranks = (size_t)heap->ranks, boxes = fe_room_boxes(heap);
    f->chunks = calloc(boxes, sizeof *f->chunks);
    f->puts = calloc(ranks, sizeof *f->puts);
    f->flushed = calloc(ranks, sizeof *f->flushed);
    f->bytes = calloc(ranks, sizeof *f->bytes);
    f->answered = calloc(ranks, sizeof *f->answered);
    f->asked = calloc(ranks, sizeof *f->asked);
    f->asking = calloc(ranks, sizeof *f->asking);
    for (size_t r = 0; f->asking && r < ranks; r++) pthread_mutex_init(&f->asking[r].lock, NULL);
    f->gone = calloc(ranks, sizeof *f->gone);
    f->lost = calloc(ranks, sizeof *f->lost);
    f->why = calloc(ranks, sizeof *f->why);
    f->slots = calloc(FE_ORDERS, sizeof *f->slots);
    f->line = calloc(ranks, sizeof *f->line);
    f->flags_said = calloc(ranks * FE_FLAGS, sizeof *f->flags_said);
    f->inbox.heap = heap;
    f->inbox.reply = send_answer;
    f->inbox.answered = take_answer;
    f->inbox.stop = take_abort;
    f->inbox.context = f;
    bool inbox = fe_inbox_open(&f->inbox), ring = fe_ring_open(&f->ring, FE_ORDERS);
    if (!inbox || !ring || !f->chunks || !f->puts || !f->flushed || !f->bytes || !f->answered || !f->asked ||
        !f->asking || !f->gone || !f->lost || !f->why || !f->slots || !f->line || !f->flags_said)
        return fe_fail(FERRY_NOMEM, "rank %d: no memory for the network to %d ranks", heap->rank, heap->ranks);
    for (int i = 0; i < FE_ORDERS; i++) {
        f->slots[i].next = f->free_slot;
        f->free_slot = &f->slots[i];
    }
    return FERRY_OK;
}

static ferry_status make_boxes(const void *context, void **memory, int *gpu) {
    const fe_heap *heap = context;
    if (!heap->memory->boxes(heap, gpu)) FE_TRY(heap->memory->make_boxes(heap));
    *memory = heap->memory->boxes(heap, gpu);
    return FERRY_OK;
}

/* Where boxes are, kernels have been told by the time that the network is opened anew. */
static fe_direct wish_direct(const fe_heap *heap, int64_t asked) {
    int gpu;
    if (!heap->boxes_at || !heap->memory->boxes) return FE_DIRECT_NEVER;
    if (heap->era == 0) return (fe_direct)asked;
    return heap->memory->boxes(heap, &gpu) ? FE_DIRECT_ALWAYS : FE_DIRECT_NEVER;
}

typedef struct introduction {
    int32_t status, parts;
    fe_ofi_card card;
} introduction;

static ferry_status open_network(fe_far *f, fe_boot *boot, fe_ofi_card *card) {
    char address[FE_BOOT_ADDRESS] = "127.0.0.1"; /* all on one machine: nothing need be seen from outside */
    const char *wanted = fe_env_text(FE_ENV_FERRY_FABRIC_ADDRESS);
    const fe_heap *heap = f->heap;
    FE_TRY(make_tables(f));
    int64_t rails, flags, parts, direct;
    FE_TRY(fe_env_number(FE_ENV_FERRY_FABRIC_RAILS, 0, 1, FE_RAILS, &rails));
    FE_TRY(fe_env_number(FE_ENV_FERRY_FABRIC_FLAGS, 0, 0, 1, &flags));
    FE_TRY(fe_env_number(FE_ENV_FERRY_FABRIC_PARTS, 0, 1, FE_PARTS, &parts));
    FE_TRY(fe_env_number(FE_ENV_FERRY_FABRIC_GPUDIRECT, FE_DIRECT_MAYBE, 0, 1, &direct));
    f->parts = (int)parts;
    if (!heap->hosts.one_machine) fe_boot_address(boot, address);
    const char *own = *address ? address : NULL;
    fe_ofi_wish wish = {.rank = heap->rank,
                        .index = heap->hosts.index,
                        .each = heap->hosts.each,
                        .provider = fe_env_text(FE_ENV_FERRY_FABRIC),
                        .addresses = wanted ? wanted : own,
                        .addresses_given = wanted != NULL,
                        .rails = (int)rails,
                        .flags = flags != 0,
                        .memory = heap->post[heap->rank],
                        .bytes = heap->post_bytes,
                        .split = heap->boxes_at,
                        .direct = wish_direct(heap, direct),
                        .without_cuda = direct != FE_DIRECT_ALWAYS,
                        .above = make_boxes,
                        .context = heap};
    FE_TRY(fe_ofi_open(&wish, &f->ofi, card));
    f->inbox.direct = fe_ofi_direct(f->ofi);
    if (wish.direct == FE_DIRECT_MAYBE && !f->inbox.direct) heap->memory->drop_boxes(heap);
    f->inbox.tag = card->tag;
    f->inbox.ordered = fe_ofi_by_flags(f->ofi);
    return FERRY_OK;
}

/* Everybody learns everybody's address, or that somebody has none, or expects something else of the others. */
static ferry_status introduce(fe_far *f, fe_boot *boot, introduction *mine) {
    int ranks = f->heap->ranks;
    introduction *all = calloc((size_t)ranks, sizeof *all);
    fe_ofi_card *cards = calloc((size_t)ranks, sizeof *cards);
    if (!all || !cards) {
        free(all);
        free(cards);
        return fe_fail(FERRY_NOMEM, "rank %d: no memory to meet %d ranks", f->heap->rank, ranks);
    }
    ferry_status status = fe_boot_allgather(boot, mine, all, sizeof *mine);
    for (int r = 0; status == FERRY_OK && r < ranks; r++) {
        cards[r] = all[r].card;
        if (all[r].status != FERRY_OK && r != f->heap->rank)
            status = fe_fail(fe_status_heard(all[r].status), "rank %d could not open the network between hosts", r);
        else if (mine->status == FERRY_OK && !fe_heap_masked(f->heap, r) && all[r].parts != mine->parts)
            status = fe_fail(FERRY_MISMATCH, "FERRY_FABRIC_PARTS is %d on rank %d, %d on rank %d (0: auto)",
                             all[r].parts, r, mine->parts, f->heap->rank);
    }
    if (status == FERRY_OK && mine->status == FERRY_OK) status = fe_ofi_meet(f->ofi, cards, ranks);
    free(all);
    free(cards);
    return status;
}

const char *fe_far_trouble(const void *far, int rank) {
    const fe_far *f = far;
    return atomic_load(&f->lost[rank]) ? f->why[rank] : NULL;
}

ferry_status fe_far_open(fe_boot *boot, const fe_heap *heap, const fe_watch *watch, ferry_status before, fe_far **far) {
    fe_far *f = aligned_alloc(64, (size_t)fe_align(sizeof *f, 64));
    if (!f) return fe_fail(FERRY_NOMEM, "rank %d: no memory for the network", heap->rank);
    memset(f, 0, sizeof *f);
    f->heap = heap;
    f->watch = watch;
    f->first_lost = -1;
    pthread_mutex_init(&f->lock, NULL);
    *far = f;
    introduction mine;
    char sentence[FE_SENTENCE];
    memset(&mine, 0, sizeof mine);
    mine.status = before;
    if (before == FERRY_OK) mine.status = open_network(f, boot, &mine.card);
    mine.parts = f->parts;
    snprintf(sentence, sizeof sentence, "%s", ferry_last_error());
    FE_TRY(introduce(f, boot, &mine));
    if (mine.status != FERRY_OK) return fe_fail_again((ferry_status)mine.status, sentence);
    errno = fe_thread_start(&f->thread, fe_proxy_run, f);
    if (errno) return fe_fail_errno("rank %d: starting the thread of the network", heap->rank);
    f->running = true;
    return FERRY_OK;
}

static void ring_doorbell(fe_far *f) {
    if (!atomic_load(&f->asleep)) return;
    atomic_fetch_add(&f->doorbell, 1);
    fe_futex_wake(&f->doorbell);
}

void fe_far_stir(fe_far *f) {
    atomic_store(&f->stirred, true);
    ring_doorbell(f);
}

void fe_far_close(fe_far *f) {
    if (!f) return;
    atomic_store(&f->leaving, true);
    ring_doorbell(f);
    if (f->running) pthread_join(f->thread, NULL);
    fe_ofi_close(f->ofi);
    fe_inbox_close(&f->inbox);
    fe_ring_close(&f->ring);
    free((void *)f->chunks);
    free((void *)f->puts);
    free((void *)f->flushed);
    free((void *)f->bytes);
    free((void *)f->answered);
    free((void *)f->lost);
    for (int r = 0; f->asking && r < f->heap->ranks; r++) pthread_mutex_destroy(&f->asking[r].lock);
    free(f->asking);
    free((void *)f->gone);
    free(f->asked);
    free(f->why);
    free(f->slots);
    free(f->line);
    free(f->flags_said);
    free(f->held);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

ferry_status fe_far_check(fe_far *f) {
    ferry_status status = FERRY_OK;
    pthread_mutex_lock(&f->lock);
    if (f->first_lost >= 0)
        status = fe_fail(FERRY_SYSTEM, "rank %d: the connection to rank %d: %s", f->heap->rank, f->first_lost,
                         f->why[f->first_lost]);
    pthread_mutex_unlock(&f->lock);
    return status;
}

int fe_far_parts(const fe_far *f) {
    return f->parts;
}

uint64_t fe_far_bytes(const fe_far *f, int rank) {
    return atomic_load(&f->bytes[rank]);
}

/* ---- orders ---- */

ferry_status fe_far_submit(fe_far *f, const fe_order *order) {
    const fe_heap *heap = f->heap;
    int64_t deadline = 0;
    if (fe_proxy_here(f)) { /* a kernel's, which the proxy carries out */
        fe_proxy_hold(f, order);
        return FERRY_OK;
    }
    while (!fe_ring_put(&f->ring, order)) { /* full: the network is slower than we are */
        FE_TRY(fe_watch_aborted(heap));
        if (!deadline) deadline = fe_now_ns() + f->watch->timeout_ns;
        if (fe_now_ns() > deadline)
            return fe_fail(FERRY_TIMEOUT, "rank %d waited %lld ms for room to write to rank %d, on another host",
                           heap->rank, (long long)(f->watch->timeout_ns / 1000000), order->peer);
        sched_yield();
    }
    ring_doorbell(f);
    return FERRY_OK;
}

ferry_status fe_far_push(fe_far *f, int host, fe_kind kind, int half, uint64_t local, uint64_t remote, size_t bytes) {
    const fe_heap *heap = f->heap;
    if (fe_heap_host_masked(heap, host)) return FERRY_OK;
    fe_order order = {.peer = fe_hosts_rank(&heap->hosts, host, heap->hosts.index),
                      .immediate = fe_immediate_pack(FE_CHUNK, (int)kind, half, heap->rank),
                      .local = local,
                      .remote = remote,
                      .bytes = bytes};
    atomic_fetch_add_explicit(&f->chunks[fe_room_box(heap, (int)kind, half, host)], 1, memory_order_relaxed);
    return fe_far_submit(f, &order);
}

ferry_status fe_far_tell(fe_far *f, int host, fe_kind kind, int half, uint64_t epoch, const uint64_t *word,
                         uint64_t relay_at, uint64_t relay_bytes) {
    const fe_heap *heap = f->heap;
    for (int i = 1; i < heap->hosts.count; i++) {
        int to = (heap->hosts.mine + i) % heap->hosts.count;
        if ((host >= 0 && host != to) || fe_heap_host_masked(heap, to)) continue;
        uint64_t at = fe_room_letter(heap, false, (int)kind, half, to);
        fe_letter *letter = fe_post(heap, heap->rank, at);
        letter->epoch = epoch;
        memcpy(letter->word, word, sizeof letter->word);
        letter->chunks = atomic_load_explicit(&f->chunks[fe_room_box(heap, (int)kind, half, to)], memory_order_relaxed);
        letter->relay_at = relay_at;
        letter->relay_bytes = relay_bytes;
        fe_order order = {.peer = fe_hosts_rank(&heap->hosts, to, heap->hosts.index),
                          .immediate = fe_immediate_pack(FE_LETTER, (int)kind, half, heap->rank),
                          .local = at,
                          .remote = fe_room_letter(heap, true, (int)kind, half, heap->hosts.mine),
                          .bytes = sizeof *letter};
        FE_TRY(fe_far_submit(f, &order));
    }
    return FERRY_OK;
}

/* The proxy: one thread a rank that gives orders to the network and hears what arrives. */
#include "link/proxy.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>

#define BUSY_NS  200000   /* yields this long after the last work, whatever anybody waits for */
#define HOPE_NS  20000000 /* and this long while a rank of the host waits, or something is under way */
#define NAP_NS   100000   /* then sleeps: so long at a time, */
#define SLEEP_NS 1000000  /* or so long after a tenth of a second without work; orders wake it */
#define STILL_NS \
    1000000000 /* what was ordered still goes out when the group is left, until nothing has moved for so long, */
#define DRAIN_NS 300000000 /* or, after a failure, for so long */
#define BYE_NS   500000000 /* for the column's good-byes: a connection that closes with unread data loses what it sent */

/* ---- trouble ---- */

static void lose(fe_far *f, int peer, const char *text) {
    fe_control *mine = fe_heap_control(f->heap, f->heap->rank);
    uint32_t nobody = 0;
    if (atomic_load(&f->lost[peer]) || f->inbox.bye[peer]) return;
    pthread_mutex_lock(&f->lock);
    snprintf(f->why[peer], sizeof f->why[peer], "%s", text);
    if (f->first_lost < 0) f->first_lost = peer;
    pthread_mutex_unlock(&f->lock);
    atomic_store(&f->lost[peer], 1);
    atomic_compare_exchange_strong(&mine->lost, &nobody, (uint32_t)peer + 1);
    fe_watch_ring(f->heap, f->heap->rank);
    fe_log(FE_WARN, FE_MOVE, "rank %d: the connection to rank %d is given up: %s", f->heap->rank, peer, text);
}

/* ---- orders ---- */

static void finish(fe_far *f, const fe_order *order, bool failed) {
    if (!order->done) return;
    atomic_store(order->done, order->then + (failed ? FE_FAILED : 0)); /* what a read brought comes before: release */
    fe_watch_ring(f->heap, f->heap->rank);
}

static bool hold(fe_far *f, const fe_order *order) {
    if (f->held_count == f->held_room) {
        int room = f->held_room * 2 + 64;
        fe_held *more = realloc(f->held, (size_t)room * sizeof *more);
        if (!more) return false;
        f->held = more;
        f->held_room = room;
    }
    f->held[f->held_count++] = (fe_held){.order = *order, .since_ns = fe_now_ns()};
    f->line[order->peer].held++;
    return true;
}

void fe_proxy_hold(fe_far *f, const fe_order *order) {
    if (!hold(f, order)) lose(f, order->peer, "no memory to say something to it");
}

/* The word that tells of it, to be written behind it. Of its sort nothing is under way but this: the word may be changed. */
static void raise_flag(fe_far *f, const fe_order *order) {
    const fe_heap *heap = f->heap;
    int flag = order->immediate ? fe_flag_of(order->immediate) : -1;
    if (flag < 0 || !f->inbox.ordered) return;
    uint64_t out = fe_room_flag(heap, false, order->peer, flag), *word = fe_post(heap, heap->rank, out);
    uint32_t number = ++f->flags_said[(size_t)order->peer * FE_FLAGS + (size_t)flag];
    *word = fe_flag_word(number, fe_ofi_tag(f->ofi, order->peer));
    fe_order behind = {
        .peer = order->peer, .local = out, .remote = fe_room_flag(heap, true, heap->rank, flag), .bytes = sizeof *word};
    fe_proxy_hold(f, &behind);
}

/* false: the network does not take it now. */
static bool give(fe_far *f, const fe_order *order) {
    if (atomic_load(&f->lost[order->peer]) || f->inbox.bye[order->peer]) {
        finish(f, order, true);
        return true;
    }
    fe_under_way *u = f->free_slot;
    if (!u) return false;
    u->order = *order;
    int result =
        order->read ? fe_ofi_read(f->ofi, order->peer, order->local, order->remote, order->bytes, u)
                    : fe_ofi_write(f->ofi, order->peer, order->local, order->remote, order->bytes, order->immediate, u);
    if (result > 0) return false;
    if (result < 0) {
        lose(f, order->peer, fe_ofi_text(f->ofi, result));
        finish(f, order, true);
        return true;
    }
    f->free_slot = u->next;
    f->under_way++;
    if (!order->read) atomic_fetch_add_explicit(&f->bytes[order->peer], order->bytes, memory_order_relaxed);
    raise_flag(f, order);
    return true;
}

/* true: it is no longer held. */
static bool settle(fe_far *f, const fe_held *h) {
    fe_line *line = &f->line[h->order.peer];
    bool waits_behind = f->inbox.ordered && line->round == f->round;
    if (!waits_behind && give(f, &h->order)) return true;
    line->round = f->round;
    if (fe_now_ns() - h->since_ns <= f->watch->timeout_ns) return false;
    lose(f, h->order.peer, "it has taken in nothing for as long as the group's timeout");
    finish(f, &h->order, true);
    return true;
}

static int retry(fe_far *f) {
    int kept = 0, given = 0;
    f->round++;
    for (int i = 0; i < f->held_count; i++) { /* flags may join while it lasts */
        fe_held h = f->held[i];
        if (!settle(f, &h)) {
            f->held[kept++] = h;
            continue;
        }
        given++;
        f->line[h.order.peer].held--;
    }
    f->held_count = kept;
    return given;
}

/* false: not now; or others for the same rank are to go first. */
static bool give_new(fe_far *f, const fe_order *order) {
    return !(f->inbox.ordered && f->line[order->peer].held) && give(f, order);
}

static int take_orders(fe_far *f) {
    fe_order order;
    int taken = f->held_count ? retry(f) : 0;
    /* At most so many held: the ring behind them then fills up, and whoever orders waits. */
    while (f->held_count < FE_ORDERS && fe_ring_take(&f->ring, &order)) {
        taken++;
        if (!give_new(f, &order) && !hold(f, &order)) {
            lose(f, order.peer, "no memory to hold back a write");
            finish(f, &order, true);
        }
    }
    return taken;
}

/* ---- orders of kernels ---- */

static fe_kernel_order *next_kernel_order(const fe_far *f) {
    fe_kernel_order *ring = fe_post(f->heap, f->heap->rank, fe_room_orders(f->heap));
    return fe_heap_staged(f->heap) ? &ring[f->kernel_orders % FE_KERNEL_ORDERS] : NULL;
}

/* Acquire: the order, and the rows that it speaks of. */
static bool kernel_waits(const fe_far *f) {
    const fe_kernel_order *c = next_kernel_order(f);
    return c && atomic_load_explicit(&c->turn, memory_order_acquire) == fe_kernel_turn(f->kernel_orders) + 1;
}

/* The ring lies where other hosts can write. */
static bool order_sound(const fe_heap *heap, const fe_kernel_order *c) {
    return c->host >= -1 && c->host < heap->hosts.count && c->kind >= 0 && c->kind < FE_KINDS && c->half >= 0 &&
           c->half <= 1 && c->local <= heap->post_bytes && c->bytes <= heap->post_bytes - c->local;
}

/* Nothing fails here: on this thread, orders are held. */
static void carry_out(fe_far *f, const fe_kernel_order *c) {
    const fe_hosts *hosts = &f->heap->hosts;
    if (!order_sound(f->heap, c)) {
        fe_log(FE_WARN, FE_MOVE, "rank %d refuses an order of a kernel's that makes no sense", f->heap->rank);
        return;
    }
    for (int i = 1; c->bytes && i < hosts->count; i++) {
        int to = (hosts->mine + i) % hosts->count;
        if (c->host < 0 || c->host == to) fe_far_push(f, to, (fe_kind)c->kind, c->half, c->local, c->remote, c->bytes);
    }
    if (c->epoch)
        fe_far_tell(f, c->host, (fe_kind)c->kind, c->half, c->epoch, c->word, c->relay_bytes ? c->local : 0,
                    c->relay_bytes);
}

static int take_kernel_orders(fe_far *f) {
    int taken = 0;
    for (; f->held_count < FE_ORDERS && kernel_waits(f); taken++) {
        fe_kernel_order *c = next_kernel_order(f), copy; /* what is checked is what is used */
        memcpy(&copy, c, sizeof copy);
        carry_out(f, &copy);
        /* Release: the slot has been read, and is its next writer's. */
        atomic_store_explicit(&c->turn, fe_kernel_turn(f->kernel_orders + FE_KERNEL_ORDERS), memory_order_release);
        f->kernel_orders++;
    }
    return taken;
}

static int hear_sent(fe_far *f) {
    fe_ofi_sent sent[32];
    int n = fe_ofi_poll_sent(f->ofi, sent, 32);
    for (int i = 0; i < n; i++) {
        fe_under_way *u = sent[i].context;
        if (!u) continue;
        if (sent[i].error) lose(f, u->order.peer, sent[i].error_text);
        finish(f, &u->order, sent[i].error != 0);
        u->next = f->free_slot;
        f->free_slot = u;
        f->under_way--;
    }
    return n;
}

/* ---- arrivals ---- */

static int hear_arrived(fe_far *f) {
    uint32_t immediate[FE_LOOK];
    int source, n = fe_ofi_poll_arrived(f->ofi, immediate, FE_LOOK);
    if (n == 0 && f->inbox.ordered) n = fe_inbox_look(&f->inbox, immediate);
    for (int i = 0; i < n; i++) {
        bool sound = fe_inbox_hear(&f->inbox, immediate[i], &source);
        if (source >= 0 && f->inbox.bye[source] && !atomic_exchange(&f->gone[source], 1))
            fe_watch_ring(f->heap, f->heap->rank); /* who asks it for something waits no longer */
        if (sound) continue;
        fe_log(FE_WARN, FE_MOVE, "rank %d refuses what arrived: %s", f->heap->rank, f->inbox.why);
        if (source >= 0) lose(f, source, f->inbox.why);
    }
    return n;
}

static void say(fe_far *f, int peer, fe_arrival what) {
    const fe_heap *heap = f->heap;
    fe_order order = {.peer = peer,
                      .immediate = fe_immediate_pack(what, 0, 0, heap->rank),
                      .local = fe_room_sink(heap),
                      .remote = fe_room_sink(heap) + 64,
                      .bytes = 8};
    fe_proxy_hold(f, &order);
}

static void say_to_column(fe_far *f, fe_arrival what) {
    const fe_hosts *hosts = &f->heap->hosts;
    for (int h = 0; h < hosts->count; h++)
        if (h != hosts->mine && !fe_heap_host_masked(f->heap, h)) say(f, fe_hosts_rank(hosts, h, hosts->index), what);
}

/* An abort crosses in every column, whoever of the host it came from. */
static int carry_abort(fe_far *f) {
    if (f->stop_said || fe_heap_why(f->heap, f->heap->rank) != FE_GROUP_ABORTED) return 0;
    f->stop_said = true;
    say_to_column(f, FE_STOP);
    return 1;
}

static int work(fe_far *f) {
    /* Arrivals first: a good-bye that came before its connection's end explains it. */
    int done = carry_abort(f) + take_kernel_orders(f) + take_orders(f), arrived = hear_arrived(f), sent = hear_sent(f);
    if (sent < 0 || arrived < 0)
        for (int r = 0; r < f->heap->ranks; r++)
            if (!fe_heap_near(f->heap, r)) lose(f, r, fe_ofi_trouble(f->ofi));
    return sent < 0 || arrived < 0 ? 0 : done + sent + arrived;
}

/* ---- resting ---- */

static bool somebody_waits(const fe_far *f) {
    const fe_hosts *hosts = &f->heap->hosts;
    for (int i = 0; i < hosts->each; i++)
        if (atomic_load_explicit(&fe_heap_control(f->heap, fe_hosts_rank(hosts, hosts->mine, i))->waiting,
                                 memory_order_relaxed))
            return true;
    return false;
}

/* The core belongs to the workers: a proxy without work yields, and after a while sleeps. It cannot sleep on the network, since a
 * libfabric that reports readiness by descriptor costs ten times the latency (36 us against 4 measured), so it naps. */
static void rest(fe_far *f, int64_t *idle_since) {
    int64_t now = fe_now_ns(), idle;
    if (!*idle_since) *idle_since = now;
    idle = now - *idle_since;
    if (idle < BUSY_NS || (idle < HOPE_NS && (f->under_way || f->held_count || somebody_waits(f)))) {
        sched_yield();
        return;
    }
    /* As between a sleeper and whoever rings its bell (docs/protocol.md): one of the two sees the other. */
    uint32_t seen = atomic_load(&f->doorbell);
    atomic_store(&f->asleep, 1);
    if (atomic_load(&f->ring.slot[f->ring.head & f->ring.mask].turn) != f->ring.head + 1 && !atomic_load(&f->leaving))
        fe_futex_wait(&f->doorbell, seen, idle < 100000000 ? NAP_NS : SLEEP_NS);
    atomic_store(&f->asleep, 0);
}

/* ---- leaving ---- */

static bool all_given(const fe_far *f) {
    const fe_ring *ring = &f->ring;
    return !f->under_way && !f->held_count && !kernel_waits(f) &&
           atomic_load(&ring->slot[ring->head & ring->mask].turn) != ring->head + 1;
}

static void work_until(fe_far *f, int64_t ns, bool (*over)(const fe_far *f)) {
    for (int64_t deadline = fe_now_ns() + ns; !over(f) && fe_now_ns() < deadline;)
        if (!work(f)) sched_yield();
}

/* A slow link takes as long as it takes, but no longer than any wait of the group. */
static void drain(fe_far *f, bool in_peace) {
    int64_t now = fe_now_ns(), end = now + (in_peace ? f->watch->timeout_ns : DRAIN_NS), moved = now;
    while (!all_given(f) && now < end && now - moved < STILL_NS) {
        bool moves = work(f) != 0;
        now = fe_now_ns();
        if (moves) moved = now;
        if (!moves) sched_yield();
    }
}

static bool column_gone(const fe_far *f) {
    const fe_hosts *hosts = &f->heap->hosts;
    for (int h = 0; h < hosts->count; h++) {
        int peer = fe_hosts_rank(hosts, h, hosts->index);
        if (h != hosts->mine && !fe_heap_host_masked(f->heap, h) && !f->inbox.bye[peer] && !atomic_load(&f->lost[peer]))
            return false;
    }
    return true;
}

static void leave(fe_far *f) {
    const fe_control *mine = fe_heap_control(f->heap, f->heap->rank);
    bool in_peace =
        !atomic_load(&mine->failed) && fe_heap_why(f->heap, f->heap->rank) != FE_GROUP_ABORTED && f->first_lost < 0;
    drain(f, in_peace);
    in_peace = in_peace && all_given(f); /* else it will not take in the good-bye either */
    say_to_column(f, FE_BYE);
    drain(f, in_peace);
    if (in_peace) work_until(f, BYE_NS, column_gone);
}

static _Thread_local const fe_far *here;

bool fe_proxy_here(const fe_far *f) {
    return here == f;
}

void *fe_proxy_run(void *far) {
    fe_far *f = far;
    here = f;
    fe_ofi_pin(f->ofi);
    if (fe_ofi_direct(f->ofi) && f->heap->memory->attend(f->heap) != FERRY_OK)
        fe_log(FE_WARN, FE_MOVE, "rank %d: the network's thread: %s", f->heap->rank, ferry_last_error());
    for (int64_t idle_since = 0; !atomic_load(&f->leaving);) {
        if (work(f) || atomic_exchange(&f->stirred, false))
            idle_since = 0;
        else
            rest(f, &idle_since);
    }
    leave(f);
    return NULL;
}

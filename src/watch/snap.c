#include "watch/snap.h"

#include <stdlib.h>

/* Acquire: see read_step. */
static uint64_t get(const _Atomic uint64_t *word) {
    return atomic_load_explicit(word, memory_order_acquire);
}

/* ---- ticks to nanoseconds ---- */

typedef struct scale { /* by two moments at which both clocks were read */
    uint64_t ticks;
    int64_t ns;
    double rate; /* ns a tick */
} scale;

static scale find_scale(const fe_recorder *r, int64_t now_ns) {
    scale s = {.ticks = *(const volatile uint64_t *)&r->began_ticks, .ns = *(const volatile int64_t *)&r->began_ns};
    fe_recorder clock = {.counter = *(const volatile uint32_t *)&r->counter};
    uint64_t now = fe_recorder_now(&clock);
    if (s.ns < 0 || s.ns > now_ns) s.ns = now_ns; /* no time that there was: a stranger's memory */
    if (now > s.ticks && now_ns > s.ns && s.ns > 0) s.rate = (double)(now_ns - s.ns) / (double)(now - s.ticks);
    if (!clock.counter) s.rate = 1;
    return s;
}

static int64_t duration(const scale *s, uint64_t ticks) {
    double ns = (double)ticks * s->rate;
    return ns < 9e18 ? (int64_t)ns : INT64_MAX;
}

/* 0 stays 0: it is no time. What was before the beginning or will be after `now` is no time either. */
static int64_t moment(const scale *s, uint64_t ticks, int64_t now) {
    if (!ticks || ticks < s->ticks) return 0;
    int64_t after = duration(s, ticks - s->ticks);
    return after <= now - s->ns ? s->ns + after : now;
}

/* ---- steps ---- */

/* Printed to terminals and into pages: letters, digits and what the library's own steps have beside them. */
static void get_text(const _Atomic uint64_t *from, char *to) {
    for (int i = 0; i < FE_STEP_TEXT / 8; i++) {
        uint64_t word = get(&from[i]);
        memcpy(to + i * 8, &word, sizeof word);
    }
    to[FE_STEP_TEXT] = 0;
    for (char *c = to; *c; c++)
        if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') ||
              strchr(" ()_,.:+-", *c)))
            *c = '?';
}

static int kind_of(uint64_t packed) {
    int kind = (int)(packed & 0xff) - 1;
    return kind < FE_KINDS ? kind : -1;
}

static void get_step(const fe_step *from, const scale *s, int ranks, int64_t now, fe_snap_step *to) {
    uint64_t what = get(&from->what), late = get(&from->late);
    get_text(from->text, to->text);
    to->lane = (int)(what & 0xffff);
    to->half = (int)(what >> 16 & 1);
    to->kind[0] = kind_of(what >> 24);
    to->kind[1] = kind_of(what >> 32);
    to->status = (int)(what >> 40 & 0xff);
    to->route = get(&from->route);
    to->epoch[0] = get(&from->epoch[0]);
    to->epoch[1] = get(&from->epoch[1]);
    to->bytes = get(&from->bytes);
    for (int i = 0; i < FE_STEP_STAMPS; i++) to->at[i] = moment(s, get(&from->at[i]), now);
    to->late_rank = (int)(late & 0xffff) - 1;
    if (to->late_rank >= ranks) to->late_rank = -1;
    to->late_ns = duration(s, late >> 16);
}

/* A seqlock: the words count only when `state` names the same step before and after; a word of a later step, acquired (put, recorder.c), brings
 * that one's `state` along. LIVE may have become OVER meanwhile. */
static bool read_step(const fe_step *from, const scale *s, int ranks, int64_t now, fe_snap_step *to) {
    uint64_t before = atomic_load_explicit(&from->state, memory_order_acquire);
    unsigned state = before % FE_STEP_STATES;
    if (state != FE_STEP_LIVE && state != FE_STEP_OVER) return false;
    get_step(from, s, ranks, now, to);
    to->number = before / FE_STEP_STATES;
    to->live = state == FE_STEP_LIVE;
    uint64_t after = get(&from->state);
    return after / FE_STEP_STATES == to->number && after % FE_STEP_STATES != FE_STEP_FILLING;
}

static int by_number(const void *a, const void *b) {
    const fe_snap_step *left = a, *right = b;
    return left->number < right->number ? -1 : left->number > right->number;
}

/* ---- the rest ---- */

static void get_peer(const fe_peer *from, const scale *s, fe_snap_peer *to) {
    uint64_t place = get(&from->place);
    *to = (fe_snap_peer){
        .near = place & FE_PEER_NEAR, .column = place & FE_PEER_COLUMN, .masked = place & FE_PEER_MASKED};
    for (int half = 0; half < 2; half++) {
        const fe_traffic *t = &from->traffic[half];
        to->rows_sent += get(&t->rows_sent);
        to->bytes_sent += get(&t->bytes_sent);
        to->rows_received += get(&t->rows_received);
        to->bytes_received += get(&t->bytes_received);
        to->rows_returned += get(&t->rows_returned);
        to->bytes_returned += get(&t->bytes_returned);
        to->rows_dropped += get(&t->rows_dropped);
    }
    to->waits = get(&from->waits);
    to->wait_ns = duration(s, get(&from->wait_ticks));
    to->seen = get(&from->seen);
}

void fe_snap_peer_of(const fe_recorder *recorder, int rank, fe_snap_peer *peer) {
    scale s = find_scale(recorder, fe_now_ns());
    get_peer(&recorder->peer[rank], &s, peer);
}

static void get_verdict(const fe_recorder *r, fe_snap *snap) {
    snap->verdict = atomic_load_explicit(&r->verdict, memory_order_acquire) != 0;
    get_text(r->failed_step, snap->failed_step);
    snap->failed_epoch = get(&r->failed_epoch);
    snap->failed_ns = (int64_t)get(&r->failed_ns);
    if (snap->failed_ns < 0 || snap->failed_ns > snap->taken_ns) snap->failed_ns = snap->taken_ns;
}

static bool get_cells(const void *memory, size_t bytes, uint64_t at, fe_snap *snap) {
    size_t count = (size_t)FE_KINDS * 2 * (size_t)snap->ranks;
    if (!at) return true;
    if (at % sizeof(fe_cell) || at > bytes || (bytes - at) / sizeof(fe_cell) < count) return false;
    const fe_cell *cells = (const fe_cell *)(const void *)((const char *)memory + at);
    snap->cell = calloc(count, sizeof *snap->cell);
    for (size_t i = 0; snap->cell && i < count; i++) snap->cell[i] = get(&cells[i].epoch);
    return snap->cell != NULL;
}

static bool get_all(const void *memory, size_t bytes, const fe_recorder *r, fe_snap *snap) {
    scale s = find_scale(r, snap->taken_ns);
    snap->began_ns = s.ns;
    snap->group = *(const volatile uint64_t *)&r->group;
    snap->one_host = *(const volatile uint32_t *)&r->one_host != 0;
    snap->step = calloc(FE_STEPS, sizeof *snap->step);
    snap->peer = calloc((size_t)snap->ranks, sizeof *snap->peer);
    if (!snap->step || !snap->peer) return false;
    for (int i = 0; i < FE_STEPS; i++)
        snap->steps += read_step(&r->step[i], &s, snap->ranks, snap->taken_ns, &snap->step[snap->steps]);
    qsort(snap->step, (size_t)snap->steps, sizeof *snap->step, by_number);
    for (int i = 0; i < snap->ranks; i++) get_peer(&r->peer[i], &s, &snap->peer[i]);
    get_verdict(r, snap);
    return get_cells(memory, bytes, *(const volatile uint64_t *)&r->cells_at, snap);
}

bool fe_snap_take(const void *memory, size_t bytes, fe_snap *snap, const char **why) {
    const fe_control *control = memory;
    const fe_recorder *r = (const fe_recorder *)(const void *)((const char *)memory + FE_HEAP_RECORDER_AT);
    *snap = (fe_snap){.taken_ns = fe_now_ns()};
    *why = "no heap of Ferry's";
    if (bytes < FE_HEAP_RECORDER_AT || *(const volatile uint64_t *)&control->magic != FE_HEAP_MAGIC) return false;
    snap->rank = *(const volatile int32_t *)&control->rank;
    snap->ranks = *(const volatile int32_t *)&control->ranks;
    snap->pid = *(const volatile int32_t *)&control->pid;
    if (snap->ranks < 1 || snap->ranks > FERRY_MAX_RANKS || snap->rank < 0 || snap->rank >= snap->ranks) return false;
    *why = "no flight recorder (FERRY_RECORDER=0, or another version of Ferry)";
    if (bytes - FE_HEAP_RECORDER_AT < fe_recorder_bytes(snap->ranks)) return false;
    if (get(&r->magic) != FE_RECORDER_MAGIC) return false;
    snap->why = (int)(atomic_load(&control->aborted) & 0xff);
    snap->failed = atomic_load(&control->failed) != 0;
    *why = "its cells are not where it says, or there is no memory to read it";
    if (get_all(memory, bytes, r, snap)) return true;
    fe_snap_free(snap);
    return false;
}

void fe_snap_free(fe_snap *snap) {
    free(snap->step);
    free(snap->peer);
    free(snap->cell);
    *snap = (fe_snap){0};
}

/* ---- asking ---- */

fe_where fe_snap_where(const fe_snap_step *step) {
    if (step->kind[0] >= 0 && !step->at[FE_STEP_HEARD]) return FE_WAITS_BEFORE;
    return step->kind[1] >= 0 && step->at[FE_STEP_MOVED] ? FE_WAITS_AFTER : FE_MOVES;
}

int64_t fe_snap_since(const fe_snap_step *step) {
    for (int i = FE_STEP_MOVED; i > FE_STEP_START; i--)
        if (step->at[i]) return step->at[i];
    return step->at[FE_STEP_START];
}

uint64_t fe_snap_cell(const fe_snap *snap, int kind, int half, int peer) {
    return snap->cell[((size_t)kind * 2 + (size_t)half) * (size_t)snap->ranks + (size_t)peer];
}

/* As fe_heap_hears. */
bool fe_snap_hears(const fe_snap *snap, int kind, int peer) {
    const fe_snap_peer *p = &snap->peer[peer];
    if (p->masked) return false;
    if (snap->one_host) return true;
    switch (fe_reach_of((fe_kind)kind)) {
    case FE_REACH_ALL: return true;
    case FE_REACH_NEAR: return p->near || kind == FE_ROWS;
    case FE_REACH_COLUMN: return !p->near && p->column;
    }
    return true;
}

const char *fe_kind_name(int kind) {
    static const char *const names[] = {[FE_COUNTS] = "COUNTS",
                                        [FE_COUNTED] = "COUNTED",
                                        [FE_READY] = "READY",
                                        [FE_ROWS] = "ROWS",
                                        [FE_OFFER] = "OFFER",
                                        [FE_PULLED] = "PULLED",
                                        [FE_MEET] = "MEET",
                                        [FE_KERNEL] = "KERNEL",
                                        [FE_LANDED] = "LANDED",
                                        "LANDED 2",
                                        "LANDED 3",
                                        [FE_RETURNED] = "RETURNED",
                                        "RETURNED 2",
                                        "RETURNED 3"};
    _Static_assert(sizeof names / sizeof *names == FE_KINDS, "every kind of note has its name here");
    return kind >= 0 && kind < FE_KINDS ? names[kind] : "?";
}

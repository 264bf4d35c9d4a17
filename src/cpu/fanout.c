/* Dispatch from other hosts: what this rank's column has sent is handed on to the ranks here. */
#include "cpu/far.h"

#define CHUNK 16 /* records a worker takes at a time */

typedef struct came { /* of one host's records, this part's; looked at once: the network may write notes meanwhile */
    int64_t first, records;
    bool straight; /* their rows need not be handed on */
} came;

typedef struct job {
    const fe_crew *crew;
    const fe_pass *pass;
    const fe_far_route *far;
    size_t stride;
    bool past_cache;
    int64_t records; /* of all hosts: first those of the first one */
    _Atomic int64_t next;
    _Atomic int unsound; /* 1 + the host that sent nonsense */
    union {
        fe_target target; /* of a near rank */
        came came;        /* of one of the column: from its host */
    } of[];               /* [ranks] */
} job;

static came came_from(const job *j, int host) {
    if (host == j->far->hosts->mine) return (came){0};
    return j->of[fe_hosts_rank(j->far->hosts, host, j->far->hosts->index)].came;
}

/* A part begins where the ones before end. How many those had is kept where the network does not write. */
static ferry_status hear_from(job *j, int host) {
    const fe_heap *heap = &j->crew->engine->heap;
    int source = fe_hosts_rank(j->far->hosts, host, j->far->hosts->index), most = j->pass->route->shape.max_tokens;
    const uint64_t *word = fe_link_words(heap, (fe_kind)(FE_LANDED + j->pass->part.index), j->pass->half, source);
    came c = {.first = j->pass->part.index ? j->far->came[host] : 0,
              .records = (int64_t)word[FE_LANDED_RECORDS],
              .straight = word[FE_LANDED_STRAIGHT] != 0};
    if (c.records < 0 || c.records > most - c.first)
        return fe_fail(FERRY_SYSTEM, "rank %d: %s: rank %d says that it sent %lld tokens, max_tokens is %d", heap->rank,
                       j->pass->step, source, (long long)c.records, most);
    j->far->came[host] = (int32_t)(c.first + c.records);
    j->of[source].came = c;
    j->records += c.records;
    return FERRY_OK;
}

static void hand_on(const job *j, int source, const fe_record *r, const char *row, bool rows) {
    const fe_shape *shape = &j->pass->route->shape;
    const fe_scatter *s = &j->pass->scatter;
    const fe_choices choices = {.source = source,
                                .token = r->token,
                                .home = fe_record_home(r, shape->topk),
                                .slot = fe_record_slot(r, shape->topk),
                                .weight = j->pass->route->table.weights ? fe_record_weight(r, shape->topk) : NULL};
    for (int i = 0; i < r->fan; i++) {
        int choice = fe_record_order(r)[i];
        const fe_target *to = &j->of[shape->map->home_rank[choices.home[choice]]].target;
        size_t at = (size_t)choices.slot[choice];
        if (rows && j->past_cache)
            j->crew->rows->stream(to->rows + at * to->row_stride, row, s->row_bytes, NULL);
        else if (rows)
            j->crew->rows->copy(to->rows + at * to->row_stride, row, s->row_bytes);
        if (rows && s->scale_bytes) memcpy(to->scales + at * to->scale_stride, row + s->row_bytes, s->scale_bytes);
        if (s->topk) fe_target_tell(shape, to, &choices, choice);
    }
}

/* The first dispatch of a route keeps what combine needs; later ones bring the same. */
static void keep(const job *j, int host, int64_t number, const fe_record *r) {
    if (j->far->kept_count[host] >= 0) return;
    memcpy((void *)(uintptr_t)fe_record_kept(j->far, j->pass->route->shape.max_tokens, host, number), r,
           j->far->header);
}

static int64_t room_of(const job *j, int rank) {
    const fe_heap *heap = &j->crew->engine->heap;
    return fe_room_at(fe_link_words(heap, FE_READY, j->pass->half, rank), &j->pass->route->shape, &j->pass->scatter,
                      j->pass->route->table.weights != NULL, heap->space_bytes);
}

static bool fits(const job *j, const fe_record *r) {
    const fe_shape *shape = &j->pass->route->shape;
    for (int i = 0; i < r->fan; i++) {
        int choice = fe_record_order(r)[i];
        int rank = shape->map->home_rank[fe_record_home(r, shape->topk)[choice]];
        if (fe_record_slot(r, shape->topk)[choice] >= j->of[rank].target.room) return false;
    }
    return true;
}

static bool take_record(job *j, int64_t number) {
    const fe_heap *heap = &j->crew->engine->heap;
    int host = 0;
    came c = came_from(j, host);
    for (; number >= c.records; c = came_from(j, ++host)) number -= c.records;
    number += c.first;
    int source = fe_hosts_rank(j->far->hosts, host, j->far->hosts->index);
    uint64_t at = fe_cpu_landing(j->far, j->pass->half, host) + j->far->boxes->tail_bytes +
                  (uint64_t)number * (c.straight ? j->far->header : j->stride);
    const char *landed = fe_near(heap, heap->rank, at);
    _Alignas(16) char copy[FE_RECORD_MOST]; /* what is checked is what is used, whatever the network writes meanwhile */
    memcpy(copy, landed, j->far->header);
    const fe_record *r = (const fe_record *)(const void *)copy;
    if (!fe_record_sound(&j->pass->route->shape, j->pass->route->shape.map, j->far->hosts, j->far->most_rows, r) ||
        !fits(j, r)) {
        atomic_store(&j->unsound, host + 1);
        return false;
    }
    keep(j, host, number, r);
    hand_on(j, source, r, landed + j->far->header, !c.straight);
    return true;
}

static void work(void *context, int worker, int workers) {
    (void)worker, (void)workers;
    job *j = context;
    for (;;) {
        int64_t from = atomic_fetch_add_explicit(&j->next, CHUNK, memory_order_relaxed);
        for (int64_t i = from; i < j->records && i < from + CHUNK; i++)
            if (!take_record(j, i)) return;
        if (from >= j->records) break;
    }
    if (j->past_cache) j->crew->rows->fence();
}

/* Fixed slots: the counts that came before the records, to where a near sender would have written them. */
static bool hand_on_tails(const job *j, int host, int source) {
    const fe_heap *heap = &j->crew->engine->heap;
    const fe_shape *shape = &j->pass->route->shape;
    size_t width = (size_t)shape->map->most_local;
    const int32_t *tails = fe_near(heap, heap->rank, fe_cpu_landing(j->far, j->pass->half, host));
    for (int i = 0; i < j->far->hosts->each; i++) {
        int32_t *to = fe_near(heap, fe_hosts_rank(j->far->hosts, j->far->hosts->mine, i), j->pass->scatter.tails_at);
        to += ((size_t)j->pass->half * (size_t)shape->ranks + (size_t)source) * width;
        for (size_t u = 0; u < width; u++) {
            int32_t count = tails[(size_t)i * width + u];
            if (count < 0 || count > shape->max_tokens) return false;
            to[u] = count;
        }
    }
    return true;
}

/* When the last part is handed on. false: a host's counts are none. */
static bool say_rows(job *j) {
    static const uint64_t nothing[FE_CELL_WORDS];
    const fe_heap *heap = &j->crew->engine->heap;
    for (int h = 0; h < j->far->hosts->count; h++) {
        if (h == j->far->hosts->mine || fe_heap_host_masked(heap, h)) continue;
        int source = fe_hosts_rank(j->far->hosts, h, j->far->hosts->index);
        if (fe_slots_fixed(&j->pass->route->shape) && !hand_on_tails(j, h, source)) {
            atomic_store(&j->unsound, h + 1);
            return false;
        }
        if (j->far->kept_count[h] < 0) j->far->kept_count[h] = j->far->came[h];
        for (int i = 1; i <= j->far->hosts->each; i++) {
            int owner =
                fe_hosts_rank(j->far->hosts, j->far->hosts->mine, (j->far->hosts->index + i) % j->far->hosts->each);
            fe_link_signal_for(heap, source, owner, FE_ROWS, j->pass->half, nothing, j->pass->await.epoch);
        }
    }
    return true;
}

ferry_status fe_cpu_fanout(const fe_crew *crew, const fe_pass *pass) {
    const fe_heap *heap = &crew->engine->heap;
    job *j = fe_pool_own_bench(crew->pool);
    *j = (job){
        .crew = crew, .pass = pass, .far = &pass->route->far, .stride = (size_t)pass->await.word[FE_LANDED_STRIDE]};
    for (int i = 0; i < heap->hosts.each; i++) {
        int r = fe_hosts_rank(&heap->hosts, heap->hosts.mine, i);
        j->of[r].target = fe_target_read(heap, pass, r);
        j->of[r].target.room = room_of(j, r);
    }
    for (int h = 0; h < heap->hosts.count; h++)
        if (h != heap->hosts.mine) FE_TRY(hear_from(j, h));
    int64_t all = fe_part_whole(pass->part, j->records);
    j->past_cache = all * (int64_t)pass->scatter.row_bytes > pass->scatter.stream_bytes;
    fe_pool_run(crew->pool, work, j, (j->records + CHUNK - 1) / CHUNK);
    bool said = !atomic_load(&j->unsound) && (!fe_part_last(pass->part) || say_rows(j));
    int unsound = atomic_load(&j->unsound);
    if (!said)
        return fe_fail(FERRY_SYSTEM, "rank %d: %s: a token of rank %d's names places or counts that do not exist",
                       heap->rank, pass->step, fe_hosts_rank(&heap->hosts, unsound - 1, heap->hosts.index));
    return FERRY_OK;
}

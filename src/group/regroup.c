/* Meeting again, at a hub. On one host a new process takes a rank's place, and a new map of experts comes into force: the ranks that are
 * there keep their memory, and map the newcomer's. On several, where memory has no place that all could look at, it is how those who are left
 * find each other; their network is opened anew. Then an era begins, as after any agreement (agree.c). */
#include "group/config.h"
#include "group/group.h"

#include <stdlib.h>

typedef struct entry { /* what each rank brings */
    uint64_t era, blocks;
    fe_story story;
    int64_t rows;
    int32_t homes, most_local;
    int32_t fresh, member; /* a new process; of the group, and not masked */
} entry;

typedef struct regroup {
    ferry_group *g;
    fe_boot *boot;
    const ferry_group_config *cfg; /* NULL: an agreement, without newcomers and over several hosts */
    bool fresh;                    /* this rank is a newcomer */
    uint8_t who[FERRY_MAX_RANKS], is_fresh[FERRY_MAX_RANKS];
    entry all[FERRY_MAX_RANKS];
    int teller;  /* the rank whose heap is furthest */
    bool behind; /* somebody needs its list of blocks */
    fe_verdict verdict;
} regroup;

/* ---- who is there ---- */

static entry own_entry(const regroup *r) {
    const ferry_group *g = r->g;
    const fe_heap *heap = &g->engine.heap;
    if (r->fresh) return (entry){.fresh = 1};
    return (entry){.era = heap->era,
                   .blocks = heap->blocks,
                   .story = heap->story,
                   .rows = g->body.rows,
                   .homes = g->room.homes,
                   .most_local = g->room.most_local,
                   .member = !fe_heap_masked(heap, g->rank)};
}

/* An agreement waits for those who were there and can be; else all places are to be filled, but those proposed to stay empty. */
static fe_say say_of(const regroup *r, int rank) {
    const ferry_group *g = r->g;
    const fe_heap *heap = &g->engine.heap;
    if (rank == g->rank) return r->fresh || fe_heap_masked(heap, rank) ? FE_SAY_AWAY : FE_SAY_WAIT;
    if (g->wish[rank] > 0) return FE_SAY_OUT;
    if (r->cfg) return FE_SAY_WAIT;
    if (fe_heap_masked(heap, rank)) return g->wish[rank] < 0 ? FE_SAY_BACK : FE_SAY_AWAY;
    if (!fe_heap_near(heap, rank)) return FE_SAY_WAIT;
    fe_fate fate = fe_watch_fate(heap, rank);
    return fate == FE_DEAD || fate == FE_LEFT ? FE_SAY_OUT : FE_SAY_WAIT;
}

static void read_roll(regroup *r) {
    r->teller = -1;
    for (int i = 0; i < r->g->ranks; i++) {
        if (!r->who[i]) continue;
        r->is_fresh[i] = r->all[i].fresh != 0;
        r->behind = r->behind || !r->all[i].member;
        r->verdict.member[i / 64] |= (uint64_t)1 << i % 64;
        if (r->all[i].member && (r->teller < 0 || r->all[i].story.calls > r->all[r->teller].story.calls)) r->teller = i;
    }
}

static ferry_status muster(regroup *r) {
    const ferry_group *g = r->g;
    const fe_hosts *hosts = &g->engine.heap.hosts;
    uint8_t say[FERRY_MAX_RANKS];
    int unit[FERRY_MAX_RANKS];
    entry mine = own_entry(r);
    for (int i = 0; i < g->ranks; i++) {
        say[i] = (uint8_t)say_of(r, i);
        unit[i] = hosts->count > 1 ? hosts->host_of[i] : i;
    }
    FE_TRY(fe_boot_muster(r->boot, say, unit, &mine, r->who, r->all, sizeof mine));
    read_roll(r);
    if (r->teller < 0)
        return fe_fail(FERRY_INVALID, "rank %d: no rank of a group has come that newcomers could join", g->rank);
    if (r->cfg && !r->who[0]) /* agreements are kept in its memory */
        return fe_fail(FERRY_UNSUPPORTED, "rank %d: rank 0 is not there: somebody must take its place", g->rank);
    r->verdict.era = r->all[r->teller].era + 1;
    r->verdict.story = r->all[r->teller].story;
    return FERRY_OK;
}

/* ---- the newcomer ---- */

static ferry_status make_own(regroup *r) {
    ferry_group *g = r->g;
    fe_heap *heap = &g->engine.heap;
    const entry *told = &r->all[r->teller];
    ferry_group_config cfg = g->config;
    fe_map room = g->map; /* the others' memory is laid out for as many homes */
    cfg.max_recv_rows = told->rows;
    room.homes = told->homes;
    room.most_local = told->most_local;
    FE_TRY(fe_hosts_single(g->rank, g->ranks, &heap->hosts));
    FE_TRY(fe_body_lay_out(&cfg, &room, 1, &g->body));
    g->room.homes = g->engine.homes_most = told->homes;
    g->room.most_local = told->most_local;
    fe_group_plan_heap(g);
    FE_TRY(fe_heap_make(g->body.bytes, (size_t)g->config.heap_bytes, heap));
    fe_body_move(&g->body, heap->body_at);
    return FERRY_OK;
}

static ferry_status open_own(regroup *r) {
    fe_engine *e = &r->g->engine;
    FE_TRY(fe_group_settle_in(r->g));
    return e->device->open(e);
}

/* ---- together ---- */

static ferry_status check_room(const ferry_group *g, const fe_map *map) {
    if (map->homes <= g->room.homes && map->most_local <= g->room.most_local) return FERRY_OK;
    return fe_fail(
        FERRY_INVALID,
        "the new map has %d copies of experts, up to %d on a rank; the group was made with %d and %d, and has "
        "room for no more",
        map->homes, map->most_local, g->room.homes, g->room.most_local);
}

/* The heap of whoever was away is as the others'. */
static ferry_status take_blocks(regroup *r) {
    fe_heap *heap = &r->g->engine.heap;
    bool mine_too = r->fresh || !r->all[r->g->rank].member;
    if (r->behind) FE_TRY(fe_heap_tell_blocks(r->boot, heap, r->teller, (size_t)r->all[r->teller].blocks, mine_too));
    if (mine_too) heap->story = r->verdict.story;
    return FERRY_OK;
}

static ferry_status meet(regroup *r) {
    ferry_group *g = r->g;
    FE_TRY(muster(r));
    FE_TRY(fe_config_agree(r->cfg, r->boot, g->rank, g->ranks, r->who));
    ferry_status status = r->fresh ? make_own(r) : FERRY_OK;
    if (status == FERRY_OK && r->fresh) status = check_room(g, &g->map);
    FE_TRY(fe_heap_admit(r->boot, &g->engine.heap, r->who, r->is_fresh, status));
    FE_TRY(take_blocks(r));
    return fe_group_last_word(r->boot, r->fresh ? open_own(r) : FERRY_OK);
}

static ferry_status begin(regroup *r) {
    ferry_group *g = r->g;
    ferry_status status = fe_group_adopt(g, &r->verdict);
    if (status == FERRY_OK) fe_council_record(&g->engine.heap, &r->verdict);
    status = fe_group_last_word(r->boot, status);
    if (status != FERRY_OK) fe_fault_note(&g->engine.fault, status, true);
    return status;
}

/* ---- over several hosts ---- */

static void call_near(const ferry_group *g) {
    const fe_heap *heap = &g->engine.heap;
    for (int r = 0; r < g->ranks; r++)
        if (r != g->rank && fe_heap_reaches(heap, r)) fe_watch_recall(heap, r);
}

/* What an old step still has on its way goes to an address and a key that are no more. */
static ferry_status reopen(regroup *r) {
    fe_engine *e = &r->g->engine;
    fe_far_close(e->far);
    e->far = NULL;
    ferry_status status = fe_group_adopt(r->g, &r->verdict);
    FE_TRY(fe_far_open(r->boot, &e->heap, &e->watch, status, &e->far));
    e->watch.far = e->far;
    return status;
}

static ferry_status agree_hosts(regroup *r) {
    ferry_status status = muster(r);
    if (status == FERRY_REFUSED) fe_group_exclude(r->g);
    FE_TRY(status);
    FE_TRY(take_blocks(r));
    return fe_group_last_word(r->boot, reopen(r));
}

ferry_status fe_group_agree_at(ferry_group *g, const ferry_unique_id *id) {
    regroup *r = calloc(1, sizeof *r);
    if (!r) return fe_fail(FERRY_NOMEM, "rank %d: no memory to meet %d ranks", g->rank, g->ranks);
    *r = (regroup){.g = g};
    if (fe_group_rest(g)) call_near(g);
    ferry_status status =
        fe_heap_why(&g->engine.heap, g->rank) == FE_GROUP_ABORTED ? fe_watch_aborted(&g->engine.heap) : FERRY_OK;
    if (status == FERRY_OK) status = fe_boot_join(id, g->rank, g->ranks, g->config.timeout_ms, &r->boot);
    if (status == FERRY_OK) status = agree_hosts(r);
    fe_boot_leave(r->boot);
    free(r);
    return status;
}

/* ---- the calls ---- */

ferry_status ferry_group_leave(ferry_group *g) {
    FE_TRY(fe_group_check(g, "ferry_group_leave"));
    g->engine.device->drain(&g->engine);
    fe_watch_give_up(&g->engine.heap);
    fe_watch_leave(&g->engine.heap, false);
    return FERRY_OK;
}

ferry_status ferry_group_join(const ferry_unique_id *id, int rank, int ranks, const ferry_group_config *cfg,
                              ferry_group **group) {
    if (!id) return fe_fail(FERRY_INVALID, "ferry_group_join: the unique id is NULL");
    if (!group) return fe_fail(FERRY_INVALID, "ferry_group_join: group is NULL");
    regroup *r = calloc(1, sizeof *r);
    if (!r) return fe_fail(FERRY_NOMEM, "rank %d: no memory to join", rank);
    r->cfg = cfg;
    r->fresh = true;
    ferry_status status = fe_group_prepare(cfg, rank, ranks, &r->g);
    if (status == FERRY_OK) status = fe_boot_join(id, rank, ranks, r->g->config.timeout_ms, &r->boot);
    if (status == FERRY_OK) status = meet(r);
    if (status == FERRY_OK) status = begin(r);
    fe_boot_leave(r->boot);
    if (status == FERRY_OK)
        *group = r->g;
    else
        ferry_group_destroy(r->g);
    free(r);
    return status;
}

/* With the ranks that there are: they compare what they were given in a meeting of their own. */
static ferry_status compare_maps(ferry_group *g, const ferry_group_config *cfg) {
    uint64_t mine = fe_config_hash(cfg), *all = calloc((size_t)g->ranks, sizeof *all);
    if (!all) return fe_fail(FERRY_NOMEM, "rank %d: no memory to meet %d ranks", g->rank, g->ranks);
    ferry_status status = fe_group_gather(g, &mine, all, sizeof mine);
    for (int i = 0; status == FERRY_OK && i < g->ranks; i++)
        if (!fe_heap_masked(&g->engine.heap, i) && all[i] != mine)
            status = fe_fail(FERRY_MISMATCH,
                             "ferry_group_reconfigure: the map of experts differs on rank %d and rank %d", g->rank, i);
    free(all);
    return status;
}

static ferry_status meet_at(ferry_group *g, const ferry_unique_id *id, const ferry_group_config *cfg, fe_map *map) {
    regroup *r = calloc(1, sizeof *r);
    if (!r) return fe_fail(FERRY_NOMEM, "rank %d: no memory to meet %d ranks", g->rank, g->ranks);
    *r = (regroup){.g = g, .cfg = cfg};
    fe_group_rest(g);
    ferry_status status = fe_boot_join(id, g->rank, g->ranks, g->config.timeout_ms, &r->boot);
    if (status == FERRY_OK) status = meet(r);
    if (status == FERRY_OK) {
        fe_group_take_map(g, map);
        status = begin(r);
    }
    fe_boot_leave(r->boot);
    free(r);
    return status;
}

ferry_status ferry_group_reconfigure(ferry_group *g, const ferry_unique_id *id, const ferry_group_config *cfg) {
    fe_map map;
    FE_TRY(fe_group_check(g, "ferry_group_reconfigure"));
    FE_TRY(fe_config_check(cfg));
    FE_TRY(fe_config_same(&g->config, cfg));
    if (g->engine.heap.hosts.count > 1)
        return fe_fail(FERRY_UNSUPPORTED, "ferry_group_reconfigure: the group is on %d hosts",
                       g->engine.heap.hosts.count);
    FE_TRY(fe_map_create(cfg->experts, g->ranks, cfg->expert_first, cfg->expert_rank, &map));
    ferry_status status = check_room(g, &map);
    if (status == FERRY_OK && id) {
        status = meet_at(g, id, cfg, &map);
    } else if (status == FERRY_OK) {
        status = compare_maps(g, cfg);
        if (status == FERRY_OK) {
            fe_group_take_map(g, &map);
            status = ferry_group_agree(g, NULL, NULL);
        }
    }
    fe_map_destroy(&map);
    return status;
}

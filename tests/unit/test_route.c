/* src/route/ alone: simulated ranks compared slot by slot with the oracle over thousands of drawn shapes; cases worked out by hand;
 * and what the doors refuse.
 *   FERRY_TEST_SEED=s    only the shape of this seed
 *   FERRY_TEST_CASES=n   how many shapes */
#include "oracle/oracle.h"
#include "route_cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define DEFAULT_CASES 20000

/* ------------------------------------------------------------------------------------------------------------------
 * Compared with the oracle
 * ---------------------------------------------------------------------------------------------------------------- */

static const int32_t *counts_of(const world *w, int rank) {
    return w->all + (size_t)rank * fe_counts_length(&w->map);
}

/* The oracle's own view of a home: its rank, and its number there. */
static int local_of(const oracle *o, const world *w, int32_t home) {
    const oracle_rank *k = oracle_rank_of(o, w->map.home_rank[home]);
    for (int l = 0; l < k->local_experts; l++)
        if (k->experts[l] == w->map.home_expert[home]) return l;
    return -1;
}

static bool same_unit(const world *w, const int32_t *home, int a, int b) {
    if (w->plan->layout == FERRY_LAYOUT_RANK) return w->map.home_rank[home[a]] == w->map.home_rank[home[b]];
    return home[a] == home[b];
}

/* Is this choice the one that stands for its unit: the first of its token's? */
static bool stands(const world *w, const int32_t *home, int choice) {
    if (home[choice] < 0) return false;
    for (int k = 0; k < choice; k++)
        if (home[k] >= 0 && same_unit(w, home, k, choice)) return false;
    return true;
}

static bool check_choice(const world *w, const oracle *o, int rank, int token, int choice) {
    const plan *p = w->plan;
    const member *m = &w->rank[rank];
    int at = token * p->topk + choice;
    int64_t expert = p->idx[rank][at], slot = -1;
    int to = oracle_place(o, rank, token, choice, &slot);
    int32_t home = m->table.home[at];
    if ((expert < 0) != (home < 0))
        return route_wrong("rank %d token %d choice %d: home %d", rank, token, choice, home);
    if (to < 0) slot = -1;
    if (m->table.slot[at] != slot)
        return route_wrong("rank %d token %d choice %d: slot %d, not %lld", rank, token, choice, m->table.slot[at],
                           (long long)slot);
    if (to < 0) return true;
    if (w->map.home_rank[home] != to || w->map.home_expert[home] != expert)
        return route_wrong("rank %d token %d choice %d: home %d is expert %d on rank %d, not %lld on %d", rank, token,
                           choice, home, w->map.home_expert[home], w->map.home_rank[home], (long long)expert, to);
    if (slot >= fe_worst_rows(&m->shape, to))
        return route_wrong("rank %d token %d choice %d: slot %lld, the worst case of rank %d is %lld", rank, token,
                           choice, (long long)slot, to, (long long)fe_worst_rows(&m->shape, to));
    return true;
}

/* The choice that stands for the rank whose last one is k, or -1 where k is no rank's last. */
static int stands_for_last(const world *w, const int32_t *home, int k) {
    const int32_t *rank_of = w->map.home_rank;
    int first = 0;
    if (home[k] < 0) return -1;
    for (int i = k + 1; i < w->plan->topk; i++)
        if (home[i] >= 0 && rank_of[home[i]] == rank_of[home[k]]) return -1;
    while (home[first] < 0 || rank_of[home[first]] != rank_of[home[k]]) first++;
    return first;
}

/* The same where ranks stand at their last choices. */
static bool check_order_of_choices(const world *w, int rank, int token) {
    const plan *p = w->plan;
    const fe_table *t = &w->rank[rank].table;
    const int32_t *home = t->home + token * p->topk, *slot = t->slot + token * p->topk;
    int fan = 0;
    for (int k = 0; k < p->topk; k++) {
        int first = stands_for_last(w, home, k);
        if (first < 0 || slot[first] < 0) continue;
        if (fan >= t->fan[token] || t->order[token * p->topk + fan] != first)
            return route_wrong("rank %d token %d: order[%d] is not choice %d", rank, token, fan, first);
        fan++;
    }
    return fan == t->fan[token] || route_wrong("rank %d token %d: fan %d, not %d", rank, token, t->fan[token], fan);
}

/* order and fan: the choices that stand for a unit with room, RANK by ascending rank, otherwise in choice order. */
static bool check_order(const world *w, int rank, int token) {
    const plan *p = w->plan;
    const fe_table *t = &w->rank[rank].table;
    const int32_t *home = t->home + token * p->topk, *slot = t->slot + token * p->topk;
    bool by_rank = p->layout == FERRY_LAYOUT_RANK;
    if (by_rank && p->order == FERRY_ORDER_CHOICE) return check_order_of_choices(w, rank, token);
    int fan = 0;
    for (int r = 0; r < (by_rank ? p->ranks : 1); r++)
        for (int k = 0; k < p->topk; k++) {
            if (!stands(w, home, k) || slot[k] < 0 || (by_rank && w->map.home_rank[home[k]] != r)) continue;
            if (fan >= t->fan[token] || t->order[token * p->topk + fan] != k)
                return route_wrong("rank %d token %d: order[%d] is not choice %d", rank, token, fan, k);
            fan++;
        }
    return fan == t->fan[token] || route_wrong("rank %d token %d: fan %d, not %d", rank, token, t->fan[token], fan);
}

static bool check_choices(const world *w, const oracle *o, int rank) {
    for (int t = 0; t < w->plan->tokens[rank]; t++) {
        for (int k = 0; k < w->plan->topk; k++)
            if (!check_choice(w, o, rank, t, k)) return false;
        if (!check_order(w, rank, t)) return false;
    }
    return true;
}

/* The row of counts that travels: tokens per rank and per home before any capacity, counted the naive way. */
static bool check_counts(const world *w, int rank) {
    const plan *p = w->plan;
    const int32_t *row = counts_of(w, rank), *home = w->rank[rank].table.home;
    if (row[FE_COUNT_TOKENS] != p->tokens[rank] || row[FE_COUNT_STATUS] != 0)
        return route_wrong("rank %d: header", rank);
    for (int unit = 0; unit < p->ranks + w->map.homes; unit++) {
        int wanted = 0;
        for (int t = 0; t < p->tokens[rank]; t++)
            for (int k = 0; k < p->topk; k++) {
                int32_t h = home[t * p->topk + k];
                if (h < 0 || (unit < p->ranks ? w->map.home_rank[h] != unit : h != unit - p->ranks)) continue;
                wanted++;
                break;
            }
        if (row[FE_COUNT_HEADER + unit] != wanted)
            return route_wrong("rank %d: counts[%d] is %d, not %d", rank, unit, row[FE_COUNT_HEADER + unit], wanted);
    }
    return true;
}

/* What this rank will send to each unit, and from which slot on. */
static bool check_units(const world *w, const oracle *o, int rank) {
    const plan *p = w->plan;
    const member *m = &w->rank[rank];
    int64_t expert_slots = p->layout == FERRY_LAYOUT_SLOTS ? (int64_t)p->ranks * p->max_tokens : 0;
    for (int u = 0; u < fe_units(&m->shape); u++) {
        bool by_rank = p->layout == FERRY_LAYOUT_RANK;
        const oracle_rank *to = oracle_rank_of(o, by_rank ? u : w->map.home_rank[u]);
        int local = by_rank ? 0 : local_of(o, w, u), at = local * p->ranks + rank;
        if (m->scratch.keep[u] != to->counts[at])
            return route_wrong("rank %d: keeps %d rows for unit %d, not %d", rank, m->scratch.keep[u], u,
                               to->counts[at]);
        if (to->counts[at] > 0 && m->scratch.base[u] != to->starts[at] + local * expert_slots)
            return route_wrong("rank %d: unit %d begins at slot %lld, not %lld", rank, u, (long long)m->scratch.base[u],
                               (long long)(to->starts[at] + local * expert_slots));
    }
    return true;
}

/* Where nothing was cut every start counts; otherwise those of empty blocks are nobody's business. */
static bool check_blocks(const world *w, const oracle *o, int rank) {
    const member *m = &w->rank[rank];
    const oracle_rank *me = oracle_rank_of(o, rank);
    bool learned = fe_needs_exchange(&m->shape);
    for (int i = 0; i < fe_local_units(&m->shape) * w->plan->ranks; i++) {
        int32_t count = learned ? me->counts[i] : ROUTE_UNTOUCHED, start = learned ? me->starts[i] : ROUTE_UNTOUCHED;
        if (m->blocks.counts[i] != count)
            return route_wrong("rank %d: block %d has %d rows, not %d", rank, i, m->blocks.counts[i], count);
        if (m->blocks.starts[i] != start && !(learned && count == 0 && oracle_dropped(o) > 0))
            return route_wrong("rank %d: block %d starts at %d, not %d", rank, i, m->blocks.starts[i], start);
    }
    return true;
}

static bool check_totals(const world *w, const oracle *o, int rank) {
    const plan *p = w->plan;
    const member *m = &w->rank[rank];
    const oracle_rank *me = oracle_rank_of(o, rank);
    const fe_totals *t = &m->totals;
    int64_t received = fe_needs_exchange(&m->shape) ? me->received : -1, worst = fe_worst_rows(&m->shape, rank);
    int64_t rows = p->mode == FERRY_LATENCY ? worst : me->rows; /* the worst case of SLOTS is its only shape */
    if (worst < me->rows)
        return route_wrong("rank %d: worst case %lld, needs %lld", rank, (long long)worst, (long long)me->rows);
    if (t->rows != rows) return route_wrong("rank %d: rows %lld, not %lld", rank, (long long)t->rows, (long long)rows);
    if (t->received != received)
        return route_wrong("rank %d: received %lld, not %lld", rank, (long long)t->received, (long long)received);
    if (t->sent != me->sent || t->dropped != me->dropped)
        return route_wrong("rank %d: sent %lld and dropped %lld, not %lld and %lld", rank, (long long)t->sent,
                           (long long)t->dropped, (long long)me->sent, (long long)me->dropped);
    return true;
}

typedef struct verdict {
    int rank, expert;
    int64_t asked, limit;
} verdict;

static void note_excess(verdict *v, int rank, int expert, int64_t asked, int64_t limit) {
    if (asked > limit && asked - limit > v->asked - v->limit) *v = (verdict){rank, expert, asked, limit};
}

/* The greatest excess, the first of equal ones: experts over their capacity, then ranks over theirs. `unbounded` is the
 * same without a rank capacity, so that its last slot says how many a rank would need. */
static verdict expected_verdict(const world *w, const oracle *unbounded) {
    const plan *p = w->plan;
    verdict v = {.rank = -1, .expert = -1};
    for (int r = 0; r < p->ranks; r++) {
        const oracle_rank *k = oracle_rank_of(unbounded, r);
        int64_t slots = 0;
        for (int l = 0; p->expert_capacity && l < k->local_experts; l++) {
            int64_t asked = 0;
            for (int s = 0; s < p->ranks; s++)
                asked += counts_of(w, s)[FE_COUNT_HEADER + p->ranks + w->map.rank_first[r] + l];
            note_excess(&v, r, k->experts[l], asked, p->expert_capacity);
        }
        for (int64_t i = 0; i < k->received; i++)
            if (k->row[i].slot >= slots) slots = k->row[i].slot + 1;
        if (p->rank_capacity) note_excess(&v, r, -1, slots, p->rank_capacity);
    }
    return v;
}

static bool check_overflow(const world *w, const oracle *o, const oracle *unbounded, int rank) {
    const fe_totals *t = &w->rank[rank].totals;
    verdict v = expected_verdict(w, unbounded);
    if ((v.rank >= 0) != (oracle_dropped(o) > 0)) return route_wrong("the test's own verdict is wrong");
    if (t->overflow_rank != v.rank || t->overflow_expert != v.expert)
        return route_wrong("rank %d: overflow on rank %d, expert %d, not rank %d, expert %d", rank, t->overflow_rank,
                           t->overflow_expert, v.rank, v.expert);
    if (v.rank >= 0 && (t->fullest != v.asked || t->limit != v.limit))
        return route_wrong("rank %d: overflow of %lld over %lld, not %lld over %lld", rank, (long long)t->fullest,
                           (long long)t->limit, (long long)v.asked, (long long)v.limit);
    return true;
}

/* Tokens that chose each local expert, whatever became of them. */
static bool check_demand(const world *w, int rank) {
    const plan *p = w->plan;
    int32_t first = w->map.rank_first[rank];
    int local = fe_map_local(&w->map, rank);
    int32_t *rows = route_make((size_t)local, sizeof *rows);
    fe_route_demand(&w->rank[rank].shape, w->all, rows);
    bool good = true;
    for (int i = 0; good && i < local; i++) {
        int wanted = 0;
        for (int s = 0; s < p->ranks; s++) wanted += counts_of(w, s)[FE_COUNT_HEADER + p->ranks + first + i];
        if (rows[i] != wanted)
            good = route_wrong("rank %d: expert %d is wanted %d times, not %d", rank, i, rows[i], wanted);
    }
    free(rows);
    return good;
}

static bool check_world(const world *w, const oracle *o, const oracle *unbounded) {
    for (int r = 0; r < w->plan->ranks; r++)
        if (!check_counts(w, r) || !check_choices(w, o, r) || !check_units(w, o, r) || !check_blocks(w, o, r) ||
            !check_totals(w, o, r) || !check_overflow(w, o, unbounded, r) || !check_demand(w, r))
            return false;
    return true;
}

static bool run_plan(const plan *p) {
    oracle_config config = {.ranks = p->ranks,
                            .experts = p->experts,
                            .topk = p->topk,
                            .max_tokens = p->max_tokens,
                            .expert_first = p->expert_first,
                            .expert_rank = p->expert_rank,
                            .layout = p->layout,
                            .mode = p->mode,
                            .alignment = p->alignment,
                            .expert_capacity = p->expert_capacity,
                            .rank_capacity = p->rank_capacity};
    oracle_tokens tokens[ROUTE_RANKS_MOST] = {{0}};
    for (int r = 0; r < p->ranks; r++) tokens[r] = (oracle_tokens){.tokens = p->tokens[r], .topk_idx = p->idx[r]};
    oracle *o = oracle_new(&config, tokens);
    config.rank_capacity = 0;
    oracle *unbounded = oracle_new(&config, tokens);
    assert_true(o && unbounded);
    world w;
    bool good = route_all(p, &w) && check_world(&w, o, unbounded);
    route_free_world(&w);
    oracle_free(o);
    oracle_free(unbounded);
    return good;
}

static int64_t number_of(const char *name, int64_t fallback) {
    const char *text = getenv(name);
    return text && *text ? strtoll(text, NULL, 0) : fallback;
}

static void test_oracle(void **state) {
    (void)state;
    int64_t only = number_of("FERRY_TEST_SEED", -1), cases = number_of("FERRY_TEST_CASES", DEFAULT_CASES);
    for (int64_t i = only >= 0 ? only : 0; i < (only >= 0 ? only + 1 : cases); i++) {
        plan p;
        route_draw(&p, (uint64_t)i);
        bool good = run_plan(&p);
        if (!good) print_error("%s\n", route_plan_text(&p));
        route_free_plan(&p);
        if (!good) fail_msg("%s", route_why);
    }
}

/* ------------------------------------------------------------------------------------------------------------------
 * By hand: two ranks, experts 0 and 1 on rank 0, 2 and 3 on rank 1
 * ---------------------------------------------------------------------------------------------------------------- */

static plan hand_plan(ferry_layout layout, ferry_mode mode, int alignment) {
    static int64_t zero[3][2] = {{0, 1}, {2, 0}, {-1, 3}}, one[3][2] = {{3, 3}, {-1, -1}, {1, 2}};
    return (plan){.ranks = 2,
                  .experts = 4,
                  .topk = 2,
                  .max_tokens = 4,
                  .alignment = alignment,
                  .layout = layout,
                  .mode = mode,
                  .tokens = {3, 3},
                  .idx = {zero[0], one[0]}};
}

/* What must come out on both ranks. Lists that are shorter than the arrays end in zeros that are not looked at. */
typedef struct hand {
    int32_t slot[2][6];
    int32_t counts[2][4], starts[2][4];
    int64_t rows[2], received[2], sent[2], dropped[2];
} hand;

static void assert_hand(const plan *p, const hand *h, fe_totals *totals) {
    world w;
    if (!route_all(p, &w)) fail_msg("%s", route_why);
    for (int r = 0; r < 2; r++) {
        const member *m = &w.rank[r];
        for (int i = 0; i < 6; i++)
            if (m->table.slot[i] != h->slot[r][i])
                fail_msg("rank %d, choice %d: slot %d, not %d", r, i, m->table.slot[i], h->slot[r][i]);
        for (int i = 0; fe_needs_exchange(&m->shape) && i < 2 * fe_local_units(&m->shape); i++) {
            assert_int_equal(m->blocks.counts[i], h->counts[r][i]);
            assert_int_equal(m->blocks.starts[i], h->starts[r][i]);
        }
        assert_int_equal(m->totals.rows, h->rows[r]);
        assert_int_equal(m->totals.received, h->received[r]);
        assert_int_equal(m->totals.sent, h->sent[r]);
        assert_int_equal(m->totals.dropped, h->dropped[r]);
    }
    if (totals) *totals = w.rank[1].totals;
    route_free_world(&w);
}

static void test_rank_by_hand(void **state) {
    (void)state;
    plan p = hand_plan(FERRY_LAYOUT_RANK, FERRY_THROUGHPUT, 1);
    assert_hand(&p,
                &(hand){.slot = {{0, 0, 0, 1, -1, 1}, {2, 2, -1, -1, 2, 3}},
                        .counts = {{2, 1}, {2, 2}},
                        .starts = {{0, 2}, {0, 2}},
                        .rows = {3, 4},
                        .received = {3, 4},
                        .sent = {4, 3}},
                NULL);
    world w;
    assert_true(route_all(&p, &w)); /* token 1 of rank 0 chose rank 1 first; the sum begins with rank 0 */
    assert_int_equal(w.rank[0].table.fan[1], 2);
    assert_int_equal(w.rank[0].table.order[2], 1);
    assert_int_equal(w.rank[0].table.order[3], 0);
    const int32_t counts[] = {3, 0, 0, 0, 2, 2, 2, 1, 1, 1};
    for (int i = 0; i < 10; i++)
        if (i < 2 || i >= FE_COUNT_HEADER) assert_int_equal(w.all[i], counts[i]);
    route_free_world(&w);
    p.mode = FERRY_LATENCY; /* each source from 4 times its rank on, and nothing exchanged */
    assert_hand(
        &p,
        &(hand){
            .slot = {{0, 0, 0, 1, -1, 1}, {4, 4, -1, -1, 4, 5}}, .rows = {8, 8}, .received = {-1, -1}, .sent = {4, 3}},
        NULL);
}

static void test_expert_by_hand(void **state) {
    (void)state;
    plan p = hand_plan(FERRY_LAYOUT_EXPERT, FERRY_THROUGHPUT, 4);
    hand h = {.slot = {{0, 4, 0, 1, -1, 4}, {5, 5, -1, -1, 5, 1}},
              .counts = {{2, 0, 1, 1}, {1, 1, 1, 1}},
              .starts = {{0, 2, 4, 5}, {0, 1, 4, 5}},
              .rows = {8, 8},
              .received = {4, 4},
              .sent = {5, 3}};
    assert_hand(&p, &h, NULL);
    p.mode = FERRY_LATENCY; /* the same places; rows: 2 ranks x 4 tokens x 2, 2 x 3 of padding, up to a multiple of 4 */
    h.rows[0] = h.rows[1] = 24;
    assert_hand(&p, &h, NULL);
    p = hand_plan(FERRY_LAYOUT_EXPERT, FERRY_THROUGHPUT, 1);
    assert_hand(&p,
                &(hand){.slot = {{0, 2, 0, 1, -1, 2}, {3, 3, -1, -1, 3, 1}},
                        .counts = {{2, 0, 1, 1}, {1, 1, 1, 1}},
                        .starts = {{0, 2, 2, 3}, {0, 1, 2, 3}},
                        .rows = {4, 4},
                        .received = {4, 4},
                        .sent = {5, 3}},
                NULL);
}

static void test_slots_by_hand(void **state) {
    (void)state;
    plan p = hand_plan(FERRY_LAYOUT_SLOTS, FERRY_THROUGHPUT, 1);
    assert_hand(&p,
                &(hand){.slot = {{0, 8, 0, 1, -1, 8}, {9, 9, -1, -1, 9, 1}},
                        .counts = {{2, 0, 1, 1}, {1, 1, 1, 1}},
                        .starts = {{0, 2, 0, 1}, {0, 1, 0, 1}},
                        .rows = {16, 16},
                        .received = {4, 4},
                        .sent = {5, 3}},
                NULL);
    p.mode = FERRY_LATENCY;
    assert_hand(&p,
                &(hand){.slot = {{0, 8, 0, 1, -1, 8}, {12, 12, -1, -1, 12, 4}},
                        .rows = {16, 16},
                        .received = {-1, -1},
                        .sent = {5, 3}},
                NULL);
}

static void test_capacities_by_hand(void **state) {
    (void)state;
    fe_totals totals;
    plan p = hand_plan(FERRY_LAYOUT_EXPERT, FERRY_THROUGHPUT, 4);
    p.expert_capacity = 1;
    assert_hand(&p,
                &(hand){.slot = {{0, 4, 0, -1, -1, 4}, {-1, -1, -1, -1, -1, -1}},
                        .counts = {{1, 0, 1, 0}, {1, 0, 1, 0}},
                        .starts = {{0, 1, 4, 5}, {0, 1, 4, 5}},
                        .rows = {8, 8},
                        .received = {2, 2},
                        .sent = {4, 0},
                        .dropped = {1, 3}},
                &totals);
    assert_int_equal(totals.overflow_rank, 0); /* each expert with two rows is one over: the first is named */
    assert_int_equal(totals.overflow_expert, 0);
    assert_int_equal(totals.fullest, 2);
    assert_int_equal(totals.limit, 1);
    p.expert_capacity = 2;
    p.rank_capacity = 5; /* no multiple of the alignment: the last block has one slot, and rows end with the capacity */
    assert_hand(&p,
                &(hand){.slot = {{0, 4, 0, 1, -1, 4}, {-1, -1, -1, -1, -1, 1}},
                        .counts = {{2, 0, 1, 0}, {1, 1, 1, 0}},
                        .starts = {{0, 2, 4, 5}, {0, 1, 4, 5}},
                        .rows = {5, 5},
                        .received = {3, 3},
                        .sent = {5, 1},
                        .dropped = {0, 2}},
                &totals);
    assert_int_equal(totals.overflow_rank, 0);
    assert_int_equal(totals.overflow_expert, -1);
    assert_int_equal(totals.fullest, 6);
    assert_int_equal(totals.limit, 5);
    p = hand_plan(FERRY_LAYOUT_RANK, FERRY_LATENCY, 1);
    p.rank_capacity = 5; /* rank 1's rows begin at slot 4: one of them fits, on each rank */
    assert_hand(&p,
                &(hand){.slot = {{0, 0, 0, 1, -1, 1}, {4, 4, -1, -1, 4, -1}},
                        .counts = {{2, 1}, {2, 1}},
                        .starts = {{0, 4}, {0, 4}},
                        .rows = {5, 5},
                        .received = {3, 3},
                        .sent = {4, 2},
                        .dropped = {0, 1}},
                &totals);
    assert_int_equal(totals.overflow_rank, 1);
    assert_int_equal(totals.overflow_expert, -1);
}

/* A rank whose choices turn out wrong takes back all of them: nothing comes from it, and the others are as before. */
static void test_empty(void **state) {
    (void)state;
    plan p = hand_plan(FERRY_LAYOUT_EXPERT, FERRY_THROUGHPUT, 4);
    world w;
    assert_true(route_all(&p, &w));
    fe_route_empty(&w.rank[0].shape, &w.rank[0].table, w.all);
    for (int r = 0; r < 2; r++) {
        member *m = &w.rank[r];
        fe_route_blocks(&m->shape, w.all, &m->scratch, &m->blocks, &m->totals);
        fe_route_place(&m->shape, &m->table, &m->scratch, &m->totals);
    }
    for (int i = 0; i < 6; i++) assert_int_equal(w.rank[0].table.slot[i], -1);
    for (int t = 0; t < 3; t++) assert_int_equal(w.rank[0].table.fan[t], 0);
    assert_int_equal(w.all[FE_COUNT_TOKENS], 3);
    assert_int_equal(w.rank[0].totals.sent + w.rank[0].totals.dropped, 0);
    assert_int_equal(w.rank[0].totals.received, 1);
    assert_int_equal(w.rank[1].totals.received, 2);
    assert_int_equal(w.rank[1].table.slot[0], 4); /* expert 3, behind expert 2's one row and its padding */
    assert_int_equal(w.rank[1].table.slot[4], 0);
    assert_int_equal(w.rank[1].table.slot[5], 0);
    route_free_world(&w);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Maps
 * ---------------------------------------------------------------------------------------------------------------- */

static void assert_list(const int32_t *got, const int32_t *wanted, size_t n) {
    assert_memory_equal(got, wanted, n * sizeof *got);
}

static void test_map(void **state) {
    (void)state;
    fe_map map;
    assert_int_equal(fe_map_create(3, 2, NULL, NULL, &map), FERRY_OK); /* 3 experts on 2 ranks: 1 and 2 */
    assert_list(map.home_rank, (const int32_t[]){0, 1, 1}, 3);
    assert_list(map.rank_first, (const int32_t[]){0, 1, 3}, 3);
    assert_int_equal(map.most_local, 2);
    fe_map_destroy(&map);
    assert_int_equal(fe_map_create(2, 4, NULL, NULL, &map), FERRY_OK); /* fewer experts than ranks: 0, 1, 0 and 1 */
    assert_list(map.home_rank, (const int32_t[]){1, 3}, 2);
    assert_list(map.rank_first, (const int32_t[]){0, 0, 1, 1, 2}, 5);
    assert_int_equal(fe_map_local(&map, 0), 0);
    assert_int_equal(fe_map_local(&map, 3), 1);
    fe_map_destroy(&map);
    assert_null(map.copy);
    fe_map_destroy(&map);
    /* Expert 0 on ranks 1 and 0, in this order, expert 1 on rank 0. */
    assert_int_equal(fe_map_create(2, 2, (const int32_t[]){0, 2, 3}, (const int32_t[]){1, 0, 0}, &map), FERRY_OK);
    assert_int_equal(map.homes, 3);
    assert_list(map.copy_first, (const int32_t[]){0, 2, 3}, 3);
    assert_list(map.copy, (const int32_t[]){2, 0, 1}, 3);
    assert_list(map.rank_first, (const int32_t[]){0, 2, 3}, 3);
    assert_list(map.home_rank, (const int32_t[]){0, 0, 1}, 3);
    assert_list(map.home_expert, (const int32_t[]){0, 1, 0}, 3);
    assert_int_equal(map.most_local, 2);
    assert_int_equal(fe_map_home(&map, 0, 0, 0), 2); /* copy (source + token) mod 2: the first, on rank 1 */
    assert_int_equal(fe_map_home(&map, 0, 0, 1), 0);
    assert_int_equal(fe_map_home(&map, 0, 1, 0), 0);
    assert_int_equal(fe_map_home(&map, 0, 1, 1), 2);
    assert_int_equal(fe_map_home(&map, 1, 1, 7), 1);
    fe_map_destroy(&map);
}

/* The lists are on the heap, no longer than they may be: a sanitizer sees a look past a wrong entry. */
static void assert_refused(int experts, int ranks, const int32_t *first, const int32_t *rank, size_t copies,
                           const char *sentence) {
    fe_map map;
    int32_t *own_first = route_make((size_t)experts + 1, sizeof *first), *own_rank = route_make(copies, sizeof *rank);
    memcpy(own_first, first, ((size_t)experts + 1) * sizeof *first);
    memcpy(own_rank, rank, copies * sizeof *rank);
    assert_int_equal(fe_map_create(experts, ranks, own_first, own_rank, &map), FERRY_INVALID);
    assert_string_equal(ferry_last_error(), sentence);
    fe_map_destroy(&map);
    free(own_first);
    free(own_rank);
}

static void test_map_refusals(void **state) {
    (void)state;
    const int32_t rank[] = {0, 1, 2, 0, 1, 2};
    assert_refused(2, 3, (const int32_t[]){1, 2, 3}, rank, 3, "expert_first[0] is 1, not 0");
    assert_refused(2, 3, (const int32_t[]){0, 2, 2}, rank, 2,
                   "expert 1 has no copy: expert_first[1] is 2 and expert_first[2] is 2");
    assert_refused(2, 3, (const int32_t[]){0, 3, 1}, rank, 1,
                   "expert 1 has no copy: expert_first[1] is 3 and expert_first[2] is 1");
    assert_refused(1, 3, (const int32_t[]){0, -4}, rank, 0,
                   "expert 0 has no copy: expert_first[0] is 0 and expert_first[1] is -4");
    assert_refused(2, 2, (const int32_t[]){0, 1, 3}, rank, 3, "expert_rank[2] is 2 (expert 1), ranks are 0..1");
    assert_refused(1, 2, (const int32_t[]){0, 1}, (const int32_t[]){-1}, 1,
                   "expert_rank[0] is -1 (expert 0), ranks are 0..1");
    assert_refused(2, 3, (const int32_t[]){0, 1, 5}, (const int32_t[]){0, 1, 2, 0, 1}, 5,
                   "expert 1 is twice on rank 1");
}

/* ------------------------------------------------------------------------------------------------------------------
 * Indices that are no expert
 * ---------------------------------------------------------------------------------------------------------------- */

static void assert_index_refused(int64_t value, bool wide, int stride_kind, const char *sentence) {
    int64_t idx[4][3] = {{0, 1, 2}, {-1, -1, -1}, {6, 0, 3}, {5, 5, 5}};
    idx[2][1] = value;
    plan p = {.ranks = 2,
              .experts = 7,
              .topk = 3,
              .max_tokens = 4,
              .alignment = 1,
              .layout = FERRY_LAYOUT_EXPERT,
              .wide = wide,
              .stride_kind = stride_kind,
              .tokens = {0, 4},
              .idx = {NULL, idx[0]}};
    world w = {.plan = &p};
    assert_int_equal(fe_map_create(p.experts, p.ranks, NULL, NULL, &w.map), FERRY_OK);
    w.all = route_make(fe_counts_length(&w.map), sizeof(int32_t));
    route_make_member(&w, 0);
    route_make_member(&w, 1);
    member *m = &w.rank[1];
    assert_int_equal(fe_route_count(&m->shape, &m->idx, &m->table, &m->scratch, w.all), FERRY_INVALID);
    assert_string_equal(ferry_last_error(), sentence);
    idx[2][1] = 6; /* and made again with a better one, it works */
    free(m->idx_memory);
    route_make_tensor(&p, m, idx[0]);
    assert_int_equal(fe_route_count(&m->shape, &m->idx, &m->table, &m->scratch, w.all), FERRY_OK);
    assert_int_equal(w.all[FE_COUNT_HEADER + p.ranks + 6], 1);
    route_free_world(&w);
}

static void test_bad_indices(void **state) {
    (void)state;
    for (int kind = 0; kind < STRIDE_KINDS; kind++) {
        assert_index_refused(7, false, kind, "rank 1: topk_idx[2][1] is 7; experts are 0..6, -1 is none");
        assert_index_refused(-2, false, kind, "rank 1: topk_idx[2][1] is -2; experts are 0..6, -1 is none");
        assert_index_refused(INT32_MIN, false, kind,
                             "rank 1: topk_idx[2][1] is -2147483648; experts are 0..6, -1 is none");
        assert_index_refused(INT64_MAX, true, kind,
                             "rank 1: topk_idx[2][1] is 9223372036854775807; experts are 0..6, -1 is none");
        assert_index_refused(INT64_MIN, true, kind,
                             "rank 1: topk_idx[2][1] is -9223372036854775808; experts are 0..6, -1 is none");
        /* Its lower half alone would be -1, or expert 3. */
        assert_index_refused(0xffffffff, true, kind,
                             "rank 1: topk_idx[2][1] is 4294967295; experts are 0..6, -1 is none");
        assert_index_refused(0x100000003, true, kind,
                             "rank 1: topk_idx[2][1] is 4294967299; experts are 0..6, -1 is none");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_map),           cmocka_unit_test(test_map_refusals),
                                       cmocka_unit_test(test_rank_by_hand),  cmocka_unit_test(test_expert_by_hand),
                                       cmocka_unit_test(test_slots_by_hand), cmocka_unit_test(test_capacities_by_hand),
                                       cmocka_unit_test(test_bad_indices),   cmocka_unit_test(test_empty),
                                       cmocka_unit_test(test_oracle)};
    return cmocka_run_group_tests_name("route", tests, NULL, NULL);
}

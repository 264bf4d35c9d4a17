#include "oracle/oracle.h"
#include "base/num.h"
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct place { /* where one choice of one token goes */
    int rank, local;   /* -1: nowhere */
    int64_t slot;      /* -1: dropped */
} place;

struct oracle {
    oracle_config config;
    oracle_tokens *tokens;
    oracle_rank *rank;
    place **place;     /* [ranks][tokens * topk] */
    int32_t **experts; /* [ranks][L] */
    oracle_row **row;  /* [ranks][received] */
    float **weights;   /* [ranks][tokens * topk] as they count; NULL: the route has none */
    int64_t dropped;
};

static bool lives_on(const oracle_config *c, int expert, int rank) {
    if (!c->expert_first)
        return (int64_t)rank * c->experts / c->ranks <= expert && expert < (int64_t)(rank + 1) * c->experts / c->ranks;
    for (int i = c->expert_first[expert]; i < c->expert_first[expert + 1]; i++)
        if (c->expert_rank[i] == rank) return true;
    return false;
}

static bool is_masked(const oracle_config *c, int rank) {
    return c->masked && c->masked[rank];
}

/* The rank whose copy of the expert serves this token: of those that are not masked, in the map's order. -1: there is none. */
static int rank_for(const oracle_config *c, int expert, int source, int token) {
    int copy[FERRY_MAX_RANKS], copies = 0;
    for (int i = c->expert_first ? c->expert_first[expert] : 0;
         i < (c->expert_first ? c->expert_first[expert + 1] : c->ranks); i++) {
        int rank = c->expert_first ? c->expert_rank[i] : i;
        if (lives_on(c, expert, rank) && !is_masked(c, rank)) copy[copies++] = rank;
    }
    return copies ? copy[(source + token) % copies] : -1;
}

/* Each token's weights, those of choices that a mask sends nowhere spread over the others. */
static bool spread_weights(oracle *o, int source) {
    const oracle_config *c = &o->config;
    const oracle_tokens *t = &o->tokens[source];
    size_t n = (size_t)t->tokens * (size_t)c->topk;
    if (!t->topk_weights) return true;
    float *to = o->weights[source] = malloc(n * sizeof(float) + 1);
    if (!to) return false;
    memcpy(to, t->topk_weights, n * sizeof(float));
    for (size_t first = 0; c->renormalise && first < n; first += (size_t)c->topk) {
        float wanted = 0, served = 0;
        int missing = 0;
        for (size_t i = first; i < first + (size_t)c->topk; i++) {
            if (t->topk_idx[i] < 0) continue;
            wanted += t->topk_weights[i];
            if (o->place[source][i].rank >= 0) served += t->topk_weights[i];
            missing += o->place[source][i].rank < 0;
        }
        for (size_t i = first; missing && i < first + (size_t)c->topk; i++) {
            float factor = served == 0 ? 0 : wanted / served;
            to[i] = o->place[source][i].rank < 0 ? 0 : fe_f32_canonical(to[i] * factor);
        }
    }
    return true;
}

static bool list_experts(oracle *o, int rank) {
    const oracle_config *c = &o->config;
    oracle_rank *k = &o->rank[rank];
    o->experts[rank] = malloc(sizeof(int32_t) * (size_t)c->experts);
    if (!o->experts[rank]) return false;
    for (int e = 0; e < c->experts; e++)
        if (lives_on(c, e, rank)) o->experts[rank][k->local_experts++] = e;
    k->experts = o->experts[rank];
    return true;
}

static bool place_choices(oracle *o, int source) {
    const oracle_config *c = &o->config;
    const oracle_tokens *t = &o->tokens[source];
    size_t n = (size_t)t->tokens * (size_t)c->topk;
    o->place[source] = malloc(sizeof(place) * (n + 1));
    if (!o->place[source]) return false;
    for (size_t i = 0; i < n; i++) {
        place *p = &o->place[source][i];
        *p = (place){-1, -1, -1};
        int64_t expert = t->topk_idx[i];
        if (expert < 0) continue;
        p->rank = rank_for(c, (int)expert, source, (int)(i / (size_t)c->topk));
        if (p->rank < 0) continue;
        for (int l = 0; l < o->rank[p->rank].local_experts; l++)
            if (o->experts[p->rank][l] == expert) p->local = l;
    }
    return true;
}

/* Does the token go to this block of the rank? local -1: the rank as a whole. */
static bool goes_to(const oracle *o, int source, int token, int rank, int local) {
    const place *p = &o->place[source][(size_t)token * (size_t)o->config.topk];
    for (int c = 0; c < o->config.topk; c++)
        if (p[c].rank == rank && (local < 0 || p[c].local == local)) return true;
    return false;
}

static float weight_for(const oracle *o, int source, int token, int rank, int local) {
    const float *weights = o->weights[source];
    float sum = 0;
    for (int c = 0; weights && c < o->config.topk; c++) {
        size_t i = (size_t)token * (size_t)o->config.topk + (size_t)c;
        if (o->place[source][i].rank == rank && o->place[source][i].local == local) sum += weights[i];
    }
    return fe_f32_canonical(sum);
}

static void keep_slot(oracle *o, int source, int token, int rank, int local, int64_t slot) {
    place *p = &o->place[source][(size_t)token * (size_t)o->config.topk];
    for (int c = 0; c < o->config.topk; c++)
        if (p[c].rank == rank && (local < 0 || p[c].local == local)) p[c].slot = slot;
}

static int64_t align_up(int64_t value, int to) {
    return to > 1 ? (value + to - 1) / to * to : value;
}

/* A block is what one local expert receives, or for RANK the whole rank. */
typedef struct block {
    int rank, local;
    int64_t start; /* its first slot */
} block;

/* Gives the block's rows their slots. Returns how many rows would have come had there been no capacity. */
static int64_t fill_block(oracle *o, const block *b) {
    const oracle_config *c = &o->config;
    oracle_rank *k = &o->rank[b->rank];
    bool fixed = c->mode == FERRY_LATENCY && c->layout != FERRY_LAYOUT_EXPERT && !c->packed;
    int counts_at = b->local < 0 ? 0 : b->local * c->ranks;
    int64_t index = 0; /* rows of the block so far, dropped ones included */
    for (int s = 0; s < c->ranks; s++) {
        int64_t of_source = 0;
        int64_t first = fixed ? (int64_t)s * c->max_tokens : index;
        k->starts[counts_at + s] = (int32_t)(first + (c->layout == FERRY_LAYOUT_SLOTS ? 0 : b->start));
        for (int t = 0; t < o->tokens[s].tokens; t++) {
            if (!goes_to(o, s, t, b->rank, b->local)) continue;
            int64_t slot = b->start + (fixed ? first + of_source : index);
            bool full = b->local >= 0 && c->expert_capacity && index >= c->expert_capacity;
            full = full || (c->layout != FERRY_LAYOUT_SLOTS && c->rank_capacity && slot >= c->rank_capacity);
            index++;
            of_source++;
            if (full) {
                o->rank[s].dropped++;
                k->refused++;
                o->dropped++;
                continue;
            }
            o->row[b->rank][k->received++] =
                (oracle_row){s, t, b->local, slot, b->local < 0 ? 0 : weight_for(o, s, t, b->rank, b->local)};
            keep_slot(o, s, t, b->rank, b->local, slot);
            k->source_rows[s]++;
            k->counts[counts_at + s]++;
            o->rank[s].rank_rows[b->rank]++;
            o->rank[s].sent++;
        }
    }
    return index;
}

static int64_t rows_of_block(const oracle *o, int rank, int local) {
    int64_t n = 0;
    for (int s = 0; s < o->config.ranks; s++)
        for (int t = 0; t < o->tokens[s].tokens; t++) n += goes_to(o, s, t, rank, local);
    return n;
}

static void place_rank(oracle *o, int rank) {
    const oracle_config *c = &o->config;
    oracle_rank *k = &o->rank[rank];
    int64_t all = (int64_t)c->ranks * c->max_tokens;
    if (c->layout == FERRY_LAYOUT_RANK) {
        k->rows = fill_block(o, &(block){rank, -1, 0});
        if (c->mode == FERRY_LATENCY) k->rows = all;
        if (c->rank_capacity && k->rows > c->rank_capacity) k->rows = c->rank_capacity;
        return;
    }
    int64_t at = 0;
    for (int l = 0; l < k->local_experts; l++) {
        int64_t start = c->layout == FERRY_LAYOUT_SLOTS ? l * all : at;
        k->expert_start[l] = (int32_t)start;
        int64_t n = fill_block(o, &(block){rank, l, start});
        if (c->expert_capacity && n > c->expert_capacity) n = c->expert_capacity;
        at = align_up(start + n, c->alignment);
    }
    k->rows = c->layout == FERRY_LAYOUT_SLOTS ? k->local_experts * all : at;
    if (c->layout != FERRY_LAYOUT_SLOTS && c->rank_capacity && k->rows > c->rank_capacity) k->rows = c->rank_capacity;
}

/* RANK: tokens among the rank's rows that chose each local expert; EXPERT and SLOTS: rows of its block. */
static void count_experts(oracle *o, int rank) {
    oracle_rank *k = &o->rank[rank];
    for (int64_t i = 0; i < k->received; i++)
        for (int l = 0; l < k->local_experts; l++)
            if (k->row[i].local == l || (k->row[i].local < 0 && goes_to(o, k->row[i].source, k->row[i].token, rank, l)))
                k->expert_rows[l]++;
}

static bool allocate_rank(oracle *o, int rank) {
    const oracle_config *c = &o->config;
    oracle_rank *k = &o->rank[rank];
    size_t experts = (size_t)k->local_experts, ranks = (size_t)c->ranks;
    int64_t rows = 0;
    if (c->layout == FERRY_LAYOUT_RANK)
        rows = rows_of_block(o, rank, -1);
    else
        for (int l = 0; l < k->local_experts; l++) rows += rows_of_block(o, rank, l);
    o->row[rank] = calloc((size_t)rows + 1, sizeof(oracle_row));
    k->row = o->row[rank];
    k->expert_rows = calloc(experts + 1, sizeof(int32_t));
    k->expert_start = calloc(experts + 1, sizeof(int32_t));
    k->source_rows = calloc(ranks, sizeof(int32_t));
    k->rank_rows = calloc(ranks, sizeof(int32_t));
    k->counts = calloc((experts + 1) * ranks, sizeof(int32_t));
    k->starts = calloc((experts + 1) * ranks, sizeof(int32_t));
    return k->row && k->expert_rows && k->expert_start && k->source_rows && k->rank_rows && k->counts && k->starts;
}

static bool build(oracle *o) {
    const int ranks = o->config.ranks;
    for (int r = 0; r < ranks; r++)
        if (!list_experts(o, r)) return false;
    for (int r = 0; r < ranks; r++)
        if (!place_choices(o, r) || !spread_weights(o, r)) return false;
    for (int r = 0; r < ranks; r++)
        if (!allocate_rank(o, r)) return false;
    for (int r = 0; r < ranks; r++) place_rank(o, r);
    for (int r = 0; r < ranks; r++) count_experts(o, r);
    return true;
}

oracle *oracle_new(const oracle_config *config, const oracle_tokens *tokens) {
    oracle *o = calloc(1, sizeof *o);
    if (!o) return NULL;
    size_t ranks = (size_t)config->ranks;
    o->config = *config;
    o->tokens = calloc(ranks, sizeof *o->tokens);
    o->rank = calloc(ranks, sizeof *o->rank);
    o->place = calloc(ranks, sizeof *o->place);
    o->experts = calloc(ranks, sizeof *o->experts);
    o->row = calloc(ranks, sizeof *o->row);
    o->weights = calloc(ranks, sizeof *o->weights);
    if (!o->tokens || !o->rank || !o->place || !o->experts || !o->row || !o->weights) {
        oracle_free(o);
        return NULL;
    }
    for (size_t r = 0; r < ranks; r++) o->tokens[r] = tokens[r];
    if (build(o)) return o;
    oracle_free(o);
    return NULL;
}

void oracle_free(oracle *o) {
    if (!o) return;
    for (int r = 0; r < o->config.ranks; r++) {
        if (o->place) free(o->place[r]);
        if (o->experts) free(o->experts[r]);
        if (o->row) free(o->row[r]);
        if (o->weights) free(o->weights[r]);
        if (!o->rank) continue;
        free(o->rank[r].expert_rows);
        free(o->rank[r].expert_start);
        free(o->rank[r].source_rows);
        free(o->rank[r].rank_rows);
        free(o->rank[r].counts);
        free(o->rank[r].starts);
    }
    free(o->tokens);
    free(o->rank);
    free(o->place);
    free(o->experts);
    free(o->row);
    free(o->weights);
    free(o);
}

const oracle_rank *oracle_rank_of(const oracle *o, int rank) {
    return &o->rank[rank];
}
int64_t oracle_dropped(const oracle *o) {
    return o->dropped;
}

const float *oracle_weights(const oracle *o, int source) {
    return o->weights[source];
}

int oracle_place(const oracle *o, int source, int token, int choice, int64_t *slot) {
    const place *p = &o->place[source][(size_t)token * (size_t)o->config.topk + (size_t)choice];
    if (p->rank < 0 || p->slot < 0) return -1;
    *slot = p->slot;
    return p->rank;
}

void oracle_row_topk(const oracle *o, int rank, const oracle_row *row, int32_t *idx, float *weights) {
    size_t at = (size_t)row->token * (size_t)o->config.topk;
    const place *p = &o->place[row->source][at];
    for (int c = 0; c < o->config.topk; c++) {
        bool here = p[c].rank == rank;
        idx[c] = here ? p[c].local : -1;
        if (weights) weights[c] = here ? o->weights[row->source][at + (size_t)c] : 0;
    }
}

/* ------------------------------------------------------------------------------------------------------------------
 * Values
 * ---------------------------------------------------------------------------------------------------------------- */

static float widen(ferry_dtype dtype, const uint8_t *row, int column) {
    uint16_t half;
    float value;
    if (dtype == FERRY_FP32) {
        memcpy(&value, row + 4 * (size_t)column, 4);
        return value;
    }
    memcpy(&half, row + 2 * (size_t)column, 2);
    return dtype == FERRY_BF16 ? fe_bf16_to_f32(half) : fe_fp16_to_f32(half);
}

static void narrow(ferry_dtype dtype, uint8_t *row, int column, float value) {
    if (dtype == FERRY_FP32) {
        value = fe_f32_canonical(value);
        memcpy(row + 4 * (size_t)column, &value, 4);
        return;
    }
    uint16_t half = dtype == FERRY_BF16 ? fe_bf16_from_f32(value) : fe_fp16_from_f32(value);
    memcpy(row + 2 * (size_t)column, &half, 2);
}

size_t oracle_row_bytes(const oracle *o) {
    if (o->config.cast) return (size_t)o->config.columns;
    return (size_t)o->config.columns * ferry_dtype_bytes(o->config.dtype);
}

size_t oracle_scale_bytes(const oracle *o) {
    size_t groups = ((size_t)o->config.columns + 127) / 128;
    if (o->config.cast == FERRY_CAST_E4M3_UE8M0) return (groups + 3) / 4 * 4;
    return o->config.cast ? groups * 4 : o->config.scale_bytes;
}

void oracle_row_data(const oracle *o, const oracle_row *row, uint8_t *data, uint8_t *scales) {
    const oracle_config *c = &o->config;
    const oracle_tokens *t = &o->tokens[row->source];
    size_t in_bytes = (size_t)c->columns * ferry_dtype_bytes(c->dtype);
    const uint8_t *from = t->rows + (size_t)row->token * in_bytes;
    if (!c->cast) {
        memcpy(data, from, in_bytes);
        if (c->scale_bytes) memcpy(scales, t->scales + (size_t)row->token * c->scale_bytes, c->scale_bytes);
        return;
    }
    memset(scales, 0, oracle_scale_bytes(o));
    for (int first = 0, group = 0; first < c->columns; first += 128, group++) {
        int last = first + 128 < c->columns ? first + 128 : c->columns;
        float amax = 1e-4f;
        for (int i = first; i < last; i++) {
            float x = fabsf(widen(FERRY_BF16, from, i));
            if (x > amax) amax = isinf(x) ? FLT_MAX : x; /* a NaN is not greater */
        }
        float scale = amax / 448.0f, factor = 448.0f / amax;
        if (c->cast != FERRY_CAST_E4M3) {
            scale = fe_pow2_ceil(scale);
            factor = 1.0f / scale;
        }
        for (int i = first; i < last; i++) data[i] = fe_e4m3_from_f32(widen(FERRY_BF16, from, i) * factor);
        if (c->cast == FERRY_CAST_E4M3_UE8M0)
            scales[group] = fe_ue8m0_from_f32(scale);
        else
            memcpy(scales + 4 * (size_t)group, &scale, 4);
    }
}

/* Is this choice the one of the token's that brings this row back: the first, or in FERRY_ORDER_CHOICE the last? RANK: a row per rank;
 * otherwise one per expert. */
static bool brings_row(const oracle *o, int source, int token, int choice, bool last) {
    int64_t slot, other;
    int rank = oracle_place(o, source, token, choice, &slot);
    for (int c = last ? choice + 1 : 0; c < (last ? o->config.topk : choice); c++)
        if (oracle_place(o, source, token, c, &other) == rank && other == slot) return false;
    return true;
}

static void add_row(const oracle_combine *m, int rank, int64_t slot, const float *weight, float *sum, uint8_t *row) {
    m->row(m->context, rank, slot, row);
    for (int i = 0; i < m->columns; i++) {
        float y = widen(m->in_type, row, i);
        sum[i] = weight ? fmaf(*weight, y, sum[i]) : sum[i] + y;
    }
}

static int host_of(const oracle *o, int rank) {
    return o->config.hosts > 1 ? rank / (o->config.ranks / o->config.hosts) : 0;
}

/* Adds the rows that lie on one host. Returns how many there were. */
static int sum_host(const oracle *o, const oracle_combine *m, int source, int token, int host, float *sum,
                    uint8_t *row) {
    const int topk = o->config.topk;
    int rows = 0;
    int64_t slot;
    if (m->weighted) {
        for (int c = 0; c < topk; c++) {
            int rank = oracle_place(o, source, token, c, &slot);
            if (rank < 0 || host_of(o, rank) != host) continue;
            add_row(m, rank, slot, &m->weights[(size_t)token * (size_t)topk + (size_t)c], sum, row);
            rows++;
        }
        return rows;
    }
    /* RANK goes through the ranks in ascending order, or through the choices like the others. */
    bool rank_layout = o->config.layout == FERRY_LAYOUT_RANK,
         last = rank_layout && o->config.order == FERRY_ORDER_CHOICE;
    bool by_rank = rank_layout && !last;
    for (int r = 0; r < (by_rank ? o->config.ranks : 1); r++)
        for (int c = 0; c < topk; c++) {
            int rank = oracle_place(o, source, token, c, &slot);
            if (rank < 0 || host_of(o, rank) != host || (by_rank && rank != r) ||
                !brings_row(o, source, token, c, last))
                continue;
            add_row(m, rank, slot, NULL, sum, row);
            rows++;
        }
    return rows;
}

/* The owner's host first; then each other one, ascending, brings its own sum, rounded to the rows' type. */
static void sum_rows(const oracle *o, const oracle_combine *m, int source, int token, float *sum, float *part,
                     uint8_t *row) {
    sum_host(o, m, source, token, host_of(o, source), sum, row);
    for (int h = 0; h < o->config.hosts; h++) {
        if (o->config.hosts < 2 || h == host_of(o, source)) continue;
        for (int i = 0; i < m->columns; i++) part[i] = 0;
        if (sum_host(o, m, source, token, h, part, row) == 0) continue;
        for (int i = 0; i < m->columns; i++) {
            narrow(m->in_type, row, 0, part[i]);
            sum[i] += widen(m->in_type, row, 0);
        }
    }
}

void oracle_combine_token(const oracle *o, const oracle_combine *m, int source, int token, uint8_t *out, float *weights,
                          void *scratch) {
    float *sum = scratch;
    uint8_t *row = (uint8_t *)scratch + (size_t)m->columns * 4;
    float *part = sum + 2 * (size_t)m->columns; /* touched only where there are several hosts */
    size_t bias_at = (size_t)token * (size_t)m->columns * ferry_dtype_bytes(m->in_type);
    for (int i = 0; i < m->columns; i++) {
        sum[i] = m->bias[0] ? widen(m->in_type, m->bias[0] + bias_at, i) : 0;
        if (m->bias[1]) sum[i] += widen(m->in_type, m->bias[1] + bias_at, i);
    }
    sum_rows(o, m, source, token, sum, part, row);
    for (int i = 0; i < m->columns; i++) narrow(m->out_type, out, i, sum[i]);
    for (int c = 0; m->weight && c < o->config.topk; c++) {
        int64_t slot;
        int rank = oracle_place(o, source, token, c, &slot);
        weights[c] = rank < 0 ? 0 : m->weight(m->context, rank, slot, c);
    }
}

const char *oracle_difference(const void *expected, const void *got, size_t n) {
    static _Thread_local char sentence[160];
    const uint8_t *a = expected, *b = got;
    sentence[0] = 0;
    if (memcmp(a, b, n) == 0) return sentence;
    size_t first = 0, differing = 0;
    while (a[first] == b[first]) first++;
    for (size_t i = first; i < n; i++) differing += a[i] != b[i];
    snprintf(sentence, sizeof sentence, "byte %zu is 0x%02x, not 0x%02x (%zu of %zu bytes differ)", first, b[first],
             a[first], differing, n);
    return sentence;
}

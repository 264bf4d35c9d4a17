/* The data of a case: made from its numbers alone, so that every rank, thread or process, knows everybody's. */
#include "ranks/case.h"
#include <stdlib.h>

static uint64_t mix(uint64_t z) { /* the output function of splitmix64 */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

enum {
    KEY_COPIES,
    KEY_TOKENS,
    KEY_CHOICE,
    KEY_WEIGHT,
    KEY_OTHER,
    KEY_ROWS,
    KEY_SCALES,
    KEY_BIAS,
    KEY_BACK,
    KEY_GRAD,
    KEY_LOST
};

static uint64_t key(const xcase *c, int what, int64_t a, int64_t b) {
    uint64_t seed = (uint64_t)c->seed +
                    (what != KEY_COPIES ? (uint64_t)c->again << 40 : 0); /* copies are the group's, not the step's */
    return mix(mix(mix(seed + 0x9e3779b97f4a7c15u * (uint64_t)(what + 1)) + (uint64_t)a) + (uint64_t)b);
}

static float small_float(uint64_t bits) {
    return (float)(int64_t)(bits % 2000001) / 1000000.0f - 1.0f;
}

/* An element to be summed: exponents near 1 so that the order of a sum shows in its last bits. `special` lets about one in
 * 64 be an infinity or a NaN. */
static void put_number(ferry_dtype dtype, uint64_t bits, bool special, uint8_t *at) {
    uint64_t odd = special && (bits >> 48) % 64 == 0 ? 1 + (bits >> 54) % 3 : 0;
    uint32_t sign = (uint32_t)(bits & 1), exponent = (uint32_t)(bits >> 1) % 26, mantissa = (uint32_t)(bits >> 8);
    if (dtype == FERRY_FP16) {
        uint16_t half = (uint16_t)(sign << 15 | (4 + exponent % 22) << 10 | (mantissa & 0x3ff));
        if (odd) half = (uint16_t)(sign << 15 | 0x7c00 | (odd == 1 ? 0x155 : 0));
        memcpy(at, &half, 2);
        return;
    }
    uint32_t word = sign << 31 | (112 + exponent) << 23 | (mantissa & 0x7fffff);
    if (odd) word = sign << 31 | 0x7f800000u | (odd == 1 ? 0x120000u : 0);
    uint16_t half = (uint16_t)(word >> 16);
    if (dtype == FERRY_BF16)
        memcpy(at, &half, 2);
    else
        memcpy(at, &word, 4);
}

static void put_numbers(const xcase *c, ferry_dtype dtype, uint64_t start, int64_t n, uint8_t *at) {
    size_t element = ferry_dtype_bytes(dtype);
    for (int64_t i = 0; i < n; i++)
        put_number(dtype, mix(start + 0x9e3779b97f4a7c15u * (uint64_t)i), c->special != 0, at + (size_t)i * element);
}

/* Input of a cast: groups of all magnitudes, zero and subnormal ones among them. `special`: now and then an infinity or a
 * NaN. */
static void put_cast_input(uint64_t start, int64_t n, bool special, uint8_t *at) {
    for (int64_t i = 0; i < n; i++) {
        uint64_t group = mix(start ^ (uint64_t)(i / 128)), bits = mix(start + 0x9e3779b97f4a7c15u * (uint64_t)i);
        uint32_t top = group % 8 == 0 ? 0 : group % 8 == 1 ? 12 : (uint32_t)(group >> 8) % 200 + 20;
        uint32_t exponent = top > 12 ? top + (uint32_t)(bits >> 1) % 12 : top ? (uint32_t)(bits >> 1) % 2 : 0;
        uint16_t half = (uint16_t)((bits & 1) << 15 | exponent << 7 | (group % 8 == 0 ? 0 : (bits >> 8) & 0x7f));
        if (special && (bits >> 40) % 256 == 0) half = (uint16_t)(half | 0x7f80);
        memcpy(at + 2 * (size_t)i, &half, 2);
    }
}

static void put_bytes(uint64_t start, size_t n, uint8_t *at) {
    for (size_t i = 0; i < n; i += 8) {
        uint64_t word = mix(start + i);
        memcpy(at + i, &word, n - i < 8 ? n - i : 8);
    }
}

static bool make_copies(case_data *d) {
    const xcase *c = &d->c;
    int ranks = (int)c->ranks, homes = 0;
    int *local = calloc((size_t)ranks, sizeof *local);
    d->expert_first = calloc((size_t)c->experts + 1, sizeof(int32_t));
    d->expert_rank = calloc((size_t)c->experts * (size_t)ranks, sizeof(int32_t));
    if (!local || !d->expert_first || !d->expert_rank) {
        free(local);
        return false;
    }
    for (int e = 0; e < c->experts; e++) {
        uint64_t bits = key(c, KEY_COPIES, e, 0);
        int copies = bits % 3 == 0 ? 1 + (int)((bits >> 8) % (uint64_t)ranks) : 1;
        if (copies > 3) copies = 3;
        int first = (int)((bits >> 20) % (uint64_t)ranks);
        for (int i = 0; i < copies; i++) {
            int rank = (first + ranks - i) % ranks; /* descending: the order of copies is not the order of ranks */
            d->expert_rank[homes++] = rank;
            local[rank]++;
        }
        d->expert_first[e + 1] = homes;
    }
    for (int r = 0; r < ranks; r++)
        if (local[r] > d->homes_most) d->homes_most = local[r];
    free(local);
    return true;
}

static int64_t draw_choice(const xcase *c, int rank, int token, int choice) {
    uint64_t bits = key(c, KEY_CHOICE, rank * 1000003 + token, choice);
    if ((int64_t)((bits >> 40) % 100) < c->none) return -1;
    if (c->spread == 2) return c->experts / 2;
    if (c->spread == 3)
        return (int64_t)(((bits & 0xffff) * ((bits >> 16) & 0xffff) >> 16) * (uint64_t)c->experts >> 16);
    if (c->spread == 1) return (int64_t)(bits % (uint64_t)c->experts);
    int64_t first = (int64_t)(key(c, KEY_CHOICE, rank * 1000003 + token, -1) % (uint64_t)c->experts);
    return choice < c->experts ? (first + choice * (c->experts / c->topk + 1)) % c->experts : -1;
}

static int draw_tokens(const xcase *c, int rank) {
    uint64_t bits = key(c, KEY_TOKENS, rank, 0);
    if (c->fill == 3 || (c->fill == 2 && bits % 2 == 0)) return 0;
    return c->fill == 1 ? (int)((bits >> 1) % (uint64_t)(c->tokens + 1)) : (int)c->tokens;
}

static void take_choices(case_data *d, int rank, const case_choices *given) {
    size_t topk = (size_t)d->c.topk;
    for (int t = 0; t < d->tokens[rank]; t++) {
        size_t from = ((size_t)t * (size_t)d->c.ranks + (size_t)rank) * topk;
        memcpy(d->idx[rank] + (size_t)t * topk, given->idx + from, topk * sizeof(int64_t));
        memcpy(d->weights[rank] + (size_t)t * topk, given->weights + from, topk * sizeof(float));
    }
}

static bool make_rank(case_data *d, int rank, const case_choices *given) {
    const xcase *c = &d->c;
    int tokens = given ? (int)((given->tokens - rank + c->ranks - 1) / c->ranks) : draw_tokens(c, rank);
    if (d->masked[rank]) tokens = 0;
    d->tokens[rank] = tokens;
    size_t choices = (size_t)tokens * (size_t)c->topk, in_bytes = case_in_bytes(c);
    d->idx[rank] = malloc(choices * 8 + 1);
    d->weights[rank] = malloc(choices * 4 + 1);
    d->other_weights[rank] = malloc(choices * 4 + 1);
    if (!d->idx[rank] || !d->weights[rank] || !d->other_weights[rank]) return false;
    for (size_t i = 0; i < choices; i++) {
        int token = (int)(i / (size_t)c->topk), choice = (int)(i % (size_t)c->topk);
        d->idx[rank][i] = draw_choice(c, rank, token, choice);
        d->weights[rank][i] = small_float(key(c, KEY_WEIGHT, rank, (int64_t)i));
        d->other_weights[rank][i] = small_float(key(c, KEY_OTHER, rank, (int64_t)i));
    }
    if (given) take_choices(d, rank, given);
    for (int round = 0; round < c->rounds; round++) {
        size_t scale_bytes = (size_t)c->scales * 4;
        uint8_t *rows = d->rows[round][rank] = malloc((size_t)tokens * in_bytes + 1);
        uint8_t *scales = d->scales[round][rank] = malloc((size_t)tokens * scale_bytes + 1);
        if (!rows || !scales) return false;
        if (c->cast)
            put_cast_input(key(c, KEY_ROWS, rank, round), (int64_t)tokens * c->columns, c->special != 0, rows);
        else
            put_bytes(key(c, KEY_ROWS, rank, round), (size_t)tokens * in_bytes, rows);
        put_bytes(key(c, KEY_SCALES, rank, round), (size_t)tokens * scale_bytes, scales);
    }
    for (int b = 0; b < c->bias; b++) {
        d->bias[b][rank] = malloc((size_t)tokens * case_back_bytes(c) + 1);
        if (!d->bias[b][rank]) return false;
        put_numbers(c, (ferry_dtype)c->in_type, key(c, KEY_BIAS, rank, b), tokens * c->columns, d->bias[b][rank]);
    }
    return true;
}

/* The worst case, with the padding of this alignment. */
static int64_t worst_rows(const case_data *d) {
    const xcase *c = &d->c;
    int64_t all = c->ranks * c->tokens, local = d->homes_most;
    if (c->layout == FERRY_LAYOUT_RANK) return all;
    if (c->layout == FERRY_LAYOUT_SLOTS) return all * local;
    return all * (c->topk < local ? c->topk : local) + local * c->align + c->align;
}

bool case_build(const xcase *c, const case_choices *given, case_data *d) {
    memset(d, 0, sizeof *d);
    d->c = *c;
    d->homes_most = (int)((c->experts + c->ranks - 1) / c->ranks);
    if (c->copies) {
        d->homes_most = 0;
        if (!make_copies(d)) return false;
    }
    d->recv_rows = worst_rows(d);
    uint64_t first = c->loser ? (uint64_t)c->loser - 1 : key(c, KEY_LOST, 0, 0);
    for (int i = 0; i < c->lost; i++) d->masked[(first + (uint64_t)i) % (uint64_t)c->ranks] = 1;
    for (int r = 0; r < c->ranks; r++)
        if (!make_rank(d, r, given)) return false;
    oracle_config config = {
        .ranks = (int)c->ranks,
        .hosts = c->ranks > 1 ? ranks_hosts() : 1,
        .experts = (int)c->experts,
        .topk = (int)c->topk,
        .max_tokens = (int)c->tokens,
        .expert_first = d->expert_first,
        .expert_rank = d->expert_rank,
        .layout = (ferry_layout)c->layout,
        .mode = (ferry_mode)c->mode,
        .alignment = (int)c->align,
        .expert_capacity = c->expert_cap,
        .rank_capacity = c->rank_cap,
        .packed = c->packed != 0,
        .order = (ferry_order)c->order,
        .columns = (int)c->columns,
        .dtype = (ferry_dtype)c->dtype,
        .scale_bytes = (size_t)c->scales * 4,
        .cast = (ferry_cast)c->cast,
        .masked = d->masked,
        .renormalise = c->renorm != 0,
    };
    for (int round = 0; round < c->rounds; round++) {
        oracle_tokens tokens[CASE_RANKS];
        for (int r = 0; r < c->ranks; r++)
            tokens[r] = (oracle_tokens){d->tokens[r], d->idx[r], c->weights ? d->weights[r] : NULL, d->rows[round][r],
                                        d->scales[round][r]};
        d->oracle[round] = oracle_new(&config, tokens);
        if (!d->oracle[round]) return false;
    }
    return true;
}

void case_free(case_data *d) {
    free(d->expert_first);
    free(d->expert_rank);
    for (int r = 0; r < CASE_RANKS; r++) {
        free(d->idx[r]);
        free(d->weights[r]);
        free(d->other_weights[r]);
        free(d->bias[0][r]);
        free(d->bias[1][r]);
        for (int round = 0; round < CASE_ROUNDS; round++) {
            free(d->rows[round][r]);
            free(d->scales[round][r]);
        }
    }
    for (int round = 0; round < CASE_ROUNDS; round++) oracle_free(d->oracle[round]);
}

void case_expert_row(void *round, int rank, int64_t slot, uint8_t *data) {
    const case_round *r = round;
    const xcase *c = &r->data->c;
    put_numbers(c, (ferry_dtype)c->in_type, key(c, KEY_BACK, rank + 64 * r->round, slot), c->columns, data);
}

float case_expert_weight(void *round, int rank, int64_t slot, int choice) {
    const case_round *r = round;
    return small_float(key(&r->data->c, KEY_GRAD, rank + 64 * r->round, slot * FERRY_MAX_TOPK + choice));
}

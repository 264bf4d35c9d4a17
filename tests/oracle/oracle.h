/* The definition of dispatch and combine, as naive code: every rank's inputs are at hand, nothing is sent, nothing is
 * fast. Every path of the library is compared with it bit by bit. It shares only base/num.h's scalar formats with the
 * library, and needs no test framework (`ferry bench --check` uses it too). */
#ifndef FERRY_TESTS_ORACLE_H
#define FERRY_TESTS_ORACLE_H

#include "ferry/ferry.h"
#include <stdbool.h>

typedef struct oracle_config {
    int ranks, experts, topk, max_tokens;
    const int32_t *expert_first, *expert_rank; /* as in ferry_group_config; both NULL: the default blocks */
    ferry_layout layout;
    ferry_mode mode;
    int alignment;           /* 0 and 1: packed */
    int64_t expert_capacity; /* 0: none */
    int64_t rank_capacity;   /* 0: none */
    bool packed;
    ferry_order order; /* RANK, unweighted */
    int columns;       /* of a dispatched row */
    ferry_dtype dtype;
    size_t scale_bytes; /* carried scales of a row; 0: none */
    ferry_cast cast;
    int hosts; /* that the ranks are on, in blocks of equal size; 0 and 1: one */
    const uint8_t
        *masked; /* [ranks] 1: it has no tokens, and its experts serve nobody; NULL: no rank is. Kept by pointer */
    bool renormalise;
} oracle_config;

/* One rank's inputs, contiguous. Kept by pointer: they must outlive the oracle. */
typedef struct oracle_tokens {
    int tokens;
    const int64_t *topk_idx;   /* [tokens, topk] */
    const float *topk_weights; /* [tokens, topk] or NULL */
    const uint8_t *rows;       /* [tokens, columns] of dtype; NULL when only places are wanted */
    const uint8_t *scales;     /* [tokens, scale_bytes] or NULL */
} oracle_tokens;

typedef struct oracle_row { /* a row that a rank receives */
    int source, token;
    int local;    /* its local expert; RANK: -1 */
    int64_t slot; /* where it lands */
    float weight; /* EXPERT, SLOTS: the token's weights for this expert, summed in choice order */
} oracle_row;

typedef struct oracle_rank { /* what one rank must see */
    int local_experts;
    const int32_t *experts; /* [L] logical numbers, ascending */
    const oracle_row *row;  /* [received], in the layout's order */
    int64_t received, sent, dropped;
    int64_t refused;       /* rows that did not fit on this rank */
    int64_t rows;          /* slots that the rows and their padding span: info.rows in THROUGHPUT */
    int32_t *expert_rows;  /* [L] */
    int32_t *expert_start; /* [L]; RANK: all 0 */
    int32_t *source_rows;  /* [R] */
    int32_t *rank_rows;    /* [R] */
    int32_t *counts;       /* RANK [R]; EXPERT, SLOTS [L][R] */
    int32_t *starts;       /* shaped like counts */
} oracle_rank;

typedef struct oracle oracle;

/* NULL when memory runs out, the only way it can fail. */
oracle *oracle_new(const oracle_config *config, const oracle_tokens *tokens);
void oracle_free(oracle *o);

const oracle_rank *oracle_rank_of(const oracle *o, int rank);
/* Rows left out on all ranks together: above 0, FERRY_OVERFLOW_ERROR must fail. */
int64_t oracle_dropped(const oracle *o);
/* Bytes of a received row and of its scales, after the cast if there is one. */
size_t oracle_row_bytes(const oracle *o);
size_t oracle_scale_bytes(const oracle *o);
/* The bytes of a received row; scales only where oracle_scale_bytes is above 0. */
void oracle_row_data(const oracle *o, const oracle_row *row, uint8_t *data, uint8_t *scales);
/* RANK: what topk_idx and topk_weights hold for a row of `rank`; weights may be NULL. */
void oracle_row_topk(const oracle *o, int rank, const oracle_row *row, int32_t *idx, float *weights);
/* A rank's topk_weights as they count: with what masked ranks would have had spread over the rest, if so configured. */
const float *oracle_weights(const oracle *o, int source);
/* Where choice c of a token landed: rank (or -1: nowhere) and slot. */
int oracle_place(const oracle *o, int source, int token, int choice, int64_t *slot);

typedef struct oracle_combine {
    int columns;
    ferry_dtype in_type, out_type;
    bool weighted;
    const float *weights;   /* of the owner, [tokens, topk]: used when weighted */
    const uint8_t *bias[2]; /* of the owner, [tokens, columns] of in_type, or NULL */
    /* Writes the expert output that lies in `slot` of `rank`, columns of in_type. */
    void (*row)(void *context, int rank, int64_t slot, uint8_t *data);
    /* The weight given to combine for a slot of `rank`; choice matters for RANK only. NULL: none given. */
    float (*weight)(void *context, int rank, int64_t slot, int choice);
    void *context;
} oracle_combine;

/* The combined row of a token of `source`, and, where combine->weight is set, the [topk] weights that come back.
 * scratch: columns * (4 + 4) bytes, and 4 more where there are several hosts. */
void oracle_combine_token(const oracle *o, const oracle_combine *combine, int source, int token, uint8_t *out,
                          float *weights, void *scratch);

/* "" when the n bytes are equal, else a sentence with the first byte that differs. Static memory of the thread. */
const char *oracle_difference(const void *expected, const void *got, size_t n);

#endif

/* A case of the exchange tests: some forty numbers from which all data follows, so that a case is drawn from a seed,
 * printed in one line, read back from that line, and made smaller while it still fails. */
#ifndef FERRY_TESTS_RANKS_CASE_H
#define FERRY_TESTS_RANKS_CASE_H

#include "oracle/oracle.h"
#include "ranks/harness.h"

#define CASE_RANKS  16
#define CASE_ROUNDS 3

/* X(name, smallest): smallest is where shrinking tries to go. */
#define CASE_FIELDS(X)                                                                                        \
    X(seed, -1)     /* of everything below and of the data */                                                 \
    X(processes, 0) /* 1: a process for each rank */                                                          \
    X(ranks, 1)                                                                                               \
    X(threads, 1) /* CPU workers of a rank */                                                                 \
    X(experts, 1)                                                                                             \
    X(copies, 0) /* 1: a map of the caller's, with several copies of some experts */                          \
    X(tokens, 1) /* max_tokens */                                                                             \
    X(fill, 0)   /* tokens of a rank: 0 all, 1 any number, 2 none on some ranks, 3 none anywhere */           \
    X(topk, 1)                                                                                                \
    X(spread, 0)  /* 0 even, distinct; 1 even, repeats; 2 all on one expert; 3 skewed */                      \
    X(none, 0)    /* percent of choices that are -1 */                                                        \
    X(idx64, 0)   /* 1: topk_idx is int64 */                                                                  \
    X(strided, 0) /* 1: top-k tensors and scales are column-major */                                          \
    X(weights, 0) /* 1: the route has weights */                                                              \
    X(columns, 16)                                                                                            \
    X(dtype, 1)      /* ferry_dtype of the dispatched rows */                                                 \
    X(cast, 0)       /* ferry_cast */                                                                         \
    X(scales, 0)     /* carried 4-byte scales of a row */                                                     \
    X(layout, 1)     /* ferry_layout */                                                                       \
    X(mode, 0)       /* ferry_mode */                                                                         \
    X(align, 0)      /* expert_alignment */                                                                   \
    X(expert_cap, 0) /* expert_capacity */                                                                    \
    X(rank_cap, 0)   /* rank_capacity */                                                                      \
    X(drop, 0)       /* ferry_overflow */                                                                     \
    X(out, 0)        /* receives into: 0 view, 1 heap, 2 memory of the caller's */                            \
    X(back, 3)       /* combines from: 0 the view in place, 1 ferry_combine_buffer, 2 heap, 3 the caller's */ \
    X(slack, 0)      /* bytes between the rows of the caller's tensors */                                     \
    X(in_type, 1)    /* ferry_dtype of the experts' outputs */                                                \
    X(out_type, 1)   /* ferry_dtype of the combined rows */                                                   \
    X(weighted, 0)   /* 0 no, 1 with the route's weights, 2 with others */                                    \
    X(bias, 0)       /* number of bias rows */                                                                \
    X(grad, 0)       /* 1: weights are brought back */                                                        \
    X(special, 0)    /* 1: some infinities and NaNs among the numbers to be summed */                         \
    X(stream, 0)     /* 1: on a stream */                                                                     \
    X(split, 0)      /* 1: send and receive halves, two in flight */                                          \
    X(rounds, 1)     /* dispatches and combines on one route */                                               \
    X(skip_topk, 0)                                                                                           \
    X(zero_pad, 0)                                                                                            \
    X(packed, 0) /* 1: LATENCY: rows packed */                                                                \
    X(lost, 0)   /* ranks that the group goes on without */                                                   \
    X(alive, 0)  /* 1: those are masked by the others, and not dead */                                        \
    X(renorm, 0) /* 1: their experts' weights are spread over the other choices */                            \
    X(loser, 0)  /* 1 + the one that is lost; 0: any */                                                       \
    X(again, 0)  /* other data of the same shapes, for a later step of the same group */                      \
    X(order, 0)  /* ferry_order */

typedef struct xcase {
#define CASE_FIELD(name, smallest) int64_t name;
    CASE_FIELDS(CASE_FIELD)
#undef CASE_FIELD
} xcase;

#define CASE_TEXT 1024

xcase case_draw(uint64_t seed, bool processes);
/* Makes any numbers a valid case, by changing as few as possible. */
void case_fix(xcase *c);
/* `ranks=2 experts=4 ...`, fields that are 0 left out. */
void case_print(const xcase *c, char text[CASE_TEXT]);
/* Its inverse. false: an unknown field. */
bool case_parse(const char *text, xcase *c);
/* Halves what can be halved while `fails` says that the case still fails, for at most `seconds`. */
void case_shrink(xcase *c, bool (*fails)(const xcase *c), int seconds);

/* All inputs of all ranks, and what must come of them. */
typedef struct case_data {
    xcase c;
    int32_t *expert_first, *expert_rank; /* NULL without copies */
    int homes_most;                      /* the most local experts on one rank */
    int64_t recv_rows;                   /* row slots that the fullest rank can come to need */
    int64_t *idx[CASE_RANKS];
    float *weights[CASE_RANKS], *other_weights[CASE_RANKS];
    uint8_t *rows[CASE_ROUNDS][CASE_RANKS], *scales[CASE_ROUNDS][CASE_RANKS];
    uint8_t *bias[2][CASE_RANKS];
    oracle *oracle[CASE_ROUNDS];
    int tokens[CASE_RANKS];
    uint8_t masked[CASE_RANKS]; /* 1: one of the lost */
} case_data;

/* Choices from elsewhere, [tokens, topk], dealt to the ranks in turn: in place of drawn ones. */
typedef struct case_choices {
    int64_t tokens;
    const int64_t *idx;
    const float *weights;
} case_choices;

/* given may be NULL. false: no memory. */
bool case_build(const xcase *c, const case_choices *given, case_data *d);
void case_free(case_data *d);

/* What the experts return: any slot's row, columns of in_type; and its weight. */
typedef struct case_round {
    const case_data *data;
    int round;
} case_round;
void case_expert_row(void *round, int rank, int64_t slot, uint8_t *data);
float case_expert_weight(void *round, int rank, int64_t slot, int choice);

size_t case_in_bytes(const xcase *c);   /* of a dispatched row before the cast */
size_t case_back_bytes(const xcase *c); /* of an expert's output row */

/* The rank function: arg is a case_data. */
bool exchange_rank(rank_env *env);

#endif

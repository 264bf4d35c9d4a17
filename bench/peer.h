/* What the MPI programs beside Ferry share: options, the same drawn routing and rows as `ferry bench`, timing, checking, JSON.
 * The exchange is RANK's: a token's row goes once to each rank that has one of its experts; rows lie ordered by source rank,
 * then token; combine returns one row for each and sums them in float. */
#ifndef FERRY_BENCH_PEER_H
#define FERRY_BENCH_PEER_H

#include "draw.h"
#include <mpi.h>
#include <stdbool.h>

typedef struct peer_copy {
    int rank, at; /* goes to `rank`, as this rank's at-th row there */
} peer_copy;

typedef struct peer {
    int tokens, hidden, topk, experts, seed, iters, warmup, own; /* own: place in mpi|direct */
    double skew;
    bool check;
    const char *json;
    int rank, ranks;
    size_t row_bytes;
    uint16_t *rows, *result; /* [tokens, hidden] bf16 */
    int *first;              /* [tokens + 1] token t's copies: copy[first[t]] .. */
    peer_copy *copy;
    int *sent, *sent_start;         /* [ranks] rows to each rank, and their prefix sums */
    int *received, *received_start; /* [ranks] rows from each rank, and where they begin */
    int *begin;                     /* [ranks] where this rank's rows begin at each rank */
    int received_rows;
} peer;

typedef struct peer_program {
    const char *name, *summary;
    bool (*open)(peer *p);
    void (*dispatch)(peer *p);
    void (*combine)(peer *p);
    void (*close)(peer *p);
    uint16_t *(*arrived)(peer *p);  /* the received rows */
    uint16_t *(*returned)(peer *p); /* where the experts write theirs, slot for slot */
} peer_program;

int peer_main(int argc, char **argv, const peer_program *program);

/* out = the sum of `count` bf16 rows, in float, rounded once; at the speed of the machine's vectors. */
void peer_sum(uint16_t *out, const uint16_t *const *rows, int count, int hidden);

/* Memory aligned to pages and touched; NULL when there is none. */
void *peer_alloc(size_t bytes);

#endif

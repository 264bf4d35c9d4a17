/* Reads a routing trace: one JSON object a line, as `ferry bench --routes` takes it. Only what the tests need of it: the
 * numbers behind "topk_ids" and "topk_weights" of the lines of one layer, and "num_experts" of the meta line. */
#ifndef FERRY_TESTS_RANKS_TRACE_H
#define FERRY_TESTS_RANKS_TRACE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct trace {
    int experts, topk;
    int64_t tokens;
    int64_t *idx;   /* [tokens, topk] */
    float *weights; /* [tokens, topk] */
} trace;

/* false: why says what is wrong with which line. */
bool trace_read(const char *path, int layer, trace *t, char *why, int why_size);
void trace_free(trace *t);

#endif

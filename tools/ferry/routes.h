/* Routing traces (*.routes.jsonl): one JSON object a line,
 *     {"type": "meta", "num_experts": 64, "top_k": 8, ...}
 *     {"type": "route", "layer": 0, "topk_ids": [7, 6, ...], "topk_weights": [0.12, ...], ...}
 * Other types and members are passed over. */
#ifndef FERRY_TOOL_ROUTES_H
#define FERRY_TOOL_ROUTES_H

#include "ferry/ferry.h"
#include <stdbool.h>

enum {
    FE_ROUTES_LINE_MAX = 1 << 20, /* bytes of the longest line */
    FE_ROUTES_EXPERT_MAX = 1 << 20,
    FE_ROUTES_WHY = 256
};

typedef enum fe_routes_kind {
    FE_ROUTES_BAD,
    FE_ROUTES_OTHER, /* empty, or an object of another type */
    FE_ROUTES_META,
    FE_ROUTES_ROUTE
} fe_routes_kind;

typedef struct fe_routes_line {
    fe_routes_kind kind;
    int experts;                   /* META: num_experts, or 0 */
    int layer;                     /* ROUTE: 0 when not given */
    int topk;                      /* ROUTE: 1..FERRY_MAX_TOPK */
    int32_t ids[FERRY_MAX_TOPK];   /* -1..FE_ROUTES_EXPERT_MAX-1 */
    float weights[FERRY_MAX_TOPK]; /* 1 / topk when not given */
} fe_routes_line;

/* Parses one line of `length` bytes, with or without its line end; text needs no NUL and may hold anything. Pure. On
 * FE_ROUTES_BAD why[FE_ROUTES_WHY] has what is wrong with it. */
fe_routes_kind fe_routes_parse(const char *text, size_t length, fe_routes_line *line, char *why);

typedef struct fe_routes {
    int experts; /* of the meta line, or the highest id + 1 */
    int topk;    /* of the longest line; shorter ones are filled up with -1 and 0 */
    int layer;
    int tokens;
    int32_t *ids;   /* [tokens, topk] */
    float *weights; /* [tokens, topk] */
} fe_routes;

/* Reads the routes of one layer, or with layer < 0 of the first that occurs. At most `most` tokens. false: why has a sentence with
 * file and line. */
bool fe_routes_read(const char *path, int layer, int most, fe_routes *trace, char *why);
void fe_routes_free(fe_routes *trace);

#endif

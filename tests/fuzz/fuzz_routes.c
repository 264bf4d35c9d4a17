/* libFuzzer target: the parser of routing traces, fed any bytes as one line. What it accepts must be in range. */
#include "routes.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool good) {
    if (!good) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static fe_routes_line line;
    char why[FE_ROUTES_WHY];
    fe_routes_kind kind = fe_routes_parse((const char *)data, size, &line, why);
    require(kind == line.kind);
    require((kind == FE_ROUTES_BAD) == (why[0] != 0));
    if (kind == FE_ROUTES_META) require(line.experts >= 0 && line.experts <= FE_ROUTES_EXPERT_MAX);
    if (kind != FE_ROUTES_ROUTE) return 0;
    require(line.topk >= 1 && line.topk <= FERRY_MAX_TOPK && line.layer >= 0);
    for (int i = 0; i < line.topk; i++) {
        require(line.ids[i] >= -1 && line.ids[i] < FE_ROUTES_EXPERT_MAX);
        require(line.weights[i] >= -3.1e38f && line.weights[i] <= 3.1e38f);
    }
    return 0;
}

#include "group/calls.h"
#include "watch/calls.h"

#include <stdio.h>

#define ABOUT_BITS 56

void fe_group_calls(const ferry_group *g, fe_call call, uint64_t about) {
    const uint64_t mask = ((uint64_t)1 << ABOUT_BITS) - 1;
    if (g->engine.watch.describe) fe_calls_note(&g->engine.heap, (uint64_t)call << ABOUT_BITS | (about & mask));
}

static void describe_route(uint64_t kind, char *text, size_t size) {
    static const char *const layouts[] = {"no layout", "RANK", "EXPERT", "?", "SLOTS", "?", "?", "?"};
    snprintf(text, size, "a route (%s, %s, top-%d%s%s%s%s%s%s)", layouts[kind >> FE_KIND_LAYOUT & 7],
             kind >> FE_KIND_MODE & 1 ? "LATENCY" : "THROUGHPUT", (int)(kind >> FE_KIND_TOPK & 127),
             kind >> FE_KIND_PACKED & 1 ? ", packed" : "", kind >> FE_KIND_OVERFLOW & 1 ? ", dropping" : "",
             kind >> FE_KIND_WEIGHTS & 1 ? ", weights" : "", kind >> FE_KIND_COUNTS & 1 ? ", counts exchanged" : "",
             kind >> FE_KIND_RENORMALISE & 1 ? ", renormalised" : "",
             kind >> FE_KIND_ORDER & 1 ? ", summed by choice" : "");
}

void fe_call_describe(uint64_t call, char *text, size_t size) {
    uint64_t about = call & (((uint64_t)1 << ABOUT_BITS) - 1);
    switch ((fe_call)(call >> ABOUT_BITS)) {
    case FE_CALL_ROUTE: describe_route(about, text, size); return;
    case FE_CALL_DISPATCH: snprintf(text, size, "a dispatch of route %llu", (unsigned long long)about); return;
    case FE_CALL_COMBINE: snprintf(text, size, "a combine of route %llu", (unsigned long long)about); return;
    case FE_CALL_MEETING: snprintf(text, size, "%s", fe_meeting_name(about)); return;
    }
    snprintf(text, size, "nothing known");
}

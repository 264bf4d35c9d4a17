#include "group/calls.h"
#include "watch/calls.h"

#include <stdio.h>

#define ABOUT_BITS 56

void fe_group_calls(const ferry_group *g, fe_call call, uint64_t about) {
    const uint64_t mask = ((uint64_t)1 << ABOUT_BITS) - 1;
    if (g->engine.watch.describe) fe_calls_note(&g->engine.heap, (uint64_t)call << ABOUT_BITS | (about & mask));
}

/* The bits of fe_route_kind. */
static void describe_route(uint64_t kind, char *text, size_t size) {
    static const char *const layouts[] = {"no layout", "RANK", "EXPERT", "?", "SLOTS", "?", "?", "?"};
    snprintf(text, size, "a route (%s, %s, top-%d%s%s%s%s%s%s)", layouts[kind & 7],
             kind >> 3 & 1 ? "LATENCY" : "THROUGHPUT", (int)(kind >> 7 & 127), kind >> 5 & 1 ? ", packed" : "",
             kind >> 4 & 1 ? ", dropping" : "", kind >> 6 & 1 ? ", weights" : "",
             kind >> 14 & 1 ? ", counts exchanged" : "", kind >> 15 & 1 ? ", renormalised" : "",
             kind >> 16 & 1 ? ", summed by choice" : "");
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

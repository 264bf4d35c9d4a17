/* Drawing, printing, reading and shrinking of cases. */
#include "ranks/case.h"
#include "random.h"
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

static int64_t pick_log(uint64_t *state, int64_t low, int64_t high) {
    return pick_small(state, low, high, 80);
}

static void draw_shape(xcase *c, uint64_t *s) {
    c->ranks = chance(s, 10) ? pick(s, 9, 16) : pick_log(s, 1, 8);
    c->threads = pick(s, 1, 2);
    c->experts = pick_log(s, 1, 300);
    c->copies = chance(s, 25);
    c->tokens = pick_log(s, 1, 200);
    c->fill = chance(s, 40) ? 0 : chance(s, 90) ? pick(s, 1, 2) : 3;
    c->topk = chance(s, 10) ? pick(s, 1, 64) : pick_log(s, 1, 12);
    c->spread = chance(s, 50) ? 0 : pick(s, 1, 3);
    c->none = chance(s, 30) ? pick(s, 1, 100) : 0;
    c->idx64 = pick(s, 0, 1);
    c->strided = chance(s, 30);
    c->weights = pick(s, 0, 1);
    c->columns = chance(s, 10) ? pick_log(s, 1, 2048) * 8 : pick_log(s, 1, 100) * 8;
}

static void draw_format(xcase *c, uint64_t *s) {
    static const ferry_dtype dtypes[] = {FERRY_BYTES, FERRY_BF16, FERRY_FP16, FERRY_FP32, FERRY_E4M3};
    c->dtype = chance(s, 40) ? FERRY_BF16 : dtypes[pick(s, 0, 4)];
    c->cast = c->dtype == FERRY_BF16 && chance(s, 50) ? pick(s, 1, 3) : 0;
    c->scales = chance(s, 40) ? pick(s, 1, 64) : 0;
    c->layout = (int64_t)1 << pick(s, 0, 2);
    c->mode = pick(s, 0, 1);
    c->align = chance(s, 50) ? (chance(s, 50) ? (int64_t)1 << pick(s, 1, 7) : pick(s, 0, 20)) : 0;
    c->expert_cap = chance(s, 20) ? pick_log(s, 1, 400) : 0;
    c->rank_cap = chance(s, 20) ? pick_log(s, 1, 2000) : 0;
    c->drop = chance(s, 80);
    c->in_type = pick(s, FERRY_BF16, FERRY_FP32);
    c->out_type = pick(s, FERRY_BF16, FERRY_FP32);
}

xcase case_draw(uint64_t seed, bool processes) {
    xcase c = {0};
    uint64_t s = seed;
    c.seed = (int64_t)seed;
    c.processes = processes;
    draw_shape(&c, &s);
    draw_format(&c, &s);
    c.out = pick(&s, 0, 2);
    c.back = pick(&s, 0, 3);
    c.slack = chance(&s, 30) ? pick(&s, 0, 2) * 16 + pick(&s, 0, 1) * 4 : 0;
    c.weighted = pick(&s, 0, 2);
    c.bias = chance(&s, 30) ? pick(&s, 1, 2) : 0;
    c.grad = chance(&s, 30);
    c.special = chance(&s, 10);
    c.stream = pick(&s, 0, 1);
    c.split = chance(&s, 40);
    c.rounds = chance(&s, 50) ? 1 : pick(&s, 2, CASE_ROUNDS);
    c.skip_topk = chance(&s, 15);
    c.zero_pad = chance(&s, 40);
    c.packed = chance(&s, 40);
    c.lost = chance(&s, 15) ? pick(&s, 1, 2) : 0;
    c.alive = pick(&s, 0, 1);
    c.renorm = pick(&s, 0, 1);
    c.order = chance(&s, 40);
    case_fix(&c);
    return c;
}

static void clamp(int64_t *value, int64_t low, int64_t high) {
    if (*value < low) *value = low;
    if (*value > high) *value = high;
}

size_t case_in_bytes(const xcase *c) {
    return (size_t)c->columns * ferry_dtype_bytes((ferry_dtype)c->dtype);
}
size_t case_back_bytes(const xcase *c) {
    return (size_t)c->columns * ferry_dtype_bytes((ferry_dtype)c->in_type);
}

/* Row slots of all ranks together, at worst: what a case costs in memory and time. */
static int64_t case_slots(const xcase *c) {
    int64_t sources = c->ranks * c->tokens;
    if (c->layout == FERRY_LAYOUT_SLOTS) return sources * c->experts * (c->copies ? 2 : 1);
    if (c->layout == FERRY_LAYOUT_RANK) return sources * (c->mode == FERRY_LATENCY ? c->ranks : 1);
    return sources * (c->topk < c->experts ? c->topk : c->experts) + c->experts * c->align;
}

void case_fix(xcase *c) {
    clamp(&c->ranks, 1, CASE_RANKS / ranks_hosts() * ranks_hosts());
    c->ranks = ranks_even((int)c->ranks);
    clamp(&c->threads, 1, 2);
    clamp(&c->experts, 1, 4096);
    clamp(&c->topk, 1, FERRY_MAX_TOPK);
    clamp(&c->columns, 1, 16384);
    clamp(&c->rounds, 1, CASE_ROUNDS);
    if (c->layout != FERRY_LAYOUT_EXPERT) c->align = c->zero_pad = 0;
    if (c->layout == FERRY_LAYOUT_RANK) c->expert_cap = 0;
    if (c->layout == FERRY_LAYOUT_SLOTS) c->rank_cap = 0;
    if (c->mode != FERRY_LATENCY || c->layout == FERRY_LAYOUT_EXPERT) c->packed = 0;
    if (c->layout != FERRY_LAYOUT_RANK) c->order = 0;
    if (c->dtype != FERRY_BF16) c->cast = 0;
    int64_t unit = c->dtype == FERRY_BYTES || c->dtype == FERRY_E4M3 ? 16 : 8; /* rows of 16 bytes' multiples */
    if (c->dtype == FERRY_FP32 && c->in_type == FERRY_FP32) unit = 4;
    c->columns = (c->columns + unit - 1) / unit * unit;
    if (c->cast) c->scales = 0;
    clamp(&c->scales, 0, (c->columns + 127) / 128);
    if (c->back == 0 && (c->out != 0 || c->cast || c->dtype != c->in_type)) c->back = 1;
    if (c->weighted == 1 && !c->weights) c->weighted = 2;
    clamp(&c->lost, 0, ranks_hosts() > 1 ? 0 : c->ranks - 1); /* agreements are held on one host */
    if (!c->lost) c->alive = 0;
    /* 6 MB of rows and a million choices keep a case below some ten milliseconds. */
    int64_t bytes = c->columns * (c->dtype == FERRY_FP32 || c->in_type == FERRY_FP32 ? 4 : 2);
    while (c->tokens > 1 && (case_slots(c) * bytes > 6000000 || c->tokens * c->topk * c->ranks * c->experts > 4000000))
        c->tokens /= 2;
    clamp(&c->tokens, 1, 100000);
}

void case_print(const xcase *c, char text[CASE_TEXT]) {
    int used = 0;
    text[0] = 0;
#define CASE_FIELD(name, smallest)                                                                     \
    if (c->name != 0 && used < CASE_TEXT)                                                              \
        used += snprintf(text + used, (size_t)(CASE_TEXT - used), "%s%s=%lld", used ? " " : "", #name, \
                         (long long)c->name);
    CASE_FIELDS(CASE_FIELD)
#undef CASE_FIELD
}

bool case_parse(const char *text, xcase *c) {
    memset(c, 0, sizeof *c);
    while (*(text += strspn(text, " \n"))) {
        size_t name = strcspn(text, "=");
        if (!text[name]) return false;
        int64_t *field = NULL;
#define CASE_FIELD(known, smallest) \
    if (strlen(#known) == name && strncmp(text, #known, name) == 0) field = &c->known;
        CASE_FIELDS(CASE_FIELD)
#undef CASE_FIELD
        char *end;
        if (!field) return false;
        *field = strtoll(text + name + 1, &end, 10);
        text = end;
    }
    case_fix(c);
    return true;
}

static const struct shrinkable {
    size_t offset;
    int64_t smallest;
} shrinkables[] = {
#define CASE_FIELD(name, smallest) {offsetof(xcase, name), smallest},
    CASE_FIELDS(CASE_FIELD)
#undef CASE_FIELD
};

/* One pass over the fields: each is first set to its smallest, then halved towards it. */
static bool shrink_pass(xcase *c, bool (*fails)(const xcase *c), int64_t deadline) {
    bool smaller = false;
    for (size_t i = 0; i < sizeof shrinkables / sizeof *shrinkables; i++) {
        int64_t smallest = shrinkables[i].smallest;
        if (smallest < 0) continue;
        for (int attempt = 0; attempt < 2 && ranks_now_ms() < deadline; attempt++) {
            xcase less = *c;
            int64_t *field = (int64_t *)(void *)((char *)&less + shrinkables[i].offset);
            if (*field == smallest) break;
            *field = attempt == 0 ? smallest : smallest + (*field - smallest) / 2;
            case_fix(&less);
            if (memcmp(&less, c, sizeof less) == 0 || !fails(&less)) continue;
            *c = less;
            smaller = true;
            attempt = 0;
        }
    }
    return smaller;
}

void case_shrink(xcase *c, bool (*fails)(const xcase *c), int seconds) {
    int64_t deadline = ranks_now_ms() + (int64_t)seconds * 1000;
    while (ranks_now_ms() < deadline && shrink_pass(c, fails, deadline)) {
    }
}

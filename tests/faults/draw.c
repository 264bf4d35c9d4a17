/* A plan from a seed. */
#include "faults/plan.h"
#include "random.h"
#include <stdio.h>

#define WORST_PAUSE_MS 150 /* of a deadline of 600 and more */

/* What is carried: any layout, mode, cast, placement; small, since the waiting is what is tested. */
static void draw_case(plan *p, uint64_t *s) {
    p->c = case_draw(next(s) >> 24, true);
    xcase *c = &p->c;
    c->lost = c->alive = 0; /* that is the fault's business */
    c->threads = 1;
    c->tokens = pick(s, 1, 24);
    c->columns = pick(s, 1, 6) * 64;
    if (c->experts > 32) c->experts = pick(s, 1, 32);
    if (c->topk > 8) c->topk = pick(s, 1, 8);
    if (c->scales > 4) c->scales = 4;
    if (c->fill == 3) c->fill = 0;
    if (p->hosts > 1) c->rounds = 1;
}

/* A call of the step; which there are depends on the case. */
static const char *draw_call(const plan *p, uint64_t *s, bool making) {
    static const char *const whole[] = {"route_create", "dispatch", "combine"}, *const halves[] = {
                                                                                    "route_create", "dispatch_send",
                                                                                    "dispatch_recv", "combine_send",
                                                                                    "combine_recv"};
    if (making && chance(s, 15)) return "group_create";
    if (chance(s, 5)) return "barrier";
    return p->c.split ? halves[pick(s, 0, 4)] : whole[pick(s, 0, 2)];
}

static void at_call(plan *p, uint64_t *s, bool making) {
    snprintf(p->call, sizeof p->call, "%s", draw_call(p, s, making));
    if (strcmp(p->call, "group_create") == 0) p->step = 0;
    if (strcmp(p->call, "barrier") == 0) p->step = p->steps - 1;
    if (p->c.rounds > 1 && (strncmp(p->call, "dispatch", 8) == 0 || strncmp(p->call, "combine", 7) == 0))
        p->nth = (int)pick(s, 0, p->c.rounds - 1);
}

/* At a call, some time after it, or in the middle of telling the others something. */
static void at_any_moment(plan *p, uint64_t *s) {
    static const char *const notes[] = {"COUNTS", "COUNTED", "READY", "ROWS", "OFFER", "PULLED"};
    if (chance(s, 35)) {
        snprintf(p->note, sizeof p->note, "%s", notes[pick(s, 0, 5)]);
        p->nth = (int)pick(s, 0, p->c.rounds - 1);
        return;
    }
    at_call(p, s, true);
    if (chance(s, 60)) p->after_us = pick_small(s, 1, p->hosts > 1 ? 40000 : 8000, 85);
}

static void draw_wrong(plan *p, uint64_t *s) {
    static const char *const others[] = {"nothing",      "barrier",  "heap_alloc", "allgather",
                                         "route_create", "dispatch", "combine"};
    at_call(p, s, false);
    if (strcmp(p->call, "barrier") == 0) {
        snprintf(p->detail, sizeof p->detail, "%s", others[pick(s, 2, 3)]);
        return;
    }
    do snprintf(p->detail, sizeof p->detail, "%s", others[pick(s, 0, 6)]);
    while (strncmp(p->call, p->detail, strlen(p->detail)) == 0);
}

/* Details that a call can differ in, and what the case must be like for them. */
static void draw_difference(plan *p, uint64_t *s) {
    static const struct {
        const char *call, *detail;
    } ways[] = {{"group_create", "hidden"},
                {"group_create", "experts"},
                {"group_create", "max_tokens"},
                {"group_create", "heap_bytes"},
                {"group_create", "max_topk"},
                {"route_create", "topk"},
                {"route_create", "layout"},
                {"route_create", "mode"},
                {"route_create", "packed"},
                {"route_create", "topk_weights"},
                {"route_create", "rank_capacity"},
                {"dispatch", "columns"},
                {"dispatch", "dtype"},
                {"dispatch", "cast"},
                {"dispatch", "skip_topk"},
                {"dispatch", "scales"},
                {"combine", "columns"},
                {"combine", "dtype"},
                {"combine", "weights"}};
    int way = (int)pick(s, 0, (int64_t)(sizeof ways / sizeof *ways) - 1);
    bool half = p->c.split && way > 10;
    snprintf(p->call, sizeof p->call, "%s%s", ways[way].call, half ? "_send" : "");
    snprintf(p->detail, sizeof p->detail, "%s", ways[way].detail);
    if (strcmp(p->call, "group_create") == 0) p->step = 0;
    xcase *c = &p->c; /* views and tensors of the caller's, so that the difference is all that is wrong */
    c->out = 0;
    c->back = 3;
    c->bias = 0;
    c->grad = 0;
    c->fill = 0;
    c->none = 0;
    c->weights = 1;
    c->dtype = c->in_type = c->out_type = FERRY_BF16;
    c->cast = c->scales = 0;
    c->columns = 128;
    c->rank_cap = c->expert_cap = 0;
    c->copies = 0;
    if (c->topk < 2) c->topk = 2;
    if (c->tokens < 4) c->tokens = 4;
    if (strcmp(p->detail, "rank_capacity") == 0 && c->layout == FERRY_LAYOUT_SLOTS) c->layout = FERRY_LAYOUT_RANK;
    if (strcmp(p->detail, "packed") == 0) {
        c->mode = FERRY_LATENCY;
        c->layout = chance(s, 50) ? FERRY_LAYOUT_RANK : FERRY_LAYOUT_SLOTS;
    }
}

static fault draw_fault(const plan *p, uint64_t *s) {
    static const fault often[] = {
        FAULT_kill,   FAULT_kill,      FAULT_kill,        FAULT_kill,     FAULT_stop,  FAULT_pause,  FAULT_delay,
        FAULT_stuck,  FAULT_leave,     FAULT_abort,       FAULT_wrong,    FAULT_wrong, FAULT_differ, FAULT_differ,
        FAULT_memory, FAULT_file_size, FAULT_descriptors, FAULT_full_shm, FAULT_flip,  FAULT_flip,   FAULT_cut};
    static const fault far[] = {FAULT_kill,  FAULT_kill, FAULT_stop, FAULT_pause,
                                FAULT_delay, FAULT_shut, FAULT_hole, FAULT_hole};
    return p->hosts > 1 ? far[pick(s, 0, 7)] : often[pick(s, 0, 20)];
}

plan plan_draw(uint64_t seed) {
    uint64_t s = seed * 0x9e3779b97f4a7c15u + 1;
    plan p = {.seed = (int64_t)seed};
    snprintf(p.name, sizeof p.name, "drawn %llu", (unsigned long long)seed);
    p.hosts = chance(&s, 12) ? 2 : 1;
    plan_environment(p.hosts);
    p.ranks = p.hosts > 1 ? 4 : (int)pick(&s, 2, 5);
    p.steps = p.hosts > 1 ? 2 : (int)pick(&s, 1, PLAN_STEPS);
    p.deadline_ms = p.hosts > 1 ? 1000 : 600;
    p.victim = (int)pick(&s, 0, p.ranks - 1);
    p.step = (int)pick(&s, 0, p.steps - 1);
    draw_case(&p, &s);
    p.fault = draw_fault(&p, &s);
    switch (p.fault) {
    case FAULT_kill:
    case FAULT_stop: at_any_moment(&p, &s); break;
    case FAULT_pause:
        at_any_moment(&p, &s);
        p.amount = pick(&s, 1, WORST_PAUSE_MS);
        break;
    case FAULT_delay:
        at_any_moment(&p, &s);
        p.amount = p.deadline_ms + 1500;
        break;
    case FAULT_stuck:
        at_call(&p, &s, false);
        p.amount = p.deadline_ms + 1500;
        break;
    case FAULT_wrong: draw_wrong(&p, &s); break;
    case FAULT_differ: draw_difference(&p, &s); break;
    case FAULT_memory: snprintf(p.call, sizeof p.call, "%s", chance(&s, 50) ? "group_create" : "route_create"); break;
    case FAULT_descriptors: /* of rank 0's process, the meeting place takes them */
        if (p.victim == 0) p.victim = 1;
        snprintf(p.call, sizeof p.call, "group_create");
        break;
    case FAULT_file_size: snprintf(p.call, sizeof p.call, "group_create"); break;
    case FAULT_flip:
    case FAULT_cut:
        snprintf(p.call, sizeof p.call, "group_create");
        snprintf(p.detail, sizeof p.detail, "%s", chance(&s, 60) ? "up" : "down");
        p.amount = pick(&s, 0, 900);
        break;
    case FAULT_shut:
    case FAULT_hole: /* connections are made by the first step */
        p.step = 1;
        do at_call(&p, &s, false);
        while (strcmp(p.call, "barrier") == 0);
        break;
    default: at_call(&p, &s, false); break;
    }
    if (strcmp(p.call, "group_create") == 0) p.step = 0;
    p.c.processes = 1;
    p.c.ranks = p.ranks;
    p.c.drop = 1;
    case_fix(&p.c);
    return p;
}

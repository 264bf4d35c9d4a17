/* One run: a life in peace, a life with the fault, and a life after it (in the same group by an agreement, or in a new one), each compared
 * with the oracle, on every rank. */
#include "faults/run.h"
#include "faults/act.h"
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define HARNESS_MS 15000 /* for the other ranks to come, when nothing of Ferry's is waited for */
#define LATE_MS    1000  /* that a call may take beyond the deadline */
#define LEAVE_MS   1000  /* that destroy may take; over several hosts, where a connection may hang, */
#define HANG_MS    2500  /* this: a second without anything that moves, 0.8 for good-byes */
#define RUN_MS     40000

typedef struct run {
    const plan *plan;
    case_data *data[PLAN_STEPS]; /* of the steps */
    case_data *
        after; /* of the life after it: of the group without the victim, or of a new one, of `alive` ranks on `hosts` hosts */
    int alive, hosts;
    int number_of[CASE_RANKS]; /* there; -1: not */
} run;

/* ---- the harness's own meetings: some ranks may be gone ---- */

static void nap_ms(int ms) {
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

/* The how-manieth meeting it is, is the same on all of them. */
static bool meet(rank_env *env, int which, int ranks) {
    volatile int64_t *word = ranks_words(env) + WORD_MET + which;
    __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
    for (int64_t deadline = ranks_now_ms() + HARNESS_MS; __atomic_load_n(word, __ATOMIC_SEQ_CST) < ranks; nap_ms(1))
        if (ranks_now_ms() > deadline) return ranks_fail(env, "waited too long for the other ranks in the harness");
    return true;
}

/* An id that the first of the ranks makes and all then have. */
static bool share_id(rank_env *env, int which, int number, int ranks, ferry_unique_id *id) {
    void *shared = (void *)(uintptr_t)(ranks_words(env) + WORD_ID + which * 16);
    if (number == 0) {
        RANK_OK(env, ferry_unique_id_create(id));
        memcpy(shared, id, sizeof *id);
    }
    if (!meet(env, 2 + which, ranks)) return false;
    memcpy(id, shared, sizeof *id);
    return true;
}

/* What the process holds when nothing is going on: the least of some looks, since a thread may just be leaving. */
static ranks_holds held_at_rest(void) {
    ranks_holds least = ranks_held();
    for (int i = 0; i < 6; i++) {
        nap_ms(8);
        ranks_holds now = ranks_held();
        if (now.fds < least.fds) least.fds = now.fds;
        if (now.threads < least.threads) least.threads = now.threads;
    }
    return least;
}

/* ---- judging ---- */

static bool ends(const char *text, const char *end, const char *with) {
    size_t n = strlen(with);
    return (size_t)(end - text) >= n && strncmp(end - n, with, n) == 0;
}

/* Is the rank named? waited: though it be the one that another is said to wait for. */
static bool names(const char *sentence, int rank, bool waited) {
    static const char *const by[] = {"waits itself for ", "for want of "};
    char text[24];
    int n = snprintf(text, sizeof text, "rank %d", rank);
    for (const char *at = sentence; (at = strstr(at, text)); at += n) {
        if (!waited && (ends(sentence, at, by[0]) || ends(sentence, at, by[1]))) continue;
        if (at[n] < '0' || at[n] > '9') return true;
    }
    return false;
}

/* Over several hosts a host is heard through one of its ranks: to others any of its ranks stands for the one that is lost, and to its own
 * neighbours whoever was to be heard through that one. Who waits for a neighbour that waits itself says for whom. */
static bool names_well(const plan *p, int rank, const char *sentence) {
    int each = p->ranks / p->hosts;
    if (names(sentence, p->victim, true)) return true;
    for (int r = 0; p->hosts > 1 && r < p->ranks; r++) {
        bool beside = r / each == p->victim / each, neighbour = rank / each == p->victim / each;
        if (r != rank && beside != neighbour && names(sentence, r, true)) return true;
    }
    return false;
}

/* In half of the runs who has failed asks for an agreement at once, and the others learn of it by that. */
static bool recalls(const plan *p) {
    return p->c.seed % 2 == 1;
}

static bool judge_sentence(rank_env *env, const plan *p, const verdict *v, const char *sentence) {
    if (!*sentence) return ranks_fail(env, "an error without a sentence");
    if (*p->says && !strstr(sentence, p->says)) return ranks_fail(env, "\"%s\" is not said: %s", p->says, sentence);
    if (v->named && !names_well(p, env->rank, sentence))
        return ranks_fail(env, "rank %d is not named: %s", p->victim, sentence);
    for (int r = 0; v->alone && r < p->ranks; r++)
        if (r != p->victim && r != env->rank && names(sentence, r, false))
            return ranks_fail(env, "rank %d is named, but it came: %s", r, sentence);
    return true;
}

/* A call has failed: in time, with the right status, and a sentence that names the right rank. What counts is the first error that the
 * group met, where the call tells only that there was one. */
static bool judge_failure(const exchange *x, const plan *p, int64_t took_ms) {
    rank_env *env = x->env;
    verdict v = plan_verdict(p);
    ferry_status status = x->status, first = x->group ? ferry_group_error(x->group) : FERRY_OK;
    const char *sentence = x->sentence;
    if (first != FERRY_OK) {
        status = first;
        sentence = ferry_last_error();
    }
    if (took_ms > p->deadline_ms + LATE_MS)
        return ranks_fail(env, "%s returned after %lld ms, the deadline is %d ms: %s", x->call, (long long)took_ms,
                          p->deadline_ms, sentence);
    if (plan_agrees(p) && recalls(p) && status == FERRY_ABORTED && strstr(sentence, "asks for an agreement"))
        return true;
    if (!v.may_fail) return ranks_fail(env, "%s gave %s: %s", x->call, ferry_status_name(status), sentence);
    if (status < 0 || status > 31 || !(v.statuses >> status & 1))
        return ranks_fail(env, "%s gave %s, which does not go with the fault: %s", x->call, ferry_status_name(status),
                          sentence);
    return judge_sentence(env, p, &v, sentence);
}

static bool judge_victim(const exchange *x, const act *a, bool passed, int64_t took_ms) {
    const plan *p = a->plan;
    rank_env *env = x->env;
    if (!passed && !*x->sentence && p->fault != FAULT_leave) return ranks_fail(env, "an error without a sentence");
    bool must_fail = p->fault == FAULT_differ || p->fault == FAULT_wrong || p->fault == FAULT_hole;
    if (passed && must_fail && !plan_keeps_to_itself(p)) return ranks_fail(env, "the victim's steps all passed");
    bool late = plan_lost(p) == VICTIM_LATE || p->fault == FAULT_pause;
    if (!passed && !late && took_ms > p->deadline_ms + LATE_MS)
        return ranks_fail(env, "%s returned after %lld ms", x->call, (long long)took_ms);
    if (a->refused != FERRY_OK && a->refused != FERRY_NOMEM && a->refused != FERRY_SYSTEM)
        return ranks_fail(env, "a call without means gave %s: %s", ferry_status_name(a->refused), ferry_last_error());
    return true;
}

/* ---- the lives ---- */

static void set_timeout(int ms) {
    char text[16];
    snprintf(text, sizeof text, "%d", ms);
    setenv("FERRY_TEST_TIMEOUT_MS", text, 1);
}

/* With a deadline that only a hang reaches. */
static bool live_in_peace(rank_env *env, const case_data *d, int number, const ferry_unique_id *id) {
    set_timeout(HARNESS_MS);
    exchange *x = exchange_begin(env, d, number);
    bool good = exchange_open(x, id) && exchange_step(x) && exchange_barrier(x);
    if (!good && x->group) ferry_group_abort(x->group);
    exchange_end(x);
    return good;
}

static bool take_steps(exchange *x, act *a, const run *r) {
    for (a->step = 0; a->step < r->plan->steps; a->step++) {
        a->seen = 0;
        exchange_use(x, r->data[a->step]);
        if (!exchange_step(x)) return false;
        exchange_done(x);
    }
    a->step--;
    return exchange_barrier(x);
}

static bool nobody_acts(exchange *x, const char *call, ferry_status *status) {
    (void)x, (void)call, (void)status;
    return false;
}

/* The group goes on without the victim, if that is lost: who is masked, and what a step then brings, is what the oracle says. One that is late
 * and alive is proposed, or its deadline is waited for. */
static bool agree(exchange *x, const run *r) {
    const plan *p = r->plan;
    bool all = recalls(p) || meet(x->env, 4, r->alive);
    x->before = NULL;
    x->careless = false;
    exchange_use(x, r->after);
    if (!all || !exchange_lose(x)) return false;
    exchange_done(x);
    return exchange_step(x) && exchange_barrier(x);
}

static bool live_with_fault(rank_env *env, run *r, const ferry_unique_id *id, exchange **left) {
    const plan *p = r->plan;
    act a = {.plan = p, .env = env};
    bool victim = env->rank == p->victim;
    set_timeout(p->deadline_ms);
    exchange *x = *left = exchange_begin(env, r->data[0], env->rank);
    x->before = victim ? act_before : nobody_acts;
    x->hand = &a;
    x->steps = p->steps + 1;
    if (victim && plan_lost(p) == VICTIM_DEAD) ranks_doom(env);
    bool passed = exchange_open(x, id) && take_steps(x, &a, r);
    int64_t took = ranks_now_ms() - x->began_ms;
    bool left_it = victim && p->fault == FAULT_leave && !x->group;
    bool good = true;
    if (!passed && x->status == FERRY_OK && !left_it)
        good = false; /* what was delivered is wrong */
    else if (victim)
        good = judge_victim(x, &a, passed, took);
    else if (!passed)
        good = judge_failure(x, p, took);
    else if (!plan_verdict(p).may_pass)
        good = ranks_fail(env, "all steps passed, in spite of the fault");
    act_end(&a);
    if (good && plan_agrees(p) && r->number_of[env->rank] >= 0) {
        ranks_step(env, "going on by an agreement");
        good = agree(x, r);
    }
    int64_t leaving = ranks_now_ms();
    ranks_step(env, "leaving the group");
    exchange_close(x);
    if (good && ranks_now_ms() - leaving > (r->plan->hosts > 1 ? HANG_MS : LEAVE_MS))
        good = ranks_fail(env, "ferry_group_destroy took %lld ms", (long long)(ranks_now_ms() - leaving));
    x->hand = NULL;
    return good;
}

static bool live_on(rank_env *env, const run *r) {
    ferry_unique_id id;
    int number = r->number_of[env->rank];
    if (number < 0) return true;
    plan_environment(r->hosts);
    ranks_step(env, "the life after the fault");
    return share_id(env, 1, number, r->alive, &id) && live_in_peace(env, r->after, number, &id);
}

static bool fault_rank(rank_env *env) {
    run *r = env->arg;
    exchange *x = NULL;
    ferry_unique_id id;
    bool all = r->plan->ranks == r->alive;
    if (r->plan->fault == FAULT_full_shm && !fill_shm()) return ranks_fail(env, "/dev/shm could not be filled");
    if (!live_in_peace(env, r->data[0], env->rank, &env->id) || !meet(env, 0, env->ranks)) return false;
    ranks_holds before = held_at_rest();
    if (!share_id(env, 0, env->rank, env->ranks, &id)) return false;
    bool good = live_with_fault(env, r, &id, &x);
    exchange_end(x);
    ranks_step(env, "looking for leaks");
    /* A connection that a neighbour was just making anew when this rank left: libfabric 1.17 (tcp;ofi_rxm) has accepted it, and closes its
     * endpoint without it. */
    if (r->plan->fault == FAULT_shut) before.fds += r->plan->hosts - 1;
    if (!good || !ranks_no_leak(env, before)) return false;
    if (!all && r->number_of[env->rank] < 0) return true;
    if (plan_agrees(r->plan)) return true;
    return live_on(env, r) && meet(env, 1, r->alive) && ranks_no_leak(env, before);
}

/* ---- the run ---- */

static case_data *build(xcase c) {
    case_data *d = malloc(sizeof *d);
    if (!d) return NULL;
    case_fix(&c);
    if (case_build(&c, NULL, d)) return d;
    case_free(d);
    free(d);
    return NULL;
}

static bool prepare(run *r) {
    const plan *p = r->plan;
    bool good = true;
    plan_environment(p->hosts);
    for (int k = 0; k < p->steps; k++) {
        xcase c = p->c;
        c.again = k;
        good = (r->data[k] = build(c)) && good;
    }
    for (int i = 0; i < p->ranks; i++) {
        bool gone = i == p->victim && plan_lost(p) != NOBODY;
        r->number_of[i] = gone ? -1 : r->alive++;
    }
    r->hosts = r->alive % p->hosts == 0 ? p->hosts : 1;
    plan_environment(r->hosts);
    xcase c = p->c;
    c.again = p->steps;
    if (!plan_agrees(p))
        c.ranks = r->alive;
    else if (r->alive < p->ranks) {
        c.lost = 1;
        c.loser = p->victim + 1;
        c.alive = plan_lost(p) == VICTIM_LATE && p->fault != FAULT_leave && p->c.seed / 2 % 2;
    }
    good = (r->after = build(c)) && good;
    plan_environment(p->hosts);
    return good;
}

static void unmake(case_data *d) {
    if (d) case_free(d);
    free(d);
}

bool run_plan(const plan *p, char why[RANKS_WHY]) {
    run r = {.plan = p};
    bool good = prepare(&r);
    if (good)
        good = ranks_run(RANKS_PROCESSES, p->ranks, RUN_MS, fault_rank, &r, why);
    else
        snprintf(why, RANKS_WHY, "no memory for the run's data");
    for (int k = 0; k < PLAN_STEPS; k++) unmake(r.data[k]);
    unmake(r.after);
    return good;
}

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

const char *run_skips(const plan *p) {
    if (SANITIZED && p->fault == FAULT_memory) return "a sanitizer needs address space without end";
    if (p->fault == FAULT_full_shm && geteuid() != 0) return "a /dev/shm of one's own needs root";
    return NULL;
}

/* The victim: at the call, or the note, that the plan names, it does what the plan says. */
#include "faults/act.h"
#include "group/group.h"
#include "watch/snap.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static void nap_us(int64_t us) {
    struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    nanosleep(&t, NULL);
}

static void have_acted(const act *a) {
    ranks_words(a->env)[WORD_ACTED] = 1;
}

/* ---- signals ---- */

/* The kernel's own timer: it stops, ends and continues a process whatever its threads are doing. */
static void signal_after(int number, int64_t us) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = number};
    struct itimerspec when = {.it_value = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000 + 1}};
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || timer_settime(timer, 0, &when, NULL) != 0) abort();
}

static bool goes_on(const plan *p) {
    return p->fault == FAULT_pause || p->fault == FAULT_delay;
}

static void strike(act *a, int64_t after_us) {
    const plan *p = a->plan;
    int number = p->fault == FAULT_kill ? SIGKILL : SIGSTOP;
    have_acted(a);
    a->struck_ms = ranks_now_ms();
    if (goes_on(p)) signal_after(SIGCONT, after_us + p->amount * 1000);
    if (after_us)
        signal_after(number, after_us);
    else
        kill(getpid(), number);
}

/* ---- in the middle of a note ---- */

typedef struct ambush {
    act *act;
    const fe_heap *heap;
    fe_kind kind;
    int owner;
    uint64_t epoch;
} ambush;

static uint64_t told(const fe_heap *heap, int owner, fe_kind kind) {
    uint64_t most = 0;
    for (int half = 0; half < 2; half++) {
        uint64_t epoch = atomic_load(&fe_heap_cell(heap, owner, kind, half, heap->rank)->epoch);
        if (epoch > most) most = epoch;
    }
    return most;
}

static void *lie_in_wait(void *argument) {
    ambush *b = argument;
    while (told(b->heap, b->owner, b->kind) < b->epoch && !b->act->over) sched_yield();
    if (!b->act->over) strike(b->act, b->act->plan->after_us);
    free(b);
    return NULL;
}

/* The first that hears of it: others may then never. */
static int first_told(const fe_heap *heap) {
    for (int i = 1; i < heap->ranks; i++)
        if (fe_heap_near(heap, (heap->rank + i) % heap->ranks)) return (heap->rank + i) % heap->ranks;
    return heap->rank;
}

static void set_ambush(act *a, const exchange *x) {
    ambush *b = malloc(sizeof *b);
    int kind = 0;
    while (kind < FE_KINDS && strcmp(fe_kind_name(kind), a->plan->note) != 0) kind++;
    if (!b || kind == FE_KINDS) abort();
    *b = (ambush){.act = a, .heap = &x->group->engine.heap, .kind = (fe_kind)kind};
    b->owner = first_told(b->heap);
    b->epoch = told(b->heap, b->owner, b->kind) + 1 + (uint64_t)a->plan->nth;
    if (pthread_create(&a->lurker, NULL, lie_in_wait, b) != 0) abort();
    a->lurks = true;
}

/* ---- limits of the process ---- */

static int64_t pages_in_use(void) {
    long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%lld", &pages) != 1) abort();
    fclose(f);
    return pages;
}

static int lowest_free_descriptor(void) {
    int fd = dup(0);
    if (fd < 0) abort();
    close(fd);
    return fd;
}

static void limit(int what, rlim_t to) {
    struct rlimit now;
    if (getrlimit(what, &now) != 0) abort();
    now.rlim_cur = to < now.rlim_max ? to : now.rlim_max;
    if (setrlimit(what, &now) != 0) abort();
}

/* A little is left: stacks must be able to grow. */
#define SPARE_BYTES 131072

static void set_limit(const plan *p) {
    if (p->fault == FAULT_memory)
        limit(RLIMIT_AS, (rlim_t)pages_in_use() * (rlim_t)sysconf(_SC_PAGESIZE) + SPARE_BYTES);
    if (p->fault == FAULT_file_size) limit(RLIMIT_FSIZE, 4096);
    if (p->fault == FAULT_descriptors) limit(RLIMIT_NOFILE, (rlim_t)lowest_free_descriptor() + 1); /* the meeting's */
}

static void lift_limits(void) {
    struct rlimit now;
    static const int all[] = {RLIMIT_AS, RLIMIT_FSIZE, RLIMIT_NOFILE};
    for (int i = 0; i < 3; i++)
        if (getrlimit(all[i], &now) == 0) limit(all[i], now.rlim_max);
}

/* Makes the call itself, with too little of what it needs. A route that could not be made may be asked for again: nobody else has heard of
 * the first attempt. */
static bool starve(act *a, exchange *x, ferry_status *status) {
    bool making = x->group == NULL;
    set_limit(a->plan);
    *status = making ? ferry_group_create(&x->id, x->rank, x->c->ranks, &x->config, &x->group)
                     : ferry_route_create(x->group, &x->route_config, &x->route, x->stream);
    lift_limits();
    a->refused = *status;
    if (making || *status == FERRY_OK) return true;
    a->retried = true;
    return false;
}

/* ---- other calls ---- */

static void be_stuck(void *argument) {
    nap_us(*(const int64_t *)argument * 1000);
}

/* The last meeting is held without a stream. */
static void get_stuck(const act *a, exchange *x, bool meeting) {
    int64_t ms = a->plan->amount;
    int64_t *argument = exchange_own(x, sizeof *argument);
    *argument = ms;
    if (!x->stream || meeting || ferry_stream_call(x->stream, be_stuck, argument) != FERRY_OK) be_stuck(&ms);
}

/* In the place of the last meeting, which has no stream, without one, too. */
static ferry_status another(exchange *x, const char *name, ferry_stream *stream) {
    flight *f = &x->flight[0];
    void *memory = NULL;
    if (strcmp(name, "barrier") == 0) return ferry_barrier(x->group, stream);
    if (strcmp(name, "heap_alloc") == 0) return ferry_heap_alloc(x->group, 64, &memory);
    if (strcmp(name, "allgather") == 0) {
        char *all = exchange_own(x, (size_t)x->c->ranks * 8);
        return ferry_allgather(x->group, all, all, 8, stream);
    }
    if (strcmp(name, "route_create") == 0) {
        ferry_route *second; /* the group's, and gone with it */
        return ferry_route_create(x->group, &x->route_config, &second, stream);
    }
    if (strcmp(name, "dispatch") == 0 && x->route) {
        ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
        return ferry_dispatch(x->route, &f->in, &out, &f->options, stream);
    }
    if (strcmp(name, "combine") == 0 && x->route) {
        ferry_combine_in in = FERRY_COMBINE_IN_INIT;
        ferry_combine_out out = FERRY_COMBINE_OUT_INIT;
        ferry_status status = ferry_combine_buffer(x->route, FERRY_BF16, 16, &in.rows, NULL);
        out.rows = ferry_tensor_2d(exchange_own(x, (size_t)x->tokens * 32), FERRY_BF16, x->tokens, 16);
        return status == FERRY_OK ? ferry_combine(x->route, &in, &out, NULL, stream) : status;
    }
    return FERRY_OK; /* "nothing" */
}

static ferry_status leave(exchange *x) {
    exchange_close(x);
    return FERRY_ABORTED;
}

/* ---- the moment ---- */

static bool begin(act *a, exchange *x, const char *name, ferry_status *status) {
    const plan *p = a->plan;
    bool making = strcmp(name, "group_create") == 0;
    a->begun = true;
    if (p->fault <= FAULT_delay && p->fault != FAULT_none) {
        strike(a, p->after_us);
        return false;
    }
    have_acted(a);
    x->careless = p->fault == FAULT_wrong || p->fault == FAULT_differ;
    switch (p->fault) {
    case FAULT_stuck: get_stuck(a, x, strcmp(name, "barrier") == 0); break;
    case FAULT_leave: *status = leave(x); return true;
    case FAULT_abort: ferry_group_abort(x->group); break;
    case FAULT_wrong: *status = another(x, p->detail, strcmp(name, "barrier") == 0 ? NULL : x->stream); return true;
    case FAULT_differ:
        if (!act_differ(x, p->detail, making, strcmp(name, "route_create") == 0, strncmp(name, "dispatch", 8) == 0))
            ranks_fail(a->env, "%s has no %s that could differ", name, p->detail);
        break;
    case FAULT_memory:
    case FAULT_file_size:
    case FAULT_descriptors: return starve(a, x, status);
    case FAULT_flip:
    case FAULT_cut:
        a->middle = middle_open(&x->id, strcmp(p->detail, "up") == 0, p->amount, p->fault == FAULT_cut);
        break;
    case FAULT_shut:
    case FAULT_hole:
        if (sever_all(p->fault == FAULT_hole) == 0) ranks_fail(a->env, "no connection to another host was found");
        break;
    default: break;
    }
    return false;
}

/* A fault that waits for something that did not come (a note that this case does not know, a timer that is late) comes with the last
 * meeting, so that no run is without it. */
static bool last_chance(const act *a, const char *name) {
    const plan *p = a->plan;
    if (strcmp(name, "barrier") != 0 || a->step != p->steps - 1) return false;
    if (plan_lost(p) == VICTIM_DEAD) return true;
    return goes_on(p) && (!a->struck_ms || ranks_now_ms() < a->struck_ms + p->amount);
}

bool act_before(exchange *x, const char *call, ferry_status *status) {
    act *a = x->hand;
    const plan *p = a->plan;
    char name[32];
    if (strncmp(call, "ferry_", 6) != 0) return false;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(call + 6, "("), call + 6);
    if (last_chance(a, name)) {
        strike(a, 0);
        return false;
    }
    if (a->begun || a->step != p->step) return false;
    if (*p->note) {
        if (strcmp(name, "route_create") != 0) return false;
        a->begun = true;
        set_ambush(a, x);
        return false;
    }
    if (strcmp(name, p->call) != 0 || a->seen++ != p->nth) return false;
    return begin(a, x, name, status);
}

void act_end(act *a) {
    a->over = true;
    if (a->lurks) pthread_join(a->lurker, NULL);
    a->lurks = false;
    middle_close(a->middle);
    a->middle = NULL;
}

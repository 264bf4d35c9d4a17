#include "ranks/harness.h"
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A sanitizer's report must end the rank's process at once, so that it becomes that rank's failure. */
const char *__tsan_default_options(void);
const char *__ubsan_default_options(void);
const char *__tsan_default_options(void) {
    return "halt_on_error=1:second_deadlock_stack=1";
}
const char *__ubsan_default_options(void) {
    return "halt_on_error=1:print_stacktrace=1";
}

enum state { RUNNING = 0, PASSED = 1, FAILED = 2 };

#define WARM_MS 60000 /* for the device's start in all processes, before a run's own deadline begins */

typedef struct rank_slot {
    _Atomic int state;
    _Atomic int doomed;
    int order; /* of its failure among all: 1 is the first */
    pid_t pid;
    char step[128];
    char why[RANKS_WHY - 256];
} rank_slot;

typedef struct ranks_shared {
    _Atomic int id_ready; /* 1: id is set; -1: it could not be made */
    _Atomic int warm;     /* ranks whose device has started */
    _Atomic int met;      /* arrivals at ranks_meet so far */
    _Atomic int failures;
    ferry_unique_id id;
    rank_slot slot[RANKS_MAX];
    volatile int64_t words[RANKS_WORDS];
} ranks_shared;

struct desk;

typedef struct run {
    ranks_how how;
    int ranks;
    rank_fn function;
    void *arg;
    ranks_shared *shared;
    const struct desk *desk; /* of kept processes; NULL: the processes end with the run */
} run;

typedef struct rank_start {
    const run *run;
    int rank;
} rank_start;

int64_t ranks_now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void nap_us(long us) {
    struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    nanosleep(&t, NULL);
}

int64_t ranks_env_number(const char *name, int64_t fallback) {
    const char *text = getenv(name);
    return text && *text ? strtoll(text, NULL, 0) : fallback;
}

int ranks_hosts(void) {
    return (int)ranks_env_number("FERRY_HOSTS", 1);
}

int ranks_even(int ranks) {
    int hosts = ranks_hosts();
    return (ranks + hosts - 1) / hosts * hosts;
}

ferry_device ranks_device(void) {
    const char *name = getenv("FERRY_TEST_DEVICE");
    if (!name || !*name || strcmp(name, "cpu") == 0) return FERRY_CPU;
    if (strcmp(name, "cuda") == 0) return FERRY_CUDA;
    fprintf(stderr, "FERRY_TEST_DEVICE=%s: there are cpu and cuda\n", name);
    exit(2);
}

void *ranks_new(rank_env *env, size_t bytes) {
    if (env->owned_count == env->owned_room) {
        env->owned_room = env->owned_room * 2 + 16;
        env->owned = realloc(env->owned, (size_t)env->owned_room * sizeof *env->owned);
    }
    void *memory = env->owned ? fe_memory_new(bytes) : NULL;
    if (!memory) abort();
    memset(memory, 0, bytes);
    return env->owned[env->owned_count++] = memory;
}

/* Not after a failure: then a stream may still be at work on it. */
static void free_owned(rank_env *env) {
    for (int i = 0; i < env->owned_count; i++) fe_memory_free(env->owned[i]);
    free(env->owned);
}

bool ranks_fail(rank_env *env, const char *format, ...) {
    rank_slot *slot = &env->shared->slot[env->rank];
    if (slot->why[0]) return false;
    va_list args;
    va_start(args, format);
    vsnprintf(slot->why, sizeof slot->why, format, args);
    va_end(args);
    slot->order = atomic_fetch_add(&env->shared->failures, 1) + 1;
    return false;
}

void ranks_step(rank_env *env, const char *format, ...) {
    rank_slot *slot = &env->shared->slot[env->rank];
    va_list args;
    va_start(args, format);
    vsnprintf(slot->step, sizeof slot->step, format, args);
    va_end(args);
}

void ranks_doom(rank_env *env) {
    atomic_store(&env->shared->slot[env->rank].doomed, 1);
}

pid_t ranks_pid(rank_env *env, int rank) {
    return env->shared->slot[rank].pid;
}

volatile int64_t *ranks_words(rank_env *env) {
    return env->shared->words;
}

bool ranks_meet(rank_env *env) {
    int mine = atomic_fetch_add(&env->shared->met, 1);
    int wanted = (mine / env->ranks + 1) * env->ranks;
    int64_t deadline = ranks_now_ms() + 10000;
    while (atomic_load(&env->shared->met) < wanted) {
        if (ranks_now_ms() > deadline) return ranks_fail(env, "waited ten seconds for the other ranks in the harness");
        nap_us(100);
    }
    return true;
}

static bool get_id(rank_env *env) {
    ranks_shared *shared = env->shared;
    if (env->rank == 0) {
        bool ok = ferry_unique_id_create(&shared->id) == FERRY_OK;
        atomic_store(&shared->id_ready, ok ? 1 : -1);
        if (!ok) return ranks_fail(env, "ferry_unique_id_create: %s", ferry_last_error());
    }
    for (int64_t deadline = ranks_now_ms() + 10000; atomic_load(&shared->id_ready) == 0; nap_us(50))
        if (ranks_now_ms() > deadline) return ranks_fail(env, "rank 0 made no unique id within ten seconds");
    env->id = shared->id;
    return atomic_load(&shared->id_ready) == 1 || ranks_fail(env, "rank 0 could not make a unique id");
}

/* A GPU takes a part of a second to start in a process, and longer in many at once. No rank's function begins before all have it. */
static bool warm_up(rank_env *env) {
    ranks_shared *shared = env->shared;
    if (ranks_device() == FERRY_CPU) return true;
    ranks_step(env, "the start of its device");
    void *memory = fe_memory_device_new(1);
    if (!memory) return ranks_fail(env, "the device does not start: %s", fe_memory_trouble());
    fe_memory_device_free(memory);
    atomic_fetch_add(&shared->warm, 1);
    for (int64_t deadline = ranks_now_ms() + WARM_MS; atomic_load(&shared->warm) < env->ranks; nap_us(200))
        if (ranks_now_ms() > deadline || atomic_load(&shared->failures) > 0)
            return ranks_fail(env, "the device of another rank does not start");
    return true;
}

static void *rank_main(void *start) {
    const rank_start *s = start;
    ranks_shared *shared = s->run->shared;
    rank_env env = {.rank = s->rank, .ranks = s->run->ranks, .how = s->run->how, .arg = s->run->arg, .shared = shared};
    fe_memory_use(env.rank);
    ranks_step(&env, "the unique id");
    bool ok = warm_up(&env) && get_id(&env);
    if (ok) {
        ranks_step(&env, "its function");
        ok = s->run->function(&env);
        if (!ok) ranks_fail(&env, "failed without a sentence");
    }
    if (ok) free_owned(&env);
    atomic_store(&shared->slot[s->rank].state, ok ? PASSED : FAILED);
    return NULL;
}

/* One rank, or all of them as threads. */
static void serve(const run *r, int rank) {
    rank_start start[RANKS_MAX];
    pthread_t thread[RANKS_MAX];
    if (r->how == RANKS_PROCESSES) {
        r->shared->slot[rank].pid = getpid(); /* the parent may not have stored it yet */
        start[0] = (rank_start){r, rank};
        rank_main(&start[0]);
        return;
    }
    for (int i = 0; i < r->ranks; i++) {
        start[i] = (rank_start){r, i};
        if (pthread_create(&thread[i], NULL, rank_main, &start[i]) != 0) exit(3);
    }
    for (int i = 0; i < r->ranks; i++) pthread_join(thread[i], NULL);
}

static void begin_process(ranks_how how) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    fe_memory_choose(ranks_device(), how == RANKS_PROCESSES ? 1 : RANKS_MAX);
}

/* The body of a forked process. */
static _Noreturn void child(const run *r, int rank) {
    begin_process(r->how);
    serve(r, rank);
    exit(0);
}

/* ---- processes that are kept ---- */

typedef struct desk {            /* shared with them */
    _Atomic int turn[RANKS_MAX]; /* for each process: the number of the run that it is to take part in; -1: go home */
    int ranks;
    ranks_recipe recipe;
    _Alignas(16) uint8_t of[RANKS_RECIPE];
    _Atomic int done[RANKS_MAX]; /* the last turn that each process is through with */
    ranks_shared shared;
} desk;

static struct crew { /* one for threads, one for processes */
    desk *desk;
    int turn;
    pid_t owner, pid[RANKS_MAX]; /* pid 0: not there */
} crews[2];

static _Noreturn void work(ranks_how how, desk *d, int index, int turn) {
    begin_process(how);
    for (;;) {
        int now = atomic_load(&d->turn[index]);
        if (now < 0) exit(0);
        if (now == turn) {
            nap_us(100);
            continue;
        }
        turn = now;
        run r = {.how = how, .ranks = d->ranks, .function = d->recipe.function, .shared = &d->shared};
        r.arg = d->recipe.make(d->of);
        if (!r.arg) exit(4);
        serve(&r, index);
        d->recipe.unmake(r.arg);
        atomic_store(&d->done[index], turn);
    }
}

/* Has process p ended, or come to the end of the run? */
static bool has_ended(const run *r, pid_t *pid, int p, int *status) {
    if (waitpid(pid[p], status, WNOHANG) == pid[p]) {
        pid[p] = 0;
        return true;
    }
    *status = 0;
    return r->desk && atomic_load(&r->desk->done[p]) == atomic_load(&r->desk->turn[p]);
}

static void describe_end(char *text, size_t size, int status) {
    if (WIFSIGNALED(status))
        snprintf(text, size, "was ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(text, size, "ended with exit status %d", WEXITSTATUS(status));
}

/* The failure that came first: those of the other ranks are most often its consequences. To the end of why. */
static void tell_first_failure(const run *r, char *why) {
    const rank_slot *first = NULL;
    size_t used = strlen(why);
    int rank = 0;
    for (int i = 0; i < r->ranks; i++) {
        const rank_slot *slot = &r->shared->slot[i];
        if (slot->order == 0 || (first && slot->order > first->order)) continue;
        first = slot;
        rank = i;
    }
    if (first && used < RANKS_WHY)
        snprintf(why + used, RANKS_WHY - used, "%srank %d of %d: %s [step: %s]", used ? " " : "", rank, r->ranks,
                 first->why, first->step);
}

/* Judges the ranks of one process that has ended (all of them for threads). false with why empty: a rank reported a
 * failure of its own. */
static bool judge_end(const run *r, int first, int count, int status, char *why) {
    char end[128];
    describe_end(end, sizeof end, status);
    for (int i = first; i < first + count; i++)
        if (!atomic_load(&r->shared->slot[i].doomed) && atomic_load(&r->shared->slot[i].state) == FAILED) return false;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
    bool all_passed = true;
    int used = snprintf(why, RANKS_WHY, "the process %s;", end);
    for (int i = first; i < first + count; i++) {
        rank_slot *slot = &r->shared->slot[i];
        if (atomic_load(&slot->doomed)) {
            why[0] = 0;
            return true;
        }
        if (atomic_load(&slot->state) == PASSED) continue;
        all_passed = false;
        if (used < RANKS_WHY - 180)
            used += snprintf(why + used, (size_t)(RANKS_WHY - used), " rank %d in: %s;", i, slot->step);
    }
    if (all_passed) snprintf(why + used, (size_t)(RANKS_WHY - used), " after all its ranks had passed");
    return false;
}

static void name_hang(const run *r, int deadline_ms, char *why) {
    int used = snprintf(why, RANKS_WHY, "hang: after %d ms", deadline_ms);
    for (int i = 0; i < r->ranks && used < RANKS_WHY - 180; i++) {
        rank_slot *slot = &r->shared->slot[i];
        if (atomic_load(&slot->state) == RUNNING && !atomic_load(&slot->doomed))
            used += snprintf(why + used, (size_t)(RANKS_WHY - used), " rank %d is still in: %s;", i, slot->step);
    }
    tell_first_failure(r, why);
}

/* Only doomed ranks are left: they may be stopped, so they are ended from here. */
static bool only_doomed_left(const run *r, const bool *over, int processes) {
    for (int p = 0; p < processes; p++)
        if (!over[p] && !(r->how == RANKS_PROCESSES && atomic_load(&r->shared->slot[p].doomed))) return false;
    return true;
}

static void end_all(pid_t *pid, int processes) {
    for (int p = 0; p < processes; p++) {
        if (pid[p] <= 0) continue;
        kill(pid[p], SIGKILL);
        waitpid(pid[p], NULL, 0);
        pid[p] = 0;
    }
}

/* After a first failure the other ranks get a moment to end on their own, as a library with deadlines lets them. */
static bool supervise(const run *r, pid_t *pid, int processes, int deadline_ms, char *why) {
    int64_t start = ranks_now_ms(), deadline = start + deadline_ms;
    bool good = true, over[RANKS_MAX] = {false};
    for (int left = processes; left > 0;) {
        bool some = false;
        for (int p = 0; p < processes; p++) {
            int status;
            if (over[p] || !has_ended(r, pid, p, &status)) continue;
            over[p] = true;
            left--;
            some = true;
            if (good) good = judge_end(r, p, r->how == RANKS_PROCESSES ? 1 : r->ranks, status, why);
            if (!good && ranks_now_ms() + 2000 < deadline) deadline = ranks_now_ms() + 2000;
        }
        if (only_doomed_left(r, over, processes)) break;
        bool warming = ranks_device() != FERRY_CPU && atomic_load(&r->shared->warm) < r->ranks;
        if (good && warming && ranks_now_ms() < start + WARM_MS) deadline = ranks_now_ms() + deadline_ms;
        if (ranks_now_ms() > deadline) {
            if (good) name_hang(r, deadline_ms, why);
            good = false;
            break;
        }
        if (!some) nap_us(200);
    }
    if (!r->desk || !good) end_all(pid, r->desk ? RANKS_MAX : processes);
    if (!good && !why[0]) tell_first_failure(r, why);
    return good;
}

/* FERRY_TEST_RANKS. What is left out is said, once. */
static bool is_wanted(ranks_how how) {
    static const char *const names[] = {"threads", "processes"};
    static bool said;
    const char *only = getenv("FERRY_TEST_RANKS");
    if (!only || !*only || strcmp(only, names[how]) == 0) return true;
    if (!said) fprintf(stderr, "SKIP ranks as %s: FERRY_TEST_RANKS=%s\n", names[how], only);
    said = true;
    return false;
}

static bool can_run(int ranks, char *why) {
    why[0] = 0;
    if (ranks >= 1 && ranks <= RANKS_MAX) return true;
    snprintf(why, RANKS_WHY, "%d ranks: the harness takes 1..%d", ranks, RANKS_MAX);
    return false;
}

static void *share(size_t bytes, char *why) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) return memory;
    snprintf(why, RANKS_WHY, "mmap: %s", strerror(errno));
    return NULL;
}

bool ranks_run(ranks_how how, int ranks, int deadline_ms, rank_fn function, void *arg, char *why) {
    if (!can_run(ranks, why)) return false;
    if (!is_wanted(how)) return true;
    ranks_shared *shared = share(sizeof *shared, why);
    if (!shared) return false;
    run r = {.how = how, .ranks = ranks, .function = function, .arg = arg, .shared = shared};
    pid_t pid[RANKS_MAX] = {0};
    int processes = how == RANKS_PROCESSES ? ranks : 1;
    bool good = true;
    fflush(NULL); /* else the children would print the buffered text again */
    for (int p = 0; p < processes && good; p++) {
        pid[p] = fork();
        if (pid[p] == 0) child(&r, p);
        shared->slot[p].pid = pid[p];
        if (pid[p] < 0) {
            snprintf(why, RANKS_WHY, "fork: %s", strerror(errno));
            good = false;
        }
    }
    if (good)
        good = supervise(&r, pid, processes, deadline_ms, why);
    else
        end_all(pid, processes);
    munmap(shared, sizeof *shared);
    return good;
}

/* At the test's end. Kept processes go by themselves, as a GPU's driver likes it; who does not is ended. */
static void dismiss(void) {
    for (int how = 0; how < 2; how++) {
        struct crew *crew = &crews[how];
        if (!crew->desk || crew->owner != getpid()) continue;
        for (int p = 0; p < RANKS_MAX; p++) atomic_store(&crew->desk->turn[p], -1);
        for (int64_t deadline = ranks_now_ms() + 3000; ranks_now_ms() < deadline; nap_us(1000)) {
            int left = 0;
            for (int p = 0; p < RANKS_MAX; p++) {
                if (crew->pid[p] > 0 && waitpid(crew->pid[p], NULL, WNOHANG) == crew->pid[p]) crew->pid[p] = 0;
                left += crew->pid[p] > 0;
            }
            if (!left) break;
        }
        end_all(crew->pid, RANKS_MAX);
    }
}

static bool call_crew(struct crew *crew, ranks_how how, int processes, char *why) {
    if (!crew->desk) {
        crew->desk = share(sizeof *crew->desk, why);
        crew->owner = getpid();
        if (!crew->desk || atexit(dismiss) != 0) return false;
    }
    fflush(NULL);
    for (int p = 0; p < processes; p++) {
        if (crew->pid[p] > 0) continue;
        int seen =
            atomic_load(&crew->desk->turn[p]); /* before the fork: the next turn may come before the process looks */
        crew->pid[p] = fork();
        if (crew->pid[p] == 0) work(how, crew->desk, p, seen);
        if (crew->pid[p] > 0) continue;
        snprintf(why, RANKS_WHY, "fork: %s", strerror(errno));
        crew->pid[p] = 0;
        return false;
    }
    return true;
}

bool ranks_run_kept(ranks_how how, int ranks, int deadline_ms, const ranks_recipe *recipe, char *why) {
    if (!can_run(ranks, why)) return false;
    if (!is_wanted(how)) return true;
    if (ranks_device() == FERRY_CPU) {
        void *arg = recipe->make(recipe->of);
        bool good = arg && ranks_run(how, ranks, deadline_ms, recipe->function, arg, why);
        if (!arg) snprintf(why, RANKS_WHY, "no memory for the run's data");
        if (arg) recipe->unmake(arg);
        return good;
    }
    struct crew *crew = &crews[how];
    int processes = how == RANKS_PROCESSES ? ranks : 1;
    if (recipe->bytes > RANKS_RECIPE || !call_crew(crew, how, processes, why)) return false;
    desk *d = crew->desk;
    memset(&d->shared, 0, sizeof d->shared);
    memcpy(d->of, recipe->of, recipe->bytes);
    d->recipe = *recipe;
    d->ranks = ranks;
    crew->turn++;
    for (int p = 0; p < processes; p++) atomic_store(&d->turn[p], crew->turn);
    run r = {.how = how, .ranks = ranks, .shared = &d->shared, .desk = d};
    return supervise(&r, crew->pid, processes, deadline_ms, why);
}

ferry_group_config ranks_config(int experts, int hidden, int max_tokens, int max_topk) {
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    cfg.experts = experts;
    cfg.hidden = hidden;
    cfg.max_tokens = max_tokens;
    cfg.max_topk = max_topk;
    cfg.device = ranks_device();
    cfg.threads = 1;
    cfg.timeout_ms = 10000;
    return cfg;
}

bool ranks_group(rank_env *env, const ferry_group_config *cfg, ferry_group **group) {
    ranks_step(env, "ferry_group_create");
    RANK_OK(env, ferry_group_create(&env->id, env->rank, env->ranks, cfg, group));
    ranks_step(env, "its function");
    return true;
}

static int count_entries(const char *directory, const char *prefix) {
    DIR *d = opendir(directory);
    int n = 0;
    for (struct dirent *e; d && (e = readdir(d));) n += strncmp(e->d_name, prefix, strlen(prefix)) == 0;
    if (d) closedir(d);
    return n;
}

ranks_holds ranks_held(void) {
    ranks_holds h = {.fds = count_entries("/proc/self/fd", ""),
                     .threads = count_entries("/proc/self/task", ""),
                     .shm_files = count_entries("/dev/shm", "ferry")};
    FILE *f = fopen("/proc/self/maps", "r");
    char line[512];
    /* Private memory belongs to malloc and to thread stacks, which are kept for reuse; "s" marks a shared mapping. */
    while (f && fgets(line, sizeof line, f)) {
        char *mode = strchr(line, ' ');
        if (mode && mode[4] == 's') h.shared_maps++;
    }
    if (f) fclose(f);
    return h;
}

static void list_descriptors(char *text, size_t size) {
    for (int fd = 0; fd < 256; fd++) {
        char path[32], target[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, target, sizeof target);
        size_t used = strlen(text);
        if (n > 0) snprintf(text + used, size - used, " %.*s", (int)n, target);
    }
}

bool ranks_no_leak(rank_env *env, ranks_holds before) {
    ranks_holds now = ranks_held();
    int64_t deadline = ranks_now_ms() + 1000; /* a joined thread leaves /proc/self/task a moment after pthread_join */
    while ((now.threads > before.threads || now.fds > before.fds) && ranks_now_ms() < deadline) {
        nap_us(1000);
        now = ranks_held();
    }
    if (now.fds > before.fds) {
        char list[512] = "";
        list_descriptors(list, sizeof list);
        return ranks_fail(env, "%d file descriptors, %d before:%s", now.fds, before.fds, list);
    }
    if (now.threads > before.threads) return ranks_fail(env, "%d threads, %d before", now.threads, before.threads);
    if (now.shared_maps > before.shared_maps)
        return ranks_fail(env, "%d shared mappings, %d before", now.shared_maps, before.shared_maps);
    if (now.shm_files > before.shm_files)
        return ranks_fail(env, "%d files /dev/shm/ferry*, %d before", now.shm_files, before.shm_files);
    return true;
}

#include "ranks.h"
#include "base/os.h"
#include "boot/place.h"
#include "progress.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { RUNNING, PASSED, FAILED };
#define GRACE_MS 3000 /* for the other ranks to end by themselves after the first failure */

typedef struct fe_meeting {
    _Alignas(64) _Atomic uint32_t arrived; /* of the barrier's present round */
    _Alignas(64) _Atomic uint32_t round;
    _Alignas(64) _Atomic int id_ready; /* 1: id is set; -1: there will be none */
    _Atomic int first_failed;          /* rank + 1 */
    _Atomic int done, total;           /* progress */
    int64_t deadline_ns;
    int spin;
    ferry_unique_id id;
    struct {
        _Atomic int state;
        char why[FE_RANKS_WHY - 64];
    } rank[FE_RANKS_MAX];
} fe_meeting;

typedef struct job {
    const fe_ranks_config *config;
    fe_rank_fn fn;
    void *arg;
    fe_meeting *meeting;
} job;

typedef struct start {
    const job *job;
    int rank;
} start;

static void nap_ms(int ms) {
    struct timespec t = {.tv_nsec = ms * 1000000L};
    nanosleep(&t, NULL);
}

void *fe_shared_new(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void fe_shared_free(void *memory, size_t bytes) {
    if (memory) munmap(memory, bytes);
}

bool fe_rank_fail(fe_rank *self, const char *format, ...) {
    fe_meeting *m = self->meeting;
    char *why = m->rank[self->rank].why;
    if (*why) return false;
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof m->rank[0].why, format, args);
    va_end(args);
    int nobody = 0;
    atomic_compare_exchange_strong(&m->first_failed, &nobody, self->rank + 1);
    return false;
}

bool fe_rank_ok(fe_rank *self, ferry_status status, const char *call) {
    if (status == FERRY_OK) return true;
    return fe_rank_fail(self, "%.*s: %s: %s", (int)strcspn(call, "("), call, ferry_status_name(status),
                        ferry_last_error());
}

bool fe_rank_still(fe_rank *self, int turn) {
    fe_meeting *m = self->meeting;
    if (turn < m->spin) {
        fe_pause();
        return true;
    }
    sched_yield();
    if (turn % 64 != 0) return true;
    if (atomic_load_explicit(&m->first_failed, memory_order_relaxed)) return fe_rank_fail(self, "another rank failed");
    if (fe_now_ns() > m->deadline_ns) return fe_rank_fail(self, "the other ranks did not come before the deadline");
    return true;
}

bool fe_rank_barrier(fe_rank *self) {
    fe_meeting *m = self->meeting;
    if (self->launched) return fe_rank_ok(self, ferry_barrier(self->group, NULL), "ferry_barrier");
    uint32_t round = atomic_load_explicit(&m->round, memory_order_acquire);
    /* acq_rel: the last to arrive has seen what all others stored, and passes it on with the round. */
    if (atomic_fetch_add_explicit(&m->arrived, 1, memory_order_acq_rel) + 1 == (uint32_t)self->ranks) {
        atomic_store_explicit(&m->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&m->round, round + 1, memory_order_release);
        return true;
    }
    for (int turn = 0; atomic_load_explicit(&m->round, memory_order_acquire) == round; turn++)
        if (!fe_rank_still(self, turn)) return false;
    return true;
}

void fe_rank_progress(fe_rank *self, int done, int total) {
    if (self->rank != 0) return;
    atomic_store_explicit(&self->meeting->done, done, memory_order_relaxed);
    atomic_store_explicit(&self->meeting->total, total, memory_order_relaxed);
}

bool fe_rank_gather(fe_rank *self, void *all, size_t bytes) {
    if (!self->launched) return true;
    FE_RANK_OK(self, ferry_allgather(self->group, (char *)all + (size_t)self->rank * bytes, all, bytes, NULL));
    return true;
}

bool fe_rank_group(fe_rank *self, const ferry_group_config *config, ferry_group **group) {
    if (self->launched) {
        FE_RANK_OK(self, ferry_group_create_env(config, group));
        self->group = *group;
        return true;
    }
    FE_RANK_OK(self, ferry_group_create(&self->id, self->rank, self->ranks, config, group));
    return true;
}

/* Rank 0 makes the id in its own process: the thread at which the ranks meet must live as long as they need it. */
static bool get_id(fe_rank *self) {
    fe_meeting *m = self->meeting;
    if (self->rank == 0) {
        bool good = fe_rank_ok(self, ferry_unique_id_create(&m->id), "ferry_unique_id_create");
        atomic_store(&m->id_ready, good ? 1 : -1);
        if (!good) return false;
    }
    for (int turn = 0; atomic_load(&m->id_ready) == 0; turn++)
        if (!fe_rank_still(self, turn)) return false;
    self->id = m->id;
    return atomic_load(&m->id_ready) == 1 || fe_rank_fail(self, "rank 0 could not make a unique id");
}

static void *rank_main(void *argument) {
    const start *s = argument;
    const job *j = s->job;
    fe_rank self = {.rank = s->rank,
                    .ranks = j->config->ranks,
                    .processes = j->config->processes,
                    .arg = j->arg,
                    .meeting = j->meeting};
    fe_memory_use(self.rank);
    bool ok = get_id(&self) && j->fn(&self);
    if (!ok) fe_rank_fail(&self, "failed without a sentence");
    atomic_store(&j->meeting->rank[s->rank].state, ok ? PASSED : FAILED);
    return NULL;
}

static _Noreturn void child(const job *j, int rank) {
    static start starts[FE_RANKS_MAX];
    pthread_t thread[FE_RANKS_MAX];
    int ranks = j->config->ranks;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* no rank outlives the command */
    fe_memory_choose(j->config->device, j->config->processes ? 1 : ranks);
    if (j->config->processes) {
        starts[0] = (start){j, rank};
        rank_main(&starts[0]);
        exit(0);
    }
    for (int i = 0; i < ranks; i++) {
        starts[i] = (start){j, i};
        if (pthread_create(&thread[i], NULL, rank_main, &starts[i]) == 0) continue;
        fe_rank self = {.rank = i, .ranks = ranks, .meeting = j->meeting};
        fe_rank_fail(&self, "its thread could not be started");
        exit(1);
    }
    for (int i = 0; i < ranks; i++) pthread_join(thread[i], NULL);
    exit(0);
}

/* What a process that ended says about its ranks [first, first + count). */
static bool judge(const job *j, int first, int count, int status, char *why) {
    fe_meeting *m = j->meeting;
    int failed = atomic_load(&m->first_failed) - 1;
    if (failed >= 0) {
        snprintf(why, FE_RANKS_WHY, "rank %d of %d: %s", failed, j->config->ranks, m->rank[failed].why);
        return false;
    }
    if (WIFSIGNALED(status)) {
        snprintf(why, FE_RANKS_WHY, "%s %d was ended by signal %d (%s)",
                 j->config->processes ? "rank" : "the process of rank", first, WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
        return false;
    }
    for (int i = first; i < first + count; i++) {
        if (atomic_load(&m->rank[i].state) == PASSED) continue;
        snprintf(why, FE_RANKS_WHY, "rank %d ended early with exit status %d", i, WEXITSTATUS(status));
        return false;
    }
    if (WEXITSTATUS(status) == 0) return true;
    snprintf(why, FE_RANKS_WHY, "the process of rank %d ended with exit status %d after its work", first,
             WEXITSTATUS(status));
    return false;
}

static void end_all(pid_t *pid, int processes) {
    for (int p = 0; p < processes; p++) {
        if (pid[p] <= 0) continue;
        kill(pid[p], SIGKILL);
        waitpid(pid[p], NULL, 0);
    }
}

static void name_late(const job *j, char *why) {
    int used = snprintf(why, FE_RANKS_WHY, "%d ms passed, and still running:", j->config->deadline_ms);
    for (int i = 0; i < j->config->ranks && used < FE_RANKS_WHY - 16; i++)
        if (atomic_load(&j->meeting->rank[i].state) == RUNNING)
            used += snprintf(why + used, (size_t)(FE_RANKS_WHY - used), " rank %d", i);
}

static bool supervise(const job *j, pid_t *pid, int processes, char *why) {
    fe_meeting *m = j->meeting;
    fe_progress bar = {.action = j->config->action};
    int64_t deadline = m->deadline_ns;
    bool good = true;
    int left = processes;
    while (left > 0 && fe_now_ns() < deadline) {
        for (int p = 0; p < processes; p++) {
            int status;
            if (pid[p] <= 0 || waitpid(pid[p], &status, WNOHANG) != pid[p]) continue;
            pid[p] = 0;
            left--;
            if (!good) continue;
            good = judge(j, p, j->config->processes ? 1 : j->config->ranks, status, why);
            if (!good && fe_now_ns() + GRACE_MS * 1000000LL < deadline) deadline = fe_now_ns() + GRACE_MS * 1000000LL;
        }
        fe_progress_draw(&bar, atomic_load(&m->done), atomic_load(&m->total), NULL);
        if (left > 0) nap_ms(10);
    }
    fe_progress_end(&bar);
    if (left > 0 && good) name_late(j, why);
    return left == 0 && good;
}

static void on_deadline(int number) {
    static const char say[] = "ferry: the deadline has passed\n";
    ssize_t n = write(STDERR_FILENO, say, sizeof say - 1);
    (void)number;
    (void)n;
    _exit(1);
}

/* No child of this process does the work: some launchers know their ranks by their parent. What a crash becomes is the launcher's to say. */
static bool run_launched(const fe_ranks_config *config, fe_meeting *m, fe_rank_fn fn, void *arg, char *why) {
    fe_launch launch;
    if (fe_launch_read(&launch) != FERRY_OK) {
        snprintf(why, FE_RANKS_WHY, "%s", ferry_last_error());
        return false;
    }
    fe_rank self = {
        .rank = launch.rank, .ranks = launch.ranks, .processes = true, .launched = true, .arg = arg, .meeting = m};
    signal(SIGALRM, on_deadline);
    alarm((unsigned)(config->deadline_ms / 1000));
    bool good = fn(&self);
    alarm(0);
    if (!good) snprintf(why, FE_RANKS_WHY, "rank %d of %d: %s", self.rank, self.ranks, m->rank[self.rank].why);
    return good;
}

bool fe_ranks_run(const fe_ranks_config *config, fe_rank_fn fn, void *arg, char *why) {
    why[0] = 0;
    if (config->ranks < 1 || config->ranks > FE_RANKS_MAX) {
        snprintf(why, FE_RANKS_WHY, "%d ranks: this command takes 1..%d", config->ranks, FE_RANKS_MAX);
        return false;
    }
    fe_meeting *m = fe_shared_new(sizeof *m);
    if (!m) {
        snprintf(why, FE_RANKS_WHY, "mmap of %zu bytes: %s", sizeof *m, strerror(errno));
        return false;
    }
    m->deadline_ns = fe_now_ns() + config->deadline_ms * 1000000LL;
    m->spin = config->ranks <= fe_cores() ? 1000 : 0;
    if (config->launched) {
        bool good = run_launched(config, m, fn, arg, why);
        fe_shared_free(m, sizeof *m);
        return good;
    }
    job j = {config, fn, arg, m};
    pid_t pid[FE_RANKS_MAX] = {0};
    int processes = config->processes ? config->ranks : 1;
    bool good = true;
    fflush(NULL); /* else the children would print the buffered text again */
    for (int p = 0; p < processes && good; p++) {
        pid[p] = fork();
        if (pid[p] == 0) child(&j, p);
        if (pid[p] > 0) continue;
        snprintf(why, FE_RANKS_WHY, "fork for rank %d: %s", p, strerror(errno));
        good = false;
    }
    if (good) good = supervise(&j, pid, processes, why);
    end_all(pid, processes);
    fe_shared_free(m, sizeof *m);
    return good;
}

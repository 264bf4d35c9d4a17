/* Faults by plan: ranks as processes, one of which dies, stops, starves, errs or is cut off at a moment that a plan names. Every other one
 * must return in time with the right status and the right name, hold nothing, and go on without it; nothing that is delivered may be wrong.
 *
 *   faults DIRECTORY            the plans in it (*.json), and then drawn ones
 *   FERRY_FAULT_PLAN=FILE|JSON  only this plan, as a failure prints it
 *   FERRY_FAULT_RUNS=n          drawn plans (100)
 *   FERRY_FAULT_SEED=s          the first one's seed (1)
 *   FERRY_FAULT_JOBS=n          plans side by side (4): most of a run is waiting */
#include "faults/run.h"
#include <dirent.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define RUNS       100
#define JOBS       4
#define PLANS_MOST 256

/* What libfabric 1.17 keeps of a connection that was just made anew when its endpoint was closed (`shut`). */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libfabric.so.1";
}

typedef struct board { /* shared by the jobs */
    _Atomic int next, passed, failed, skipped;
    _Atomic int of[FAULT_KINDS];
} board;

static int named;
static plan plans[PLANS_MOST];

static char *read_file(const char *path) {
    FILE *f = fopen(path, "r");
    char *text = calloc(1, 1 << 16);
    if (f && text && fread(text, 1, (1 << 16) - 1, f) == 0) text[0] = 0;
    if (f) fclose(f);
    if (f) return text;
    free(text);
    return NULL;
}

static bool load(const char *path, plan *p) {
    char why[256], *text = read_file(path);
    bool good = text && plan_read(text, p, why, sizeof why);
    if (!good) fprintf(stderr, "%s: %s\n", path, text ? why : "cannot be read");
    free(text);
    const char *name = strrchr(path, '/');
    if (!*p->name) snprintf(p->name, sizeof p->name, "%.60s", name ? name + 1 : path);
    return good;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static bool load_all(const char *directory) {
    struct dirent **entries;
    int n = scandir(directory, &entries, NULL, by_name);
    bool good = n >= 0;
    for (int i = 0; i < n; i++) {
        char path[1024];
        size_t length = strlen(entries[i]->d_name);
        bool ours = length > 5 && strcmp(entries[i]->d_name + length - 5, ".json") == 0 && named < PLANS_MOST;
        snprintf(path, sizeof path, "%s/%s", directory, entries[i]->d_name);
        if (ours) good = load(path, &plans[named++]) && good;
        free(entries[i]);
    }
    if (n < 0) fprintf(stderr, "%s: cannot be read\n", directory);
    if (n >= 0) free(entries);
    return good;
}

static void carry_out(board *b, const plan *p) {
    char why[RANKS_WHY] = "";
    const char *skipped = run_skips(p);
    if (skipped) {
        if (p->seed < 0) printf("SKIP fault %s: %s\n", p->name, skipped);
        atomic_fetch_add(&b->skipped, 1);
        return;
    }
    bool good = run_plan(p, why);
    atomic_fetch_add(good ? &b->passed : &b->failed, 1);
    atomic_fetch_add(&b->of[p->fault], 1);
    if (good && p->seed >= 0) return;
    char *json = good ? NULL : plan_print(p);
    if (good)
        printf("ok   %s\n", p->name);
    else
        printf("FAIL %s (%s): %s\n  again: FERRY_FAULT_PLAN='%s'\n", p->name, plan_fault_name(p->fault), why, json);
    fflush(stdout);
    free(json);
}

static void work(board *b, int64_t seed, int runs) {
    for (int i; (i = atomic_fetch_add(&b->next, 1)) < named + runs;) {
        plan p = i < named ? plans[i] : plan_draw((uint64_t)(seed + i - named));
        carry_out(b, &p);
    }
}

/* Each job is a process of its own, since a run sets its environment. */
static bool work_side_by_side(board *b, int jobs, int64_t seed, int runs) {
    bool good = true;
    fflush(NULL);
    for (int j = 0; j < jobs; j++) {
        pid_t pid = fork();
        if (pid < 0) return false;
        if (pid) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        work(b, seed, runs);
        exit(0);
    }
    for (int status; wait(&status) > 0;) good = good && WIFEXITED(status) && WEXITSTATUS(status) == 0;
    return good;
}

int main(int argc, char **argv) {
    const char *one = getenv("FERRY_FAULT_PLAN");
    int64_t seed = ranks_env_number("FERRY_FAULT_SEED", 1), begun = ranks_now_ms();
    int runs = (int)ranks_env_number("FERRY_FAULT_RUNS", RUNS), jobs = (int)ranks_env_number("FERRY_FAULT_JOBS", JOBS);
    board *b = mmap(NULL, sizeof *b, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char why[256];
    if (b == MAP_FAILED) return 1;
    setenv("FERRY_TOUCH_MB", "1", 0);
    setenv("FI_OFI_RXM_BUFFER_SIZE", "512", 0); /* as the far tests */
    if (one) {
        runs = 0;
        named = 1;
        if (*one != '{' ? !load(one, plans) : !plan_read(one, plans, why, sizeof why)) {
            fprintf(stderr, "FERRY_FAULT_PLAN: %s\n", *one == '{' ? why : "no plan");
            return 1;
        }
    } else if (argc > 1 && !load_all(argv[1])) {
        return 1;
    }
    bool whole = work_side_by_side(b, jobs, seed, runs);
    printf("%d plans, %d of them drawn from seed %lld on: %d passed, %d failed, %d skipped, %lld ms\n ", named + runs,
           runs, (long long)seed, b->passed, b->failed, b->skipped, (long long)(ranks_now_ms() - begun));
    for (int f = 0; f < FAULT_KINDS; f++)
        printf(" %s %d%s", plan_fault_name((fault)f), b->of[f], f < FAULT_KINDS - 1 ? "," : "\n");
    return whole && b->failed == 0 ? 0 : 1;
}

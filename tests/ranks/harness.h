/* Runs one function on R ranks, as threads of one process or as a process each, and turns whatever happens to them - a
 * failed check, a crash, a hang - into one sentence. The ranks always live in processes of their own, forked from the
 * test, so that a hang can be ended and a crash does not take the test program along. Needs no test framework.
 *
 *   FERRY_TEST_DEVICE=cuda              ranks on the GPU; the test program itself never touches it
 *   FERRY_TEST_RANKS=threads|processes  only those */
#ifndef FERRY_TESTS_RANKS_HARNESS_H
#define FERRY_TESTS_RANKS_HARNESS_H

#include "memory.h"
#include <sys/types.h>

typedef enum ranks_how { RANKS_THREADS = 0, RANKS_PROCESSES = 1 } ranks_how;

#define RANKS_MAX     64
#define RANKS_WHY     1024
#define RANKS_DEFAULT 25000 /* ms: a deadline that only a hang reaches: two waits of a group, and more */

struct ranks_shared;

typedef struct rank_env {
    int rank, ranks;
    ranks_how how;
    ferry_unique_id id; /* made on rank 0 before the function starts */
    void *arg;          /* the same for all; a process sees the value it had at the start */
    struct ranks_shared *shared;
    void **owned; /* ranks_new's */
    int owned_count, owned_room;
} rank_env;

/* true: the rank's checks held. false: ranks_fail was called. */
typedef bool (*rank_fn)(rank_env *env);

/* Runs it. false: why has the sentence of the first failure, with the rank and the step that it was in. */
bool ranks_run(ranks_how how, int ranks, int deadline_ms, rank_fn function, void *arg, char *why);

/* What a run in processes that were started before is made from: plain bytes, copied to them. */
#define RANKS_RECIPE 1024
typedef struct ranks_recipe {
    rank_fn function;
    void *(*make)(const void *of); /* the argument, in each process; NULL: no memory */
    void (*unmake)(void *arg);
    const void *of;
    size_t bytes; /* at most RANKS_RECIPE */
} ranks_recipe;
/* ranks_run for many short runs: on a device whose start in a process is slow, processes are kept from run to run, until one fails. */
bool ranks_run_kept(ranks_how how, int ranks, int deadline_ms, const ranks_recipe *recipe, char *why);

/* FERRY_HOSTS: the pretend hosts that ranks are split over; 1: none. */
int ranks_hosts(void);
/* As many ranks, or the next number that the hosts can share. */
int ranks_even(int ranks);

/* FERRY_TEST_DEVICE. */
ferry_device ranks_device(void);
/* Memory for a tensor or for what a call of the library fills: it suits the device, and is freed when the rank's function has
 * returned. Zeroed. Never NULL. */
void *ranks_new(rank_env *env, size_t bytes);

/* Keeps the first sentence of this rank; returns false, so that checks end with `return ranks_fail(...)`. */
bool ranks_fail(rank_env *env, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* What the rank is about to do; named when the rank hangs or dies. */
void ranks_step(rank_env *env, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* This rank's process is about to die or to stop, on purpose: its end counts as success, and it is killed when all others
 * are done. Processes only. */
void ranks_doom(rank_env *env);
/* The process of a rank, for kill(2). */
pid_t ranks_pid(rank_env *env, int rank);
/* A meeting of all ranks that does not use the library under test. false when it took longer than ten seconds. */
bool ranks_meet(rank_env *env);
/* Words shared by all ranks, zero at the start. */
#define RANKS_WORDS 256
volatile int64_t *ranks_words(rank_env *env);

/* A config small enough for any test, on the device under test; threads = 1. */
ferry_group_config ranks_config(int experts, int hidden, int max_tokens, int max_topk);
/* The group of this run by its unique id; a failure is reported through ranks_fail. */
bool ranks_group(rank_env *env, const ferry_group_config *cfg, ferry_group **group);

/* What a process holds at the moment; a leak is a number that grew. */
typedef struct ranks_holds {
    int fds, threads, shared_maps, shm_files;
} ranks_holds;
ranks_holds ranks_held(void);
/* Fails, naming the number that grew, unless the process again holds no more than before. Threads get a second to end. */
bool ranks_no_leak(rank_env *env, ranks_holds before);

int64_t ranks_now_ms(void);
/* FERRY_TEST_... as a whole number. */
int64_t ranks_env_number(const char *name, int64_t fallback);

/* In a rank function: the check must hold, or the rank fails with the text. */
#define RANK_CHECK(env, condition)                                                                                \
    do {                                                                                                          \
        if (!(condition))                                                                                         \
            return ranks_fail((env), "%s:%d: does not hold: %s (last error: %s)", __FILE__, __LINE__, #condition, \
                              ferry_last_error());                                                                \
    } while (0)

#define RANK_STATUS(env, wanted, call)                                                                         \
    do {                                                                                                       \
        ferry_status rank_status_ = (call);                                                                    \
        if (rank_status_ != (wanted))                                                                          \
            return ranks_fail((env), "%s:%d: %s gave %s, not %s: %s", __FILE__, __LINE__, #call,               \
                              ferry_status_name(rank_status_), ferry_status_name(wanted), ferry_last_error()); \
    } while (0)

#define RANK_OK(env, call) RANK_STATUS(env, FERRY_OK, call)

/* In a cmocka test: runs the function and fails the test with the ranks' sentence. cmocka.h comes before this header. */
#define RANKS_ASSERT(how, ranks, function, arg)                                                                   \
    do {                                                                                                          \
        char ranks_why_[RANKS_WHY];                                                                               \
        if (!ranks_run((how), (ranks), RANKS_DEFAULT, (function), (arg), ranks_why_)) fail_msg("%s", ranks_why_); \
    } while (0)

#endif

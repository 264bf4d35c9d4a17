/* Starts the ranks of one job on this machine, as threads of one process or as processes, and watches over them.
 * Either way they run in forked children: a rank that crashes or hangs becomes a sentence, and nothing is left behind. */
#ifndef FERRY_TOOL_RANKS_H
#define FERRY_TOOL_RANKS_H

#include "memory.h"

enum { FE_RANKS_MAX = 64, FE_RANKS_WHY = 768 };

struct fe_meeting;

typedef struct fe_rank { /* what a rank is given */
    int rank, ranks;
    bool processes;
    bool launched;      /* by a launcher: there is no memory that all ranks share */
    ferry_group *group; /* launched: by which they meet, from fe_rank_group on */
    ferry_unique_id id;
    void *arg; /* the caller's: as it was before the ranks started; shared only as far as it is fe_shared_new's */
    struct fe_meeting *meeting;
} fe_rank;

/* One rank's work. false: it failed, after fe_rank_fail. */
typedef bool (*fe_rank_fn)(fe_rank *self);

typedef struct fe_ranks_config {
    int ranks;          /* 1..FE_RANKS_MAX */
    bool processes;     /* else threads */
    bool launched;      /* this process is one of the ranks, which a launcher started */
    int deadline_ms;    /* for everything */
    const char *action; /* what the progress bar says; NULL: no bar */
    ferry_device device;
} fe_ranks_config;

/* Runs fn on every rank; launched, on this one, and in this process. false: why[FE_RANKS_WHY] has the first failure in a sentence. */
bool fe_ranks_run(const fe_ranks_config *config, fe_rank_fn fn, void *arg, char *why);

/* Zeroed memory that ranks started later share with the caller and each other; taken only as far as it is touched. */
void *fe_shared_new(size_t bytes);
void fe_shared_free(void *memory, size_t bytes);

/* For use inside a rank. */
/* Says why this rank failed (the first sentence stays) and returns false: `return fe_rank_fail(self, ...)`. */
bool fe_rank_fail(fe_rank *self, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* true for FERRY_OK, else fe_rank_fail with the call's name and ferry_last_error(). */
bool fe_rank_ok(fe_rank *self, ferry_status status, const char *call);
/* Waits for all ranks; false when one of them failed or the deadline passed. Made for timing: ranks leave it together. */
bool fe_rank_barrier(fe_rank *self);
/* One turn of a wait of the caller's own, `turn` counted from 0: pauses, later yields. false, after fe_rank_fail: give up. */
bool fe_rank_still(fe_rank *self, int turn);
/* ferry_group_create with this job's id, or _env. Only one at a time when launched. */
bool fe_rank_group(fe_rank *self, const ferry_group_config *config, ferry_group **group);
/* all[ranks][bytes], of which each rank has filled its own piece: afterwards every rank has all. Shared memory is so already. */
bool fe_rank_gather(fe_rank *self, void *all, size_t bytes);
/* For the progress bar; rank 0's counts. */
void fe_rank_progress(fe_rank *self, int done, int total);

#define FE_RANK_OK(self, call)                                \
    do {                                                      \
        if (!fe_rank_ok((self), (call), #call)) return false; \
    } while (0)

#endif

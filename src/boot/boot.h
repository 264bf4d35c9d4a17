/* How the ranks of a group meet: one primitive, allgather, over a TCP hub (unique id, launcher environment) or the
 * caller's callback. Used only while a group is made. Every wait is bounded by the deadline given at join. */
#ifndef FERRY_BOOT_BOOT_H
#define FERRY_BOOT_BOOT_H

#include "base/status.h"
#include <stdbool.h>

typedef struct fe_boot fe_boot;

/* Connects to the id's hub. FERRY_INVALID (not an id), FERRY_REFUSED (wrong secret), FERRY_MISMATCH (rank taken twice, or
 * ranks differs: names both), FERRY_TIMEOUT, FERRY_SYSTEM. */
ferry_status fe_boot_join(const ferry_unique_id *id, int rank, int ranks, int timeout_ms, fe_boot **boot);
ferry_status fe_boot_callback(ferry_allgather_fn allgather, void *context, int rank, int ranks, fe_boot **boot);

/* What the launcher's environment says; see place.h. FERRY_INVALID when no launcher is recognised, or a variable is no number. */
typedef struct fe_launch fe_launch;
ferry_status fe_launch_read(fe_launch *launch);
/* This process is one of several that a launcher started: fe_launch_read has something to read. Not so in the shell script of a Slurm
 * job, where Slurm's rank variables are set although nothing was launched yet. */
bool fe_launch_found(void);
/* Rank 0 runs the hub: at the place's address where that is a number or localhost, at all of this host's where it is a name. */
ferry_status fe_boot_environment(const fe_launch *launch, int timeout_ms, fe_boot **boot);

/* all[ranks][bytes], in rank order. FERRY_MISMATCH when ranks pass different sizes; FERRY_TIMEOUT names the ranks that are
 * missing. bytes at most FE_BOOT_MAX. */
#define FE_BOOT_MAX 65536
ferry_status fe_boot_allgather(fe_boot *boot, const void *mine, void *all, size_t bytes);

/* [collective] A rank that has failed tells the others now, not by its absence later. status: how this rank fares; its own failure is
 * returned with its sentence, another's as "rank 3 could not DOING". */
ferry_status fe_boot_agree(fe_boot *boot, ferry_status status, const char *doing);

/* What a rank says of another, where a group meets again and not all may come. Of itself: FE_SAY_WAIT, it is of the group and is asked. */
typedef enum fe_say {
    FE_SAY_WAIT, /* it is waited for */
    FE_SAY_OUT,  /* it is not, and is refused when it comes */
    FE_SAY_AWAY, /* the same, unless another rank says ... */
    FE_SAY_BACK  /* ... that it is to come */
} fe_say;
/* The first of a meeting, in place of the first allgather: waits for all who are waited for, or until the first deadline passes. who[ranks]:
 * 1 for each that has come in time; only those take part in what follows. unit: [ranks] ranks of one number come together, or none of them.
 * all: zeros of those who have not come. FERRY_REFUSED: this rank is not of those who have. */
ferry_status fe_boot_muster(fe_boot *boot, const uint8_t *say, const int *unit, const void *mine, uint8_t *who,
                            void *all, size_t bytes);

/* The numeric address that this rank is reached at by whoever reaches the meeting place; "" where the caller meets by himself. */
#define FE_BOOT_ADDRESS 64
void fe_boot_address(const fe_boot *boot, char address[FE_BOOT_ADDRESS]);

/* Leaves; never waits for others. NULL is allowed. */
void fe_boot_leave(fe_boot *boot);

#endif

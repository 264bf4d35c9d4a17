/* What a rank's flight recorder and cells said at one moment, out of memory that is written meanwhile and is not trusted: it may be another
 * process's. Nothing in it is used as a size, an index or an address before it has been copied and checked. */
#ifndef FERRY_WATCH_SNAP_H
#define FERRY_WATCH_SNAP_H

#include "watch/recorder.h"

typedef struct fe_snap_step {
    uint64_t number, route, bytes;
    bool live; /* it goes on */
    char text[FE_STEP_TEXT + 1];
    int lane, half, status;
    int kind[2]; /* fe_kind awaited before and after the move; -1: nothing */
    uint64_t epoch[2];
    int64_t at[FE_STEP_STAMPS]; /* by fe_now_ns of this machine; 0: not there */
    int late_rank;              /* for whom it waited longest past spinning; -1: it did not */
    int64_t late_ns;
} fe_snap_step;

typedef struct fe_snap_peer {
    bool near, column, masked;
    uint64_t rows_sent, bytes_sent, rows_received, bytes_received, rows_returned, bytes_returned, rows_dropped;
    uint64_t waits, seen;
    int64_t wait_ns;
} fe_snap_peer;

typedef struct fe_snap {
    uint64_t group;
    int rank, ranks, pid;
    int64_t taken_ns, began_ns;
    bool failed, one_host;
    int why;            /* an fe_why, or another number */
    fe_snap_step *step; /* ascending by number */
    int steps;
    fe_snap_peer *peer; /* [ranks] */
    uint64_t *cell;     /* [FE_KINDS][2][ranks] epochs; NULL: not in host memory */
    bool verdict;       /* a wait failed: in this step, for this epoch, then; peer.seen has what had come */
    char failed_step[FE_STEP_TEXT + 1];
    uint64_t failed_epoch;
    int64_t failed_ns;
} fe_snap;

/* memory[bytes]: a rank's memfd. false, and *why a few words: it is none, or not of this version. */
bool fe_snap_take(const void *memory, size_t bytes, fe_snap *snap, const char **why);
void fe_snap_free(fe_snap *snap);
/* Of a recorder that is trusted. */
void fe_snap_peer_of(const fe_recorder *recorder, int rank, fe_snap_peer *peer);

/* Where a step that goes on is. */
typedef enum fe_where { FE_WAITS_BEFORE, FE_MOVES, FE_WAITS_AFTER } fe_where;
fe_where fe_snap_where(const fe_snap_step *step);
int64_t fe_snap_since(const fe_snap_step *step); /* it has been there since then; 0: not known */
/* Epoch of `peer`'s note of this kind at this rank, and does such a note come from there at all? */
uint64_t fe_snap_cell(const fe_snap *snap, int kind, int half, int peer);
bool fe_snap_hears(const fe_snap *snap, int kind, int peer);

/* "READY"; "?" for a number that is no kind. */
const char *fe_kind_name(int kind);

#endif

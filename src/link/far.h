/* How bytes reach a rank on another host: orders go into a ring, a thread (the proxy) gives them to the network, and hears what
 * arrives. There is one for each rank, and none where all ranks are near each other. docs/protocol.md, "Several hosts". */
#ifndef FERRY_LINK_FAR_H
#define FERRY_LINK_FAR_H

#include "boot/boot.h"
#include "link/near.h"
#include "link/room.h"

typedef struct fe_far fe_far;

/* To a host that is masked nothing is said. Opened anew after an agreement that is held over several hosts.
 *
 * [collective over boot] Opens the network, tells and learns addresses, starts the proxy. before: what has failed here already, of which
 * the others hear, and which is returned; its sentence is the thread's last error. */
ferry_status fe_far_open(fe_boot *boot, const fe_heap *heap, const fe_watch *watch, ferry_status before, fe_far **far);
/* Sends what was ordered, as long as it moves and no longer than the group's timeout; says good-bye, and waits a little for the column's.
 * NULL is allowed. */
void fe_far_close(fe_far *far);

/* ---- the protocol's: to the column. Any thread. Errors: FERRY_TIMEOUT, FERRY_ABORTED ---- */

/* A piece of data for a note of this kind and half that is told later: `bytes` from `local` in this rank's space to `remote` in that of
 * its column's rank on `host`. Both stay untouched until the note has been heard. */
ferry_status fe_far_push(fe_far *far, int host, fe_kind kind, int half, uint64_t local, uint64_t remote, size_t bytes);
/* The note, to the column on `host`; -1: on all others. relay: what was pushed with it and is to go to each rank there. */
ferry_status fe_far_tell(fe_far *far, int host, fe_kind kind, int half, uint64_t epoch, const uint64_t *word,
                         uint64_t relay_at, uint64_t relay_bytes);

/* ---- the caller's: to any far rank. Any thread ---- */

ferry_status fe_far_put(fe_far *far, int rank, uint64_t at, const void *from, size_t bytes);
/* Without a copy: from this rank's own space, which stays untouched until fe_far_quiet. */
ferry_status fe_far_put_own(fe_far *far, int rank, uint64_t at, uint64_t from, size_t bytes);
ferry_status fe_far_get(fe_far *far, int rank, uint64_t at, void *to, size_t bytes);
/* One word, after all puts so far of this rank; *old: what it held. */
ferry_status fe_far_word(fe_far *far, int rank, fe_errand errand, uint64_t at, uint64_t value, uint64_t expected,
                         uint64_t *old);
/* All puts so far are in their places. */
ferry_status fe_far_quiet(fe_far *far);

/* A kernel that will have orders (link/kernel_order.h), which cannot wake the proxy, is about to run. */
void fe_far_stir(fe_far *far);

/* For fe_watch.trouble: what the network says of a rank whose connection it has given up, or NULL. */
const char *fe_far_trouble(const void *far, int rank);
/* FERRY_OK, or the first thing that went wrong on the network. */
ferry_status fe_far_check(fe_far *far);
/* FERRY_FABRIC_PARTS, the same on every rank; 0: by size. */
int fe_far_parts(const fe_far *far);
/* Bytes written to the rank so far, those of the protocol included. */
uint64_t fe_far_bytes(const fe_far *far, int rank);

#endif

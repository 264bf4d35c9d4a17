/* What the tests of agreements and of joining share: groups of a few ranks, ranks that go, and what must hold without them. */
#ifndef FERRY_TESTS_RANKS_LOST_H
#define FERRY_TESTS_RANKS_LOST_H

#include "ranks/exchange.h"

#define RANKS  4
#define VICTIM 1
#define BRIEF  2500  /* ms: a deadline that is meant to pass ... */
#define LONG   15000 /* ... and one that is not */

void nap_ms(int ms);
bool open_group(rank_env *env, int timeout_ms, ferry_group **g);
/* mask: bit r for each rank that must be masked, and no other. */
bool check_mask(rank_env *env, const ferry_group *g, unsigned mask);
/* ferry_group_agree, and its outcome. */
bool agree(rank_env *env, ferry_group *g, unsigned mask);
/* Everything but rows works among the ranks that are left: meetings, allocation, puts. */
/* Destroys the group. Ranks that are threads of one process share a GPU's context, in which freeing memory waits for all kernels: they come
 * together for it (docs/gpu.md). */
bool part(rank_env *env, ferry_group *g);

bool check_space(rank_env *env, ferry_group *g, ferry_stream *stream);

typedef enum end { LEAVES, KILLED, STOPPED } end;
/* LEAVES: the rank returns at once, having left the group; KILLED, STOPPED: its process. */
bool be_gone(rank_env *env, end how, ferry_group *g);

typedef struct story { /* three steps of one group: with all, without some, with all */
    case_data with, without;
} story;

#endif

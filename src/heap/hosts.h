/* Which ranks can map each other's memory. Ranks of one host are near each other, ranks of different hosts far. The ranks with the same
 * position on their hosts are a *column*: what crosses the network goes from a rank to its own column, and is handed on near. */
#ifndef FERRY_HEAP_HOSTS_H
#define FERRY_HEAP_HOSTS_H

#include "base/pure.h"
#include "base/status.h"
#include <stdbool.h>

struct fe_boot; /* not by its header: kernels, which are C++, know fe_hosts through a pass */

typedef struct fe_hosts {
    int count;        /* 1: all ranks are near each other */
    int each;         /* ranks of a host: the same for all hosts */
    int mine, index;  /* this rank's host, and its position there */
    int on_machine;   /* ranks on this rank's machine, itself included */
    bool one_machine; /* all ranks are on one kernel: hosts are pretended, and the loopback reaches everybody */
    int *host_of;     /* [ranks] hosts are numbered by their lowest rank */
    int *index_of;    /* [ranks] position on its host, by ascending rank */
    int *rank_at;     /* [count][each] */
} fe_hosts;

/* [collective over boot] FERRY_MISMATCH (FERRY_HOSTS differs), FERRY_UNSUPPORTED (hosts of unequal size). */
ferry_status fe_hosts_find(struct fe_boot *boot, int rank, int ranks, fe_hosts *hosts);
/* All ranks on one host. */
ferry_status fe_hosts_single(int rank, int ranks, fe_hosts *hosts);
void fe_hosts_free(fe_hosts *hosts);

FE_PURE int fe_hosts_rank(const fe_hosts *hosts, int host, int index) {
    return hosts->rank_at[host * hosts->each + index];
}
FE_PURE bool fe_hosts_near(const fe_hosts *hosts, int rank) {
    return hosts->host_of[rank] == hosts->mine;
}
/* The rank here through which the far rank is heard. */
FE_PURE int fe_hosts_gateway(const fe_hosts *hosts, int far) {
    return fe_hosts_rank(hosts, hosts->mine, hosts->index_of[far]);
}

#endif

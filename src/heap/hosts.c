#include "heap/hosts.h"
#include "base/env.h"
#include "boot/boot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

enum { SPLIT_WRONG = -1, PLACE_UNKNOWN = -2 };

typedef struct address {
    char kernel[48]; /* boot id */
    uint64_t pids, net;
    int64_t
        split; /* FERRY_HOSTS; SPLIT_WRONG: its text is no such number; PLACE_UNKNOWN: the rest could not be learnt */
} address;

static uint64_t namespace_of(const char *path) {
    struct stat about = {0};
    return stat(path, &about) == 0 ? (uint64_t)about.st_ino : 0;
}

/* Two ranks can map each other's memfd when they run on one kernel and see one another's process ids. Ranks in different network
 * namespaces of one kernel are taken for different hosts: they have different addresses, as hosts have. */
static address own_address(int64_t split) {
    address a = {.split = split};
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    /* Where there is none, all go without; for want of a descriptor or memory a rank would seem to be on a host of its own. */
    if (!file && errno != ENOENT && errno != EACCES && split > 0) a.split = PLACE_UNKNOWN;
    if (file) {
        if (!fgets(a.kernel, sizeof a.kernel, file)) a.kernel[0] = '\0';
        fclose(file);
    }
    a.kernel[strcspn(a.kernel, "\n")] = '\0';
    a.pids = namespace_of("/proc/self/ns/pid");
    a.net = namespace_of("/proc/self/ns/net");
    return a;
}

static bool same_machine(const address *a, const address *b) {
    return strcmp(a->kernel, b->kernel) == 0 && a->pids == b->pids && a->net == b->net;
}

/* Ranks on r's machine, and those of them below r. */
static int machine_ranks(const address *all, int ranks, int r, int *below) {
    int count = 0;
    *below = 0;
    for (int i = 0; i < ranks; i++) {
        if (!same_machine(&all[i], &all[r])) continue;
        *below += i < r;
        count++;
    }
    return count;
}

/* A machine's ranks, in `split` blocks of equal size. */
static ferry_status number_hosts(const address *all, int ranks, fe_hosts *h, int *piece) {
    int64_t split = all[0].split;
    h->count = 0;
    for (int r = 0; r < ranks; r++) {
        int below, count = machine_ranks(all, ranks, r, &below);
        if (all[r].split == PLACE_UNKNOWN)
            return fe_fail(FERRY_SYSTEM, "rank %d could not learn what host it is on (/proc/sys/kernel/random/boot_id)",
                           r);
        if (all[r].split < 0) return fe_fail(FERRY_INVALID, "FERRY_HOSTS of rank %d is no number of hosts", r);
        if (all[r].split != split)
            return fe_fail(FERRY_MISMATCH, "FERRY_HOSTS is %lld on rank %d, %lld on rank 0", (long long)all[r].split, r,
                           (long long)split);
        if (count % split != 0)
            return fe_fail(
                FERRY_UNSUPPORTED,
                "FERRY_HOSTS=%lld: the %d ranks of rank %d's machine do not divide into %lld hosts of equal size",
                (long long)split, count, r, (long long)split);
        piece[r] = (int)(below / (count / split));
        h->host_of[r] = -1;
        for (int i = 0; i < r && h->host_of[r] < 0; i++)
            if (piece[i] == piece[r] && same_machine(&all[i], &all[r])) h->host_of[r] = h->host_of[i];
        if (h->host_of[r] < 0) h->host_of[r] = h->count++;
    }
    return FERRY_OK;
}

static int first_of(const fe_hosts *h, int host) {
    int r = 0;
    while (h->host_of[r] != host) r++;
    return r;
}

static ferry_status number_places(int rank, int ranks, fe_hosts *h, int *size) {
    memset(size, 0, (size_t)ranks * sizeof *size);
    for (int r = 0; r < ranks; r++) h->index_of[r] = size[h->host_of[r]]++;
    for (int host = 1; host < h->count; host++)
        if (size[host] != size[0])
            return fe_fail(FERRY_UNSUPPORTED,
                           "the host of rank %d has %d ranks, the host of rank 0 has %d: all must have equally many",
                           first_of(h, host), size[host], size[0]);
    h->each = size[0];
    h->mine = h->host_of[rank];
    h->index = h->index_of[rank];
    for (int r = 0; r < ranks; r++) h->rank_at[h->host_of[r] * h->each + h->index_of[r]] = r;
    return FERRY_OK;
}

ferry_status fe_hosts_find(fe_boot *boot, int rank, int ranks, fe_hosts *h) {
    int64_t split;
    int below;
    *h = (fe_hosts){.count = 1};
    char sentence[FE_SENTENCE] = "";
    ferry_status own = fe_env_number(FE_ENV_FERRY_HOSTS, 1, 1, FERRY_MAX_RANKS, &split), status = FERRY_OK;
    if (own != FERRY_OK) {
        snprintf(sentence, sizeof sentence, "%s", ferry_last_error());
        split = SPLIT_WRONG; /* the others hear of it */
    }
    if (ranks == 1 && own == FERRY_OK) split = 1; /* nobody is far from oneself */
    address mine = own_address(split), *all = calloc((size_t)ranks, sizeof *all);
    int *work = calloc((size_t)ranks, sizeof *work);
    h->host_of = calloc((size_t)ranks, sizeof *h->host_of);
    h->index_of = calloc((size_t)ranks, sizeof *h->index_of);
    h->rank_at = calloc((size_t)ranks, sizeof *h->rank_at);
    if (!all || !work || !h->host_of || !h->index_of || !h->rank_at)
        status = fe_fail(FERRY_NOMEM, "rank %d: no memory for the places of %d ranks", rank, ranks);
    if (status == FERRY_OK) status = fe_boot_allgather(boot, &mine, all, sizeof mine);
    if (status == FERRY_OK) status = number_hosts(all, ranks, h, work);
    if (status == FERRY_OK) status = number_places(rank, ranks, h, work);
    if (status == FERRY_OK) {
        h->on_machine = machine_ranks(all, ranks, rank, &below);
        h->one_machine = h->on_machine == ranks;
    }
    free(all);
    free(work);
    return own == FERRY_OK ? status : fe_fail_again(own, sentence);
}

ferry_status fe_hosts_single(int rank, int ranks, fe_hosts *h) {
    *h = (fe_hosts){.count = 1, .each = ranks, .index = rank, .on_machine = ranks, .one_machine = true};
    h->host_of = calloc((size_t)ranks, sizeof *h->host_of);
    h->index_of = calloc((size_t)ranks, sizeof *h->index_of);
    h->rank_at = calloc((size_t)ranks, sizeof *h->rank_at);
    if (!h->host_of || !h->index_of || !h->rank_at)
        return fe_fail(FERRY_NOMEM, "rank %d: no memory for the places of %d ranks", rank, ranks);
    for (int r = 0; r < ranks; r++) h->index_of[r] = h->rank_at[r] = r;
    return FERRY_OK;
}

void fe_hosts_free(fe_hosts *h) {
    free(h->host_of);
    free(h->index_of);
    free(h->rank_at);
    *h = (fe_hosts){.count = 0};
}

/* Launchers: torchrun, Open MPI, MPICH and other PMI ones, PMIx, Slurm. The only file beside base/env.c that reads the environment. */
#include "boot/place.h"
#include "base/env.h"
#include "base/hash.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

ferry_status fe_place_parse(const char *text, const char *what, fe_place *place) {
    const char *host = text, *colon = strrchr(text, ':'), *end = colon;
    char *rest;
    if (colon && *host == '[' && colon[-1] == ']') {
        host++;
        end = colon - 1;
    }
    long port = colon ? strtol(colon + 1, &rest, 10) : 0;
    if (!colon || host >= end || end - host >= FE_HOST_MAX || rest == colon + 1 || *rest || port < 1 || port > 65535)
        return fe_fail(FERRY_INVALID, "%s: \"%.100s\" is no host:port", what, text);
    snprintf(place->host, sizeof place->host, "%.*s", (int)(end - host), host);
    place->port = (int)port;
    return FERRY_OK;
}

static const struct launcher {
    const char *name, *rank, *ranks, *other_ranks;
    const char *local_ranks; /* how many ranks this host has, where that is said */
    bool by_slurm;           /* the ranks may be a step of Slurm's. Open MPI's are not: its daemons are */
} launchers[] = {
    {"Ferry's variables", "FERRY_RANK", "FERRY_RANKS", NULL, NULL, false},
    {"torchrun", "RANK", "WORLD_SIZE", NULL, NULL, false},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", NULL, "OMPI_COMM_WORLD_LOCAL_SIZE", false},
    {"PMI", "PMI_RANK", "PMI_SIZE", NULL, "MPI_LOCALNRANKS", true},
    {"PMIx", "PMIX_RANK", "PMIX_SIZE", "SLURM_NTASKS", NULL, true},
    {"Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NPROCS", NULL, true},
};

static const char *text_of(const char *name) {
    const char *text = name ? getenv(name) : NULL;
    return text && *text ? text : NULL;
}

static ferry_status number_of(const char *name, int low, int high, int *number) {
    const char *text = text_of(name);
    char *end;
    if (!text) return fe_fail(FERRY_INVALID, "%s is not set", name);
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high)
        return fe_fail(FERRY_INVALID, "%s=%s is not a whole number from %d to %d", name, text, low, high);
    *number = (int)value;
    return FERRY_OK;
}

static const struct launcher *find_launcher(void) {
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        const struct launcher *l = &launchers[i];
        if (text_of(l->rank) && (text_of(l->ranks) || text_of(l->other_ranks))) return l;
    }
    return NULL;
}

bool fe_launch_found(void) {
    const struct launcher *l = find_launcher();
    const char *step = text_of("SLURM_STEP_ID");
    if (!l || strcmp(l->name, "Slurm") != 0) return l != NULL;
    return step && strtoul(step, NULL, 10) < 0xfffffff0u; /* numbers above are Slurm's own: the batch script is one */
}

static uint64_t hash(uint64_t h, const char *text) {
    for (; text && *text; text++) h = fe_hash_add(h, (uint8_t)*text);
    return fe_hash_add(h, 0xff);
}

/* A number that the ranks of one job share and other jobs do not: what the launcher calls the job, and where it says nothing the
 * process that started the ranks (one shell, one mpirun, one proxy). */
static uint64_t job_number(void) {
    static const char *const names[] = {"PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID",
                                        "MASTER_ADDR",    "MASTER_PORT",  "FERRY_BOOT"};
    uint64_t h = FE_HASH_BEGIN;
    bool named = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        named = named || text_of(names[i]);
        h = hash(h, text_of(names[i]));
    }
    char parent[32];
    snprintf(parent, sizeof parent, "%d/%d", named ? 0 : (int)getppid(), (int)getuid());
    return hash(h, parent);
}

static void fill_secret(fe_place *place, uint64_t job) {
    const char *given = fe_env_text(FE_ENV_FERRY_BOOT_SECRET);
    for (int half = 0; half < 2; half++) { /* two hashes of 64 bits, of the text with a number before it */
        uint64_t h = FE_HASH_BEGIN ^ (uint64_t)half * 0x9e3779b97f4a7c15u;
        h = given ? hash(h, given) : fe_hash_add(h, job);
        for (int i = 0; i < 8; i++) place->secret[half * 8 + i] = (uint8_t)(h >> 8 * i);
    }
}

/* torchrun's own store listens on MASTER_PORT: we take the next one. */
static ferry_status torch_place(fe_place *place) {
    const char *host = text_of("MASTER_ADDR");
    int port;
    if (!host || strlen(host) >= FE_HOST_MAX)
        return fe_fail(FERRY_INVALID, "RANK and WORLD_SIZE are set, but MASTER_ADDR is %s, and FERRY_BOOT is not set",
                       host ? "too long" : "not");
    FE_TRY(number_of("MASTER_PORT", 1, 65535, &port));
    snprintf(place->host, sizeof place->host, "%s", host);
    place->port = port < 65535 ? port + 1 : port - 1;
    return FERRY_OK;
}

/* The first host of Slurm's list, of "a,b" or "gpu[03-07,9]-x,b": there Slurm puts rank 0. */
static bool first_of(const char *list, char host[FE_HOST_MAX]) {
    size_t head = strcspn(list, "[,"), number = 0, tail = 0;
    const char *rest = list + head;
    if (*rest == '[') {
        number = strcspn(++rest, "-,]");
        const char *close = strchr(rest, ']');
        if (!close || !number) return false;
        tail = strcspn(close + 1, "[,");
        if (close[1 + tail] == '[') return false; /* two brackets in one name */
        return (size_t)snprintf(host, FE_HOST_MAX, "%.*s%.*s%.*s", (int)head, list, (int)number, rest, (int)tail,
                                close + 1) < FE_HOST_MAX;
    }
    return head > 0 && (size_t)snprintf(host, FE_HOST_MAX, "%.*s", (int)head, list) < FE_HOST_MAX;
}

/* Slurm says which hosts there are; Open MPI and Hydra (MPICH) only that there are others. */
static ferry_status several_hosts(const struct launcher *launcher, int ranks, fe_place *place) {
    static const char *const of_step[] = {"SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST"}, *const of_job[] = {
                                                                                              "SLURM_NNODES",
                                                                                              "SLURM_JOB_NODELIST"};
    const char *const *slurm = text_of(of_step[1]) ? of_step : of_job;
    const char *hosts = text_of(slurm[0]), *list = text_of(slurm[1]), *local = launcher->local_ranks;
    if (launcher->by_slurm && hosts && list && strtol(hosts, NULL, 10) > 1) {
        if (first_of(list, place->host)) return FERRY_OK;
        return fe_fail(FERRY_INVALID, "no first host is found in %s=%.200s: set FERRY_BOOT=host:port, host of rank 0",
                       slurm[1], list);
    }
    int here = ranks;
    if (text_of(local)) FE_TRY(number_of(local, 1, FERRY_MAX_RANKS, &here));
    if (here < ranks)
        return fe_fail(FERRY_INVALID,
                       "%s=%d of %d ranks: the others are on other hosts, and %s does not say where rank 0 is: set "
                       "FERRY_BOOT=host:port, host of rank 0",
                       local, here, ranks, launcher->name);
    return FERRY_OK;
}

static ferry_status find_place(const struct launcher *launcher, int ranks, fe_place *place) {
    const char *boot = fe_env_text(FE_ENV_FERRY_BOOT);
    uint64_t job = job_number();
    fill_secret(place, job);
    if (boot) return fe_place_parse(boot, "FERRY_BOOT", place);
    if (strcmp(launcher->name, "torchrun") == 0) return torch_place(place);
    /* A port of the job's own, outside of the range that the system gives out by itself (32768 and up). */
    snprintf(place->host, sizeof place->host, "127.0.0.1");
    place->port = 12000 + (int)(job % 20000);
    return several_hosts(launcher, ranks, place);
}

ferry_status fe_launch_read(fe_launch *launch) {
    *launch = (fe_launch){.rank = -1};
    const struct launcher *l = find_launcher();
    if (!l)
        return fe_fail(
            FERRY_INVALID,
            "no launcher is recognised: looked for FERRY_RANK and FERRY_RANKS, RANK and WORLD_SIZE, "
            "OMPI_COMM_WORLD_RANK and _SIZE, PMI_RANK and PMI_SIZE, PMIX_RANK, SLURM_PROCID and SLURM_NTASKS");
    FE_TRY(number_of(text_of(l->ranks) ? l->ranks : l->other_ranks, 1, FERRY_MAX_RANKS, &launch->ranks));
    FE_TRY(number_of(l->rank, 0, launch->ranks - 1, &launch->rank));
    FE_TRY(find_place(l, launch->ranks, &launch->place));
    fe_log(FE_INFO, FE_BOOT, "%s: rank %d of %d, meeting at %s port %d", l->name, launch->rank, launch->ranks,
           launch->place.host, launch->place.port);
    return FERRY_OK;
}

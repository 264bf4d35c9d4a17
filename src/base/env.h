/* The one table of environment variables. Nothing else in the library calls getenv, but for the launchers' own
 * variables in boot/env.c. */
#ifndef FERRY_BASE_ENV_H
#define FERRY_BASE_ENV_H

#include "base/status.h"

/* X(name, fallback, meaning): one line each. */
#define FE_ENV_TABLE(X)                                                                                               \
    X(FERRY_BOOT, "", "host:port where rank 0 listens and the others connect (ferry_group_create_env)")               \
    X(FERRY_BOOT_ADDRESS, "127.0.0.1", "address that ferry_unique_id_create listens on")                              \
    X(FERRY_BOOT_SECRET, "", "shared secret for ferry_group_create_env; default: derived from the launcher's job id") \
    X(FERRY_CPU_KERNELS, "best", "row kernels: best, avx512, avx2, neon or scalar; all give the same bits")           \
    X(FERRY_CUDA_LIBRARY, "", "path of libferry_cuda.so; default: beside this library, or where the system looks")    \
    X(FERRY_DEBUG, "", "log level: WARN, INFO or TRACE; unset: silent")                                               \
    X(FERRY_DEBUG_FILE, "stderr", "where the log goes; %h becomes the host name, %p the process id")                  \
    X(FERRY_DEBUG_SUBSYS, "ALL", "comma list of INIT, BOOT, HEAP, ROUTE, MOVE, ENV; ^ before the list excludes")      \
    X(FERRY_DUMP_DIR, "", "where a rank whose wait has failed writes who waits for whom, to a file of its own")       \
    X(FERRY_FABRIC, "auto",                                                                                           \
      "libfabric provider between hosts; auto: efa, verbs;ofi_rxm or cxi with a device, else tcp;ofi_rxm")            \
    X(FERRY_FABRIC_ADDRESS, "auto",                                                                                   \
      "address of this rank's network endpoint, or several, with commas; auto: loopback, or what reaches FERRY_BOOT") \
    X(FERRY_FABRIC_FLAGS, "0", "1: arrivals by flags, as where writes bring no data along (cxi), on any network")     \
    X(FERRY_FABRIC_GPUDIRECT, "auto",                                                                                 \
      "rows of other hosts in GPU memory: 0 never, 1 always; auto: where the network reaches it without CUDA's help") \
    X(FERRY_FABRIC_LIBRARY, "libfabric.so.1", "path of libfabric, loaded when a group has several hosts")             \
    X(FERRY_FABRIC_PARTS, "auto", "in how many parts a step tells another host of its rows, 1 to 3; auto: by size")   \
    X(FERRY_FABRIC_RAILS, "auto", "network devices that a rank uses, 1 to 4; auto: its share of the host's")          \
    X(FERRY_HOSTS, "1", "splits the ranks of a machine into that many pretend hosts, to run the far path on it")      \
    X(FERRY_LOCAL_RANK, "", "set by ferry run: this rank among those of its host; the library does not read it")      \
    X(FERRY_LOCAL_RANKS, "", "set by ferry run: the ranks of this host; the library does not read it")                \
    X(FERRY_METRICS_FILE, "", "where a rank writes its counters for Prometheus when it leaves; %r becomes the rank")  \
    X(FERRY_NT_BYTES, "auto", "a dispatch that moves more bytes than this uses non-temporal stores; auto: the cache") \
    X(FERRY_RANK, "", "this process's rank (ferry_group_create_env), with FERRY_RANKS")                               \
    X(FERRY_RANKS, "", "number of ranks (ferry_group_create_env), with FERRY_RANK")                                   \
    X(FERRY_RECORDER, "1", "0: no flight recorder and no counters per peer (ferry trace, ferry_group_counters)")      \
    X(FERRY_SMS, "auto", "SMs that a step of a rank uses on a GPU; auto: its share of the GPU, at most 24")           \
    X(FERRY_SPIN, "auto", "pauses before a wait yields; auto: 100, or 0 where ranks outnumber cores")                 \
    X(FERRY_THREADS, "auto", "CPU workers of a rank; auto: cores / ranks of this machine, at least 1")                \
    X(FERRY_TIMEOUT_MS, "30000", "deadline of every wait, in milliseconds")                                           \
    X(FERRY_TOUCH_MB, "256", "how much of a rank's row buffers, together, is touched when the group is made")

#define FE_ENV_NAME(name, fallback, meaning) FE_ENV_##name,
typedef enum fe_env_name { FE_ENV_TABLE(FE_ENV_NAME) FE_ENV_COUNT } fe_env_name;
#undef FE_ENV_NAME

/* The variable's text, or NULL when it is unset, empty, or "auto". */
const char *fe_env_text(fe_env_name name);
/* Its whole number, `fallback` when fe_env_text is NULL. FERRY_INVALID (named) when it is no number in low..high. */
ferry_status fe_env_number(fe_env_name name, int64_t fallback, int64_t low, int64_t high, int64_t *value);

#endif

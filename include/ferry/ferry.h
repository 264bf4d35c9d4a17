/* ferry.h - Ferry carries mixture-of-experts tokens to their experts and back.
 *
 * This header is the manual. It needs no other header of Ferry's, is C11, and may be included from C++.
 *
 * The main job, on every rank of a group:
 *
 *     ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
 *     cfg.experts = 256; cfg.hidden = 7168; cfg.max_tokens = 4096; cfg.max_topk = 8;
 *     ferry_group_create(&id, rank, ranks, &cfg, &group);
 *
 *     ferry_route_create(group, &route_config, &route, stream);       // counts are exchanged here
 *     ferry_dispatch(route, &in, &out, NULL, stream);                 // rows travel to their experts
 *     ...experts run on out.rows...
 *     ferry_combine(route, &back, &result, NULL, stream);             // and come back, summed
 *
 * Ranks may be on several hosts (docs/far.md): ranks of one host are near each other, others far. Every host has
 * equally many ranks. FERRY_HOSTS=n splits the ranks of one machine into n pretend hosts.
 *
 * Rules that hold for every call
 *  - Errors. Every call that can fail returns a ferry_status; FERRY_OK is 0. After any other value
 *    ferry_last_error() gives, in the calling thread, one sentence with rank, value and limit. A call that returns
 *    FERRY_INVALID did nothing: it may be made again with better arguments, and the group is as it was.
 *  - Collectives. Calls marked [collective] are made by every rank of the group, in the same order. The others wait for
 *    a rank that is late, at most the group's timeout, and then return FERRY_TIMEOUT naming it; or, on the CPU and one host, soon
 *    FERRY_MISMATCH, when it has made another call instead.
 *  - Threads. A group is used by one thread at a time, except where a call says otherwise. Different groups are
 *    independent: one process may hold many, and several ranks of one group (each in a thread of its own).
 *  - Streams. A call that takes a stream is put at its end and returns at once; its buffers must live until the stream
 *    has passed it. With a NULL stream the call is complete when it returns.
 *  - Structs. Public structs begin with size and magic, set by their _INIT macro, and grow only at the end. A struct
 *    without them is refused. Bytes past what the library knows must be zero.
 *  - Sizes are in bytes where a name says bytes; rows, tokens and hidden are counts. Strides are in elements.
 */
#ifndef FERRY_FERRY_H
#define FERRY_FERRY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FERRY_VERSION_MAJOR 0
#define FERRY_VERSION_MINOR 1
#define FERRY_VERSION_PATCH 0

#if defined(__GNUC__)
#define FERRY_API __attribute__((visibility("default")))
#else
#define FERRY_API
#endif

/* ------------------------------------------------------------------------------------------------------------------
 * Status and errors
 * ---------------------------------------------------------------------------------------------------------------- */

typedef enum ferry_status {
    FERRY_OK = 0,
    FERRY_INVALID = 1,     /* an argument is wrong; the call had no effect */
    FERRY_NOMEM = 2,       /* memory, or room in the symmetric heap, is used up */
    FERRY_SYSTEM = 3,      /* the operating system refused a call; the sentence has its name and errno */
    FERRY_TIMEOUT = 4,     /* a rank did not arrive before the group's deadline; the sentence names it and the step */
    FERRY_ABORTED = 5,     /* ferry_group_abort was called, a rank asks for an agreement, or the group failed before */
    FERRY_MISMATCH = 6,    /* ranks disagree: the sentence names the field, the rank and both values */
    FERRY_OVERFLOW = 7,    /* more rows than the stated capacity, under FERRY_OVERFLOW_ERROR */
    FERRY_UNSUPPORTED = 8, /* a valid request that this build or machine cannot serve */
    FERRY_REFUSED = 9 /* not this group's peer (wrong secret in the unique id), or the others go on without this rank */
} ferry_status;

/* "FERRY_TIMEOUT" and so on; "unknown status" for a number that is none. Never NULL. Any thread. */
FERRY_API const char *ferry_status_name(ferry_status status);

/* The sentence of the last call in this thread that failed; "" when none did. Valid until the thread's next failing
 * call. Never NULL. */
FERRY_API const char *ferry_last_error(void);

/* MAJOR * 10000 + MINOR * 100 + PATCH of the library that is running. Any thread. */
FERRY_API int ferry_version(void);

/* ------------------------------------------------------------------------------------------------------------------
 * Environment: one table, printed by `ferry info` and in ferry-env(7)
 * ---------------------------------------------------------------------------------------------------------------- */

typedef struct ferry_env_entry {
    const char *name;     /* "FERRY_TIMEOUT_MS" */
    const char *fallback; /* what holds when it is not set */
    const char *meaning;  /* one line */
} ferry_env_entry;

/* The table, and its length in *count (may be NULL). Static memory. Any thread. */
FERRY_API const ferry_env_entry *ferry_env_table(size_t *count);

/* ------------------------------------------------------------------------------------------------------------------
 * Number formats and tensors
 * ---------------------------------------------------------------------------------------------------------------- */

typedef enum ferry_dtype {
    FERRY_BYTES = 0, /* opaque, 1 byte an element: any row type that Ferry only carries */
    FERRY_BF16 = 1,  /* bfloat16: the upper half of an IEEE-754 binary32 */
    FERRY_FP16 = 2,  /* IEEE-754 binary16 */
    FERRY_FP32 = 3,  /* IEEE-754 binary32 */
    FERRY_E4M3 =
        4, /* OCP FP8 E4M3 ("fn": no infinities, 448 the largest; OCP 8-bit Floating Point Specification 1.0) */
    FERRY_INT32 = 5,
    FERRY_INT64 = 6,
    FERRY_UE8M0X4 = 7 /* four UE8M0 exponents in one int32, lowest byte first (OCP Microscaling Formats 1.0) */
} ferry_dtype;

/* Bytes of one element; 0 for a number that is no dtype. Any thread. */
FERRY_API size_t ferry_dtype_bytes(ferry_dtype dtype);

#define FERRY_MAX_DIMS 4

/* A plain view of memory that somebody else owns. data == NULL means "no tensor" in an input, and "give me a view of
 * the library's buffer" in an output. Strides are in elements; all zero means contiguous, last dimension fastest. */
typedef struct ferry_tensor {
    void *data;
    ferry_dtype dtype;
    int ndim;
    int64_t shape[FERRY_MAX_DIMS];
    int64_t strides[FERRY_MAX_DIMS];
} ferry_tensor;

static inline ferry_tensor ferry_tensor_1d(void *data, ferry_dtype dtype, int64_t n) {
    ferry_tensor t;
    memset(&t, 0, sizeof t);
    t.data = data;
    t.dtype = dtype;
    t.ndim = 1;
    t.shape[0] = n;
    return t;
}

static inline ferry_tensor ferry_tensor_2d(void *data, ferry_dtype dtype, int64_t rows, int64_t columns) {
    ferry_tensor t = ferry_tensor_1d(data, dtype, rows);
    t.ndim = 2;
    t.shape[1] = columns;
    return t;
}

/* ------------------------------------------------------------------------------------------------------------------
 * Groups
 * ---------------------------------------------------------------------------------------------------------------- */

typedef struct ferry_group ferry_group;
typedef struct ferry_stream ferry_stream;
typedef struct ferry_event ferry_event;
typedef struct ferry_route ferry_route;

typedef enum ferry_device { FERRY_CPU = 0, FERRY_CUDA = 1 } ferry_device;

/* Layout of the rows that a rank receives. R ranks, M = max_tokens, L local experts of the receiving rank.
 * In all of them, rows of one block are ordered by source rank, then by token. */
typedef enum ferry_layout {
    FERRY_LAYOUT_RANK = 1, /* [rows, hidden]: a token once per rank, however many of its experts live there.
                                THROUGHPUT: packed. LATENCY: source s begins at row s * M, unless the route is packed. */
    FERRY_LAYOUT_EXPERT =
        2,                 /* [rows, hidden]: a token once per local expert, packed by local expert, each expert's block
                                beginning at a multiple of expert_alignment */
    FERRY_LAYOUT_SLOTS = 4 /* [L, R * M, hidden]: a token once per local expert; shapes do not depend on data.
                                THROUGHPUT: each expert's rows packed from slot 0. LATENCY: source s begins at slot
                                s * M of its expert; see counts and starts of ferry_dispatch_out. */
} ferry_layout;

typedef enum ferry_mode {
    FERRY_THROUGHPUT = 0, /* counts are exchanged when the route is made, and known to the host; buffers are exact */
    FERRY_LATENCY = 1     /* no host wait; buffers have their worst-case shape; counts come with the rows */
} ferry_mode;

#define FERRY_MAGIC_GROUP_CONFIG 0x4647525043464731ull
#define FERRY_MAX_TOPK           64
#define FERRY_MAX_RANKS          1024

/* Every rank passes the same values (ranks compare them when they meet; FERRY_MISMATCH names the field that differs),
 * except for timeout_ms, threads and sms, which may differ. */
typedef struct ferry_group_config {
    size_t size;
    uint64_t magic;
    ferry_device device; /* FERRY_CPU or FERRY_CUDA */
    int experts;         /* E >= 1: number of logical experts */
    int hidden;          /* channels of the widest row */
    int max_tokens;      /* M >= 1: the most tokens one rank dispatches in one step */
    int max_topk;        /* 1..64: the most choices per token */
    ferry_dtype dtype; /* widest element of a row, with hidden sets the bytes of a row slot; FERRY_BYTES (0) is taken as
                            FERRY_BF16. hidden * element bytes must be a multiple of 16. */
    int layouts;       /* sum of ferry_layouts that the group will use; sets the default of max_recv_rows.
                            0: RANK + EXPERT */
    int64_t
        max_recv_rows; /* rows a rank's receive buffer holds. 0: the worst case of the layouts, with an expert_alignment of up to
                              128. On the CPU the memory is reserved, and used as far as rows arrive, or
                              FERRY_TOUCH_MB (256) has it touched beforehand; on a GPU it is taken whole. */
    int64_t heap_bytes; /* symmetric heap for ferry_heap_alloc, beside Ferry's own buffers; 0: none */
    int timeout_ms;     /* deadline of every wait; 0: FERRY_TIMEOUT_MS, or 30000 */
    int threads;        /* CPU workers of this rank; 0: FERRY_THREADS, or cores / ranks of this machine, at least 1 */
    /* Where experts live. Both NULL: expert e on the rank r with r*E/R <= e < (r+1)*E/R. Otherwise expert e has a copy on each
     * of expert_rank[expert_first[e]] .. expert_rank[expert_first[e+1]-1], at least one, no rank twice. A token whose
     * expert has n copies goes to copy number (source rank + token index) mod n. Copied by the call. */
    const int32_t *expert_first; /* [experts + 1], expert_first[0] == 0, not falling */
    const int32_t *expert_rank;  /* [expert_first[experts]] */
    int sms; /* CUDA: the most SMs that a step of this rank uses, so that all ranks of a GPU fit on it at once; 0: FERRY_SMS, or by the
                rule in docs/gpu.md. May differ between ranks. */
} ferry_group_config;

static inline ferry_group_config ferry_group_config_init(void) {
    ferry_group_config c;
    memset(&c, 0, sizeof c);
    c.size = sizeof c;
    c.magic = FERRY_MAGIC_GROUP_CONFIG;
    return c;
}
#define FERRY_GROUP_CONFIG_INIT ferry_group_config_init()

/* How ranks find each other: an address, a port and a secret. Print it, send it, keep it private. */
typedef struct ferry_unique_id {
    char bytes[128];
} ferry_unique_id;

/* Makes an id and starts, in this process, the thread at which the ranks of ONE group meet. The thread listens on the
 * address in FERRY_BOOT_ADDRESS (127.0.0.1), on a port of the system's choice, and ends when all ranks that came have left again (the group
 * is made, or could not be), or when nobody has come for ten minutes. Give the id to every rank. FERRY_INVALID (id is NULL, an address of
 * over 63 characters), FERRY_SYSTEM if no port can be had. Any thread. */
FERRY_API ferry_status ferry_unique_id_create(ferry_unique_id *id);

/* [collective] Joins the group as `rank` of `ranks` (1..FERRY_MAX_RANKS) and waits for the others. Ranks may be processes, threads
 * of one process, or both, on one host or on several with equally many ranks each (FERRY_UNSUPPORTED otherwise). cfg is only read during the call. *group is set on success alone.
 * FERRY_INVALID, FERRY_MISMATCH (the ranks' configs or library versions differ), FERRY_TIMEOUT (a rank never came),
 * FERRY_REFUSED (not this id's group), FERRY_NOMEM, FERRY_SYSTEM, FERRY_UNSUPPORTED. Any thread. */
FERRY_API ferry_status ferry_group_create(const ferry_unique_id *id, int rank, int ranks, const ferry_group_config *cfg,
                                          ferry_group **group);

/* [collective] The same, with rank, ranks and meeting place from the launcher's environment: FERRY_RANK/FERRY_RANKS, torchrun
 * (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), Open MPI (OMPI_COMM_WORLD_RANK/SIZE), MPICH and PMI (PMI_RANK/SIZE), PMIx
 * (PMIX_RANK, with PMIX_SIZE or SLURM_NTASKS), Slurm (SLURM_PROCID, SLURM_NTASKS or SLURM_NPROCS), tried in this order. Rank 0 listens at
 * FERRY_BOOT=host:port where that is set; otherwise at MASTER_ADDR and the port after MASTER_PORT (which torchrun's own store uses), at the
 * first host of SLURM_STEP_NODELIST for a step on several hosts, or on 127.0.0.1, at a port that follows from the launcher's job; where the launcher names none (MPICH, FERRY_RANK), from the number of the
 * process that started the ranks: ranks behind a shell each must be given FERRY_BOOT. FERRY_INVALID if no launcher is recognised; the sentence lists
 * what was looked for. */
FERRY_API ferry_status ferry_group_create_env(const ferry_group_config *cfg, ferry_group **group);

/* Gathers `bytes` bytes of every rank into all[ranks][bytes], in rank order, on every rank. Returns 0 on success. */
typedef int (*ferry_allgather_fn)(void *context, const void *mine, void *all, size_t bytes);

/* [collective] The same, meeting through the caller's own allgather (MPI_Allgather, a key-value store, ...). It is called
 * only during this call, in this thread, the same number of times with the same sizes on every rank. */
FERRY_API ferry_status ferry_group_create_with(ferry_allgather_fn allgather, void *context, int rank, int ranks,
                                               const ferry_group_config *cfg, ferry_group **group);

/* Leaves the group and frees everything of it: routes, heap memory, streams and events must not be used afterwards (events are
 * destroyed before). Not
 * collective, never waits for another rank (over several hosts it waits for what it has ordered to leave, as long as that moves and at most the timeout, and half a second for the others to leave too), and never hangs, whatever
 * state the group is in. NULL is allowed. */
FERRY_API void ferry_group_destroy(ferry_group *group);

/* Wakes every wait of every rank of the group, which return FERRY_ABORTED, as do all later calls except destroy: for good. May be called
 * from any thread, at any time between create and destroy. */
FERRY_API ferry_status ferry_group_abort(ferry_group *group);

/* FERRY_OK, or the first error that this rank met: of operations on streams any, of calls with a NULL stream one after which ranks no
 * longer agree on what comes next (FERRY_TIMEOUT, FERRY_ABORTED, FERRY_MISMATCH, FERRY_SYSTEM, FERRY_NOMEM in a step). After such a one
 * the group only accepts agree and destroy. The sentence goes to ferry_last_error. Any thread. */
FERRY_API ferry_status ferry_group_error(ferry_group *group);

/* ---- going on without a rank (docs/faults.md) ----
 *
 * A step that a rank is missing from ends, on those who wait for it, in FERRY_TIMEOUT, which names it. They then all call
 * ferry_group_agree, and the group goes on without it: it is *masked*. Its tokens and experts are left out everywhere: nothing comes from
 * it (counts of 0), an expert with copies on other ranks is served by those, by (source rank + token index) mod the number left, and one
 * without is like -1; a route's `renormalise` says what becomes of its weight. Shapes, local experts, heap addresses and rank numbers stay.
 * Collectives are calls of the ranks that are not masked; all-gather leaves a masked rank's part of `all` as it is.
 *
 *     if (ferry_dispatch(...) != FERRY_OK || ...) {
 *         ferry_group_agree(group, NULL, masked);     // every survivor; then make routes anew, and repeat the step
 *     }
 */

/* [collective] of all ranks that can still come. Holds an agreement: who has come, and is not to be masked, goes on, and all of those have
 * the same mask afterwards. Waits for each rank of the group that is neither proposed to be masked nor gone (its process has ended, or it has
 * destroyed its group), and for those proposed to be taken back; at most the group's timeout, and again when a rank is lost meanwhile. A
 * rank that cannot go on (its group has failed) calls the others: what they wait for ends in FERRY_ABORTED, "rank 2 asks for an
 * agreement", and they come as well. If none has failed, the others get half of the timeout to come by themselves: call it
 * where a step has ended. It waits for this rank's streams, where passes give up if the group has failed.
 *
 * Afterwards the group is as if new: errors are forgotten, streams can be used, steps count from the beginning, what was sent and not
 * received is gone, views of earlier dispatches are void. Heap memory and its contents stay; an allocation or a free that ended well on one
 * survivor has taken place on all. Routes made before are refused (FERRY_INVALID) and can only be destroyed; CUDA graphs are captured anew. A
 * step that failed here may have ended well on another rank: repeat it on all.
 *
 * On several hosts a host is masked as a whole, since its ranks hand on what the others get: with one rank of it, all. There is no memory that all
 * could look at, so the ranks that are left meet at an id that one of them has made (ferry_unique_id_create) and sent to the others; ranks of other hosts
 * are not called, but end their waits by their own deadlines; who has come within a timeout goes on, and the network is opened anew. If a
 * rank is lost meanwhile the call fails on all, and is made again with another id. On one host id is not looked at, and may be NULL. masked: [ranks] out, 1 for each that is masked; or NULL.
 * FERRY_REFUSED: the others go on without this rank. It may call again, to come back when one of them proposes it
 * (ferry_group_mask_set(group, rank, 0)) and all agree; as long as it is masked its call ends in FERRY_TIMEOUT if nobody holds an agreement.
 * FERRY_INVALID (several hosts, and no id), FERRY_TIMEOUT, FERRY_ABORTED (ferry_group_abort is for good), FERRY_MISMATCH (a rank that was masked is
 * back with the map of experts of before a ferry_group_reconfigure, which with an id brings one map to all). */
FERRY_API ferry_status ferry_group_agree(ferry_group *group, const ferry_unique_id *id, uint8_t *masked);

/* Proposes to mask another rank (1), or to take it back (0), at the next agreement: local, until then nothing changes. One rank's proposal
 * is enough; those of the ranks that have come when it is decided are heard in ascending order, but for those of a rank that is out by
 * then, and masking comes before taking back. Let one rank propose, or all the same. FERRY_INVALID: no such rank, or this one. */
FERRY_API ferry_status ferry_group_mask_set(ferry_group *group, int rank, int masked);
/* The mask in force: masked[ranks], 1 for each rank that the group goes on without. */
FERRY_API ferry_status ferry_group_mask_get(const ferry_group *group, uint8_t *masked);

/* This rank leaves, at the end of a step: nobody need wait for it at an agreement. Waits for its own streams only. Afterwards the group accepts
 * destroy alone (an abort ends nothing but this rank); until then its memory stays where it is. */
FERRY_API ferry_status ferry_group_leave(ferry_group *group);

/* [collective] with ferry_group_reconfigure of the ranks that are there, which have made a new id (ferry_unique_id_create) for it: a new process
 * takes the place of rank `rank`, whose process is gone. The others keep their memory, and map this rank's. The user's heap has the
 * same allocations as theirs, at the same offsets (ferry_heap_offset, ferry_heap_at); what this rank's hold is not defined. cfg: as the others'. One host. FERRY_MISMATCH, FERRY_TIMEOUT, FERRY_REFUSED (the others have met without it), FERRY_INVALID, FERRY_NOMEM,
 * FERRY_SYSTEM, FERRY_UNSUPPORTED. */
FERRY_API ferry_status ferry_group_join(const ferry_unique_id *id, int rank, int ranks, const ferry_group_config *cfg,
                                        ferry_group **group);

/* [collective] A new map of experts (cfg's expert_first and expert_rank; all else must be as it was), and with an id: meets newcomers there.
 * Called at the end of a step, by every rank that goes on; it ends as an agreement does (ferry_group_agree). The map may have no more
 * copies of experts, in all and on one rank, than the one that the group was made with; arrays of ferry_group_local_experts end.
 *
 * id NULL: the ranks that there are. With an id, made by one of them, each place is waited for, at most the timeout: a rank that is there, or a newcomer
 * (ferry_group_join), or a masked rank that comes back by this call; but those proposed to be masked (ferry_group_mask_set) stay or become so. Who has
 * not come by then is masked, as at any agreement: ask ferry_group_mask_get. Rank 0's place must be filled. FERRY_INVALID, FERRY_MISMATCH (the maps differ), FERRY_TIMEOUT, FERRY_REFUSED, FERRY_UNSUPPORTED (several hosts). */
FERRY_API ferry_status ferry_group_reconfigure(ferry_group *group, const ferry_unique_id *id,
                                               const ferry_group_config *cfg);

FERRY_API int ferry_group_rank(const ferry_group *group);  /* this rank, 0..R-1; -1 for NULL */
FERRY_API int ferry_group_ranks(const ferry_group *group); /* R; -1 for NULL */

/* The experts that live on `rank`, ascending: local expert i of that rank is logical expert (*experts)[i]. Memory of the
 * group's. Returns their number L, or -1 for a bad argument. experts may be NULL. Any thread. */
FERRY_API int ferry_group_local_experts(const ferry_group *group, int rank, const int32_t **experts);

/* What a rank has done with one rank (itself among them), since the group began. Rows count by their places, as the route lays them: over several
 * hosts one row that crosses stands for all of a token's places on a host. Bytes are those rows', with their scales. A GPU's steps are
 * counted when they are put on their stream, in THROUGHPUT mode and outside of graphs; of others, and of what is dropped there, the host knows nothing, and nothing is counted. */
typedef struct ferry_peer_counters {
    uint64_t rows_sent, bytes_sent;         /* dispatches: to it */
    uint64_t rows_received, bytes_received; /* dispatches: from it */
    uint64_t rows_returned, bytes_returned; /* combines: its experts' rows for this rank's tokens */
    uint64_t rows_dropped;                  /* of this rank's tokens, for which it had no room */
    uint64_t waits,
        wait_ns; /* waits for its notes that went on past spinning, and their time. A wait for several ranks is the first's,
                                by number, until it has come, then the next one's. A GPU's are not counted */
} ferry_peer_counters;

#define FERRY_MAGIC_COUNTERS 0x4647434f554e5431ull

/* Pointers are the group's memory: valid until the next call, or the group's end. */
typedef struct ferry_counters {
    size_t size;
    uint64_t magic;
    int ranks, local_experts;
    uint64_t routes, dispatches, combines,
        meetings; /* begun. meetings: rounds of barrier, allgather, broadcast, heap_alloc, heap_free */
    const ferry_peer_counters *peers; /* [ranks] */
    /* [local_experts] rows that dispatches delivered to each. RANK layout: tokens that chose it, dropped ones included, where the route
     * exchanges counts; in LATENCY mode without a capacity it does not, and nothing is counted. A new map of experts
     * begins them anew */
    const uint64_t *expert_rows;
} ferry_counters;

static inline ferry_counters ferry_counters_init(void) {
    ferry_counters c;
    memset(&c, 0, sizeof c);
    c.size = sizeof c;
    c.magic = FERRY_MAGIC_COUNTERS;
    return c;
}
#define FERRY_COUNTERS_INIT ferry_counters_init()

/* Fills the counters; what is still on a stream counts when it has run. Waits for nobody. FERRY_UNSUPPORTED with FERRY_RECORDER=0. */
FERRY_API ferry_status ferry_group_counters(ferry_group *group, ferry_counters *counters);
/* Writes them to a file in Prometheus' text format, version 0.0.4, by way of a new file beside it that then takes its place. FERRY_METRICS_FILE
 * names one that is written when the group is destroyed. FERRY_SYSTEM when it cannot be written. */
FERRY_API ferry_status ferry_group_metrics_write(ferry_group *group, const char *path);

/* Bytes of shared memory that each rank of a group of `ranks` with this config reserves, without making it. */
FERRY_API ferry_status ferry_group_bytes(const ferry_group_config *cfg, int ranks, int64_t *bytes);

/* ------------------------------------------------------------------------------------------------------------------
 * Streams and events (CPU: a thread that runs calls in order, beside the caller; CUDA: a cudaStream_t)
 * ---------------------------------------------------------------------------------------------------------------- */

/* A stream of the group's device. A CPU stream has `threads` (see the config) workers of its own. */
FERRY_API ferry_status ferry_stream_create(ferry_group *group, ferry_stream **stream);
/* A stream of the caller's (CUDA: a cudaStream_t of the group's GPU) as a Ferry stream: calls on it are ordered with everything else that
 * the caller puts there, and it may be captured into a graph. Who waits for it without ferry_stream_sync asks ferry_group_error before
 * trusting results. ferry_stream_destroy then frees only the wrapping. FERRY_UNSUPPORTED on the CPU device. */
FERRY_API ferry_status ferry_stream_wrap(ferry_group *group, void *native, ferry_stream **stream);
/* Waits until the stream is empty (bounded: every call on it is), then frees it. NULL is allowed. */
FERRY_API void ferry_stream_destroy(ferry_stream *stream);
/* Waits until all calls on the stream are done. Returns the first error among those since the last sync; on a GPU also, once, that the rank has
 * failed on another stream (FERRY_ABORTED), after which nothing was run on this one either. Any thread. */
FERRY_API ferry_status ferry_stream_sync(ferry_stream *stream);
/* 1 when everything on the stream is done, else 0. Never waits. Any thread. */
FERRY_API int ferry_stream_idle(ferry_stream *stream); /* NULL: 1 */
/* Puts a function of the caller's at the end of a CPU stream: compute that is ordered with communication. It is called also after an
 * error on the stream, since it may own what it was given; ferry_group_error tells. */
FERRY_API ferry_status ferry_stream_call(ferry_stream *stream, void (*function)(void *), void *argument);

FERRY_API ferry_status ferry_event_create(ferry_group *group, ferry_event **event);
/* Before its group is destroyed. A stream that still has to pass it keeps what it needs. NULL is allowed. */
FERRY_API void ferry_event_destroy(ferry_event *event);
/* The event happens when all calls now on the stream are done (NULL stream: now). Recording again replaces that. */
FERRY_API ferry_status ferry_event_record(ferry_event *event, ferry_stream *stream);
/* Later calls on the stream start after the event has happened, which is waited for at most the group's timeout (on the CPU, twice
 * that while another stream of this rank waits for a rank, so that the error tells which). An event never recorded has happened. */
FERRY_API ferry_status ferry_stream_wait_event(ferry_stream *stream, ferry_event *event);
/* Waits on the host, at most the group's timeout. */
FERRY_API ferry_status ferry_event_sync(ferry_event *event);
FERRY_API int ferry_event_done(ferry_event *event); /* 1 or 0; never waits. NULL: 1 */

/* ------------------------------------------------------------------------------------------------------------------
 * The symmetric heap: memory with the same offset on every rank, that every near rank can address
 * ---------------------------------------------------------------------------------------------------------------- */

/* [collective] Allocates bytes (the same on every rank; FERRY_MISMATCH otherwise) from heap_bytes, aligned to 256. Contents are not
 * defined. FERRY_NOMEM when the heap is full; the sentence has what is left. Waits for all ranks. */
FERRY_API ferry_status ferry_heap_alloc(ferry_group *group, size_t bytes, void **pointer);
/* [collective] Frees it, after all ranks have come. NULL is allowed. */
FERRY_API ferry_status ferry_heap_free(ferry_group *group, void *pointer);
/* Where this rank can load and store the same address of rank `rank`'s heap; NULL when pointer is not in the heap, rank
 * is not of the group or masked, or the rank is far. pointer may point inside an allocation. Any thread. */
FERRY_API void *ferry_heap_ptr(const ferry_group *group, const void *pointer, int rank);

/* The same address as a number that is equal on all ranks, and back: bytes from the beginning of heap_bytes. -1, NULL: not in it. Any thread. */
FERRY_API int64_t ferry_heap_offset(const ferry_group *group, const void *pointer);
FERRY_API void *ferry_heap_at(const ferry_group *group, int64_t offset);

/* One-sided operations. `symmetric` addresses are this rank's own addresses in the heap, or in a view of the library's buffers (a
 * dispatch view, ferry_combine_buffer); the operation works on the same offset of rank `rank`'s heap. FERRY_INVALID when a range leaves the heap. Any thread, several at a time.
 * put and put_signal are complete locally (source reusable) when they return or the stream has passed them. Of a far rank a put is in
 * its place after ferry_quiet, ferry_fence or a meeting of all ranks, and before any later signal or atomic of this rank there. */
FERRY_API ferry_status ferry_put(ferry_group *group, void *symmetric, const void *source, size_t bytes, int rank,
                                 ferry_stream *stream);
FERRY_API ferry_status ferry_get(ferry_group *group, void *destination, const void *symmetric, size_t bytes, int rank,
                                 ferry_stream *stream);

#define FERRY_MAGIC_DEVICE_GROUP 0x4647444556475031ull

/* What a kernel of the caller's needs of a group, passed to it by value: see ferry/device.cuh. Its pointers are device memory of the
 * group's, and end with it. */
typedef struct ferry_device_group {
    size_t size;
    uint64_t magic;
    int rank, ranks;
    char *const *space;      /* [ranks] where each rank's heap is, for this rank's GPU */
    uint64_t space_bytes;    /* of each */
    uint64_t barrier_at;     /* in it: [2][ranks] words of 64 bytes for ferry_dev_barrier */
    uint64_t *barrier_epoch; /* this rank's count of barriers */
    const uint32_t *aborted; /* not 0: the group was aborted. Host memory, mapped */
    uint64_t timeout_ns;     /* the group's */
    const uint8_t *masked;   /* [ranks] 1: the group goes on without the rank (ferry_group_agree) */
} ferry_device_group;

static inline ferry_device_group ferry_device_group_init(void) {
    ferry_device_group g;
    memset(&g, 0, sizeof g);
    g.size = sizeof g;
    g.magic = FERRY_MAGIC_DEVICE_GROUP;
    return g;
}
#define FERRY_DEVICE_GROUP_INIT ferry_device_group_init()

/* Fills the handle. FERRY_UNSUPPORTED on the CPU device, and where the group is on several hosts. */
FERRY_API ferry_status ferry_group_device(ferry_group *group, ferry_device_group *handle);

typedef enum ferry_signal_op { FERRY_SIGNAL_SET = 0, FERRY_SIGNAL_ADD = 1 } ferry_signal_op;

/* put, then set or add `value` at the symmetric 8-byte-aligned `signal`: whoever sees the signal (ferry_wait_until) sees the data. */
FERRY_API ferry_status ferry_put_signal(ferry_group *group, void *symmetric, const void *source, size_t bytes,
                                        uint64_t *signal, uint64_t value, ferry_signal_op op, int rank,
                                        ferry_stream *stream);
/* Atomic on a symmetric, 8-byte-aligned word of rank `rank`; *old (may be NULL) is what it held. Sequentially consistent. */
FERRY_API ferry_status ferry_fetch_add(ferry_group *group, uint64_t *symmetric, uint64_t value, int rank,
                                       uint64_t *old);
FERRY_API ferry_status ferry_compare_swap(ferry_group *group, uint64_t *symmetric, uint64_t expected, uint64_t desired,
                                          int rank, uint64_t *old);
/* Puts and signals of this thread before the fence are seen by each rank before those after it. What is on a stream is ordered by the
 * stream. */
FERRY_API ferry_status ferry_fence(ferry_group *group);
/* All puts, gets and signals of this thread so far are complete everywhere. */
FERRY_API ferry_status ferry_quiet(ferry_group *group);

typedef enum ferry_compare {
    FERRY_EQ = 0,
    FERRY_NE = 1,
    FERRY_GT = 2,
    FERRY_GE = 3,
    FERRY_LT = 4,
    FERRY_LE = 5
} ferry_compare;

/* Waits until this rank's own heap word `signal` compares true with value; acquires what was put before the signal. At most
 * timeout_ms (0: the group's; -1 is not accepted: no wait is unbounded), then FERRY_TIMEOUT with the value that was seen. With a NULL
 * stream that ends only this call; on a stream, what follows counts on the word, and the group fails as by any other timeout. */
FERRY_API ferry_status ferry_wait_until(ferry_group *group, const uint64_t *signal, ferry_compare compare,
                                        uint64_t value, int timeout_ms, ferry_stream *stream);

/* [collective] */
FERRY_API ferry_status ferry_barrier(ferry_group *group, ferry_stream *stream);
/* [collective] all[ranks][bytes] from every rank's mine[bytes]; any memory, any size. mine may be `all`, or its own place in it. Meetings
 * (barrier, allgather, broadcast, heap_alloc, heap_free) take place in the order of their calls, also on different streams. Over several hosts
 * a call on a CUDA stream with memory that the GPU does not reach (pageable, or another GPU's) waits for what is on the stream before. */
FERRY_API ferry_status ferry_allgather(ferry_group *group, const void *mine, void *all, size_t bytes,
                                       ferry_stream *stream);
/* [collective] buffer[bytes] of rank root to all. */
FERRY_API ferry_status ferry_broadcast(ferry_group *group, void *buffer, size_t bytes, int root, ferry_stream *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * Routes: one routing decision, exchanged between the ranks
 * ---------------------------------------------------------------------------------------------------------------- */

typedef enum ferry_overflow {
    FERRY_OVERFLOW_ERROR = 0, /* all ranks return FERRY_OVERFLOW, naming the fullest rank */
    FERRY_OVERFLOW_DROP =
        1 /* rows past a capacity are left out, the last in the layout's order first, and counted; in the combine
                                 they add nothing */
} ferry_overflow;

typedef enum ferry_order {
    FERRY_ORDER_RANK = 0,  /* ranks ascending */
    FERRY_ORDER_CHOICE = 1 /* each rank where the last of the token's choices stands that went there */
} ferry_order;

#define FERRY_MAGIC_ROUTE_CONFIG 0x464752544543464full

typedef struct ferry_route_config {
    size_t size;
    uint64_t magic;
    /* [tokens, topk] int32 or int64, any strides: logical experts 0..E-1, or -1 for none. The same expert twice in
     * one token is carried once. 0 <= tokens <= max_tokens (0 with data NULL is fine), 1 <= topk <= max_topk. topk,
     * layout, mode, alignment, capacities and overflow are the same on every rank. Copied by the call, in stream order. */
    ferry_tensor topk_idx;
    ferry_tensor topk_weights; /* [tokens, topk] float32, any strides, or data NULL: no weights */
    ferry_layout layout;
    ferry_mode mode;
    int expert_alignment;    /* EXPERT: blocks begin at multiples of it; 0 and 1: packed */
    int64_t expert_capacity; /* EXPERT, SLOTS: the most rows a local expert takes in; 0: no limit */
    int64_t rank_capacity;   /* RANK, EXPERT: the most row slots a rank takes in (padding counts); 0: max_recv_rows */
    ferry_overflow overflow;
    int packed; /* 1: LATENCY: rows of RANK and SLOTS lie packed as in THROUGHPUT, for which counts are exchanged, on a stream without a
                   host wait. The same on every rank */
    int renormalise; /* 1: where all copies of a token's expert are on masked ranks, its weight is spread over the token's other choices:
                        each w becomes w * (sum of all / sum of those left) in float32, the sums in choice order, a choice that is -1 not
                        counted; 0 where nothing is left. Dispatch delivers, and combine uses, these weights. The same on every rank */
    ferry_order order; /* RANK: in which order an unweighted combine sums a token's rows. The same on every rank */
} ferry_route_config;

static inline ferry_route_config ferry_route_config_init(void) {
    ferry_route_config c;
    memset(&c, 0, sizeof c);
    c.size = sizeof c;
    c.magic = FERRY_MAGIC_ROUTE_CONFIG;
    return c;
}
#define FERRY_ROUTE_CONFIG_INIT ferry_route_config_init()

/* [collective] Makes a route. THROUGHPUT: waits on the host until the counts of all ranks are known. LATENCY: nothing is
 * waited for in RANK and SLOTS; EXPERT, and any layout with a capacity or packed, exchanges counts, on a stream without a host
 * wait. On a stream that a CUDA graph is being captured from nothing runs yet: in either mode the host then knows capacities and no
 * counts, as in LATENCY. A route serves any number of dispatches and combines, with rows of any width up to the group's.
 * FERRY_INVALID (SLOTS that do not fit the receive buffer; an index outside -1..E-1 is named with token and choice; in LATENCY mode on a stream it becomes the stream's
 * error), FERRY_OVERFLOW, FERRY_MISMATCH, FERRY_TIMEOUT, FERRY_NOMEM. */
FERRY_API ferry_status ferry_route_create(ferry_group *group, const ferry_route_config *cfg, ferry_route **route,
                                          ferry_stream *stream);
/* Frees the route, which must not be in use on a stream any more. Not collective. NULL is allowed. */
FERRY_API void ferry_route_destroy(ferry_route *route);

#define FERRY_MAGIC_ROUTE_INFO 0x464752494e464f31ull

/* What the host knows. Pointers are the route's memory. L local experts, R ranks. In LATENCY mode, and of a route in a CUDA graph, rows has
 * the worst case and the pointers are NULL: the counts come with each dispatch (ferry_dispatch_out). */
typedef struct ferry_route_info {
    size_t size;
    uint64_t magic;
    int tokens, topk, local_experts, ranks;
    ferry_layout layout;
    ferry_mode mode;
    int64_t rows;     /* rows that an output tensor must hold, padding included (for SLOTS: L * R * M) */
    int64_t received; /* rows that arrive, without padding; -1 when not known to the host */
    int64_t sent;     /* rows that this rank sends, copies to itself included; -1 when not known */
    int64_t dropped;  /* rows of this rank's tokens that were left out for capacity; -1 when not known */
    const int32_t *
        expert_rows; /* [L] rows of each local expert: tokens that chose it. RANK layout: also filled, dropped ones included */
    const int32_t *expert_start; /* [L] first row of each local expert's block (EXPERT, SLOTS); NULL for RANK */
    const int32_t *source_rows;  /* [R] rows from each source rank */
    const int32_t *source_start; /* [R] RANK: first row from each source rank; NULL otherwise */
    const int32_t *rank_rows;    /* [R] rows that this rank sends to each rank */
} ferry_route_info;

static inline ferry_route_info ferry_route_info_init(void) {
    ferry_route_info i;
    memset(&i, 0, sizeof i);
    i.size = sizeof i;
    i.magic = FERRY_MAGIC_ROUTE_INFO;
    return i;
}
#define FERRY_ROUTE_INFO_INIT ferry_route_info_init()

FERRY_API ferry_status ferry_route_get_info(const ferry_route *route, ferry_route_info *info);

/* ------------------------------------------------------------------------------------------------------------------
 * Dispatch: tokens to experts
 * ---------------------------------------------------------------------------------------------------------------- */

typedef enum ferry_cast {
    FERRY_CAST_NONE = 0,
    FERRY_CAST_E4M3 = 1,      /* bf16 -> e4m3, one float32 scale per 128 channels = amax/448, amax at least 1e-4 */
    FERRY_CAST_E4M3_POW2 = 2, /* the same with the scale rounded up to a power of two */
    FERRY_CAST_E4M3_UE8M0 = 3 /* the same power of two as UE8M0, four to an int32 */
} ferry_cast;

#define FERRY_MAGIC_DISPATCH_OPTIONS 0x4647444f50543031ull

typedef struct ferry_dispatch_options { /* the same on every rank */
    size_t size;
    uint64_t magic;
    ferry_cast cast;
    int skip_topk;    /* 1: do not deliver topk_idx, topk_weights and source */
    int zero_padding; /* 1: EXPERT: rows between an expert's last row and the next block are set to zero */
} ferry_dispatch_options;

static inline ferry_dispatch_options ferry_dispatch_options_init(void) {
    ferry_dispatch_options o;
    memset(&o, 0, sizeof o);
    o.size = sizeof o;
    o.magic = FERRY_MAGIC_DISPATCH_OPTIONS;
    return o;
}
#define FERRY_DISPATCH_OPTIONS_INIT ferry_dispatch_options_init()

#define FERRY_MAGIC_DISPATCH_IN 0x464744494e303031ull

typedef struct ferry_dispatch_in {
    size_t size;
    uint64_t magic;
    ferry_tensor
        rows; /* [tokens, columns], rows contiguous inside, any row stride. Row bytes, before a cast: a multiple of 16, at most
                            the group's. Casts take FERRY_BF16. */
    ferry_tensor
        scales; /* [tokens, n] of a 4-byte dtype, any strides (or FERRY_BYTES, n a multiple of 4, contiguous inside a row); or
                            data NULL. Carried as given, at most 4 * ceil(hidden / 128) bytes a row. Not with a cast. */
} ferry_dispatch_in;

static inline ferry_dispatch_in ferry_dispatch_in_init(void) {
    ferry_dispatch_in i;
    memset(&i, 0, sizeof i);
    i.size = sizeof i;
    i.magic = FERRY_MAGIC_DISPATCH_IN;
    return i;
}
#define FERRY_DISPATCH_IN_INIT ferry_dispatch_in_init()

#define FERRY_MAGIC_DISPATCH_OUT 0x4647444f55543031ull

/* For each tensor: data NULL asks for a view of the library's receive buffer (dtype, shape and strides are filled in). A
 * view is valid until the second dispatch after this one begins on this rank (two may be in flight). Otherwise the caller's tensor, of at least info.rows
 * rows, is filled: in place when it lies in the symmetric heap with contiguous rows, by one more copy otherwise. Tensors that the
 * step does not make (scales without scales, topk_* with skip_topk) are left alone. */
typedef struct ferry_dispatch_out {
    size_t size;
    uint64_t magic;
    ferry_tensor rows; /* RANK, EXPERT: [info.rows, columns]; SLOTS: [L, R * M, columns] */
    ferry_tensor
        scales; /* like rows, n columns, of the given dtype; of casts FERRY_FP32 or FERRY_UE8M0X4. The caller's may have any
                                  strides, and any 4-byte dtype */
    ferry_tensor topk_idx; /* RANK: [info.rows, topk] int32 local expert of each choice, -1 when not on this rank;
                                  EXPERT, SLOTS: not made */
    ferry_tensor
        topk_weights;    /* RANK: [info.rows, topk] float32, 0 where topk_idx is -1; EXPERT, SLOTS: [rows], the sum, in
                                  choice order, of the token's weights for this expert, 0 in padding. Only when the route has weights. */
    ferry_tensor source; /* [rows] int32: source rank * max_tokens + token; -1 in padding of EXPERT */
    /* A view of counts or starts is the route's memory, valid while the route is. */
    ferry_tensor counts; /* int32. RANK: [R] rows from each rank. EXPERT, SLOTS: [L, R] */
    ferry_tensor starts; /* int32, shaped like counts: first row of that block (SLOTS: first slot inside the expert) */
} ferry_dispatch_out;

static inline ferry_dispatch_out ferry_dispatch_out_init(void) {
    ferry_dispatch_out o;
    memset(&o, 0, sizeof o);
    o.size = sizeof o;
    o.magic = FERRY_MAGIC_DISPATCH_OUT;
    return o;
}
#define FERRY_DISPATCH_OUT_INIT ferry_dispatch_out_init()

/* [collective] Sends every token's row to its experts and receives the rows for this rank's experts. options NULL: all zero.
 * The views in *out are set when the call returns; what they show is there when the stream has passed it. FERRY_INVALID,
 * FERRY_MISMATCH (row bytes, cast or topk delivery differ between ranks), FERRY_TIMEOUT, FERRY_ABORTED. */
FERRY_API ferry_status ferry_dispatch(ferry_route *route, const ferry_dispatch_in *in, ferry_dispatch_out *out,
                                      const ferry_dispatch_options *options, ferry_stream *stream);

/* [collective] The two halves. send posts this rank's rows; in.rows is reusable when it is done. recv waits for the others'. At
 * most two dispatches of a group may be sent and not yet received (FERRY_INVALID otherwise); recv takes the oldest of
 * the route. *out is given to send, and must be passed unchanged to recv. */
FERRY_API ferry_status ferry_dispatch_send(ferry_route *route, const ferry_dispatch_in *in, ferry_dispatch_out *out,
                                           const ferry_dispatch_options *options, ferry_stream *stream);
FERRY_API ferry_status ferry_dispatch_recv(ferry_route *route, ferry_dispatch_out *out, ferry_stream *stream);

/* ------------------------------------------------------------------------------------------------------------------
 * Combine: expert outputs back to the tokens' owners, summed
 *
 * With y(c) the row that choice c's expert rank returned for the token, all sums in float32, starting from bias[0] + bias[1] or 0:
 *   unweighted  RANK: sum over the distinct ranks, in the route's order; EXPERT, SLOTS: over the distinct experts, in choice order
 *   weighted    sum over the choices c, in order, acc = fma(w(c), y(c), acc)
 * and one rounding to the output's dtype. Over several hosts: first the terms on the owner's own host, so; then for each other host,
 * ascending, one row, which is the sum of its terms alone, so, from 0, rounded once to the dtype of in.rows. Choices that are -1 or dropped add nothing. A token without any gives bias or 0.
 * ---------------------------------------------------------------------------------------------------------------- */

#define FERRY_MAGIC_COMBINE_OPTIONS 0x4647434f50543031ull

typedef struct ferry_combine_options {
    size_t size;
    uint64_t magic;
    int weighted;         /* 1: with topk_weights below, or the route's */
    ferry_tensor weights; /* [tokens, topk] float32, any strides, used instead of the route's when data is set */
    ferry_tensor bias[2]; /* [tokens, columns] of the input's dtype, rows contiguous inside, or data NULL */
} ferry_combine_options;

static inline ferry_combine_options ferry_combine_options_init(void) {
    ferry_combine_options o;
    memset(&o, 0, sizeof o);
    o.size = sizeof o;
    o.magic = FERRY_MAGIC_COMBINE_OPTIONS;
    return o;
}
#define FERRY_COMBINE_OPTIONS_INIT ferry_combine_options_init()

#define FERRY_MAGIC_COMBINE_IN 0x464743494e303031ull

typedef struct ferry_combine_in {
    size_t size;
    uint64_t magic;
    ferry_tensor
        rows; /* bf16, fp16 or fp32, row bytes a multiple of 16 and at most the group's (fp32 of full width wants a group of
                             dtype FERRY_FP32); the slots of the dispatch: [info.rows, columns] or [L, R * M, columns]. Rows in the
                             symmetric heap (a dispatch view, ferry_combine_buffer, ferry_heap_alloc) are read in place by
                             the other ranks; others are copied in first. Every rank passes the same dtype and columns. */
    ferry_tensor
        weights; /* RANK: [info.rows, topk] float32; EXPERT, SLOTS: [rows] float32; contiguous; or data NULL (on every rank) */
} ferry_combine_in;

static inline ferry_combine_in ferry_combine_in_init(void) {
    ferry_combine_in i;
    memset(&i, 0, sizeof i);
    i.size = sizeof i;
    i.magic = FERRY_MAGIC_COMBINE_IN;
    return i;
}
#define FERRY_COMBINE_IN_INIT ferry_combine_in_init()

#define FERRY_MAGIC_COMBINE_OUT 0x4647434f55543031ull

typedef struct ferry_combine_out {
    size_t size;
    uint64_t magic;
    ferry_tensor
        rows; /* [tokens, columns] bf16, fp16 or fp32 of the caller's, rows contiguous inside, apart from all inputs; data NULL
                             only with 0 tokens */
    ferry_tensor
        weights; /* [tokens, topk] float32, contiguous, when in.weights is given: for each choice, the weight that its row
                             brought back, 0 for none. The backward pass of topk_weights. */
} ferry_combine_out;

static inline ferry_combine_out ferry_combine_out_init(void) {
    ferry_combine_out o;
    memset(&o, 0, sizeof o);
    o.size = sizeof o;
    o.magic = FERRY_MAGIC_COMBINE_OUT;
    return o;
}
#define FERRY_COMBINE_OUT_INIT ferry_combine_out_init()

/* [collective] Needs a route that has been dispatched at least once when its mode is LATENCY, or when the group has several hosts
 * (FERRY_INVALID otherwise). When the call is complete in.rows may be
 * overwritten. Errors as ferry_dispatch. */
FERRY_API ferry_status ferry_combine(ferry_route *route, const ferry_combine_in *in, ferry_combine_out *out,
                                     const ferry_combine_options *options, ferry_stream *stream);

/* [collective] The two halves: send offers this rank's rows to their owners, recv pulls and sums this rank's tokens. At most two
 * combines of a group may be sent and not yet received; recv takes the oldest of the route. in.rows stays
 * untouched until recv is complete. options and in of send hold for both. */
FERRY_API ferry_status ferry_combine_send(ferry_route *route, const ferry_combine_in *in,
                                          const ferry_combine_options *options, ferry_stream *stream);
FERRY_API ferry_status ferry_combine_recv(ferry_route *route, ferry_combine_out *out, ferry_stream *stream);

/* A view, in the shape that combine wants, of the library's buffer for the group's next combine: experts that write
 * their output there save a copy. It may be written when the stream has passed the call, which waits (bounded) until the combine before
 * the last has let go of it. */
FERRY_API ferry_status ferry_combine_buffer(ferry_route *route, ferry_dtype dtype, int64_t columns, ferry_tensor *rows,
                                            ferry_stream *stream);

#ifdef __cplusplus
}
#endif
#endif

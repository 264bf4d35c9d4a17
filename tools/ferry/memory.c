#include "memory.h"
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { LEAST = 9, CLASSES = 48, SLAB = 1 << 22, PART = (1 << 22) - 4096, GUARD = 0xc5 };

static ferry_device chosen = FERRY_CPU;
static pthread_once_t opened = PTHREAD_ONCE_INIT;
static char trouble[256];

static struct cuda { /* what libferry_cuda.so exports for callers; all NULL when it cannot be had */
    void (*describe)(char *, size_t);
    int (*use)(int);
    uint64_t (*card)(void);
    int (*link_rate)(double *);
    void *(*host_alloc)(size_t);
    void *(*device_alloc)(size_t);
    void (*device_free)(void *);
    int (*copy)(void *, const void *, size_t);
    int (*copy_rate)(double *);
    int (*capture_begin)(ferry_stream *stream);
    int (*capture_end)(ferry_stream *stream, void **graph);
    int (*replay)(ferry_stream *stream, void *graph);
    void (*graph_free)(void *graph);
} cuda;

/* Pinning costs a system call and a lock over the whole process, so freed memory is kept by power of two, and small pieces are cut
 * from slabs. */
typedef struct piece { /* stands before the memory */
    struct piece *next;
    size_t bytes;
    int order; /* a power of two: bytes of head, memory and guard */
} piece;
enum { HEAD = 256 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static piece *spare[CLASSES];
static char *slab;
static size_t slab_left;

void fe_memory_choose(ferry_device device, int ranks_here) {
    chosen = device;
    if (device != FERRY_CUDA) return;
    setenv("CUDA_MODULE_LOADING", "EAGER",
           0); /* a kernel that is loaded late waits for those that run, which may wait for it */
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", ranks_here > 1 ? "32" : "4", 0); /* MPS refuses clients that want many */
}

ferry_device fe_memory_device(void) {
    return chosen;
}

const char *fe_memory_trouble(void) {
    return trouble;
}

/* FERRY_CUDA_LIBRARY, or the file beside the program, or beside its folder. */
static void *open_library(void) {
    static const char name[] = "libferry_cuda.so";
    const char *set = getenv("FERRY_CUDA_LIBRARY");
    if (set && *set) return dlopen(set, RTLD_NOW | RTLD_LOCAL);
    char self[3072], path[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    for (int up = 0; up < 2; up++) {
        char *slash = strrchr(self, '/');
        if (!slash) break;
        *slash = 0;
        snprintf(path, sizeof path, "%s/%s", self, name);
        if (access(path, R_OK) == 0) return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    return dlopen(name, RTLD_NOW | RTLD_LOCAL);
}

static void find(void *library, const char *name, void *function, size_t size) {
    void *found = library ? dlsym(library, name) : NULL;
    memcpy(function, &found, size); /* ISO C has no cast from an object's address to a function's */
    const char *error = found ? NULL : dlerror();
    if (error && !*trouble) snprintf(trouble, sizeof trouble, "%s", error);
}

static void open_cuda(void) {
    void *library = open_library();
    const char *error = library ? NULL : dlerror();
    if (error) snprintf(trouble, sizeof trouble, "%s", error);
    find(library, "ferry_cuda_describe", &cuda.describe, sizeof cuda.describe);
    find(library, "ferry_cuda_use", &cuda.use, sizeof cuda.use);
    find(library, "ferry_cuda_card", &cuda.card, sizeof cuda.card);
    find(library, "ferry_cuda_link_rate", &cuda.link_rate, sizeof cuda.link_rate);
    find(library, "ferry_cuda_host_alloc", &cuda.host_alloc, sizeof cuda.host_alloc);
    find(library, "ferry_cuda_device_alloc", &cuda.device_alloc, sizeof cuda.device_alloc);
    find(library, "ferry_cuda_device_free", &cuda.device_free, sizeof cuda.device_free);
    find(library, "ferry_cuda_copy", &cuda.copy, sizeof cuda.copy);
    find(library, "ferry_cuda_copy_rate", &cuda.copy_rate, sizeof cuda.copy_rate);
    find(library, "ferry_cuda_capture_begin", &cuda.capture_begin, sizeof cuda.capture_begin);
    find(library, "ferry_cuda_capture_end", &cuda.capture_end, sizeof cuda.capture_end);
    find(library, "ferry_cuda_replay", &cuda.replay, sizeof cuda.replay);
    find(library, "ferry_cuda_graph_free", &cuda.graph_free, sizeof cuda.graph_free);
}

static const struct cuda *get_cuda(void) {
    pthread_once(&opened, open_cuda);
    return &cuda;
}

int fe_memory_use(int rank) {
    return chosen == FERRY_CUDA && get_cuda()->use ? cuda.use(rank) : 0;
}

uint64_t fe_memory_card(void) {
    return chosen == FERRY_CUDA && get_cuda()->card ? cuda.card() : 0;
}

void fe_memory_describe(char *text, size_t size) {
    if (get_cuda()->describe)
        cuda.describe(text, size);
    else
        snprintf(text, size, "%s", trouble);
}

/* ---- pinned memory ---- */

static void *pin(size_t bytes) {
    void *memory = get_cuda()->host_alloc ? cuda.host_alloc(bytes) : NULL;
    if (!memory && !*trouble) snprintf(trouble, sizeof trouble, "%zu bytes of host memory could not be pinned", bytes);
    return memory;
}

/* Under the lock. */
static piece *new_piece(int order) {
    size_t bytes = (size_t)1 << order;
    piece *p = spare[order];
    if (p) {
        spare[order] = p->next;
        return p;
    }
    if (bytes > SLAB / 4) return pin(bytes);
    if (slab_left < bytes) {
        slab = pin(SLAB); /* the rest of the last one is given up */
        slab_left = slab ? SLAB : 0;
        if (!slab) return NULL;
    }
    p = (piece *)(void *)slab;
    slab += bytes;
    slab_left -= bytes;
    return p;
}

static void *new_pinned(size_t bytes) {
    int order = LEAST;
    while (order < CLASSES - 1 && ((size_t)1 << order) - HEAD < bytes) order++;
    pthread_mutex_lock(&lock);
    piece *p = order < CLASSES - 1 ? new_piece(order) : NULL;
    pthread_mutex_unlock(&lock);
    if (!p) return NULL;
    *p = (piece){.bytes = bytes, .order = order};
    char *memory = (char *)p + HEAD;
    memset(memory + bytes, GUARD, ((size_t)1 << order) - HEAD - bytes);
    memset(p + 1, GUARD, HEAD - sizeof *p);
    return memory;
}

static void check_guard(const piece *p, const uint8_t *from, const uint8_t *to) {
    for (const uint8_t *at = from; at < to; at++) {
        if (*at == GUARD) continue;
        fprintf(stderr, "ferry: the byte at %td of %zu bytes of pinned memory was overwritten\n",
                at - ((const uint8_t *)p + HEAD), p->bytes);
        abort();
    }
}

static void free_pinned(void *memory) {
    piece *p = (piece *)(void *)((char *)memory - HEAD);
    check_guard(p, (const uint8_t *)(p + 1), memory);
    check_guard(p, (const uint8_t *)memory + p->bytes, (const uint8_t *)p + ((size_t)1 << p->order));
    pthread_mutex_lock(&lock);
    p->next = spare[p->order];
    spare[p->order] = p;
    pthread_mutex_unlock(&lock);
}

void *fe_memory_new(size_t bytes) {
    return chosen == FERRY_CUDA ? new_pinned(bytes) : malloc(bytes ? bytes : 1);
}

void fe_memory_free(void *memory) {
    if (chosen != FERRY_CUDA)
        free(memory);
    else if (memory)
        free_pinned(memory);
}

/* ---- views ---- */

static ferry_status no_memory(void) {
    if (!*trouble) snprintf(trouble, sizeof trouble, "no pinned memory");
    return FERRY_NOMEM;
}

/* By way of pinned memory, at most PART bytes at a time. */
static ferry_status move(ferry_group *group, char *host, char *there, size_t bytes, bool to_host) {
    int rank = ferry_group_rank(group);
    void *pinned = fe_memory_new(bytes < PART ? bytes : PART);
    if (!pinned) return no_memory();
    ferry_status status = FERRY_OK;
    for (size_t at = 0; at < bytes && status == FERRY_OK; at += PART) {
        size_t n = bytes - at < PART ? bytes - at : PART;
        if (!to_host) memcpy(pinned, host + at, n);
        status = to_host ? ferry_get(group, pinned, there + at, n, rank, NULL)
                         : ferry_put(group, there + at, pinned, n, rank, NULL);
        if (to_host && status == FERRY_OK) memcpy(host + at, pinned, n);
    }
    fe_memory_free(pinned);
    return status;
}

ferry_status fe_memory_read(ferry_group *group, void *host, const void *from, size_t bytes) {
    if (chosen == FERRY_CUDA) return move(group, host, (char *)(uintptr_t)from, bytes, true);
    if (bytes) memcpy(host, from, bytes);
    return FERRY_OK;
}

ferry_status fe_memory_write(ferry_group *group, void *to, const void *host, size_t bytes) {
    if (chosen == FERRY_CUDA) return move(group, (char *)(uintptr_t)host, to, bytes, false);
    if (bytes) memcpy(to, host, bytes);
    return FERRY_OK;
}

/* ---- the device's own ---- */

void *fe_memory_device_new(size_t bytes) {
    if (chosen != FERRY_CUDA) return malloc(bytes ? bytes : 1);
    void *memory = get_cuda()->device_alloc ? cuda.device_alloc(bytes ? bytes : 1) : NULL;
    if (!memory && !*trouble) snprintf(trouble, sizeof trouble, "%zu bytes of GPU memory could not be had", bytes);
    return memory;
}

void fe_memory_device_free(void *memory) {
    if (chosen != FERRY_CUDA)
        free(memory);
    else if (memory && get_cuda()->device_free)
        cuda.device_free(memory);
}

bool fe_memory_copy(void *to, const void *from, size_t bytes) {
    if (bytes == 0) return true;
    if (chosen == FERRY_CUDA) return get_cuda()->copy && cuda.copy(to, from, bytes) == 0;
    memcpy(to, from, bytes);
    return true;
}

bool fe_memory_copy_rate(double *bytes_per_s) {
    *bytes_per_s = 0;
    return chosen == FERRY_CUDA && get_cuda()->copy_rate && cuda.copy_rate(bytes_per_s) == 0;
}

bool fe_memory_link_rate(double *bytes_per_s) {
    *bytes_per_s = 0;
    return chosen == FERRY_CUDA && get_cuda()->link_rate && cuda.link_rate(bytes_per_s) == 0;
}

bool fe_memory_capture_begin(ferry_stream *stream) {
    return get_cuda()->capture_begin && cuda.capture_begin(stream) == 0;
}

bool fe_memory_capture_end(ferry_stream *stream, void **graph) {
    *graph = NULL;
    return get_cuda()->capture_end && cuda.capture_end(stream, graph) == 0;
}

bool fe_memory_replay(ferry_stream *stream, void *graph) {
    return get_cuda()->replay && cuda.replay(stream, graph) == 0;
}

void fe_memory_graph_free(void *graph) {
    if (graph && get_cuda()->graph_free) cuda.graph_free(graph);
}

/* Heaps of other processes: every memfd that is one, under /proc/PID/fd, mapped for reading. */
#include "trace.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HEAP_LINK "/memfd:ferry-heap" /* what /proc says of such a descriptor (heap/heap.c names it) */

/* What a process shares is a rank's only if the rank says that it lives there: a child has its parent's descriptors. */
static bool take(int fd, int pid, fe_snap *snap) {
    size_t bytes;
    const char *why;
    if (!fe_heap_is(fd, &bytes) || bytes == 0) return false;
    void *memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) return false;
    bool good = fe_snap_take(memory, bytes, snap, &why);
    munmap(memory, bytes);
    if (!good || snap->pid == pid) return good;
    fe_snap_free(snap);
    return false;
}

static fe_trace_group *group_of(fe_trace_groups *found, uint64_t group) {
    for (int i = 0; i < found->count; i++)
        if (found->group[i].group == group) return &found->group[i];
    fe_trace_group *more = realloc(found->group, ((size_t)found->count + 1) * sizeof *more);
    if (!more) return NULL;
    found->group = more;
    more[found->count] = (fe_trace_group){.group = group};
    return &more[found->count++];
}

static bool keep(fe_trace_groups *found, fe_snap *snap) {
    fe_trace_group *g = group_of(found, snap->group);
    bool stranger = g && g->count && g->snap[0].ranks != snap->ranks, twice = false;
    for (int i = 0; g && i < g->count; i++) twice = twice || g->snap[i].rank == snap->rank;
    fe_snap *more = g && !stranger && !twice ? realloc(g->snap, ((size_t)g->count + 1) * sizeof *more) : NULL;
    if (!more) {
        fe_snap_free(snap);
        return g && (stranger || twice);
    }
    g->snap = more;
    more[g->count++] = *snap;
    return true;
}

/* O_NONBLOCK: whatever the path leads to by now, opening it does not wait. */
static bool look_at(fe_trace_groups *found, int folder, const char *name, int pid) {
    char link[64];
    fe_snap snap;
    ssize_t n = readlinkat(folder, name, link, sizeof link - 1);
    if (n < 0) return true;
    link[n] = 0;
    if (strncmp(link, HEAP_LINK, strlen(HEAP_LINK)) != 0) return true;
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return true;
    bool heap = take(fd, pid, &snap);
    close(fd);
    return !heap || keep(found, &snap);
}

static bool look_into(fe_trace_groups *found, int pid) {
    char path[32];
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *folder = opendir(path);
    bool good = true;
    if (!folder) return true; /* gone, or another user's */
    for (struct dirent *e; good && (e = readdir(folder));)
        if (isdigit((unsigned char)e->d_name[0])) good = look_at(found, dirfd(folder), e->d_name, pid);
    closedir(folder);
    return good;
}

static bool wanted(const fe_trace_group *g, const char *target) {
    char number[24], pid[16];
    snprintf(number, sizeof number, "%016llx", (unsigned long long)g->group);
    bool named = !target || strncmp(number, target, strlen(target)) == 0;
    for (int i = 0; i < g->count && !named; i++) {
        snprintf(pid, sizeof pid, "%d", g->snap[i].pid);
        named = strcmp(pid, target) == 0;
    }
    return named;
}

static void drop(fe_trace_group *g) {
    for (int i = 0; i < g->count; i++) fe_snap_free(&g->snap[i]);
    free(g->snap);
}

static int by_rank(const void *a, const void *b) {
    const fe_snap *left = a, *right = b;
    return left->rank - right->rank;
}

bool fe_trace_find(const char *target, fe_trace_groups *found) {
    *found = (fe_trace_groups){NULL, 0};
    DIR *proc = opendir("/proc");
    bool good = true;
    if (!proc) return true;
    for (struct dirent *e; good && (e = readdir(proc));)
        if (isdigit((unsigned char)e->d_name[0])) good = look_into(found, (int)strtol(e->d_name, NULL, 10));
    closedir(proc);
    int kept = 0;
    for (int i = 0; i < found->count; i++) {
        if (wanted(&found->group[i], target))
            found->group[kept++] = found->group[i];
        else
            drop(&found->group[i]);
    }
    found->count = kept;
    for (int i = 0; i < kept; i++) qsort(found->group[i].snap, (size_t)found->group[i].count, sizeof(fe_snap), by_rank);
    return good;
}

void fe_trace_free(fe_trace_groups *found) {
    for (int i = 0; i < found->count; i++) drop(&found->group[i]);
    free(found->group);
    *found = (fe_trace_groups){NULL, 0};
}

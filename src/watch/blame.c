/* Who is late, and whose fault it is: a rank that waits itself is not to blame for being late. */
#include "base/log.h"
#include "watch/watch.h"

#include <errno.h>
#include <stdio.h>

typedef struct awaited {
    const fe_cell *cell;
    uint64_t epoch;
} awaited;

static bool cell_reached(const void *what) {
    const awaited *a = what;
    /* Sequentially consistent, which includes acquire: see sleep_on_bell. A plain load on x86-64, ldar on aarch64. */
    return atomic_load(&a->cell->epoch) >= a->epoch;
}

typedef enum fate { ALIVE, STOPPED, DEAD } fate;

/* State letter of /proc/PID/stat (proc(5)): after the last ')' of the command name. */
static fate process_fate(int pid) {
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file) return errno == ENOENT || errno == ESRCH ? DEAD : ALIVE; /* else we may not look */
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    const char *end = strrchr(text, ')');
    int state = end && end[1] == ' ' ? end[2] : 'R';
    return state == 'Z' || state == 'X' ? DEAD : state == 'T' || state == 't' ? STOPPED : ALIVE;
}

/* How sure we are that a late rank is the cause: 3 dead or stopped, 2 busy elsewhere, 1 itself waiting or failed. */
static int guilt(const fe_heap *heap, int rank, fate *why) {
    const fe_control *control = fe_heap_control(heap, rank);
    bool other_process = control->pid != fe_heap_control(heap, heap->rank)->pid;
    *why = other_process ? process_fate(control->pid) : ALIVE;
    if (*why != ALIVE) return 3;
    return atomic_load(&control->waiting) || atomic_load(&control->failed) ? 1 : 2;
}

ferry_status fe_watch_blame(const fe_watch *watch, const char *step, uint64_t epoch, const uint64_t *seen) {
    const fe_heap *heap = watch->heap;
    char names[FE_SENTENCE / 2];
    int most = 0;
    size_t used = 0;
    atomic_store(&fe_heap_control(heap, heap->rank)->failed, 1);
    for (int r = 0; r < heap->ranks; r++) {
        if (seen[r] >= epoch) continue;
        fate why;
        int weight = guilt(heap, r, &why);
        if (weight < most) continue;
        if (weight > most) used = 0;
        most = weight;
        static const char *const notes[] = {[ALIVE] = "", [STOPPED] = ", process stopped", [DEAD] = ", process gone"};
        if (used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%srank %d (reached %llu of %llu%s)",
                                     used ? ", " : "", r, (unsigned long long)seen[r], (unsigned long long)epoch,
                                     notes[why]);
    }
    return fe_fail(FERRY_TIMEOUT, "rank %d waited %lld ms in %s for %s", heap->rank,
                   (long long)(watch->timeout_ns / 1000000), step, used ? names : "a rank that came just now");
}

ferry_status fe_watch_cells(const fe_watch *watch, fe_kind kind, int half, uint64_t epoch, const char *step) {
    const fe_heap *heap = watch->heap;
    int64_t deadline = 0;
    for (int r = 0; r < heap->ranks; r++) {
        awaited a = {fe_heap_cell(heap, heap->rank, kind, half, r), epoch};
        if (cell_reached(&a)) continue;
        if (!deadline) deadline = fe_now_ns() + watch->timeout_ns;
        fe_waited waited = fe_watch_wait(watch, cell_reached, &a, deadline);
        if (waited == FE_LATE) {
            uint64_t seen[FERRY_MAX_RANKS] = {0};
            for (int i = 0; i < heap->ranks; i++)
                seen[i] = atomic_load(&fe_heap_cell(heap, heap->rank, kind, half, i)->epoch);
            return fe_watch_blame(watch, step, epoch, seen);
        }
        if (waited == FE_ABORTED) atomic_store(&fe_heap_control(heap, heap->rank)->failed, 1);
        if (waited == FE_ABORTED)
            return fe_fail(FERRY_ABORTED, "rank %d: the group was aborted while %s waited for rank %d", heap->rank,
                           step, r);
    }
    return FERRY_OK;
}

/* Who is late, and whose fault it is: a rank that waits itself is not to blame for being late. */
#include "base/log.h"
#include "watch/calls.h"
#include "watch/hang.h"

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

#define LOOK_NS 50000000 /* a rank that is so late may have gone another way */

/* Waits, past spinning, for one rank's cell. *differs: it has made another call than this rank, and will not come. */
static fe_waited await_cell(const fe_watch *watch, const awaited *a, int rank, int64_t deadline, const char *step,
                            ferry_status *differs) {
    for (int64_t now = fe_now_ns();; now = fe_now_ns()) {
        bool last = deadline - now <= LOOK_NS;
        fe_waited waited = fe_watch_rest(watch, cell_reached, a, last ? deadline : now + LOOK_NS);
        if (waited != FE_LATE) return waited;
        *differs = fe_calls_compare(watch, rank, step);
        if (*differs != FERRY_OK || last) return FE_LATE;
    }
}

/* State letter of /proc/PID/stat (proc(5)): after the last ')' of the command name. */
fe_fate fe_process_fate(int pid) {
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file) return errno == ENOENT || errno == ESRCH ? FE_DEAD : FE_ALIVE; /* else we may not look */
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    const char *end = strrchr(text, ')');
    int state = end && end[1] == ' ' ? end[2] : 'R';
    return state == 'Z' || state == 'X' ? FE_DEAD : state == 'T' || state == 't' ? FE_STOPPED : FE_ALIVE;
}

typedef enum weight { WAITING = 1, BUSY = 2, GONE = 3 } weight; /* how sure we are that a late rank is the cause */

fe_fate fe_watch_fate(const fe_heap *heap, int rank) {
    const fe_control *control = fe_heap_control(heap, rank);
    if (atomic_load(&control->council.left)) return FE_LEFT;
    return control->pid == fe_heap_control(heap, heap->rank)->pid ? FE_ALIVE : fe_process_fate(control->pid);
}

static weight guilt(const fe_heap *heap, int rank, fe_fate *why) {
    const fe_control *control = fe_heap_control(heap, rank);
    *why = fe_watch_fate(heap, rank);
    bool failed = atomic_load(&control->failed);
    if (*why != FE_ALIVE && !(*why == FE_LEFT && failed)) return GONE; /* who failed first has left for a reason */
    /* `awaited` is set for longer than `waiting`: until what it waited for has come, or `failed` is set. */
    return atomic_load(&control->awaited) || atomic_load(&control->waiting) || failed ? WAITING : BUSY;
}

static const char *const fates[] = {
    [FE_ALIVE] = "", [FE_STOPPED] = ", process stopped", [FE_DEAD] = ", process gone", [FE_LEFT] = ", it has left"};

/* A far rank is heard through its gateway here: that one's death is the better explanation. */
static weight accuse_far(const fe_watch *watch, int rank, char *text, size_t size) {
    const fe_heap *heap = watch->heap;
    int gateway = fe_hosts_gateway(&heap->hosts, rank);
    const char *trouble = watch->trouble && gateway == heap->rank ? watch->trouble(watch->far, rank) : NULL;
    fe_fate why = FE_ALIVE;
    /* One that has failed before and left is late for a reason of its own, and that is most likely the far rank. */
    bool left = atomic_load(&fe_heap_control(heap, gateway)->failed) != 0;
    if (gateway != heap->rank && !left && guilt(heap, gateway, &why) == GONE) {
        snprintf(text, size, "rank %d (%s, the gateway of rank %d)", gateway, fates[why] + 2, rank);
        return GONE;
    }
    bool lost = atomic_load(&fe_heap_control(heap, gateway)->lost) == (uint32_t)rank + 1;
    snprintf(text, size, "rank %d (on another host%s%s%s)", rank, lost ? ", its connection is lost" : "",
             trouble ? ": " : "", trouble ? trouble : "");
    return lost ? GONE : BUSY;
}

/* The gateway's own note is missing too, and it is gone: it is named for itself. */
static bool explained(const fe_watch *watch, int rank, uint64_t epoch, const uint64_t *seen) {
    fe_fate why;
    if (fe_heap_near(watch->heap, rank)) return false;
    int gateway = fe_hosts_gateway(&watch->heap->hosts, rank);
    return gateway != watch->heap->rank && seen[gateway] < epoch && guilt(watch->heap, gateway, &why) == GONE;
}

void fe_watch_await(const fe_heap *heap, int rank) {
    atomic_store(&fe_heap_control(heap, heap->rank)->awaited, (uint32_t)rank + 1);
}

/* Of a rank that is late and not to blame: for whom it waits, or did when it failed; or whom its network has given up. */
static void excuse(const fe_heap *heap, int rank, fe_fate why, char *text, size_t size) {
    const fe_control *control = fe_heap_control(heap, rank);
    uint32_t whom = atomic_load(&control->awaited);
    int other = (int)(whom ? whom : atomic_load(&control->lost)) - 1;
    bool named = other >= 0 && other < heap->ranks && other != heap->rank, left = why == FE_LEFT;
    size_t used = (size_t)snprintf(text, size, left ? ", it has failed" : ", waits itself");
    if (named)
        snprintf(text + used, size - used, " for%s rank %d%s", left ? " want of" : "", other,
                 fe_heap_near(heap, other) ? "" : " on another host");
}

static weight accuse_near(const fe_watch *watch, int rank, uint64_t epoch, uint64_t seen, char *text, size_t size) {
    char excused[80];
    fe_fate why;
    weight w = guilt(watch->heap, rank, &why);
    excuse(watch->heap, rank, why, excused, sizeof excused);
    snprintf(text, size, "rank %d (reached %llu of %llu%s)", rank, (unsigned long long)seen, (unsigned long long)epoch,
             w == WAITING ? excused : fates[why]);
    return w;
}

ferry_status fe_watch_blame(const fe_watch *watch, const char *step, uint64_t epoch, const uint64_t *seen) {
    const fe_heap *heap = watch->heap;
    char names[FE_SENTENCE / 2], text[192];
    weight most = 0;
    size_t used = 0;
    atomic_store(&fe_heap_control(heap, heap->rank)->failed, 1);
    for (int r = 0; r < heap->ranks; r++) {
        if (seen[r] >= epoch || explained(watch, r, epoch, seen)) continue;
        weight w = fe_heap_near(heap, r) ? accuse_near(watch, r, epoch, seen[r], text, sizeof text)
                                         : accuse_far(watch, r, text, sizeof text);
        if (w < most) continue;
        if (w > most) {
            used = 0;
            fe_watch_await(heap, r);
        }
        most = w;
        if (used < sizeof names)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", text);
    }
    fe_recorder_verdict(watch->recorder, step, epoch, seen, heap->ranks);
    if (watch->recorder && watch->dump_dir) fe_hang_dump(heap, watch->dump_dir);
    return fe_fail(FERRY_TIMEOUT, "rank %d waited %lld ms in %s for %s", heap->rank,
                   (long long)(watch->timeout_ns / 1000000), step, used ? names : "a rank that came just now");
}

static ferry_status ended(const fe_heap *heap, const char *step, int rank) {
    char during[96];
    atomic_store(&fe_heap_control(heap, heap->rank)->failed, 1);
    snprintf(during, sizeof during, " while %.48s waited for rank %d", step, rank);
    return fe_watch_ended(heap, during);
}

ferry_status fe_watch_cells(const fe_watch *watch, fe_kind kind, int half, uint64_t epoch, const char *step,
                            fe_step *record) {
    const fe_heap *heap = watch->heap;
    int64_t deadline = 0;
    for (int r = 0; r < heap->ranks; r++) {
        if (!fe_heap_hears(heap, kind, r)) continue;
        awaited a = {fe_heap_cell(heap, heap->rank, kind, half, r), epoch};
        if (fe_watch_spin(watch, cell_reached, &a)) continue;
        uint64_t since = watch->recorder ? fe_recorder_now(watch->recorder) : 0;
        if (!deadline) deadline = fe_now_ns() + watch->timeout_ns;
        fe_watch_await(heap, r);
        ferry_status differs = FERRY_OK;
        fe_waited waited = await_cell(watch, &a, r, deadline, step, &differs);
        fe_recorder_waited(watch->recorder, record, r, since);
        if (differs != FERRY_OK) return differs;
        if (waited == FE_LATE) {
            uint64_t seen[FERRY_MAX_RANKS] = {0};
            for (int i = 0; i < heap->ranks; i++)
                seen[i] = !fe_heap_hears(heap, kind, i)
                              ? epoch
                              : atomic_load(&fe_heap_cell(heap, heap->rank, kind, half, i)->epoch);
            return fe_watch_blame(watch, step, epoch, seen);
        }
        if (waited == FE_ABORTED) return ended(heap, step, r);
        fe_watch_await(heap, -1);
    }
    return FERRY_OK;
}

#include "watch/hang.h"
#include "base/log.h"

#include <fcntl.h>
#include <stdlib.h>

#define NAMED 8 /* ranks that a line names before it counts the rest */

static const fe_snap *find(const fe_snap *snap, int count, int rank) {
    for (int i = 0; i < count; i++)
        if (snap[i].rank == rank) return &snap[i];
    return NULL;
}

static const char *ago(int64_t now, int64_t then, char *text, size_t size) {
    double s = (double)(now - then) / 1e9;
    if (!then || s < 0)
        snprintf(text, size, "?");
    else
        snprintf(text, size, s < 1 ? "%.1f ms" : "%.1f s", s < 1 ? s * 1e3 : s);
    return text;
}

/* ---- one rank's state ---- */

typedef struct want { /* a note of every rank, that a step of this rank waits for */
    int kind, half;
    uint64_t epoch;
    int64_t since;
    bool by_cells; /* else by what the failed wait had seen */
} want;

static bool waits(const fe_snap_step *step, want *w) {
    fe_where where = fe_snap_where(step);
    int after = where == FE_WAITS_AFTER;
    if (!step->live || where == FE_MOVES) return false;
    *w = (want){step->kind[after], step->half, step->epoch[after], fe_snap_since(step), true};
    return true;
}

static uint64_t seen_of(const fe_snap *s, const want *w, int peer) {
    return w->by_cells ? fe_snap_cell(s, w->kind, w->half, peer) : s->peer[peer].seen;
}

static bool misses(const fe_snap *s, const want *w, int peer) {
    if (s->peer[peer].masked) return false;
    if (w->by_cells && (!s->cell || !fe_snap_hears(s, w->kind, peer))) return false;
    return seen_of(s, w, peer) < w->epoch;
}

static void print_missing(FILE *to, const fe_snap *s, const want *w) {
    int named = 0, rest = 0;
    for (int r = 0; r < s->ranks; r++) {
        if (!misses(s, w, r)) continue;
        if (named++ < NAMED)
            fprintf(to, "%srank %d (has said %llu)", named > 1 ? ", " : "", r, (unsigned long long)seen_of(s, w, r));
        else
            rest++;
    }
    if (rest) fprintf(to, " and %d more", rest);
    if (!named) fprintf(to, w->by_cells && !s->cell ? "ranks whose notes are in GPU memory" : "nobody any more");
}

static const fe_snap_step *last_step(const fe_snap *s) {
    for (int i = s->steps - 1; i >= 0; i--)
        if (!s->step[i].live) return &s->step[i];
    return NULL;
}

static const char *state_of(const fe_snap *s, fe_fate fate) {
    if (fate != FE_ALIVE) return fate == FE_DEAD ? "process gone" : "process stopped";
    if (s->verdict) return "timed out";
    if (s->why == FE_GROUP_ABORTED) return "aborted";
    if (s->why == FE_MASKED) return "masked: the others go on without it";
    if (s->why == FE_RECALLED) return "called to an agreement";
    return s->failed ? "failed" : NULL;
}

static void print_lane(FILE *to, const fe_snap *s, const fe_snap_step *step) {
    char since[32];
    want w;
    ago(s->taken_ns, fe_snap_since(step), since, sizeof since);
    fprintf(to, "%s", step->text);
    if (step->lane) fprintf(to, " on stream %d", step->lane);
    if (step->route) fprintf(to, ", route %llu", (unsigned long long)step->route);
    if (!waits(step, &w)) {
        fprintf(to, ": at work since %s\n", since);
        return;
    }
    fprintf(to, ": waits since %s for %s %llu of ", since, fe_kind_name(w.kind), (unsigned long long)w.epoch);
    print_missing(to, s, &w);
    fputc('\n', to);
}

static void print_idle(FILE *to, const fe_snap *s) {
    const fe_snap_step *last = last_step(s);
    char since[32];
    if (!last)
        fprintf(to, "in no step, and has been in none\n");
    else if (last->at[FE_STEP_END])
        fprintf(to, "in no step; the last was %s%s%s, over for %s\n", last->text, last->status ? ", " : "",
                last->status ? ferry_status_name((ferry_status)last->status) : "",
                ago(s->taken_ns, last->at[FE_STEP_END], since, sizeof since));
    else
        fprintf(to, "the last step put on a stream was %s, %s ago\n", last->text,
                ago(s->taken_ns, last->at[FE_STEP_START], since, sizeof since));
}

static void print_rank(FILE *to, const fe_snap *s) {
    fe_fate fate = fe_process_fate(s->pid);
    const char *state = state_of(s, fate);
    int lines = 0;
    char head[64];
    snprintf(head, sizeof head, "rank %-4d pid %-8d", s->rank, s->pid);
    fprintf(to, "%s", head);
    if (state) fprintf(to, "%s; ", state);
    for (int i = 0; i < s->steps; i++) {
        if (!s->step[i].live) continue;
        if (lines++) fprintf(to, "%*s", (int)strlen(head), "");
        print_lane(to, s, &s->step[i]);
    }
    if (!lines) print_idle(to, s);
    if (!s->verdict) return;
    char since[32];
    want w = {.epoch = s->failed_epoch};
    fprintf(to, "%*sgave up %s, %s ago, for want of %llu of ", (int)strlen(head), "", s->failed_step,
            ago(s->taken_ns, s->failed_ns, since, sizeof since), (unsigned long long)s->failed_epoch);
    print_missing(to, s, &w);
    fputc('\n', to);
}

/* ---- who is to blame ---- */

/* Marks who is waited for by somebody, and who waits himself. Of a rank whose wait has failed, by what it had seen. */
static void mark(const fe_snap *s, bool *awaited, bool *waiting) {
    for (int i = 0; i <= s->steps; i++) {
        want w = {.epoch = s->failed_epoch};
        if (i < s->steps ? !waits(&s->step[i], &w) : !s->verdict) continue;
        for (int r = 0; r < s->ranks; r++) {
            if (!misses(s, &w, r)) continue;
            awaited[r] = true;
            waiting[s->rank] = true;
        }
    }
}

static void print_cause(FILE *to, const fe_snap *snap, int count, const bool *awaited, const bool *waiting) {
    int ranks = snap[0].ranks, causes = 0, anyone = 0;
    for (int r = 0; r < ranks; r++) {
        const fe_snap *s = find(snap, count, r);
        bool stuck = s && fe_process_fate(s->pid) != FE_ALIVE;
        anyone += awaited[r];
        if (!awaited[r] || (waiting[r] && !stuck)) continue;
        fprintf(to, "%srank %d", causes++ ? ", " : "=> all wait for ", r);
        if (!s) fprintf(to, " (not seen here: gone, or on another host)");
    }
    if (causes)
        fputc('\n', to);
    else if (anyone)
        fprintf(to, "=> a circle: every rank that is waited for waits for another\n");
    else
        fprintf(to, "=> nobody waits for another rank\n");
}

void fe_hang_print(FILE *to, const fe_snap *snap, int count) {
    bool *marks = count > 0 ? calloc((size_t)snap[0].ranks * 2, sizeof *marks) : NULL;
    if (!marks) return;
    fprintf(to, "group %016llx: %d of %d ranks seen\n", (unsigned long long)snap[0].group, count, snap[0].ranks);
    for (int i = 0; i < count; i++) {
        if (snap[i].ranks != snap[0].ranks) continue; /* it is of no group of ours, whatever it says */
        print_rank(to, &snap[i]);
        mark(&snap[i], marks, marks + snap[0].ranks);
    }
    print_cause(to, snap, count, marks, marks + snap[0].ranks);
    free(marks);
}

/* ---- the file after a timeout ---- */

static int take_near(const fe_heap *heap, fe_snap *snap) {
    int count = 0;
    const char *why;
    for (int r = 0; r < heap->ranks; r++)
        if (fe_heap_near(heap, r)) count += fe_snap_take(heap->base[r], heap->bytes, &snap[count], &why);
    return count;
}

static void write_all(const fe_heap *heap, const char *path, const fe_snap *snap, int count) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (file) {
        fprintf(file, "written by rank %d, whose wait has failed\n", heap->rank);
        fe_hang_print(file, snap, count);
    }
    if (file ? fclose(file) == 0 : false) return;
    fe_log(FE_WARN, FE_MOVE, "rank %d: %s could not be written: errno %d", heap->rank, path, errno);
    if (!file && fd >= 0) close(fd);
}

void fe_hang_dump(const fe_heap *heap, const char *directory) {
    char path[4096];
    fe_snap *snap = calloc((size_t)heap->ranks, sizeof *snap);
    if (!snap) return;
    int count = take_near(heap, snap);
    snprintf(path, sizeof path, "%s/ferry-%016llx-%d-%d.txt", directory, (unsigned long long)heap->group, heap->rank,
             (int)getpid());
    write_all(heap, path, snap, count);
    for (int i = 0; i < count; i++) fe_snap_free(&snap[i]);
    free(snap);
}

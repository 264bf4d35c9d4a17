#include "watch/council.h"
#include "base/log.h"

#include <stdio.h>

#define LOOK_NS 2000000 /* between two looks at /proc: a wait wakes more often */

typedef struct session {
    const fe_watch *watch;
    const fe_heap *heap;
    uint64_t before, era;      /* the last decision; what is to begin */
    bool member, called;       /* this rank is of the group now; it has called the others */
    bool loss;                 /* a rank of the group is gone */
    int64_t look_ns;           /* when to look at processes again */
    const fe_verdict *verdict; /* settling */
    bool gone[FERRY_MAX_RANKS];
} session;

static fe_council *council_of(const fe_heap *heap, int rank) {
    return &fe_heap_control(heap, rank)->council;
}

static _Atomic uint64_t *decided(const fe_heap *heap) {
    return &council_of(heap, 0)->decided;
}

/* Of a masked rank that a newcomer never met there is nothing to see. */
static bool has_come(const session *s, int rank) {
    return fe_heap_near(s->heap, rank) && atomic_load(&council_of(s->heap, rank)->came) == s->era;
}

static void ring_all(const fe_heap *heap) {
    for (int r = 0; r < heap->ranks; r++)
        if (r != heap->rank && fe_heap_near(heap, r)) fe_watch_ring(heap, r);
}

/* ---- coming ---- */

static void write_story(_Atomic uint64_t to[FE_STORY_WORDS], const fe_story *story) {
    const uint64_t words[FE_STORY_WORDS] = {story->now, story->before, story->calls, story->freed, story->argument};
    for (size_t i = 0; i < FE_STORY_WORDS; i++) atomic_store(&to[i], words[i]);
}

static fe_story read_story(const _Atomic uint64_t from[FE_STORY_WORDS]) {
    return (fe_story){.now = atomic_load(&from[0]),
                      .before = atomic_load(&from[1]),
                      .calls = atomic_load(&from[2]),
                      .freed = atomic_load(&from[3]),
                      .argument = atomic_load(&from[4])};
}

/* What is said comes before the word that says that it is said: all of it is sequentially consistent. */
static void come(const session *s, const int8_t *wish) {
    fe_council *mine = council_of(s->heap, s->heap->rank);
    uint64_t out[FE_MASK_WORDS] = {0}, in[FE_MASK_WORDS] = {0};
    for (int r = 0; r < s->heap->ranks; r++) {
        if (wish[r] > 0) out[r / 64] |= (uint64_t)1 << r % 64;
        if (wish[r] < 0) in[r / 64] |= (uint64_t)1 << r % 64;
    }
    for (int i = 0; i < FE_MASK_WORDS; i++) {
        atomic_store(&mine->out[i], out[i]);
        atomic_store(&mine->in[i], in[i]);
    }
    write_story(mine->story, &s->heap->story);
    atomic_store(&mine->came, s->era);
    ring_all(s->heap);
}

void fe_council_withdraw(const fe_heap *heap) {
    atomic_store(&council_of(heap, heap->rank)->came, 0);
    ring_all(heap);
}

/* ---- who is to be of it ---- */

typedef struct wishes {
    uint64_t out[FE_MASK_WORDS], in[FE_MASK_WORDS];
} wishes;

/* Of the ranks of the group that have come, in ascending order; who is out by then is not asked, so somebody always stays. */
static void collect(const session *s, wishes *w) {
    *w = (wishes){{0}, {0}};
    for (int r = 0; r < s->heap->ranks; r++) {
        if (fe_heap_masked(s->heap, r) || !has_come(s, r) || fe_bit(w->out, r)) continue;
        const fe_council *c = council_of(s->heap, r);
        for (int i = 0; i < FE_MASK_WORDS; i++) {
            w->out[i] |= atomic_load(&c->out[i]);
            w->in[i] |= atomic_load(&c->in[i]);
        }
    }
}

static bool is_wanted(const session *s, const wishes *w, int rank) {
    return !fe_bit(w->out, rank) && !s->gone[rank] && (!fe_heap_masked(s->heap, rank) || fe_bit(w->in, rank));
}

/* Everybody has come who can. */
static bool is_complete(const session *s) {
    wishes w;
    collect(s, &w);
    for (int r = 0; r < s->heap->ranks; r++)
        if (is_wanted(s, &w, r) && !has_come(s, r)) return false;
    return true;
}

static void look_around(session *s) {
    int64_t now = fe_now_ns();
    if (now < s->look_ns) return;
    s->look_ns = now + LOOK_NS;
    for (int r = 0; r < s->heap->ranks; r++) {
        if (s->gone[r] || r == s->heap->rank || !fe_heap_near(s->heap, r)) continue;
        fe_fate fate = fe_watch_fate(s->heap, r);
        s->gone[r] = fate == FE_DEAD || fate == FE_LEFT;
        if (s->gone[r] && !fe_heap_masked(s->heap, r)) s->loss = true;
    }
}

/* Ranks of one era are at most one call apart: a call of the heap's ends for the first when all have come to it. */
static fe_story furthest(const session *s) {
    fe_story best = s->heap->story;
    for (int r = 0; r < s->heap->ranks; r++) {
        if (fe_heap_masked(s->heap, r) || !has_come(s, r)) continue;
        fe_story story = read_story(council_of(s->heap, r)->story);
        if (story.calls > best.calls) best = story;
    }
    return best;
}

static void write_motion(const fe_heap *heap, uint64_t era, const uint64_t member[FE_MASK_WORDS],
                         const fe_story *story) {
    fe_minutes *motion = &council_of(heap, heap->rank)->motion[era & 1];
    for (int i = 0; i < FE_MASK_WORDS; i++) atomic_store(&motion->member[i], member[i]);
    write_story(motion->story, story);
}

/* Puts the motion, and if nobody was faster it is decided. Whoever has come and is wanted is of it; who was away while the heap was used
 * has other offsets, and is not. */
static void move(const session *s) {
    const fe_heap *heap = s->heap;
    uint64_t member[FE_MASK_WORDS] = {0}, expected = s->before;
    fe_story best = furthest(s);
    wishes w;
    collect(s, &w);
    for (int r = 0; r < heap->ranks; r++) {
        if (!has_come(s, r) || !is_wanted(s, &w, r)) continue;
        fe_story story = read_story(council_of(heap, r)->story);
        if (story.now == best.now || story.now == best.before) member[r / 64] |= (uint64_t)1 << r % 64;
    }
    write_motion(heap, s->era, member, &best);
    if (atomic_compare_exchange_strong(decided(heap), &expected, s->era << 16 | (uint64_t)heap->rank)) ring_all(heap);
}

/* A motion is written over only by an author who has seen a later decision: if there is none yet, what was read is whole. */
static void read_verdict(const fe_heap *heap, fe_verdict *v) {
    uint64_t word;
    do {
        word = atomic_load(decided(heap));
        const fe_minutes *motion = &council_of(heap, (int)(word & 0xffff))->motion[word >> 16 & 1];
        for (int i = 0; i < FE_MASK_WORDS; i++) v->member[i] = atomic_load(&motion->member[i]);
        v->story = read_story(motion->story);
    } while (atomic_load(decided(heap)) != word);
    v->era = word >> 16;
}

void fe_council_record(const fe_heap *heap, const fe_verdict *v) {
    int lowest = 0;
    while (!fe_bit(v->member, lowest)) lowest++;
    atomic_store(&council_of(heap, heap->rank)->settled, v->era);
    if (heap->rank != lowest) return;
    write_motion(heap, v->era, v->member, &v->story);
    atomic_store(decided(heap), v->era << 16 | (uint64_t)lowest);
}

/* ---- waiting for it ---- */

static bool stirs(const void *what) {
    session *s = (session *)(uintptr_t)what;
    if (atomic_load(decided(s->heap)) != s->before) return true;
    if (!s->member) return false;
    look_around(s);
    return is_complete(s) || (s->loss && !s->called);
}

static void call_others(session *s) {
    s->called = true;
    for (int r = 0; r < s->heap->ranks; r++)
        if (r != s->heap->rank && !fe_heap_masked(s->heap, r) && !has_come(s, r)) fe_watch_recall(s->heap, r);
}

/* Who is not of the group decides nothing, and leaves when its time is over. */
static ferry_status give_up_coming(const session *s) {
    fe_council_withdraw(s->heap);
    if (atomic_load(decided(s->heap)) != s->before) return FERRY_OK;
    return fe_fail(FERRY_TIMEOUT, "rank %d is masked, and waited %lld ms for the others to hold an agreement",
                   s->heap->rank, (long long)(s->watch->timeout_ns / 1000000));
}

static ferry_status await_verdict(session *s, bool hurt) {
    int64_t begun = fe_now_ns(), deadline = begun + s->watch->timeout_ns, patience = begun + s->watch->timeout_ns / 2;
    if (hurt && s->member) call_others(s);
    for (;;) {
        int64_t until = s->member && !s->called ? patience : deadline;
        if (fe_watch_wait_on(s->watch, stirs, s, until) == FE_ABORTED) {
            fe_council_withdraw(s->heap);
            return fe_watch_ended(s->heap, " at an agreement");
        }
        if (atomic_load(decided(s->heap)) != s->before) return FERRY_OK;
        if (!s->member) return give_up_coming(s);
        if (is_complete(s) || fe_now_ns() >= deadline)
            move(s);
        else if (!s->called)
            call_others(s);
    }
}

static ferry_status judge(const fe_heap *heap, const fe_verdict *v) {
    if (fe_bit(v->member, heap->rank)) return FERRY_OK;
    return fe_fail(FERRY_REFUSED, "rank %d: the other ranks go on without it, since agreement %llu", heap->rank,
                   (unsigned long long)v->era);
}

ferry_status fe_council_hold(const fe_watch *watch, const int8_t *wish, bool hurt, fe_verdict *verdict) {
    const fe_heap *heap = watch->heap;
    session s = {.watch = watch, .heap = heap, .before = atomic_load(decided(heap))};
    s.era = (s.before >> 16) + 1;
    s.member = !fe_heap_masked(heap, heap->rank);
    if (!s.member || s.era == heap->era + 1) { /* else they have agreed without this rank */
        come(&s, wish);
        FE_TRY(await_verdict(&s, hurt));
    }
    read_verdict(heap, verdict);
    fe_log(FE_INFO, FE_INIT, "rank %d: agreement %llu", heap->rank, (unsigned long long)verdict->era);
    return judge(heap, verdict);
}

/* ---- settling ---- */

static bool has_settled(const session *s, int rank) {
    return !fe_bit(s->verdict->member, rank) || atomic_load(&council_of(s->heap, rank)->settled) >= s->verdict->era;
}

/* The lowest rank that has not; -1: all have. */
static int unsettled(const session *s) {
    for (int r = 0; r < s->heap->ranks; r++)
        if (!has_settled(s, r)) return r;
    return -1;
}

/* A rank that is gone, or has withdrawn, will not. What it had said before is looked at first: all see that alike. */
static bool is_lost(const session *s, int rank) {
    return !has_settled(s, rank) && (s->gone[rank] || !has_come(s, rank)) && !has_settled(s, rank);
}

static bool settles(const void *what) {
    session *s = (session *)(uintptr_t)what;
    if (unsettled(s) < 0) return true;
    look_around(s);
    for (int r = 0; r < s->heap->ranks; r++)
        if (is_lost(s, r)) return true;
    return false;
}

/* All have settled, and what they have said stands. */
static ferry_status compare_maps(const fe_heap *heap, const fe_verdict *verdict, uint64_t map) {
    for (int r = 0; r < heap->ranks; r++)
        if (fe_bit(verdict->member, r) && atomic_load(&council_of(heap, r)->map) != map)
            return fe_fail(FERRY_MISMATCH,
                           "rank %d: the map of experts differs on rank %d: one of them was out when experts moved; "
                           "ferry_group_reconfigure with an id brings one map to all",
                           heap->rank, r);
    return FERRY_OK;
}

ferry_status fe_council_settle(const fe_watch *watch, const fe_verdict *verdict, uint64_t map) {
    const fe_heap *heap = watch->heap;
    session s = {.watch = watch, .heap = heap, .era = verdict->era, .verdict = verdict};
    atomic_store(&council_of(heap, heap->rank)->map, map);
    atomic_store(&council_of(heap, heap->rank)->settled, verdict->era);
    ring_all(heap);
    fe_waited waited = fe_watch_wait(watch, settles, &s, fe_now_ns() + watch->timeout_ns);
    int missing = unsettled(&s);
    if (missing < 0) return compare_maps(heap, verdict, map);
    if (waited == FE_ABORTED) return fe_watch_ended(heap, " while another came into force");
    return fe_fail(FERRY_TIMEOUT, "rank %d: rank %d was lost while agreement %llu came into force", heap->rank, missing,
                   (unsigned long long)verdict->era);
}

/* The allocator of the user's heap against a map of its grains: what first fit over coalesced blocks must answer. */
#include "heap/heap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define GRAIN   256
#define AT      ((size_t)3 * 4096) /* where the user's part begins */
#define MOST    512                /* grains of the largest heap here */
#define RUNS    60
#define STEPS   400
#define NOTHING 0

/* A heap that is its block list alone, with room for `room` blocks before the list must grow. */
static fe_heap new_heap(size_t grains, size_t room) {
    fe_heap heap = {.rank = 5, .user_at = AT, .user_bytes = grains * GRAIN, .block_room = room};
    heap.block = calloc(room, sizeof *heap.block);
    assert_non_null(heap.block);
    heap.blocks = grains ? 1 : 0;
    heap.block[0] = (fe_block){.offset = AT, .bytes = heap.user_bytes};
    return heap;
}

/* ---- the model: owner[i] is the number of the allocation that has grain i, or NOTHING ---- */

typedef struct model {
    size_t grains;
    int owner[MOST];
    int made; /* allocations so far */
} model;

static int64_t model_take(model *m, size_t bytes) {
    size_t wanted = bytes / GRAIN + (bytes % GRAIN != 0), run = 0;
    if (wanted == 0) wanted = 1;
    for (size_t i = 0; i < m->grains; i++) {
        run = m->owner[i] == NOTHING ? run + 1 : 0;
        if (run < wanted) continue;
        m->made++;
        for (size_t j = i + 1 - wanted; j <= i; j++) m->owner[j] = m->made;
        return (int64_t)(AT + (i + 1 - wanted) * GRAIN);
    }
    return -1;
}

/* Does an allocation begin at this grain? */
static bool model_begins(const model *m, size_t grain) {
    return m->owner[grain] != NOTHING && (grain == 0 || m->owner[grain - 1] != m->owner[grain]);
}

static void model_give(model *m, size_t grain) {
    for (int owner = m->owner[grain]; grain < m->grains && m->owner[grain] == owner; grain++) m->owner[grain] = NOTHING;
}

static size_t model_largest(const model *m) {
    size_t largest = 0, run = 0;
    for (size_t i = 0; i < m->grains; i++) {
        run = m->owner[i] == NOTHING ? run + 1 : 0;
        if (run > largest) largest = run;
    }
    return largest * GRAIN;
}

/* The list tiles the heap in address order, agrees with the model grain by grain, and has no two free neighbours. */
static void assert_same(const fe_heap *heap, const model *m) {
    size_t at = AT;
    assert_true(heap->blocks <= heap->block_room);
    for (size_t b = 0; b < heap->blocks; b++) {
        const fe_block *block = &heap->block[b];
        assert_int_equal(block->offset, at);
        assert_true(block->bytes > 0 && block->bytes % GRAIN == 0);
        assert_true(block->used || b == 0 || heap->block[b - 1].used);
        size_t first = (at - AT) / GRAIN, count = block->bytes / GRAIN;
        assert_true(first + count <= m->grains);
        for (size_t i = first; i < first + count; i++)
            assert_int_equal(m->owner[i], block->used ? m->owner[first] : NOTHING);
        assert_true(block->used == model_begins(m, first));
        at += block->bytes;
    }
    assert_int_equal(at, AT + m->grains * GRAIN);
    assert_int_equal(fe_heap_largest(heap), model_largest(m));
}

static uint64_t next(uint64_t *state) { /* splitmix64, Steele, Lea and Flood 2014 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static size_t pick(uint64_t *state, size_t low, size_t high) {
    return low + (size_t)(next(state) % (uint64_t)(high - low + 1));
}

/* Of all kinds: nothing, odd bytes, whole grains, about the largest hole, more than there is. */
static size_t draw_bytes(const fe_heap *heap, uint64_t *s) {
    switch (pick(s, 0, 9)) {
    case 0: return 0;
    case 1: return fe_heap_largest(heap);
    case 2: return fe_heap_largest(heap) + 1;
    case 3: return heap->user_bytes - pick(s, 0, 1);
    case 4: return SIZE_MAX - pick(s, 0, 512);
    case 5: return pick(s, 1, 4) * GRAIN;
    case 6: return pick(s, 0, heap->user_bytes);
    default: return pick(s, 1, 12 * GRAIN);
    }
}

/* Any multiple of half a grain, from before the heap to past its end: most are no allocation's start. */
static void try_give(fe_heap *heap, model *m, int64_t offset) {
    int64_t at = offset - (int64_t)AT;
    bool starts = at >= 0 && at % GRAIN == 0 && (size_t)at / GRAIN < m->grains && model_begins(m, (size_t)at / GRAIN);
    assert_true(fe_heap_taken(heap, offset) == starts);
    assert_int_equal(fe_heap_give(heap, offset), starts ? FERRY_OK : FERRY_INVALID);
    if (starts) model_give(m, (size_t)at / GRAIN);
    assert_false(fe_heap_taken(heap, offset));
}

static void test_model(void **state) {
    (void)state;
    for (uint64_t run = 0; run < RUNS; run++) {
        uint64_t seed = run, *s = &seed;
        model m = {.grains = pick(s, 0, 9) ? pick(s, 1, MOST) : 0};
        fe_heap heap = new_heap(m.grains, pick(s, 1, 3));
        size_t takes = pick(s, 30, 70); /* percent: heaps that fill up, and heaps that stay empty */
        for (int step = 0; step < STEPS; step++) {
            if (pick(s, 1, 100) <= takes) {
                size_t bytes = draw_bytes(&heap, s);
                int64_t offset = fe_heap_take(&heap, bytes);
                assert_int_equal(offset, model_take(&m, bytes));
                assert_true(offset < 0 || offset % GRAIN == 0);
            } else {
                try_give(&heap, &m, (int64_t)(AT - GRAIN + pick(s, 0, 2 * m.grains + 4) * (GRAIN / 2)));
            }
            assert_same(&heap, &m);
        }
        for (size_t i = 0; i < m.grains; i++) /* all back: one hole again, as large as the heap */
            if (model_begins(&m, i)) try_give(&heap, &m, (int64_t)(AT + i * GRAIN));
        assert_same(&heap, &m);
        assert_int_equal(fe_heap_largest(&heap), m.grains * GRAIN);
        free(heap.block);
    }
}

/* Two ranks that make the same calls have the same list, whatever their lists' room. */
static void test_symmetric(void **state) {
    (void)state;
    uint64_t seed = 77, *s = &seed;
    fe_heap a = new_heap(300, 1), b = new_heap(300, 64);
    for (int step = 0; step < 2000; step++) {
        if (pick(s, 0, 1)) {
            size_t bytes = draw_bytes(&a, s);
            assert_int_equal(fe_heap_take(&a, bytes), fe_heap_take(&b, bytes));
        } else {
            int64_t offset = (int64_t)(AT + pick(s, 0, 299) * GRAIN);
            assert_int_equal(fe_heap_give(&a, offset), fe_heap_give(&b, offset));
        }
        assert_int_equal(a.blocks, b.blocks);
    }
    free(a.block);
    free(b.block);
}

static void test_by_hand(void **state) {
    (void)state;
    fe_heap heap = new_heap(4, 1);
    assert_int_equal(fe_heap_largest(&heap), 1024);
    assert_int_equal(fe_heap_take(&heap, 1), AT);         /* one grain */
    assert_int_equal(fe_heap_take(&heap, 0), AT + 256);   /* nothing has a place of its own too */
    assert_int_equal(fe_heap_take(&heap, 257), AT + 512); /* two */
    assert_int_equal(fe_heap_largest(&heap), 0);
    assert_int_equal(fe_heap_take(&heap, 0), -1);
    assert_int_equal(fe_heap_take(&heap, 1), -1);
    assert_int_equal(fe_heap_give(&heap, AT), FERRY_OK);
    assert_int_equal(fe_heap_give(&heap, AT + 512), FERRY_OK);
    assert_int_equal(fe_heap_largest(&heap), 512); /* three grains free, but not in one place */
    assert_int_equal(fe_heap_take(&heap, 768), -1);
    assert_int_equal(fe_heap_take(&heap, 512), AT + 512);
    assert_int_equal(fe_heap_give(&heap, AT + 512), FERRY_OK);
    assert_int_equal(fe_heap_give(&heap, AT + 256), FERRY_OK); /* the middle joins both sides */
    assert_int_equal(heap.blocks, 1);
    assert_int_equal(fe_heap_take(&heap, 1024), AT);
    free(heap.block);
}

/* With a block's room in reserve the next allocation needs no memory, and so cannot fail on one rank alone. */
static void test_reserve(void **state) {
    (void)state;
    fe_heap heap = new_heap(64, 1);
    for (int i = 0; i < 64; i++) {
        assert_int_equal(fe_heap_reserve(&heap), FERRY_OK);
        assert_true(heap.blocks < heap.block_room);
        fe_block *list = heap.block;
        assert_int_equal(fe_heap_take(&heap, 1), AT + (size_t)i * GRAIN);
        assert_ptr_equal(heap.block, list);
    }
    assert_int_equal(fe_heap_take(&heap, 1), -1);
    free(heap.block);
}

static void test_refused(void **state) {
    (void)state;
    fe_heap heap = new_heap(8, 16);
    assert_int_equal(fe_heap_take(&heap, 512), AT);
    assert_int_equal(fe_heap_give(&heap, AT + 256), FERRY_INVALID); /* inside, not its start */
    assert_string_equal(ferry_last_error(), "rank 5: heap offset 12544 is not the start of an allocation");
    assert_int_equal(fe_heap_give(&heap, 0), FERRY_INVALID);
    assert_int_equal(fe_heap_give(&heap, -1), FERRY_INVALID);
    assert_int_equal(fe_heap_give(&heap, INT64_MIN), FERRY_INVALID);
    assert_true(fe_heap_taken(&heap, AT));
    assert_int_equal(fe_heap_give(&heap, AT), FERRY_OK);
    assert_int_equal(fe_heap_give(&heap, AT), FERRY_INVALID); /* twice */
    assert_string_equal(ferry_last_error(), "rank 5: heap offset 12288 is not the start of an allocation");
    assert_int_equal(fe_heap_largest(&heap), 2048);
    free(heap.block);
    heap = new_heap(0, 16); /* a group without a heap */
    assert_int_equal(fe_heap_take(&heap, 0), -1);
    assert_int_equal(fe_heap_take(&heap, 1), -1);
    assert_int_equal(fe_heap_give(&heap, AT), FERRY_INVALID);
    assert_int_equal(fe_heap_largest(&heap), 0);
    free(heap.block);
}

static void assert_alike(const fe_heap *a, const fe_heap *b) {
    assert_int_equal(a->blocks, b->blocks);
    for (size_t i = 0; i < a->blocks; i++) {
        assert_int_equal(a->block[i].offset, b->block[i].offset);
        assert_int_equal(a->block[i].used, b->block[i].used);
    }
    assert_memory_equal(&a->story, &b->story, sizeof a->story);
}

/* A rank that a call passed by makes it up by what another tells of it. */
static void test_story(void **state) {
    (void)state;
    fe_heap one = new_heap(64, 16), other = new_heap(64, 16);
    fe_heap_begin(&one);
    fe_heap_begin(&other);
    uint64_t empty = one.story.now;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(fe_heap_take(&one, 500), AT + (size_t)i * 512);
        assert_int_equal(other.story.now, one.story.before);
        assert_int_equal(fe_heap_follow(&other, &one.story), FERRY_OK);
        assert_alike(&one, &other);
        assert_int_equal(fe_heap_follow(&other, &one.story), FERRY_OK); /* nothing to make up */
        assert_alike(&one, &other);
    }
    for (int i = 2; i >= 0; i--) {
        assert_int_equal(fe_heap_give(&one, (int64_t)(AT + (size_t)i * 512)), FERRY_OK);
        assert_int_not_equal(other.story.now, one.story.now);
        assert_int_equal(fe_heap_follow(&other, &one.story), FERRY_OK);
        assert_alike(&one, &other);
    }
    assert_int_equal(one.story.now, empty); /* as if nothing had been */
    assert_int_equal(one.story.calls, 6);
    assert_int_equal(fe_heap_take(&one, 1 << 20), -1);
    assert_int_equal(one.story.calls, 6); /* what fails changes nothing */
    free(one.block);
    free(other.block);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_by_hand),   cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_reserve),   cmocka_unit_test(test_model),
                                       cmocka_unit_test(test_symmetric), cmocka_unit_test(test_story)};
    return cmocka_run_group_tests_name("heap_alloc", tests, NULL, NULL);
}

/* First fit over a list of blocks in address order. Symmetric because it is deterministic: every rank makes the same calls in
 * the same order, so every rank has the same list. */
#include "base/hash.h"
#include "heap/heap.h"

#include <stdlib.h>

#define GRAIN ((size_t)256) /* alignment of an allocation: whole cache lines, and what bulk copies on a GPU want */

ferry_status fe_heap_reserve(fe_heap *heap) {
    if (heap->blocks < heap->block_room) return FERRY_OK;
    size_t room = 2 * heap->block_room + 16;
    fe_block *more = realloc(heap->block, room * sizeof *more);
    if (!more) return fe_fail(FERRY_NOMEM, "rank %d: no memory for the heap's list of blocks", heap->rank);
    heap->block = more;
    heap->block_room = room;
    return FERRY_OK;
}

static bool insert_block(fe_heap *heap, size_t at, fe_block block) {
    if (fe_heap_reserve(heap) != FERRY_OK) return false;
    memmove(&heap->block[at + 1], &heap->block[at], (heap->blocks - at) * sizeof block);
    heap->block[at] = block;
    heap->blocks++;
    return true;
}

static void remove_block(fe_heap *heap, size_t at) {
    heap->blocks--;
    memmove(&heap->block[at], &heap->block[at + 1], (heap->blocks - at) * sizeof *heap->block);
}

/* Splits a block for them. -1: there is none as large. */
static int64_t take_block(fe_heap *heap, size_t bytes) {
    if (bytes > heap->user_bytes) return -1;
    bytes = bytes ? (bytes + GRAIN - 1) / GRAIN * GRAIN : GRAIN;
    for (size_t i = 0; i < heap->blocks; i++) {
        fe_block *block = &heap->block[i];
        if (block->used || block->bytes < bytes) continue;
        size_t offset = block->offset;
        if (block->bytes > bytes) {
            fe_block rest = {.offset = offset + bytes, .bytes = block->bytes - bytes};
            if (!insert_block(heap, i + 1, rest)) return -1;
            block = &heap->block[i];
        }
        *block = (fe_block){.offset = offset, .bytes = bytes, .used = true};
        return (int64_t)offset;
    }
    return -1;
}

static uint64_t hash_blocks(const fe_heap *heap) {
    uint64_t h = FE_HASH_BEGIN;
    for (size_t i = 0; i < heap->blocks; i++) {
        h = fe_hash_add(h, heap->block[i].offset);
        h = fe_hash_add(h, heap->block[i].used);
    }
    return h;
}

static void tell(fe_heap *heap, bool freed, uint64_t argument) {
    fe_story *s = &heap->story;
    *s = (fe_story){.before = s->now, .calls = s->calls + 1, .freed = freed, .argument = argument};
    s->now = hash_blocks(heap);
}

void fe_heap_begin(fe_heap *heap) {
    heap->story = (fe_story){.now = hash_blocks(heap), .before = hash_blocks(heap)};
}

int64_t fe_heap_take(fe_heap *heap, size_t bytes) {
    int64_t offset = take_block(heap, bytes);
    if (offset >= 0) tell(heap, false, bytes);
    return offset;
}

static ferry_status give_block(fe_heap *heap, int64_t offset) {
    for (size_t i = 0; i < heap->blocks; i++) {
        if (!heap->block[i].used || (int64_t)heap->block[i].offset != offset) continue;
        heap->block[i].used = false;
        if (i + 1 < heap->blocks && !heap->block[i + 1].used) {
            heap->block[i].bytes += heap->block[i + 1].bytes;
            remove_block(heap, i + 1);
        }
        if (i > 0 && !heap->block[i - 1].used) {
            heap->block[i - 1].bytes += heap->block[i].bytes;
            remove_block(heap, i);
        }
        return FERRY_OK;
    }
    return fe_fail(FERRY_INVALID, "rank %d: heap offset %lld is not the start of an allocation", heap->rank,
                   (long long)offset);
}

ferry_status fe_heap_give(fe_heap *heap, int64_t offset) {
    FE_TRY(give_block(heap, offset));
    tell(heap, true, (uint64_t)offset);
    return FERRY_OK;
}

ferry_status fe_heap_follow(fe_heap *heap, const fe_story *story) {
    FE_TRY(fe_heap_reserve(heap));
    bool behind = heap->story.now != story->now;
    if (behind && story->freed) FE_TRY(fe_heap_give(heap, (int64_t)story->argument));
    if (behind && !story->freed && fe_heap_take(heap, story->argument) < 0)
        return fe_fail(FERRY_NOMEM, "rank %d: the heap has no room for what others have allocated", heap->rank);
    heap->story = *story;
    return FERRY_OK;
}

bool fe_heap_taken(const fe_heap *heap, int64_t offset) {
    for (size_t i = 0; i < heap->blocks; i++)
        if (heap->block[i].used && (int64_t)heap->block[i].offset == offset) return true;
    return false;
}

size_t fe_heap_largest(const fe_heap *heap) {
    size_t largest = 0;
    for (size_t i = 0; i < heap->blocks; i++)
        if (!heap->block[i].used && heap->block[i].bytes > largest) largest = heap->block[i].bytes;
    return largest;
}

/* ---- to a newcomer ---- */

#define BLOCKS_AT_ONCE 128

typedef struct told {
    uint64_t offset, bytes, used;
} told;

static void fill_told(const fe_heap *heap, size_t at, told *page) {
    memset(page, 0, BLOCKS_AT_ONCE * sizeof *page);
    for (size_t i = 0; i < BLOCKS_AT_ONCE && at + i < heap->blocks; i++) {
        const fe_block *b = &heap->block[at + i];
        page[i] = (told){.offset = b->offset, .bytes = b->bytes, .used = b->used};
    }
}

static ferry_status take_told(fe_heap *heap, size_t at, size_t blocks, const told *page) {
    heap->blocks = at;
    for (size_t i = 0; i < BLOCKS_AT_ONCE && at + i < blocks; i++) {
        FE_TRY(fe_heap_reserve(heap));
        heap->block[heap->blocks++] =
            (fe_block){.offset = (size_t)page[i].offset, .bytes = (size_t)page[i].bytes, .used = page[i].used != 0};
    }
    return FERRY_OK;
}

ferry_status fe_heap_tell_blocks(fe_boot *boot, fe_heap *heap, int from, size_t blocks, bool mine_too) {
    told page[BLOCKS_AT_ONCE], *all = calloc((size_t)heap->ranks, sizeof page);
    ferry_status status = all ? FERRY_OK : fe_fail(FERRY_NOMEM, "rank %d: no memory for lists of blocks", heap->rank);
    for (size_t at = 0; status == FERRY_OK && at < blocks; at += BLOCKS_AT_ONCE) {
        fill_told(heap, at, page);
        status = fe_boot_allgather(boot, page, all, sizeof page);
        if (status == FERRY_OK && mine_too) status = take_told(heap, at, blocks, all + (size_t)from * BLOCKS_AT_ONCE);
    }
    free(all);
    return status;
}

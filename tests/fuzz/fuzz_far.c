/* What arrives from other hosts: a stranger that has got hold of the key writes anything into letter and mail boxes and says anything of
 * it. Nothing may be touched but cells, the body and the user's words; epochs only grow; every request is answered. */
#include "unit/far_cases.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t take(const uint8_t **data, size_t *size, size_t bytes) {
    uint64_t value = 0;
    size_t n = bytes < *size ? bytes : *size;
    memcpy(&value, *data, n);
    *data += n;
    *size -= n;
    return value;
}

/* Small numbers, offsets near a border, or anything. */
static uint64_t number(const far_case *c, const uint8_t **data, size_t *size) {
    uint64_t how = take(data, size, 1);
    const uint64_t borders[] = {c->heap.body_at, c->heap.user_at, c->heap.space_bytes, 0};
    if (how < 100) return how;
    if (how < 200) return borders[how % 4] + take(data, size, 1) - 128;
    return take(data, size, 8);
}

static void write_letter(far_case *c, const uint8_t **data, size_t *size) {
    fe_kind kind = (fe_kind)(take(data, size, 1) % FE_KINDS);
    int half = (int)take(data, size, 1) & 1;
    fe_letter *l = far_case_letter(c, kind, half);
    l->epoch = number(c, data, size);
    l->word[0] = number(c, data, size);
    l->chunks = take(data, size, 1) % 4;
    l->relay_at = number(c, data, size);
    l->relay_bytes = number(c, data, size);
}

static void write_mail(far_case *c, const uint8_t **data, size_t *size) {
    fe_mail *m = far_case_mail(c, 2 + (int)(take(data, size, 1) & 1));
    m->number = take(data, size, 1);
    m->puts = take(data, size, 1) % 4;
    m->errand = take(data, size, 1) % 6;
    m->at = number(c, data, size);
    m->value = number(c, data, size);
}

/* Half of what is said has the right tag and a plausible shape: else nothing would come past the first door. */
static uint32_t say(const uint8_t **data, size_t *size) {
    uint64_t how = take(data, size, 1);
    if (how < 20) return (uint32_t)take(data, size, 4);
    return fe_immediate_tag(fe_immediate_pack((fe_arrival)(how % 7), (int)take(data, size, 1) & 15, (int)how >> 7,
                                              how < 40 ? (int)take(data, size, 2) & 1023 : 2 + (int)(how & 1)),
                            FAR_TAG);
}

/* Of a far rank, and of any number; the tag is right, mostly. */
static void write_flag(far_case *c, const uint8_t **data, size_t *size) {
    uint64_t how = take(data, size, 1), flag = take(data, size, 1) % FE_FLAGS;
    uint32_t next = c->inbox.flags[(2 + (how & 1)) * FE_FLAGS + flag] + 1;
    uint64_t word = fe_flag_word(how < 200 ? next : (uint32_t)how, how < 240 ? FAR_TAG : (uint32_t)how);
    memcpy(fe_post(&c->heap, 1, fe_room_flag(&c->heap, true, 2 + (int)(how & 1), (int)flag)), &word, sizeof word);
}

enum { CELLS = FE_KINDS * 2 * 4 };

/* Of the cells of both ranks here; false: one has gone back. */
static bool grown(const far_case *c, uint64_t epoch[2][CELLS]) {
    bool good = true;
    for (int i = 0; i < 2 * CELLS; i++) {
        int cell = i % CELLS, owner = i / CELLS;
        uint64_t now = atomic_load(&fe_heap_cell(&c->heap, owner, (fe_kind)(cell / 8), cell / 4 % 2, cell % 4)->epoch);
        good = good && now >= epoch[owner][cell];
        epoch[owner][cell] = now;
    }
    return good;
}

static void hear(far_case *c, uint32_t said, uint64_t epoch[2][CELLS]) {
    int source, replies = c->replies;
    uint64_t done = c->inbox.done[2] + c->inbox.done[3];
    bool taken = fe_inbox_hear(&c->inbox, said, &source);
    int wanted = c->inbox.done[2] + c->inbox.done[3] != done; /* a request was carried out, or refused */
    if (!grown(c, epoch) || (!taken && !c->inbox.why[0]) || source >= 4 || c->replies != replies + wanted) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static far_case *c;
    if (!c) c = far_case_new();
    if (!c || !far_case_reset(c)) return 0;
    uint64_t epoch[2][CELLS] = {{0}};
    c->inbox.ordered = take(&data, &size, 1) & 1;
    while (size > 0) {
        uint64_t what = take(&data, &size, 1) % 4;
        if (what == 0) write_letter(c, &data, &size);
        if (what == 1) write_mail(c, &data, &size);
        if (what == 2 && c->inbox.ordered) write_flag(c, &data, &size);
        if (what < 2) continue;
        uint32_t said[FE_LOOK] = {0};
        int n = c->inbox.ordered ? fe_inbox_look(&c->inbox, said) : 1;
        if (!c->inbox.ordered) said[0] = say(&data, &size);
        for (int i = 0; i < n; i++) hear(c, said[i], epoch);
    }
    return 0;
}

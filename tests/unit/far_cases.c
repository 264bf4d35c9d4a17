#include "unit/far_cases.h"

#include <stdlib.h>

enum { BODY = 8192, USER = 4096 };

static void reply(void *context, int rank, const fe_mail *answer) {
    far_case *c = context;
    (void)rank;
    c->replies++;
    c->reply = *answer;
}

static void answered(void *context, int rank) {
    far_case *c = context;
    (void)rank;
    c->answers++;
}

static void stop(void *context) {
    far_case *c = context;
    c->stops++;
}

static void lay_out(far_case *c, const fe_memory *memory) {
    fe_heap *h = &c->heap;
    for (int r = 0; r < 4; r++) {
        c->host_of[r] = r / 2;
        c->index_of[r] = r % 2;
        c->rank_at[r] = r;
    }
    *h = (fe_heap){.rank = 1, .ranks = 4, .base = c->base, .space = c->space, .post = c->post, .memory = memory};
    h->hosts = (fe_hosts){.count = 2,
                          .each = 2,
                          .mine = 0,
                          .index = 1,
                          .host_of = c->host_of,
                          .index_of = c->index_of,
                          .rank_at = c->rank_at};
    h->far_bytes = fe_room_bytes(h);
    h->scratch_at = (size_t)FE_KINDS * 2 * 4 * sizeof(fe_cell);
    h->far_at = h->scratch_at + 2 * FE_SCRATCH;
    h->body_at = (h->far_at + h->far_bytes + 4095) / 4096 * 4096;
    h->user_at = h->body_at + BODY;
    h->user_bytes = USER;
    h->space_bytes = h->user_at + USER;
    h->space_at = memory ? h->user_at : 0;
    h->post_bytes = memory ? h->space_at : h->space_bytes;
}

far_case *far_case_new(void) {
    return far_case_staged(NULL);
}

far_case *far_case_staged(const fe_memory *memory) {
    far_case *c = calloc(1, sizeof *c);
    if (!c) return NULL;
    lay_out(c, memory);
    size_t control = (sizeof(fe_control) + 4095) / 4096 * 4096, each = control + c->heap.space_bytes;
    c->memory = aligned_alloc(4096, (2 * each + 4095) / 4096 * 4096);
    if (c->memory) memset(c->memory, 0, 2 * each);
    for (int r = 0; c->memory && r < 2; r++) {
        c->base[r] = (char *)c->memory + (size_t)r * each;
        c->space[r] = c->post[r] = c->base[r] + control;
    }
    if (memory) c->device = calloc(2, USER);
    for (int r = 0; memory && c->device && r < 2; r++) c->space[r] = (char *)c->device + r * USER - c->heap.space_at;
    c->inbox =
        (fe_inbox){.heap = &c->heap, .tag = FAR_TAG, .reply = reply, .answered = answered, .stop = stop, .context = c};
    if (c->memory && (c->device || !memory) && fe_inbox_open(&c->inbox)) return c;
    far_case_free(c);
    return NULL;
}

bool far_case_reset(far_case *c) {
    const fe_heap *h = &c->heap;
    for (int r = 0; r < 2; r++) { /* scratch, mirrors and buffers are not the inbox's business */
        memset(c->space[r], 0, h->scratch_at);
        memset(c->space[r] + h->far_at, 0, fe_room_flag(h, true, h->ranks, 0) - h->far_at);
        memset(c->space[r] + h->body_at, 0, h->space_bytes - h->body_at);
    }
    c->replies = c->answers = c->stops = 0;
    fe_inbox_close(&c->inbox);
    c->inbox.why[0] = '\0';
    return fe_inbox_open(&c->inbox);
}

void far_case_free(far_case *c) {
    if (!c) return;
    fe_inbox_close(&c->inbox);
    free(c->memory);
    free(c->device);
    free(c);
}

fe_letter *far_case_letter(far_case *c, fe_kind kind, int half) {
    return fe_post(&c->heap, 1, fe_room_letter(&c->heap, true, (int)kind, half, 1));
}

fe_mail *far_case_mail(far_case *c, int source) {
    return fe_post(&c->heap, 1, fe_room_mail(&c->heap, FE_MAIL_IN, source));
}

#include "link/inbox.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

bool fe_inbox_open(fe_inbox *in) {
    size_t boxes = fe_room_boxes(in->heap), ranks = (size_t)in->heap->ranks;
    char *at = in->memory = calloc((boxes + 2 * ranks) * 8 + ranks * FE_FLAGS * 4 + boxes + 2 * ranks, 1);
    if (!at) return false;
    in->chunks = (uint64_t *)(void *)at;
    in->puts = in->chunks + boxes;
    in->done = in->puts + ranks;
    in->flags = (uint32_t *)(void *)(in->done + ranks);
    in->letter = (bool *)(in->flags + ranks * FE_FLAGS);
    in->mail = in->letter + boxes;
    in->bye = in->mail + ranks;
    return true;
}

void fe_inbox_close(fe_inbox *in) {
    free(in->memory);
    in->memory = NULL;
}

static bool __attribute__((format(printf, 2, 3))) refuse(fe_inbox *in, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(in->why, sizeof in->why, format, args);
    va_end(args);
    return false;
}

/* ---- letters ---- */

static bool check_letter(fe_inbox *in, int kind, int half, int source, const fe_letter *l) {
    const fe_heap *heap = in->heap;
    uint64_t last = atomic_load(&fe_heap_cell(heap, heap->rank, (fe_kind)kind, half, source)->epoch);
    if (fe_reach_of((fe_kind)kind) == FE_REACH_NEAR)
        return refuse(in, "a note of kind %d, which no other host says", kind);
    if (l->epoch <= last || (l->epoch & 1) != (uint64_t)half)
        return refuse(in, "note %llu of kind %d in half %d, after note %llu", (unsigned long long)l->epoch, kind, half,
                      (unsigned long long)last);
    if (l->relay_bytes == 0) return true;
    if (kind != FE_COUNTS) return refuse(in, "a note of kind %d with bytes to hand on", kind);
    if (l->relay_at < heap->body_at || l->relay_at > heap->user_at || l->relay_bytes > heap->user_at - l->relay_at)
        return refuse(in, "%llu bytes at %llu to hand on, which leave the body of the heap",
                      (unsigned long long)l->relay_bytes, (unsigned long long)l->relay_at);
    return true;
}

/* The note, as it would be said by a near rank. This rank's own cell comes last: when its waits are over, so is its duty as a relay. */
static void publish(const fe_heap *heap, fe_kind kind, int half, int source, const fe_letter *l) {
    bool relayed = fe_reach_of(kind) == FE_REACH_ALL;
    for (int i = 1; relayed && i < heap->hosts.each; i++) {
        int owner = fe_hosts_rank(&heap->hosts, heap->hosts.mine, (heap->hosts.index + i) % heap->hosts.each);
        if (l->relay_bytes)
            memcpy(fe_post(heap, owner, l->relay_at), fe_post(heap, heap->rank, l->relay_at), l->relay_bytes);
        fe_link_signal_for(heap, source, owner, kind, half, l->word, l->epoch);
    }
    fe_link_signal_for(heap, source, heap->rank, kind, half, l->word, l->epoch);
}

/* To the boxes: rows, sums, or an owner's weights. */
static bool brings_rows(fe_kind kind) {
    return kind >= FE_LANDED || kind == FE_OFFER;
}

static bool open_letter(fe_inbox *in, int kind, int half, int source) {
    const fe_heap *heap = in->heap;
    int host = heap->hosts.host_of[source];
    size_t box = fe_room_box(in->heap, kind, half, host);
    fe_letter l; /* a copy: what is checked is what is used */
    memcpy(&l, fe_post(heap, heap->rank, fe_room_letter(heap, true, kind, half, host)), sizeof l);
    if (!in->ordered && in->chunks[box] < l.chunks) return true; /* its last chunk comes back here */
    in->letter[box] = false;
    if (!check_letter(in, kind, half, source, &l)) return false;
    if (in->direct && brings_rows((fe_kind)kind) && heap->memory->settle(heap) != FERRY_OK)
        return refuse(in, "a note of rows in GPU memory: %.150s", ferry_last_error());
    publish(heap, (fe_kind)kind, half, source, &l);
    return true;
}

/* ---- mail ---- */

/* Words of the heap are everybody's: whatever the sender is after, it is one aligned word above the cells; or a range there. */
static bool sensible(const fe_heap *heap, const fe_mail *m) {
    bool range = m->errand == FE_STOW || m->errand == FE_FETCH;
    uint64_t bytes = range ? m->value : 8;
    if (m->errand == FE_FLUSH) return true;
    if (range ? !fe_heap_staged(heap) || bytes > FE_PARCEL : m->at % 8 != 0) return false;
    return m->errand >= FE_ADD && m->errand <= FE_FETCH && m->at >= fe_heap_open_at(heap) &&
           m->at <= heap->space_bytes && bytes <= heap->space_bytes - m->at;
}

/* In memory that the device alone reaches. */
static bool run_staged(const fe_heap *heap, int source, const fe_mail *m, fe_mail *answer) {
    if (m->errand == FE_STOW)
        return fe_heap_copy(heap, fe_near(heap, heap->rank, m->at),
                            fe_post(heap, heap->rank, fe_room_parcel(heap, false, source)), m->value) == FERRY_OK;
    if (m->errand == FE_FETCH)
        return fe_heap_copy(heap, fe_post(heap, heap->rank, fe_room_parcel(heap, true, source)),
                            fe_near(heap, heap->rank, m->at), m->value) == FERRY_OK;
    return heap->memory->word(heap, (fe_errand)m->errand, m->at, m->value, m->expected, &answer->old) == FERRY_OK;
}

/* false: the device does not do it. */
static bool run_errand(const fe_heap *heap, int source, const fe_mail *m, fe_mail *answer) {
    if (m->errand == FE_FLUSH) return true;
    if (fe_heap_staged(heap)) return run_staged(heap, source, m, answer);
    _Atomic uint64_t *word = fe_near(heap, heap->rank, m->at);
    answer->old = m->expected;
    if (m->errand == FE_ADD)
        answer->old = atomic_fetch_add(word, m->value);
    else if (m->errand == FE_SET)
        atomic_store(word, m->value);
    else
        atomic_compare_exchange_strong(word, &answer->old, m->value);
    fe_watch_ring(heap, heap->rank);
    return true;
}

static bool open_mail(fe_inbox *in, int source) {
    const fe_heap *heap = in->heap;
    fe_mail m;
    memcpy(&m, fe_post(heap, heap->rank, fe_room_mail(heap, FE_MAIL_IN, source)), sizeof m);
    if (!in->ordered && in->puts[source] < m.puts) return true;
    in->mail[source] = false;
    if (m.number <= in->done[source]) return true; /* a box that was written again before it was sent arrives twice */
    in->done[source] = m.number;
    fe_mail answer = {.number = m.number};
    answer.refused = !sensible(heap, &m) || !run_errand(heap, source, &m, &answer);
    in->reply(in->context, source, &answer);
    if (!answer.refused) return true;
    return refuse(in, "a request %llu for what is at %llu", (unsigned long long)m.errand, (unsigned long long)m.at);
}

/* ---- whatever comes ---- */

static bool hear_chunk(fe_inbox *in, const fe_immediate *i) {
    if (i->kind == FE_OF_PUTS) {
        in->puts[i->source]++;
        return !in->mail[i->source] || open_mail(in, i->source);
    }
    size_t box = fe_room_box(in->heap, i->kind, i->half, in->heap->hosts.host_of[i->source]);
    in->chunks[box]++;
    return !in->letter[box] || open_letter(in, i->kind, i->half, i->source);
}

static bool hear_letter(fe_inbox *in, const fe_immediate *i) {
    size_t box = fe_room_box(in->heap, i->kind, i->half, in->heap->hosts.host_of[i->source]);
    if (in->letter[box]) return refuse(in, "a second note of kind %d before the first had its chunks", i->kind);
    in->letter[box] = true;
    return open_letter(in, i->kind, i->half, i->source);
}

static bool hear_mail(fe_inbox *in, int source) {
    if (in->mail[source]) return refuse(in, "a second request before the first was answered");
    in->mail[source] = true;
    return open_mail(in, source);
}

bool fe_inbox_hear(fe_inbox *in, uint32_t immediate, int *source) {
    const fe_heap *heap = in->heap;
    fe_immediate i;
    *source = -1;
    if (!fe_immediate_unpack(immediate, in->tag, &i) || i.source >= heap->ranks || fe_heap_near(heap, i.source) ||
        fe_heap_masked(heap, i.source))
        return refuse(in, "a write that says 0x%08x, which nobody of this group would say", immediate);
    *source = i.source;
    bool column = heap->hosts.index_of[i.source] == heap->hosts.index;
    bool note = i.what == FE_LETTER || (i.what == FE_CHUNK && i.kind != FE_OF_PUTS);
    if ((note && !column) || (i.what == FE_LETTER && i.kind == FE_OF_PUTS))
        return refuse(in, "a note of kind %d, which that rank does not say to rank %d", i.kind, heap->rank);
    switch (i.what) {
    case FE_CHUNK: return hear_chunk(in, &i);
    case FE_LETTER: return hear_letter(in, &i);
    case FE_MAIL: return hear_mail(in, i.source);
    case FE_REPLY: in->answered(in->context, i.source); break;
    case FE_STOP: in->stop(in->context); break;
    case FE_BYE: in->bye[i.source] = true; break;
    }
    return true;
}

/* Only the next of its sort, with the right tag, is a flag: what is neither is of a time before the network was opened, a stranger's, or half
 * there (a provider that copies bytes as they come). */
static bool is_raised(fe_inbox *in, int source, int flag) {
    const fe_heap *heap = in->heap;
    const _Atomic uint64_t *word = fe_post(heap, heap->rank, fe_room_flag(heap, true, source, flag));
    uint32_t *last = &in->flags[(size_t)source * FE_FLAGS + (size_t)flag];
    /* Acquire: what was written before the flag. */
    if (atomic_load_explicit(word, memory_order_acquire) != fe_flag_word(*last + 1, in->tag)) return false;
    ++*last;
    return true;
}

/* Read from the last to the first, and told the other way round: who finds a good-bye then finds what was said before it. */
static int look_at(fe_inbox *in, int source, uint32_t *immediate) {
    bool column = in->heap->hosts.index_of[source] == in->heap->hosts.index;
    uint32_t found[FE_FLAGS];
    int count = 0;
    for (int flag = FE_FLAGS - 1; flag >= (column ? 0 : FE_KINDS * 2); flag--)
        if (is_raised(in, source, flag)) found[count++] = fe_immediate_tag(fe_flag_says(flag, source), in->tag);
    for (int i = 0; i < count; i++) immediate[i] = found[count - 1 - i];
    return count;
}

int fe_inbox_look(fe_inbox *in, uint32_t immediate[FE_LOOK]) {
    const fe_heap *heap = in->heap;
    int count = 0;
    for (int r = 0; r < heap->ranks && count + FE_FLAGS <= FE_LOOK; r++)
        if (!fe_heap_near(heap, r) && !fe_heap_masked(heap, r)) count += look_at(in, r, immediate + count);
    return count;
}

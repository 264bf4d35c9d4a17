/* What a write over the network says of itself: 32 bits that arrive with it.
 *
 *   bits  0..2   what it is
 *         3..6   kind of the note that it belongs to; FE_OF_PUTS for the caller's puts
 *         7      half
 *         8..17  the rank that wrote it
 *        18..31  the receiver's tag: a part of what a stranger does not know (its memory's key is the other) */
#ifndef FERRY_LINK_IMMEDIATE_H
#define FERRY_LINK_IMMEDIATE_H

#include "heap/cell.h"
#include <stdbool.h>

typedef enum fe_arrival {
    FE_CHUNK = 1, /* a piece of data: it is counted */
    FE_LETTER,    /* a note, in the letter box of (kind, half, host); it is valid when its chunks have been counted */
    FE_MAIL,      /* a request for one word, in the mail box of the rank */
    FE_REPLY,     /* and its answer */
    FE_STOP,      /* the group was aborted */
    FE_BYE        /* the rank writes no more */
} fe_arrival;

#define FE_OF_PUTS  15
#define FE_TAG_BITS 14

_Static_assert(FE_KINDS < FE_OF_PUTS, "kinds have four bits in an immediate");

typedef struct fe_immediate {
    fe_arrival what;
    int kind, half, source;
} fe_immediate;

static inline uint32_t fe_immediate_pack(fe_arrival what, int kind, int half, int source) {
    return (uint32_t)what | (uint32_t)kind << 3 | (uint32_t)half << 7 | (uint32_t)source << 8;
}

static inline uint32_t fe_immediate_tag(uint32_t immediate, uint32_t tag) {
    return immediate | (tag & ((1u << FE_TAG_BITS) - 1)) << (32 - FE_TAG_BITS);
}

/* false: nobody of this group says such a thing. */
static inline bool fe_immediate_unpack(uint32_t immediate, uint32_t tag, fe_immediate *out) {
    out->what = (fe_arrival)(immediate & 7);
    out->kind = (int)(immediate >> 3 & 15);
    out->half = (int)(immediate >> 7 & 1);
    out->source = (int)(immediate >> 8 & 1023);
    return immediate >> (32 - FE_TAG_BITS) == (tag & ((1u << FE_TAG_BITS) - 1)) && out->what >= FE_CHUNK &&
           out->what <= FE_BYE && (out->kind < FE_KINDS || out->kind == FE_OF_PUTS);
}

/* Where writes bring nothing along (fe_ofi_by_flags), a word behind what was written says the same: one for each sort of thing that can be
 * under way from a rank at once, which a number tells from the last of its sort. Data has none: it has arrived when what follows it has.
 *
 *   bits  0..31  how many of the sort the writer has written
 *        32..63  the receiver's tag, all of it */
enum { FE_FLAGS = FE_KINDS * 2 + FE_BYE - FE_MAIL + 1 };

static inline int fe_flag_of(uint32_t immediate) { /* -1: none */
    fe_arrival what = (fe_arrival)(immediate & 7);
    if (what == FE_CHUNK) return -1;
    if (what == FE_LETTER) return (int)(immediate >> 3 & 15) * 2 + (int)(immediate >> 7 & 1);
    return FE_KINDS * 2 + (int)what - FE_MAIL;
}

static inline uint64_t fe_flag_word(uint32_t number, uint32_t tag) {
    return (uint64_t)tag << 32 | number;
}

static inline uint32_t fe_flag_says(int flag, int source) {
    return flag < FE_KINDS * 2 ? fe_immediate_pack(FE_LETTER, flag / 2, flag % 2, source)
                               : fe_immediate_pack((fe_arrival)(FE_MAIL + flag - FE_KINDS * 2), 0, 0, source);
}

#endif

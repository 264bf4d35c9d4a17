/* What lies in a rank's space at far_at, where there are several hosts: letter boxes for notes, mail boxes for requests, mirrors of the
 * column's scratch, and buffers that caller's puts and gets pass through. `out` is written here and sent; `in` is written by one other
 * rank over the network. */
#ifndef FERRY_LINK_ROOM_H
#define FERRY_LINK_ROOM_H

#include "heap/heap.h"
#include "link/immediate.h"
#include "link/kernel_order.h"

/* A note on its way to another host. */
typedef struct fe_letter {
    uint64_t epoch;
    uint64_t word[FE_CELL_WORDS];
    uint64_t chunks; /* of this kind and half that the sayer has written to this rank, since the group began */
    uint64_t relay_at, relay_bytes; /* what came with it and is to be at the same place of all ranks of the host */
    uint64_t spare[5];
} fe_letter;

/* A request for one word of the receiver's space; or for a range of it, where the network does not reach the space itself. */
typedef struct fe_mail {
    uint64_t number;                   /* of the sender's requests to this rank; the answer has it too */
    uint64_t puts;                     /* pieces of puts that the sender has written here before: they come first */
    uint64_t errand;                   /* fe_errand */
    uint64_t at, value, expected, old; /* of a range: value is its bytes. old: in the answer */
    uint64_t refused;                  /* in the answer: 1, this makes no sense */
} fe_mail;

_Static_assert(sizeof(fe_letter) == 128 && sizeof(fe_mail) == 64, "letters and mail fill whole lines");

#define FE_BOUNCE  ((size_t)256 << 10) /* bytes of a buffer that puts and gets pass through */
#define FE_BOUNCES 8
#define FE_PARCEL  ((size_t)64 << 10) /* the most bytes of a range that is asked for */

/* Of arrays [FE_KINDS][2][hosts]. */
static inline size_t fe_room_boxes(const fe_heap *h) {
    return (size_t)FE_KINDS * 2 * (size_t)h->hosts.count;
}
static inline size_t fe_room_box(const fe_heap *h, int kind, int half, int host) {
    return ((size_t)kind * 2 + (size_t)half) * (size_t)h->hosts.count + (size_t)host;
}
static inline uint64_t fe_room_letter(const fe_heap *h, bool in, int kind, int half, int host) {
    return h->far_at + ((in ? fe_room_boxes(h) : 0) + fe_room_box(h, kind, half, host)) * sizeof(fe_letter);
}
typedef enum fe_box { FE_MAIL_OUT, FE_MAIL_IN, FE_REPLY_OUT, FE_REPLY_IN, FE_BOXES } fe_box;
static inline uint64_t fe_room_mail(const fe_heap *h, fe_box box, int rank) {
    return fe_room_letter(h, true, FE_KINDS, 0, 0) + ((size_t)box * (size_t)h->ranks + (size_t)rank) * sizeof(fe_mail);
}
/* Where news without a text of its own is written to: nobody reads it. */
static inline uint64_t fe_room_sink(const fe_heap *h) {
    return fe_room_mail(h, FE_BOXES, 0);
}
/* Flags of another rank, or for it (link/immediate.h). */
static inline uint64_t fe_room_flag(const fe_heap *h, bool in, int rank, int flag) {
    return fe_room_sink(h) + 4096 + (((in ? (size_t)h->ranks : 0) + (size_t)rank) * FE_FLAGS + (size_t)flag) * 8;
}
static inline uint64_t fe_room_mirror(const fe_heap *h, int half, int host) {
    return (fe_room_flag(h, true, h->ranks, 0) + 4095) / 4096 * 4096 +
           ((size_t)half * (size_t)h->hosts.count + (size_t)host) * FE_SCRATCH;
}
static inline uint64_t fe_room_bounce(const fe_heap *h, int i) {
    return fe_room_mirror(h, 2, 0) + (size_t)i * FE_BOUNCE;
}
/* Only where ranks have a post: orders of kernels (link/kernel_order.h); and a range on its way to the rank's space, or (out) from it. */
static inline uint64_t fe_room_orders(const fe_heap *h) {
    return fe_room_bounce(h, FE_BOUNCES);
}
static inline uint64_t fe_room_parcel(const fe_heap *h, bool out, int rank) {
    return fe_room_orders(h) + FE_KERNEL_ORDERS * sizeof(fe_kernel_order) +
           ((out ? (size_t)h->ranks : 0) + (size_t)rank) * FE_PARCEL;
}
/* All of it, for fe_heap.far_bytes. */
static inline size_t fe_room_bytes(const fe_heap *h) {
    fe_heap at_zero = {.ranks = h->ranks, .hosts = h->hosts};
    if (h->hosts.count <= 1) return 0;
    return (h->memory ? fe_room_parcel(&at_zero, true, h->ranks) : fe_room_orders(&at_zero)) + 4096;
}

#endif

/* A pass: a plain struct that exchange/ and group/ fill in and a device executes in stream order, always in the same five acts:
 *     announce a note to every rank; await a note from every rank; move data; signal a note to every rank; settle (await again).
 * The protocol (which note when, with which epoch) is written once, by those who fill it in. C and C++. */
#ifndef FERRY_DEVICE_PASS_H
#define FERRY_DEVICE_PASS_H

#include "heap/cell.h"
#include "route/record.h"

typedef struct fe_note {
    bool used;
    fe_kind kind;
    int half;
    uint64_t epoch;
    uint64_t word[FE_CELL_WORDS];
} fe_note;

typedef struct fe_await {
    bool used;
    fe_kind kind;
    int half;
    uint64_t epoch;
    unsigned same;                /* bit i: word[i] must equal this rank's, below, on every rank */
    uint64_t word[FE_CELL_WORDS]; /* ours */
} fe_await;

/* Says in a sentence which field of two payloads differs; FERRY_MISMATCH. */
typedef ferry_status (*fe_explain_fn)(const char *step, int rank, const uint64_t *ours, int other,
                                      const uint64_t *theirs);

/* A route as a device sees it. The arrays, in the device's memory, are the route object's. */
struct fe_tally; /* route/tally.h, which is C */

typedef struct fe_route_data {
    fe_shape shape;
    fe_table table;
    fe_scratch scratch;
    fe_blocks blocks;
    fe_totals *totals;
    int32_t *counts; /* [fe_counts_length] this rank's row */
    int32_t
        *demand; /* [local experts] tokens that chose each, capacities left aside; only where counts are exchanged */
    void *extra; /* the device's own, fe_device.extra bytes of it */
    fe_far_route far;       /* hosts NULL: all ranks are near */
    uint64_t number;        /* the route's, for who reads records */
    struct fe_tally *tally; /* what a step of it moves, for counters */
    uint64_t counts_at;     /* heap offset of [2][ranks][fe_counts_length] int32 */
    ferry_tensor topk_idx;  /* the caller's, with explicit strides */
    ferry_tensor topk_weights;
} fe_route_data;

/* Words of a READY note: where the receiver wants things, as offsets into its heap. */
enum { FE_AT_ROWS, FE_AT_SCALES, FE_AT_ROUTE, FE_AT_IDS, FE_AT_WEIGHTS, FE_AT_STRIDES, FE_AT_FORMAT };
/* FE_AT_ROUTE: what kind of route it is, the same on all ranks. FE_AT_STRIDES: bytes from row to row, and from one row's scales to the next. */
static inline uint64_t fe_strides(uint64_t row, uint64_t scale) {
    return row << 32 | scale;
}

/* Words of a LANDED note; RETURNED has the first. RECORDS: of this part. Bytes from one token to the next, and those before its row, are as
 * the receiver counts them. STRAIGHT: rows and scales are in the receiver's buffer already, and headers follow one another. */
enum { FE_LANDED_RECORDS, FE_LANDED_STRIDE, FE_LANDED_HEADER, FE_LANDED_STRAIGHT };

/* Several hosts: a step tells of what crosses part by part, so that what has come is worked on while the rest is on its way. */
typedef struct fe_part {
    int index, count; /* this one, of how many; {0, 0}: all at once */
} fe_part;
/* Of n things: how many the parts before it have. Each is smaller than the one before (3:2:1), as what is done with the last comes when the
 * network is through. */
FE_PURE int64_t fe_part_before(fe_part part, int64_t n, int index) {
    int64_t shares = (int64_t)index * (2 * part.count - index + 1), all = (int64_t)part.count * (part.count + 1);
    return n * shares / all;
}
FE_PURE int64_t fe_part_from(fe_part part, int64_t n) {
    return part.count ? fe_part_before(part, n, part.index) : 0;
}
FE_PURE int64_t fe_part_to(fe_part part, int64_t n) {
    return part.count ? fe_part_before(part, n, part.index + 1) : n;
}
/* Of how many things the part's n are, about. */
FE_PURE int64_t fe_part_whole(fe_part part, int64_t n) {
    return part.count ? n * part.count * (part.count + 1) / (2 * (part.count - part.index)) : n;
}
FE_PURE int fe_part_count(fe_part part) {
    return part.count ? part.count : 1;
}
FE_PURE bool fe_part_last(fe_part part) {
    return part.index + 1 >= part.count;
}

/* Words of an OFFER note. */
enum { FE_OFFER_ROWS, FE_OFFER_STRIDE, FE_OFFER_WEIGHTS, FE_OFFER_WANTS, FE_OFFER_FORMAT = FE_AT_FORMAT };
/* FE_OFFER_WANTS: what the owner asks of those who sum for it on other hosts. */
enum {
    FE_WANTS_WEIGHTED = 1, /* sums with weights: those of the route, or ... */
    FE_WANTS_SENT = 2,     /* ... those that came with the offer */
    FE_WANTS_WEIGHTS = 4   /* the weights that its rows bring back */
};

typedef struct fe_scatter { /* dispatch, sending side */
    const char *rows;
    int64_t row_stride; /* bytes */
    size_t row_bytes;   /* as they travel (after the cast) */
    size_t columns;     /* of the input, for the cast */
    ferry_cast cast;
    const char *scales;            /* 4-byte words; NULL: none given */
    int64_t scale_row, scale_word; /* strides in bytes */
    size_t scale_bytes;            /* a row, as they travel */
    bool topk;                     /* deliver source, ids, weights */
    int64_t stream_bytes;          /* a step that writes more than this writes past the cache */
    uint64_t tails_at;             /* heap offset of [2][ranks][most_local] int32: counts that come with the rows */
    uint64_t source_at;            /* and of [rows] int32, the same on every rank: where each row came from */
} fe_scatter;

/* Slots for which a receiver's tensors have room in its space, by the words of its READY note: they may be the caller's, of any size. */
FE_PURE int64_t fe_room_at(const uint64_t *ready, const fe_shape *shape, const fe_scatter *s, bool weights,
                           uint64_t space_bytes) {
    bool by_rank = shape->layout == FERRY_LAYOUT_RANK;
    uint64_t each = 4 * (by_rank ? (uint64_t)shape->topk : 1), strides = ready[FE_AT_STRIDES];
    const struct {
        uint64_t at, stride;
        bool used;
    } part[] = {{ready[FE_AT_ROWS], strides >> 32, true},
                {ready[FE_AT_SCALES], strides & 0xffffffffu, s->scale_bytes != 0},
                {s->source_at, 4, s->topk},
                {ready[FE_AT_IDS], each, s->topk && by_rank},
                {ready[FE_AT_WEIGHTS], each, s->topk && weights}};
    uint64_t room = INT64_MAX;
    for (int i = 0; i < 5; i++) {
        if (!part[i].used || !part[i].stride) continue;
        uint64_t fits = part[i].at < space_bytes ? (space_bytes - part[i].at) / part[i].stride : 0;
        room = fits < room ? fits : room;
    }
    return (int64_t)room;
}

typedef struct fe_deliver { /* dispatch, receiving side. A copy is made where `to` is set. */
    size_t row_bytes, scale_bytes;
    uint64_t rows_at, scales_at, source_at, ids_at, weights_at; /* where they landed */
    int64_t row_stride, scale_stride;                           /* bytes, there */
    char *rows_to, *scales_to, *source_to, *ids_to, *weights_to;
    int64_t rows_to_stride, scale_to_row, scale_to_word; /* bytes */
    int64_t scale_to_expert, expert_slots;               /* bytes from expert to expert, and slots of each */
    int32_t *counts_to, *starts_to;
    bool topk, zero_padding;
    uint64_t tails_at;
} fe_deliver;

typedef struct fe_gather { /* combine, offering side: rows from outside the heap */
    const char *rows;
    int64_t row_stride;
    size_t row_bytes;
    const char *weights; /* NULL: none */
    size_t weight_bytes; /* a row's */
    const float
        *far_weights; /* [tokens][topk]: the caller's for this combine, for those who sum on other hosts; NULL: none */
    int64_t far_weight_row, far_weight_choice; /* elements */
    uint64_t rows_to, weights_to; /* heap offsets; rows_to 0: rows are in the heap already; likewise weights_to */
} fe_gather;

typedef struct fe_reduce { /* combine, owner's side */
    ferry_dtype in_type, out_type;
    size_t columns;
    bool weighted;
    const float *weights;              /* [tokens][topk] by the strides below; NULL: the route's */
    int64_t weight_row, weight_choice; /* elements */
    const char *bias[2];
    int64_t bias_stride[2]; /* bytes */
    char *out;
    int64_t out_stride;
    float *weights_out; /* [tokens][topk] or NULL */
} fe_reduce;

typedef struct fe_publish { /* meetings: into this rank's scratch of the pass's half */
    const void *from;
    size_t bytes;
} fe_publish;

typedef struct
    fe_collect { /* meetings: out of the scratch of rank `root`, or (-1) of all, `apart` bytes from rank to rank */
    char *to;
    size_t bytes, apart;
    int root;
} fe_collect;

typedef struct
    fe_transfer { /* put, get: both addresses are this process's. Then, with owner >= 0, a signal in its space */
    void *to;
    const void *from;
    size_t bytes;
    int owner;
    ferry_signal_op op;
    uint64_t signal_at, value;
    int far_rank; /* -1: near; else `to` (of a get: `from`) is far_at in that rank's space */
    bool get;     /* far: which of the two */
    uint64_t far_at;
} fe_transfer;

typedef struct fe_until { /* wait until a word of this rank's space compares true */
    uint64_t at;
    ferry_compare compare;
    uint64_t value;
    int64_t timeout_ns;
} fe_until;

typedef struct fe_atomic { /* on a word of owner's space */
    int owner;
    uint64_t at, add, expected, desired;
    bool swap;     /* compare and swap; else add */
    uint64_t *old; /* host memory */
} fe_atomic;

typedef enum fe_move {
    FE_MOVE_NOTHING,
    FE_MOVE_COUNT,    /* route: top-k to counts */
    FE_MOVE_SPREAD,   /* route: counts to every rank */
    FE_MOVE_PLACE,    /* route: counts of all to slots */
    FE_MOVE_SCATTER,  /* dispatch: rows to their slots */
    FE_MOVE_DELIVER,  /* dispatch: what arrived, to where it is wanted */
    FE_MOVE_GATHER,   /* combine: rows into the heap */
    FE_MOVE_REDUCE,   /* combine: pull and sum */
    FE_MOVE_PUBLISH,  /* all-gather, broadcast: into scratch */
    FE_MOVE_COLLECT,  /* and out of it */
    FE_MOVE_TRANSFER, /* put, get, signal */
    FE_MOVE_UNTIL,    /* wait for a word */
    FE_MOVE_ATOMIC,
    FE_MOVE_FANOUT, /* dispatch: what came from other hosts, to the ranks here (a scatter's arguments) */
    FE_MOVE_SUMS    /* combine: sums of other hosts' tokens, to their owners (a reduce's arguments) */
} fe_move;

/* Where the caller of a pass wants its error, instead of in the stream's. */
typedef struct fe_outcome {
    ferry_status status;
    char sentence[FE_SENTENCE];
} fe_outcome;

typedef struct fe_pass {
    char step[40];       /* for sentences: "dispatch 17 (send)" */
    bool lenient;        /* an error of this pass leaves the group as it is */
    fe_outcome *outcome; /* with a stream: written when the pass has run; may be NULL */
    int half;
    fe_note announce;
    fe_await await;
    fe_move move;
    fe_route_data *route;
    union {
        fe_scatter scatter;
        fe_gather gather;
        fe_reduce reduce;
        fe_publish publish;
        fe_collect collect;
        fe_transfer transfer;
        fe_until until;
        fe_atomic atomic;
    };
    fe_note signal;
    fe_await settle;
    fe_deliver deliver; /* DELIVER; and of a SCATTER that is a whole dispatch, see counts_last */
    bool
        counts_last; /* SCATTER: once settled, the delivery's counts are read and written; there is nothing else to deliver */
    fe_part part; /* FANOUT, REDUCE: the one that it works on; SCATTER, SUMS: only the count, all are told of */
    fe_explain_fn explain;
} fe_pass;

#ifndef __cplusplus
/* pass->step: "dispatch", 17, " (send)". By hand: snprintf takes 0.1 us, and a LATENCY round of one token a few of them. */
void fe_pass_name(fe_pass *pass, const char *what, uint64_t number, const char *part);
#endif

#endif

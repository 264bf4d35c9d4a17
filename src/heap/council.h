/* What a rank says to the others where they agree on who is of the group (docs/protocol.md, "Agreement"). It lies in each rank's control
 * block, in host memory, and outlives its process: whoever maps it keeps it. */
#ifndef FERRY_HEAP_COUNCIL_H
#define FERRY_HEAP_COUNCIL_H

#include "ferry/ferry.h"

#define FE_MASK_WORDS (FERRY_MAX_RANKS / 64)

/* What has become of the user's heap. */
typedef struct fe_story {
    uint64_t now, before; /* hash of its list of blocks; and of what that was before the last call, which was ... */
    uint64_t calls;       /* ... the how-manieth that changed it ... */
    uint64_t freed;       /* ... 1: a free, of this offset; 0: an allocation of as many bytes */
    uint64_t argument;
} fe_story;
#define FE_STORY_WORDS (sizeof(fe_story) / sizeof(uint64_t))

/* Words that may be read while they are written over: what was read then is thrown away (fe_council_hold). */
typedef struct fe_minutes {
    _Atomic uint64_t member[FE_MASK_WORDS];
    _Atomic uint64_t story[FE_STORY_WORDS];
} fe_minutes;

typedef struct fe_council {
    _Atomic uint64_t came;    /* the agreement that it has come to, by the era that begins with it; 0: it is at none */
    _Atomic uint64_t settled; /* the last era that it has begun ... */
    _Atomic uint64_t map;     /* ... with this map of experts (fe_map_hash) */
    _Atomic uint64_t out[FE_MASK_WORDS], in[FE_MASK_WORDS]; /* whom it wants masked, and back */
    _Atomic uint64_t story[FE_STORY_WORDS];
    fe_minutes motion[2];     /* by the era's lowest bit: what it would have all agree on */
    _Atomic uint64_t decided; /* rank 0's: era << 16 | rank whose motion it is. Written by compare-and-swap */
    _Atomic uint32_t left;    /* it has left the group by itself */
} fe_council;

#endif

/* What arrives from other hosts, and what becomes of it: chunks are counted, a letter whose chunks are complete becomes a note in the
 * cells of the ranks that it is for, mail is carried out. No network of its own, so that a fuzzer can play one. */
#ifndef FERRY_LINK_INBOX_H
#define FERRY_LINK_INBOX_H

#include "link/immediate.h"
#include "link/near.h"
#include "link/room.h"

typedef struct fe_inbox {
    const fe_heap *heap;
    uint32_t tag;
    bool ordered;     /* writes arrive in their order, and what follows data has it before it: no data is heard of */
    bool direct;      /* rows arrive in the device's memory */
    uint64_t *chunks; /* [FE_KINDS][2][hosts] arrived so far */
    bool *letter;     /* [FE_KINDS][2][hosts] one is here and waits for its chunks */
    uint64_t *puts;   /* [ranks] pieces of puts */
    uint64_t *done;   /* [ranks] number of the last request that was carried out */
    bool *mail;       /* [ranks] a request waits for its puts */
    bool *bye;        /* [ranks] writes no more */
    uint32_t *flags;  /* [ranks][FE_FLAGS] numbers last seen */
    void *memory;
    void (*reply)(void *context, int rank, const fe_mail *answer); /* to be sent */
    void (*answered)(void *context, int rank);                     /* an answer is in this rank's box */
    void (*stop)(void *context);                                   /* the group is aborted */
    void *context;
    char why[200]; /* of the last refusal */
} fe_inbox;

/* Set before: heap, tag, the functions and context. false: no memory. */
bool fe_inbox_open(fe_inbox *inbox);
void fe_inbox_close(fe_inbox *inbox);

/* A write has arrived. false: it makes no sense, `why` says in what, nothing was done. *source: who it says it is from, -1: nobody. */
bool fe_inbox_hear(fe_inbox *inbox, uint32_t immediate, int *source);

/* Immediates, for fe_inbox_hear, of what flags say has arrived since: how many. What there is no room for is found by the next look. */
#define FE_LOOK 64
int fe_inbox_look(fe_inbox *inbox, uint32_t immediate[FE_LOOK]);

#endif

/* The proxy, inside. */
#ifndef FERRY_LINK_PROXY_H
#define FERRY_LINK_PROXY_H

#include "link/far.h"
#include "link/inbox.h"
#include "link/ofi.h"
#include "link/ring.h"
#include <pthread.h>

#define FE_ORDERS 1024 /* of the ring, and under way at once */

typedef struct fe_under_way { /* an order that the network has */
    uint64_t context[FE_OFI_CONTEXT / 8];
    fe_order order;
    struct fe_under_way *next; /* free list */
} fe_under_way;

typedef struct fe_held { /* an order that the network would not take yet */
    fe_order order;
    int64_t since_ns; /* 0: just taken */
} fe_held;

/* Where writes to a rank must keep their order, what is held back for it holds back what comes after. */
typedef struct fe_line {
    uint32_t held;  /* orders for it in `held` */
    uint32_t round; /* the last round of retries in which one of them was not taken */
} fe_line;

typedef struct fe_turn {
    pthread_mutex_t lock;
} fe_turn;

struct fe_far {
    const fe_heap *heap;
    const fe_watch *watch;
    fe_ofi *ofi;
    fe_ring ring;
    fe_inbox inbox;
    pthread_t thread;
    bool running;
    int parts; /* FERRY_FABRIC_PARTS */
    /* the proxy's own */
    fe_under_way *slots, *free_slot;
    int under_way;
    fe_held *held; /* retried in turn: what one peer does not take must not keep another waiting */
    int held_count, held_room;
    fe_line *line; /* [ranks] */
    uint32_t round;
    bool stop_said;
    uint32_t *flags_said;   /* [ranks][FE_FLAGS] numbers of the last flags */
    uint64_t kernel_orders; /* taken so far */
    /* shared */
    _Atomic bool leaving, stirred;
    _Atomic uint32_t doorbell, asleep; /* futex word of an idle proxy; 1 while it sleeps */
    _Atomic uint64_t *chunks;          /* [FE_KINDS][2][hosts] pushed so far */
    _Atomic uint64_t *puts;            /* [ranks] pieces put so far */
    _Atomic uint64_t *flushed;         /* [ranks] of those, known to have arrived */
    _Atomic uint64_t *bytes;           /* [ranks] */
    _Atomic uint64_t *answered;        /* [ranks] number of the last answer */
    uint64_t *asked;                   /* [ranks] number of the last request; under `asking` */
    fe_turn *asking;                   /* [ranks] one request at a time */
    _Atomic uint8_t *gone;             /* [ranks] it has said good-bye */
    _Atomic uint32_t bounce[FE_BOUNCES];
    _Atomic uint8_t *lost; /* [ranks] its connection is given up */
    pthread_mutex_t lock;  /* of why and first_lost */
    char (*why)[160];      /* [ranks] what the network said of it; "": nothing */
    int first_lost;        /* -1: none */
};

/* The thread's function. */
void *fe_proxy_run(void *far);
/* Is this the proxy's own thread, which must not wait for its own ring? */
bool fe_proxy_here(const fe_far *far);
/* For the proxy itself. */
void fe_proxy_hold(fe_far *far, const fe_order *order);
/* Puts an order into the ring; waits, bounded, for room. */
ferry_status fe_far_submit(fe_far *far, const fe_order *order);

#endif

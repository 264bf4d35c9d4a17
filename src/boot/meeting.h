/* The hub's mind: who has come, what they said, when to answer. No sockets and no clock of its own, so that a fuzzer can play any
 * number of strangers against it. hub.c brings the sockets. */
#ifndef FERRY_BOOT_MEETING_H
#define FERRY_BOOT_MEETING_H

#include "boot/wire.h"

enum {
    FE_GUESTS = FERRY_MAX_RANKS + 64, /* connections at once: all ranks, and some strangers */
    FE_HELLO_MS = 2000                /* a connection that has not said hello by then is closed */
};

typedef struct fe_guest { /* one connection */
    bool here;
    int rank;            /* -1 before its hello */
    int64_t deadline_ns; /* for the hello, for the answer it waits for, or for its going; 0: it waits for nothing */
    int64_t timeout_ns;
    uint8_t head[FE_WIRE_HEADER];
    uint32_t head_have, have;
    fe_wire_head message;
    uint8_t *payload; /* of message; after a complete GATHER, kept until it is answered */
    bool gathered;    /* payload holds this round's contribution */
} fe_guest;

typedef struct fe_meeting {
    uint8_t secret[FE_WIRE_SECRET];
    int ranks, library; /* of the first hello; 0: nobody came yet */
    uint32_t round;
    int present; /* guests that have a rank */
    int left;    /* rank + 1 of one that came and went: without it there will be no group; 0: none did */
    bool begun;  /* somebody had a rank once */
    int64_t begun_ns,
        late_ns;  /* when that was; when nobody is waited for any more: by the longest timeout of who came */
    bool lingers; /* for who has not come yet; set before */
    bool came[FERRY_MAX_RANKS];
    bool gathers, musters, called; /* all must come; not all need come; who has come is settled: `absent` has not */
    bool absent[FERRY_MAX_RANKS];
    int guest_of[FERRY_MAX_RANKS]; /* guest + 1; 0: not here */
    fe_guest guest[FE_GUESTS];
    /* Sends the bytes to a guest; false: it is gone. */
    bool (*send)(void *context, int guest, const void *bytes, size_t n);
    void *context;
} fe_meeting;

/* A new connection's place; -1: the house is full. */
int fe_meeting_enter(fe_meeting *m, int64_t now);
/* Bytes from a guest. false: close its connection (and say fe_meeting_leave). */
bool fe_meeting_hear(fe_meeting *m, int guest, const uint8_t *bytes, size_t n, int64_t now);
/* A connection has ended. Ranks that wait for it are told. */
void fe_meeting_leave(fe_meeting *m, int guest);
/* Deadlines. Calls close(context, guest) for each connection to be closed; returns the next deadline, or INT64_MAX. */
int64_t fe_meeting_tick(fe_meeting *m, int64_t now, void (*close)(void *context, int guest));
/* Everybody who came has left again; and, where it lingers, who has not come yet is too late. */
bool fe_meeting_over(const fe_meeting *m, int64_t now);
void fe_meeting_free(fe_meeting *m);

#endif

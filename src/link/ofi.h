/* The network, by libfabric: one reliable-datagram endpoint, one piece of registered memory, writes that bring 32 bits along (remote
 * completion data) and reads. Used by one thread at a time. libfabric is loaded when first asked for, so that a site's own serves. */
#ifndef FERRY_LINK_OFI_H
#define FERRY_LINK_OFI_H

#include "base/status.h"

typedef struct fe_ofi fe_ofi;

/* What a rank tells the others so that they can write to it. */
typedef struct fe_ofi_card {
    char provider[32];
    uint8_t name[112]; /* of its endpoint */
    uint32_t name_bytes;
    uint32_t tag;  /* see link/immediate.h */
    uint64_t key;  /* of its memory */
    uint64_t base; /* what an offset is added to */
} fe_ofi_card;

/* Opens an endpoint over [memory, memory + bytes). provider NULL: the best there is; address NULL: the provider's choice. FERRY_UNSUPPORTED
 * (no libfabric, no such provider), FERRY_SYSTEM. */
ferry_status fe_ofi_open(int rank, const char *provider, const char *address, void *memory, size_t bytes, fe_ofi **ofi,
                         fe_ofi_card *card);
/* [ranks] cards: whom `peer` means from now on. Connections are made when first used. */
ferry_status fe_ofi_meet(fe_ofi *ofi, const fe_ofi_card *cards, int ranks);
void fe_ofi_close(fe_ofi *ofi);

/* Offsets are into the two memories. immediate 0: none. context comes back by fe_ofi_sent. 0: it is under way; 1: not now, try again;
 * negative: -FI_E... */
int fe_ofi_write(fe_ofi *ofi, int peer, uint64_t local, uint64_t remote, size_t bytes, uint32_t immediate,
                 void *context);
int fe_ofi_read(fe_ofi *ofi, int peer, uint64_t local, uint64_t remote, size_t bytes, void *context);

typedef struct fe_ofi_sent {
    void *context;
    int error;              /* 0: done */
    const char *error_text; /* the provider's words; static, or until the next call */
} fe_ofi_sent;

/* What is complete, or has arrived, since: how many entries were filled; -1: the network as a whole has failed (text by fe_ofi_trouble). */
int fe_ofi_poll_sent(fe_ofi *ofi, fe_ofi_sent *sent, int most);
int fe_ofi_poll_arrived(fe_ofi *ofi, uint32_t *immediate, int most);
const char *fe_ofi_trouble(const fe_ofi *ofi);
const char *fe_ofi_text(const fe_ofi *ofi, int error); /* of a negative result */
/* Bytes a context must have, for the provider's own use. */
#define FE_OFI_CONTEXT 64

#endif

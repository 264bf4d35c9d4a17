/* The network, by libfabric: reliable-datagram endpoints (*rails*, one on each network device that the rank uses), registered memory, writes
 * that bring 32 bits along (remote completion data) and reads. Writes take the rails by turns: nothing may count on their order. Used by
 * one thread at a time.
 *
 * The memory is one range of offsets; what lies above `split` may be a GPU's, which the network then reads and writes itself (FI_HMEM).
 *
 * A provider whose writes bring nothing along (cxi) must keep them in order, and arrivals are told by *flags*: what is to be heard is
 * written, then a word behind it. A rank then reaches each other one by a single rail. */
#ifndef FERRY_LINK_OFI_H
#define FERRY_LINK_OFI_H

#include "base/status.h"
#include "link/rails.h"
#include <stdbool.h>

typedef struct fe_ofi fe_ofi;

typedef enum fe_direct { FE_DIRECT_NEVER, FE_DIRECT_ALWAYS, FE_DIRECT_MAYBE } fe_direct;

/* What the network is to be opened with. */
typedef struct fe_ofi_wish {
    int rank;
    int index, each;      /* it is the index'th of `each` ranks on its host: devices are shared out */
    const char *provider; /* NULL: the best there is */
    const char *
        addresses; /* where to be bound: "address" or "address,address", one for each rail; NULL: the provider's choice */
    bool addresses_given; /* by the user, and not meant for providers alone that know hosts by addresses */
    int rails;            /* 0: the rank's share of the host's devices */
    bool flags;           /* arrivals by flags even where data could come with a write */
    void *memory;         /* what the network writes and reads */
    size_t bytes;
    size_t split;      /* the same on all ranks. 0: none */
    fe_direct direct;  /* is what is above it to be a GPU's? maybe: where the provider reaches that */
    bool without_cuda; /* and by no copy of CUDA's, which could wait for a kernel that waits for the network */
    /* Makes that memory, or has it already. *gpu: libfabric's number of the device; -1: it is the host's all the same */
    ferry_status (*above)(const void *context, void **memory, int *gpu);
    const void *context;
} fe_ofi_wish;

/* What a rank tells the others so that they can write to it. */
typedef struct fe_ofi_rail {
    uint8_t name[112]; /* of its endpoint */
    uint32_t name_bytes;
    uint64_t key[2];  /* of its memory below and above the split */
    uint64_t base[2]; /* what an offset is added to */
} fe_ofi_rail;

typedef struct fe_ofi_card {
    char provider[32];
    uint32_t tag; /* see link/immediate.h */
    uint16_t rails;
    uint16_t flags; /* arrivals are told by flags */
    fe_ofi_rail rail[FE_RAILS];
} fe_ofi_card;

/* Opens the rails, each an endpoint over all of the memory. FERRY_UNSUPPORTED (no libfabric, no such provider), FERRY_SYSTEM. */
ferry_status fe_ofi_open(const fe_ofi_wish *wish, fe_ofi **ofi, fe_ofi_card *card);
/* [ranks] cards: whom `peer` means from now on. Connections are made when first used. */
ferry_status fe_ofi_meet(fe_ofi *ofi, const fe_ofi_card *cards, int ranks);
void fe_ofi_close(fe_ofi *ofi);
/* What is above the split is what the wish has made. */
bool fe_ofi_direct(const fe_ofi *ofi);
/* The calling thread, which is to be the network's, near the first rail's device. */
void fe_ofi_pin(const fe_ofi *ofi);

/* Offsets are into this rank's memory and the peer's; neither range may cross the split. immediate 0: none. context comes back by
 * fe_ofi_sent. 0: it is under way; 1: not now, try again; negative: -FI_E... */
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
/* The network brings no immediates along: whoever writes says so by a flag, and writes to one rank arrive in their order. */
bool fe_ofi_by_flags(const fe_ofi *ofi);
/* What a flag for the peer has to carry (link/immediate.h). */
uint32_t fe_ofi_tag(const fe_ofi *ofi, int peer);
const char *fe_ofi_trouble(const fe_ofi *ofi);
const char *fe_ofi_text(const fe_ofi *ofi, int error); /* of a negative result */
/* Bytes a context must have, for the provider's own use. */
#define FE_OFI_CONTEXT 64

#endif

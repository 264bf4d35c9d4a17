#include "link/ofi.h"
#include "base/log.h"
#include "link/immediate.h"

#if FERRY_HAVE_LIBFABRIC

#include "link/fabric.h"
#include "link/pin.h"

#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { BELOW, ABOVE, PIECES }; /* the split */

typedef struct piece {
    char *memory;
    uint64_t from, to; /* offsets */
    int gpu;           /* a GPU's, of this number; -1: the host's */
} piece;

typedef struct rail {
    struct fi_info *info;
    struct fid_fabric *fabric;
    struct fid_domain *domain;
    struct fid_av *av;
    struct fid_cq *sent, *arrived;
    struct fid_ep *ep;
    struct fid_mr *mr[PIECES];
    void *desc[PIECES];
    bool wide;       /* immediates have 64 bits: the upper half repeats the tag, all of it */
    fi_addr_t *peer; /* [ranks] */
} rail;

struct fe_ofi {
    const fe_fabric *lib;
    int rank, each, rails;
    rail rail[FE_RAILS];
    bool flags;
    uint64_t split; /* ~0: none. A peer may have two pieces where this rank has one */
    piece piece[PIECES];
    int pieces;        /* 1: all is in the first */
    fe_ofi_card *card; /* [ranks] */
    uint32_t tag;
    uint32_t turn, look; /* of the rails: the next to write by, and to look at first */
    char trouble[160], text[160];
};

static ferry_status fail_ofi(const fe_ofi *o, int error, const char *what) {
    return fe_fail(FERRY_SYSTEM, "rank %d: %s: %s", o->rank, what, o->lib->strerror(-error));
}

/* ---- opening ---- */

/* The network's own way to a GPU's memory. By CUDA's, a copy on this thread could wait for a kernel that waits for what it copies. Over verbs
 * the device itself carries out writes and reads: rxm, which says no, copies messages alone (libfabric's rxm_rma.c), and here are none. */
static int forbid_cuda(const fe_ofi *o, rail *r) {
    if (strncmp(r->info->fabric_attr->prov_name, "verbs", 5) == 0) return 0;
    enum { CUDA_API_PERMITTED = FI_OPT_XPU_TRIGGER + 1 }; /* of libfabric 1.18, whose headers need not be here */
    int required = FI_HMEM_P2P_REQUIRED;
    bool permitted = false;
    if (FI_VERSION_GE(o->lib->version(), FI_VERSION(1, 18)))
        return fi_setopt(&r->ep->fid, FI_OPT_ENDPOINT, CUDA_API_PERMITTED, &permitted, sizeof permitted);
    return fi_setopt(&r->ep->fid, FI_OPT_ENDPOINT, FI_OPT_FI_HMEM_P2P, &required, sizeof required);
}

static int open_queues(const fe_ofi *o, rail *r, bool without_cuda) {
    struct fi_cq_attr queue = {.format = FI_CQ_FORMAT_DATA, .wait_obj = FI_WAIT_NONE, .size = 4096};
    struct fi_av_attr addresses = {.type = FI_AV_TABLE};
    int error = fi_domain(r->fabric, r->info, &r->domain, NULL);
    if (!error) error = fi_av_open(r->domain, &addresses, &r->av, NULL);
    /* Two queues: a completion of a write of ours may carry the same flags as one of a peer's (some providers do so). */
    if (!error) error = fi_cq_open(r->domain, &queue, &r->sent, NULL);
    if (!error) error = fi_cq_open(r->domain, &queue, &r->arrived, NULL);
    if (!error) error = fi_endpoint(r->domain, r->info, &r->ep, NULL);
    if (!error && without_cuda) error = forbid_cuda(o, r);
    if (!error) error = fi_ep_bind(r->ep, &r->av->fid, 0);
    if (!error) error = fi_ep_bind(r->ep, &r->sent->fid, FI_TRANSMIT);
    if (!error) error = fi_ep_bind(r->ep, &r->arrived->fid, FI_RECV);
    if (!error) error = fi_enable(r->ep);
    return error;
}

static int share_piece(rail *r, const piece *p, uint64_t key, struct fid_mr **mr) {
    int mode = r->info->domain_attr->mr_mode;
    struct iovec where = {p->memory, p->to - p->from};
    struct fi_mr_attr attr = {.mr_iov = &where,
                              .iov_count = 1,
                              .access = FI_WRITE | FI_READ | FI_REMOTE_WRITE | FI_REMOTE_READ,
                              .requested_key = key,
                              .iface = p->gpu >= 0 ? FI_HMEM_CUDA : FI_HMEM_SYSTEM};
    if (p->gpu >= 0) attr.device.cuda = p->gpu;
    int error = fi_mr_regattr(r->domain, &attr, 0, mr);
    if (!error && mode & FI_MR_ENDPOINT) error = fi_mr_bind(*mr, &r->ep->fid, 0);
    if (!error && mode & FI_MR_ENDPOINT) error = fi_mr_enable(*mr);
    return error;
}

/* Where the provider lets us choose, the key cannot be guessed: it is what lets somebody write here. */
static ferry_status share_memory(const fe_ofi *o, rail *r, fe_ofi_rail *card) {
    size_t key_bytes = r->info->domain_attr->mr_key_size;
    bool by_address = r->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR;
    for (int i = 0; i < o->pieces; i++) {
        const piece *p = &o->piece[i];
        uint64_t drawn;
        if (getrandom(&drawn, sizeof drawn, 0) != (ssize_t)sizeof drawn) return fe_fail_errno("drawing a memory key");
        if (key_bytes < 8) drawn &= ((uint64_t)1 << 8 * key_bytes) - 1;
        int error = share_piece(r, p, drawn, &r->mr[i]);
        if (error)
            return fail_ofi(o, error,
                            p->gpu >= 0 ? "registering GPU memory with libfabric"
                                        : "registering the heap with libfabric");
        r->desc[i] = fi_mr_desc(r->mr[i]);
        card->key[i] = fi_mr_key(r->mr[i]);
        card->base[i] = (by_address ? (uint64_t)(uintptr_t)p->memory : 0) - p->from;
    }
    if (fe_ofi_direct(o)) return FERRY_OK;
    card->key[ABOVE] = card->key[BELOW]; /* who writes here need not know that it is one piece */
    card->base[ABOVE] = card->base[BELOW];
    return FERRY_OK;
}

static ferry_status open_rail(fe_ofi *o, rail *r, bool without_cuda) {
    int error = o->lib->fabric(r->info->fabric_attr, &r->fabric, NULL);
    if (error) return fail_ofi(o, error, "opening libfabric's fabric");
    error = open_queues(o, r, without_cuda);
    return error ? fail_ofi(o, error, "opening libfabric's endpoint") : FERRY_OK;
}

static ferry_status introduce_rail(fe_ofi *o, rail *r, fe_ofi_rail *card) {
    size_t room = sizeof card->name;
    FE_TRY(share_memory(o, r, card));
    int error = fi_getname(&r->ep->fid, card->name, &room);
    if (error) return fail_ofi(o, error, "asking libfabric for the endpoint's name");
    card->name_bytes = (uint32_t)room;
    r->wide = r->info->domain_attr->cq_data_size >= 8;
    fe_log(FE_INFO, FE_INIT, "rank %d: libfabric %u.%u, provider %s, device %s%s", o->rank, FI_MAJOR(o->lib->version()),
           FI_MINOR(o->lib->version()), r->info->fabric_attr->prov_name, r->info->domain_attr->name,
           fe_ofi_direct(o) ? ", rows in GPU memory" : "");
    return FERRY_OK;
}

static ferry_status lay_pieces(fe_ofi *o, const fe_ofi_wish *wish, bool direct) {
    piece *below = &o->piece[BELOW], *above = &o->piece[ABOVE];
    void *memory = NULL;
    *below = (piece){.memory = wish->memory, .to = direct ? wish->split : wish->bytes, .gpu = -1};
    *above = (piece){.from = wish->split, .to = wish->bytes, .gpu = -1};
    o->pieces = 1 + direct;
    if (direct) FE_TRY(wish->above(wish->context, &memory, &above->gpu));
    above->memory = memory;
    return FERRY_OK;
}

/* A GPU's memory is made when the network has promised to reach it. Takes the offers. */
static ferry_status open_rails(fe_ofi *o, const fe_ofi_wish *wish, struct fi_info *const *offer, int rails, bool direct,
                               fe_ofi_card *card) {
    *card = (fe_ofi_card){.tag = o->tag, .rails = (uint16_t)rails, .flags = o->flags};
    snprintf(card->provider, sizeof card->provider, "%s", offer[0]->fabric_attr->prov_name);
    o->rails = rails;
    for (int i = 0; i < rails; i++) o->rail[i].info = offer[i];
    for (int i = 0; i < rails; i++) FE_TRY(open_rail(o, &o->rail[i], direct && wish->without_cuda));
    FE_TRY(lay_pieces(o, wish, direct));
    for (int i = 0; i < rails; i++) FE_TRY(introduce_rail(o, &o->rail[i], &card->rail[i]));
    return FERRY_OK;
}

static void close_fid(struct fid *fid) {
    if (fid) fi_close(fid);
}

static void close_rail(const fe_fabric *lib, rail *r) {
    for (int i = 0; i < PIECES; i++)
        close_fid(r->mr[i] ? &r->mr[i]->fid : NULL); /* first: some bind it to the endpoint */
    close_fid(r->ep ? &r->ep->fid : NULL);
    close_fid(r->sent ? &r->sent->fid : NULL);
    close_fid(r->arrived ? &r->arrived->fid : NULL);
    close_fid(r->av ? &r->av->fid : NULL);
    close_fid(r->domain ? &r->domain->fid : NULL);
    close_fid(r->fabric ? &r->fabric->fid : NULL);
    if (r->info) lib->freeinfo(r->info);
    free(r->peer);
    *r = (rail){.info = NULL};
}

static void close_rails(fe_ofi *o) {
    for (int i = 0; i < o->rails; i++) close_rail(o->lib, &o->rail[i]);
    o->rails = 0;
}

static ferry_status open_direct(fe_ofi *o, const fe_ofi_wish *wish, struct fi_info *const *offer, int rails,
                                fe_ofi_card *card) {
    struct fi_info *reaching[FE_RAILS];
    FE_TRY(fe_fabric_for_gpus(o->lib, wish, offer, rails, o->flags, reaching));
    ferry_status status = open_rails(o, wish, reaching, rails, true, card);
    if (status != FERRY_OK) close_rails(o);
    return status;
}

/* A GPU's memory is reached where that can be done; else rows pass through the host's. */
static ferry_status open_some(fe_ofi *o, const fe_ofi_wish *wish, fe_ofi_card *card) {
    struct fi_info *offer[FE_RAILS];
    int rails;
    o->split = wish->split ? wish->split : ~(uint64_t)0;
    if (getrandom(&o->tag, sizeof o->tag, 0) != (ssize_t)sizeof o->tag) return fe_fail_errno("drawing a tag");
    FE_TRY(fe_fabric_choose(o->lib, wish, offer, &rails, &o->flags));
    if (wish->split && wish->direct != FE_DIRECT_NEVER) {
        ferry_status status = open_direct(o, wish, offer, rails, card);
        if (status == FERRY_OK || wish->direct == FE_DIRECT_ALWAYS) {
            while (rails > 0) o->lib->freeinfo(offer[--rails]);
            return status;
        }
        fe_log(FE_INFO, FE_INIT, "rank %d: rows of other hosts pass through host memory: %s", o->rank,
               ferry_last_error());
    }
    return open_rails(o, wish, offer, rails, false, card);
}

ferry_status fe_ofi_open(const fe_ofi_wish *wish, fe_ofi **ofi, fe_ofi_card *card) {
    *card = (fe_ofi_card){.rails = 0};
    const fe_fabric *lib;
    FE_TRY(fe_fabric_load(&lib));
    fe_ofi *o = calloc(1, sizeof *o);
    if (!o) return fe_fail(FERRY_NOMEM, "rank %d: no memory for the network", wish->rank);
    o->lib = lib;
    o->rank = wish->rank;
    o->each = wish->each;
    ferry_status status = open_some(o, wish, card);
    if (status != FERRY_OK) {
        fe_ofi_close(o);
        return status;
    }
    *ofi = o;
    return FERRY_OK;
}

static ferry_status fits(const fe_ofi *o, const fe_ofi_card *own, const fe_ofi_card *theirs, int r) {
    if (strncmp(theirs->provider, own->provider, sizeof own->provider) != 0)
        return fe_fail(FERRY_MISMATCH, "libfabric's provider is %.31s on rank %d, %.31s on rank %d: set FERRY_FABRIC",
                       theirs->provider, r, own->provider, o->rank);
    if (theirs->flags != own->flags)
        return fe_fail(FERRY_MISMATCH, "FERRY_FABRIC_FLAGS is %d on rank %d, %d on rank %d", theirs->flags, r,
                       own->flags, o->rank);
    if (theirs->rails < 1 || theirs->rails > FE_RAILS)
        return fe_fail(FERRY_SYSTEM, "rank %d: rank %d says that it has %d rails", o->rank, r, theirs->rails);
    return FERRY_OK;
}

/* By how many the peer is reached. */
static int rails_to(const fe_ofi *o, int peer) {
    return o->card[peer].rails < o->rails ? o->card[peer].rails : o->rails;
}

/* Rail i of both: where devices are in the same order on all hosts, that is one network. */
static ferry_status meet_one(fe_ofi *o, int peer) {
    for (int i = 0; i < rails_to(o, peer); i++) {
        rail *r = &o->rail[i];
        if (fi_av_insert(r->av, o->card[peer].rail[i].name, 1, &r->peer[peer], 0, NULL) != 1)
            return fe_fail(FERRY_SYSTEM, "rank %d: libfabric does not take the address of rank %d", o->rank, peer);
    }
    return FERRY_OK;
}

ferry_status fe_ofi_meet(fe_ofi *o, const fe_ofi_card *cards, int ranks) {
    size_t n = (size_t)ranks;
    o->card = calloc(n, sizeof *o->card);
    bool there = o->card != NULL;
    for (int i = 0; i < o->rails; i++) {
        rail *r = &o->rail[i];
        r->peer = calloc(n, sizeof *r->peer);
        there = there && r->peer;
    }
    if (!there) return fe_fail(FERRY_NOMEM, "rank %d: no memory for the addresses of %d ranks", o->rank, ranks);
    memcpy(o->card, cards, n * sizeof *cards);
    for (int r = 0; r < ranks; r++) {
        if (!cards[r].provider[0]) continue; /* it is not there */
        FE_TRY(fits(o, &cards[o->rank], &cards[r], r));
        FE_TRY(meet_one(o, r));
    }
    return FERRY_OK;
}

void fe_ofi_pin(const fe_ofi *o) {
    const struct fi_info *info = o->rail[0].info;
    fe_pin_device device = {.name = info->domain_attr->name};
    const struct fi_bus_attr *bus = info->nic ? info->nic->bus_attr : NULL;
    if (bus && bus->bus_type == FI_BUS_PCI) {
        device.pci = true;
        device.domain = bus->attr.pci.domain_id;
        device.bus = bus->attr.pci.bus_id;
        device.device = bus->attr.pci.device_id;
        device.function = bus->attr.pci.function_id;
    }
    fe_pin_near(o->rank, &device);
}

void fe_ofi_close(fe_ofi *o) {
    if (!o) return;
    close_rails(o);
    free(o->card);
    free(o);
}

/* ---- data ---- */

/* Flags are in order behind what they speak of: on the one rail that leads to this peer; neighbours take different ones. Else data goes by
 * turns, and what is said by the first, so that a good-bye does not overtake an answer. */
static rail *rail_to(fe_ofi *o, int peer, uint32_t immediate) {
    bool data = !immediate || (immediate & 7) == FE_CHUNK;
    int rails = rails_to(o, peer);
    uint32_t which = o->flags ? (uint32_t)(o->rank + peer / o->each) : data ? o->turn++ : 0;
    return &o->rail[rails ? which % (uint32_t)rails : 0];
}

/* A range, here and there. */
typedef struct span {
    char *at;
    void *desc;
    uint64_t to, key;
} span;

static bool find_span(const fe_ofi *o, const rail *r, int peer, uint64_t local, uint64_t remote, size_t bytes,
                      span *s) {
    int mine = fe_ofi_direct(o) && local >= o->split ? ABOVE : BELOW, theirs = remote >= o->split ? ABOVE : BELOW;
    const piece *p = &o->piece[mine];
    const fe_ofi_rail *card = &o->card[peer].rail[r - o->rail];
    if (local - p->from > p->to - p->from || bytes > p->to - local) return false;
    *s = (span){p->memory + (local - p->from), r->desc[mine], card->base[theirs] + remote, card->key[theirs]};
    return true;
}

static int taken(ssize_t result) {
    return result == -FI_EAGAIN ? 1 : (int)result;
}

int fe_ofi_write(fe_ofi *o, int peer, uint64_t local, uint64_t remote, size_t bytes, uint32_t immediate,
                 void *context) {
    rail *r = rail_to(o, peer, immediate);
    span s;
    if (!find_span(o, r, peer, local, remote, bytes, &s)) return -FI_EINVAL;
    if (!immediate || o->flags) return taken(fi_write(r->ep, s.at, bytes, s.desc, r->peer[peer], s.to, s.key, context));
    uint32_t tag = o->card[peer].tag;
    uint64_t data = fe_immediate_tag(immediate, tag);
    if (r->wide) data |= (uint64_t)tag << 32;
    return taken(fi_writedata(r->ep, s.at, bytes, s.desc, data, r->peer[peer], s.to, s.key, context));
}

bool fe_ofi_direct(const fe_ofi *o) {
    return o->pieces > 1;
}

bool fe_ofi_by_flags(const fe_ofi *o) {
    return o->flags;
}

uint32_t fe_ofi_tag(const fe_ofi *o, int peer) {
    return o->card[peer].tag;
}

int fe_ofi_read(fe_ofi *o, int peer, uint64_t local, uint64_t remote, size_t bytes, void *context) {
    rail *r = rail_to(o, peer, 0);
    span s;
    if (!find_span(o, r, peer, local, remote, bytes, &s)) return -FI_EINVAL;
    return taken(fi_read(r->ep, s.at, bytes, s.desc, r->peer[peer], s.to, s.key, context));
}

static int read_error(fe_ofi *o, struct fid_cq *queue, struct fi_cq_err_entry *entry) {
    *entry = (struct fi_cq_err_entry){.op_context = NULL};
    if (fi_cq_readerr(queue, entry, 0) != 1) return 0;
    const char *text = fi_cq_strerror(queue, entry->prov_errno, entry->err_data, NULL, 0);
    snprintf(o->text, sizeof o->text, "%s (%s)", o->lib->strerror(entry->err),
             text ? text : "no word of the provider's");
    return 1;
}

static int broken(fe_ofi *o, ssize_t error, const char *what) {
    snprintf(o->trouble, sizeof o->trouble, "reading %s: %s", what, o->lib->strerror((int)-error));
    return -1;
}

enum { LOOK = 32 }; /* entries of a queue that are read at once */

static int sent_by(fe_ofi *o, const rail *r, fe_ofi_sent *sent, int most) {
    struct fi_cq_data_entry entry[LOOK];
    struct fi_cq_err_entry wrong;
    ssize_t n = fi_cq_read(r->sent, entry, (size_t)(most < LOOK ? most : LOOK));
    if (n == -FI_EAVAIL) {
        if (!read_error(o, r->sent, &wrong)) return 0;
        sent[0] = (fe_ofi_sent){.context = wrong.op_context, .error = wrong.err, .error_text = o->text};
        return 1;
    }
    if (n == -FI_EAGAIN) return 0;
    if (n < 0) return broken(o, n, "completions");
    for (ssize_t i = 0; i < n; i++) sent[i] = (fe_ofi_sent){.context = entry[i].op_context};
    return (int)n;
}

static int arrived_by(fe_ofi *o, const rail *r, uint32_t *immediate, int most) {
    struct fi_cq_data_entry entry[LOOK];
    struct fi_cq_err_entry wrong;
    int count = 0;
    ssize_t n = fi_cq_read(r->arrived, entry, (size_t)(most < LOOK ? most : LOOK));
    if (n ==
        -FI_EAVAIL) { /* a connection that broke, or a stranger's: nothing that this rank waits for by its context */
        if (read_error(o, r->arrived, &wrong))
            fe_log(FE_WARN, FE_MOVE, "rank %d: arrival failed: %s", o->rank, o->text);
        return 0;
    }
    if (n == -FI_EAGAIN) return 0;
    if (n < 0) return broken(o, n, "arrivals");
    for (ssize_t i = 0; i < n; i++) {
        if (!(entry[i].flags & FI_REMOTE_CQ_DATA)) continue;
        uint32_t low = (uint32_t)entry[i].data;
        if (r->wide && (uint32_t)(entry[i].data >> 32) != o->tag)
            low = 0; /* no such arrival: it is refused by whoever reads */
        immediate[count++] = low;
    }
    return count;
}

int fe_ofi_poll_sent(fe_ofi *o, fe_ofi_sent *sent, int most) {
    int count = 0;
    o->look++;
    for (int i = 0; i < o->rails && count < most; i++) {
        int n = sent_by(o, &o->rail[(o->look + (uint32_t)i) % (uint32_t)o->rails], sent + count, most - count);
        if (n < 0) return -1;
        count += n;
        if (count && sent[count - 1].error) break; /* its text is there until the next look */
    }
    return count;
}

/* By turns, so that all are looked at: that is what moves some providers' data. */
int fe_ofi_poll_arrived(fe_ofi *o, uint32_t *immediate, int most) {
    int count = 0;
    for (int i = 0; i < o->rails && count < most; i++) {
        int n = arrived_by(o, &o->rail[(o->look + (uint32_t)i) % (uint32_t)o->rails], immediate + count, most - count);
        if (n < 0) return -1;
        count += n;
    }
    return count;
}

const char *fe_ofi_trouble(const fe_ofi *o) {
    return o->trouble;
}
const char *fe_ofi_text(const fe_ofi *o, int error) {
    return o->lib->strerror(-error);
}

#else

static ferry_status without(void) {
    return fe_fail(FERRY_UNSUPPORTED,
                   "ranks on several hosts: this library was built without libfabric's headers (libfabric-dev)");
}
ferry_status fe_ofi_open(const fe_ofi_wish *wish, fe_ofi **ofi, fe_ofi_card *card) {
    (void)wish, (void)ofi;
    memset(card, 0, sizeof *card);
    return without();
}
ferry_status fe_ofi_meet(fe_ofi *ofi, const fe_ofi_card *cards, int ranks) {
    (void)ofi, (void)cards, (void)ranks;
    return without();
}
void fe_ofi_close(fe_ofi *ofi) {
    (void)ofi;
}
int fe_ofi_write(fe_ofi *ofi, int peer, uint64_t local, uint64_t remote, size_t bytes, uint32_t immediate,
                 void *context) {
    (void)ofi, (void)peer, (void)local, (void)remote, (void)bytes, (void)immediate, (void)context;
    return -1;
}
bool fe_ofi_by_flags(const fe_ofi *ofi) {
    (void)ofi;
    return false;
}
bool fe_ofi_direct(const fe_ofi *ofi) {
    (void)ofi;
    return false;
}
uint32_t fe_ofi_tag(const fe_ofi *ofi, int peer) {
    (void)ofi, (void)peer;
    return 0;
}
void fe_ofi_pin(const fe_ofi *ofi) {
    (void)ofi;
}
int fe_ofi_read(fe_ofi *ofi, int peer, uint64_t local, uint64_t remote, size_t bytes, void *context) {
    (void)ofi, (void)peer, (void)local, (void)remote, (void)bytes, (void)context;
    return -1;
}
int fe_ofi_poll_sent(fe_ofi *ofi, fe_ofi_sent *sent, int most) {
    (void)ofi, (void)sent, (void)most;
    return -1;
}
int fe_ofi_poll_arrived(fe_ofi *ofi, uint32_t *immediate, int most) {
    (void)ofi, (void)immediate, (void)most;
    return -1;
}
const char *fe_ofi_trouble(const fe_ofi *ofi) {
    (void)ofi;
    return "built without libfabric";
}
const char *fe_ofi_text(const fe_ofi *ofi, int error) {
    (void)ofi, (void)error;
    return "built without libfabric";
}

#endif

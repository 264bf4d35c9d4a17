#include "link/ofi.h"
#include "base/env.h"
#include "base/log.h"
#include "link/immediate.h"

#if FERRY_HAVE_LIBFABRIC

#include <dlfcn.h>
#include <pthread.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#define API FI_VERSION(1, 17)

/* The functions that libfabric exports; all others are reached through the objects that these make. */
static struct library {
    void *handle;
    int (*getinfo)(uint32_t, const char *, const char *, uint64_t, const struct fi_info *, struct fi_info **);
    struct fi_info *(*dupinfo)(const struct fi_info *);
    void (*freeinfo)(struct fi_info *);
    int (*fabric)(struct fi_fabric_attr *, struct fid_fabric **, void *);
    const char *(*strerror)(int);
    uint32_t (*version)(void);
} lib;
static pthread_mutex_t lib_lock = PTHREAD_MUTEX_INITIALIZER;

struct fe_ofi {
    int rank;
    struct fi_info *info;
    struct fid_fabric *fabric;
    struct fid_domain *domain;
    struct fid_av *av;
    struct fid_cq *sent, *arrived;
    struct fid_ep *ep;
    struct fid_mr *mr;
    void *desc;
    char *memory;
    uint32_t tag;
    bool wide; /* immediates have 64 bits: the upper half repeats the tag, all of it */
    int ranks;
    fi_addr_t *peer;
    uint64_t *key, *base;
    uint32_t *peer_tag;
    char trouble[160], text[160];
};

static ferry_status load_library(void) {
    static const struct {
        const char *name;
        void **to;
    } symbols[] = {{"fi_getinfo", (void **)&lib.getinfo},   {"fi_dupinfo", (void **)&lib.dupinfo},
                   {"fi_freeinfo", (void **)&lib.freeinfo}, {"fi_fabric", (void **)&lib.fabric},
                   {"fi_strerror", (void **)&lib.strerror}, {"fi_version", (void **)&lib.version}};
    const char *path = fe_env_text(FE_ENV_FERRY_FABRIC_LIBRARY);
    if (lib.handle) return FERRY_OK;
    void *handle = dlopen(path ? path : "libfabric.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return fe_fail(FERRY_UNSUPPORTED, "several hosts need libfabric, which cannot be loaded: %s", dlerror());
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        *symbols[i].to = dlsym(handle, symbols[i].name);
        if (*symbols[i].to) continue;
        dlclose(handle);
        return fe_fail(FERRY_UNSUPPORTED, "%s has no %s", path ? path : "libfabric.so.1", symbols[i].name);
    }
    if (FI_VERSION_LT(lib.version(), API)) {
        uint32_t v = lib.version();
        dlclose(handle);
        return fe_fail(FERRY_UNSUPPORTED, "libfabric %u.%u is too old: 1.17 is needed", FI_MAJOR(v), FI_MINOR(v));
    }
    lib.handle = handle; /* for good: providers have threads and exit handlers of their own */
    return FERRY_OK;
}

static ferry_status fail_ofi(const fe_ofi *o, int error, const char *what) {
    return fe_fail(FERRY_SYSTEM, "rank %d: %s: %s", o->rank, what, lib.strerror(-error));
}

/* ---- opening ---- */

static struct fi_info *hints_for(const char *provider) {
    struct fi_info *h = lib.dupinfo(NULL);
    if (!h) return NULL;
    h->caps = FI_MSG | FI_RMA;
    h->ep_attr->type = FI_EP_RDM;
    h->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT;
    h->domain_attr->threading = FI_THREAD_DOMAIN;
    h->domain_attr->cq_data_size = 4;
    h->domain_attr->av_type = FI_AV_TABLE;
    h->mode = FI_CONTEXT | FI_CONTEXT2;
    h->fabric_attr->prov_name = strdup(provider);
    return h;
}

static int ask(const char *provider, const char *address, struct fi_info **info) {
    struct fi_info *hints = hints_for(provider);
    if (!hints) return -FI_ENOMEM;
    int error = lib.getinfo(API, address, NULL, address ? FI_SOURCE : 0, hints, info);
    lib.freeinfo(hints);
    return error;
}

/* Providers by name: asked in general, libfabric also offers some that are of no use (`sockets` needs milliseconds where cores are few,
 * `udp;ofi_rxd` is slow). */
static ferry_status choose(fe_ofi *o, const char *provider, const char *address) {
    static const char *const best[] = {"efa", "verbs;ofi_rxm", "tcp;ofi_rxm"};
    int error = -FI_ENODATA;
    if (provider) {
        error = ask(provider, address, &o->info);
        if (error)
            return fe_fail(FERRY_UNSUPPORTED, "rank %d: libfabric's provider %s (FERRY_FABRIC) on %s: %s", o->rank,
                           provider, address ? address : "any address", lib.strerror(-error));
        return FERRY_OK;
    }
    for (size_t i = 0; i < sizeof best / sizeof *best; i++) {
        bool by_address = i == 2; /* efa has no such addresses, and verbs chooses its device */
        error = ask(best[i], by_address ? address : NULL, &o->info);
        if (!error) return FERRY_OK;
    }
    return fe_fail(FERRY_UNSUPPORTED, "rank %d: libfabric has neither efa, verbs;ofi_rxm nor tcp;ofi_rxm here (%s)",
                   o->rank, lib.strerror(-error));
}

static int open_queues(fe_ofi *o) {
    struct fi_cq_attr queue = {.format = FI_CQ_FORMAT_DATA, .wait_obj = FI_WAIT_NONE, .size = 4096};
    struct fi_av_attr addresses = {.type = FI_AV_TABLE};
    int error = fi_domain(o->fabric, o->info, &o->domain, NULL);
    if (!error) error = fi_av_open(o->domain, &addresses, &o->av, NULL);
    /* Two queues: a completion of a write of ours may carry the same flags as one of a peer's (some providers do so). */
    if (!error) error = fi_cq_open(o->domain, &queue, &o->sent, NULL);
    if (!error) error = fi_cq_open(o->domain, &queue, &o->arrived, NULL);
    if (!error) error = fi_endpoint(o->domain, o->info, &o->ep, NULL);
    if (!error) error = fi_ep_bind(o->ep, &o->av->fid, 0);
    if (!error) error = fi_ep_bind(o->ep, &o->sent->fid, FI_TRANSMIT);
    if (!error) error = fi_ep_bind(o->ep, &o->arrived->fid, FI_RECV);
    if (!error) error = fi_enable(o->ep);
    return error;
}

static int share_memory(fe_ofi *o, size_t bytes, uint64_t *key) {
    int mode = o->info->domain_attr->mr_mode;
    int error = fi_mr_reg(o->domain, o->memory, bytes, FI_WRITE | FI_READ | FI_REMOTE_WRITE | FI_REMOTE_READ, 0, *key,
                          0, &o->mr, NULL);
    if (!error && mode & FI_MR_ENDPOINT) error = fi_mr_bind(o->mr, &o->ep->fid, 0);
    if (!error && mode & FI_MR_ENDPOINT) error = fi_mr_enable(o->mr);
    if (error) return error;
    o->desc = fi_mr_desc(o->mr);
    *key = fi_mr_key(o->mr);
    return 0;
}

static ferry_status open_all(fe_ofi *o, size_t bytes, fe_ofi_card *card) {
    uint64_t drawn[2];
    size_t room = sizeof card->name;
    int error = lib.fabric(o->info->fabric_attr, &o->fabric, NULL);
    if (error) return fail_ofi(o, error, "opening libfabric's fabric");
    error = open_queues(o);
    if (error) return fail_ofi(o, error, "opening libfabric's endpoint");
    if (getrandom(drawn, sizeof drawn, 0) != (ssize_t)sizeof drawn) return fe_fail_errno("drawing a memory key");
    /* Where the provider lets us choose, the key cannot be guessed: it is what lets somebody write here. */
    size_t key_bytes = o->info->domain_attr->mr_key_size;
    card->key = key_bytes < 8 ? drawn[0] & (((uint64_t)1 << 8 * key_bytes) - 1) : drawn[0];
    o->tag = card->tag = (uint32_t)drawn[1];
    error = share_memory(o, bytes, &card->key);
    if (error) return fail_ofi(o, error, "registering the heap with libfabric");
    card->base = o->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR ? (uint64_t)(uintptr_t)o->memory : 0;
    error = fi_getname(&o->ep->fid, card->name, &room);
    if (error) return fail_ofi(o, error, "asking libfabric for the endpoint's name");
    card->name_bytes = (uint32_t)room;
    return FERRY_OK;
}

ferry_status fe_ofi_open(int rank, const char *provider, const char *address, void *memory, size_t bytes, fe_ofi **ofi,
                         fe_ofi_card *card) {
    *card = (fe_ofi_card){.name_bytes = 0};
    pthread_mutex_lock(&lib_lock);
    ferry_status status = load_library();
    pthread_mutex_unlock(&lib_lock);
    FE_TRY(status);
    fe_ofi *o = calloc(1, sizeof *o);
    if (!o) return fe_fail(FERRY_NOMEM, "rank %d: no memory for the network", rank);
    o->rank = rank;
    o->memory = memory;
    status = choose(o, provider, address);
    if (status == FERRY_OK) {
        o->wide = o->info->domain_attr->cq_data_size >= 8;
        snprintf(card->provider, sizeof card->provider, "%s", o->info->fabric_attr->prov_name);
        status = open_all(o, bytes, card);
    }
    if (status != FERRY_OK) {
        fe_ofi_close(o);
        return status;
    }
    fe_log(FE_INFO, FE_INIT, "rank %d: libfabric %u.%u, provider %s, address %s", rank, FI_MAJOR(lib.version()),
           FI_MINOR(lib.version()), card->provider, address ? address : "of the provider's choice");
    *ofi = o;
    return FERRY_OK;
}

ferry_status fe_ofi_meet(fe_ofi *o, const fe_ofi_card *cards, int ranks) {
    o->ranks = ranks;
    o->peer = calloc((size_t)ranks, sizeof *o->peer);
    o->key = calloc((size_t)ranks, sizeof *o->key);
    o->base = calloc((size_t)ranks, sizeof *o->base);
    o->peer_tag = calloc((size_t)ranks, sizeof *o->peer_tag);
    if (!o->peer || !o->key || !o->base || !o->peer_tag)
        return fe_fail(FERRY_NOMEM, "rank %d: no memory for the addresses of %d ranks", o->rank, ranks);
    for (int r = 0; r < ranks; r++) {
        if (!cards[r].provider[0]) continue; /* it is not there */
        if (strncmp(cards[r].provider, cards[o->rank].provider, sizeof cards[r].provider) != 0)
            return fe_fail(FERRY_MISMATCH,
                           "libfabric's provider is %.31s on rank %d, %.31s on rank %d: set FERRY_FABRIC",
                           cards[r].provider, r, cards[o->rank].provider, o->rank);
        int added = fi_av_insert(o->av, cards[r].name, 1, &o->peer[r], 0, NULL);
        if (added != 1)
            return fe_fail(FERRY_SYSTEM, "rank %d: libfabric does not take the address of rank %d", o->rank, r);
        o->key[r] = cards[r].key;
        o->base[r] = cards[r].base;
        o->peer_tag[r] = cards[r].tag;
    }
    return FERRY_OK;
}

static void close_fid(struct fid *fid) {
    if (fid) fi_close(fid);
}

void fe_ofi_close(fe_ofi *o) {
    if (!o) return;
    close_fid(o->mr ? &o->mr->fid : NULL); /* first: some providers bind it to the endpoint */
    close_fid(o->ep ? &o->ep->fid : NULL);
    close_fid(o->sent ? &o->sent->fid : NULL);
    close_fid(o->arrived ? &o->arrived->fid : NULL);
    close_fid(o->av ? &o->av->fid : NULL);
    close_fid(o->domain ? &o->domain->fid : NULL);
    close_fid(o->fabric ? &o->fabric->fid : NULL);
    if (o->info) lib.freeinfo(o->info);
    free(o->peer);
    free(o->key);
    free(o->base);
    free(o->peer_tag);
    free(o);
}

/* ---- data ---- */

int fe_ofi_write(fe_ofi *o, int peer, uint64_t local, uint64_t remote, size_t bytes, uint32_t immediate,
                 void *context) {
    ssize_t result;
    if (immediate) {
        uint64_t data = fe_immediate_tag(immediate, o->peer_tag[peer]);
        if (o->wide) data |= (uint64_t)o->peer_tag[peer] << 32;
        result = fi_writedata(o->ep, o->memory + local, bytes, o->desc, data, o->peer[peer], o->base[peer] + remote,
                              o->key[peer], context);
    } else {
        result = fi_write(o->ep, o->memory + local, bytes, o->desc, o->peer[peer], o->base[peer] + remote, o->key[peer],
                          context);
    }
    return result == -FI_EAGAIN ? 1 : (int)result;
}

int fe_ofi_read(fe_ofi *o, int peer, uint64_t local, uint64_t remote, size_t bytes, void *context) {
    ssize_t result =
        fi_read(o->ep, o->memory + local, bytes, o->desc, o->peer[peer], o->base[peer] + remote, o->key[peer], context);
    return result == -FI_EAGAIN ? 1 : (int)result;
}

static int read_error(fe_ofi *o, struct fid_cq *queue, struct fi_cq_err_entry *entry) {
    *entry = (struct fi_cq_err_entry){.op_context = NULL};
    if (fi_cq_readerr(queue, entry, 0) != 1) return 0;
    const char *text = fi_cq_strerror(queue, entry->prov_errno, entry->err_data, NULL, 0);
    snprintf(o->text, sizeof o->text, "%s (%s)", lib.strerror(entry->err), text ? text : "no word of the provider's");
    return 1;
}

int fe_ofi_poll_sent(fe_ofi *o, fe_ofi_sent *sent, int most) {
    struct fi_cq_data_entry entry[32];
    struct fi_cq_err_entry wrong;
    ssize_t n = fi_cq_read(o->sent, entry, (size_t)(most < 32 ? most : 32));
    if (n == -FI_EAVAIL) {
        if (!read_error(o, o->sent, &wrong)) return 0;
        sent[0] = (fe_ofi_sent){.context = wrong.op_context, .error = wrong.err, .error_text = o->text};
        return 1;
    }
    if (n == -FI_EAGAIN) return 0;
    if (n < 0) {
        snprintf(o->trouble, sizeof o->trouble, "reading completions: %s", lib.strerror((int)-n));
        return -1;
    }
    for (ssize_t i = 0; i < n; i++) sent[i] = (fe_ofi_sent){.context = entry[i].op_context};
    return (int)n;
}

int fe_ofi_poll_arrived(fe_ofi *o, uint32_t *immediate, int most) {
    struct fi_cq_data_entry entry[32];
    struct fi_cq_err_entry wrong;
    int count = 0;
    ssize_t n = fi_cq_read(o->arrived, entry, (size_t)(most < 32 ? most : 32));
    if (n ==
        -FI_EAVAIL) { /* a connection that broke, or a stranger's: nothing that this rank waits for by its context */
        if (read_error(o, o->arrived, &wrong))
            fe_log(FE_WARN, FE_MOVE, "rank %d: arrival failed: %s", o->rank, o->text);
        return 0;
    }
    if (n == -FI_EAGAIN) return 0;
    if (n < 0) {
        snprintf(o->trouble, sizeof o->trouble, "reading arrivals: %s", lib.strerror((int)-n));
        return -1;
    }
    for (ssize_t i = 0; i < n; i++) {
        if (!(entry[i].flags & FI_REMOTE_CQ_DATA)) continue;
        uint32_t low = (uint32_t)entry[i].data;
        if (o->wide && (uint32_t)(entry[i].data >> 32) != o->tag)
            low = 0; /* no such arrival: it is refused by whoever reads */
        immediate[count++] = low;
    }
    return count;
}

const char *fe_ofi_trouble(const fe_ofi *o) {
    return o->trouble;
}
const char *fe_ofi_text(const fe_ofi *o, int error) {
    (void)o;
    return lib.strerror(-error);
}

#else

static ferry_status without(void) {
    return fe_fail(FERRY_UNSUPPORTED,
                   "ranks on several hosts: this library was built without libfabric's headers (libfabric-dev)");
}
ferry_status fe_ofi_open(int rank, const char *provider, const char *address, void *memory, size_t bytes, fe_ofi **ofi,
                         fe_ofi_card *card) {
    (void)rank, (void)provider, (void)address, (void)memory, (void)bytes, (void)ofi;
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

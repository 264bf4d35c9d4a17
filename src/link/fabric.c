#include "link/ofi.h"

#if FERRY_HAVE_LIBFABRIC

#include "base/env.h"
#include "base/log.h"
#include "base/symbols.h"
#include "link/fabric.h"

#include <pthread.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the library ---- */

static fe_fabric lib;
static pthread_mutex_t lib_lock = PTHREAD_MUTEX_INITIALIZER;

static ferry_status load(void) {
    static const fe_symbol symbols[] = {{"fi_getinfo", (void **)&lib.getinfo},   {"fi_dupinfo", (void **)&lib.dupinfo},
                                        {"fi_freeinfo", (void **)&lib.freeinfo}, {"fi_fabric", (void **)&lib.fabric},
                                        {"fi_strerror", (void **)&lib.strerror}, {"fi_version", (void **)&lib.version}};
    const char *path = fe_env_text(FE_ENV_FERRY_FABRIC_LIBRARY);
    if (lib.handle) return FERRY_OK;
    void *handle = dlopen(path ? path : "libfabric.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        return fe_fail(FERRY_UNSUPPORTED, "several hosts need libfabric, which cannot be loaded: %s", dlerror());
    const char *missing = fe_symbols_find(handle, symbols, sizeof symbols / sizeof *symbols);
    if (missing) {
        dlclose(handle);
        return fe_fail(FERRY_UNSUPPORTED, "%s has no %s", path ? path : "libfabric.so.1", missing);
    }
    if (FI_VERSION_LT(lib.version(), FE_FABRIC_API)) {
        uint32_t v = lib.version();
        dlclose(handle);
        return fe_fail(FERRY_UNSUPPORTED, "libfabric %u.%u is too old: 1.17 is needed", FI_MAJOR(v), FI_MINOR(v));
    }
    lib.handle = handle; /* for good: providers have threads and exit handlers of their own */
    return FERRY_OK;
}

ferry_status fe_fabric_load(const fe_fabric **library) {
    pthread_mutex_lock(&lib_lock);
    ferry_status status = load();
    pthread_mutex_unlock(&lib_lock);
    *library = &lib;
    return status;
}

/* ---- its offers ---- */

enum { WHERE = 128 }; /* bytes of an address, in a sentence */

typedef struct question {
    const char *provider, *address; /* address NULL: whatever there is */
    bool flags;                     /* no data with a write, but writes in order */
} question;

static struct fi_info *hints_for(const question *q) {
    struct fi_info *h = lib.dupinfo(NULL);
    if (!h) return NULL;
    h->caps = FI_MSG | FI_RMA;
    h->ep_attr->type = FI_EP_RDM;
    h->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT;
    h->domain_attr->threading = FI_THREAD_DOMAIN;
    h->domain_attr->cq_data_size = q->flags ? 0 : 4;
    h->domain_attr->av_type = FI_AV_TABLE;
    h->mode = FI_CONTEXT | FI_CONTEXT2;
    if (q->flags) h->tx_attr->msg_order = h->rx_attr->msg_order = FI_ORDER_RMA_WAW;
    h->fabric_attr->prov_name = strdup(q->provider);
    return h;
}

static int ask(const question *q, struct fi_info **info) {
    struct fi_info *hints = hints_for(q);
    if (!hints) return -FI_ENOMEM;
    int error = lib.getinfo(FE_FABRIC_API, q->address, NULL, q->address ? FI_SOURCE : 0, hints, info);
    lib.freeinfo(hints);
    return error;
}

static bool by_address(const char *provider) {
    return strncmp(provider, "tcp", 3) == 0; /* the others name devices, and addresses of theirs are not ours to know */
}

/* One of each device, in the order of the offer: the first is what libfabric holds for the best. */
static int devices_of(struct fi_info *offers, struct fi_info *device[64]) {
    int count = 0;
    for (struct fi_info *i = offers; i && count < 64; i = i->next) {
        bool known = false;
        for (int d = 0; d < count && !known; d++)
            known = strcmp(device[d]->domain_attr->name, i->domain_attr->name) == 0;
        if (!known) device[count++] = i;
    }
    return count;
}

static int take(struct fi_info *from, struct fi_info *rail[FE_RAILS], int *rails) {
    rail[*rails] = lib.dupinfo(from);
    if (!rail[*rails]) return -FI_ENOMEM;
    ++*rails;
    return 0;
}

/* Of a provider that knows hosts by addresses devices are interfaces, and lead anywhere: the first is the one. */
static int choose_devices(const fe_ofi_wish *wish, const question *q, struct fi_info *rail[FE_RAILS], int *rails) {
    struct fi_info *offers = NULL, *device[64];
    int chosen[FE_RAILS] = {0}, count = 1, error = ask(q, &offers);
    if (error) return error;
    int devices = devices_of(offers, device);
    if (!by_address(q->provider)) count = fe_rails_share(devices, wish->index, wish->each, wish->rails, chosen);
    for (int i = 0; !error && i < count; i++) error = take(device[chosen[i]], rail, rails);
    lib.freeinfo(offers);
    return error;
}

/* "address,address": a rail for each. where: the one that would not do. */
static int choose_addresses(const char *list, question *q, struct fi_info *rail[FE_RAILS], int *rails,
                            char where[WHERE]) {
    int error = 0;
    for (const char *at = list; !error && *at && *rails < FE_RAILS; at += strcspn(at, ",")) {
        struct fi_info *offers = NULL;
        if (*at == ',') at++;
        snprintf(where, WHERE, "%.*s", (int)strcspn(at, ","), at);
        q->address = where;
        error = ask(q, &offers);
        if (!error) error = take(offers, rail, rails);
        if (offers) lib.freeinfo(offers);
    }
    return error;
}

static int try_provider(const fe_ofi_wish *wish, question *q, struct fi_info *rail[FE_RAILS], int *rails,
                        char where[WHERE]) {
    bool asked_for = wish->provider && wish->addresses_given;
    const char *list = asked_for || by_address(q->provider) ? wish->addresses : NULL;
    snprintf(where, WHERE, "any address");
    int error = list ? choose_addresses(list, q, rail, rails, where) : choose_devices(wish, q, rail, rails);
    if (!error) return 0;
    while (*rails > 0) lib.freeinfo(rail[--*rails]);
    return error;
}

/* With data that comes along with a write; else, where the provider has none but keeps writes in order, without. */
static int try_both(const fe_ofi_wish *wish, const char *provider, struct fi_info *rail[FE_RAILS], int *rails,
                    bool *flags, char where[WHERE]) {
    question q = {.provider = provider, .flags = wish->flags};
    int error = try_provider(wish, &q, rail, rails, where);
    if (error == -FI_ENODATA && !q.flags) {
        q = (question){.provider = provider, .flags = true};
        error = try_provider(wish, &q, rail, rails, where);
    }
    *flags = q.flags;
    return error;
}

static int addresses_of(const char *list) {
    int count = list != NULL;
    for (; list && *list; list++) count += *list == ',';
    return count;
}

/* Flags are behind what they speak of. Frees the offers of rails that do not promise it. */
static ferry_status check_order(const fe_ofi_wish *wish, struct fi_info **rail, int *rails) {
    size_t most = ~(size_t)0;
    for (int i = 0; i < *rails; i++)
        if (rail[i]->ep_attr->max_order_waw_size < most) most = rail[i]->ep_attr->max_order_waw_size;
    if (most >= wish->bytes) return FERRY_OK;
    while (*rails > 0) lib.freeinfo(rail[--*rails]);
    return fe_fail(FERRY_UNSUPPORTED,
                   "rank %d: libfabric's provider brings no data along with writes, and keeps them in order up to "
                   "%zu bytes only",
                   wish->rank, most);
}

/* Providers by name: asked in general, libfabric also offers some that are of no use (`sockets` needs milliseconds where cores are few,
 * `udp;ofi_rxd` is slow). */
ferry_status fe_fabric_choose(const fe_fabric *library, const fe_ofi_wish *wish, struct fi_info *rail[FE_RAILS],
                              int *rails, bool *flags) {
    static const char *const best[] = {"efa", "verbs;ofi_rxm", "cxi", "tcp;ofi_rxm"};
    int error = -FI_ENODATA, tries = wish->provider ? 1 : (int)(sizeof best / sizeof *best);
    char where[WHERE] = "";
    *rails = 0;
    if (addresses_of(wish->addresses) > FE_RAILS)
        return fe_fail(FERRY_INVALID, "rank %d: FERRY_FABRIC_ADDRESS names %d addresses, at most %d", wish->rank,
                       addresses_of(wish->addresses), FE_RAILS);
    for (int i = 0; error && i < tries; i++)
        error = try_both(wish, wish->provider ? wish->provider : best[i], rail, rails, flags, where);
    if (error && wish->provider)
        return fe_fail(FERRY_UNSUPPORTED, "rank %d: libfabric's provider %s (FERRY_FABRIC) on %s: %s", wish->rank,
                       wish->provider, where, library->strerror(-error));
    if (error)
        return fe_fail(FERRY_UNSUPPORTED,
                       "rank %d: libfabric has neither efa, verbs;ofi_rxm, cxi nor, on %s, tcp;ofi_rxm here (%s)",
                       wish->rank, where, library->strerror(-error));
    return *flags ? check_order(wish, rail, rails) : FERRY_OK;
}

/* ---- a GPU's memory ---- */

/* The device of this offer again. An address that was asked for is asked for again. */
static int ask_again(const fe_ofi_wish *wish, const struct fi_info *offer, bool flags, struct fi_info **info) {
    question q = {.provider = offer->fabric_attr->prov_name, .flags = flags};
    struct fi_info *hints = hints_for(&q);
    if (!hints) return -FI_ENOMEM;
    hints->caps |= FI_HMEM;
    hints->domain_attr->mr_mode |= FI_MR_HMEM;
    hints->domain_attr->name = strdup(offer->domain_attr->name);
    if (wish->addresses_given && offer->src_addr) {
        hints->addr_format = offer->addr_format;
        hints->src_addr = malloc(offer->src_addrlen);
        if (hints->src_addr) memcpy(hints->src_addr, offer->src_addr, hints->src_addrlen = offer->src_addrlen);
    }
    int error = lib.getinfo(FE_FABRIC_API, NULL, NULL, 0, hints, info);
    lib.freeinfo(hints);
    return error;
}

ferry_status fe_fabric_for_gpus(const fe_fabric *library, const fe_ofi_wish *wish, struct fi_info *const *rail,
                                int rails, bool flags, struct fi_info *reaching[FE_RAILS]) {
    int found = 0, error = 0;
    for (int i = 0; !error && i < rails; i++) {
        struct fi_info *offers = NULL;
        error = ask_again(wish, rail[i], flags, &offers);
        if (!error) error = take(offers, reaching, &found);
        if (offers) lib.freeinfo(offers);
    }
    if (!error) return flags ? check_order(wish, reaching, &found) : FERRY_OK;
    while (found > 0) lib.freeinfo(reaching[--found]);
    return fe_fail(FERRY_UNSUPPORTED, "rank %d: libfabric's provider %s does not reach a GPU's memory: %s", wish->rank,
                   rail[0]->fabric_attr->prov_name, library->strerror(-error));
}

#endif

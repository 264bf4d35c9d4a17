/* libfabric itself, loaded when first asked for, so that a site's own serves; and which of its devices a rank uses. */
#ifndef FERRY_LINK_FABRIC_H
#define FERRY_LINK_FABRIC_H

#include "link/ofi.h"

#include <rdma/fabric.h>

#define FE_FABRIC_API FI_VERSION(1, 17)

/* The functions that libfabric exports; all others are reached through the objects that these make. */
typedef struct fe_fabric {
    void *handle;
    int (*getinfo)(uint32_t, const char *, const char *, uint64_t, const struct fi_info *, struct fi_info **);
    struct fi_info *(*dupinfo)(const struct fi_info *);
    void (*freeinfo)(struct fi_info *);
    int (*fabric)(struct fi_fabric_attr *, struct fid_fabric **, void *);
    const char *(*strerror)(int);
    uint32_t (*version)(void);
} fe_fabric;

/* FERRY_UNSUPPORTED: there is none, or it is too old. */
ferry_status fe_fabric_load(const fe_fabric **library);

/* What the rank's rails are to be opened with: filled with one for each, which the caller frees; *flags: arrivals are told by flags (fe_ofi).
 * FERRY_UNSUPPORTED: no such provider, address, or promise. */
ferry_status fe_fabric_choose(const fe_fabric *library, const fe_ofi_wish *wish, struct fi_info *rail[FE_RAILS],
                              int *rails, bool *flags);

/* The same devices as in `rail`, so that all hosts choose alike, but reaching a GPU's memory as well: filled likewise. FERRY_UNSUPPORTED: one of
 * them does not. */
ferry_status fe_fabric_for_gpus(const fe_fabric *library, const fe_ofi_wish *wish, struct fi_info *const *rail,
                                int rails, bool flags, struct fi_info *reaching[FE_RAILS]);

#endif

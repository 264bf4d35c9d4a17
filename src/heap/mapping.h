/* Mappings of symmetric heaps in this process, counted: ranks that are threads share one, so that a heap stays mapped until the last
 * of them has let go, and so that a data race between two of them is a race on one address. */
#ifndef FERRY_HEAP_MAPPING_H
#define FERRY_HEAP_MAPPING_H

#include <stddef.h>
#include <stdint.h>

typedef struct fe_mapping {
    struct fe_mapping *next;
    uint64_t nonce; /* names the heap */
    char *base;
    size_t bytes;
    int users;
} fe_mapping;

/* The mapping of heap `nonce`, one user more; NULL when this process has none. Any thread. */
fe_mapping *fe_mapping_find(uint64_t nonce);
/* Maps fd, with one user. NULL with errno set. Any thread. */
fe_mapping *fe_mapping_make(uint64_t nonce, int fd, size_t bytes);
/* One user less; the last unmaps. NULL is allowed. Any thread. */
void fe_mapping_drop(fe_mapping *mapping);

#endif

#include "heap/mapping.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static fe_mapping *all;

fe_mapping *fe_mapping_find(uint64_t nonce) {
    pthread_mutex_lock(&lock);
    fe_mapping *mapping = all;
    while (mapping && mapping->nonce != nonce) mapping = mapping->next;
    if (mapping) mapping->users++;
    pthread_mutex_unlock(&lock);
    return mapping;
}

fe_mapping *fe_mapping_make(uint64_t nonce, int fd, size_t bytes) {
    fe_mapping *mapping = malloc(sizeof *mapping);
    if (!mapping) return NULL;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        int error = errno;
        free(mapping);
        errno = error;
        return NULL;
    }
    pthread_mutex_lock(&lock);
    *mapping = (fe_mapping){.next = all, .nonce = nonce, .base = base, .bytes = bytes, .users = 1};
    all = mapping;
    pthread_mutex_unlock(&lock);
    return mapping;
}

void fe_mapping_drop(fe_mapping *mapping) {
    if (!mapping) return;
    pthread_mutex_lock(&lock);
    int left = --mapping->users;
    for (fe_mapping **at = &all; left == 0 && *at; at = &(*at)->next) {
        if (*at != mapping) continue;
        *at = mapping->next;
        break;
    }
    pthread_mutex_unlock(&lock);
    if (left > 0) return;
    munmap(mapping->base, mapping->bytes);
    free(mapping);
}

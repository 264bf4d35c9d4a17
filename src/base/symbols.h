/* Functions of a library that is loaded when it is first asked for. */
#ifndef FERRY_BASE_SYMBOLS_H
#define FERRY_BASE_SYMBOLS_H

#include <dlfcn.h>
#include <stddef.h>

typedef struct fe_symbol {
    const char *name;
    void **to; /* POSIX lets a function's address be kept there (dlsym(3)) */
} fe_symbol;

/* Fills them in. NULL: all are there; else the name of one that is not. */
static inline const char *fe_symbols_find(void *library, const fe_symbol *symbols, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (!(*symbols[i].to = dlsym(library, symbols[i].name))) return symbols[i].name;
    return NULL;
}

#endif

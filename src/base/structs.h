/* The door of every public struct: its size and magic. */
#ifndef FERRY_BASE_STRUCTS_H
#define FERRY_BASE_STRUCTS_H

#include "base/status.h"

/* Every public struct begins like this. */
typedef struct fe_struct_head {
    size_t size;
    uint64_t magic;
} fe_struct_head;

/* FERRY_INVALID, with `name` in the sentence, unless the struct has the magic, at least `known` bytes, and only zeros past
 * them: a later version's struct is taken as long as it asks for nothing that this one does not know. */
ferry_status fe_check_struct(const void *what, size_t known, uint64_t magic, const char *name);

#define FE_CHECK_STRUCT(pointer, magic, name) FE_TRY(fe_check_struct((pointer), sizeof *(pointer), (magic), (name)))

#endif

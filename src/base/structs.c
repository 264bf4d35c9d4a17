#include "base/structs.h"

#define SIZE_MOST 65536 /* no struct of any version comes near: a size past it is not read as one */

ferry_status fe_check_struct(const void *what, size_t known, uint64_t magic, const char *name) {
    const fe_struct_head *head = what;
    if (!what) return fe_fail(FERRY_INVALID, "%s is NULL", name);
    if (head->size < known || head->size > SIZE_MOST)
        return fe_fail(FERRY_INVALID, "%s: size is %zu, not %zu: begin with its _INIT macro", name, head->size, known);
    if (head->magic != magic)
        return fe_fail(FERRY_INVALID, "%s: magic is %#llx, not %#llx: begin with its _INIT macro", name,
                       (unsigned long long)head->magic, (unsigned long long)magic);
    for (size_t i = known; i < head->size; i++)
        if (((const unsigned char *)what)[i] != 0)
            return fe_fail(FERRY_INVALID, "%s: byte %zu is set, and this version of Ferry knows only %zu bytes", name,
                           i, known);
    return FERRY_OK;
}

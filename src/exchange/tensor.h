/* Tensors at the door: shapes, dtypes and strides checked, and made into plain pointers with strides in bytes. */
#ifndef FERRY_EXCHANGE_TENSOR_H
#define FERRY_EXCHANGE_TENSOR_H

#include "route/route.h"

typedef struct fe_view {
    char *data;
    ferry_dtype dtype;
    int64_t rows, columns;
    int64_t row, column; /* strides in bytes */
} fe_view;

/* [rows, columns] with any strides. `name` is the tensor in sentences. */
ferry_status fe_view_2d(const ferry_tensor *t, const char *name, fe_view *view);
/* The same for what has a row in each slot: [rows, columns], or for SLOTS [L, R * M, columns] with evenly spaced rows. */
ferry_status fe_view_slots(const ferry_tensor *t, const char *name, const fe_shape *shape, fe_view *view);
/* Experts may be any distance apart: *expert bytes, and *slots rows lie in each. A tensor that is not of SLOTS is one expert's. */
ferry_status fe_view_experts(const ferry_tensor *t, const char *name, const fe_shape *shape, fe_view *view,
                             int64_t *expert, int64_t *slots);
/* [n], contiguous. */
ferry_status fe_view_1d(const ferry_tensor *t, const char *name, fe_view *view);

/* Elements of a row lie side by side, aligned to their size. */
ferry_status fe_view_solid(const fe_view *view, const char *name);
/* Rows follow one another without a gap, too. */
ferry_status fe_view_packed(const fe_view *view, const char *name);
ferry_status fe_view_rows(const fe_view *view, const char *name, int64_t rows, bool more_is_fine);
ferry_status fe_view_columns(const fe_view *view, const char *name, int64_t columns);
ferry_status fe_view_dtype(const fe_view *view, const char *name, ferry_dtype dtype);

/* A tensor over library memory: a row for each of `rows` slots, shaped as the layout wants it. */
ferry_tensor fe_slots_tensor(const fe_shape *shape, void *data, ferry_dtype dtype, int64_t rows, int64_t columns);

/* Is the tensor given? One without data is, when there is nothing to point at. */
static inline bool fe_given(const ferry_tensor *t, int64_t tokens) {
    return t->data || (tokens == 0 && t->ndim > 0);
}

#endif

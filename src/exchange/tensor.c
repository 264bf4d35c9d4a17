#include "exchange/tensor.h"

/* Strides in elements; all zero means contiguous. */
static void explicit_strides(const ferry_tensor *t, int64_t strides[FERRY_MAX_DIMS]) {
    bool given = false;
    for (int i = 0; i < t->ndim; i++) given = given || t->strides[i] != 0;
    int64_t stride = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        strides[i] = given ? t->strides[i] : stride;
        stride *= t->shape[i];
    }
}

static ferry_status check_tensor(const ferry_tensor *t, const char *name, int ndim) {
    if (t->ndim != ndim) return fe_fail(FERRY_INVALID, "%s has %d dimensions, not %d", name, t->ndim, ndim);
    if (!ferry_dtype_bytes(t->dtype))
        return fe_fail(FERRY_INVALID, "%s has dtype %d, which is none", name, (int)t->dtype);
    int64_t elements = 1;
    for (int i = 0; i < ndim; i++) {
        if (t->shape[i] < 0 || t->shape[i] > INT32_MAX)
            return fe_fail(FERRY_INVALID, "%s: shape[%d] is %lld", name, i, (long long)t->shape[i]);
        if (t->shape[i] && elements > ((int64_t)1 << 46) / t->shape[i])
            return fe_fail(FERRY_INVALID, "%s has more elements than an address space", name);
        elements *= t->shape[i];
        if (t->strides[i] > (int64_t)1 << 40 || t->strides[i] < -((int64_t)1 << 40))
            return fe_fail(FERRY_INVALID, "%s: strides[%d] is %lld", name, i, (long long)t->strides[i]);
    }
    if (!t->data && elements > 0) return fe_fail(FERRY_INVALID, "%s is not given: its data is NULL", name);
    if (t->data && (uintptr_t)t->data % ferry_dtype_bytes(t->dtype) != 0)
        return fe_fail(FERRY_INVALID, "%s: data %p is not aligned to its %zu-byte elements", name, t->data,
                       ferry_dtype_bytes(t->dtype));
    return FERRY_OK;
}

static fe_view make_view(const ferry_tensor *t, int64_t rows, int64_t columns, int64_t row, int64_t column) {
    int64_t element = (int64_t)ferry_dtype_bytes(t->dtype);
    return (fe_view){.data = t->data,
                     .dtype = t->dtype,
                     .rows = rows,
                     .columns = columns,
                     .row = row * element,
                     .column = column * element};
}

ferry_status fe_view_2d(const ferry_tensor *t, const char *name, fe_view *view) {
    int64_t strides[FERRY_MAX_DIMS];
    FE_TRY(check_tensor(t, name, 2));
    explicit_strides(t, strides);
    *view = make_view(t, t->shape[0], t->shape[1], strides[0], strides[1]);
    return FERRY_OK;
}

ferry_status fe_view_experts(const ferry_tensor *t, const char *name, const fe_shape *shape, fe_view *view,
                             int64_t *expert, int64_t *slots) {
    int64_t strides[FERRY_MAX_DIMS], local = fe_map_local(shape->map, shape->rank);
    int64_t per_expert = (int64_t)shape->ranks * shape->max_tokens;
    *expert = 0;
    *slots = INT64_MAX;
    if (shape->layout != FERRY_LAYOUT_SLOTS) return fe_view_2d(t, name, view);
    FE_TRY(check_tensor(t, name, 3));
    explicit_strides(t, strides);
    if (t->shape[0] != local || t->shape[1] != per_expert)
        return fe_fail(FERRY_INVALID, "%s is [%lld, %lld, ...]; SLOTS wants [%lld, %lld, ...]", name,
                       (long long)t->shape[0], (long long)t->shape[1], (long long)local, (long long)per_expert);
    *view = make_view(t, local * per_expert, t->shape[2], strides[1], strides[2]);
    *expert = strides[0] * (int64_t)ferry_dtype_bytes(t->dtype);
    *slots = per_expert;
    return FERRY_OK;
}

ferry_status fe_view_slots(const ferry_tensor *t, const char *name, const fe_shape *shape, fe_view *view) {
    int64_t expert, slots, element = (int64_t)ferry_dtype_bytes(t->dtype);
    FE_TRY(fe_view_experts(t, name, shape, view, &expert, &slots));
    if (shape->layout != FERRY_LAYOUT_SLOTS || view->rows <= slots || expert == slots * view->row) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s: experts are %lld elements apart, not %lld times the %lld from slot to slot",
                   name, (long long)(expert / element), (long long)slots, (long long)(view->row / element));
}

ferry_status fe_view_1d(const ferry_tensor *t, const char *name, fe_view *view) {
    int64_t strides[FERRY_MAX_DIMS];
    FE_TRY(check_tensor(t, name, 1));
    explicit_strides(t, strides);
    *view = make_view(t, t->shape[0], 1, strides[0], 1);
    return fe_view_packed(view, name);
}

ferry_status fe_view_solid(const fe_view *v, const char *name) {
    if (v->columns <= 1 || v->column == (int64_t)ferry_dtype_bytes(v->dtype)) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s: rows are not contiguous inside: elements are %lld bytes apart", name,
                   (long long)v->column);
}

ferry_status fe_view_packed(const fe_view *v, const char *name) {
    FE_TRY(fe_view_solid(v, name));
    int64_t row = v->columns * (int64_t)ferry_dtype_bytes(v->dtype);
    if (v->rows <= 1 || v->row == row) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s is not contiguous: rows of %lld bytes are %lld bytes apart", name, (long long)row,
                   (long long)v->row);
}

ferry_status fe_view_rows(const fe_view *v, const char *name, int64_t rows, bool more_is_fine) {
    if (v->rows == rows || (more_is_fine && v->rows > rows)) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s has %lld rows, %s%lld are wanted", name, (long long)v->rows,
                   more_is_fine ? "at least " : "", (long long)rows);
}

ferry_status fe_view_columns(const fe_view *v, const char *name, int64_t columns) {
    if (v->columns == columns) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s has %lld columns, %lld are wanted", name, (long long)v->columns,
                   (long long)columns);
}

ferry_status fe_view_dtype(const fe_view *v, const char *name, ferry_dtype dtype) {
    if (v->dtype == dtype) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "%s has dtype %d, %d is wanted", name, (int)v->dtype, (int)dtype);
}

ferry_tensor fe_slots_tensor(const fe_shape *shape, void *data, ferry_dtype dtype, int64_t rows, int64_t columns) {
    ferry_tensor t = ferry_tensor_2d(data, dtype, rows, columns);
    if (shape->layout != FERRY_LAYOUT_SLOTS) return t;
    t.ndim = 3;
    t.shape[0] = fe_map_local(shape->map, shape->rank);
    t.shape[1] = (int64_t)shape->ranks * shape->max_tokens;
    t.shape[2] = columns;
    return t;
}

#include "group/body.h"
#include "base/num.h"
#include "base/os.h"
#include "route/record.h"

#define LINE         64
#define PAGE         4096
#define ALIGN_ALWAYS 128 /* padding of EXPERT that the default max_recv_rows allows for: what grouped GEMMs ask for */
#define MOST_BYTES   ((size_t)1 << 46) /* x86-64 gives a process 2^47 */

static int64_t worst_case(const ferry_group_config *cfg, const fe_map *map) {
    static const ferry_layout layouts[] = {FERRY_LAYOUT_RANK, FERRY_LAYOUT_EXPERT, FERRY_LAYOUT_SLOTS};
    fe_shape shape = {.map = map, .ranks = map->ranks, .topk = cfg->max_topk, .max_tokens = cfg->max_tokens};
    int wanted = cfg->layouts ? cfg->layouts : FERRY_LAYOUT_RANK | FERRY_LAYOUT_EXPERT;
    int64_t most = 1;
    shape.alignment = ALIGN_ALWAYS;
    for (int i = 0; i < 3; i++) {
        shape.layout = layouts[i];
        for (int r = 0; (wanted & layouts[i]) && r < map->ranks; r++) {
            int64_t rows = fe_worst_rows(&shape, r);
            if (rows > most) most = rows;
        }
    }
    return most;
}

static size_t take(size_t *used, size_t count, size_t bytes) {
    size_t at = *used;
    *used = (size_t)fe_align((int64_t)(at + count * bytes), LINE);
    return at;
}

static void lay_boxes(const ferry_group_config *cfg, const fe_map *map, size_t hosts, size_t *used, fe_body *body) {
    fe_boxes *b = &body->boxes;
    size_t header = fe_record_header(cfg->max_topk, true), tokens = (size_t)cfg->max_tokens;
    size_t tails = (size_t)map->ranks / hosts * (size_t)map->most_local * sizeof(int32_t);
    b->tail_bytes = (size_t)fe_align((int64_t)tails, LINE);
    b->box_bytes = (size_t)fe_align(
        (int64_t)(b->tail_bytes + tokens * fe_record_stride(header, body->row_bytes, body->scale_bytes)) + 2 * LINE,
        LINE);
    b->weight_bytes = (size_t)fe_align((int64_t)(tokens * (size_t)cfg->max_topk * sizeof(float)), LINE);
    b->sum_weights_at = (size_t)fe_align((int64_t)(tokens * body->row_bytes), LINE);
    b->sum_bytes = b->sum_weights_at + b->weight_bytes;
    for (int half = 0; half < 2; half++) {
        b->outbox[half] = take(used, hosts, b->box_bytes);
        b->landing[half] = take(used, hosts, b->box_bytes);
        b->sums_out[half] = take(used, hosts, b->sum_bytes);
        b->sums_in[half] = take(used, hosts, b->sum_bytes);
        b->weights_out[half] = take(used, hosts, b->weight_bytes);
        b->weights_in[half] = take(used, hosts, b->weight_bytes);
    }
}

ferry_status fe_body_lay_out(const ferry_group_config *cfg, const fe_map *map, int hosts, fe_body *body) {
    size_t ranks = (size_t)map->ranks, used = 0, topk = (size_t)cfg->max_topk;
    *body = (fe_body){.rows = cfg->max_recv_rows ? cfg->max_recv_rows : worst_case(cfg, map)};
    body->row_bytes = (size_t)cfg->hidden * ferry_dtype_bytes(cfg->dtype ? cfg->dtype : FERRY_BF16);
    body->scale_bytes = 4 * (((size_t)cfg->hidden + FE_CAST_BLOCK - 1) / FE_CAST_BLOCK);
    size_t rows = (size_t)body->rows;
    if (body->rows > INT32_MAX || rows > MOST_BYTES / (4 * (body->row_bytes + body->scale_bytes + 16 * topk)))
        return fe_fail(FERRY_INVALID,
                       "max_recv_rows %lld of %zu bytes is more than a rank can address: set it, or leave SLOTS out of "
                       "layouts",
                       (long long)body->rows, body->row_bytes);
    body->counts = take(&used, 2 * ranks * fe_counts_length(map), sizeof(int32_t));
    body->tails = take(&used, 2 * ranks * (size_t)map->most_local, sizeof(int32_t));
    body->small_bytes = used;
    if (hosts > 1) used = (size_t)fe_align((int64_t)used, PAGE); /* boxes may be memory of another kind, */
    body->boxes_at = used;
    if (hosts > 1) lay_boxes(cfg, map, (size_t)hosts, &used, body);
    if (hosts > 1) used = (size_t)fe_align((int64_t)used, PAGE); /* and so may what follows */
    body->post_bytes = used;
    for (int half = 0; half < 2; half++) {
        body->receive[half].rows = take(&used, rows, body->row_bytes);
        body->receive[half].scales = take(&used, rows, body->scale_bytes);
        body->receive[half].source = take(&used, rows, sizeof(int32_t));
        body->receive[half].ids = take(&used, rows, topk * sizeof(int32_t));
        body->receive[half].weights = take(&used, rows, topk * sizeof(float));
        body->back[half].rows = take(&used, rows, body->row_bytes);
        body->back[half].weights = take(&used, rows, topk * sizeof(float));
    }
    body->bytes = used;
    return FERRY_OK;
}

void fe_body_move(fe_body *body, size_t by) {
    body->counts += by;
    body->tails += by;
    for (int half = 0; half < 2; half++) {
        body->receive[half].rows += by;
        body->receive[half].scales += by;
        body->receive[half].source += by;
        body->receive[half].ids += by;
        body->receive[half].weights += by;
        body->back[half].rows += by;
        body->back[half].weights += by;
        body->boxes.outbox[half] += by;
        body->boxes.landing[half] += by;
        body->boxes.sums_out[half] += by;
        body->boxes.sums_in[half] += by;
        body->boxes.weights_out[half] += by;
        body->boxes.weights_in[half] += by;
    }
}

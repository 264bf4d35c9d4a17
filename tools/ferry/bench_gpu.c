/* ferry bench on a GPU: inputs, outputs and rows in its memory, steps queued on a stream. */
#include "base/os.h"
#include "bench.h"
#include <stdlib.h>

enum { CHUNK_BYTES = 1 << 22, TENSORS = 7 };

void *fe_gpu_new(fe_lane *lane, size_t bytes) {
    bool room = lane->gpu_count < (int)(sizeof lane->gpu / sizeof *lane->gpu);
    void *memory = room ? fe_memory_device_new(bytes) : NULL;
    if (memory) lane->gpu[lane->gpu_count++] = memory;
    return memory;
}

static void *copy_in(fe_lane *lane, const void *from, size_t bytes) {
    void *memory = fe_gpu_new(lane, bytes);
    return memory && fe_memory_copy(memory, from, bytes) ? memory : NULL;
}

bool fe_gpu_open(fe_lane *lane) {
    const fe_bench *b = lane->bench;
    const oracle_tokens *mine = &b->tokens[lane->self->rank];
    size_t tokens = (size_t)mine->tokens, choices = tokens * (size_t)b->o.topk;
    lane->made = calloc((size_t)b->o.batch, sizeof *lane->made);
    lane->in.rows.data = copy_in(lane, mine->rows, tokens * b->in_bytes);
    if (b->in_scale_bytes) lane->in.scales.data = copy_in(lane, mine->scales, tokens * b->in_scale_bytes);
    lane->topk_idx = copy_in(lane, mine->topk_idx, choices * sizeof *mine->topk_idx);
    lane->topk_weights = copy_in(lane, mine->topk_weights, choices * sizeof *mine->topk_weights);
    lane->result.rows.data = fe_gpu_new(lane, tokens * b->back_bytes);
    bool good = lane->made && lane->in.rows.data && (!b->in_scale_bytes || lane->in.scales.data) && lane->topk_idx &&
                lane->topk_weights && lane->result.rows.data;
    if (!good) return fe_rank_fail(lane->self, "no GPU memory for the inputs: %s", fe_memory_trouble());
    FE_RANK_OK(lane->self, ferry_stream_create(lane->group, &lane->stream));
    return true;
}

void fe_gpu_close(fe_lane *lane) {
    for (int m = 0; m < FE_M_COUNT; m++) fe_memory_graph_free(lane->graph[m]);
    for (int i = 0; i < lane->gpu_count; i++) fe_memory_device_free(lane->gpu[i]);
    free(lane->made);
}

/* Between host memory and a place that may be in the rank's space or anywhere else. */
static bool move(fe_lane *lane, void *there, void *host, size_t bytes, bool to_host) {
    if (ferry_heap_ptr(lane->group, there, lane->self->rank)) {
        ferry_status status = to_host ? fe_memory_read(lane->group, host, there, bytes)
                                      : fe_memory_write(lane->group, there, host, bytes);
        return fe_rank_ok(lane->self, status, to_host ? "ferry_get" : "ferry_put");
    }
    return fe_memory_copy(to_host ? host : there, to_host ? there : host, bytes) ||
           fe_rank_fail(lane->self, "%zu bytes could not be copied to or from the GPU", bytes);
}

/* Slots that follow one another go over together. */
bool fe_gpu_fill_back(fe_lane *lane, const ferry_tensor *rows) {
    const fe_bench *b = lane->bench;
    const oracle_rank *mine = oracle_rank_of(b->plan, lane->self->rank);
    int64_t room = CHUNK_BYTES / (int64_t)b->back_bytes + 1;
    char *chunk = malloc((size_t)room * b->back_bytes);
    bool good = chunk != NULL || fe_rank_fail(lane->self, "no memory for the rows to be returned");
    for (int64_t i = 0; good && i < mine->received;) {
        int64_t first = mine->row[i].slot, n = 0;
        for (; n < room && i < mine->received && mine->row[i].slot == first + n; n++, i++)
            fe_lane_draw_back(lane, first + n, chunk + (size_t)n * b->back_bytes);
        good = move(lane, (char *)rows->data + (size_t)first * b->back_bytes, chunk, (size_t)n * b->back_bytes, false);
    }
    free(chunk);
    return good;
}

/* ---- what was dispatched ---- */

static void list_tensors(ferry_dispatch_out *out, ferry_tensor *list[TENSORS]) {
    ferry_tensor *all[TENSORS] = {&out->rows,   &out->scales, &out->topk_idx, &out->topk_weights,
                                  &out->source, &out->counts, &out->starts};
    memcpy(list, all, sizeof all);
}

static size_t span_of(const ferry_tensor *t) {
    int64_t last = 0, stride = 1;
    bool given = false;
    for (int i = 0; i < t->ndim; i++) given = given || t->strides[i] != 0;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] == 0) return 0;
        last += (t->shape[i] - 1) * (given ? t->strides[i] : stride);
        stride *= t->shape[i];
    }
    return (size_t)(last + 1) * ferry_dtype_bytes(t->dtype);
}

bool fe_gpu_see(fe_lane *lane, ferry_dispatch_out *out) {
    ferry_tensor *list[TENSORS];
    bool good = true;
    list_tensors(out, list);
    for (int i = 0; i < TENSORS; i++) {
        void *there = list[i]->data;
        size_t bytes = there ? span_of(list[i]) : 0;
        list[i]->data = there ? malloc(bytes + 1) : NULL;
        if (good && there && !list[i]->data) good = fe_rank_fail(lane->self, "no memory for the check");
        good = good && (bytes == 0 || move(lane, there, list[i]->data, bytes, true));
    }
    return good;
}

void fe_gpu_forget(ferry_dispatch_out *out) {
    ferry_tensor *list[TENSORS];
    list_tensors(out, list);
    for (int i = 0; i < TENSORS; i++) free(list[i]->data);
}

bool fe_gpu_give_tables(fe_lane *lane, ferry_dispatch_out *out) {
    const fe_bench *b = lane->bench;
    int64_t ranks = b->o.ranks, local = oracle_rank_of(b->plan, lane->self->rank)->local_experts;
    bool by_rank = b->layout == FERRY_LAYOUT_RANK;
    for (int i = 0; i < 2; i++) {
        void *memory = fe_gpu_new(lane, (size_t)(by_rank ? ranks : ranks * local) * 4);
        if (!memory) return fe_rank_fail(lane->self, "no GPU memory for the check: %s", fe_memory_trouble());
        *(i ? &out->starts : &out->counts) =
            by_rank ? ferry_tensor_1d(memory, FERRY_INT32, ranks) : ferry_tensor_2d(memory, FERRY_INT32, local, ranks);
    }
    return true;
}

/* ---- clocks ---- */

bool fe_gpu_measure_copy(fe_lane *lane) {
    if (!fe_rank_barrier(lane->self)) return false; /* while nothing else runs */
    fe_bench_shared *shared = lane->bench->shared;
    if (lane->self->rank == 0 && !(fe_memory_copy_rate(&shared->copy_rate) && fe_memory_link_rate(&shared->link_rate)))
        return fe_rank_fail(lane->self, "the GPU's copy rate could not be measured: %s", fe_memory_trouble());
    shared->card[lane->self->rank] = fe_memory_card();
    return fe_rank_gather(lane->self, shared->card, sizeof shared->card[0]) && fe_rank_barrier(lane->self);
}

static bool queue_batch(fe_lane *lane, fe_measure m, ferry_combine_in *in) {
    bool good = true;
    for (int i = 0; good && i < lane->bench->o.batch; i++) good = fe_lane_step(lane, m, in, &lane->made[i]);
    return good;
}

/* A batch as a graph, made once. The batch is even, so that every replay begins with the half that the one before ended before. */
static bool capture(fe_lane *lane, fe_measure m, ferry_combine_in *in) {
    if (lane->graph[m]) return true;
    bool good = fe_memory_capture_begin(lane->stream) && queue_batch(lane, m, in);
    return (fe_memory_capture_end(lane->stream, &lane->graph[m]) && good) ||
           fe_rank_fail(lane->self, "a batch of steps could not be captured into a graph: %s", ferry_last_error());
}

bool fe_gpu_timed(fe_lane *lane, fe_measure m, double *us) {
    int batch = lane->bench->o.batch;
    bool graph =
        lane->bench->o.graph && (m == FE_M_DISPATCH || m == FE_M_COMBINE || m == FE_M_ROUND || m == FE_M_BARRIER);
    ferry_combine_in in;
    if ((m == FE_M_COMBINE || m == FE_M_ROUND) && !fe_lane_back(lane, &in)) return false;
    memset(lane->made, 0, (size_t)batch * sizeof *lane->made);
    if (graph && !capture(lane, m, &in)) return false;
    if (!fe_lane_sync(lane) || !fe_rank_barrier(lane->self)) return false;
    int64_t start = fe_now_ns();
    bool good = graph ? fe_memory_replay(lane->stream, lane->graph[m]) : queue_batch(lane, m, &in);
    good = good && fe_lane_sync(lane);
    *us = (double)(fe_now_ns() - start) / 1000 / batch;
    for (int i = 0; good && i < batch; i++) ferry_route_destroy(lane->made[i]);
    return good;
}

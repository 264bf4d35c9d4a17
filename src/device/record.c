#include "device/record.h"
#include "route/tally.h"

fe_step *fe_record_begin(fe_recorder *recorder, const fe_pass *pass, int lane) {
    if (!recorder) return NULL;
    const fe_await *before = &pass->await, *after = &pass->settle;
    const fe_step_about about = {.text = pass->step,
                                 .lane = lane,
                                 .half = pass->half,
                                 .kind = {before->used ? (int)before->kind : -1, after->used ? (int)after->kind : -1},
                                 .route = pass->route ? pass->route->number : 0,
                                 .epoch = {before->epoch, after->epoch}};
    return fe_step_begin(recorder, &about);
}
_Static_assert(sizeof((fe_pass *)0)->step == FE_STEP_TEXT, "a record holds a step's text whole");

static uint64_t sent_row(const fe_pass *pass) {
    return pass->scatter.row_bytes + pass->scatter.scale_bytes;
}

static uint64_t returned_row(const fe_pass *pass) {
    return pass->reduce.columns * ferry_dtype_bytes(pass->reduce.in_type);
}

static uint64_t rows_of(const fe_pass *pass) {
    const fe_tally *tally = pass->route->tally;
    uint64_t rows = 0;
    for (int r = 0; tally->placed && r < pass->route->shape.ranks; r++) rows += (uint64_t)tally->sent[r];
    if (pass->move != FE_MOVE_REDUCE) return rows; /* a scatter is of all parts, a reduce of one */
    return (uint64_t)(fe_part_to(pass->part, (int64_t)rows) - fe_part_from(pass->part, (int64_t)rows));
}

/* Rows by their number: what this rank sends, and what comes back to it. */
uint64_t fe_record_bytes(const fe_pass *pass) {
    switch (pass->move) {
    case FE_MOVE_SCATTER: return rows_of(pass) * sent_row(pass);
    case FE_MOVE_REDUCE: return rows_of(pass) * returned_row(pass);
    case FE_MOVE_PUBLISH: return pass->publish.bytes;
    case FE_MOVE_COLLECT: return pass->collect.bytes;
    case FE_MOVE_TRANSFER: return pass->transfer.bytes;
    case FE_MOVE_SPREAD: return fe_counts_length(pass->route->shape.map) * sizeof(int32_t);
    default: return 0;
    }
}

/* ---- rows ---- */

static void add(_Atomic uint64_t *rows, _Atomic uint64_t *bytes, int64_t count, uint64_t row_bytes) {
    fe_traffic_add(rows, (uint64_t)count);
    fe_traffic_add(bytes, (uint64_t)count * row_bytes);
}

void fe_record_moved(fe_recorder *recorder, const fe_pass *pass) {
    bool sends = pass->move == FE_MOVE_SCATTER;
    if (!recorder || (!sends && (pass->move != FE_MOVE_REDUCE || !fe_part_last(pass->part)))) return;
    const fe_tally *tally = pass->route->tally;
    for (int r = 0; r < pass->route->shape.ranks; r++) {
        fe_traffic *t = &recorder->peer[r].traffic[pass->half];
        if (!sends) {
            add(&t->rows_returned, &t->bytes_returned, tally->sent[r], returned_row(pass));
            continue;
        }
        add(&t->rows_sent, &t->bytes_sent, tally->sent[r], sent_row(pass));
        if (tally->dropped[r]) fe_traffic_add(&t->rows_dropped, (uint64_t)tally->dropped[r]);
    }
}

/* The counts of a route are the same at each of its dispatches. */
void fe_record_arrived(fe_recorder *recorder, const fe_pass *pass) {
    const fe_route_data *route = pass->route;
    if (!recorder || (pass->move != FE_MOVE_DELIVER && !pass->counts_last)) return;
    fe_tally *tally = route->tally;
    uint64_t before = atomic_load_explicit(&tally->arrived, memory_order_relaxed);
    if (!tally->heard) fe_tally_arrive(tally, &route->shape, &route->blocks, route->demand);
    for (int r = 0; r < route->shape.ranks; r++) {
        fe_traffic *t = &recorder->peer[r].traffic[pass->half];
        add(&t->rows_received, &t->bytes_received, tally->received[r],
            pass->deliver.row_bytes + pass->deliver.scale_bytes);
    }
    atomic_store_explicit(&tally->arrived, before + 1, memory_order_release);
}

/* ---- devices that run a pass where nobody looks ---- */

/* The host's copy of what place found out stands for the device's. */
static void count_submitted(fe_recorder *recorder, const fe_pass *pass) {
    bool moves = pass->move == FE_MOVE_SCATTER || pass->move == FE_MOVE_REDUCE,
         arrives = pass->move == FE_MOVE_DELIVER || pass->counts_last;
    if (!pass->route || !(moves || arrives)) return;
    fe_tally *tally = pass->route->tally;
    if (!tally->placed || !tally->heard) return; /* LATENCY, or a graph: the counts are in the device's memory */
    if (moves) fe_record_moved(recorder, pass);
    if (arrives) fe_record_arrived(recorder, pass);
}

ferry_status fe_submit(fe_engine *engine, ferry_stream *stream, const fe_pass *pass) {
    const fe_device *device = engine->device;
    fe_recorder *recorder = engine->watch.recorder;
    if (device->records || !recorder) return device->submit(engine, stream, pass);
    fe_step *step = fe_record_begin(recorder, pass, stream ? 1 : 0);
    ferry_status status = device->submit(engine, stream, pass);
    fe_step_end(recorder, step, status, 0, !stream || pass->outcome);
    if (status == FERRY_OK) count_submitted(recorder, pass);
    return status;
}

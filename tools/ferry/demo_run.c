/* What one rank of the demo does: training steps, held-out batches, and the sample, all through Ferry. */
#include "base/os.h"
#include "demo.h"
#include "draw.h"
#include <string.h>

enum { W = FE_DEMO_WINDOW, E = FE_DEMO_EXPERTS, V = FE_DEMO_BYTES, WARMUP = 20, LINES = 12 };

typedef struct lane { /* one rank's things */
    fe_rank *self;
    const fe_demo *demo;
    fe_demo_result *result;
    bool lines;
    ferry_group *group;
    fe_demo_model *model;
} lane;

/* Up to the rate over the first steps, then down in a straight line to a twentieth of it. */
static float rate_at(const fe_demo *d, int step) {
    double warm = step < WARMUP ? (double)step / WARMUP : 1;
    return (float)(d->rate * warm * (1 - 0.95 * (step - 1) / d->steps));
}

/* What this rank sent, by its own choices; what its experts received, by Ferry's counts. */
static void count_rows(lane *l) {
    const fe_demo_model *m = l->model;
    for (int i = 0; i < FE_DEMO_LAYERS; i++) {
        const fe_demo_layer *layer = &m->layer[i];
        for (int c = 0; c < m->tokens * FE_DEMO_TOPK; c++) l->result->sent[m->rank][i][layer->choice[c]]++;
        for (int e = 0; e < m->local_experts; e++)
            l->result->received[i][m->expert_id[e]] += (uint64_t)layer->info.expert_rows[e];
    }
}

static bool train_step(lane *l, int step) {
    fe_demo_model *m = l->model;
    double bits;
    fe_demo_batch(&l->demo->text, m, (uint64_t)l->demo->seed, step, false);
    FE_RANK_OK(l->self, fe_demo_forward(m, FE_DEMO_TRAIN));
    count_rows(l);
    FE_RANK_OK(l->self, fe_demo_loss(m, &bits));
    FE_RANK_OK(l->self, fe_demo_backward(m));
    fe_demo_update(m, step, rate_at(l->demo, step));
    if (m->rank == 0) l->result->loss[step - 1] = bits;
    return true;
}

static bool train(lane *l) {
    const fe_demo *d = l->demo;
    if (!fe_rank_barrier(l->self)) return false;
    int64_t start = fe_now_ns();
    for (int step = 1, first = 1; step <= d->steps; step++) {
        if (!train_step(l, step)) return false;
        fe_rank_progress(l->self, step, d->steps);
        bool due = step == 1 || (int64_t)step * LINES / d->steps > (int64_t)(step - 1) * LINES / d->steps;
        if (!due || !l->lines || l->self->rank != 0) continue;
        /* All ranks move alike: as many tokens, and as many shards of gradients. */
        uint64_t bytes = l->model->bytes * (uint64_t)l->self->ranks;
        fe_demo_print_step(d, l->result, first, step, fe_now_ns() - start, bytes);
        first = step + 1;
    }
    l->result->train_bytes[l->self->rank] = l->model->bytes;
    if (l->self->rank == 0) l->result->train_s = (double)(fe_now_ns() - start) / 1e9;
    return true;
}

static bool hold_out(lane *l) {
    double bits, sum = 0;
    for (int i = 0; i < FE_DEMO_HELD_BATCHES; i++) {
        fe_demo_batch(&l->demo->text, l->model, (uint64_t)l->demo->seed, i, true);
        FE_RANK_OK(l->self, fe_demo_forward(l->model, FE_DEMO_TRAIN));
        FE_RANK_OK(l->self, fe_demo_loss(l->model, &bits));
        sum += bits;
    }
    if (l->self->rank == 0) l->result->held_out = sum / FE_DEMO_HELD_BATCHES;
    return true;
}

/* The random number depends on seed, sequence and position alone, so the byte does not depend on who draws it. */
static uint8_t pick(const fe_demo *d, float *logits, int sequence, int position) {
    const uint64_t key = fe_mix(fe_mix((uint64_t)d->seed ^ 0x5a3f1e00u) + (uint64_t)sequence);
    const float u = (float)(fe_mix(key + (uint64_t)position) >> 40) * 0x1p-24f;
    const float sharp = (float)(1 / d->temperature);
    float sum = 0;
    int best = 0;
    for (int v = 0; v < V; v++) logits[v] *= sharp;
    fe_softmax(logits, V);
    for (int v = 0; v < V; v++) {
        if (logits[v] > logits[best]) best = v;
        sum += logits[v];
        if (u < sum) return (uint8_t)v;
    }
    return (uint8_t)best; /* rounding left the sum below u */
}

/* One decode step: each of this rank's sequences grows by a byte. */
static bool decode(lane *l, int position) {
    fe_demo_model *m = l->model;
    FE_RANK_OK(l->self, fe_demo_forward(m, FE_DEMO_DECODE));
    for (int i = 0; i < m->tokens; i++) {
        int sequence = m->rank * m->tokens + i;
        uint8_t byte = pick(l->demo, m->logits + (int64_t)i * V, sequence, position),
                *window = m->window + (int64_t)i * W;
        l->result->sample[sequence][position] = byte;
        memmove(window, window + 1, W - 1);
        window[W - 1] = byte;
    }
    return true;
}

static bool sample(lane *l) {
    const fe_demo *d = l->demo;
    fe_demo_model *m = l->model;
    uint64_t before = m->bytes;
    m->tokens = m->local_shards;
    for (int i = 0; i < m->tokens; i++) {
        int sequence = m->rank * m->tokens + i;
        fe_demo_start(&d->text, d->prompt, sequence, m->window + (int64_t)i * W);
        memcpy(l->result->start[sequence], m->window + (int64_t)i * W, W);
    }
    if (!decode(l, 0) || !fe_rank_barrier(l->self))
        return false; /* the first step touches the slots' memory: not timed */
    int64_t start = fe_now_ns();
    for (int position = 1; position < d->sample; position++)
        if (!decode(l, position)) return false;
    if (l->self->rank == 0 && d->sample > 1)
        l->result->decode_us = (double)(fe_now_ns() - start) / 1e3 / (d->sample - 1);
    l->result->sample_bytes[l->self->rank] = m->bytes - before;
    return true;
}

static void take_hashes(lane *l) {
    const fe_demo_model *m = l->model;
    l->result->dense_hash[m->rank] = fe_demo_model_hash(m, -1);
    for (int e = 0; e < m->local_experts; e++) {
        l->result->expert_hash[m->expert_id[e]] = fe_demo_model_hash(m, e);
        l->result->expert_rank[m->expert_id[e]] = m->rank;
    }
}

static bool run(lane *l) {
    int shard_tokens = l->demo->batch / FE_DEMO_SHARDS;
    ferry_group_config config = fe_demo_group_config(FE_DEMO_SHARDS / l->self->ranks, shard_tokens);
    config.sms = l->demo->sms;
    if (!fe_rank_group(l->self, &config, &l->group)) return false;
    l->model = fe_demo_model_new(l->group, FE_DEMO_SHARDS, shard_tokens, (uint64_t)l->demo->seed);
    if (!l->model) return fe_rank_fail(l->self, "no memory for the model");
    if (!train(l) || !hold_out(l)) return false;
    take_hashes(l);
    return sample(l);
}

bool fe_demo_rank(fe_rank *self) {
    const fe_demo_job *job = self->arg;
    lane l = {.self = self, .demo = job->demo, .result = job->result, .lines = job->lines};
    bool good = run(&l);
    if (!good && l.group) ferry_group_abort(l.group); /* the others need not wait for the deadline */
    fe_demo_model_free(l.model);
    ferry_group_destroy(l.group);
    return good;
}

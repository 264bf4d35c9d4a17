#include "demo_model.h"
#include "draw.h"
#include "memory.h"
#include <stdlib.h>
#include <string.h>

enum {
    W = FE_DEMO_WINDOW,
    D = FE_DEMO_EMBED,
    C = FE_DEMO_CONTEXT,
    H = FE_DEMO_HIDDEN,
    F = FE_DEMO_INNER,
    E = FE_DEMO_EXPERTS,
    K = FE_DEMO_TOPK,
    V = FE_DEMO_BYTES
};

ferry_group_config fe_demo_group_config(int local_shards, int shard_tokens) {
    ferry_group_config c = FERRY_GROUP_CONFIG_INIT;
    c.device = fe_memory_device();
    c.experts = E;
    c.hidden = H;
    c.dtype = FERRY_FP32;
    c.max_tokens = local_shards * shard_tokens;
    c.max_topk = K;
    c.layouts = FERRY_LAYOUT_EXPERT | FERRY_LAYOUT_SLOTS;
    c.threads = 1;
    return c;
}

/* Zeroed, or NULL; freed with the model. Ferry's calls may read and write it, whatever the device. */
static void *own(fe_demo_model *m, size_t bytes) {
    void **p = &m->owned[m->owned_count];
    bool cpu = fe_memory_device() == FERRY_CPU;
    *p = cpu ? aligned_alloc(64, (bytes + 63) / 64 * 64) : fe_memory_new(bytes);
    if (!*p) return NULL;
    memset(*p, 0, bytes);
    m->owned_count++;
    return *p;
}

static float *own_floats(fe_demo_model *m, int64_t rows, int columns) {
    return own(m, sizeof(float) * (size_t)(rows * columns));
}

static bool own_layer(fe_demo_model *m, fe_demo_layer *l, int64_t tokens, int64_t rows) {
    size_t experts = sizeof(fe_demo_expert) * (size_t)m->local_experts;
    return (l->expert = own(m, experts)) && (l->gradient = own(m, experts)) && (l->mean = own(m, experts)) &&
           (l->square = own(m, experts)) && (l->x = own_floats(m, tokens, H)) &&
           (l->scale = own_floats(m, tokens, 1)) && (l->h = own_floats(m, tokens, H)) &&
           (l->probability = own_floats(m, tokens, E)) && (l->choice = own(m, sizeof(int32_t) * (size_t)tokens * K)) &&
           (l->weight = own_floats(m, tokens, K)) && (l->received = own_floats(m, rows, H)) &&
           (l->received_weight = own_floats(m, rows, 1)) && (l->inner = own_floats(m, rows, F)) &&
           (l->active = own_floats(m, rows, F)) && (l->returned = own_floats(m, rows, H));
}

static bool own_all(fe_demo_model *m) {
    int64_t tokens = (int64_t)m->local_shards * m->shard_tokens;
    int64_t rows = (int64_t)m->shards * m->shard_tokens * K; /* when all tokens choose this rank's experts */
    for (int i = 0; i < FE_DEMO_LAYERS; i++)
        if (!own_layer(m, &m->layer[i], tokens, rows)) return false;
    size_t blocks = sizeof(int32_t) * (size_t)(m->local_experts * m->ranks);
    if (!(m->counts = own(m, blocks)) || !(m->starts = own(m, blocks))) return false;
    if (fe_memory_device() != FERRY_CPU &&
        !((m->arrived = own_floats(m, rows, H)) && (m->answered = own_floats(m, rows, H))))
        return false;
    return (m->window = own(m, (size_t)tokens * W)) && (m->target = own(m, (size_t)tokens)) &&
           (m->context = own_floats(m, tokens, C)) && (m->x = own_floats(m, tokens, H)) &&
           (m->scale = own_floats(m, tokens, 1)) && (m->h = own_floats(m, tokens, H)) &&
           (m->logits = own_floats(m, tokens, V)) && (m->tally = own(m, sizeof *m->tally * (size_t)m->shards)) &&
           (m->dense = own(m, sizeof *m->dense)) && (m->mean = own(m, sizeof *m->mean)) &&
           (m->square = own(m, sizeof *m->square)) &&
           (m->gradient = own(m, sizeof *m->gradient * (size_t)m->local_shards)) &&
           (m->gathered = own(m, sizeof *m->gathered * (size_t)m->shards)) && (m->dx = own_floats(m, tokens, H)) &&
           (m->dh = own_floats(m, tokens, H)) && (m->dweight = own_floats(m, tokens, K)) &&
           (m->dcontext = own_floats(m, tokens, C)) && (m->dlogits = own_floats(m, tokens, E)) &&
           (m->drow = own_floats(m, rows, H)) && (m->dinner = own_floats(m, rows, F)) &&
           (m->drow_weight = own_floats(m, rows, 1)) && (m->transposed = own_floats(m, V, V));
}

/* Uniform, of variance deviation^2. `stream` tells the arrays apart. */
static void draw(float *to, size_t bytes, uint64_t seed, uint64_t stream, float deviation) {
    for (size_t i = 0; i < bytes / sizeof *to; i++) {
        uint64_t bits = fe_mix(fe_mix(seed ^ stream << 40) + i);
        to[i] = ((float)(bits >> 40) * 0x1p-23f - 1.0f) * (1.7320508f * deviation);
    }
}

static void fill(float *to, int n, float value) {
    for (int i = 0; i < n; i++) to[i] = value;
}

static void draw_weights(fe_demo_model *m, uint64_t seed) {
    fe_demo_dense *d = m->dense;
    draw(*d->embed, sizeof d->embed, seed, 1, 0.5f);
    draw(*d->in, sizeof d->in, seed, 2, 0.125f); /* 2 / sqrt(256 inputs): embeddings have half of unit size */
    draw(*d->out, sizeof d->out, seed, 3, 0.0625f);
    fill(d->gain, H, 1);
    for (int i = 0; i < FE_DEMO_LAYERS; i++) {
        fill(d->gate[i].gain, H, 1);
        draw(*d->gate[i].router, sizeof d->gate[i].router, seed, 4 + (uint64_t)i, 0.0625f);
        for (int e = 0; e < m->local_experts; e++) {
            fe_demo_expert *x = &m->layer[i].expert[e];
            uint64_t stream = 16 + 2 * ((uint64_t)i * E + (uint64_t)m->expert_id[e]);
            draw(*x->up, sizeof x->up, seed, stream, 0.125f); /* 1 / sqrt(64) */
            draw(*x->down, sizeof x->down, seed, stream + 1, 0.0625f);
        }
    }
}

fe_demo_model *fe_demo_model_new(ferry_group *group, int shards, int shard_tokens, uint64_t seed) {
    fe_demo_model *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->group = group;
    m->rank = ferry_group_rank(group);
    m->ranks = ferry_group_ranks(group);
    m->shards = shards;
    m->shard_tokens = shard_tokens;
    m->local_shards = shards / m->ranks;
    m->local_experts = ferry_group_local_experts(group, m->rank, &m->expert_id);
    m->balance = 0.01f; /* Switch Transformer's alpha */
    if (!own_all(m)) {
        fe_demo_model_free(m);
        return NULL;
    }
    draw_weights(m, seed);
    return m;
}

void fe_demo_model_free(fe_demo_model *m) {
    if (!m) return;
    for (int i = 0; i < FE_DEMO_LAYERS; i++) ferry_route_destroy(m->layer[i].route);
    for (int i = 0; i < m->owned_count; i++) fe_memory_free(m->owned[i]);
    free(m);
}

uint64_t fe_demo_model_hash(const fe_demo_model *m, int local_expert) {
    if (local_expert < 0) return fe_hash(FE_HASH_START, m->dense, sizeof *m->dense);
    uint64_t hash = FE_HASH_START;
    for (int i = 0; i < FE_DEMO_LAYERS; i++)
        hash = fe_hash(hash, &m->layer[i].expert[local_expert], sizeof(fe_demo_expert));
    return hash;
}

/* y = x w + bias, or x w without one. */
static void linear(float *y, int rows, int outputs, int inputs, const float *x, const float *w, const float *bias) {
    for (int64_t i = 0; i < rows; i++) {
        if (bias)
            memcpy(y + i * outputs, bias, sizeof(float) * (size_t)outputs);
        else
            memset(y + i * outputs, 0, sizeof(float) * (size_t)outputs);
    }
    fe_matmul(y, rows, outputs, inputs, x, inputs, 1, w);
}

/* dw += x^T dy and dbias += dy, row after row; then dx = dy w^T. dbias and dx may be NULL. */
static void linear_back(fe_demo_model *m, float *dx, float *dw, float *dbias, const float *dy, int rows, int outputs,
                        int inputs, const float *x, const float *w) {
    fe_matmul(dw, inputs, outputs, rows, x, 1, inputs, dy);
    for (int64_t i = 0; dbias && i < rows; i++) fe_add(dbias, dy + i * outputs, outputs);
    if (!dx) return;
    fe_transpose(m->transposed, w, inputs, outputs);
    linear(dx, rows, inputs, outputs, dy, m->transposed, NULL);
}

void fe_demo_embed(fe_demo_model *m) {
    for (int64_t i = 0; i < (int64_t)m->tokens * W; i++)
        memcpy(m->context + i * D, m->dense->embed[m->window[i]], sizeof m->dense->embed[0]);
    linear(m->layer[0].x, m->tokens, H, C, m->context, *m->dense->in, m->dense->in_bias);
}

/* The K most probable, the lower number first where two are alike. */
static void choose(const float *p, int32_t *choice, float *weight) {
    float sum = 0;
    for (int k = 0; k < K; k++) {
        int best = -1;
        for (int e = 0; e < E; e++) {
            bool taken = false;
            for (int j = 0; j < k; j++) taken = taken || choice[j] == e;
            if (!taken && (best < 0 || p[e] > p[best])) best = e;
        }
        choice[k] = best;
        sum += p[best];
    }
    for (int k = 0; k < K; k++) weight[k] = p[choice[k]] / sum;
}

void fe_demo_gate(fe_demo_model *m, int layer) {
    fe_demo_layer *l = &m->layer[layer];
    const struct fe_demo_gate *g = &m->dense->gate[layer];
    for (int64_t i = 0; i < m->tokens; i++) l->scale[i] = fe_norm(l->h + i * H, l->x + i * H, g->gain, H);
    linear(l->probability, m->tokens, E, H, l->h, *g->router, NULL);
    for (int64_t i = 0; i < m->tokens; i++) {
        fe_softmax(l->probability + i * E, E);
        choose(l->probability + i * E, l->choice + i * K, l->weight + i * K);
    }
}

void fe_demo_output(fe_demo_model *m) {
    for (int64_t i = 0; i < m->tokens; i++) m->scale[i] = fe_norm(m->h + i * H, m->x + i * H, m->dense->gain, H);
    linear(m->logits, m->tokens, V, H, m->h, *m->dense->out, m->dense->out_bias);
}

/* The tokens [*first, *end) that are in use, of a shard. */
static void shard_range(const fe_demo_model *m, int local_shard, int *first, int *end) {
    *first = local_shard * m->shard_tokens;
    *end = *first + m->shard_tokens < m->tokens ? *first + m->shard_tokens : m->tokens;
}

void fe_demo_tally_shard(fe_demo_model *m, int local_shard) {
    fe_demo_tally *t = &m->tally[m->rank * m->local_shards + local_shard];
    int first, end;
    shard_range(m, local_shard, &first, &end);
    memset(t, 0, sizeof *t);
    for (int64_t i = first; i < end; i++) {
        float logit = m->logits[i * V + m->target[i]];
        t->nats += fe_softmax(m->logits + i * V, V) - (double)logit;
        for (int layer = 0; layer < FE_DEMO_LAYERS; layer++) {
            fe_add(t->probability[layer], m->layer[layer].probability + i * E, E);
            for (int k = 0; k < K; k++) t->chosen[layer][m->layer[layer].choice[i * K + k]]++;
        }
    }
}

void fe_demo_expert_rows(const fe_demo_expert *e, int rows, const float *x, float *inner, float *active, float *y) {
    linear(inner, rows, F, H, x, *e->up, e->up_bias);
    fe_gelu(active, inner, (int64_t)rows * F);
    linear(y, rows, H, F, active, *e->down, e->down_bias);
}

void fe_demo_expert_back(fe_demo_model *m, fe_demo_layer *l, int local_expert, int first, int rows, const float *dy,
                         float *dx) {
    const fe_demo_expert *e = &l->expert[local_expert];
    fe_demo_expert *g = &l->gradient[local_expert];
    const float *y = l->returned + (int64_t)first * H, *w = l->received_weight + first;
    const float *inner = l->inner + (int64_t)first * F;
    for (int64_t i = 0; i < rows; i++) {
        m->drow_weight[first + i] = fe_dot(dy + i * H, y + i * H, H);
        for (int j = 0; j < H; j++) m->drow[i * H + j] = w[i] * dy[i * H + j];
    }
    memset(g, 0, sizeof *g);
    linear_back(m, m->dinner, *g->down, g->down_bias, m->drow, rows, H, F, l->active + (int64_t)first * F, *e->down);
    fe_gelu_back(m->dinner, inner, (int64_t)rows * F);
    linear_back(m, dx, *g->up, g->up_bias, m->dinner, rows, F, H, l->received + (int64_t)first * H, *e->up);
}

void fe_demo_output_back(fe_demo_model *m) {
    const float share = 1.0f / (float)(m->shards * m->shard_tokens);
    float *dlogits = m->logits;
    for (int64_t i = 0; i < m->tokens; i++) {
        dlogits[i * V + m->target[i]] -= 1.0f;
        for (int j = 0; j < V; j++) dlogits[i * V + j] *= share;
    }
    memset(m->gradient, 0, sizeof *m->gradient * (size_t)m->local_shards);
    memset(m->dx, 0, sizeof(float) * (size_t)m->tokens * H);
    for (int s = 0; s < m->local_shards; s++) {
        fe_demo_dense *g = &m->gradient[s];
        int64_t first = (int64_t)s * m->shard_tokens, end = first + m->shard_tokens;
        linear_back(m, m->dh + first * H, *g->out, g->out_bias, dlogits + first * V, m->shard_tokens, V, H,
                    m->h + first * H, *m->dense->out);
        for (int64_t i = first; i < end; i++)
            fe_norm_back(m->dx + i * H, g->gain, m->dh + i * H, m->x + i * H, m->dense->gain, m->scale[i], H);
    }
}

/* Gradient of the logits of token i: of the weights, w = p / sum of the chosen p, and of the balancing loss
 * alpha E sum_e(f(e) P(e)), f the share of choices and P the mean probability (Switch Transformer, eq. 4 to 6). f has no slope. */
static void gate_back_token(const fe_demo_model *m, const fe_demo_layer *l, const float *slope, int64_t i) {
    float *d = m->dlogits + i * E, pull = 0;
    const float *w = l->weight + i * K, *dw = m->dweight + i * K;
    memcpy(d, slope, sizeof(float) * E);
    fe_softmax_back(d, l->probability + i * E, E);
    for (int k = 0; k < K; k++) pull += w[k] * dw[k];
    for (int k = 0; k < K; k++) d[l->choice[i * K + k]] += w[k] * (dw[k] - pull);
}

void fe_demo_gate_back(fe_demo_model *m, int layer) {
    fe_demo_layer *l = &m->layer[layer];
    const struct fe_demo_gate *gate = &m->dense->gate[layer];
    float slope[E], batch = (float)(m->shards * m->shard_tokens);
    for (int e = 0; e < E; e++) {
        int chosen = 0;
        for (int s = 0; s < m->shards; s++) chosen += m->tally[s].chosen[layer][e];
        slope[e] = m->balance * E * ((float)chosen / (batch * K)) / batch;
    }
    for (int64_t i = 0; i < m->tokens; i++) gate_back_token(m, l, slope, i);
    fe_transpose(m->transposed, *gate->router, H, E);
    fe_matmul(m->dh, m->tokens, H, E, m->dlogits, E, 1, m->transposed);
    for (int s = 0; s < m->local_shards; s++) {
        struct fe_demo_gate *g = &m->gradient[s].gate[layer];
        int64_t first = (int64_t)s * m->shard_tokens, end = first + m->shard_tokens;
        linear_back(m, NULL, *g->router, NULL, m->dlogits + first * E, m->shard_tokens, E, H, l->h + first * H, NULL);
        for (int64_t i = first; i < end; i++)
            fe_norm_back(m->dx + i * H, g->gain, m->dh + i * H, l->x + i * H, gate->gain, l->scale[i], H);
    }
}

void fe_demo_embed_back(fe_demo_model *m) {
    for (int s = 0; s < m->local_shards; s++) {
        fe_demo_dense *g = &m->gradient[s];
        int64_t first = (int64_t)s * m->shard_tokens, end = first + m->shard_tokens;
        linear_back(m, m->dcontext + first * C, *g->in, g->in_bias, m->dx + first * H, m->shard_tokens, H, C,
                    m->context + first * C, *m->dense->in);
        for (int64_t i = first * W; i < end * W; i++) fe_add(g->embed[m->window[i]], m->dcontext + i * D, D);
    }
}

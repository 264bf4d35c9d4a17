/* The demo's model: a byte-level language model whose middle is mixture-of-experts layers.
 *
 *   x    = [embedding of each of the last WINDOW bytes, side by side] in + in_bias
 *   x   += sum over the TOPK most probable experts c of  w(c) expert_c(h)                        (each of LAYERS layers)
 *              h = norm(x),  p = softmax(h router),  w = p of the chosen, scaled to sum 1
 *              expert(h) = gelu(h up + up_bias) down + down_bias
 *   byte ~ softmax(norm(x) out + out_bias)
 *
 * A batch is cut into `shards` contiguous parts whatever the number of ranks: a rank of R holds shards / R of them. Experts
 * live where Ferry puts them. Everything else, the dense weights, is on every rank alike.
 *
 * demo_model.c has what a rank computes alone, demo_step.c what needs the others. */
#ifndef FERRY_TOOL_DEMO_MODEL_H
#define FERRY_TOOL_DEMO_MODEL_H

#include "demo_math.h"
#include "ferry/ferry.h"

enum {
    FE_DEMO_WINDOW = 16,
    FE_DEMO_EMBED = 16,
    FE_DEMO_CONTEXT = FE_DEMO_WINDOW * FE_DEMO_EMBED,
    FE_DEMO_HIDDEN = 64,
    FE_DEMO_INNER = 128,
    FE_DEMO_EXPERTS = 16,
    FE_DEMO_TOPK = 2,
    FE_DEMO_LAYERS = 2,
    FE_DEMO_BYTES = 256
};

typedef struct fe_demo_dense { /* only floats: is also seen as an array of them */
    float embed[FE_DEMO_BYTES][FE_DEMO_EMBED];
    float in[FE_DEMO_CONTEXT][FE_DEMO_HIDDEN], in_bias[FE_DEMO_HIDDEN];
    struct fe_demo_gate {
        float gain[FE_DEMO_HIDDEN], router[FE_DEMO_HIDDEN][FE_DEMO_EXPERTS];
    } gate[FE_DEMO_LAYERS];
    float gain[FE_DEMO_HIDDEN], out[FE_DEMO_HIDDEN][FE_DEMO_BYTES], out_bias[FE_DEMO_BYTES];
} fe_demo_dense;

typedef struct fe_demo_expert { /* only floats */
    float up[FE_DEMO_HIDDEN][FE_DEMO_INNER], up_bias[FE_DEMO_INNER];
    float down[FE_DEMO_INNER][FE_DEMO_HIDDEN], down_bias[FE_DEMO_HIDDEN];
} fe_demo_expert;

/* What one shard tells all others in a step. */
typedef struct fe_demo_tally {
    double nats; /* sum of the loss over its tokens */
    int32_t chosen[FE_DEMO_LAYERS][FE_DEMO_EXPERTS];
    float probability[FE_DEMO_LAYERS][FE_DEMO_EXPERTS]; /* sum over its tokens */
} fe_demo_tally;

typedef struct fe_demo_layer {
    fe_demo_expert *expert, *gradient, *mean, *square; /* [local experts]; Adam's two averages */
    float *x, *scale, *h, *probability;                /* of this rank's tokens */
    int32_t *choice;                                   /* [tokens, TOPK] */
    float *weight;                                     /* [tokens, TOPK] */
    ferry_route *route;                                /* from forward to backward */
    ferry_route_info info;
    float *received, *received_weight, *inner, *active, *returned; /* rows of this rank's experts */
} fe_demo_layer;

typedef struct fe_demo_model {
    ferry_group *group;
    int rank, ranks, shards, shard_tokens;
    int local_shards, local_experts;
    const int32_t *expert_id; /* [local experts] */
    float balance;            /* weight of the load-balancing loss */
    uint64_t bytes;           /* moved by Ferry for this rank */

    int tokens;               /* in use: at most local_shards * shard_tokens */
    uint8_t *window, *target; /* [tokens, WINDOW], [tokens]: the input */
    float *context;
    fe_demo_layer layer[FE_DEMO_LAYERS];
    float *x, *scale, *h, *logits; /* of the output; after fe_demo_loss, logits holds probabilities */
    fe_demo_tally *tally;          /* [shards] */

    fe_demo_dense *dense, *mean, *square, *gradient, *gathered; /* gradient: [local shards]; gathered: [shards] */
    float *dx, *dh, *dweight, *dcontext, *dlogits;              /* scratch of the backward pass */
    float *drow, *dinner, *drow_weight, *transposed;
    int32_t *counts, *starts;  /* of a decode step, [local experts, ranks] */
    float *arrived, *answered; /* rows of views that this code cannot touch: a GPU's; on the CPU NULL */

    void *owned[64];
    int owned_count;
} fe_demo_model;

/* The group's config that a model of this size wants. */
ferry_group_config fe_demo_group_config(int local_shards, int shard_tokens);

/* shards: a multiple of the group's ranks. NULL without memory. Weights are drawn from the seed. */
fe_demo_model *fe_demo_model_new(ferry_group *group, int shards, int shard_tokens, uint64_t seed);
void fe_demo_model_free(fe_demo_model *m);

/* demo_step.c; all are collective. */
typedef enum fe_demo_path {
    FE_DEMO_TRAIN, /* EXPERT layout, THROUGHPUT mode */
    FE_DEMO_DECODE /* SLOTS layout, LATENCY mode */
} fe_demo_path;
/* From m->tokens windows to logits. */
ferry_status fe_demo_forward(fe_demo_model *m, fe_demo_path path);
/* After forward: logits become probabilities; m->tally is filled and gathered. Mean loss per token, in bits. */
ferry_status fe_demo_loss(fe_demo_model *m, double *bits);
/* After loss of the TRAIN path: gradients of the mean loss in nats and of the balancing loss; dense ones summed over shards into
 * m->gathered[0]. All shards must be full. */
ferry_status fe_demo_backward(fe_demo_model *m);
void fe_demo_update(fe_demo_model *m, int step, float rate);
/* FNV-1a of the dense weights (expert < 0), or of a local expert's weights in all layers. */
uint64_t fe_demo_model_hash(const fe_demo_model *m, int local_expert);

/* demo_model.c, for demo_step.c */
void fe_demo_embed(fe_demo_model *m);
void fe_demo_gate(fe_demo_model *m, int layer);
void fe_demo_output(fe_demo_model *m);
void fe_demo_tally_shard(fe_demo_model *m, int local_shard);
void fe_demo_expert_rows(const fe_demo_expert *e, int rows, const float *x, float *inner, float *active, float *y);
/* One expert's rows [first, first + rows) of the layer; dy: their output's gradient as dispatched. Writes dx and the
 * gradient of each row's weight, and sums the expert's gradient in row order. */
void fe_demo_expert_back(fe_demo_model *m, fe_demo_layer *l, int local_expert, int first, int rows, const float *dy,
                         float *dx);
void fe_demo_output_back(fe_demo_model *m);
void fe_demo_gate_back(fe_demo_model *m, int layer);
void fe_demo_embed_back(fe_demo_model *m);

#endif

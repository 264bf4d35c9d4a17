/* The demo's arithmetic in float32. Each function gives the same bits however its caller cuts the work into rows: sums run
 * in one stated order, and nothing is fused (the build passes -ffp-contract=off). Every n is a multiple of 16. */
#ifndef FERRY_TOOL_DEMO_MATH_H
#define FERRY_TOOL_DEMO_MATH_H

#include <stddef.h>
#include <stdint.h>

typedef struct fe_product { /* c[m, n] += a[m, k] b[k, n] */
    float *c;
    int m, n, k;
    const float *a;
    int row_step, k_step; /* a[i, j] is a[i * row_step + j * k_step]: a transposed matrix is read in place */
    const float *b;
} fe_product;

/* Each element's sum starts from what c holds and takes k in rising order. */
void fe_matmul(float *c, int m, int n, int k, const float *a, int row_step, int k_step, const float *b);

/* to[i] = e^(from[i] - minus) */
void fe_exps(float *to, const float *from, float minus, int n);
void fe_gelu(float *to, const float *u, int64_t n);
/* gradient[i] *= the slope of gelu at u[i] */
void fe_gelu_back(float *gradient, const float *u, int64_t n);

/* In place; returns log(sum(e^logit)) of what was there. */
double fe_softmax(float *logits, int n);
/* gradient: from that of the probabilities to that of the logits, in place. */
void fe_softmax_back(float *gradient, const float *probabilities, int n);

/* to = gain * x / sqrt(mean(x^2) + 1e-5); returns the reciprocal of that root. */
float fe_norm(float *to, const float *x, const float *gain, int n);
/* dx += and dgain +=, from the gradient of `to`. */
void fe_norm_back(float *dx, float *dgain, const float *dto, const float *x, const float *gain, float scale, int n);

float fe_dot(const float *a, const float *b, int n);
void fe_add(float *to, const float *from, int64_t n);
void fe_transpose(float *to, const float *from, int rows, int columns);

typedef struct fe_adam {
    float rate, correction1, correction2; /* 1 / (1 - beta^step) */
} fe_adam;

fe_adam fe_adam_at(int step, float rate); /* step from 1 */
void fe_adam_update(const fe_adam *adam, float *weights, const float *gradient, float *mean, float *square, int64_t n);

/* The name of the instruction set chosen for this machine. */
const char *fe_math_name(void);

/* FNV-1a, 64 bits; begin with FE_HASH_START. */
#define FE_HASH_START 0xcbf29ce484222325u
uint64_t fe_hash(uint64_t hash, const void *data, size_t bytes);

#endif

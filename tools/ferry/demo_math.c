#include "demo_math.h"
#include <math.h>
#include <string.h>

#define FE_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define FE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FE_UNROLL _Pragma("GCC unroll 8")
#endif

typedef struct kernels {
    const char *name;
    void (*product)(const fe_product *);
    void (*exps)(float *, const float *, float, int);
    void (*gelu)(float *, const float *, int64_t);
    void (*gelu_back)(float *, const float *, int64_t);
} kernels;

#if defined(__x86_64__)
#define FE_NAME(x) x##_avx512
#define FE_TARGET  __attribute__((target("avx512f")))
#define FE_LANES   16
#define FE_VECS    4
#include "demo_kernel.h"

#define FE_NAME(x) x##_avx2
#define FE_TARGET  __attribute__((target("avx2")))
#define FE_LANES   8
#define FE_VECS    2
#include "demo_kernel.h"
#endif

#define FE_NAME(x) x##_plain
#define FE_TARGET
#define FE_LANES 4
#define FE_VECS  2
#include "demo_kernel.h"

#define TABLE(name, suffix) \
    { name, product_##suffix, exps_##suffix, gelu_##suffix, gelu_back_##suffix }

static const kernels *chosen(void) {
    static const kernels plain = TABLE("128-bit", plain);
#if defined(__x86_64__)
    static const kernels avx512 = TABLE("AVX-512", avx512), avx2 = TABLE("AVX2", avx2);
    if (__builtin_cpu_supports("avx512f")) return &avx512;
    if (__builtin_cpu_supports("avx2")) return &avx2;
#endif
    return &plain;
}

const char *fe_math_name(void) {
    return chosen()->name;
}

void fe_matmul(float *c, int m, int n, int k, const float *a, int row_step, int k_step, const float *b) {
    const fe_product p = {c, m, n, k, a, row_step, k_step, b};
    chosen()->product(&p);
}

void fe_exps(float *to, const float *from, float minus, int n) {
    chosen()->exps(to, from, minus, n);
}

void fe_gelu(float *to, const float *u, int64_t n) {
    chosen()->gelu(to, u, n);
}

void fe_gelu_back(float *gradient, const float *u, int64_t n) {
    chosen()->gelu_back(gradient, u, n);
}

/* Sixteen sums side by side, then a fixed tree: what a vector unit of any width can do. */
static float tree(float *part) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

float fe_dot(const float *a, const float *b, int n) {
    float part[16] = {0};
    for (int i = 0; i < n; i += 16)
        for (int j = 0; j < 16; j++) part[j] += a[i + j] * b[i + j];
    return tree(part);
}

double fe_softmax(float *logits, int n) {
    float most = logits[0], part[16] = {0};
    for (int i = 1; i < n; i++) most = logits[i] > most ? logits[i] : most;
    fe_exps(logits, logits, most, n);
    for (int i = 0; i < n; i += 16)
        for (int j = 0; j < 16; j++) part[j] += logits[i + j];
    float sum = tree(part), scale = 1.0f / sum;
    for (int i = 0; i < n; i++) logits[i] *= scale;
    return (double)most + log((double)sum);
}

void fe_softmax_back(float *gradient, const float *probabilities, int n) {
    float mean = fe_dot(gradient, probabilities, n);
    for (int i = 0; i < n; i++) gradient[i] = probabilities[i] * (gradient[i] - mean);
}

float fe_norm(float *to, const float *x, const float *gain, int n) {
    float scale = 1.0f / sqrtf(fe_dot(x, x, n) / (float)n + 1e-5f);
    for (int i = 0; i < n; i++) to[i] = gain[i] * (x[i] * scale);
    return scale;
}

void fe_norm_back(float *dx, float *dgain, const float *dto, const float *x, const float *gain, float scale, int n) {
    float part[16] = {0};
    for (int i = 0; i < n; i += 16)
        for (int j = 0; j < 16; j++) part[j] += dto[i + j] * gain[i + j] * x[i + j];
    float pull = tree(part) * scale * scale / (float)n;
    for (int i = 0; i < n; i++) {
        dgain[i] += dto[i] * (x[i] * scale);
        dx[i] += scale * (dto[i] * gain[i] - x[i] * pull);
    }
}

void fe_add(float *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

void fe_transpose(float *to, const float *from, int rows, int columns) {
    for (int r = 0; r < rows; r += 16)
        for (int c = 0; c < columns; c++)
            for (int i = r; i < r + 16; i++) to[(int64_t)c * rows + i] = from[(int64_t)i * columns + c];
}

#define BETA1 0.9f
#define BETA2 0.99f

fe_adam fe_adam_at(int step, float rate) {
    double power1 = 1, power2 = 1;
    for (int i = 0; i < step; i++) {
        power1 *= (double)BETA1;
        power2 *= (double)BETA2;
    }
    return (fe_adam){rate, (float)(1 / (1 - power1)), (float)(1 / (1 - power2))};
}

void fe_adam_update(const fe_adam *adam, float *restrict weights, const float *restrict gradient, float *restrict mean,
                    float *restrict square, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float g = gradient[i];
        mean[i] = BETA1 * mean[i] + (1 - BETA1) * g;
        square[i] = BETA2 * square[i] + (1 - BETA2) * (g * g);
        weights[i] -= adam->rate * (mean[i] * adam->correction1) / (sqrtf(square[i] * adam->correction2) + 1e-8f);
    }
}

uint64_t fe_hash(uint64_t hash, const void *data, size_t bytes) {
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

/* The demo's inner loops, with the compilers' vector extension. demo_math.c includes this once for each instruction set,
 * having defined FE_NAME (puts a suffix on a name), FE_TARGET (the attribute), FE_LANES and FE_VECS (vectors of a tile's
 * row, so that a tile of four rows fits the registers).
 *
 * Every element of a product is its own sum, over k in rising order, in one accumulator, multiply and add rounded apart:
 * neither FE_LANES nor the tiling changes a bit of it. */

typedef float FE_NAME(fe_v) __attribute__((vector_size(4 * FE_LANES)));
typedef int32_t FE_NAME(fe_vi) __attribute__((vector_size(4 * FE_LANES)));
#define fe_v  FE_NAME(fe_v)
#define fe_vi FE_NAME(fe_vi)

FE_TARGET FE_INLINE fe_v FE_NAME(load)(const float *p) {
    fe_v v;
    memcpy(&v, p, sizeof v);
    return v;
}

FE_TARGET FE_INLINE void FE_NAME(tile)(const fe_product *p, int row, int column, int rows, int vecs) {
    fe_v acc[4][FE_VECS], b[FE_VECS];
    float *c = p->c + (int64_t)row * p->n + column;
    const float *a = p->a + (int64_t)row * p->row_step;
    FE_UNROLL for (int r = 0; r < rows; r++) {
        FE_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = FE_NAME(load)(c + r * p->n + v * FE_LANES);
    }
    for (int k = 0; k < p->k; k++) {
        const float *from = p->b + (int64_t)k * p->n + column;
        FE_UNROLL for (int v = 0; v < vecs; v++) b[v] = FE_NAME(load)(from + v * FE_LANES);
        FE_UNROLL for (int r = 0; r < rows; r++) {
            float s = a[(int64_t)r * p->row_step + (int64_t)k * p->k_step];
            FE_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] += s * b[v];
        }
    }
    FE_UNROLL for (int r = 0; r < rows; r++) {
        FE_UNROLL for (int v = 0; v < vecs; v++) memcpy(c + r * p->n + v * FE_LANES, &acc[r][v], sizeof(fe_v));
    }
}

FE_TARGET FE_INLINE void FE_NAME(columns)(const fe_product *p, int column, int vecs) {
    int row = 0;
    for (; row + 4 <= p->m; row += 4) FE_NAME(tile)(p, row, column, 4, vecs);
    for (; row < p->m; row++) FE_NAME(tile)(p, row, column, 1, vecs);
}

FE_TARGET static void FE_NAME(product)(const fe_product *p) {
    int column = 0;
    for (; column + FE_VECS * FE_LANES <= p->n; column += FE_VECS * FE_LANES) FE_NAME(columns)(p, column, FE_VECS);
    for (; column < p->n; column += FE_LANES) FE_NAME(columns)(p, column, 1);
}

/* e^x to about 2 units in the last place: 2^n times a polynomial of the rest, |rest| <= ln(2)/2. Cephes' coefficients. */
FE_TARGET FE_INLINE fe_v FE_NAME(vexp)(fe_v x) {
    const fe_v zero = {0};
    fe_v low = zero - 87.0f, high = zero + 88.0f;
    fe_vi below = x < low;
    fe_vi above = x > high;
    x = (fe_v)(((fe_vi)x & ~below & ~above) | ((fe_vi)low & below) | ((fe_vi)high & above));
    fe_v shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's low bits are the nearest whole number */
    fe_v n = shifted - 12582912.0f;
    fe_v r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    fe_v y = zero + 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    return (fe_v)((fe_vi)y + ((fe_vi)shifted << 23));
}

FE_TARGET static void FE_NAME(exps)(float *to, const float *from, float minus, int n) {
    for (int i = 0; i < n; i += FE_LANES) {
        fe_v y = FE_NAME(vexp)(FE_NAME(load)(from + i) - minus);
        memcpy(to + i, &y, sizeof y);
    }
}

/* GELU with the logistic function: u / (1 + e^(-1.702 u)) (Hendrycks and Gimpel 2016, section 2). */
FE_TARGET static void FE_NAME(gelu)(float *to, const float *u, int64_t n) {
    for (int64_t i = 0; i < n; i += FE_LANES) {
        fe_v x = FE_NAME(load)(u + i), y = x / (FE_NAME(vexp)(x * -1.702f) + 1.0f);
        memcpy(to + i, &y, sizeof y);
    }
}

FE_TARGET static void FE_NAME(gelu_back)(float *gradient, const float *u, int64_t n) {
    for (int64_t i = 0; i < n; i += FE_LANES) {
        fe_v x = FE_NAME(load)(u + i), s = 1.0f / (FE_NAME(vexp)(x * -1.702f) + 1.0f);
        fe_v y = FE_NAME(load)(gradient + i) * (s + (x * 1.702f) * (s * (1.0f - s)));
        memcpy(gradient + i, &y, sizeof y);
    }
}

#undef fe_v
#undef fe_vi
#undef FE_NAME
#undef FE_TARGET
#undef FE_LANES
#undef FE_VECS

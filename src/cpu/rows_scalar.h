/* The pieces of the scalar table that the vector tables fall back on. */
#ifndef FERRY_CPU_ROWS_SCALAR_H
#define FERRY_CPU_ROWS_SCALAR_H

#include "base/num.h"
#include "cpu/rows.h"

/* One block of a cast, n <= FE_CAST_BLOCK channels. Returns its scale. */
float fe_cast_block_scalar(uint8_t *dst, const uint16_t *src, size_t n, bool pow2);

/* Writes a block's scale in the form that the cast asks for. */
static inline void fe_put_scale(void *scales, size_t block, float scale, ferry_cast cast) {
    if (cast == FERRY_CAST_E4M3_UE8M0)
        ((uint8_t *)scales)[block] = fe_ue8m0_from_f32(scale);
    else
        memcpy((char *)scales + 4 * block, &scale, sizeof scale);
}

/* The bytes behind the last block's exponent, up to a whole int32. */
static inline void fe_pad_scales(void *scales, size_t blocks, ferry_cast cast) {
    if (cast != FERRY_CAST_E4M3_UE8M0) return;
    for (size_t i = blocks; i % 4 != 0; i++) ((uint8_t *)scales)[i] = 0;
}

#endif

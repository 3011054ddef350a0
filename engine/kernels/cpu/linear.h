// What the files of linear layers share.

#pragma once
#include "kernels.h"

#ifdef HAS_AMX
#define BYTE_FLIP 0x80808080u  // AMX multiplies signed weights; dot products of vectors need weights + 128
#define BYTE_ZERO 0
#else
#define BYTE_FLIP 0u
#define BYTE_ZERO 128          // what an 8-bit weight of zero is stored as
#endif

// Quantises rows of x (…, k) to 8 bits, with a scale and an offset for each GROUP of a row. Four values of row r that
// begin at element i of group g are stored at g * GROUP * stride + r * row_step + i * four_step / 4; its scale at
// g * stride + r.
INLINE void quantise_rows(const bf16 *x, int64_t rows, int64_t k, int64_t stride, int64_t row_step, int64_t four_step,
                          int8_t *values, float *scales, int32_t *offsets) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < k / GROUP; g++) {
            const bf16 *from = x + r * k + g * GROUP;
            int8_t *to = values + g * GROUP * stride + r * row_step;
            f32 most = splat(0.0f);
            for (int64_t i = 0; i < GROUP; i += LANES) {
                f32 value = load_bf16(from + i);
                most = larger(most, larger(value, negative(value)));
            }
            float scale = largest_of(most) / 127, inverse = scale > 0 ? 1 / scale : 0;
            int32_t sum = 0;
            for (int64_t i = 0; i < GROUP; i += LANES) {
                int8_t bytes[LANES];
                sum += store_bytes(bytes, mul(load_bf16(from + i), splat(inverse)));
                for (int64_t four = 0; four < LANES; four += 4)
                    memcpy(to + (i + four) / 4 * four_step, bytes + four, 4);
            }
            scales[g * stride + r] = scale;
            offsets[g * stride + r] = -128 * sum;
        }
}

// Linear layers through matrix tiles: `linear_tiles` for bfloat16 weights whose k is a multiple of 32, and
// `linear_byte_tiles` for 8-bit weights.
void linear_tiles(const bf16 *x, const Weight *w, InputRoom *room, void *y, int64_t m, int y_is_float);
void linear_byte_tiles(const bf16 *x, const Weight *w, InputRoom *room, void *y, int64_t m, int y_is_float);

// Writes (rows, width) sums, plus the bias, into y (…, n) from column `first` on: rounded to bfloat16, or as floats.
static inline void finish(const float *sums, int64_t rows, int64_t width, const Weight *w, int64_t first, void *y,
                          int64_t row, int y_is_float) {
    int64_t left = w->n - first, columns = left < width ? left : width;
    for (int64_t r = 0; r < rows; r++) {
        float biased[2 * PANEL];
        const float *from = sums + r * width;
        if (w->bias) {
            for (int64_t c = 0; c < columns; c++) biased[c] = from[c] + w->bias[first + c];
            for (int64_t c = columns; c < width; c++) biased[c] = 0;
            from = biased;
        }
        if (y_is_float) {
            memcpy((float *)y + (row + r) * w->n + first, from, columns * 4);
        } else if (columns == width) {
            bf16 *to = (bf16 *)y + (row + r) * w->n + first;
            for (int64_t c = 0; c < width; c += LANES) store_bf16(to + c, load_f32(from + c));
        } else {
            bf16 rounded[2 * PANEL];
            for (int64_t c = 0; c < width; c += LANES) store_bf16(rounded + c, load_f32(from + c));
            memcpy((bf16 *)y + (row + r) * w->n + first, rounded, columns * 2);
        }
    }
}

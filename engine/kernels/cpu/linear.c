// Linear layers over packed weights: bfloat16 and 8-bit integers with dot products. linear_tiles.c has those with AMX.

#include "amx.h"
#include "linear.h"
#include <stdlib.h>

#define ROW_TILE TALL
#define BYTE_TILE_ROWS 4  // rows from which 8-bit weights are multiplied by AMX tiles; the results are equal
#if PARTS == 1
#define BYTE_ROWS 6     // x 2 vectors of integers and as many of floats: all fit in registers
#elif PARTS == 2
#define BYTE_ROWS 4
#else
#define BYTE_ROWS 2
#endif

// Packs weight (n, k) into panels; columns beyond n are zero.
void myna_pack(const bf16 *weight, bf16 *packed, int64_t n, int64_t k) {
    int64_t panels = (n + PANEL - 1) / PANEL;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; p++) {
        bf16 *out = packed + p * PANEL * k;
        for (int64_t c = 0; c < PANEL; c++) {
            int64_t column = p * PANEL + c;
            for (int64_t i = 0; i < k; i++)
                out[(i / 2) * PANEL * 2 + c * 2 + i % 2] = column < n ? weight[column * k + i] : 0;
        }
    }
}

INLINE float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

// Packs weight (n, k) into 8-bit panels and scales; columns beyond n are zero. k is a multiple of GROUP.
void myna_pack_bytes(const bf16 *weight, uint8_t *packed, float *scales, int64_t n, int64_t k) {
    int64_t panels = (n + PANEL - 1) / PANEL, groups = k / GROUP;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t c = 0; c < PANEL; c++)
            for (int64_t g = 0; g < groups; g++) {
                int64_t column = p * PANEL + c;
                const bf16 *from = weight + column * k + g * GROUP;
                float most = 0;
                for (int64_t i = 0; column < n && i < GROUP; i++) {
                    float size = fabsf(widen(from[i]));
                    if (size > most) most = size;
                }
                float scale = most / 127;
                scales[(p * groups + g) * PANEL + c] = scale;
                for (int64_t i = 0; i < GROUP; i++) {
                    int64_t at = g * GROUP + i;
                    float value = scale > 0 ? widen(from[i]) / scale : 0;
                    packed[p * PANEL * k + (at / 4) * PANEL * 4 + c * 4 + at % 4] = (uint8_t)(BYTE_ZERO + lrintf(value));
                }
            }
}

// Returns the row of m at which the t-th of `tiles` begins.
INLINE int64_t tile_start(int64_t m, int64_t t, int64_t tiles) { return m * t / tiles; }

INLINE int64_t byte_tiles(int64_t m) { return (m + BYTE_ROWS - 1) / BYTE_ROWS; }

// Quantises x (m, k), tile by tile as `byte_tile` reads them.
static void quantise(const bf16 *x, InputRoom *to, int64_t m, int64_t k) {
    const int64_t groups = k / GROUP, tiles = byte_tiles(m);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t begin = tile_start(m, t, tiles), rows = tile_start(m, t + 1, tiles) - begin;
        quantise_rows(x + begin * k, rows, k, rows, 4, rows * 4, to->values + begin * k, to->scales + begin * groups,
                      to->offsets + begin * groups);
    }
}

#ifndef HAS_PAIR_PRODUCTS
// Called once for all panels.
static void widen_all(const bf16 *x, float *to, int64_t m, int64_t k) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < m; r++) {
        int64_t whole = k / LANES * LANES;
        factors(x + r * k, to + r * k, whole);
        for (int64_t i = whole; i < k; i++) to[r * k + i] = widen(x[r * k + i]);
    }
}
#endif

// Returns the first pairs of the v-th 16 columns.
INLINE const bf16 *place(const bf16 *w, int64_t panel_stride, int v) {
    return w + (v / 2) * panel_stride + (v % 2) * LANES * 2;
}

// Computes the sums of rows x (panels * PANEL) of one tile. `ahead`: memory to prefetch meanwhile, 64 bytes a pair;
// NULL where one tile reads its panel straight from memory.
INLINE void tile(const int rows, const int panels, const factor *x, const bf16 *w, int64_t k, float *restrict out,
                 int64_t panel_stride, const char *ahead) {
    const int vectors = panels * 2, at_once = PARTS == 1 ? vectors : 1;
    for (int v = 0; v < vectors; v += at_once) {
        f32 sum[ROW_TILE * 2 + 2];
#pragma GCC unroll 28
        for (int i = 0; i < rows * at_once; i++) sum[i] = splat(0.0f);
        for (int64_t i = 0; i < k / 2; i++) {
#pragma GCC unroll 2
            for (int step = 0; step < STEPS; step++) {
                operand column[4];
#pragma GCC unroll 4
                for (int c = 0; c < at_once; c++)
                    column[c] = operand_at(place(w, panel_stride, v + c) + i * PANEL * 2, step);
#pragma GCC unroll 14
                for (int r = 0; r < rows; r++) {
                    operand value = splat_factor(x + r * k + i * 2, step);
#pragma GCC unroll 4
                    for (int c = 0; c < at_once; c++)
                        sum[r * at_once + c] = dot(sum[r * at_once + c], column[c], value);
                }
                end_step();
            }
            if (ahead) prefetch_far(ahead + i * 64);
            else
#pragma GCC unroll 4
                for (int c = 0; c < at_once; c++) prefetch_near(place(w, panel_stride, v + c) + i * PANEL * 2 + 768);
        }
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int c = 0; c < at_once; c++) store_f32(out + (r * vectors + v + c) * LANES, sum[r * at_once + c]);
    }
}

#define ONE_PANEL(R) case R: if (R <= ROW_TILE) tile(R <= ROW_TILE ? R : 1, 1, x, w, k, out, stride, ahead); break;
#define TWO_PANELS(R) \
    case R: if (R <= ROW_TILE / 2) tile(R <= ROW_TILE / 2 ? R : 1, 2, x, w, k, out, stride, ahead); break;

static void any_tile(int rows, int panels, const factor *x, const bf16 *w, int64_t k, float *out, int64_t stride,
                     const char *ahead) {
    if (panels == 2) switch (rows) {
        TWO_PANELS(1) TWO_PANELS(2) TWO_PANELS(3) TWO_PANELS(4) TWO_PANELS(5) TWO_PANELS(6) TWO_PANELS(7)
    }
    else switch (rows) {
        ONE_PANEL(1) ONE_PANEL(2) ONE_PANEL(3) ONE_PANEL(4) ONE_PANEL(5) ONE_PANEL(6) ONE_PANEL(7)
        ONE_PANEL(8) ONE_PANEL(9) ONE_PANEL(10) ONE_PANEL(11) ONE_PANEL(12) ONE_PANEL(13) ONE_PANEL(14)
    }
}

static void linear_pairs(const factor *x, const Weight *w, void *y, int64_t m, int y_is_float) {
    const bf16 *packed = w->data;
    const int64_t k = w->k, panels = (w->n + PANEL - 1) / PANEL, stride = PANEL * k;
    // Few rows take two panels at a time: more independent sums to hide the latency of each.
    const int wide = m <= ROW_TILE / 2 ? 2 : 1;
    const int64_t tiles = (m + ROW_TILE - 1) / ROW_TILE, groups = (panels + wide - 1) / wide;
#pragma omp for schedule(static)
    for (int64_t g = 0; g < groups; g++) {
        float out[ROW_TILE * PANEL + 2 * PANEL] __attribute__((aligned(64)));
        int64_t first = g * wide;
        int count = first + wide <= panels ? wide : (int)(panels - first);
        const bf16 *at = packed + first * stride;
        for (int64_t t = 0; t < tiles; t++) {
            int64_t begin = tile_start(m, t, tiles), end = tile_start(m, t + 1, tiles);
            // One tile reads straight from memory. Several tiles read a panel from the cache while the next panel is
            // prefetched.
            const char *ahead = tiles == 1 ? NULL : (const char *)(at + stride) + (t % 2) * stride;  // each tile prefetches half
            any_tile((int)(end - begin), count, x + begin * k, at, k, out, stride, ahead);
            finish(out, end - begin, count * PANEL, w, first * PANEL, y, begin, y_is_float);
        }
    }
}

// Like `tile`, for 8-bit weights and inputs of this tile's layout. The sums of a group are integers, exact.
INLINE void byte_tile(const int rows, const int panels, const int8_t *x, const float *scales, const int32_t *offsets,
                      const uint8_t *w, const float *w_scales, int64_t k, float *restrict out, int64_t panel_stride,
                      const char *ahead) {
    const int64_t groups = k / GROUP;
    const int vectors = panels * 2;
    f32 total[BYTE_ROWS * 2 + 2];
#pragma GCC unroll 12
    for (int i = 0; i < rows * vectors; i++) total[i] = splat(0.0f);
    for (int64_t g = 0; g < groups; g++) {
        i32 sum[BYTE_ROWS * 2 + 2];
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int c = 0; c < vectors; c++) sum[r * vectors + c] = splat_i32(offsets[g * rows + r]);
#pragma GCC unroll 4
        for (int64_t i = g * GROUP / 4, end = i + GROUP / 4; i < end; i++) {
            i32 column[4];
#pragma GCC unroll 4
            for (int c = 0; c < vectors; c++) {
                const uint8_t *at = w + (c / 2) * panel_stride + i * PANEL * 4 + (c % 2) * LANES * 4;
                column[c] = flip_bits(load_i32(at), BYTE_FLIP);
                if (!ahead) prefetch_near(at + 1536);
            }
            if (ahead) prefetch_far(ahead + i * 64);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, x + (i * rows + r) * 4, 4);
                i32 value = splat_i32(four);
#pragma GCC unroll 4
                for (int c = 0; c < vectors; c++)
                    sum[r * vectors + c] = dot_bytes(sum[r * vectors + c], column[c], value);
            }
        }
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) {
            f32 weight_scale = load_f32(w_scales + ((c / 2) * groups + g) * PANEL + (c % 2) * LANES);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                f32 scale = mul(weight_scale, splat(scales[g * rows + r]));
                total[r * vectors + c] = fma_f32(to_f32(sum[r * vectors + c]), scale, total[r * vectors + c]);
            }
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows * vectors; i++) store_f32(out + i * LANES, total[i]);
}

#define BYTES(R, P) \
    case R: \
        if (R * P <= BYTE_ROWS) \
            byte_tile(R * P <= BYTE_ROWS ? R : 1, P, x, scales, offsets, w, w_scales, k, out, stride, ahead); \
        break;

static void any_byte_tile(int rows, int panels, const int8_t *x, const float *scales, const int32_t *offsets,
                          const uint8_t *w, const float *w_scales, int64_t k, float *out, int64_t stride,
                          const char *ahead) {
    if (panels == 2) switch (rows) {
        BYTES(1, 2) BYTES(2, 2) BYTES(3, 2)
    }
    else switch (rows) {
        BYTES(1, 1) BYTES(2, 1) BYTES(3, 1) BYTES(4, 1) BYTES(5, 1) BYTES(6, 1)
    }
}

static void linear_bytes(const InputRoom *x, const Weight *w, void *y, int64_t m, int y_is_float) {
    const uint8_t *packed = w->data;
    const int64_t k = w->k, panels = (w->n + PANEL - 1) / PANEL, stride = PANEL * k;
    const int wide = m <= BYTE_ROWS / 2 ? 2 : 1;
    const int64_t tiles = byte_tiles(m), groups = (panels + wide - 1) / wide;
#pragma omp for schedule(static)
    for (int64_t g = 0; g < groups; g++) {
        float out[BYTE_ROWS * PANEL + 2 * PANEL] __attribute__((aligned(64)));
        int64_t first = g * wide;
        int count = first + wide <= panels ? wide : (int)(panels - first);
        for (int64_t t = 0; t < tiles; t++) {
            int64_t begin = tile_start(m, t, tiles), end = tile_start(m, t + 1, tiles), at = begin * (k / GROUP);
            const uint8_t *panel = packed + first * stride;
            const char *ahead = tiles == 1 ? NULL : (const char *)(panel + stride) + (t % 2) * (stride / 2);
            any_byte_tile((int)(end - begin), count, x->values + begin * k, x->scales + at, x->offsets + at, panel,
                          w->scales + first * (k / GROUP) * PANEL, k, out, stride, ahead);
            finish(out, end - begin, count * PANEL, w, first * PANEL, y, begin, y_is_float);
        }
    }
}

// Multiplies x (m, k) by w into y (m, n), bfloat16 or float32.
void linear(const bf16 *x, const Weight *w, InputRoom *room, void *y, int64_t m, int y_is_float) {
#ifdef HAS_AMX
    if (amx_permitted() && w->scales && m >= BYTE_TILE_ROWS) {
        linear_byte_tiles(x, w, room, y, m, y_is_float);
        return;
    }
    if (amx_permitted() && !w->scales && w->k % 32 == 0) {
        linear_tiles(x, w, room, y, m, y_is_float);
        return;
    }
#endif
    if (w->scales) {
        quantise(x, room, m, w->k);
        linear_bytes(room, w, y, m, y_is_float);
        return;
    }
#ifdef HAS_PAIR_PRODUCTS
    linear_pairs(x, w, y, m, y_is_float);
#else
    widen_all(x, room->wide, m, w->k);
    linear_pairs(room->wide, w, y, m, y_is_float);
#endif
}

void myna_linear(const bf16 *x, const Weight *w, void *y, int64_t m, int32_t y_is_float) {
    char *memory = malloc(input_room_bytes(m, w->k) + 64);
    InputRoom room = input_room_at((char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63), m, w->k);
#pragma omp parallel
    {
        linear(x, w, &room, y, m, y_is_float);
        amx_end();
    }
    free(memory);
}

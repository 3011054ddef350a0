// AMX matrix tiles. With MYNA_EMULATE_AMX, plain C code does what the instructions do, so that the code around them can
// be tested on a CPU without AMX.

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__) && !defined(MYNA_EMULATE_AMX)
#define HAS_AMX
#include <immintrin.h>

#define tile_zero _tile_zero
// for data that is not needed again soon
#define tile_stream_loadd(t, from, stride) do { stores_done(); _tile_stream_loadd(t, from, stride); } while (0)
#define tile_loadd(t, from, stride) do { stores_done(); _tile_loadd(t, from, stride); } while (0)
#define tile_stored _tile_stored
#define tile_dpbf16ps _tile_dpbf16ps
#define tile_dpbssd _tile_dpbssd

// GCC's intrinsics do not declare all memory that the instructions read. Without this, GCC 12 drops stores before them,
// such as the rows of the shape, and `ldtilecfg` faults.
#define stores_done() __asm__ volatile("" ::: "memory")

static void amx_load(const void *shape) {
    __asm__ volatile("" :: "r"(shape) : "memory");  // the shape is a local variable: its address must escape
    _tile_loadconfig(shape);
}

#elif defined(MYNA_EMULATE_AMX)
#define HAS_AMX
#define EMULATED static __attribute__((unused))
static _Thread_local struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } amx_shape;
static _Thread_local uint8_t amx_tile[8][16][64];

static void amx_load(const void *shape) {
    memcpy(&amx_shape, shape, 64);
    memset(amx_tile, 0, sizeof amx_tile);
}
EMULATED void tile_zero(int t) { memset(amx_tile[t], 0, sizeof amx_tile[t]); }
EMULATED void tile_loadd(int t, const void *from, int64_t stride) {
    for (int r = 0; r < amx_shape.rows[t]; r++)
        memcpy(amx_tile[t][r], (const char *)from + r * stride, amx_shape.bytes[t]);
}
#define tile_stream_loadd tile_loadd
EMULATED void tile_stored(int t, void *to, int64_t stride) {
    for (int r = 0; r < amx_shape.rows[t]; r++)
        memcpy((char *)to + r * stride, amx_tile[t][r], amx_shape.bytes[t]);
}
static float amx_widen(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}
// The order of the additions is the hardware's (Intel's manual, TDPBF16PS): even and odd elements apart, from zero.
EMULATED void tile_dpbf16ps(int c, int a, int b) {
    const int inner = amx_shape.bytes[a] / 4, columns = amx_shape.bytes[c] / 4;
    for (int m = 0; m < amx_shape.rows[c]; m++) {
        float sums[16], even[16] = {0}, odd[16] = {0};
        memcpy(sums, amx_tile[c][m], 64);
        for (int k = 0; k < inner; k++) {
            uint16_t left[2], right[32];
            memcpy(left, amx_tile[a][m] + k * 4, 4);
            memcpy(right, amx_tile[b][k], 64);
            const float first = amx_widen(left[0]), second = amx_widen(left[1]);
            for (int n = 0; n < columns; n++) {
                even[n] = fmaf(first, amx_widen(right[2 * n]), even[n]);
                odd[n] = fmaf(second, amx_widen(right[2 * n + 1]), odd[n]);
            }
        }
        for (int n = 0; n < columns; n++) sums[n] += even[n] + odd[n];
        memcpy(amx_tile[c][m], sums, columns * 4);
    }
}
EMULATED void tile_dpbssd(int c, int a, int b) {
    const int inner = amx_shape.bytes[a] / 4, columns = amx_shape.bytes[c] / 4;
    for (int m = 0; m < amx_shape.rows[c]; m++)
        for (int n = 0; n < columns; n++) {
            int32_t sum;
            memcpy(&sum, amx_tile[c][m] + n * 4, 4);
            for (int k = 0; k < inner * 4; k++)
                sum += (int8_t)amx_tile[a][m][k] * (int8_t)amx_tile[b][k / 4][n * 4 + k % 4];
            memcpy(amx_tile[c][m] + n * 4, &sum, 4);
        }
}

#endif

#ifdef HAS_AMX
// Tiles 0-3: sums (16 a row), 4-5: inputs (32 bfloat16 or 64 bytes a row), 6-7: weights (16 rows of pairs or fours).
static __attribute__((unused)) void amx_configure(int first_rows, int second_rows) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape;
    memset(&shape, 0, sizeof shape);
    shape.palette = 1;
    int second = second_rows ? second_rows : 1;
    const int rows[8] = {first_rows, first_rows, second, second, first_rows, second, 16, 16};
    for (int t = 0; t < 8; t++) shape.bytes[t] = 64, shape.rows[t] = (uint8_t)rows[t];
    amx_load(&shape);
}
#endif

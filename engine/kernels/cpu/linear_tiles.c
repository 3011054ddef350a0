// Linear layers through AMX tiles: the rows in equal blocks of at most 32, by panels of 32 columns. Each block of sums is
// four tiles, so that each tile of inputs or weights is loaded once for two products.

#include "amx.h"

#ifdef HAS_AMX
#include "linear.h"
#include <omp.h>

#define BLOCK_ROWS 32
// A chunk of a panel, over at most so many inner elements, stays in the first-level cache for all blocks of a group:
// 16 KiB, so that it fits there beside sums and beside the chunk of a second thread of the core. The inputs of a group
// are streamed from the second-level cache: each of their lines is needed again only with the next panel.
#define CHUNK 256
#define GROUP_BLOCKS 8         // maximum blocks of a group, whose sums are kept while the chunks of a panel change
#define GROUP_BYTES (1 << 20)  // maximum bytes of a group's inputs
#define BATCH 2                // groups of 8-bit products whose sums are scaled together

typedef struct {
    int64_t count, rows;  // each block has `rows` rows; the last may have unused ones
} Blocks;

static Blocks blocks_of(int64_t m) {
    const int64_t count = (m + BLOCK_ROWS - 1) / BLOCK_ROWS;
    return (Blocks){count, (m + count - 1) / count};
}

INLINE int64_t rows_of(const Blocks *blocks, int64_t block, int64_t m) {
    const int64_t left = m - block * blocks->rows;
    return left < blocks->rows ? left : blocks->rows;
}

// Returns the number of panels of this thread, and sets the first. The caller ends with a barrier.
static int64_t my_panels(int64_t panels, int64_t *first) {
    const int64_t threads = tile_threads(omp_get_num_threads()), thread = omp_get_thread_num();
    if (thread >= threads) return 0;
    *first = panels * thread / threads;
    return panels * (thread + 1) / threads - *first;
}

// Returns how many blocks of inputs of so many bytes each are multiplied by one panel after another.
static int64_t group_size(int64_t bytes, int64_t most) {
    int64_t size = GROUP_BYTES / bytes;
    if (size > most) size = most;
    return size > 1 ? size : 1;
}

static void configure(int64_t rows) {
    amx_configure(rows < 16 ? (int)rows : 16, rows > 16 ? (int)rows - 16 : 0);
}

// The next panel. Each step of the current one prefetches `lines` cache lines of it, so that it is there when all blocks
// are multiplied.
typedef struct {
    const char *at, *end;
    int64_t lines;
} Ahead;

INLINE Ahead ahead_of(const void *panel, int64_t bytes, int64_t blocks) {
    const char *next = (const char *)panel + bytes;
    return (Ahead){next, next + bytes, (32 + blocks - 1) / blocks};
}

INLINE void prefetch_lines(Ahead *ahead) {
    for (int64_t line = 0; line < ahead->lines && ahead->at < ahead->end; line++, ahead->at += 64)
        prefetch_far(ahead->at);
}

// ---------------------------------------------------------------------------------------------------- bfloat16

// Copies x (m, k) in the order of the tiles' lines, so that they are loaded from consecutive addresses: rows that are a
// multiple of 4 KiB apart would all share one set of the cache.
static void pack_inputs(const bf16 *x, bf16 *to, int64_t m, int64_t k, const Blocks *blocks) {
    const int64_t rows = blocks->rows;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < blocks->count * rows; r++) {
        bf16 *line = to + r / rows * rows * k + r % rows * 32;
        for (int64_t i = 0; i < k; i += 32, line += rows * 32) {
            if (r < m) memcpy(line, x + r * k + i, 64);
            else memset(line, 0, 64);
        }
    }
}

// Inputs of a block: `step` elements between tiles, `stride` bytes between rows.
typedef struct {
    const bf16 *at;
    int64_t step, stride;
} Inputs;

// Adds `steps` products of 32 inner elements to the sums of a block, which begin at zero unless `continues`.
INLINE void multiply(const int is_tall, const int fetch_panel, Inputs x, const bf16 *w, int64_t steps, int continues, float *sums,
                     Ahead *ahead) {
    const bf16 *second = x.at + 16 * x.stride / 2;
    if (continues) {
        tile_loadd(0, sums, PANEL * 4);
        tile_loadd(1, sums + LANES, PANEL * 4);
        if (is_tall) {
            tile_loadd(2, sums + 16 * PANEL, PANEL * 4);
            tile_loadd(3, sums + 16 * PANEL + LANES, PANEL * 4);
        }
    } else {
        tile_zero(0);
        tile_zero(1);
        if (is_tall) {
            tile_zero(2);
            tile_zero(3);
        }
    }
    for (int64_t i = 0; i < steps; i++) {
        if (fetch_panel) {  // the only block reads its panel straight from memory
            for (int line = 0; line < 32; line++) prefetch_near((const char *)w + 4096 + line * 64);
            tile_loadd(4, x.at, x.stride);
        } else {
            prefetch_lines(ahead);
            tile_stream_loadd(4, x.at, x.stride);
        }
        tile_loadd(6, w, PANEL * 4);
        tile_dpbf16ps(0, 4, 6);
        tile_loadd(7, w + LANES * 2, PANEL * 4);
        tile_dpbf16ps(1, 4, 7);
        if (is_tall) {
            if (fetch_panel) tile_loadd(5, second, x.stride);
            else tile_stream_loadd(5, second, x.stride);
            tile_dpbf16ps(2, 5, 6);
            tile_dpbf16ps(3, 5, 7);
        }
        x.at += x.step;
        second += x.step;
        w += 32 * PANEL;
    }
    tile_stored(0, sums, PANEL * 4);
    tile_stored(1, sums + LANES, PANEL * 4);
    if (is_tall) {
        tile_stored(2, sums + 16 * PANEL, PANEL * 4);
        tile_stored(3, sums + 16 * PANEL + LANES, PANEL * 4);
    }
}

// `fetch_panel`: whether this is the only block, and the panel's lines are prefetched just before they are needed.
static void multiply_block(int64_t rows, int fetch_panel, Inputs x, const bf16 *w, int64_t steps, int continues,
                           float *sums, Ahead *ahead) {
    if (fetch_panel) {
        if (rows > 16) multiply(1, 1, x, w, steps, continues, sums, ahead);
        else multiply(0, 1, x, w, steps, continues, sums, ahead);
    } else {
        if (rows > 16) multiply(1, 0, x, w, steps, continues, sums, ahead);
        else multiply(0, 0, x, w, steps, continues, sums, ahead);
    }
}

#ifdef __AVX512F__
#define FEW_ROWS 2    // maximum rows that are multiplied by the vector units: their speed is that of memory
#define FEW_PANELS 2  // panels at a time: more loads that do not wait for each other

// Does what the tiles do, addition by addition, so that a row has the same result alone and among many.
INLINE void multiply_few(const int rows, const int panels, const bf16 *x, const bf16 *w, int64_t k, float *sums) {
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    const int vectors = panels * 2;
    const int64_t stride = PANEL * k;
    __m512 sum[FEW_ROWS * FEW_PANELS * 2];
#pragma GCC unroll 8
    for (int j = 0; j < rows * vectors; j++) sum[j] = _mm512_setzero_ps();
    for (int64_t i = 0; i < k; i += 32) {
        __m512 even[FEW_ROWS * FEW_PANELS * 2], odd[FEW_ROWS * FEW_PANELS * 2];
#pragma GCC unroll 8
        for (int j = 0; j < rows * vectors; j++) even[j] = odd[j] = _mm512_setzero_ps();
        for (int pair = 0; pair < 16; pair++, w += 2 * PANEL) {
            __m512 before[FEW_ROWS], after[FEW_ROWS];
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++) {
                int32_t both;
                memcpy(&both, x + r * k + i + 2 * pair, 4);
                const __m512i inputs = _mm512_set1_epi32(both);
                before[r] = _mm512_castsi512_ps(_mm512_slli_epi32(inputs, 16));
                after[r] = _mm512_castsi512_ps(_mm512_and_si512(inputs, high));
            }
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                const bf16 *from = w + v / 2 * stride + v % 2 * 2 * LANES;
                prefetch_near((const char *)from + 1536);
                const __m512i weights = _mm512_loadu_si512(from);
                const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(weights, 16));
                const __m512 second = _mm512_castsi512_ps(_mm512_and_si512(weights, high));
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++) {
                    even[r * vectors + v] = _mm512_fmadd_ps(before[r], first, even[r * vectors + v]);
                    odd[r * vectors + v] = _mm512_fmadd_ps(after[r], second, odd[r * vectors + v]);
                }
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < rows * vectors; j++) sum[j] = _mm512_add_ps(sum[j], _mm512_add_ps(even[j], odd[j]));
    }
#pragma GCC unroll 8
    for (int j = 0; j < rows * vectors; j++) _mm512_storeu_ps(sums + j * LANES, sum[j]);
}

static void linear_few(const bf16 *x, const Weight *w, void *y, int64_t m, int y_is_float) {
    const int64_t k = w->k, panels = (w->n + PANEL - 1) / PANEL;
    const unsigned before = _mm_getcsr();
#pragma omp for schedule(static)
    for (int64_t p = 0; p < panels; p += FEW_PANELS) {
        const bf16 *panel = (const bf16 *)w->data + p * PANEL * k;
        const int count = panels - p < FEW_PANELS ? 1 : FEW_PANELS;
        float sums[FEW_ROWS * FEW_PANELS * PANEL] __attribute__((aligned(64)));
#ifndef MYNA_EMULATE_AMX
        _mm_setcsr(before | 0x8040);  // tiles treat denormal numbers as zero
#endif
        if (m == 1 && count == 2) multiply_few(1, 2, x, panel, k, sums);
        else if (m == 1) multiply_few(1, 1, x, panel, k, sums);
        else if (count == 2) multiply_few(2, 2, x, panel, k, sums);
        else multiply_few(2, 1, x, panel, k, sums);
        _mm_setcsr(before);
        finish(sums, m, count * PANEL, w, p * PANEL, y, 0, y_is_float);
    }
}
#else
#define FEW_ROWS 0
static void linear_few(const bf16 *x, const Weight *w, void *y, int64_t m, int y_is_float) {}
#endif

void linear_tiles(const bf16 *x, const Weight *w, InputRoom *room, void *y, int64_t m, int y_is_float) {
    if (m <= FEW_ROWS) {
        linear_few(x, w, y, m, y_is_float);
        return;
    }
    const int64_t k = w->k, panels = (w->n + PANEL - 1) / PANEL;
    const Blocks blocks = blocks_of(m);
    const int64_t rows = blocks.rows, is_packed = blocks.count > 1, chunks = is_packed ? (k + CHUNK - 1) / CHUNK : 1;
    const int64_t chunk = (k / 32 + chunks - 1) / chunks * 32, group = group_size(rows * k * 2, GROUP_BLOCKS);
    if (is_packed) pack_inputs(x, room->tiles, m, k, &blocks);
    int64_t first = 0;
    const int64_t mine = my_panels(panels, &first);
    float sums[GROUP_BLOCKS][BLOCK_ROWS * PANEL] __attribute__((aligned(64)));
    if (mine) configure(rows);
    for (int64_t from = 0; from < blocks.count; from += group) {
        const int64_t now = blocks.count - from < group ? blocks.count - from : group;
        for (int64_t p = first; p < first + mine; p++) {
            const bf16 *panel = (const bf16 *)w->data + p * PANEL * k;
            Ahead ahead = ahead_of(panel, PANEL * k * 2, now);
            for (int64_t i = 0; i < k; i += chunk) {
                const int64_t inner = k - i < chunk ? k - i : chunk;
                for (int64_t b = 0; b < now; b++) {
                    const int64_t row = (from + b) * rows;
                    const Inputs inputs = is_packed ? (Inputs){room->tiles + row * k + i * rows, 32 * rows, 64}
                                                    : (Inputs){x + i, 32, k * 2};
                    multiply_block(rows, !is_packed, inputs, panel + i * PANEL, inner / 32, i > 0, sums[b], &ahead);
                    if (i + inner == k)
                        finish(sums[b], rows_of(&blocks, from + b, m), PANEL, w, p * PANEL, y, row, y_is_float);
                }
            }
        }
    }
#pragma omp barrier
}

// ---------------------------------------------------------------------------------------------- 8-bit integers

// Quantises x (m, k), block by block, in the order of the tiles' lines. Unused rows of the last block are zero.
static void quantise_inputs(const bf16 *x, InputRoom *to, int64_t m, int64_t k, const Blocks *blocks) {
    const int64_t rows = blocks->rows, groups = k / GROUP;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < blocks->count; b++) {
        int8_t *values = to->values + b * rows * k;
        const int64_t used = rows_of(blocks, b, m);
        if (used < rows) {
            memset(values, 0, rows * k);
            memset(to->scales + b * rows * groups, 0, rows * groups * 4);
        }
        quantise_rows(x + b * rows * k, used, k, rows, GROUP, 4, values, to->scales + b * rows * groups,
                      to->offsets + b * rows * groups);
    }
}

// Stores the products of a group of inner elements, integers, for the four tiles of a block.
INLINE void multiply_bytes(const int is_tall, const int8_t *x, const uint8_t *w, int32_t (*sums)[16 * LANES]) {
    tile_zero(0);
    tile_zero(1);
    tile_loadd(4, x, GROUP);
    tile_loadd(6, w, PANEL * 4);
    tile_dpbssd(0, 4, 6);
    tile_loadd(7, w + LANES * 4, PANEL * 4);
    tile_dpbssd(1, 4, 7);
    if (is_tall) {
        tile_zero(2);
        tile_zero(3);
        tile_loadd(5, x + 16 * GROUP, GROUP);
        tile_dpbssd(2, 5, 6);
        tile_dpbssd(3, 5, 7);
    }
    tile_stored(0, sums[0], LANES * 4);
    tile_stored(1, sums[1], LANES * 4);
    if (is_tall) {
        tile_stored(2, sums[2], LANES * 4);
        tile_stored(3, sums[3], LANES * 4);
    }
}

// Adds the scaled products of `count` groups to the totals of a block, in the order of `byte_tile`. `scales`: (groups,
// stride) of the inputs. `w_scales`: (groups, PANEL).
INLINE void add_scaled(const int count, int64_t rows, int32_t (*sums)[4][16 * LANES], const float *scales,
                       int64_t stride, const float *w_scales, float *totals) {
    for (int tile = 0; tile < 4 && tile / 2 * 16 < rows; tile++) {
        const int64_t first = tile / 2 * 16, end = rows - first < 16 ? rows : first + 16;
        const int32_t *from = sums[0][tile];
        float *to = totals + first * PANEL + tile % 2 * LANES;
        f32 weight_scale[BATCH];
#pragma GCC unroll 2
        for (int g = 0; g < count; g++) weight_scale[g] = load_f32(w_scales + g * PANEL + tile % 2 * LANES);
        for (int64_t r = first; r < end; r++, from += LANES, to += PANEL) {
            f32 total = load_f32(to);
#pragma GCC unroll 2
            for (int g = 0; g < count; g++)
                total = fma_f32(to_f32(load_i32(from + g * 4 * 16 * LANES)),
                                mul(weight_scale[g], splat(scales[g * stride + r])), total);
            store_f32(to, total);
        }
    }
}

static void add_batch(int count, int64_t rows, int32_t (*sums)[4][16 * LANES], const float *scales, const float *w_scales,
                      float *totals) {
    if (count == BATCH) add_scaled(BATCH, rows, sums, scales, rows, w_scales, totals);
    else add_scaled(1, rows, sums, scales, rows, w_scales, totals);
}

// While the tiles of one batch of groups are multiplied, the vector units scale the sums of the batch before.
static void byte_block(int64_t rows, const int8_t *x, const float *scales, const uint8_t *w, const float *w_scales,
                       int64_t groups, float *totals, Ahead *ahead) {
    int32_t sums[2][BATCH][4][16 * LANES] __attribute__((aligned(64)));
    memset(totals, 0, rows * PANEL * 4);
    int before = 0;
    for (int64_t g = 0, batch = 0; g < groups + BATCH; g += BATCH, batch++) {
        const int count = groups - g >= BATCH ? BATCH : groups > g ? (int)(groups - g) : 0;
        for (int each = 0; each < count; each++) {
            prefetch_lines(ahead);
            const int8_t *inputs = x + (g + each) * GROUP * rows;
            const uint8_t *weights = w + (g + each) * GROUP * PANEL;
            if (rows > 16) multiply_bytes(1, inputs, weights, sums[batch % 2][each]);
            else multiply_bytes(0, inputs, weights, sums[batch % 2][each]);
        }
        if (before)
            add_batch(before, rows, sums[(batch + 1) % 2], scales + (g - BATCH) * rows, w_scales + (g - BATCH) * PANEL,
                      totals);
        before = count;
    }
}

void linear_byte_tiles(const bf16 *x, const Weight *w, InputRoom *room, void *y, int64_t m, int y_is_float) {
    const int64_t k = w->k, groups = k / GROUP, panels = (w->n + PANEL - 1) / PANEL;
    const Blocks blocks = blocks_of(m);
    const int64_t rows = blocks.rows;
    quantise_inputs(x, room, m, k, &blocks);
    int64_t first = 0;
    const int64_t mine = my_panels(panels, &first);
    if (mine) configure(rows);
    const int64_t group = group_size(rows * k, blocks.count);
    for (int64_t from = 0; from < blocks.count; from += group) {
        const int64_t end = from + group < blocks.count ? from + group : blocks.count;
        for (int64_t p = first; p < first + mine; p++) {
            float totals[BLOCK_ROWS * PANEL] __attribute__((aligned(64)));
            const uint8_t *panel = (const uint8_t *)w->data + p * PANEL * k;
            Ahead ahead = ahead_of(panel, PANEL * k, end - from);
            for (int64_t b = from; b < end; b++) {
                byte_block(rows, room->values + b * rows * k, room->scales + b * rows * groups, panel,
                           w->scales + p * groups * PANEL, groups, totals, &ahead);
                finish(totals, rows_of(&blocks, b, m), PANEL, w, p * PANEL, y, b * rows, y_is_float);
            }
        }
    }
#pragma omp barrier
}
#endif

// Declarations that the C files share. Addresses come from engine/kernels/cpu/kernels.py, which mirrors the structs.
//
// Every output row is computed by one chain of operations. Its order depends only on that row's own position, never on
// how many other rows are in the step: results are equal bit for bit in any batch, chunking or thread count.

#pragma once
#include <stddef.h>
#include "simd.h"

#define PANEL 32          // contiguous output columns of a packed weight
#define GROUP 64          // inner elements of an 8-bit weight or input that share a scale
#define BLOCK 16          // tokens in a KV block
#define MAX_HEAD 256

// A packed (n, k) weight. bfloat16: panels (n / PANEL, k / 2, PANEL, 2), k even. 8-bit, if scales are given: (n /
// PANEL, k / 4, PANEL, 4) of value + BYTE_ZERO, with scales (n / PANEL, k / GROUP, PANEL).
typedef struct {
    const void *data;
    const float *scales;
    const float *bias;    // (n,) or NULL
    int64_t n, k;
} Weight;

// Buffer for the inputs of a linear layer, as its products need them: 8-bit values from `quantise`, floats, or bfloat16
// in the order of matrix tiles. They share one place, since a weight needs one of them. In 8 bits, rows that are
// multiplied together are contiguous: one tile after another, each in the shape given here.
typedef struct {
    int8_t *values;       // (k / 4, rows of the tile, 4); for matrix tiles (k / GROUP, rows of the tile, GROUP)
    float *scales;        // (k / GROUP, rows of the tile)
    int32_t *offsets;     // likewise: -128 times the sum of the values, which undoes the weights' + 128
    float *wide;          // (rows, k)
    bf16 *tiles;          // (k / 32, rows of the tile, 32), one tile after another
} InputRoom;

// Rows with those that fill up the last of equal blocks of at most 32.
INLINE int64_t padded_rows(int64_t rows) { return rows + (rows + 31) / 32; }

INLINE int64_t input_room_bytes(int64_t rows, int64_t k) { return padded_rows(rows) * k * 4 + 3 * 64; }

INLINE InputRoom input_room_at(char *memory, int64_t rows, int64_t k) {
    const int64_t padded = padded_rows(rows), values = (padded * k + 63) / 64 * 64;
    const int64_t each = (padded * (k / GROUP) * 4 + 63) / 64 * 64;
    return (InputRoom){(int8_t *)memory, (float *)(memory + values), (int32_t *)(memory + values + each),
                       (float *)memory, (bf16 *)memory};
}

// Functions without the prefix `myna_` are called by all threads of a parallel region, and end with a barrier.
void linear(const bf16 *x, const Weight *w, InputRoom *room, void *y, int64_t m, int y_is_float);
int amx_permitted(void);
int64_t tile_threads(int64_t threads);  // how many of the threads multiply tiles
void amx_end(void);  // call at the end of a parallel region with AMX: switching threads with tiles in use is expensive

typedef struct {
    int64_t heads, kv_heads, d, threads;
    float scale, softcap;  // softcap 0: no bound
} AttentionShape;

// See AttentionBatch in engine/kernels/base.py.
typedef struct {
    const int64_t *positions, *slots;
    const int32_t *starts, *lengths, *tables;
    int64_t rows, n, width;
} Batch;

// One row of a sequence.
typedef struct {
    int32_t sequence, row;
} Place;

typedef struct Task Task;
int64_t count_tasks(const Batch *batch);
size_t myna_task_bytes(void);
int64_t plan_attention(const Batch *batch, const AttentionShape *shape, Place *places, Task *tasks);
void attention(const bf16 *queries, const bf16 *keys, const bf16 *values, bf16 *out, const Batch *batch,
               const AttentionShape *shape, int64_t window, const Place *places, const Task *tasks, int64_t count,
               void *state);

// Layout of the pool, for a head of d elements: keys (blocks, kv_heads, d / 2, BLOCK, 2), values (blocks, kv_heads,
// BLOCK / 2, d, 2).
INLINE int64_t block_of(int64_t block, int64_t head, int64_t kv_heads, int64_t d) {
    return (block * kv_heads + head) * BLOCK * d;
}

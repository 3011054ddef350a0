// Decoder operations for x86-64 CPUs with AVX512 and its bfloat16 dot products, over raw pointers.
//
// Every output row is computed by one chain of operations whose order depends only on that row's own length,
// never on how many rows stand beside it: results are equal bit for bit in any batch, chunking or thread count.
//
// bfloat16 dot products (vdpbf16ps) take pairs along the inner dimension, so weights, keys and values are kept
// in pairs: two neighbours of the inner dimension side by side, then 16 of the outer one to a register.

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))
#define LANES 16          // floats in a register
#define PANEL 32          // output columns of a packed weight that lie together
#define BLOCK 16          // tokens in a KV block: one register of scores
#define SEGMENT 8         // KV blocks whose scores are exponentiated together
#define ROW_TILE 14       // rows x 2 registers of sums: 28 of the 32 registers
#define QUERY_TILE 4      // queries that share a load of keys or values
#define TASK_ROWS 16      // query rows of one attention task
#define MAX_HEAD 256

INLINE __m512 load_bf16(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

INLINE void store_bf16(bf16 *p, __m512 x) {
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x));
}

INLINE __m512bh pair(const bf16 *p) {
    int32_t bits;
    memcpy(&bits, p, 4);
    return (__m512bh)_mm512_set1_epi32(bits);
}

INLINE __m512bh load_pairs(const bf16 *p) { return (__m512bh)_mm512_loadu_si512(p); }

// exp to within 2 units in the last place; -inf gives 0
INLINE __m512 exp_ps(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// ---------------------------------------------------------------------------------------------- linear layers

// weight (n, k) -> panels (n / PANEL, k / 2, PANEL, 2), columns beyond n zero; k is even
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

// rows x (panels * PANEL) sums of one tile
INLINE void tile(const int rows, const int panels, const bf16 *x, const bf16 *w, int64_t k, float *restrict out,
                 int64_t panel_stride) {
    __m512 sum[ROW_TILE * 2];
#pragma GCC unroll 28
    for (int i = 0; i < rows * panels * 2; i++) sum[i] = _mm512_setzero_ps();
    for (int64_t i = 0; i < k / 2; i++) {
        __m512bh column[4];
#pragma GCC unroll 4
        for (int c = 0; c < panels * 2; c++) {
            const bf16 *at = w + (c / 2) * panel_stride + i * PANEL * 2 + (c % 2) * LANES * 2;
            column[c] = load_pairs(at);
            if (rows <= 8) _mm_prefetch((const char *)at + 1536, _MM_HINT_T0);  // few rows wait for memory
        }
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            __m512bh value = pair(x + r * k + i * 2);
#pragma GCC unroll 4
            for (int c = 0; c < panels * 2; c++)
                sum[r * panels * 2 + c] = _mm512_dpbf16_ps(sum[r * panels * 2 + c], value, column[c]);
        }
    }
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < panels * 2; c++)
            _mm512_store_ps(out + (r * panels * 2 + c) * LANES, sum[r * panels * 2 + c]);
}

#define ONE_PANEL(R) case R: tile(R, 1, x, w, k, out, stride); break;
#define TWO_PANELS(R) case R: tile(R, 2, x, w, k, out, stride); break;

static void any_tile(int rows, int panels, const bf16 *x, const bf16 *w, int64_t k, float *out, int64_t stride) {
    if (panels == 2) switch (rows) {
        TWO_PANELS(1) TWO_PANELS(2) TWO_PANELS(3) TWO_PANELS(4) TWO_PANELS(5) TWO_PANELS(6) TWO_PANELS(7)
    }
    else switch (rows) {
        ONE_PANEL(1) ONE_PANEL(2) ONE_PANEL(3) ONE_PANEL(4) ONE_PANEL(5) ONE_PANEL(6) ONE_PANEL(7)
        ONE_PANEL(8) ONE_PANEL(9) ONE_PANEL(10) ONE_PANEL(11) ONE_PANEL(12) ONE_PANEL(13) ONE_PANEL(14)
    }
}

static void linear(const bf16 *x, const bf16 *packed, void *y, int64_t m, int64_t n, int64_t k, int y_is_float) {
    int64_t panels = (n + PANEL - 1) / PANEL;
    // Few rows take two panels at a time: more independent sums to hide the latency of each.
    int wide = m <= ROW_TILE / 2 ? 2 : 1;
    int64_t tiles = (m + ROW_TILE - 1) / ROW_TILE, stride = PANEL * k;
    int64_t groups = (panels + wide - 1) / wide;
#pragma omp for schedule(static)
    for (int64_t g = 0; g < groups; g++) {
        float out[ROW_TILE * PANEL] __attribute__((aligned(64)));
        int64_t first = g * wide;
        int count = first + wide <= panels ? wide : (int)(panels - first);
        int64_t width = count * PANEL, left = n - first * PANEL;
        for (int64_t t = 0; t < tiles; t++) {
            int64_t begin = m * t / tiles, end = m * (t + 1) / tiles;
            any_tile((int)(end - begin), count, x + begin * k, packed + first * stride, k, out, stride);
            for (int64_t r = begin; r < end; r++) {
                const float *from = out + (r - begin) * width;
                int64_t columns = left < width ? left : width;
                if (y_is_float) {
                    memcpy((float *)y + r * n + first * PANEL, from, columns * 4);
                } else {
                    bf16 rounded[2 * PANEL];
                    for (int64_t c = 0; c < width; c += LANES) store_bf16(rounded + c, _mm512_load_ps(from + c));
                    memcpy((bf16 *)y + r * n + first * PANEL, rounded, columns * 2);
                }
            }
        }
    }
}

// x (m, k) times packed (n, k) -> y (m, n), bfloat16 or float32
void myna_linear(const bf16 *x, const bf16 *packed, void *y, int64_t m, int64_t n, int64_t k, int32_t y_is_float) {
#pragma omp parallel
    linear(x, packed, y, m, n, k, y_is_float);
}

// ------------------------------------------------------------------------------------------- fused small things

// residual += x if x is given; y = residual / rms(residual) * weight. hidden is a multiple of 16.
static void add_rms_norm(bf16 *residual, const bf16 *x, const bf16 *weight, bf16 *y, int64_t rows, int64_t hidden,
                         float eps) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        bf16 *at = residual + r * hidden, *to = y + r * hidden;
        __m512 squares = _mm512_setzero_ps();
        for (int64_t i = 0; i < hidden; i += LANES) {
            __m512 value = load_bf16(at + i);
            if (x) {
                store_bf16(at + i, _mm512_add_ps(value, load_bf16(x + r * hidden + i)));
                value = load_bf16(at + i);
            }
            squares = _mm512_fmadd_ps(value, value, squares);
        }
        __m512 scale = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)hidden + eps));
        for (int64_t i = 0; i < hidden; i += LANES)
            store_bf16(to + i, _mm512_mul_ps(_mm512_mul_ps(load_bf16(at + i), scale), load_bf16(weight + i)));
    }
}

void myna_add_rms_norm(bf16 *residual, const bf16 *x, const bf16 *weight, bf16 *y, int64_t rows, int64_t hidden,
                       float eps) {
#pragma omp parallel if (rows >= 16)
    add_rms_norm(residual, x, weight, y, rows, hidden, eps);
}

// y = silu(gate) * up over rows of gate, up. size is a multiple of 16.
static void silu_mul(const bf16 *gate_up, bf16 *y, int64_t rows, int64_t size) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *gate = gate_up + r * 2 * size, *up = gate + size;
        for (int64_t i = 0; i < size; i += LANES) {
            __m512 g = load_bf16(gate + i);
            __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), g))));
            store_bf16(y + r * size + i, _mm512_mul_ps(silu, load_bf16(up + i)));
        }
    }
}

void myna_silu_mul(const bf16 *gate_up, bf16 *y, int64_t rows, int64_t size) {
#pragma omp parallel if (rows >= 16)
    silu_mul(gate_up, y, rows, size);
}

// Where in the pool things lie, for a head of d elements:
// keys (blocks, kv_heads, d / 2, BLOCK, 2), values (blocks, kv_heads, BLOCK / 2, d, 2)
INLINE int64_t block_of(int64_t block, int64_t head, int64_t kv_heads, int64_t d) {
    return (block * kv_heads + head) * BLOCK * d;
}

INLINE void rotate(const bf16 *from, const float *rotary, bf16 *to, int64_t d) {
    for (int64_t i = 0; i < d / 2; i += LANES) {
        __m512 first = load_bf16(from + i), second = load_bf16(from + i + d / 2);
        __m512 cosine = _mm512_loadu_ps(rotary + i), sine = _mm512_loadu_ps(rotary + i + d / 2);
        store_bf16(to + i, _mm512_sub_ps(_mm512_mul_ps(first, cosine), _mm512_mul_ps(second, sine)));
        store_bf16(to + i + d / 2, _mm512_add_ps(_mm512_mul_ps(second, cosine), _mm512_mul_ps(first, sine)));
    }
}

// d is a multiple of 32
static void rope_and_store(const bf16 *qkv, const float *rotary, const int64_t *positions, const int64_t *slots,
                           bf16 *keys, bf16 *values, bf16 *queries, int64_t rows, int64_t heads, int64_t kv_heads,
                           int64_t d) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *row = qkv + r * (heads + 2 * kv_heads) * d;
        const float *angles = rotary + positions[r] * d;
        bf16 rotated[MAX_HEAD];
        for (int64_t h = 0; h < heads; h++) rotate(row + h * d, angles, queries + (r * heads + h) * d, d);
        int64_t block = slots[r] / BLOCK, inside = slots[r] % BLOCK;
        for (int64_t h = 0; h < kv_heads; h++) {
            rotate(row + (heads + h) * d, angles, rotated, d);
            bf16 *key = keys + block_of(block, h, kv_heads, d);
            for (int64_t i = 0; i < d; i += 2) memcpy(key + i * BLOCK + inside * 2, rotated + i, 4);
            const bf16 *from = row + (heads + kv_heads + h) * d;
            bf16 *value = values + block_of(block, h, kv_heads, d) + (inside / 2) * d * 2 + inside % 2;
            for (int64_t i = 0; i < d; i++) value[i * 2] = from[i];
        }
    }
}

void myna_rope_and_store(const bf16 *qkv, const float *rotary, const int64_t *positions, const int64_t *slots,
                         bf16 *keys, bf16 *values, bf16 *queries, int64_t rows, int64_t heads, int64_t kv_heads,
                         int64_t d) {
#pragma omp parallel if (rows >= 16)
    rope_and_store(qkv, rotary, positions, slots, keys, values, queries, rows, heads, kv_heads, d);
}

// ---------------------------------------------------------------------------------------------------- attention

typedef struct {
    const bf16 *query;   // d elements
    bf16 *out;
    int64_t visible;     // keys it sees
    float top, total;    // running maximum and sum (Milakov and Gimelshein 2018)
    float sum[MAX_HEAD] __attribute__((aligned(64)));
} Query;

// Scores of `count` queries against `blocks` blocks of keys, scaled, -inf where a query does not see.
INLINE void score(const int count, Query *const *q, const bf16 *const *key, int blocks, int64_t begin, const int64_t d,
                  float scale, float (*scores)[SEGMENT * BLOCK]) {
    for (int b = 0; b < blocks; b += 4) {
        const int now = blocks - b < 4 ? blocks - b : 4;
        const bf16 *k0 = key[b], *k1 = key[now > 1 ? b + 1 : b], *k2 = key[now > 2 ? b + 2 : b],
                   *k3 = key[now > 3 ? b + 3 : b];
        __m512 s[QUERY_TILE][4];
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) s[i][j] = _mm512_setzero_ps();
        for (int64_t e = 0; e < d / 2; e++) {
            __m512bh c0 = load_pairs(k0 + e * BLOCK * 2), c1 = load_pairs(k1 + e * BLOCK * 2),
                     c2 = load_pairs(k2 + e * BLOCK * 2), c3 = load_pairs(k3 + e * BLOCK * 2);
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) {
                __m512bh value = pair(q[i]->query + e * 2);
                s[i][0] = _mm512_dpbf16_ps(s[i][0], value, c0);
                s[i][1] = _mm512_dpbf16_ps(s[i][1], value, c1);
                s[i][2] = _mm512_dpbf16_ps(s[i][2], value, c2);
                s[i][3] = _mm512_dpbf16_ps(s[i][3], value, c3);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                if (j >= now) break;
                int64_t seen = q[i]->visible - (begin + (b + j) * BLOCK);
                __mmask16 mask = seen >= BLOCK ? 0xffff : seen <= 0 ? 0 : (__mmask16)((1u << seen) - 1);
                __m512 value = _mm512_mul_ps(s[i][j], _mm512_set1_ps(scale));
                value = _mm512_mask_blend_ps(mask, _mm512_set1_ps(-INFINITY), value);
                _mm512_store_ps(scores[i] + (b + j) * BLOCK, value);
            }
    }
}

// Scores to weights (bfloat16), running maximum and sum brought up to date. Returns the old sums' new factor.
INLINE float soften(Query *q, const float *scores, int blocks, bf16 *weights) {
    __m512 top = _mm512_load_ps(scores);
    for (int b = 1; b < blocks; b++) top = _mm512_max_ps(top, _mm512_load_ps(scores + b * BLOCK));
    float highest = _mm512_reduce_max_ps(top);
    if (highest < q->top) highest = q->top;
    __m512 shift = _mm512_set1_ps(highest), total = _mm512_setzero_ps();
    for (int b = 0; b < blocks; b++) {
        __m512 value = _mm512_load_ps(scores + b * BLOCK);
        __mmask16 seen = _mm512_cmp_ps_mask(value, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
        value = _mm512_maskz_mov_ps(seen, exp_ps(_mm512_sub_ps(value, shift)));
        total = _mm512_add_ps(total, value);
        store_bf16(weights + b * BLOCK, value);
    }
    float factor = q->top == -INFINITY ? 0.0f : expf(q->top - highest);
    q->total = q->total * factor + _mm512_reduce_add_ps(total);
    q->top = highest;
    return factor;
}

// sums = sums * factor + weights * values, 64 or 32 elements of the head at a time
INLINE void mix(const int count, const int registers, Query *const *q, const bf16 *const *value, int blocks,
                int64_t element, const int64_t d, const float *factor, bf16 (*weights)[SEGMENT * BLOCK]) {
    __m512 sum[QUERY_TILE][4];
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int j = 0; j < registers; j++)
            sum[i][j] = _mm512_mul_ps(_mm512_load_ps(q[i]->sum + element + j * LANES), _mm512_set1_ps(factor[i]));
    for (int b = 0; b < blocks; b++)
        for (int t = 0; t < BLOCK / 2; t++) {
            __m512bh column[4];
#pragma GCC unroll 4
            for (int j = 0; j < registers; j++)
                column[j] = load_pairs(value[b] + t * d * 2 + (element + j * LANES) * 2);
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) {
                __m512bh weight = pair(weights[i] + b * BLOCK + t * 2);
#pragma GCC unroll 4
                for (int j = 0; j < registers; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], weight, column[j]);
            }
        }
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int j = 0; j < registers; j++) _mm512_store_ps(q[i]->sum + element + j * LANES, sum[i][j]);
}

INLINE void attend(const int count, Query *const *q, const bf16 *const *key, const bf16 *const *value, int blocks,
                   int64_t begin, const int64_t d, float scale) {
    float scores[QUERY_TILE][SEGMENT * BLOCK] __attribute__((aligned(64)));
    bf16 weights[QUERY_TILE][SEGMENT * BLOCK] __attribute__((aligned(64)));
    float factor[QUERY_TILE];
    score(count, q, key, blocks, begin, d, scale, scores);
    for (int i = 0; i < count; i++) factor[i] = soften(q[i], scores[i], blocks, weights[i]);
    int64_t element = 0;
    for (; element + 64 <= d; element += 64) mix(count, 4, q, value, blocks, element, d, factor, weights);
    for (; element + 32 <= d; element += 32) mix(count, 2, q, value, blocks, element, d, factor, weights);
}

#define FOR_HEAD(D) \
    switch (count) { \
    case 1: attend(1, q, key, value, blocks, begin, D, scale); break; \
    case 2: attend(2, q, key, value, blocks, begin, D, scale); break; \
    case 3: attend(3, q, key, value, blocks, begin, D, scale); break; \
    default: attend(4, q, key, value, blocks, begin, D, scale); break; \
    }

static void attend_any(int count, Query *const *q, const bf16 *const *key, const bf16 *const *value, int blocks,
                       int64_t begin, int64_t d, float scale) {
    switch (d) {
    case 64: FOR_HEAD(64) break;
    case 128: FOR_HEAD(128) break;
    default: FOR_HEAD(d)
    }
}

// All query rows of one sequence's tile and the heads that share one KV head.
static void attention_task(const bf16 *queries, const bf16 *keys, const bf16 *values, bf16 *out, const int32_t *table,
                           int64_t first_row, int64_t rows, int64_t visible, int64_t kv_head, int64_t heads,
                           int64_t kv_heads, int64_t d, float scale, Query *state) {
    int64_t group = heads / kv_heads, total = rows * group, most = visible + rows - 1;
    for (int64_t i = 0; i < total; i++) {
        int64_t place = ((first_row + i / group) * heads + kv_head * group + i % group) * d;
        Query *q = state + i;
        q->query = queries + place;
        q->out = out + place;
        q->visible = visible + i / group;
        q->top = -INFINITY;
        q->total = 0.0f;
        memset(q->sum, 0, d * 4);
    }
    // Segments begin at multiples of their length from the context's start, for every row alike.
    for (int64_t begin = 0; begin < most; begin += SEGMENT * BLOCK) {
        const bf16 *key[SEGMENT], *value[SEGMENT];
        int64_t left = (most - begin + BLOCK - 1) / BLOCK;
        int blocks = left < SEGMENT ? (int)left : SEGMENT;
        for (int b = 0; b < blocks; b++) {
            int64_t at = block_of(table[begin / BLOCK + b], kv_head, kv_heads, d);
            key[b] = keys + at;
            value[b] = values + at;
            for (int64_t i = 0; i < BLOCK * d; i += 32) _mm_prefetch((const char *)(value[b] + i), _MM_HINT_T0);
        }
        // and the next segment's keys: blocks are scattered, so the hardware does not foresee them
        for (int64_t b = begin / BLOCK + SEGMENT; b < (most + BLOCK - 1) / BLOCK && b < begin / BLOCK + 2 * SEGMENT; b++)
            for (int64_t i = 0; i < BLOCK * d; i += 32)
                _mm_prefetch((const char *)(keys + block_of(table[b], kv_head, kv_heads, d) + i), _MM_HINT_T1);
        for (int64_t i = 0; i < total;) {
            // Queries that see nothing of this segment, and those that need fewer blocks, go by themselves.
            if (state[i].visible <= begin) { i++; continue; }
            int64_t needed = (state[i].visible - begin + BLOCK - 1) / BLOCK;
            Query *q[QUERY_TILE];
            int count = 0;
            while (count < QUERY_TILE && i < total) {
                int64_t need = (state[i].visible - begin + BLOCK - 1) / BLOCK;
                if ((need < blocks ? need : blocks) != (needed < blocks ? needed : blocks)) break;
                q[count++] = state + i++;
            }
            attend_any(count, q, key, value, needed < blocks ? (int)needed : blocks, begin, d, scale);
        }
    }
    for (int64_t i = 0; i < total; i++) {
        __m512 scale_out = _mm512_set1_ps(1.0f / state[i].total);
        for (int64_t e = 0; e < d; e += LANES)
            store_bf16(state[i].out + e, _mm512_mul_ps(_mm512_load_ps(state[i].sum + e), scale_out));
    }
}

// Causal attention of n sequences; see AttentionBatch for starts (n + 1), lengths (n) and tables (n, width).
// `state` has room for threads * TASK_ROWS * group queries (myna_attention_state bytes each). d: multiple of 32.
static void attention(const bf16 *queries, const bf16 *keys, const bf16 *values, bf16 *out, const int32_t *starts,
                      const int32_t *lengths, const int32_t *tables, int64_t n, int64_t width, int64_t heads,
                      int64_t kv_heads, int64_t d, float scale, Query *state) {
    int64_t group = heads / kv_heads, tasks = 0;
    int64_t begins[n + 1];
    for (int64_t s = 0; s < n; s++) {
        begins[s] = tasks;
        tasks += (starts[s + 1] - starts[s] + TASK_ROWS - 1) / TASK_ROWS * kv_heads;
    }
    begins[n] = tasks;
    int64_t s = n - 1;
    // Last rows first: they see most and take longest.
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = tasks - 1; t >= 0; t--) {
        while (s < n - 1 && t >= begins[s + 1]) s++;
        while (t < begins[s]) s--;
        int64_t rows = starts[s + 1] - starts[s], local = t - begins[s];
        int64_t from = local / kv_heads * TASK_ROWS, count = rows - from < TASK_ROWS ? rows - from : TASK_ROWS;
        attention_task(queries, keys, values, out, tables + s * width, starts[s] + from, count,
                       lengths[s] - rows + from + 1, local % kv_heads, heads, kv_heads, d, scale,
                       state + omp_get_thread_num() * TASK_ROWS * group);
    }
}

void myna_attention(const bf16 *queries, const bf16 *keys, const bf16 *values, bf16 *out, const int32_t *starts,
                    const int32_t *lengths, const int32_t *tables, int64_t n, int64_t width, int64_t heads,
                    int64_t kv_heads, int64_t d, float scale, Query *state, int32_t threads) {
#pragma omp parallel num_threads(threads)
    attention(queries, keys, values, out, starts, lengths, tables, n, width, heads, kv_heads, d, scale, state);
}

int64_t myna_attention_state(void) { return sizeof(Query) * TASK_ROWS; }

// ------------------------------------------------------------------------------------------------- whole layers

typedef struct {
    const bf16 *attention_norm, *qkv, *output, *mlp_norm, *gate_up, *down;
    bf16 *keys, *values;
} Layer;

typedef struct {
    int64_t layers, hidden, intermediate, heads, kv_heads, d, threads;
    float eps, scale;
} Shape;

// All layers over `rows` rows, in one parallel region: threads meet at barriers instead of being called anew.
// residual (rows, hidden): the embeddings, at the end the sum before the last `delta` is added.
// scratch: rows * (hidden * 2 + (heads * 3 + kv_heads * 2) * d + intermediate * 3) elements.
// Returns where in scratch the last layer's `delta` (rows, hidden) is.
bf16 *myna_layers(bf16 *residual, const Layer *layers, const Shape *shape, const float *rotary,
                  const int64_t *positions, const int64_t *slots, const int32_t *starts, const int32_t *lengths,
                  const int32_t *tables, int64_t rows, int64_t n, int64_t width, bf16 *scratch, Query *state) {
    const Shape at = *shape;
    const int64_t q = at.heads * at.d, kv = at.kv_heads * at.d;
    bf16 *normed = scratch, *delta = normed + rows * at.hidden, *qkv = delta + rows * at.hidden;
    bf16 *queries = qkv + rows * (q + 2 * kv), *attended = queries + rows * q;
    bf16 *gate_up = attended + rows * q, *active = gate_up + rows * 2 * at.intermediate;
#pragma omp parallel num_threads(at.threads)
    for (int64_t l = 0; l < at.layers; l++) {
        const Layer *w = layers + l;
        add_rms_norm(residual, l ? delta : NULL, w->attention_norm, normed, rows, at.hidden, at.eps);
        linear(normed, w->qkv, qkv, rows, q + 2 * kv, at.hidden, 0);
        rope_and_store(qkv, rotary, positions, slots, w->keys, w->values, queries, rows, at.heads, at.kv_heads, at.d);
        attention(queries, w->keys, w->values, attended, starts, lengths, tables, n, width, at.heads, at.kv_heads,
                  at.d, at.scale, state);
        linear(attended, w->output, delta, rows, at.hidden, q, 0);
        add_rms_norm(residual, delta, w->mlp_norm, normed, rows, at.hidden, at.eps);
        linear(normed, w->gate_up, gate_up, rows, 2 * at.intermediate, at.hidden, 0);
        silu_mul(gate_up, active, rows, at.intermediate);
        linear(active, w->down, delta, rows, at.hidden, at.intermediate, 0);
    }
    return delta;
}

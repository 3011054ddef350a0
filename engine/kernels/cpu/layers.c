// Norms, rotary positions, activations, and all layers of a decoder in one call.

#include "kernels.h"
#include <stdlib.h>

// y = x / rms(x) * weight over `count` elements, a multiple of 16; x and y may be the same
INLINE void normalise(const bf16 *x, const float *weight, bf16 *y, int64_t count, float eps) {
    f32 squares = splat(0.0f);
    for (int64_t i = 0; i < count; i += LANES) {
        f32 value = load_bf16(x + i);
        squares = fma_f32(value, value, squares);
    }
    f32 scale = splat(1.0f / sqrtf(sum_of(squares) / (float)count + eps));
    for (int64_t i = 0; i < count; i += LANES)
        store_bf16(y + i, mul(mul(load_bf16(x + i), scale), load_f32(weight + i)));
}

// residual += x if x is given, itself normalised by `inner` if that is; y = norm of the residual
static void add_rms_norm(bf16 *residual, const bf16 *x, const float *inner, const float *weight, bf16 *y, int64_t rows,
                         int64_t hidden, float eps) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        bf16 *at = residual + r * hidden;
        const bf16 *added = x ? x + r * hidden : NULL;
        if (added && inner) {
            normalise(added, inner, (bf16 *)added, hidden, eps);  // x is nobody else's any more
        }
        for (int64_t i = 0; added && i < hidden; i += LANES)
            store_bf16(at + i, add(load_bf16(at + i), load_bf16(added + i)));
        normalise(at, weight, y + r * hidden, hidden, eps);
    }
}

void myna_add_rms_norm(bf16 *residual, bf16 *x, const float *inner, const float *weight, bf16 *y, int64_t rows,
                       int64_t hidden, float eps) {
#pragma omp parallel if (rows >= 16)
    add_rms_norm(residual, x, inner, weight, y, rows, hidden, eps);
}

enum { SILU, GELU };

// y = activation(gate) * up over rows of gate, up. size is a multiple of 16.
static void gated(const bf16 *gate_up, bf16 *y, int64_t rows, int64_t size, int activation) {
    const f32 one = splat(1.0f), half = splat(0.5f);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *gate = gate_up + r * 2 * size, *up = gate + size;
        for (int64_t i = 0; i < size; i += LANES) {
            f32 g = load_bf16(gate + i), active;
            if (activation == SILU) {
                active = divide(g, add(one, exp_f32(larger(splat(-87.0f), smaller(splat(87.0f), negative(g))))));
            } else {  // the tanh form (Hendrycks and Gimpel 2016)
                f32 cube = mul(mul(g, g), g);
                f32 inner = mul(splat(0.7978845608f), fma_f32(cube, splat(0.044715f), g));
                active = mul(mul(half, g), add(one, tanh_f32(inner)));
            }
            store_bf16(y + r * size + i, mul(active, load_bf16(up + i)));
        }
    }
}

void myna_gated(const bf16 *gate_up, bf16 *y, int64_t rows, int64_t size, int32_t activation) {
#pragma omp parallel if (rows >= 16)
    gated(gate_up, y, rows, size, activation);
}

// Turns the first `rotated` elements, a multiple of 32, by their position's angles; the rest stays.
INLINE void rotate(const bf16 *from, const float *angles, bf16 *to, int64_t rotated, int64_t d) {
    if (!angles) rotated = 0;
    for (int64_t i = 0; i < rotated / 2; i += LANES) {
        f32 first = load_bf16(from + i), second = load_bf16(from + i + rotated / 2);
        f32 cosine = load_f32(angles + i), sine = load_f32(angles + i + rotated / 2);
        store_bf16(to + i, sub(mul(first, cosine), mul(second, sine)));
        store_bf16(to + i + rotated / 2, add(mul(second, cosine), mul(first, sine)));
    }
    if (rotated < d) memmove(to + rotated, from + rotated, (d - rotated) * 2);
}

typedef struct {
    const float *query_norm, *key_norm;  // (d,), or none
    const float *rotary;                 // (window, rotated): cosines, then sines; none: no positions
    int64_t rotated;
} Positions;

static void rope_and_store(const bf16 *qkv, const Positions *how, bf16 *keys, bf16 *values, bf16 *queries,
                           const Batch *batch, const AttentionShape *shape, float eps) {
    const int64_t heads = shape->heads, kv_heads = shape->kv_heads, d = shape->d;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < batch->rows; r++) {
        const bf16 *row = qkv + r * (heads + 2 * kv_heads) * d;
        const float *angles = how->rotary ? how->rotary + batch->positions[r] * how->rotated : NULL;
        bf16 normed[MAX_HEAD], rotated[MAX_HEAD];
        for (int64_t h = 0; h < heads; h++) {
            const bf16 *from = row + h * d;
            if (how->query_norm) {
                normalise(from, how->query_norm, normed, d, eps);
                from = normed;
            }
            rotate(from, angles, queries + (r * heads + h) * d, how->rotated, d);
        }
        int64_t block = batch->slots[r] / BLOCK, inside = batch->slots[r] % BLOCK;
        for (int64_t h = 0; h < kv_heads; h++) {
            const bf16 *from = row + (heads + h) * d;
            if (how->key_norm) {
                normalise(from, how->key_norm, normed, d, eps);
                from = normed;
            }
            rotate(from, angles, rotated, how->rotated, d);
            bf16 *key = keys + block_of(block, h, kv_heads, d);
            for (int64_t i = 0; i < d; i += 2) memcpy(key + i * BLOCK + inside * 2, rotated + i, 4);
            from = row + (heads + kv_heads + h) * d;
            bf16 *value = values + block_of(block, h, kv_heads, d) + (inside / 2) * d * 2 + inside % 2;
            for (int64_t i = 0; i < d; i++) value[i * 2] = from[i];
        }
    }
}

void myna_rope_and_store(const bf16 *qkv, const Positions *how, bf16 *keys, bf16 *values, bf16 *queries,
                         const Batch *batch, const AttentionShape *shape, float eps) {
#pragma omp parallel if (batch->rows >= 16)
    rope_and_store(qkv, how, keys, values, queries, batch, shape, eps);
}

// ------------------------------------------------------------------------------------------------- whole layers

typedef struct {
    Weight qkv, output, gate_up, down;
    Positions positions;
    const float *attention_norm, *mlp_norm;
    const float *attended_norm, *mlp_out_norm;  // of what is added to the residual, or none
    int64_t window;
    bf16 *keys, *values;
} Layer;

typedef struct {
    int64_t layers, hidden, intermediate, activation;
    float eps;
    AttentionShape attention;
} Shape;

// Rows of a batch that somebody wants, as sequences of a row each: all that the last layer still needs once it has
// written its keys and values.
typedef struct {
    Batch batch;
    Place *places;
    Task *tasks;
    int64_t count;
} Wanted;

static void *take(char **at, int64_t bytes) {
    void *taken = *at;
    *at += (bytes + 63) / 64 * 64;
    return taken;
}

static int64_t wanted_bytes(const Batch *batch, int64_t m) {
    const Batch most = {.rows = m, .n = m};
    return m * (batch->width + 2) * 4 + m * (int64_t)sizeof(Place) + count_tasks(&most) * (int64_t)myna_task_bytes() + 5 * 64;
}

static Wanted wanted_of(const Batch *batch, const int64_t *rows, int64_t m, const AttentionShape *shape, char **scratch) {
    int32_t *starts = take(scratch, (m + 1) * 4), *lengths = take(scratch, m * 4);
    int32_t *tables = take(scratch, m * batch->width * 4);
    Wanted wanted = {{.starts = starts, .lengths = lengths, .tables = tables, .rows = m, .n = m, .width = batch->width}};
    for (int64_t i = 0, s = 0; i < m; i++) {
        while (batch->starts[s + 1] <= rows[i]) s++;
        starts[i] = (int32_t)i;
        lengths[i] = batch->lengths[s] - (int32_t)(batch->starts[s + 1] - 1 - rows[i]);
        memcpy(tables + i * batch->width, batch->tables + s * batch->width, batch->width * 4);
    }
    starts[m] = (int32_t)m;
    wanted.places = take(scratch, m * (int64_t)sizeof(Place));
    wanted.tasks = take(scratch, count_tasks(&wanted.batch) * (int64_t)myna_task_bytes());
    wanted.count = plan_attention(&wanted.batch, shape, wanted.places, wanted.tasks);
    return wanted;
}

// Brings some rows of x, ascending, to its front. All threads call it.
static void to_front(bf16 *x, const int64_t *rows, int64_t m, int64_t size) {
#pragma omp single
    for (int64_t i = 0; i < m; i++) memmove(x + i * size, x + rows[i] * size, size * 2);
}

// Bytes of scratch that myna_layers needs.
int64_t myna_scratch(const Shape *shape, const Batch *batch, int64_t m) {
    int64_t q = shape->attention.heads * shape->attention.d, kv = shape->attention.kv_heads * shape->attention.d;
    int64_t widest = shape->hidden > shape->intermediate ? shape->hidden : shape->intermediate;
    if (q > widest) widest = q;
    int64_t row = 2 * (2 * shape->hidden + 3 * q + 2 * kv + 3 * shape->intermediate);
    return batch->rows * row + input_room_bytes(batch->rows, widest) + batch->rows * (int64_t)sizeof(Place) +
           count_tasks(batch) * (int64_t)myna_task_bytes() + wanted_bytes(batch, m) + 16 * 64;
}

// All layers over a batch, in one parallel region: threads meet at barriers instead of being called anew.
// residual (rows, hidden): the embeddings. Of the m rows `asked`, ascending, its front is at the end the sum before the
// last layer's share is added. Returns that share (m, hidden), not yet normalised by mlp_out_norm, in scratch.
bf16 *myna_layers(bf16 *residual, const Layer *layers, const Shape *shape, const Batch *batch, const int64_t *asked,
                  int64_t m, char *scratch, void *state) {
    const Shape at = *shape;
    int64_t rows = batch->rows;
    const int64_t q = at.attention.heads * at.attention.d, kv = at.attention.kv_heads * at.attention.d;
    int64_t widest = at.hidden > at.intermediate ? at.hidden : at.intermediate;
    if (q > widest) widest = q;
    bf16 *normed = take(&scratch, rows * at.hidden * 2), *delta = take(&scratch, rows * at.hidden * 2);
    bf16 *qkv = take(&scratch, rows * (q + 2 * kv) * 2), *queries = take(&scratch, rows * q * 2);
    bf16 *attended = take(&scratch, rows * q * 2);
    bf16 *gate_up = take(&scratch, rows * 2 * at.intermediate * 2);
    bf16 *active = take(&scratch, rows * at.intermediate * 2);
    InputRoom room = input_room_at(take(&scratch, input_room_bytes(rows, widest)), rows, widest);
    Place *places = take(&scratch, rows * (int64_t)sizeof(Place));
    Task *tasks = take(&scratch, count_tasks(batch) * (int64_t)myna_task_bytes());
    int64_t count = plan_attention(batch, &at.attention, places, tasks);
    const Wanted wanted = wanted_of(batch, asked, m, &at.attention, &scratch);
#pragma omp parallel num_threads(at.attention.threads) firstprivate(batch, rows, places, tasks, count)
    {
        for (int64_t l = 0; l < at.layers; l++) {
            const Layer *w = layers + l;
            add_rms_norm(residual, l ? delta : NULL, l ? w[-1].mlp_out_norm : NULL, w->attention_norm, normed, rows,
                         at.hidden, at.eps);
            linear(normed, &w->qkv, &room, qkv, rows, 0);
            rope_and_store(qkv, &w->positions, w->keys, w->values, queries, batch, &at.attention, at.eps);
            if (l + 1 == at.layers && m < rows) {
                to_front(queries, asked, m, q);
                to_front(residual, asked, m, at.hidden);
                batch = &wanted.batch, rows = m, places = wanted.places, tasks = wanted.tasks, count = wanted.count;
                if (!m) break;
            }
            attention(queries, w->keys, w->values, attended, batch, &at.attention, w->window, places, tasks, count,
                      state);
            linear(attended, &w->output, &room, delta, rows, 0);
            add_rms_norm(residual, delta, w->attended_norm, w->mlp_norm, normed, rows, at.hidden, at.eps);
            linear(normed, &w->gate_up, &room, gate_up, rows, 0);
            gated(gate_up, active, rows, at.intermediate, (int)at.activation);
            linear(active, &w->down, &room, delta, rows, 0);
        }
        amx_end();
    }
    return delta;
}

// The instructions that these kernels were built for.
const char *myna_instructions(void) {
#if defined(MYNA_EMULATE_AMX)
    return "emulated AMX";
#elif defined(__AVX512BF16__) && PARTS == 1
    return "AVX512-bf16";
#elif PARTS == 1
    return "AVX512";
#elif PARTS == 2
    return "AVX2";
#elif defined(__ARM_NEON)
    return "NEON";
#else
    return "plain vectors";
#endif
}

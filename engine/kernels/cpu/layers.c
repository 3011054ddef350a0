// Norms, rotary positions, activations, and all layers of a decoder in one call.

#include "kernels.h"
#include <stdlib.h>

// Returns 1 / rms(x) over `count` floats, a multiple of 16.
INLINE f32 inverse_rms(const float *x, int64_t count, float eps) {
    f32 squares = splat(0.0f);
    for (int64_t i = 0; i < count; i += LANES) {
        f32 value = load_f32(x + i);
        squares = fma_f32(value, value, squares);
    }
    return splat(1.0f / sqrtf(sum_of(squares) / (float)count + eps));
}

// y = x / rms(x) * weight over `count` elements, a multiple of 16.
INLINE void normalise(const float *x, const float *weight, float *y, int64_t count, float eps) {
    f32 scale = inverse_rms(x, count, eps);
    for (int64_t i = 0; i < count; i += LANES)
        store_f32(y + i, mul(mul(load_f32(x + i), scale), load_f32(weight + i)));
}

// Adds x, if given, to the residual, after normalising it by `inner`, if given. y = norm of the residual. The residual
// stream is float32: a sum of many layers' results would lose what bfloat16 rounds off.
static void add_rms_norm(float *residual, const float *x, const float *inner, const float *weight, bf16 *y,
                         int64_t rows, int64_t hidden, float eps) {
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float *at = residual + r * hidden;
        if (x) {
            const float *added = x + r * hidden;
            f32 scale = inner ? inverse_rms(added, hidden, eps) : splat(1.0f);
            for (int64_t i = 0; i < hidden; i += LANES) {
                f32 value = load_f32(added + i);
                if (inner) value = mul(mul(value, scale), load_f32(inner + i));
                store_f32(at + i, add(load_f32(at + i), value));
            }
        }
        f32 scale = inverse_rms(at, hidden, eps);
        for (int64_t i = 0; i < hidden; i += LANES)
            store_bf16(y + r * hidden + i, mul(mul(load_f32(at + i), scale), load_f32(weight + i)));
    }
}

void myna_add_rms_norm(float *residual, const float *x, const float *inner, const float *weight, bf16 *y, int64_t rows,
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

// Rotates the first `rotated` elements, a multiple of 32, by their position's angles; the others stay.
INLINE void rotate(const float *from, const float *angles, bf16 *to, int64_t rotated, int64_t d) {
    if (!angles) rotated = 0;
    for (int64_t i = 0; i < rotated / 2; i += LANES) {
        f32 first = load_f32(from + i), second = load_f32(from + i + rotated / 2);
        f32 cosine = load_f32(angles + i), sine = load_f32(angles + i + rotated / 2);
        store_bf16(to + i, sub(mul(first, cosine), mul(second, sine)));
        store_bf16(to + i + rotated / 2, add(mul(second, cosine), mul(first, sine)));
    }
    for (int64_t i = rotated; i < d; i += LANES) store_bf16(to + i, load_f32(from + i));
}

typedef struct {
    const float *query_norm, *key_norm;  // (d,), or NULL
    const float *rotary;                 // (window, rotated): cosines, then sines; NULL: no positions
    int64_t rotated;
} Positions;

static void rope_and_store(const float *qkv, const Positions *how, bf16 *keys, bf16 *values, bf16 *queries,
                           const Batch *batch, const AttentionShape *shape, float eps) {
    const int64_t heads = shape->heads, kv_heads = shape->kv_heads, d = shape->d;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < batch->rows; r++) {
        const float *row = qkv + r * (heads + 2 * kv_heads) * d;
        const float *angles = how->rotary ? how->rotary + batch->positions[r] * how->rotated : NULL;
        float normed[MAX_HEAD];
        bf16 rotated[MAX_HEAD];
        for (int64_t h = 0; h < heads; h++) {
            const float *from = row + h * d;
            if (how->query_norm) {
                normalise(from, how->query_norm, normed, d, eps);
                from = normed;
            }
            rotate(from, angles, queries + (r * heads + h) * d, how->rotated, d);
        }
        int64_t block = batch->slots[r] / BLOCK, inside = batch->slots[r] % BLOCK;
        for (int64_t h = 0; h < kv_heads; h++) {
            const float *from = row + (heads + h) * d;
            if (how->key_norm) {
                normalise(from, how->key_norm, normed, d, eps);
                from = normed;
            }
            rotate(from, angles, rotated, how->rotated, d);
            bf16 *key = keys + block_of(block, h, kv_heads, d);
            for (int64_t i = 0; i < d; i += 2) memcpy(key + i * BLOCK + inside * 2, rotated + i, 4);
            from = row + (heads + kv_heads + h) * d;
            for (int64_t i = 0; i < d; i += LANES) store_bf16(rotated + i, load_f32(from + i));
            bf16 *value = values + block_of(block, h, kv_heads, d) + (inside / 2) * d * 2 + inside % 2;
            for (int64_t i = 0; i < d; i++) value[i * 2] = rotated[i];
        }
    }
}

void myna_rope_and_store(const float *qkv, const Positions *how, bf16 *keys, bf16 *values, bf16 *queries,
                         const Batch *batch, const AttentionShape *shape, float eps) {
#pragma omp parallel if (batch->rows >= 16)
    rope_and_store(qkv, how, keys, values, queries, batch, shape, eps);
}

// ------------------------------------------------------------------------------------------------- whole layers

typedef struct {
    Weight qkv, output, gate_up, down;
    Positions positions;
    const float *attention_norm, *mlp_norm;
    const float *attended_norm, *mlp_out_norm;  // norms of what is added to the residual, or NULL
    int64_t window;
    bf16 *keys, *values;
} Layer;

typedef struct {
    int64_t layers, hidden, intermediate, activation;
    float eps;
    AttentionShape attention;
} Shape;

// The rows of a batch that get logits, as sequences of one row each: the last layer needs no others once it has written
// its keys and values.
typedef struct {
    Batch batch;
    Place *places;
    Task *tasks;
    int64_t count;
} LogitRows;

static void *take(char **cursor, int64_t bytes) {
    void *taken = *cursor;
    *cursor += (bytes + 63) / 64 * 64;
    return taken;
}

static int64_t selected_bytes(const Batch *batch, int64_t m) {
    const Batch maximum = {.rows = m, .n = m};
    return m * (batch->width + 2) * 4 + m * (int64_t)sizeof(Place) + count_tasks(&maximum) * (int64_t)myna_task_bytes() + 5 * 64;
}

static LogitRows select_rows(const Batch *batch, const int64_t *rows, int64_t m, const AttentionShape *shape, char **scratch) {
    int32_t *starts = take(scratch, (m + 1) * 4), *lengths = take(scratch, m * 4);
    int32_t *tables = take(scratch, m * batch->width * 4);
    LogitRows selected = {{.starts = starts, .lengths = lengths, .tables = tables, .rows = m, .n = m, .width = batch->width}};
    for (int64_t i = 0, s = 0; i < m; i++) {
        while (batch->starts[s + 1] <= rows[i]) s++;
        starts[i] = (int32_t)i;
        lengths[i] = batch->lengths[s] - (int32_t)(batch->starts[s + 1] - 1 - rows[i]);
        memcpy(tables + i * batch->width, batch->tables + s * batch->width, batch->width * 4);
    }
    starts[m] = (int32_t)m;
    selected.places = take(scratch, m * (int64_t)sizeof(Place));
    selected.tasks = take(scratch, count_tasks(&selected.batch) * (int64_t)myna_task_bytes());
    selected.count = plan_attention(&selected.batch, shape, selected.places, selected.tasks);
    return selected;
}

// Moves some rows of x, ascending, to its front. `size`: bytes of a row. All threads call it.
static void move_to_front(void *x, const int64_t *rows, int64_t m, int64_t size) {
#pragma omp single
    for (int64_t i = 0; i < m; i++) memmove((char *)x + i * size, (char *)x + rows[i] * size, size);
}

// Returns the number of bytes of scratch memory that myna_layers needs.
int64_t myna_scratch(const Shape *shape, const Batch *batch, int64_t m) {
    int64_t q = shape->attention.heads * shape->attention.d, kv = shape->attention.kv_heads * shape->attention.d;
    int64_t widest = shape->hidden > shape->intermediate ? shape->hidden : shape->intermediate;
    if (q > widest) widest = q;
    int64_t row = 2 * (3 * shape->hidden + 4 * q + 4 * kv + 3 * shape->intermediate);
    return batch->rows * row + input_room_bytes(batch->rows, widest) + batch->rows * (int64_t)sizeof(Place) +
           count_tasks(batch) * (int64_t)myna_task_bytes() + selected_bytes(batch, m) + 16 * 64;
}

// Runs all layers over a batch in one parallel region: threads meet at barriers instead of being started for each
// operation. residual (rows, hidden), float32: the embeddings. At the end, its front holds for the m rows `logit_rows`, ascending,
// the residual before the last layer's addition. Returns what that layer adds (m, hidden), in scratch, not yet
// normalised by mlp_out_norm.
float *myna_layers(float *residual, const Layer *layers, const Shape *shape, const Batch *batch, const int64_t *logit_rows,
                  int64_t m, char *scratch, void *state) {
    const Shape dims = *shape;
    int64_t rows = batch->rows;
    const int64_t q = dims.attention.heads * dims.attention.d, kv = dims.attention.kv_heads * dims.attention.d;
    int64_t widest = dims.hidden > dims.intermediate ? dims.hidden : dims.intermediate;
    if (q > widest) widest = q;
    bf16 *normed = take(&scratch, rows * dims.hidden * 2);
    float *delta = take(&scratch, rows * dims.hidden * 4);
    float *qkv = take(&scratch, rows * (q + 2 * kv) * 4);
    bf16 *queries = take(&scratch, rows * q * 2);
    bf16 *attended = take(&scratch, rows * q * 2);
    bf16 *gate_up = take(&scratch, rows * 2 * dims.intermediate * 2);
    bf16 *active = take(&scratch, rows * dims.intermediate * 2);
    InputRoom room = input_room_at(take(&scratch, input_room_bytes(rows, widest)), rows, widest);
    Place *places = take(&scratch, rows * (int64_t)sizeof(Place));
    Task *tasks = take(&scratch, count_tasks(batch) * (int64_t)myna_task_bytes());
    int64_t count = plan_attention(batch, &dims.attention, places, tasks);
    const LogitRows selected = select_rows(batch, logit_rows, m, &dims.attention, &scratch);
#pragma omp parallel num_threads(dims.attention.threads) firstprivate(batch, rows, places, tasks, count)
    {
        for (int64_t l = 0; l < dims.layers; l++) {
            const Layer *w = layers + l;
            add_rms_norm(residual, l ? delta : NULL, l ? w[-1].mlp_out_norm : NULL, w->attention_norm, normed, rows,
                         dims.hidden, dims.eps);
            linear(normed, &w->qkv, &room, qkv, rows, 1);
            rope_and_store(qkv, &w->positions, w->keys, w->values, queries, batch, &dims.attention, dims.eps);
            if (l + 1 == dims.layers && m < rows) {
                move_to_front(queries, logit_rows, m, q * 2);
                move_to_front(residual, logit_rows, m, dims.hidden * 4);
                batch = &selected.batch, rows = m, places = selected.places, tasks = selected.tasks, count = selected.count;
                if (!m) break;
            }
            attention(queries, w->keys, w->values, attended, batch, &dims.attention, w->window, places, tasks, count,
                      state);
            linear(attended, &w->output, &room, delta, rows, 1);
            add_rms_norm(residual, delta, w->attended_norm, w->mlp_norm, normed, rows, dims.hidden, dims.eps);
            linear(normed, &w->gate_up, &room, gate_up, rows, 0);
            gated(gate_up, active, rows, dims.intermediate, (int)dims.activation);
            linear(active, &w->down, &room, delta, rows, 1);
        }
        amx_end();
    }
    return delta;
}

// Returns the instruction set for which these kernels are built.
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

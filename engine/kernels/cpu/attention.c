// Causal attention over block tables. A prefix that several sequences share is read once for all of them.
//
// The work is divided into tasks of up to TASK_ROWS query rows. The rows are neighbours of one sequence, or they belong
// to sequences with no more rows than that which begin with the same blocks. A task goes through the keys segment by
// segment; within a segment, rows with the same blocks are computed together. Every row still takes its own segments in
// order, with a running maximum and sum (Milakov and Gimelshein 2018), so sharing changes no bit of its result.

#define _GNU_SOURCE
#include "kernels.h"
#include "amx.h"
#include <omp.h>
#include <stdlib.h>

#define SEGMENT 8         // KV blocks whose scores are exponentiated at a time
#define TASK_ROWS 16
#define TASKS_PER_THREAD 3
#if PARTS == 1
#define QUERY_TILE 6      // queries that share a load of keys or values
#define KEY_TILE 4        // KV blocks scored at a time
#define VALUE_TILE 4      // registers of the head's elements mixed at a time
#else
#define QUERY_TILE TALL
#define KEY_TILE 1
#define VALUE_TILE 1
#endif
#define UNSEEN -1e30f

typedef struct {
    const factor *query;  // d elements
    bf16 *out;
    int64_t first, visible;  // it sees keys with first <= key < visible
    float top;
    float total[LANES] __attribute__((aligned(64)));
    float sum[MAX_HEAD] __attribute__((aligned(64)));
#ifdef HAS_AMX
    bf16 copy[MAX_HEAD] __attribute__((aligned(64)));  // of the query, at a fixed distance from the next one's
#endif
#ifndef HAS_PAIR_PRODUCTS
    float wide[MAX_HEAD] __attribute__((aligned(64)));
#endif
} Query;

struct Task {
    int32_t sequence;     // rows [begin, begin + count) of this sequence, or, if < 0, those of places[begin …]
    int32_t begin, count;
};

int64_t myna_attention_state(int64_t group) { return sizeof(Query) * TASK_ROWS * group; }

int64_t count_tasks(const Batch *batch) { return batch->rows + 1; }  // upper bound: every task has a row
size_t myna_task_bytes(void) { return sizeof(struct Task); }

// ------------------------------------------------------------------------------------------------------ planning

static int compare_tables(const void *left, const void *right, void *context) {
    const Batch *batch = context;
    int32_t a = ((const Place *)left)->sequence, b = ((const Place *)right)->sequence;
    int64_t blocks = (batch->lengths[a] < batch->lengths[b] ? batch->lengths[a] : batch->lengths[b]) / BLOCK;
    int order = memcmp(batch->tables + a * batch->width, batch->tables + b * batch->width, blocks * 4);
    return order ? order : a - b;
}

static int share_a_segment(const Batch *batch, int32_t a, int32_t b) {
    return a == b || (batch->lengths[a] >= SEGMENT * BLOCK && batch->lengths[b] >= SEGMENT * BLOCK &&
           !memcmp(batch->tables + a * batch->width, batch->tables + b * batch->width, SEGMENT * 4));
}

// Fills `places` (rows) and `tasks` (count_tasks), and returns the number of tasks. The longest come first.
int64_t plan_attention(const Batch *batch, const AttentionShape *shape, Place *places, Task *tasks) {
    int64_t sequences = 0, total = 0, count = 0;
    for (int32_t s = 0; s < batch->n; s++) {
        int64_t rows = batch->starts[s + 1] - batch->starts[s];
        if (rows <= TASK_ROWS) {
            if (rows) places[sequences++].sequence = s;
            total += rows;
            continue;
        }
        for (int64_t cut = (rows - 1) / TASK_ROWS; cut >= 0; cut--) {
            int64_t left = rows - cut * TASK_ROWS;
            tasks[count++] = (Task){s, (int32_t)(cut * TASK_ROWS), (int32_t)(left < TASK_ROWS ? left : TASK_ROWS)};
        }
    }
    qsort_r(places, sequences, sizeof *places, compare_tables, (void *)batch);
    for (int64_t at = total; sequences--;) {  // from the back: each has at least one row
        int32_t s = places[sequences].sequence;
        for (int32_t row = batch->starts[s + 1]; row-- > batch->starts[s];) places[--at] = (Place){s, row};
    }
    int64_t heads = shape->kv_heads, wanted = (TASKS_PER_THREAD * shape->threads + heads - 1) / heads;
    for (int64_t from = 0, to; from < total; from = to) {
        for (to = from + 1; to < total && share_a_segment(batch, places[to - 1].sequence, places[to].sequence); to++) {
        }
        int64_t members = to - from, parts = (members + TASK_ROWS - 1) / TASK_ROWS;
        if (parts < wanted) parts = wanted < members ? wanted : members;
        for (int64_t part = 0; part < parts; part++) {
            int64_t begin = from + members * part / parts, end = from + members * (part + 1) / parts;
            tasks[count++] = (Task){-1, (int32_t)begin, (int32_t)(end - begin)};
        }
    }
    return count;
}

// ------------------------------------------------------------------------------------------------------ computing

// The blocks of a segment for one KV head, and those of the next segment. These are prefetched in software: blocks are
// scattered, so the hardware prefetcher does not find them.
typedef struct {
    const bf16 *key[SEGMENT], *value[SEGMENT];
    const bf16 *next_key[SEGMENT], *next_value[SEGMENT];
} Segment;

// Scores of one query from its products with the keys of the block at position `at`: base-2 exponents, `UNSEEN` for the
// positions that the query does not see.
INLINE f32 score_of(const Query *q, f32 products, int64_t at, float scale, float softcap) {
    int64_t seen = q->visible - at;
    f32 score = mul(products, splat(scale));
    if (softcap != 0.0f) score = mul(tanh_f32(divide(score, splat(softcap * LOG2_E))), splat(softcap * LOG2_E));
    if (seen < BLOCK) score = keep_first(score, seen, UNSEEN);
    if (q->first > at) score = drop_first(score, q->first - at, UNSEEN);
    return score;
}

// Scores of `count` queries against `blocks` blocks of keys, scaled to base-2 exponents.
INLINE void score(const int count, const int fetch, Query *q, const Segment *segment, int blocks, int64_t begin,
                  const int64_t d, float scale, float softcap, float (*scores)[SEGMENT * BLOCK]) {
    for (int b = 0; b < blocks; b += KEY_TILE) {
        const int now = blocks - b < KEY_TILE ? blocks - b : KEY_TILE;
        const bf16 *from[KEY_TILE], *next[KEY_TILE];
#pragma GCC unroll 4
        for (int j = 0; j < KEY_TILE; j++) {
            from[j] = segment->key[j < now ? b + j : b];
            next[j] = segment->next_key[j < now ? b + j : b];
        }
        f32 s[QUERY_TILE][KEY_TILE];
#pragma GCC unroll 6
        for (int i = 0; i < count; i++)
#pragma GCC unroll 4
            for (int j = 0; j < KEY_TILE; j++) s[i][j] = splat(0.0f);
        for (int64_t e = 0; e < d / 2; e++)
#pragma GCC unroll 2
            for (int step = 0; step < STEPS; step++) {
                operand column[KEY_TILE];
#pragma GCC unroll 4
                for (int j = 0; j < KEY_TILE; j++) {
                    column[j] = operand_at(from[j] + e * BLOCK * 2, step);
                    if (fetch && !step) prefetch_far(next[j] + e * BLOCK * 2);
                }
#pragma GCC unroll 6
                for (int i = 0; i < count; i++) {
                    operand value = splat_factor(q[i].query + e * 2, step);
#pragma GCC unroll 4
                    for (int j = 0; j < KEY_TILE; j++) s[i][j] = dot(s[i][j], column[j], value);
                }
                end_step();
            }
#pragma GCC unroll 6
        for (int i = 0; i < count; i++)
#pragma GCC unroll 4
            for (int j = 0; j < KEY_TILE; j++) {
                if (j >= now) break;
                f32 value = score_of(q + i, s[i][j], begin + (b + j) * BLOCK, scale, softcap);
                store_f32(scores[i] + (b + j) * BLOCK, value);
            }
    }
}

// Updates the maximum of a query with the scores in `top`. Returns the factor of the sums before it.
INLINE float raise_top(Query *q, f32 top) {
    float highest = largest_of(top), shrink = 1.0f;
    if (highest > q->top) {
        shrink = exp2f(q->top - highest);
        q->top = highest;
    }
    return shrink;
}

// Turns scores into weights, and updates maximum and sum. Returns the factor of the previous sums.
INLINE float soften(Query *q, const float *scores, int blocks, factor *weights) {
    f32 top = load_f32(scores);  // there is at least one block
    for (int b = 1; b < blocks; b++) top = larger(top, load_f32(scores + b * BLOCK));
    const float shrink = raise_top(q, top);
    f32 shift = splat(q->top), total = mul(load_f32(q->total), splat(shrink));
    for (int b = 0; b < blocks; b++) {
        f32 value = exp2_rough(sub(load_f32(scores + b * BLOCK), shift));
        total = add(total, value);
        store_factors(weights + b * BLOCK, value);
    }
    store_f32(q->total, total);
    return shrink;
}

// sums = sums * shrink + weights * values, `registers` x 16 elements of the head
INLINE void mix(const int count, const int registers, const int fetch, Query *q, const Segment *segment, int blocks,
                int64_t element, const int64_t d, const float *shrink, factor (*weights)[SEGMENT * BLOCK]) {
    f32 sum[QUERY_TILE][VALUE_TILE];
#pragma GCC unroll 6
    for (int i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int j = 0; j < registers; j++)
            sum[i][j] = mul(load_f32(q[i].sum + element + j * LANES), splat(shrink[i]));
    for (int b = 0; b < blocks; b++)
        for (int t = 0; t < BLOCK / 2; t++)
#pragma GCC unroll 2
            for (int step = 0; step < STEPS; step++) {
                operand column[VALUE_TILE];
#pragma GCC unroll 4
                for (int j = 0; j < registers; j++) {
                    column[j] = operand_at(segment->value[b] + t * d * 2 + (element + j * LANES) * 2, step);
                    if (fetch && !step) prefetch_far(segment->next_value[b] + t * d * 2 + (element + j * LANES) * 2);
                }
#pragma GCC unroll 6
                for (int i = 0; i < count; i++) {
                    operand weight = splat_factor(weights[i] + b * BLOCK + t * 2, step);
#pragma GCC unroll 4
                    for (int j = 0; j < registers; j++) sum[i][j] = dot(sum[i][j], column[j], weight);
                }
                end_step();
            }
#pragma GCC unroll 6
    for (int i = 0; i < count; i++)
#pragma GCC unroll 4
        for (int j = 0; j < registers; j++) store_f32(q[i].sum + element + j * LANES, sum[i][j]);
}

INLINE void attend(const int count, const int fetch, Query *q, const Segment *segment, int blocks, int64_t begin,
                   const int64_t d, float scale, float softcap) {
    float scores[QUERY_TILE][SEGMENT * BLOCK] __attribute__((aligned(64)));  // of `blocks`, at least 1
    factor weights[QUERY_TILE][SEGMENT * BLOCK] __attribute__((aligned(64)));
    float shrink[QUERY_TILE];
    score(count, fetch, q, segment, blocks, begin, d, scale, softcap, scores);
    for (int i = 0; i < count; i++) shrink[i] = soften(q + i, scores[i], blocks, weights[i]);
    const int few = VALUE_TILE < 2 ? VALUE_TILE : 2;  // heads are multiples of 32
    int64_t element = 0;
    for (; element + VALUE_TILE * LANES <= d; element += VALUE_TILE * LANES)
        mix(count, VALUE_TILE, fetch, q, segment, blocks, element, d, shrink, weights);
    for (; element + few * LANES <= d; element += few * LANES)
        mix(count, few, fetch, q, segment, blocks, element, d, shrink, weights);
}

#define ATTEND(COUNT) \
    case COUNT: \
        if (COUNT > QUERY_TILE) break; \
        if (fetch) attend(COUNT <= QUERY_TILE ? COUNT : 1, 1, q, segment, blocks, begin, d, scale, softcap); \
        else attend(COUNT <= QUERY_TILE ? COUNT : 1, 0, q, segment, blocks, begin, d, scale, softcap); \
        break;

static void attend_any(int count, int fetch, Query *q, const Segment *segment, int blocks, int64_t begin, int64_t d,
                       float scale, float softcap) {
    switch (count) { ATTEND(1) ATTEND(2) ATTEND(3) ATTEND(4) ATTEND(5) ATTEND(6) }
}

#ifdef HAS_AMX
// --------------------------------------------------------------------------------------------------- matrix tiles

#define TILE_QUERIES 16

// Copies the values of a segment's blocks one after another: a tile of 32 keys takes two of them.
static void join_values(const Segment *segment, int blocks, const int64_t d, bf16 *to) {
    for (int b = 0; b < blocks; b++) memcpy(to + b * BLOCK * d, segment->value[b], BLOCK * d * 2);
    // the weights of a missing second block are zero, and zero times garbage may be NaN
    if (blocks % 2) memset(to + blocks * BLOCK * d, 0, BLOCK * d * 2);
}

// The instructions take tile numbers only as literals, here the sum J and the tile B for keys or values.
#define SCORE_TILE(J, B) \
    if (J < now) { \
        tile_loadd(B, segment->key[b + J] + e * BLOCK, BLOCK * 4); \
        tile_dpbf16ps(J, 4, B); \
    }
#define STORE_SCORES(J) if (J < now) tile_stored(J, scores[0] + (b + J) * BLOCK, sizeof scores[0]);

// Products of the queries of a tile with the keys of `blocks` blocks, not scaled.
static void score_tiles(Query *q, const Segment *segment, int blocks, const int64_t d,
                        float (*scores)[SEGMENT * BLOCK]) {
    for (int b = 0; b < blocks; b += 4) {
        const int now = blocks - b < 4 ? blocks - b : 4;
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
        for (int64_t e = 0; e < d; e += 32) {
            tile_loadd(4, q->copy + e, sizeof(Query));
            SCORE_TILE(0, 6) SCORE_TILE(1, 7) SCORE_TILE(2, 6) SCORE_TILE(3, 7)
        }
        STORE_SCORES(0) STORE_SCORES(1) STORE_SCORES(2) STORE_SCORES(3)
    }
}

// Turns products into weights, and updates maximum and sum of a query, as `score` and `soften` do together.
INLINE float soften_products(Query *q, float *scores, int blocks, int64_t begin, float scale, float softcap,
                             bf16 *weights) {
    f32 top = splat(UNSEEN);
    for (int b = 0; b < blocks; b++) {
        f32 value = score_of(q, load_f32(scores + b * BLOCK), begin + b * BLOCK, scale, softcap);
        store_f32(scores + b * BLOCK, value);
        top = larger(top, value);
    }
    const float shrink = raise_top(q, top);
    f32 shift = splat(q->top), total = mul(load_f32(q->total), splat(shrink));
    for (int b = 0; b < blocks; b++) {
        f32 value = exp2_rough(sub(load_f32(scores + b * BLOCK), shift));
        total = add(total, value);
        store_bf16(weights + b * BLOCK, value);
    }
    if (blocks % 2) memset(weights + blocks * BLOCK, 0, BLOCK * 2);
    store_f32(q->total, total);
    return shrink;
}

#define LOAD_SUM(J) if (J < now) tile_loadd(J, q->sum + element + J * LANES, sizeof(Query));
#define MIX_TILE(J, B) \
    if (J < now) { \
        tile_loadd(B, values + t * 2 * BLOCK * d + (element + J * LANES) * 2, d * 4); \
        tile_dpbf16ps(J, 4, B); \
    }
#define STORE_SUM(J) if (J < now) tile_stored(J, q->sum + element + J * LANES, sizeof(Query));

// sums += weights * values
static void mix_tiles(Query *q, const bf16 *values, int blocks, const int64_t d,
                      bf16 (*weights)[SEGMENT * BLOCK]) {
    for (int64_t element = 0; element < d; element += 4 * LANES) {
        const int now = d - element < 4 * LANES ? (int)((d - element) / LANES) : 4;
        LOAD_SUM(0) LOAD_SUM(1) LOAD_SUM(2) LOAD_SUM(3)
        for (int t = 0; t < (blocks + 1) / 2; t++) {
            tile_loadd(4, weights[0] + t * 2 * BLOCK, sizeof weights[0]);
            MIX_TILE(0, 6) MIX_TILE(1, 7) MIX_TILE(2, 6) MIX_TILE(3, 7)
        }
        STORE_SUM(0) STORE_SUM(1) STORE_SUM(2) STORE_SUM(3)
    }
}

static int tile_queries(int64_t queries, int64_t first) {
    return queries - first < TILE_QUERIES ? (int)(queries - first) : TILE_QUERIES;
}

static void configure_for(int queries, int *configured) {
    if (queries != *configured) amx_configure(*configured = queries, queries);
}

// Computes a segment for `queries` queries. Before the vector units turn the products of some queries into weights, the
// tiles of the next queries are issued, so that both units work at the same time.
static void attend_tiles(int64_t queries, Query *q, const Segment *segment, const bf16 *values, int blocks, int64_t begin,
                         int64_t d, float scale, float softcap, int *configured) {
    float scores[2][TILE_QUERIES][SEGMENT * BLOCK] __attribute__((aligned(64)));
    bf16 weights[TILE_QUERIES][SEGMENT * BLOCK] __attribute__((aligned(64)));
    configure_for(tile_queries(queries, 0), configured);
    score_tiles(q, segment, blocks, d, scores[0]);
    for (int64_t i = 0, turn = 0; i < queries; i += TILE_QUERIES, turn ^= 1) {
        const int count = tile_queries(queries, i);
        const int64_t next = i + TILE_QUERIES;
        if (next < queries) {
            configure_for(tile_queries(queries, next), configured);
            score_tiles(q + next, segment, blocks, d, scores[turn ^ 1]);
        }
        for (int64_t j = i; j < i + count; j++) {
            float shrink = soften_products(q + j, scores[turn][j - i], blocks, begin, scale, softcap, weights[j - i]);
            if (shrink != 1.0f)
                for (int64_t e = 0; e < d; e += LANES) store_f32(q[j].sum + e, mul(load_f32(q[j].sum + e), splat(shrink)));
        }
        configure_for(count, configured);
        mix_tiles(q + i, values, blocks, d, weights);
    }
}

static void prefetch_next(const Segment *segment, int blocks, int64_t d) {
    for (int b = 0; b < blocks; b++)
        for (int64_t at = 0; at < BLOCK * d; at += 32) {
            prefetch_far(segment->next_key[b] + at);
            prefetch_far(segment->next_value[b] + at);
        }
}
#endif

// -------------------------------------------------------------------------------------------------------- tasks

typedef struct {
    const int32_t *table;
    int64_t row, first, visible;
} Row;

// Returns the number of blocks of the segment at `begin` that a row needs; 0 if it sees no key there.
INLINE int needed(const Row *row, int64_t begin) {
    if (row->visible <= begin || row->first >= begin + SEGMENT * BLOCK) return 0;
    int64_t blocks = (row->visible - begin + BLOCK - 1) / BLOCK;
    return blocks < SEGMENT ? (int)blocks : SEGMENT;
}

// Computes a task's rows for the query heads that share one KV head.
static void run_task(const bf16 *queries, const bf16 *keys, const bf16 *values, bf16 *out, const Row *rows, int count,
                     int64_t kv_head, const AttentionShape *shape, Query *state) {
    const int64_t d = shape->d, kv_heads = shape->kv_heads, group = shape->heads / kv_heads;
#ifdef HAS_AMX
    const int tiles = amx_permitted();
    int configured = 0;
    bf16 joined[SEGMENT * BLOCK * MAX_HEAD] __attribute__((aligned(64)));
#endif
    int64_t from = rows[0].first, to = 0;
    for (int r = 0; r < count; r++) {
        if (rows[r].first < from) from = rows[r].first;
        if (rows[r].visible > to) to = rows[r].visible;
        for (int64_t h = 0; h < group; h++) {
            int64_t place = (rows[r].row * shape->heads + kv_head * group + h) * d;
            Query *q = state + r * group + h;
#ifdef HAS_PAIR_PRODUCTS
            q->query = queries + place;
#else
            q->query = factors(queries + place, q->wide, d);
#endif
#ifdef HAS_AMX
            if (tiles) memcpy(q->copy, queries + place, d * 2);
#endif
            q->out = out + place;
            q->first = rows[r].first;
            q->visible = rows[r].visible;
            q->top = UNSEEN;
            memset(q->total, 0, sizeof q->total);
            memset(q->sum, 0, d * 4);
        }
    }
    // Segments begin at multiples of their length from the start of the sequence, for every row alike.
    for (int64_t begin = from / (SEGMENT * BLOCK) * (SEGMENT * BLOCK); begin < to; begin += SEGMENT * BLOCK) {
        for (int r = 0, end; r < count; r = end) {
            const int32_t *table = rows[r].table + begin / BLOCK;
            int blocks = needed(rows + r, begin);
            for (end = r + 1; end < count && needed(rows + end, begin) == blocks; end++) {
                const int32_t *other = rows[end].table + begin / BLOCK;
                if (other != table && memcmp(other, table, blocks * 4)) break;
            }
            if (!blocks) continue;
            Segment segment;
            int64_t after = (rows[r].visible - begin + BLOCK - 1) / BLOCK;  // blocks from here to the row's end
            for (int b = 0; b < blocks; b++) {
                int64_t at = block_of(table[b], kv_head, kv_heads, d);
                int64_t next = b + SEGMENT < after ? block_of(table[b + SEGMENT], kv_head, kv_heads, d) : at;
                segment.key[b] = keys + at, segment.value[b] = values + at;
                segment.next_key[b] = keys + next, segment.next_value[b] = values + next;
            }
#ifdef HAS_AMX
            if (tiles) {
                prefetch_next(&segment, blocks, d);
                join_values(&segment, blocks, d, joined);
                attend_tiles((end - r) * group, state + r * group, &segment, joined, blocks, begin, d,
                             shape->scale * LOG2_E, shape->softcap, &configured);
                continue;
            }
#endif
            for (int64_t i = r * group; i < end * group; i += QUERY_TILE) {
                int64_t left = end * group - i;
                attend_any(left < QUERY_TILE ? (int)left : QUERY_TILE, i == r * group, state + i, &segment, blocks,
                           begin, d, shape->scale * LOG2_E, shape->softcap);
            }
        }
    }
    for (int64_t i = 0; i < count * group; i++) {
        f32 scale = splat(1.0f / sum_of(load_f32(state[i].total)));
        for (int64_t e = 0; e < d; e += LANES)
            store_bf16(state[i].out + e, mul(load_f32(state[i].sum + e), scale));
    }
}

// `window`: maximum number of keys that a row sees, 0 for all. `state`: threads * myna_attention_state bytes.
void attention(const bf16 *queries, const bf16 *keys, const bf16 *values, bf16 *out, const Batch *batch,
               const AttentionShape *shape, int64_t window, const Place *places, const Task *tasks, int64_t count,
               void *state) {
    const int64_t group = shape->heads / shape->kv_heads;
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < count * shape->kv_heads; t++) {
        const Task *task = tasks + t / shape->kv_heads;
        Row rows[TASK_ROWS];
        for (int r = 0; r < task->count; r++) {
            const Place place = task->sequence < 0
                                    ? places[task->begin + r]
                                    : (Place){task->sequence, batch->starts[task->sequence] + task->begin + r};
            const int64_t s = place.sequence, row = place.row;
            int64_t visible = batch->lengths[s] - (batch->starts[s + 1] - 1 - row);
            int64_t first = window && visible > window ? visible - window : 0;
            rows[r] = (Row){batch->tables + s * batch->width, row, first, visible};
        }
        run_task(queries, keys, values, out, rows, task->count, t % shape->kv_heads, shape,
                 (Query *)((char *)state + omp_get_thread_num() * myna_attention_state(group)));
    }
}

void myna_attention(const bf16 *queries, const bf16 *keys, const bf16 *values, bf16 *out, const Batch *batch,
                    const AttentionShape *shape, int64_t window, void *state) {
    Place *places = malloc((batch->rows + 1) * sizeof *places);
    Task *tasks = malloc(count_tasks(batch) * sizeof *tasks);
    int64_t count = plan_attention(batch, shape, places, tasks);
#pragma omp parallel num_threads(shape->threads)
    {
        attention(queries, keys, values, out, batch, shape, window, places, tasks, count, state);
        amx_end();
    }
    free(places);
    free(tasks);
}

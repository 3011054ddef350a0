// Logits to tokens without a full sort: candidates are counted into buckets by how far they are below the likeliest,
// and only the bucket at the border is ever sorted. The same results as engine/kernels/sampling.py to rounding.

#include "kernels.h"
#include <omp.h>
#include <stdlib.h>

#define BUCKETS 1024
#define BUCKETS_PER_NAT 16.0f
#define CHUNK 256         // weights summed at a time when one is drawn from all

// REQUEST in engine/kernels/base.py
typedef struct {
    float temperature, top_p, min_p;
    int32_t top_k, top_logprobs;
    double uniform;
} Request;

typedef struct {
    float logit;
    int32_t token;
} Candidate;

// One thread's room for a row.
typedef struct {
    float *weights;
    int32_t *buckets;
    Candidate *candidates;
} Room;

static int64_t room_bytes(int64_t vocabulary) { return (vocabulary + LANES) * 16; }

int64_t myna_choose_room(int64_t vocabulary) { return omp_get_max_threads() * room_bytes(vocabulary); }

// The largest value; NaN if there is one.
static float largest(const float *row, int64_t count) {
    f32 top = splat(-INFINITY);
    i32 bad = splat_i32(0);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        f32 value = load_f32(row + i);
        EACH_PART bad.p[part] |= (i32_part)(value.p[part] != value.p[part]);
        top = larger(top, value);
    }
    int32_t flags[LANES], any = 0;
    memcpy(flags, &bad, sizeof flags);
    for (int lane = 0; lane < LANES; lane++) any |= flags[lane];
    float most = largest_of(top);
    for (; i < count; i++) {
        any |= row[i] != row[i];
        if (row[i] > most) most = row[i];
    }
    return any ? NAN : most;
}

static int32_t first_equal(const float *row, int64_t count, float value) {
    int64_t i = 0;
    for (; i + CHUNK <= count; i += CHUNK) {
        i32 hit = splat_i32(0);
        for (int64_t j = i; j < i + CHUNK; j += LANES) {
            f32 x = load_f32(row + j);
            EACH_PART hit.p[part] |= (i32_part)(x.p[part] == value);
        }
        int32_t flags[LANES], any = 0;
        memcpy(flags, &hit, sizeof flags);
        for (int lane = 0; lane < LANES; lane++) any |= flags[lane];
        if (any) break;
    }
    for (; i < count; i++)
        if (row[i] == value) return (int32_t)i;
    return 0;
}

// weights = exp((row - top) / temperature), their sums by CHUNK in order; returns the whole sum
static double weigh(const float *row, int64_t count, float top, float temperature, float *weights) {
    const f32 shift = splat(top), factor = splat(LOG2_E / temperature);
    double total = 0;
    for (int64_t from = 0; from < count; from += CHUNK) {
        f32 sum = splat(0.0f);
        int64_t to = from + CHUNK < count ? from + CHUNK : count, i = from;
        for (; i + LANES <= to; i += LANES) {
            f32 weight = exp2_f32(larger(splat(-1000.0f), mul(sub(load_f32(row + i), shift), factor)));
            store_f32(weights + i, weight);
            sum = add(sum, weight);
        }
        double chunk = sum_of(sum);
        for (; i < to; i++) chunk += weights[i] = exp2f((row[i] - top) * (LOG2_E / temperature));
        total += chunk;
    }
    return total;
}

// The token at which the running sum of weights passes `uniform` of the whole.
static int32_t pick_from_all(const float *weights, int64_t count, double total, double uniform) {
    double target = uniform * total, before = 0;
    int32_t last = 0;
    for (int64_t from = 0; from < count; from += CHUNK) {
        int64_t to = from + CHUNK < count ? from + CHUNK : count;
        double inside = 0;
        for (int64_t i = from; i < to; i++) inside += weights[i];
        if (before + inside > target)
            for (int64_t i = from; i < to; i++) {
                if (weights[i] > 0) last = (int32_t)i;
                if ((before += weights[i]) > target && weights[i] > 0) return (int32_t)i;
            }
        else before += inside;
        for (int64_t i = to - 1; i >= from && inside > 0; i--)
            if (weights[i] > 0) { last = (int32_t)i; break; }
    }
    return last;  // rounding led past the end
}

static int likelier(const void *left, const void *right) {
    const Candidate *a = left, *b = right;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->token - b->token;
}

static int in_order(const void *left, const void *right) {
    return ((const Candidate *)left)->token - ((const Candidate *)right)->token;
}

// The candidates that min_p, then top_k, then top_p leave, in vocabulary order.
static int64_t shortlist(const float *row, int64_t count, float top, const Request *request, Room *room) {
    const float steepness = BUCKETS_PER_NAT / request->temperature;
    int64_t counts[BUCKETS] = {0};
    double mass[BUCKETS] = {0};
    int64_t remaining = 0;
    for (int64_t i = 0; i < count; i++) {
        float depth = (top - row[i]) * steepness;
        room->buckets[i] = depth < BUCKETS - 1 ? (int32_t)depth : BUCKETS - 1;
    }
    for (int64_t i = 0; i < count; i++) {
        if (room->weights[i] < request->min_p || room->weights[i] == 0) {
            room->buckets[i] = BUCKETS;  // out
            continue;
        }
        counts[room->buckets[i]]++;
        mass[room->buckets[i]] += room->weights[i];
        remaining++;
    }
    const int by_count = request->top_k > 0 && request->top_k < remaining;
    int border = BUCKETS - 1;
    int64_t above = 0;
    double held = 0, target = 0;
    if (by_count) {
        for (border = 0; above + counts[border] < request->top_k; border++) above += counts[border];
    } else if (request->top_p < 1) {
        for (int b = 0; b < BUCKETS; b++) target += mass[b];
        target *= request->top_p;
        for (border = 0; border < BUCKETS - 1 && held + mass[border] < target; border++) held += mass[border];
    }
    // What lies above the border stays; what lies in its bucket is sorted and cut.
    Candidate *all = room->candidates;
    int64_t sure = 0, inside = 0;
    for (int64_t i = 0; i < count; i++) sure += room->buckets[i] < border;
    int64_t at = 0;
    for (int64_t i = 0; i < count; i++) {
        if (room->buckets[i] < border) all[at++] = (Candidate){row[i], (int32_t)i};
        else if (room->buckets[i] == border) all[sure + inside++] = (Candidate){row[i], (int32_t)i};
    }
    int64_t kept = sure + inside;
    if (by_count || request->top_p < 1) qsort(all + sure, inside, sizeof *all, likelier);
    if (by_count) kept = request->top_k;
    if (by_count && request->top_p < 1) {
        qsort(all, kept, sizeof *all, likelier);
        for (int64_t i = 0; i < kept; i++) target += room->weights[all[i].token];
        target *= request->top_p;
        double running = 0;
        int64_t i = 0;
        while (i < kept && (running += room->weights[all[i++].token]) < target) {}
        kept = i;
    } else if (request->top_p < 1) {
        int64_t i = sure;
        while (i < kept && (held += room->weights[all[i++].token]) < target) {}
        kept = i;
    }
    qsort(all, kept, sizeof *all, in_order);
    return kept;
}

static int32_t draw(const float *row, int64_t count, float top, const Request *request, Room *room) {
    double total = weigh(row, count, top, request->temperature, room->weights);
    if (request->top_k <= 0 && request->top_p >= 1 && request->min_p <= 0)
        return pick_from_all(room->weights, count, total, request->uniform);
    int64_t kept = shortlist(row, count, top, request, room);
    total = 0;
    for (int64_t i = 0; i < kept; i++) total += room->weights[room->candidates[i].token];
    double target = request->uniform * total, running = 0;
    for (int64_t i = 0; i < kept; i++)
        if ((running += room->weights[room->candidates[i].token]) > target) return room->candidates[i].token;
    return room->candidates[kept - 1].token;
}

// The `wanted` likeliest, first the likeliest; ties go to the smaller token.
static void best(const float *row, int64_t count, int wanted, Candidate *found) {
    int held = 0;
    for (int64_t i = 0; i < count; i++) {
        if (held == wanted && row[i] <= found[held - 1].logit) continue;
        int at = held < wanted ? held++ : held - 1;
        while (at > 0 && found[at - 1].logit < row[i]) {
            found[at] = found[at - 1];
            at--;
        }
        found[at] = (Candidate){row[i], (int32_t)i};
    }
}

// logits (rows, vocabulary), changed where `ids` and `values` of [starts[row], starts[row + 1]) say so.
// tokens (rows): -1 for a row with NaN. logprobs (rows) and top_ids, top_logprobs (rows, width): of the logits before
// the changes, for requests that ask.
void myna_choose(float *logits, int64_t rows, int64_t vocabulary, const Request *requests, const int32_t *starts,
                 const int32_t *ids, const float *values, int32_t *tokens, float *logprobs, int32_t *top_ids,
                 float *top_logprobs, int64_t width, char *rooms) {
    int64_t padded = vocabulary + LANES;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t r = 0; r < rows; r++) {
        const Request *request = requests + r;
        float *row = logits + r * vocabulary;
        char *own = rooms + omp_get_thread_num() * room_bytes(vocabulary);
        Room room = {(float *)own, (int32_t *)(own + padded * 4), (Candidate *)(own + padded * 8)};
        float top = largest(row, vocabulary), logged = top, normaliser = 0;
        tokens[r] = -1;
        if (top != top) continue;
        if (request->top_logprobs >= 0) {
            normaliser = (float)log(weigh(row, vocabulary, top, 1.0f, room.weights));
            best(row, vocabulary, request->top_logprobs, room.candidates);
            for (int i = 0; i < request->top_logprobs; i++) {
                top_ids[r * width + i] = room.candidates[i].token;
                top_logprobs[r * width + i] = room.candidates[i].logit - top - normaliser;
            }
        }
        float before[starts[r + 1] - starts[r] + 1];
        for (int32_t i = starts[r]; i < starts[r + 1]; i++) {
            before[i - starts[r]] = row[ids[i]];
            row[ids[i]] = values[i];
        }
        if (starts[r] < starts[r + 1]) top = largest(row, vocabulary);
        if (top != top || top == -INFINITY) continue;
        tokens[r] = request->temperature > 0 ? draw(row, vocabulary, top, request, &room)
                                             : first_equal(row, vocabulary, top);
        if (request->top_logprobs >= 0) {
            float logit = row[tokens[r]];
            for (int32_t i = starts[r]; i < starts[r + 1]; i++)
                if (ids[i] == tokens[r]) logit = before[i - starts[r]];
            logprobs[r] = logit - logged - normaliser;
        }
    }
}

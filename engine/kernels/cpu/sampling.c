// Sampling without a full sort: candidates are counted into buckets by their distance from the largest logit, and only
// the bucket at the border is ever sorted. The results equal those of engine/kernels/sampling.py up to rounding.

#include "kernels.h"
#include <omp.h>
#include <stdlib.h>

#define BUCKETS 1024
#define BUCKETS_PER_NAT 16.0f
#define CHUNK 256         // weights summed at a time when a token is drawn from all

// Mirrors REQUEST in engine/kernels/base.py.
typedef struct {
    float temperature, top_p, min_p;
    int32_t top_k, top_logprobs;
    double uniform;
} Request;

typedef struct {
    float logit;
    int32_t token;
} Candidate;

// Scratch memory of one thread for a row.
typedef struct {
    float *weights;
    int32_t *buckets;
    Candidate *candidates;
} Scratch;

static int64_t scratch_bytes(int64_t vocabulary) { return (vocabulary + LANES) * 16; }

int64_t myna_sample_scratch(int64_t vocabulary) { return omp_get_max_threads() * scratch_bytes(vocabulary); }

// Returns the largest value; NaN if there is one.
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

// weights = exp((row - top) / temperature) and their sums by CHUNK, in order. Returns the total.
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

// Returns the token at which the running sum of weights exceeds `uniform` of the total.
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

// Finds the candidates that min_p, then top_k, then top_p leave, in vocabulary order.
static int64_t shortlist(const float *row, int64_t count, float top, const Request *request, Scratch *scratch) {
    const float steepness = BUCKETS_PER_NAT / request->temperature;
    int64_t counts[BUCKETS] = {0};
    double mass[BUCKETS] = {0};
    int64_t remaining = 0;
    for (int64_t i = 0; i < count; i++) {
        float depth = (top - row[i]) * steepness;
        scratch->buckets[i] = depth < BUCKETS - 1 ? (int32_t)depth : BUCKETS - 1;
    }
    for (int64_t i = 0; i < count; i++) {
        if (scratch->weights[i] < request->min_p || scratch->weights[i] == 0) {
            scratch->buckets[i] = BUCKETS;  // excluded
            continue;
        }
        counts[scratch->buckets[i]]++;
        mass[scratch->buckets[i]] += scratch->weights[i];
        remaining++;
    }
    const int by_count = request->top_k > 0 && request->top_k < remaining;
    int border = BUCKETS - 1;
    int64_t above = 0;
    double mass_above = 0, target = 0;
    if (by_count) {
        for (border = 0; above + counts[border] < request->top_k; border++) above += counts[border];
    } else if (request->top_p < 1) {
        for (int b = 0; b < BUCKETS; b++) target += mass[b];
        target *= request->top_p;
        for (border = 0; border < BUCKETS - 1 && mass_above + mass[border] < target; border++) mass_above += mass[border];
    }
    // Candidates above the border stay; those in its bucket are sorted and cut.
    Candidate *all = scratch->candidates;
    int64_t certain = 0, inside = 0;
    for (int64_t i = 0; i < count; i++) certain += scratch->buckets[i] < border;
    int64_t place = 0;
    for (int64_t i = 0; i < count; i++) {
        if (scratch->buckets[i] < border) all[place++] = (Candidate){row[i], (int32_t)i};
        else if (scratch->buckets[i] == border) all[certain + inside++] = (Candidate){row[i], (int32_t)i};
    }
    int64_t kept = certain + inside;
    if (by_count || request->top_p < 1) qsort(all + certain, inside, sizeof *all, likelier);
    if (by_count) kept = request->top_k;
    if (by_count && request->top_p < 1) {
        qsort(all, kept, sizeof *all, likelier);
        for (int64_t i = 0; i < kept; i++) target += scratch->weights[all[i].token];
        target *= request->top_p;
        double running = 0;
        int64_t i = 0;
        while (i < kept && (running += scratch->weights[all[i++].token]) < target) {}
        kept = i;
    } else if (request->top_p < 1) {
        int64_t i = certain;
        while (i < kept && (mass_above += scratch->weights[all[i++].token]) < target) {}
        kept = i;
    }
    qsort(all, kept, sizeof *all, in_order);
    return kept;
}

static int32_t draw(const float *row, int64_t count, float top, const Request *request, Scratch *scratch) {
    double total = weigh(row, count, top, request->temperature, scratch->weights);
    if (request->top_k <= 0 && request->top_p >= 1 && request->min_p <= 0)
        return pick_from_all(scratch->weights, count, total, request->uniform);
    int64_t kept = shortlist(row, count, top, request, scratch);
    total = 0;
    for (int64_t i = 0; i < kept; i++) total += scratch->weights[scratch->candidates[i].token];
    double target = request->uniform * total, running = 0;
    for (int64_t i = 0; i < kept; i++)
        if ((running += scratch->weights[scratch->candidates[i].token]) > target) return scratch->candidates[i].token;
    return scratch->candidates[kept - 1].token;
}

// Finds the `limit` most likely tokens, in order of likelihood; ties go to the smaller token.
static void best(const float *row, int64_t count, int limit, Candidate *found) {
    int size = 0;
    for (int64_t i = 0; i < count; i++) {
        if (size == limit && row[i] <= found[size - 1].logit) continue;
        int place = size < limit ? size++ : size - 1;
        while (place > 0 && found[place - 1].logit < row[i]) {
            found[place] = found[place - 1];
            place--;
        }
        found[place] = (Candidate){row[i], (int32_t)i};
    }
}

// logits (rows, vocabulary), changed where `ids` and `values` of [starts[row], starts[row + 1]) say so. tokens (rows):
// -1 for a row with NaN. logprobs (rows) and top_ids, top_logprobs (rows, width): from the logits before the changes,
// for requests that ask for them.
void myna_sample(float *logits, int64_t rows, int64_t vocabulary, const Request *requests, const int32_t *starts,
                 const int32_t *ids, const float *values, int32_t *tokens, float *logprobs, int32_t *top_ids,
                 float *top_logprobs, int64_t width, char *scratches) {
    int64_t padded = vocabulary + LANES;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t r = 0; r < rows; r++) {
        const Request *request = requests + r;
        float *row = logits + r * vocabulary;
        char *own = scratches + omp_get_thread_num() * scratch_bytes(vocabulary);
        Scratch scratch = {(float *)own, (int32_t *)(own + padded * 4), (Candidate *)(own + padded * 8)};
        float top = largest(row, vocabulary), logged = top, normaliser = 0;
        tokens[r] = -1;
        if (top != top) continue;
        if (request->top_logprobs >= 0) {
            normaliser = (float)log(weigh(row, vocabulary, top, 1.0f, scratch.weights));
            best(row, vocabulary, request->top_logprobs, scratch.candidates);
            for (int i = 0; i < request->top_logprobs; i++) {
                top_ids[r * width + i] = scratch.candidates[i].token;
                top_logprobs[r * width + i] = scratch.candidates[i].logit - top - normaliser;
            }
        }
        float before[starts[r + 1] - starts[r] + 1];
        for (int32_t i = starts[r]; i < starts[r + 1]; i++) {
            before[i - starts[r]] = row[ids[i]];
            row[ids[i]] = values[i];
        }
        if (starts[r] < starts[r + 1]) top = largest(row, vocabulary);
        if (top != top || top == -INFINITY) continue;
        tokens[r] = request->temperature > 0 ? draw(row, vocabulary, top, request, &scratch)
                                             : first_equal(row, vocabulary, top);
        if (request->top_logprobs >= 0) {
            float logit = row[tokens[r]];
            for (int32_t i = starts[r]; i < starts[r + 1]; i++)
                if (ids[i] == tokens[r]) logit = before[i - starts[r]];
            logprobs[r] = logit - logged - normaliser;
        }
    }
}

// Vectors of sixteen floats on every CPU: one AVX512 register, two of AVX2, four of NEON or SSE.
//
// bfloat16 dot products take pairs along the inner dimension (vdpbf16ps), so weights, keys and values are stored in
// pairs everywhere: two neighbours of the inner dimension side by side, then 16 of the outer one.

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define LANES 16

typedef uint16_t bf16;

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define PARTS 1
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define PARTS 2
#else
#define PARTS 4
#endif
#define WIDTH (LANES / PARTS)
#define EACH_PART _Pragma("GCC unroll 4") for (int part = 0; part < PARTS; part++)

typedef float f32_part __attribute__((vector_size(WIDTH * 4)));
typedef int32_t i32_part __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t u32_part __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t u16_part __attribute__((vector_size(WIDTH * 2)));

typedef struct { f32_part p[PARTS]; } f32;   // 16 floats
typedef struct { u32_part p[PARTS]; } pairs; // 16 pairs of bfloat16
typedef struct { i32_part p[PARTS]; } i32;   // 16 integers

INLINE f32 splat(float x) {
    f32 y;
    EACH_PART y.p[part] = x - (f32_part){0};
    return y;
}

// Part by part: a copy of the whole struct would go through the stack in smaller pieces.
#define COPY_IN(Y, FROM) EACH_PART memcpy(&(Y).p[part], (const char *)(FROM) + part * WIDTH * 4, WIDTH * 4)
#define COPY_OUT(TO, X) EACH_PART memcpy((char *)(TO) + part * WIDTH * 4, &(X).p[part], WIDTH * 4)

INLINE f32 load_f32(const float *from) {
    f32 y;
    COPY_IN(y, from);
    return y;
}

INLINE void store_f32(float *to, f32 x) { COPY_OUT(to, x); }

#define F32_OPERATION(NAME, EXPRESSION) \
    INLINE f32 NAME(f32 a, f32 b) { \
        f32 y; \
        EACH_PART { f32_part l = a.p[part], r = b.p[part]; y.p[part] = EXPRESSION; } \
        return y; \
    }
F32_OPERATION(add, l + r)
F32_OPERATION(sub, l - r)
F32_OPERATION(mul, l * r)
F32_OPERATION(divide, l / r)
#if PARTS == 1
F32_OPERATION(larger, _mm512_max_ps(l, r))
#elif PARTS == 2
F32_OPERATION(larger, _mm256_max_ps(l, r))
#else
F32_OPERATION(larger, (f32_part)(((i32_part)l & (l > r)) | ((i32_part)r & ~(l > r))))
#endif

INLINE f32 negative(f32 x) { return sub(splat(0.0f), x); }
INLINE f32 smaller(f32 a, f32 b) { return negative(larger(negative(a), negative(b))); }

// a * b + c
INLINE f32 fma_f32(f32 a, f32 b, f32 c) {
    f32 y;
#if PARTS == 1
    y.p[0] = _mm512_fmadd_ps(a.p[0], b.p[0], c.p[0]);
#elif PARTS == 2
    EACH_PART y.p[part] = _mm256_fmadd_ps(a.p[part], b.p[part], c.p[part]);
#else
    EACH_PART y.p[part] = a.p[part] * b.p[part] + c.p[part];
#endif
    return y;
}

// Returns the first `count` lanes of x, and `other` in the rest; count may be negative or over 16.
INLINE f32 keep_first(f32 x, int64_t count, float other) {
#if PARTS == 1
    __mmask16 kept = count >= LANES ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
    x.p[0] = _mm512_mask_blend_ps(kept, _mm512_set1_ps(other), x.p[0]);
    return x;
#else
    float lanes[LANES];
    store_f32(lanes, x);
    for (int64_t i = count < 0 ? 0 : count; i < LANES; i++) lanes[i] = other;
    return load_f32(lanes);
#endif
}

// Lane i becomes `other` for i < count.
INLINE f32 drop_first(f32 x, int64_t count, float other) {
    if (count <= 0) return x;
    float lanes[LANES];
    store_f32(lanes, x);
    for (int64_t i = 0; i < count && i < LANES; i++) lanes[i] = other;
    return load_f32(lanes);
}

INLINE float sum_of(f32 x) {
#if PARTS == 1
    return _mm512_reduce_add_ps(x.p[0]);
#else
    float lanes[LANES];
    store_f32(lanes, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
#endif
}

INLINE float largest_of(f32 x) {
#if PARTS == 1
    return _mm512_reduce_max_ps(x.p[0]);
#else
    float lanes[LANES], most;
    store_f32(lanes, x);
    most = lanes[0];
    for (int i = 1; i < LANES; i++) most = lanes[i] > most ? lanes[i] : most;
    return most;
#endif
}

INLINE f32 load_bf16(const bf16 *from) {
    f32 y;
    EACH_PART {
        u16_part raw;
        memcpy(&raw, from + part * WIDTH, sizeof raw);
        y.p[part] = (f32_part)(__builtin_convertvector(raw, u32_part) << 16);
    }
    return y;
}

// Rounds to nearest, ties to even.
INLINE void store_bf16(bf16 *to, f32 x) {
#if defined(__AVX512BF16__) && PARTS == 1
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(x.p[0]));
#else
    EACH_PART {
        u32_part bits = (u32_part)x.p[part];
        u32_part rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        u32_part is_nan = (u32_part)(x.p[part] != x.p[part]);
        u16_part out = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), u16_part);
        memcpy(to + part * WIDTH, &out, sizeof out);
    }
#endif
}

INLINE pairs load_pairs(const bf16 *from) {
    pairs y;
    COPY_IN(y, from);
    return y;
}

// Sums of products with pairs, in STEPS. With instructions for bfloat16 pairs there is one step. Otherwise the first
// step multiplies the first halves of the pairs, widened to floats, and the second step the second halves, which takes
// fewer registers than both at once. There the other factors, one pair for all 16 places, are floats, widened
// beforehand.
#if defined(__AVX512BF16__) && PARTS == 1
#define HAS_PAIR_PRODUCTS
#define STEPS 1
typedef bf16 factor;
typedef pairs operand;
INLINE operand operand_at(const bf16 *from, int step) { return load_pairs(from); }
INLINE operand splat_factor(const factor *from, int step) {
    uint32_t bits;
    memcpy(&bits, from, 4);
    operand y;
    y.p[0] = (u32_part)_mm512_set1_epi32((int)bits);
    return y;
}
INLINE f32 dot(f32 sum, operand a, operand b) {
    sum.p[0] = _mm512_dpbf16_ps(sum.p[0], (__m512bh)a.p[0], (__m512bh)b.p[0]);
    return sum;
}
INLINE void store_factors(factor *to, f32 x) { store_bf16(to, x); }
INLINE void end_step(void) {}
#else
#define STEPS 2
typedef float factor;
typedef f32 operand;
INLINE operand operand_at(const bf16 *from, int step) {
    pairs x = load_pairs(from);
    f32 y;
    EACH_PART y.p[part] = (f32_part)(step ? x.p[part] & 0xffff0000u : x.p[part] << 16);
    return y;
}
INLINE operand splat_factor(const factor *from, int step) { return splat(from[step]); }
INLINE f32 dot(f32 sum, operand a, operand b) { return fma_f32(b, a, sum); }
INLINE void store_factors(factor *to, f32 x) { store_f32(to, x); }
// Operands are loaded anew for the second step: retained, they would fill the registers.
INLINE void end_step(void) { __asm__("" ::: "memory"); }
#endif

// Returns the factors for `count` elements of operands, a multiple of 16: `from` itself, or widened into `room`.
INLINE const factor *factors(const bf16 *from, float *room, int64_t count) {
#ifdef HAS_PAIR_PRODUCTS
    return from;
#else
    for (int64_t i = 0; i < count; i += LANES) store_f32(room + i, load_bf16(from + i));
    return room;
#endif
}

// Number of factor rows for one operand of 16 columns, or two on AVX512, so that all sums fit in registers.
#ifdef HAS_PAIR_PRODUCTS
#define TALL 14   // x 2 operands, as below: their factors are read straight from memory
#elif PARTS == 1
#define TALL 12
#elif PARTS == 2 || defined(__ARM_NEON)
#define TALL 6
#else
#define TALL 2
#endif

// 2 ** x with a relative error of 3e-7, for x <= 127; far below zero the result is 0.
INLINE f32 exp2_f32(f32 x) {
    f32 n, power;
#if PARTS == 1
    n.p[0] = _mm512_roundscale_ps(x.p[0], 8);
#else
    x = larger(x, splat(-126.0f));
    f32 shift = splat(12582912.0f);  // 1.5 * 2 ** 23: adding to it rounds to an integer
    EACH_PART {
        f32_part rounded = x.p[part] + shift.p[part];
        __asm__("" : "+x"(rounded));  // keeps the compiler from simplifying this away
        n.p[part] = rounded - shift.p[part];
    }
#endif
    f32 r = sub(x, n);
    power = splat(1.32764719e-3f);
    power = fma_f32(power, r, splat(9.67554732e-3f));
    power = fma_f32(power, r, splat(5.55071332e-2f));
    power = fma_f32(power, r, splat(2.40221196e-1f));
    power = fma_f32(power, r, splat(6.93146967e-1f));
    power = fma_f32(power, r, splat(1.0f));
#if PARTS == 1
    power.p[0] = _mm512_scalef_ps(power.p[0], n.p[0]);
#else
    EACH_PART {
        u32_part scale = (u32_part)((__builtin_convertvector(n.p[part], i32_part) + 127) << 23);
        power.p[part] = power.p[part] * (f32_part)scale;
    }
    EACH_PART power.p[part] = (f32_part)((u32_part)power.p[part] & (u32_part)(x.p[part] > -126.0f));
#endif
    return power;
}

// 2 ** x with a relative error of 1e-4, for results that are rounded to bfloat16 (4e-3) next; x <= 0.
INLINE f32 exp2_rough(f32 x) {
#if PARTS == 1
    f32 r, power;
    r.p[0] = _mm512_reduce_ps(x.p[0], 1);  // fraction above the next lower integer
    power = fma_f32(splat(7.8024109e-2f), r, splat(2.26067901e-1f));
    power = fma_f32(power, r, splat(6.95833169e-1f));
    power = fma_f32(power, r, splat(9.99925264e-1f));
    power.p[0] = _mm512_scalef_ps(power.p[0], x.p[0]);
    return power;
#else
    return exp2_f32(x);
#endif
}

#define LOG2_E 1.44269504088896f

INLINE f32 exp_f32(f32 x) { return exp2_f32(mul(x, splat(LOG2_E))); }

INLINE f32 tanh_f32(f32 x) {
    f32 twice = exp2_f32(larger(splat(-60.0f), smaller(splat(60.0f), mul(x, splat(2 * LOG2_E)))));
    return sub(splat(1.0f), divide(splat(2.0f), add(twice, splat(1.0f))));
}

// Adds products of four neighbours to the sums: unsigned weights, signed inputs; exact (vpdpbusd, or vpmaddwd).
INLINE i32 dot_bytes(i32 sum, i32 weights, i32 inputs) {
#if defined(__AVX512VNNI__) && PARTS == 1
    sum.p[0] = (i32_part)_mm512_dpbusd_epi32((__m512i)sum.p[0], (__m512i)weights.p[0], (__m512i)inputs.p[0]);
#elif PARTS == 1
    // Widened to 16 bits: the even bytes and the odd ones.
    __m512i w = (__m512i)weights.p[0], x = (__m512i)inputs.p[0];
    __m512i even = _mm512_madd_epi16(_mm512_and_si512(w, _mm512_set1_epi16(255)),
                                     _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8));
    __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(w, 8), _mm512_srai_epi16(x, 8));
    sum.p[0] += (i32_part)even + (i32_part)odd;
#elif PARTS == 2
    EACH_PART {
        __m256i w = (__m256i)weights.p[part], x = (__m256i)inputs.p[part];
        __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
        __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(x, 8));
        sum.p[part] += (i32_part)even + (i32_part)odd;
    }
#else
    EACH_PART {
        i32_part w = weights.p[part], x = inputs.p[part];
        sum.p[part] += (w & 255) * ((x << 24) >> 24) + ((w >> 8) & 255) * ((x << 16) >> 24) +
                       ((w >> 16) & 255) * ((x << 8) >> 24) + ((w >> 24) & 255) * (x >> 24);
    }
#endif
    return sum;
}

INLINE i32 load_i32(const void *from) {
    i32 y;
    COPY_IN(y, from);
    return y;
}

// x ^ bits in each lane; costs nothing if bits is 0.
INLINE i32 flip_bits(i32 x, uint32_t bits) {
    if (bits) EACH_PART x.p[part] ^= (int32_t)bits - (i32_part){0};
    return x;
}

// Rounds to nearest; the results must fit into a byte. Returns their sum.
INLINE int32_t store_bytes(int8_t *to, f32 x) {
#if PARTS == 1
    __m512i whole = _mm512_cvtps_epi32(x.p[0]);
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(whole));
    return _mm512_reduce_add_epi32(whole);
#else
    float lanes[LANES];
    int32_t sum = 0;
    memcpy(lanes, &x, sizeof lanes);
    for (int i = 0; i < LANES; i++) {
        to[i] = (int8_t)lrintf(lanes[i]);
        sum += to[i];
    }
    return sum;
#endif
}

INLINE i32 splat_i32(int32_t x) {
    i32 y;
    EACH_PART y.p[part] = x - (i32_part){0};
    return y;
}

INLINE f32 to_f32(i32 x) {
    f32 y;
    EACH_PART y.p[part] = __builtin_convertvector(x.p[part], f32_part);
    return y;
}

INLINE void prefetch_near(const void *at) { __builtin_prefetch(at, 0, 3); }
INLINE void prefetch_far(const void *at) { __builtin_prefetch(at, 0, 2); }

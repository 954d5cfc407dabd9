// Vectors of floats and the functions of them that Mamba needs, for any width.
//
// This file is compiled once for each instruction set, with MK_LANES floats a vector.

#pragma once

#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define MK_LANES 16
#elif defined(__AVX2__)
#define MK_LANES 8
#else
#define MK_LANES 4
#endif

#define MK_INLINE static inline __attribute__((always_inline))

namespace {

constexpr int LANES = MK_LANES;

using Floats = float __attribute__((vector_size(4 * MK_LANES)));
using Ints = int32_t __attribute__((vector_size(4 * MK_LANES)));
using Halves = _Float16 __attribute__((vector_size(2 * MK_LANES)));
using Shorts = uint16_t __attribute__((vector_size(2 * MK_LANES)));
using Words = uint32_t __attribute__((vector_size(4 * MK_LANES)));

MK_INLINE Floats all(float x) { return Floats{} + x; }
MK_INLINE Ints bits(Floats x) { return (Ints)x; }

template <class V>
MK_INLINE V load(const void *from) {
    V x;
    __builtin_memcpy(&x, from, sizeof(V));
    return x;
}

template <class V>
MK_INLINE void store(void *to, V x) {
    __builtin_memcpy(to, &x, sizeof(V));
}

// Set `count` vectors to zero. (The C library is not called: zig links a slow memset.)
MK_INLINE void clear(Floats *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) x[i] = Floats{};
}

// NaN in x stays NaN.
MK_INLINE Floats at_least(Floats x, float low) { return x < low ? all(low) : x; }
MK_INLINE Floats at_most(Floats x, float high) { return x > high ? all(high) : x; }
MK_INLINE Floats absolute(Floats x) { return (Floats)(bits(x) & 0x7fffffff); }

// Exponents are held in powers of 2^(1/STEPS): exp(x) = power(x, POWERS).
#if MK_LANES == 16
constexpr int STEPS = 16;
#else
constexpr int STEPS = 1;
#endif

constexpr float POWERS = 1.44269504088896341f * STEPS;

// Beyond these, a power is no normal float. The kernels' smallest decay is 2^-126.
constexpr float LOWEST = -126.0f * STEPS, HIGHEST = 127.0f * STEPS;

// 2^(x * rate / STEPS) for a product in [LOWEST, HIGHEST], relative error 1.5e-7; exactly 1 for 0; NaN for NaN.
//
// The product is i + f with i an integer and |f| <= 1/2. Where a vector has 16 lanes a table in one register
// has 2^(j / 16) for j = i mod 16, less j * 2^19, so that adding i * 2^19 to its bits gives 2^(i / 16);
// that saves two steps of the polynomial in f.
MK_INLINE Floats power_in_range(Floats x, Floats rate) {
    const float rounds = 12582912.0f; // 1.5 * 2^23: adding it leaves i in the last bits
    Floats shifted = x * rate + rounds;
    Floats f = x * rate - (shifted - rounds);
#if MK_LANES == 16
    const Ints table = {0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
                        0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};
    Floats whole = (Floats)((Ints)_mm512_permutexvar_epi32((__m512i)shifted, (__m512i)table) + (bits(shifted) << 19));
    Floats p = all(1.3550326e-5f); // minimax for the relative error, with p(0) = 1
    p = p * f + 9.38415178e-4f;
    p = p * f + 4.33216989e-2f;
    return whole * (p * f) + whole;
#else
    Floats p = all(1.32647273e-3f); // minimax for the relative error, with p(0) = 1
    p = p * f + 9.67151299e-3f;
    p = p * f + 5.55073358e-2f;
    p = p * f + 2.40222424e-1f;
    p = p * f + 6.93147004e-1f;
    p = p * f + 1.0f;
    return (Floats)(bits(p) + (bits(shifted) << 23));
#endif
}

// The same for any product: powers beyond the range are those at its ends.
MK_INLINE Floats power(Floats x, Floats rate) {
    Floats product = x * rate, inside = power_in_range(x, rate);
    inside = product < LOWEST ? all(1.17549435e-38f) : inside;
    return product > HIGHEST ? all(1.70141183e38f) : inside;
}

// Exponents of e whose powers are normal floats; the reciprocal of the largest is none, and counts as zero.
constexpr float LEAST = -87.0f, MOST = 88.0f;

MK_INLINE Floats sigmoid(Floats x) {
    return 1.0f / (1.0f + power_in_range(at_most(at_least(x, -MOST), -LEAST), all(-POWERS)));
}

// log(1 + exp(x)), relative error 3e-7 beside that of the power, whose exponent is rounded; NaN for NaN.
MK_INLINE Floats softplus(Floats x) {
    Floats e = power_in_range(at_most(absolute(x), -LEAST), all(-POWERS));
    Floats p = all(5.63935796e-3f); // minimax for the relative error of log(1 + e) / e, e in [0, 1]
    p = p * e - 3.11262757e-2f;
    p = p * e + 8.08229744e-2f;
    p = p * e - 1.38770103e-1f;
    p = p * e + 1.92019105e-1f;
    p = p * e - 2.48659104e-1f;
    p = p * e + 3.33217323e-1f;
    p = p * e - 4.99996066e-1f;
    p = p * e + 1.0f;
    return p * e + at_least(x, 0.0f);
}

// Lanes of a and b by turns: the first halves of both, and the second.
#if MK_LANES == 16
#define MK_FIRST 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define MK_SECOND 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif MK_LANES == 8
#define MK_FIRST 0, 8, 1, 9, 2, 10, 3, 11
#define MK_SECOND 4, 12, 5, 13, 6, 14, 7, 15
#else
#define MK_FIRST 0, 4, 1, 5
#define MK_SECOND 2, 6, 3, 7
#endif
MK_INLINE Floats zip_first(Floats a, Floats b) { return __builtin_shufflevector(a, b, MK_FIRST); }
MK_INLINE Floats zip_second(Floats a, Floats b) { return __builtin_shufflevector(a, b, MK_SECOND); }

// Vectors as rows of a square matrix: exchange its rows and columns.
MK_INLINE void transpose(Floats *rows) {
    for (int stage = 1; stage < LANES; stage *= 2) {
        Floats mixed[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = zip_first(rows[i], rows[i + LANES / 2]);
            mixed[2 * i + 1] = zip_second(rows[i], rows[i + LANES / 2]);
        }
        for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
    }
}

// Lane i of the result is the sum over the lanes of rows[i]: a transposition whose rows are added
// as soon as they meet.
MK_INLINE Floats sums_of(const Floats *rows) {
    Floats sums[LANES];
    for (int i = 0; i < LANES; i++) sums[i] = rows[i];
#pragma clang loop unroll(full)
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            sums[i] = zip_first(sums[i], sums[i + half]) + zip_second(sums[i], sums[i + half]);
        }
    }
    return sums[0];
}

// Of a comparison.
MK_INLINE bool in_all_lanes(Ints holds) { return __builtin_reduce_and(holds) != 0; }

// Has the compiler finish the one before it begins with the other: a loop unrolled over states would otherwise
// hold more of them half done than there are registers.
MK_INLINE void in_turn(Floats &done, Floats &begun) {
#if defined(__x86_64__)
    asm("" : "+v"(done), "+v"(begun));
#elif defined(__aarch64__)
    asm("" : "+w"(done), "+w"(begun));
#endif
}

} // namespace

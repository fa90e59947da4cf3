// The encoders for one instruction set: of ROWS rows at a time, but for those of extremes.h.
//
// native.cpp includes this file once for each instruction set, inside a namespace, with TARGET (a
// function attribute) and LANES (how many numbers one register holds) defined. Here is what they share;
// searches.h has the searches for a scale, k_quants.h and blocks.h the encoders, and a table each of their types.
//
// Promises the very bytes of ggml's encoders (ggml-quants.c: quantize_row_*_ref and, with importance,
// quantize_row_*_impl) for numbers that are finite. They search each block for the scale with the least
// error, number by number, and a sum must be added up in the same order to round to the same bits. Here a
// lane of a vector holds one row: many rows are searched side by side, and within a row nothing changes its
// order. It also is why a tensor that has to be transposed need not be: neighbours in memory are rows
// already.
//
// An encoder is called with a `Block` of LANES rows, whose columns of `bytes` it fills, and returns whether a
// scale overflowed. Codes are kept in the order of the numbers, bytes[i][r], until they are packed; then
// `scatter` gives each row its own.

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef uint8_t vc __attribute__((vector_size(LANES)));

ALWAYS_INLINE TARGET vf load(const float *from) {
    vf x;
    memcpy(&x, from, sizeof x);
    return x;
}

ALWAYS_INLINE TARGET void store(vf x, float *to) { memcpy(to, &x, sizeof x); }

ALWAYS_INLINE TARGET vf number(const Block &block, int i) { return load(block.numbers + i * ROWS); }

// The lowest byte of each lane.
ALWAYS_INLINE TARGET void put(vi x, uint8_t *bytes) {
#if LANES == 8
    const __m256i pick = _mm256_set1_epi32(0x0c080400);
    __m256i picked = _mm256_shuffle_epi8((__m256i)x, pick);
    _mm_storel_epi64((__m128i *)bytes, _mm_unpacklo_epi32(_mm256_castsi256_si128(picked),
                                                          _mm256_extracti128_si256(picked, 1)));
#elif LANES == 4 && defined(__SSE2__)
    __m128i words = _mm_packs_epi32((__m128i)(x & 0xff), (__m128i)(x & 0xff));
    int32_t packed = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    memcpy(bytes, &packed, sizeof packed);
#else
    vc c = __builtin_convertvector(x, vc);
    memcpy(bytes, &c, sizeof c);
#endif
}

ALWAYS_INLINE TARGET vi get(const uint8_t *bytes) {
    vc c;
    memcpy(&c, bytes, sizeof c);
    return __builtin_convertvector(c, vi);
}

ALWAYS_INLINE TARGET vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }

// Whether a lane of a comparison holds.
ALWAYS_INLINE TARGET bool any(vi mask) {
#if LANES == 16
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif LANES == 8
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps((__m128)mask) != 0;
#else
    int32_t found = 0;
    for (int lane = 0; lane < LANES; lane++) found |= mask[lane];
    return found != 0;
#endif
}

// To the nearest whole number, ties to even: the last bits of the sum are the result. What is too large
// for that wraps around as it does in ggml's nearest_int.
ALWAYS_INLINE TARGET vi nearest(vf x) { return ((vi)(x + 12582912.0f) & 0x007fffff) - 0x00400000; }

// The same as float32, of what is less than 2^22 away from zero.
ALWAYS_INLINE TARGET vf round(vf x) { return x + 12582912.0f - 12582912.0f; }

ALWAYS_INLINE TARGET vi clamp(vi x, int32_t least, int32_t most) {
    x = x > least ? x : vi{} + least;
    return x < most ? x : vi{} + most;
}

// `y` where either is NaN.
ALWAYS_INLINE TARGET vf larger(vf x, vf y) {
#if LANES == 16
    return _mm512_max_ps(x, y);
#elif LANES == 8
    return _mm256_max_ps(x, y);
#elif defined(__SSE2__)
    return _mm_max_ps(x, y);
#else
    return x > y ? x : y;
#endif
}

ALWAYS_INLINE TARGET vf smaller(vf x, vf y) {
#if LANES == 16
    return _mm512_min_ps(x, y);
#elif LANES == 8
    return _mm256_min_ps(x, y);
#elif defined(__SSE2__)
    return _mm_min_ps(x, y);
#else
    return x < y ? x : y;
#endif
}

// `least` where x is NaN.
ALWAYS_INLINE TARGET vf within(vf x, float least, float most) {
    return smaller(larger(x, vf{} + least), vf{} + most);
}

ALWAYS_INLINE TARGET vf root(vf x) {
#if LANES == 16
    return _mm512_sqrt_ps(x);
#elif LANES == 8
    return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
    return _mm_sqrt_ps(x);
#else
    for (int lane = 0; lane < LANES; lane++) x[lane] = __builtin_sqrtf(x[lane]);
    return x;
#endif
}

// Whether a number is NaN or infinite.
ALWAYS_INLINE TARGET vi unbounded(vf x) { return ((vi)x & 0x7f800000) == 0x7f800000; }

ALWAYS_INLINE TARGET vf to_float(vi x) { return __builtin_convertvector(x, vf); }

ALWAYS_INLINE TARGET vi truncate(vf x) { return __builtin_convertvector(x, vi); }

ALWAYS_INLINE TARGET vf inverse(vf x) { return x != 0.0f ? 1.0f / x : vf{}; }

// To the bits of an f16, ties to even, infinity where it is too large.
ALWAYS_INLINE TARGET vi to_f16(vf x) {
    vi bits = (vi)x & 0x7fffffff;
    // Below 2^-14 a step of f16 is 2^-24, which is the step of an f32 from 0.5 on.
    vi small = (vi)((vf)bits + 0.5f) - 0x3f000000;
    vi large = ((bits + 0xfff + ((bits >> 13) & 1)) >> 13) - (112 << 10);
    large = large > 0x7c00 ? vi{} + 0x7c00 : large;
    return (bits < 0x38800000 ? small : large) | (((vi)x >> 16) & 0x8000);
}

ALWAYS_INLINE TARGET vf from_f16(vi half) {
    vf size = (vf)((half & 0x7fff) << 13) * 0x1p112f;
    return (vf)((vi)size | ((half & 0x8000) << 16));
}

ALWAYS_INLINE TARGET bool overflows(vi half) { return any((half & 0x7c00) == 0x7c00); }

// An f16 of each lane as two lines of bytes.
ALWAYS_INLINE TARGET void put_f16(vi half, uint8_t (*bytes)[ROWS]) {
    put(half, bytes[0]);
    put(half >> 8, bytes[1]);
}

template <bool (*encoder)(const Block &, uint8_t (*)[ROWS])>
TARGET bool all_rows(const Block &block, uint8_t (*bytes)[ROWS]) {
    bool overflow = false;
    for (int row = 0; row < ROWS; row += LANES) {
        const Block part = {block.numbers + row, block.importance, block.mean_square + row};
        overflow |= encoder(part, (uint8_t (*)[ROWS])(bytes[0] + row));
    }
    return overflow;
}

#include "extremes.h"
#include "searches.h"
#include "blocks.h"
#include "k_quants.h"

ALWAYS_INLINE TARGET vi load_halves(const void *items) {
    vh h;
    memcpy(&h, items, sizeof h);
    return __builtin_convertvector(h, vi);
}

// Numbers of ROWS rows of a tile to float32. Returns whether none is NaN or infinite.
template <Format format>
TARGET bool widen(const void *items, size_t count, float *numbers) {
    constexpr int32_t limit = format == F16 ? 0x47800000 : 0x7f800000; // what from_f16 makes of infinity: 2^16
    vi bad = {};
    for (size_t i = 0; i < count; i++)
        for (int row = 0; row < ROWS; row += LANES) {
            const Stored<format> *from = (const Stored<format> *)items + i * WIDTH + row;
            vf x = format == F32    ? load((const float *)from)
                   : format == BF16 ? (vf)(load_halves(from) << 16)
                                    : from_f16(load_halves(from));
            bad |= (vi)magnitude(x) >= limit;
            store(x, numbers + i * ROWS + row);
        }
    return !any(bad);
}

// Adds each number's square to the sum of its row, one after the other.
TARGET void add_squares(const float *numbers, size_t count, float *sums) {
    for (int row = 0; row < ROWS; row += LANES) {
        vf sum = load(sums + row);
        for (size_t i = 0; i < count; i++) {
            vf x = load(numbers + i * ROWS + row);
            sum += x * x;
        }
        store(sum, sums + row);
    }
}

const Type *find(const char *name) {
    for (const Type &type : BLOCKS)
        if (strcmp(type.name, name) == 0) return &type;
    for (const Type &type : K_QUANTS)
        if (strcmp(type.name, name) == 0) return &type;
    return nullptr;
}

const Kernels kernels = {{widen<BF16>, widen<F16>, widen<F32>}, add_squares, find};

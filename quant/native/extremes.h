// The encoders of types whose scale follows from the extremes of a block of 32 numbers: Q8_0, and Q4_0, Q4_1, Q5_0 and
// Q5_1 without importance. kernels.h includes it.
//
// They compute so little that moving bytes would take longer: a row's numbers are read as they are stored, a block
// fills a few registers, and its codes are written where they belong. What there is one of in a block (d, and what to
// multiply with) is computed for LANES blocks at a time, a lane each.

typedef int16_t vr __attribute__((vector_size(4 * LANES)));

enum { REGISTERS = 32 / LANES };

// Of every eight neighbours in `a` and in `b` the first four, or the last four, each next to its counterpart.
ALWAYS_INLINE TARGET vi first_fours(vr a, vr b) {
#if LANES == 16
    return (vi)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b);
#elif LANES == 8
    return (vi)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b);
#else
    return (vi)interleave_low((vs)a, (vs)b);
#endif
}

ALWAYS_INLINE TARGET vi last_fours(vr a, vr b) {
#if LANES == 16
    return (vi)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
#elif LANES == 8
    return (vi)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b);
#else
    return (vi)interleave_high((vs)a, (vs)b);
#endif
}

// A block as float32, in the order that `narrow` undoes: of two registers, the first one has the first four of every
// eight numbers, and the second one the last four.
template <Format format>
ALWAYS_INLINE TARGET void load_block(const uint16_t *items, vf *x) {
    for (int k = 0; k < REGISTERS; k += 2) {
        vr halves;
        memcpy(&halves, items + k * LANES, sizeof halves);
        if (format == BF16) {
            x[k] = (vf)first_fours(vr{}, halves);
            x[k + 1] = (vf)last_fours(vr{}, halves);
        } else {
            x[k] = from_f16(first_fours(halves, vr{}));
            x[k + 1] = from_f16(last_fours(halves, vr{}));
        }
    }
}

template <Format>
ALWAYS_INLINE TARGET void load_block(const uint32_t *items, vf *x) {
    const float *from = (const float *)items;
#if LANES == 16
    vf a = load(from), b = load(from + 16);
    x[0] = _mm512_shuffle_f32x4(a, b, 0x88);
    x[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
#elif LANES == 8
    for (int k = 0; k < REGISTERS; k++) {
        const float *fours = from + k / 2 * 16 + k % 2 * 4;
        x[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(fours)), _mm_loadu_ps(fours + 8), 1);
    }
#else
    for (int k = 0; k < REGISTERS; k++) x[k] = load(from + 4 * k);
#endif
}

// Codes of a block, from -128 to 127, to bytes in the order of its numbers.
ALWAYS_INLINE TARGET void narrow(const vi *codes, vb *bytes) {
#if LANES == 16
    __m256i all = _mm512_cvtepi16_epi8(_mm512_packs_epi32((__m512i)codes[0], (__m512i)codes[1]));
#elif LANES == 8
    __m256i first = _mm256_packs_epi32((__m256i)codes[0], (__m256i)codes[1]);
    __m256i second = _mm256_packs_epi32((__m256i)codes[2], (__m256i)codes[3]);
    __m256i all = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), 0xd8);
#endif
#if LANES > 4
    bytes[0] = (vb)_mm256_castsi256_si128(all);
    bytes[1] = (vb)_mm256_extracti128_si256(all, 1);
#elif defined(__SSE2__)
    for (int half = 0; half < 2; half++) {
        const __m128i *fours = (const __m128i *)codes + 4 * half;
        bytes[half] = (vb)_mm_packs_epi16(_mm_packs_epi32(fours[0], fours[1]), _mm_packs_epi32(fours[2], fours[3]));
    }
#else
    for (int k = 0; k < REGISTERS; k++) put(codes[k], (uint8_t *)bytes + k * LANES);
#endif
}

template <Format format, typename Item>
ALWAYS_INLINE TARGET float number_at(const Item *items, int i) {
    const vi bits = vi{} + (int32_t)items[i];
    return (format == F32 ? (vf)bits : format == BF16 ? (vf)(bits << 16) : from_f16(bits))[0];
}

// The first number of a block that is `one` or the `other`.
template <Format format, typename Item>
ALWAYS_INLINE TARGET float first_of(const Item *items, float one, float other) {
    int i = 0;
    while (number_at<format>(items, i) != one && number_at<format>(items, i) != other) i++;
    return number_at<format>(items, i);
}

// The largest of each of four lanes, of all registers' fours.
ALWAYS_INLINE TARGET vw fold(vf x) {
#if LANES == 16
    __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#elif LANES == 8
    __m256 eight = x;
#endif
#if LANES > 4
    return (vw)_mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
    return (vw)x;
#endif
}

// The largest and the smallest number of a block.
ALWAYS_INLINE TARGET void extremes(const vf *x, float *high, float *low) {
    vf most = x[0], least = x[0];
    for (int k = 1; k < REGISTERS; k++) {
        most = larger(most, x[k]);
        least = smaller(least, x[k]);
    }
    const vw fours[2] = {fold(most), fold(-least)};
    vw pairs[2] = {interleave_low(fours[0], fours[1]), interleave_high(fours[0], fours[1])};
    typedef float v4 __attribute__((vector_size(16)));
    v4 both = (v4)pairs[0] > (v4)pairs[1] ? (v4)pairs[0] : (v4)pairs[1];
    v4 swapped = (v4)SHUFFLE(vw, (vw)both, (vw)both, 2, 3, 0, 1);
    both = both > swapped ? both : swapped;
    *high = both[0];
    *low = -both[1];
}

// To the nearest whole number, halves away from zero: only what is at least half carries over with the largest f32
// below it.
ALWAYS_INLINE TARGET vi away_from_zero(vf x) {
    vi half = ((vi)x & (int32_t)0x80000000) | 0x3effffff;
    return truncate(x + (vf)half);
}

// What follows the scale of a block: codes of eight bits; else the fifth ones if there are any, then the lower four.
template <int bits>
ALWAYS_INLINE void write_codes(const vb *codes, uint8_t *to) {
    if (bits == 8) {
        for (int half = 0; half < 2; half++) memcpy(to + half * sizeof *codes, codes + half, sizeof *codes);
        return;
    }
    if (bits == 5) {
        const uint32_t fifths = highest_bits(codes[0] << 3) | (uint32_t)highest_bits(codes[1] << 3) << 16;
        memcpy(to, &fifths, sizeof fifths);
        to += sizeof fifths;
    }
    const vb pairs = (codes[0] & 15) | codes[1] << 4;
    memcpy(to, &pairs, sizeof pairs);
}

// Blocks that are encoded together, so many that their steps hardly wait for each other.
enum { BATCH = 64 };

template <typename Item>
struct Batch {
    size_t count;
    const Item *from[BATCH];
    uint8_t *to[BATCH];
    alignas(64) float high[BATCH], low[BATCH], factor[BATCH], offset[BATCH];
    alignas(64) int32_t half[BATCH], low_half[BATCH]; // d and m as f16
};

// Q8_0 has 8 `bits`: x = d * code. Of 4 or 5 bits, a `line` is x = d * code + m, the others x = d * (code - middle).
template <int bits, bool line, Format format>
struct Extremes {
    typedef Stored<format> Item;
    static constexpr bool symmetric = bits < 8 && !line;
    static constexpr int middle = 1 << (bits - 1), top = bits == 8 ? 127 : 2 * middle - 1;
    static constexpr int header = line ? 4 : 2, bytes = header + 4 * bits;

    // Returns whether all numbers are finite: without their signs, the others have the largest bits.
    ALWAYS_INLINE TARGET bool find_extremes(Batch<Item> &batch) {
        typedef std::conditional_t<format == F32, int32_t, int16_t> Bits;
        typedef Bits Register __attribute__((vector_size(4 * LANES)));
        constexpr Bits infinite = format == F32 ? 0x7f800000 : format == BF16 ? 0x7f80 : 0x7c00;
        Register most = {};
        for (size_t b = 0; b < batch.count; b++) {
            for (size_t i = 0; i < 32; i += sizeof most / sizeof(Item)) {
                Register magnitudes;
                memcpy(&magnitudes, batch.from[b] + i, sizeof magnitudes);
                magnitudes &= std::numeric_limits<Bits>::max();
                most = magnitudes > most ? magnitudes : most;
            }
            vf x[REGISTERS];
            load_block<format>(batch.from[b], x);
            extremes(x, batch.high + b, batch.low + b);
        }
        const vi unbounded = (vi)(most >= infinite);
        return !any(unbounded | unbounded << 16);
    }

    // ggml keeps the first of numbers equally far from zero, and of zeros, where it does not start from 0.
    ALWAYS_INLINE TARGET void choose_first(Batch<Item> &batch) {
        for (size_t b = 0; b < batch.count; b++) {
            float &high = batch.high[b], &low = batch.low[b];
            const Item *from = batch.from[b];
            if (symmetric && high == -low) high = low = high == 0.0f ? 0.0f : first_of<format>(from, high, low);
            if (line && low == 0.0f) low = first_of<format>(from, low, low);
        }
    }

    // Returns whether d or m overflows.
    ALWAYS_INLINE TARGET bool find_scales(Batch<Item> &batch) {
        vi most = {};
        for (size_t b = 0; b < batch.count; b += LANES) {
            const vf high = load(batch.high + b), low = load(batch.low + b);
            // Magnitudes, since of zeros the extremes may be any.
            const vf d = line        ? magnitude(high - low) / (float)top
                         : symmetric ? (high < -low ? low : high) / (float)-middle
                                     : magnitude(larger(high, -low)) / (float)top;
            const vf factor = inverse(d);
            const vi lost = unbounded(factor); // ggml's codes are 0 where 1 / d is infinite
            const vi half = to_f16(d), low_half = to_f16(low);
            store(lost ? vf{} : factor, batch.factor + b);
            store(lost ? vf{} : vf{} + (middle + 0.5f), batch.offset + b);
            memcpy(batch.half + b, &half, sizeof half);
            memcpy(batch.low_half + b, &low_half, sizeof low_half);
            most |= (half & 0x7c00) == 0x7c00;
            if (line) most |= (low_half & 0x7c00) == 0x7c00;
        }
        return any(most);
    }

    ALWAYS_INLINE TARGET void write_blocks(const Batch<Item> &batch) {
        for (size_t b = 0; b < batch.count; b++) {
            vf x[REGISTERS];
            vi codes[REGISTERS];
            vb narrowed[2];
            load_block<format>(batch.from[b], x);
            for (int k = 0; k < REGISTERS; k++) {
                if (line) codes[k] = truncate((x[k] - batch.low[b]) * batch.factor[b] + 0.5f);
                else if (symmetric) codes[k] = truncate(x[k] * batch.factor[b] + batch.offset[b]);
                else codes[k] = away_from_zero(x[k] * batch.factor[b]);
            }
            narrow(codes, narrowed);
            const vb limit = vb{} + (uint8_t)top;
            if (symmetric)
                for (vb &part : narrowed) part = part < limit ? part : limit;
            memcpy(batch.to[b], batch.half + b, 2);
            if (line) memcpy(batch.to[b] + 2, batch.low_half + b, 2);
            write_codes<bits>(narrowed, batch.to[b] + header);
        }
    }

    static TARGET Status encode(const void *items, size_t row_step, size_t rows, size_t blocks, uint8_t *out,
                                size_t stride) {
        Batch<Item> batch = {};
        for (size_t row = 0; row < rows; row++)
            for (size_t b = 0; b < blocks; b++) {
                batch.from[batch.count] = (const Item *)items + row * row_step + 32 * b;
                batch.to[batch.count] = out + row * stride + b * bytes;
                if (++batch.count < BATCH && (row + 1 < rows || b + 1 < blocks)) continue;
                if (!find_extremes(batch)) return NOT_FINITE;
                choose_first(batch);
                if (find_scales(batch)) return OVERFLOW;
                write_blocks(batch);
                batch.count = 0;
            }
        return GOOD;
    }
};

#define DIRECT(bits, line) \
    {Extremes<bits, line, BF16>::encode, Extremes<bits, line, F16>::encode, Extremes<bits, line, F32>::encode}

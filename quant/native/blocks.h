// The encoders of types whose blocks are of 32 numbers, and of IQ4_XS, whose groups are such blocks. kernels.h
// includes it, and says how they work; extremes.h has those that search for no scale.

ALWAYS_INLINE TARGET void numbers(const Block &block, int first, vf *x) {
    for (int i = 0; i < 32; i++) x[i] = number(block, first + i);
}

ALWAYS_INLINE TARGET Loudest loudest_of(const Block &block) {
    Loudest loudest = {};
    for (int i = 0; i < 32; i++) louder(loudest, number(block, i));
    return loudest;
}

// Q4_0 and Q5_0: d as f16, then the codes from 0 to 2 * middle - 1, each x = d * (code - middle).
template <int middle>
TARGET bool searched_symmetric(const Block &block, uint8_t (*bytes)[ROWS]) {
    vf x[32], weight[32];
    numbers(block, 0, x);
    weigh<32>(x, block.importance, load(block.mean_square), weight);
    const Scale found = scale_search<32, middle>(x, weight);
    vi half = to_f16(found.scale);
    put_f16(half, bytes);
    for (int i = 0; i < 32; i++) {
        vi l = clamp(nearest(found.factor * x[i]), -middle, middle - 1) + middle;
        put(found.silent ? vi{} : l, bytes[2 + i]);
    }
    return overflows(half);
}

// Q4_1 and Q5_1: d and m as f16, then the codes from 0 to top, each x = d * code + m.
template <int top>
TARGET bool searched_line(const Block &block, uint8_t (*bytes)[ROWS]) {
    vf x[32], weight[32];
    numbers(block, 0, x);
    weigh<32>(x, block.importance, load(block.mean_square), weight);
    const Line found = line_search<top, 36>(x, weight, -0.9f, 0.05f);
    vi half = to_f16(found.scale), half_low = to_f16(found.low);
    put_f16(half, bytes);
    put_f16(half_low, bytes + 2);
    for (int i = 0; i < 32; i++) {
        vi l = clamp(nearest(found.factor * (x[i] - found.base)), 0, top);
        put(found.flat ? vi{} : l, bytes[4 + i]);
    }
    return overflows(half) || overflows(half_low);
}

// What floor(log2f(x)) is for x above 0: where x is so little below a power of two that its logarithm rounds to a
// whole number, that number.
ALWAYS_INLINE TARGET vi floor_log2(vf x) {
    vi small = (vi)x < 0x00800000;
    vi bits = (vi)(small ? x * 0x1p64f : x);
    vi above = (bits >> 23) - 126 - (small & 64); // the next whole number
    // Both are in steps of 2^-24: how far the logarithm is below it, and half of what f32 can tell apart there.
    vf below = to_float(0x00800000 - (bits & 0x007fffff)) * 1.442695f;
    vf size = to_float(above);
    vf half = (vf)((vi)(size > 0.0f ? size - 0.5f : -size) & 0x7f800000);
    return above - (below < half ? vi{} : vi{} + 1);
}

// MXFP4: the exponent e of a power of two, then the codes: a sign, and one of 0, 1, 2, 3, 4, 6, 8, 12, times
// 2^(e - 128). What is halfway goes to the smaller of two, and what goes to 0 has no sign.
TARGET bool mxfp4(const Block &block, uint8_t (*bytes)[ROWS]) {
    constexpr float BETWEEN[] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
    vf most = loudest_of(block).size;
    // Below 2^-125 e wraps around, as ggml's does, and all codes are 0. 255 stands for NaN.
    vi e = most > 0.0f ? (floor_log2(most) + 125) & 0xff : vi{};
    put(e, bytes[0]);
    vf unit = (vf)(e < 2 ? (vi{} + 0x00200000) << e : (e - 1) << 23), between[7];
    for (int k = 0; k < 7; k++) between[k] = BETWEEN[k] * unit;
    // 2^128, to which the largest numbers round, is none of f32: they get 6 at most, as ggml's do.
    for (int k = 5; k < 7; k++) between[k] = e < 253 ? between[k] : vf{} + __builtin_inff();
    for (int i = 0; i < 32; i++) {
        vf x = number(block, i), size = magnitude(x);
        vi code = {};
        UNROLL_ALL for (int k = 0; k < 7; k++) code -= size > between[k];
        put(code | ((x < -between[0]) & 8), bytes[1 + i]);
    }
    return any(e == 255);
}

// IQ4_NL and IQ4_XS: a code is the index of one of sixteen values.

constexpr float VALUES[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The number halfway between two neighbours; what is halfway goes to the larger one.
constexpr float halfway(int k) { return (VALUES[k] + VALUES[k + 1]) * 0.5f; }

ALWAYS_INLINE TARGET vi nearest_index(vf x) {
    vi index = vi{} + 15;
    UNROLL_ALL for (int k = 0; k < 15; k++) index += x < halfway(k);
    return index;
}

ALWAYS_INLINE TARGET vf nearest_value(vf x) {
    vf value = vf{} + VALUES[0];
    UNROLL_ALL for (int k = 0; k < 15; k++) value = x < halfway(k) ? value : vf{} + VALUES[k + 1];
    return value;
}

// The scale of 32 numbers with the least error, of sixteen.
//
// All but the first differ by a ninth at most, so that a number gets one of two neighbouring values with them:
// which one takes a single comparison.
ALWAYS_INLINE TARGET vf value_search(const vf *x, const vf *weight) {
    enum { SCALES = 15, AT_ONCE = 5 };
    Loudest loudest = {};
    for (int i = 0; i < 32; i++) louder(loudest, x[i]);
    vf candidate[SCALES];
    for (int k = 0; k < SCALES; k++) candidate[k] = (k - 7 + VALUES[0]) / loudest.value;

    vf first_factor = 1.0f / (loudest.value / -VALUES[0]), sum_xq = {}, sum_qq = {};
    vf middle[32], low_xq[32], low_qq[32], high_xq[32], high_qq[32];
    for (int i = 0; i < 32; i++) {
        vf q = nearest_value(first_factor * x[i]), weighed = weight[i] * q;
        sum_xq += weighed * x[i];
        sum_qq += weighed * q;
        vf one = nearest_value(candidate[0] * x[i]), other = nearest_value(candidate[SCALES - 1] * x[i]);
        vf low = one < other ? one : other, high = one < other ? other : one;
        vf weighed_low = weight[i] * low, weighed_high = weight[i] * high;
        middle[i] = (low + high) * 0.5f;
        low_xq[i] = weighed_low * x[i];
        low_qq[i] = weighed_low * low;
        high_xq[i] = weighed_high * x[i];
        high_qq[i] = weighed_high * high;
    }
    vf scale = sum_qq > 0.0f ? sum_xq / sum_qq : vf{}, best = scale * sum_xq;
    for (int k = 0; k < SCALES; k += AT_ONCE) {
        vf sums_xq[AT_ONCE] = {}, sums_qq[AT_ONCE] = {};
        for (int i = 0; i < 32; i++)
            UNROLL_ALL for (int a = 0; a < AT_ONCE; a++) {
                vi below = candidate[k + a] * x[i] < middle[i];
                sums_xq[a] += below ? low_xq[i] : high_xq[i];
                sums_qq[a] += below ? low_qq[i] : high_qq[i];
            }
        for (int a = 0; a < AT_ONCE; a++) {
            vi better = (sums_qq[a] > 0.0f) & (sums_xq[a] * sums_xq[a] > best * sums_qq[a]);
            scale = better ? sums_xq[a] / sums_qq[a] : scale;
            best = better ? scale * sums_xq[a] : best;
        }
    }
    return loudest.size < 1e-15f ? vf{} : scale;
}

// The scale of numbers `first` to `first` + 31, given the mean of squares of the block.
ALWAYS_INLINE TARGET vf value_scale(const Block &block, int first, vf mean_square) {
    vf x[32], weight[32];
    numbers(block, first, x);
    if (block.importance) weigh<32>(x, block.importance + first, mean_square, weight);
    else
        for (int i = 0; i < 32; i++) weight[i] = x[i] * x[i];
    return value_search(x, weight);
}

// Twice the mean of the squares of `count` numbers.
template <int count>
ALWAYS_INLINE TARGET vf twice_mean_square(const Block &block) {
    vf sum = {};
    for (int i = 0; i < count; i++) sum += number(block, i) * number(block, i);
    return sum * (2.0f / count);
}

// d as f16, then the codes, each x = d * value.
TARGET bool iq4_nl(const Block &block, uint8_t (*bytes)[ROWS]) {
    vf d = value_scale(block, 0, twice_mean_square<32>(block)), factor = inverse(d);
    vi half = to_f16(d);
    put_f16(half, bytes);
    for (int i = 0; i < 32; i++) put(nearest_index(factor * number(block, i)), bytes[2 + i]);
    return overflows(half);
}

// 256 numbers in eight groups: d as f16, eight scales, then the codes, each x = d * (scale - 32) * value.
TARGET bool iq4_xs(const Block &block, uint8_t (*bytes)[ROWS]) {
    vf scales[8], mean_square = twice_mean_square<256>(block);
    Loudest loudest = {};
    vi overflow = {};
    for (int g = 0; g < 8; g++) {
        scales[g] = value_scale(block, 32 * g, mean_square);
        louder(loudest, scales[g]);
        // Squares were infinite: ggml makes zeros of such a group.
        overflow |= scales[g] != scales[g];
    }
    vf d = loudest.value / -32.0f, factor = inverse(d);
    vi half = to_f16(d);
    put_f16(half, bytes);
    for (int g = 0; g < 8; g++) {
        vi scale = clamp(nearest(factor * scales[g]), -32, 31);
        put(scale + 32, bytes[2 + g]);
        vf group_factor = inverse(d * to_float(scale));
        for (int i = 32 * g; i < 32 * g + 32; i++)
            put(nearest_index(group_factor * number(block, i)), bytes[10 + i]);
    }
    return any(overflow) || overflows(half);
}

const Type BLOCKS[] = {
    {"Q8_0", 32, 34, nullptr, nullptr, false, nullptr, DIRECT(8, false)},
    {"Q5_1", 32, 24, nullptr, all_rows<searched_line<31>>, true, pack_fives<4>, DIRECT(5, true)},
    {"Q5_0", 32, 22, nullptr, all_rows<searched_symmetric<16>>, true, pack_fives<2>, DIRECT(5, false)},
    {"Q4_1", 32, 20, nullptr, all_rows<searched_line<15>>, true, pack_pairs<4>, DIRECT(4, true)},
    {"Q4_0", 32, 18, nullptr, all_rows<searched_symmetric<8>>, true, pack_pairs<2>, DIRECT(4, false)},
    {"IQ4_NL", 32, 18, all_rows<iq4_nl>, all_rows<iq4_nl>, false, pack_pairs<2>, {}},
    {"IQ4_XS", 256, 136, all_rows<iq4_xs>, all_rows<iq4_xs>, false, pack_iq4_xs, {}},
    {"MXFP4", 32, 17, all_rows<mxfp4>, nullptr, false, pack_pairs<1>, {}},
};

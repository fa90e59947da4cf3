// The encoders of K-quants: superblocks of 256 numbers. kernels.h includes it, and says how they work.
//
// Q6_K and Q3_K: sixteen groups of sixteen, each x = d * scale * (code - middle).

// The codes of the groups for scales that were rounded to d * scale, to `bytes`. Where that is 0, the codes that
// the search found stay.
template <int middle>
ALWAYS_INLINE TARGET void scale_codes(const Block &block, const Scale *groups, vf d, const vi *scales, vi zero,
                                         uint8_t (*bytes)[ROWS]) {
    for (int g = 0; g < 16; g++) {
        vf size = d * to_float(scales[g]);
        vi unscaled = size == 0.0f;
        bool searched = any(unscaled);
        for (int i = 0; i < 16; i++) {
            vf x = number(block, 16 * g + i);
            vi l = clamp(nearest(x / size), -middle, middle - 1) + middle;
            if (searched) l = unscaled ? (zero ? vi{} : scale_code(groups[g], x, middle)) : l;
            put(l, bytes[16 * g + i]);
        }
    }
}

// The bytes of d, then of the sixteen scales, then the codes.
template <bool weighted>
TARGET bool q6_k(const Block &block, uint8_t (*bytes)[ROWS]) {
    Scale groups[16];
    Loudest loudest = {};
    vi overflow = {}, scales[16];
    for (int g = 0; g < 16; g++) {
        vf x[16], weight[16];
        for (int i = 0; i < 16; i++) {
            x[i] = number(block, 16 * g + i);
            weight[i] = weighted ? vf{} + block.importance[16 * g + i] : x[i] * x[i];
        }
        groups[g] = scale_search<16, 32>(x, weight);
        louder(loudest, groups[g].scale);
        // Squares were infinite: ggml makes zeros of such a block.
        overflow |= groups[g].overflow;
    }
    vi zero = loudest.size < 1e-15f;
    vf inverse = -128.0f / loudest.value;
    vi half = zero ? vi{} : to_f16(1.0f / inverse);
    put_f16(half, bytes);
    for (int g = 0; g < 16; g++) {
        vi scale = nearest(inverse * groups[g].scale);
        scale = scale > 127 ? vi{} + 127 : scale;
        scales[g] = zero ? vi{} : scale << 24 >> 24; // stored in eight bits
        put(scales[g], bytes[2 + g]);
    }
    scale_codes<32>(block, groups, from_f16(half), scales, zero, bytes + 18);
    return any(overflow) || overflows(half);
}

ALWAYS_INLINE TARGET vf sum_of_squares(const Block &block) {
    vf sum = {};
    for (int i = 0; i < 256; i++) sum += number(block, i) * number(block, i);
    return sum;
}

// The bytes of d, then of the sixteen scales, 32 more than they are, then the codes.
TARGET bool q3_k_weighted(const Block &block, uint8_t (*bytes)[ROWS]) {
    Scale groups[16];
    vf mean_square = 2.0f * sum_of_squares(block) / 256.0f, sizes[16], weights[16];
    vi overflow = {}, scales[16];
    for (int g = 0; g < 16; g++) {
        vf x[16], weight[16];
        for (int i = 0; i < 16; i++) x[i] = number(block, 16 * g + i);
        weights[g] = weigh<16>(x, block.importance + 16 * g, mean_square, weight);
        groups[g] = scale_search<16, 4>(x, weight);
        sizes[g] = groups[g].scale;
        overflow |= groups[g].overflow | unbounded(weights[g]);
    }
    Scale scale = scale_search<16, 32>(sizes, weights);
    vi half = to_f16(scale.scale);
    put_f16(half, bytes);
    for (int g = 0; g < 16; g++) {
        vi code = scale_code(scale, sizes[g], 32);
        put(code, bytes[2 + g]);
        scales[g] = code - 32;
    }
    scale_codes<4>(block, groups, from_f16(half), scales, vi{}, bytes + 18);
    return any(overflow | scale.overflow) || overflows(half);
}

// As q3_k_weighted has them.
TARGET bool q3_k(const Block &block, uint8_t (*bytes)[ROWS]) {
    vf sizes[16];
    Loudest loudest = {};
    vi overflow = {};
    for (int g = 0; g < 16; g++) {
        vf x[16];
        for (int i = 0; i < 16; i++) x[i] = number(block, 16 * g + i);
        Improved group = improved_search<4>(x);
        sizes[g] = group.scale;
        louder(loudest, group.scale);
        overflow |= group.overflow;
        for (int i = 0; i < 16; i++) put(group.code[i], bytes[18 + 16 * g + i]);
    }
    vi zero = loudest.size == 0.0f;
    vf inverse = -32.0f / loudest.value;
    vi half = zero ? vi{} : to_f16(1.0f / inverse);
    vf d = from_f16(half);
    put_f16(half, bytes);
    for (int g = 0; g < 16; g++) {
        vi scale = clamp(nearest(inverse * sizes[g]) << 24 >> 24, -32, 31);
        scale = zero ? vi{} - 32 : scale;
        put(scale + 32, bytes[2 + g]);
        vf size = d * to_float(scale);
        vi unscaled = size == 0.0f;
        bool searched = any(unscaled);
        for (int i = 0; i < 16; i++) {
            uint8_t *to = bytes[18 + 16 * g + i];
            vi l = clamp(nearest(number(block, 16 * g + i) / size), -4, 3) + 4;
            put(searched ? (unscaled ? get(to) : l) : l, to);
        }
    }
    return any(overflow) || overflows(half);
}

// Q5_K and Q4_K: eight groups of 32, Q2_K: sixteen of 16; each x = d * scale * code - dmin * min.

// The codes of groups of `count` numbers for lines that were rounded to d * scale and dmin * min, to `bytes`. Where
// d * scale is 0, the codes that the search found stay.
template <int count, int top>
ALWAYS_INLINE TARGET void line_codes(const Block &block, const Line *groups, vf d, vf dmin, const vi *scales,
                                     const vi *mins, uint8_t (*bytes)[ROWS]) {
    for (int g = 0; g < 256 / count; g++) {
        vf size = d * to_float(scales[g]), offset = dmin * to_float(mins[g]);
        vi unscaled = size == 0.0f;
        bool searched = any(unscaled);
        for (int i = 0; i < count; i++) {
            vf x = number(block, count * g + i);
            vi l = clamp(nearest((x + offset) / size), 0, top);
            if (searched) {
                vi found = clamp(nearest(groups[g].factor * (x - groups[g].base)), 0, top);
                l = unscaled ? (groups[g].flat ? vi{} : found) : l;
            }
            put(l, bytes[count * g + i]);
        }
    }
}

// The lines of the groups of a block without importance: their largest scale, and their largest minimum.
struct Largest {
    vf scale, min;
};

ALWAYS_INLINE TARGET Largest largest(const Line *groups, int count) {
    Largest found = {};
    for (int g = 0; g < count; g++) {
        found.scale = groups[g].scale > found.scale ? groups[g].scale : found.scale;
        found.min = -groups[g].low > found.min ? -groups[g].low : found.min;
    }
    return found;
}

// What six bits hold of eight scales of eight bits: of the last four, the highest two bits share a byte with the first
// four's, whose own should be zero.
ALWAYS_INLINE TARGET void share_bits(vi *scales) {
    for (int g = 0; g < 4; g++) {
        scales[4 + g] = (scales[4 + g] & 15) | (((scales[g] >> 6) | (scales[4 + g] >> 4)) & 3) << 4;
        scales[g] &= 63;
    }
}

// The bytes of d and dmin, then of the eight scales and minima, then the codes.
template <int top>
ALWAYS_INLINE TARGET bool put_k(const Block &block, const Line *groups, vi half, vi half_min, vi *scales, vi *mins,
                                uint8_t (*bytes)[ROWS]) {
    put_f16(half, bytes);
    put_f16(half_min, bytes + 2);
    for (int g = 0; g < 8; g++) {
        put(scales[g], bytes[4 + g]);
        put(mins[g], bytes[12 + g]);
    }
    share_bits(scales);
    share_bits(mins);
    line_codes<32, top>(block, groups, from_f16(half), from_f16(half_min), scales, mins, bytes + 20);
    return overflows(half) || overflows(half_min);
}

template <int top, int steps>
ALWAYS_INLINE TARGET bool k_plain(const Block &block, float shift, uint8_t (*bytes)[ROWS]) {
    Line groups[8];
    for (int g = 0; g < 8; g++) {
        vf x[32], weight[32], squares = {};
        for (int i = 0; i < 32; i++) {
            x[i] = number(block, 32 * g + i);
            squares += x[i] * x[i];
        }
        vf mean = root(squares / 32.0f);
        for (int i = 0; i < 32; i++) weight[i] = mean + magnitude(x[i]);
        groups[g] = line_search<top, steps>(x, weight, shift, 0.1f);
    }
    Largest most = largest(groups, 8);
    vf inverse = most.scale > 0.0f ? 63.0f / most.scale : vf{};
    vf inverse_min = most.min > 0.0f ? 63.0f / most.min : vf{};
    vi scales[8], mins[8];
    for (int g = 0; g < 8; g++) {
        // stored in eight bits before six
        scales[g] = clamp(nearest(inverse * groups[g].scale) & 0xff, 0, 63);
        mins[g] = clamp(nearest(inverse_min * -groups[g].low) & 0xff, 0, 63);
    }
    return put_k<top>(block, groups, to_f16(most.scale / 63.0f), to_f16(most.min / 63.0f), scales, mins, bytes);
}

// Lines of groups of `count` numbers, whose scales and minima have codes up to `most`.
template <int count, int top, int most>
ALWAYS_INLINE TARGET bool lines_weighted(const Block &block, vf mean_square, Line *groups, vi &half, vi &half_min,
                                         vi *scales, vi *mins) {
    constexpr int number_of = 256 / count;
    vf sizes[number_of], lows[number_of], weights[number_of];
    vi overflow = {};
    for (int g = 0; g < number_of; g++) {
        vf x[count], weight[count];
        for (int i = 0; i < count; i++) x[i] = number(block, count * g + i);
        weights[g] = weigh<count>(x, block.importance + count * g, mean_square, weight);
        groups[g] = line_search<top, 36, count>(x, weight, -0.9f, 0.05f);
        sizes[g] = groups[g].scale;
        lows[g] = -groups[g].low;
        overflow |= unbounded(weights[g]) | unbounded(sizes[g]) | unbounded(lows[g]);
    }
    half = to_f16(positive_search<number_of, most>(sizes, weights, scales, overflow));
    half_min = to_f16(positive_search<number_of, most>(lows, weights, mins, overflow));
    return any(overflow);
}

template <int top>
ALWAYS_INLINE TARGET bool k_weighted(const Block &block, uint8_t (*bytes)[ROWS]) {
    Line groups[8];
    vi half, half_min, scales[8], mins[8];
    vf mean_square = 2.0f * sum_of_squares(block) / 256.0f;
    bool overflow = lines_weighted<32, top, 63>(block, mean_square, groups, half, half_min, scales, mins);
    if (top == 31) // not in Q4_K
        for (int g = 0; g < 8; g++) {
            scales[g] = clamp(scales[g], 0, 63);
            mins[g] = clamp(mins[g], 0, 63);
        }
    return put_k<top>(block, groups, half, half_min, scales, mins, bytes) || overflow;
}

TARGET bool q5_k(const Block &block, uint8_t (*bytes)[ROWS]) { return k_plain<31, 15>(block, -0.5f, bytes); }

TARGET bool q5_k_weighted(const Block &block, uint8_t (*bytes)[ROWS]) { return k_weighted<31>(block, bytes); }

TARGET bool q4_k(const Block &block, uint8_t (*bytes)[ROWS]) { return k_plain<15, 20>(block, -1.0f, bytes); }

TARGET bool q4_k_weighted(const Block &block, uint8_t (*bytes)[ROWS]) { return k_weighted<15>(block, bytes); }

// The bytes of d and dmin, then the sixteen scales with a minimum each in their high bits, then the codes.
ALWAYS_INLINE TARGET bool put_q2_k(const Block &block, const Line *groups, vi half, vi half_min, vi *scales, vi *mins,
                                   uint8_t (*bytes)[ROWS]) {
    put_f16(half, bytes);
    put_f16(half_min, bytes + 2);
    for (int g = 0; g < 16; g++) {
        vi both = (scales[g] | mins[g] << 4) & 0xff;
        put(both, bytes[4 + g]);
        scales[g] = both & 15;
        mins[g] = both >> 4;
    }
    line_codes<16, 3>(block, groups, from_f16(half), from_f16(half_min), scales, mins, bytes + 20);
    return overflows(half) || overflows(half_min);
}

TARGET bool q2_k(const Block &block, uint8_t (*bytes)[ROWS]) {
    Line groups[16];
    for (int g = 0; g < 16; g++) {
        vf x[16], weight[16];
        for (int i = 0; i < 16; i++) {
            x[i] = number(block, 16 * g + i);
            weight[i] = magnitude(x[i]);
        }
        groups[g] = line_search<3, 15, 16, true>(x, weight, -0.5f, 0.1f);
    }
    Largest most = largest(groups, 16);
    vf inverse = 15.0f / most.scale, inverse_min = 15.0f / most.min;
    vi scales[16], mins[16];
    for (int g = 0; g < 16; g++) {
        scales[g] = most.scale > 0.0f ? nearest(inverse * groups[g].scale) : vi{};
        mins[g] = most.min > 0.0f ? nearest(inverse_min * -groups[g].low) : vi{};
    }
    return put_q2_k(block, groups, to_f16(most.scale / 15.0f), to_f16(most.min / 15.0f), scales, mins, bytes);
}

TARGET bool q2_k_weighted(const Block &block, uint8_t (*bytes)[ROWS]) {
    Line groups[16];
    vi half, half_min, scales[16], mins[16];
    vf mean_square = sum_of_squares(block) / 256.0f;
    bool overflow = lines_weighted<16, 3, 15>(block, mean_square, groups, half, half_min, scales, mins);
    return put_q2_k(block, groups, half, half_min, scales, mins, bytes) || overflow;
}

const Type K_QUANTS[] = {
    {"Q6_K", 256, 210, all_rows<q6_k<false>>, all_rows<q6_k<true>>, false, pack_q6_k, {}},
    {"Q5_K", 256, 176, all_rows<q5_k>, all_rows<q5_k_weighted>, false, pack_q5_k, {}},
    {"Q4_K", 256, 144, all_rows<q4_k>, all_rows<q4_k_weighted>, false, pack_q4_k, {}},
    {"Q3_K", 256, 110, all_rows<q3_k>, all_rows<q3_k_weighted>, false, pack_q3_k, {}},
    {"Q2_K", 256, 84, all_rows<q2_k>, all_rows<q2_k_weighted>, false, pack_q2_k, {}},
};

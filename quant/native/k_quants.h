// The encoders of K-quants: superblocks of 256 numbers. kernels.h includes it, and says how they work.

// Q6_K of 256 numbers: sixteen groups of sixteen, each x = d * scale * (code - 32).

// The bytes of d, then of the sixteen scales, then the codes.
TARGET bool q6_k(const Block &block, uint8_t (*bytes)[ROWS]) {
    Scale groups[16];
    Loudest loudest = {};
    vi overflow = {};
    for (int g = 0; g < 16; g++) {
        vf x[16], square[16];
        for (int i = 0; i < 16; i++) {
            x[i] = number(block, 16 * g + i);
            square[i] = x[i] * x[i];
        }
        groups[g] = scale_search<16, 32>(x, square);
        louder(loudest, groups[g].scale);
        // Squares were infinite: ggml makes zeros of such a block.
        overflow |= groups[g].scale != groups[g].scale;
    }
    vi zero = loudest.size < 1e-15f;
    vf inverse = -128.0f / loudest.value;
    vi half = zero ? vi{} : to_f16(1.0f / inverse);
    vf d = from_f16(half);
    put_f16(half, bytes);
    for (int g = 0; g < 16; g++) {
        vi scale = nearest(inverse * groups[g].scale);
        scale = scale > 127 ? vi{} + 127 : scale;
        scale = zero ? vi{} : scale << 24 >> 24; // stored in eight bits
        put(scale, bytes[2 + g]);
        vf size = d * to_float(scale);
        vi unscaled = size == 0.0f, silent = groups[g].silent | zero;
        bool searched = any(unscaled);
        for (int i = 0; i < 16; i++) {
            vf x = number(block, 16 * g + i);
            vi l = clamp(nearest(x / size), -32, 31) + 32;
            if (searched) {
                vi found = clamp(nearest(groups[g].factor * x), -32, 31) + 32;
                l = unscaled ? (silent ? vi{} : found) : l;
            }
            put(l, bytes[18 + 16 * g + i]);
        }
    }
    return any(overflow) || overflows(half);
}

// Q4_K and Q5_K of 256 numbers: eight groups of 32, each x = d * scale * code - dmin * min.

// Weights of 32 numbers: their size and their root mean square together.
ALWAYS_INLINE TARGET void weigh_by_size(const vf *x, vf *weight) {
    vf squares = {};
    for (int i = 0; i < 32; i++) squares += x[i] * x[i];
    vf mean = root(squares / 32.0f);
    for (int i = 0; i < 32; i++) weight[i] = mean + magnitude(x[i]);
}

// The bytes of d and dmin, then of the eight scales and minima, then the codes.
template <int top, int steps>
ALWAYS_INLINE TARGET bool k_codes(const Block &block, float shift, uint8_t (*bytes)[ROWS]) {
    Line groups[8];
    vf most_scale = {}, most_min = {};
    for (int g = 0; g < 8; g++) {
        vf x[32], weight[32];
        for (int i = 0; i < 32; i++) x[i] = number(block, 32 * g + i);
        weigh_by_size(x, weight);
        groups[g] = line_search<top, steps>(x, weight, shift, 0.1f);
        most_scale = groups[g].scale > most_scale ? groups[g].scale : most_scale;
        most_min = -groups[g].low > most_min ? -groups[g].low : most_min;
    }
    vf inverse_scale = most_scale > 0.0f ? 63.0f / most_scale : vf{};
    vf inverse_min = most_min > 0.0f ? 63.0f / most_min : vf{};
    vi half = to_f16(most_scale / 63.0f), half_min = to_f16(most_min / 63.0f);
    vf d = from_f16(half), dmin = from_f16(half_min);
    put_f16(half, bytes);
    put_f16(half_min, bytes + 2);
    for (int g = 0; g < 8; g++) {
        // stored in eight bits before six
        vi scale = clamp(nearest(inverse_scale * groups[g].scale) & 0xff, 0, 63);
        vi min = clamp(nearest(inverse_min * -groups[g].low) & 0xff, 0, 63);
        put(scale, bytes[4 + g]);
        put(min, bytes[12 + g]);
        vf size = d * to_float(scale), offset = dmin * to_float(min);
        vi unscaled = size == 0.0f;
        bool searched = any(unscaled);
        for (int i = 0; i < 32; i++) {
            vf x = number(block, 32 * g + i);
            vi l = clamp(nearest((x + offset) / size), 0, top);
            if (searched) {
                vi found = clamp(nearest(groups[g].factor * (x - groups[g].base)), 0, top);
                l = unscaled ? (groups[g].flat ? vi{} : found) : l;
            }
            put(l, bytes[20 + 32 * g + i]);
        }
    }
    return overflows(half) || overflows(half_min);
}

TARGET bool q4_k(const Block &block, uint8_t (*bytes)[ROWS]) { return k_codes<15, 20>(block, -1.0f, bytes); }

TARGET bool q5_k(const Block &block, uint8_t (*bytes)[ROWS]) { return k_codes<31, 15>(block, -0.5f, bytes); }

const Type K_QUANTS[] = {
    {"Q6_K", 256, 210, all_rows<q6_k>, nullptr, false, pack_q6_k},
    {"Q5_K", 256, 176, all_rows<q5_k>, nullptr, false, pack_q5_k},
    {"Q4_K", 256, 144, all_rows<q4_k>, nullptr, false, pack_q4_k},
};

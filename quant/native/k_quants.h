// The encoders of K-quants: superblocks of 256 numbers. kernels.h includes it, and says how they work.

// Q6_K of 256 numbers: sixteen groups of sixteen, each x = d * scale * (code - 32).

struct Loudest {
    vf size, value; // of the number farthest from zero
};

ALWAYS_INLINE TARGET void louder(Loudest &loudest, vf x) {
    vi larger = magnitude(x) > loudest.size;
    loudest.size = larger ? magnitude(x) : loudest.size;
    loudest.value = larger ? x : loudest.value;
}

struct SixBits {
    vf scale;  // 0 where all numbers of the group are
    vf factor; // The codes that the search found are nearest(factor * x) + 32,
    vi silent; // and 0 where all numbers are.
};

// The scale of a group with the least error weighted by x squared, of nineteen.
ALWAYS_INLINE TARGET SixBits q6_k_search(const vf *x) {
    Loudest loudest = {};
    vf square[16], cube[16];
    for (int i = 0; i < 16; i++) {
        louder(loudest, x[i]);
        square[i] = x[i] * x[i];
        cube[i] = square[i] * x[i];
    }
    vf best = {}, scale = {}, factor = {};
    for (int attempt = 0; attempt < 19; attempt++) {
        // 0 first, then -9 to 9 without it
        int offset = attempt == 0 ? 0 : attempt <= 9 ? attempt - 10 : attempt - 9;
        vf candidate = -(32 + 0.1f * offset) / loudest.value;
        vf sum_xl = {}, sum_ll = {};
        UNROLL for (int i = 0; i < 16; i++) {
            vf l = to_float(clamp(nearest(candidate * x[i]), -32, 31));
            sum_xl += cube[i] * l;
            sum_ll += square[i] * l * l;
        }
        vi better = attempt == 0 ? sum_ll != 0.0f : (sum_ll > 0.0f) & (sum_xl * sum_xl > best * sum_ll);
        scale = better ? sum_xl / sum_ll : scale;
        best = better ? scale * sum_xl : best;
        factor = attempt == 0 ? candidate : better ? candidate : factor;
    }
    vi silent = loudest.size < 1e-15f;
    return {silent ? vf{} : scale, factor, silent};
}

// The bytes of d, then of the sixteen scales, then the codes.
TARGET bool q6_k(const Block &block, uint8_t (*bytes)[ROWS]) {
    SixBits groups[16];
    Loudest loudest = {};
    vi overflow = {};
    for (int g = 0; g < 16; g++) {
        vf x[16];
        for (int i = 0; i < 16; i++) x[i] = number(block, 16 * g + i);
        groups[g] = q6_k_search(x);
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

struct Line {
    vf scale;  // 0 where all numbers of the group are equal
    vf low;    // what code 0 stands for: never above 0
    vf factor; // The codes that the search found are nearest(factor * (x - base)),
    vf base;
    vi flat; // and 0 where all numbers are equal.
};

// The scale and the lowest value of a group with the least squared error, each number weighing as much
// as its size and their root mean square. Codes go up to `top`; `shift` makes the first of `steps` + 1
// scales.
template <int top, int steps>
ALWAYS_INLINE TARGET Line k_search(const vf *x, float shift) {
    vf squares = {}, weight[32], code[32];
    for (int i = 0; i < 32; i++) squares += x[i] * x[i];
    vf mean = squares / 32.0f;
    for (int lane = 0; lane < LANES; lane++) mean[lane] = __builtin_sqrtf(mean[lane]);
    for (int i = 0; i < 32; i++) weight[i] = mean + magnitude(x[i]);

    vf low = x[0], high = x[0], sum_w = weight[0], sum_x = weight[0] * x[0];
    for (int i = 1; i < 32; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_w += weight[i];
        sum_x += weight[i] * x[i];
    }
    low = low > 0.0f ? vf{} : low;
    vi flat = low == high;

    vf factor = (float)top / (high - low), scale = 1.0f / factor, base = low, least = {};
    for (int i = 0; i < 32; i++) {
        vf l = to_float(clamp(nearest(factor * (x[i] - low)), 0, top));
        vf error = scale * l + low - x[i];
        least += weight[i] * (error * error);
    }
    for (int attempt = 0; attempt <= steps; attempt++) {
        vf candidate = (shift + 0.1f * attempt + top) / (high - low);
        vf sum_l = {}, sum_ll = {}, sum_xl = {};
        UNROLL for (int i = 0; i < 32; i++) {
            vf l = to_float(clamp(nearest(candidate * (x[i] - low)), 0, top));
            vf weighed = weight[i] * l;
            code[i] = l;
            sum_l += weighed;
            sum_ll += weighed * l;
            sum_xl += weighed * x[i];
        }
        // The least squares fit of a line through the codes, or of one through the origin.
        vf determinant = sum_w * sum_ll - sum_l * sum_l;
        vf new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        vf new_low = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
        vi positive = new_low > 0.0f;
        new_low = positive ? vf{} : new_low;
        new_scale = positive ? sum_xl / sum_ll : new_scale;
        vf sum = {};
        UNROLL for (int i = 0; i < 32; i++) {
            vf error = new_scale * code[i] + new_low - x[i];
            sum += weight[i] * (error * error);
        }
        vi better = (determinant > 0.0f) & (sum < least);
        least = better ? sum : least;
        scale = better ? new_scale : scale;
        factor = better ? candidate : factor;
        base = better ? low : base;
        low = better ? new_low : low;
    }
    return {flat ? vf{} : scale, low, factor, base, flat};
}

// The bytes of d and dmin, then of the eight scales and minima, then the codes.
template <int top, int steps>
ALWAYS_INLINE TARGET bool k_codes(const Block &block, float shift, uint8_t (*bytes)[ROWS]) {
    Line groups[8];
    vf most_scale = {}, most_min = {};
    for (int g = 0; g < 8; g++) {
        vf x[32];
        for (int i = 0; i < 32; i++) x[i] = number(block, 32 * g + i);
        groups[g] = k_search<top, steps>(x, shift);
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

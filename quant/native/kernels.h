// The encoders of ROWS rows at a time, for one instruction set.
//
// native.cpp includes this file once for each instruction set, inside a namespace, with TARGET (a
// function attribute) and LANES (how many numbers one register holds) defined.
//
// Promises the very bytes of ggml's reference encoders (ggml-quants.c, quantize_row_*_ref) for numbers
// that are finite. They search each block for the scale with the least error, number by number, and a
// sum must be added up in the same order to round to the same bits. Here a lane of a vector holds one
// row: many rows are searched side by side, and within a row nothing changes its order. It also is why
// a tensor that has to be transposed need not be: neighbours in memory are rows already.
//
// Number i of row r is halves[i * WIDTH + r], in bf16. Codes are kept in the same order, bytes[i][r],
// until they are packed; then `scatter` gives each row its own.

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef uint8_t vc __attribute__((vector_size(LANES)));

ALWAYS_INLINE TARGET vf number(const uint16_t *halves) {
    vh h;
    memcpy(&h, halves, sizeof h);
    return (vf)(__builtin_convertvector(h, vi) << 16);
}

ALWAYS_INLINE TARGET void put(vi x, uint8_t *bytes) {
    vc c = __builtin_convertvector(x, vc);
    memcpy(bytes, &c, sizeof c);
}

ALWAYS_INLINE TARGET vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }

ALWAYS_INLINE TARGET bool any(vi mask) {
    int32_t found = 0;
    for (int lane = 0; lane < LANES; lane++) found |= mask[lane];
    return found != 0;
}

// To the nearest whole number, ties to even: the last bits of the sum are the result. What is too large
// for that wraps around as it does in ggml's nearest_int.
ALWAYS_INLINE TARGET vi nearest(vf x) { return ((vi)(x + 12582912.0f) & 0x007fffff) - 0x00400000; }

ALWAYS_INLINE TARGET vi clamp(vi x, int32_t least, int32_t most) {
    x = x > least ? x : vi{} + least;
    return x < most ? x : vi{} + most;
}

ALWAYS_INLINE TARGET vf to_float(vi x) { return __builtin_convertvector(x, vf); }

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

// Each of the encoders below searches LANES rows, whose columns of `bytes` it fills, and returns whether
// a scale overflowed.

// Q8_0 of 32 numbers: d as f16, then the codes, each x = d * code.
TARGET bool q8_0(const uint16_t *halves, uint8_t (*bytes)[ROWS]) {
    vf most = {};
    for (int i = 0; i < 32; i++) {
        vf size = magnitude(number(halves + i * WIDTH));
        most = size > most ? size : most;
    }
    vf d = most / 127.0f;
    vf inverse = d != 0.0f ? 1.0f / d : vf{};
    vi half = to_f16(d);
    put_f16(half, bytes);
    for (int i = 0; i < 32; i++) {
        vf x = number(halves + i * WIDTH) * inverse;
        // Halves go away from zero: only what is at least one carries over with the largest f32 below it.
        vi nudge = ((vi)x & (int32_t)0x80000000) | 0x3effffff;
        put(__builtin_convertvector(x + (vf)nudge, vi), bytes[2 + i]);
    }
    return overflows(half);
}

// Q4_0 of 32 numbers: d as f16, then the codes, each x = d * (code - 8).
TARGET bool q4_0(const uint16_t *halves, uint8_t (*bytes)[ROWS]) {
    vf most = {}, signed_most = {};
    for (int i = 0; i < 32; i++) {
        vf x = number(halves + i * WIDTH);
        vi larger = magnitude(x) > most;
        most = larger ? magnitude(x) : most;
        signed_most = larger ? x : signed_most;
    }
    vf d = signed_most / -8.0f;
    vf inverse = d != 0.0f ? 1.0f / d : vf{};
    vi half = to_f16(d);
    put_f16(half, bytes);
    for (int i = 0; i < 32; i++) {
        vf x = number(halves + i * WIDTH) * inverse + 8.5f;
        put(clamp(__builtin_convertvector(x, vi) & 0xff, 0, 15), bytes[2 + i]);
    }
    return overflows(half);
}

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
TARGET bool q6_k(const uint16_t *halves, uint8_t (*bytes)[ROWS]) {
    SixBits groups[16];
    Loudest loudest = {};
    vi overflow = {};
    for (int g = 0; g < 16; g++) {
        vf x[16];
        for (int i = 0; i < 16; i++) x[i] = number(halves + (16 * g + i) * WIDTH);
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
            vf x = number(halves + (16 * g + i) * WIDTH);
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
ALWAYS_INLINE TARGET bool k_codes(const uint16_t *halves, float shift, uint8_t (*bytes)[ROWS]) {
    Line groups[8];
    vf most_scale = {}, most_min = {};
    for (int g = 0; g < 8; g++) {
        vf x[32];
        for (int i = 0; i < 32; i++) x[i] = number(halves + (32 * g + i) * WIDTH);
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
            vf x = number(halves + (32 * g + i) * WIDTH);
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

TARGET bool q4_k(const uint16_t *halves, uint8_t (*bytes)[ROWS]) { return k_codes<15, 20>(halves, -1.0f, bytes); }

TARGET bool q5_k(const uint16_t *halves, uint8_t (*bytes)[ROWS]) { return k_codes<31, 15>(halves, -0.5f, bytes); }

template <bool (*encoder)(const uint16_t *, uint8_t (*)[ROWS])>
TARGET bool all_rows(const uint16_t *halves, uint8_t (*bytes)[ROWS]) {
    bool overflow = false;
    for (int row = 0; row < ROWS; row += LANES)
        overflow |= encoder(halves + row, (uint8_t (*)[ROWS])(bytes[0] + row));
    return overflow;
}

// An exponent of all ones says that a number is none, or infinite.
TARGET bool finite(const Tile &tile, size_t depth) {
    uint16_t worst[WIDTH] = {};
    for (size_t i = 0; i < depth; i++)
        for (int r = 0; r < WIDTH; r++) worst[r] |= (tile[i][r] & 0x7f80) == 0x7f80;
    uint16_t found = 0;
    for (uint16_t one : worst) found |= one;
    return found == 0;
}

const Encoders encoders = {finite, all_rows<q8_0>, all_rows<q4_0>, all_rows<q6_k>, all_rows<q4_k>, all_rows<q5_k>};

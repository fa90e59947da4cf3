// Searches for the scale of a group of numbers. kernels.h includes it; the encoders use it.
//
// Numbers are given with weights: how much the square of an error counts.

struct Loudest {
    vf size, value; // of the number farthest from zero
};

ALWAYS_INLINE TARGET void louder(Loudest &loudest, vf x) {
    vi larger = magnitude(x) > loudest.size;
    loudest.size = larger ? magnitude(x) : loudest.size;
    loudest.value = larger ? x : loudest.value;
}

ALWAYS_INLINE TARGET vf root(vf x) {
    for (int lane = 0; lane < LANES; lane++) x[lane] = __builtin_sqrtf(x[lane]);
    return x;
}

// Codes from -middle to middle - 1, each x = scale * code: ggml's make_qx_quants.
struct Scale {
    vf scale;  // 0 where all numbers or all weights are 0
    vf factor; // The codes that the search found are nearest(factor * x) + middle,
    vi silent; // and 0 where all numbers are 0.
};

// The scale with the least error of nineteen.
template <int count, int middle>
ALWAYS_INLINE TARGET Scale scale_search(const vf *x, const vf *weight) {
    Loudest loudest = {};
    vf weighed[count];
    for (int i = 0; i < count; i++) {
        louder(loudest, x[i]);
        weighed[i] = weight[i] * x[i];
    }
    vf best = {}, scale = {}, factor = {};
    for (int attempt = 0; attempt < 19; attempt++) {
        // 0 first, then -9 to 9 without it
        int offset = attempt == 0 ? 0 : attempt <= 9 ? attempt - 10 : attempt - 9;
        vf candidate = -(middle + 0.1f * offset) / loudest.value;
        vf sum_xl = {}, sum_ll = {};
        UNROLL for (int i = 0; i < count; i++) {
            vf l = to_float(clamp(nearest(candidate * x[i]), -middle, middle - 1));
            sum_xl += weighed[i] * l;
            sum_ll += weight[i] * l * l;
        }
        vi better = attempt == 0 ? sum_ll != 0.0f : (sum_ll > 0.0f) & (sum_xl * sum_xl > best * sum_ll);
        scale = better ? sum_xl / sum_ll : scale;
        best = better ? scale * sum_xl : best;
        factor = attempt == 0 ? candidate : better ? candidate : factor;
    }
    vi silent = loudest.size < 1e-15f;
    return {silent ? vf{} : scale, factor, silent};
}

// Codes from 0 to top, each x = scale * code + low: ggml's make_qkx2_quants and make_qkx3_quants.
struct Line {
    vf scale;  // 0 where all numbers of the group are equal
    vf low;    // what code 0 stands for: never above 0
    vf factor; // The codes that the search found are nearest(factor * (x - base)),
    vf base;
    vi flat; // and 0 where all numbers are equal.
};

// The scale and the lowest value with the least error of 32 numbers. `shift` makes the first of `steps` + 1
// scales, `step` the others.
template <int top, int steps>
ALWAYS_INLINE TARGET Line line_search(const vf *x, const vf *weight, float shift, float step) {
    vf low = x[0], high = x[0], sum_w = weight[0], sum_x = weight[0] * x[0], code[32];
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
        vf candidate = (shift + step * attempt + top) / (high - low);
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

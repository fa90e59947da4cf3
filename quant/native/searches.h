// Searches for the scale of a group of numbers. kernels.h includes it; the encoders use it.
//
// Numbers are given with weights: how much the square of an error counts. `overflow` says that a sum was too large
// for a search to mean anything.

struct Loudest {
    vf size, value; // of the number farthest from zero
};

ALWAYS_INLINE TARGET void louder(Loudest &loudest, vf x) {
    vi larger = magnitude(x) > loudest.size;
    loudest.size = larger ? magnitude(x) : loudest.size;
    loudest.value = larger ? x : loudest.value;
}

// Codes from -middle to middle - 1, each x = scale * code.
struct Scale {
    vf scale;  // 0 where all numbers of the group are
    vf factor; // The codes that the search found are nearest(factor * x) + middle,
    vi silent; // and 0 where all numbers are.
    vi overflow;
};

// The scale of a group with the least weighted error, of nineteen: make_qx_quants.
template <int count, int middle>
ALWAYS_INLINE TARGET Scale scale_search(const vf *x, const vf *weight) {
    Loudest loudest = {};
    vf weighed[count];
    for (int i = 0; i < count; i++) {
        louder(loudest, x[i]);
        weighed[i] = weight[i] * x[i];
    }
    vf best = {}, scale = {}, factor = {};
    vi silent = loudest.size < 1e-15f, overflow = {};
    for (int attempt = 0; attempt < 19; attempt++) {
        // 0 first, then -9 to 9 without it
        int offset = attempt == 0 ? 0 : attempt <= 9 ? attempt - 10 : attempt - 9;
        vf candidate = -(middle + 0.1f * offset) / loudest.value;
        vf sum_xl = {}, sum_ll = {};
        UNROLL for (int i = 0; i < count; i++) {
            // Never too large for it, where the group is not silent.
            vf l = within(round(candidate * x[i]), -middle, middle - 1);
            sum_xl += weighed[i] * l;
            sum_ll += weight[i] * l * l;
        }
        vi better = attempt == 0 ? sum_ll != 0.0f : (sum_ll > 0.0f) & (sum_xl * sum_xl > best * sum_ll);
        scale = better ? sum_xl / sum_ll : scale;
        best = better ? scale * sum_xl : best;
        factor = attempt == 0 ? candidate : better ? candidate : factor;
        if (attempt == 0) overflow = unbounded(sum_xl) | unbounded(sum_ll);
    }
    return {silent ? vf{} : scale, factor, silent, ~silent & (overflow | unbounded(scale))};
}

ALWAYS_INLINE TARGET vi scale_code(const Scale &group, vf x, int middle) {
    vi found = clamp(nearest(group.factor * x), -middle, middle - 1) + middle;
    return group.silent ? vi{} : found;
}

// Two groups at a time: each step of the search waits for the one before it.
struct Pair {
    vf scale[2];
    vf code[2][16]; // from -4 to 3, or -4 where all numbers are 0
    vi overflow;
};

// One number's code to what fits the others best: its share is taken out of both sums, and comes back in.
ALWAYS_INLINE TARGET vi improve(vf x, vf weight, vf &code, vf &sum_xl, vf &sum_ll) {
    vf weighed = weight * x;
    vf xl = sum_xl - weighed * code, ll = sum_ll - weight * code * code;
    vf next = to_float(clamp(nearest(x * ll / xl), -4, 3));
    vi better = (xl > 0.0f) & (next != code);
    xl += weighed * next;
    ll += weight * next * next;
    better &= (ll > 0.0f) & (xl * xl * sum_ll > sum_xl * sum_xl * ll);
    code = better ? next : code;
    sum_xl = better ? xl : sum_xl;
    sum_ll = better ? ll : sum_ll;
    return better;
}

// Scales with codes that are improved one by one, five times at most: make_q3_quants.
ALWAYS_INLINE TARGET Pair pair_search(const vf (*x)[16]) {
    Pair pair = {};
    vf weight[2][16], sum_xl[2] = {}, sum_ll[2] = {};
    vi silent[2];
    for (int g = 0; g < 2; g++) {
        Loudest loudest = {};
        for (int i = 0; i < 16; i++) louder(loudest, x[g][i]);
        silent[g] = loudest.size < 1e-15f;
        pair.overflow |= unbounded(loudest.size * loudest.size);
        vf factor = -4.0f / loudest.value;
        for (int i = 0; i < 16; i++) {
            vf l = within(round(factor * x[g][i]), -4, 3);
            weight[g][i] = x[g][i] * x[g][i];
            sum_xl[g] += weight[g][i] * x[g][i] * l;
            sum_ll[g] += weight[g][i] * l * l;
            pair.code[g][i] = l;
        }
    }
    for (int attempt = 0; attempt < 5; attempt++) {
        vi changed = {};
        for (int i = 0; i < 16; i++)
            for (int g = 0; g < 2; g++)
                changed |= improve(x[g][i], weight[g][i], pair.code[g][i], sum_xl[g], sum_ll[g]) & ~silent[g];
        if (!any(changed)) break;
    }
    for (int g = 0; g < 2; g++) {
        vi none = silent[g] | ~(sum_ll[g] > 0.0f);
        pair.scale[g] = none ? vf{} : sum_xl[g] / sum_ll[g];
        pair.overflow |= unbounded(pair.scale[g]);
        for (int i = 0; i < 16; i++) pair.code[g][i] = silent[g] ? vf{} - 4.0f : pair.code[g][i];
    }
    return pair;
}

// Codes from 0 to top, each x = scale * code + low.
struct Line {
    vf scale;  // 0 where all numbers of the group are equal
    vf low;    // what code 0 stands for: never above 0
    vf factor; // The codes that the search found are nearest(factor * (x - base)),
    vf base;
    vi flat; // and 0 where all numbers are equal.
};

// Codes of numbers, as float32. `wild` says that a quotient may be too large for `round`.
template <int top>
ALWAYS_INLINE TARGET vf line_code(vf x, vf factor, vf low, bool wild) {
    vf quotient = factor * (x - low);
    if (wild) return to_float(clamp(nearest(quotient), 0, top));
    return within(round(quotient), 0, top);
}

template <bool absolute>
ALWAYS_INLINE TARGET vf weighed_error(vf error, vf weight) {
    return weight * (absolute ? magnitude(error) : error * error);
}

// What the codes of one factor come to.
struct Fit {
    vf scale, low, error;
    vi valid;
};

template <int count, int top, bool absolute>
ALWAYS_INLINE TARGET Fit fit(const vf *x, const vf *weight, vf sum_w, vf sum_x, vf factor, vf low, bool wild) {
    vf sum_l = {}, sum_ll = {}, sum_xl = {}, code[count];
    UNROLL for (int i = 0; i < count; i++) {
        vf l = line_code<top>(x[i], factor, low, wild);
        vf weighed = weight[i] * l;
        code[i] = l;
        sum_l += weighed;
        sum_ll += weighed * l;
        sum_xl += weighed * x[i];
    }
    // The least squares fit of a line through the codes, or of one through the origin.
    vf determinant = sum_w * sum_ll - sum_l * sum_l;
    vf scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    vf new_low = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
    vi positive = new_low > 0.0f;
    new_low = positive ? vf{} : new_low;
    scale = positive ? sum_xl / sum_ll : scale;
    vf error = {};
    UNROLL for (int i = 0; i < count; i++) error += weighed_error<absolute>(scale * code[i] + new_low - x[i], weight[i]);
    return {scale, new_low, error, determinant > 0.0f};
}

// The scale and the lowest value of a group with the least weighted error: make_qkx2_quants, and make_qkx3_quants.
// Codes go up to `top`; `shift` makes the first of `steps` + 1 factors, which are `step` apart.
template <int top, int steps, int count = 32, bool absolute = false>
ALWAYS_INLINE TARGET Line line_search(const vf *x, const vf *weight, float shift, float step) {
    vf lowest = x[0], high = x[0], sum_w = weight[0], sum_x = weight[0] * x[0];
    for (int i = 1; i < count; i++) {
        lowest = x[i] < lowest ? x[i] : lowest;
        high = x[i] > high ? x[i] : high;
        sum_w += weight[i];
        sum_x += weight[i] * x[i];
    }
    vf low = lowest > 0.0f ? vf{} : lowest;
    vi flat = low == high;

    vf factor = (float)top / (high - low), scale = 1.0f / factor, base = low, least = {};
    for (int i = 0; i < count; i++) {
        vf l = line_code<top>(x[i], factor, low, true);
        least += weighed_error<absolute>(scale * l + low - x[i], weight[i]);
    }
    for (int attempt = 0; attempt <= steps; attempt++) {
        vf candidate = (shift + step * attempt + top) / (high - low);
        vf most = magnitude(candidate * (high - low)), least_code = magnitude(candidate * (lowest - low));
        vi tame = (most < 4e6f) & (least_code < 4e6f);
        const bool wild = any(~(tame | flat));
        Fit found;
        if (__builtin_expect(wild, false))
            found = fit<count, top, absolute>(x, weight, sum_w, sum_x, candidate, low, true);
        else
            found = fit<count, top, absolute>(x, weight, sum_w, sum_x, candidate, low, false);
        vi better = found.valid & (found.error < least);
        least = better ? found.error : least;
        scale = better ? found.scale : scale;
        factor = better ? candidate : factor;
        base = better ? low : base;
        low = better ? found.low : low;
    }
    return {flat ? vf{} : scale, low, factor, base, flat};
}

// The scale of a few numbers with codes up to `top` that has the least weighted error: make_qp_quants, whose codes
// are of eight bits.
template <int count, int top>
ALWAYS_INLINE TARGET vf positive_search(const vf *x, const vf *weight, vi *codes, vi &overflow) {
    vf most = {};
    for (int i = 0; i < count; i++) most = most > x[i] ? most : x[i];
    vi zero = most < 1e-15f;
    vf factor = {}, least = {};
    for (int attempt = 0; attempt < 9; attempt++) {
        // 0 first, then -4 to 4 without it
        int offset = attempt == 0 ? 0 : attempt <= 4 ? attempt - 5 : attempt - 4;
        vf candidate = (0.1f * offset + top) / most, scale = 1.0f / candidate, error = {};
        for (int i = 0; i < count; i++) {
            vi l = nearest(candidate * x[i]);
            l = attempt == 0 ? l & 0xff : l < top ? l : vi{} + top;
            vf difference = x[i] - scale * to_float(l);
            error += weight[i] * difference * difference;
        }
        vi better = attempt == 0 ? ~vi{} : error < least;
        least = better ? error : least;
        factor = better ? candidate : factor;
    }
    vf sum_xl = {}, sum_ll = {};
    for (int i = 0; i < count; i++) {
        vi code = nearest(factor * x[i]);
        code = code < top ? code : vi{} + top;
        vf l = to_float(code);
        sum_xl += weight[i] * x[i] * l;
        sum_ll += weight[i] * l * l;
        codes[i] = code & 0xff;
    }
    overflow |= ~zero & unbounded(sum_ll);
    for (int attempt = 0; attempt < 5; attempt++) {
        vi changed = {};
        for (int i = 0; i < count; i++) {
            vf l = to_float(codes[i]), weighed = weight[i] * x[i];
            vf xl = sum_xl - weighed * l, ll = sum_ll - weight[i] * l * l;
            vi next = nearest(x[i] * ll / xl);
            next = next < top ? next : vi{} + top;
            vi better = ~zero & (xl > 0.0f) & (ll > 0.0f) & (next != codes[i]);
            xl += weighed * to_float(next);
            ll += weight[i] * to_float(next) * to_float(next);
            better &= xl * xl * sum_ll > sum_xl * sum_xl * ll;
            codes[i] = better ? next & 0xff : codes[i];
            sum_xl = better ? xl : sum_xl;
            sum_ll = better ? ll : sum_ll;
            changed |= better;
        }
        if (!any(changed)) break;
    }
    for (int i = 0; i < count; i++) codes[i] = zero ? vi{} : codes[i];
    return zero | ~(sum_ll > 0.0f) ? vf{} : sum_xl / sum_ll;
}

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

// Weights of numbers that also count by their size beside a mean square of more of them; and their sum.
template <int count>
ALWAYS_INLINE TARGET vf weigh(const vf *x, const float *importance, vf mean_square, vf *weight) {
    vf sum = {};
    for (int i = 0; i < count; i++) weight[i] = importance[i] * root(mean_square + x[i] * x[i]);
    for (int i = 0; i < count; i++) sum += weight[i];
    return sum;
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

// The same, with codes that are improved one by one.
struct Improved {
    vf scale;
    vi code[16]; // from 0 on; 0 where all numbers are 0
    vi overflow;
};

// Five times at most, each number's share is taken out of both sums and comes back in with the code that fits the
// others best: make_q3_quants. Few codes change, so that most of a step can be left out, and the next one need not
// wait for it.
template <int middle>
ALWAYS_INLINE TARGET Improved improved_search(const vf *x) {
    Improved found;
    Loudest loudest = {};
    for (int i = 0; i < 16; i++) louder(loudest, x[i]);
    const vi silent = loudest.size < 1e-15f;
    vf factor = (float)-middle / loudest.value, share_xl[16], share_ll[16], sum_xl = {}, sum_ll = {};
    for (int i = 0; i < 16; i++) {
        vf weight = x[i] * x[i], l = within(round(factor * x[i]), -middle, middle - 1);
        sum_xl += share_xl[i] = weight * x[i] * l;
        sum_ll += share_ll[i] = weight * l * l;
        found.code[i] = __builtin_convertvector(l, vi);
    }
    for (int attempt = 0; attempt < 5; attempt++) {
        vi changed = {};
        for (int i = 0; i < 16; i++) {
            vf xl = sum_xl - share_xl[i], ll = sum_ll - share_ll[i];
            vi next = clamp(nearest(x[i] * ll / xl), -middle, middle - 1);
            vi better = ~silent & (xl > 0.0f) & (next != found.code[i]);
            if (!any(better)) continue;
            vf weight = x[i] * x[i], l = to_float(next), next_xl = weight * x[i] * l, next_ll = weight * l * l;
            xl += next_xl;
            ll += next_ll;
            better &= (ll > 0.0f) & (xl * xl * sum_ll > sum_xl * sum_xl * ll);
            found.code[i] = better ? next : found.code[i];
            share_xl[i] = better ? next_xl : share_xl[i];
            share_ll[i] = better ? next_ll : share_ll[i];
            sum_xl = better ? xl : sum_xl;
            sum_ll = better ? ll : sum_ll;
            changed |= better;
        }
        if (!any(changed)) break;
    }
    found.scale = silent | ~(sum_ll > 0.0f) ? vf{} : sum_xl / sum_ll;
    for (int i = 0; i < 16; i++) found.code[i] = silent ? vi{} : found.code[i] + middle;
    found.overflow = unbounded(loudest.size * loudest.size) | unbounded(found.scale);
    return found;
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

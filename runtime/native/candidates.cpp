// The largest of a model's logits: what is left of 202,048 numbers for llama.cpp's samplers to sort.
//
// A plain library, which needs none of Python's headers to be built.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

// One build for each of these sets of instructions, chosen when the library loads.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

namespace {

// llama_token_data of llama.h.
struct Candidate {
    int32_t id;
    float logit, p;
};

// Logits whose largest is kept, or those of PARTS of them; a multiple of LANES, which fit into registers.
enum { BLOCK = 128, LANES = 32, PARTS = 16 };

// Whether the token `i` may be chosen; a null mask allows all.
inline bool is_allowed(const uint32_t *mask, size_t i) { return !mask || (mask[i / 32] >> (i % 32) & 1); }

// The largest of each group that is allowed; false if a number is NaN. A group is a block, the last of which may be
// short; or, where FINE, a sixteenth of one (numbers that lie 16 apart), and each number of a short last block.
template <bool MASKED, bool FINE>
inline __attribute__((always_inline)) bool maxima_of(const float *logits, size_t n, const uint32_t *mask,
                                                     float *maxima) {
    static_assert(LANES == 32, "a word of the mask for each turn");
    int32_t nan[LANES] = {};
    size_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        float largest[LANES];
        for (int l = 0; l < LANES; l++) largest[l] = -INFINITY;
        for (size_t j = i; j < i + BLOCK; j += LANES) {
            const uint32_t word = MASKED ? mask[j / LANES] : 0;
            for (int l = 0; l < LANES; l++) {
                const float x = logits[j + l];
                nan[l] |= x != x;
                const float allowed = !MASKED || (word >> l & 1) ? x : -INFINITY;
                largest[l] = allowed > largest[l] ? allowed : largest[l];
            }
        }
        const int kept = FINE ? PARTS : 1;
        for (int width = LANES / 2; width >= kept; width /= 2)
            for (int l = 0; l < width; l++)
                largest[l] = largest[l + width] > largest[l] ? largest[l + width] : largest[l];
        for (int l = 0; l < kept; l++) *maxima++ = largest[l];
    }
    if (i < n) {
        float largest = -INFINITY;
        for (size_t j = i; j < n; j++) {
            const float allowed = is_allowed(mask, j) ? logits[j] : -INFINITY;
            if (FINE) *maxima++ = allowed;
            largest = std::max(largest, allowed);
            nan[0] |= logits[j] != logits[j];
        }
        if (!FINE) *maxima = largest;
    }
    return std::none_of(nan, nan + LANES, [](int32_t found) { return found; });
}

FOR_EACH_PROCESSOR bool block_maxima(const float *logits, size_t n, float *maxima) {
    return maxima_of<false, false>(logits, n, nullptr, maxima);
}

FOR_EACH_PROCESSOR bool fine_maxima(const float *logits, size_t n, float *maxima) {
    return maxima_of<false, true>(logits, n, nullptr, maxima);
}

FOR_EACH_PROCESSOR bool allowed_block_maxima(const float *logits, size_t n, const uint32_t *mask, float *maxima) {
    return maxima_of<true, false>(logits, n, mask, maxima);
}

FOR_EACH_PROCESSOR bool allowed_fine_maxima(const float *logits, size_t n, const uint32_t *mask, float *maxima) {
    return maxima_of<true, true>(logits, n, mask, maxima);
}

// The logits, minus infinity where `mask` does not allow a token.
FOR_EACH_PROCESSOR void mask_logits(const float *logits, size_t n, const uint32_t *mask, float *out) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const uint32_t word = mask[i / LANES];
        for (int l = 0; l < LANES; l++) out[i + l] = word >> l & 1 ? logits[i + l] : -INFINITY;
    }
    for (; i < n; i++) out[i] = is_allowed(mask, i) ? logits[i] : -INFINITY;
}

// exp(x) for x <= 0, to 1e-7 of it, and about 1e-38 for all that is smaller. The polynomial is that of Cephes' expf.
inline __attribute__((always_inline)) float exponential(float x) {
    x = x > -87.0f ? x : -87.0f;
    const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; // rounded to a whole number
    const float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    const int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    __builtin_memcpy(&power, &bits, sizeof power);
    return (p * f * f + f + 1.0f) * power;
}

// The sum of exp(logits - most).
FOR_EACH_PROCESSOR double sum_of_exponentials(const float *logits, size_t n, float most) {
    double sums[LANES] = {}, sum = 0;
    size_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        float parts[LANES] = {};
        for (size_t j = i; j < i + BLOCK; j += LANES)
            for (int l = 0; l < LANES; l++) parts[l] += exponential(logits[j + l] - most);
        for (int l = 0; l < LANES; l++) sums[l] += parts[l];
    }
    for (; i < n; i++) sum += exponential(logits[i] - most);
    for (int l = 0; l < LANES; l++) sum += sums[l];
    return sum;
}

bool precedes(const Candidate &a, const Candidate &b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

} // namespace

extern "C" {

// Writes the `k` largest of those of `n` logits that `mask` allows (see constraint.py; null allows all) to `out`, the
// largest first, and of equal ones the lower id first. `1 <= k <= n`. Returns how many there are: fewer where fewer are
// allowed, 0 where a logit is NaN or the largest is infinite.
size_t llama4_edge_largest(const float *logits, size_t n, const uint32_t *mask, size_t k, Candidate *out) {
    thread_local std::vector<float> maxima, ordered;
    thread_local std::vector<Candidate> candidates;
    // With few groups for k numbers most numbers would be candidates, and with many it takes long to choose among them.
    const size_t blocks = (n + BLOCK - 1) / BLOCK;
    const bool fine = 2 * blocks < 3 * k;
    const size_t groups = fine ? n / BLOCK * PARTS + n % BLOCK : blocks;
    maxima.resize(groups);
    float *const to = maxima.data();
    if (mask ? !(fine ? allowed_fine_maxima : allowed_block_maxima)(logits, n, mask, to)
             : !(fine ? fine_maxima : block_maxima)(logits, n, to))
        return 0;

    // k groups have a largest number of at least this one, so the k largest of all are no smaller.
    float least = -INFINITY;
    if (k <= groups) {
        ordered = maxima;
        std::nth_element(ordered.begin(), ordered.begin() + (k - 1), ordered.end(), std::greater<float>());
        least = ordered[k - 1];
    }
    candidates.clear();
    for (size_t block = 0; block < blocks; block++) {
        if (!fine && maxima[block] < least) continue;
        const size_t end = std::min(n, (block + 1) * BLOCK);
        for (size_t word = block * BLOCK; word < end; word += 32) {
            if (mask && !mask[word / 32]) continue;
            for (size_t i = word; i < std::min(end, word + 32); i++)
                if (logits[i] >= least && is_allowed(mask, i)) candidates.push_back({(int32_t)i, logits[i], 0});
        }
    }
    k = std::min(k, candidates.size());
    if (k < candidates.size())
        std::nth_element(candidates.begin(), candidates.begin() + k, candidates.end(), precedes);
    std::sort(candidates.begin(), candidates.begin() + k, precedes);
    if (!k || !std::isfinite(candidates[0].logit)) return 0;
    std::copy_n(candidates.begin(), k, out);
    return k;
}

// Writes `n` logits to `out`, minus infinity where `mask` does not allow a token.
void llama4_edge_masked(const float *logits, size_t n, const uint32_t *mask, float *out) {
    mask_logits(logits, n, mask, out);
}

// The logarithm of the sum of exp(logits), of which `most`, finite, is the largest and none is NaN.
double llama4_edge_log_sum(const float *logits, size_t n, float most) {
    return most + std::log(sum_of_exponentials(logits, n, most));
}

} // extern "C"

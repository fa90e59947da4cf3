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

// Logits whose largest is kept; a multiple of LANES, which fit into registers.
enum { BLOCK = 128, LANES = 32 };

// The largest of each block, the last of which may be short; false if a number is NaN.
FOR_EACH_PROCESSOR bool block_maxima(const float *logits, size_t n, float *maxima) {
    int32_t nan[LANES] = {};
    size_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        float largest[LANES];
        for (int l = 0; l < LANES; l++) largest[l] = -INFINITY;
        for (size_t j = i; j < i + BLOCK; j += LANES)
            for (int l = 0; l < LANES; l++) {
                const float x = logits[j + l];
                largest[l] = x > largest[l] ? x : largest[l];
                nan[l] |= x != x;
            }
        for (int width = LANES / 2; width; width /= 2)
            for (int l = 0; l < width; l++)
                largest[l] = largest[l + width] > largest[l] ? largest[l + width] : largest[l];
        maxima[i / BLOCK] = largest[0];
    }
    if (i < n) {
        float largest = -INFINITY;
        for (size_t j = i; j < n; j++) {
            largest = std::max(largest, logits[j]);
            nan[0] |= logits[j] != logits[j];
        }
        maxima[i / BLOCK] = largest;
    }
    return std::none_of(nan, nan + LANES, [](int32_t found) { return found; });
}

bool precedes(const Candidate &a, const Candidate &b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

} // namespace

extern "C" {

// Writes the `k` largest of `n` logits to `out`, the largest first, and of equal ones the lower id first.
// `1 <= k <= n`. Returns whether there is neither NaN nor an infinite largest one; else `out` is not written.
int llama4_edge_largest(const float *logits, size_t n, size_t k, Candidate *out) {
    thread_local std::vector<float> maxima, ordered;
    thread_local std::vector<Candidate> candidates;
    const size_t blocks = (n + BLOCK - 1) / BLOCK;
    maxima.resize(blocks);
    if (!block_maxima(logits, n, maxima.data())) return 0;

    // k blocks have a largest number of at least this one, so the k largest of all are no smaller.
    float least = -INFINITY;
    ordered = maxima;
    if (k <= blocks) {
        std::nth_element(ordered.begin(), ordered.begin() + (k - 1), ordered.end(), std::greater<float>());
        least = ordered[k - 1];
    }
    candidates.clear();
    for (size_t block = 0; block < blocks; block++) {
        if (maxima[block] < least) continue;
        const size_t end = std::min(n, (block + 1) * BLOCK);
        for (size_t i = block * BLOCK; i < end; i++)
            if (logits[i] >= least) candidates.push_back({(int32_t)i, logits[i], 0});
    }
    if (k < candidates.size())
        std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), precedes);
    std::sort(candidates.begin(), candidates.begin() + k, precedes);
    if (!std::isfinite(candidates[0].logit)) return 0;
    std::copy_n(candidates.begin(), k, out);
    return 1;
}

} // extern "C"

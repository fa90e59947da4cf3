// Answers to several requests, token by token, without a word of Python in between.
//
// A token of a small model takes a few hundred microseconds, after which little of the interpreter is left in the
// processor's cache: what Python does for a token costs 10 us in a loop of its own and 100 between two decodes.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

// llama_token_data, llama_token_data_array and llama_batch of llama.h.
struct Candidate {
    int32_t id;
    float logit, p;
};
struct Array {
    Candidate *data;
    size_t size;
    int64_t selected;
    bool sorted;
};
struct Batch {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos, *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
};

} // namespace

extern "C" {

size_t llama4_edge_largest(const float *logits, size_t n, const uint32_t *mask, size_t k, Candidate *out);

// llama.cpp's functions of these names, and what they are called with.
struct Llama {
    int32_t (*decode)(void *context, Batch batch);
    void (*synchronize)(void *context);
    float *(*get_logits_ith)(void *context, int32_t i);
    void (*sampler_apply)(void *chain, Array *candidates);
    bool (*vocab_is_eog)(const void *vocab, int32_t token);
    void *context;
    const void *vocab;
    int32_t n_vocab;
};

// How the tokens of a sequence are chosen: by `chain`, of the `top_k` largest logits; the largest where it is null.
// `ends` is whether tokens that end an answer end this one.
struct Choice {
    void *chain;
    int32_t top_k;
    int32_t ends;
};

// Decodes the tokens of `batch`, one for each sequence, chooses the next of each, and goes on with these: `most`
// times, for as many steps as end nearest to `seconds`, until a token ends an answer, or until `stop` or `attention`
// is not 0. Writes what was chosen to `tokens`, [most][batch->n_tokens], to `n_decoded` how often it decoded without
// an error (once more than it chose where logits are NaN), and to `status` what llama.cpp returned last. Returns how
// often it chose.
int32_t llama4_edge_steps(const Llama *llama, Batch *batch, const Choice *choices, const int32_t *ends, int32_t n_ends,
                          int32_t most, double seconds, const volatile char *stop, const volatile char *attention,
                          int32_t *tokens, int32_t *n_decoded, int32_t *status) {
    using clock = std::chrono::steady_clock;
    const auto begun = clock::now();
    const int32_t n = batch->n_tokens;
    std::vector<std::vector<Candidate>> candidates(n);
    for (int32_t i = 0; i < n; i++) candidates[i].resize(choices[i].chain ? choices[i].top_k : 1);
    *n_decoded = *status = 0;
    for (int32_t step = 0; step < most;) {
        if ((*status = llama->decode(llama->context, *batch))) return step;
        llama->synchronize(llama->context);
        ++*n_decoded;
        // All are looked at before one is drawn: a draw cannot be undone.
        for (int32_t i = 0; i < n; i++) {
            const float *logits = llama->get_logits_ith(llama->context, i);
            if (!llama4_edge_largest(logits, llama->n_vocab, nullptr, candidates[i].size(), candidates[i].data()))
                return step;
        }
        bool ended = false;
        for (int32_t i = 0; i < n; i++) {
            Array array = {candidates[i].data(), candidates[i].size(), 0, true};
            if (choices[i].chain) {
                array.selected = -1;
                llama->sampler_apply(choices[i].chain, &array);
            }
            const int32_t token = array.data[array.selected].id;
            if (choices[i].ends)
                ended |= std::find(ends, ends + n_ends, token) != ends + n_ends || llama->vocab_is_eog(llama->vocab, token);
            tokens[step * n + i] = batch->token[i] = token;
            batch->pos[i]++;
        }
        step++;
        const std::chrono::duration<double> passed = clock::now() - begun;
        if (ended || *stop || *attention || passed.count() * (1 + 0.5 / step) >= seconds) return step;
    }
    return most;
}

} // extern "C"

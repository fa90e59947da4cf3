// What a model's matrices are multiplied with: sums of the squares of each column, taken while a graph is computed.
//
// llama.cpp calls `llama4_edge_observe` for each operation of a graph, in the thread that computes it: some 2,000 times
// for a few hundred tokens of Scout, of which 480 are matrices'.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

// ggml_tensor of ggml.h.
struct Tensor {
    int32_t type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int32_t op;
    int32_t op_params[16];
    int32_t flags;
    Tensor *src[10];
    Tensor *view_src;
    size_t view_offs;
    void *data;
    char name[64];
};

// Sums of one call's rows, and how many these were.
struct Sums {
    int64_t n_matrices, row_length;
    std::vector<double> sums;
    std::vector<int64_t> counts;
    bool seen = false;
};

// Sums of an input, for the next matrix that has the same one.
struct Input {
    const Tensor *input, *ids;
    int64_t n_matrices;
    std::shared_ptr<const Sums> sums;
};

constexpr int64_t BLOCK = 16, COLUMNS = 1024;
constexpr size_t INPUTS = 4; // the router and both of the shared expert's matrices follow each other, and q, k and v

// Adds the squares of rows to `sums`: of 16 rows in single precision, and those sums in double.
void add_squares(const std::vector<const float *> &rows, int64_t length, double *sums) {
    float some[COLUMNS];
    for (int64_t begin = 0; begin < length; begin += COLUMNS) {
        const int64_t n = std::min(COLUMNS, length - begin);
        for (size_t first = 0; first < rows.size(); first += BLOCK) {
            std::fill(some, some + n, 0.0f);
            for (size_t row = first; row < std::min(first + BLOCK, rows.size()); row++) {
                const float *x = rows[row] + begin;
                for (int64_t i = 0; i < n; i++) some[i] += x[i] * x[i];
            }
            for (int64_t i = 0; i < n; i++) sums[begin + i] += some[i];
        }
    }
}

} // namespace

extern "C" {

// Of ggml: two functions and the numbers of two operations and a type.
struct Ggml {
    bool (*buffer_is_host)(void *buffer);
    void (*tensor_get)(const Tensor *tensor, void *data, size_t offset, size_t size);
    size_t (*nbytes)(const Tensor *tensor);
    int32_t mul_mat, mul_mat_id, f32;
};

// What one matrix was multiplied with; its memory belongs to the observer.
struct Observed {
    const char *name;
    int64_t n_matrices, row_length;
    double *sums;
    int64_t *counts;
};

} // extern "C"

namespace {

class Observer {
  public:
    Observer(const Ggml &ggml, bool output, bool stops) : ggml(ggml), output(output), stops(stops) {}

    void begin() {
        error.clear();
        inputs.clear();
        for (auto &[name, one] : all) {
            std::fill(one.sums.begin(), one.sums.end(), 0.0);
            std::fill(one.counts.begin(), one.counts.end(), 0);
            one.seen = false;
        }
    }

    bool wants(const Tensor *t) const {
        if (stops && is_last(t)) return true;
        if (t->op != ggml.mul_mat && t->op != ggml.mul_mat_id) return false;
        if (t->src[1]->type != ggml.f32) return false;
        if (t->op == ggml.mul_mat_id) return true;
        const std::string name = name_of(t->src[0]);
        return name.compare(0, 4, "blk.") == 0 || (output && name == "output.weight");
    }

    // Whether the rest of the graph is wanted.
    bool observe(const Tensor *t) {
        if (stops && is_last(t)) return false;
        const std::string name = name_of(t->src[0]);
        const Tensor *matrix = t->src[0], *input = t->src[1], *ids = t->op == ggml.mul_mat_id ? t->src[2] : nullptr;
        const int64_t n_matrices = matrix->ne[2] * matrix->ne[3];
        Sums &total = of(name);
        // A matrix that comes again does so in another graph, which may have other numbers in the same places.
        if (total.seen) {
            inputs.clear();
            for (auto &[_, one] : all) one.seen = false;
        }
        total.seen = true;
        if (total.sums.empty()) {
            total.n_matrices = n_matrices, total.row_length = input->ne[0];
            total.sums.resize(n_matrices * input->ne[0]);
            total.counts.resize(n_matrices);
        }
        if (total.n_matrices != n_matrices || total.row_length != input->ne[0]) {
            error = name + " changes its shape";
            return false;
        }
        const std::shared_ptr<const Sums> found = sums_of(input, ids, matrix, n_matrices);
        if (!found) return false;
        for (int64_t m = 0; m < n_matrices; m++) {
            if (!found->counts[m]) continue;
            total.counts[m] += found->counts[m];
            const double *from = found->sums.data() + m * total.row_length;
            double *to = total.sums.data() + m * total.row_length;
            for (int64_t i = 0; i < total.row_length; i++) to[i] += from[i];
        }
        return true;
    }

    std::deque<std::pair<const std::string, Sums>> all; // in the order of the graph
    std::string error;

  private:
    Sums &of(const std::string &name) {
        Sums *&found = places[name];
        if (!found) found = &all.emplace_back(name, Sums()).second;
        return *found;
    }

    // What comes after it is the output's matrix.
    static bool is_last(const Tensor *t) { return !std::strcmp(t->name, "result_norm"); }

    // A copy on a device is called CUDA0#blk.0.attn_k.weight#0.
    static std::string name_of(const Tensor *t) {
        const char *begin = std::strchr(t->name, '#');
        if (!begin) return t->name;
        const char *end = std::strchr(++begin, '#');
        return end ? std::string(begin, end) : std::string(begin);
    }

    const char *bytes_of(const Tensor *t, std::vector<char> &copy) const {
        void *buffer = t->view_src ? t->view_src->buffer : t->buffer;
        if (ggml.buffer_is_host(buffer)) return static_cast<const char *>(t->data);
        copy.resize(ggml.nbytes(t));
        ggml.tensor_get(t, copy.data(), 0, copy.size());
        return copy.data();
    }

    // The sums of an input, for each matrix of those that it is multiplied with; null where it is none.
    std::shared_ptr<const Sums> sums_of(const Tensor *input, const Tensor *ids, const Tensor *matrix, int64_t n) {
        for (const Input &one : inputs)
            if (one.input == input && one.ids == ids && one.n_matrices == n) return one.sums;
        if (input->nb[0] != sizeof(float)) {
            error = std::string(input->name) + " is not contiguous";
            return nullptr;
        }
        const char *data = bytes_of(input, data_copy);
        std::vector<std::vector<const float *>> rows(n);
        const auto row = [&](int64_t i1, int64_t i2, int64_t i3) {
            return reinterpret_cast<const float *>(data + i1 * input->nb[1] + i2 * input->nb[2] + i3 * input->nb[3]);
        };
        if (ids) {
            // [n_used, n_tokens], a view of more. The input is [length, n_used or 1, n_tokens].
            const char *id = bytes_of(ids, ids_copy);
            if (ids->ne[1] != input->ne[2] || input->ne[3] != 1) {
                error = std::string(input->name) + " has other tokens than " + ids->name;
                return nullptr;
            }
            for (int64_t token = 0; token < ids->ne[1]; token++) {
                for (int64_t used = 0; used < ids->ne[0]; used++) {
                    int32_t expert;
                    std::memcpy(&expert, id + token * ids->nb[1] + used * ids->nb[0], sizeof expert);
                    if (expert < 0 || expert >= n) {
                        error = std::string(ids->name) + " names an expert that is not there";
                        return nullptr;
                    }
                    rows[expert].push_back(row(used % input->ne[1], token, 0));
                }
            }
        } else {
            for (int64_t i3 = 0; i3 < input->ne[3]; i3++)
                for (int64_t i2 = 0; i2 < input->ne[2]; i2++)
                    for (int64_t i1 = 0; i1 < input->ne[1]; i1++)
                        rows[i3 % matrix->ne[3] * matrix->ne[2] + i2 % matrix->ne[2]].push_back(row(i1, i2, i3));
        }
        auto sums = std::make_shared<Sums>();
        sums->sums.resize(n * input->ne[0]);
        for (int64_t m = 0; m < n; m++) {
            sums->counts.push_back(rows[m].size());
            add_squares(rows[m], input->ne[0], sums->sums.data() + m * input->ne[0]);
        }
        inputs.push_back({input, ids, n, sums});
        if (inputs.size() > INPUTS) inputs.pop_front();
        return sums;
    }

    const Ggml ggml;
    const bool output, stops;
    std::unordered_map<std::string, Sums *> places;
    std::deque<Input> inputs;
    std::vector<char> data_copy, ids_copy;
};

} // namespace

extern "C" {

// An observer that has seen nothing. `output` is whether it wants what output.weight is multiplied with, and `stops`
// whether what comes after the last layer need not be computed. Null where there is no memory for it.
void *llama4_edge_observer(const Ggml *ggml, int32_t output, int32_t stops) {
    try {
        return new Observer(*ggml, output, stops);
    } catch (const std::exception &) {
        return nullptr;
    }
}

void llama4_edge_observer_free(void *observer) { delete static_cast<Observer *>(observer); }

// Forgets what was seen.
void llama4_edge_observer_begin(void *observer) { static_cast<Observer *>(observer)->begin(); }

// A ggml_backend_sched_eval_callback, with an observer as its argument.
bool llama4_edge_observe(const Tensor *t, bool ask, void *argument) {
    Observer *observer = static_cast<Observer *>(argument);
    try {
        return ask ? observer->wants(t) : observer->observe(t);
    } catch (const std::exception &error) {
        observer->error = error.what();
    }
    return false;
}

// Writes what was seen to `out`, of `size` elements, in the order of the graph; returns how many there are.
int64_t llama4_edge_observed(void *observer, Observed *out, int64_t size) {
    auto &all = static_cast<Observer *>(observer)->all;
    int64_t n = 0;
    for (auto &[name, one] : all) {
        if (n < size) out[n] = {name.c_str(), one.n_matrices, one.row_length, one.sums.data(), one.counts.data()};
        n++;
    }
    return n;
}

// What went wrong; empty where nothing did.
const char *llama4_edge_observer_error(void *observer) { return static_cast<Observer *>(observer)->error.c_str(); }

} // extern "C"

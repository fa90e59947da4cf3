// Numbers in bf16 to ggml's blocks, as fast as this processor can: the module llama4_edge.quant._native.
//
// ROWS rows at a time are searched by the encoders of kernels.h, which says why. Here is what does not
// depend on the instruction set: how rows get side by side, how codes are packed, and which set is here.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>

#define UNROLL _Pragma("GCC unroll 4")
#define ALWAYS_INLINE static inline __attribute__((always_inline))

namespace {

enum { ROWS = 16, WIDTH = 64, DEPTH = 256 };

// A line of codes, one of each row, and eight neighbours of a row.
typedef uint8_t vb __attribute__((vector_size(ROWS)));
typedef uint16_t vs __attribute__((vector_size(16)));

typedef bool (*Encoder)(const uint16_t *halves, uint8_t (*bytes)[ROWS]);

struct Encoders {
    Encoder q8_0, q4_0, q6_k, q4_k, q5_k;
};

namespace portable {
#define TARGET
#define LANES 4
#include "kernels.h"
#undef TARGET
#undef LANES
} // namespace portable

#if defined(__x86_64__)
namespace avx2 {
#define TARGET __attribute__((target("avx2,bmi2")))
#define LANES 8
#include "kernels.h"
#undef TARGET
#undef LANES
} // namespace avx2

namespace avx512 {
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi2,prefer-vector-width=512")))
#define LANES 16
#include "kernels.h"
#undef TARGET
#undef LANES
} // namespace avx512
#endif

const struct InstructionSet {
    const char *name;
    const Encoders *encoders;
    bool (*runs_here)();
} SETS[] = {
#if defined(__x86_64__)
    {"avx512", &avx512::encoders,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("bmi2");
     }},
    {"avx2", &avx2::encoders, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }},
#endif
    {"portable", &portable::encoders, [] { return true; }},
};

#if defined(__clang__)
#define SHUFFLE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(type, a, b, ...) __builtin_shuffle(a, b, type{__VA_ARGS__})
#endif

ALWAYS_INLINE vb interleave_low(vb a, vb b) {
    return SHUFFLE(vb, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

ALWAYS_INLINE vb interleave_high(vb a, vb b) {
    return SHUFFLE(vb, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

ALWAYS_INLINE vs interleave_low(vs a, vs b) { return SHUFFLE(vs, a, b, 0, 8, 1, 9, 2, 10, 3, 11); }

ALWAYS_INLINE vs interleave_high(vs a, vs b) { return SHUFFLE(vs, a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

// Turns a square: interleaving its first half with its second does, done as often as `size` can be halved.
template <int size, typename Vector>
ALWAYS_INLINE void turn(Vector *lines) {
    for (int done = 1; done < size; done *= 2) {
        Vector next[size];
        for (int k = 0; k < size / 2; k++) {
            next[2 * k] = interleave_low(lines[k], lines[k + size / 2]);
            next[2 * k + 1] = interleave_high(lines[k], lines[k + size / 2]);
        }
        memcpy(lines, next, sizeof next);
    }
}

// Where the blocks of up to ROWS rows go.
struct Place {
    uint8_t *first;
    size_t stride;
    int rows;
};

// Lines of codes to the blocks, from byte `at` of each.
ALWAYS_INLINE void scatter(const vb *lines, int count, Place place, int at) {
    for (int line = 0; line < count; line += ROWS) {
        vb square[ROWS];
        memcpy(square, lines + line, sizeof square);
        turn<ROWS>(square);
        for (int row = 0; row < place.rows; row++)
            memcpy(place.first + row * place.stride + at + line, &square[row], ROWS);
    }
}

// The two lines that an f16 takes.
ALWAYS_INLINE void scatter_f16(const vb *lines, Place place, int at) {
    for (int row = 0; row < place.rows; row++) {
        uint8_t *to = place.first + row * place.stride + at;
        to[0] = lines[0][row];
        to[1] = lines[1][row];
    }
}

// How a block is laid out in bytes: ggml-common.h, and the ends of quantize_row_*_ref in ggml-quants.c.

void pack_q8_0(const vb *lines, Place place) {
    scatter_f16(lines, place, 0);
    scatter(lines + 2, 32, place, 2);
}

void pack_q4_0(const vb *lines, Place place) {
    vb codes[16];
    for (int i = 0; i < 16; i++) codes[i] = lines[2 + i] | (lines[18 + i] << 4);
    scatter_f16(lines, place, 0);
    scatter(codes, 16, place, 2);
}

void pack_q6_k(const vb *lines, Place place) {
    vb low[128], high[64];
    for (int i = 0; i < 64; i++) {
        const vb *l = lines + 18 + i / 32 * 128 + i % 32;
        low[i / 32 * 64 + i % 32] = (l[0] & 15) | (l[64] << 4);
        low[i / 32 * 64 + i % 32 + 32] = (l[32] & 15) | (l[96] << 4);
        high[i] = (l[0] >> 4) | (l[32] >> 4 << 2) | (l[64] >> 4 << 4) | (l[96] >> 4 << 6);
    }
    scatter(low, 128, place, 0);
    scatter(high, 64, place, 128);
    scatter(lines + 2, 16, place, 192);
    scatter_f16(lines, place, 208);
}

// d, dmin, and twelve bytes of eight scales and minima, in six bits each.
void pack_k_header(const vb *lines, Place place) {
    const vb *scales = lines + 4, *mins = lines + 12;
    vb header[ROWS];
    for (int i = 0; i < 4; i++) {
        header[i] = lines[i];
        header[4 + i] = scales[i] | (scales[4 + i] >> 4 << 6);
        header[8 + i] = mins[i] | (mins[4 + i] >> 4 << 6);
        header[12 + i] = (scales[4 + i] & 15) | (mins[4 + i] << 4);
    }
    scatter(header, ROWS, place, 0);
}

void pack_q4_k(const vb *lines, Place place) {
    vb codes[128];
    for (int i = 0; i < 128; i++) {
        const vb *l = lines + 20 + i / 32 * 64 + i % 32;
        codes[i] = l[0] | (l[32] << 4);
    }
    pack_k_header(lines, place);
    scatter(codes, 128, place, 16);
}

void pack_q5_k(const vb *lines, Place place) {
    vb low[128], high[32] = {};
    for (int i = 0; i < 128; i++) {
        const vb *l = lines + 20 + i / 32 * 64 + i % 32;
        low[i] = (l[0] & 15) | (l[32] << 4);
        high[i % 32] |= ((l[0] >> 4) | (l[32] >> 4 << 1)) << (2 * (i / 32));
    }
    pack_k_header(lines, place);
    scatter(high, 32, place, 16);
    scatter(low, 128, place, 48);
}

const struct Type {
    const char *name;
    size_t numbers, bytes; // of one block
    Encoder Encoders::*encoder;
    void (*pack)(const vb *lines, Place place);
} TYPES[] = {
    {"Q8_0", 32, 34, &Encoders::q8_0, pack_q8_0},     {"Q4_0", 32, 18, &Encoders::q4_0, pack_q4_0},
    {"Q6_K", 256, 210, &Encoders::q6_k, pack_q6_k},   {"Q4_K", 256, 144, &Encoders::q4_k, pack_q4_k},
    {"Q5_K", 256, 176, &Encoders::q5_k, pack_q5_k},
};

enum { MOST_LINES = 20 + DEPTH };

// What is to be encoded: number i of row r is halves[r * row_step + i * number_step], and one of the
// two steps is 1.
struct Source {
    const uint16_t *halves;
    size_t row_step, number_step;
};

// Numbers of up to WIDTH rows, side by side.
typedef uint16_t Tile[DEPTH][WIDTH];

enum { TILES = 4 };

// `depth` numbers of `rows` rows to tiles[row / WIDTH][number][row % WIDTH]. Memory that is read half a kilobyte
// at a time comes four times as fast as two cache lines at a time, so that all tiles are filled at once. What
// is left in a tile's other rows is encoded too, and goes nowhere.
void gather(Source source, size_t row, size_t rows, size_t number, size_t depth, Tile *tiles) {
    const uint16_t *from = source.halves + row * source.row_step + number * source.number_step;
    if (source.row_step == 1) {
        const size_t whole = rows / WIDTH, rest = rows % WIDTH;
        for (size_t i = 0; i < depth; i++, from += source.number_step) {
            for (size_t t = 0; t < whole; t++) memcpy(tiles[t][i], from + t * WIDTH, sizeof tiles[t][i]);
            if (rest) memcpy(tiles[whole][i], from + whole * WIDTH, rest * sizeof *from);
        }
        return;
    }
    const size_t whole = rows / 8 * 8;
    for (size_t r = 0; r < whole; r += 8)
        for (size_t i = 0; i < depth; i += 8) {
            vs square[8];
            for (int k = 0; k < 8; k++) memcpy(&square[k], from + (r + k) * source.row_step + i, sizeof(vs));
            turn<8>(square);
            for (int k = 0; k < 8; k++) memcpy(&tiles[r / WIDTH][i + k][r % WIDTH], &square[k], sizeof(vs));
        }
    for (size_t r = whole; r < rows; r++)
        for (size_t i = 0; i < depth; i++) tiles[r / WIDTH][i][r % WIDTH] = from[r * source.row_step + i];
}

// An exponent of all ones says that a number is none, or infinite.
bool finite(const uint16_t (*tile)[WIDTH], size_t depth) {
    uint16_t worst[WIDTH] = {};
    for (size_t i = 0; i < depth; i++)
        for (int r = 0; r < WIDTH; r++) worst[r] |= (tile[i][r] & 0x7f80) == 0x7f80;
    uint16_t found = 0;
    for (uint16_t one : worst) found |= one;
    return found == 0;
}

enum Status { GOOD = 0, NOT_FINITE = 1, OVERFLOW = 2 };

struct Result {
    Status status;
    double gathering; // seconds
};

Result encode(const Encoders &encoders, const Type &type, Source source, size_t rows, size_t length, uint8_t *out) {
    const size_t stride = length / type.numbers * type.bytes;
    const Encoder encoder = encoders.*type.encoder;
    std::chrono::duration<double> gathering{};
    const std::unique_ptr<Tile[]> tiles(new Tile[TILES]());
    alignas(64) uint8_t lines[MOST_LINES][ROWS];
    for (size_t row = 0; row < rows; row += TILES * WIDTH)
        for (size_t number = 0; number < length; number += DEPTH) {
            const size_t height = std::min<size_t>(rows - row, TILES * WIDTH);
            const size_t depth = std::min<size_t>(length - number, DEPTH);
            const auto started = std::chrono::steady_clock::now();
            gather(source, row, height, number, depth, tiles.get());
            gathering += std::chrono::steady_clock::now() - started;
            for (size_t r = 0; r < height; r += ROWS) {
                const Tile &tile = tiles[r / WIDTH];
                if (r % WIDTH == 0 && !finite(tile, depth)) return {NOT_FINITE, gathering.count()};
                const int here = (int)std::min<size_t>(height - r, ROWS);
                for (size_t i = 0; i < depth; i += type.numbers) {
                    if (encoder(&tile[i][r % WIDTH], lines)) return {OVERFLOW, gathering.count()};
                    uint8_t *first = out + (row + r) * stride + (number + i) / type.numbers * type.bytes;
                    type.pack((const vb *)lines, Place{first, stride, here});
                }
            }
        }
    return {GOOD, gathering.count()};
}

PyObject *py_encode(PyObject *, PyObject *arguments) {
    const char *set_name, *type_name;
    PyObject *rows;
    Py_buffer in, out;
    if (!PyArg_ParseTuple(arguments, "ssOw*", &set_name, &type_name, &rows, &out)) return nullptr;
    if (PyObject_GetBuffer(rows, &in, PyBUF_STRIDED_RO) < 0) {
        PyBuffer_Release(&out);
        return nullptr;
    }
    const Encoders *encoders = nullptr;
    for (const InstructionSet &set : SETS)
        if (strcmp(set.name, set_name) == 0 && set.runs_here()) encoders = set.encoders;
    const Type *type = nullptr;
    for (const Type &one : TYPES)
        if (strcmp(one.name, type_name) == 0) type = &one;
    const Py_ssize_t size = sizeof(uint16_t);
    PyObject *answer = nullptr;
    if (encoders == nullptr || type == nullptr)
        PyErr_Format(PyExc_ValueError, "no encoder for %s on %s", type_name, set_name);
    else if (in.ndim != 2 || in.itemsize != size || in.shape[1] % (Py_ssize_t)type->numbers != 0)
        PyErr_SetString(PyExc_ValueError, "not rows of whole blocks of 16-bit words");
    else if (in.strides[0] < size || in.strides[1] < size || (in.strides[0] != size && in.strides[1] != size))
        PyErr_SetString(PyExc_ValueError, "neither rows nor columns lie side by side");
    else if (out.len != in.shape[0] * (in.shape[1] / (Py_ssize_t)type->numbers) * (Py_ssize_t)type->bytes)
        PyErr_SetString(PyExc_ValueError, "the blocks do not fill the output");
    else {
        const Source source = {(const uint16_t *)in.buf, (size_t)(in.strides[0] / size), (size_t)(in.strides[1] / size)};
        Result result;
        Py_BEGIN_ALLOW_THREADS;
        result = encode(*encoders, *type, source, (size_t)in.shape[0], (size_t)in.shape[1], (uint8_t *)out.buf);
        Py_END_ALLOW_THREADS;
        answer = Py_BuildValue("id", (int)result.status, result.gathering);
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    return answer;
}

PyObject *py_instruction_sets(PyObject *, PyObject *) {
    PyObject *names = PyList_New(0);
    for (const InstructionSet &set : SETS) {
        if (names == nullptr || !set.runs_here()) continue;
        PyObject *name = PyUnicode_FromString(set.name);
        if (name == nullptr || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

PyMethodDef METHODS[] = {
    {"encode", py_encode, METH_VARARGS,
     "encode(instruction_set, type, rows, out) -> (status, seconds spent on getting rows side by side)"},
    {"instruction_sets", py_instruction_sets, METH_NOARGS, "instruction_sets() -> those that run here, best first"},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_native", "Encoders of many rows at a time.", -1, METHODS, nullptr, nullptr, nullptr, nullptr,
};

} // namespace

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = PyModule_Create(&MODULE);
    if (module != nullptr && (PyModule_AddIntConstant(module, "GOOD", GOOD) < 0 ||
                              PyModule_AddIntConstant(module, "NOT_FINITE", NOT_FINITE) < 0 ||
                              PyModule_AddIntConstant(module, "OVERFLOW", OVERFLOW) < 0))
        Py_CLEAR(module);
    return module;
}

// Numbers in bf16 to ggml's blocks, as fast as this processor can. quant/encode.py calls it.
//
// ROWS rows at a time are searched by the encoders of kernels.h, which says why. Here is what does not
// depend on the instruction set: how rows get side by side, how codes are packed, and which set is here.

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

// Numbers of up to WIDTH rows, side by side.
typedef uint16_t Tile[DEPTH][WIDTH];

typedef bool (*Encoder)(const uint16_t *halves, uint8_t (*bytes)[ROWS]);

struct Encoders {
    bool (*finite)(const Tile &tile, size_t depth);
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
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi2")))
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

enum Status { GOOD = 0, NOT_FINITE = 1, OVERFLOW = 2, UNKNOWN = 3 };

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
                if (r % WIDTH == 0 && !encoders.finite(tile, depth)) return {NOT_FINITE, gathering.count()};
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

#include "decode.h"
#include "repack.h"

} // namespace

extern "C" {

// The name of a set of instructions that runs here, the best first; null beyond the last.
const char *llama4_edge_instruction_set(size_t index) {
    for (const InstructionSet &set : SETS)
        if (set.runs_here() && index-- == 0) return set.name;
    return nullptr;
}

// Encodes `rows` rows of `length` numbers, whole blocks of the type, to `out`. Returns a Status, and adds to
// `gathering` the seconds that it took to get rows side by side.
int llama4_edge_encode(const char *set_name, const char *type_name, const uint16_t *halves, size_t row_step,
                       size_t number_step, size_t rows, size_t length, uint8_t *out, double *gathering) {
    for (const InstructionSet &set : SETS)
        for (const Type &type : TYPES)
            if (strcmp(set.name, set_name) == 0 && strcmp(type.name, type_name) == 0 && set.runs_here()) {
                const Source source = {halves, row_step, number_step};
                const Result result = encode(*set.encoders, type, source, rows, length, out);
                *gathering += result.gathering;
                return result.status;
            }
    return UNKNOWN;
}

// Packs integers to the blocks of Q4_0, Q4_1 or Q8_0. Codes of 8 bits are xored with `flipped`, which takes an
// offset of 128 off. Returns a Status.
int llama4_edge_repack(const char *type_name, const uint8_t *codes, size_t rows, size_t length, size_t group,
                       const uint16_t *scales, const uint16_t *minima, uint8_t flipped, uint8_t *out) {
    const Groups groups = {codes, rows, length, group, scales, minima};
    if (strcmp(type_name, "Q4_0") == 0) return repack<2, true>(groups, 0, out), GOOD;
    if (strcmp(type_name, "Q4_1") == 0) return repack<4, true>(groups, 0, out), GOOD;
    if (strcmp(type_name, "Q8_0") == 0) return repack<2, false>(groups, flipped, out), GOOD;
    return UNKNOWN;
}

// Decodes codes [lines, items] to `out`: a byte stands for `step` numbers of the table [256, step], 1 or 2, which
// are of a line or, `across`, each of a line of its own. Scales are as `Scales` has them. Returns a Status:
// NOT_FINITE where a code is NaN.
int llama4_edge_decode(const uint8_t *codes, size_t line_step, size_t item_step, size_t lines, size_t items,
                       const float *table, size_t step, bool across, const float *values, size_t columns,
                       size_t block_lines, size_t block_numbers, size_t first, float *out) {
    const Codes from = {codes, line_step, item_step, lines, items};
    const Scales scales = {values, columns, block_lines, block_numbers, first};
    if (step == 1) return decode<1, false>(from, table, scales, out);
    if (step == 2 && across) return decode<2, true>(from, table, scales, out);
    if (step == 2) return decode<2, false>(from, table, scales, out);
    return UNKNOWN;
}

} // extern "C"

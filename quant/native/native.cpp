// Numbers to ggml's blocks, as fast as this processor can. quant/encode.py calls it.
//
// ROWS rows at a time are searched by the encoders of kernels.h, which says why; where nothing is searched, those of
// extremes.h take rows as they are. Here is what does not depend on the instruction set: how rows get side by side,
// or one after the other, what is encoded when, and which set is here.
//
// To add a type: its encoders and a line of the table in blocks.h or k_quants.h, its packing in
// pack_blocks.h or pack_k_quants.h, and its name in NATIVE of quant/encode.py.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define UNROLL _Pragma("GCC unroll 4")
#define UNROLL_ALL _Pragma("GCC unroll 16")
#define ALWAYS_INLINE static inline __attribute__((always_inline))

namespace {

enum { ROWS = 16, WIDTH = 64, DEPTH = 256 };

// Numbers as stored of up to WIDTH rows, side by side.
template <typename Item>
using Tile = Item[DEPTH][WIDTH];

// What an encoder gets: number i of row r is numbers[i * ROWS + r].
struct Block {
    const float *numbers;
    const float *importance;  // of number i, in all rows; null where there is none
    const float *mean_square; // of all numbers of row r, where the type asks for it
};

// A line of `bytes` is a byte of each row. Returns whether a scale overflowed.
typedef bool (*Encoder)(const Block &block, uint8_t (*bytes)[ROWS]);

enum Format { BF16 = 0, F16 = 1, F32 = 2 };

// The bits of a number as stored.
template <Format format>
using Stored = std::conditional_t<format == F32, uint32_t, uint16_t>;

enum Status { GOOD = 0, NOT_FINITE = 1, OVERFLOW = 2, UNKNOWN = 3 };

// Encodes rows of whole blocks, each row's numbers side by side, to rows of blocks `stride` bytes apart.
typedef Status (*RowEncoder)(const void *items, size_t row_step, size_t rows, size_t blocks, uint8_t *out,
                             size_t stride);

#include "packing.h"

// How a type is encoded: blocks of `numbers` numbers, each of `bytes` bytes.
struct Type {
    const char *name;
    size_t numbers, bytes;
    Encoder plain, weighted; // without and with importance, which is ignored where there is no `weighted`
    bool row_mean;           // whether `weighted` needs Block.mean_square
    void (*pack)(const vb *lines, Place place);
    RowEncoder direct[3]; // without importance, of each Format, where there is no `plain`
};

// The most lines that an encoder fills: codes, scales, minima, d and dmin.
enum { MOST_LINES = DEPTH + 2 * 16 + 4 };

// What an instruction set has. `widen` is for each Format; it and `add_squares` take ROWS rows.
struct Kernels {
    bool (*widen[3])(const void *items, size_t count, float *numbers);
    void (*add_squares)(const float *numbers, size_t count, float *sums);
    const Type *(*find)(const char *name);
};

#include "pack_blocks.h"
#include "pack_k_quants.h"

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
    const Kernels *kernels;
    bool (*runs_here)();
} SETS[] = {
#if defined(__x86_64__)
    {"avx512", &avx512::kernels,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("bmi2");
     }},
    {"avx2", &avx2::kernels, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }},
#endif
    {"portable", &portable::kernels, [] { return true; }},
};

// What is to be encoded: number i of row r is items[r * row_step + i * number_step], and one of the
// two steps is 1.
template <typename Item>
struct Source {
    const Item *items;
    size_t row_step, number_step, rows, length;
};

enum { TILES = 4 };

// `depth` numbers of `rows` rows to tiles[row / WIDTH][number][row % WIDTH]. Memory that is read half a kilobyte
// at a time comes four times as fast as two cache lines at a time, so that all tiles are filled at once. What
// is left in a tile's other rows is encoded too, and goes nowhere.
template <typename Item>
void gather(const Source<Item> &source, size_t row, size_t rows, size_t number, size_t depth, Tile<Item> *tiles) {
    const Item *from = source.items + row * source.row_step + number * source.number_step;
    if (source.number_step == 1) {
        for (size_t t = 0; t < rows; t += WIDTH) {
            Item *to = tiles[t / WIDTH][0];
            transpose(from + t * source.row_step, source.row_step, std::min<size_t>(rows - t, WIDTH), depth, to, WIDTH);
        }
        return;
    }
    for (size_t i = 0; i < depth; i++, from += source.number_step)
        for (size_t t = 0; t < rows; t += WIDTH)
            memcpy(tiles[t / WIDTH][i], from + t, std::min<size_t>(rows - t, WIDTH) * sizeof *from);
}

typedef std::chrono::duration<double> Seconds;

// Calls visit(row, block, numbers) for each ROWS rows, from row `first` to before row `last`, and each `size` numbers
// of them, as float32, until it does not return GOOD. Adds to `gathering` the time that it took to get
// rows side by side.
template <typename Item, typename Visit>
Status walk(const Source<Item> &source, bool (*widen)(const void *, size_t, float *), size_t first, size_t last,
            size_t size, Tile<Item> *tiles, Seconds &gathering, const Visit &visit) {
    alignas(64) float numbers[DEPTH * ROWS];
    for (size_t number = 0; number < source.length; number += DEPTH) {
        const size_t depth = std::min<size_t>(source.length - number, DEPTH);
        const auto started = std::chrono::steady_clock::now();
        gather(source, first, last - first, number, depth, tiles);
        gathering += std::chrono::steady_clock::now() - started;
        for (size_t r = 0; r < last - first; r += ROWS)
            for (size_t i = 0, block = number / size; i < depth; i += size, block++) {
                if (!widen(&tiles[r / WIDTH][i][r % WIDTH], size, numbers)) return NOT_FINITE;
                const Status status = visit(first + r, block, numbers);
                if (status != GOOD) return status;
            }
    }
    return GOOD;
}

// By encoders of rows as they are stored: those that lie side by side are turned, a square at a time.
template <typename Item>
Status encode_directly(const Type &type, Format format, const Source<Item> &source, uint8_t *out, Seconds &gathering) {
    enum { SIDE = TILES * WIDTH, STEP = SIDE + 64 / sizeof(Item) }; // a cache line more, against conflicts
    const RowEncoder encoder = type.direct[format];
    const size_t blocks = source.length / type.numbers, stride = blocks * type.bytes;
    if (source.number_step == 1) return encoder(source.items, source.row_step, source.rows, blocks, out, stride);
    const std::unique_ptr<Item[]> turned(new Item[SIDE * STEP]);
    for (size_t row = 0; row < source.rows; row += SIDE)
        for (size_t number = 0; number < source.length; number += SIDE) {
            const size_t rows = std::min<size_t>(source.rows - row, SIDE);
            const size_t length = std::min<size_t>(source.length - number, SIDE);
            const auto started = std::chrono::steady_clock::now();
            transpose(source.items + row + number * source.number_step, source.number_step, length, rows,
                      turned.get(), STEP);
            gathering += std::chrono::steady_clock::now() - started;
            uint8_t *to = out + row * stride + number / type.numbers * type.bytes;
            const Status status = encoder(turned.get(), STEP, rows, length / type.numbers, to, stride);
            if (status != GOOD) return status;
        }
    return GOOD;
}

template <typename Item>
Status encode(const Kernels &kernels, const Type &type, Format format, const Source<Item> &source,
              const float *importance, uint8_t *out, Seconds &gathering) {
    const size_t stride = source.length / type.numbers * type.bytes;
    const Encoder encoder = importance && type.weighted ? type.weighted : type.plain;
    if (!encoder) return encode_directly(type, format, source, out, gathering);
    const std::unique_ptr<Tile<Item>[]> tiles(new Tile<Item>[TILES]());
    alignas(64) uint8_t lines[MOST_LINES][ROWS];
    alignas(64) float squares[TILES * WIDTH];
    for (size_t first = 0; first < source.rows; first += TILES * WIDTH) {
        const size_t last = std::min<size_t>(source.rows, first + TILES * WIDTH);
        std::fill(squares, squares + TILES * WIDTH, 0.0f);
        const auto pass = [&](const auto &visit) {
            return walk(source, kernels.widen[format], first, last, type.numbers, tiles.get(), gathering, visit);
        };
        if (importance && type.row_mean) {
            const Status status = pass([&](size_t row, size_t, const float *numbers) {
                kernels.add_squares(numbers, type.numbers, squares + (row - first));
                return GOOD;
            });
            if (status != GOOD) return status;
            for (float &sum : squares) sum /= (float)source.length;
        }
        const Status status = pass([&](size_t row, size_t index, const float *numbers) {
            const float *counts = importance ? importance + index * type.numbers : nullptr;
            if (encoder(Block{numbers, counts, squares + (row - first)}, lines)) return OVERFLOW;
            uint8_t *to = out + row * stride + index * type.bytes;
            type.pack((const vb *)lines, Place{to, stride, (int)std::min<size_t>(last - row, ROWS)});
            return GOOD;
        });
        if (status != GOOD) return status;
    }
    return GOOD;
}

#include "decode.h"
#include "repack.h"

} // namespace

extern "C" {

// What encode.py expects of this library: another number for other functions, or other types.
enum { INTERFACE = 2 };

int llama4_edge_interface() { return INTERFACE; }

// The name of a set of instructions that runs here, the best first; null beyond the last.
const char *llama4_edge_instruction_set(size_t index) {
    for (const InstructionSet &set : SETS)
        if (set.runs_here() && index-- == 0) return set.name;
    return nullptr;
}

// Encodes `rows` rows of `length` numbers, whole blocks of the type, to `out`. The numbers are of a Format;
// `importance` is of each number of a row, the same for all rows, or null. Returns a Status, and adds to
// `gathering` the seconds that it took to get rows side by side.
int llama4_edge_encode(const char *set_name, const char *type_name, int format, const void *numbers, size_t row_step,
                       size_t number_step, size_t rows, size_t length, const float *importance, uint8_t *out,
                       double *gathering) {
    for (const InstructionSet &set : SETS) {
        if (strcmp(set.name, set_name) != 0 || !set.runs_here()) continue;
        const Type *type = set.kernels->find(type_name);
        if (!type) return UNKNOWN;
        Seconds seconds{};
        const auto encoded = [&](auto *items) {
            typedef std::remove_cv_t<std::remove_pointer_t<decltype(items)>> Item;
            const Source<Item> source = {items, row_step, number_step, rows, length};
            return encode(*set.kernels, *type, (Format)format, source, importance, out, seconds);
        };
        const Status status =
            format == F32 ? encoded((const uint32_t *)numbers) : encoded((const uint16_t *)numbers);
        *gathering += seconds.count();
        return status;
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

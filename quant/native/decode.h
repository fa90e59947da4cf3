// Codes to numbers: what a byte stands for, one number or two, times a scale. native.cpp includes it.

// Codes [lines, items], a byte each, one of whose steps is 1.
struct Codes {
    const uint8_t *bytes;
    size_t line_step, item_step, lines, items;
};

// A scale for each block of `lines` by `numbers`, in rows of `columns`; the first line is line `first` of a block.
struct Scales {
    const float *values;
    size_t columns, lines, numbers, first;
};

// `count` codes times a scale, or, where `each`, times one for each. A code stands for `step` numbers of the table, of
// which `per` are wanted.
template <int step, int per, bool each>
ALWAYS_INLINE void scale_codes(const uint8_t *codes, size_t count, const float *table, const float *scale, float *out) {
    const auto some = [&](size_t first, size_t size) __attribute__((always_inline)) {
        for (size_t i = first; i < first + size; i++)
            for (int k = 0; k < per; k++) out[i * per + k] = table[codes[i] * step + k] * scale[each ? i : 0];
    };
    size_t done = 0;
    for (; done + 8 <= count; done += 8) some(done, 8); // a size that is known is unrolled
    some(done, count - done);
}

// Codes of one line, the first of which is number `number` of it, times the scales of its groups of `size` numbers.
template <int step, int per>
void scale_line(const uint8_t *codes, size_t count, const float *table, const float *scales, size_t size,
                size_t number, float *out) {
    scales += number / size;
    if (size == 1) return scale_codes<step, 1, true>(codes, count, table, scales, out);
    size_t left = (size - number % size) / per;
    while (count > 0) {
        const size_t here = std::min(count, left);
        scale_codes<step, per, false>(codes, here, table, scales, out);
        codes += here, out += here * per, count -= here, scales++;
        left = size / per;
    }
}

// Two numbers of a byte follow each other along a line; or, `across`, each is of a line of its own.
template <int step, bool across>
void decode_line(const uint8_t *codes, size_t count, size_t line, size_t item, const float *table,
                 const Scales &scales, size_t length, float *out) {
    enum { PER = across ? 1 : step, HEIGHT = across ? step : 1 };
    for (size_t k = 0; k < HEIGHT; k++) {
        const size_t row = line * HEIGHT + k;
        const float *own = scales.values + (scales.first + row) / scales.lines * scales.columns;
        scale_line<step, PER>(codes, count, table + k, own, scales.numbers, item * PER,
                              out + row * length + item * PER);
    }
}

// The code of NaN in a table of one number a byte, which has its sign apart as in E4M3; else none.
int code_of_nan(const float *table) {
    for (int code = 0; code < 128; code++)
        if (table[code] != table[code]) return code;
    return -1;
}

bool has_code(const uint8_t *codes, size_t count, int code) {
    uint8_t found = 0;
    for (size_t i = 0; i < count; i++) found |= (codes[i] & 0x7f) == code;
    return found != 0;
}

enum { SIDE = 256 };

template <int step, bool across>
Status decode(const Codes &from, const float *table, const Scales &scales, float *out) {
    const size_t length = from.items * (across ? 1 : step);
    const int nan = step == 1 ? code_of_nan(table) : -1;
    if (from.item_step == 1) {
        for (size_t line = 0; line < from.lines; line++) {
            const uint8_t *codes = from.bytes + line * from.line_step;
            if (nan >= 0 && has_code(codes, from.items, nan)) return NOT_FINITE;
            decode_line<step, across>(codes, from.items, line, 0, table, scales, length, out);
        }
        return GOOD;
    }
    const std::unique_ptr<uint8_t[][SIDE]> square(new uint8_t[SIDE][SIDE]);
    for (size_t line = 0; line < from.lines; line += SIDE)
        for (size_t item = 0; item < from.items; item += SIDE) {
            const size_t lines = std::min<size_t>(from.lines - line, SIDE);
            const size_t items = std::min<size_t>(from.items - item, SIDE);
            const uint8_t *codes = from.bytes + line + item * from.item_step;
            transpose(codes, from.item_step, items, lines, square[0], SIDE);
            for (size_t l = 0; l < lines; l++) {
                if (nan >= 0 && has_code(square[l], items, nan)) return NOT_FINITE;
                decode_line<step, across>(square[l], items, line + l, item, table, scales, length, out);
            }
        }
    return GOOD;
}

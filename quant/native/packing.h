// Turning rows that lie side by side into rows one after the other: what does not depend on the instruction set.
// native.cpp includes it.

// A line of codes, one of each row; eight neighbours of a row in 16 bits, four in 32.
typedef uint8_t vb __attribute__((vector_size(ROWS)));
typedef uint16_t vs __attribute__((vector_size(16)));
typedef uint32_t vw __attribute__((vector_size(16)));

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

ALWAYS_INLINE vw interleave_low(vw a, vw b) { return SHUFFLE(vw, a, b, 0, 4, 1, 5); }

ALWAYS_INLINE vw interleave_high(vw a, vw b) { return SHUFFLE(vw, a, b, 2, 6, 3, 7); }

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

// Rows side by side to rows one after the other, or these to those: from[l * from_step + i], item i of line l, becomes
// to[i * to_step + l].
template <typename Item>
void transpose(const Item *from, size_t from_step, size_t lines, size_t length, Item *to, size_t to_step) {
    typedef std::conditional_t<sizeof(Item) == 1, vb, std::conditional_t<sizeof(Item) == 2, vs, vw>> Line;
    constexpr size_t side = sizeof(Line) / sizeof(Item);
    const size_t whole_lines = lines / side * side, whole_length = length / side * side;
    for (size_t l = 0; l < whole_lines; l += side)
        for (size_t i = 0; i < whole_length; i += side) {
            Line square[side];
            for (size_t k = 0; k < side; k++) memcpy(&square[k], from + (l + k) * from_step + i, sizeof(Line));
            turn<side>(square);
            for (size_t k = 0; k < side; k++) memcpy(to + (i + k) * to_step + l, &square[k], sizeof(Line));
        }
    for (size_t l = 0; l < lines; l++)
        for (size_t i = l < whole_lines ? whole_length : 0; i < length; i++)
            to[i * to_step + l] = from[l * from_step + i];
}

// The highest bit of each byte, the first one's lowest.
ALWAYS_INLINE int highest_bits(vb bytes) {
#if defined(__SSE2__)
    return _mm_movemask_epi8((__m128i)bytes);
#else
    int bits = 0;
    for (int i = 0; i < ROWS; i++) bits |= bytes[i] >> 7 << i;
    return bits;
#endif
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
    const vb halves[2] = {interleave_low(lines[0], lines[1]), interleave_high(lines[0], lines[1])};
    for (int row = 0; row < place.rows; row++)
        memcpy(place.first + row * place.stride + at, (const uint8_t *)halves + 2 * row, 2);
}

// Less than ROWS lines of codes to the blocks, from byte `at` of each.
ALWAYS_INLINE void scatter_part(const vb *lines, int count, Place place, int at) {
    vb square[ROWS] = {};
    memcpy(square, lines, count * sizeof(vb));
    turn<ROWS>(square);
    for (int row = 0; row < place.rows; row++)
        memcpy(place.first + row * place.stride + at, &square[row], count);
}

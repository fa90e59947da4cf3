// Integers with a scale for each group to ggml's blocks, which hold the same numbers: no arithmetic, but where
// codes lie. native.cpp includes it.

// What is to be packed: `codes` of `rows` rows of `length` numbers, whole blocks of 32, each row's side by side;
// a scale, and for Q4_1 a minimum, for each `group` numbers of a row, which are whole blocks too, in f16.
struct Groups {
    const uint8_t *codes;
    size_t rows, length, group;
    const uint16_t *scales, *minima;
};

// 32 codes of 4 bits, the even ones low, to ggml's order: number i low and number 16 + i high.
ALWAYS_INLINE void reorder_nibbles(const uint8_t *from, uint8_t *to) {
    uint64_t first, second;
    memcpy(&first, from, 8);
    memcpy(&second, from + 8, 8);
    const uint64_t low = 0x0f0f0f0f0f0f0f0f;
    const uint64_t even[2] = {(first & low) | (second & low) << 4, 0};
    const uint64_t odd[2] = {(first >> 4 & low) | (second & ~low), 0};
    vb evens, odds;
    memcpy(&evens, even, sizeof evens);
    memcpy(&odds, odd, sizeof odds);
    const vb both = interleave_low(evens, odds);
    memcpy(to, &both, sizeof both);
}

template <int header, bool nibbles>
void repack(const Groups &from, uint8_t flipped, uint8_t *out) {
    const size_t groups = (from.length + from.group - 1) / from.group;
    const uint8_t *codes = from.codes;
    for (size_t row = 0; row < from.rows; row++)
        for (size_t number = 0; number < from.length; number += 32) {
            const size_t group = row * groups + number / from.group;
            memcpy(out, from.scales + group, 2);
            if (header == 4) memcpy(out + 2, from.minima + group, 2);
            out += header;
            if (nibbles) {
                reorder_nibbles(codes, out);
            } else {
                for (int i = 0; i < 32; i++) out[i] = codes[i] ^ flipped;
            }
            out += nibbles ? 16 : 32;
            codes += nibbles ? 16 : 32;
        }
}

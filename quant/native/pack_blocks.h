// How lines of codes become blocks of 32 numbers, and IQ4_XS: ggml-common.h, and the ends of quantize_row_*_ref
// in ggml-quants.c. native.cpp includes it.

// 32 codes of four bits: the first sixteen in the low bits, the others in the high ones.
ALWAYS_INLINE void pair(const vb *codes, vb *pairs) {
    for (int i = 0; i < 16; i++) pairs[i] = (codes[i] & 15) | (codes[16 + i] << 4);
}

// The fifth bits of 32 codes, eight in a byte.
ALWAYS_INLINE void fifth_bits(const vb *codes, vb *bits) {
    for (int i = 0; i < 4; i++) {
        bits[i] = vb{};
        for (int k = 0; k < 8; k++) bits[i] |= (codes[8 * i + k] >> 4 & 1) << k;
    }
}

// Blocks of 16 to 32 bytes, in two pieces that overlap.
ALWAYS_INLINE void scatter_block(const vb *lines, int count, Place place) {
    scatter(lines, ROWS, place, 0);
    scatter(lines + count - ROWS, ROWS, place, count - ROWS);
}

// `head` lines, then codes of four bits: Q4_0, Q4_1, IQ4_NL and MXFP4.
template <int head>
void pack_pairs(const vb *lines, Place place) {
    vb block[head + 16];
    memcpy(block, lines, head * sizeof *lines);
    pair(lines + head, block + head);
    scatter_block(block, head + 16, place);
}

// The same with codes of five bits, the fifth ones first: Q5_0 and Q5_1.
template <int head>
void pack_fives(const vb *lines, Place place) {
    vb block[head + 20];
    memcpy(block, lines, head * sizeof *lines);
    fifth_bits(lines + head, block + head);
    pair(lines + head, block + head + 4);
    scatter_block(block, head + 20, place);
}

// Scales of six bits: the upper two of each in two bytes, then the lower four in four.
void pack_iq4_xs(const vb *lines, Place place) {
    vb block[ROWS] = {lines[0], lines[1]}, codes[128];
    const vb *scales = lines + 2;
    for (int i = 0; i < 4; i++) {
        block[2] |= scales[i] >> 4 << (2 * i);
        block[3] |= scales[4 + i] >> 4 << (2 * i);
        block[4 + i] = (scales[2 * i] & 15) | (scales[2 * i + 1] << 4);
    }
    for (int g = 0; g < 8; g++) pair(lines + 10 + 32 * g, codes + 16 * g);
    scatter(block, ROWS, place, 0);
    scatter(codes, 128, place, 8);
}

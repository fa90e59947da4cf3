// How lines of codes become the superblocks of K-quants: ggml-common.h, and the ends of quantize_row_*_ref in
// ggml-quants.c. native.cpp includes it.

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

// Four codes of two bits each, of numbers 32 apart.
void pack_pairs(const vb *lines, vb *codes) {
    for (int i = 0; i < 64; i++) {
        const vb *l = lines + i / 32 * 128 + i % 32;
        codes[i] = (l[0] & 3) | (l[32] & 3) << 2 | (l[64] & 3) << 4 | (l[96] & 3) << 6;
    }
}

// The highest bits of the codes, the lower two, and twelve bytes of sixteen scales in six bits each.
void pack_q3_k(const vb *lines, Place place) {
    const vb *scales = lines + 2;
    vb codes[64], high[32] = {}, header[ROWS] = {};
    for (int i = 0; i < 256; i++) high[i % 32] |= lines[18 + i] >> 2 << (i / 32);
    for (int j = 0; j < 8; j++) header[j] = (scales[j] & 15) | scales[8 + j] << 4;
    for (int j = 0; j < 16; j++) header[8 + j % 4] |= scales[j] >> 4 << (2 * (j / 4));
    header[12] = lines[0];
    header[13] = lines[1];
    pack_pairs(lines + 18, codes);
    scatter(high, 32, place, 0);
    scatter(codes, 64, place, 32);
    scatter_part(header, 14, place, 96);
}

void pack_q2_k(const vb *lines, Place place) {
    vb codes[64];
    pack_pairs(lines + 20, codes);
    scatter(lines + 4, 16, place, 0);
    scatter(codes, 64, place, 16);
    scatter_f16(lines, place, 80);
    scatter_f16(lines + 2, place, 82);
}

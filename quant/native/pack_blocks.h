// How lines of codes become blocks of 32 numbers: ggml-common.h, and the ends of quantize_row_*_ref in
// ggml-quants.c. native.cpp includes it.

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

// The encoders of types whose blocks are of 32 numbers. kernels.h includes it, and says how they work.

// Q8_0 of 32 numbers: d as f16, then the codes, each x = d * code.
TARGET bool q8_0(const Block &block, uint8_t (*bytes)[ROWS]) {
    vf most = {};
    for (int i = 0; i < 32; i++) {
        vf size = magnitude(number(block, i));
        most = size > most ? size : most;
    }
    vf d = most / 127.0f;
    vf inverse = d != 0.0f ? 1.0f / d : vf{};
    vi half = to_f16(d);
    put_f16(half, bytes);
    for (int i = 0; i < 32; i++) {
        vf x = number(block, i) * inverse;
        // Halves go away from zero: only what is at least one carries over with the largest f32 below it.
        vi nudge = ((vi)x & (int32_t)0x80000000) | 0x3effffff;
        put(__builtin_convertvector(x + (vf)nudge, vi), bytes[2 + i]);
    }
    return overflows(half);
}

// Q4_0 of 32 numbers: d as f16, then the codes, each x = d * (code - 8).
TARGET bool q4_0(const Block &block, uint8_t (*bytes)[ROWS]) {
    vf most = {}, signed_most = {};
    for (int i = 0; i < 32; i++) {
        vf x = number(block, i);
        vi larger = magnitude(x) > most;
        most = larger ? magnitude(x) : most;
        signed_most = larger ? x : signed_most;
    }
    vf d = signed_most / -8.0f;
    vf inverse = d != 0.0f ? 1.0f / d : vf{};
    vi half = to_f16(d);
    put_f16(half, bytes);
    for (int i = 0; i < 32; i++) {
        vf x = number(block, i) * inverse + 8.5f;
        put(clamp(__builtin_convertvector(x, vi) & 0xff, 0, 15), bytes[2 + i]);
    }
    return overflows(half);
}

const Type BLOCKS[] = {
    // ggml ignores importance in Q8_0.
    {"Q8_0", 32, 34, all_rows<q8_0>, all_rows<q8_0>, false, pack_q8_0},
    {"Q4_0", 32, 18, all_rows<q4_0>, nullptr, true, pack_q4_0},
};

// Products of rows of bfloat16 with a panel of a weight by AMX, whose tiles of 16 rows and 16 columns the processor
// multiplies at once. See product.h for how a weight lies, which is how a tile of it has to lie too.
//
// Written as assembly, so that the library runs on processors without: mk_bfloat16 has asked.

#pragma once

#include "output.h"

#if defined(__AVX512F__)

namespace {

constexpr int64_t TILE_ROWS = 16, TILE_COLUMNS = 16, TILE_STEPS = 16;

#define MK_TILE_CLEAR(tile) asm volatile("tilezero %%tmm" #tile ::: "memory")
#define MK_TILE_LOAD(tile, from, stride) \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(int64_t(stride)) : "memory")
#define MK_TILE_STORE(tile, to, stride) \
    asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(int64_t(stride)) : "memory")
#define MK_TILE_MULTIPLY(sum, x, weight) \
    asm volatile("tdpbf16ps %%tmm" #weight ", %%tmm" #x ", %%tmm" #sum ::: "memory")

// Tiles while this lives: 0 to 3 for sums, two of them side by side, 4 and 5 for 1 to 32 rows, 6 and 7 for columns.
struct Tiles {
    struct alignas(64) Shape {
        uint8_t palette, unused[15];
        uint16_t bytes[16];
        uint8_t rows[16];
    };

    explicit Tiles(int64_t rows) {
        int64_t above = rows < TILE_ROWS ? rows : TILE_ROWS, below = rows > TILE_ROWS ? rows - TILE_ROWS : TILE_ROWS;
        Shape shape{};
        shape.palette = 1;
        for (int i = 0; i < 8; i++) {
            shape.bytes[i] = 64;
            shape.rows[i] = i >= 6 ? TILE_STEPS : i == 2 || i == 3 || i == 5 ? below : above;
        }
        asm volatile("ldtilecfg %0" ::"m"(shape));
    }
    ~Tiles() { asm volatile("tilerelease" ::: "memory"); }
};

// What R times 16 rows give with C times 16 columns, in the tiles of sums.
template <int R, int C>
MK_INLINE void multiply_tiles(const char *x, int64_t stride, const char *weight, int64_t width, int64_t steps) {
    MK_TILE_CLEAR(0);
    if (C == 2) MK_TILE_CLEAR(1);
    if (R == 2) MK_TILE_CLEAR(2);
    if (R == 2 && C == 2) MK_TILE_CLEAR(3);
    for (int64_t k = 0; k < steps; k += TILE_STEPS) {
        MK_TILE_LOAD(4, x + k * 4, stride);
        MK_TILE_LOAD(6, weight + k * width * 4, width * 4);
        MK_TILE_MULTIPLY(0, 4, 6);
        if (C == 2) MK_TILE_LOAD(7, weight + k * width * 4 + TILE_COLUMNS * 4, width * 4);
        if (C == 2) MK_TILE_MULTIPLY(1, 4, 7);
        if (R == 2) MK_TILE_LOAD(5, x + k * 4 + TILE_ROWS * stride, stride);
        if (R == 2) MK_TILE_MULTIPLY(2, 5, 6);
        if (R == 2 && C == 2) MK_TILE_MULTIPLY(3, 5, 7);
    }
}

// The same for all columns of a panel, put where they belong.
template <int R>
void multiply_tile_rows(const char *x, int64_t stride, int64_t first, int64_t count, const char *panel, int64_t steps,
                        int64_t width, const Output &y) {
    alignas(64) float sums[2 * TILE_ROWS][2 * TILE_COLUMNS];
    Tiles tiles(count);
    for (int64_t column = 0; column < width; column += 2 * TILE_COLUMNS) {
        bool two = column + TILE_COLUMNS < width;
        const char *weight = panel + column * 4;
        if (two) multiply_tiles<R, 2>(x, stride, weight, width, steps);
        else multiply_tiles<R, 1>(x, stride, weight, width, steps);
        MK_TILE_STORE(0, sums[0], sizeof(sums[0]));
        if (two) MK_TILE_STORE(1, sums[0] + TILE_COLUMNS, sizeof(sums[0]));
        if (R == 2) MK_TILE_STORE(2, sums[TILE_ROWS], sizeof(sums[0]));
        if (R == 2 && two) MK_TILE_STORE(3, sums[TILE_ROWS] + TILE_COLUMNS, sizeof(sums[0]));
        for (int64_t r = 0; r < count; r++) {
            y.put(first + r, column, load<Floats>(sums[r]));
            if (two) y.put(first + r, column + LANES, load<Floats>(sums[r] + LANES));
        }
    }
}

void multiply_by_tiles(const char *x, int64_t stride, int64_t count, const char *panel, int64_t steps, int64_t width,
                       const Output &y) {
    for (int64_t first = 0; first < count; first += 2 * TILE_ROWS) {
        int64_t left = count - first;
        const char *from = x + first * stride;
        if (left <= TILE_ROWS) multiply_tile_rows<1>(from, stride, first, left, panel, steps, width, y);
        else multiply_tile_rows<2>(from, stride, first, left < 2 * TILE_ROWS ? left : 2 * TILE_ROWS, panel, steps, width, y);
    }
}

} // namespace

#endif

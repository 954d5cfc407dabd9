// Products of rows with a weight: in float32, or of bfloat16 and summed in float32.
//
// The weight lies in panels of MK_PANEL columns, the last one narrower: (panels, depth, columns of the panel). Of
// bfloat16 two depths lie side by side, (panels, depth / 2, columns of the panel, 2), as rows have them anyway.
// A step is so many depths as have four bytes. Rows are summed in the order of their depths, each by itself.

#pragma once

#include "amx.h"
#include "output.h"

namespace {

// Rows and vectors of columns that are summed together: as many as fit into registers.
constexpr int PRODUCT_ROWS = 6, PRODUCT_VECTORS = LANES == 16 ? 4 : 2;
constexpr int64_t STEP = 4; // bytes

// sum + x * weight, of one step.
template <bool PAIRS>
MK_INLINE Floats step_on(Floats sum, const char *x, Floats weight) {
#if defined(__AVX512F__)
    if (PAIRS) { // mk_bfloat16 has asked the processor
        Ints pair = Ints{} + load<int32_t>(x);
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(pair));
        return sum;
    }
#endif
    return load<float>(x) * weight + sum;
}

// What R rows from the first on give with V vectors of a panel from `column` on; width: columns of the panel.
template <bool PAIRS, int R, int V>
MK_INLINE void multiply(const char *const *row, int64_t first, const char *panel, int64_t steps, int64_t width,
                        int64_t column, const Output &y) {
    const char *x[R];
    Floats sum[R][V];
    for (int r = 0; r < R; r++) {
        x[r] = row[first + r];
        clear(sum[r], V);
    }
    for (int64_t k = 0; k < steps; k++) {
        const char *at = panel + (k * width + column) * STEP;
        Floats w[V];
#pragma clang loop unroll(full)
        for (int v = 0; v < V; v++) {
            w[v] = load<Floats>(at + v * LANES * STEP);
            __builtin_prefetch(at + (steps * width + v * LANES) * STEP, 0, 2); // of the next panel
        }
#pragma clang loop unroll(full)
        for (int r = 0; r < R; r++) {
#pragma clang loop unroll(full)
            for (int v = 0; v < V; v++) sum[r][v] = step_on<PAIRS>(sum[r][v], x[r] + k * STEP, w[v]);
        }
    }
#pragma clang loop unroll(full)
    for (int r = 0; r < R; r++) {
        for (int v = 0; v < V; v++) y.put(first + r, column + v * LANES, sum[r][v]);
    }
}

template <bool PAIRS, int V>
void multiply_rows(const char *const *row, int64_t count, const char *panel, int64_t steps, int64_t width,
                   int64_t column, const Output &y) {
    int64_t r = 0;
    for (; r + PRODUCT_ROWS <= count; r += PRODUCT_ROWS) {
        multiply<PAIRS, PRODUCT_ROWS, V>(row, r, panel, steps, width, column, y);
    }
    for (; r + 2 <= count; r += 2) multiply<PAIRS, 2, V>(row, r, panel, steps, width, column, y);
    if (r < count) multiply<PAIRS, 1, V>(row, r, panel, steps, width, column, y);
}

template <bool PAIRS>
void multiply_columns(const char *const *row, int64_t count, const char *panel, int64_t steps, int64_t width,
                      const Output &y) {
    constexpr int whole = PRODUCT_VECTORS * LANES;
    int64_t column = 0;
    for (; column + whole <= width; column += whole) {
        multiply_rows<PAIRS, PRODUCT_VECTORS>(row, count, panel, steps, width, column, y);
    }
    for (; column < width; column += LANES) multiply_rows<PAIRS, 1>(row, count, panel, steps, width, column, y);
}

MK_INLINE int64_t panels(int64_t columns) { return (columns + MK_PANEL - 1) / MK_PANEL; }

// Rows of a dtype, where they lie, times one panel of a weight (depth, columns). Tiles may multiply rows that lie
// `stride` bytes apart, if that is not 0.
MK_INLINE void multiply_panel(int64_t dtype, const char *const *row, int64_t count, int64_t stride, const void *weight,
                              int64_t depth, int64_t columns, int64_t panel, const Output &y) {
    int64_t steps = dtype == MK_BFLOAT16 ? depth / 2 : depth, first = panel * MK_PANEL;
    int64_t width = columns - first < MK_PANEL ? columns - first : MK_PANEL;
    const char *at = (const char *)weight + first * steps * STEP;
#if defined(__AVX512F__)
    if (stride && steps % TILE_STEPS == 0) return multiply_by_tiles(row[0], stride, count, at, steps, width, y);
    if (dtype == MK_BFLOAT16) return multiply_columns<true>(row, count, at, steps, width, y);
#endif
    multiply_columns<false>(row, count, at, steps, width, y);
}

} // namespace

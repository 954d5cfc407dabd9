// A Mamba block behind RMSNorm and beside its shortcut, for inference: what surrounds inner.h.
//
// The weight of the norm is part of in_proj.

#pragma once

#include "inner.h"

namespace {

constexpr int64_t NORM_ROWS = 16, PRODUCT_TASK = 66, TILED_TASK = 64; // rows of a task, at most

MK_INLINE int64_t size_of(int64_t dtype) { return dtype == MK_BFLOAT16 ? 2 : 4; }

int64_t norm_tasks(const MkBlock &p) { return (p.rows + NORM_ROWS - 1) / NORM_ROWS; }

// Rows over their root mean square, as factors.
void norm_rows(const MkBlock &p, int64_t task) {
    int64_t end = (task + 1) * NORM_ROWS < p.rows ? (task + 1) * NORM_ROWS : p.rows;
    for (int64_t row = task * NORM_ROWS; row < end; row++) {
        const float *x = p.x + row * p.channels;
        char *begin = (char *)p.normed + row * p.channels * size_of(p.dtype);
        Output to{&begin, p.dtype, 0};
        Floats squares{};
        for (int64_t c = 0; c < p.channels; c += LANES) squares = load<Floats>(x + c) * load<Floats>(x + c) + squares;
        float sum = 0;
        for (int i = 0; i < LANES; i++) sum += squares[i];
        float scale = 1.0f / __builtin_sqrtf(sum / float(p.channels) + *p.eps);
        for (int64_t c = 0; c < p.channels; c += LANES) {
            to.put(0, c, load<Floats>(x + c) * scale);
        }
    }
}

// A product with all rows: tasks are ranges of rows for each panel of columns.
struct Product {
    const void *x, *weight; // (rows, depth), panels
    void *y;                // (rows, columns)
    int64_t rows, depth, columns, dtype, tiles;

    int64_t ranges() const {
        int64_t most = tiles ? TILED_TASK : PRODUCT_TASK;
        return (rows + most - 1) / most;
    }
    int64_t tasks() const { return panels(columns) * ranges(); }

    // y in its dtype is the product plus, where there is one, `more`, which is shaped like y.
    void run(int64_t task, int64_t y_dtype, const float *more) const {
        int64_t panel = task / ranges(), share = (rows + ranges() - 1) / ranges();
        int64_t unit = tiles ? TILED_TASK : PRODUCT_ROWS; // PRODUCT_TASK is a multiple of it, and no share is larger
        share = (share + unit - 1) / unit * unit;
        int64_t first = task % ranges() * share, count = rows - first < share ? rows - first : share;
        int64_t stride = depth * size_of(dtype);
        const char *row[PRODUCT_TASK];
        char *to[PRODUCT_TASK];
        for (int64_t r = 0; r < count; r++) {
            row[r] = (const char *)x + (first + r) * stride;
            to[r] = (char *)y + ((first + r) * columns + panel * MK_PANEL) * size_of(y_dtype);
        }
        int64_t offset = more ? (const char *)more - (const char *)y : 0;
        multiply_panel(dtype, row, count, tiles ? stride : 0, weight, depth, columns, panel, {to, y_dtype, offset});
    }
};

MK_INLINE Product product_in(const MkBlock &p) {
    return {p.normed, p.in_proj, p.xz, p.rows, p.channels, 2 * p.inner, p.dtype, p.tiles};
}

MK_INLINE Product product_out(const MkBlock &p) {
    return {p.y, p.out_proj, p.out, p.rows, p.inner, p.channels, p.dtype, p.tiles};
}

int64_t product_in_tasks(const MkBlock &p) { return product_in(p).tasks(); }
int64_t product_out_tasks(const MkBlock &p) { return product_out(p).tasks(); }
void multiply_in(const MkBlock &p, int64_t task) { product_in(p).run(task, p.dtype, nullptr); }
void multiply_out(const MkBlock &p, int64_t task) { product_out(p).run(task, MK_FLOAT32, p.x); }

} // namespace

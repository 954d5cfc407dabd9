// A Mamba block behind RMSNorm and beside its shortcut, for inference: what surrounds inner.h.
//
// The weight of the norm is part of in_proj.

#pragma once

#include "inner.h"

namespace {

constexpr int64_t NORM_ROWS = 16, PRODUCT_TASK = 66; // rows of a task, at most

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
    int64_t rows, depth, columns, dtype;

    int64_t ranges() const { return (rows + PRODUCT_TASK - 1) / PRODUCT_TASK; }
    int64_t tasks() const { return panels(columns) * ranges(); }

    // y in its dtype is the product plus, where there is one, `more`, which is shaped like y.
    void run(int64_t task, int64_t y_dtype, const float *more) const {
        int64_t panel = task / ranges(), share = (rows + ranges() - 1) / ranges();
        share = (share + PRODUCT_ROWS - 1) / PRODUCT_ROWS * PRODUCT_ROWS; // at most PRODUCT_TASK, its multiple
        int64_t first = task % ranges() * share, count = rows - first < share ? rows - first : share;
        const char *row[PRODUCT_TASK];
        char *to[PRODUCT_TASK];
        for (int64_t r = 0; r < count; r++) {
            row[r] = (const char *)x + (first + r) * depth * size_of(dtype);
            to[r] = (char *)y + ((first + r) * columns + panel * MK_PANEL) * size_of(y_dtype);
        }
        int64_t offset = more ? (const char *)more - (const char *)y : 0;
        multiply_panel(dtype, row, count, weight, depth, columns, panel, {to, y_dtype, offset});
    }
};

MK_INLINE Product product_in(const MkBlock &p) {
    return {p.normed, p.in_proj, p.xz, p.rows, p.channels, 2 * p.inner, p.dtype};
}

MK_INLINE Product product_out(const MkBlock &p) {
    return {p.y, p.out_proj, p.out, p.rows, p.inner, p.channels, p.dtype};
}

int64_t product_in_tasks(const MkBlock &p) { return product_in(p).tasks(); }
int64_t product_out_tasks(const MkBlock &p) { return product_out(p).tasks(); }
void multiply_in(const MkBlock &p, int64_t task) { product_in(p).run(task, p.dtype, nullptr); }
void multiply_out(const MkBlock &p, int64_t task) { product_out(p).run(task, MK_FLOAT32, p.x); }

} // namespace

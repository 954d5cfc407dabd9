// A Mamba block between its projections in and out, for inference: one or several directions, each with its
// convolution, the product that chooses step sizes and the weights B and C, and its scan; then the gate.
//
// First come chunks of tokens with all their channels, for a token's step and weights depend on them all;
// then slabs of channels with all their tokens.
//
// Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Section 3.4 and Algorithm 2.

#pragma once

#include "conv.h"
#include "multi.h"
#include "product.h"

namespace {

MK_INLINE MkConv conv_of(const MkInner &p) {
    int64_t d = p.channels, l = p.tokens, past = p.taps - 1;
    MkConv conv{};
    conv.batch = p.batch, conv.channels = d, conv.tokens = l, conv.taps = p.taps, conv.slab = d;
    conv.silu = 1, conv.reverse = p.reverse, conv.order = p.order;
    conv.x = p.x;
    conv.weight = {(void *)p.conv, MK_FLOAT32, {1, d}};
    conv.bias = {(void *)p.conv_bias, MK_FLOAT32, {1}};
    conv.initial = {(void *)p.conv_state, MK_FLOAT32, {d * past, past, 1}};
    conv.y = {p.u, p.dtype, {l * d, 1, d}};
    conv.last = {p.next_conv_state, MK_FLOAT32, {d * past, past, 1}};
    return conv;
}

MK_INLINE MkScan scan_of(const MkInner &p) {
    int64_t d = p.channels, l = p.tokens;
    MkScan scan{};
    scan.batch = p.batch, scan.channels = d, scan.tokens = l, scan.states = p.states, scan.groups = 1;
    scan.slab = p.slab, scan.softplus = 1, scan.reverse = p.reverse, scan.order = p.order;
    scan.u = {p.u, p.dtype, {l * d, 1, d}};
    scan.rank = p.rank, scan.low = p.low, scan.dt_proj = p.dt_proj;
    scan.z = p.z, scan.y = p.y;
    scan.B = {p.weights + p.rank, MK_FLOAT32, {l * p.columns, 0, 1, p.columns}};
    scan.C = {p.weights + p.rank + p.states, MK_FLOAT32, {l * p.columns, 0, 1, p.columns}};
    scan.A = p.A, scan.D = p.D, scan.bias = p.dt_bias, scan.initial = p.state, scan.last = p.next_state;
    return scan;
}

// A chunk of tokens through the convolution and the product.
void inner_chunk(const MkInner &p, int64_t b, int64_t chunk) {
    CONVOLVE_CHUNK[p.taps - 1](conv_of(p), b, chunk);
    Span span(p.order, p.reverse, p.tokens, chunk);
    const char *row[MK_CHUNK];
    char *to[MK_CHUNK];
    float *weights = p.weights + b * p.tokens * p.columns;
    int64_t size = p.dtype == MK_BFLOAT16 ? 2 : 4, stride = p.tiles ? span.step * p.channels * size : 0;
    for (int t = 0; t < span.count; t++) row[t] = (const char *)p.u + (b * p.tokens + span.token[t]) * p.channels * size;
    for (int64_t panel = 0; panel < panels(p.columns); panel++) {
        for (int t = 0; t < span.count; t++) to[t] = (char *)(weights + span.token[t] * p.columns + panel * MK_PANEL);
        multiply_panel(p.dtype, row, span.count, stride, p.x_proj, p.channels, p.columns, panel, {to, MK_FLOAT32, 0});
    }
    int64_t chunks = (p.tokens + MK_CHUNK - 1) / MK_CHUNK;
    float *low = p.low + (b * chunks + chunk) * p.rank * MK_CHUNK;
    for (int t = 0; t < MK_CHUNK; t++) {
        const float *from = weights + span.token[t < span.count ? t : 0] * p.columns;
        for (int64_t r = 0; r < p.rank; r++) low[r * MK_CHUNK + t] = from[r];
    }
}

int64_t inner_scratch(const MkInner *p, int64_t count) {
    return count == 1 ? forward_scratch(scan_of(*p)) : multi_forward_scratch(scan_of(*p));
}

// A slab of channels through the scans and the gate.
void inner_slab(const MkInner *p, int64_t count, int64_t task, char *scratch) {
    if (count == 1) return forward_slab(scan_of(*p), task, scratch);
    MkScan scans[MK_DIRECTIONS];
    for (int64_t i = 0; i < count; i++) scans[i] = scan_of(p[i]);
    multi_forward_slab(scans, count, task, scratch);
}

} // namespace

// What each instruction set provides: the operations over one task, and how much scratch they need.

#pragma once

#include "api.h"

struct MkKernels {
    int64_t (*forward_scratch)(const MkScan &);
    void (*forward_slab)(const MkScan &, int64_t task, char *scratch);
    int64_t (*backward_scratch)(const MkScan &);
    void (*backward_slab)(const MkScan &, int64_t task, char *scratch);
    int64_t (*multi_forward_scratch)(const MkScan &);
    void (*multi_forward_slab)(const MkScan *, int64_t count, int64_t task, char *scratch);
    int64_t (*multi_backward_scratch)(const MkScan &);
    void (*multi_backward_slab)(const MkScan *, int64_t count, int64_t task, char *scratch);
    int64_t (*weight_tasks)(const MkScan &);
    void (*copy_weights)(const MkScan &from, const MkScan &to, int64_t task);
    int64_t (*step_scratch)(const MkScan &);
    void (*step_slab)(const MkScan &, int64_t task, char *scratch);
    int64_t (*conv_forward_scratch)(const MkConv &);
    void (*conv_forward_strip)(const MkConv &, int64_t task, char *scratch);
    int64_t (*conv_backward_scratch)(const MkConv &);
    void (*conv_backward_strip)(const MkConv &, int64_t task, char *scratch);
    void (*inner_chunk)(const MkInner &, int64_t b, int64_t chunk);
    int64_t (*inner_scratch)(const MkInner *, int64_t count);
    void (*inner_slab)(const MkInner *, int64_t count, int64_t task, char *scratch);
    int64_t (*norm_tasks)(const MkBlock &);
    void (*norm_rows)(const MkBlock &, int64_t task);
    int64_t (*product_in_tasks)(const MkBlock &);
    void (*multiply_in)(const MkBlock &, int64_t task);
    int64_t (*product_out_tasks)(const MkBlock &);
    void (*multiply_out)(const MkBlock &, int64_t task);
    void (*exp)(const float *from, float *to, int64_t count);
};

extern const MkKernels mk_kernels_sse2, mk_kernels_avx2, mk_kernels_avx512, mk_kernels_neon;

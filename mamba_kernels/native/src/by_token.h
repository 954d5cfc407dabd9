// Scans in orders of their own, for which the weights B and C are laid out by token first: elsewhere the tokens of a
// state may lie side by side, of which any order but their own would fetch single elements, for each slab anew.

#pragma once

#include "kernels.h"
#include "threads.h"

namespace {

bool wants_weights_by_token(const MkScan &p) { return p.order && (p.B.stride[2] != 1 || p.C.stride[2] != 1); }

// Calls f(scans) with scans of one size whose weights are float32 (b, g, l, padded n), if one of them wants that.
// False: no memory, or f says so.
template <class F>
bool with_weights_by_token(const MkScan *scans, int64_t count, const MkKernels &k, int64_t threads, F f) {
    bool wanted = false;
    for (int64_t i = 0; i < count; i++) wanted = wanted || wants_weights_by_token(scans[i]);
    if (!wanted) return f(scans);
    int64_t row = (scans->states + MK_BLOCK - 1) / MK_BLOCK * MK_BLOCK, of_group = row * scans->tokens;
    int64_t floats = scans->batch * scans->groups * of_group;
    char *memory = (char *)malloc(count * (sizeof(MkScan) + 2 * floats * sizeof(float)) + 64);
    if (!memory) return false;
    float *weights = (float *)(((uintptr_t)memory + 63) / 64 * 64);
    MkScan *copies = (MkScan *)(weights + 2 * count * floats);
    for (int64_t i = 0; i < count; i++, weights += 2 * floats) {
        copies[i] = scans[i];
        copies[i].B = {weights, MK_FLOAT32, {scans->groups * of_group, of_group, 1, row}};
        copies[i].C = {weights + floats, MK_FLOAT32, {scans->groups * of_group, of_group, 1, row}};
    }
    int64_t tasks = k.weight_tasks(*scans);
    auto copy = [&](int64_t i, char *) { k.copy_weights(scans[i / tasks], copies[i / tasks], i % tasks); };
    bool good = mk::run(count * tasks, threads, 0, copy) && f(copies);
    free(memory);
    return good;
}

} // namespace

// Tokens through Mamba blocks, one after another: where features lie, and what is done in turn.

#pragma once

#include "kernels.h"
#include "threads.h"

namespace {

// Memory handed out from front to back.
struct Memory {
    uintptr_t next;

    template <class T>
    void take(T *&to, int64_t bytes) {
        to = (T *)next;
        next += (bytes + 63) / 64 * 64;
    }
};

int64_t chunks_of(int64_t tokens) { return (tokens + MK_CHUNK - 1) / MK_CHUNK; }

// A block with its directions as they are in a pass, but for where tokens come from and go, and states. Features lie
// in the memory, which is moved on.
MkBlock in_pass(const MkPass &pass, const MkBlock &block, MkInner *directions, Memory &memory) {
    int64_t b = pass.batch, l = pass.tokens, d = block.inner, size = block.dtype == MK_BFLOAT16 ? 2 : 4;
    MkBlock p = block;
    p.rows = b * l, p.directions = directions;
    memory.take(p.normed, p.rows * p.channels * size);
    memory.take(p.xz, p.rows * 2 * d * size);
    memory.take(p.y, p.rows * d * size);
    for (int64_t i = 0; i < p.count; i++) {
        MkInner &own = directions[i] = block.directions[i];
        own.batch = b, own.tokens = l, own.slab = pass.slab;
        own.x = {p.xz, p.dtype, {2 * l * d, 1, 2 * d}};
        own.z = {(void *)((uintptr_t)p.xz + d * size), p.dtype, {2 * l * d, 1, 2 * d}};
        own.y = {p.y, p.dtype, {l * d, 1, d}};
        memory.take(own.u, p.rows * d * size);
        memory.take(own.low, 4 * b * chunks_of(l) * MK_CHUNK * own.rank);
        memory.take(own.weights, 4 * p.rows * own.columns);
    }
    return p;
}

// The steps of a block, each when all tasks of the one before are done. False: no memory.
bool run_block(const MkBlock &p, const MkKernels &k, int64_t threads) {
    const MkInner *d = p.directions;
    int64_t chunks = chunks_of(d->tokens), slabs = (d->channels + d->slab - 1) / d->slab;
    auto norm = [&](int64_t i, char *) { k.norm_rows(p, i); };
    auto in = [&](int64_t i, char *) { k.multiply_in(p, i); };
    auto chunk = [&](int64_t i, char *) { k.inner_chunk(d[i / chunks / d->batch], i / chunks % d->batch, i % chunks); };
    auto slab = [&](int64_t i, char *scratch) { k.inner_slab(d, p.count, i, scratch); };
    auto out = [&](int64_t i, char *) { k.multiply_out(p, i); };
    return mk::run(k.norm_tasks(p), threads, 0, norm) &&
           mk::run(k.product_in_tasks(p), threads, 0, in) &&
           mk::run(p.count * d->batch * chunks, threads, 0, chunk) &&
           mk::run(d->batch * slabs, threads, k.inner_scratch(d, p.count), slab) &&
           mk::run(k.product_out_tasks(p), threads, 0, out);
}

} // namespace

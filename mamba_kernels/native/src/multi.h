// Several directions over one sequence with one gate and one output, and their gradients, over one slab.
//
// Token by token, the channels of a slab lie side by side in scratch: outputs are added up there, and so are
// copies of what a direction reads in an order of its own. Elsewhere the tokens of a channel may lie side by
// side, of which any order but their own would fetch single elements. (B and C are laid out by token before: see
// by_token.h.)
//
// The gate, its gradient and the output are given with the first direction.

#pragma once

#include "scan.h"
#include "scan_backward.h"

namespace {

// Scratch that stands in for the channels of one slab in arrays (b, d, l).
struct Copies {
    const MkScan &p;
    const Slab &slab;
    Arena arena;

    MkArray channels() {
        float *rows = arena.take<float>(p.tokens * p.slab);
        return {rows - slab.channel, MK_FLOAT32, {0, 1, p.slab, 0}};
    }

    MkArray copied_channels(const MkArray &from) {
        MkArray to = channels();
        copy(from, to, false);
        return to;
    }

    void copy(const MkArray &from, const MkArray &to, bool adds) const {
        for_tiles([&](const Span &span, int block) {
            Floats x[MK_CHUNK];
            Fetches<1, 1> fetches{{Lines(slab.rows(from, block), span)}, {Lines(slab.rows(to, block), span)}};
            fetches.fetch_all();
            load_tile(slab.rows(from, block), span, x);
            if (adds) add_tile(slab.rows(to, block), span, x);
            store_tile(slab.rows(to, block), span, x);
        });
    }

    // Calls f(span, block) for all tokens in their own order.
    template <class F>
    void for_tiles(F f) const {
        for (int64_t chunk = 0; chunk < slab.chunks; chunk++) {
            Span span(nullptr, false, p.tokens, chunk);
            for (int block = 0; block < slab.blocks; block++) f(span, block);
        }
    }
};

// Bytes of so many arrays of channels.
MK_INLINE int64_t copies_scratch(const MkScan &p, int64_t arrays) {
    return arrays * (p.tokens * p.slab * 4 + APART + 64);
}

MK_INLINE bool beside(const MkArray &x) { return x.stride[1] == 1; }

// Let a direction with an order of its own read copies.
MK_INLINE void copy_operands(MkScan &p, Copies &copies) {
    if (!beside(p.u)) p.u = copies.copied_channels(p.u);
    if (!p.rank && !beside(p.delta)) p.delta = copies.copied_channels(p.delta);
}

int64_t multi_forward_scratch(const MkScan &p) { return forward_scratch(p) + copies_scratch(p, 3); }

void multi_forward_slab(const MkScan *directions, int64_t count, int64_t task, char *memory) {
    const MkScan &first = directions[0];
    Slab slab(first, task);
    Copies sums{first, slab, Arena{memory}};
    MkArray total = sums.channels();
    MkArray before{}; // the sum of the directions scanned so far
    auto scan = [&](int64_t i, const MkArray &z, const MkArray &y) {
        MkScan p = directions[i];
        p.y = y;
        p.residual = before;
        p.z = z;
        Copies copies = sums;
        if (p.order) copy_operands(p, copies);
        forward_slab(p, task, copies.arena.next);
        before = total;
    };
    int64_t writer = 0; // a direction along the tokens comes at the end and writes the output itself
    while (writer < count && directions[writer].order) writer++;
    for (int64_t i = 0; i < count; i++) {
        if (i != writer) scan(i, MkArray{}, total);
    }
    if (writer < count) return scan(writer, first.z, first.y);
    sums.for_tiles([&](const Span &span, int block) {
        Floats y[MK_CHUNK];
        Fetches<1, 1> fetches{{Lines(slab.rows(first.z, block), span)}, {Lines(slab.rows(first.y, block), span)}};
        fetches.fetch_all();
        load_tile(slab.rows(total, block), span, y);
        if (first.z.data) pass_gate(slab.rows(first.z, block), span, y);
        store_tile(slab.rows(first.y, block), span, y);
    });
}

int64_t multi_backward_scratch(const MkScan &p) { return backward_scratch(p) + copies_scratch(p, 6); }

void multi_backward_slab(const MkScan *directions, int64_t count, int64_t task, char *memory) {
    const MkScan &first = directions[0];
    Slab slab(first, task);
    Copies sums{first, slab, Arena{memory}};
    MkArray grad = sums.channels(), total = first.z.data ? sums.channels() : MkArray{};
    sums.for_tiles([&](const Span &span, int block) {
        Floats x[MK_CHUNK];
        Gate gate(first, slab, span, block, x);
        store_tile(slab.rows(grad, block), span, x);
    });
    for (int64_t i = 0; i < count; i++) {
        MkScan p = directions[i];
        p.grad_y = grad;
        p.y = total;
        p.residual = i > 0 ? total : MkArray{};
        p.z = MkArray{};
        Copies copies = sums;
        bool moved_u = p.order && !beside(p.u), moved_delta = p.order && !beside(p.delta);
        if (p.order) copy_operands(p, copies);
        if (moved_u) p.grad_u = copies.channels(), p.adds_u = false;
        if (moved_delta) p.grad_delta = copies.channels();
        backward_slab(p, task, copies.arena.next);
        if (moved_u) copies.copy(p.grad_u, directions[i].grad_u, directions[i].adds_u);
        if (moved_delta) copies.copy(p.grad_delta, directions[i].grad_delta, false);
    }
    if (!first.z.data) return;
    sums.for_tiles([&](const Span &span, int block) {
        Floats x[MK_CHUNK];
        Gate gate(first, slab, span, block, x);
        load_tile(slab.rows(total, block), span, x);
        gate.store_gradient(first, slab, span, block, x);
    });
}

} // namespace

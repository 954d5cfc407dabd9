// The selective scan over one slab.
//
// Lanes are channels. A slab is walked chunk by chunk of tokens; within a chunk its blocks of LANES
// channels come one after the other, so that B and C are unpacked once for all of them. States stay
// in registers for the tokens of a chunk and in the slab's scratch between chunks. Every element
// goes through the same operations wherever its chunk begins, so that a sequence in parts gives
// what it gives in one, bit by bit.
//
// Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.

#pragma once

#include "weights.h"

namespace {

// Advance K states, from `first` on, over a chunk and add what they give to y. `fetches`: what is fetched meanwhile,
// or null.
template <bool IN_RANGE, int K>
MK_INLINE void advance(Count<K>, int first, const Tile &x, const Floats *rate, const Weights &B, const Weights &C,
                       int count, Floats *state, Floats *y, const Fetches<5, 2> *fetches) {
    Floats h[K];
    for (int n = 0; n < K; n++) h[n] = state[n];
    for (int t = 0; t < count; t++) {
        Floats sum = y[t], dt = x.dt[t], drive = x.drive[t];
#pragma clang loop unroll(full)
        for (int n = 0; n < K; n++) {
            Floats driven = drive * B.at(t, first + n);
            h[n] = h[n] * decay_of<IN_RANGE>(dt, rate[n]) + driven;
            sum = h[n] * C.at(t, first + n) + sum;
            in_turn(sum, dt);
        }
        if (fetches) fetches->fetch(t);
        y[t] = sum;
    }
    for (int n = 0; n < K; n++) state[n] = h[n];
}

MK_INLINE int64_t forward_scratch(const MkScan &p) {
    int64_t vectors = p.slab / LANES * p.states;
    return (2 * vectors + p.slab / LANES) * int64_t(sizeof(Floats)) + 2 * MK_CHUNK * padded(p.states) * 4 +
           5 * (APART + 64);
}

void forward_slab(const MkScan &p, int64_t task, char *memory) {
    Arena arena{memory};
    Slab slab(p, task);
    Rates rates(p, slab, arena);
    int states = slab.states;
    Floats *state = arena.take<Floats>(slab.blocks * states);
    float *rooms[2] = {arena.take<float>(MK_CHUNK * padded(states)), arena.take<float>(MK_CHUNK * padded(states))};
    if (p.initial) slab.gather(p.initial, true, p.channels, state);
    else clear(state, slab.blocks * states);

    for (int64_t chunk = 0; chunk < slab.chunks; chunk++) {
        Span span(p, chunk);
        Weights B(p.B, slab, span, rooms[0]), C(p.C, slab, span, rooms[1]);
        for (int block = 0; block < slab.blocks; block++) {
            Floats *h = state + block * states;
            const Floats *rate = rates.rate + block * states;
            Lines kept;
            if (p.checkpoints) {
                int64_t step;
                float *to = slab.kept(p, chunk, block, &step);
                for (int n = 0; n < states; n++) store(to + n * step, h[n]);
                kept = Lines(to + states * step, step);
            }
            Tile x(p, slab, span, block, rates.most[block]);
            auto lines = [&](const MkArray &x) { return Lines(slab.rows(x, block), span); };
            auto weights = [&](const MkArray &x) { return Lines(weight_rows(x, slab, 0), span); };
            Fetches<5, 2> fetches{
                {lines(p.u), lines(p.delta), lines(p.z), weights(p.B), weights(p.C)},
                {lines(p.y), kept},
            };
            Floats y[MK_CHUNK];
            for (int t = 0; t < span.count; t++) y[t] = x.skip * x.u[t];
            in_ranges<FORWARD_STATES>(states, [&](auto k, int n) __attribute__((always_inline)) {
                auto *now = n == 0 && begins_lines(block) ? &fetches : nullptr;
                if (x.in_range) advance<true>(k, n, x, rate + n, B, C, span.count, h + n, y, now);
                else advance<false>(k, n, x, rate + n, B, C, span.count, h + n, y, now);
            });
            if (p.residual.data) {
                Floats more[MK_CHUNK];
                load_tile(slab.rows(p.residual, block), span, more);
                for (int t = 0; t < span.count; t++) y[t] += more[t];
            }
            if (p.z.data) pass_gate(slab.rows(p.z, block), span, y);
            store_tile(slab.rows(p.y, block), span, y);
        }
    }
    if (p.last) slab.scatter(state, p.channels, p.last);
}

} // namespace

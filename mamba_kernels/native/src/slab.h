// What the selective scan and its gradient are made of: a slab is some channels of one group of one batch
// element, and a tile is some of its channels during one chunk of tokens.
//
// Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.

#pragma once

#include "fetch.h"

namespace {

// Processors take a load for one of a store just made if the last 12 bits of their addresses agree.
// Arrays that are walked together begin this far apart, beside their size of whole pages.
constexpr int64_t APART = 1024 + 64;

// Memory of one thread, handed out front to back.
struct Arena {
    char *next;

    template <class T>
    T *take(int64_t count) {
        T *taken = (T *)next;
        next += (count * int64_t(sizeof(T)) + 63) / 64 * 64 + APART;
        return taken;
    }
};

// States advanced together: as many as fit into registers.
#if MK_LANES == 16
constexpr int FORWARD_STATES = 16, BACKWARD_STATES = 8;
#else
constexpr int FORWARD_STATES = 4, BACKWARD_STATES = 4;
#endif

template <int K>
struct Count {
    static constexpr int value = K;
};

// Calls f(Count<k>, n) for ranges of k states, at most K, that begin at n and together cover all.
template <int K, class F>
MK_INLINE void in_ranges(int states, F f) {
    int n = 0;
    for (; n + K <= states; n += K) f(Count<K>{}, n);
    for (; n < states; n++) f(Count<1>{}, n);
}

MK_INLINE int padded(int64_t states) { return int((states + LANES - 1) / LANES * LANES); }

struct Slab {
    int64_t b, g, first, count; // first channel within the group and number of channels
    int64_t channel;            // first channel of all
    int index, blocks, states;
    int64_t chunks;

    Slab(const MkScan &p, int64_t task) {
        int64_t per_group = p.channels / p.groups;
        int64_t slabs = (per_group + p.slab - 1) / p.slab;
        index = int(task % slabs);
        g = task / slabs % p.groups;
        b = task / slabs / p.groups;
        first = index * p.slab;
        count = per_group - first < p.slab ? per_group - first : p.slab;
        channel = g * per_group + first;
        blocks = int((count + LANES - 1) / LANES);
        states = int(p.states);
        chunks = (p.tokens + MK_CHUNK - 1) / MK_CHUNK;
    }

    int width(int block) const {
        int64_t rest = count - block * LANES;
        return int(rest < LANES ? rest : LANES);
    }

    Rows rows(const MkArray &x, int block) const {
        return Rows(x, b, channel + block * LANES, count - block * LANES);
    }

    // Where the state n = 0 of a block at the start of a chunk is kept, and the stride of n.
    float *kept(const MkScan &p, int64_t chunk, int block, int64_t *stride) const {
        int64_t per_group = p.channels / p.groups;
        *stride = (per_group + MK_BLOCK - 1) / MK_BLOCK * MK_BLOCK;
        return p.checkpoints + (((b * p.groups + g) * chunks + chunk) * states) * *stride + first + block * LANES;
    }

    // From (d, n) or, with `batched`, (b, d, n) to vectors (blocks, n).
    void gather(const float *from, bool batched, int64_t channels, Floats *to) const {
        const float *row = from + ((batched ? b * channels : 0) + channel) * states;
        for (int block = 0; block < blocks; block++) {
            for (int n = 0; n < states; n++) {
                Floats x{};
                for (int i = 0; i < width(block); i++) x[i] = row[(block * LANES + i) * states + n];
                to[block * states + n] = x;
            }
        }
    }

    // From vectors (blocks, n) to (b, d, n).
    void scatter(const Floats *from, int64_t channels, float *to) const {
        float *row = to + (b * channels + channel) * states;
        for (int block = 0; block < blocks; block++) {
            for (int n = 0; n < states; n++) {
                for (int i = 0; i < width(block); i++) row[(block * LANES + i) * states + n] = from[block * states + n][i];
            }
        }
    }
};

// Decay rates of a slab, in powers of 2^(1/STEPS), and the largest of each channel.
struct Rates {
    Floats *rate;
    Floats *most;

    Rates(const MkScan &p, const Slab &slab, Arena &arena)
        : rate(arena.take<Floats>(slab.blocks * slab.states)), most(arena.take<Floats>(slab.blocks)) {
        slab.gather(p.A, false, p.channels, rate);
        for (int block = 0; block < slab.blocks; block++) {
            Floats &top = most[block] = Floats{};
            for (int n = 0; n < slab.states; n++) {
                Floats &x = rate[block * slab.states + n];
                x = x * POWERS;
                top = absolute(x) > top ? absolute(x) : top;
            }
        }
    }
};

// Steps of one block of one chunk, before bias and softplus, from their factors.
MK_INLINE void project(const MkScan &p, const Slab &slab, int64_t chunk, int64_t channel, Floats *to) {
    const float *low = p.low + (slab.b * slab.chunks + chunk) * p.rank * MK_CHUNK;
    const float *weight = p.dt_proj + channel / MK_BLOCK * p.rank * MK_BLOCK + channel % MK_BLOCK;
    Floats sum[MK_CHUNK];
    clear(sum, MK_CHUNK);
    for (int64_t r = 0; r < p.rank; r++) {
        Floats w = load<Floats>(weight + r * MK_BLOCK);
#pragma clang loop unroll(full)
        for (int t = 0; t < MK_CHUNK; t++) sum[t] = w * low[r * MK_CHUNK + t] + sum[t];
    }
    for (int t = 0; t < MK_CHUNK; t++) to[t] = sum[t];
}

// What one block of one chunk is computed from.
struct Tile {
    Floats u[MK_CHUNK], raw[MK_CHUNK], dt[MK_CHUNK], drive[MK_CHUNK];
    Floats skip, bias;
    bool in_range; // no exponent of the tile's decays is beyond LOWEST or HIGHEST

    Tile(const MkScan &p, const Slab &slab, const Span &span, int block, Floats most) {
        int64_t channel = slab.channel + block * LANES;
        skip = p.D ? load_some(p.D + channel, slab.width(block)) : Floats{};
        bias = p.bias ? load_some(p.bias + channel, slab.width(block)) : Floats{};
        load_tile(slab.rows(p.u, block), span, u);
        if (p.rank) project(p, slab, span.chunk, channel, raw);
        else load_tile(slab.rows(p.delta, block), span, raw);
        Floats longest{};
        for (int t = 0; t < span.count; t++) {
            raw[t] += bias;
            dt[t] = p.softplus ? softplus(raw[t]) : raw[t];
            drive[t] = dt[t] * u[t];
            longest = absolute(dt[t]) > longest ? absolute(dt[t]) : longest;
        }
        in_range = in_all_lanes(longest * most <= -LOWEST); // not for NaN, which passes through both ways
    }
};

// y times its gate.
MK_INLINE void pass_gate(const Rows &z, const Span &span, Floats *y) {
    Floats x[MK_CHUNK];
    load_tile(z, span, x);
    for (int t = 0; t < span.count; t++) y[t] *= x[t] * sigmoid(x[t]);
}

template <bool IN_RANGE>
MK_INLINE Floats decay_of(Floats dt, Floats rate) {
    return IN_RANGE ? power_in_range(dt, rate) : power(dt, rate);
}

} // namespace

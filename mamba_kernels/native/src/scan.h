// The selective scan and its gradient over one slab: some channels of one group of one batch element.
//
// Lanes are channels. A slab is walked chunk by chunk of tokens; within a chunk its blocks of LANES
// channels come one after the other, so that B and C are unpacked once for all of them. States stay
// in registers for the tokens of a chunk and in the slab's scratch between chunks. Every element
// goes through the same operations wherever its chunk begins, so that a sequence in parts gives
// what it gives in one, bit by bit.
//
// Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.

#pragma once

#include "tile.h"

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

// Decay rates of a slab, in powers of 2^(1/STEPS), and the largest of each block.
struct Rates {
    Floats *rate;
    float *most;

    Rates(const MkScan &p, const Slab &slab, Arena &arena)
        : rate(arena.take<Floats>(slab.blocks * slab.states)), most(arena.take<float>(slab.blocks)) {
        slab.gather(p.A, false, p.channels, rate);
        for (int block = 0; block < slab.blocks; block++) {
            Floats top{};
            for (int n = 0; n < slab.states; n++) {
                Floats &x = rate[block * slab.states + n];
                x = x * POWERS;
                top = absolute(x) > top ? absolute(x) : top;
            }
            most[block] = largest(top);
        }
    }
};

// B or C of one chunk, (t, padded n).
MK_INLINE void unpack_weights(const MkArray &x, const Slab &slab, const Span &span, float *to) {
    int64_t offset = slab.b * x.stride[0] + slab.g * x.stride[1];
    int stride = padded(slab.states);
    for (int n = 0; n < slab.states; n += LANES) {
        Floats tile[MK_CHUNK];
        load_tile(Rows(x, offset, x.stride[2], x.stride[3], n, slab.states - n), span, tile);
        for (int t = 0; t < span.count; t++) store(to + t * stride + n, tile[t]);
    }
}

// What one block of one chunk is computed from.
struct Tile {
    Floats u[MK_CHUNK], raw[MK_CHUNK], dt[MK_CHUNK], drive[MK_CHUNK];
    Floats skip, bias;
    bool in_range; // no exponent of the tile's decays is beyond LOWEST or HIGHEST

    Tile(const MkScan &p, const Slab &slab, const Span &span, int block, float most) {
        int64_t channel = slab.channel + block * LANES;
        skip = p.D ? load_some(p.D + channel, slab.width(block)) : Floats{};
        bias = p.bias ? load_some(p.bias + channel, slab.width(block)) : Floats{};
        load_tile(slab.rows(p.u, block), span, u);
        load_tile(slab.rows(p.delta, block), span, raw);
        Floats longest{};
        for (int t = 0; t < span.count; t++) {
            raw[t] += bias;
            dt[t] = p.softplus ? softplus(raw[t]) : raw[t];
            drive[t] = dt[t] * u[t];
            longest = absolute(dt[t]) > longest ? absolute(dt[t]) : longest;
        }
        in_range = largest(longest) * most <= -LOWEST; // NaN passes through both ways
    }
};

template <bool IN_RANGE>
MK_INLINE Floats decay_of(Floats exponent) {
    return IN_RANGE ? power_in_range(exponent) : power(exponent);
}

// Advance K states over a chunk and add what they give to y.
template <bool IN_RANGE, int K>
MK_INLINE void advance(Count<K>, const Tile &x, const Floats *rate, const float *B, const float *C, int stride,
                       int count, Floats *state, Floats *y) {
    Floats h[K];
    for (int n = 0; n < K; n++) h[n] = state[n];
    for (int t = 0; t < count; t++) {
        Floats sum = y[t], dt = x.dt[t], drive = x.drive[t];
#pragma clang loop unroll(full)
        for (int n = 0; n < K; n++) {
            Floats driven = drive * B[t * stride + n];
            h[n] = h[n] * decay_of<IN_RANGE>(dt * rate[n]) + driven;
            sum = h[n] * C[t * stride + n] + sum;
        }
        y[t] = sum;
    }
    for (int n = 0; n < K; n++) state[n] = h[n];
}

MK_INLINE int64_t forward_scratch(const MkScan &p) {
    int64_t vectors = p.slab / LANES * p.states;
    return 2 * vectors * int64_t(sizeof(Floats)) + 2 * MK_CHUNK * padded(p.states) * 4 + 5 * (APART + 64);
}

void forward_slab(const MkScan &p, int64_t task, char *memory) {
    Arena arena{memory};
    Slab slab(p, task);
    Rates rates(p, slab, arena);
    int states = slab.states, stride = padded(states);
    Floats *state = arena.take<Floats>(slab.blocks * states);
    float *B = arena.take<float>(MK_CHUNK * stride), *C = arena.take<float>(MK_CHUNK * stride);
    if (p.initial) slab.gather(p.initial, true, p.channels, state);
    else clear(state, slab.blocks * states);

    for (int64_t chunk = 0; chunk < slab.chunks; chunk++) {
        Span span(p, chunk);
        unpack_weights(p.B, slab, span, B);
        unpack_weights(p.C, slab, span, C);
        for (int block = 0; block < slab.blocks; block++) {
            Floats *h = state + block * states;
            const Floats *rate = rates.rate + block * states;
            if (p.checkpoints) {
                int64_t step;
                float *to = slab.kept(p, chunk, block, &step);
                for (int n = 0; n < states; n++) store(to + n * step, h[n]);
            }
            Tile x(p, slab, span, block, rates.most[block]);
            Floats y[MK_CHUNK], z[MK_CHUNK];
            for (int t = 0; t < span.count; t++) y[t] = x.skip * x.u[t];
            in_ranges<FORWARD_STATES>(states, [&](auto k, int n) __attribute__((always_inline)) {
                if (x.in_range) advance<true>(k, x, rate + n, B + n, C + n, stride, span.count, h + n, y);
                else advance<false>(k, x, rate + n, B + n, C + n, stride, span.count, h + n, y);
            });
            if (p.plus.data) {
                load_tile(slab.rows(p.plus, block), span, z);
                for (int t = 0; t < span.count; t++) y[t] += z[t];
            }
            if (p.z.data) {
                load_tile(slab.rows(p.z, block), span, z);
                for (int t = 0; t < span.count; t++) y[t] *= z[t] * sigmoid(z[t]);
            }
            store_tile(slab.rows(p.y, block), span, y);
        }
    }
    slab.scatter(state, p.channels, p.last);
}

// What the backward pass keeps of one chunk of one block, K states at a time.
template <int K>
struct Kept {
    Floats decay[MK_CHUNK][K];
    char apart[APART];
    Floats state[MK_CHUNK + 1][K];
};

// Gradients of one block with respect to what its states were driven by, and y without gate.
struct Back {
    Floats y[MK_CHUNK], grad[MK_CHUNK], drive[MK_CHUNK], exponent[MK_CHUNK];
};

// Recompute K states over a chunk from those at its start, then go back through them.
//
// adjoint: gradients of the states after the chunk in, before it out. grad_B, grad_C: sums over
// the channels of a slab, a vector for each (t, n) that is summed over its lanes at the end.
template <bool IN_RANGE, int K>
MK_INLINE void retreat(Count<K>, const Tile &x, const Floats *rate, const float *B, const float *C, int stride,
                       int count, const float *start, int64_t step, Kept<K> &kept, Floats *adjoint, Back &back,
                       Floats *grad_rate, Floats *grad_B, Floats *grad_C) {
    Floats h[K];
    for (int n = 0; n < K; n++) kept.state[0][n] = h[n] = load<Floats>(start + n * step);
    for (int t = 0; t < count; t++) {
        Floats sum = back.y[t], dt = x.dt[t], drive = x.drive[t];
#pragma clang loop unroll(full)
        for (int n = 0; n < K; n++) {
            Floats driven = drive * B[t * stride + n];
            Floats decay = decay_of<IN_RANGE>(dt * rate[n]);
            h[n] = h[n] * decay + driven;
            kept.decay[t][n] = decay;
            kept.state[t + 1][n] = h[n];
            sum = h[n] * C[t * stride + n] + sum;
        }
        back.y[t] = sum;
    }
    Floats rates[K];
    for (int n = 0; n < K; n++) {
        h[n] = adjoint[n];
        rates[n] = grad_rate[n];
    }
    for (int t = count - 1; t >= 0; t--) {
        Floats dt = x.dt[t], drive = x.drive[t], grad = back.grad[t];
        Floats grad_drive = back.drive[t], grad_exponent = back.exponent[t];
#pragma clang loop unroll(full)
        for (int n = 0; n < K; n++) {
            Floats &to_B = grad_B[t * stride + n], &to_C = grad_C[t * stride + n];
            to_C = grad * kept.state[t + 1][n] + to_C;
            Floats g = grad * C[t * stride + n] + h[n];
            to_B = g * drive + to_B;
            grad_drive = g * B[t * stride + n] + grad_drive;
            h[n] = g * kept.decay[t][n];
            Floats through_decay = h[n] * kept.state[t][n];
            grad_exponent = through_decay * rate[n] + grad_exponent;
            rates[n] = through_decay * dt + rates[n];
        }
        back.drive[t] = grad_drive;
        back.exponent[t] = grad_exponent;
    }
    for (int n = 0; n < K; n++) {
        adjoint[n] = h[n];
        grad_rate[n] = rates[n];
    }
}

// Sums over lanes of the vectors (t, padded n), to an array (l, n) of this slab.
MK_INLINE void sum_lanes(const Floats *from, const Slab &slab, const Span &span, float *to) {
    int stride = padded(slab.states);
    for (int t = 0; t < span.count; t++) {
        float *row = to + span.token[t] * slab.states;
        for (int n = 0; n < slab.states; n += LANES) {
            store_some(row + n, sums_of(from + t * stride + n), slab.states - n < LANES ? slab.states - n : LANES);
        }
    }
}

MK_INLINE int64_t backward_scratch(const MkScan &p) {
    int64_t blocks = p.slab / LANES, stride = padded(p.states);
    return (3 * blocks * p.states + 2 * blocks + 2 * MK_CHUNK * stride) * int64_t(sizeof(Floats)) +
           int64_t(sizeof(Kept<BACKWARD_STATES>)) + 2 * MK_CHUNK * stride * 4 + 11 * (APART + 64);
}

// The gate's part of the gradient: what reaches y without gate, and, once that is known, z.
struct Gate {
    Floats z[MK_CHUNK], slope[MK_CHUNK], grad_y[MK_CHUNK];
    bool present;

    Gate(const MkScan &p, const Slab &slab, const Span &span, int block, Floats *grad) : present(p.z.data) {
        load_tile(slab.rows(p.grad_y, block), span, grad);
        if (!present) return;
        load_tile(slab.rows(p.z, block), span, z);
        for (int t = 0; t < span.count; t++) {
            Floats s = sigmoid(z[t]);
            grad_y[t] = grad[t];
            slope[t] = s * (1.0f + z[t] * (1.0f - s));
            grad[t] *= z[t] * s;
        }
    }

    // y: without gate and without what was added to it.
    void store_gradients(const MkScan &p, const Slab &slab, const Span &span, int block, const Floats *y,
                         const Floats *grad) {
        if (!present) return;
        for (int t = 0; t < span.count; t++) slope[t] *= grad_y[t];
        if (p.plus.data) {
            store_tile(slab.rows(p.grad_plus, block), span, grad);
            load_tile(slab.rows(p.plus, block), span, z);
            for (int t = 0; t < span.count; t++) slope[t] *= y[t] + z[t];
        } else {
            for (int t = 0; t < span.count; t++) slope[t] *= y[t];
        }
        store_tile(slab.rows(p.grad_z, block), span, slope);
    }
};

void backward_slab(const MkScan &p, int64_t task, char *memory) {
    Arena arena{memory};
    Slab slab(p, task);
    Rates rates(p, slab, arena);
    int states = slab.states, stride = padded(states);
    Floats *adjoint = arena.take<Floats>(slab.blocks * states), *grad_rate = arena.take<Floats>(slab.blocks * states);
    Floats *grad_D = arena.take<Floats>(slab.blocks), *grad_bias = arena.take<Floats>(slab.blocks);
    Floats *grad_B = arena.take<Floats>(MK_CHUNK * stride), *grad_C = arena.take<Floats>(MK_CHUNK * stride);
    char *kept = arena.take<char>(sizeof(Kept<BACKWARD_STATES>));
    float *B = arena.take<float>(MK_CHUNK * stride), *C = arena.take<float>(MK_CHUNK * stride);
    slab.gather(p.grad_last, true, p.channels, adjoint);
    clear(grad_rate, slab.blocks * states);
    clear(grad_D, slab.blocks);
    clear(grad_bias, slab.blocks);
    int64_t row = ((slab.index * p.batch + slab.b) * p.groups + slab.g) * p.tokens * states;

    for (int64_t chunk = slab.chunks - 1; chunk >= 0; chunk--) {
        Span span(p, chunk, true);
        unpack_weights(p.B, slab, span, B);
        unpack_weights(p.C, slab, span, C);
        clear(grad_B, MK_CHUNK * stride);
        clear(grad_C, MK_CHUNK * stride);
        for (int block = 0; block < slab.blocks; block++) {
            const Floats *rate = rates.rate + block * states;
            Tile x(p, slab, span, block, rates.most[block]);
            Back back;
            Gate gate(p, slab, span, block, back.grad);
            for (int t = 0; t < span.count; t++) {
                back.y[t] = x.skip * x.u[t];
                back.drive[t] = back.exponent[t] = Floats{};
            }
            int64_t step;
            const float *start = slab.kept(p, chunk, block, &step);
            in_ranges<BACKWARD_STATES>(states, [&](auto k, int n) __attribute__((always_inline)) {
                auto &memory = *(Kept<decltype(k)::value> *)kept;
                int at = block * states + n;
                if (x.in_range)
                    retreat<true>(k, x, rate + n, B + n, C + n, stride, span.count, start + n * step, step, memory,
                                  adjoint + at, back, grad_rate + at, grad_B + n, grad_C + n);
                else
                    retreat<false>(k, x, rate + n, B + n, C + n, stride, span.count, start + n * step, step, memory,
                                   adjoint + at, back, grad_rate + at, grad_B + n, grad_C + n);
            });
            gate.store_gradients(p, slab, span, block, back.y, back.grad);
            for (int t = 0; t < span.count; t++) {
                grad_D[block] += back.grad[t] * x.u[t];
                Floats grad_dt = back.exponent[t] * (1.0f / POWERS) + back.drive[t] * x.u[t];
                back.drive[t] = back.drive[t] * x.dt[t] + x.skip * back.grad[t];
                back.exponent[t] = p.softplus ? grad_dt * sigmoid(x.raw[t]) : grad_dt;
                grad_bias[block] += back.exponent[t];
            }
            store_tile(slab.rows(p.grad_u, block), span, back.drive);
            store_tile(slab.rows(p.grad_delta, block), span, back.exponent);
        }
        sum_lanes(grad_B, slab, span, p.grad_B + row);
        sum_lanes(grad_C, slab, span, p.grad_C + row);
    }

    slab.scatter(grad_rate, p.channels, p.grad_A);
    slab.scatter(adjoint, p.channels, p.grad_initial);
    for (int block = 0; block < slab.blocks; block++) {
        int64_t to = slab.b * p.channels + slab.channel + block * LANES;
        store_some(p.grad_D + to, grad_D[block], slab.width(block));
        store_some(p.grad_bias + to, grad_bias[block], slab.width(block));
    }
}

} // namespace

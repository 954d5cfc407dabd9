// The gradient of the selective scan over one slab, chunk by chunk from the last to the first: states are
// recomputed from those that the forward pass kept at the start of each chunk.
//
// Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Eq. 2 and Algorithm 2.

#pragma once

#include "weights.h"

namespace {

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
// the channels of a slab, a vector for each (t, n) that is summed over its lanes at the end. `fetches`: what is
// fetched meanwhile, or null.
template <bool IN_RANGE, int K>
MK_INLINE void retreat(Count<K>, int first, const Tile &x, const Floats *rate, const Weights &B, const Weights &C,
                       int stride, int count, const float *start, int64_t step, Kept<K> &kept, Floats *adjoint,
                       Back &back, Floats *grad_rate, Floats *grad_B, Floats *grad_C, const Fetches<7, 3> *fetches) {
    Floats h[K];
    for (int n = 0; n < K; n++) kept.state[0][n] = h[n] = load<Floats>(start + n * step);
    for (int t = 0; t < count; t++) {
        Floats sum = back.y[t], dt = x.dt[t], drive = x.drive[t];
#pragma clang loop unroll(full)
        for (int n = 0; n < K; n++) {
            Floats driven = drive * B.at(t, first + n);
            Floats decay = decay_of<IN_RANGE>(dt, rate[n]);
            h[n] = h[n] * decay + driven;
            kept.decay[t][n] = decay;
            kept.state[t + 1][n] = h[n];
            sum = h[n] * C.at(t, first + n) + sum;
            in_turn(sum, dt);
        }
        if (fetches) fetches->fetch_reads(t);
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
            Floats g = grad * C.at(t, first + n) + h[n];
            to_B = g * drive + to_B;
            grad_drive = g * B.at(t, first + n) + grad_drive;
            h[n] = g * kept.decay[t][n];
            Floats through_decay = h[n] * kept.state[t][n];
            grad_exponent = through_decay * rate[n] + grad_exponent;
            rates[n] = through_decay * dt + rates[n];
        }
        if (fetches) fetches->fetch_writes(t);
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
    return (3 * blocks * p.states + 3 * blocks + 2 * MK_CHUNK * stride) * int64_t(sizeof(Floats)) +
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

    // y: without gate.
    void store_gradient(const MkScan &p, const Slab &slab, const Span &span, int block, const Floats *y) {
        if (!present) return;
        for (int t = 0; t < span.count; t++) slope[t] *= grad_y[t] * y[t];
        store_tile(slab.rows(p.grad_z, block), span, slope);
    }
};

// Add to x what is in an array.
MK_INLINE void add_tile(const Rows &rows, const Span &span, Floats *x) {
    Floats more[MK_CHUNK];
    load_tile(rows, span, more);
    for (int t = 0; t < span.count; t++) x[t] += more[t];
}

void backward_slab(const MkScan &p, int64_t task, char *memory) {
    Arena arena{memory};
    Slab slab(p, task);
    Rates rates(p, slab, arena);
    int states = slab.states, stride = padded(states);
    Floats *adjoint = arena.take<Floats>(slab.blocks * states), *grad_rate = arena.take<Floats>(slab.blocks * states);
    Floats *grad_D = arena.take<Floats>(slab.blocks), *grad_bias = arena.take<Floats>(slab.blocks);
    Floats *grad_B = arena.take<Floats>(MK_CHUNK * stride), *grad_C = arena.take<Floats>(MK_CHUNK * stride);
    char *kept = arena.take<char>(sizeof(Kept<BACKWARD_STATES>));
    float *rooms[2] = {arena.take<float>(MK_CHUNK * stride), arena.take<float>(MK_CHUNK * stride)};
    slab.gather(p.grad_last, true, p.channels, adjoint);
    clear(grad_rate, slab.blocks * states);
    clear(grad_D, slab.blocks);
    clear(grad_bias, slab.blocks);
    int64_t row = ((slab.index * p.batch + slab.b) * p.groups + slab.g) * p.tokens * states;

    for (int64_t chunk = slab.chunks - 1; chunk >= 0; chunk--) {
        Span span(p, chunk, true);
        Weights B(p.B, slab, span, rooms[0]), C(p.C, slab, span, rooms[1]);
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
            auto lines = [&](const MkArray &x) { return Lines(slab.rows(x, block), span); };
            auto weights = [&](const MkArray &x) { return Lines(weight_rows(x, slab, 0), span); };
            int64_t step;
            const float *start = slab.kept(p, chunk, block, &step);
            Fetches<7, 3> fetches{
                {lines(p.u), lines(p.delta), lines(p.z), lines(p.grad_y), weights(p.B), weights(p.C),
                 Lines(start - states * step, step)},
                {lines(p.grad_u), lines(p.grad_delta), lines(p.grad_z)},
            };
            in_ranges<BACKWARD_STATES>(states, [&](auto k, int n) __attribute__((always_inline)) {
                auto &memory = *(Kept<decltype(k)::value> *)kept;
                int at = block * states + n;
                auto *now = n == 0 && begins_lines(block) ? &fetches : nullptr;
                if (x.in_range)
                    retreat<true>(k, n, x, rate + n, B, C, stride, span.count, start + n * step, step, memory,
                                  adjoint + at, back, grad_rate + at, grad_B + n, grad_C + n, now);
                else
                    retreat<false>(k, n, x, rate + n, B, C, stride, span.count, start + n * step, step, memory,
                                   adjoint + at, back, grad_rate + at, grad_B + n, grad_C + n, now);
            });
            gate.store_gradient(p, slab, span, block, back.y);
            if (p.residual.data) add_tile(slab.rows(p.residual, block), span, back.y);
            if (p.y.data) store_tile(slab.rows(p.y, block), span, back.y);
            for (int t = 0; t < span.count; t++) {
                grad_D[block] += back.grad[t] * x.u[t];
                Floats grad_dt = back.exponent[t] * (1.0f / POWERS) + back.drive[t] * x.u[t];
                back.drive[t] = back.drive[t] * x.dt[t] + x.skip * back.grad[t];
                back.exponent[t] = p.softplus ? grad_dt * sigmoid(x.raw[t]) : grad_dt;
                grad_bias[block] += back.exponent[t];
            }
            if (p.adds_u) add_tile(slab.rows(p.grad_u, block), span, back.drive);
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

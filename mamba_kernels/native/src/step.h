// One token of the selective scan, with the state updated in place.
//
// Lanes are states here, as they lie in memory; only the sum over them is taken with channels as lanes.
// Every element goes through the operations of `advance` in scan.h, in their order, so that tokens one
// by one give what a sequence gives, bit by bit.

#pragma once

#include "weights.h"

namespace {

int64_t step_scratch(const MkScan &p) { return 2 * MK_CHUNK * padded(p.states) * 4 + 2 * (APART + 64); }

void step_slab(const MkScan &p, int64_t task, char *memory) {
    Arena arena{memory};
    Slab slab(p, task);
    Span token(p, 0);
    int states = slab.states;
    float *B = arena.take<float>(MK_CHUNK * padded(states)), *C = arena.take<float>(MK_CHUNK * padded(states));
    unpack_weights(p.B, slab, token, B, padded(states));
    unpack_weights(p.C, slab, token, C, padded(states));
    for (int block = 0; block < slab.blocks; block++) {
        Tile x(p, slab, token, block, Floats{});
        Floats y = x.skip * x.u[0];
        int64_t channel = slab.channel + block * LANES;
        const float *A = p.A + channel * states;
        float *state = p.last + (slab.b * p.channels + channel) * states;
        for (int n = 0; n < states; n += LANES) {
            int count = states - n < LANES ? states - n : LANES;
            Floats weight = load<Floats>(B + n), square[LANES];
            clear(square, LANES);
            for (int i = 0; i < slab.width(block); i++) {
                Floats rate = load_some(A + i * states + n, count) * POWERS;
                Floats h = load_some(state + i * states + n, count);
                Floats driven = x.drive[0][i] * weight;
                h = h * power(all(x.dt[0][i]), rate) + driven;
                store_some(state + i * states + n, h, count);
                square[i] = h;
            }
            transpose(square);
            for (int j = 0; j < count; j++) y = square[j] * C[n + j] + y;
        }
        if (p.z.data) {
            Floats z;
            load_tile(slab.rows(p.z, block), token, &z);
            y *= z * sigmoid(z);
        }
        store_tile(slab.rows(p.y, block), token, &y);
    }
}

} // namespace

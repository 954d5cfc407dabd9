// The weights B and C of chunks of tokens.

#pragma once

#include "slab.h"

namespace {

// LANES states from n on of B or C.
MK_INLINE Rows weight_rows(const MkArray &x, const Slab &slab, int n) {
    return Rows(x, slab.b * x.stride[0] + slab.g * x.stride[1], x.stride[2], x.stride[3], n, slab.states - n);
}

// B or C of one chunk, (t, n) with so many floats from a token to the next, at least padded(states).
MK_INLINE void unpack_weights(const MkArray &x, const Slab &slab, const Span &span, float *to, int64_t step) {
    for (int n = 0; n < slab.states; n += LANES) {
        Floats tile[MK_CHUNK];
        load_tile(weight_rows(x, slab, n), span, tile);
        for (int t = 0; t < span.count; t++) store(to + t * step + n, tile[t]);
    }
}

// B or C of one chunk: those of state n at token t are first[t * step + n].
struct Weights {
    const float *first;
    int64_t step;

    [[gnu::always_inline]] float at(int t, int n) const { return first[t * step + n]; }

    // Where they lie if states of a token lie side by side, else in `room` for MK_CHUNK * padded(states).
    Weights(const MkArray &x, const Slab &slab, const Span &span, float *room)
        : first(room), step(padded(slab.states)) {
        if (x.dtype == MK_FLOAT32 && x.stride[2] == 1 && span.step) {
            first = (const float *)weight_rows(x, slab, 0).data + span.token[0] * x.stride[3];
            step = span.step * x.stride[3];
        } else {
            unpack_weights(x, slab, span, room, step);
        }
    }
};

constexpr int64_t WEIGHT_CHUNKS = 64; // of a task

int64_t weight_tasks(const MkScan &p) {
    int64_t tokens = WEIGHT_CHUNKS * MK_CHUNK;
    return p.batch * p.groups * ((p.tokens + tokens - 1) / tokens);
}

// Copy B and C to where states of a token lie side by side.
void copy_weights(const MkScan &from, const MkScan &to, int64_t task) {
    int64_t groups = from.batch * from.groups, part = task / groups;
    Slab slab(from, task % groups * ((from.channels / from.groups + from.slab - 1) / from.slab));
    const MkArray *sources[] = {&from.B, &from.C}, *targets[] = {&to.B, &to.C};
    for (int i = 0; i < 2; i++) {
        const int64_t *stride = targets[i]->stride;
        float *rows = (float *)targets[i]->data + slab.b * stride[0] + slab.g * stride[1];
        for (int64_t chunk = part * WEIGHT_CHUNKS; chunk < slab.chunks && chunk < (part + 1) * WEIGHT_CHUNKS; chunk++) {
            Span span(nullptr, false, from.tokens, chunk);
            unpack_weights(*sources[i], slab, span, rows + chunk * MK_CHUNK * stride[3], stride[3]);
        }
    }
}

} // namespace

// The C interface of the library: structures that Python fills and functions that it calls.
//
// Shapes: b batch, d channels, l tokens, n states per channel, g groups of channels, k taps.
// Strides count elements. Pointers that an operation may do without are null where it does.

#pragma once

#include <stdint.h>

enum MkDtype : int64_t { MK_FLOAT32 = 0, MK_BFLOAT16 = 1, MK_FLOAT16 = 2 };

struct MkArray {
    void *data;
    int64_t dtype;
    int64_t stride[4];
};

// Tokens worked on at a time. States are kept for the backward pass at the start of each chunk.
constexpr int64_t MK_CHUNK = 16;
constexpr int64_t MK_BLOCK = 16; // channels are padded to a multiple of this where states are kept
constexpr int64_t MK_TAPS = 8;   // of a convolution, at most

struct MkScan {
    int64_t batch, channels, tokens, states, groups;
    int64_t slab;     // channels of one task, a multiple of MK_BLOCK: tasks do not depend on threads
    int64_t softplus; // dt = softplus(delta + bias), or that sum itself
    int64_t reverse;  // scan positions run from the last to the first
    const int64_t *order; // the token at each scan position, or null: position is token

    MkArray u, delta, z; // (b, d, l)
    MkArray B, C;        // (b, g, n, l)
    const float *A;      // (d, n)
    const float *D, *bias; // (d)
    const float *initial;  // (b, d, n)

    MkArray residual;   // added to y before the gate, (b, d, l)
    MkArray y;          // out, (b, d, l); of the backward pass only where it is recomputed for others
    float *last;        // out, (b, d, n)
    float *checkpoints; // (b, g, chunks, n, padded channels of a group); out of the forward pass

    MkArray grad_y;                     // (b, d, l)
    const float *grad_last;             // (b, d, n)
    MkArray grad_u, grad_delta, grad_z; // out, (b, d, l)
    int64_t adds_u;                     // what grad_u holds is added to
    float *grad_B, *grad_C;             // out, to be summed over the first axis: (slabs, b, g, l, n)
    float *grad_A;                      // out, to be summed over b: (b, d, n)
    float *grad_D, *grad_bias;          // out, to be summed over b: (b, d)
    float *grad_initial;                // out, (b, d, n)
};

struct MkConv {
    int64_t batch, channels, tokens, taps;
    int64_t slab;    // channels of one task, a multiple of MK_BLOCK: tasks do not depend on threads
    int64_t silu;    // SiLU follows
    int64_t reverse; // positions run from the last to the first
    const int64_t *order; // the token at each position, or null: position is token

    MkArray x;       // (b, d, l)
    MkArray weight;  // (d, k)
    MkArray bias;    // (d)
    MkArray initial; // inputs before the first position, the nearest one last, (b, d, k - 1)
    MkArray y;       // out, (b, d, l)
    MkArray last;    // out, (b, d, k - 1), which may be where `initial` is

    MkArray grad_y;       // (b, d, l)
    MkArray grad_last;    // (b, d, k - 1)
    MkArray grad_x;       // out, (b, d, l)
    MkArray grad_initial; // out, (b, d, k - 1)
    MkArray grad_weight;  // out, to be summed over b: (b, d, k)
    MkArray grad_bias;    // out, to be summed over b: (b, d)
};

// The C interface of the library: structures that Python fills and functions that it calls.
//
// Shapes: b batch, d channels, l tokens, n states per channel, g groups of channels, k taps.
// Strides count elements. Pointers that an operation may do without are null where it does.

#pragma once

#include <stdint.h>

// How bfloat16 is multiplied: not at all, in pairs by AVX512_BF16, or in tiles by AMX.
enum MkBfloat16 : int64_t { MK_NONE = 0, MK_PAIRS = 1, MK_TILES = 2 };
enum MkDtype : int64_t { MK_FLOAT32 = 0, MK_BFLOAT16 = 1, MK_FLOAT16 = 2 };

struct MkArray {
    void *data;
    int64_t dtype;
    int64_t stride[4];
};

// Tokens worked on at a time. States are kept for the backward pass at the start of each chunk.
constexpr int64_t MK_CHUNK = 16;
constexpr int64_t MK_BLOCK = 16; // channels are padded to a multiple of this, or have to be one
constexpr int64_t MK_TAPS = 4;   // of a convolution, at most
constexpr int64_t MK_DIRECTIONS = 8; // of a Mamba block, at most
constexpr int64_t MK_PANEL = 64;     // columns of a weight that lie together: see product.h

struct MkScan {
    int64_t batch, channels, tokens, states, groups;
    int64_t slab;     // channels of one task, a multiple of MK_BLOCK: tasks do not depend on threads
    int64_t softplus; // dt = softplus(delta + bias), or that sum itself
    int64_t reverse;  // scan positions run from the last to the first
    const int64_t *order; // the token at each scan position, or null: position is token

    MkArray u, delta, z; // (b, d, l)
    int64_t rank;        // if not 0, in forward passes, delta is a product of
    const float *low;    // (b, chunks of scan positions, r, MK_CHUNK) and
    const float *dt_proj; // (d / MK_BLOCK, r, MK_BLOCK)
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

// A direction of a Mamba block from its convolution to its gate, with d a multiple of MK_BLOCK. What depends on the
// tokens is filled in by mk_blocks_forward.
struct MkInner {
    int64_t batch, channels, tokens, states, rank, taps;
    int64_t slab, reverse;
    const int64_t *order; // as in MkScan

    MkArray x, z, y;                  // (b, d, l); y out
    const float *conv, *conv_bias;    // (k, d), (d)
    int64_t columns;                  // r + 2 n, padded to a multiple of MK_BLOCK
    int64_t dtype, tiles;             // of u and x_proj: float32 or bfloat16; whether tiles multiply these
    const void *x_proj;               // panels (d, columns): of the step size, of B, of C, zeros
    const float *dt_proj, *dt_bias;   // (d / MK_BLOCK, r, MK_BLOCK), (d)
    const float *A, *D;               // (d, n), (d)
    const float *conv_state, *state;  // before, (b, d, k - 1) and (b, d, n)
    float *next_conv_state, *next_state; // after, in other memory

    void *u;              // scratch, (b, l, d)
    float *low, *weights; // scratch: as in MkScan, and what x_proj gives, (b, l, columns)
};

// A Mamba block behind its norm and beside its shortcut: c outer and d inner channels, multiples of MK_BLOCK. What
// depends on the tokens is filled in by mk_blocks_forward.
struct MkBlock {
    int64_t rows; // b * l
    int64_t channels, inner;
    int64_t dtype, tiles;           // of the factors of products: float32 or bfloat16; whether tiles multiply these
    const float *eps;               // of RMSNorm
    const void *in_proj, *out_proj; // panels (c, 2 d) and (d, c)
    const float *x;                 // (b l, c)
    float *out;                     // out, (b l, c)
    void *normed, *xz, *y;          // scratch: (b l, c), (b l, 2 d) and (b l, d)
    int64_t count;
    const MkInner *directions;
};

// Tokens that go through blocks of as many outer channels, one after another.
struct MkPass {
    int64_t batch, tokens, slab;
    const float *x;             // (b, l, c)
    float *out;                 // out, (b, l, c)
    const float *const *before; // conv_state and state of each direction of each block, or null
    float *const *after;        // out, next_conv_state and next_state of each, or null
    int64_t count;
    const MkBlock *const *blocks;
};

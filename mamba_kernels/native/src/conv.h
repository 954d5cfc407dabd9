// The causal convolution of each channel with its own taps, then SiLU, and its gradient, over one strip:
// some channels of one batch element.
//
// Lanes are channels. A strip is walked chunk by chunk of tokens, its blocks of LANES channels one after
// the other within a chunk. Forward, a delay line holds the last k - 1 inputs. Its adjoint is a delay line
// too: going back, it holds what the tokens gone through have sent to the k - 1 inputs before them. So the
// states before the first token and after the last are what the lines begin and end with, and a sequence
// in parts gives what it gives in one, bit by bit.
//
// Source: Gu & Dao, "Mamba", 2023, arXiv:2312.00752, Section 3.4.

#pragma once

#include "fetch.h"

namespace {

struct Strip {
    int64_t b, channel, count;
    int blocks;

    Strip(const MkConv &p, int64_t task) {
        int64_t strips = (p.channels + p.slab - 1) / p.slab;
        b = task / strips;
        channel = task % strips * p.slab;
        count = p.channels - channel < p.slab ? p.channels - channel : p.slab;
        blocks = int((count + LANES - 1) / LANES);
    }

    // Of an array that has a first axis b.
    Rows rows(const MkArray &x, int block) const {
        return Rows(x, b, channel + block * LANES, count - block * LANES);
    }

    // Of an array without.
    Rows shared_rows(const MkArray &x, int block) const {
        return Rows(x, 0, x.stride[0], x.stride[1], channel + block * LANES, count - block * LANES);
    }
};

// Rows of a few elements: vectors out of them and back.
void load_short(const Rows &rows, int count, Floats *to) { load_tile(rows, Span(nullptr, false, count, 0), to); }
void store_short(const Rows &rows, int count, const Floats *from) {
    store_tile(rows, Span(nullptr, false, count, 0), from);
}

// What one block is convolved with, and its delay line: the k - 1 inputs before, the nearest one last.
template <int K>
struct Filter {
    Floats tap[K], bias, past[K]; // one more than k - 1, for there is no array of 0

    Filter(const MkConv &p, const Strip &strip, int block) {
        load_short(strip.shared_rows(p.weight, block), K, tap);
        bias = Floats{};
        if (p.bias.data) load_short(strip.shared_rows(p.bias, block), 1, &bias);
    }

    void begin(const MkConv &p, const Strip &strip, int block) {
        clear(past, K);
        if (p.initial.data) load_short(strip.rows(p.initial, block), K - 1, past);
    }

    // In the middle, at the start of a chunk.
    void begin_at(const MkConv &p, const Strip &strip, int block, int64_t chunk) {
        if (chunk == 0) return begin(p, strip, block);
        Span before(p.order, p.reverse, p.tokens, chunk * MK_CHUNK - (K - 1), K - 1, false);
        load_tile(strip.rows(p.x, block), before, past);
    }

    // The sum for the token whose input is x.
    [[gnu::always_inline]] Floats sum(Floats x) const {
        Floats y = bias;
#pragma clang loop unroll(full)
        for (int i = 0; i < K; i++) y = tap[i] * input(i, x) + y;
        return y;
    }

    // What tap i sees.
    [[gnu::always_inline]] Floats input(int i, Floats x) const { return i < K - 1 ? past[i] : x; }

    [[gnu::always_inline]] void move_on(Floats x) {
#pragma clang loop unroll(full)
        for (int i = 0; i < K - 1; i++) past[i] = input(i + 1, x);
    }
};

// Move a filter over float32 tokens whose channels lie side by side.
template <int K>
MK_INLINE void convolve_near(const Rows &x, const Rows &y, const Span &span, bool silu, Filter<K> &line) {
    Filter<K> filter = line;
    for (int t = 0; t < span.count; t++) {
        Floats input = load<Floats>(x.data + span.token[t] * x.token);
        Floats sum = filter.sum(input);
        filter.move_on(input);
        store(y.data + span.token[t] * y.token, silu ? sum * sigmoid(sum) : sum);
    }
    line = filter;
}

// Move a filter over one block of a chunk.
template <int K>
void convolve_tile(const MkConv &p, const Strip &strip, int block, const Span &span, Filter<K> &line) {
    Rows from = strip.rows(p.x, block), to = strip.rows(p.y, block);
    if (from.near() && to.near() && from.dtype == MK_FLOAT32 && to.dtype == MK_FLOAT32) {
        return convolve_near<K>(from, to, span, p.silu, line);
    }
    Floats x[MK_CHUNK];
    load_tile(from, span, x);
    Filter<K> filter = line;
    Fetches<1, 1> fetches{{Lines(from, span)}, {Lines(to, span)}};
    for (int t = 0; t < span.count; t++) {
        fetches.fetch(t);
        Floats y = filter.sum(x[t]);
        filter.move_on(x[t]);
        x[t] = p.silu ? y * sigmoid(y) : y;
    }
    line = filter;
    store_tile(to, span, x);
}

template <int K>
void convolve(const MkConv &p, int64_t task, char *memory) {
    Strip strip(p, task);
    Filter<K> *filters = (Filter<K> *)memory;
    for (int block = 0; block < strip.blocks; block++) {
        filters[block] = Filter<K>(p, strip, block);
        filters[block].begin(p, strip, block);
    }
    for (int64_t chunk = 0; chunk * MK_CHUNK < p.tokens; chunk++) {
        Span span(p.order, p.reverse, p.tokens, chunk);
        for (int block = 0; block < strip.blocks; block++) convolve_tile(p, strip, block, span, filters[block]);
    }
    for (int block = 0; block < strip.blocks; block++) {
        store_short(strip.rows(p.last, block), K - 1, filters[block].past);
    }
}

constexpr int AHEAD = 4; // blocks

// One chunk of a strip alone.
template <int K>
void convolve_chunk(const MkConv &p, int64_t task, int64_t chunk) {
    Strip strip(p, task);
    Span span(p.order, p.reverse, p.tokens, chunk);
    bool ends = p.last.data && (chunk + 1) * MK_CHUNK >= p.tokens;
    for (int block = 0; block < strip.blocks; block++) {
        Filter<K> filter(p, strip, block);
        filter.begin_at(p, strip, block, chunk);
        if (block + AHEAD < strip.blocks) { // what another core has written takes long to come
            Rows next = strip.rows(p.x, block + AHEAD);
            for (int t = 0; t < span.count; t++) __builtin_prefetch(next.data + span.token[t] * next.token);
        }
        convolve_tile(p, strip, block, span, filter);
        if (ends) store_short(strip.rows(p.last, block), K - 1, filter.past);
    }
}

// A filter and the gradients that gather as it goes back.
template <int K>
struct Adjoint {
    Filter<K> filter;
    Floats grad_tap[K], grad_bias;
    Floats ahead[K]; // of the k - 1 inputs before the current token, so far

    Adjoint(const MkConv &p, const Strip &strip, int block) : filter(p, strip, block), grad_bias{} {
        clear(grad_tap, K);
        load_short(strip.rows(p.grad_last, block), K - 1, ahead);
    }

    // From the gradients of a chunk's outputs to those of its sums, and add up those of the taps.
    [[gnu::always_inline]] void through_sums(bool silu, int count, const Floats *x, Floats *grad,
                                             const Fetches<2, 1> &fetches) {
        for (int t = 0; t < count; t++) {
            fetches.fetch(t);
            if (silu) {
                Floats y = filter.sum(x[t]), s = sigmoid(y);
                grad[t] *= s * (1.0f + y * (1.0f - s));
            }
            grad_bias += grad[t];
#pragma clang loop unroll(full)
            for (int i = 0; i < K; i++) grad_tap[i] = grad[t] * filter.input(i, x[t]) + grad_tap[i];
            filter.move_on(x[t]);
        }
    }

    // From there to those of its inputs.
    [[gnu::always_inline]] void through_taps(int count, Floats *grad) {
        for (int t = count - 1; t >= 0; t--) {
            Floats sent[K];
#pragma clang loop unroll(full)
            for (int i = 0; i < K; i++) sent[i] = filter.tap[i] * grad[t] + (i > 0 ? ahead[i - 1] : Floats{});
#pragma clang loop unroll(full)
            for (int i = 0; i < K - 1; i++) ahead[i] = sent[i];
            grad[t] = sent[K - 1];
        }
    }
};

template <int K>
void convolve_back(const MkConv &p, int64_t task, char *memory) {
    Strip strip(p, task);
    Adjoint<K> *adjoints = (Adjoint<K> *)memory;
    Floats *tiles = (Floats *)(adjoints + strip.blocks); // of this chunk's inputs and those before, by block
    int64_t last = (p.tokens - 1) / MK_CHUNK;
    for (int block = 0; block < strip.blocks; block++) {
        adjoints[block] = Adjoint<K>(p, strip, block);
        load_tile(strip.rows(p.x, block), Span(p.order, p.reverse, p.tokens, last, true), tiles + block * MK_CHUNK);
    }
    for (int64_t chunk = last; chunk >= 0; chunk--) {
        Span span(p.order, p.reverse, p.tokens, chunk, true);
        Span before(p.order, p.reverse, p.tokens, chunk > 0 ? chunk - 1 : 0, true);
        for (int block = 0; block < strip.blocks; block++) {
            Floats x[MK_CHUNK], grad[MK_CHUNK], *tile = tiles + block * MK_CHUNK;
            for (int t = 0; t < span.count; t++) x[t] = tile[t];
            load_tile(strip.rows(p.grad_y, block), span, grad);
            Adjoint<K> adjoint = adjoints[block];
            if (chunk > 0) {
                load_tile(strip.rows(p.x, block), before, tile);
                for (int i = 0; i < K - 1; i++) adjoint.filter.past[i] = tile[MK_CHUNK - (K - 1) + i];
            } else {
                adjoint.filter.begin(p, strip, block);
            }
            auto lines = [&](const MkArray &x, const Span &span) { return Lines(strip.rows(x, block), span); };
            Fetches<2, 1> fetches{{lines(p.grad_y, span), lines(p.x, before)}, {lines(p.grad_x, span)}};
            adjoint.through_sums(p.silu, span.count, x, grad, fetches);
            adjoint.through_taps(span.count, grad);
            adjoints[block] = adjoint;
            store_tile(strip.rows(p.grad_x, block), span, grad);
        }
    }
    for (int block = 0; block < strip.blocks; block++) {
        const Adjoint<K> &adjoint = adjoints[block];
        store_short(strip.rows(p.grad_initial, block), K - 1, adjoint.ahead);
        store_short(strip.rows(p.grad_weight, block), K, adjoint.grad_tap);
        store_short(strip.rows(p.grad_bias, block), 1, &adjoint.grad_bias);
    }
}

using ConvTask = void (*)(const MkConv &, int64_t, char *);
constexpr ConvTask CONVOLVE[MK_TAPS] = {convolve<1>, convolve<2>, convolve<3>, convolve<4>};
constexpr ConvTask CONVOLVE_BACK[MK_TAPS] = {convolve_back<1>, convolve_back<2>, convolve_back<3>, convolve_back<4>};
constexpr void (*CONVOLVE_CHUNK[MK_TAPS])(const MkConv &, int64_t, int64_t) = {
    convolve_chunk<1>, convolve_chunk<2>, convolve_chunk<3>, convolve_chunk<4>};

int64_t conv_forward_scratch(const MkConv &p) { return p.slab / LANES * int64_t(sizeof(Filter<MK_TAPS>)); }

int64_t conv_backward_scratch(const MkConv &p) {
    return p.slab / LANES * int64_t(sizeof(Adjoint<MK_TAPS>) + MK_CHUNK * sizeof(Floats));
}

void conv_forward_strip(const MkConv &p, int64_t task, char *scratch) { CONVOLVE[p.taps - 1](p, task, scratch); }
void conv_backward_strip(const MkConv &p, int64_t task, char *scratch) { CONVOLVE_BACK[p.taps - 1](p, task, scratch); }

} // namespace

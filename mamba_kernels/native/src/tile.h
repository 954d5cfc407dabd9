// Tiles of MK_CHUNK tokens by LANES channels: out of arrays of any strides, dtype and token order,
// into vectors that hold one token's channels, and back.

#pragma once

#include "api.h"
#include "simd.h"

namespace {

// The tokens of one chunk in the order of the scan.
struct Span {
    int64_t token[MK_CHUNK];
    int64_t chunk;
    int count;
    int step;       // +1 or -1: consecutive tokens; 0: any
    int64_t tokens; // of the whole sequence
    int64_t ahead;  // where tokens are consecutive: from one to that of the chunk worked on next
    int64_t next[MK_CHUNK]; // elsewhere the tokens of that chunk, which is fetched meanwhile

    Span(const MkScan &p, int64_t chunk, bool backwards = false)
        : Span(p.order, p.reverse, p.tokens, chunk, backwards) {}

    // `backwards`: chunks are worked on from the last to the first.
    Span(const int64_t *order, bool reverse, int64_t tokens, int64_t chunk, bool backwards = false)
        : Span(order, reverse, tokens, chunk * MK_CHUNK,
               int(tokens - chunk * MK_CHUNK < MK_CHUNK ? tokens - chunk * MK_CHUNK : MK_CHUNK), backwards) {}

    // Of `count` positions from `first` on.
    Span(const int64_t *order, bool reverse, int64_t tokens, int64_t first, int count, bool backwards)
        : chunk(first / MK_CHUNK), count(count), tokens(tokens) {
        step = order ? 0 : reverse ? -1 : 1;
        ahead = (backwards ? -step : step) * MK_CHUNK;
        for (int t = 0; t < count; t++) {
            int64_t position = reverse ? tokens - 1 - (first + t) : first + t;
            token[t] = order ? order[position] : position;
            if (!order) continue;
            int64_t later = position + (backwards == reverse ? MK_CHUNK : -MK_CHUNK);
            next[t] = order[later >= 0 && later < tokens ? later : position];
        }
    }
};

MK_INLINE Floats widen(Floats x) { return x; }
MK_INLINE Floats widen(Halves x) { return __builtin_convertvector(x, Floats); }
MK_INLINE Floats widen(Shorts x) { return (Floats)(__builtin_convertvector(x, Words) << 16); }

MK_INLINE void narrow(Floats x, Floats *to) { *to = x; }
MK_INLINE void narrow(Floats x, Halves *to) { *to = __builtin_convertvector(x, Halves); }
MK_INLINE void narrow(Floats x, Shorts *to) { // to the nearest bfloat16, ties to even
    Words w = (Words)x;
    Words rounded = w + 0x7fffu + ((w >> 16) & 1u);
    Words quiet = w | 0x400000u;
    *to = __builtin_convertvector((x == x ? rounded : quiet) >> 16, Shorts);
}

// The lanes of a vector from places `step` bytes apart, as far as they exist, and back.
template <class V>
MK_INLINE V gather(const char *from, int64_t step, int count) {
    constexpr int64_t size = sizeof(V) / LANES;
    V x{};
    if (count == LANES) { // a constant: in registers
        for (int i = 0; i < LANES; i++) __builtin_memcpy((char *)&x + i * size, from + i * step, size);
    } else {
        for (int i = 0; i < count; i++) __builtin_memcpy((char *)&x + i * size, from + i * step, size);
    }
    return x;
}

template <class V>
MK_INLINE void scatter(V x, char *to, int64_t step, int count) {
    constexpr int64_t size = sizeof(V) / LANES;
    for (int i = 0; i < count; i++) __builtin_memcpy(to + i * step, (char *)&x + i * size, size);
}

// Channels of one block within an array (b, d, l).
struct Rows {
    char *data;             // null if there is no array
    int64_t channel, token; // strides in bytes
    int64_t dtype;
    int count;              // channels, at most LANES

    Rows(const MkArray &x, int64_t b, int64_t first, int64_t count)
        : Rows(x, b * x.stride[0], x.stride[1], x.stride[2], first, count) {}

    Rows(const MkArray &x, int64_t offset, int64_t channel, int64_t token, int64_t first, int64_t count)
        : dtype(x.dtype), count(int(count < LANES ? count : LANES)) {
        int64_t size = x.dtype == MK_FLOAT32 ? 4 : 2;
        this->channel = channel * size;
        this->token = token * size;
        data = x.data ? (char *)x.data + (offset + first * channel) * size : nullptr;
    }

    // Whether a token's channels are a whole vector in memory.
    bool near() const { return count == LANES && channel == (dtype == MK_FLOAT32 ? 4 : 2); }
};

template <class V>
void load_tile_of(const Rows &rows, const Span &span, Floats *tile) {
    constexpr int64_t size = sizeof(V) / LANES;
    if (rows.near()) {
        for (int t = 0; t < span.count; t++) {
            if (!span.step) __builtin_prefetch(rows.data + span.next[t] * rows.token, 0, 2);
            tile[t] = widen(load<V>(rows.data + span.token[t] * rows.token));
        }
        return;
    }
    if (rows.count == LANES && rows.token == size && span.step && span.tokens >= MK_CHUNK) {
        // Whole rows are read; at the end of the sequence they begin at earlier tokens, which are skipped.
        int64_t lowest = span.step > 0 ? span.token[0] : span.token[span.count - 1];
        int64_t first = lowest + MK_CHUNK <= span.tokens ? lowest : span.tokens - MK_CHUNK;
        const char *begin = rows.data + first * size;
        bool whole = first == lowest && span.count == MK_CHUNK;
        Floats aside[MK_CHUNK], *to = whole ? tile : aside;
        for (int part = 0; part < MK_CHUNK; part += LANES) {
            Floats square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = widen(load<V>(begin + i * rows.channel + part * size));
            transpose(square);
            if (span.step > 0) {
                for (int i = 0; i < LANES; i++) to[part + i] = square[i];
            } else {
                for (int i = 0; i < LANES; i++) to[MK_CHUNK - 1 - part - i] = square[i];
            }
        }
        if (!whole) {
            int skip = int(span.step > 0 ? lowest - first : first + MK_CHUNK - lowest - span.count);
            for (int t = 0; t < span.count; t++) tile[t] = aside[skip + t];
        }
        return;
    }
    for (int t = 0; t < span.count; t++) {
        tile[t] = widen(gather<V>(rows.data + span.token[t] * rows.token, rows.channel, rows.count));
    }
}

template <class V>
void store_tile_of(const Rows &rows, const Span &span, const Floats *tile) {
    constexpr int64_t size = sizeof(V) / LANES;
    if (rows.near()) {
        for (int t = 0; t < span.count; t++) {
            V x;
            narrow(tile[t], &x);
            store(rows.data + span.token[t] * rows.token, x);
        }
        return;
    }
    if (rows.count == LANES && rows.token == size && span.step && span.count == MK_CHUNK) {
        int64_t first = span.step > 0 ? span.token[0] : span.token[MK_CHUNK - 1];
        for (int part = 0; part < MK_CHUNK; part += LANES) {
            Floats square[LANES];
            for (int i = 0; i < LANES; i++) {
                square[i] = tile[span.step > 0 ? part + i : MK_CHUNK - 1 - part - i];
            }
            transpose(square);
            for (int i = 0; i < LANES; i++) {
                V x;
                narrow(square[i], &x);
                store(rows.data + i * rows.channel + (first + part) * size, x);
            }
        }
        return;
    }
    for (int t = 0; t < span.count; t++) {
        V x;
        narrow(tile[t], &x);
        scatter(x, rows.data + span.token[t] * rows.token, rows.channel, rows.count);
    }
}

void load_tile(const Rows &rows, const Span &span, Floats *tile) {
    switch (rows.dtype) {
    case MK_BFLOAT16: return load_tile_of<Shorts>(rows, span, tile);
    case MK_FLOAT16: return load_tile_of<Halves>(rows, span, tile);
    default: return load_tile_of<Floats>(rows, span, tile);
    }
}

void store_tile(const Rows &rows, const Span &span, const Floats *tile) {
    switch (rows.dtype) {
    case MK_BFLOAT16: return store_tile_of<Shorts>(rows, span, tile);
    case MK_FLOAT16: return store_tile_of<Halves>(rows, span, tile);
    default: return store_tile_of<Floats>(rows, span, tile);
    }
}

// LANES consecutive floats of which `count` exist.
MK_INLINE Floats load_some(const float *from, int count) {
    if (count == LANES) return load<Floats>(from);
    Floats x{};
    for (int i = 0; i < count; i++) x[i] = from[i];
    return x;
}

MK_INLINE void store_some(float *to, Floats x, int count) {
    if (count == LANES) return store(to, x);
    for (int i = 0; i < count; i++) to[i] = x[i];
}

} // namespace

// Memory fetched into caches while the tile before is worked on.

#pragma once

#include "tile.h"

namespace {

// A cache line for each token of a tile. A step of 0: there is nothing to fetch.
struct Lines {
    const char *first = (const char *)this;
    int64_t step = 0;

    Lines() {}
    Lines(const float *first, int64_t step) : first((const char *)first), step(step * 4) {}

    // Those of the same channels in the chunk worked on next.
    Lines(const Rows &rows, const Span &span) {
        if (!rows.data || !span.step) return;
        int64_t token = span.token[0];
        if (rows.near()) {
            step = span.step * rows.token;
        } else { // a row may begin in a line that is here already, and ends in one that is not
            if (span.step < 0) token -= span.count - 1;
            if (span.ahead > 0) token += MK_CHUNK - 1;
            step = rows.channel;
        }
        first = rows.data + (token + span.ahead) * rows.token;
    }
};

// Lines of several arrays, fetched token by token. All at once would fill the few buffers that a core has for lines
// on their way, and its own loads would wait; and a write to a line that is not there holds up all writes after it.
template <int READS, int WRITES>
struct Fetches {
    Lines reads[READS], writes[WRITES];

    void fetch_reads(int t) const {
        for (int i = 0; i < READS; i++) __builtin_prefetch(reads[i].first + t * reads[i].step, 0, 2);
    }

    void fetch_writes(int t) const {
        for (int i = 0; i < WRITES; i++) __builtin_prefetch(writes[i].first + t * writes[i].step, 1, 2);
    }

    void fetch(int t) const {
        fetch_reads(t);
        fetch_writes(t);
    }

    // Where there is no work to spread them over.
    void fetch_all() const {
        for (int t = 0; t < MK_CHUNK; t++) fetch(t);
    }
};

// Lines hold MK_BLOCK floats: those of narrower blocks are fetched with the first of them.
MK_INLINE bool begins_lines(int block) { return block * LANES % MK_BLOCK == 0; }

} // namespace

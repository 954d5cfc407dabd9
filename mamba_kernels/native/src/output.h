// Where a product of rows with a panel of a weight goes.

#pragma once

#include "tile.h"

namespace {

struct Output {
    char *const *row; // at the first column of the panel
    int64_t dtype;
    int64_t more; // bytes from there to float32 that is added, or 0

    [[gnu::always_inline]] void put(int64_t r, int64_t column, Floats sum) const {
        if (more) sum += load<Floats>(row[r] + column * 4 + more);
        if (dtype == MK_BFLOAT16) {
            Shorts s;
#if defined(__AVX512F__)
            asm("vcvtneps2bf16 %1, %0" : "=v"(s) : "v"(sum)); // mk_bfloat16 has asked the processor
#else
            narrow(sum, &s);
#endif
            store(row[r] + column * 2, s);
        } else {
            store(row[r] + column * 4, sum);
        }
    }
};

} // namespace

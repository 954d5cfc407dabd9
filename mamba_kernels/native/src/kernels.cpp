// All operations for one instruction set; compiled once for each with its flags and MK_ISA its name.

#include "block.h"
#include "kernels.h"
#include "step.h"
#include "weights.h"

#define MK_JOIN(a, b) a##b
#define MK_TABLE(isa) MK_JOIN(mk_kernels_, isa)

namespace {

// e^x of a multiple of 4 vectors within range: the yardstick of the benchmark.
void exp_of(const float *from, float *to, int64_t count) {
    for (int64_t i = 0; i + 4 * LANES <= count; i += 4 * LANES) {
        for (int j = 0; j < 4; j++) {
            store(to + i + j * LANES, power_in_range(load<Floats>(from + i + j * LANES), all(POWERS)));
        }
    }
}

} // namespace

extern const MkKernels MK_TABLE(MK_ISA) = {
    forward_scratch, forward_slab,
    backward_scratch, backward_slab,
    multi_forward_scratch, multi_forward_slab,
    multi_backward_scratch, multi_backward_slab,
    weight_tasks, copy_weights,
    step_scratch, step_slab,
    conv_forward_scratch, conv_forward_strip,
    conv_backward_scratch, conv_backward_strip,
    inner_chunk, inner_scratch, inner_slab,
    norm_tasks, norm_rows, product_in_tasks, multiply_in, product_out_tasks, multiply_out,
    exp_of,
};

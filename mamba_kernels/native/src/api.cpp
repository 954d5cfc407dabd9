// The exported functions: choose the instruction set and spread tasks over threads.

#include "kernels.h"
#include "threads.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#ifdef _WIN32
#define MK_EXPORT extern "C" __declspec(dllexport)
#else
#define MK_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

struct Isa {
    const char *name;
    const MkKernels *kernels;
    bool (*works)();
};

#if defined(__x86_64__)

// Whether the processor has, and the system saves, the registers in `mask` of XCR0.
bool saved_by_system(unsigned mask) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & mask) == mask;
}

bool has_avx2() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    const unsigned first = bit_FMA | bit_F16C | bit_AVX | bit_MOVBE | bit_POPCNT;
    if ((c & first) != first || !saved_by_system(0x6)) return false;
    const unsigned second = bit_AVX2 | bit_BMI | bit_BMI2;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & second) != second) return false;
    return __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & bit_LZCNT);
}

bool has_avx512() {
    unsigned a, b, c, d;
    if (!has_avx2() || !saved_by_system(0xe6)) return false;
    const unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & needed) == needed;
}

// Whether there is AMX for bfloat16, and Linux lets this process use its registers.
bool has_tiles() {
#if defined(__linux__)
    constexpr unsigned AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, REGISTERS = 3 << 17;
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18; // ARCH_REQ_XCOMP_PERM
    unsigned a, b, c, d;
    if (!saved_by_system(REGISTERS) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return (d & AMX_BF16) && (d & AMX_TILE) && !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
#else
    return false;
#endif
}

bool always() { return true; }

const Isa ISAS[] = { // best first
    {"avx512", &mk_kernels_avx512, has_avx512},
    {"avx2", &mk_kernels_avx2, has_avx2},
    {"sse2", &mk_kernels_sse2, always},
};

#else

bool always() { return true; }

const Isa ISAS[] = {{"neon", &mk_kernels_neon, always}};

#endif

constexpr int64_t ISA_COUNT = sizeof(ISAS) / sizeof(ISAS[0]);

int64_t scan_tasks(const MkScan &p) {
    int64_t per_group = p.channels / p.groups;
    return p.batch * p.groups * ((per_group + p.slab - 1) / p.slab);
}

int64_t conv_tasks(const MkConv &p) { return p.batch * ((p.channels + p.slab - 1) / p.slab); }

// Whether each token below `tokens` occurs once. Without memory to tell: no.
bool is_permutation(const int64_t *order, int64_t tokens) {
    char *seen = (char *)calloc(tokens, 1);
    bool good = seen;
    for (int64_t i = 0; good && i < tokens; i++) {
        good = order[i] >= 0 && order[i] < tokens && !seen[order[i]];
        if (good) seen[order[i]] = 1;
    }
    free(seen);
    return good;
}

template <class P>
bool are_permutations(const P *p, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (p[i].order && !is_permutation(p[i].order, p[i].tokens)) return false;
    }
    return true;
}

enum Result : int64_t { DONE = 0, NO_MEMORY = 1, NO_PERMUTATION = 2 };

} // namespace

// Sizes of the structures: a caller built for other layouts can tell.
MK_EXPORT int64_t mk_scan_size() { return sizeof(MkScan); }
MK_EXPORT int64_t mk_inner_size() { return sizeof(MkInner); }
MK_EXPORT int64_t mk_block_size() { return sizeof(MkBlock); }
MK_EXPORT int64_t mk_conv_size() { return sizeof(MkConv); }

// Name of instruction set i, best first: empty where this machine lacks it, null where there is none.
MK_EXPORT const char *mk_isa(int64_t i) {
    if (i >= ISA_COUNT) return nullptr;
    return ISAS[i].works() ? ISAS[i].name : "";
}

// How this machine multiplies bfloat16 with instruction set i: an MkBfloat16. Asks Linux for the registers of tiles.
MK_EXPORT int64_t mk_bfloat16(int64_t i) {
#if defined(__x86_64__)
    unsigned a, b, c, d;
    if (i != 0 || !ISAS[i].works() || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return MK_NOT;
    if (!(a >> 5 & 1)) return MK_NOT; // AVX512_BF16
    return has_tiles() ? MK_TILES : MK_PAIRS;
#else
    return MK_NOT;
#endif
}

// Have the threads of a team work, or, with null, threads of our own.
MK_EXPORT void mk_use_team(mk::Team team) { mk::team = team; }

// Each returns a Result.
MK_EXPORT int64_t mk_scan_forward(const MkScan *p, int64_t isa, int64_t threads) {
    const MkKernels &k = *ISAS[isa].kernels;
    auto task = [&](int64_t i, char *scratch) { k.forward_slab(*p, i, scratch); };
    return mk::run(scan_tasks(*p), threads, k.forward_scratch(*p), task) ? DONE : NO_MEMORY;
}

MK_EXPORT int64_t mk_scan_backward(const MkScan *p, int64_t isa, int64_t threads) {
    const MkKernels &k = *ISAS[isa].kernels;
    auto task = [&](int64_t i, char *scratch) { k.backward_slab(*p, i, scratch); };
    return mk::run(scan_tasks(*p), threads, k.backward_scratch(*p), task) ? DONE : NO_MEMORY;
}

// Several directions, of one size and cut into the same slabs.
MK_EXPORT int64_t mk_multi_forward(const MkScan *p, int64_t count, int64_t isa, int64_t threads) {
    if (!are_permutations(p, count)) return NO_PERMUTATION;
    const MkKernels &k = *ISAS[isa].kernels;
    auto task = [&](int64_t i, char *scratch) { k.multi_forward_slab(p, count, i, scratch); };
    return mk::run(scan_tasks(*p), threads, k.multi_forward_scratch(*p), task) ? DONE : NO_MEMORY;
}

MK_EXPORT int64_t mk_multi_backward(const MkScan *p, int64_t count, int64_t isa, int64_t threads) {
    if (!are_permutations(p, count)) return NO_PERMUTATION;
    const MkKernels &k = *ISAS[isa].kernels;
    auto task = [&](int64_t i, char *scratch) { k.multi_backward_slab(p, count, i, scratch); };
    return mk::run(scan_tasks(*p), threads, k.multi_backward_scratch(*p), task) ? DONE : NO_MEMORY;
}

// A Mamba block: its directions are of one size and cut into the same slabs.
MK_EXPORT int64_t mk_block_forward(const MkBlock *p, int64_t isa, int64_t threads) {
    const MkKernels &k = *ISAS[isa].kernels;
    const MkInner *d = p->directions;
    if (!are_permutations(d, p->count)) return NO_PERMUTATION;
    int64_t chunks = (d->tokens + MK_CHUNK - 1) / MK_CHUNK, slabs = (d->channels + d->slab - 1) / d->slab;
    auto norm = [&](int64_t i, char *) { k.norm_rows(*p, i); };
    auto in = [&](int64_t i, char *) { k.multiply_in(*p, i); };
    auto chunk = [&](int64_t i, char *) { k.inner_chunk(d[i / chunks / d->batch], i / chunks % d->batch, i % chunks); };
    auto slab = [&](int64_t i, char *scratch) { k.inner_slab(d, p->count, i, scratch); };
    auto out = [&](int64_t i, char *) { k.multiply_out(*p, i); };
    bool done = mk::run(k.norm_tasks(*p), threads, 0, norm) &&
                mk::run(k.product_in_tasks(*p), threads, 0, in) &&
                mk::run(p->count * d->batch * chunks, threads, 0, chunk) &&
                mk::run(d->batch * slabs, threads, k.inner_scratch(d, p->count), slab) &&
                mk::run(k.product_out_tasks(*p), threads, 0, out);
    return done ? DONE : NO_MEMORY;
}

// One token; `last` is the state before it and after.
MK_EXPORT int64_t mk_scan_step(const MkScan *p, int64_t isa, int64_t threads) {
    const MkKernels &k = *ISAS[isa].kernels;
    auto task = [&](int64_t i, char *scratch) { k.step_slab(*p, i, scratch); };
    return mk::run(scan_tasks(*p), threads, k.step_scratch(*p), task) ? DONE : NO_MEMORY;
}

MK_EXPORT int64_t mk_conv_forward(const MkConv *p, int64_t isa, int64_t threads) {
    if (p->order && !is_permutation(p->order, p->tokens)) return NO_PERMUTATION;
    const MkKernels &k = *ISAS[isa].kernels;
    auto task = [&](int64_t i, char *scratch) { k.conv_forward_strip(*p, i, scratch); };
    return mk::run(conv_tasks(*p), threads, k.conv_forward_scratch(*p), task) ? DONE : NO_MEMORY;
}

MK_EXPORT int64_t mk_conv_backward(const MkConv *p, int64_t isa, int64_t threads) {
    if (p->order && !is_permutation(p->order, p->tokens)) return NO_PERMUTATION;
    const MkKernels &k = *ISAS[isa].kernels;
    auto task = [&](int64_t i, char *scratch) { k.conv_backward_strip(*p, i, scratch); };
    return mk::run(conv_tasks(*p), threads, k.conv_backward_scratch(*p), task) ? DONE : NO_MEMORY;
}

// e^x of `count` floats from [-87, 88], `count` a multiple of 64: the yardstick of the benchmark.
MK_EXPORT void mk_exp(const float *from, float *to, int64_t count, int64_t isa, int64_t repeats) {
    mk::FlushToZero guard;
    for (int64_t i = 0; i < repeats; i++) ISAS[isa].kernels->exp(from, to, count);
}

// The exported functions: choose the instruction set and spread tasks over threads.

#include "by_token.h"
#include "pass.h"

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
MK_EXPORT int64_t mk_pass_size() { return sizeof(MkPass); }
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
    if (i != 0 || !ISAS[i].works() || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return MK_NONE;
    if (!(a >> 5 & 1)) return MK_NONE; // AVX512_BF16
    return has_tiles() ? MK_TILES : MK_PAIRS;
#else
    return MK_NONE;
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
    bool done = with_weights_by_token(p, count, k, threads, [&](const MkScan *scans) {
        auto task = [&](int64_t i, char *scratch) { k.multi_forward_slab(scans, count, i, scratch); };
        return mk::run(scan_tasks(*scans), threads, k.multi_forward_scratch(*scans), task);
    });
    return done ? DONE : NO_MEMORY;
}

MK_EXPORT int64_t mk_multi_backward(const MkScan *p, int64_t count, int64_t isa, int64_t threads) {
    if (!are_permutations(p, count)) return NO_PERMUTATION;
    const MkKernels &k = *ISAS[isa].kernels;
    bool done = with_weights_by_token(p, count, k, threads, [&](const MkScan *scans) {
        auto task = [&](int64_t i, char *scratch) { k.multi_backward_slab(scans, count, i, scratch); };
        return mk::run(scan_tasks(*scans), threads, k.multi_backward_scratch(*scans), task);
    });
    return done ? DONE : NO_MEMORY;
}

// Mamba blocks, the directions of each of one size. Between blocks tokens lie in `out` and in `between` by turns.
MK_EXPORT int64_t mk_blocks_forward(const MkPass *pass, int64_t isa, int64_t threads) {
    MkInner directions[MK_DIRECTIONS];
    uintptr_t most = 0;
    for (int64_t i = 0; i < pass->count; i++) {
        Memory counted{0};
        in_pass(*pass, *pass->blocks[i], directions, counted);
        if (counted.next > most) most = counted.next;
    }
    int64_t tokens = 4 * pass->batch * pass->tokens * pass->blocks[0]->channels;
    char *memory = (char *)malloc(most + tokens + 128);
    if (!memory) return NO_MEMORY;
    Memory scratch{((uintptr_t)memory + 63) / 64 * 64};
    float *between;
    scratch.take(between, tokens);
    const float *from = pass->x, *const *before = pass->before;
    float *const *after = pass->after;
    Result result = DONE;
    for (int64_t i = 0; i < pass->count && result == DONE; i++) {
        Memory features = scratch;
        MkBlock p = in_pass(*pass, *pass->blocks[i], directions, features);
        p.x = from;
        from = p.out = (pass->count - i) % 2 ? pass->out : between;
        for (int64_t j = 0; j < p.count; j++) {
            if (before) directions[j].conv_state = *before++, directions[j].state = *before++;
            if (after) directions[j].next_conv_state = *after++, directions[j].next_state = *after++;
        }
        if (!are_permutations(directions, p.count)) result = NO_PERMUTATION;
        else if (!run_block(p, *ISAS[isa].kernels, threads)) result = NO_MEMORY;
    }
    free(memory);
    return result;
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

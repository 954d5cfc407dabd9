// Tasks spread over the threads of the caller's own team, which stands ready, or over threads that live for
// one call: nothing to leak, nothing that a fork could break.

#pragma once

#include <stdint.h>
#include <stdlib.h>

#ifdef _WIN32
#include <windows.h>
#else
#include <pthread.h>
#endif

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace mk {

// Results too small for a normal float count as zero while this lives: decayed states would
// otherwise become denormal, which processors compute slowly.
struct FlushToZero {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    FlushToZero() { _mm_setcsr(before | 0x8040); }
    ~FlushToZero() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    FlushToZero() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" ::"r"(before | (1ull << 24)));
    }
    ~FlushToZero() { asm volatile("msr fpcr, %0" ::"r"(before)); }
#endif
};

// Calls f(data) on that many threads, the caller's among them, and waits: OpenMP's GOMP_parallel.
using Team = void (*)(void (*f)(void *), void *data, unsigned threads, unsigned flags);
static Team team = nullptr;

template <class Task>
struct Pool {
    const Task &task;
    int64_t tasks, next;
    char *scratch;
    int64_t scratch_size;
    int64_t workers, most_workers;

    void work() {
        int64_t worker = __atomic_fetch_add(&workers, 1, __ATOMIC_RELAXED);
        if (worker >= most_workers) return; // more hands than tasks
        FlushToZero guard;
        char *memory = scratch + worker * scratch_size;
        for (;;) {
            int64_t i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
            if (i >= tasks) return;
            task(i, memory);
        }
    }
};

template <class Task>
void join_in(void *pool) {
    ((Pool<Task> *)pool)->work();
}

#ifdef _WIN32
template <class Task>
DWORD WINAPI enter(void *pool) {
    ((Pool<Task> *)pool)->work();
    return 0;
}
#else
template <class Task>
void *enter(void *pool) {
    ((Pool<Task> *)pool)->work();
    return nullptr;
}
#endif

// The pool's work by threads that are started for it. Fewer where the system gives no more.
template <class Task>
void start_and_join(Pool<Task> &pool) {
    constexpr int64_t most = 256;
    int64_t others = (pool.most_workers < most ? pool.most_workers : most) - 1, count = 0;
#ifdef _WIN32
    HANDLE started[most];
#else
    pthread_t started[most];
#endif
    for (; count < others; count++) {
#ifdef _WIN32
        started[count] = CreateThread(nullptr, 0, enter<Task>, &pool, 0, nullptr);
        if (!started[count]) break;
#else
        if (pthread_create(&started[count], nullptr, enter<Task>, &pool)) break;
#endif
    }
    pool.work();
    for (int64_t i = 0; i < count; i++) {
#ifdef _WIN32
        WaitForSingleObject(started[i], INFINITE);
        CloseHandle(started[i]);
#else
        pthread_join(started[i], nullptr);
#endif
    }
}

// Calls task(i, scratch) for i < tasks, each with scratch of the given size. False: no memory.
template <class Task>
bool run(int64_t tasks, int64_t threads, int64_t scratch_size, const Task &task) {
    int64_t workers = threads < tasks ? threads : tasks;
    scratch_size = (scratch_size + 4095) / 4096 * 4096;
    char *memory = (char *)malloc(workers * scratch_size + 64);
    if (!memory) return false;
    char *aligned = (char *)(((uintptr_t)memory + 63) / 64 * 64);
    Pool<Task> pool{task, tasks, 0, aligned, scratch_size, 0, workers};
    if (workers <= 1) {
        pool.work();
    } else if (team) {
        team(join_in<Task>, &pool, unsigned(threads), 0); // whole: one of another size is built anew
    } else {
        start_and_join(pool);
    }
    free(memory);
    return true;
}

} // namespace mk

// Runs the kernels of a .cu file on a CPU: included before it, compiled by a plain C++ compiler. The threads of a block
// are fibers of one CPU thread that change places at __syncthreads, in some blocks the first thread first, in others the
// last, so that what one thread reads of another without waiting for it is not there yet. Blocks run one after another;
// shared memory is NaN at their start.
#pragma once
#include <link.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ thread_local  // and nothing else is: poison_shared finds it by that

struct Index {
    unsigned x, y, z;
};
static Index gridDim, blockDim, blockIdx, threadIdx;
static constexpr int SHARED_FLOATS = 48 * 1024 / 4;
thread_local float equations[SHARED_FLOATS];  // the kernels' dynamic shared memory goes by this name

using Kernel = void (*)(long, long, long, long, long, long, long, long, long, long, long, long, long, long, long, long,
                        long, long, long, long);

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    Index thread;
    bool done;
};
static std::vector<Fiber> fibers;
static Fiber* running;
static ucontext_t scheduler;
static Kernel kernel;
static long arguments[20];

static void __syncthreads() { swapcontext(&running->context, &scheduler); }

static void run_thread() {
    const long* a = arguments;
    kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15], a[16],
           a[17], a[18], a[19]);
    running->done = true;
    swapcontext(&running->context, &scheduler);
}

// Fills this library's thread-local memory of this thread, all shared arrays, with NaN.
static int poison_shared(dl_phdr_info* library, size_t, void*) {
    for (int i = 0; i < library->dlpi_phnum; ++i) {
        const auto& part = library->dlpi_phdr[i];
        char* at = static_cast<char*>(library->dlpi_tls_data);
        char* ours = reinterpret_cast<char*>(equations);
        if (part.p_type != PT_TLS || !at || ours < at || ours >= at + part.p_memsz) continue;
        std::memset(at, 0xff, part.p_memsz);
        return 1;
    }
    return 0;
}

static void run_block(int shared_floats) {
    if (!dl_iterate_phdr(poison_shared, nullptr)) __builtin_trap();
    for (int i = shared_floats; i < SHARED_FLOATS; ++i) equations[i] = INFINITY;
    for (size_t i = 0; i < fibers.size(); ++i) {
        Fiber& f = fibers[i];
        f.stack.resize(64 * 1024), f.done = false;
        f.thread = {unsigned(i) % blockDim.x, unsigned(i) / blockDim.x, 0};
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = f.stack.size();
        makecontext(&f.context, run_thread, 0);
    }
    for (bool left = true; left;) {
        left = false;
        for (size_t k = 0; k < fibers.size(); ++k) {
            const size_t i = blockIdx.y % 2 ? k : fibers.size() - 1 - k;
            if (fibers[i].done) continue;
            running = &fibers[i], threadIdx = running->thread;
            swapcontext(&scheduler, &running->context);
            left |= !running->done;
        }
    }
}

// grid and block: 3 numbers each. Arguments are pointers and ints only: all travel as 64-bit words.
extern "C" void launch(Kernel function, const long* args, const int* grid, const int* block, int shared_bytes) {
    kernel = function;
    for (int i = 0; i < 20; ++i) arguments[i] = args[i];
    gridDim = {unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2])};
    blockDim = {unsigned(block[0]), unsigned(block[1]), unsigned(block[2])};
    fibers.resize(size_t(block[0]) * block[1] * block[2]);
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) run_block(shared_bytes / 4);
}

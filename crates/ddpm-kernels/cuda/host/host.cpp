//! Runs a kernel on the host: every block in turn, every thread of it as a fiber from one barrier to the next.

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <csetjmp>
#include <ucontext.h>

#include "host.h"

#include "../kernels.cu"

Index threadIdx, blockIdx, blockDim, gridDim;

namespace {

/// Of compute capability 9.0.
constexpr unsigned SHARED_BYTES = 227 * 1024;
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK_BYTES = 64 * 1024;
/// Shared memory beyond what the launch asked for that is watched.
constexpr unsigned WATCHED_BYTES = 4096;
/// What a byte of shared memory holds before a block begins: floats of these are not numbers.
constexpr unsigned char POISON = 0xff;

enum class State { Ready, AtBarrier, AtShuffle, Done };

struct Fiber {
    jmp_buf place; // where it waits: after its start all switches are jumps, without the system's help
    std::vector<char> stack;
    State state;
    const char* file;
    int line;
};

jmp_buf scheduler;
std::vector<Fiber> fibers;
Fiber* running;
void (*run_kernel)(void** arguments);
void** kernel_arguments;
char message[400];
bool failed;
/// What lanes hand to each other. Two, in turn: a lane may be at its next shuffle before another has read the last.
Handed exchanged[2][MOST_THREADS];
unsigned shuffles[MOST_THREADS];
/// What threads began to copy and have not waited for.
struct Copy {
    void* to;
    const void* from;
};
std::vector<Copy> copies[MOST_THREADS];

void fail(const char* what, unsigned thread, const char* file, int line) {
    if (!failed) {
        const char* name = file ? strrchr(file, '/') : nullptr;
        snprintf(message, sizeof message, "block (%u, %u), thread %u: %s (%s, line %d)", blockIdx.x, blockIdx.y, thread, what,
                 name ? name + 1 : (file ? file : "-"), line);
    }
    failed = true;
}

/// Back to the scheduler, until it resumes this fiber.
void wait_as(State state, const char* file, int line) {
    running->state = state;
    running->file = file;
    running->line = line;
    if (_setjmp(running->place) == 0) {
        _longjmp(scheduler, 1);
    }
}

/// A fiber runs the kernel once for each block.
void live() {
    for (;;) {
        wait_as(State::Done, nullptr, 0);
        run_kernel(kernel_arguments);
    }
}

void resume(unsigned thread) {
    running = &fibers[thread];
    threadIdx = {thread, 0, 0};
    if (_setjmp(scheduler) == 0) {
        _longjmp(running->place, 1);
    }
}

/// A new fiber, which waits for its first block.
void start(unsigned thread) {
    static ucontext_t context;
    running = &fibers[thread];
    running->stack.resize(STACK_BYTES);
    getcontext(&context);
    context.uc_stack.ss_sp = running->stack.data();
    context.uc_stack.ss_size = running->stack.size();
    context.uc_link = nullptr;
    makecontext(&context, live, 0);
    if (_setjmp(scheduler) == 0) {
        setcontext(&context);
    }
}

/// Whether all of these threads stand at one line in this state; none of those that do not may have to wait for ever.
bool all_at(unsigned first, unsigned end, State state, const char* what) {
    const Fiber& one = fibers[first];
    for (unsigned i = first; i < end; i++) {
        const Fiber& other = fibers[i];
        if (other.state != state || other.line != one.line || (other.file != one.file && strcmp(other.file, one.file) != 0)) {
            const bool first_waits = one.state == state;
            fail(what, first_waits ? i : first, first_waits ? one.file : other.file, first_waits ? one.line : other.line);
            return false;
        }
    }
    return true;
}

bool any_at(unsigned first, unsigned end, State state) {
    return std::any_of(fibers.begin() + first, fibers.begin() + end, [=](const Fiber& f) { return f.state == state; });
}

/// Runs the lanes of a warp until each is at a barrier or done.
void run_warp(unsigned first, unsigned end, bool backwards) {
    do {
        for (unsigned i = first; i < end && !failed; i++) {
            resume(backwards ? first + end - 1 - i : i);
        }
    } while (!failed && any_at(first, end, State::AtShuffle) &&
             all_at(first, end, State::AtShuffle, "a lane is not at the shuffle that others of its warp are at"));
}

void run_block(unsigned threads, unsigned shared, bool backwards) {
    const unsigned watched = min(shared + WATCHED_BYTES, SHARED_BYTES);
    memset(block_memory, POISON, watched);
    std::fill(shuffles, shuffles + threads, 0);
    std::for_each(copies, copies + threads, [](std::vector<Copy>& of_one) { of_one.clear(); });
    const unsigned warps = (threads + 31) / 32;
    do {
        for (unsigned i = 0; i < warps && !failed; i++) {
            const unsigned first = 32 * (backwards ? warps - 1 - i : i);
            run_warp(first, min(first + 32, threads), backwards);
        }
    } while (!failed && any_at(0, threads, State::AtBarrier) &&
             all_at(0, threads, State::AtBarrier, "a thread is not at the barrier that others of its block are at"));
    const unsigned char* bytes = (const unsigned char*)block_memory;
    for (unsigned i = shared; i < watched && !failed; i++) {
        if (bytes[i] != POISON) {
            fail("shared memory was written beyond what the launch asks for", 0, "byte", (int)i);
        }
    }
}

/// Takes the arguments of a kernel as cuLaunchKernel does: a pointer to each.
template <auto kernel, class... A, size_t... i>
void call(void (*)(A...), void** arguments, std::index_sequence<i...>) {
    kernel(*(A*)arguments[i]...);
}

template <auto kernel>
struct Arguments;
template <class... A, void (*kernel)(A...)>
struct Arguments<kernel> {
    static void run(void** arguments) { call<kernel>(kernel, arguments, std::index_sequence_for<A...>()); }
    static constexpr unsigned count = sizeof...(A);
};

struct Named {
    const char* name;
    void (*run)(void** arguments);
    unsigned arguments;
};

#define KERNEL(name) {#name, Arguments<name>::run, Arguments<name>::count}
#define BOTH(name) KERNEL(name), KERNEL(name##_bf16)
#define PACKS(name) BOTH(name), BOTH(name##_each)
#define OF_ATTENTION(size) BOTH(attention_##size), BOTH(attention_query_gradient_##size), BOTH(attention_key_gradient_##size)
#define OF_TILE_GRADIENTS(size) KERNEL(attention_tiles_query_gradient_##size), KERNEL(attention_tiles_key_gradient_##size)

extern "C" __global__ void of_the_host_missed_barrier() {
    if (threadIdx.x != 5) {
        __syncthreads();
    }
}

extern "C" __global__ void of_the_host_missed_shuffle(float* x) {
    if (threadIdx.x != 5) {
        x[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
    }
}

extern "C" __global__ void of_the_host_missed_product(float* x) {
    if (threadIdx.x != 5) {
        float d[4] = {};
        const unsigned a[4] = {};
        mma(d, a, 0, 0);
        x[threadIdx.x] = d[0];
    }
}

/// What has not arrived is read.
extern "C" __global__ void of_the_host_early(const bf16* from, float* x) {
    bf16* const to = (bf16*)block_memory;
    copy_later(to + 8 * threadIdx.x, from + 8 * threadIdx.x, false);
    x[threadIdx.x] = wide(to[8 * threadIdx.x]);
    wait_for_copies();
}

extern "C" __global__ void of_the_host_odd_place(const bf16* from) { copy_later((bf16*)block_memory, from + 4, false); }

/// d = a b of 16 x 16 and 16 x 8 numbers, twice: factors taken by the table of the PTX ISA, then as matrices from shared memory.
extern "C" __global__ void of_the_host_products(const bf16* a, const bf16* b, float* d) {
    const unsigned group = threadIdx.x / 4, place = threadIdx.x % 4;
    unsigned short of_a[8], of_b[4];
    for (unsigned i = 0; i < 8; i++) {
        const bool lower = i < 2 || (4 <= i && i < 6);
        of_a[i] = a[(lower ? group : group + 8) * 16 + place * 2 + (i & 1) + (i < 4 ? 0 : 8)].bits;
    }
    for (unsigned i = 0; i < 4; i++) {
        of_b[i] = b[(place * 2 + (i & 1) + (i < 2 ? 0 : 8)) * 8 + group].bits;
    }
    unsigned left[4], right[4], across[4];
    for (unsigned i = 0; i < 4; i++) {
        left[i] = of_a[2 * i] | (unsigned)of_a[2 * i + 1] << 16;
    }
    float by_table[4] = {}, by_rows[4] = {}, by_columns[4] = {};
    mma(by_table, left, of_b[0] | (unsigned)of_b[1] << 16, of_b[2] | (unsigned)of_b[3] << 16);

    bf16* const rows = (bf16*)block_memory; // 16 of a; 16 of b; 8 columns of b
    for (unsigned i = threadIdx.x; i < 256; i += WARP) {
        rows[i / 16 * 24 + i % 16] = a[i];
        rows[(16 + i / 16) * 24 + i % 16] = b[i % 16 < 8 ? i / 16 * 8 + i % 16 : 0];
        rows[(32 + i / 16) * 24 + i % 16] = b[i / 16 < 8 ? i % 16 * 8 + i / 16 : 0];
    }
    __syncthreads();
    const unsigned lane = threadIdx.x;
    load_matrices(left, rows + lane % 16 * 24 + lane / 16 * 8);
    load_transposed(right, rows + (16 + lane % 16) * 24 + lane / 16 * 8);
    load_matrices(across, rows + (32 + lane / 16 * 8 + lane % 8) * 24 + lane / 8 % 2 * 8);
    mma(by_rows, left, right[0], right[1]);
    mma(by_columns, left, across[0], across[1]);
    for (unsigned i = 0; i < 4; i++) {
        float* at = d + (i < 2 ? group : group + 8) * 8 + place * 2 + (i & 1);
        at[0] = by_table[i];
        at[128] = by_rows[i];
        at[256] = by_columns[i];
    }
}

extern "C" __global__ void of_the_host_too_much_shared() { block_memory[threadIdx.x] = 0.0f; }

/// Without the barrier that it lacks, what a thread reads depends on the order of threads.
extern "C" __global__ void of_the_host_race(float* x) {
    block_memory[threadIdx.x] = (float)threadIdx.x;
    x[threadIdx.x] = block_memory[blockDim.x - 1 - threadIdx.x];
}

const Named KERNELS[] = {
    BOTH(silu),
    BOTH(silu_gradient),
    BOTH(group_norm),
    BOTH(group_norm_gradient),
    BOTH(spread_2x),
    BOTH(gather_2x),
    BOTH(window),
    BOTH(add_bias),
    BOTH(plane_sums),
    BOTH(column_sums),
    BOTH(dropout),
    BOTH(attention_deltas),
    OF_ATTENTION(4_16),
    OF_ATTENTION(4_64),
    OF_ATTENTION(2_64),
    OF_ATTENTION(1_64),
    KERNEL(attention_deltas_tiles),
    KERNEL(attention_tiles_16_2_64),
    KERNEL(attention_tiles_32_2_64),
    KERNEL(attention_tiles_64_2_64),
    KERNEL(attention_tiles_128_2_32),
    KERNEL(attention_tiles_256_1_32),
    OF_TILE_GRADIENTS(16_2_32),
    OF_TILE_GRADIENTS(32_2_32),
    OF_TILE_GRADIENTS(64_2_32),
    OF_TILE_GRADIENTS(128_1_32),
    OF_TILE_GRADIENTS(256_1_16),
    BOTH(nhwc_take_in),
    BOTH(nhwc_give_out),
    BOTH(nhwc_lay_out),
    BOTH(nhwc_turn_back),
    KERNEL(nhwc_draw),
    BOTH(nhwc_mask_gradient),
    BOTH(nhwc_sum),
    BOTH(nhwc_scale),
    BOTH(nhwc_downsample),
    BOTH(nhwc_part),
    PACKS(nhwc_prepare),
    PACKS(nhwc_cut_border),
    PACKS(nhwc_silu_gradient),
    PACKS(nhwc_finish),
    KERNEL(nhwc_coefficients),
    PACKS(nhwc_norm_sums),
    KERNEL(nhwc_norm_means),
    PACKS(nhwc_norm_gradient),
    PACKS(nhwc_chunk_sums),
    KERNEL(nhwc_sum_rows),
    KERNEL(squares_of_chunks),
    KERNEL(norm_of_parts),
    KERNEL(adamw_of_chunks),
    KERNEL(of_the_host_missed_barrier),
    KERNEL(of_the_host_missed_shuffle),
    KERNEL(of_the_host_missed_product),
    KERNEL(of_the_host_early),
    KERNEL(of_the_host_odd_place),
    KERNEL(of_the_host_products),
    KERNEL(of_the_host_too_much_shared),
    KERNEL(of_the_host_race),
};

} // namespace

alignas(16) float block_memory[SHARED_BYTES / 4];

void host_barrier(const char* file, int line) { wait_as(State::AtBarrier, file, line); }

const Handed* host_share(const void* mine, size_t bytes, const char* file, int line) {
    const unsigned thread = threadIdx.x;
    if (blockDim.x % 32 != 0) {
        fail("a shuffle of less than a whole warp", thread, file, line);
    }
    Handed* slots = exchanged[shuffles[thread]++ % 2];
    memcpy(slots[thread].bytes, mine, bytes);
    wait_as(State::AtShuffle, file, line);
    return slots + thread / 32 * 32;
}

void host_exchange(unsigned mask, const void* mine, void* theirs, size_t bytes, unsigned from, const char* file, int line) {
    if (mask != 0xffffffffu) {
        fail("a shuffle of less than a whole warp", threadIdx.x, file, line);
    }
    memcpy(theirs, host_share(mine, bytes, file, line)[from].bytes, bytes);
}

void host_aligned(const void* at, const char* file, int line) {
    if ((uintptr_t)at % 16 != 0) {
        fail("16 bytes do not lie at a multiple of 16", threadIdx.x, file, line);
    }
}

void host_copy_later(void* to, const void* from) {
    copies[threadIdx.x].push_back({to, from});
}

void host_wait_for_copies() {
    for (const Copy& copy : copies[threadIdx.x]) {
        if (copy.from) {
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    copies[threadIdx.x].clear();
}

/// Launches a kernel by name; gives nothing, or what went wrong.
extern "C" const char* host_launch(const char* name, const unsigned* grid, unsigned threads, unsigned shared, void** arguments,
                                   unsigned count, unsigned backwards) {
    const Named* named = std::find_if(std::begin(KERNELS), std::end(KERNELS), [=](const Named& n) { return !strcmp(n.name, name); });
    if (named == std::end(KERNELS)) {
        snprintf(message, sizeof message, "there is no kernel %s", name);
        return message;
    }
    if (named->arguments != count) {
        snprintf(message, sizeof message, "%s has %u arguments, not %u", name, named->arguments, count);
        return message;
    }
    if (threads == 0 || threads > MOST_THREADS || shared > SHARED_BYTES || grid[0] == 0 || grid[1] == 0 || grid[1] > 65535) {
        snprintf(message, sizeof message, "%s cannot be launched as (%u, %u) blocks of %u threads and %u bytes", name, grid[0],
                 grid[1], threads, shared);
        return message;
    }
    failed = false;
    for (unsigned i = fibers.size(); i < threads; i++) {
        fibers.emplace_back();
        start(i);
    }
    run_kernel = named->run;
    kernel_arguments = arguments;
    gridDim = {grid[0], grid[1], 1};
    blockDim = {threads, 1, 1};
    const uint64_t blocks = (uint64_t)grid[0] * grid[1];
    for (uint64_t i = 0; i < blocks && !failed; i++) {
        const uint64_t block = backwards ? blocks - 1 - i : i;
        blockIdx = {(unsigned)(block % grid[0]), (unsigned)(block / grid[0]), 0};
        run_block(threads, shared, backwards);
    }
    if (failed) {
        fibers.clear(); // they stand where the failure left them
        return message;
    }
    return nullptr;
}

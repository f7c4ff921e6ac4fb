//! What CUDA C++ has and C++ has not, for one block at a time on the host: a thread of the block is a fiber.
//!
//! Indices, shared memory, barriers and shuffles are real; the order of threads and blocks is chosen by the launch. A barrier
//! that not all threads of the block reach, or a shuffle that not all lanes of the warp reach, at one line of the source, is
//! an error; so is what is written to shared memory beyond what the launch asked for. Not modelled: threads that run at the
//! same time between two barriers, divisions of a warp, alignment, the card's rounding of fused products.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

using std::isfinite;
using std::max;
using std::min;

#define __global__
#define __device__
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(threads)

struct Index {
    unsigned x, y, z;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

/// Waits until every thread of the block has come to this line.
void host_barrier(const char* file, int line);
/// Gives the warp's lanes eight bytes of each other: those of lane `from`.
void host_exchange(unsigned mask, const void* mine, void* theirs, size_t bytes, unsigned from, const char* file, int line);

#define __syncthreads() host_barrier(__FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, apart)                                                                                    \
    host_shuffle(mask, value, (threadIdx.x % 32) ^ (unsigned)(apart), __FILE__, __LINE__)

template <class T>
T host_shuffle(unsigned mask, T mine, unsigned from, const char* file, int line) {
    static_assert(sizeof(T) <= 8);
    T theirs;
    host_exchange(mask, &mine, &theirs, sizeof(T), from, file, line);
    return theirs;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }

inline float __fdividef(float a, float b) { return a / b; }

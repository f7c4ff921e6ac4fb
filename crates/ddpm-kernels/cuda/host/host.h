//! What CUDA C++ has and C++ has not, for one block at a time on the host: a thread of the block is a fiber.
//!
//! Indices, shared memory, barriers and shuffles are real; the order of threads and blocks is chosen by the launch. A barrier
//! that not all threads of the block reach, or a shuffle that not all lanes of the warp reach, at one line of the source, is
//! an error; so is what is written to shared memory beyond what the launch asked for. Copies that go on by themselves arrive
//! when they are waited for, and not before; 16 bytes that do not lie at a multiple of 16 are an error there. Not modelled:
//! threads that run at the same time between two barriers, divisions of a warp, alignment of anything else, the card's
//! rounding of fused products.

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
#define __launch_bounds__(...)

struct Index {
    unsigned x, y, z;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

/// Waits until every thread of the block has come to this line.
void host_barrier(const char* file, int line);
/// What the warp's lanes hand to each other at once.
struct Handed {
    alignas(8) unsigned char bytes[48];
};
/// Shows a lane's bytes to the others of its warp, and gives what all of them show: good until the lane shows something again.
const Handed* host_share(const void* mine, size_t bytes, const char* file, int line);
/// Gives the warp's lanes eight bytes of each other: those of lane `from`.
void host_exchange(unsigned mask, const void* mine, void* theirs, size_t bytes, unsigned from, const char* file, int line);
/// Sixteen bytes, or zeros where `from` is none, that arrive when the thread waits.
void host_copy_later(void* to, const void* from);
/// Fails where this is no multiple of 16.
void host_aligned(const void* at, const char* file, int line);
void host_wait_for_copies();

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

/// What each lane of the warp holds. All lanes make one at the same line.
template <class T>
class Shared {
    static_assert(sizeof(T) <= sizeof(Handed));
    const Handed* all;

  public:
    Shared(const T& mine, const char* file, int line) : all(host_share(&mine, sizeof mine, file, line)) {}
    const T& of(unsigned lane) const { return *(const T*)all[lane].bytes; }
};

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

//! What the kernels share: numbers of 16 bits, sums over a warp and a block in an order that never changes, division by a
//! constant, the sigmoid.

#pragma once

#define WARP 32

/// Shared memory of a block, as much of it as the launch asks for.
extern __shared__ __align__(16) float block_memory[];

/// What tables are made of: addresses, numbers, or two of 32 bits.
typedef unsigned long long word;

/// The upper half of a float: eight bits of exponent, seven of fraction. It is only stored; all arithmetic is in floats.
struct bf16 {
    unsigned short bits;
};

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ inline void put(float* to, float x) { *to = x; }
/// Rounds to the nearest, to the even one of two; what is not a number stays so.
__device__ inline void put(bf16* to, float x) {
    const unsigned bits = __float_as_uint(x);
    const unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    to->bits = (unsigned short)(x == x ? rounded >> 16 : (bits >> 16) | 0x40u);
}

/// x / d for x < 2^31, with what `launch::Divisor` prepares: a multiplication and a shift.
struct Divisor {
    unsigned magic;
    unsigned shift;
};

__device__ inline unsigned divide(unsigned x, Divisor d) {
    return (__umulhi(x, d.magic) + x) >> d.shift;
}

/// The sum over the warp's lanes, in every lane. All lanes call it.
template <class T>
__device__ inline T warp_sum(T x) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, apart);
    }
    return x;
}

/// The largest over the warp's lanes, in every lane. All lanes call it.
__device__ inline float warp_max(float x) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart));
    }
    return x;
}

/// The sum over the block, in every thread; `scratch` has room for a number a warp. All threads call it, whole warps of them.
template <class T>
__device__ inline T block_sum(T x, T* scratch) {
    const unsigned warps = blockDim.x / WARP;
    x = warp_sum(x);
    __syncthreads(); // the last sum has been read
    if (threadIdx.x % WARP == 0) {
        scratch[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    T sum = 0;
    for (unsigned i = 0; i < warps; i++) {
        sum += scratch[i];
    }
    return sum;
}

/// 1 / (1 + e^-x); at the far ends 0 and 1.
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/// The derivative of x sigmoid(x).
__device__ inline float silu_slope(float x) {
    const float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

/// N numbers side by side that are loaded and stored at once; they lie at a multiple of their size.
template <class T, unsigned N>
struct alignas(N * sizeof(T)) Pack {
    T at[N];
};

/// How many numbers are 16 bytes: what a thread loads or stores at once, at most.
template <class T>
constexpr unsigned PACK = 16 / sizeof(T);

/// The numbers i, i + 1, ... of x, as floats; zeros for those from `count` on. i is a multiple of N.
template <class T, unsigned N>
__device__ inline void load(const T* x, unsigned i, unsigned count, float (&to)[N]) {
    if (i + N <= count) {
        const Pack<T, N> pack = *(const Pack<T, N>*)(x + i);
        for (unsigned k = 0; k < N; k++) {
            to[k] = wide(pack.at[k]);
        }
        return;
    }
    for (unsigned k = 0; k < N; k++) {
        to[k] = i + k < count ? wide(x[i + k]) : 0.0f;
    }
}

/// The other way: writes what lies before `count`.
template <class T, unsigned N>
__device__ inline void store(const float (&from)[N], T* y, unsigned i, unsigned count) {
    if (i + N <= count) {
        Pack<T, N> pack;
        for (unsigned k = 0; k < N; k++) {
            put(pack.at + k, from[k]);
        }
        *(Pack<T, N>*)(y + i) = pack;
        return;
    }
    for (unsigned k = 0; k < N && i + k < count; k++) {
        put(y + i + k, from[k]);
    }
}

//! What the kernels share: sums over a warp and a block in an order that never changes, division by a constant, the sigmoid.

#pragma once

#define WARP 32

/// Shared memory of a block, as much of it as the launch asks for.
extern __shared__ __align__(16) float block_memory[];

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

//! SiLU and its gradient.

/// y = x / (1 + e^-x)
template <class T>
__device__ inline void silu_of(const T* x, T* y, unsigned long long length) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < length; i += step) {
        const float value = wide(x[i]);
        put(y + i, value * sigmoid(value));
    }
}

/// dx = g silu'(x)
template <class T>
__device__ inline void silu_gradient_of(const T* x, const T* g, T* dx, unsigned long long length) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < length; i += step) {
        put(dx + i, wide(g[i]) * silu_slope(wide(x[i])));
    }
}

#define SILU(T, suffix)                                                                                                        \
    extern "C" __global__ void silu##suffix(const T* x, T* y, unsigned long long length) { silu_of(x, y, length); }            \
    extern "C" __global__ void silu_gradient##suffix(const T* x, const T* g, T* dx, unsigned long long length) {               \
        silu_gradient_of(x, g, dx, length);                                                                                    \
    }

SILU(float, )
SILU(bf16, _bf16)

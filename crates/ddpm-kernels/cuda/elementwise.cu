//! SiLU and its gradient.

/// y = x / (1 + e^-x)
extern "C" __global__ void silu(const float* x, float* y, unsigned long long length) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < length; i += step) {
        y[i] = x[i] * sigmoid(x[i]);
    }
}

/// dx = g silu'(x)
extern "C" __global__ void silu_gradient(const float* x, const float* g, float* dx, unsigned long long length) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < length; i += step) {
        dx[i] = g[i] * silu_slope(x[i]);
    }
}

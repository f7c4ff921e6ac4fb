//! Sums of planes and of columns, for gradients of biases and of what a normalisation multiplies with.

/// sums[p] = Σ of the p-th plane of `pixels`; a warp a plane.
template <class T>
__device__ inline void plane_sums_of(const T* x, float* sums, unsigned planes, unsigned pixels) {
    const unsigned plane = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (plane >= planes) {
        return; // the whole warp
    }
    const T* from = x + (size_t)plane * pixels;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x % WARP; i < pixels; i += WARP) {
        sum += wide(from[i]);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) {
        sums[plane] = sum;
    }
}

/// sums[p, c] = Σ of `share` rows of column c from row p · share on, of a matrix of rows of `columns`. A block is 32 columns
/// wide and as many rows deep as it has warps; the parts are summed by the same kernel again.
template <class T>
__device__ inline void column_sums_of(const T* x, float* sums, unsigned rows, unsigned columns, unsigned share) {
    const unsigned warps = blockDim.x / WARP;
    const unsigned warp = threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    const unsigned column = blockIdx.x * WARP + lane;
    const unsigned first = blockIdx.y * share;
    const unsigned end = min(first + share, rows);
    float sum = 0.0f;
    if (column < columns) {
        for (unsigned row = first + warp; row < end; row += warps) {
            sum += wide(x[(size_t)row * columns + column]);
        }
    }
    block_memory[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && column < columns) {
        for (unsigned other = 1; other < warps; other++) {
            sum += block_memory[other * WARP + lane];
        }
        sums[(size_t)blockIdx.y * columns + column] = sum;
    }
}

#define SUMS(T, suffix)                                                                                                        \
    extern "C" __global__ void plane_sums##suffix(const T* x, float* sums, unsigned planes, unsigned pixels) {                 \
        plane_sums_of(x, sums, planes, pixels);                                                                                \
    }                                                                                                                          \
    extern "C" __global__ void column_sums##suffix(const T* x, float* sums, unsigned rows, unsigned columns, unsigned share) { \
        column_sums_of(x, sums, rows, columns, share);                                                                         \
    }

SUMS(float, )
SUMS(bf16, _bf16)

//! Sums of gradients over pixels, and of rows of what chunks and images have left.

#include "nhwc.cuh"

/// Pixels that a thread has on their way at once.
#define SUMMED_AT_ONCE 4

/// The sum of each image, chunk and channel. Shared: N numbers a thread.
template <class T, int N>
__device__ inline void chunk_sums_of(const T* __restrict__ g, float* __restrict__ sums, TILES) {
    const ThreadTile tile = thread_tile(THE_TILES);
    const unsigned channels = packs * N;
    g += (size_t)tile.image * pixels * channels + tile.pack * N;
    float sum[N] = {};
    for (unsigned begin = tile.begin; begin < tile.end; begin += SUMMED_AT_ONCE * rows) {
        Lanes<T, N> from[SUMMED_AT_ONCE];
#pragma unroll
        for (unsigned k = 0; k < SUMMED_AT_ONCE; k++) {
            if (begin + k * rows < tile.end) {
                from[k] = fetch<N>(g + (size_t)(begin + k * rows) * channels);
            }
        }
#pragma unroll
        for (unsigned k = 0; k < SUMMED_AT_ONCE; k++) {
            if (begin + k * rows < tile.end) {
                float more[N];
                widen(from[k], more);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    sum[i] += more[i];
                }
            }
        }
    }
    sum_rows(sum, tile);
    if (tile.row == 0 && !tile.idle) {
        put_floats(sums + ((size_t)tile.image * tile.chunks + tile.chunk) * channels + tile.pack * N, sum);
    }
}

/// The sums of the columns of each matrix of `rows` rows, written or added to `first`; those of a column from `half` on to
/// `second`, which is of the first matrix. A block is `width` columns wide and sums as many rows at a time as that leaves
/// threads for. Shared: a number a thread.
__device__ inline void sum_rows_of(const float* __restrict__ x, unsigned rows, unsigned columns, unsigned width, unsigned half,
                                   float* __restrict__ first, unsigned add_first, float* __restrict__ second,
                                   unsigned add_second) {
    const unsigned lanes = blockDim.x / width;
    const unsigned lane = threadIdx.x / width;
    const unsigned column = blockIdx.x * width + threadIdx.x - lane * width;
    x += (size_t)blockIdx.y * rows * columns + column;
    float sum = 0.0f;
    if (column < columns) {
#pragma unroll 8
        for (unsigned row = lane; row < rows; row += lanes) {
            sum += x[(size_t)row * columns];
        }
    }
    block_memory[threadIdx.x] = sum;
    for (unsigned apart = lanes / 2; apart > 0; apart /= 2) {
        __syncthreads();
        if (lane < apart) {
            sum += block_memory[threadIdx.x + apart * width];
            block_memory[threadIdx.x] = sum;
        }
    }
    if (lane == 0 && column < columns) {
        const bool is_first = column < half;
        float* to = is_first ? first + (size_t)blockIdx.y * half + column : second + (column - half);
        *to = (is_first ? add_first : add_second) ? *to + sum : sum;
    }
}

extern "C" __global__ void nhwc_sum_rows(const float* x, unsigned rows, unsigned columns, unsigned width, unsigned half,
                                         float* first, unsigned add_first, float* second, unsigned add_second) {
    sum_rows_of(x, rows, columns, width, half, first, add_first, second, add_second);
}

#define NHWC_SUMS(T, N, suffix)                                                                                                \
    extern "C" __global__ void nhwc_chunk_sums##suffix(const T* g, float* sums, TILES) {                                       \
        chunk_sums_of<T, N>(g, sums, THE_TILES);                                                                               \
    }

NHWC_SUMS(float, 4, )
NHWC_SUMS(bf16, 8, _bf16)
NHWC_SUMS(float, 1, _each)
NHWC_SUMS(bf16, 1, _each_bf16)

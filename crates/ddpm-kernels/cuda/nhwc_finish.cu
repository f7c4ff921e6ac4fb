//! What is added to the result of a convolution, and the moments of its channels.

#include "nhwc.cuh"

/// Pixels that a thread has on their way at once.
#define FINISHED_AT_ONCE 2

/// y = (y + base + residual) scale, as it is stored.
template <class T, int N>
__device__ inline void finished(const Lanes<T, N>& y, const Lanes<T, N>& residual, bool with_residual, const float (&base)[N],
                                float scale, Lanes<T, N>& to, float (&stored)[N]) {
    float more[N];
    widen(y, stored);
    if (with_residual) {
        widen(residual, more);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float sum = stored[i] + base[i];
        stored[i] = (with_residual ? sum + more[i] : sum) * scale;
    }
    narrow(stored, to);
    widen(to, stored);
}

/// y = (y + bias + vector + residual) scale in place, if it `changes`: the bias of each channel, the vector of each channel of
/// each image, the residual as y; each of them only where it is. With moments: mean and sum of squared deviations of the
/// chunk's numbers as they are stored, for each image, chunk and channel; deviations are summed from a pixel of the chunk, so
/// that a mean far from zero costs no digits. Shared with moments: 2 N numbers a thread, then N numbers a column.
template <class T, int N>
__device__ inline void finish_of(T* y, const float* __restrict__ bias, const float* __restrict__ vector,
                                 const T* __restrict__ residual, float scale, unsigned changes, float* __restrict__ moments,
                                 TILES) {
    const ThreadTile tile = thread_tile(THE_TILES);
    const unsigned channels = packs * N;
    const unsigned channel = tile.pack * N;
    const size_t start = (size_t)tile.image * pixels * channels + channel;
    y += start;
    residual = residual ? residual + start : residual;
    float base[N] = {}, more[N];
    if (bias && !tile.idle) {
        floats(bias + channel, base);
    }
    if (vector && !tile.idle) {
        floats(vector + (size_t)tile.image * channels + channel, more);
#pragma unroll
        for (int i = 0; i < N; i++) {
            base[i] += more[i];
        }
    }

    // A third in, which is seldom the edge of an image.
    float* pivots = block_memory + 2 * N * blockDim.x;
    float pivot[N] = {};
    if (moments) {
        if (tile.row == 0 && !tile.idle) {
            const size_t at = (size_t)(tile.first + (tile.end - tile.first) / 3) * channels;
            Lanes<T, N> lanes = {}, other = {};
            if (residual) {
                other = fetch<N>(residual + at);
            }
            finished(fetch<N>((const T*)y + at), other, residual != nullptr, base, scale, lanes, pivot);
#pragma unroll
            for (int i = 0; i < N; i++) {
                pivots[i * columns + tile.column] = pivot[i];
            }
        }
        __syncthreads(); // also: none writes y before it has been read
        if (!tile.idle) {
#pragma unroll
            for (int i = 0; i < N; i++) {
                pivot[i] = pivots[i * columns + tile.column];
            }
        }
    }

    float sums[2 * N] = {}; // of deviations and of their squares
    for (unsigned begin = tile.begin; begin < tile.end; begin += FINISHED_AT_ONCE * rows) {
        Lanes<T, N> from[FINISHED_AT_ONCE], other[FINISHED_AT_ONCE];
#pragma unroll
        for (unsigned k = 0; k < FINISHED_AT_ONCE; k++) {
            const unsigned pixel = begin + k * rows;
            if (pixel < tile.end) {
                from[k] = fetch<N>((const T*)y + (size_t)pixel * channels);
                if (residual) {
                    other[k] = fetch<N>(residual + (size_t)pixel * channels);
                }
            }
        }
#pragma unroll
        for (unsigned k = 0; k < FINISHED_AT_ONCE; k++) {
            const unsigned pixel = begin + k * rows;
            if (pixel < tile.end) {
                Lanes<T, N> to;
                float stored[N];
                finished(from[k], other[k], residual != nullptr, base, scale, to, stored);
                if (changes) {
                    *(Lanes<T, N>*)(y + (size_t)pixel * channels) = to;
                }
#pragma unroll
                for (int i = 0; i < N; i++) {
                    const float apart = stored[i] - pivot[i];
                    sums[i] += apart;
                    sums[N + i] += apart * apart;
                }
            }
        }
    }
    if (!moments) {
        return;
    }

    sum_rows(sums, tile);
    if (tile.row == 0 && !tile.idle) {
        const float share = 1.0f / (float)(tile.end - tile.first);
        float out[2 * N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float apart = sums[i] * share;
            out[2 * i] = pivot[i] + apart;
            out[2 * i + 1] = fmaxf(sums[N + i] - apart * sums[i], 0.0f);
        }
        put_floats(moments + 2 * (((size_t)tile.image * tile.chunks + tile.chunk) * channels + channel), out);
    }
}

#define NHWC_FINISH(T, N, suffix)                                                                                              \
    extern "C" __global__ void nhwc_finish##suffix(T* y, const float* bias, const float* vector, const T* residual,            \
                                                   float scale, unsigned changes, float* moments, TILES) {                     \
        finish_of<T, N>(y, bias, vector, residual, scale, changes, moments, THE_TILES);                                        \
    }

NHWC_FINISH(float, 4, )
NHWC_FINISH(bf16, 8, _bf16)
NHWC_FINISH(float, 1, _each)
NHWC_FINISH(bf16, 1, _each_bf16)

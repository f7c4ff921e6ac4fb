//! Group normalisation from the moments of channels, and its gradient.
//!
//! With x_hat = (x - mean) / s the result is z = a' x_hat + b', a' = gamma (1 + scale) and b' = beta (1 + scale) + shift, then
//! SiLU or not. Where x is stored without a bias and a vector, the normalisation is of the sum: mean and variance are of it.

#include "nhwc.cuh"

/// Moments of up to four parts, what is to be added to each of them, and the chunks that they are of.
struct Moments {
    const float* at[4];
    const float* bias[4];
    const float* vector[4];
    unsigned channels[4];
    unsigned chunk[4];
    unsigned chunks[4];
};

/// What is added to a channel of a part.
__device__ inline float shift_of(const float* bias, const float* vector, unsigned channels, unsigned channel) {
    const float from_bias = bias ? bias[channel] : 0.0f;
    return vector ? from_bias + vector[(size_t)blockIdx.y * channels + channel] : from_bias;
}

/// Calls `use` with the number, the mean and the squared deviations of all chunks of the channels from `first` to `end` of the
/// block's image, each in one thread of the block.
template <class Use>
__device__ inline void for_moments(const Moments& moments, unsigned first, unsigned end, unsigned pixels, Use use) {
    unsigned before = 0; // channels of earlier parts
#pragma unroll
    for (unsigned part = 0; part < 4; part++) {
        const unsigned channels = moments.channels[part];
        const unsigned lower = max(first, before), upper = min(end, before + channels);
        if (lower < upper) {
            const unsigned width = upper - lower;
            const unsigned chunks = moments.chunks[part], size = moments.chunk[part];
            const float* at = moments.at[part] + (size_t)2 * blockIdx.y * chunks * channels;
            const unsigned chunk_step = blockDim.x / width, column_step = blockDim.x - chunk_step * width;
            unsigned chunk = threadIdx.x / width, column = threadIdx.x - chunk * width;
            while (chunk < chunks) {
                const unsigned channel = lower - before + column;
                const float* two = at + 2 * ((size_t)chunk * channels + channel);
                const float shift = shift_of(moments.bias[part], moments.vector[part], channels, channel);
                use((float)(min((chunk + 1) * size, pixels) - chunk * size), two[0] + shift, two[1]);
                chunk += chunk_step;
                column += column_step;
                if (column >= width) {
                    column -= width;
                    chunk++;
                }
            }
        }
        before += channels;
    }
}

/// unit: u and v with x_hat = u x + v; coefficients: a and b with z = a x + b; both of x as it is stored. A block a group of an
/// image. Shared: a number a warp.
__device__ inline void coefficients_of(const Moments& moments, const float* gamma, const float* beta, const float* scale_shift,
                                       float* unit, float* coefficients, unsigned channels, unsigned width, unsigned pixels,
                                       float eps) {
    const unsigned first = blockIdx.x * width;
    const float share = 1.0f / ((float)width * (float)pixels);
    float sum = 0.0f;
    for_moments(moments, first, first + width, pixels, [&](float count, float mean, float) { sum += count * mean; });
    float mean = block_sum(sum, block_memory) * share;
    // Chan, Golub and LeVeque: the deviations of a chunk from its own mean, and of that from the mean of all.
    float rest = 0.0f, squares = 0.0f;
    for_moments(moments, first, first + width, pixels, [&](float count, float mean_of_chunk, float squares_of_chunk) {
        const float apart = mean_of_chunk - mean;
        rest += count * apart;
        squares += squares_of_chunk + count * apart * apart;
    });
    // The mean was rounded by `rest`.
    rest = block_sum(rest, block_memory) * share;
    const float variance = fmaxf(block_sum(squares, block_memory) * share - rest * rest, 0.0f);
    mean += rest;
    const float inverse = 1.0f / sqrtf(variance + eps);

    for (unsigned column = threadIdx.x; column < width; column += blockDim.x) {
        const unsigned channel = first + column;
        float shift = 0.0f;
        unsigned before = 0;
#pragma unroll
        for (unsigned part = 0; part < 4; part++) {
            if (before <= channel && channel < before + moments.channels[part]) {
                shift = shift_of(moments.bias[part], moments.vector[part], moments.channels[part], channel - before);
            }
            before += moments.channels[part];
        }
        const size_t row = (size_t)2 * blockIdx.y * channels;
        const float of_scale = scale_shift ? 1.0f + scale_shift[row + channel] : 1.0f;
        const float of_shift = scale_shift ? scale_shift[row + channels + channel] : 0.0f;
        const float v = (shift - mean) * inverse;
        const float a = gamma[channel] * of_scale;
        unit[row + 2 * channel] = inverse;
        unit[row + 2 * channel + 1] = v;
        coefficients[row + 2 * channel] = a * inverse;
        coefficients[row + 2 * channel + 1] = a * v + (beta[channel] * of_scale + of_shift);
    }
}

extern "C" __global__ void nhwc_coefficients(
    const float* moments0, const float* moments1, const float* moments2, const float* moments3, const float* bias0,
    const float* bias1, const float* bias2, const float* bias3, const float* vector0, const float* vector1,
    const float* vector2, const float* vector3, unsigned channels0, unsigned channels1, unsigned channels2,
    unsigned channels3, unsigned chunk0, unsigned chunk1, unsigned chunk2, unsigned chunk3, unsigned chunks0,
    unsigned chunks1, unsigned chunks2, unsigned chunks3, const float* gamma, const float* beta, const float* scale_shift,
    float* unit, float* coefficients, unsigned channels, unsigned width, unsigned pixels, float eps) {
    const Moments moments = {{moments0, moments1, moments2, moments3},
                             {bias0, bias1, bias2, bias3},
                             {vector0, vector1, vector2, vector3},
                             {channels0, channels1, channels2, channels3},
                             {chunk0, chunk1, chunk2, chunk3},
                             {chunks0, chunks1, chunks2, chunks3}};
    coefficients_of(moments, gamma, beta, scale_shift, unit, coefficients, channels, width, pixels, eps);
}

/// Registers for three blocks of the largest size on a multiprocessor, which is as much as fits without spilling.
#define THREE_BLOCKS __launch_bounds__(256, 3)

/// Pixels that a thread has on their way at once.
#define NORMALISED_AT_ONCE 2

/// The pixels of x and g of a thread, `use`d in order: pixel, x, g.
template <class T, int N, class Use>
__device__ inline void for_pixels(const ThreadTile& tile, const T* x, unsigned x_channels, const T* g, unsigned channels,
                                  Use use) {
    for (unsigned begin = tile.begin; begin < tile.end; begin += NORMALISED_AT_ONCE * tile.rows) {
        Lanes<T, N> of_x[NORMALISED_AT_ONCE], of_g[NORMALISED_AT_ONCE];
#pragma unroll
        for (unsigned k = 0; k < NORMALISED_AT_ONCE; k++) {
            const unsigned pixel = begin + k * tile.rows;
            if (pixel < tile.end) {
                of_x[k] = fetch<N>(x + (size_t)pixel * x_channels);
                of_g[k] = fetch<N>(g + (size_t)pixel * channels);
            }
        }
#pragma unroll
        for (unsigned k = 0; k < NORMALISED_AT_ONCE; k++) {
            const unsigned pixel = begin + k * tile.rows;
            if (pixel < tile.end) {
                float at[N], slope[N];
                widen(of_x[k], at);
                widen(of_g[k], slope);
                use(pixel, at, slope);
            }
        }
    }
}

/// With d = dL/dz, the sums of d and of d x_hat over each chunk of pixels: two of each image, chunk and channel. Shared: 2 N
/// numbers a thread.
template <class T, int N>
__device__ inline void norm_sums_of(Parts<const T> parts, const T* __restrict__ g, const float* __restrict__ unit,
                                    const float* __restrict__ coefficients, unsigned with_silu, float* __restrict__ sums,
                                    TILES) {
    const ThreadTile tile = thread_tile(THE_TILES);
    const unsigned channels = packs * N;
    const unsigned channel = tile.pack * N;
    float both[2 * N] = {};
    const size_t row = 2 * ((size_t)tile.image * channels + channel);
    if (!tile.idle) {
        const PartPlace place = part_place(parts, channel);
        float ab[2 * N], minus_mean[N];
        floats(coefficients + row, ab);
#pragma unroll
        for (int i = 0; i < N; i++) {
            minus_mean[i] = __fdividef(unit[row + 2 * i + 1], unit[row + 2 * i]);
        }
        const T* x = start_of(parts, place, tile.image, pixels);
        const T* of_image = g + (size_t)tile.image * pixels * channels + channel;
        for_pixels<T, N>(tile, x, place.channels, of_image, channels, [&](unsigned, float(&at)[N], float(&slope)[N]) {
#pragma unroll
            for (int i = 0; i < N; i++) {
                const float d = with_silu ? slope[i] * quick_silu_slope(ab[2 * i] * at[i] + ab[2 * i + 1]) : slope[i];
                both[2 * i] += d;
                both[2 * i + 1] += d * (at[i] + minus_mean[i]);
            }
        });
    }
    sum_rows(both, tile);
    if (tile.row == 0 && !tile.idle) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            both[2 * i + 1] *= unit[row + 2 * i];
        }
        put_floats(sums + 2 * (((size_t)tile.image * tile.chunks + tile.chunk) * channels + channel), both);
    }
}

/// From the sums of `chunks` chunks: S1 = Σ d and S2 = Σ d x_hat of each channel; of each image the part in the gradients of
/// beta, (1 + scale) S1, and behind those of all channels of gamma, (1 + scale) S2; those of scale, gamma S2 + beta S1, and of
/// shift, S1; and p and q of each channel with
/// dx = (a' d - mean(a' d) - x_hat mean(a' d x_hat)) / s = a d + p x + q, means over the group.
/// A block a group of an image; its threads are `columns` channels wide. Shared: two numbers a thread.
__device__ inline void norm_means_of(const float* __restrict__ sums, unsigned chunks, const float* __restrict__ gamma,
                                     const float* __restrict__ beta, const float* __restrict__ scale_shift,
                                     const float* __restrict__ unit, float* __restrict__ of_images, float* __restrict__ pq,
                                     float* __restrict__ to_scale_shift, unsigned accumulate, unsigned channels,
                                     unsigned width, unsigned columns, unsigned pixels) {
    const unsigned lanes = blockDim.x / columns;
    const unsigned lane = threadIdx.x / columns;
    const unsigned column = threadIdx.x - lane * columns;
    const unsigned first = blockIdx.x * width;
    const size_t row = (size_t)2 * blockIdx.y * channels;
    float mean = 0.0f, mean_with_x = 0.0f;
    for (unsigned begin = 0; begin < width; begin += columns) {
        const unsigned channel = first + begin + column;
        const bool present = lane < lanes && begin + column < width;
        float s1 = 0.0f, s2 = 0.0f;
        if (present) {
            const float* from = sums + row * chunks + 2 * channel;
#pragma unroll 4
            for (unsigned chunk = lane; chunk < chunks; chunk += lanes) {
                s1 += from[(size_t)2 * chunk * channels];
                s2 += from[(size_t)2 * chunk * channels + 1];
            }
        }
        __syncthreads(); // the last channels have been read
        block_memory[2 * threadIdx.x] = s1;
        block_memory[2 * threadIdx.x + 1] = s2;
        __syncthreads();
        if (present && lane == 0) {
            for (unsigned other = 1; other < lanes; other++) {
                s1 += block_memory[2 * (other * columns + column)];
                s2 += block_memory[2 * (other * columns + column) + 1];
            }
            const float of_scale = scale_shift ? 1.0f + scale_shift[row + channel] : 1.0f;
            of_images[row + channel] = of_scale * s1;
            of_images[row + channels + channel] = of_scale * s2;
            mean += gamma[channel] * of_scale * s1;
            mean_with_x += gamma[channel] * of_scale * s2;
            if (to_scale_shift) {
                float* to = to_scale_shift + row + channel;
                const float of_gradient = gamma[channel] * s2 + beta[channel] * s1;
                to[0] = accumulate ? to[0] + of_gradient : of_gradient;
                to[channels] = accumulate ? to[channels] + s1 : s1;
            }
        }
    }
    __syncthreads(); // as above
    const float share = 1.0f / ((float)width * (float)pixels);
    mean = block_sum(mean, block_memory) * share;
    mean_with_x = block_sum(mean_with_x, block_memory) * share;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        const size_t at = row + 2 * (first + i);
        const float u = unit[at], v = unit[at + 1];
        pq[at] = -u * mean_with_x * u;
        pq[at + 1] = -u * (mean + mean_with_x * v);
    }
}

extern "C" __global__ void nhwc_norm_means(const float* sums, unsigned chunks, const float* gamma, const float* beta,
                                           const float* scale_shift, const float* unit, float* of_images, float* pq,
                                           float* to_scale_shift, unsigned accumulate, unsigned channels, unsigned width,
                                           unsigned columns, unsigned pixels) {
    norm_means_of(sums, chunks, gamma, beta, scale_shift, unit, of_images, pq, to_scale_shift, accumulate, channels, width,
                  columns, pixels);
}

/// dx = a d + p x + q of each part that has a place for it, written or, where its bit in `accumulate` is set, added.
template <class T, int N>
__device__ inline void norm_gradient_of(Parts<const T> parts, Parts<T> to, unsigned accumulate, const T* __restrict__ g,
                                        const float* __restrict__ coefficients, const float* __restrict__ pq,
                                        unsigned with_silu, TILES) {
    const ThreadTile tile = thread_tile(THE_TILES);
    if (tile.idle) {
        return;
    }
    const unsigned channels = packs * N;
    const unsigned channel = tile.pack * N;
    const PartPlace place = part_place(parts, channel);
    T* dx = start_of(to, place, tile.image, pixels);
    if (dx == nullptr) {
        return;
    }
    const bool add = accumulate >> place.part & 1u;
    const size_t row = 2 * ((size_t)tile.image * channels + channel);
    float ab[2 * N], of_x[2 * N];
    floats(coefficients + row, ab);
    floats(pq + row, of_x);
    const T* x = start_of(parts, place, tile.image, pixels);
    const T* of_image = g + (size_t)tile.image * pixels * channels + channel;
    for_pixels<T, N>(tile, x, place.channels, of_image, channels, [&](unsigned pixel, float(&at)[N], float(&slope)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float d = with_silu ? slope[i] * quick_silu_slope(ab[2 * i] * at[i] + ab[2 * i + 1]) : slope[i];
            slope[i] = ab[2 * i] * d + (of_x[2 * i] * at[i] + of_x[2 * i + 1]);
        }
        deliver(dx + (size_t)pixel * place.channels, slope, add);
    });
}

#define NHWC_NORM(T, N, suffix)                                                                                                \
    extern "C" __global__ void THREE_BLOCKS nhwc_norm_sums##suffix(PARTS(const T), const T* g, const float* unit,              \
                                                                   const float* coefficients, unsigned with_silu, float* sums, \
                                                                   TILES) {                                                    \
        norm_sums_of<T, N>(THE_PARTS, g, unit, coefficients, with_silu, sums, THE_TILES);                                      \
    }                                                                                                                          \
    extern "C" __global__ void THREE_BLOCKS nhwc_norm_gradient##suffix(                                                        \
        PARTS(const T), T* to0, T* to1, T* to2, T* to3, unsigned accumulate, const T* g, const float* coefficients,            \
        const float* pq, unsigned with_silu, TILES) {                                                                          \
        norm_gradient_of<T, N>(THE_PARTS, {{to0, to1, to2, to3}, {in0, in1, in2, in3}}, accumulate, g, coefficients, pq,       \
                               with_silu, THE_TILES);                                                                          \
    }

NHWC_NORM(float, 4, )
NHWC_NORM(bf16, 8, _bf16)
NHWC_NORM(float, 1, _each)
NHWC_NORM(bf16, 1, _each_bf16)

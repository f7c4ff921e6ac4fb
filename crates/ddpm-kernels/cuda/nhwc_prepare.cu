//! What a convolution reads: parts side by side, normalised, activated, dropped, up-sampled, with zeros around.

#include "nhwc.cuh"

/// Pixels that a thread has on their way at once.
#define PREPARED_AT_ONCE 2

/// y = dropped(silu(a x + b)) of each pixel, 2 by 2 times with `upsampled` = 1, zeros around. Coefficients (a and b of each
/// channel of each image), the mask and SiLU only where there are any. Tiles are of y, `inner` pixels of x; rows of y of
/// `y_width`, of x of `width`.
template <class T, int N>
__device__ inline void prepare_of(Parts<const T> parts, const float* __restrict__ coefficients, unsigned with_silu,
                                  const unsigned char* __restrict__ mask, float factor, T* __restrict__ y, unsigned upsampled,
                                  unsigned inner, unsigned height, unsigned width, unsigned y_width, Divisor by_y_width,
                                  unsigned top, unsigned left, TILES) {
    const ThreadTile tile = thread_tile(THE_TILES);
    if (tile.idle) {
        return;
    }
    const unsigned channels = packs * N;
    const unsigned channel = tile.pack * N;
    const PartPlace place = part_place(parts, channel);
    const T* __restrict__ x = start_of(parts, place, tile.image, inner);
    y += (size_t)tile.image * pixels * channels + channel;
    float ab[2 * N];
    if (coefficients) {
        floats(coefficients + 2 * ((size_t)tile.image * channels + channel), ab);
    }
    if (mask) {
        mask += (size_t)tile.image * inner * channels + channel;
    }
    for (unsigned start = tile.begin; start < tile.end; start += PREPARED_AT_ONCE * rows) {
        Lanes<T, N> from[PREPARED_AT_ONCE];
        Lanes<unsigned char, N> kept[PREPARED_AT_ONCE];
        bool inside[PREPARED_AT_ONCE];
#pragma unroll
        for (unsigned k = 0; k < PREPARED_AT_ONCE; k++) {
            const unsigned pixel = start + k * rows;
            const unsigned line = divide(pixel, by_y_width);
            // What lies before the first row or column is far behind the last one.
            const unsigned row = (line - top) >> upsampled;
            const unsigned column = (pixel - line * y_width - left) >> upsampled;
            inside[k] = pixel < tile.end && row < height && column < width;
            if (inside[k]) {
                from[k] = fetch<N>(x + (size_t)(row * width + column) * place.channels);
                if (mask) {
                    kept[k] = fetch<N>(mask + (size_t)(row * width + column) * channels);
                }
            }
        }
#pragma unroll
        for (unsigned k = 0; k < PREPARED_AT_ONCE; k++) {
            const unsigned pixel = start + k * rows;
            float value[N] = {};
            if (inside[k]) {
                widen(from[k], value);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    if (coefficients) {
                        value[i] = ab[2 * i] * value[i] + ab[2 * i + 1];
                    }
                    if (with_silu) {
                        value[i] *= quick_sigmoid(value[i]);
                    }
                    if (mask) {
                        value[i] = kept[k].of[i] ? factor * value[i] : 0.0f;
                    }
                }
            }
            if (pixel < tile.end) {
                deliver(y + (size_t)pixel * channels, value, false);
            }
        }
    }
}

/// The pixels of x from (top, left) on, rows of x of `x_width` and `outer` pixels an image; tiles are of y, rows of `width`.
template <class T, int N>
__device__ inline void cut_border_of(const T* __restrict__ x, T* __restrict__ y, unsigned accumulate, unsigned outer,
                                     unsigned x_width, unsigned width, Divisor by_width, unsigned top, unsigned left, TILES) {
    const ThreadTile tile = thread_tile(THE_TILES);
    const unsigned channels = packs * N;
    x += (size_t)tile.image * outer * channels + tile.pack * N;
    y += (size_t)tile.image * pixels * channels + tile.pack * N;
#pragma unroll 2
    for (unsigned pixel = tile.begin; pixel < tile.end; pixel += rows) {
        const unsigned line = divide(pixel, by_width);
        const unsigned from = (line + top) * x_width + pixel - line * width + left;
        float value[N];
        widen(fetch<N>(x + (size_t)from * channels), value);
        deliver(y + (size_t)pixel * channels, value, accumulate);
    }
}

/// g *= silu'(x), in place.
template <class T, int N>
__device__ inline void nhwc_silu_gradient_of(Parts<const T> parts, T* g, TILES) {
    const ThreadTile tile = thread_tile(THE_TILES);
    if (tile.idle) {
        return;
    }
    const unsigned channels = packs * N;
    const PartPlace place = part_place(parts, tile.pack * N);
    const T* x = start_of(parts, place, tile.image, pixels);
    g += (size_t)tile.image * pixels * channels + tile.pack * N;
    for (unsigned start = tile.begin; start < tile.end; start += PREPARED_AT_ONCE * rows) {
        Lanes<T, N> of_x[PREPARED_AT_ONCE], of_g[PREPARED_AT_ONCE];
#pragma unroll
        for (unsigned k = 0; k < PREPARED_AT_ONCE; k++) {
            const unsigned pixel = start + k * rows;
            if (pixel < tile.end) {
                of_x[k] = fetch<N>(x + (size_t)pixel * place.channels);
                of_g[k] = fetch<N>((const T*)g + (size_t)pixel * channels);
            }
        }
#pragma unroll
        for (unsigned k = 0; k < PREPARED_AT_ONCE; k++) {
            const unsigned pixel = start + k * rows;
            if (pixel < tile.end) {
                float at[N], slope[N];
                widen(of_x[k], at);
                widen(of_g[k], slope);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    slope[i] *= quick_silu_slope(at[i]);
                }
                deliver(g + (size_t)pixel * channels, slope, false);
            }
        }
    }
}

#define NHWC_PREPARE(T, N, suffix)                                                                                             \
    extern "C" __global__ void nhwc_prepare##suffix(                                                                           \
        PARTS(const T), const float* coefficients, unsigned with_silu, const unsigned char* mask, float factor, T* y,          \
        unsigned upsampled, unsigned inner, unsigned height, unsigned width, unsigned y_width, Divisor by_y_width,             \
        unsigned top, unsigned left, TILES) {                                                                                  \
        prepare_of<T, N>(THE_PARTS, coefficients, with_silu, mask, factor, y, upsampled, inner, height, width, y_width,        \
                         by_y_width, top, left, THE_TILES);                                                                    \
    }                                                                                                                          \
    extern "C" __global__ void nhwc_cut_border##suffix(const T* x, T* y, unsigned accumulate, unsigned outer,                  \
                                                       unsigned x_width, unsigned width, Divisor by_width, unsigned top,       \
                                                       unsigned left, TILES) {                                                 \
        cut_border_of<T, N>(x, y, accumulate, outer, x_width, width, by_width, top, left, THE_TILES);                          \
    }                                                                                                                          \
    extern "C" __global__ void nhwc_silu_gradient##suffix(PARTS(const T), T* g, TILES) {                                       \
        nhwc_silu_gradient_of<T, N>(THE_PARTS, g, THE_TILES);                                                                  \
    }

NHWC_PREPARE(float, 4, )
NHWC_PREPARE(bf16, 8, _bf16)
NHWC_PREPARE(float, 1, _each)
NHWC_PREPARE(bf16, 1, _each_bf16)

//! Sums, factors and parts of images whose channels lie side by side.

/// The first of the numbers that a thread works on, where each has a pack.
template <class T>
__device__ inline unsigned first_of_pack() {
    return PACK<T> * (blockIdx.x * blockDim.x + threadIdx.x);
}

/// to = (a + b) scale; `to` may be a or b.
template <class T>
__device__ inline void nhwc_sum_of(const T* a, const T* b, T* to, unsigned count, float scale) {
    constexpr unsigned N = PACK<T>;
    const unsigned i = first_of_pack<T>();
    float x[N], y[N];
    load(a, i, count, x);
    load(b, i, count, y);
    for (unsigned k = 0; k < N; k++) {
        x[k] = (x[k] + y[k]) * scale;
    }
    store(x, to, i, count);
}

/// g = g scale, in place
template <class T>
__device__ inline void nhwc_scale_of(T* g, unsigned count, float scale) {
    constexpr unsigned N = PACK<T>;
    const unsigned i = first_of_pack<T>();
    float x[N];
    load(g, i, count, x);
    for (unsigned k = 0; k < N; k++) {
        x[k] *= scale;
    }
    store(x, g, i, count);
}

/// g = factor g where the mask is not 0, else 0 (even for a g that is not finite); in place
template <class T>
__device__ inline void nhwc_mask_gradient_of(T* g, const unsigned char* mask, unsigned count, float factor) {
    constexpr unsigned N = PACK<T>;
    const unsigned i = first_of_pack<T>();
    float x[N];
    Pack<unsigned char, N> kept;
    if (i + N <= count) {
        kept = *(const Pack<unsigned char, N>*)(mask + i);
    } else {
        for (unsigned k = 0; k < N; k++) {
            kept.at[k] = i + k < count ? mask[i + k] : 0;
        }
    }
    load(g, i, count, x);
    for (unsigned k = 0; k < N; k++) {
        x[k] = kept.at[k] ? factor * x[k] : 0.0f;
    }
    store(x, g, i, count);
}

/// to = the sums of 2 by 2 pixels of `from`. A thread makes N channels of a pixel: `packs` are those of a pixel, `total` all of
/// the result, whose rows are `width` long.
template <class T, unsigned N>
__device__ inline void nhwc_downsample_of(const T* from, T* to, unsigned total, unsigned packs, Divisor by_packs, unsigned width,
                                          Divisor by_width) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) {
        return;
    }
    const unsigned pixel = divide(i, by_packs);
    const unsigned row = divide(pixel, by_width); // counted through all images, as their twice as many rows are
    const unsigned column = pixel - row * width;
    const unsigned channels = N * packs;
    const T* upper = from + ((size_t)4 * width * row + 2 * column) * channels + N * (i - pixel * packs);
    const T* lower = upper + (size_t)2 * width * channels;
    float a[N], b[N], c[N], d[N];
    load(upper, 0, N, a);
    load(upper + channels, 0, N, b);
    load(lower, 0, N, c);
    load(lower + channels, 0, N, d);
    for (unsigned k = 0; k < N; k++) {
        a[k] = (a[k] + b[k]) + (c[k] + d[k]);
    }
    store(a, to + (size_t)N * i, 0, N);
}

/// to = some of the channels of g, or is added to. A thread makes N of them: `packs` are those of a pixel of the result, `total`
/// all of it; g has `channels`, and `first` is the first that is taken.
template <class T, unsigned N>
__device__ inline void nhwc_part_of(const T* g, T* to, unsigned total, unsigned packs, Divisor by_packs, unsigned channels,
                                    unsigned first, bool accumulate) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) {
        return;
    }
    const unsigned pixel = divide(i, by_packs);
    float x[N];
    load(g + (size_t)pixel * channels + first + N * (i - pixel * packs), 0, N, x);
    T* place = to + (size_t)N * i;
    if (accumulate) {
        float before[N];
        load(place, 0, N, before);
        for (unsigned k = 0; k < N; k++) {
            x[k] += before[k];
        }
    }
    store(x, place, 0, N);
}

#define NHWC_ELEMENTWISE(T, suffix)                                                                                            \
    extern "C" __global__ void nhwc_sum##suffix(const T* a, const T* b, T* to, unsigned count, float scale) {                  \
        nhwc_sum_of(a, b, to, count, scale);                                                                                   \
    }                                                                                                                          \
    extern "C" __global__ void nhwc_scale##suffix(T* g, unsigned count, float scale) { nhwc_scale_of(g, count, scale); }       \
    extern "C" __global__ void nhwc_mask_gradient##suffix(T* g, const unsigned char* mask, unsigned count, float factor) {     \
        nhwc_mask_gradient_of(g, mask, count, factor);                                                                         \
    }                                                                                                                          \
    extern "C" __global__ void nhwc_downsample##suffix(const T* from, T* to, unsigned total, unsigned packs, Divisor by_packs, \
                                                       unsigned width, Divisor by_width, bool packed) {                        \
        if (packed) {                                                                                                          \
            nhwc_downsample_of<T, PACK<T>>(from, to, total, packs, by_packs, width, by_width);                                 \
        } else {                                                                                                               \
            nhwc_downsample_of<T, 1>(from, to, total, packs, by_packs, width, by_width);                                       \
        }                                                                                                                      \
    }                                                                                                                          \
    extern "C" __global__ void nhwc_part##suffix(const T* g, T* to, unsigned total, unsigned packs, Divisor by_packs,          \
                                                 unsigned channels, unsigned first, bool accumulate, bool packed) {            \
        if (packed) {                                                                                                          \
            nhwc_part_of<T, PACK<T>>(g, to, total, packs, by_packs, channels, first, accumulate);                              \
        } else {                                                                                                               \
            nhwc_part_of<T, 1>(g, to, total, packs, by_packs, channels, first, accumulate);                                    \
        }                                                                                                                      \
    }

NHWC_ELEMENTWISE(float, )
NHWC_ELEMENTWISE(bf16, _bf16)

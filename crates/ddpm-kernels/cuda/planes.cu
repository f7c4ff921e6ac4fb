//! Planes of pixels: twice and half the size, a window of zeros around or cut off, and a bias added to each.

/// Each pixel times `factor` becomes 2 by 2: x of `pixels` in all, rows of `width`. Nearest up-sampling, and the gradient of the mean.
template <class T>
__device__ inline void spread_2x_of(const T* x, T* y, unsigned pixels, unsigned width, Divisor by_width, float factor) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pixels) {
        return;
    }
    const unsigned row = divide(i, by_width);
    const unsigned column = i - row * width;
    // Planes lie one behind the other, so input row r is output rows 2 r and 2 r + 1 through all of them.
    T* upper = y + (size_t)4 * width * row + 2 * column;
    T* lower = upper + 2 * width;
    const float value = factor * wide(x[i]);
    put(upper, value);
    put(upper + 1, value);
    put(lower, value);
    put(lower + 1, value);
}

/// The other way: `factor` times the sum of 2 by 2. `pixels` and `width` are those of the smaller planes.
template <class T>
__device__ inline void gather_2x_of(const T* x, T* y, unsigned pixels, unsigned width, Divisor by_width, float factor) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pixels) {
        return;
    }
    const unsigned row = divide(i, by_width);
    const unsigned column = i - row * width;
    const T* upper = x + (size_t)4 * width * row + 2 * column;
    const T* lower = upper + 2 * width;
    put(y + i, factor * ((wide(upper[0]) + wide(upper[1])) + (wide(lower[0]) + wide(lower[1]))));
}

/// y(row, column) = x(row - top, column - left), 0 outside of x: adds zeros around planes, or with negative offsets cuts off.
/// x has planes of `height` by `width`, y has `pixels` in all, in planes of rows as the divisors say.
template <class T>
__device__ inline void window_of(const T* x, T* y, unsigned pixels, unsigned y_height, unsigned y_width, Divisor by_height,
                                 Divisor by_width, int height, int width, int top, int left) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= pixels) {
        return;
    }
    const unsigned rows = divide(i, by_width);
    const unsigned plane = divide(rows, by_height);
    const int row = (int)(rows - plane * y_height) - top;
    const int column = (int)(i - rows * y_width) - left;
    const bool inside = 0 <= row && row < height && 0 <= column && column < width;
    put(y + i, inside ? wide(x[((size_t)plane * height + row) * width + column]) : 0.0f);
}

/// y += bias of its plane, in place: element i is in plane i / pixels, whose bias is that number modulo `biases`. A number of
/// each channel (biases = channels) or of each image's own (biases = images times channels); pixels is 1 for rows of features.
template <class T>
__device__ inline void add_bias_to(T* y, const float* bias, unsigned length, unsigned biases, Divisor by_pixels,
                                   Divisor by_biases) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= length) {
        return;
    }
    const unsigned plane = divide(i, by_pixels);
    put(y + i, wide(y[i]) + bias[plane - divide(plane, by_biases) * biases]);
}

#define PLANES(T, suffix)                                                                                                      \
    extern "C" __global__ void spread_2x##suffix(const T* x, T* y, unsigned pixels, unsigned width, Divisor by_width,          \
                                                 float factor) {                                                               \
        spread_2x_of(x, y, pixels, width, by_width, factor);                                                                   \
    }                                                                                                                          \
    extern "C" __global__ void gather_2x##suffix(const T* x, T* y, unsigned pixels, unsigned width, Divisor by_width,          \
                                                 float factor) {                                                               \
        gather_2x_of(x, y, pixels, width, by_width, factor);                                                                   \
    }                                                                                                                          \
    extern "C" __global__ void window##suffix(const T* x, T* y, unsigned pixels, unsigned y_height, unsigned y_width,          \
                                              Divisor by_height, Divisor by_width, int height, int width, int top, int left) { \
        window_of(x, y, pixels, y_height, y_width, by_height, by_width, height, width, top, left);                             \
    }                                                                                                                          \
    extern "C" __global__ void add_bias##suffix(T* y, const float* bias, unsigned length, unsigned biases, Divisor by_pixels,  \
                                                Divisor by_biases) {                                                           \
        add_bias_to(y, bias, length, biases, by_pixels, by_biases);                                                            \
    }

PLANES(float, )
PLANES(bf16, _bf16)

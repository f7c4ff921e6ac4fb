//! Group normalisation with SiLU, forward and backward: a block is one group of one image.
//!
//! The group's channels are cut into `pieces` each, so that every warp has work; a piece is a warp's, and its sums are added up
//! in order. Where the group fits into shared memory (`staged`), x comes from the card's memory once.

/// One group as a kernel sees it.
struct Group {
    size_t start;          // of its elements in x, y and gradients
    unsigned affine;       // of its channels in gamma and beta
    unsigned length;       // elements
};

__device__ inline Group group_of_block(unsigned channels, unsigned groups, unsigned pixels, unsigned own) {
    const unsigned group = blockIdx.x; // counted through the batch
    const unsigned first = group * channels;
    const unsigned length = channels * pixels;
    return {(size_t)group * length, own ? first : first % (channels * groups), length};
}

/// y = silu(gamma (x - mean) / s + beta), or without silu; statistics: mean and 1 / s of each group, s = sqrt(variance + eps).
/// `channels` are those of a group. gamma and beta are of each channel, or with `own` of each channel of each image.
/// Shared: a number a warp, then with `staged` the group.
template <class T>
__device__ inline void group_norm_of(const T* x, const float* gamma, const float* beta, T* y, float* statistics,
                                     unsigned channels, unsigned groups, unsigned pixels, unsigned pieces, unsigned own,
                                     unsigned with_silu, unsigned staged, float eps) {
    const Group group = group_of_block(channels, groups, pixels, own);
    const unsigned warps = blockDim.x / WARP;
    const unsigned warp = threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    const T* from = x + group.start;
    float* stage = block_memory + warps;

    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < group.length; i += blockDim.x) {
        const float value = wide(from[i]);
        if (staged) {
            stage[i] = value;
        }
        sum += value;
    }
    const float mean = block_sum(sum, block_memory) / (float)group.length; // after it the stage is filled
    float rest = 0.0f, squares = 0.0f;
    for (unsigned i = threadIdx.x; i < group.length; i += blockDim.x) {
        const float apart = (staged ? stage[i] : wide(from[i])) - mean;
        rest += apart;
        squares += apart * apart;
    }
    // The mean was rounded by `rest`: the sum of (x - mean)^2 has n rest^2 too many.
    rest = block_sum(rest, block_memory) / (float)group.length;
    const float variance = fmaxf(block_sum(squares, block_memory) / (float)group.length - rest * rest, 0.0f);
    const float inverse = 1.0f / sqrtf(variance + eps);
    if (threadIdx.x == 0) {
        statistics[2 * blockIdx.x] = mean;
        statistics[2 * blockIdx.x + 1] = inverse;
    }

    const unsigned share = (pixels + pieces - 1) / pieces;
    for (unsigned piece = warp; piece < channels * pieces; piece += warps) {
        const unsigned channel = piece / pieces;
        const unsigned begin = (piece - channel * pieces) * share;
        const unsigned end = min(begin + share, pixels);
        const float scale = inverse * gamma[group.affine + channel];
        const float shift = beta[group.affine + channel];
        for (unsigned i = begin + lane; i < end; i += WARP) {
            const unsigned at = channel * pixels + i;
            const float z = ((staged ? stage[at] : wide(from[at])) - mean) * scale + shift;
            put(y + group.start + at, with_silu ? z * sigmoid(z) : z);
        }
    }
}

/// With z = gamma x_hat + beta, x_hat = (x - mean) / s and h = dL/dz: the gradients
/// dx = (gamma h - mean(gamma h) - x_hat mean(gamma h x_hat)) / s, and of each channel of each image dgamma = sum of h x_hat,
/// dbeta = sum of h. Arguments as above. Shared: two numbers a piece, two numbers for the group.
template <class T>
__device__ inline void group_norm_gradient_of(const T* x, const float* gamma, const float* beta, const float* statistics,
                                              const T* g, T* dx, float* dgamma, float* dbeta, unsigned channels,
                                              unsigned groups, unsigned pixels, unsigned pieces, unsigned own,
                                              unsigned with_silu) {
    const Group group = group_of_block(channels, groups, pixels, own);
    const unsigned warps = blockDim.x / WARP;
    const unsigned warp = threadIdx.x / WARP;
    const unsigned lane = threadIdx.x % WARP;
    const float mean = statistics[2 * blockIdx.x];
    const float inverse = statistics[2 * blockIdx.x + 1];
    const unsigned share = (pixels + pieces - 1) / pieces;
    float* sums = block_memory;                          // of h and h x_hat, for each piece
    float* means = block_memory + 2 * channels * pieces; // of gamma h and gamma h x_hat

    for (unsigned piece = warp; piece < channels * pieces; piece += warps) {
        const unsigned channel = piece / pieces;
        const unsigned begin = (piece - channel * pieces) * share;
        const unsigned end = min(begin + share, pixels);
        const float scale = inverse * gamma[group.affine + channel];
        const float shift = beta[group.affine + channel];
        float sum = 0.0f, sum_with_x = 0.0f;
        for (unsigned i = begin + lane; i < end; i += WARP) {
            const size_t at = group.start + channel * pixels + i;
            const float apart = wide(x[at]) - mean;
            const float h = wide(g[at]) * (with_silu ? silu_slope(apart * scale + shift) : 1.0f);
            sum += h;
            sum_with_x += h * apart;
        }
        sum = warp_sum(sum);
        sum_with_x = warp_sum(sum_with_x);
        if (lane == 0) {
            sums[2 * piece] = sum;
            sums[2 * piece + 1] = sum_with_x * inverse;
        }
    }
    __syncthreads();
    // A channel's pieces in order, by the channel's thread; then the channels in order.
    for (unsigned channel = threadIdx.x; channel < channels; channel += blockDim.x) {
        float* of_channel = sums + 2 * channel * pieces;
        float sum = of_channel[0], sum_with_x = of_channel[1];
        for (unsigned piece = 1; piece < pieces; piece++) {
            sum += of_channel[2 * piece];
            sum_with_x += of_channel[2 * piece + 1];
        }
        dbeta[(size_t)blockIdx.x * channels + channel] = sum;
        dgamma[(size_t)blockIdx.x * channels + channel] = sum_with_x;
        of_channel[0] = gamma[group.affine + channel] * sum;
        of_channel[1] = gamma[group.affine + channel] * sum_with_x;
    }
    __syncthreads();
    if (warp == 0) {
        float sum = 0.0f, sum_with_x = 0.0f;
        for (unsigned channel = lane; channel < channels; channel += WARP) {
            sum += sums[2 * channel * pieces];
            sum_with_x += sums[2 * channel * pieces + 1];
        }
        sum = warp_sum(sum);
        sum_with_x = warp_sum(sum_with_x);
        if (lane == 0) {
            means[0] = sum / (float)group.length;
            means[1] = sum_with_x / (float)group.length;
        }
    }
    __syncthreads();
    const float shift_of_dx = means[0] * inverse;
    const float slope_of_dx = means[1] * inverse * inverse;
    for (unsigned piece = warp; piece < channels * pieces; piece += warps) {
        const unsigned channel = piece / pieces;
        const unsigned begin = (piece - channel * pieces) * share;
        const unsigned end = min(begin + share, pixels);
        const float scale = inverse * gamma[group.affine + channel];
        const float shift = beta[group.affine + channel];
        for (unsigned i = begin + lane; i < end; i += WARP) {
            const size_t at = group.start + channel * pixels + i;
            const float apart = wide(x[at]) - mean;
            const float h = wide(g[at]) * (with_silu ? silu_slope(apart * scale + shift) : 1.0f);
            put(dx + at, scale * h - slope_of_dx * apart - shift_of_dx);
        }
    }
}

#define GROUP_NORM(T, suffix)                                                                                                  \
    extern "C" __global__ void group_norm##suffix(const T* x, const float* gamma, const float* beta, T* y, float* statistics,  \
                                                  unsigned channels, unsigned groups, unsigned pixels, unsigned pieces,        \
                                                  unsigned own, unsigned with_silu, unsigned staged, float eps) {              \
        group_norm_of(x, gamma, beta, y, statistics, channels, groups, pixels, pieces, own, with_silu, staged, eps);           \
    }                                                                                                                          \
    extern "C" __global__ void group_norm_gradient##suffix(                                                                    \
        const T* x, const float* gamma, const float* beta, const float* statistics, const T* g, T* dx, float* dgamma,          \
        float* dbeta, unsigned channels, unsigned groups, unsigned pixels, unsigned pieces, unsigned own, unsigned with_silu) { \
        group_norm_gradient_of(x, gamma, beta, statistics, g, dx, dgamma, dbeta, channels, groups, pixels, pieces, own,        \
                               with_silu);                                                                                     \
    }

GROUP_NORM(float, )
GROUP_NORM(bf16, _bf16)

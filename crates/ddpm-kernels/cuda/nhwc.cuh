//! What kernels on images whose channels lie side by side share: 16 bytes of channels at a time, and which a thread has.

#pragma once

#include "block.cuh"

/// N channels of a pixel as they lie in memory, read and written at once.
template <class T, int N>
struct alignas(sizeof(T) * N) Lanes {
    T of[N];
};

/// Pairs, the first of each in the lower half of a word.
template <>
struct alignas(16) Lanes<bf16, 8> {
    unsigned of[4];
};

template <int N, class T>
__device__ inline Lanes<T, N> fetch(const T* from) {
    return *(const Lanes<T, N>*)from;
}

template <class T, int N>
__device__ inline void widen(const Lanes<T, N>& lanes, float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = wide(lanes.of[i]);
    }
}

__device__ inline void widen(const Lanes<bf16, 8>& lanes, float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(lanes.of[i] << 16);
        x[2 * i + 1] = __uint_as_float(lanes.of[i] & 0xffff0000u);
    }
}

template <class T, int N>
__device__ inline void narrow(const float (&x)[N], Lanes<T, N>& lanes) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        put(&lanes.of[i], x[i]);
    }
}

__device__ inline void narrow(const float (&x)[8], Lanes<bf16, 8>& lanes) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        // Rounds as `put` does, both in one instruction.
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(lanes.of[i]) : "f"(x[2 * i + 1]), "f"(x[2 * i]));
#else
        bf16 lower, upper;
        put(&lower, x[2 * i]);
        put(&upper, x[2 * i + 1]);
        lanes.of[i] = (unsigned)lower.bits | (unsigned)upper.bits << 16;
#endif
    }
}

/// Writes N channels, or adds them to what is there.
template <class T, int N>
__device__ inline void deliver(T* to, float (&x)[N], bool accumulate) {
    Lanes<T, N> lanes;
    if (accumulate) {
        float before[N];
        widen(fetch<N>((const T*)to), before);
#pragma unroll
        for (int i = 0; i < N; i++) {
            x[i] += before[i];
        }
    }
    narrow(x, lanes);
    *(Lanes<T, N>*)to = lanes;
}

/// COUNT floats that begin at a multiple of 16 bytes, if they are a multiple of four.
template <int COUNT>
__device__ inline void floats(const float* from, float (&x)[COUNT]) {
    constexpr int AT_ONCE = COUNT % 4 == 0 ? 4 : 1;
#pragma unroll
    for (int i = 0; i < COUNT; i += AT_ONCE) {
        const Lanes<float, AT_ONCE> lanes = fetch<AT_ONCE>(from + i);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            x[i + k] = lanes.of[k];
        }
    }
}

/// The other way.
template <int COUNT>
__device__ inline void put_floats(float* to, const float (&x)[COUNT]) {
    constexpr int AT_ONCE = COUNT % 4 == 0 ? 4 : 1;
#pragma unroll
    for (int i = 0; i < COUNT; i += AT_ONCE) {
        Lanes<float, AT_ONCE> lanes;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            lanes.of[k] = x[i + k];
        }
        *(Lanes<float, AT_ONCE>*)(to + i) = lanes;
    }
}

/// 1 / (1 + e^-x) to a few units in the last place of 1, by the card's own exponential and reciprocal.
__device__ inline float quick_sigmoid(float x) { return __fdividef(1.0f, 1.0f + exp2f(-1.44269504f * x)); }

/// The derivative of x sigmoid(x).
__device__ inline float quick_silu_slope(float x) {
    const float s = quick_sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

/// How images are divided, as `tiles::Tiles` has it: the last arguments of a kernel.
#define TILES                                                                                                                  \
    unsigned pixels, unsigned packs, unsigned columns, unsigned rows, unsigned chunk, unsigned blocks, Divisor by_columns,     \
        Divisor by_blocks
#define THE_TILES pixels, packs, columns, rows, chunk, blocks, by_columns, by_blocks

/// What a thread has: a pack of N channels of every `rows`-th pixel, from `begin` on, of a chunk of an image.
struct ThreadTile {
    unsigned image;
    unsigned images;
    unsigned chunk;   // its number in the image
    unsigned chunks;  // of an image
    unsigned first;   // pixel of the chunk
    unsigned end;     // behind the last pixel of the chunk
    unsigned begin;   // pixel of the thread; `end` for a thread that has nothing
    unsigned rows;
    unsigned row;
    unsigned columns; // packs of a block
    unsigned column;
    unsigned pack;
    bool idle;        // has nothing: it only meets the others at barriers
};

__device__ inline ThreadTile thread_tile(TILES) {
    ThreadTile tile;
    tile.image = blockIdx.y;
    tile.images = gridDim.y;
    tile.chunk = divide(blockIdx.x, by_blocks);
    tile.chunks = divide(gridDim.x, by_blocks);
    tile.first = tile.chunk * chunk;
    tile.end = min(tile.first + chunk, pixels);
    tile.rows = rows;
    tile.row = divide(threadIdx.x, by_columns);
    tile.columns = columns;
    tile.column = threadIdx.x - tile.row * columns;
    tile.pack = (blockIdx.x - tile.chunk * blocks) * columns + tile.column;
    tile.idle = tile.row >= rows || tile.pack >= packs;
    tile.begin = tile.idle ? tile.end : tile.first + tile.row;
    return tile;
}

/// The sums over the rows of a block, in row 0. All threads call it, those that are idle with zeros; shared: COUNT numbers a
/// thread.
template <int COUNT>
__device__ inline void sum_rows(float (&x)[COUNT], const ThreadTile& tile) {
    float* mine = block_memory + threadIdx.x;
    __syncthreads(); // what was there has been read
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        mine[i * blockDim.x] = x[i];
    }
    unsigned apart = 1;
    while (apart < tile.rows) {
        apart *= 2;
    }
    for (apart /= 2; apart > 0; apart /= 2) {
        __syncthreads();
        if (tile.row < apart && tile.row + apart < tile.rows) {
            const float* theirs = mine + apart * tile.columns;
#pragma unroll
            for (int i = 0; i < COUNT; i++) {
                x[i] += theirs[i * blockDim.x];
                mine[i * blockDim.x] = x[i];
            }
        }
    }
}

/// A value that lies in up to four parts, one after the other along channels: the last two have no numbers if there are two.
template <class T>
struct Parts {
    T* at[4];
    unsigned channels[4];
};

#define PARTS(T) T *part0, T *part1, T *part2, T *part3, unsigned in0, unsigned in1, unsigned in2, unsigned in3
#define THE_PARTS {{part0, part1, part2, part3}, {in0, in1, in2, in3}}

/// Where a channel lies: in which part, of how many channels, at which of them.
struct PartPlace {
    unsigned part;
    unsigned channels;
    unsigned channel;
};

template <class T>
__device__ inline PartPlace part_place(const Parts<T>& parts, unsigned channel) {
    PartPlace place = {0, parts.channels[0], channel};
#pragma unroll
    for (unsigned i = 1; i < 4; i++) {
        if (place.part == i - 1 && place.channel >= place.channels) {
            place = {i, parts.channels[i], place.channel - place.channels};
        }
    }
    return place;
}

/// The number at a place of the first pixel of an image of `pixels`.
template <class T>
__device__ inline T* start_of(const Parts<T>& parts, PartPlace place, size_t image, unsigned pixels) {
    T* at = parts.at[0];
#pragma unroll
    for (unsigned i = 1; i < 4; i++) {
        at = place.part == i ? parts.at[i] : at;
    }
    return at == nullptr ? nullptr : at + image * pixels * place.channels + place.channel;
}

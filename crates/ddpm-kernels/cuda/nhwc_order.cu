//! From channel after channel to pixel after pixel and back: images, weights, masks of dropout.

/// A tile of images, for which a block has room: `channels` by `pixels`, a power of two, fewer at the far ends of an image.
struct Tile {
    unsigned channels;
    unsigned shift; // pixels = 2^shift
    Divisor by_channels;
};

/// Where a block's tile lies.
struct Place {
    unsigned channel;
    unsigned pixel;
    unsigned channels; // that there are
    unsigned pixels;
    size_t image; // its first number
};

/// Blocks go through the tiles of an image's pixels, then of its channels, then through the images.
__device__ inline Place place_of_block(const Tile& tile, unsigned channels, unsigned pixels, Divisor by_across, Divisor by_down) {
    const unsigned across = ((pixels - 1) >> tile.shift) + 1, down = divide(channels + tile.channels - 1, tile.by_channels);
    const unsigned row = divide(blockIdx.x, by_across);
    const unsigned image = divide(row, by_down);
    const unsigned pixel = (blockIdx.x - row * across) << tile.shift;
    const unsigned channel = (row - image * down) * tile.channels;
    return {channel, pixel, min(tile.channels, channels - channel), min(1u << tile.shift, pixels - pixel),
            (size_t)image * channels * pixels};
}

/// [B, C, H, W] -> [B, H, W, C]: reads along pixels, writes along channels. Shared: a tile of floats, a column more.
template <class T>
__device__ inline void nhwc_take_in_of(const float* from, T* to, unsigned channels, unsigned pixels, unsigned of_tile,
                                       unsigned shift, Divisor by_of_tile, Divisor by_across, Divisor by_down) {
    const Tile tile = {of_tile, shift, by_of_tile};
    const Place place = place_of_block(tile, channels, pixels, by_across, by_down);
    const unsigned pitch = (1u << shift) + 1, numbers = tile.channels << shift;
    for (unsigned i = threadIdx.x; i < numbers; i += blockDim.x) {
        const unsigned channel = i >> shift, pixel = i & ((1u << shift) - 1);
        if (channel < place.channels && pixel < place.pixels) {
            block_memory[channel * pitch + pixel] =
                from[place.image + (size_t)(place.channel + channel) * pixels + place.pixel + pixel];
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < numbers; i += blockDim.x) {
        const unsigned pixel = divide(i, tile.by_channels), channel = i - pixel * tile.channels;
        if (channel < place.channels && pixel < place.pixels) {
            put(to + place.image + (size_t)(place.pixel + pixel) * channels + place.channel + channel,
                block_memory[channel * pitch + pixel]);
        }
    }
}

/// The other way.
template <class T>
__device__ inline void nhwc_give_out_of(const T* from, float* to, unsigned channels, unsigned pixels, unsigned of_tile,
                                        unsigned shift, Divisor by_of_tile, Divisor by_across, Divisor by_down) {
    const Tile tile = {of_tile, shift, by_of_tile};
    const Place place = place_of_block(tile, channels, pixels, by_across, by_down);
    const unsigned pitch = (1u << shift) + 1, numbers = tile.channels << shift;
    for (unsigned i = threadIdx.x; i < numbers; i += blockDim.x) {
        const unsigned pixel = divide(i, tile.by_channels), channel = i - pixel * tile.channels;
        if (channel < place.channels && pixel < place.pixels) {
            block_memory[channel * pitch + pixel] =
                wide(from[place.image + (size_t)(place.pixel + pixel) * channels + place.channel + channel]);
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < numbers; i += blockDim.x) {
        const unsigned channel = i >> shift, pixel = i & ((1u << shift) - 1);
        if (channel < place.channels && pixel < place.pixels) {
            to[place.image + (size_t)(place.channel + channel) * pixels + place.pixel + pixel] =
                block_memory[channel * pitch + pixel];
        }
    }
}

/// A weight, and what of it a block works on: some outputs with all inputs, or some inputs of one output. All taps, always, so
/// that it is one piece of [outputs, inputs, taps].
struct Piece {
    unsigned inputs; // of the weight
    unsigned taps;
    Divisor by_taps;
    unsigned output; // the first
    unsigned outputs;
    unsigned input; // the first
    unsigned some;  // inputs of the piece

    __device__ size_t start() const { return ((size_t)output * inputs + input) * taps; }
    __device__ unsigned numbers() const { return outputs * some * taps; }
    __device__ size_t line(unsigned row, unsigned tap) const { return ((size_t)(output + row) * taps + tap) * inputs + input; }
};

/// [outputs, inputs, taps] -> [outputs, taps, inputs]; a warp writes the inputs of a tap. Shared: a piece of floats.
template <class T>
__device__ inline void lay_out_piece(const Piece& piece, const float* from, T* to) {
    const float* start = from + piece.start();
    const unsigned numbers = piece.numbers();
    const unsigned packed = (size_t)start % 16 == 0 ? numbers / 4 : 0;
    for (unsigned i = threadIdx.x; i < packed; i += blockDim.x) {
        ((Pack<float, 4>*)block_memory)[i] = ((const Pack<float, 4>*)start)[i];
    }
    for (unsigned i = 4 * packed + threadIdx.x; i < numbers; i += blockDim.x) {
        block_memory[i] = start[i];
    }
    __syncthreads();
    const unsigned lane = threadIdx.x % WARP;
    const bool pairs = piece.inputs % 2 == 0 && piece.some % 2 == 0; // then the piece's first input is even, too
    for (unsigned line = threadIdx.x / WARP; line < piece.outputs * piece.taps; line += blockDim.x / WARP) {
        const unsigned row = divide(line, piece.by_taps), tap = line - row * piece.taps;
        const float* stage = block_memory + row * piece.some * piece.taps + tap;
        T* place = to + piece.line(row, tap);
        if (pairs) {
            for (unsigned i = 2 * lane; i < piece.some; i += 2 * WARP) {
                const float pair[2] = {stage[i * piece.taps], stage[(i + 1) * piece.taps]};
                store(pair, place + i, 0, 2);
            }
        } else {
            for (unsigned i = lane; i < piece.some; i += WARP) {
                put(place + i, stage[i * piece.taps]);
            }
        }
    }
}

/// The other way, written or added; a warp reads the inputs of a tap.
template <class T>
__device__ inline void turn_back_piece(const Piece& piece, const T* from, float* to, bool accumulate) {
    const unsigned lane = threadIdx.x % WARP;
    for (unsigned line = threadIdx.x / WARP; line < piece.outputs * piece.taps; line += blockDim.x / WARP) {
        const unsigned row = divide(line, piece.by_taps), tap = line - row * piece.taps;
        float* stage = block_memory + row * piece.some * piece.taps + tap;
        const T* place = from + piece.line(row, tap);
        for (unsigned i = lane; i < piece.some; i += WARP) {
            stage[i * piece.taps] = wide(place[i]);
        }
    }
    __syncthreads();
    float* start = to + piece.start();
    for (unsigned i = threadIdx.x; i < piece.numbers(); i += blockDim.x) {
        start[i] = accumulate ? start[i] + block_memory[i] : block_memory[i];
    }
}

/// All weights of a table. First come four words a weight: where it is, where it goes, inputs (upper half) and taps, the divisor
/// of the taps. Then two words a block: first output and the weight's number; first input, and below outputs and inputs of the
/// piece, 16 bits each.
template <class T>
__device__ inline void nhwc_lay_out_of(const word* table, unsigned weights) {
    const word* task = table + (size_t)4 * weights + 2 * blockIdx.x;
    const word* row = table + (size_t)4 * (unsigned)task[0];
    const Piece piece = {(unsigned)(row[2] >> 32), (unsigned)row[2],
                         {(unsigned)row[3], (unsigned)(row[3] >> 32)},
                         (unsigned)(task[0] >> 32), (unsigned)task[1] >> 16,
                         (unsigned)(task[1] >> 32), (unsigned)task[1] & 0xffffu};
    lay_out_piece(piece, (const float*)row[0], (T*)row[1]);
}

/// One gradient: blocks go through the pieces of an output's inputs (`across` of them, `some` inputs each), then through the
/// outputs, `rows` at a time.
template <class T>
__device__ inline void nhwc_turn_back_of(const T* from, float* to, unsigned outputs, unsigned inputs, unsigned taps,
                                         Divisor by_taps, unsigned rows, unsigned some, unsigned across, Divisor by_across,
                                         bool accumulate) {
    const unsigned down = divide(blockIdx.x, by_across);
    const unsigned output = down * rows, input = (blockIdx.x - down * across) * some;
    const Piece piece = {inputs, taps, by_taps, output, min(rows, outputs - output), input, min(some, inputs - input)};
    turn_back_piece(piece, from, to, accumulate);
}

/// mask [B, H, W, C] = 1 where the upper 24 bits of an element's word are at least `threshold`, else 0. The words are those of
/// the elements in the order of [C, H, W], four to a draw: `draws` are those that reach into one channel, and a thread makes
/// one of them, of which it writes what is the channel's. blockIdx.y is the image, `counters` its three words.
extern "C" __global__ void nhwc_draw(unsigned char* mask, const unsigned* counters, unsigned channels, Divisor by_channels,
                                     unsigned pixels, unsigned draws, unsigned key_0, unsigned key_1, unsigned threshold) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= draws * channels) {
        return;
    }
    const unsigned draw = divide(i, by_channels);
    const unsigned channel = i - draw * channels;
    const unsigned begin = channel * pixels;
    const unsigned block = begin / 4 + draw;
    const unsigned* counter = counters + 3 * blockIdx.y;
    unsigned words[4] = {block, counter[0], counter[1], counter[2]};
    philox(key_0, key_1, words);
    unsigned char* image = mask + (size_t)blockIdx.y * channels * pixels;
    for (unsigned k = 0; k < 4; k++) {
        const unsigned pixel = 4 * block + k - begin; // beyond all pixels where it is another channel's
        if (pixel < pixels) {
            image[(size_t)pixel * channels + channel] = (words[k] >> 8) >= threshold;
        }
    }
}

#define NHWC_ORDER(T, suffix)                                                                                                  \
    extern "C" __global__ void nhwc_take_in##suffix(const float* from, T* to, unsigned channels, unsigned pixels,              \
                                                    unsigned of_tile, unsigned shift, Divisor by_of_tile, Divisor by_across,   \
                                                    Divisor by_down) {                                                         \
        nhwc_take_in_of(from, to, channels, pixels, of_tile, shift, by_of_tile, by_across, by_down);                           \
    }                                                                                                                          \
    extern "C" __global__ void nhwc_give_out##suffix(const T* from, float* to, unsigned channels, unsigned pixels,             \
                                                     unsigned of_tile, unsigned shift, Divisor by_of_tile, Divisor by_across,  \
                                                     Divisor by_down) {                                                        \
        nhwc_give_out_of(from, to, channels, pixels, of_tile, shift, by_of_tile, by_across, by_down);                          \
    }                                                                                                                          \
    extern "C" __global__ void nhwc_lay_out##suffix(const word* table, unsigned weights) { nhwc_lay_out_of<T>(table, weights); } \
    extern "C" __global__ void nhwc_turn_back##suffix(const T* from, float* to, unsigned outputs, unsigned inputs,             \
                                                      unsigned taps, Divisor by_taps, unsigned rows, unsigned some,            \
                                                      unsigned across, Divisor by_across, bool accumulate) {                   \
        nhwc_turn_back_of(from, to, outputs, inputs, taps, by_taps, rows, some, across, by_across, accumulate);                \
    }

NHWC_ORDER(float, )
NHWC_ORDER(bf16, _bf16)

//! Softmax attention and its gradients without the matrix of scores: 32 rows at a time stream past rows that stay.
//!
//! Eight warps. The rows that stay are 8 R: row r of a warp is 8 r + warp, and its partner, a row that streams past, is the
//! lane. Streaming rows come through shared memory in pieces of W columns. Queries stay for the output and for dL/dq, keys
//! for dL/dk and dL/dv, so that each sum is one block's and its order never changes.

#define WARPS 8
#define TILE (WARP * (W + 1))

/// Rows of one head: `columns` numbers each, `apart` from one row to the next.
template <class T>
struct Rows {
    T* at;
    unsigned count, columns, apart;

    __device__ T* of(unsigned row, unsigned column) const { return at + (size_t)row * apart + column; }
};

/// The sizes of all heads, and which one the block works on, from which of the rows that stay on.
///
/// `heads` lie side by side in the rows of an image: queries are [images, queries, heads * size].
struct Head {
    unsigned queries, keys, size, value_size, heads;
    float scale;
    unsigned number, first; // `number` counts heads through the images

    /// Blocks go through the rows that stay, `at_once` each, of one head after the other.
    __device__ Head(unsigned queries, unsigned keys, unsigned size, unsigned value_size, unsigned heads, float scale,
                    unsigned staying, unsigned at_once)
        : queries(queries), keys(keys), size(size), value_size(value_size), heads(heads), scale(scale) {
        const unsigned blocks = (staying + at_once - 1) / at_once;
        number = blockIdx.x / blocks;
        first = (blockIdx.x - number * blocks) * at_once;
    }

    template <class T>
    __device__ Rows<T> rows(T* all, unsigned count, unsigned columns) const {
        const unsigned image = number / heads, head = number - image * heads;
        return {all + ((size_t)image * count * heads + head) * columns, count, columns, heads * columns};
    }

    /// The head's part of all queries, keys, values, outputs, and of what is one number a query: [images, heads, queries].
    template <class T>
    __device__ Rows<T> q(T* all) const { return rows(all, queries, size); }
    template <class T>
    __device__ Rows<T> k(T* all) const { return rows(all, keys, size); }
    template <class T>
    __device__ Rows<T> v(T* all) const { return rows(all, keys, value_size); }
    template <class T>
    __device__ Rows<T> y(T* all) const { return rows(all, queries, value_size); }
    template <class T>
    __device__ T* line(T* all) const { return all + (size_t)number * queries; }
};

/// Copies `count` rows from row `first` on into shared memory; beyond the last come zeros.
template <class T>
__device__ inline void stay(float* to, const Rows<T>& from, unsigned first, unsigned count) {
    for (unsigned i = threadIdx.x; i < count * from.columns; i += blockDim.x) {
        const unsigned row = i / from.columns;
        to[i] = first + row < from.count ? wide(*from.of(first + row, i - row * from.columns)) : 0.0f;
    }
}

/// 32 rows from `first` on, W of their columns from `left` on; zeros beyond. All threads call it.
template <int W, class T>
__device__ inline void fetch(float* tile, const Rows<T>& from, unsigned first, unsigned left) {
    __syncthreads(); // the piece before has been read
    for (unsigned i = threadIdx.x; i < WARP * W; i += blockDim.x) {
        const unsigned row = i / W, column = i % W;
        const bool inside = first + row < from.count && left + column < from.columns;
        tile[row * (W + 1) + column] = inside ? wide(*from.of(first + row, left + column)) : 0.0f;
    }
    __syncthreads();
}

/// dot[r] = the product of row 8 r + warp of those that stay with row first + lane of those that stream.
template <int R, int W, class T>
__device__ inline void products(float (&dot)[R], const float* staying, float* tile, const Rows<T>& streaming, unsigned first) {
    const unsigned columns = streaming.columns;
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int r = 0; r < R; r++) {
        dot[r] = 0.0f;
    }
    for (unsigned left = 0; left < columns; left += W) {
        fetch<W>(tile, streaming, first, left);
        const unsigned width = min((unsigned)W, columns - left);
        for (unsigned c = 0; c < width; c++) {
            const float other = tile[lane * (W + 1) + c];
#pragma unroll
            for (int r = 0; r < R; r++) {
                dot[r] += staying[(size_t)(WARPS * r + warp) * columns + left + c] * other;
            }
        }
    }
}

/// sums[i] = fade[i] sums[i] + scale times the sum over j of weights[i][j] row first + j of those that stream, for all 8 R
/// rows i; without `fade` nothing fades.
template <int R, int W, class T>
__device__ inline void gather(float* sums, const float* fade, float scale, const float* weights, float* tile,
                              const Rows<T>& streaming, unsigned first) {
    constexpr int LINES = WARPS * WARP / W; // rows at once
    constexpr int TURNS = WARPS * R / LINES;
    const unsigned column = threadIdx.x % W, line = threadIdx.x / W, columns = streaming.columns;
    for (unsigned left = 0; left < columns; left += W) {
        fetch<W>(tile, streaming, first, left);
        float sum[TURNS] = {};
        for (unsigned j = 0; j < WARP; j++) {
            const float other = tile[j * (W + 1) + column];
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {
                sum[turn] += weights[(LINES * turn + line) * (WARP + 1) + j] * other;
            }
        }
        if (left + column < columns) {
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {
                const unsigned row = LINES * turn + line;
                float* at = sums + (size_t)row * columns + left + column;
                *at = (fade ? fade[row] * *at : *at) + scale * sum[turn];
            }
        }
    }
}

/// Rows that stay have their sums written, each over divisor[i] where there is one.
template <class T>
__device__ inline void write(const Rows<T>& to, const float* sums, const float* divisor, unsigned first, unsigned count) {
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count * to.columns; i += blockDim.x) {
        const unsigned row = i / to.columns;
        if (first + row < to.count) {
            put(to.of(first + row, i - row * to.columns), divisor ? sums[i] / divisor[row] : sums[i]);
        }
    }
}

/// y = softmax(scale q k') v, and of each query the logarithm of the sum of e^scores. Shared: q and y of the rows that stay,
/// weights, a tile, fades, sums.
template <int R, int W, class T>
__device__ inline void attention(const Head& head, const T* q, const T* k, const T* v, T* y, float* logarithms) {
    constexpr unsigned ROWS = WARPS * R;
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const unsigned first = head.first;
    float* staying = block_memory;
    float* sums = staying + ROWS * head.size;
    float* weights = sums + ROWS * head.value_size;
    float* tile = weights + ROWS * (WARP + 1);
    float* fade = tile + TILE;
    float* total = fade + ROWS;
    stay(staying, head.q(q), first, ROWS);
    for (unsigned i = threadIdx.x; i < ROWS * head.value_size; i += blockDim.x) {
        sums[i] = 0.0f;
    }
    float most[R], sum[R]; // of the warp's rows, alike in all lanes
#pragma unroll
    for (int r = 0; r < R; r++) {
        most[r] = -INFINITY;
        sum[r] = 0.0f;
    }
    for (unsigned key = 0; key < head.keys; key += WARP) {
        float score[R];
        products<R, W>(score, staying, tile, head.k(k), key);
#pragma unroll
        for (int r = 0; r < R; r++) {
            score[r] = key + lane < head.keys ? head.scale * score[r] : -INFINITY;
            const float more = fmaxf(most[r], warp_max(score[r]));
            const float weight = expf(score[r] - more);
            const float fading = expf(most[r] - more); // 0 at first
            sum[r] = fading * sum[r] + warp_sum(weight);
            most[r] = more;
            const unsigned row = WARPS * r + warp;
            weights[row * (WARP + 1) + lane] = weight;
            if (lane == 0) {
                fade[row] = fading;
            }
        }
        // `gather` begins with a barrier, and what it leaves is read after one.
        gather<R, W>(sums, fade, 1.0f, weights, tile, head.v(v), key);
    }
    if (lane == 0) {
#pragma unroll
        for (int r = 0; r < R; r++) {
            const unsigned row = WARPS * r + warp;
            total[row] = sum[r];
            if (first + row < head.queries) {
                head.line(logarithms)[first + row] = most[r] + logf(sum[r]);
            }
        }
    }
    write(head.y(y), sums, total, first, ROWS);
}

/// p = e^(score - logarithm), so that the gradient of a score is p (dp - delta); 0 beyond the queries and keys.
__device__ inline float probability(float score, float logarithm, bool inside) { return inside ? expf(score - logarithm) : 0.0f; }

/// dq = scale ds k. Queries stay. Shared: q, g and dq of the rows that stay, weights, a tile.
template <int R, int W, class T>
__device__ inline void query_gradient(const Head& head, const T* q, const T* k, const T* v, const T* g,
                                      const float* logarithms, const float* deltas, T* dq) {
    constexpr unsigned ROWS = WARPS * R;
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const unsigned first = head.first;
    float* staying = block_memory;
    float* staying_g = staying + ROWS * head.size;
    float* sums = staying_g + ROWS * head.value_size;
    float* weights = sums + ROWS * head.size;
    float* tile = weights + ROWS * (WARP + 1);
    stay(staying, head.q(q), first, ROWS);
    stay(staying_g, head.y(g), first, ROWS);
    for (unsigned i = threadIdx.x; i < ROWS * head.size; i += blockDim.x) {
        sums[i] = 0.0f;
    }
    for (unsigned key = 0; key < head.keys; key += WARP) {
        float score[R], dp[R];
        products<R, W>(score, staying, tile, head.k(k), key);
        products<R, W>(dp, staying_g, tile, head.v(v), key);
#pragma unroll
        for (int r = 0; r < R; r++) {
            const unsigned row = WARPS * r + warp;
            const bool inside = first + row < head.queries && key + lane < head.keys;
            const unsigned query = min(first + row, head.queries - 1);
            const float p = probability(head.scale * score[r], head.line(logarithms)[query], inside);
            weights[row * (WARP + 1) + lane] = p * (dp[r] - head.line(deltas)[query]);
        }
        gather<R, W>(sums, nullptr, head.scale, weights, tile, head.k(k), key);
    }
    write(head.q(dq), sums, nullptr, first, ROWS);
}

/// dk = scale ds' q and dv = p' g. Keys stay. Shared: k, v, dk and dv of the rows that stay, two of weights, a tile.
template <int R, int W, class T>
__device__ inline void key_gradient(const Head& head, const T* q, const T* k, const T* v, const T* g,
                                    const float* logarithms, const float* deltas, T* dk, T* dv) {
    constexpr unsigned ROWS = WARPS * R;
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const unsigned first = head.first;
    float* staying = block_memory;
    float* staying_v = staying + ROWS * head.size;
    float* sums = staying_v + ROWS * head.value_size;
    float* sums_v = sums + ROWS * head.size;
    float* weights = sums_v + ROWS * head.value_size;
    float* weights_v = weights + ROWS * (WARP + 1);
    float* tile = weights_v + ROWS * (WARP + 1);
    stay(staying, head.k(k), first, ROWS);
    stay(staying_v, head.v(v), first, ROWS);
    for (unsigned i = threadIdx.x; i < ROWS * (head.size + head.value_size); i += blockDim.x) {
        sums[i] = 0.0f; // both
    }
    for (unsigned query = 0; query < head.queries; query += WARP) {
        float score[R], dp[R];
        products<R, W>(score, staying, tile, head.q(q), query);
        products<R, W>(dp, staying_v, tile, head.y(g), query);
        const unsigned at = min(query + lane, head.queries - 1);
        const float logarithm = head.line(logarithms)[at], delta = head.line(deltas)[at];
#pragma unroll
        for (int r = 0; r < R; r++) {
            const unsigned row = WARPS * r + warp;
            const bool inside = first + row < head.keys && query + lane < head.queries;
            const float p = probability(head.scale * score[r], logarithm, inside);
            weights[row * (WARP + 1) + lane] = p * (dp[r] - delta);
            weights_v[row * (WARP + 1) + lane] = p;
        }
        gather<R, W>(sums_v, nullptr, 1.0f, weights_v, tile, head.y(g), query);
        gather<R, W>(sums, nullptr, head.scale, weights, tile, head.q(q), query);
    }
    write(head.k(dk), sums, nullptr, first, ROWS);
    write(head.v(dv), sums_v, nullptr, first, ROWS);
}

/// The sum over `lanes` neighbouring lanes, a power of two of them, in each. All lanes of the warp call it.
__device__ inline float neighbours_sum(float x, unsigned lanes) {
    for (unsigned apart = lanes / 2; apart > 0; apart /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, apart);
    }
    return x;
}

/// Where the number of a query lies, [images, heads, queries], of queries counted as they lie in memory: head by head side by side.
__device__ inline size_t line_of(unsigned query, unsigned heads, Divisor by_heads, unsigned queries, Divisor by_queries) {
    const unsigned pixel = divide(query, by_heads), image = divide(pixel, by_queries);
    const unsigned head = query - pixel * heads;
    return ((size_t)image * heads + head) * queries + (pixel - image * queries);
}

/// The product of a query's output and its gradient, in the order of [`line_of`]; `lanes` a query.
template <class T>
__device__ inline void deltas_of(const T* y, const T* g, float* deltas, unsigned count, unsigned value_size, unsigned lanes,
                                 unsigned heads, Divisor by_heads, unsigned queries, Divisor by_queries) {
    const unsigned lane = threadIdx.x & (lanes - 1);
    const unsigned query = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    float sum = 0.0f;
    for (unsigned c = lane; query < count && c < value_size; c += lanes) {
        const size_t at = (size_t)query * value_size + c;
        sum += wide(y[at]) * wide(g[at]);
    }
    sum = neighbours_sum(sum, lanes);
    if (query < count && lane == 0) {
        deltas[line_of(query, heads, by_heads, queries, by_queries)] = sum;
    }
}

#define SIZES unsigned queries, unsigned keys, unsigned size, unsigned value_size, unsigned heads, float scale
#define HEAD(staying, at_once) Head(queries, keys, size, value_size, heads, scale, staying, at_once)

#define ATTENTION(R, W, T, suffix)                                                                                             \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP) attention_##R##_##W##suffix(                                     \
        const T* q, const T* k, const T* v, T* y, float* logarithms, SIZES) {                                                  \
        attention<R, W>(HEAD(queries, WARPS * R), q, k, v, y, logarithms);                                                     \
    }                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP) attention_query_gradient_##R##_##W##suffix(                      \
        const T* q, const T* k, const T* v, const T* g, const float* logarithms, const float* deltas, T* dq, SIZES) {          \
        query_gradient<R, W>(HEAD(queries, WARPS * R), q, k, v, g, logarithms, deltas, dq);                                    \
    }                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP) attention_key_gradient_##R##_##W##suffix(                        \
        const T* q, const T* k, const T* v, const T* g, const float* logarithms, const float* deltas, T* dk, T* dv, SIZES) {   \
        key_gradient<R, W>(HEAD(keys, WARPS * R), q, k, v, g, logarithms, deltas, dk, dv);                                     \
    }

#define ATTENTIONS(T, suffix)                                                                                                  \
    extern "C" __global__ void attention_deltas##suffix(const T* y, const T* g, float* deltas, unsigned count,                 \
                                                        unsigned value_size, unsigned lanes, unsigned heads, Divisor by_heads, \
                                                        unsigned queries, Divisor by_queries) {                                \
        deltas_of(y, g, deltas, count, value_size, lanes, heads, by_heads, queries, by_queries);                               \
    }                                                                                                                          \
    ATTENTION(4, 16, T, suffix)                                                                                                \
    ATTENTION(4, 64, T, suffix)                                                                                                \
    ATTENTION(2, 64, T, suffix)                                                                                                \
    ATTENTION(1, 64, T, suffix)

ATTENTIONS(float, )
ATTENTIONS(bf16, _bf16)

//! Softmax attention of bf16 and its gradients by tensor cores, without the matrix of scores.
//!
//! The structure of FlashAttention-2 (Dao, 2023). Each warp has M times 16 of the rows that stay, all warps of the block
//! share them and N rows at a time of those that stream past; the next N are copied while the last are multiplied. Rows are
//! D columns wide, a multiple of 16: beyond the head's own size come zeros. Scores, sums and gradients are accumulators, which
//! never leave the registers; narrowed to bf16, the probabilities are the left factor of the next product as they lie.
//!
//! Rows are D + 8 numbers apart, an odd multiple of 16 bytes: the eight rows of a matrix lie in different banks.

#define ROW_LENGTH(D) ((D) + 8)
#define LOG2_E 1.44269504088896341f

/// A piece of what the warp accumulates: 16 rows by 8 columns for each [m][n].
template <int M, int COLUMNS>
using Accumulators = float[M][COLUMNS / 8][4];

/// Begins to copy `count` rows from row `first` on to a tile; zeros beyond the rows and their columns.
template <int D>
__device__ inline void begin_copy(bf16* tile, const Rows<const bf16>& from, unsigned first, unsigned count) {
    constexpr unsigned PIECES = D / 8;
    for (unsigned i = threadIdx.x; i < count * PIECES; i += blockDim.x) {
        const unsigned row = i / PIECES, column = i % PIECES * 8;
        const bool inside = first + row < from.count && column < from.columns;
        copy_later(tile + row * ROW_LENGTH(D) + column, inside ? from.of(first + row, column) : from.at, !inside);
    }
}

/// sums = a b': of the 16 M rows of one tile and the N rows of another.
template <int D, int M, int N>
__device__ inline void tile_products(Accumulators<M, N>& sums, const bf16* a, const bf16* b) {
    const unsigned lane = threadIdx.x % WARP;
    a += lane % 16 * ROW_LENGTH(D) + lane / 16 * 8;
    b += (lane / 16 * 8 + lane % 8) * ROW_LENGTH(D) + lane / 8 % 2 * 8;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sums[m][n][i] = 0.0f;
            }
        }
    }
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        unsigned left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            load_matrices(left[m], a + 16 * m * ROW_LENGTH(D) + k);
        }
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            unsigned right[4];
            load_matrices(right, b + 16 * n * ROW_LENGTH(D) + k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(sums[m][2 * n], left[m], right[0], right[1]);
                mma(sums[m][2 * n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/// sums += p b: p, narrowed, of 16 M rows, and C columns of the N rows of a tile.
template <int D, int M, int N, int C>
__device__ inline void tile_sums(Accumulators<M, C>& sums, const Accumulators<M, N>& p, const bf16* b) {
    const unsigned lane = threadIdx.x % WARP;
    b += lane % 16 * ROW_LENGTH(D) + lane / 16 * 8;
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        unsigned left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float(&two)[4] = p[m][2 * n + i / 2];
                left[m][i] = narrow_two(two[i % 2 * 2], two[i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int c = 0; c < C / 16; c++) {
            unsigned right[4];
            load_transposed(right, b + 16 * n * ROW_LENGTH(D) + 16 * c);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(sums[m][2 * c], left[m], right[0], right[1]);
                mma(sums[m][2 * c + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/// Writes what the warps of the block accumulated, times a factor, as rows from `first` and columns from `left` on; through a
/// tile whose rows no other warp reads any more. All threads call it.
template <int D, int M, int C>
__device__ inline void write_tile(const Rows<bf16>& to, bf16* tile, const Accumulators<M, C>& sums, const float (&factor)[M][2],
                                  unsigned first, unsigned left) {
    const unsigned warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, place = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            bf16* row = tile + (16 * (M * warp + m) + 8 * half + group) * ROW_LENGTH(D) + 2 * place;
#pragma unroll
            for (int c = 0; c < C / 8; c++) {
                const float by = factor[m][half];
                const unsigned both = narrow_two(by * sums[m][c][2 * half], by * sums[m][c][2 * half + 1]);
                *(Pack<bf16, 2>*)(row + 8 * c) = {{{(unsigned short)both}, {(unsigned short)(both >> 16)}}};
            }
        }
    }
    __syncthreads();
    constexpr unsigned PIECES = C / 8;
    for (unsigned i = threadIdx.x; i < blockDim.x / WARP * 16 * M * PIECES; i += blockDim.x) {
        const unsigned row = i / PIECES, column = i % PIECES * 8;
        if (first + row < to.count && left + column < to.columns) {
            const Pack<bf16, 8>* from = (const Pack<bf16, 8>*)(tile + row * ROW_LENGTH(D) + column);
            *(Pack<bf16, 8>*)to.of(first + row, left + column) = *from;
        }
    }
}

/// Scores of keys beyond the last become those of nothing.
template <int M, int N>
__device__ inline void mask(Accumulators<M, N>& scores, unsigned keys) {
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (8 * n + threadIdx.x % 4 * 2 + i % 2 >= keys) {
#pragma unroll
                for (int m = 0; m < M; m++) {
                    scores[m][n][i] = -INFINITY;
                }
            }
        }
    }
}

/// Of a row that four lanes hold: the largest, and the sum, in each.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// The scores of N more keys become e^(score - the largest so far); what was summed before fades to fit.
template <int M, int N, int D>
__device__ inline void softmax(Accumulators<M, N>& scores, Accumulators<M, D>& sums, float (&most)[M][2], float (&total)[M][2],
                               float scale2) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float more = most[m][half];
#pragma unroll
            for (int n = 0; n < N / 8; n++) {
                more = fmaxf(more, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            }
            more = row_max(more);
            const float fading = power_of_two(scale2 * (most[m][half] - more)); // 0 at first
            const float lowered = scale2 * more;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < N / 8; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    scores[m][n][i] = power_of_two(scale2 * scores[m][n][i] - lowered);
                    sum += scores[m][n][i];
                }
            }
            most[m][half] = more;
            total[m][half] = fading * total[m][half] + sum;
#pragma unroll
            for (int c = 0; c < D / 8; c++) {
                sums[m][c][2 * half] *= fading;
                sums[m][c][2 * half + 1] *= fading;
            }
        }
    }
}

/// As `attention`. Shared: queries, two turns of keys, two of values.
template <int D, int M, int N>
__device__ inline void attention_by_tiles(const Head& head, const bf16* q, const bf16* k, const bf16* v, bf16* y,
                                          float* logarithms) {
    const unsigned warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, place = threadIdx.x % 4;
    const unsigned count = blockDim.x / WARP * 16 * M;
    bf16* const queries = (bf16*)block_memory;
    bf16* const keys = queries + count * ROW_LENGTH(D);
    bf16* const values = keys + 2 * N * ROW_LENGTH(D);
    const float scale2 = head.scale * LOG2_E;
    Accumulators<M, D> sums = {};
    float most[M][2], total[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
        most[m][0] = most[m][1] = -INFINITY;
        total[m][0] = total[m][1] = 0.0f;
    }
    begin_copy<D>(queries, head.q(q), head.first, count);
    begin_copy<D>(keys, head.k(k), 0, N);
    begin_copy<D>(values, head.v(v), 0, N);
    unsigned turn = 0;
    for (unsigned key = 0; key < head.keys; key += N) {
        wait_for_copies();
        __syncthreads(); // and the other turn has been read
        const unsigned next = N * ROW_LENGTH(D) - turn;
        if (key + N < head.keys) {
            begin_copy<D>(keys + next, head.k(k), key + N, N);
            begin_copy<D>(values + next, head.v(v), key + N, N);
        }
        Accumulators<M, N> scores;
        tile_products<D, M, N>(scores, queries + 16 * M * warp * ROW_LENGTH(D), keys + turn);
        if (key + N > head.keys) {
            mask<M, N>(scores, head.keys - key);
        }
        softmax<M, N, D>(scores, sums, most, total, scale2);
        tile_sums<D, M, N, D>(sums, scores, values + turn);
        turn = next;
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float sum = neighbours_sum(total[m][half], 4);
            const unsigned query = head.first + 16 * (M * warp + m) + 8 * half + group;
            if (place == 0 && query < head.queries) {
                head.line(logarithms)[query] = head.scale * most[m][half] + logf(sum);
            }
            total[m][half] = 1.0f / sum;
        }
    }
    write_tile<D, M, D>(head.y(y), queries, sums, total, head.first, 0);
}

/// As `query_gradient`. Shared: queries and their gradients, two turns of keys, two of values.
template <int D, int M, int N>
__device__ inline void query_gradient_by_tiles(const Head& head, const bf16* q, const bf16* k, const bf16* v, const bf16* g,
                                               const float* logarithms, const float* deltas, bf16* dq) {
    const unsigned warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4;
    const unsigned count = blockDim.x / WARP * 16 * M, mine = 16 * M * warp * ROW_LENGTH(D);
    bf16* const queries = (bf16*)block_memory;
    bf16* const gradients = queries + count * ROW_LENGTH(D);
    bf16* const keys = gradients + count * ROW_LENGTH(D);
    bf16* const values = keys + 2 * N * ROW_LENGTH(D);
    const float scale2 = head.scale * LOG2_E;
    Accumulators<M, D> sums = {};
    begin_copy<D>(queries, head.q(q), head.first, count);
    begin_copy<D>(gradients, head.y(g), head.first, count);
    begin_copy<D>(keys, head.k(k), 0, N);
    begin_copy<D>(values, head.v(v), 0, N);
    float lowered[M][2], delta[M][2], scale[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned query = head.first + 16 * (M * warp + m) + 8 * half + group;
            const bool inside = query < head.queries;
            lowered[m][half] = inside ? LOG2_E * head.line(logarithms)[query] : 0.0f; // a row that is not there is not written
            delta[m][half] = inside ? head.line(deltas)[query] : 0.0f;
            scale[m][half] = head.scale;
        }
    }
    unsigned turn = 0;
    for (unsigned key = 0; key < head.keys; key += N) {
        wait_for_copies();
        __syncthreads(); // and the other turn has been read
        const unsigned next = N * ROW_LENGTH(D) - turn;
        if (key + N < head.keys) {
            begin_copy<D>(keys + next, head.k(k), key + N, N);
            begin_copy<D>(values + next, head.v(v), key + N, N);
        }
        Accumulators<M, N> p, dp;
        tile_products<D, M, N>(p, queries + mine, keys + turn);
        if (key + N > head.keys) {
            mask<M, N>(p, head.keys - key);
        }
        tile_products<D, M, N>(dp, gradients + mine, values + turn);
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < N / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float probability = power_of_two(scale2 * p[m][n][i] - lowered[m][i / 2]);
                    dp[m][n][i] = probability * (dp[m][n][i] - delta[m][i / 2]);
                }
            }
        }
        tile_sums<D, M, N, D>(sums, dp, keys + turn);
        turn = next;
    }
    write_tile<D, M, D>(head.q(dq), queries, sums, scale, head.first, 0);
}

/// As `key_gradient`, for C columns from `left` on. Shared: keys and values, two turns of queries, two of their gradients.
template <int D, int M, int N, int C>
__device__ inline void key_gradient_by_tiles(const Head& head, const bf16* q, const bf16* k, const bf16* v, const bf16* g,
                                             const float* logarithms, const float* deltas, bf16* dk, bf16* dv, unsigned left) {
    const unsigned warp = threadIdx.x / WARP, place = threadIdx.x % 4;
    const unsigned count = blockDim.x / WARP * 16 * M, mine = 16 * M * warp * ROW_LENGTH(D);
    bf16* const keys = (bf16*)block_memory;
    bf16* const values = keys + count * ROW_LENGTH(D);
    bf16* const queries = values + count * ROW_LENGTH(D);
    bf16* const gradients = queries + 2 * N * ROW_LENGTH(D);
    const float scale2 = head.scale * LOG2_E;
    Accumulators<M, C> sums = {}, sums_v = {};
    begin_copy<D>(keys, head.k(k), head.first, count);
    begin_copy<D>(values, head.v(v), head.first, count);
    begin_copy<D>(queries, head.q(q), 0, N);
    begin_copy<D>(gradients, head.y(g), 0, N);
    unsigned turn = 0;
    for (unsigned query = 0; query < head.queries; query += N) {
        wait_for_copies();
        __syncthreads(); // and the other turn has been read
        const unsigned next = N * ROW_LENGTH(D) - turn;
        if (query + N < head.queries) {
            begin_copy<D>(queries + next, head.q(q), query + N, N);
            begin_copy<D>(gradients + next, head.y(g), query + N, N);
        }
        Accumulators<M, N> p, dp;
        tile_products<D, M, N>(p, keys + mine, queries + turn);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const unsigned at = query + 8 * n + 2 * place + i;
                // Of a query that is not there p is 1: it multiplies zeros.
                const float lowered = at < head.queries ? LOG2_E * head.line(logarithms)[at] : 0.0f;
#pragma unroll
                for (int m = 0; m < M; m++) {
                    p[m][n][i] = power_of_two(scale2 * p[m][n][i] - lowered);
                    p[m][n][i + 2] = power_of_two(scale2 * p[m][n][i + 2] - lowered);
                }
            }
        }
        tile_sums<D, M, N, C>(sums_v, p, gradients + turn + left);
        tile_products<D, M, N>(dp, values + mine, gradients + turn);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const unsigned at = query + 8 * n + 2 * place + i;
                const float delta = at < head.queries ? head.line(deltas)[at] : 0.0f;
#pragma unroll
                for (int m = 0; m < M; m++) {
                    dp[m][n][i] = p[m][n][i] * (dp[m][n][i] - delta);
                    dp[m][n][i + 2] = p[m][n][i + 2] * (dp[m][n][i + 2] - delta);
                }
            }
        }
        tile_sums<D, M, N, C>(sums, dp, queries + turn + left);
        turn = next;
    }
    float scale[M][2], one[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
        scale[m][0] = scale[m][1] = head.scale;
        one[m][0] = one[m][1] = 1.0f;
    }
    write_tile<D, M, C>(head.k(dk), keys, sums, scale, head.first, left);
    write_tile<D, M, C>(head.v(dv), values, sums_v, one, head.first, left);
}

/// As `deltas_of`, eight columns a lane.
extern "C" __global__ void attention_deltas_tiles(const bf16* y, const bf16* g, float* deltas, unsigned count, unsigned size,
                                                  unsigned lanes, unsigned heads, Divisor by_heads, unsigned queries,
                                                  Divisor by_queries) {
    const unsigned lane = threadIdx.x & (lanes - 1);
    const unsigned query = blockIdx.x * (blockDim.x / lanes) + threadIdx.x / lanes;
    float sum = 0.0f;
    if (query < count && 8 * lane < size) {
        const size_t at = (size_t)query * size + 8 * lane;
        const Pack<bf16, 8> of_y = *(const Pack<bf16, 8>*)(y + at), of_g = *(const Pack<bf16, 8>*)(g + at);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sum += wide(of_y.at[i]) * wide(of_g.at[i]);
        }
    }
    sum = neighbours_sum(sum, lanes);
    if (query < count && lane == 0) {
        deltas[line_of(query, heads, by_heads, queries, by_queries)] = sum;
    }
}

/// Warps of a block, at most.
#define TILE_WARPS 4
#define STAYING(M) (blockDim.x / WARP * 16 * (M))

/// BLOCKS is how many blocks a multiprocessor should hold at once: so few registers each takes (of 65536).
#define OF_TILES(BLOCKS) extern "C" __global__ void __launch_bounds__(TILE_WARPS* WARP, BLOCKS)

#define ATTENTION_TILES(D, M, N, BLOCKS)                                                                                       \
    OF_TILES(BLOCKS)                                                                                                           \
    attention_tiles_##D##_##M##_##N(const bf16* q, const bf16* k, const bf16* v, bf16* y, float* logarithms, SIZES) {          \
        attention_by_tiles<D, M, N>(HEAD(queries, STAYING(M)), q, k, v, y, logarithms);                                        \
    }

#define QUERY_GRADIENT_TILES(D, M, N, BLOCKS)                                                                                  \
    OF_TILES(BLOCKS)                                                                                                           \
    attention_tiles_query_gradient_##D##_##M##_##N(const bf16* q, const bf16* k, const bf16* v, const bf16* g,                 \
                                                   const float* logarithms, const float* deltas, bf16* dq, SIZES) {            \
        query_gradient_by_tiles<D, M, N>(HEAD(queries, STAYING(M)), q, k, v, g, logarithms, deltas, dq);                       \
    }

/// Columns by at most 128 at once: block (x, y) has the y-th part of them.
#define KEY_GRADIENT_TILES(D, M, N, BLOCKS)                                                                                    \
    OF_TILES(BLOCKS)                                                                                                           \
    attention_tiles_key_gradient_##D##_##M##_##N(const bf16* q, const bf16* k, const bf16* v, const bf16* g,                   \
                                                 const float* logarithms, const float* deltas, bf16* dk, bf16* dv, SIZES) {    \
        constexpr int C = D < 128 ? D : 128;                                                                                   \
        key_gradient_by_tiles<D, M, N, C>(HEAD(keys, STAYING(M)), q, k, v, g, logarithms, deltas, dk, dv, C * blockIdx.y);     \
    }

// By nvcc 13.0 for 9.0 none of these spills; where BLOCKS is less than registers allow, shared memory is what holds it back.
ATTENTION_TILES(16, 2, 64, 3)
ATTENTION_TILES(32, 2, 64, 4)
ATTENTION_TILES(64, 2, 64, 3)
ATTENTION_TILES(128, 2, 32, 2)
ATTENTION_TILES(256, 1, 32, 2)
QUERY_GRADIENT_TILES(16, 2, 32, 5)
QUERY_GRADIENT_TILES(32, 2, 32, 4)
QUERY_GRADIENT_TILES(64, 2, 32, 3)
QUERY_GRADIENT_TILES(128, 1, 32, 3)
QUERY_GRADIENT_TILES(256, 1, 16, 2)
KEY_GRADIENT_TILES(16, 2, 32, 4)
KEY_GRADIENT_TILES(32, 2, 32, 3)
KEY_GRADIENT_TILES(64, 2, 32, 2)
KEY_GRADIENT_TILES(128, 1, 32, 2)
KEY_GRADIENT_TILES(256, 1, 16, 2)

//! A step of the optimiser over all parameters at once: the norm of the gradients, then clipping, AdamW and moving averages.
//!
//! `table` is one run of 64-bit words. First a row for each parameter: addresses of p, m, v, g and of each average, and how
//! many elements they have. Then a word for each block: the parameter in its upper half, its chunk in the lower. Each chunk
//! is CHUNK elements, so that no sum depends on how many blocks run at once.

#define CHUNK 16384

/// What a block works on: a row of the table, and where in its tensors the chunk begins and ends.
struct Chunk {
    const word* row;
    word begin;
    word end;
};

__device__ inline Chunk chunk_of_block(const word* table, unsigned parameters, unsigned averages) {
    const unsigned width = 5 + averages;
    const word task = table[(size_t)parameters * width + blockIdx.x];
    const word* row = table + (size_t)(task >> 32) * width;
    const word length = row[width - 1];
    const word begin = (task & 0xffffffffu) * CHUNK;
    return {row, begin, begin + CHUNK < length ? begin + CHUNK : length};
}

/// parts[b] = the sum of the squares of a chunk of gradients, in double precision. Shared: a double a warp.
extern "C" __global__ void squares_of_chunks(const word* table, double* parts, unsigned parameters, unsigned averages) {
    const Chunk chunk = chunk_of_block(table, parameters, averages);
    const float* g = (const float*)chunk.row[3];
    double sum = 0.0;
    for (word i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        sum += (double)g[i] * (double)g[i];
    }
    sum = block_sum(sum, (double*)block_memory);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
    }
}

/// told = the norm, and what gradients are multiplied by: min(1, max_norm / (norm + 1e-6)), 1 where max_norm is 0. One block.
extern "C" __global__ void norm_of_parts(const double* parts, float* told, unsigned count, double max_norm) {
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        sum += parts[i];
    }
    sum = block_sum(sum, (double*)block_memory);
    if (threadIdx.x == 0) {
        const double norm = sqrt(sum);
        const double factor = max_norm / (norm + 1e-6);
        told[0] = (float)norm;
        told[1] = max_norm > 0.0 && factor < 1.0 ? (float)factor : 1.0f;
    }
}

/// p, m and v move by one step of AdamW along factor g, then every average towards p; nothing moves where the norm is not
/// finite. `shares` are two numbers an average: what it keeps of itself, what it takes of p.
extern "C" __global__ void adamw_of_chunks(const word* table, const float* told, const float* shares, unsigned parameters,
                                           unsigned averages, float shrink, float step_size, float root_correction, float eps,
                                           float beta2, float one_less_beta1, float one_less_beta2) {
    const Chunk chunk = chunk_of_block(table, parameters, averages);
    if (!isfinite(told[0])) {
        return; // all blocks alike
    }
    const float factor = told[1];
    float* p = (float*)chunk.row[0];
    float* m = (float*)chunk.row[1];
    float* v = (float*)chunk.row[2];
    const float* gradient = (const float*)chunk.row[3];
    for (word i = chunk.begin + threadIdx.x; i < chunk.end; i += blockDim.x) {
        const float g = gradient[i] * factor;
        const float first = m[i] + one_less_beta1 * (g - m[i]);
        const float second = v[i] * beta2 + one_less_beta2 * g * g;
        const float denominator = sqrtf(second) / root_correction + eps;
        const float next = p[i] * shrink - step_size * (first / denominator);
        m[i] = first;
        v[i] = second;
        p[i] = next;
        for (unsigned a = 0; a < averages; a++) {
            float* average = (float*)chunk.row[4 + a];
            const float keep = shares[2 * a], take = shares[2 * a + 1];
            // Either form is exact where its weight is 1.
            average[i] = take < 0.5f ? average[i] + take * (next - average[i]) : next - keep * (next - average[i]);
        }
    }
}

//! Dropout whose mask is drawn where it is needed: Philox4x32-10 at the addresses of ddpm-random, integer for integer.

/// The four words of a counter (Salmon et al., SC 2011).
__device__ inline void philox(unsigned key_0, unsigned key_1, unsigned (&word)[4]) {
    for (int round = 0; round < 10; round++) {
        const unsigned high_0 = __umulhi(0xD2511F53u, word[0]), low_0 = 0xD2511F53u * word[0];
        const unsigned high_1 = __umulhi(0xCD9E8D57u, word[2]), low_1 = 0xCD9E8D57u * word[2];
        word[0] = high_1 ^ word[1] ^ key_0;
        word[1] = low_1;
        word[2] = high_0 ^ word[3] ^ key_1;
        word[3] = low_0;
        key_0 += 0x9E3779B9u;
        key_1 += 0xBB67AE85u;
    }
}

/// y = scale x where the upper 24 bits of the element's word are at least `threshold`, else 0 (even for an x that is not
/// finite). A thread makes the four elements of a block of words; blockIdx.y is the image, `counters` its three words.
template <class T>
__device__ inline void dropout_of(const T* x, T* y, const unsigned* counters, unsigned elements, unsigned key_0,
                                  unsigned key_1, unsigned threshold, float scale) {
    const unsigned block = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned image = blockIdx.y;
    if (block >= (elements + 3) / 4) {
        return;
    }
    const unsigned* counter = counters + 3 * image;
    unsigned word[4] = {block, counter[0], counter[1], counter[2]};
    philox(key_0, key_1, word);
    const size_t start = (size_t)image * elements;
    for (unsigned k = 0; k < 4 && 4 * block + k < elements; k++) {
        const size_t i = start + 4 * block + k;
        put(y + i, (word[k] >> 8) >= threshold ? scale * wide(x[i]) : 0.0f);
    }
}

#define DROPOUT(T, suffix)                                                                                                     \
    extern "C" __global__ void dropout##suffix(const T* x, T* y, const unsigned* counters, unsigned elements, unsigned key_0,  \
                                               unsigned key_1, unsigned threshold, float scale) {                              \
        dropout_of(x, y, counters, elements, key_0, key_1, threshold, scale);                                                  \
    }

DROPOUT(float, )
DROPOUT(bf16, _bf16)

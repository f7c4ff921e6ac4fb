//! What tensor cores need of a warp: matrices of 8 by 8 from shared memory, a product of 16 by 16 by 8, copies that go on by themselves.
//!
//! On a card these are PTX (compute capability 8.0 or later; earlier ones, for which candle has no bf16 either, stop). On the
//! host all lanes give each other what they hold, and each computes what the tables of the PTX ISA say is its own.
//!
//! A warp's 32 lanes are 8 groups of 4: group = lane / 4, place = lane % 4. A register holds two bf16, the first in the lower
//! half. mma.m16n8k16 of bf16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with i the number of an element of a lane:
//!
//! | matrix | elements | row | column |
//! |---|---|---|---|
//! | A, 16 x 16 | a0 .. a7, two a register | group, and + 8 where i is 2, 3, 6 or 7 | 2 place + i % 2, and + 8 where i >= 4 |
//! | B, 16 x 8 | b0 .. b3, two a register | 2 place + i % 2, and + 8 where i >= 2 | group |
//! | C, D, 16 x 8 | c0 .. c3, floats | group, and + 8 where i >= 2 | 2 place + i % 2 |
//!
//! So two products C of 16 x 8 side by side, narrowed, are an A of 16 x 16: c0 c1 and c2 c3 of the left one, then of the right.

#pragma once

#include "block.cuh"

#ifdef __CUDACC__

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define OF_TENSOR_CORES(...) __trap()
#else
#define OF_TENSOR_CORES(...) __VA_ARGS__
#endif

__device__ inline unsigned shared_address(const void* at) { return (unsigned)__cvta_generic_to_shared(at); }

/// d += A B. All lanes call it.
__device__ inline void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    OF_TENSOR_CORES(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                                 "{%0, %1, %2, %3};"
                                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)));
}

/// Four matrices of 8 x 8: lanes 8 i .. 8 i + 7 name the rows of matrix i, 16 bytes each in shared memory at multiples of 16.
/// x[i] is row `group`, columns 2 place and 2 place + 1, of matrix i. All lanes call it.
__device__ inline void load_matrices(unsigned (&x)[4], const bf16* row) {
    OF_TENSOR_CORES(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                                 : "r"(shared_address(row))
                                 : "memory"));
}

/// The same of the transposed matrices: x[i] is column `group`, rows 2 place and 2 place + 1.
__device__ inline void load_transposed(unsigned (&x)[4], const bf16* row) {
    OF_TENSOR_CORES(asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                                 : "r"(shared_address(row))
                                 : "memory"));
}

/// Begins to copy 16 bytes to shared memory, or zeros; both at multiples of 16. `from` is a place that exists, even for zeros.
__device__ inline void copy_later(bf16* to, const bf16* from, bool zeros) {
    OF_TENSOR_CORES(asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                                 "r"(zeros ? 0 : 16)
                                 : "memory"));
}

/// Waits for what this thread began to copy; a barrier, and other threads find it too.
__device__ inline void wait_for_copies() { OF_TENSOR_CORES(asm volatile("cp.async.wait_all;" ::: "memory")); }

/// Two numbers, rounded to the nearest, in one register: the first in the lower half.
__device__ inline unsigned narrow_two(float first, float second) {
    unsigned both = 0;
    OF_TENSOR_CORES(asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first)));
    return both;
}

/// 2^x to about two units in the last place; what would be less than 2^-126 is 0.
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

/// The elements of registers, of which each holds two.
template <unsigned count>
inline void elements_of(const unsigned (&registers)[count], float (&to)[2 * count]) {
    for (unsigned i = 0; i < 2 * count; i++) {
        to[i] = wide(bf16{(unsigned short)(registers[i / 2] >> (16 * (i % 2)))});
    }
}

inline void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct Held {
        float a[8], b[4];
    } mine;
    const unsigned b[2] = {b0, b1};
    elements_of(a, mine.a);
    elements_of(b, mine.b);
    const Shared<Held> held(mine, __FILE__, __LINE__);
    const unsigned group = threadIdx.x % WARP / 4, place = threadIdx.x % 4;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = group + (i >= 2 ? 8 : 0), column = 2 * place + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            // A[row][k] and B[k][column] lie with the lanes and are the elements that the tables say.
            const Held& of_a = held.of(4 * (row % 8) + k % 8 / 2);
            const Held& of_b = held.of(4 * column + k % 8 / 2);
            d[i] += of_a.a[k % 2 + (row >= 8 ? 2 : 0) + (k >= 8 ? 4 : 0)] * of_b.b[k % 2 + (k >= 8 ? 2 : 0)];
        }
    }
}

template <bool transposed>
inline void load_eights(unsigned (&x)[4], const bf16* row, int line) {
    host_aligned(row, __FILE__, line);
    const Shared<const bf16*> rows(row, __FILE__, line);
    const unsigned group = threadIdx.x % WARP / 4, place = threadIdx.x % 4;
    for (unsigned i = 0; i < 4; i++) {
        bf16 two[2];
        for (unsigned j = 0; j < 2; j++) {
            two[j] = transposed ? rows.of(8 * i + 2 * place + j)[group] : rows.of(8 * i + group)[2 * place + j];
        }
        x[i] = two[0].bits | (unsigned)two[1].bits << 16;
    }
}

inline void load_matrices(unsigned (&x)[4], const bf16* row) { load_eights<false>(x, row, __LINE__); }
inline void load_transposed(unsigned (&x)[4], const bf16* row) { load_eights<true>(x, row, __LINE__); }

inline void copy_later(bf16* to, const bf16* from, bool zeros) {
    host_aligned(to, __FILE__, __LINE__);
    host_aligned(from, __FILE__, __LINE__);
    host_copy_later(to, zeros ? nullptr : from);
}

inline void wait_for_copies() { host_wait_for_copies(); }

inline unsigned narrow_two(float first, float second) {
    bf16 two[2];
    put(&two[0], first);
    put(&two[1], second);
    return two[0].bits | (unsigned)two[1].bits << 16;
}

inline float power_of_two(float x) { return exp2f(x); }

#endif

//! Sixteen floats at a time, at each level of the processor.
#![allow(unsafe_code)] // this file is where the intrinsics are

/// Sixteen floats and what the kernels do with them.
///
/// # Safety
/// All functions need the level's instructions; loads and stores need sixteen floats at the pointer (any alignment).
pub(crate) trait Vector: Copy {
    /// Accumulators, in vectors, that fit into the registers beside two operands and a broadcast.
    const ACCUMULATORS: usize;

    unsafe fn zero() -> Self;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// self + a b; rounded once where the level can.
    unsafe fn fused(self, a: Self, b: Self) -> Self;
    /// The first `count` floats (at most sixteen, and no more need be at the pointer), then zeros.
    unsafe fn load_some(from: *const f32, count: usize) -> Self;
    /// Writes the first `count` floats.
    unsafe fn store_some(self, to: *mut f32, count: usize);
    /// Rows become columns.
    unsafe fn transpose(rows: [Self; 16]) -> [Self; 16];
}

/// A plain array, which the compiler turns into whatever the target has.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 16]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Portable {
    const ACCUMULATORS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 1 };

    #[inline(always)]
    unsafe fn zero() -> Self {
        Portable([0.0; 16])
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; 16])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: sixteen floats, by the trait's contract.
        Portable(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: sixteen floats, by the trait's contract.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn fused(self, a: Self, b: Self) -> Self {
        let fused = |sum: f32, a: f32, b: f32| {
            if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                a.mul_add(b, sum)
            } else {
                a * b + sum
            }
        };
        Portable(std::array::from_fn(|i| fused(self.0[i], a.0[i], b.0[i])))
    }
    #[inline(always)]
    unsafe fn load_some(from: *const f32, count: usize) -> Self {
        let mut lanes = [0.0; 16];
        for (i, lane) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: so many floats, by the trait's contract.
            *lane = unsafe { from.add(i).read() };
        }
        Portable(lanes)
    }
    #[inline(always)]
    unsafe fn store_some(self, to: *mut f32, count: usize) {
        for (i, &lane) in self.0.iter().enumerate().take(count) {
            // SAFETY: so many floats, by the trait's contract.
            unsafe { to.add(i).write(lane) };
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self; 16]) -> [Self; 16] {
        std::array::from_fn(|column| Portable(std::array::from_fn(|row| rows[row].0[column])))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    /// Two registers of eight.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    impl Vector for Avx2 {
        const ACCUMULATORS: usize = 6;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the level's instructions, by the trait's contract; so in all of these.
            unsafe { Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as above.
            unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above, and sixteen floats at the pointer.
            unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above, and sixteen floats at the pointer.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                Avx2(
                    _mm256_add_ps(self.0, other.0),
                    _mm256_add_ps(self.1, other.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                Avx2(
                    _mm256_sub_ps(self.0, other.0),
                    _mm256_sub_ps(self.1, other.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                Avx2(
                    _mm256_mul_ps(self.0, other.0),
                    _mm256_mul_ps(self.1, other.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn fused(self, a: Self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                Avx2(
                    _mm256_fmadd_ps(a.0, b.0, self.0),
                    _mm256_fmadd_ps(a.1, b.1, self.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn load_some(from: *const f32, count: usize) -> Self {
            // SAFETY: as above, and so many floats at the pointer; no others are touched.
            unsafe {
                let (low, high) = masks(count);
                Avx2(
                    _mm256_maskload_ps(from, low),
                    _mm256_maskload_ps(from.wrapping_add(8), high),
                )
            }
        }
        #[inline(always)]
        unsafe fn store_some(self, to: *mut f32, count: usize) {
            // SAFETY: as above, and so many floats at the pointer; no others are touched.
            unsafe {
                let (low, high) = masks(count);
                _mm256_maskstore_ps(to, low, self.0);
                _mm256_maskstore_ps(to.wrapping_add(8), high, self.1);
            }
        }
        #[inline(always)]
        unsafe fn transpose(rows: [Self; 16]) -> [Self; 16] {
            // SAFETY: as above.
            unsafe {
                let quarter = |first: usize, high: bool| {
                    transpose_8(std::array::from_fn(|i| {
                        let row = rows[first + i];
                        if high { row.1 } else { row.0 }
                    }))
                };
                let (a, b) = (quarter(0, false), quarter(0, true));
                let (c, d) = (quarter(8, false), quarter(8, true));
                std::array::from_fn(|i| {
                    if i < 8 {
                        Avx2(a[i], c[i])
                    } else {
                        Avx2(b[i - 8], d[i - 8])
                    }
                })
            }
        }
    }

    /// All bits of the first `count` of sixteen lanes.
    #[inline(always)]
    unsafe fn masks(count: usize) -> (__m256i, __m256i) {
        // SAFETY: only ever called where AVX2 is.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let below = |count: i32| _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
            (below(count as i32), below(count as i32 - 8))
        }
    }

    /// Eight rows of eight become columns.
    #[inline(always)]
    unsafe fn transpose_8(rows: [__m256; 8]) -> [__m256; 8] {
        // SAFETY: only ever called where AVX2 is.
        unsafe {
            let pairs: [__m256; 8] = std::array::from_fn(|i| {
                let (a, b) = (rows[i / 2 * 2], rows[i / 2 * 2 + 1]);
                if i % 2 == 0 {
                    _mm256_unpacklo_ps(a, b)
                } else {
                    _mm256_unpackhi_ps(a, b)
                }
            });
            // Four rows each: columns i % 4 and 4 + i % 4 in the two halves.
            let fours: [__m256; 8] = std::array::from_fn(|i| {
                let first = i / 4 * 4 + i % 4 / 2;
                let (a, b) = (pairs[first], pairs[first + 2]);
                if i % 2 == 0 {
                    _mm256_shuffle_ps::<0x44>(a, b)
                } else {
                    _mm256_shuffle_ps::<0xee>(a, b)
                }
            });
            std::array::from_fn(|i| {
                let (a, b) = (fours[i % 4], fours[4 + i % 4]);
                if i < 4 {
                    _mm256_permute2f128_ps::<0x20>(a, b)
                } else {
                    _mm256_permute2f128_ps::<0x31>(a, b)
                }
            })
        }
    }

    /// One register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    impl Vector for Avx512 {
        const ACCUMULATORS: usize = 28;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the level's instructions, by the trait's contract; so in all of these.
            unsafe { Avx512(_mm512_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above, and sixteen floats at the pointer.
            unsafe { Avx512(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above, and sixteen floats at the pointer.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_sub_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn fused(self, a: Self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn load_some(from: *const f32, count: usize) -> Self {
            // SAFETY: as above, and so many floats at the pointer; no others are touched.
            unsafe { Avx512(_mm512_maskz_loadu_ps(first(count), from)) }
        }
        #[inline(always)]
        unsafe fn store_some(self, to: *mut f32, count: usize) {
            // SAFETY: as above, and so many floats at the pointer; no others are touched.
            unsafe { _mm512_mask_storeu_ps(to, first(count), self.0) }
        }
        #[inline(always)]
        unsafe fn transpose(rows: [Self; 16]) -> [Self; 16] {
            // SAFETY: as above.
            unsafe {
                let pairs: [__m512; 16] = std::array::from_fn(|i| {
                    let (a, b) = (rows[i / 2 * 2].0, rows[i / 2 * 2 + 1].0);
                    if i % 2 == 0 {
                        _mm512_unpacklo_ps(a, b)
                    } else {
                        _mm512_unpackhi_ps(a, b)
                    }
                });
                // Four rows each: columns i % 4, and 4, 8 and 12 further, in the four quarters.
                let fours: [__m512; 16] = std::array::from_fn(|i| {
                    let first = i / 4 * 4 + i % 4 / 2;
                    let (a, b) = (pairs[first], pairs[first + 2]);
                    if i % 2 == 0 {
                        _mm512_shuffle_ps::<0x44>(a, b)
                    } else {
                        _mm512_shuffle_ps::<0xee>(a, b)
                    }
                });
                // Eight rows each: quarters 0 and 2 of columns, or 1 and 3.
                let eights: [__m512; 16] = std::array::from_fn(|i| {
                    let first = i / 8 * 8 + i % 4;
                    let (a, b) = (fours[first], fours[first + 4]);
                    if i % 8 < 4 {
                        _mm512_shuffle_f32x4::<0x88>(a, b)
                    } else {
                        _mm512_shuffle_f32x4::<0xdd>(a, b)
                    }
                });
                std::array::from_fn(|i| {
                    let (a, b) = (eights[i % 8], eights[8 + i % 8]);
                    if i < 8 {
                        Avx512(_mm512_shuffle_f32x4::<0x88>(a, b))
                    } else {
                        Avx512(_mm512_shuffle_f32x4::<0xdd>(a, b))
                    }
                })
            }
        }
    }

    /// A bit for each of the first `count` of sixteen lanes.
    fn first(count: usize) -> u16 {
        ((1u32 << count.min(16)) - 1) as u16
    }
}

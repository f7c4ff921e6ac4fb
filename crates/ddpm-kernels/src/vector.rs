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
    /// The smaller of the two; NaN stays.
    unsafe fn at_most(self, most: Self) -> Self;
    /// The larger of the two; NaN stays.
    unsafe fn at_least(self, least: Self) -> Self;
    /// 2^n of a whole number n to which [`ROUNDER`] was added, -126 <= n <= 127.
    unsafe fn power_of_two(self) -> Self;
    /// 1 / x to two units in the last place, for x from 1 to 1e38.
    unsafe fn reciprocal(self) -> Self;

    /// 1 / (1 + e^-x) to some units in the last place, with [`crate::simd::exp`]'s polynomial; beyond ±87 it stays. NaN stays.
    #[inline(always)]
    unsafe fn sigmoid(self) -> Self {
        // SAFETY: the trait's contract.
        unsafe {
            let x = self.at_most(Self::splat(87.0)).at_least(Self::splat(-87.0));
            let shifted = Self::splat(ROUNDER).fused(x, Self::splat(-std::f32::consts::LOG2_E));
            let n = shifted.sub(Self::splat(ROUNDER));
            let minus_r = x
                .fused(n, Self::splat(0.693_359_4))
                .fused(n, Self::splat(-2.121_944_4e-4)); // ln 2 in two parts
            let r = Self::zero().sub(minus_r);
            let p = Self::splat(1.398_2e-3).fused(Self::splat(1.987_569_1e-4), r);
            let p = Self::splat(8.333_452e-3).fused(p, r);
            let p = Self::splat(4.166_579_6e-2).fused(p, r);
            let p = Self::splat(1.666_666_5e-1).fused(p, r);
            let p = Self::splat(5.000_000_3e-1).fused(p, r);
            let one = Self::splat(1.0);
            let e_r = r.fused(p, r.mul(r)).add(one);
            one.fused(e_r, shifted.power_of_two()).reciprocal()
        }
    }
}

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// What is added to the bits of n + ROUNDER, before they become those of an exponent.
const TO_EXPONENT: i32 = 127 - ROUNDER.to_bits() as i32;

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
    #[inline(always)]
    unsafe fn at_most(self, most: Self) -> Self {
        self.zip(most, |x, most| if x > most { most } else { x })
    }
    #[inline(always)]
    unsafe fn at_least(self, least: Self) -> Self {
        self.zip(least, |x, least| if x < least { least } else { x })
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        let of = |x: f32| {
            f32::from_bits(
                (x.to_bits() as i32)
                    .wrapping_add(TO_EXPONENT)
                    .cast_unsigned()
                    << 23,
            )
        };
        Portable(self.0.map(of))
    }
    #[inline(always)]
    unsafe fn reciprocal(self) -> Self {
        Portable(self.0.map(f32::recip))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{TO_EXPONENT, Vector};

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
        #[inline(always)]
        unsafe fn at_most(self, most: Self) -> Self {
            // SAFETY: as above. Of a NaN and a number the second argument is the result.
            unsafe { Avx2(_mm256_min_ps(most.0, self.0), _mm256_min_ps(most.1, self.1)) }
        }
        #[inline(always)]
        unsafe fn at_least(self, least: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                Avx2(
                    _mm256_max_ps(least.0, self.0),
                    _mm256_max_ps(least.1, self.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn power_of_two(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let to = _mm256_set1_epi32(TO_EXPONENT);
                let low = _mm256_add_epi32(_mm256_castps_si256(self.0), to);
                let high = _mm256_add_epi32(_mm256_castps_si256(self.1), to);
                Avx2(
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(low)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(high)),
                )
            }
        }
        #[inline(always)]
        unsafe fn reciprocal(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let one = _mm256_set1_ps(1.0);
                Avx2(_mm256_div_ps(one, self.0), _mm256_div_ps(one, self.1))
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
        #[inline(always)]
        unsafe fn at_most(self, most: Self) -> Self {
            // SAFETY: as above. Of a NaN and a number the second argument is the result.
            unsafe { Avx512(_mm512_min_ps(most.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn at_least(self, least: Self) -> Self {
            // SAFETY: as above.
            unsafe { Avx512(_mm512_max_ps(least.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn power_of_two(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let bits =
                    _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(TO_EXPONENT));
                Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(bits)))
            }
        }
        /// An estimate of 14 bits and one step of Newton's: a division takes as long as half of a sigmoid.
        #[inline(always)]
        unsafe fn reciprocal(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let about = _mm512_rcp14_ps(self.0);
                let off = _mm512_fnmadd_ps(self.0, about, _mm512_set1_ps(1.0));
                Avx512(_mm512_fmadd_ps(about, off, about))
            }
        }
    }

    /// A bit for each of the first `count` of sixteen lanes.
    fn first(count: usize) -> u16 {
        ((1u32 << count.min(16)) - 1) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::Level;

    #[inline(always)]
    unsafe fn any<V: Vector>(x: &[f32; 16]) -> [f32; 16] {
        let mut y = [0f32; 16];
        // SAFETY: sixteen floats each; the caller's promise.
        unsafe { V::load(x.as_ptr()).sigmoid().store(y.as_mut_ptr()) };
        y
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(x: &[f32; 16]) -> [f32; 16] {
        // SAFETY: the caller's promise.
        unsafe { any::<Avx2>(x) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn avx512(x: &[f32; 16]) -> [f32; 16] {
        // SAFETY: the caller's promise.
        unsafe { any::<Avx512>(x) }
    }

    #[test]
    fn the_sigmoid_is_that_of_double_precision() {
        for level in Level::available() {
            let of = |x: &[f32; 16]| {
                // SAFETY: the level is available.
                unsafe {
                    match level {
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx512 => avx512(x),
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx2 => avx2(x),
                        _ => any::<Portable>(x),
                    }
                }
            };
            for i in -50_000..50_000i32 {
                let x: [f32; 16] = std::array::from_fn(|lane| (i * 16 + lane as i32) as f32 * 1e-4);
                for (x, y) in x.into_iter().zip(of(&x)) {
                    let truth = 1.0 / (1.0 + (-f64::from(x)).exp());
                    let error = (f64::from(y) - truth).abs() / truth;
                    let most = 4.0 * f64::from(f32::EPSILON);
                    assert!(error < most, "{level:?}: sigmoid({x}) is off by {error:e}");
                }
            }
            let mut x = [f32::NAN; 16];
            x[..4].copy_from_slice(&[1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY]);
            let y = of(&x);
            assert_eq!((y[0], y[2]), (1.0, 1.0), "{level:?}");
            assert!(y[1] < 1e-37 && y[3] < 1e-37, "{level:?}");
            assert!(y[4..].iter().all(|y| y.is_nan()), "{level:?}");
        }
    }
}

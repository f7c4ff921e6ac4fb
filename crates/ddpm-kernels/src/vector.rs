//! Sixteen floats at a time, at each level of the processor.
#![allow(unsafe_code)] // this file is where the intrinsics are

use crate::bf16::{Bf16, Element};

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
    /// Sixteen numbers in bf16, widened.
    unsafe fn load_halves(from: *const Bf16) -> Self;
    /// Narrowed as by [`Bf16`]'s `narrow`, to the last bit.
    unsafe fn store_halves(self, to: *mut Bf16);
    /// Sixteen pairs of numbers narrowed so: of each the one of `self`, then that of `odd`.
    unsafe fn store_pairs(self, odd: Self, to: *mut Bf16);
    /// Sixteen rows of sixteen numbers become columns; rows are `from_row` and `to_row` numbers apart.
    unsafe fn turn_halves(from: *const Bf16, from_row: usize, to: *mut Bf16, to_row: usize);
    /// Zero wherever one of sixteen bytes is.
    unsafe fn kept(self, kept: *const u8) -> Self;
    /// The smaller of the two; NaN stays.
    unsafe fn at_most(self, most: Self) -> Self;
    /// The larger of the two; NaN stays.
    unsafe fn at_least(self, least: Self) -> Self;
    /// 2^n of a whole number n to which [`ROUNDER`] was added, -126 <= n <= 127.
    unsafe fn power_of_two(self) -> Self;
    /// 1 / x to two units in the last place, for x from 1 to 1e38.
    unsafe fn reciprocal(self) -> Self;

    /// Zero where `x` is below `least`.
    unsafe fn unless_below(self, x: Self, least: Self) -> Self;

    /// e^x to some units in the last place, with [`crate::simd::exp`]'s polynomial; beyond ±87 it stays. NaN stays.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the trait's contract.
        unsafe {
            let x = self.at_most(Self::splat(87.0)).at_least(Self::splat(-87.0));
            let shifted = Self::splat(ROUNDER).fused(x, Self::splat(std::f32::consts::LOG2_E));
            let n = shifted.sub(Self::splat(ROUNDER));
            let r = x
                .fused(n, Self::splat(-0.693_359_4))
                .fused(n, Self::splat(2.121_944_4e-4)); // ln 2 in two parts
            let p = Self::splat(1.398_2e-3).fused(Self::splat(1.987_569_1e-4), r);
            let p = Self::splat(8.333_452e-3).fused(p, r);
            let p = Self::splat(4.166_579_6e-2).fused(p, r);
            let p = Self::splat(1.666_666_5e-1).fused(p, r);
            let p = Self::splat(5.000_000_3e-1).fused(p, r);
            let e_r = r.fused(p, r.mul(r)).add(Self::splat(1.0));
            e_r.mul(shifted.power_of_two())
        }
    }

    /// 1 / (1 + e^-x) to some units in the last place.
    #[inline(always)]
    unsafe fn sigmoid(self) -> Self {
        // SAFETY: the trait's contract.
        unsafe {
            let of_minus = Self::zero().sub(self).exp();
            Self::splat(1.0).add(of_minus).reciprocal()
        }
    }
}

/// 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
const ROUNDER: f32 = 12_582_912.0;
/// What is added to the bits of n + ROUNDER, before they become those of an exponent.
const TO_EXPONENT: i32 = 127 - ROUNDER.to_bits() as i32;

/// Numbers narrowed and in pairs.
#[inline(always)]
fn pairs(even: [f32; 16], odd: [f32; 16]) -> [Bf16; 32] {
    let mut pairs = [Bf16(0); 32];
    for i in 0..16 {
        pairs[2 * i] = Bf16::narrow(even[i]);
        pairs[2 * i + 1] = Bf16::narrow(odd[i]);
    }
    pairs
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
    #[inline(always)]
    unsafe fn load_halves(from: *const Bf16) -> Self {
        // SAFETY: sixteen numbers, by the trait's contract.
        Portable(unsafe { from.cast::<[Bf16; 16]>().read_unaligned() }.map(Bf16::widen))
    }
    #[inline(always)]
    unsafe fn store_halves(self, to: *mut Bf16) {
        // SAFETY: sixteen numbers, by the trait's contract.
        unsafe {
            to.cast::<[Bf16; 16]>()
                .write_unaligned(self.0.map(Bf16::narrow));
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(self, odd: Self, to: *mut Bf16) {
        // SAFETY: thirty-two numbers, by the trait's contract.
        unsafe {
            to.cast::<[Bf16; 32]>()
                .write_unaligned(pairs(self.0, odd.0))
        }
    }
    #[inline(always)]
    unsafe fn turn_halves(from: *const Bf16, from_row: usize, to: *mut Bf16, to_row: usize) {
        for row in 0..16 {
            for column in 0..16 {
                // SAFETY: sixteen rows of sixteen numbers, by the trait's contract.
                unsafe { *to.add(column * to_row + row) = *from.add(row * from_row + column) };
            }
        }
    }
    #[inline(always)]
    unsafe fn kept(self, kept: *const u8) -> Self {
        // SAFETY: sixteen bytes, by the trait's contract.
        let kept = unsafe { kept.cast::<[u8; 16]>().read_unaligned() };
        Portable(std::array::from_fn(|i| {
            if kept[i] == 0 { 0.0 } else { self.0[i] }
        }))
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
    unsafe fn unless_below(self, x: Self, least: Self) -> Self {
        Portable(std::array::from_fn(|i| {
            if x.0[i] < least.0[i] { 0.0 } else { self.0[i] }
        }))
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
pub(crate) use x86::{Avx2, Avx512, Avx512Bf16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{TO_EXPONENT, Vector};
    use crate::bf16::{Bf16, Element};

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
                let mut quarters = [[_mm256_setzero_ps(); 8]; 4];
                for i in 0..8 {
                    quarters[0][i] = rows[i].0;
                    quarters[1][i] = rows[i].1;
                    quarters[2][i] = rows[8 + i].0;
                    quarters[3][i] = rows[8 + i].1;
                }
                let mut columns = rows;
                let (a, b) = (transpose_8(quarters[0]), transpose_8(quarters[1]));
                let (c, d) = (transpose_8(quarters[2]), transpose_8(quarters[3]));
                for i in 0..8 {
                    columns[i] = Avx2(a[i], c[i]);
                    columns[8 + i] = Avx2(b[i], d[i]);
                }
                columns
            }
        }
        #[inline(always)]
        unsafe fn load_halves(from: *const Bf16) -> Self {
            // SAFETY: as above, and sixteen numbers at the pointer.
            unsafe {
                let from = from.cast::<__m128i>();
                let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from));
                let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(1)));
                Avx2(
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
                )
            }
        }
        #[inline(always)]
        unsafe fn store_halves(self, to: *mut Bf16) {
            let mut floats = [0f32; 16];
            // SAFETY: as above, and sixteen numbers at the pointer.
            unsafe {
                self.store(floats.as_mut_ptr());
                let mut halves = [Bf16(0); 16];
                for (half, float) in halves.iter_mut().zip(floats) {
                    *half = Bf16::narrow(float);
                }
                to.cast::<[Bf16; 16]>().write_unaligned(halves);
            }
        }
        #[inline(always)]
        unsafe fn store_pairs(self, odd: Self, to: *mut Bf16) {
            let mut floats = [[0f32; 16]; 2];
            // SAFETY: as above, and thirty-two numbers at the pointer.
            unsafe {
                self.store(floats[0].as_mut_ptr());
                odd.store(floats[1].as_mut_ptr());
                let pairs = super::pairs(floats[0], floats[1]);
                to.cast::<[Bf16; 32]>().write_unaligned(pairs);
            }
        }
        #[inline(always)]
        unsafe fn turn_halves(from: *const Bf16, from_row: usize, to: *mut Bf16, to_row: usize) {
            // SAFETY: as above, and sixteen rows of sixteen numbers at both pointers.
            unsafe { turn_halves(from, from_row, to, to_row) }
        }
        #[inline(always)]
        unsafe fn kept(self, kept: *const u8) -> Self {
            // SAFETY: as above, and sixteen bytes at the pointer.
            unsafe {
                let bytes = _mm_loadu_si128(kept.cast());
                let low = _mm256_cvtepu8_epi32(bytes);
                let high = _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes));
                let zero = _mm256_setzero_si256();
                let low = _mm256_castsi256_ps(_mm256_cmpeq_epi32(low, zero));
                let high = _mm256_castsi256_ps(_mm256_cmpeq_epi32(high, zero));
                Avx2(
                    _mm256_andnot_ps(low, self.0),
                    _mm256_andnot_ps(high, self.1),
                )
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
        unsafe fn unless_below(self, x: Self, least: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let low = _mm256_cmp_ps::<_CMP_LT_OQ>(x.0, least.0);
                let high = _mm256_cmp_ps::<_CMP_LT_OQ>(x.1, least.1);
                Avx2(
                    _mm256_andnot_ps(low, self.0),
                    _mm256_andnot_ps(high, self.1),
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
            let mut pairs = rows;
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // Four rows each: columns i % 4 and 4 + i % 4 in the two halves.
            let mut fours = rows;
            for i in 0..4 {
                let first = i / 2 * 4 + i % 2;
                let (a, b) = (pairs[first], pairs[first + 2]);
                fours[2 * i] = _mm256_shuffle_ps::<0x44>(a, b);
                fours[2 * i + 1] = _mm256_shuffle_ps::<0xee>(a, b);
            }
            let mut columns = rows;
            for i in 0..4 {
                let (a, b) = (fours[i], fours[4 + i]);
                columns[i] = _mm256_permute2f128_ps::<0x20>(a, b);
                columns[4 + i] = _mm256_permute2f128_ps::<0x31>(a, b);
            }
            columns
        }
    }

    /// One register. Where the processor narrows to bf16 itself (AVX512-BF16), `NARROWS` has it do so.
    #[derive(Clone, Copy)]
    pub(crate) struct Wide<const NARROWS: bool>(__m512);

    pub(crate) type Avx512 = Wide<false>;
    pub(crate) type Avx512Bf16 = Wide<true>;

    impl<const NARROWS: bool> Vector for Wide<NARROWS> {
        const ACCUMULATORS: usize = 28;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the level's instructions, by the trait's contract; so in all of these.
            unsafe { Wide(_mm512_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            // SAFETY: as above.
            unsafe { Wide(_mm512_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as above, and sixteen floats at the pointer.
            unsafe { Wide(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as above, and sixteen floats at the pointer.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Wide(_mm512_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Wide(_mm512_sub_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: as above.
            unsafe { Wide(_mm512_mul_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn fused(self, a: Self, b: Self) -> Self {
            // SAFETY: as above.
            unsafe { Wide(_mm512_fmadd_ps(a.0, b.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn load_some(from: *const f32, count: usize) -> Self {
            // SAFETY: as above, and so many floats at the pointer; no others are touched.
            unsafe { Wide(_mm512_maskz_loadu_ps(first(count), from)) }
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
                let mut rows = rows;
                let mut pairs = rows;
                for i in 0..8 {
                    let (a, b) = (rows[2 * i].0, rows[2 * i + 1].0);
                    pairs[2 * i] = Wide(_mm512_unpacklo_ps(a, b));
                    pairs[2 * i + 1] = Wide(_mm512_unpackhi_ps(a, b));
                }
                // Four rows each: columns i % 4, and 4, 8 and 12 further, in the four quarters.
                let mut fours = rows;
                for i in 0..8 {
                    let first = i / 2 * 4 + i % 2;
                    let (a, b) = (pairs[first].0, pairs[first + 2].0);
                    fours[2 * i] = Wide(_mm512_shuffle_ps::<0x44>(a, b));
                    fours[2 * i + 1] = Wide(_mm512_shuffle_ps::<0xee>(a, b));
                }
                // Eight rows each: quarters 0 and 2 of columns, or 1 and 3.
                let mut eights = rows;
                for i in 0..8 {
                    let (half, column) = (i / 4 * 8, i % 4);
                    let (a, b) = (fours[half + column].0, fours[half + column + 4].0);
                    eights[half + column] = Wide(_mm512_shuffle_f32x4::<0x88>(a, b));
                    eights[half + column + 4] = Wide(_mm512_shuffle_f32x4::<0xdd>(a, b));
                }
                for i in 0..8 {
                    let (a, b) = (eights[i].0, eights[8 + i].0);
                    rows[i] = Wide(_mm512_shuffle_f32x4::<0x88>(a, b));
                    rows[8 + i] = Wide(_mm512_shuffle_f32x4::<0xdd>(a, b));
                }
                rows
            }
        }
        #[inline(always)]
        unsafe fn load_halves(from: *const Bf16) -> Self {
            // SAFETY: as above, and sixteen numbers at the pointer.
            unsafe {
                let widened = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Wide(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(widened)))
            }
        }
        #[inline(always)]
        unsafe fn store_halves(self, to: *mut Bf16) {
            // SAFETY: as above, and sixteen numbers at the pointer; AVX512-BF16 where `NARROWS`.
            unsafe {
                if NARROWS {
                    let half: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(self.0));
                    return _mm256_storeu_si256(to.cast(), half);
                }
                let half = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded(self.0)));
                _mm256_storeu_si256(to.cast(), half);
            }
        }
        #[inline(always)]
        unsafe fn store_pairs(self, odd: Self, to: *mut Bf16) {
            // SAFETY: as above, and thirty-two numbers at the pointer.
            unsafe {
                let (low, high) = if NARROWS {
                    let low: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(self.0));
                    let high: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(odd.0));
                    let high = _mm512_cvtepu16_epi32(high);
                    (_mm512_cvtepu16_epi32(low), _mm512_slli_epi32::<16>(high))
                } else {
                    let high = _mm512_set1_epi32(0xffff_0000u32.cast_signed());
                    (
                        _mm512_srli_epi32::<16>(rounded(self.0)),
                        _mm512_and_si512(rounded(odd.0), high),
                    )
                };
                _mm512_storeu_si512(to.cast(), _mm512_or_si512(low, high));
            }
        }
        #[inline(always)]
        unsafe fn turn_halves(from: *const Bf16, from_row: usize, to: *mut Bf16, to_row: usize) {
            // SAFETY: as above, and sixteen rows of sixteen numbers at both pointers.
            unsafe { turn_halves(from, from_row, to, to_row) }
        }
        #[inline(always)]
        unsafe fn kept(self, kept: *const u8) -> Self {
            // SAFETY: as above, and sixteen bytes at the pointer.
            unsafe {
                let bytes = _mm_loadu_si128(kept.cast());
                Wide(_mm512_maskz_mov_ps(
                    _mm_test_epi8_mask(bytes, bytes),
                    self.0,
                ))
            }
        }
        #[inline(always)]
        unsafe fn at_most(self, most: Self) -> Self {
            // SAFETY: as above. Of a NaN and a number the second argument is the result.
            unsafe { Wide(_mm512_min_ps(most.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn at_least(self, least: Self) -> Self {
            // SAFETY: as above.
            unsafe { Wide(_mm512_max_ps(least.0, self.0)) }
        }
        #[inline(always)]
        unsafe fn unless_below(self, x: Self, least: Self) -> Self {
            // SAFETY: as above.
            unsafe {
                let stays = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x.0, least.0);
                Wide(_mm512_maskz_mov_ps(stays, self.0))
            }
        }
        #[inline(always)]
        unsafe fn power_of_two(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let bits =
                    _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(TO_EXPONENT));
                Wide(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(bits)))
            }
        }
        /// An estimate of 14 bits and one step of Newton's: a division takes as long as half of a sigmoid.
        #[inline(always)]
        unsafe fn reciprocal(self) -> Self {
            // SAFETY: as above.
            unsafe {
                let about = _mm512_rcp14_ps(self.0);
                let off = _mm512_fnmadd_ps(self.0, about, _mm512_set1_ps(1.0));
                Wide(_mm512_fmadd_ps(about, off, about))
            }
        }
    }

    /// Bits whose upper halves are the numbers in bf16.
    #[inline(always)]
    unsafe fn rounded(x: __m512) -> __m512i {
        // SAFETY: only ever called where AVX-512 is.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, up);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let rounded = _mm512_mask_mov_epi32(rounded, nan, quiet);
            let least = _mm512_set1_ps(f32::MIN_POSITIVE);
            let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), least);
            let sign = _mm512_and_si512(bits, _mm512_set1_epi32(i32::MIN));
            _mm512_mask_mov_epi32(rounded, small, sign)
        }
    }

    /// Four rounds of pairs, of pairs of pairs and so on: after them a register has two columns' halves.
    #[inline(always)]
    unsafe fn turn_halves(from: *const Bf16, from_row: usize, to: *mut Bf16, to_row: usize) {
        // SAFETY: only ever called where AVX2 is, with sixteen rows of sixteen numbers at both pointers.
        unsafe {
            let mut rows = [_mm256_setzero_si256(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm256_loadu_si256(from.add(i * from_row).cast());
            }
            let mut twos = rows;
            for i in 0..8 {
                twos[i] = _mm256_unpacklo_epi16(rows[2 * i], rows[2 * i + 1]);
                twos[8 + i] = _mm256_unpackhi_epi16(rows[2 * i], rows[2 * i + 1]);
            }
            // Of four rows: columns 0 and 1, 2 and 3, 4 and 5, 6 and 7, and those eight further.
            let mut fours = rows;
            for half in 0..2 {
                for i in 0..4 {
                    let (a, b) = (twos[8 * half + 2 * i], twos[8 * half + 2 * i + 1]);
                    fours[4 * (2 * half) + i] = _mm256_unpacklo_epi32(a, b);
                    fours[4 * (2 * half + 1) + i] = _mm256_unpackhi_epi32(a, b);
                }
            }
            // Of eight rows: one column and the one eight further.
            for pair in 0..4 {
                for odd in 0..2 {
                    let column = 2 * pair + odd;
                    let of = |i: usize| (fours[4 * pair + 2 * i], fours[4 * pair + 2 * i + 1]);
                    let ((a, b), (c, d)) = (of(0), of(1));
                    let (low, high) = if odd == 0 {
                        (_mm256_unpacklo_epi64(a, b), _mm256_unpacklo_epi64(c, d))
                    } else {
                        (_mm256_unpackhi_epi64(a, b), _mm256_unpackhi_epi64(c, d))
                    };
                    let first = _mm256_permute2x128_si256::<0x20>(low, high);
                    let second = _mm256_permute2x128_si256::<0x31>(low, high);
                    _mm256_storeu_si256(to.add(column * to_row).cast(), first);
                    _mm256_storeu_si256(to.add((column + 8) * to_row).cast(), second);
                }
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
    use crate::processor::{Level, Products};

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

    #[inline(always)]
    unsafe fn narrowed<V: Vector>(x: &[f32; 16]) -> ([Bf16; 16], [Bf16; 32], [f32; 16]) {
        let (mut half, mut pairs, mut wide) = ([Bf16(0); 16], [Bf16(0); 32], [0f32; 16]);
        // SAFETY: as many numbers as are touched; the caller's promise.
        unsafe {
            let v = V::load(x.as_ptr());
            v.store_halves(half.as_mut_ptr());
            v.store_pairs(v.sub(v), pairs.as_mut_ptr());
            V::load_halves(half.as_ptr()).store(wide.as_mut_ptr());
        }
        (half, pairs, wide)
    }

    #[inline(always)]
    unsafe fn turned<V: Vector>(x: &[Bf16]) -> Vec<Bf16> {
        let mut y = vec![Bf16(7); 16 * 21];
        // SAFETY: sixteen rows of sixteen each; the caller's promise.
        unsafe { V::turn_halves(x.as_ptr(), 19, y.as_mut_ptr(), 21) };
        y
    }

    macro_rules! at_level {
        ($level:expr, $name:ident, $argument:ty, $result:ty, $value:expr) => {{
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2(x: $argument) -> $result {
                // SAFETY: the caller's promise.
                unsafe { $name::<Avx2>(x) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            unsafe fn avx512(x: $argument) -> $result {
                // SAFETY: the caller's promise.
                unsafe { $name::<Avx512>(x) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
            unsafe fn narrows(x: $argument) -> $result {
                // SAFETY: the caller's promise.
                unsafe { $name::<Avx512Bf16>(x) }
            }
            // SAFETY: the level is available.
            unsafe {
                match $level {
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx512, false) => avx512($value),
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx512, true) => narrows($value),
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx2, _) => avx2($value),
                    _ => $name::<Portable>($value),
                }
            }
        }};
    }

    fn levels() -> Vec<(Level, bool)> {
        let mut levels: Vec<_> = Level::available().into_iter().map(|l| (l, false)).collect();
        if Products::available().contains(&Products::Avx512) {
            levels.push((Level::Avx512, true));
        }
        levels
    }

    #[test]
    fn narrowing_gives_the_same_bits_at_every_level() {
        for level in levels() {
            // All exponents and signs with the bits that decide the rounding, NaN and infinities among them.
            for high in 0..=0xffffu32 {
                let low = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1234, 0xc000];
                let x = std::array::from_fn(|i| {
                    f32::from_bits((high << 16 | low[i % 8]) ^ ((i as u32 / 8) << 16))
                });
                let (half, pairs, wide) = at_level!(
                    level,
                    narrowed,
                    &[f32; 16],
                    ([Bf16; 16], [Bf16; 32], [f32; 16]),
                    &x
                );
                for i in 0..16 {
                    assert_eq!(
                        half[i],
                        Bf16::narrow(x[i]),
                        "{level:?} {:x}",
                        x[i].to_bits()
                    );
                    assert_eq!(pairs[2 * i], half[i], "{level:?}");
                    assert_eq!(pairs[2 * i + 1], Bf16::narrow(x[i] - x[i]), "{level:?}");
                    assert_eq!(wide[i].to_bits(), half[i].widen().to_bits(), "{level:?}");
                }
            }
        }
    }

    #[test]
    fn rows_of_halves_become_columns_at_every_level() {
        let x: Vec<Bf16> = (0..16 * 19).map(Bf16).collect();
        for level in levels() {
            let y = at_level!(level, turned, &[Bf16], Vec<Bf16>, &x);
            for (i, y) in y.into_iter().enumerate() {
                let (row, column) = (i / 21, i % 21);
                let expected = if column < 16 {
                    x[column * 19 + row]
                } else {
                    Bf16(7)
                };
                assert_eq!(y, expected, "{level:?} {row} {column}");
            }
        }
    }
}

//! The inner loop in bf16: squares of 16 by 16 sums, at most two by two of them, in AMX's tiles, by AVX-512's dot products,
//! or as AMX adds them up but without it.
//!
//! A step multiplies 16 rows of 32 numbers with 16 pairs of rows of 16 numbers. AMX adds up the products of the even and
//! those of the odd numbers from zero, each sum in turn, and adds the sum of both to what was there; AVX-512 adds one product
//! after the other, of each pair the odd one first. Both round to the nearest after each addition and take numbers below
//! 2^-126 for zero.
#![allow(unsafe_code)] // pointers into tiles that were laid out before, and the instructions themselves

use super::{Bf16, Element};
use crate::processor::{Level, Products};

/// Rows of a square, and columns.
pub(crate) const SIDE: usize = 16;
/// Numbers that are multiplied and added up in a step.
pub(crate) const DEPTH: usize = 32;
/// Numbers of a tile of either side, and sums of a square: 1 KiB.
pub(crate) const TILE: usize = SIDE * DEPTH;
pub(crate) const SQUARE: usize = SIDE * SIDE;

/// sums\[m, n\] (+)= Σ over chunks, taps and k < DEPTH of a\[m\]\[chunk, tap, k\] b\[chunk, tap\]\[k, n\].
#[derive(Clone, Copy)]
pub(crate) struct Squares<'a> {
    /// The first row's numbers of the first chunk.
    pub(crate) a: *const Bf16,
    /// From one row to the next.
    pub(crate) a_row: usize,
    /// From one chunk to the next, and how many there are.
    pub(crate) a_chunk: usize,
    pub(crate) chunks: usize,
    /// Where each tap reads, from the chunk's beginning.
    pub(crate) taps: &'a [usize],
    /// Tiles of 16 by 16 pairs, one after the other `b_step` apart for each chunk and tap.
    pub(crate) b: *const Bf16,
    pub(crate) b_step: usize,
    /// From the tiles of the first square's columns to those of the second's.
    pub(crate) b_column: usize,
    /// Squares below and beside each other, 1 or 2.
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// SQUARE floats for each, those beside each other following each other.
    pub(crate) sums: *mut f32,
    /// From one square to the one below.
    pub(crate) sums_row: usize,
    /// Adds to the sums that are there.
    pub(crate) accumulate: bool,
}

/// Makes the thread ready for [`Session::multiply`], which AMX wants; dropped, it lets go of the tiles.
pub(crate) struct Session {
    products: Products,
    level: Level,
}

impl Session {
    pub(crate) fn new() -> Self {
        let products = Products::current();
        #[cfg(target_arch = "x86_64")]
        if products == Products::Amx {
            amx::begin();
        }
        Session {
            products,
            level: Level::current(),
        }
    }

    /// # Safety
    /// All tiles lie in memory, and nothing else touches the sums.
    pub(crate) unsafe fn multiply(&self, it: &Squares<'_>) {
        // SAFETY: the caller's promise; the instructions are there, since products are only ever chosen of those that the
        // processor has.
        unsafe {
            match (self.products, self.level) {
                #[cfg(target_arch = "x86_64")]
                (Products::Amx, _) => amx::multiply(it),
                #[cfg(target_arch = "x86_64")]
                (Products::Avx512, _) => avx512::multiply(it),
                #[cfg(target_arch = "x86_64")]
                (Products::Emulated, Level::Avx512) => emulated::avx512(it),
                #[cfg(target_arch = "x86_64")]
                (Products::Emulated, Level::Avx2) => emulated::avx2(it),
                _ => emulated::multiply(it),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.products == Products::Amx {
            amx::end();
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod amx {
    use std::arch::asm;

    use super::*;

    /// Eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Configuration {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes_of_row: [u16; 16],
        rows: [u8; 16],
    }

    static CONFIGURATION: Configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes_of_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    pub(super) fn begin() {
        // SAFETY: `Products::Amx` is only ever chosen where the tiles are and the system has allowed them.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly))
        }
    }

    pub(super) fn end() {
        // SAFETY: as above.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }

    pub(super) unsafe fn multiply(it: &Squares<'_>) {
        // SAFETY: the caller's promise.
        unsafe {
            match (it.rows, it.columns) {
                (1, 1) => run::<1, 1>(it),
                (1, _) => run::<1, 2>(it),
                (_, 1) => run::<2, 1>(it),
                _ => run::<2, 2>(it),
            }
        }
    }

    /// Tiles 0 to 3 are the sums, 4 and 5 rows of a, 6 and 7 columns of b.
    unsafe fn run<const ROWS: usize, const COLUMNS: usize>(it: &Squares<'_>) {
        const LINE: usize = 64;
        // SAFETY: the caller's promise; no compiler touches tiles, so that they keep their numbers from one block to the next.
        unsafe {
            let below = it.sums.add(it.sums_row);
            if it.accumulate {
                asm!("tileloadd tmm0, [{s} + {l}]", s = in(reg) it.sums, l = in(reg) LINE, options(nostack, readonly));
                if COLUMNS == 2 {
                    asm!("tileloadd tmm1, [{s} + {l}]", s = in(reg) it.sums.add(SQUARE), l = in(reg) LINE, options(nostack, readonly));
                }
                if ROWS == 2 {
                    asm!("tileloadd tmm2, [{s} + {l}]", s = in(reg) below, l = in(reg) LINE, options(nostack, readonly));
                }
                if ROWS == 2 && COLUMNS == 2 {
                    asm!("tileloadd tmm3, [{s} + {l}]", s = in(reg) below.add(SQUARE), l = in(reg) LINE, options(nostack, readonly));
                }
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                );
            }
            let stride = it.a_row * 2;
            let mut b = it.b;
            let mut chunk = it.a;
            for _ in 0..it.chunks {
                for &tap in it.taps {
                    let a = chunk.add(tap);
                    let a_below = a.add(SIDE * it.a_row);
                    let b_beside = b.add(it.b_column);
                    match (ROWS, COLUMNS) {
                        (1, 1) => asm!(
                            "tileloadd tmm4, [{a} + {s}]",
                            "tileloadd tmm6, [{b} + {l}]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            a = in(reg) a, s = in(reg) stride, b = in(reg) b, l = in(reg) LINE,
                            options(nostack, readonly)
                        ),
                        (1, 2) => asm!(
                            "tileloadd tmm4, [{a} + {s}]",
                            "tileloadd tmm6, [{b} + {l}]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            "tileloadd tmm7, [{c} + {l}]",
                            "tdpbf16ps tmm1, tmm4, tmm7",
                            a = in(reg) a, s = in(reg) stride, b = in(reg) b, c = in(reg) b_beside, l = in(reg) LINE,
                            options(nostack, readonly)
                        ),
                        (2, 1) => asm!(
                            "tileloadd tmm6, [{b} + {l}]",
                            "tileloadd tmm4, [{a} + {s}]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            "tileloadd tmm5, [{d} + {s}]",
                            "tdpbf16ps tmm2, tmm5, tmm6",
                            a = in(reg) a, d = in(reg) a_below, s = in(reg) stride, b = in(reg) b, l = in(reg) LINE,
                            options(nostack, readonly)
                        ),
                        _ => asm!(
                            "tileloadd tmm6, [{b} + {l}]",
                            "tileloadd tmm4, [{a} + {s}]",
                            "tileloadd tmm7, [{c} + {l}]",
                            "tdpbf16ps tmm0, tmm4, tmm6",
                            "tileloadd tmm5, [{d} + {s}]",
                            "tdpbf16ps tmm1, tmm4, tmm7",
                            "tdpbf16ps tmm2, tmm5, tmm6",
                            "tdpbf16ps tmm3, tmm5, tmm7",
                            a = in(reg) a, d = in(reg) a_below, s = in(reg) stride,
                            b = in(reg) b, c = in(reg) b_beside, l = in(reg) LINE,
                            options(nostack, readonly)
                        ),
                    }
                    b = b.add(it.b_step);
                }
                chunk = chunk.wrapping_add(it.a_chunk);
            }
            asm!("tilestored [{s} + {l}], tmm0", s = in(reg) it.sums, l = in(reg) LINE, options(nostack));
            if COLUMNS == 2 {
                asm!("tilestored [{s} + {l}], tmm1", s = in(reg) it.sums.add(SQUARE), l = in(reg) LINE, options(nostack));
            }
            if ROWS == 2 {
                asm!("tilestored [{s} + {l}], tmm2", s = in(reg) below, l = in(reg) LINE, options(nostack));
            }
            if ROWS == 2 && COLUMNS == 2 {
                asm!("tilestored [{s} + {l}], tmm3", s = in(reg) below.add(SQUARE), l = in(reg) LINE, options(nostack));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    /// Rows whose sums are kept in registers at once.
    const ROWS: usize = 8;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn multiply(it: &Squares<'_>) {
        for row in (0..it.rows * SIDE).step_by(ROWS) {
            // SAFETY: the caller's promise.
            unsafe {
                let sums = it.sums.add(row / SIDE * it.sums_row + row % SIDE * SIDE);
                match it.columns {
                    1 => rows::<1>(it, it.a.add(row * it.a_row), sums),
                    _ => rows::<2>(it, it.a.add(row * it.a_row), sums),
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn rows<const COLUMNS: usize>(it: &Squares<'_>, a: *const Bf16, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); COLUMNS]; ROWS];
            if it.accumulate {
                for (m, sums) in sums.iter_mut().enumerate() {
                    for (n, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_loadu_ps(to.add(n * SQUARE + m * SIDE));
                    }
                }
            }
            let (mut b, mut chunk) = (it.b, a);
            for _ in 0..it.chunks {
                for &tap in it.taps {
                    let a = chunk.add(tap);
                    for k in 0..DEPTH / 2 {
                        let mut of_b = [_mm512_setzero_si512(); COLUMNS];
                        for (n, of_b) in of_b.iter_mut().enumerate() {
                            *of_b = _mm512_loadu_si512(b.add(n * it.b_column + k * DEPTH).cast());
                        }
                        for (m, sums) in sums.iter_mut().enumerate() {
                            let pair = a.add(m * it.a_row + 2 * k).cast::<i32>().read_unaligned();
                            let pair = _mm512_set1_epi32(pair);
                            for (sum, &of_b) in sums.iter_mut().zip(&of_b) {
                                *sum = _mm512_dpbf16_ps(
                                    *sum,
                                    std::mem::transmute::<__m512i, __m512bh>(pair),
                                    std::mem::transmute::<__m512i, __m512bh>(of_b),
                                );
                            }
                        }
                    }
                    b = b.add(it.b_step);
                }
                chunk = chunk.wrapping_add(it.a_chunk);
            }
            for (m, sums) in sums.iter().enumerate() {
                for (n, &sum) in sums.iter().enumerate() {
                    _mm512_storeu_ps(to.add(n * SQUARE + m * SIDE), sum);
                }
            }
        }
    }
}

mod emulated {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn avx512(it: &Squares<'_>) {
        // SAFETY: the caller's promise.
        unsafe { multiply(it) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(it: &Squares<'_>) {
        // SAFETY: the caller's promise.
        unsafe { multiply(it) }
    }

    /// As AMX adds up. A product of two numbers is exact in f32, so that it does not matter that it is not fused.
    #[inline(always)]
    pub(super) unsafe fn multiply(it: &Squares<'_>) {
        for square in 0..it.rows * it.columns {
            let (row, column) = (square / it.columns, square % it.columns);
            // SAFETY: the caller's promise.
            unsafe {
                let sums = it
                    .sums
                    .add(row * it.sums_row + column * SQUARE)
                    .cast::<[f32; SIDE]>();
                if !it.accumulate {
                    sums.cast::<[f32; SQUARE]>().write_unaligned([0.0; SQUARE]);
                }
                let mut b = it.b.add(column * it.b_column);
                for chunk in 0..it.chunks {
                    for &tap in it.taps {
                        let a = it.a.add(row * SIDE * it.a_row + chunk * it.a_chunk + tap);
                        for m in 0..SIDE {
                            let a = a.add(m * it.a_row).cast::<[Bf16; DEPTH]>().read_unaligned();
                            let sum = sums.add(m);
                            sum.write_unaligned(step(sum.read_unaligned(), &a, b));
                        }
                        b = b.add(it.b_step);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn step(mut sums: [f32; SIDE], a: &[Bf16; DEPTH], b: *const Bf16) -> [f32; SIDE] {
        let (mut even, mut odd) = ([0f32; SIDE], [0f32; SIDE]);
        for k in 0..DEPTH / 2 {
            // SAFETY: the caller's promise.
            let pairs = unsafe { b.add(k * DEPTH).cast::<[u32; SIDE]>().read_unaligned() };
            let (a_even, a_odd) = (a[2 * k].widen(), a[2 * k + 1].widen());
            for n in 0..SIDE {
                even[n] = normal(even[n] + a_even * f32::from_bits(pairs[n] << 16));
                odd[n] = normal(odd[n] + a_odd * f32::from_bits(pairs[n] & 0xffff_0000));
            }
        }
        for n in 0..SIDE {
            sums[n] = normal(sums[n] + normal(even[n] + odd[n]));
        }
        sums
    }

    #[inline(always)]
    fn normal(x: f32) -> f32 {
        if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::pool_of;

    /// Numbers of all signs, some tiny, some zero.
    fn wave(length: usize, seed: u32) -> Vec<Bf16> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let value = |_| {
            let size = [1.0, 1.0, 1.0, 1e-3, 1e-20, 0.0][next() as usize % 6];
            Bf16::narrow((next() as f32 / (1 << 23) as f32 - 1.0) * size)
        };
        (0..length).map(value).collect()
    }

    struct Case {
        a: Vec<Bf16>,
        b: Vec<Bf16>,
        taps: Vec<usize>,
        rows: usize,
        columns: usize,
        chunks: usize,
    }

    const ROW: usize = 40;

    impl Case {
        fn new(rows: usize, columns: usize, chunks: usize, taps: &[usize]) -> Self {
            let most = taps.iter().max().unwrap();
            let length = (chunks - 1) * 7 * DEPTH + most + (rows * SIDE - 1) * ROW + DEPTH;
            Case {
                a: wave(length, 1),
                b: wave(columns * chunks * taps.len() * TILE, 2),
                taps: taps.to_vec(),
                rows,
                columns,
                chunks,
            }
        }

        fn run(&self, products: Products, level: Level, start: Option<f32>) -> Vec<f32> {
            let mut sums = vec![start.unwrap_or(f32::NAN); self.rows * self.columns * SQUARE];
            pool_of(level, products, 1).unwrap().install(|| {
                let it = Squares {
                    a: self.a.as_ptr(),
                    a_row: ROW,
                    a_chunk: 7 * DEPTH,
                    chunks: self.chunks,
                    taps: &self.taps,
                    b: self.b.as_ptr(),
                    b_step: self.columns * TILE,
                    b_column: TILE,
                    rows: self.rows,
                    columns: self.columns,
                    sums: sums.as_mut_ptr(),
                    sums_row: self.columns * SQUARE,
                    accumulate: start.is_some(),
                };
                // SAFETY: a reaches to the last row's last number, b has all tiles, and the sums are this function's.
                unsafe { Session::new().multiply(&it) }
            });
            sums
        }

        /// Each sum by f(sum, products in order), and Σ |a b|.
        fn by_hand(
            &self,
            start: f32,
            f: impl Fn(f32, &[[Bf16; 2]]) -> f32,
        ) -> Vec<(f32, f64, f64)> {
            let of = |place: usize| {
                let (square, m, n) = (place / SQUARE, place / SIDE % SIDE, place % SIDE);
                let (row, column) = (square / self.columns, square % self.columns);
                let (mut sum, mut exact, mut size) =
                    (start, f64::from(start), f64::from(start.abs()));
                for step in 0..self.chunks * self.taps.len() {
                    let (chunk, tap) = (step / self.taps.len(), step % self.taps.len());
                    let a = &self.a[(row * SIDE + m) * ROW + chunk * 7 * DEPTH + self.taps[tap]..]
                        [..DEPTH];
                    let b = &self.b[(step * self.columns + column) * TILE..][..TILE];
                    let pairs: Vec<[Bf16; 2]> = (0..DEPTH)
                        .map(|k| [a[k], b[k / 2 * DEPTH + 2 * n + k % 2]])
                        .collect();
                    sum = f(sum, &pairs);
                    for [a, b] in &pairs {
                        let product = f64::from(a.widen()) * f64::from(b.widen());
                        exact += product;
                        size += product.abs();
                    }
                }
                (sum, exact, size)
            };
            (0..self.rows * self.columns * SQUARE).map(of).collect()
        }
    }

    fn cases() -> Vec<Case> {
        vec![
            Case::new(1, 1, 1, &[0]),
            Case::new(2, 1, 3, &[0, 32, 5]),
            Case::new(1, 2, 2, &[96, 0]),
            Case::new(2, 2, 5, &[3, 32, 64]),
        ]
    }

    fn normal(x: f32) -> f32 {
        if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
    }

    #[test]
    fn tiles_and_their_emulation_at_every_level_agree_to_the_last_bit() {
        for case in cases() {
            for start in [None, Some(0.75)] {
                let expected = case.by_hand(start.unwrap_or(0.0), |sum, pairs| {
                    let of = |first: usize| {
                        let add = |sum: f32, [a, b]: &[Bf16; 2]| {
                            normal(a.widen().mul_add(b.widen(), sum))
                        };
                        pairs.iter().skip(first).step_by(2).fold(0.0, add)
                    };
                    normal(sum + normal(of(0) + of(1)))
                });
                for products in Products::available()
                    .into_iter()
                    .filter(|p| *p != Products::Avx512)
                {
                    let levels = match products {
                        Products::Emulated => Level::available(),
                        _ => vec![Level::Avx512],
                    };
                    for level in levels {
                        let found = case.run(products, level, start);
                        for (found, (expected, exact, size)) in found.iter().zip(&expected) {
                            assert_eq!(
                                found.to_bits(),
                                expected.to_bits(),
                                "{products:?} {level:?}: {found} {expected}"
                            );
                            let steps = (case.chunks * case.taps.len() + DEPTH / 2 + 1) as f64;
                            let bound = steps * f64::from(f32::EPSILON) * size + 1e-37;
                            assert!(
                                (f64::from(*found) - exact).abs() <= bound,
                                "{found} {exact}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn dot_products_of_pairs_add_the_odd_one_first() {
        if !Products::available().contains(&Products::Avx512) {
            eprintln!("skipped: this processor has no AVX512-BF16");
            return;
        }
        for case in cases() {
            for start in [None, Some(0.75)] {
                let expected = case.by_hand(start.unwrap_or(0.0), |sum, pairs| {
                    let add =
                        |sum: f32, [a, b]: [Bf16; 2]| normal(a.widen().mul_add(b.widen(), sum));
                    pairs
                        .chunks(2)
                        .fold(sum, |sum, pair| add(add(sum, pair[1]), pair[0]))
                });
                let found = case.run(Products::Avx512, Level::Avx512, start);
                for (found, (expected, ..)) in found.iter().zip(&expected) {
                    assert_eq!(found.to_bits(), expected.to_bits(), "{found} {expected}");
                }
            }
        }
    }
}

//! The two inner loops of everything that multiplies: a tile of pixels by output channels, and a tile of weights' gradients.
//!
//! Both read pixels of sixteen channels side by side. The first keeps `pixels x 16 columns` sums in registers while it
//! runs over taps and input channels; the second keeps `inputs x 16 columns` sums while it runs over pixels. Every sum is
//! added up in one order, whatever tile it falls into, so that neither the batch nor the threads change a bit.
#![allow(unsafe_code)] // pointers into tiles that were laid out before

use crate::processor::Level;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};
use crate::vector::{Portable, Vector};

/// Channels that lie side by side in memory: one vector.
pub(crate) const LANES: usize = 16;

/// Some pixels of a row times the weights of a slab of output channels:
/// y\[m, n\] = (bias\[n\] + plus\[m, n\] + Σ over taps and channels of x\[m + tap, c\] w\[tap, c, n\]) scale.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    /// The first pixel under the first tap; pixels lie LANES apart.
    pub(crate) x: *const f32,
    /// From one block of LANES channels of x to the next.
    pub(crate) x_block: usize,
    /// Channels, of which the last block may have fewer than LANES.
    pub(crate) channels: usize,
    /// Where each tap reads, from the first pixel.
    pub(crate) taps: &'a [usize],
    /// The slab: for each block of x, tap and channel a row of `columns * LANES` weights.
    pub(crate) weights: *const f32,
    /// The first output; `columns` blocks of LANES floats for each pixel.
    pub(crate) y: *mut f32,
    /// From one pixel of y to the next.
    pub(crate) y_pixel: usize,
    /// From one block of y to the next.
    pub(crate) y_block: usize,
    /// LANES floats for each block of columns, or null for none.
    pub(crate) bias: *const f32,
    /// From one block of the bias to the next.
    pub(crate) bias_block: usize,
    /// Laid out as y (it may be y), or null for none.
    pub(crate) plus: *const f32,
    pub(crate) scale: f32,
}

/// The gradient of the weights of some input channels and a slab of output channels under one tap:
/// dw\[i, n\] += Σ over pixels of x\[pixel, i\] dy\[pixel, n\].
#[derive(Clone, Copy)]
pub(crate) struct Outer {
    /// The first pixel's first of the input channels; pixels lie LANES apart.
    pub(crate) x: *const f32,
    /// From one image and row of pixels of x to the next.
    pub(crate) x_image: usize,
    pub(crate) x_row: usize,
    /// The first pixel's first block of output channels; pixels lie LANES apart.
    pub(crate) dy: *const f32,
    /// From one image, row of pixels and block of LANES channels of dy to the next.
    pub(crate) dy_image: usize,
    pub(crate) dy_row: usize,
    pub(crate) dy_block: usize,
    pub(crate) images: usize,
    pub(crate) rows: usize,
    pub(crate) pixels: usize,
    /// Rows of `columns * LANES` floats, one for each input channel.
    pub(crate) dw: *mut f32,
}

pub(crate) type MultiplyTile = unsafe fn(&Product<'_>);
pub(crate) type OuterTile = unsafe fn(&Outer);

/// Sums that a level keeps in registers, in vectors.
pub(crate) fn accumulators(level: Level) -> usize {
    match level {
        Level::Portable => Portable::ACCUMULATORS,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => Avx2::ACCUMULATORS,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => Avx512::ACCUMULATORS,
        #[cfg(not(target_arch = "x86_64"))]
        _ => Portable::ACCUMULATORS,
    }
}

/// The most pixels of a tile of so many blocks of output channels; 0 where such a slab is too wide for the level.
pub(crate) fn most_pixels(level: Level, columns: usize) -> usize {
    if columns > most_columns(level) {
        return 0;
    }
    (accumulators(level) / columns).min(MOST_PIXELS)
}

/// The most blocks of output channels in a slab.
pub(crate) fn most_columns(level: Level) -> usize {
    if level == Level::Avx512 { 4 } else { 1 }
}

const MOST_PIXELS: usize = 14;

/// Input channels that [`Outer`] takes at once, and the most blocks of output channels beside them.
pub(crate) fn outer_shape(level: Level) -> (usize, usize) {
    match level {
        Level::Avx512 => (8, 3),
        Level::Avx2 => (4, 1),
        Level::Portable => (2, 1),
    }
}

macro_rules! levels {
    ($run:ident, $argument:ty, $($parameter:ident),*) => {
        mod $run {
            use super::*;

            pub(super) unsafe fn portable<$(const $parameter: usize),*>(it: $argument) {
                // SAFETY: the caller's promise.
                unsafe { super::$run::run::<Portable, $($parameter),*>(it) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            pub(super) unsafe fn avx2<$(const $parameter: usize),*>(it: $argument) {
                // SAFETY: the caller's promise.
                unsafe { super::$run::run::<Avx2, $($parameter),*>(it) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            pub(super) unsafe fn avx512<$(const $parameter: usize),*>(it: $argument) {
                // SAFETY: the caller's promise.
                unsafe { super::$run::run::<Avx512, $($parameter),*>(it) }
            }
            pub(super) use super::body::$run as run;
        }
    };
}
levels!(multiply, &Product<'_>, PIXELS, COLUMNS);
levels!(outer, &Outer, INPUTS, COLUMNS);

/// One entry for each number of pixels, from 1.
macro_rules! by_pixels {
    ($level:ident, $columns:literal, $pixels:expr, [$($n:literal),*]) => {
        match $pixels {
            $($n => multiply::$level::<$n, $columns>,)*
            _ => unreachable!("tiles are cut to fit"),
        }
    };
}

/// The loop for so many pixels and blocks of output channels.
pub(crate) fn multiply_tile(level: Level, pixels: usize, columns: usize) -> MultiplyTile {
    debug_assert!(pixels <= most_pixels(level, columns));
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => match columns {
            1 => by_pixels!(
                avx512,
                1,
                pixels,
                [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
            ),
            2 => by_pixels!(
                avx512,
                2,
                pixels,
                [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
            ),
            3 => by_pixels!(avx512, 3, pixels, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
            4 => by_pixels!(avx512, 4, pixels, [1, 2, 3, 4, 5, 6, 7]),
            _ => unreachable!("slabs are cut to fit"),
        },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => by_pixels!(avx2, 1, pixels, [1, 2, 3, 4, 5, 6]),
        _ => by_pixels!(portable, 1, pixels, [1, 2, 3, 4, 5, 6]),
    }
}

/// The loop for [`outer_shape`]'s inputs and so many blocks of output channels.
pub(crate) fn outer_tile(level: Level, columns: usize) -> OuterTile {
    match (level, columns) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 1) => outer::avx512::<8, 1>,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 2) => outer::avx512::<8, 2>,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512, 3) => outer::avx512::<8, 3>,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, 1) => outer::avx2::<4, 1>,
        (Level::Portable, 1) => outer::portable::<2, 1>,
        _ => unreachable!("slabs are cut to fit"),
    }
}

/// The loops themselves, once for all levels.
mod body {
    use super::{LANES, Outer, Product, Vector};

    #[inline(always)]
    pub(super) unsafe fn multiply<V: Vector, const PIXELS: usize, const COLUMNS: usize>(
        it: &Product<'_>,
    ) {
        // SAFETY: whoever laid out the tile promises that all pixels, taps, channels and columns lie in memory.
        unsafe {
            let mut sums = [[V::zero(); COLUMNS]; PIXELS];
            let mut weights = it.weights;
            let mut x = it.x;
            for _ in 0..it.channels / LANES {
                for &tap in it.taps {
                    let x = x.add(tap);
                    for c in 0..LANES {
                        step::<V, PIXELS, COLUMNS>(
                            &mut sums,
                            x.add(c),
                            weights.add(c * COLUMNS * LANES),
                        );
                    }
                    weights = weights.add(LANES * COLUMNS * LANES);
                }
                x = x.add(it.x_block);
            }
            if !it.channels.is_multiple_of(LANES) {
                for &tap in it.taps {
                    let x = x.add(tap);
                    for c in 0..it.channels % LANES {
                        step::<V, PIXELS, COLUMNS>(&mut sums, x.add(c), weights);
                        weights = weights.add(COLUMNS * LANES);
                    }
                }
            }
            finish(&sums, it);
        }
    }

    /// sums\[m, n\] += x\[m\] w\[n\] for one channel under one tap.
    #[inline(always)]
    unsafe fn step<V: Vector, const PIXELS: usize, const COLUMNS: usize>(
        sums: &mut [[V; COLUMNS]; PIXELS],
        x: *const f32,
        weights: *const f32,
    ) {
        // SAFETY: as `multiply`.
        unsafe {
            let mut w = [V::zero(); COLUMNS];
            for (n, w) in w.iter_mut().enumerate() {
                *w = V::load(weights.add(n * LANES));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let x = V::splat(*x.add(m * LANES));
                for (sum, &w) in sums.iter_mut().zip(&w) {
                    *sum = sum.fused(x, w);
                }
            }
        }
    }

    /// Adds bias and `plus`, scales, writes.
    #[inline(always)]
    unsafe fn finish<V: Vector, const PIXELS: usize, const COLUMNS: usize>(
        sums: &[[V; COLUMNS]; PIXELS],
        it: &Product<'_>,
    ) {
        // SAFETY: as `multiply`.
        unsafe {
            let scale = V::splat(it.scale);
            for (m, sums) in sums.iter().enumerate() {
                for (n, &sum) in sums.iter().enumerate() {
                    let place = m * it.y_pixel + n * it.y_block;
                    let mut sum = sum;
                    if !it.bias.is_null() {
                        sum = sum.add(V::load(it.bias.add(n * it.bias_block)));
                    }
                    if !it.plus.is_null() {
                        sum = sum.add(V::load(it.plus.add(place)));
                    }
                    sum.mul(scale).store(it.y.add(place));
                }
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn outer<V: Vector, const INPUTS: usize, const COLUMNS: usize>(it: &Outer) {
        // SAFETY: whoever laid out the tile promises that all pixels and channels lie in memory.
        unsafe {
            let mut sums = [[V::zero(); COLUMNS]; INPUTS];
            for (i, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(it.dw.add((i * COLUMNS + n) * LANES));
                }
            }
            let rows = (0..it.images).flat_map(|image| (0..it.rows).map(move |row| (image, row)));
            for (image, row) in rows {
                let mut x = it.x.add(image * it.x_image + row * it.x_row);
                let mut dy = it.dy.add(image * it.dy_image + row * it.dy_row);
                for _ in 0..it.pixels {
                    let mut g = [V::zero(); COLUMNS];
                    for (n, g) in g.iter_mut().enumerate() {
                        *g = V::load(dy.add(n * it.dy_block));
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let x = V::splat(*x.add(i));
                        for (sum, &g) in sums.iter_mut().zip(&g) {
                            *sum = sum.fused(x, g);
                        }
                    }
                    x = x.add(LANES);
                    dy = dy.add(LANES);
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    sum.store(it.dw.add((i * COLUMNS + n) * LANES));
                }
            }
        }
    }
}

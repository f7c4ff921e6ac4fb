//! Rows of floats turned into columns, sixteen by sixteen: between channels that lie apart and channels side by side.
#![allow(unsafe_code)] // pointers into memory that may hold nothing yet

use crate::processor::Level;
use crate::tile::LANES;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};
use crate::vector::{Portable, Vector};

/// A matrix to be read or written: its first element, and the floats from one row to the next.
#[derive(Clone, Copy)]
pub(crate) struct Rows<P> {
    pub(crate) first: P,
    pub(crate) stride: usize,
}

/// Writes each of `columns` columns of `from` as a row of `to`.
///
/// Where there are fewer than LANES `rows`, and `padded`, the rows written are LANES long and end with zeros.
///
/// # Safety
/// The matrices lie in memory, and nothing else touches `to`.
pub(crate) unsafe fn transpose(
    level: Level,
    from: Rows<*const f32>,
    (rows, columns): (usize, usize),
    to: Rows<*mut f32>,
    padded: bool,
) {
    // SAFETY: the caller's promise; a level is only ever chosen of those that the processor has.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512(from, (rows, columns), to, padded),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2(from, (rows, columns), to, padded),
            _ => any::<Portable>(from, (rows, columns), to, padded),
        }
    }
}

/// As [`transpose`] with padding, between slices, each with the floats from one row to the next.
pub(crate) fn transpose_slices(
    (from, from_stride): (&[f32], usize),
    (rows, columns): (usize, usize),
    (to, to_stride): (&mut [f32], usize),
) {
    let from = &from[..(rows - 1) * from_stride + columns];
    let to = &mut to[..(columns - 1) * to_stride + rows.next_multiple_of(LANES)];
    let (from, to) = (
        Rows {
            first: from.as_ptr(),
            stride: from_stride,
        },
        Rows {
            first: to.as_mut_ptr(),
            stride: to_stride,
        },
    );
    // SAFETY: both slices reach from the first to the last element of their matrices.
    unsafe { transpose(Level::current(), from, (rows, columns), to, true) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(from: Rows<*const f32>, shape: (usize, usize), to: Rows<*mut f32>, padded: bool) {
    // SAFETY: the caller's promise.
    unsafe { any::<Avx2>(from, shape, to, padded) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn avx512(from: Rows<*const f32>, shape: (usize, usize), to: Rows<*mut f32>, padded: bool) {
    // SAFETY: the caller's promise.
    unsafe { any::<Avx512>(from, shape, to, padded) }
}

#[inline(always)]
unsafe fn any<V: Vector>(
    from: Rows<*const f32>,
    (rows, columns): (usize, usize),
    to: Rows<*mut f32>,
    padded: bool,
) {
    for row in (0..rows).step_by(LANES) {
        for column in (0..columns).step_by(LANES) {
            let (height, width) = (LANES.min(rows - row), LANES.min(columns - column));
            // SAFETY: inside of both matrices.
            unsafe {
                let from = Rows {
                    first: from.first.add(row * from.stride + column),
                    ..from
                };
                let to = Rows {
                    first: to.first.add(column * to.stride + row),
                    ..to
                };
                if (height, width) == (LANES, LANES) {
                    whole::<V>(from, to);
                } else {
                    let written = if padded { LANES } else { height };
                    part::<V>(from, (height, width), to, written);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn whole<V: Vector>(from: Rows<*const f32>, to: Rows<*mut f32>) {
    // SAFETY: sixteen rows of sixteen lie in memory.
    unsafe {
        let mut tile = [V::zero(); LANES];
        for (row, tile) in tile.iter_mut().enumerate() {
            *tile = V::load(from.first.add(row * from.stride));
        }
        for (row, tile) in V::transpose(tile).into_iter().enumerate() {
            tile.store(to.first.add(row * to.stride));
        }
    }
}

#[inline(always)]
unsafe fn part<V: Vector>(
    from: Rows<*const f32>,
    (height, width): (usize, usize),
    to: Rows<*mut f32>,
    written: usize,
) {
    // SAFETY: so many rows and columns lie in memory, and no others are touched.
    unsafe {
        let mut tile = [V::zero(); LANES];
        // Loops of constant length keep the tile in registers.
        for (row, tile) in tile.iter_mut().enumerate() {
            if row < height {
                *tile = V::load_some(from.first.add(row * from.stride), width);
            }
        }
        for (row, tile) in V::transpose(tile).into_iter().enumerate() {
            if row < width {
                tile.store_some(to.first.add(row * to.stride), written);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_at_every_level() {
        for level in Level::available() {
            for (rows, columns) in [(1, 1), (16, 16), (3, 40), (40, 3), (17, 33), (35, 16)] {
                for padded in [false, true] {
                    check(level, rows, columns, padded);
                }
            }
        }
    }

    fn check(level: Level, rows: usize, columns: usize, padded: bool) {
        let (from_stride, to_stride) = (columns + 2, rows.next_multiple_of(LANES) + 1);
        let from: Vec<f32> = (0..rows * from_stride).map(|i| i as f32).collect();
        let mut to = vec![-1f32; columns * to_stride];
        let (from_rows, to_rows) = (
            Rows {
                first: from.as_ptr(),
                stride: from_stride,
            },
            Rows {
                first: to.as_mut_ptr(),
                stride: to_stride,
            },
        );
        // SAFETY: both vectors are as long as their matrices.
        unsafe { transpose(level, from_rows, (rows, columns), to_rows, padded) };
        for (i, &value) in to.iter().enumerate() {
            let (row, column) = (i / to_stride, i % to_stride);
            let expected = if column < rows {
                from[column * from_stride + row]
            } else if padded && column < rows.next_multiple_of(LANES) {
                0.0
            } else {
                -1.0
            };
            assert_eq!(
                value, expected,
                "{level:?} {rows} {columns} {padded} at {i}"
            );
        }
    }
}

//! Winograd's minimal filtering F(4x4, 3x3): sixteen outputs of a 3 by 3 kernel from 36 products instead of 144.
//!
//! Y = Aᵀ \[(G g Gᵀ) ∘ (Bᵀ d B)\] A for a tile d of 6 by 6 inputs and a kernel g (Lavin and Gray, arXiv:1509.09308, equation 8).
//! The matrices are those of Toom and Cook for the points 0, ±3/4, ±3/2 and infinity, not the usual 0, ±1, ±2: the error in
//! single precision is then 1.4 times that of adding up 9 products, where the usual points make it 5 times. All their
//! entries but G's are exact in binary.
#![allow(unsafe_code)] // pointers into tiles that were laid out before

use crate::processor::Level;
use crate::source::Window;
use crate::tile::LANES;
#[cfg(target_arch = "x86_64")]
use crate::vector::{Avx2, Avx512};
use crate::vector::{Portable, Vector};

/// Rows and columns of outputs of a tile.
pub(crate) const TILE: usize = 4;
/// Rows and columns of inputs of a tile.
const SPAN: usize = 6;
/// Products for each tile and pair of channels.
pub(crate) const POSITIONS: usize = SPAN * SPAN;

const P: f32 = 0.75;
const Q: f32 = 1.5;
const PP: f32 = P * P;
const QQ: f32 = Q * Q;
const BOTH: f32 = PP + QQ;
const PRODUCT: f32 = PP * QQ;

/// G, whose entries are not exact in binary: in double precision, rounded once.
const G: [[f32; 3]; SPAN] = {
    let (p, q) = (P as f64, Q as f64);
    let (of_p, of_q) = (2.0 * p * p * (p * p - q * q), 2.0 * q * q * (q * q - p * p));
    [
        [(1.0 / (p * p * q * q)) as f32, 0.0, 0.0],
        [
            (1.0 / of_p) as f32,
            (p / of_p) as f32,
            (p * p / of_p) as f32,
        ],
        [
            (1.0 / of_p) as f32,
            (-p / of_p) as f32,
            (p * p / of_p) as f32,
        ],
        [
            (1.0 / of_q) as f32,
            (q / of_q) as f32,
            (q * q / of_q) as f32,
        ],
        [
            (1.0 / of_q) as f32,
            (-q / of_q) as f32,
            (q * q / of_q) as f32,
        ],
        [0.0, 0.0, 1.0],
    ]
};

/// Tiles of a task that a row of products is planned for.
pub(crate) const ROW: usize = 56;

/// Whether a window is worth it: channels enough for the products to outweigh the transforms, and not much of a tile
/// beyond the image. It depends on one image only, so that a batch does not change an image's bits.
pub(crate) fn suits(window: &Window, inputs: usize, outputs: usize) -> bool {
    let tiles = window.height.div_ceil(TILE) * window.width.div_ceil(TILE);
    let filled = (window.height * window.width) as f64 / (tiles * TILE * TILE) as f64;
    inputs >= LANES && outputs >= LANES && tiles >= 4 && filled > 0.5
}

/// The taps of a window that is 3 by 3 with stride 1, in reading order.
pub(crate) fn kernel(window: &Window) -> Option<[usize; 9]> {
    if window.stride != 1 || window.offsets.len() != 9 {
        return None;
    }
    let first = *window.offsets.iter().min()?;
    let mut kernel = [0; 9];
    for (index, tap) in kernel.iter_mut().enumerate() {
        let offset = (
            first.0 + (index / 3) as isize,
            first.1 + (index % 3) as isize,
        );
        *tap = window.offsets.iter().position(|other| *other == offset)?;
    }
    Some(kernel)
}

/// The window of whole tiles.
pub(crate) fn whole_tiles(window: &Window) -> Window {
    Window {
        height: window.height.next_multiple_of(TILE),
        width: window.width.next_multiple_of(TILE),
        ..window.clone()
    }
}

/// Tiles side by side: where they are read and written.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    pub(crate) count: usize,
    /// The first tile's first pixel (or, of what is in the transformed domain, its first position).
    pub(crate) from: *const f32,
    /// From one row of pixels, or from one position, to the next.
    pub(crate) from_stride: usize,
    pub(crate) to: *mut f32,
    pub(crate) to_stride: usize,
}

macro_rules! levels {
    ($(#[$meta:meta])* $name:ident, $argument:ty) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// All tiles lie in memory, and nothing else touches those that are written.
        pub(crate) unsafe fn $name(level: Level, it: &$argument) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            unsafe fn avx512(it: &$argument) {
                // SAFETY: the caller's promise.
                unsafe { body::$name::<Avx512>(it) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2(it: &$argument) {
                // SAFETY: the caller's promise.
                unsafe { body::$name::<Avx2>(it) }
            }
            // SAFETY: the caller's promise; a level is only ever chosen of those that the processor has.
            unsafe {
                match level {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512 => avx512(it),
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx2 => avx2(it),
                    _ => body::$name::<Portable>(it),
                }
            }
        }
    };
}

levels!(
    /// Bᵀ d B: from pixels LANES apart, tiles overlapping by two, to positions; tiles of a position lie LANES apart.
    input, Tiles
);
levels!(
    /// A dy Aᵀ: from pixels LANES apart, tiles side by side, to positions; tiles of a position lie LANES apart.
    gradient, Tiles
);
levels!(
    /// Aᵀ m A: from positions, tiles LANES apart, to 4 by 4 pixels.
    output, Outputs
);
levels!(
    /// G g Gᵀ of LANES kernels for each of `count` inputs.
    weights, Kernels
);
levels!(
    /// Gᵀ m G: from positions to LANES gradients of kernels, for each of `count` inputs.
    kernels, Kernels
);

/// One row of tiles of one block of output channels, and what is added.
#[derive(Clone, Copy)]
pub(crate) struct Outputs {
    pub(crate) tiles: Tiles,
    /// From one pixel of the output to the next; `tiles.to_stride` is from row to row.
    pub(crate) pixel: usize,
    /// Rows and columns that exist.
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// LANES floats, or null.
    pub(crate) bias: *const f32,
    /// Laid out as the output, or null.
    pub(crate) plus: *const f32,
    pub(crate) scale: f32,
}

/// Kernels of one block of output channels, nine taps each, and their transform.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) count: usize,
    /// LANES floats for each tap and input.
    pub(crate) taps: *mut f32,
    /// From one tap, and from one input, to the next.
    pub(crate) tap: usize,
    pub(crate) tap_input: usize,
    /// LANES floats for each position and input.
    pub(crate) positions: *mut f32,
    /// From one position, and from one input, to the next.
    pub(crate) position: usize,
    pub(crate) input: usize,
}

mod body {
    use super::*;

    /// Bᵀ d of six vectors.
    #[inline(always)]
    unsafe fn b<V: Vector>(d: [V; SPAN]) -> [V; SPAN] {
        // SAFETY: the level's instructions, by the caller's promise; so in all of these.
        unsafe {
            let even_p = d[4].fused(V::splat(-QQ), d[2]);
            let odd_p = d[3].fused(V::splat(-QQ), d[1]).mul(V::splat(P));
            let even_q = d[4].fused(V::splat(-PP), d[2]);
            let odd_q = d[3].fused(V::splat(-PP), d[1]).mul(V::splat(Q));
            [
                d[4].fused(V::splat(-BOTH), d[2])
                    .fused(V::splat(PRODUCT), d[0]),
                even_p.add(odd_p),
                even_p.sub(odd_p),
                even_q.add(odd_q),
                even_q.sub(odd_q),
                d[5].fused(V::splat(-BOTH), d[3])
                    .fused(V::splat(PRODUCT), d[1]),
            ]
        }
    }

    /// Aᵀ m of six vectors.
    #[inline(always)]
    unsafe fn a_transposed<V: Vector>(m: [V; SPAN]) -> [V; TILE] {
        // SAFETY: as above.
        unsafe {
            let (even_p, odd_p) = (m[1].add(m[2]), m[1].sub(m[2]));
            let (even_q, odd_q) = (m[3].add(m[4]), m[3].sub(m[4]));
            [
                m[0].add(even_p).add(even_q),
                odd_p.mul(V::splat(P)).fused(V::splat(Q), odd_q),
                even_p.mul(V::splat(PP)).fused(V::splat(QQ), even_q),
                m[5].fused(V::splat(PP * P), odd_p)
                    .fused(V::splat(QQ * Q), odd_q),
            ]
        }
    }

    /// A y of four vectors.
    #[inline(always)]
    unsafe fn a<V: Vector>(y: [V; TILE]) -> [V; SPAN] {
        // SAFETY: as above.
        unsafe {
            let even_p = y[0].fused(V::splat(PP), y[2]);
            let odd_p = y[1].fused(V::splat(PP), y[3]).mul(V::splat(P));
            let even_q = y[0].fused(V::splat(QQ), y[2]);
            let odd_q = y[1].fused(V::splat(QQ), y[3]).mul(V::splat(Q));
            [
                y[0],
                even_p.add(odd_p),
                even_p.sub(odd_p),
                even_q.add(odd_q),
                even_q.sub(odd_q),
                y[3],
            ]
        }
    }

    /// G g of three vectors.
    #[inline(always)]
    unsafe fn g<V: Vector>(g: [V; 3]) -> [V; SPAN] {
        // SAFETY: as above.
        unsafe {
            let even_p = g[0].mul(V::splat(G[1][0])).fused(V::splat(G[1][2]), g[2]);
            let odd_p = g[1].mul(V::splat(G[1][1]));
            let even_q = g[0].mul(V::splat(G[3][0])).fused(V::splat(G[3][2]), g[2]);
            let odd_q = g[1].mul(V::splat(G[3][1]));
            [
                g[0].mul(V::splat(G[0][0])),
                even_p.add(odd_p),
                even_p.sub(odd_p),
                even_q.add(odd_q),
                even_q.sub(odd_q),
                g[2],
            ]
        }
    }

    /// Gᵀ m of six vectors.
    #[inline(always)]
    unsafe fn g_transposed<V: Vector>(m: [V; SPAN]) -> [V; 3] {
        // SAFETY: as above.
        unsafe {
            let (even_p, odd_p) = (m[1].add(m[2]), m[1].sub(m[2]));
            let (even_q, odd_q) = (m[3].add(m[4]), m[3].sub(m[4]));
            [
                m[0].mul(V::splat(G[0][0]))
                    .fused(V::splat(G[1][0]), even_p)
                    .fused(V::splat(G[3][0]), even_q),
                odd_p.mul(V::splat(G[1][1])).fused(V::splat(G[3][1]), odd_q),
                m[5].fused(V::splat(G[1][2]), even_p)
                    .fused(V::splat(G[3][2]), even_q),
            ]
        }
    }

    /// f of each column of a square of vectors, then f of each row of what came out, of which so many are wanted.
    ///
    /// A macro, because the intrinsics would not be inlined into closures: those are compiled for any processor.
    macro_rules! both_ways {
        ($f:ident, $from:expr, $to:expr, |$row:ident, $column:ident| $at:expr, $rows:expr, |$r:ident, $c:ident, $value:ident| $put:expr) => {
            let mut half = [[V::zero(); $to]; $from];
            for ($column, half) in half.iter_mut().enumerate() {
                let mut from = [V::zero(); $from];
                for ($row, from) in from.iter_mut().enumerate() {
                    *from = $at;
                }
                *half = $f(from);
            }
            for $r in 0..$rows {
                let mut line = [V::zero(); $from];
                for (column, line) in line.iter_mut().enumerate() {
                    *line = half[column][$r];
                }
                for ($c, $value) in $f(line).into_iter().enumerate() {
                    $put;
                }
            }
        };
    }

    #[inline(always)]
    pub(super) unsafe fn input<V: Vector>(it: &Tiles) {
        for tile in 0..it.count {
            // SAFETY: the caller's promise.
            unsafe {
                let from = it.from.add(tile * TILE * LANES);
                let to = it.to.add(tile * LANES);
                both_ways!(
                    b,
                    SPAN,
                    SPAN,
                    |row, column| V::load(from.add(row * it.from_stride + column * LANES)),
                    SPAN,
                    |row, column, v| v.store(to.add((row * SPAN + column) * it.to_stride))
                );
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn gradient<V: Vector>(it: &Tiles) {
        for tile in 0..it.count {
            // SAFETY: the caller's promise.
            unsafe {
                let from = it.from.add(tile * TILE * LANES);
                let to = it.to.add(tile * LANES);
                both_ways!(
                    a,
                    TILE,
                    SPAN,
                    |row, column| V::load(from.add(row * it.from_stride + column * LANES)),
                    SPAN,
                    |row, column, v| v.store(to.add((row * SPAN + column) * it.to_stride))
                );
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn output<V: Vector>(it: &Outputs) {
        // SAFETY: the caller's promise.
        unsafe {
            let bias = if it.bias.is_null() {
                V::zero()
            } else {
                V::load(it.bias)
            };
            let scale = V::splat(it.scale);
            for tile in 0..it.tiles.count {
                let from = it.tiles.from.add(tile * LANES);
                both_ways!(
                    a_transposed,
                    SPAN,
                    TILE,
                    |row, column| V::load(from.add((row * SPAN + column) * it.tiles.from_stride)),
                    it.rows,
                    |row, column, value| {
                        let column = tile * TILE + column;
                        if column < it.columns {
                            let place = row * it.tiles.to_stride + column * it.pixel;
                            let mut sum = value.add(bias);
                            if !it.plus.is_null() {
                                sum = sum.add(V::load(it.plus.add(place)));
                            }
                            sum.mul(scale).store(it.tiles.to.add(place));
                        }
                    }
                );
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn weights<V: Vector>(it: &Kernels) {
        for input in 0..it.count {
            // SAFETY: the caller's promise.
            unsafe {
                let taps = it.taps.add(input * it.tap_input);
                let to = it.positions.add(input * it.input);
                both_ways!(
                    g,
                    3,
                    SPAN,
                    |row, column| V::load(taps.add((row * 3 + column) * it.tap)),
                    SPAN,
                    |row, column, v| v.store(to.add((row * SPAN + column) * it.position))
                );
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn kernels<V: Vector>(it: &Kernels) {
        for input in 0..it.count {
            // SAFETY: the caller's promise.
            unsafe {
                let from = it.positions.add(input * it.input);
                let taps = it.taps.add(input * it.tap_input);
                both_ways!(
                    g_transposed,
                    SPAN,
                    3,
                    |row, column| V::load(from.add((row * SPAN + column) * it.position)),
                    3,
                    |row, column, v| v.store(taps.add((row * 3 + column) * it.tap))
                );
            }
        }
    }
}

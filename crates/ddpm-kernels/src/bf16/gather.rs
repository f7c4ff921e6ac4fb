//! Lays out the pixels of a task in bf16, as the inner loop reads them: padded, DEPTH channels side by side, with
//! whatever stands between the stored activations and the convolution done on the way.

use std::ops::Range;

use super::dot::DEPTH;
use super::{Bf16, Element};
use crate::simd::per_vector;
use crate::source::{Gathered, ITSELF, Source, Window, copied_together};
use crate::tile::LANES;
use crate::vector::Vector;

/// Numbers of pixels gathered for so many chunks of channels, and the room behind them that the last rows of tiles read.
pub(crate) fn length(layout: &Gathered, chunks: usize) -> usize {
    2 * layout.block * chunks + 2 * super::dot::SIDE * DEPTH
}

/// Lays out what the outputs of these images and rows need of all channels:
/// `[chunks, images, rows, residues, columns, DEPTH]`, zeros beyond the channels.
pub(crate) fn gather(
    source: &Source<'_>,
    window: &Window,
    layout: &Gathered,
    images: Range<usize>,
    first_row: usize,
    to: &mut [Bf16],
) {
    let blocks = source.blocks();
    if blocks % 2 == 1 {
        fill_zeros(
            &mut to[blocks / 2 * 2 * layout.block..][..2 * layout.block],
            LANES,
            DEPTH,
        );
    }
    let mut rows = Rows::new(source);
    for block in 0..blocks {
        let to = &mut to[block / 2 * 2 * layout.block..][..2 * layout.block];
        for (image, to) in images.clone().zip(to.chunks_mut(2 * layout.image)) {
            for (row, to) in to
                .chunks_mut(2 * layout.row)
                .enumerate()
                .take(layout.input_rows)
            {
                let y = (first_row * window.stride + row) as isize + window.rows().0;
                rows.lay(
                    window,
                    layout,
                    (image, block),
                    y,
                    to,
                    (block % 2 * LANES, DEPTH),
                );
            }
        }
    }
}

/// Reads rows of a source, one block of channels of one image after the other.
pub(crate) struct Rows<'a> {
    source: &'a Source<'a>,
    /// Image and block.
    of: Option<(usize, usize)>,
    plane: Plane<'a>,
    way: Way<'a>,
    /// Rows put together from parts that do not lie in blocks, and which.
    floats: Vec<f32>,
    copied: Range<usize>,
}

/// The pixels of a block of channels of an image, `[height, width, LANES]`.
#[derive(Clone, Copy)]
enum Plane<'a> {
    Halves(&'a [Bf16]),
    Floats(&'a [f32]),
    /// Not stored so.
    Apart,
}

/// What is done to the pixels of a block of an image on their way.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    /// Factors and offsets of the channels; none where nothing is done at all.
    coefficients: Option<&'a [f32]>,
    silu: bool,
    /// Laid out as the pixels, and what is kept is multiplied with this.
    mask: Option<(&'a [u8], f32)>,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(source: &'a Source<'a>) -> Self {
        Rows {
            source,
            of: None,
            plane: Plane::Apart,
            way: Way {
                coefficients: None,
                silu: false,
                mask: None,
            },
            floats: Vec::new(),
            copied: 0..0,
        }
    }

    /// Lays out one row of one block of channels, which is row `y` of the image (or beyond it: zeros), to `lane` and on
    /// of pixels that are `apart`.
    pub(crate) fn lay(
        &mut self,
        window: &Window,
        layout: &Gathered,
        (image, block): (usize, usize),
        y: isize,
        to: &mut [Bf16],
        lanes: (usize, usize),
    ) {
        let source = self.source;
        let (height, width) = source.size();
        if y < 0 || y >= height as isize {
            return fill_zeros(to, lanes.0, lanes.1);
        }
        if self.of != Some((image, block)) {
            self.begin(image, block);
        }
        let y = y as usize >> usize::from(source.upsampled);
        let line = source.width * LANES;
        let row = Row {
            columns: (window.columns().0, window.stride, width),
            shift: usize::from(source.upsampled),
            residue: layout.residue / LANES * lanes.1,
            lanes,
        };
        let mut way = self.way;
        if let Some((mask, _)) = &mut way.mask {
            *mask = &mask[y * line..][..line];
        }
        match self.plane {
            Plane::Halves(plane) => row.spread(&plane[y * line..][..line], &way, to),
            Plane::Floats(plane) => row.spread(&plane[y * line..][..line], &way, to),
            Plane::Apart => {
                if !self.copied.contains(&y) {
                    let together = copied_together(source.width).min(source.height);
                    self.copied = y..(y + together).min(source.height);
                    self.floats.resize(together * line, 0.0);
                    source.copy_rows(image, block, self.copied.clone(), &mut self.floats);
                }
                let from = &self.floats[(y - self.copied.start) * line..][..line];
                row.spread(from, &way, to);
            }
        }
    }

    fn begin(&mut self, image: usize, block: usize) {
        let source = self.source;
        self.of = Some((image, block));
        self.copied = 0..0;
        self.plane = if let Some(plane) = source.plane::<Bf16>(image, block) {
            Plane::Halves(plane)
        } else if let Some(plane) = source.plane::<f32>(image, block) {
            Plane::Floats(plane)
        } else {
            Plane::Apart
        };
        let place = image * source.blocks() + block;
        let of_block = |all: &'a [f32]| &all[place * 2 * LANES..][..2 * LANES];
        let pixels = source.height * source.width * LANES;
        let mask = source.mask.as_ref();
        let mask = mask.map(|mask| (&mask.kept[place * pixels..][..pixels], mask.scale));
        let coefficients = source.affine.and_then(|affine| affine.coefficients);
        let touched = source.affine.is_some() || mask.is_some();
        self.way = Way {
            coefficients: coefficients.map(of_block).or(touched.then_some(&ITSELF)),
            silu: source.affine.is_some_and(|affine| affine.silu),
            mask,
        };
    }
}

/// Where a row goes and where it comes from.
struct Row {
    /// The column of the image where the row begins, from one to the next, and where the image ends.
    columns: (isize, usize, usize),
    /// 1 where two columns of the image are one that is stored.
    shift: usize,
    /// Numbers of the columns that a stride visits together.
    residue: usize,
    lanes: (usize, usize),
}

impl Row {
    fn spread<E: Element>(&self, from: &[E], way: &Way<'_>, to: &mut [Bf16]) {
        let ((left, step, width), (lane, apart)) = (self.columns, self.lanes);
        for (index, to) in to.chunks_mut(self.residue).enumerate() {
            let first = left + index as isize;
            let (before, inside) = crate::source::inside(first, step, width, to.len() / apart);
            let start = (first + (before * step) as isize) as usize;
            let (zeros, to) = to.split_at_mut(before * apart);
            fill_zeros(zeros, lane, apart);
            let (to, zeros) = to.split_at_mut(inside * apart);
            fill_zeros(zeros, lane, apart);
            let last = (start + (inside.max(1) - 1) * step) >> self.shift;
            if inside > 0 && last < from.len() / LANES {
                spread(to, self.lanes, from, (start, step, self.shift), way);
            }
        }
    }
}

fn fill_zeros(to: &mut [Bf16], lane: usize, apart: usize) {
    to.chunks_exact_mut(apart)
        .for_each(|to| to[lane..lane + LANES].fill(Bf16(0)));
}

/// The first column, from one to the next, and the power of two that they are divided by.
type Columns = (usize, usize, usize);

per_vector! {
    /// Columns of a row of stored pixels, all of which are there, to whole pixels of `to`.
    fn spread[E: Element](to: &mut [Bf16], lanes: (usize, usize), from: &[E], columns: Columns, way: &Way<'_>);
}

mod body {
    #![allow(unsafe_code)] // the levels' instructions
    use super::*;

    #[inline(always)]
    pub(super) unsafe fn spread<V: Vector, E: Element>(
        to: &mut [Bf16],
        lanes: (usize, usize),
        from: &[E],
        columns: Columns,
        way: &Way<'_>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match (way.coefficients, way.silu, way.mask.is_some()) {
                (None, ..) => copied::<V, E>(to, lanes, from, columns),
                (Some(c), false, false) => {
                    mapped::<V, E, false, false>(to, lanes, from, columns, c, way)
                }
                (Some(c), false, true) => {
                    mapped::<V, E, false, true>(to, lanes, from, columns, c, way)
                }
                (Some(c), true, false) => {
                    mapped::<V, E, true, false>(to, lanes, from, columns, c, way)
                }
                (Some(c), true, true) => {
                    mapped::<V, E, true, true>(to, lanes, from, columns, c, way)
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn copied<V: Vector, E: Element>(
        to: &mut [Bf16],
        (lane, apart): (usize, usize),
        from: &[E],
        (start, step, shift): Columns,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            for (i, to) in to.chunks_exact_mut(apart).enumerate() {
                let from = from.as_ptr().add(((start + i * step) >> shift) * LANES);
                E::copy::<V>(from, to.as_mut_ptr().add(lane));
            }
        }
    }

    /// Zero wherever the mask is, even for an x that is not finite.
    #[inline(always)]
    unsafe fn mapped<V: Vector, E: Element, const SILU: bool, const MASKED: bool>(
        to: &mut [Bf16],
        (lane, apart): (usize, usize),
        from: &[E],
        (start, step, shift): Columns,
        coefficients: &[f32],
        way: &Way<'_>,
    ) {
        let (kept, scale) = way.mask.unwrap_or((&[], 1.0));
        // SAFETY: the caller's promise; the mask is as long as the row.
        unsafe {
            let factor = V::load(coefficients.as_ptr());
            let offset = V::load(coefficients[LANES..].as_ptr());
            for (i, to) in to.chunks_exact_mut(apart).enumerate() {
                let place = ((start + i * step) >> shift) * LANES;
                let mut z = offset.fused(E::load::<V>(from.as_ptr().add(place)), factor);
                if SILU {
                    z = z.mul(z.sigmoid());
                }
                if MASKED {
                    z = z.mul(V::splat(scale)).kept(kept.as_ptr().add(place));
                }
                z.store_halves(to.as_mut_ptr().add(lane));
            }
        }
    }
}

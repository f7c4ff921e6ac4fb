//! Lays out the pixels of a task in bf16, as the inner loop reads them: padded, DEPTH channels side by side, with
//! whatever stands between the stored activations and the convolution done on the way.

use std::ops::Range;

use super::dot::DEPTH;
use super::{Bf16, Element};
use crate::simd::{per_processor, sigmoid};
use crate::source::{Gathered, ITSELF, Source, Window, copied_together};
use crate::tile::LANES;

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
        zero_half(&mut to[blocks / 2 * 2 * layout.block..][..2 * layout.block]);
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

/// Reads rows of a source, keeping what it had to put together.
pub(crate) struct Rows<'a> {
    source: &'a Source<'a>,
    /// Rows of one block put together from parts that do not lie in blocks.
    floats: Vec<f32>,
    copied: Range<usize>,
    of: (usize, usize),
}

impl<'a> Rows<'a> {
    pub(crate) fn new(source: &'a Source<'a>) -> Self {
        Rows {
            source,
            floats: Vec::new(),
            copied: 0..0,
            of: (0, 0),
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
        (lane, apart): (usize, usize),
    ) {
        let source = self.source;
        let (height, width) = source.size();
        if y < 0 || y >= height as isize {
            return fill_zeros(to, lane, apart);
        }
        let y = y as usize >> usize::from(source.upsampled);
        let line = source.width * LANES;
        let row = Row {
            left: window.columns().0,
            stride: window.stride,
            residue: layout.residue / LANES * apart,
            lanes: (lane, apart),
            at: (image, block, y),
        };
        if let Some(plane) = source.plane::<Bf16>(image, block) {
            row.spread(source, width, &plane[y * line..][..line], to);
        } else if let Some(plane) = source.plane::<f32>(image, block) {
            row.spread(source, width, &plane[y * line..][..line], to);
        } else {
            if self.of != (image, block) || !self.copied.contains(&y) {
                let together = copied_together(source.width).min(source.height);
                (self.of, self.copied) = ((image, block), y..(y + together).min(source.height));
                self.floats.resize(together * line, 0.0);
                source.copy_rows(image, block, self.copied.clone(), &mut self.floats);
            }
            let from = &self.floats[(y - self.copied.start) * line..][..line];
            row.spread(source, width, from, to);
        }
    }
}

/// Where a row goes and where it comes from.
struct Row {
    left: isize,
    stride: usize,
    /// Numbers of the columns that a stride visits together.
    residue: usize,
    lanes: (usize, usize),
    /// Image, block and row as stored.
    at: (usize, usize, usize),
}

impl Row {
    fn spread<E: Element>(&self, source: &Source<'_>, width: usize, from: &[E], to: &mut [Bf16]) {
        for (index, to) in to.chunks_mut(self.residue).enumerate() {
            let columns = (self.left + index as isize, self.stride);
            spread(source, columns, width, from, to, self.lanes, self.at);
        }
    }
}

/// Columns `first`, `first + step`, ... of a row of stored pixels, zeros outside of the image.
fn spread<E: Element>(
    source: &Source<'_>,
    (first, step): (isize, usize),
    width: usize,
    from: &[E],
    to: &mut [Bf16],
    (lane, apart): (usize, usize),
    (image, block, row): (usize, usize, usize),
) {
    let count = to.len() / apart;
    let (before, inside) = crate::source::inside(first, step, width, count);
    let start = (first + (before * step) as isize) as usize;
    let (zeros, to) = to.split_at_mut(before * apart);
    fill_zeros(zeros, lane, apart);
    let (to, zeros) = to.split_at_mut(inside * apart);
    fill_zeros(zeros, lane, apart);
    let shift = usize::from(source.upsampled);
    let at = (start, step, shift);
    let to_lanes = (lane, apart);
    if let Some(mask) = source.mask {
        let place =
            ((image * source.blocks() + block) * source.height + row) * source.width * LANES;
        let kept = &mask.kept[place..][..source.width * LANES];
        return masked(
            to,
            to_lanes,
            from,
            at,
            coefficients(source, image, block),
            kept,
            mask.scale,
        );
    }
    match coefficients(source, image, block) {
        (None, false) => copied(to, to_lanes, from, at),
        (all, false) => scaled(to, to_lanes, from, at, all.unwrap_or(&ITSELF)),
        (all, true) => scaled_silu(to, to_lanes, from, at, all.unwrap_or(&ITSELF)),
    }
}

/// Factors and offsets of a block of channels, and whether SiLU follows.
fn coefficients<'a>(source: &Source<'a>, image: usize, block: usize) -> (Option<&'a [f32]>, bool) {
    let Some(affine) = source.affine else {
        return (None, false);
    };
    let place = (image * source.blocks() + block) * 2 * LANES;
    (
        affine.coefficients.map(|all| &all[place..][..2 * LANES]),
        affine.silu,
    )
}

fn fill_zeros(to: &mut [Bf16], lane: usize, apart: usize) {
    to.chunks_exact_mut(apart)
        .for_each(|to| to[lane..lane + LANES].fill(Bf16(0)));
}

/// Zeros in the second half of each pixel.
fn zero_half(to: &mut [Bf16]) {
    fill_zeros(to, LANES, DEPTH);
}

/// f(value, lane, pixel as stored) for each pixel and lane.
#[inline(always)]
fn each<E: Element>(
    to: &mut [Bf16],
    (lane, apart): (usize, usize),
    from: &[E],
    (start, step, shift): (usize, usize, usize),
    f: impl Fn(f32, usize, usize) -> f32,
) {
    let (from, _) = from.as_chunks::<LANES>();
    for (i, to) in to.chunks_exact_mut(apart).enumerate() {
        let pixel = (start + i * step) >> shift;
        let from = &from[pixel];
        let Some(to) = to[lane..].first_chunk_mut::<LANES>() else {
            return;
        };
        let mut values = [0f32; LANES];
        for l in 0..LANES {
            values[l] = f(from[l].widen(), l, pixel);
        }
        for l in 0..LANES {
            to[l] = Bf16::narrow(values[l]);
        }
    }
}

type Columns = (usize, usize, usize);

per_processor! {
    fn copied<E: Element>(to: &mut [Bf16], lanes: (usize, usize), from: &[E], at: Columns) {
        each(to, lanes, from, at, |x, _, _| x);
    }

    fn scaled<E: Element>(to: &mut [Bf16], lanes: (usize, usize), from: &[E], at: Columns, coefficients: &[f32]) {
        let [factor, offset] = *coefficients.as_chunks::<LANES>().0 else { return };
        each(to, lanes, from, at, |x, lane, _| x * factor[lane] + offset[lane]);
    }

    fn scaled_silu<E: Element>(to: &mut [Bf16], lanes: (usize, usize), from: &[E], at: Columns, coefficients: &[f32]) {
        let [factor, offset] = *coefficients.as_chunks::<LANES>().0 else { return };
        each(to, lanes, from, at, |x, lane, _| {
            let z = x * factor[lane] + offset[lane];
            z * sigmoid(z)
        });
    }

    /// Zero wherever the mask is, even for an x that is not finite.
    fn masked<E: Element>(
        to: &mut [Bf16],
        lanes: (usize, usize),
        from: &[E],
        at: Columns,
        affine: (Option<&[f32]>, bool),
        kept: &[u8],
        scale: f32,
    ) {
        let (kept, _) = kept.as_chunks::<LANES>();
        let [factor, offset] = *affine.0.unwrap_or(&ITSELF).as_chunks::<LANES>().0 else { return };
        each(to, lanes, from, at, |x, lane, pixel| {
            let z = x * factor[lane] + offset[lane];
            let y = if affine.1 { z * sigmoid(z) } else { z };
            if kept[pixel][lane] == 0 { 0.0 } else { y * scale }
        });
    }
}

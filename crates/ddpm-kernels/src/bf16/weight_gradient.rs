//! The gradient of a convolution's weights in bf16: for each tap the sum over pixels of input times gradient, as products of
//! matrices whose inner dimension is the pixels.
//!
//! Both sides are laid out over the same positions: the padded rows of the input, one image after the other. The gradient is
//! zero at those positions where no window begins, so that what the input has there does not count.

use std::ops::Range;

use rayon::prelude::*;

use super::dot::{DEPTH, SIDE, SQUARE, Session, Squares, TILE};
use super::gather::Rows;
use super::{Bf16, halves_mut};
use crate::aligned::with_scratch;
use crate::simd::{per_processor, per_vector};
use crate::source::{Gathered, Source, Window};
use crate::storage::Shared;
use crate::tile::LANES;
use crate::vector::Vector;
use crate::weight_gradient::Target;

/// dw\[o, i, tap\] = Σ over images and pixels of x\[pixel * stride + tap, i\] dy\[pixel, o\].
pub(crate) struct WeightGradient<'a> {
    pub(crate) batch: usize,
    pub(crate) source: &'a Source<'a>,
    pub(crate) window: &'a Window,
    /// The gradient of the output, of the window's size.
    pub(crate) dy: &'a Source<'a>,
}

/// Numbers of both sides that are laid out at a time: they stay in the caches.
const LAID_OUT: usize = 1 << 20;

impl WeightGradient<'_> {
    /// Computes the gradient, in parallel.
    ///
    /// # Safety
    /// Nothing else touches the target while this runs.
    #[allow(unsafe_code)] // the target is shared by the tasks
    pub(crate) unsafe fn run(&self, target: Target<'_>) {
        let (inputs, outputs) = (self.source.blocks(), self.dy.blocks());
        let layout = self.window.layout(1, self.window.height);
        let of_image = layout.image / LANES;
        // A constant of the shapes, because it decides the order of the sums.
        let images = (LAID_OUT / ((inputs + outputs) * LANES * of_image)).clamp(1, self.batch);
        let positions = (images * of_image).next_multiple_of(DEPTH);
        // A tap reads up to `room` positions beyond.
        let room = layout
            .taps
            .iter()
            .max()
            .map_or(0, |tap| tap / LANES)
            .next_multiple_of(DEPTH);
        let (x_length, dy_length) = (
            inputs * LANES * (positions + room),
            outputs * LANES * positions,
        );
        let taps = self.window.offsets.len();
        let squares = inputs * outputs * taps * SQUARE;
        with_scratch((x_length + dy_length) / 2 + squares, |scratch| {
            let (sums, laid_out) = scratch.split_at_mut(squares);
            let (x, dy) = halves_mut(laid_out).split_at_mut(x_length);
            for first in (0..self.batch).step_by(images) {
                let some = first..(first + images).min(self.batch);
                let used = (some.len() * of_image).next_multiple_of(DEPTH);
                self.lay_out_inputs(&layout, some.clone(), positions + room, x);
                self.lay_out_gradient(&layout, some, positions, dy);
                self.multiply(
                    &layout,
                    (x, positions + room),
                    (dy, positions),
                    (used, first > 0),
                    sums,
                );
            }
            self.write(sums, target);
        });
    }

    /// `[inputs, positions]`.
    fn lay_out_inputs(
        &self,
        layout: &Gathered,
        images: Range<usize>,
        stride: usize,
        x: &mut [Bf16],
    ) {
        let memory = Shared::new(x);
        let blocks = self.source.blocks();
        let of_image = layout.image / LANES;
        (0..blocks * images.len()).into_par_iter().for_each(|task| {
            let (block, index) = (task % blocks, task / blocks);
            // Behind the last image the sums read on.
            let last = index + 1 == images.len();
            let end = if last { stride } else { (index + 1) * of_image };
            let count = end - index * of_image;
            with_scratch(count * LANES / 2 + LANES, |scratch| {
                let rows = &mut halves_mut(scratch)[..count * LANES];
                let (of_image, beyond) = rows.split_at_mut(of_image * LANES);
                beyond.fill(Bf16(0));
                let mut source = Rows::new(self.source);
                let at = (images.start + index, block);
                for (row, to) in of_image.chunks_mut(layout.row).enumerate() {
                    let y = row as isize + self.window.rows().0;
                    source.lay(self.window, layout, at, y, to, (0, LANES));
                }
                let start = block * LANES * stride + index * (layout.image / LANES);
                let to = memory.at(start, (LANES - 1) * stride + count);
                turn(rows, to, stride);
            });
        });
    }

    /// `[output blocks, pairs of positions, LANES, 2]`.
    fn lay_out_gradient(
        &self,
        layout: &Gathered,
        images: Range<usize>,
        positions: usize,
        dy: &mut [Bf16],
    ) {
        let blocks = self.dy.blocks();
        let (width, row) = (self.window.width, layout.output_row);
        let pointwise = Window::pointwise(self.window.height, self.window.width);
        let plain = pointwise.layout(1, self.window.height);
        dy.par_chunks_mut(positions * LANES)
            .enumerate()
            .for_each(|(block, to)| {
                to.fill(Bf16(0));
                with_scratch(width * LANES / 2 + LANES, |scratch| {
                    let line = &mut halves_mut(scratch)[..width * LANES];
                    let mut source = Rows::new(self.dy);
                    for (index, image) in images.clone().enumerate() {
                        for y in 0..self.window.height {
                            source.lay(
                                &pointwise,
                                &plain,
                                (image, block),
                                y as isize,
                                line,
                                (0, LANES),
                            );
                            let first = (index * layout.image + y * row) / LANES;
                            pair_up(line, first, to);
                        }
                    }
                });
            });
        debug_assert_eq!(dy.len(), blocks * positions * LANES);
    }

    /// Adds the products over all positions, each square of sums by one task.
    fn multiply(
        &self,
        layout: &Gathered,
        (x, x_stride): (&[Bf16], usize),
        (dy, positions): (&[Bf16], usize),
        (used, accumulate): (usize, bool),
        sums: &mut [f32],
    ) {
        let (inputs, outputs) = (self.source.blocks(), self.dy.blocks());
        let taps = layout.taps.len();
        let memory = Shared::new(sums);
        let (wide, high) = (outputs.div_ceil(2), inputs.div_ceil(2));
        (0..wide * high * taps)
            .into_par_iter()
            .for_each_init(Session::new, |session, task| {
                let (tap, of_tap) = (task % taps, task / taps);
                let (input, output) = (of_tap % high * 2, of_tap / high * 2);
                // Squares of one tap and input lie side by side.
                let place = ((tap * inputs + input) * outputs + output) * SQUARE;
                let (rows, columns) = (2.min(inputs - input), 2.min(outputs - output));
                let squares = Squares {
                    a: x[input * LANES * x_stride + layout.taps[tap] / LANES..].as_ptr(),
                    a_row: x_stride,
                    a_chunk: DEPTH,
                    chunks: used / DEPTH,
                    taps: &[0],
                    b: dy[output * LANES * positions..].as_ptr(),
                    b_step: TILE,
                    b_column: LANES * positions,
                    rows,
                    columns,
                    sums: memory.at(place, ((rows - 1) * outputs + columns) * SQUARE),
                    sums_row: outputs * SQUARE,
                    accumulate,
                };
                #[allow(unsafe_code)]
                // SAFETY: both sides were laid out for all positions and beyond; the squares are this task's.
                unsafe {
                    session.multiply(&squares);
                }
            });
    }

    /// Writes the sums where they belong.
    fn write(&self, sums: &[f32], target: Target<'_>) {
        let (inputs, outputs) = (self.source.blocks(), self.dy.blocks());
        let taps = self.window.offsets.len();
        let level = crate::processor::Level::current();
        (0..inputs).into_par_iter().for_each(|block| {
            let mut of_taps = vec![0f32; taps * LANES];
            for input in 0..LANES.min(self.source.channels() - block * LANES) {
                for output in 0..outputs {
                    for (tap, to) in of_taps.chunks_mut(LANES).enumerate() {
                        let square = ((tap * inputs + block) * outputs + output) * SQUARE;
                        to.copy_from_slice(&sums[square + input * SIDE..][..SIDE]);
                    }
                    let lanes = LANES.min(self.dy.channels() - output * LANES);
                    let start =
                        output * LANES * target.output + (block * LANES + input) * target.input;
                    target.write_taps(level, (&of_taps, LANES), lanes, start);
                }
            }
        });
    }
}

per_processor! {
    /// Pixels of LANES channels to pairs of positions from `first` on.
    fn pair_up(pixels: &[Bf16], first: usize, to: &mut [Bf16]) {
        let (pixels, _) = pixels.as_chunks::<LANES>();
        let (to, _) = to.as_chunks_mut::<DEPTH>();
        let mut position = first;
        let mut rest = pixels;
        if position % 2 == 1 && let [pixel, others @ ..] = rest {
            for lane in 0..LANES {
                to[position / 2][2 * lane + 1] = pixel[lane];
            }
            (position, rest) = (position + 1, others);
        }
        let (pairs, last) = rest.as_chunks::<2>();
        for (to, pair) in to[position / 2..].iter_mut().zip(pairs) {
            for lane in 0..LANES {
                to[2 * lane] = pair[0][lane];
                to[2 * lane + 1] = pair[1][lane];
            }
        }
        if let [pixel] = last {
            let to = &mut to[position / 2 + pairs.len()];
            for lane in 0..LANES {
                to[2 * lane] = pixel[lane];
            }
        }
    }
}

per_vector! {
    /// Rows of LANES channels to LANES rows of positions, `stride` apart; all of them lie in memory.
    fn turn(rows: &[Bf16], to: *mut Bf16, stride: usize);
}

mod body {
    #![allow(unsafe_code)] // the levels' instructions
    use super::*;

    #[inline(always)]
    pub(super) unsafe fn turn<V: Vector>(rows: &[Bf16], to: *mut Bf16, stride: usize) {
        let tiles = rows.chunks_exact(LANES * LANES);
        let (whole, rest) = (tiles.len() * LANES, tiles.remainder());
        // SAFETY: whoever calls has seen that all positions of all lanes lie in memory.
        unsafe {
            for (index, tile) in tiles.enumerate() {
                V::turn_halves(tile.as_ptr(), LANES, to.add(index * LANES), stride);
            }
            for (position, row) in rest.chunks_exact(LANES).enumerate() {
                for (lane, value) in row.iter().enumerate() {
                    to.add(lane * stride + whole + position).write(*value);
                }
            }
        }
    }
}

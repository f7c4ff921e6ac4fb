//! The gradient of a convolution's weights in bf16: for each tap the sum over pixels of input times gradient, as products of
//! matrices whose inner dimension is the pixels.
//!
//! Both sides are laid out over the same positions: the padded rows of the input, one image after the other. The gradient is
//! zero at those positions where no window begins, so that what the input has there does not count.

use std::ops::Range;

use rayon::prelude::*;

use super::dot::{DEPTH, SIDE, SQUARE, Session, Squares, TILE};
use super::gather::Rows;
use super::{Bf16, Element, halves_mut};
use crate::aligned::with_scratch;
use crate::simd::{per_processor, per_vector};
use crate::source::{Gathered, Source, Window};
use crate::storage::Shared;
use crate::tile::LANES;
use crate::transpose::transpose_slices;
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

/// Numbers of both sides that a thread lays out at a time: half of its second-level cache.
const LAID_OUT: usize = 1 << 19;
/// Floats that the sums of all parts may have together, if there are more than two parts.
const SUMS: usize = 1 << 20;

/// How the work is cut. All of it comes from the shapes, because it decides the order of the sums.
struct Plan {
    layout: Gathered,
    /// Parts of the batch: each lays out its own images and adds up its own sums, so that a thread that works on one part
    /// reads nothing that another has just written.
    parts: usize,
    /// Images laid out at a time, their positions, and the positions that a tap reads beyond.
    images: usize,
    positions: usize,
    room: usize,
    /// Floats of a part's sums.
    squares: usize,
}

/// The parts of a batch for so many blocks of inputs and outputs, and the floats of a part's sums.
fn cut(batch: usize, (inputs, outputs): (usize, usize), taps: usize) -> (usize, usize) {
    let squares = inputs * outputs * taps * SQUARE;
    ((SUMS / squares).clamp(2, 8).min(batch), squares)
}

/// Floats that the sums of such a gradient take.
pub(crate) fn sums(batch: usize, inputs: usize, outputs: usize, taps: usize) -> usize {
    let blocks = (inputs.div_ceil(LANES), outputs.div_ceil(LANES));
    let (parts, squares) = cut(batch, blocks, taps);
    parts * squares
}

impl WeightGradient<'_> {
    /// Computes the gradient, in parallel.
    ///
    /// # Safety
    /// Nothing else touches the target while this runs.
    #[allow(unsafe_code)] // the target is shared by the tasks
    pub(crate) unsafe fn run(&self, target: Target<'_>) {
        let plan = self.plan();
        with_scratch(plan.parts * plan.squares, |sums| {
            self.add_up_parts(&plan, sums);
            self.write(&plan, sums, target);
        });
    }

    /// As [`WeightGradient::run`], rounded to bf16 at the end: `[outputs, inputs, taps]`. `sums` has room for [`sums`].
    pub(crate) fn run_in_halves(&self, sums: &mut [f32], to: &mut [Bf16]) {
        let plan = self.plan();
        self.add_up_parts(&plan, sums);
        self.write_halves(&plan, sums, to);
    }

    /// The sums of all parts.
    fn add_up_parts(&self, plan: &Plan, sums: &mut [f32]) {
        sums[..plan.parts * plan.squares]
            .par_chunks_mut(plan.squares)
            .with_max_len(1)
            .enumerate()
            .for_each(|(part, sums)| {
                let first = part * self.batch / plan.parts;
                let end = (part + 1) * self.batch / plan.parts;
                self.add_up(plan, first..end, sums);
            });
    }

    fn plan(&self) -> Plan {
        let (inputs, outputs) = (self.source.blocks(), self.dy.blocks());
        let layout = self.window.layout(1, self.window.height);
        let of_image = layout.image / LANES;
        let (parts, squares) = cut(self.batch, (inputs, outputs), self.window.offsets.len());
        let images = LAID_OUT / ((inputs + outputs) * LANES * of_image);
        let images = images.clamp(1, self.batch.div_ceil(parts));
        let furthest = layout.taps.iter().max();
        Plan {
            parts,
            images,
            positions: (images * of_image).next_multiple_of(DEPTH),
            room: furthest
                .map_or(0, |tap| tap / LANES)
                .next_multiple_of(DEPTH),
            squares,
            layout,
        }
    }

    /// The sums over some images.
    fn add_up(&self, plan: &Plan, of: Range<usize>, sums: &mut [f32]) {
        let stride = plan.positions + plan.room;
        let x_length = self.source.blocks() * LANES * stride;
        let dy_length = self.dy.blocks() * LANES * plan.positions;
        with_scratch((x_length + dy_length) / 2, |scratch| {
            let (x, dy) = halves_mut(scratch)[..x_length + dy_length].split_at_mut(x_length);
            for first in of.clone().step_by(plan.images) {
                let some = first..(first + plan.images).min(of.end);
                let used = some.len() * plan.layout.image / LANES;
                self.lay_out_inputs(&plan.layout, some.clone(), stride, x);
                self.lay_out_gradient(&plan.layout, some, plan.positions, dy);
                self.multiply(
                    &plan.layout,
                    (x, stride),
                    (dy, plan.positions),
                    (used.next_multiple_of(DEPTH), first > of.start),
                    sums,
                );
            }
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

    /// Writes the sums of all parts, added up, where they belong.
    fn write(&self, plan: &Plan, sums: &[f32], target: Target<'_>) {
        let (inputs, outputs) = (self.source.blocks(), self.dy.blocks());
        let taps = self.window.offsets.len();
        let level = crate::processor::Level::current();
        (0..inputs).into_par_iter().for_each(|block| {
            let mut of_taps = vec![0f32; taps * LANES];
            for input in 0..LANES.min(self.source.channels() - block * LANES) {
                for output in 0..outputs {
                    let first = (block * outputs + output) * SQUARE + input * SIDE;
                    let strides = (inputs * outputs * SQUARE, plan.squares);
                    add_parts(&sums[first..], strides, &mut of_taps);
                    let lanes = LANES.min(self.dy.channels() - output * LANES);
                    let start =
                        output * LANES * target.output + (block * LANES + input) * target.input;
                    target.write_taps(level, (&of_taps, LANES), lanes, start);
                }
            }
        });
    }
}

impl WeightGradient<'_> {
    /// Writes the sums of all parts, added up and rounded: a square of channels at a time, whose weights are turned in the
    /// first-level cache so that those of an output lie side by side.
    fn write_halves(&self, plan: &Plan, sums: &[f32], to: &mut [Bf16]) {
        let (inputs, outputs) = (self.source.blocks(), self.dy.blocks());
        let (channels, taps) = (self.source.channels(), self.window.offsets.len());
        let memory = Shared::new(to);
        (0..inputs * outputs).into_par_iter().for_each(|task| {
            let (input, output) = (task / outputs, task % outputs);
            let rows = LANES.min(channels - input * LANES);
            let lanes = LANES.min(self.dy.channels() - output * LANES);
            let run = LANES * taps;
            with_scratch(2 * LANES * run, |scratch| {
                let (added, turned) = scratch.split_at_mut(LANES * run);
                for (row, added) in added.chunks_exact_mut(run).take(rows).enumerate() {
                    let first = (input * outputs + output) * SQUARE + row * SIDE;
                    let strides = (inputs * outputs * SQUARE, plan.squares);
                    add_parts(&sums[first..], strides, added);
                }
                transpose_slices((added, LANES), (rows * taps, LANES), (turned, run));
                for (lane, turned) in turned.chunks_exact(run).take(lanes).enumerate() {
                    let start = ((output * LANES + lane) * channels + input * LANES) * taps;
                    narrow_run(turned, memory.at(start, rows * taps), rows * taps);
                }
            });
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

    /// So many numbers, all of which lie in memory on both sides.
    fn narrow_run(from: &[f32], to: *mut Bf16, count: usize);

    /// For each tap a row of sums, those of all parts added up; from one tap, and one part, to the next.
    fn add_parts(sums: &[f32], strides: (usize, usize), to: &mut [f32]);
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

    #[inline(always)]
    pub(super) unsafe fn narrow_run<V: Vector>(from: &[f32], to: *mut Bf16, count: usize) {
        let (whole, rest) = from[..count].as_chunks::<LANES>();
        // SAFETY: whoever calls has seen that `count` numbers lie in memory.
        unsafe {
            for (index, from) in whole.iter().enumerate() {
                V::load(from.as_ptr()).store_halves(to.add(index * LANES));
            }
            for (index, from) in rest.iter().enumerate() {
                to.add(whole.len() * LANES + index)
                    .write(Bf16::narrow(*from));
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn add_parts<V: Vector>(
        sums: &[f32],
        (tap, part): (usize, usize),
        to: &mut [f32],
    ) {
        for (index, to) in to.chunks_exact_mut(LANES).enumerate() {
            // SAFETY: a row of the slice each.
            unsafe {
                let mut total = V::zero();
                for sums in sums[index * tap..].chunks(part) {
                    total = total.add(V::load(sums[..SIDE].as_ptr()));
                }
                total.store(to.as_mut_ptr());
            }
        }
    }
}

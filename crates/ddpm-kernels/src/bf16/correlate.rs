//! Correlation of a batch of images with a bank of kernels in bf16: what a convolution computes forward, and what its
//! gradient with respect to the image computes with the weights turned round.

use rayon::prelude::*;

use super::dot::{DEPTH, SIDE, SQUARE, Session, Squares};
use super::gather::{gather, length};
use super::packing::{PAIR, Packed};
use super::{Bf16, Element, halves_mut};
use crate::aligned::with_scratch;
use crate::correlate::{Correlation, LaidOut, Output, Task, cut, shares};
use crate::packing::Weights;
use crate::simd::per_vector;
use crate::source::{Gathered, Layout, Window};
use crate::tile::LANES;
use crate::vector::Vector;

/// Numbers of gathered pixels that a task may have: a quarter of the second-level cache.
const BUDGET: usize = 1 << 18;
/// No output: the sums of positions between the rows of an image.
const NOWHERE: usize = usize::MAX;

impl<E: Element> Correlation<'_, E, Packed> {
    /// Computes all outputs, in parallel: products in bf16 and sums in f32.
    ///
    /// # Safety
    /// Nothing else touches the output, and `plus` reaches as far as it, while this runs.
    #[allow(unsafe_code)] // the output is shared by the tasks
    pub(crate) unsafe fn run(&self, output: Output<'_, E>) {
        let chunks = self.weights.chunks();
        let all = (self.batch, self.window.height, self.weights.pairs());
        let size = |rows| 2 * chunks * self.window.layout(1, rows).image;
        let threads = rayon::current_num_threads();
        let tasks = cut(
            all,
            shares(all, size, BUDGET, self.weights.length(), threads),
        );
        tasks
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| self.run_task(&task, output));
    }

    fn run_task(&self, task: &Task, output: Output<'_, E>) {
        let layout = self.window.layout(task.images.len(), task.rows.len());
        let numbers = length(&layout, self.weights.chunks());
        with_scratch(numbers.div_ceil(2), |scratch| {
            let x = &mut halves_mut(scratch)[..numbers];
            gather(
                self.source,
                self.window,
                &layout,
                task.images.clone(),
                task.rows.start,
                x,
            );
            let session = Session::new();
            let taps: Vec<usize> = layout.taps.iter().map(|tap| 2 * tap).collect();
            let runs = self.runs(task, &layout, output);
            for pair in task.slabs.clone() {
                for (index, image) in task.images.clone().enumerate() {
                    for run in &runs {
                        let x = &x[2 * (index * layout.image + run.from)..];
                        self.multiply(&session, (image, pair), x, (&layout, &taps), run, output);
                    }
                }
            }
        });
    }

    /// The positions of an image that are worked on one after the other, and where their outputs belong. With stride 1 the
    /// rows of an image are one run with a few positions for nothing between two rows; otherwise each row is one.
    fn runs(&self, task: &Task, layout: &Gathered, output: Output<'_, E>) -> Vec<Run> {
        let places = |row: usize| {
            let start = (task.rows.start + row) * output.row;
            (0..self.window.width).map(move |column| start + column * output.pixel)
        };
        if self.window.stride > 1 {
            let run = |row| Run {
                from: row * layout.output_row,
                places: places(row).collect(),
            };
            return (0..task.rows.len()).map(run).collect();
        }
        let positions = layout.row / LANES;
        let mut all = vec![NOWHERE; (task.rows.len() - 1) * positions + self.window.width];
        for row in 0..task.rows.len() {
            let of_row = all[row * positions..].iter_mut();
            of_row.zip(places(row)).for_each(|(place, of)| *place = of);
        }
        vec![Run {
            from: 0,
            places: all,
        }]
    }

    /// One run of one image for one pair of blocks of outputs.
    #[allow(unsafe_code)] // pointers into what was laid out before
    fn multiply(
        &self,
        session: &Session,
        (image, pair): (usize, usize),
        x: &[Bf16],
        (layout, taps): (&Gathered, &[usize]),
        run: &Run,
        output: Output<'_, E>,
    ) {
        let columns = self.weights.columns(pair);
        let tiles = self.weights.tiles(pair);
        let mut sums = Sums([0.0; 4 * SQUARE]);
        for (index, places) in run.places.chunks(2 * SIDE).enumerate() {
            let rows = places.len().div_ceil(SIDE);
            let squares = Squares {
                a: x[index * 2 * SIDE * DEPTH..].as_ptr(),
                a_row: DEPTH,
                a_chunk: 2 * layout.block,
                chunks: self.weights.chunks(),
                taps,
                b: tiles.as_ptr(),
                b_step: columns * super::dot::TILE,
                b_column: super::dot::TILE,
                rows,
                columns,
                sums: sums.0.as_mut_ptr(),
                sums_row: 2 * SQUARE,
                accumulate: false,
            };
            // SAFETY: the positions were gathered for all taps and chunks, with room behind the last for whole tiles.
            unsafe {
                session.multiply(&squares);
            }
            for (row, places) in places.chunks(SIDE).enumerate() {
                for column in 0..columns {
                    let sums = &sums.0[(row * 2 + column) * SQUARE..][..SQUARE];
                    self.write(sums, places, (image, pair * PAIR + column), output);
                }
            }
        }
    }

    /// Adds bias and `plus`, scales, and writes one square of sums where it belongs.
    #[allow(unsafe_code)] // the output is shared by the tasks
    fn write(
        &self,
        sums: &[f32],
        places: &[usize],
        (image, block): (usize, usize),
        output: Output<'_, E>,
    ) {
        let bias = self.bias.map_or(&[0.0; LANES], |bias| {
            let of = &bias.data[image * bias.image + block * bias.block..];
            of.first_chunk().unwrap_or(&[0.0; LANES])
        });
        let start = output.start + image * output.image + block * output.block;
        // Places rise, and NOWHERE is none.
        let last = places.iter().rfind(|&&place| place != NOWHERE);
        let last = last.copied().unwrap_or(0);
        let channels = LANES.min(self.weights.outputs - block * LANES);
        let finish = Finish {
            bias,
            plus: self
                .plus
                .map_or(std::ptr::null(), |plus| plus.0.wrapping_add(start)),
            scale: self.scale,
            y: match output.layout {
                Layout::Blocked => output.memory.at(start, last + LANES),
                _ => output
                    .memory
                    .at(start, last + (channels - 1) * output.block / LANES + 1),
            },
        };
        match output.layout {
            Layout::Blocked => write_block(sums, places, &finish),
            // SAFETY: `at` has seen that all channels of the last place lie in memory, and they are this task's.
            _ => unsafe { finish.write_channels(sums, places, channels, output.block / LANES) },
        }
    }
}

#[allow(unsafe_code)] // the output is shared by the tasks
impl<E: Element> LaidOut<E> for Packed {
    fn fill(&mut self, weights: Weights<'_>, taps: &[usize], _window: &Window) {
        Packed::fill(self, weights, taps);
    }

    unsafe fn correlate(it: &Correlation<'_, E, Self>, output: Output<'_, E>) {
        // SAFETY: the caller's promise.
        unsafe { it.run(output) }
    }
}

/// Positions side by side: where the first one's pixels lie, and where each one's outputs belong, from those of the image.
struct Run {
    from: usize,
    places: Vec<usize>,
}

/// Sums of four squares, on cache lines.
#[repr(align(64))]
struct Sums([f32; 4 * SQUARE]);

/// What is done to sums.
pub(crate) struct Finish<'a, E> {
    bias: &'a [f32; LANES],
    /// Laid out as y, or null.
    plus: *const E,
    scale: f32,
    y: *mut E,
}

impl<E: Element> Finish<'_, E> {
    /// One channel after the other.
    #[allow(unsafe_code)]
    unsafe fn write_channels(
        &self,
        sums: &[f32],
        places: &[usize],
        channels: usize,
        channel: usize,
    ) {
        for (sums, &place) in sums.chunks(SIDE).zip(places) {
            if place == NOWHERE {
                continue;
            }
            for (lane, sum) in sums.iter().enumerate().take(channels) {
                // SAFETY: the caller's promise.
                unsafe {
                    let at = place + lane * channel;
                    let plus = if self.plus.is_null() {
                        0.0
                    } else {
                        self.plus.add(at).read().widen()
                    };
                    let y = (sum + self.bias[lane] + plus) * self.scale;
                    self.y.add(at).write(E::narrow(y));
                }
            }
        }
    }
}

per_vector! {
    /// Sixteen channels side by side.
    fn write_block[E: Element](sums: &[f32], places: &[usize], finish: &Finish<'_, E>);
}

mod body {
    #![allow(unsafe_code)] // the levels' instructions
    use super::*;

    #[inline(always)]
    pub(super) unsafe fn write_block<V: Vector, E: Element>(
        sums: &[f32],
        places: &[usize],
        finish: &Finish<'_, E>,
    ) {
        // SAFETY: whoever calls has seen that sixteen channels of the last place lie in memory, and they are this task's.
        unsafe {
            let (bias, scale) = (V::load(finish.bias.as_ptr()), V::splat(finish.scale));
            for (sums, &place) in sums.chunks_exact(SIDE).zip(places) {
                if place == NOWHERE {
                    continue;
                }
                let mut y = V::load(sums.as_ptr()).add(bias);
                if !finish.plus.is_null() {
                    y = y.add(E::load::<V>(finish.plus.add(place)));
                }
                E::store(y.mul(scale), finish.y.add(place));
            }
        }
    }
}

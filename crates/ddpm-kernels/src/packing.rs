//! Weights laid out as the inner loop reads them: slabs of output channels, each one long row.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::processor::Level;
use crate::source::Window;
use crate::storage::Shared;
use crate::tile::{LANES, most_columns, most_pixels};
use crate::transpose::transpose_slices;
use crate::winograd::{self, Kernels, POSITIONS};

/// Where the weights of a layer lie in its tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights<'a> {
    pub(crate) data: &'a [f32],
    /// Channels read and written, and the floats from one to the next.
    pub(crate) inputs: (usize, usize),
    pub(crate) outputs: (usize, usize),
}

/// The slabs: each holds, for each block of LANES inputs, each tap and each input, a row of `columns * LANES` weights. Of
/// transformed weights there are [`POSITIONS`] such sets of slabs, one after the other, with one tap each.
#[derive(Clone, Default)]
pub(crate) struct Packed {
    pub(crate) data: Aligned,
    pub(crate) shape: Slabs,
    /// Whether they are in Winograd's domain.
    pub(crate) transformed: bool,
}

/// How the output channels of a layer are cut into slabs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slabs {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) taps: usize,
    /// Blocks of LANES outputs in a slab; the last slab may have fewer.
    pub(crate) columns: usize,
}

impl<'a> Weights<'a> {
    /// Kernels of so many taps, `[outputs, inputs, taps]` one after the other.
    pub(crate) fn of_kernels(
        data: &'a [f32],
        (inputs, outputs): (usize, usize),
        taps: usize,
    ) -> Self {
        Weights {
            data,
            inputs: (inputs, taps),
            outputs: (outputs, inputs * taps),
        }
    }

    /// What leads from outputs back to some of the inputs, from `first` on.
    pub(crate) fn turned(self, first: usize, count: usize) -> Self {
        Weights {
            data: &self.data[first * self.inputs.1..],
            inputs: self.outputs,
            outputs: (count, self.inputs.1),
        }
    }
}

impl Slabs {
    pub(crate) fn output_blocks(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    pub(crate) fn count(&self) -> usize {
        self.output_blocks().div_ceil(self.columns)
    }

    /// Blocks of outputs in one slab.
    pub(crate) fn columns_of(&self, slab: usize) -> usize {
        self.columns.min(self.output_blocks() - slab * self.columns)
    }

    /// Where a slab begins.
    pub(crate) fn start(&self, slab: usize) -> usize {
        slab * self.columns * LANES * self.inputs * self.taps
    }

    /// Floats of all slabs.
    pub(crate) fn length(&self) -> usize {
        self.output_blocks() * LANES * self.inputs * self.taps
    }

    /// Slabs as wide as suits rows of so many pixels at this level.
    pub(crate) fn new(
        level: Level,
        (inputs, outputs, taps): (usize, usize, usize),
        width: usize,
    ) -> Self {
        let slabs = |columns| Slabs {
            inputs,
            outputs,
            taps,
            columns,
        };
        let best = (1..=most_columns(level).min(outputs.div_ceil(LANES)))
            .map(slabs)
            .min_by(|a, b| a.cost(level, width).total_cmp(&b.cost(level, width)));
        best.unwrap_or(slabs(1))
    }

    /// Cycles that a row takes for one input under one tap: two sums or two loads a cycle, four cycles until a sum is
    /// known, and half a line of weights a cycle from the second-level cache.
    fn cost(&self, level: Level, width: usize) -> f64 {
        let slab = |slab| {
            let columns = self.columns_of(slab);
            let tile = |pixels: usize| {
                let (pixels, columns) = (pixels as f64, columns as f64);
                let cycles = (pixels * columns / 2.0).max((pixels + columns) / 2.0);
                cycles.max(4.0).max(columns * 2.0) + 0.25
            };
            split_row(width, most_pixels(level, columns))
                .map(tile)
                .sum::<f64>()
        };
        (0..self.count()).map(slab).sum()
    }
}

/// Cuts a row into tiles of at most so many pixels, as equal as can be.
pub(crate) fn split_row(width: usize, most: usize) -> impl Iterator<Item = usize> {
    let tiles = width.div_ceil(most);
    (0..tiles).map(move |tile| width / tiles + usize::from(tile < width % tiles))
}

thread_local! {
    static LENT: RefCell<Vec<Packed>> = const { RefCell::new(Vec::new()) };
}

impl Packed {
    /// Lends memory for weights; the thread keeps it for the next loan.
    pub(crate) fn lend<R>(work: impl FnOnce(&mut Packed) -> R) -> R {
        let mut packed = LENT.with_borrow_mut(Vec::pop).unwrap_or_default();
        let result = work(&mut packed);
        LENT.with_borrow_mut(|kept| kept.push(packed));
        result
    }

    /// Lays out the weights of a window's taps, each given by its place in the tensor from that of the first: transformed
    /// where Winograd's tiles suit the window. The memory of older weights serves where it suffices.
    pub(crate) fn fill(&mut self, weights: Weights<'_>, taps: &[usize], window: &Window) {
        let (level, inputs, outputs) = (Level::current(), weights.inputs.0, weights.outputs.0);
        let kernel = winograd::kernel(window).filter(|_| winograd::suits(window, inputs, outputs));
        self.transformed = kernel.is_some();
        self.shape = match kernel {
            Some(_) => Slabs::new(level, (inputs, outputs, 1), winograd::ROW),
            None => Slabs::new(level, (inputs, outputs, taps.len()), window.width),
        };
        let length = self.shape.length() * if self.transformed { POSITIONS } else { 1 };
        if self.data.len() < length {
            self.data = Aligned::zeros(length);
        }
        match kernel {
            Some(kernel) => self.transform(level, weights, &kernel.map(|tap| taps[tap])),
            None => self.lay_out(weights, taps),
        }
    }

    fn lay_out(&mut self, weights: Weights<'_>, taps: &[usize]) {
        let shape = self.shape;
        let per_slab = shape.columns * LANES * shape.inputs * shape.taps;
        self.data[..shape.length()]
            .par_chunks_mut(per_slab.max(1))
            .enumerate()
            .for_each(|(slab, to)| {
                let row = shape.columns_of(slab) * LANES;
                to.par_chunks_mut(LANES * shape.taps * row)
                    .enumerate()
                    .for_each(|(block, to)| {
                        let first = (block * LANES, slab * shape.columns * LANES);
                        pack_block(weights, taps, first, row, to);
                    });
            });
    }

    /// Transforms the kernels of LANES inputs and LANES outputs at a time.
    fn transform(&mut self, level: Level, weights: Weights<'_>, taps: &[usize; 9]) {
        let shape = self.shape;
        let memory = Shared::new(&mut self.data);
        let blocks = shape.inputs.div_ceil(LANES);
        (0..blocks * shape.output_blocks())
            .into_par_iter()
            .for_each(|task| {
                let (input, block) = (task % blocks * LANES, task / blocks);
                let (slab, column) = (block / shape.columns, block % shape.columns);
                let row = shape.columns_of(slab) * LANES;
                let count = LANES.min(shape.inputs - input);
                let mut kernels = [0f32; LANES * 9 * LANES];
                pack_block(
                    weights,
                    taps,
                    (input, block * LANES),
                    LANES,
                    &mut kernels[..count * 9 * LANES],
                );
                let start = shape.start(slab) + input * row + column * LANES;
                let last = (POSITIONS - 1) * shape.length() + (count - 1) * row + LANES;
                let it = Kernels {
                    count,
                    taps: kernels.as_mut_ptr(),
                    tap: count * LANES,
                    tap_input: LANES,
                    positions: memory.at(start, last),
                    position: shape.length(),
                    input: row,
                };
                #[allow(unsafe_code)]
                // SAFETY: `at` has seen that all positions of these inputs lie in memory; these lanes are this task's.
                unsafe {
                    winograd::weights(level, &it);
                }
            });
    }

    /// One slab; of transformed weights that of one position.
    pub(crate) fn slab(&self, position: usize, slab: usize) -> &[f32] {
        let start = position * self.shape.length() + self.shape.start(slab);
        let row = self.shape.columns_of(slab) * LANES;
        &self.data[start..][..row * self.shape.inputs * self.shape.taps]
    }

    /// Floats of all slabs.
    pub(crate) fn length(&self) -> usize {
        self.shape.length() * if self.transformed { POSITIONS } else { 1 }
    }
}

/// All taps of up to LANES inputs, for one slab.
pub(crate) fn pack_block(
    weights: Weights<'_>,
    taps: &[usize],
    (input, output): (usize, usize),
    row: usize,
    to: &mut [f32],
) {
    let inputs = LANES.min(weights.inputs.0 - input);
    let outputs = row.min(weights.outputs.0 - output);
    let first = output * weights.outputs.1 + input * weights.inputs.1;
    let neighbours = taps.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    match *taps {
        [tap] if weights.inputs.1 == 1 => {
            let from = (&weights.data[first + tap..], weights.outputs.1);
            transpose_slices(from, (outputs, inputs), (to, row));
        }
        [tap, ..] if neighbours && weights.outputs.1 > 1 => {
            for input in 0..inputs {
                let from = &weights.data[first + input * weights.inputs.1 + tap..];
                let to = (&mut to[input * row..], inputs * row);
                transpose_slices((from, weights.outputs.1), (outputs, taps.len()), to);
            }
        }
        _ => {
            for (&tap, to) in taps.iter().zip(to.chunks_mut(inputs * row)) {
                for (input, to) in to.chunks_mut(row).enumerate() {
                    let from = &weights.data[first + input * weights.inputs.1 + tap..];
                    let from = from.iter().step_by(weights.outputs.1);
                    let (to, beyond) = to.split_at_mut(outputs);
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                    beyond.fill(0.0);
                }
            }
        }
    }
}

//! Weights in bf16, laid out as the inner loop reads them.

use rayon::prelude::*;

use super::dot::{DEPTH, SIDE, TILE};
use super::{Bf16, halves, halves_mut};
use crate::aligned::Aligned;
use crate::packing::{Weights, pack_block};
use crate::simd::per_vector;
use crate::vector::Vector;

/// For each pair of blocks of outputs, each chunk of DEPTH inputs and each tap the tiles of both blocks.
#[derive(Clone, Default)]
pub(crate) struct Packed {
    data: Aligned,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) taps: usize,
}

/// Blocks of outputs that are worked on together.
pub(crate) const PAIR: usize = 2;

impl Packed {
    /// Lays out weights, each tap given by its place in the tensor from that of the first, in the memory of older ones
    /// where that suffices.
    pub(crate) fn fill(&mut self, weights: Weights<'_>, taps: &[usize]) {
        (self.inputs, self.outputs, self.taps) = (weights.inputs.0, weights.outputs.0, taps.len());
        let floats = self.length() / 2;
        if self.data.len() < floats {
            self.data = Aligned::zeros(floats);
        }
        let (chunks, of_pair) = (self.chunks(), self.start(1));
        let (outputs, length) = (self.outputs, self.length());
        let tiles = halves_mut(&mut self.data);
        tiles[..length]
            .par_chunks_mut(of_pair)
            .enumerate()
            .for_each(|(pair, to)| {
                let columns = PAIR.min(outputs.div_ceil(SIDE) - pair * PAIR);
                let chunk_length = columns * taps.len() * TILE;
                to.par_chunks_mut(chunk_length)
                    .enumerate()
                    .take(chunks)
                    .for_each(|(chunk, to)| {
                        for column in 0..columns {
                            let output = (pair * PAIR + column) * SIDE;
                            pack_tiles(
                                weights,
                                taps,
                                (chunk * DEPTH, output),
                                &mut to[column * TILE..],
                                columns * TILE,
                            );
                        }
                    });
            });
    }

    /// Chunks of DEPTH inputs.
    pub(crate) fn chunks(&self) -> usize {
        self.inputs.div_ceil(DEPTH)
    }

    /// Pairs of blocks of outputs.
    pub(crate) fn pairs(&self) -> usize {
        self.outputs.div_ceil(PAIR * SIDE)
    }

    /// Blocks of outputs of a pair: two, but for the last.
    pub(crate) fn columns(&self, pair: usize) -> usize {
        PAIR.min(self.outputs.div_ceil(SIDE) - pair * PAIR)
    }

    /// The tiles of a pair.
    pub(crate) fn tiles(&self, pair: usize) -> &[Bf16] {
        let length = self.columns(pair) * self.chunks() * self.taps * TILE;
        &halves(&self.data)[self.start(pair)..][..length]
    }

    /// All numbers.
    pub(crate) fn length(&self) -> usize {
        self.outputs.div_ceil(SIDE) * self.chunks() * self.taps * TILE
    }

    fn start(&self, pair: usize) -> usize {
        pair * PAIR * self.chunks() * self.taps * TILE
    }
}

/// The tiles of DEPTH inputs and SIDE outputs for all taps, `stride` apart.
fn pack_tiles(
    weights: Weights<'_>,
    taps: &[usize],
    (input, output): (usize, usize),
    to: &mut [Bf16],
    stride: usize,
) {
    let count = DEPTH.min(weights.inputs.0 - input);
    if let Some(kernels) = Kernels::of(weights, taps, (input, output)) {
        return pack_kernels(&kernels, to, stride);
    }
    crate::aligned::with_scratch(taps.len() * DEPTH * SIDE, |floats| {
        let (low, high) = floats.split_at_mut(taps.len() * SIDE * SIDE);
        let (of_low, of_high) = (count.min(SIDE), count.saturating_sub(SIDE));
        pack_block(
            weights,
            taps,
            (input, output),
            SIDE,
            &mut low[..taps.len() * of_low * SIDE],
        );
        if of_high > 0 {
            let first = (input + SIDE, output);
            pack_block(
                weights,
                taps,
                first,
                SIDE,
                &mut high[..taps.len() * of_high * SIDE],
            );
        }
        for (tap, to) in to.chunks_mut(stride).enumerate().take(taps.len()) {
            let low = &low[tap * of_low * SIDE..][..of_low * SIDE];
            let high = &high[tap * of_high * SIDE..][..of_high * SIDE];
            interleave(low, &mut to[..TILE / 2]);
            interleave(high, &mut to[TILE / 2..TILE]);
        }
    });
}

/// Kernels of nine taps that follow each other, in this order or the other way round, of DEPTH inputs and SIDE outputs.
pub(crate) struct Kernels<'a> {
    data: &'a [f32],
    /// From one input, and one output, to the next.
    input: usize,
    output: usize,
    backwards: bool,
}

const NINE: usize = 9;

impl<'a> Kernels<'a> {
    fn of(weights: Weights<'a>, taps: &[usize], (input, output): (usize, usize)) -> Option<Self> {
        let follow = |step: usize| {
            let (low, high) = (usize::from(step == 0), usize::from(step == 1));
            taps.windows(2).all(|pair| pair[0] + high == pair[1] + low)
        };
        let whole = input + DEPTH <= weights.inputs.0 && output + SIDE <= weights.outputs.0;
        let backwards = follow(0);
        if taps.len() != NINE || !whole || !(backwards || follow(1)) {
            return None;
        }
        let first = taps[0].min(taps[NINE - 1]);
        let start = input * weights.inputs.1 + output * weights.outputs.1 + first;
        let length = (DEPTH - 1) * weights.inputs.1 + (SIDE - 1) * weights.outputs.1 + NINE;
        Some(Kernels {
            data: weights.data.get(start..start + length)?,
            input: weights.inputs.1,
            output: weights.outputs.1,
            backwards,
        })
    }
}

per_vector! {
    /// The tiles of all taps, `stride` apart.
    fn pack_kernels(kernels: &Kernels<'_>, to: &mut [Bf16], stride: usize);

    /// Rows of SIDE numbers to rows of pairs; rows that are missing are zeros.
    fn interleave(rows: &[f32], to: &mut [Bf16]);
}

mod body {
    #![allow(unsafe_code)] // the levels' instructions
    use super::*;

    #[inline(always)]
    pub(super) unsafe fn pack_kernels<V: Vector>(
        kernels: &Kernels<'_>,
        to: &mut [Bf16],
        stride: usize,
    ) {
        let to = &mut to[..(NINE - 1) * stride + TILE];
        // SAFETY: `Kernels::of` has seen that all inputs and outputs lie in memory; so do the tiles.
        unsafe {
            for pair in 0..SIDE {
                let from = kernels.data.as_ptr().add(2 * pair * kernels.input);
                let even = of_input::<V>(from, kernels.output);
                let odd = of_input::<V>(from.add(kernels.input), kernels.output);
                for tap in 0..NINE {
                    let place = if kernels.backwards {
                        NINE - 1 - tap
                    } else {
                        tap
                    };
                    let to = to.as_mut_ptr().add(place * stride + pair * DEPTH);
                    even[tap].store_pairs(odd[tap], to);
                }
            }
        }
    }

    /// The weights of an input for each tap, outputs side by side.
    #[inline(always)]
    unsafe fn of_input<V: Vector>(from: *const f32, output: usize) -> [V; SIDE] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut rows = [V::zero(); SIDE];
            for (n, row) in rows.iter_mut().enumerate() {
                *row = V::load_some(from.add(n * output), NINE);
            }
            V::transpose(rows)
        }
    }

    #[inline(always)]
    pub(super) unsafe fn interleave<V: Vector>(rows: &[f32], to: &mut [Bf16]) {
        // SAFETY: whole rows of both.
        unsafe {
            let row = |k: usize| rows.get(k * SIDE..(k + 1) * SIDE);
            for (k, to) in to.chunks_exact_mut(DEPTH).enumerate() {
                let even = row(2 * k).unwrap_or(&[0.0; SIDE]).as_ptr();
                let odd = row(2 * k + 1).unwrap_or(&[0.0; SIDE]).as_ptr();
                V::load(even).store_pairs(V::load(odd), to.as_mut_ptr());
            }
        }
    }
}

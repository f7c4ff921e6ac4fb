//! Weights in bf16, laid out as the inner loop reads them.

use rayon::prelude::*;

use super::dot::{DEPTH, SIDE, TILE};
use super::{Bf16, Element, halves, halves_mut};
use crate::aligned::Aligned;
use crate::packing::{Weights, pack_block};
use crate::simd::per_processor;

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

per_processor! {
    /// Rows of SIDE numbers to rows of pairs; rows that are missing are zeros.
    fn interleave(rows: &[f32], to: &mut [Bf16]) {
        let (rows, _) = rows.as_chunks::<SIDE>();
        let (to, _) = to.as_chunks_mut::<DEPTH>();
        for (k, to) in to.iter_mut().enumerate() {
            let even = rows.get(2 * k).unwrap_or(&[0.0; SIDE]);
            let odd = rows.get(2 * k + 1).unwrap_or(&[0.0; SIDE]);
            for n in 0..SIDE {
                to[2 * n] = Bf16::narrow(even[n]);
                to[2 * n + 1] = Bf16::narrow(odd[n]);
            }
        }
    }
}

//! The gradient of a 3 by 3 convolution's weights by Winograd's tiles: dg = Gᵀ \[Σ (Bᵀ d B) ∘ (A dy Aᵀ)\] G, the sum over
//! all tiles, which for each position is one product of matrices.

use rayon::prelude::*;

use crate::aligned::with_scratch;
use crate::packing::Slabs;
use crate::processor::Level;
use crate::source::{Source, Window, gather};
use crate::storage::Shared;
use crate::tile::{LANES, Outer, outer_shape, outer_tile};
use crate::weight_gradient::{Target, WeightGradient};
use crate::winograd::{self, Kernels, POSITIONS, TILE, Tiles, whole_tiles};

/// Floats of transformed pixels at a time: they stay in the second-level cache.
const TRANSFORMED: usize = 1 << 18;
/// Tiles that the sums run over before they leave the registers: their pixels stay in the first-level cache.
const RUN: usize = 112;

impl WeightGradient<'_> {
    /// Computes the gradient for nine taps in reading order, in parallel.
    pub(crate) fn run_tiled(&self, level: Level, target: Target<'_>) {
        let (inputs, outputs) = (self.source.blocks(), self.dy.blocks());
        let slabs = self.slabs(level, 1);
        let columns = self.window.width.div_ceil(TILE);
        let of_image = columns * self.window.height.div_ceil(TILE);
        let per_tile = POSITIONS * (inputs + outputs) * LANES;
        // A constant of the shapes, because it decides the order of the sums.
        let images = (TRANSFORMED / (per_tile * of_image)).clamp(1, self.batch);
        let tiles = images * of_image;
        let of_position = slabs.length() * inputs;
        let (v_length, z_length) = (
            POSITIONS * inputs * tiles * LANES,
            POSITIONS * outputs * tiles * LANES,
        );
        with_scratch(v_length + z_length + POSITIONS * of_position, |scratch| {
            let (v, rest) = scratch.split_at_mut(v_length);
            let (z, sums) = rest.split_at_mut(z_length);
            sums.fill(0.0);
            for first in (0..self.batch).step_by(images) {
                let some = first..(first + images).min(self.batch);
                let tiles = some.len() * of_image;
                let (v, z) = (
                    &mut v[..POSITIONS * inputs * tiles * LANES],
                    &mut z[..POSITIONS * outputs * tiles * LANES],
                );
                transform(
                    level,
                    (self.source, self.window),
                    Domain::Input,
                    some.clone(),
                    v,
                );
                transform(
                    level,
                    (
                        self.dy,
                        &Window::pointwise(self.window.height, self.window.width),
                    ),
                    Domain::Gradient,
                    some,
                    z,
                );
                sums.par_chunks_mut(of_position)
                    .enumerate()
                    .with_max_len(1)
                    .for_each(|(position, sums)| {
                        let (v_length, z_length) =
                            (inputs * tiles * LANES, outputs * tiles * LANES);
                        let (v, z) = (
                            &v[position * v_length..][..v_length],
                            &z[position * z_length..][..z_length],
                        );
                        multiply(level, &slabs, (inputs, tiles), v, z, sums);
                    });
            }
            (0..inputs).into_par_iter().for_each(|block| {
                self.kernels_of(level, &slabs, (block, inputs), sums, target);
            });
        });
    }

    /// The gradients of the kernels of one block of inputs.
    fn kernels_of(
        &self,
        level: Level,
        slabs: &Slabs,
        (block, blocks): (usize, usize),
        sums: &[f32],
        target: Target<'_>,
    ) {
        let inputs = LANES.min(self.source.channels() - block * LANES);
        let outputs = self.dy.channels();
        let mut taps = [0f32; LANES * 9 * LANES];
        for output in (0..outputs).step_by(LANES) {
            let (slab, column) = (
                output / LANES / slabs.columns,
                output / LANES % slabs.columns,
            );
            let row = slabs.columns_of(slab) * LANES;
            let start = slab_start(slabs, slab, block, blocks) + column * LANES;
            let it = Kernels {
                count: inputs,
                taps: taps.as_mut_ptr(),
                tap: LANES,
                tap_input: 9 * LANES,
                // Only read.
                positions: sums[start..].as_ptr().cast_mut(),
                position: sums.len() / POSITIONS,
                input: row,
            };
            #[allow(unsafe_code)]
            // SAFETY: the sums have every position of this block; the taps are this task's.
            unsafe {
                winograd::kernels(level, &it);
            }
            for input in 0..inputs {
                let first = output * target.output + (block * LANES + input) * target.input;
                let lanes = LANES.min(outputs - output);
                target.write_taps(level, (&taps[input * 9 * LANES..], LANES), lanes, first);
            }
        }
    }
}

/// Where the sums of one slab of outputs and one block of inputs begin, within a position.
fn slab_start(slabs: &Slabs, slab: usize, block: usize, blocks: usize) -> usize {
    slabs.start(slab) * blocks + block * LANES * slabs.columns_of(slab) * LANES
}

/// Which transform.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Domain {
    Input,
    Gradient,
}

/// Transforms all channels of some images: `[positions, blocks, tiles, LANES]`.
fn transform(
    level: Level,
    (source, window): (&Source<'_>, &Window),
    domain: Domain,
    images: std::ops::Range<usize>,
    to: &mut [f32],
) {
    let window = whole_tiles(window);
    let layout = window.layout(1, window.height);
    let (rows, columns) = (window.height / TILE, window.width / TILE);
    let (blocks, tiles) = (source.blocks(), images.len() * rows * columns);
    let memory = Shared::new(to);
    (0..blocks * images.len()).into_par_iter().for_each(|task| {
        let (block, image) = (task % blocks, task / blocks);
        with_scratch(layout.block, |x| {
            let of = images.start + image;
            gather(source, &window, &layout, of..of + 1, 0, block..block + 1, x);
            for row in 0..rows {
                let start = (block * tiles + (image * rows + row) * columns) * LANES;
                let last = (POSITIONS - 1) * blocks * tiles * LANES + columns * LANES;
                let it = Tiles {
                    count: columns,
                    from: x[row * TILE * layout.row..].as_ptr(),
                    from_stride: layout.row,
                    to: memory.at(start, last),
                    to_stride: blocks * tiles * LANES,
                };
                #[allow(unsafe_code)]
                // SAFETY: the window was gathered for whole tiles, `at` has seen that they lie in memory for all positions,
                // and these tiles of this block are this task's.
                unsafe {
                    match domain {
                        Domain::Input => winograd::input(level, &it),
                        Domain::Gradient => winograd::gradient(level, &it),
                    }
                }
            }
        });
    });
}

/// Adds v zᵀ over the tiles, for every block of inputs and slab of outputs.
fn multiply(
    level: Level,
    slabs: &Slabs,
    (blocks, tiles): (usize, usize),
    v: &[f32],
    z: &[f32],
    sums: &mut [f32],
) {
    let inputs = outer_shape(level).0;
    for tile in (0..tiles).step_by(RUN) {
        for slab in 0..slabs.count() {
            let columns = slabs.columns_of(slab);
            let outer = outer_tile(level, columns);
            let line = columns * LANES;
            for block in 0..blocks {
                for input in (0..LANES).step_by(inputs) {
                    let start = slab_start(slabs, slab, block, blocks) + input * line;
                    let it = Outer {
                        x: v[(block * tiles + tile) * LANES + input..].as_ptr(),
                        x_image: 0,
                        x_row: 0,
                        dy: z[(slab * slabs.columns * tiles + tile) * LANES..].as_ptr(),
                        dy_image: 0,
                        dy_row: 0,
                        dy_block: tiles * LANES,
                        images: 1,
                        rows: 1,
                        pixels: RUN.min(tiles - tile),
                        dw: sums[start..][..inputs * line].as_mut_ptr(),
                    };
                    #[allow(unsafe_code)]
                    // SAFETY: v and z have all tiles of all blocks, and the sums a line for each input.
                    unsafe {
                        outer(&it);
                    }
                }
            }
        }
    }
}

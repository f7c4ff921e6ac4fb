//! The gradient of a convolution with respect to its weights: for each tap the sum over pixels of input times gradient.

use std::ops::Range;

use rayon::prelude::*;

use crate::aligned::{Aligned, with_scratch};
use crate::correlate::BUDGET;
use crate::packing::Slabs;
use crate::processor::Level;
use crate::source::{Gathered, Source, Window, gather};
use crate::storage::Shared;
use crate::tile::{LANES, Outer, outer_shape, outer_tile};
use crate::winograd;

/// dw\[o, i, tap\] = Σ over images and pixels of x\[pixel * stride + tap, i\] dy\[pixel, o\].
pub(crate) struct WeightGradient<'a> {
    pub(crate) batch: usize,
    pub(crate) source: &'a Source<'a>,
    pub(crate) window: &'a Window,
    /// The gradient of the output, of the window's size.
    pub(crate) dy: &'a Source<'a>,
}

/// Where the gradient goes: the place of the first weight of each tap, and the floats from one channel to the next.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) memory: &'a Shared<'a>,
    pub(crate) taps: &'a [usize],
    pub(crate) input: usize,
    pub(crate) output: usize,
    /// Adds to what is there.
    pub(crate) accumulate: bool,
}

/// Tasks that a gradient is cut into at least, by cutting the batch where there are few channels. A constant, because
/// cutting changes the order of the sum.
const TASKS: usize = 8;

impl WeightGradient<'_> {
    /// Computes the gradient, in parallel.
    ///
    /// # Safety
    /// Nothing else touches the target while this runs.
    #[allow(unsafe_code)] // the target is shared by the tasks
    pub(crate) unsafe fn run(&self, target: Target<'_>) {
        let level = Level::current();
        let kernel = winograd::kernel(self.window);
        let (inputs, outputs) = (self.source.channels(), self.dy.channels());
        if let Some(kernel) = kernel.filter(|_| winograd::suits(self.window, inputs, outputs)) {
            return self.run_tiled(level, &kernel, target);
        }
        let slabs = self.slabs(level, self.window.offsets.len());
        let blocks = self.source.blocks();
        let groups = TASKS.div_ceil(blocks).min(self.batch);
        let length = slabs.length(); // of one block of inputs, of which all LANES are kept
        if groups == 1 {
            return (0..blocks)
                .into_par_iter()
                .with_max_len(1)
                .for_each(|block| {
                    with_scratch(length, |dw| {
                        self.sum(level, &slabs, block, 0..self.batch, dw);
                        self.unpack(&slabs, block, dw, target);
                    });
                });
        }
        let mut parts = Aligned::zeros(groups * blocks * length);
        parts
            .par_chunks_mut(length)
            .enumerate()
            .with_max_len(1)
            .for_each(|(task, dw)| {
                let (group, block) = (task / blocks, task % blocks);
                let images = group * self.batch / groups..(group + 1) * self.batch / groups;
                self.sum(level, &slabs, block, images, dw);
            });
        let (sums, rest) = parts.split_at_mut(blocks * length);
        for part in rest.chunks_exact(blocks * length) {
            crate::simd::add_assign(sums, part);
        }
        for (block, dw) in sums.chunks_exact(length).enumerate() {
            self.unpack(&slabs, block, dw, target);
        }
    }

    /// The slabs of one block of inputs.
    pub(crate) fn slabs(&self, level: Level, taps: usize) -> Slabs {
        let most = outer_shape(level).1;
        let blocks = self.dy.blocks();
        Slabs {
            inputs: LANES,
            outputs: blocks * LANES,
            taps,
            columns: blocks.div_ceil(blocks.div_ceil(most.min(2))), // two are as fast as three and share better
        }
    }

    /// The sum over some images, for one block of inputs and all outputs.
    fn sum(&self, level: Level, slabs: &Slabs, block: usize, images: Range<usize>, dw: &mut [f32]) {
        dw.fill(0.0);
        let stored = self.dy.as_stored();
        let identity = Window {
            stride: 1,
            offsets: vec![(0, 0)],
            height: self.window.height,
            width: self.window.width,
        };
        let (together, rows) = self.chunk(images.len(), stored.is_some());
        for image in images.clone().step_by(together) {
            let images = image..(image + together).min(images.end);
            for row in (0..self.window.height).step_by(rows) {
                let rows = rows.min(self.window.height - row);
                let layout = self.window.layout(images.len(), rows);
                let dy_layout = identity.layout(images.len(), rows);
                let dy_length = if stored.is_some() {
                    0
                } else {
                    self.dy.blocks() * dy_layout.block
                };
                with_scratch(layout.block + dy_length, |scratch| {
                    let (x, dy) = scratch.split_at_mut(layout.block);
                    gather(
                        self.source,
                        self.window,
                        &layout,
                        images.clone(),
                        row,
                        block..block + 1,
                        x,
                    );
                    let chunk = (images.len(), rows);
                    if let Some(part) = stored {
                        let start = part.image * images.start + row * self.window.width * LANES;
                        let pixels = self.window.height * self.window.width;
                        let dy = Gradient {
                            data: &part.data[start..],
                            image: part.image,
                            block: pixels * LANES,
                        };
                        return self.chunk_sum(level, slabs, (x, &layout), dy, chunk, dw);
                    }
                    gather(
                        self.dy,
                        &identity,
                        &dy_layout,
                        images.clone(),
                        row,
                        0..self.dy.blocks(),
                        dy,
                    );
                    let dy = Gradient {
                        data: dy,
                        image: dy_layout.image,
                        block: dy_layout.block,
                    };
                    self.chunk_sum(level, slabs, (x, &layout), dy, chunk, dw);
                });
            }
        }
    }

    /// Images and rows that are gathered at once: as many as stay in the second-level cache.
    fn chunk(&self, images: usize, stored: bool) -> (usize, usize) {
        let blocks = if stored { 1 } else { 1 + self.dy.blocks() };
        let floats = |rows| blocks * self.window.layout(1, rows).image;
        let mut rows = self.window.height;
        while rows > 1 && floats(rows) > BUDGET {
            rows = rows.div_ceil(2);
        }
        let together = if rows == self.window.height {
            (BUDGET / 2 / floats(rows)).clamp(1, images.max(1))
        } else {
            1
        };
        (together, rows)
    }

    /// Adds the products of one chunk: few enough rows at a time for the first-level cache, under all taps.
    fn chunk_sum(
        &self,
        level: Level,
        slabs: &Slabs,
        (x, layout): (&[f32], &Gathered),
        dy: Gradient<'_>,
        (images, rows): (usize, usize),
        dw: &mut [f32],
    ) {
        let width = self.window.width;
        let per_row = (layout.output_row + slabs.columns * width * LANES) * 4;
        let at_once = (L1 / per_row.max(1)).clamp(1, rows);
        let images_at_once = if at_once == rows {
            (L1 / (per_row * rows)).clamp(1, images)
        } else {
            1
        };
        let inputs = outer_shape(level).0;
        for image in (0..images).step_by(images_at_once) {
            for row in (0..rows).step_by(at_once) {
                for slab in 0..slabs.count() {
                    let columns = slabs.columns_of(slab);
                    let outer = outer_tile(level, columns);
                    let line = columns * LANES;
                    for (tap, &offset) in layout.taps.iter().enumerate() {
                        for input in (0..LANES).step_by(inputs) {
                            let x = &x
                                [image * layout.image + row * layout.output_row + offset + input..];
                            let start = image * dy.image
                                + slab * slabs.columns * dy.block
                                + row * width * LANES;
                            let dw = &mut dw[slabs.start(slab) + (tap * LANES + input) * line..];
                            let it = Outer {
                                x: x.as_ptr(),
                                x_image: layout.image,
                                x_row: layout.output_row,
                                dy: dy.data[start..].as_ptr(),
                                dy_image: dy.image,
                                dy_row: width * LANES,
                                dy_block: dy.block,
                                images: images_at_once.min(images - image),
                                rows: at_once.min(rows - row),
                                pixels: width,
                                dw: dw[..inputs * line].as_mut_ptr(),
                            };
                            #[allow(unsafe_code)]
                            // SAFETY: the chunk's pixels were gathered for all taps, dy reaches over all its images, rows
                            // and blocks, and dw has a line for each input.
                            unsafe {
                                outer(&it);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Writes the gradients of one block of inputs where they belong.
    fn unpack(&self, slabs: &Slabs, block: usize, dw: &[f32], target: Target<'_>) {
        let inputs = LANES.min(self.source.channels() - block * LANES);
        let outputs = self.dy.channels();
        for slab in 0..slabs.count() {
            let line = slabs.columns_of(slab) * LANES;
            let first = slab * slabs.columns * LANES;
            let dw = &dw[slabs.start(slab)..];
            for output in first..(first + line).min(outputs) {
                let to = target.kernels(output, block * LANES, inputs);
                for input in 0..inputs {
                    for (tap, &place) in target.taps.iter().enumerate() {
                        let value = dw[(tap * LANES + input) * line + output - first];
                        #[allow(unsafe_code)]
                        // SAFETY: these inputs are this task's, and `kernels` has seen that they lie in memory.
                        unsafe {
                            target.put(to.add(input * target.input + place), value);
                        }
                    }
                }
            }
        }
    }
}

impl Target<'_> {
    /// Where the kernels of some inputs for one output begin; all their taps lie in memory.
    pub(crate) fn kernels(&self, output: usize, first: usize, inputs: usize) -> *mut f32 {
        let last = self.taps.iter().max().map_or(0, |tap| tap + 1);
        let start = output * self.output + first * self.input;
        self.memory.at(start, (inputs - 1) * self.input + last)
    }

    /// Writes one weight's gradient, or adds it.
    ///
    /// # Safety
    /// The place lies in memory and nothing else touches it.
    #[allow(unsafe_code)] // shared by the tasks
    pub(crate) unsafe fn put(&self, to: *mut f32, value: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            let before = if self.accumulate { to.read() } else { 0.0 };
            to.write(before + value);
        }
    }
}

/// Bytes of the first-level cache that the pixels of input and gradient may take.
const L1: usize = 24 << 10;

/// The gradient of some images and rows, in blocks.
#[derive(Clone, Copy)]
struct Gradient<'a> {
    data: &'a [f32],
    image: usize,
    block: usize,
}

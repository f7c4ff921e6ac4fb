//! The gradient of a convolution with respect to its weights: for each tap the sum over pixels of input times gradient.

use std::ops::Range;

use rayon::prelude::*;

use crate::aligned::{Aligned, with_scratch};
use crate::correlate::BUDGET;
use crate::packing::Slabs;
use crate::processor::Level;
use crate::source::{Data, Gathered, Layout, Part, Source, Window, gather};
use crate::storage::Shared;
use crate::tile::{LANES, Outer, outer_shape, outer_tile};
use crate::transpose::{Rows, transpose};
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
        let in_order = winograd::kernel(self.window) == Some(std::array::from_fn(|tap| tap));
        let (inputs, outputs) = (self.source.channels(), self.dy.channels());
        if in_order && winograd::suits(self.window, inputs, outputs) {
            return self.run_tiled(Level::current(), target);
        }
        if self.dy.as_stored::<f32>().is_some() {
            return self.run_stored(target);
        }
        // Each block of inputs reads the whole gradient: it is laid out once.
        let Window { height, width, .. } = *self.window;
        let image = self.dy.blocks() * height * width * LANES;
        with_scratch(self.batch * image, |blocks| {
            self.dy.copy_blocks(blocks);
            let part = Part {
                data: Data::Floats(blocks),
                layout: Layout::Blocked,
                channels: self.dy.channels(),
                image,
            };
            let dy = Source::plain(part, height, width);
            WeightGradient { dy: &dy, ..*self }.run_stored(target);
        });
    }

    fn run_stored(&self, target: Target<'_>) {
        let level = Level::current();
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
                        self.unpack(level, &slabs, block, dw, target);
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
            self.unpack(level, &slabs, block, dw, target);
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
        let Some((dy, dy_image)) = self.dy.as_stored::<f32>() else {
            return;
        };
        let (width, pixels) = (self.window.width, self.window.height * self.window.width);
        let (together, rows) = self.chunk(images.len());
        for image in images.clone().step_by(together) {
            let images = image..(image + together).min(images.end);
            for row in (0..self.window.height).step_by(rows) {
                let rows = rows.min(self.window.height - row);
                let layout = self.window.layout(images.len(), rows);
                with_scratch(layout.block, |x| {
                    let (images, blocks) = (images.clone(), block..block + 1);
                    gather(self.source, self.window, &layout, images, row, blocks, x);
                    let dy = Gradient {
                        data: &dy[dy_image * image + row * width * LANES..],
                        image: dy_image,
                        block: pixels * LANES,
                    };
                    let chunk = (layout.block / layout.image, rows);
                    self.chunk_sum(level, slabs, (x, &layout), dy, chunk, dw);
                });
            }
        }
    }

    /// Images and rows that are gathered at once: as many as stay in the second-level cache.
    fn chunk(&self, images: usize) -> (usize, usize) {
        let floats = |rows| self.window.layout(1, rows).image;
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
    fn unpack(&self, level: Level, slabs: &Slabs, block: usize, dw: &[f32], target: Target<'_>) {
        let inputs = LANES.min(self.source.channels() - block * LANES);
        for slab in 0..slabs.count() {
            let line = slabs.columns_of(slab) * LANES;
            let first = slab * slabs.columns * LANES;
            let outputs = line.min(self.dy.channels() - first);
            let dw = &dw[slabs.start(slab)..][..LANES * slabs.taps * line];
            let start = first * target.output + block * LANES * target.input;
            if slabs.taps == 1 {
                let to = (start + target.taps[0], target.input);
                target.write(level, (dw, line), (inputs, outputs), to);
                continue;
            }
            for input in 0..inputs {
                let start = start + input * target.input;
                target.write_taps(level, (&dw[input * line..], LANES * line), outputs, start);
            }
        }
    }
}

impl Target<'_> {
    /// Writes the sums of all taps of one input for so many outputs. Taps that are neighbours are written together.
    pub(crate) fn write_taps(
        &self,
        level: Level,
        (dw, stride): (&[f32], usize),
        outputs: usize,
        start: usize,
    ) {
        let mut tap = 0;
        for run in self.taps.chunk_by(|a, b| a + 1 == *b) {
            let of_run = (&dw[tap * stride..], stride);
            self.write(level, of_run, (run.len(), outputs), (start + run[0], 1));
            tap += run.len();
        }
    }

    /// Writes some rows of sums for so many outputs; the rows of the first output begin at `start`, `apart` from each other.
    fn write(
        &self,
        level: Level,
        (dw, stride): (&[f32], usize),
        (rows, outputs): (usize, usize),
        (start, apart): (usize, usize),
    ) {
        let dw = &dw[..(rows - 1) * stride + outputs];
        let length = (outputs - 1) * self.output + (rows - 1) * apart + 1;
        let to = self.memory.at(start, length);
        #[allow(unsafe_code)]
        // SAFETY: `at` has seen that all of it lies in memory; these inputs are this task's.
        unsafe {
            if apart == 1 && !self.accumulate {
                let (from, to) = (
                    Rows {
                        first: dw.as_ptr(),
                        stride,
                    },
                    Rows {
                        first: to,
                        stride: self.output,
                    },
                );
                return transpose(level, from, (rows, outputs), to, false);
            }
            for row in 0..rows {
                for output in 0..outputs {
                    let to = to.add(output * self.output + row * apart);
                    let before = if self.accumulate { to.read() } else { 0.0 };
                    to.write(before + dw[row * stride + output]);
                }
            }
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

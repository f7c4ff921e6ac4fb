//! Correlation of a batch of images with a bank of kernels: what a convolution computes forward, and what its gradient with
//! respect to the image computes with the weights turned round.

use std::ops::Range;

use rayon::prelude::*;

use crate::aligned::with_scratch;
use crate::packing::{Packed, Weights, split_row};
use crate::processor::Level;
use crate::source::{Gathered, Layout, Source, Window, gather};
use crate::storage::Shared;
use crate::tile::{LANES, Product, most_pixels, multiply_tile};
use crate::transpose::{Rows, transpose};

/// y = (w * x + bias + plus) scale.
pub(crate) struct Correlation<'a, E = f32, W = Packed> {
    pub(crate) batch: usize,
    pub(crate) source: &'a Source<'a>,
    pub(crate) window: &'a Window,
    pub(crate) weights: &'a W,
    pub(crate) bias: Option<Bias<'a>>,
    /// Adds what lies here, laid out as the output; it may be the output itself.
    pub(crate) plus: Option<Addend<E>>,
    pub(crate) scale: f32,
}

/// Weights as one kind of product wants them.
pub(crate) trait LaidOut<E>: Sized {
    /// Lays out the weights of a window's taps, each given by its place in the tensor from that of the first, in the memory
    /// of older ones where that suffices.
    fn fill(&mut self, weights: Weights<'_>, taps: &[usize], window: &Window);

    /// Computes all outputs, in parallel.
    ///
    /// # Safety
    /// Nothing else touches the output, and `plus` reaches as far as it, while this runs.
    #[allow(unsafe_code)] // the output is shared by the tasks
    unsafe fn correlate(it: &Correlation<'_, E, Self>, output: Output<'_, E>);
}

#[allow(unsafe_code)] // as above
impl LaidOut<f32> for Packed {
    fn fill(&mut self, weights: Weights<'_>, taps: &[usize], window: &Window) {
        Packed::fill(self, weights, taps, window);
    }

    unsafe fn correlate(it: &Correlation<'_>, output: Output<'_>) {
        // SAFETY: the caller's promise.
        unsafe { it.run(output) }
    }
}

/// What is added to each output channel.
#[derive(Clone, Copy)]
pub(crate) struct Bias<'a> {
    /// Blocks of LANES floats; lanes beyond the channels are zeros.
    pub(crate) data: &'a [f32],
    /// Floats from one image's to the next, 0 where all share one.
    pub(crate) image: usize,
    /// Floats from one block's to the next.
    pub(crate) block: usize,
}

/// Activations to be added to an output.
#[derive(Clone, Copy)]
pub(crate) struct Addend<E = f32>(pub(crate) *const E);

#[allow(unsafe_code)]
// SAFETY: a task only reads what lies under its own outputs.
unsafe impl<E> Sync for Addend<E> {}
#[allow(unsafe_code)]
// SAFETY: as above.
unsafe impl<E> Send for Addend<E> {}

/// Where outputs go.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a, E = f32> {
    pub(crate) memory: &'a Shared<'a, E>,
    /// The first pixel's first block (or channel) of the first image.
    pub(crate) start: usize,
    /// From one image, block of LANES channels, row and pixel to the next.
    pub(crate) image: usize,
    pub(crate) block: usize,
    pub(crate) row: usize,
    pub(crate) pixel: usize,
    pub(crate) layout: Layout,
}

impl<'a, E> Output<'a, E> {
    /// All of a batch of images that lie one after the other.
    pub(crate) fn whole(
        memory: &'a Shared<'a, E>,
        layout: Layout,
        (channels, height, width): (usize, usize, usize),
    ) -> Self {
        let (length, pixel, block) = match layout {
            Layout::Blocked => (
                channels.next_multiple_of(LANES),
                LANES,
                LANES * height * width,
            ),
            Layout::Plain => (channels, 1, LANES * height * width),
            Layout::Rows => (channels, channels, LANES),
        };
        Output {
            memory,
            start: 0,
            image: length * height * width,
            block,
            row: pixel * width,
            pixel,
            layout,
        }
    }
}

/// Some rows of some images and some slabs of output channels; of all rows if there are several images.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) images: Range<usize>,
    pub(crate) rows: Range<usize>,
    pub(crate) slabs: Range<usize>,
}

impl Correlation<'_> {
    /// Computes all outputs, in parallel.
    ///
    /// # Safety
    /// Nothing else touches the output, and `plus` reaches as far as it, while this runs.
    #[allow(unsafe_code)] // the output is shared by the tasks
    pub(crate) unsafe fn run(&self, output: Output<'_>) {
        let level = Level::current();
        let threads = rayon::current_num_threads();
        if self.weights.transformed {
            let tasks = self.tiled_tasks(threads);
            let tasks = tasks.into_par_iter().with_max_len(1);
            return tasks.for_each(|task| self.run_tiled(&task, level, output));
        }
        let tasks = self.tasks(threads).into_par_iter().with_max_len(1);
        tasks.for_each(|task| self.run_task(&task, level, output));
    }

    /// Cuts the work so that a task's pixels stay in the second-level cache, and every thread gets some tasks.
    fn tasks(&self, threads: usize) -> Vec<Task> {
        let floats = |rows| self.source.blocks() * self.window.layout(1, rows).image;
        let all = (self.batch, self.window.height, self.weights.shape.count());
        let (parts, images, rows) = shares(all, floats, BUDGET, self.weights.length(), threads);
        self.cut(parts, images, rows)
    }

    /// Tasks of so many images and rows and a share of the slabs; those of one share follow each other, so that their
    /// weights stay in the cache.
    pub(crate) fn cut(&self, parts: usize, images: usize, rows: usize) -> Vec<Task> {
        cut(
            (self.batch, self.window.height, self.weights.shape.count()),
            (parts, images, rows),
        )
    }

    fn run_task(&self, task: &Task, level: Level, output: Output<'_>) {
        let layout = self.window.layout(task.images.len(), task.rows.len());
        let pixels = task.images.len() * task.rows.len() * self.window.width;
        let result = if self.is_direct(output) {
            0
        } else {
            pixels * LANES * self.weights.shape.columns
        };
        // A window of another size than the image reads beyond it, or has rows that lie further apart.
        let size = (self.window.height, self.window.width);
        let stored = self
            .source
            .as_stored::<f32>()
            .filter(|_| self.window.is_pointwise() && size == self.source.size());
        let gathered = if stored.is_some() {
            0
        } else {
            self.source.blocks() * layout.block
        };
        with_scratch(gathered + result, |scratch| {
            let (x, result) = scratch.split_at_mut(gathered);
            if let Some((data, image)) = stored {
                let start = image * task.images.start + task.rows.start * self.window.width * LANES;
                let pixels = self.source.height * self.source.width;
                let strides = Strides {
                    image,
                    row: self.window.width * LANES,
                    block: pixels * LANES,
                };
                return self.slabs(task, level, &data[start..], strides, &[0], result, output);
            }
            let blocks = 0..self.source.blocks();
            gather(
                self.source,
                self.window,
                &layout,
                task.images.clone(),
                task.rows.start,
                blocks,
                x,
            );
            self.slabs(
                task,
                level,
                x,
                Strides::of(&layout),
                &layout.taps,
                result,
                output,
            );
        });
    }

    /// Slab after slab over all pixels of the task, so that a slab stays in the cache while it is used.
    fn slabs(
        &self,
        task: &Task,
        level: Level,
        x: &[f32],
        strides: Strides,
        taps: &[usize],
        result: &mut [f32],
        output: Output<'_>,
    ) {
        for slab in task.slabs.clone() {
            let columns = self.weights.shape.columns_of(slab);
            let first = slab * self.weights.shape.columns;
            for (i, image) in task.images.clone().enumerate() {
                for (r, row) in task.rows.clone().enumerate() {
                    let x = &x[i * strides.image + r * strides.row..];
                    let place = if self.is_direct(output) {
                        let start = output.start
                            + image * output.image
                            + first * output.block
                            + row * output.row;
                        let last = (columns - 1) * output.block
                            + (self.window.width - 1) * output.pixel
                            + LANES;
                        Place {
                            y: output.memory.at(start, last),
                            start,
                            pixel: output.pixel,
                            block: output.block,
                        }
                    } else {
                        let start = (i * task.rows.len() + r) * self.window.width * LANES;
                        let block = task.images.len() * task.rows.len() * self.window.width * LANES;
                        Place {
                            y: result[start..].as_mut_ptr(),
                            start,
                            pixel: LANES,
                            block,
                        }
                    };
                    self.row(level, (image, slab), x, strides.block, taps, place);
                }
            }
            if !self.is_direct(output) {
                self.scatter(task, level, slab, result, output);
            }
        }
    }

    /// One row of one image, tile after tile.
    fn row(
        &self,
        level: Level,
        (image, slab): (usize, usize),
        x: &[f32],
        x_block: usize,
        taps: &[usize],
        to: Place,
    ) {
        let columns = self.weights.shape.columns_of(slab);
        let bias = self.bias.map_or(std::ptr::null(), |bias| {
            bias.data[image * bias.image + slab * self.weights.shape.columns * bias.block..]
                .as_ptr()
        });
        let weights = self.weights.slab(0, slab).as_ptr();
        let mut column = 0;
        for pixels in split_row(self.window.width, most_pixels(level, columns)) {
            let y = to.y.wrapping_add(column * to.pixel);
            let product = Product {
                x: x[column * LANES..].as_ptr(),
                x_block,
                channels: self.weights.shape.inputs,
                taps,
                weights,
                y,
                y_pixel: to.pixel,
                y_block: to.block,
                bias,
                bias_block: self.bias.map_or(0, |bias| bias.block),
                plus: self.plus.map_or(std::ptr::null(), |plus| {
                    plus.0.wrapping_add(to.start + column * to.pixel)
                }),
                scale: self.scale,
            };
            #[allow(unsafe_code)]
            // SAFETY: the tile lies inside of the row, whose pixels were gathered for all taps and blocks, whose outputs
            // are this task's, and whose weights are the slab's.
            unsafe {
                multiply_tile(level, pixels, columns)(&product);
            }
            column += pixels;
        }
    }

    /// Whether the inner loop can write its blocks where they belong.
    fn is_direct(&self, output: Output<'_>) -> bool {
        match output.layout {
            Layout::Blocked => true,
            Layout::Plain => false,
            Layout::Rows => self.weights.shape.outputs.is_multiple_of(LANES),
        }
    }

    /// Copies a slab's channels from blocks to where they belong.
    pub(crate) fn scatter(
        &self,
        task: &Task,
        level: Level,
        slab: usize,
        result: &[f32],
        output: Output<'_>,
    ) {
        let first = slab * self.weights.shape.columns * LANES;
        let channels =
            (self.weights.shape.columns_of(slab) * LANES).min(self.weights.shape.outputs - first);
        let width = self.window.width;
        let (rows, images) = (task.rows.len(), task.images.len());
        // Rows that lie side by side on both sides are one.
        let together = if output.row == width * output.pixel {
            rows
        } else {
            1
        };
        for (block, from) in result.chunks(images * rows * width * LANES).enumerate() {
            let Some(left) = channels.checked_sub(block * LANES).filter(|&left| left > 0) else {
                break;
            };
            let pieces = from.chunks(together * width * LANES).enumerate();
            for (piece, from) in pieces {
                let (image, row) = (piece * together / rows, piece * together % rows);
                let start = output.start
                    + (task.images.start + image) * output.image
                    + (first / LANES + block) * output.block
                    + (task.rows.start + row) * output.row;
                output.write(level, start, LANES.min(left), from);
            }
        }
    }
}

impl<E> Output<'_, E> {
    /// Every `stride`-th row and column, from these on.
    pub(crate) fn every(self, stride: usize, row: usize, column: usize) -> Self {
        Output {
            start: self.start + row * self.row + column * self.pixel,
            row: self.row * stride,
            pixel: self.pixel * stride,
            ..self
        }
    }
}

impl Output<'_> {
    /// Writes some channels of pixels that lie side by side, from a block.
    fn write(&self, level: Level, start: usize, channels: usize, from: &[f32]) {
        let pixels = from.len() / LANES;
        let channel = if self.layout == Layout::Rows {
            1
        } else {
            self.block / LANES
        };
        let last = (channels - 1) * channel + (pixels - 1) * self.pixel;
        let to = self.memory.at(start, last + 1);
        #[allow(unsafe_code)]
        // SAFETY: `at` has seen that all of it lies in memory, and it is this task's.
        unsafe {
            if self.layout == Layout::Plain && self.pixel == 1 {
                let (from, to) = (
                    Rows {
                        first: from.as_ptr(),
                        stride: LANES,
                    },
                    Rows {
                        first: to,
                        stride: channel,
                    },
                );
                return transpose(level, from, (pixels, channels), to, false);
            }
            for (pixel, from) in from.chunks(LANES).enumerate() {
                for (lane, &value) in from.iter().enumerate().take(channels) {
                    to.add(pixel * self.pixel + lane * channel).write(value);
                }
            }
        }
    }
}

/// How work on so many images, rows and slabs is cut: parts of the slabs, images and rows of a task. `size` is that of so
/// many gathered rows of an image, of which a task has `budget` at most; `weights` is that of all weights.
pub(crate) fn shares(
    (batch, height, slabs): (usize, usize, usize),
    size: impl Fn(usize) -> usize,
    budget: usize,
    weights: usize,
    threads: usize,
) -> (usize, usize, usize) {
    let of_image = size(height);
    let wanted = if threads == 1 { 1 } else { 4 * threads };
    let mut images = (budget / of_image.max(1)).clamp(1, batch);
    let mut rows = height;
    while rows > 1 && size(rows) > budget {
        rows = rows.div_ceil(2);
    }
    let chunks = |images: usize, rows: usize| batch.div_ceil(images) * height.div_ceil(rows);
    let mut parts = 1;
    if weights > batch * of_image {
        parts = wanted.div_ceil(chunks(images, rows)).min(slabs); // reading the weights costs more than gathering
    }
    while images > 1 && parts * chunks(images, rows) < wanted {
        images = images.div_ceil(2);
    }
    while rows > 4 && parts * chunks(images, rows) < wanted {
        rows = rows.div_ceil(2);
    }
    parts = parts.max(wanted.div_ceil(chunks(images, rows)).min(slabs));
    (parts, images, rows)
}

/// The tasks of such shares.
pub(crate) fn cut(
    (batch, height, slabs): (usize, usize, usize),
    (parts, images, rows): (usize, usize, usize),
) -> Vec<Task> {
    let mut tasks = Vec::new();
    for part in 0..parts {
        for image in (0..batch).step_by(images) {
            for row in (0..height).step_by(rows) {
                tasks.push(Task {
                    images: image..(image + images).min(batch),
                    rows: row..(row + rows).min(height),
                    slabs: part * slabs / parts..(part + 1) * slabs / parts,
                });
            }
        }
    }
    tasks
}

/// Floats of gathered pixels that a task may have: half of the second-level cache.
pub(crate) const BUDGET: usize = 1 << 17;

/// From one image, row of outputs and block of channels of the input to the next.
#[derive(Clone, Copy)]
struct Strides {
    image: usize,
    row: usize,
    block: usize,
}

impl Strides {
    fn of(layout: &Gathered) -> Self {
        Strides {
            image: layout.image,
            row: layout.output_row,
            block: layout.block,
        }
    }
}

/// Where a row of outputs goes: its pointer, how far that is from the beginning of the output, and its strides.
#[derive(Clone, Copy)]
struct Place {
    y: *mut f32,
    start: usize,
    pixel: usize,
    block: usize,
}

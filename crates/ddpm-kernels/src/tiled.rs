//! Correlation by Winograd's tiles: transform the pixels, multiply channels position by position, transform back.

use crate::aligned::with_scratch;
use crate::correlate::{BUDGET, Correlation, Output, Task};
use crate::packing::split_row;
use crate::processor::Level;
use crate::source::{Layout, gather};
use crate::tile::{LANES, Product, most_pixels, multiply_tile};
use crate::winograd::{self, Outputs, POSITIONS, TILE, Tiles, whole_tiles};

/// The tiles of a task: of each image so many rows and columns.
#[derive(Clone, Copy)]
struct Grid {
    images: usize,
    rows: usize,
    columns: usize,
}

impl Grid {
    fn tiles(&self) -> usize {
        self.images * self.rows * self.columns
    }
}

/// Tiles of a task at most: its transformed pixels and products stay in the last cache, and the weights of a position are
/// read often enough.
const MOST: usize = 128;
/// Tiles below which reading the weights would cost more than multiplying.
const LEAST: usize = 32;

impl Correlation<'_> {
    /// Cuts the work into tasks of whole rows of tiles.
    pub(crate) fn tiled_tasks(&self, threads: usize) -> Vec<Task> {
        let (height, batch, slabs) = (self.window.height, self.batch, self.weights.shape.count());
        let columns = self.window.width.div_ceil(TILE);
        let of_image = columns * height.div_ceil(TILE);
        let mut rows = height.div_ceil(TILE);
        let mut images = (MOST / of_image).clamp(1, batch);
        while rows > 1 && rows * columns > MOST {
            rows = rows.div_ceil(2);
        }
        let wanted = if threads == 1 { 1 } else { 2 * threads };
        let chunks =
            |images: usize, rows: usize| batch.div_ceil(images) * height.div_ceil(TILE * rows);
        while images > 1 && images * of_image > LEAST && chunks(images, rows) < wanted {
            images = images.div_ceil(2);
        }
        while rows > 1 && images == 1 && rows * columns > LEAST && chunks(images, rows) < wanted {
            rows = rows.div_ceil(2);
        }
        let parts = wanted.div_ceil(chunks(images, rows)).min(slabs);
        self.cut(parts, images, rows * TILE)
    }

    pub(crate) fn run_tiled(&self, task: &Task, level: Level, output: Output<'_>) {
        let grid = Grid {
            images: task.images.len(),
            rows: task.rows.len().div_ceil(TILE),
            columns: self.window.width.div_ceil(TILE),
        };
        let shape = self.weights.shape;
        let inputs = POSITIONS * self.source.blocks() * grid.tiles() * LANES;
        let blocks: usize = task.slabs.clone().map(|slab| shape.columns_of(slab)).sum();
        let products = POSITIONS * blocks * grid.tiles() * LANES;
        let pixels = grid.images * task.rows.len() * self.window.width;
        let result = match output.layout {
            Layout::Blocked => 0,
            _ => pixels * LANES * shape.columns,
        };
        with_scratch(inputs + products + result, |scratch| {
            let (v, rest) = scratch.split_at_mut(inputs);
            let (m, result) = rest.split_at_mut(products);
            self.transform_pixels(task, level, grid, v);
            self.multiply(task, level, grid, v, m);
            self.transform_products(task, level, grid, m, result, output);
        });
    }

    /// Gathers some blocks of channels at a time, and lays them out by position, block and tile.
    fn transform_pixels(&self, task: &Task, level: Level, grid: Grid, v: &mut [f32]) {
        let window = whole_tiles(self.window);
        let layout = window.layout(grid.images, grid.rows * TILE);
        let (blocks, tiles) = (self.source.blocks(), grid.tiles());
        let together = (BUDGET / 2 / layout.block).clamp(1, blocks);
        with_scratch(together * layout.block, |x| {
            for first in (0..blocks).step_by(together) {
                let some = first..(first + together).min(blocks);
                gather(
                    self.source,
                    &window,
                    &layout,
                    task.images.clone(),
                    task.rows.start,
                    some.clone(),
                    x,
                );
                for (block, x) in some.zip(x.chunks(layout.block)) {
                    for row in 0..grid.images * grid.rows {
                        let (image, row_of_image) = (row / grid.rows, row % grid.rows);
                        let from = &x[image * layout.image + row_of_image * TILE * layout.row..];
                        let to = &mut v[(block * tiles + row * grid.columns) * LANES..];
                        let it = Tiles {
                            count: grid.columns,
                            from: from.as_ptr(),
                            from_stride: layout.row,
                            to: to.as_mut_ptr(),
                            to_stride: blocks * tiles * LANES,
                        };
                        #[allow(unsafe_code)]
                        // SAFETY: the window was gathered for whole tiles; v has all positions of all blocks and tiles.
                        unsafe {
                            winograd::input(level, &it);
                        }
                    }
                }
            }
        });
    }

    /// For each position the product of all tiles' channels with the weights: its weights stay in the cache.
    fn multiply(&self, task: &Task, level: Level, grid: Grid, v: &[f32], m: &mut [f32]) {
        let (shape, tiles) = (self.weights.shape, grid.tiles());
        let (v_position, m_position) = (v.len() / POSITIONS, m.len() / POSITIONS);
        for position in 0..POSITIONS {
            let v = &v[position * v_position..][..v_position];
            let mut m = &mut m[position * m_position..][..m_position];
            for slab in task.slabs.clone() {
                let columns = shape.columns_of(slab);
                let weights = self.weights.slab(position, slab).as_ptr();
                let (of_slab, rest) = m.split_at_mut(columns * tiles * LANES);
                m = rest;
                let mut tile = 0;
                for count in split_row(tiles, most_pixels(level, columns)) {
                    let product = Product {
                        x: v[tile * LANES..].as_ptr(),
                        x_block: tiles * LANES,
                        channels: shape.inputs,
                        taps: &[0],
                        weights,
                        y: of_slab[tile * LANES..].as_mut_ptr(),
                        y_pixel: LANES,
                        y_block: tiles * LANES,
                        bias: std::ptr::null(),
                        bias_block: 0,
                        plus: std::ptr::null(),
                        scale: 1.0,
                    };
                    #[allow(unsafe_code)]
                    // SAFETY: these tiles lie in v for every block of inputs and in m for every block of the slab.
                    unsafe {
                        multiply_tile(level, count, columns)(&product);
                    }
                    tile += count;
                }
            }
        }
    }

    /// From products to outputs, with all that is added.
    fn transform_products(
        &self,
        task: &Task,
        level: Level,
        grid: Grid,
        m: &[f32],
        result: &mut [f32],
        output: Output<'_>,
    ) {
        let (shape, tiles, width) = (self.weights.shape, grid.tiles(), self.window.width);
        let m_position = m.len() / POSITIONS;
        let mut first_of_task = 0;
        for slab in task.slabs.clone() {
            for column in 0..shape.columns_of(slab) {
                let block = slab * shape.columns + column;
                for row in 0..grid.images * grid.rows {
                    let (i, first_row) = (row / grid.rows, row % grid.rows * TILE);
                    let rows = TILE.min(task.rows.len() - first_row);
                    let image = task.images.start + i;
                    let start = output.start
                        + image * output.image
                        + block * output.block
                        + (task.rows.start + first_row) * output.row;
                    let (to, stride, pixel) = match output.layout {
                        Layout::Blocked => {
                            let last = (rows - 1) * output.row + (width - 1) * output.pixel + LANES;
                            (output.memory.at(start, last), output.row, output.pixel)
                        }
                        _ => {
                            let place =
                                ((column * grid.images + i) * task.rows.len() + first_row) * width;
                            (result[place * LANES..].as_mut_ptr(), width * LANES, LANES)
                        }
                    };
                    let it = Outputs {
                        tiles: Tiles {
                            count: grid.columns,
                            from: m
                                [((first_of_task + column) * tiles + row * grid.columns) * LANES..]
                                .as_ptr(),
                            from_stride: m_position,
                            to,
                            to_stride: stride,
                        },
                        pixel,
                        rows,
                        columns: width,
                        bias: self.bias.map_or(std::ptr::null(), |bias| {
                            bias.data[image * bias.image + block * bias.block..].as_ptr()
                        }),
                        plus: self
                            .plus
                            .map_or(std::ptr::null(), |plus| plus.0.wrapping_add(start)),
                        scale: self.scale,
                    };
                    #[allow(unsafe_code)]
                    // SAFETY: m has all positions of these tiles, and the pixels that exist are this task's.
                    unsafe {
                        winograd::output(level, &it);
                    }
                }
            }
            first_of_task += shape.columns_of(slab);
            if output.layout != Layout::Blocked {
                self.scatter(task, level, slab, result, output);
            }
        }
    }
}

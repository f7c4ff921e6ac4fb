//! Softmax attention of every head of a batch and its gradients, some queries at a time: the matrix of all probabilities
//! never exists.

use std::ops::Range;

use rayon::prelude::*;

use crate::aligned::with_scratch;
use crate::bf16::{Bf16, Element, attention};
use crate::packing::{Slabs, split_row};
use crate::processor::Level;
use crate::simd::{exp, largest, per_processor, per_vector, sum_of};
use crate::source::Data;
use crate::storage::Shared;
use crate::tile::{LANES, Outer, Product, most_pixels, multiply_tile, outer_shape, outer_tile};
use crate::transpose::transpose_slices;

/// The sizes of an attention, and what the scores are multiplied with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    /// Channels of a query and a key of one head.
    pub(crate) size: usize,
    /// Channels of a value of one head.
    pub(crate) value_size: usize,
    pub(crate) scale: f32,
}

/// How the heads of an image lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[heads, rows, size]`.
    Rows,
    /// `[blocks, rows, LANES]`: the channels of one head after those of the other. The lanes beyond the last head are zeros.
    Blocked,
}

/// Queries, keys or values of a batch, or a gradient.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) data: Data<'a>,
    pub(crate) order: Order,
    /// Numbers from one image to the next.
    pub(crate) image: usize,
}

/// Where a result goes.
#[derive(Clone, Copy)]
pub(crate) struct ViewMut<'a> {
    pub(crate) memory: Memory<'a>,
    /// Where the first image begins.
    pub(crate) start: usize,
    pub(crate) order: Order,
    /// Numbers from one image to the next.
    pub(crate) image: usize,
}

impl View<'_> {
    fn is_half(&self) -> bool {
        matches!(self.data, Data::Halves(_))
    }
}

/// Memory for numbers of one kind.
#[derive(Clone, Copy)]
pub(crate) enum Memory<'a> {
    Floats(&'a Shared<'a>),
    Halves(&'a Shared<'a, Bf16>),
}

/// out = softmax(scale q kᵀ) v for each head of each image, in parallel.
///
/// # Safety
/// Nothing else touches the output while this runs.
#[allow(unsafe_code)] // the output is shared by the tasks
pub(crate) unsafe fn attend(
    shape: &Heads,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    out: ViewMut<'_>,
) {
    let level = Level::current();
    let all = shape.batch * shape.heads;
    let halves = [q, k, v].iter().all(View::is_half);
    let tiles: Vec<Range<usize>> = shape.tiles().collect();
    let count = if halves {
        shape.queries.div_ceil(attention::STRIP)
    } else {
        tiles.len()
    };
    let threads = rayon::current_num_threads();
    // Every part of a head lays out its keys and values again.
    let parts = if threads == 1 {
        1
    } else {
        (2 * threads).div_ceil(all)
    };
    let parts = parts.clamp(1, count);
    (0..all * parts)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|task| {
            let (head, part) = (task / parts, task % parts);
            let some = part * count / parts..(part + 1) * count / parts;
            let head = Head::new(shape, level, head);
            if halves {
                attention::forward(&head, some, (q, k, v), out);
            } else {
                head.forward(&tiles[some], (q, k, v), out);
            }
        });
}

/// dq, dk and dv from `d_out`, the gradient of the output: one task a head.
///
/// # Safety
/// Nothing else touches the three gradients while this runs.
#[allow(unsafe_code)] // the gradients are shared by the tasks
pub(crate) unsafe fn attend_backward(
    shape: &Heads,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    d_out: View<'_>,
    dq: ViewMut<'_>,
    dk: ViewMut<'_>,
    dv: ViewMut<'_>,
) {
    let level = Level::current();
    let halves = [q, k, v, d_out].iter().all(View::is_half);
    (0..shape.batch * shape.heads)
        .into_par_iter()
        .with_max_len(1)
        .for_each(|head| {
            let head = Head::new(shape, level, head);
            if halves {
                attention::backward(&head, (q, k, v), d_out, (dq, dk, dv));
            } else {
                head.backward((q, k, v), d_out, (dq, dk, dv));
            }
        });
}

/// The most queries that are worked on at once: their scores stay in the second-level cache.
const QUERIES: usize = 56;

impl Heads {
    /// All queries, in pieces as equal as can be.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let mut first = 0;
        split_row(self.queries, QUERIES).map(move |count| {
            first += count;
            first - count..first
        })
    }

    /// The most queries of a tile.
    fn tile(&self) -> usize {
        self.tiles().map(|tile| tile.len()).max().unwrap_or(0)
    }
}

/// One head of one image.
pub(crate) struct Head<'a> {
    pub(crate) shape: &'a Heads,
    level: Level,
    pub(crate) image: usize,
    head: usize,
}

impl<'a> Head<'a> {
    fn new(shape: &'a Heads, level: Level, head: usize) -> Self {
        Head {
            shape,
            level,
            image: head / shape.heads,
            head: head % shape.heads,
        }
    }

    /// Slabs of weights that turn so many channels into so many others.
    fn slabs(&self, inputs: usize, outputs: usize) -> Slabs {
        Slabs::new(self.level, (inputs, outputs, 1), self.shape.tile())
    }

    fn forward(
        &self,
        tiles: &[Range<usize>],
        (q, k, v): (View<'_>, View<'_>, View<'_>),
        out: ViewMut<'_>,
    ) {
        let shape = self.shape;
        let (to_keys, to_values) = (
            self.slabs(shape.size, shape.keys),
            self.slabs(shape.keys, shape.value_size),
        );
        let most = shape.tile();
        let scores = floats(shape.keys, most);
        let lengths = [
            to_keys.length(),
            to_values.length(),
            floats(shape.size, most),
            scores,
            floats(shape.value_size, most),
        ];
        with_parts(lengths, |[keys, values, q_tile, p, y_tile]| {
            self.pack_columns(k, (shape.keys, shape.size), to_keys, keys);
            self.pack_rows(v, (shape.keys, shape.value_size), to_values, values);
            for tile in tiles {
                let count = tile.len();
                let x = self.pixels(q, (shape.queries, shape.size), tile.clone(), q_tile);
                self.multiply(x, (to_keys, keys), Blocks::of(p, count), count, shape.scale);
                softmax(p, count, shape.keys);
                let place = self.place(out, shape.queries, shape.value_size, tile.start);
                let y = place.unwrap_or(Blocks::of(y_tile, count));
                self.multiply(
                    Blocks::of(p, count).read(),
                    (to_values, values),
                    y,
                    count,
                    1.0,
                );
                if place.is_none() {
                    let piece = |block| (block * count * LANES, LANES);
                    self.write(
                        out,
                        (shape.queries, shape.value_size),
                        tile.clone(),
                        y_tile,
                        piece,
                    );
                }
            }
        });
    }

    /// With P the probabilities: dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP - Σ P dP) scale, dQ = dS K, dK = dSᵀ Q.
    fn backward(
        &self,
        (q, k, v): (View<'_>, View<'_>, View<'_>),
        d_out: View<'_>,
        (dq, dk, dv): (ViewMut<'_>, ViewMut<'_>, ViewMut<'_>),
    ) {
        let shape = self.shape;
        let (queries, keys, size, value_size) =
            (shape.queries, shape.keys, shape.size, shape.value_size);
        let to_keys = self.slabs(size, keys);
        let to_keys_of_values = self.slabs(value_size, keys);
        let to_queries = self.slabs(keys, size);
        let (dk_slabs, dv_slabs) = (self.sums(size), self.sums(value_size));
        let most = shape.tile();
        let lengths = [
            to_keys.length(),
            to_keys_of_values.length(),
            to_queries.length(),
            dk_slabs.length(),
            dv_slabs.length(),
            floats(size, most),
            floats(value_size, most),
            floats(keys, most),
            floats(keys, most),
        ];
        with_parts(
            lengths,
            |[
                k_columns,
                v_columns,
                k_rows,
                dk_sums,
                dv_sums,
                tile_q,
                tile_g,
                p,
                ds,
            ]| {
                self.pack_columns(k, (keys, size), to_keys, k_columns);
                self.pack_columns(v, (keys, value_size), to_keys_of_values, v_columns);
                self.pack_rows(k, (keys, size), to_queries, k_rows);
                dk_sums.fill(0.0);
                dv_sums.fill(0.0);
                for tile in shape.tiles() {
                    let count = tile.len();
                    let x = self.pixels(q, (queries, size), tile.clone(), tile_q);
                    let g = self.pixels(d_out, (queries, value_size), tile.clone(), tile_g);
                    self.multiply(
                        x,
                        (to_keys, k_columns),
                        Blocks::of(p, count),
                        count,
                        shape.scale,
                    );
                    softmax(p, count, keys);
                    self.add_outer(Blocks::of(p, count).read(), g, dv_slabs, dv_sums, count);
                    let dp = Blocks::of(ds, count);
                    self.multiply(g, (to_keys_of_values, v_columns), dp, count, 1.0);
                    softmax_gradient(ds, p, count, keys, shape.scale);
                    let ds = Blocks::of(ds, count).read();
                    self.add_outer(ds, x, dk_slabs, dk_sums, count);
                    let place = self.place(dq, queries, size, tile.start);
                    // The queries of the tile are not needed again, nor is what was copied of them.
                    let to = place.unwrap_or(Blocks::of(tile_q, count));
                    self.multiply(ds, (to_queries, k_rows), to, count, 1.0);
                    if place.is_none() {
                        let piece = |block| (block * count * LANES, LANES);
                        self.write(dq, (queries, size), tile.clone(), tile_q, piece);
                    }
                }
                self.write(dk, (keys, size), 0..keys, dk_sums, pieces(dk_slabs));
                self.write(dv, (keys, value_size), 0..keys, dv_sums, pieces(dv_slabs));
            },
        );
    }

    /// Slabs of sums over queries: a row for each key, of so many channels.
    fn sums(&self, channels: usize) -> Slabs {
        let blocks = channels.div_ceil(LANES);
        let most = outer_shape(self.level).1.min(2);
        Slabs {
            inputs: self.shape.keys.next_multiple_of(LANES),
            outputs: channels,
            taps: 1,
            columns: blocks.div_ceil(blocks.div_ceil(most)),
        }
    }

    /// Where a block of this head's channels lies: up to two runs of lanes.
    pub(crate) fn runs(
        &self,
        order: Order,
        (rows, size): (usize, usize),
        block: usize,
    ) -> impl Iterator<Item = Run> + use<> {
        let count = LANES.min(size - block * LANES);
        let channel = self.head * size + block * LANES;
        let of_block = |channel: usize, lane: usize, count: usize| Run {
            start: channel / LANES * rows * LANES + channel % LANES,
            stride: LANES,
            lane,
            count,
        };
        let runs = match order {
            Order::Rows => {
                let start = self.head * rows * size + block * LANES;
                let run = Run {
                    start,
                    stride: size,
                    lane: 0,
                    count,
                };
                [Some(run), None]
            }
            Order::Blocked => {
                let first = count.min(LANES - channel % LANES);
                let rest = (first < count).then(|| of_block(channel + first, first, count - first));
                [Some(of_block(channel, 0, first)), rest]
            }
        };
        runs.into_iter().flatten()
    }

    /// Whether this head's channels begin with a block and share none with another head.
    fn is_whole(&self, order: Order, size: usize) -> bool {
        order == Order::Blocked && (size.is_multiple_of(LANES) || self.shape.heads == 1)
    }

    /// Some rows with sixteen channels side by side: where they are, or copied to `to`.
    fn pixels(
        &self,
        from: View<'_>,
        (rows, size): (usize, usize),
        range: Range<usize>,
        to: &mut [f32],
    ) -> Blocks<*const f32> {
        let count = range.len();
        if let Data::Floats(data) = from.data
            && self.is_whole(from.order, size)
        {
            let start = from.image * self.image + (self.head * size * rows) + range.start * LANES;
            let length = (size.div_ceil(LANES) - 1) * rows * LANES + count * LANES;
            return Blocks {
                first: data[start..][..length].as_ptr(),
                block: rows * LANES,
            };
        }
        for (block, to) in to
            .chunks_mut(count * LANES)
            .enumerate()
            .take(size.div_ceil(LANES))
        {
            for run in self.runs(from.order, (rows, size), block) {
                let start = from.image * self.image + run.start + range.start * run.stride;
                run.read(from.data, start, count, to, LANES);
            }
        }
        Blocks::of(to, count).read()
    }

    /// Lays out weights whose inputs are rows and whose outputs are channels.
    fn pack_rows(
        &self,
        from: View<'_>,
        (rows, size): (usize, usize),
        slabs: Slabs,
        to: &mut [f32],
    ) {
        let piece = pieces(slabs);
        for block in 0..size.div_ceil(LANES) {
            let (start, stride) = piece(block);
            if size - block * LANES < LANES {
                (0..rows).for_each(|row| to[start + row * stride..][..LANES].fill(0.0));
            }
            for run in self.runs(from.order, (rows, size), block) {
                let first = from.image * self.image + run.start;
                run.read(from.data, first, rows, &mut to[start..], stride);
            }
        }
    }

    /// Lays out weights whose inputs are channels and whose outputs are rows.
    fn pack_columns(
        &self,
        from: View<'_>,
        (rows, size): (usize, usize),
        slabs: Slabs,
        to: &mut [f32],
    ) {
        let mut widened = match from.data {
            Data::Floats(_) => Vec::new(),
            Data::Halves(_) => vec![0f32; rows * LANES],
        };
        for block in 0..size.div_ceil(LANES) {
            for mut run in self.runs(from.order, (rows, size), block) {
                let first = from.image * self.image + run.start;
                let data = match from.data {
                    Data::Floats(data) => &data[first..],
                    Data::Halves(_) => {
                        let wide = Run { lane: 0, ..run };
                        wide.read(from.data, first, rows, &mut widened, LANES);
                        run.stride = LANES;
                        &widened
                    }
                };
                for slab in 0..slabs.count() {
                    let line = slabs.columns_of(slab) * LANES;
                    let first = slab * slabs.columns * LANES;
                    let count = line.min(rows - first);
                    let start = slabs.start(slab) + (block * LANES + run.lane) * line;
                    let data = (&data[first * run.stride..], run.stride);
                    transpose_slices(data, (count, run.count), (&mut to[start..], line));
                }
            }
        }
    }

    /// Where a result can be written as it is computed, if it can.
    fn place(
        &self,
        to: ViewMut<'_>,
        rows: usize,
        size: usize,
        first: usize,
    ) -> Option<Blocks<*mut f32>> {
        let Memory::Floats(memory) = to.memory else {
            return None;
        };
        self.is_whole(to.order, size).then(|| {
            let start = to.start + to.image * self.image + self.head * size * rows;
            let length = size.next_multiple_of(LANES) * rows;
            Blocks {
                first: memory.at(start, length).wrapping_add(first * LANES),
                block: rows * LANES,
            }
        })
    }

    /// Copies some rows from pieces of sixteen channels to where they belong; `piece` says where each begins, and how far
    /// its rows are apart.
    pub(crate) fn write(
        &self,
        to: ViewMut<'_>,
        (rows, size): (usize, usize),
        range: Range<usize>,
        from: &[f32],
        piece: impl Fn(usize) -> (usize, usize),
    ) {
        let image = to.start + to.image * self.image;
        for block in 0..size.div_ceil(LANES) {
            let (start, stride) = piece(block);
            for run in self.runs(to.order, (rows, size), block) {
                let place = image + run.start + range.start * run.stride;
                run.write(&from[start..], stride, range.len(), to.memory, place);
            }
        }
        let used = self.shape.heads * size % LANES;
        if to.order == Order::Blocked && self.head + 1 == self.shape.heads && used > 0 {
            let beyond = Run {
                start: self.shape.heads * size / LANES * rows * LANES + used,
                stride: LANES,
                lane: 0,
                count: LANES - used,
            };
            let place = image + beyond.start + range.start * LANES;
            beyond.write(&[0.0; LANES], 0, range.len(), to.memory, place);
        }
    }

    /// y = x W scale for some pixels.
    fn multiply(
        &self,
        x: Blocks<*const f32>,
        (slabs, weights): (Slabs, &[f32]),
        y: Blocks<*mut f32>,
        count: usize,
        scale: f32,
    ) {
        for slab in 0..slabs.count() {
            let columns = slabs.columns_of(slab);
            let mut first = 0;
            for pixels in split_row(count, most_pixels(self.level, columns)) {
                let to = slab * slabs.columns * y.block + first * LANES;
                let product = Product {
                    x: x.first.wrapping_add(first * LANES),
                    x_block: x.block,
                    channels: slabs.inputs,
                    taps: &[0],
                    weights: weights[slabs.start(slab)..].as_ptr(),
                    y: y.first.wrapping_add(to),
                    y_pixel: LANES,
                    y_block: y.block,
                    bias: std::ptr::null(),
                    bias_block: 0,
                    plus: std::ptr::null(),
                    scale,
                };
                #[allow(unsafe_code)]
                // SAFETY: x holds so many pixels of all inputs, y of all outputs, and the weights were laid out as slabs.
                unsafe {
                    multiply_tile(self.level, pixels, columns)(&product);
                }
                first += pixels;
            }
        }
    }

    /// sums += xᵀ g over some pixels: a row for each of the keys that are x's channels.
    fn add_outer(
        &self,
        x: Blocks<*const f32>,
        g: Blocks<*const f32>,
        slabs: Slabs,
        sums: &mut [f32],
        count: usize,
    ) {
        let inputs = outer_shape(self.level).0;
        for slab in 0..slabs.count() {
            let columns = slabs.columns_of(slab);
            let line = columns * LANES;
            let outer = outer_tile(self.level, columns);
            for key in (0..self.shape.keys).step_by(inputs) {
                let sums = &mut sums[slabs.start(slab) + key * line..][..inputs * line];
                let it = Outer {
                    x: x.first.wrapping_add(key / LANES * x.block + key % LANES),
                    x_image: 0,
                    x_row: 0,
                    dy: g.first.wrapping_add(slab * slabs.columns * g.block),
                    dy_image: 0,
                    dy_row: 0,
                    dy_block: g.block,
                    images: 1,
                    rows: 1,
                    pixels: count,
                    dw: sums.as_mut_ptr(),
                };
                #[allow(unsafe_code)]
                // SAFETY: x and g hold so many pixels of all their blocks, and there is a row for each key of whole blocks.
                unsafe {
                    outer(&it);
                }
            }
        }
    }
}

/// Lanes of one block that lie side by side in every row of a tensor.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    /// The first row's, and the numbers from one row to the next.
    pub(crate) start: usize,
    pub(crate) stride: usize,
    /// The first lane and how many there are.
    pub(crate) lane: usize,
    pub(crate) count: usize,
}

impl Run {
    /// Copies so many rows to where rows of blocks are `to_stride` apart; the first is at `first`.
    fn read(&self, from: Data<'_>, first: usize, rows: usize, to: &mut [f32], to_stride: usize) {
        match from {
            Data::Floats(data) => self.read_from(&data[first..], rows, to, to_stride),
            Data::Halves(data) => self.read_from(&data[first..], rows, to, to_stride),
        }
    }

    fn read_from<E: Element>(&self, from: &[E], rows: usize, to: &mut [f32], to_stride: usize) {
        for row in 0..rows {
            let (from, to) = (
                &from[row * self.stride..],
                &mut to[row * to_stride + self.lane..],
            );
            if self.count == LANES {
                let pairs = to[..LANES].iter_mut().zip(&from[..LANES]);
                pairs.for_each(|(to, from)| *to = from.widen());
            } else {
                let pairs = to.iter_mut().zip(from);
                pairs
                    .take(self.count)
                    .for_each(|(to, from)| *to = from.widen());
            }
        }
    }

    /// Copies so many rows from where rows of blocks are `from_stride` apart.
    fn write(&self, from: &[f32], from_stride: usize, rows: usize, to: Memory<'_>, place: usize) {
        match to {
            Memory::Floats(memory) => self.write_to(from, from_stride, rows, memory, place),
            Memory::Halves(memory) => self.write_to(from, from_stride, rows, memory, place),
        }
    }

    fn write_to<E: Element>(
        &self,
        from: &[f32],
        from_stride: usize,
        rows: usize,
        to: &Shared<'_, E>,
        place: usize,
    ) {
        if rows == 0 {
            return;
        }
        let to = to.at(place, (rows - 1) * self.stride + self.count);
        if self.count == LANES {
            let from = &from[..(rows - 1) * from_stride + LANES];
            return write_rows(from, from_stride, rows, to, self.stride);
        }
        for row in 0..rows {
            let from = &from[row * from_stride + self.lane..][..self.count];
            for (i, &value) in from.iter().enumerate() {
                #[allow(unsafe_code)]
                // SAFETY: `at` has seen that the lanes lie in memory, and they are this task's.
                unsafe {
                    to.add(row * self.stride + i).write(E::narrow(value));
                }
            }
        }
    }
}

/// Pixels with sixteen channels side by side, and the floats from one block of channels to the next.
#[derive(Clone, Copy)]
struct Blocks<P> {
    first: P,
    block: usize,
}

impl Blocks<*mut f32> {
    /// Blocks of so many pixels, one after the other.
    fn of(data: &mut [f32], pixels: usize) -> Self {
        Blocks {
            first: data.as_mut_ptr(),
            block: pixels * LANES,
        }
    }

    fn read(self) -> Blocks<*const f32> {
        Blocks {
            first: self.first,
            block: self.block,
        }
    }
}

/// Where the rows of each block of outputs begin in slabs, and how far they are apart.
fn pieces(slabs: Slabs) -> impl Fn(usize) -> (usize, usize) {
    move |block| {
        let slab = block / slabs.columns;
        let start = slabs.start(slab) + block % slabs.columns * LANES;
        (start, slabs.columns_of(slab) * LANES)
    }
}

/// Floats of so many pixels in blocks of channels.
fn floats(channels: usize, pixels: usize) -> usize {
    channels.next_multiple_of(LANES) * pixels
}

/// Lends scratch memory in parts, each on a cache line.
fn with_parts<const N: usize>(lengths: [usize; N], work: impl FnOnce([&mut [f32]; N])) {
    with_scratch(lengths.iter().sum(), |mut rest| {
        work(lengths.map(|length| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            part
        }));
    });
}

per_vector! {
    /// Rows of LANES floats to where they belong; all of them lie in memory.
    fn write_rows[E: Element](from: &[f32], from_row: usize, rows: usize, to: *mut E, to_row: usize);
}

mod body {
    #![allow(unsafe_code)] // the levels' instructions
    use super::*;
    use crate::vector::Vector;

    #[inline(always)]
    pub(super) unsafe fn write_rows<V: Vector, E: Element>(
        from: &[f32],
        from_row: usize,
        rows: usize,
        to: *mut E,
        to_row: usize,
    ) {
        for row in 0..rows {
            // SAFETY: whoever calls has seen that all rows of both lie in memory.
            unsafe {
                let row_of = V::load(from.as_ptr().add(row * from_row));
                E::store(row_of, to.add(row * to_row));
            }
        }
    }
}

/// Less than this below the largest score a probability is zero: it is lost in any sum, and would soon be denormal.
const LEAST: f32 = -80.0;

per_processor! {
    /// Scores of so many pixels, in blocks of keys, to probabilities; the lanes beyond the keys become zeros.
    fn softmax(x: &mut [f32], pixels: usize, keys: usize) {
        let (x, _) = x.as_chunks_mut::<LANES>();
        let x = &mut x[..pixels * keys.div_ceil(LANES)];
        if !keys.is_multiple_of(LANES) {
            for x in &mut x[keys / LANES * pixels..] {
                x[keys % LANES..].fill(f32::NEG_INFINITY);
            }
        }
        for pixel in 0..pixels {
            let mut most = [f32::NEG_INFINITY; LANES];
            for x in x[pixel..].iter().step_by(pixels) {
                for lane in 0..LANES {
                    most[lane] = if x[lane] > most[lane] { x[lane] } else { most[lane] };
                }
            }
            let most = largest(&most);
            let mut sums = [0f32; LANES];
            for x in x[pixel..].iter_mut().step_by(pixels) {
                let mut p = *x;
                for p in &mut p {
                    let below = *p - most;
                    *p = if below < LEAST { 0.0 } else { exp(below) };
                }
                for lane in 0..LANES {
                    sums[lane] += p[lane];
                }
                *x = p;
            }
            let inverse = (1.0 / sum_of(&sums, &sums, |x, _| x)) as f32;
            for x in x[pixel..].iter_mut().step_by(pixels) {
                for x in x {
                    *x *= inverse;
                }
            }
        }
    }

    /// ds = p (ds - Σ p ds) scale, where ds came as the gradient of the probabilities.
    fn softmax_gradient(ds: &mut [f32], p: &[f32], pixels: usize, keys: usize, scale: f32) {
        let blocks = keys.div_ceil(LANES);
        let (ds, _) = ds.as_chunks_mut::<LANES>();
        let (p, _) = p.as_chunks::<LANES>();
        let (ds, p) = (&mut ds[..pixels * blocks], &p[..pixels * blocks]);
        for pixel in 0..pixels {
            let mut sums = [0f32; LANES];
            for (ds, p) in ds[pixel..].iter().zip(&p[pixel..]).step_by(pixels) {
                for lane in 0..LANES {
                    sums[lane] += p[lane] * ds[lane];
                }
            }
            let mean = sum_of(&sums, &sums, |x, _| x) as f32;
            for (ds, p) in ds[pixel..].iter_mut().zip(&p[pixel..]).step_by(pixels) {
                for lane in 0..LANES {
                    ds[lane] = p[lane] * (ds[lane] - mean) * scale;
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn wave(length: usize, seed: f32) -> Vec<f32> {
        let value = |i: usize| ((i as f32 * 0.37 + seed) * 1.7).sin();
        (0..length).map(value).collect()
    }

    /// Rows of every head to blocks of channels.
    pub(crate) fn blocked<E: Element>(
        heads: &Heads,
        (rows, size): (usize, usize),
        data: &[E],
    ) -> Vec<E> {
        let image = (heads.heads * size).next_multiple_of(LANES) * rows;
        let mut blocked = vec![E::default(); heads.batch * image];
        for (i, &value) in data.iter().enumerate() {
            let (channel, row) = (
                i / (rows * size) % heads.heads * size + i % size,
                i / size % rows,
            );
            let place = (channel / LANES * rows + row) * LANES + channel % LANES;
            blocked[i / (rows * size) / heads.heads * image + place] = value;
        }
        blocked
    }

    /// The output and the three gradients, of tensors in this order; memory starts as NaN. `memory` is that of such numbers.
    pub(crate) fn run<E: Element>(
        heads: &Heads,
        tensors: [&[E]; 4],
        order: Order,
        memory: for<'a> fn(&'a Shared<'a, E>) -> Memory<'a>,
    ) -> [Vec<E>; 4] {
        let nan = E::narrow(f32::NAN);
        let mut results = [3, 0, 1, 2].map(|like: usize| vec![nan; tensors[like].len()]);
        let [q, k, v, g] = tensors.map(|data| View {
            data: E::data(data),
            order,
            image: data.len() / heads.batch,
        });
        let shared = results.each_mut().map(|data| Shared::new(data));
        let [out, dq, dk, dv] = [(0, g), (1, q), (2, k), (3, v)].map(|(i, like)| ViewMut {
            memory: memory(&shared[i]),
            start: 0,
            order,
            image: like.image,
        });
        #[allow(unsafe_code)]
        // SAFETY: the memory is this function's.
        unsafe {
            attend(heads, q, k, v, out);
            attend_backward(heads, q, k, v, g, dq, dk, dv);
        }
        results
    }

    #[test]
    fn blocks_of_channels_and_rows_of_heads_give_the_same_bits() {
        let sizes = [
            (2, 1, 7, 5, 3, 3),
            (1, 4, 9, 9, 8, 8),
            (2, 3, 60, 19, 5, 12),
            (1, 2, 57, 70, 32, 16),
            (2, 2, 3, 1, 17, 40),
        ];
        for (batch, count, queries, keys, size, value_size) in sizes {
            let heads = Heads {
                batch,
                heads: count,
                queries,
                keys,
                size,
                value_size,
                scale: 0.3,
            };
            let q = wave(batch * count * queries * size, 0.0);
            let k = wave(batch * count * keys * size, 1.0);
            let v = wave(batch * count * keys * value_size, 2.0);
            let g = wave(batch * count * queries * value_size, 3.0);
            let of = |tensors: [&[f32]; 4], order| {
                run(&heads, tensors, order, |memory| Memory::Floats(memory))
            };
            let rows = of([&q, &k, &v, &g], Order::Rows);
            let to_blocks =
                |rows: usize, size: usize, data: &[f32]| blocked(&heads, (rows, size), data);
            let (q, k) = (to_blocks(queries, size, &q), to_blocks(keys, size, &k));
            let (v, g) = (
                to_blocks(keys, value_size, &v),
                to_blocks(queries, value_size, &g),
            );
            let results = of([&q, &k, &v, &g], Order::Blocked);
            let shapes = [
                (queries, value_size),
                (queries, size),
                (keys, size),
                (keys, value_size),
            ];
            for (i, (rows_of, size)) in shapes.into_iter().enumerate() {
                assert_eq!(
                    results[i],
                    to_blocks(rows_of, size, &rows[i]),
                    "{heads:?}, result {i}"
                );
            }
        }
    }
}

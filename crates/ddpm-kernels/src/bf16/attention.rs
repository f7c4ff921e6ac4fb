//! Attention of one head in bf16: the products are squares of sums, softmax and its gradient are f32, and probabilities are
//! narrowed between the two products. Some queries at a time, so that the matrix of all probabilities never exists.

use std::ops::Range;

use super::dot::{DEPTH, SIDE, SQUARE, Session, Squares, TILE};
use super::{Bf16, halves_mut};
use crate::aligned::with_scratch;
use crate::heads::{Head, View, ViewMut};
use crate::simd::per_vector;
use crate::source::Data;
use crate::tile::LANES;
use crate::vector::Vector;

/// Queries that are worked on at once: the rows of two squares, and as many as a chunk of the gradients' products.
pub(crate) const STRIP: usize = 2 * SIDE;
/// Strips whose probabilities are turned before the gradients of keys and values are summed up over them.
const STRIPS: usize = 4;

/// out = softmax(scale q kᵀ) v for some of the strips of queries.
pub(crate) fn forward(
    head: &Head<'_>,
    strips: Range<usize>,
    (q, k, v): (View<'_>, View<'_>, View<'_>),
    out: ViewMut<'_>,
) {
    let shape = head.shape;
    let (queries, keys) = (shape.queries, shape.keys);
    let (inner, outer) = (shape.size, shape.value_size);
    let (key_blocks, blocks) = (keys.div_ceil(SIDE), outer.div_ceil(SIDE));
    let lengths = [
        left(queries, inner),
        left(keys, inner),
        left(keys, outer),
        right(inner, keys),
        right(keys, outer),
        left(STRIP, keys),
    ];
    let floats = 2 * (key_blocks + blocks) * SQUARE;
    with_parts(lengths, floats, |[of_q, of_k, of_v, k_t, v_, p], sums| {
        lay_rows(head, q, (queries, inner), of_q);
        lay_rows(head, k, (keys, inner), of_k);
        lay_rows(head, v, (keys, outer), of_v);
        lay_transposed(of_k, (keys, inner), k_t);
        lay_pairs(of_v, (keys, outer), v_);
        let (scores, y) = sums.split_at_mut(2 * key_blocks * SQUARE);
        let session = Session::new();
        for strip in strips {
            let rows = strip * STRIP..queries.min((strip + 1) * STRIP);
            let squares = rows.len().div_ceil(SIDE);
            Product::of((of_q, queries, inner), (k_t, keys)).run(
                &session,
                (rows.start, squares),
                scores,
            );
            for (index, scores) in of_squares(scores, key_blocks, squares) {
                probabilities(scores, keys, shape.scale);
                narrow(scores, &mut p[index * SIDE * DEPTH..]);
            }
            Product::of((p, STRIP, keys), (v_, outer)).run(&session, (0, squares), y);
            write(head, (out, queries, outer), rows, y);
        }
    });
}

/// With P the probabilities: dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP - Σ P dP) scale, dQ = dS K, dK = dSᵀ Q.
pub(crate) fn backward(
    head: &Head<'_>,
    (q, k, v): (View<'_>, View<'_>, View<'_>),
    d_out: View<'_>,
    (dq, dk, dv): (ViewMut<'_>, ViewMut<'_>, ViewMut<'_>),
) {
    let shape = head.shape;
    let (queries, keys) = (shape.queries, shape.keys);
    let (inner, outer) = (shape.size, shape.value_size);
    let (key_blocks, blocks) = (keys.div_ceil(SIDE), outer.div_ceil(SIDE));
    let inner_blocks = inner.div_ceil(SIDE);
    let turned = left(keys, STRIPS * STRIP);
    let lengths = [
        left(queries, inner).max(left(queries, outer)),
        left(keys, inner).max(left(keys, outer)),
        left(queries, outer),
        right(inner, keys),
        right(outer, keys),
        right(keys, inner),
        right(queries, inner),
        right(queries, outer),
        left(STRIP, keys),
        turned,
        turned,
    ];
    let key_squares = keys.div_ceil(STRIP) * 2;
    let of_sums = [
        2 * key_blocks * SQUARE,
        2 * key_blocks * SQUARE,
        2 * inner_blocks * SQUARE,
        key_squares * inner_blocks * SQUARE,
        key_squares * blocks * SQUARE,
    ];
    let work = |parts: [&mut [Bf16]; 11], sums: &mut [f32]| {
        let [of_q, of_k, of_g, k_t, v_t, k_, q_, g_, narrowed, p_t, ds_t] = parts;
        let [p, ds, of_dq, of_dk, of_dv] = split(sums, of_sums);
        lay_rows(head, v, (keys, outer), of_k);
        lay_transposed(of_k, (keys, outer), v_t);
        lay_rows(head, k, (keys, inner), of_k);
        lay_transposed(of_k, (keys, inner), k_t);
        lay_pairs(of_k, (keys, inner), k_);
        lay_rows(head, q, (queries, inner), of_q);
        lay_pairs(of_q, (queries, inner), q_);
        lay_rows(head, d_out, (queries, outer), of_g);
        lay_pairs(of_g, (queries, outer), g_);
        let session = Session::new();
        for first in (0..queries).step_by(STRIPS * STRIP) {
            let group = first..queries.min(first + STRIPS * STRIP);
            for (chunk, start) in group.clone().step_by(STRIP).enumerate() {
                let rows = start..group.end.min(start + STRIP);
                let squares = rows.len().div_ceil(SIDE);
                let at = (start, squares);
                Product::of((of_q, queries, inner), (k_t, keys)).run(&session, at, p);
                Product::of((of_g, queries, outer), (v_t, keys)).run(&session, at, ds);
                // Queries that there are not have no part in the sums over queries.
                narrowed.fill(Bf16(0));
                for (index, p) in of_squares(p, key_blocks, squares) {
                    probabilities(p, keys, shape.scale);
                    narrow(p, &mut narrowed[index * SIDE * DEPTH..]);
                }
                clear_rows(narrowed, rows.len());
                turn(narrowed, (chunk, keys), p_t);
                for (index, ds) in of_squares(ds, key_blocks, squares) {
                    let p = &p[index * key_blocks * SQUARE..][..key_blocks * SQUARE];
                    scores_gradient(ds, p, shape.scale);
                    narrow(ds, &mut narrowed[index * SIDE * DEPTH..]);
                }
                clear_rows(narrowed, rows.len());
                turn(narrowed, (chunk, keys), ds_t);
                let product = Product::of((narrowed, STRIP, keys), (k_, inner));
                product.run(&session, (0, squares), of_dq);
                write(head, (dq, queries, inner), rows, of_dq);
            }
            for (of, right, channels, sums) in [
                (&*p_t, &*g_, outer, &mut *of_dv),
                (&*ds_t, &*q_, inner, &mut *of_dk),
            ] {
                let product = Product {
                    chunks: first / DEPTH..group.end.div_ceil(DEPTH),
                    accumulate: first > 0,
                    ..Product::of((of, keys, queries), (right, channels))
                };
                for square in (0..keys.div_ceil(SIDE)).step_by(2) {
                    let count = 2.min(keys.div_ceil(SIDE) - square);
                    let sums = &mut sums[square * channels.div_ceil(SIDE) * SQUARE..];
                    product.run(&session, (square * SIDE, count), sums);
                }
            }
        }
        write(head, (dk, keys, inner), 0..keys, of_dk);
        write(head, (dv, keys, outer), 0..keys, of_dv);
    };
    with_parts(lengths, of_sums.iter().sum(), work);
}

/// Numbers of rows as the left side of a product: `[chunks, rows, DEPTH]`, zeros beyond the numbers and the rows.
fn left(rows: usize, numbers: usize) -> usize {
    rows.next_multiple_of(STRIP) * numbers.next_multiple_of(DEPTH)
}

/// Numbers of the right side of a product: for each block of columns the tiles of all chunks of what is summed over.
fn right(summed: usize, columns: usize) -> usize {
    columns.div_ceil(SIDE) * summed.div_ceil(DEPTH) * TILE
}

/// Some rows of the left side times the right side.
struct Product<'a> {
    left: &'a [Bf16],
    /// Rows of the left side as laid out.
    rows: usize,
    right: &'a [Bf16],
    /// Chunks of the right side, of which these are summed over; the left side begins with the first.
    all: usize,
    chunks: Range<usize>,
    /// Blocks of columns.
    blocks: usize,
    accumulate: bool,
}

impl<'a> Product<'a> {
    fn of(
        (left, rows, summed): (&'a [Bf16], usize, usize),
        (right, columns): (&'a [Bf16], usize),
    ) -> Self {
        let all = summed.div_ceil(DEPTH);
        Product {
            left,
            rows: rows.next_multiple_of(STRIP),
            right,
            all,
            chunks: 0..all,
            blocks: columns.div_ceil(SIDE),
            accumulate: false,
        }
    }

    /// Squares of sums, `[squares, blocks, SIDE, SIDE]`, of the rows from `first` on.
    fn run(&self, session: &Session, (first, squares): (usize, usize), sums: &mut [f32]) {
        let sums = &mut sums[..squares * self.blocks * SQUARE];
        let left = &self.left[first * DEPTH..];
        for block in (0..self.blocks).step_by(2) {
            let right = &self.right[(block * self.all + self.chunks.start) * TILE..];
            let it = Squares {
                a: left.as_ptr(),
                a_row: DEPTH,
                a_chunk: self.rows * DEPTH,
                chunks: self.chunks.len(),
                taps: &[0],
                b: right.as_ptr(),
                b_step: TILE,
                b_column: self.all * TILE,
                rows: squares,
                columns: 2.min(self.blocks - block),
                sums: sums[block * SQUARE..].as_mut_ptr(),
                sums_row: self.blocks * SQUARE,
                accumulate: self.accumulate,
            };
            #[allow(unsafe_code)]
            // SAFETY: both sides are laid out in whole tiles, and the sums are as many as there are squares.
            unsafe {
                session.multiply(&it);
            }
        }
    }
}

/// Lays out rows as the left side of a product.
fn lay_rows(head: &Head<'_>, from: View<'_>, (rows, size): (usize, usize), to: &mut [Bf16]) {
    let Data::Halves(data) = from.data else {
        return; // whoever calls has seen that all are halves
    };
    let to = &mut to[..left(rows, size)];
    to.fill(Bf16(0));
    let chunk = rows.next_multiple_of(STRIP) * DEPTH;
    for block in 0..size.div_ceil(LANES) {
        for run in head.runs(from.order, (rows, size), block) {
            let data = &data[from.image * head.image + run.start..];
            let to = &mut to[block / 2 * chunk..][..rows * DEPTH];
            let lane = block % 2 * LANES + run.lane;
            for (row, to) in to.chunks_exact_mut(DEPTH).enumerate() {
                let from = &data[row * run.stride..][..run.count];
                if let (Some(to), Some(from)) = (
                    to[lane..].first_chunk_mut::<LANES>(),
                    from.first_chunk::<LANES>(),
                ) {
                    *to = *from;
                } else {
                    to[lane..][..run.count].copy_from_slice(from);
                }
            }
        }
    }
}

/// From rows as a left side their transpose as a right side: summed over what the rows have.
fn lay_transposed(of: &[Bf16], (rows, size): (usize, usize), to: &mut [Bf16]) {
    let (chunks, chunk) = (size.div_ceil(DEPTH), rows.next_multiple_of(STRIP) * DEPTH);
    for (tile, to) in to[..right(size, rows)].chunks_exact_mut(TILE).enumerate() {
        let from = &of[tile % chunks * chunk + tile / chunks * SIDE * DEPTH..];
        transpose_pairs(&from[..TILE], to);
    }
}

/// From rows as a left side the right side that is summed over the rows.
fn lay_pairs(of: &[Bf16], (rows, size): (usize, usize), to: &mut [Bf16]) {
    let (chunks, chunk) = (rows.div_ceil(DEPTH), rows.next_multiple_of(STRIP) * DEPTH);
    for (tile, to) in to[..right(rows, size)].chunks_exact_mut(TILE).enumerate() {
        let block = tile / chunks;
        let from = &of[block / 2 * chunk + tile % chunks * DEPTH * DEPTH + block % 2 * LANES..];
        pair_up(&from[..(DEPTH - 1) * DEPTH + LANES], to);
    }
}

/// Each square's row of sums, `[blocks, SIDE, SIDE]`.
fn of_squares(
    sums: &mut [f32],
    blocks: usize,
    squares: usize,
) -> impl Iterator<Item = (usize, &mut [f32])> {
    sums.chunks_exact_mut(blocks * SQUARE)
        .take(squares)
        .enumerate()
}

/// Zeros in the rows of a strip from `rows` on.
fn clear_rows(strip: &mut [Bf16], rows: usize) {
    if rows < STRIP {
        for chunk in strip.chunks_exact_mut(STRIP * DEPTH) {
            chunk[rows * DEPTH..].fill(Bf16(0));
        }
    }
}

/// From a strip as a left side the chunk of its transpose as one: a row for each key.
fn turn(strip: &[Bf16], (chunk, keys): (usize, usize), to: &mut [Bf16]) {
    let length = keys.next_multiple_of(STRIP) * DEPTH;
    let to = &mut to[chunk * length..][..length];
    for block in 0..keys.div_ceil(SIDE) {
        let from = &strip[block / 2 * STRIP * DEPTH + block % 2 * LANES..];
        let from = &from[..(STRIP - 1) * DEPTH + LANES];
        turn_block(from, &mut to[block * SIDE * DEPTH..][..SIDE * DEPTH]);
    }
}

/// Writes rows of squares where they belong.
fn write(
    head: &Head<'_>,
    (to, rows, size): (ViewMut<'_>, usize, usize),
    range: Range<usize>,
    sums: &[f32],
) {
    let blocks = size.div_ceil(SIDE);
    let squares = sums.chunks_exact(blocks * SQUARE);
    for (first, sums) in range.clone().step_by(SIDE).zip(squares) {
        let some = first..range.end.min(first + SIDE);
        head.write(to, (rows, size), some, sums, |block| (block * SQUARE, SIDE));
    }
}

/// Lends scratch memory in parts.
fn with_parts<const N: usize>(
    lengths: [usize; N],
    floats: usize,
    work: impl FnOnce([&mut [Bf16]; N], &mut [f32]),
) {
    let halves: usize = lengths.iter().sum();
    with_scratch(floats + halves.div_ceil(2), |scratch| {
        let (sums, laid_out) = scratch.split_at_mut(floats);
        work(split(halves_mut(laid_out), lengths), sums);
    });
}

fn split<T, const N: usize>(mut rest: &mut [T], lengths: [usize; N]) -> [&mut [T]; N] {
    lengths.map(|length| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(length);
        rest = after;
        part
    })
}

/// Less than this below the largest score a probability is zero: it is lost in any sum.
const LEAST: f32 = -80.0;

per_vector! {
    /// SIDE rows of DEPTH numbers to a tile whose columns they are.
    fn transpose_pairs(from: &[Bf16], to: &mut [Bf16]);

    /// DEPTH rows, DEPTH apart, of SIDE numbers to a tile that is summed over the rows.
    fn pair_up(from: &[Bf16], to: &mut [Bf16]);

    /// STRIP rows, DEPTH apart, of SIDE numbers to SIDE rows of STRIP.
    fn turn_block(from: &[Bf16], to: &mut [Bf16]);

    /// SIDE rows of sums, `[blocks, SIDE, SIDE]`, to rows of the left side of a strip.
    fn narrow(from: &[f32], to: &mut [Bf16]);

    /// Rows of products `[blocks, SIDE, SIDE]` to softmax(scale x) of each row; what is beyond the keys becomes zero.
    fn probabilities(x: &mut [f32], keys: usize, scale: f32);

    /// ds = p (ds - Σ p ds) scale of each row.
    fn scores_gradient(ds: &mut [f32], p: &[f32], scale: f32);
}

mod body {
    #![allow(unsafe_code)] // the levels' instructions
    use super::*;

    #[inline(always)]
    pub(super) unsafe fn transpose_pairs<V: Vector>(from: &[Bf16], to: &mut [Bf16]) {
        let (from, to) = (&from[..TILE], &mut to[..TILE]);
        // SAFETY: a pair has the size of a float, of which a transpose touches no bit.
        unsafe {
            let mut rows = [V::zero(); SIDE];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = V::load(from.as_ptr().add(i * DEPTH).cast());
            }
            for (i, row) in V::transpose(rows).into_iter().enumerate() {
                row.store(to.as_mut_ptr().add(i * DEPTH).cast());
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn pair_up<V: Vector>(from: &[Bf16], to: &mut [Bf16]) {
        let (from, to) = (&from[..(DEPTH - 1) * DEPTH + SIDE], &mut to[..TILE]);
        // SAFETY: as many rows as were asked for.
        unsafe {
            for pair in 0..SIDE {
                let even = V::load_halves(from.as_ptr().add(2 * pair * DEPTH));
                let odd = V::load_halves(from.as_ptr().add((2 * pair + 1) * DEPTH));
                even.store_pairs(odd, to.as_mut_ptr().add(pair * DEPTH));
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn turn_block<V: Vector>(from: &[Bf16], to: &mut [Bf16]) {
        let (from, to) = (&from[..(STRIP - 1) * DEPTH + SIDE], &mut to[..SIDE * DEPTH]);
        // SAFETY: as many rows as were asked for.
        unsafe {
            for half in 0..2 {
                let from = from.as_ptr().add(half * SIDE * DEPTH);
                V::turn_halves(from, DEPTH, to.as_mut_ptr().add(half * SIDE), DEPTH);
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn narrow<V: Vector>(from: &[f32], to: &mut [Bf16]) {
        let blocks = from.len() / SQUARE;
        let last = blocks.div_ceil(2) - 1;
        let to = &mut to[..last * STRIP * DEPTH + SIDE * DEPTH];
        // SAFETY: the last chunk's rows lie in memory.
        unsafe {
            for block in 0..blocks.next_multiple_of(2) {
                for row in 0..SIDE {
                    let place = block / 2 * STRIP * DEPTH + row * DEPTH + block % 2 * SIDE;
                    let x = if block < blocks {
                        V::load(from.as_ptr().add(block * SQUARE + row * SIDE))
                    } else {
                        V::zero()
                    };
                    x.store_halves(to.as_mut_ptr().add(place));
                }
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn probabilities<V: Vector>(x: &mut [f32], keys: usize, scale: f32) {
        let blocks = keys.div_ceil(SIDE);
        let x = &mut x[..blocks * SQUARE];
        // SAFETY: rows of whole blocks.
        unsafe {
            for row in 0..SIDE {
                let x = x.as_mut_ptr().add(row * SIDE);
                let beyond = x.add((blocks - 1) * SQUARE);
                for lane in keys - (blocks - 1) * SIDE..SIDE {
                    *beyond.add(lane) = f32::NEG_INFINITY;
                }
                let mut most = V::splat(f32::NEG_INFINITY);
                for block in 0..blocks {
                    most = V::load(x.add(block * SQUARE)).at_least(most);
                }
                let most = V::splat(largest(most));
                let mut sums = V::zero();
                for block in 0..blocks {
                    let x = x.add(block * SQUARE);
                    let below = V::load(x).sub(most).mul(V::splat(scale));
                    let p = below.exp().unless_below(below, V::splat(LEAST));
                    sums = sums.add(p);
                    p.store(x);
                }
                let inverse = V::splat(1.0 / sum(sums));
                for block in 0..blocks {
                    let x = x.add(block * SQUARE);
                    V::load(x).mul(inverse).store(x);
                }
            }
        }
    }

    #[inline(always)]
    pub(super) unsafe fn scores_gradient<V: Vector>(ds: &mut [f32], p: &[f32], scale: f32) {
        let blocks = ds.len().min(p.len()) / SQUARE;
        // SAFETY: rows of whole blocks of both.
        unsafe {
            for row in 0..SIDE {
                let (ds, p) = (ds.as_mut_ptr().add(row * SIDE), p.as_ptr().add(row * SIDE));
                let mut sums = V::zero();
                for place in (0..blocks).map(|block| block * SQUARE) {
                    sums = sums.fused(V::load(p.add(place)), V::load(ds.add(place)));
                }
                let (mean, scale) = (V::splat(sum(sums)), V::splat(scale));
                for place in (0..blocks).map(|block| block * SQUARE) {
                    let from_mean = V::load(ds.add(place)).sub(mean);
                    let of = V::load(p.add(place)).mul(scale);
                    of.mul(from_mean).store(ds.add(place));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn largest<V: Vector>(x: V) -> f32 {
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        // SAFETY: the caller's promise.
        unsafe { lanes(x) }
            .into_iter()
            .fold(f32::NEG_INFINITY, larger)
    }

    #[inline(always)]
    unsafe fn sum<V: Vector>(x: V) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { lanes(x) }.into_iter().sum()
    }

    #[inline(always)]
    unsafe fn lanes<V: Vector>(x: V) -> [f32; SIDE] {
        let mut lanes = [0f32; SIDE];
        // SAFETY: the caller's promise.
        unsafe { x.store(lanes.as_mut_ptr()) };
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::super::Element;
    use super::*;
    use crate::heads::{Heads, Memory, Order};
    use crate::processor::{Level, Products, pool_of};

    /// Half a unit in the last of 8 bits, over the number.
    const HALF_UNIT: f64 = 1.0 / 256.0;

    fn heads() -> Vec<Heads> {
        let of = |batch, heads, queries, keys, size, value_size| Heads {
            batch,
            heads,
            queries,
            keys,
            size,
            value_size,
            scale: 0.3,
        };
        vec![
            of(2, 1, 7, 5, 3, 3),
            of(1, 4, 9, 9, 8, 8),
            of(2, 3, 60, 19, 5, 12),
            of(1, 2, 57, 70, 32, 16),
            of(2, 2, 3, 1, 17, 40),
            of(1, 1, 161, 33, 48, 64),
        ]
    }

    fn wave(length: usize, seed: f32) -> Vec<Bf16> {
        let value = |i: usize| Bf16::narrow(((i as f32 * 0.37 + seed) * 1.7).sin());
        (0..length).map(value).collect()
    }

    /// Query, key, value and the gradient of the output, `[B, heads, rows, size]`.
    fn tensors(heads: &Heads) -> [Vec<Bf16>; 4] {
        let all = heads.batch * heads.heads;
        [
            wave(all * heads.queries * heads.size, 0.0),
            wave(all * heads.keys * heads.size, 1.0),
            wave(all * heads.keys * heads.value_size, 2.0),
            wave(all * heads.queries * heads.value_size, 3.0),
        ]
    }

    /// The output and the gradients of query, key and value.
    fn run(heads: &Heads, tensors: &[Vec<Bf16>; 4], order: Order) -> [Vec<Bf16>; 4] {
        let tensors = tensors.each_ref().map(Vec::as_slice);
        crate::heads::tests::run(heads, tensors, order, |memory| Memory::Halves(memory))
    }

    /// The same in double precision, each number with what its factors' rounding may change in it.
    fn exact(heads: &Heads, tensors: &[Vec<Bf16>; 4]) -> [Vec<[f64; 2]>; 4] {
        let [q, k, v, g] = tensors.each_ref().map(|data| {
            let wide = data.iter().map(|x| f64::from(x.widen()));
            wide.collect::<Vec<_>>()
        });
        let (size, outer) = (heads.size, heads.value_size);
        let mut results = [&g, &q, &k, &v].map(|like| vec![[0f64; 2]; like.len()]);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for head in 0..heads.batch * heads.heads {
            for query in 0..heads.queries {
                let of_q = (head * heads.queries + query) * size;
                let of_g = (head * heads.queries + query) * outer;
                let key = |key: usize| (head * heads.keys + key) * size;
                let value = |key: usize| (head * heads.keys + key) * outer;
                let scale = f64::from(heads.scale);
                let score = |j| scale * dot(&q[of_q..][..size], &k[key(j)..][..size]);
                let weights: Vec<f64> = (0..heads.keys).map(|j| score(j).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let p: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
                let of_p = |j| dot(&g[of_g..][..outer], &v[value(j)..][..outer]);
                let dp: Vec<f64> = (0..heads.keys).map(of_p).collect();
                let mean = dot(&p, &dp);
                for j in 0..heads.keys {
                    let ds = p[j] * (dp[j] - mean) * scale;
                    let mut add = |which: usize, place: usize, product: f64| {
                        results[which][place][0] += product;
                        results[which][place][1] += product.abs() * HALF_UNIT;
                    };
                    for c in 0..outer {
                        add(0, of_g + c, p[j] * v[value(j) + c]);
                        add(3, value(j) + c, p[j] * g[of_g + c]);
                    }
                    for c in 0..size {
                        add(1, of_q + c, ds * k[key(j) + c]);
                        add(2, key(j) + c, ds * q[of_q + c]);
                    }
                }
            }
        }
        results
    }

    #[test]
    fn attention_is_that_of_double_precision_but_for_what_eight_bits_leave() {
        for heads in heads() {
            let tensors = tensors(&heads);
            let found = run(&heads, &tensors, Order::Rows);
            for (which, (found, exact)) in found.iter().zip(exact(&heads, &tensors)).enumerate() {
                for (i, (found, [exact, of_factors])) in found.iter().zip(exact).enumerate() {
                    // Probabilities (or the scores' gradients) are rounded once, and the result; the rest is f32.
                    let bound = of_factors * 1.01 + exact.abs() * HALF_UNIT * 1.01 + 1e-5;
                    let off = (f64::from(found.widen()) - exact).abs();
                    assert!(
                        off <= bound,
                        "{heads:?}, result {which}, {i}: {off:e} of {exact}, may be {bound:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn threads_and_what_multiplies_change_no_bit() {
        for heads in heads() {
            let tensors = tensors(&heads);
            let of = |products, threads| {
                let pool = pool_of(Level::current(), products, threads).unwrap();
                pool.install(|| run(&heads, &tensors, Order::Rows))
            };
            for products in Products::available() {
                let expected = of(products, 1);
                for threads in [2, 7] {
                    assert_eq!(of(products, threads), expected, "{heads:?} {products:?}");
                }
                if products == Products::Amx {
                    assert!(of(Products::Emulated, 2) == expected, "{heads:?}");
                }
            }
        }
    }

    #[test]
    fn every_level_computes_it() {
        let heads = heads()[3];
        let tensors = tensors(&heads);
        let expected = run(&heads, &tensors, Order::Rows);
        for level in Level::available() {
            let pool = pool_of(level, Products::Emulated, 2).unwrap();
            let found = pool.install(|| run(&heads, &tensors, Order::Rows));
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                // An exponential that is rounded otherwise may tip a rounding to bf16, here or in a factor.
                let (found, expected) = (found.widen(), expected.widen());
                let most = 4.0 * HALF_UNIT as f32 * expected.abs() + 1e-3;
                assert!(
                    (found - expected).abs() <= most,
                    "{level:?}: {found}, {expected}"
                );
            }
        }
    }

    #[test]
    fn blocks_of_channels_and_rows_of_heads_give_the_same_bits() {
        for heads in heads() {
            let tensors = tensors(&heads);
            let rows = run(&heads, &tensors, Order::Rows);
            let shapes = [
                (heads.queries, heads.size),
                (heads.keys, heads.size),
                (heads.keys, heads.value_size),
                (heads.queries, heads.value_size),
            ];
            let blocked = |which: usize, data: &[Bf16]| {
                crate::heads::tests::blocked(&heads, shapes[which], data)
            };
            let of_blocks: Vec<Vec<Bf16>> = (0..4).map(|i| blocked(i, &tensors[i])).collect();
            let of_blocks: [Vec<Bf16>; 4] = of_blocks.try_into().unwrap();
            let found = run(&heads, &of_blocks, Order::Blocked);
            for (i, like) in [3, 0, 1, 2].into_iter().enumerate() {
                assert_eq!(found[i], blocked(like, &rows[i]), "{heads:?}, result {i}");
            }
        }
    }
}

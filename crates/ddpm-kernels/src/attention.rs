//! Softmax attention and its gradients, some queries at a time: the whole matrix of probabilities never exists.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::aligned::with_scratch;
use crate::matrix::{Matrix, product};
use crate::simd::{self, exp, per_processor};
use crate::storage::{Shared, slice, tensor_like, view, written, zeroed};

/// softmax(scale q kᵀ) v, the softmax over the keys.
///
/// # Shapes
/// q `[B, heads, N, d]`, k `[B, heads, M, d]`, v `[B, heads, M, e]` -> `[B, heads, N, e]`.
///
/// # Errors
/// Shapes that do not fit, no keys, a type other than f32.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    crate::check::f32("attention", &[("q", q), ("k", k), ("v", v)])?;
    crate::check::attention(q, k, v)?;
    if !q.device().is_cpu() {
        return crate::reference::attention(q, k, v, scale);
    }
    let (batch, heads, queries, size) = q.dims4()?;
    let (_, _, keys, value_size) = v.dims4()?;
    let attention = Attention {
        all_heads: batch * heads,
        queries,
        keys,
        size,
        value_size,
        scale: scale as f32,
    };
    q.contiguous()?
        .apply_op3(&k.contiguous()?, &v.contiguous()?, attention)
}

/// Queries that one task works on: a constant, so that sums do not depend on the number of threads.
const QUERIES: usize = 128;

struct Attention {
    /// Heads of all images together.
    all_heads: usize,
    queries: usize,
    keys: usize,
    size: usize,
    value_size: usize,
    scale: f32,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = slice("attention", "q", q, q_layout)?;
        let (k, v) = (
            slice("attention", "k", k, k_layout)?,
            slice("attention", "v", v, v_layout)?,
        );
        let (batch, heads, queries, _) = q_layout.shape().dims4()?;
        Ok((
            CpuStorage::F32(self.forward(q, k, v)),
            Shape::from((batch, heads, queries, self.value_size)),
        ))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (dq, dk, dv) = {
            let (y, g) = (
                view("attention", "the result", y)?,
                view("attention", "the gradient", &g)?,
            );
            let (q, k, v) = (
                view("attention", "q", q)?,
                view("attention", "k", k)?,
                view("attention", "v", v)?,
            );
            self.backward(&q, &k, &v, &y, &g)
        };
        let needed = |of: &Tensor, data| {
            if of.track_op() {
                tensor_like(data, of).map(Some)
            } else {
                Ok(None)
            }
        };
        Ok((needed(q, dq)?, needed(k, dk)?, needed(v, dv)?))
    }
}

impl Attention {
    /// The keys and values of one head as matrices.
    fn head<'a>(&self, head: usize, k: &'a [f32], v: &'a [f32]) -> (Matrix<'a>, Matrix<'a>) {
        (
            Matrix::row_major(&k[head * self.keys * self.size..], self.keys, self.size),
            Matrix::row_major(
                &v[head * self.keys * self.value_size..],
                self.keys,
                self.value_size,
            ),
        )
    }

    /// Writes softmax(scale q kᵀ) of some queries.
    fn probabilities(&self, q: Matrix, k: Matrix, p: &mut [f32]) {
        product(p, q, k.t(), self.scale, false);
        p.chunks_exact_mut(self.keys).for_each(softmax);
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let length = self.all_heads * self.queries * self.value_size;
        #[allow(unsafe_code)]
        // SAFETY: every task fills its queries with zeros first, and the tasks are all queries of all heads.
        let (y, ()) = unsafe {
            written(length, |y| {
                self.forward_into(q, k, v, &Shared::uninitialised(y))
            })
        };
        y
    }

    fn forward_into(&self, q: &[f32], k: &[f32], v: &[f32], memory: &Shared) {
        let blocks = self.queries.div_ceil(QUERIES);
        (0..self.all_heads * blocks)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| {
                let (head, query) = (task / blocks, task % blocks * QUERIES);
                let count = QUERIES.min(self.queries - query);
                let (k, v) = self.head(head, k, v);
                let row = head * self.queries + query;
                let q = Matrix::row_major(&q[row * self.size..], count, self.size);
                #[allow(unsafe_code)]
                // SAFETY: these queries of this head are this task's, and no other's.
                let y =
                    zeroed(unsafe { memory.slice(row * self.value_size, count * self.value_size) });
                with_scratch(count * self.keys, |p| {
                    self.probabilities(q, k, p);
                    product(y, Matrix::row_major(p, count, self.keys), v, 1.0, false);
                });
            });
    }

    /// dL/dq, dL/dk and dL/dv from g = dL/dy: one task a head, its queries block after block.
    fn backward(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        y: &[f32],
        g: &[f32],
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (q_length, k_length, v_length) = (
            self.queries * self.size,
            self.keys * self.size,
            self.keys * self.value_size,
        );
        let heads = self.all_heads;
        let (mut dq, mut dk, mut dv) = (
            vec![0.0; heads * q_length],
            vec![0.0; heads * k_length],
            vec![0.0; heads * v_length],
        );
        let gradients = dq
            .par_chunks_exact_mut(q_length)
            .zip(dk.par_chunks_exact_mut(k_length))
            .zip(dv.par_chunks_exact_mut(v_length));
        gradients
            .enumerate()
            .with_max_len(1)
            .for_each(|(head, ((dq, dk), dv))| {
                let (k, v) = self.head(head, k, v);
                for query in (0..self.queries).step_by(QUERIES) {
                    let count = QUERIES.min(self.queries - query);
                    let row = head * self.queries + query;
                    let q = Matrix::row_major(&q[row * self.size..], count, self.size);
                    let y = &y[row * self.value_size..][..count * self.value_size];
                    let g = &g[row * self.value_size..][..count * self.value_size];
                    let dq = &mut dq[query * self.size..][..count * self.size];
                    self.backward_block(q, k, v, y, g, query > 0, dq, dk, dv);
                }
            });
        (dq, dk, dv)
    }

    /// With P the probabilities: dV = Pᵀ G, dS = P (G Vᵀ - rowsum(G Y)), dQ = scale dS K, dK = scale dSᵀ Q.
    fn backward_block(
        &self,
        q: Matrix,
        k: Matrix,
        v: Matrix,
        y: &[f32],
        g: &[f32],
        accumulate: bool,
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32],
    ) {
        let (keys, count) = (self.keys, q.shape().0);
        let gradient = Matrix::row_major(g, count, self.value_size);
        with_scratch(2 * count * keys, |scratch| {
            let (p, ds) = scratch.split_at_mut(count * keys);
            self.probabilities(q, k, p);
            product(
                dv,
                Matrix::row_major(p, count, keys).t(),
                gradient,
                1.0,
                accumulate,
            );
            product(ds, gradient, v.t(), 1.0, false);
            let rows = p.chunks_exact(keys).zip(ds.chunks_exact_mut(keys));
            for ((p, ds), (g, y)) in rows.zip(
                g.chunks_exact(self.value_size)
                    .zip(y.chunks_exact(self.value_size)),
            ) {
                softmax_gradient(ds, p, simd::dot(g, y) as f32);
            }
            let ds = Matrix::row_major(ds, count, keys);
            product(dq, ds, k, self.scale, false);
            product(dk, ds.t(), q, self.scale, accumulate);
        });
    }
}

per_processor! {
    /// x = e^(x - max x), divided by its sum.
    fn softmax(x: &mut [f32]) {
        let largest = simd::largest(x);
        for x in x.iter_mut() {
            *x = exp(*x - largest);
        }
        let inverse = (1.0 / simd::sum_of(x, x, |x, _| x)) as f32;
        for x in x.iter_mut() {
            *x *= inverse;
        }
    }

    /// ds = p (ds - mean).
    fn softmax_gradient(ds: &mut [f32], p: &[f32], mean: f32) {
        for (ds, p) in ds.iter_mut().zip(p) {
            *ds = p * (*ds - mean);
        }
    }
}

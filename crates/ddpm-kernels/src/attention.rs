//! Softmax attention and its gradients, as an operation on candle's tensors.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use crate::heads::{Heads, Memory, Order, View, ViewMut, attend, attend_backward};
use crate::source::Data;
use crate::storage::{Shared, slice, tensor_like, view, written};

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
    let attention = Attention(Heads {
        batch,
        heads,
        queries,
        keys,
        size,
        value_size,
        scale: scale as f32,
    });
    q.contiguous()?
        .apply_op3(&k.contiguous()?, &v.contiguous()?, attention)
}

/// Heads whose queries, keys and values are rows.
struct Attention(Heads);

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
        let k = slice("attention", "k", k, k_layout)?;
        let v = slice("attention", "v", v, v_layout)?;
        let heads = &self.0;
        Ok((
            CpuStorage::F32(self.forward(q, k, v)),
            Shape::from((heads.batch, heads.heads, heads.queries, heads.value_size)),
        ))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let (dq, dk, dv) = self.backward(
            &view("attention", "q", q)?,
            &view("attention", "k", k)?,
            &view("attention", "v", v)?,
            &view("attention", "the gradient", &g)?,
        );
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
    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let (q, k, v) = (self.rows(q), self.rows(k), self.rows(v));
        let heads = &self.0;
        self.filled(heads.queries * heads.value_size, |out| {
            #[allow(unsafe_code)]
            // SAFETY: the memory is new, and this call's alone.
            unsafe {
                attend(heads, q, k, v, out);
            }
        })
    }

    /// dL/dq, dL/dk and dL/dv from g = dL/dy.
    fn backward(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        g: &[f32],
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (q, k, v, g) = (self.rows(q), self.rows(k), self.rows(v), self.rows(g));
        let heads = &self.0;
        let (mut dk, mut dv) = (Vec::new(), Vec::new());
        let dq = self.filled(heads.queries * heads.size, |dq| {
            dk = self.filled(heads.keys * heads.size, |dk| {
                dv = self.filled(heads.keys * heads.value_size, |dv| {
                    #[allow(unsafe_code)]
                    // SAFETY: the memory is new, and this call's alone.
                    unsafe {
                        attend_backward(heads, q, k, v, g, dq, dk, dv);
                    }
                });
            });
        });
        (dq, dk, dv)
    }

    /// All heads of all images, as rows.
    fn rows<'a>(&self, data: &'a [f32]) -> View<'a> {
        View {
            data: Data::Floats(data),
            order: Order::Rows,
            image: data.len() / self.0.batch,
        }
    }

    /// A tensor of so many floats for each head, all of which `fill` writes.
    fn filled(&self, length: usize, fill: impl FnOnce(ViewMut<'_>)) -> Vec<f32> {
        let image = self.0.heads * length;
        let write = |data: &mut [_]| {
            fill(ViewMut {
                memory: Memory::Floats(&Shared::uninitialised(data)),
                start: 0,
                order: Order::Rows,
                image,
            });
        };
        #[allow(unsafe_code)]
        // SAFETY: attention and its gradients write every row of every head.
        let (data, ()) = unsafe { written(self.0.batch * image, write) };
        data
    }
}

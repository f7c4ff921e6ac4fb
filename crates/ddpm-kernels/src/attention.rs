//! Softmax attention and its gradients, as an operation on candle's tensors.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, bail};

#[cfg(feature = "cuda")]
use crate::cuda::{card, card::Card, launch::Kind, launch::Machine};

use crate::heads::{Heads, Memory, Order, View, ViewMut, attend, attend_backward};
use crate::source::Data;
use crate::storage::{Shared, slice, tensor_like, view, written};

/// softmax(scale q kᵀ) v, the softmax over the keys.
///
/// # Shapes
/// q `[B, heads, N, d]`, k `[B, heads, M, d]`, v `[B, heads, M, e]` -> `[B, heads, N, e]`.
///
/// On a card in bf16, heads with d = e, a multiple of 8 up to 256, go by tensor cores, which round probabilities to bf16 too.
///
/// # Errors
/// Shapes that do not fit, no keys, a type other than f32.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    crate::check::floats("attention", &[("q", q), ("k", k), ("v", v)])?;
    crate::check::attention(q, k, v)?;
    if !crate::check::has_own(q) {
        return crate::reference::attention(q, k, v, scale);
    }
    let (batch, heads, queries, size) = q.dims4()?;
    let (_, _, keys, value_size) = v.dims4()?;
    let heads = Heads {
        batch,
        heads,
        queries,
        keys,
        size,
        value_size,
        scale: scale as f32,
    };
    #[cfg(feature = "cuda")]
    if q.device().is_cuda() && !on_card(Kind::of(q.dtype())?, &heads).fit() {
        return crate::reference::attention(q, k, v, scale);
    }
    let attention = Attention {
        heads,
        #[cfg(feature = "cuda")]
        logarithms: std::sync::OnceLock::new(),
    };
    q.contiguous()?
        .apply_op3(&k.contiguous()?, &v.contiguous()?, attention)
}

/// Heads whose queries, keys and values are rows.
struct Attention {
    heads: Heads,
    /// On a card, of each query the logarithm of the sum of the exponentials of its scores, kept for the gradients.
    #[cfg(feature = "cuda")]
    logarithms: std::sync::OnceLock<card::Memory>,
}

/// The sizes as the card's kernels know them.
#[cfg(feature = "cuda")]
fn on_card(kind: Kind, heads: &Heads) -> crate::cuda::attention::Heads {
    crate::cuda::attention::Heads {
        kind,
        images: heads.batch * heads.heads, // of one head each: they lie one after the other
        heads: 1,
        queries: heads.queries,
        keys: heads.keys,
        size: heads.size,
        value_size: heads.value_size,
        scale: heads.scale,
    }
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
        let k = slice("attention", "k", k, k_layout)?;
        let v = slice("attention", "v", v, v_layout)?;
        Ok((CpuStorage::F32(self.forward(q, k, v)), self.output_shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let card = Card::of(&q.device)?;
        let (kind, q) = card.numbers("attention", "q", q, q_layout)?;
        let (_, k) = card.numbers("attention", "k", k, k_layout)?;
        let (_, v) = card.numbers("attention", "v", v, v_layout)?;
        let (y, logarithms) = on_card(kind, &self.heads).forward(&card, q, k, v)?;
        let _ = self.logarithms.set(logarithms);
        Ok((card.storage(y), self.output_shape()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        #[cfg(feature = "cuda")]
        if q.device().is_cuda() {
            return self.gradients_on_card([q, k, v], _y, &g);
        }
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

#[cfg(feature = "cuda")]
impl Attention {
    fn gradients_on_card(
        &self,
        [q, k, v]: [&Tensor; 3],
        y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let card = Card::of(q.device().as_cuda_device()?)?;
        let Some(logarithms) = self.logarithms.get() else {
            bail!("attention: its gradient is asked for before its result");
        };
        let place = |name, tensor| card.place("attention", name, tensor);
        let [dq, dk, dv] = on_card(Kind::of(q.dtype())?, &self.heads).backward(
            &card,
            [place("q", q)?, place("k", k)?, place("v", v)?],
            [
                place("the result", y)?,
                card.address(logarithms),
                place("the gradient", g)?,
            ],
        )?;
        Ok((
            card.gradient(dq, q),
            card.gradient(dk, k),
            card.gradient(dv, v),
        ))
    }
}

impl Attention {
    fn output_shape(&self) -> Shape {
        let heads = &self.heads;
        Shape::from((heads.batch, heads.heads, heads.queries, heads.value_size))
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let (q, k, v) = (self.rows(q), self.rows(k), self.rows(v));
        let heads = &self.heads;
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
        let heads = &self.heads;
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
            image: data.len() / self.heads.batch,
        }
    }

    /// A tensor of so many floats for each head, all of which `fill` writes.
    fn filled(&self, length: usize, fill: impl FnOnce(ViewMut<'_>)) -> Vec<f32> {
        let image = self.heads.heads * length;
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
        let (data, ()) = unsafe { written(self.heads.batch * image, write) };
        data
    }
}

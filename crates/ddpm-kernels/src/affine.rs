//! What a convolution and a fully connected layer share: an input, weights and perhaps a bias, made known to candle.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use crate::aligned::with_scratch;
use crate::storage::{if_tracked, slice, view};

/// y = W x + b for some linear W, and its gradients from g = dL/dy, on contiguous slices.
pub(crate) trait Affine: Send + Sync + 'static {
    const NAME: &'static str;

    fn output_shape(&self) -> Shape;
    fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32>;
    fn input_gradient(&self, g: Gradient<'_>, weight: &[f32]) -> Vec<f32>;
    fn weight_gradient(&self, g: Gradient<'_>, x: &[f32]) -> Vec<f32>;
    fn bias_gradient(&self, g: &[f32], biases: usize) -> Vec<f32>;

    /// Floats that g takes once it is laid out for the gradients of input and weights; 0 where they read it as it is.
    fn laid_out_length(&self) -> usize {
        0
    }

    /// Lays g out.
    fn lay_out(&self, _g: &[f32], _to: &mut [f32]) {}

    /// y on a card.
    #[cfg(feature = "cuda")]
    fn forward_on_card(
        &self,
        x: OnCard<'_>,
        weight: OnCard<'_>,
        bias: Option<OnCard<'_>>,
    ) -> Result<CudaStorage>;

    /// The gradients of those arguments that need one, on a card; g is contiguous.
    #[cfg(feature = "cuda")]
    fn gradients_on_card(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)>;
}

/// An argument of a custom operation on a card.
#[cfg(feature = "cuda")]
pub(crate) type OnCard<'a> = (&'a CudaStorage, &'a Layout);

/// dL/dy.
#[derive(Clone, Copy)]
pub(crate) struct Gradient<'a> {
    pub(crate) plain: &'a [f32],
    /// As [`Affine::lay_out`] writes it, where two gradients share that work.
    pub(crate) laid_out: Option<&'a [f32]>,
}

/// Applies a map to tensors on the CPU whose types and shapes have been checked.
pub(crate) fn apply<A: Affine>(
    map: A,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        None => x.apply_op2(&weight, Operation(map)),
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Operation(map)),
    }
}

/// A map as candle's operation of two arguments, and of three.
struct Operation<A>(A);

type Argument<'a> = (&'a CpuStorage, &'a Layout);

impl<A: Affine> Operation<A> {
    fn forward(
        &self,
        x: Argument,
        weight: Argument,
        bias: Option<Argument>,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slice(A::NAME, "x", x.0, x.1)?;
        let weight = slice(A::NAME, "weight", weight.0, weight.1)?;
        let bias = match bias {
            Some(bias) => Some(slice(A::NAME, "bias", bias.0, bias.1)?),
            None => None,
        };
        let y = self.0.forward(x, weight, bias);
        Ok((CpuStorage::F32(y), self.0.output_shape()))
    }

    /// Lends the gradient, laid out if two are to read it so.
    fn with_laid_out<R>(&self, g: &[f32], twice: bool, work: impl FnOnce(Gradient<'_>) -> R) -> R {
        let length = self.0.laid_out_length();
        if !twice || length == 0 {
            return work(Gradient {
                plain: g,
                laid_out: None,
            });
        }
        with_scratch(length, |blocks| {
            self.0.lay_out(g, blocks);
            work(Gradient {
                plain: g,
                laid_out: Some(blocks),
            })
        })
    }

    /// The gradients of those arguments that need one.
    fn gradients(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.0.gradients_on_card(x, weight, bias, &g);
        }
        let g = view(A::NAME, "the gradient", &g)?;
        let both = |g: Gradient<'_>| -> Result<_> {
            let dx = if_tracked(x, || {
                Ok(self.0.input_gradient(g, &view(A::NAME, "weight", weight)?))
            })?;
            let dw = if_tracked(weight, || {
                Ok(self.0.weight_gradient(g, &view(A::NAME, "x", x)?))
            })?;
            Ok((dx, dw))
        };
        let (dx, dw) = self.with_laid_out(&g, x.track_op() && weight.track_op(), both)?;
        let db = match bias {
            Some(bias) => if_tracked(bias, || Ok(self.0.bias_gradient(&g, bias.elem_count())))?,
            None => None,
        };
        Ok((dx, dw, db))
    }
}

impl<A: Affine> CustomOp2 for Operation<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (w, w_layout), None)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let y = self.0.forward_on_card((x, x_layout), (w, w_layout), None)?;
        Ok((y, self.0.output_shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = self.gradients(x, weight, None, g)?;
        Ok((dx, dw))
    }
}

impl<A: Affine> CustomOp3 for Operation<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_layout), (w, w_layout), Some((b, b_layout)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        w: &CudaStorage,
        w_layout: &Layout,
        b: &CudaStorage,
        b_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let bias = Some((b, b_layout));
        let y = self.0.forward_on_card((x, x_layout), (w, w_layout), bias)?;
        Ok((y, self.0.output_shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, weight, Some(bias), g)
    }
}

//! The walk over the network that computes: every operation is one of ddpm-kernels on candle tensors.

use candle_core::{D, Tensor};
use ddpm_kernels::{Activation, Conv2d};

use crate::architecture::{Change, Conv, Linear, Norm};
use crate::dropout::Dropout;
use crate::walk::Operations;
use crate::{Nonlinearity, Result};

/// The network's tensors, in the order of its parameters, and the dropout of this call.
///
/// Weights that multiply take the type of what they multiply, which on a card may be bf16; biases, normalisations and the
/// vectors of the time are f32 always.
pub(crate) struct Compute<'a> {
    pub(crate) weights: &'a [Tensor],
    pub(crate) dropout: Option<Dropout<'a>>,
}

impl Compute<'_> {
    fn convolve(&self, x: &Tensor, conv: &Conv, bias: &Tensor) -> Result<Tensor> {
        let how = Conv2d::new(conv.stride, conv.padding);
        let weight = self.weights[conv.weight].to_dtype(x.dtype())?;
        Ok(ddpm_kernels::conv2d(x, &weight, Some(bias), how)?)
    }
}

impl Operations for Compute<'_> {
    type Value = Tensor;

    fn conv2d(&mut self, x: &Tensor, conv: &Conv) -> Result<Tensor> {
        self.convolve(x, conv, &self.weights[conv.bias])
    }

    /// The bias of each image's own costs the convolution nothing.
    fn conv2d_plus(&mut self, x: &Tensor, conv: &Conv, plus: &Tensor) -> Result<Tensor> {
        let bias = plus.broadcast_add(&self.weights[conv.bias])?; // [B, O]
        self.convolve(x, conv, &bias)
    }

    fn linear(&mut self, x: &Tensor, linear: &Linear) -> Result<Tensor> {
        let weight = self.weights[linear.weight].to_dtype(x.dtype())?;
        let bias = &self.weights[linear.bias];
        Ok(ddpm_kernels::linear(x, &weight, Some(bias))?)
    }

    fn group_norm(&mut self, x: &Tensor, norm: &Norm, activation: Activation) -> Result<Tensor> {
        let (gamma, beta) = (&self.weights[norm.gamma], &self.weights[norm.beta]);
        Ok(ddpm_kernels::group_norm(
            x,
            norm.groups,
            gamma,
            beta,
            norm.eps,
            activation,
        )?)
    }

    /// (γ n + β)(1 + scale) + shift = γ (1 + scale) n + β (1 + scale) + shift: an affine map of each image's own.
    fn group_norm_scale_shift(
        &mut self,
        x: &Tensor,
        norm: &Norm,
        scale_shift: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        let channels = self.weights[norm.gamma].dim(0)?;
        let factor = (scale_shift.narrow(D::Minus1, 0, channels)? + 1.0)?; // [B, C]
        let shift = scale_shift.narrow(D::Minus1, channels, channels)?;
        let gamma = factor.broadcast_mul(&self.weights[norm.gamma])?;
        let beta = factor
            .broadcast_mul(&self.weights[norm.beta])?
            .add(&shift)?;
        Ok(ddpm_kernels::group_norm(
            x,
            norm.groups,
            &gamma,
            &beta,
            norm.eps,
            activation,
        )?)
    }

    fn activate(&mut self, x: &Tensor, function: Nonlinearity) -> Result<Tensor> {
        Ok(match function {
            Nonlinearity::Silu => ddpm_kernels::silu(x),
            Nonlinearity::Mish => ddpm_kernels::mish(x),
            Nonlinearity::Gelu => ddpm_kernels::gelu(x),
            Nonlinearity::Relu => ddpm_kernels::relu(x),
        }?)
    }

    fn add(&mut self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok(ddpm_kernels::add(x, y)?)
    }

    fn divide(&mut self, x: &Tensor, divisor: f64) -> Result<Tensor> {
        Ok((x / divisor)?)
    }

    fn pixels_as_rows(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(x.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
    }

    fn rows_as_pixels(&mut self, x: &Tensor, like: &Tensor) -> Result<Tensor> {
        Ok(x.transpose(1, 2)?.contiguous()?.reshape(like.shape())?)
    }

    fn attention(
        &mut self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        heads: usize,
    ) -> Result<Tensor> {
        let (batch, pixels, inner) = query.dims3()?;
        let head_dim = inner / heads;
        let split = |x: &Tensor| {
            x.reshape((batch, pixels, heads, head_dim))?
                .transpose(1, 2)?
                .contiguous()
        };
        let scale = 1.0 / (head_dim as f64).sqrt();
        let mixed = ddpm_kernels::attention(&split(query)?, &split(key)?, &split(value)?, scale)?; // [B, heads, N, d]
        Ok(mixed
            .transpose(1, 2)?
            .contiguous()?
            .reshape((batch, pixels, inner))?)
    }

    fn concat_channels(&mut self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(ddpm_kernels::concat_channels(a, b)?)
    }

    fn upsample_nearest_2x(&mut self, x: &Tensor) -> Result<Tensor> {
        Ok(ddpm_kernels::upsample_nearest_2x(x)?)
    }

    fn change(&mut self, x: &Tensor, change: Change) -> Result<Tensor> {
        Ok(match change {
            Change::Average => ddpm_kernels::average_pool_2x(x),
            Change::Nearest => ddpm_kernels::upsample_nearest_2x(x),
            Change::FirDown => ddpm_kernels::fir_downsample_2x(x),
            Change::FirUp => ddpm_kernels::fir_upsample_2x(x),
        }?)
    }

    fn dropout(&mut self, x: &Tensor, place: usize) -> Result<Tensor> {
        match &self.dropout {
            None => Ok(x.clone()),
            Some(dropout) => dropout.apply(x, place),
        }
    }
}

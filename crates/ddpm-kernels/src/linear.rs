//! A fully connected layer and its gradients.

use candle_core::{Result, Tensor};

/// x Wᵀ + b over the last dimension.
///
/// # Shapes
/// x `[..., inputs]`, weight `[outputs, inputs]`, bias `[outputs]` -> `[..., outputs]`.
///
/// # Errors
/// Shapes that do not fit, a type other than f32.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    crate::check::f32("linear", &[("x", x), ("weight", weight)])?;
    if let Some(bias) = bias {
        crate::check::f32("linear", &[("bias", bias)])?;
    }
    crate::reference::linear(x, weight, bias)
}

//! Softmax attention and its gradients.

use candle_core::{Result, Tensor};

/// softmax(scale q kᵀ) v, the softmax over the keys.
///
/// # Shapes
/// q `[B, heads, N, d]`, k `[B, heads, M, d]`, v `[B, heads, M, e]` -> `[B, heads, N, e]`.
///
/// # Errors
/// Shapes that do not fit, no keys, a type other than f32.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    crate::check::f32("attention", &[("q", q), ("k", k), ("v", v)])?;
    crate::reference::attention(q, k, v, scale)
}

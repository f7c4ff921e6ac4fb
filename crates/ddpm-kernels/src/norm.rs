//! Group normalisation, alone or with SiLU in the same pass, and its gradients.

use candle_core::{Result, Tensor};

/// What follows a normalisation in the same pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    None,
    /// x / (1 + e^-x).
    Silu,
}

/// Normalises each group of channels of each image to mean 0 and variance 1 (biased, plus `eps` under the root),
/// then scales by gamma, shifts by beta and applies the activation.
///
/// # Shapes
/// x `[B, C, ...]` (at least one more dimension), gamma and beta both `[C]`, or both `[B, C]` for an affine map of each
/// image's own -> the shape of x. `groups` divides C.
///
/// # Errors
/// Shapes that do not fit, groups that do not divide the channels, a type other than f32.
pub fn group_norm(x: &Tensor, groups: usize, gamma: &Tensor, beta: &Tensor, eps: f64, activation: Activation) -> Result<Tensor> {
    crate::check::f32("group_norm", &[("x", x), ("gamma", gamma), ("beta", beta)])?;
    crate::reference::group_norm(x, groups, gamma, beta, eps, activation)
}

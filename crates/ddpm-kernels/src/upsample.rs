//! Nearest-neighbour up-sampling and its gradient.

use candle_core::{Result, Tensor};

/// Every pixel becomes a square of two by two.
///
/// # Shapes
/// x `[B, C, H, W]` -> `[B, C, 2 H, 2 W]`.
///
/// # Errors
/// A shape that is no image batch, a type other than f32.
pub fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    crate::check::f32("upsample_nearest_2x", &[("x", x)])?;
    crate::reference::upsample_nearest_2x(x)
}

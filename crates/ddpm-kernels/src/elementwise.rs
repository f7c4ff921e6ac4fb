//! SiLU, addition, dropout by a given mask, and channels put behind channels.

use candle_core::{Result, Tensor};

/// x / (1 + e^-x), element by element, for any shape.
///
/// # Errors
/// A type other than f32.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    crate::check::f32("silu", &[("x", x)])?;
    crate::reference::silu(x)
}

/// x + y, element by element, for any two equal shapes.
///
/// # Errors
/// Shapes that differ, a type other than f32.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    crate::check::f32("add", &[("x", x), ("y", y)])?;
    crate::reference::add(x, y)
}

/// x / (1 - rate) where the mask is 1 and 0 where it is 0, for any two equal shapes.
///
/// The mask is `u8` or `f32` of zeros and ones, drawn by the caller with probability `rate` of a zero: nothing here
/// is random. It gets no gradient.
///
/// # Errors
/// Shapes that differ, a rate outside of 0 <= rate < 1, a type other than f32.
pub fn dropout(x: &Tensor, mask: &Tensor, rate: f64) -> Result<Tensor> {
    crate::check::f32("dropout", &[("x", x)])?;
    crate::reference::dropout(x, mask, rate)
}

/// The channels of `a` followed by those of `b`.
///
/// # Shapes
/// a `[B, C, H, W]`, b `[B, D, H, W]` -> `[B, C + D, H, W]`.
///
/// # Errors
/// Shapes that differ in more than channels, a type other than f32.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    crate::check::f32("concat_channels", &[("a", a), ("b", b)])?;
    crate::reference::concat_channels(a, b)
}

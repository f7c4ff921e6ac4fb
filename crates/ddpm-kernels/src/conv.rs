//! Two-dimensional convolution and its gradients.

use candle_core::{Result, Tensor};

/// Zeros added around an image before it is convolved, in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// No padding.
    pub const ZERO: Padding = Padding::same(0);
    /// One row below and one column to the right: how DDPM's network halves an image with a 3 by 3 kernel of stride 2.
    pub const DDPM_DOWN: Padding = Padding { top: 0, left: 0, bottom: 1, right: 1 };

    /// `pixels` on every side.
    pub const fn same(pixels: usize) -> Padding {
        Padding { top: pixels, left: pixels, bottom: pixels, right: pixels }
    }
}

/// How a kernel is moved over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    /// Pixels from one application of the kernel to the next, both ways, at least 1.
    pub stride: usize,
    /// Zeros around the image.
    pub padding: Padding,
}

/// Convolves images with a bank of kernels (the cross-correlation of the learning literature) and adds a bias.
///
/// # Shapes
/// x `[B, I, H, W]`, weight `[O, I, kh, kw]`, bias `[O]` -> `[B, O, H', W']` where
/// H' = (H + top + bottom - kh) / stride + 1, rounded down, and W' likewise.
///
/// # Errors
/// Shapes that do not fit, a kernel larger than the padded image, stride 0, a type other than f32.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    crate::check::f32("conv2d", &[("x", x), ("weight", weight)])?;
    if let Some(bias) = bias {
        crate::check::f32("conv2d", &[("bias", bias)])?;
    }
    crate::reference::conv2d(x, weight, bias, conv)
}

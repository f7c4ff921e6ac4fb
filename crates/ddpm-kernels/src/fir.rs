//! Halving and doubling of images through the filter (1, 3, 3, 1), and the gradients: each is the other's.
//!
//! Along each axis, with zeros outside of the image,
//!
//! ```text
//! halved:   y_i    = (x_(2i-1) + 3 x_2i + 3 x_(2i+1) + x_(2i+2)) / 8
//! doubled:  y_2i   = (x_(i-1) + 3 x_i) / 4        y_(2i+1) = (3 x_i + x_(i+1)) / 4
//! ```
//!
//! The filter of Song et al. 2021 (score_sde), which took it from StyleGAN 2. Doubling is four times halving transposed.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::storage::{in_pieces, slice, tensor_like, view};

/// Half the size, each pixel a weighted mean of four by four.
///
/// # Shapes
/// x `[B, C, H, W]`, H and W even -> `[B, C, H / 2, W / 2]`.
///
/// # Errors
/// A shape that is no image batch, an odd side, a type other than f32.
pub fn fir_downsample_2x(x: &Tensor) -> Result<Tensor> {
    crate::check::floats("fir_downsample_2x", &[("x", x)])?;
    crate::check::even_image("fir_downsample_2x", "x", x)?;
    if !x.device().is_cpu() {
        return crate::reference::fir_downsample_2x(x);
    }
    x.contiguous()?.apply_op1(Halve)
}

/// Twice the size, each pixel a weighted mean of two by two.
///
/// # Shapes
/// x `[B, C, H, W]` -> `[B, C, 2 H, 2 W]`.
///
/// # Errors
/// A shape that is no image batch, a type other than f32.
pub fn fir_upsample_2x(x: &Tensor) -> Result<Tensor> {
    crate::check::floats("fir_upsample_2x", &[("x", x)])?;
    crate::check::image("fir_upsample_2x", "x", x)?;
    if !x.device().is_cpu() {
        return crate::reference::fir_upsample_2x(x);
    }
    x.contiguous()?.apply_op1(Double)
}

struct Halve;

impl CustomOp1 for Halve {
    fn name(&self) -> &'static str {
        "fir_downsample_2x"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice("fir_downsample_2x", "x", x, layout)?;
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let y = halved(x, (height / 2, width / 2), 1.0);
        let shape = (batch, channels, height / 2, width / 2);
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, height, width) = x.dims4()?;
        let g = g.contiguous()?;
        let g = view("fir_downsample_2x", "the gradient", &g)?;
        tensor_like(doubled(&g, (height / 2, width / 2), 0.25), x).map(Some)
    }
}

struct Double;

impl CustomOp1 for Double {
    fn name(&self) -> &'static str {
        "fir_upsample_2x"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice("fir_upsample_2x", "x", x, layout)?;
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let y = doubled(x, (height, width), 1.0);
        let shape = (batch, channels, 2 * height, 2 * width);
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, height, width) = x.dims4()?;
        let g = g.contiguous()?;
        let g = view("fir_upsample_2x", "the gradient", &g)?;
        tensor_like(halved(&g, (height, width), 4.0), x).map(Some)
    }
}

/// Halves planes, times a factor; the size is that of the smaller plane.
fn halved(x: &[f32], (height, width): (usize, usize), factor: f32) -> Vec<f32> {
    let plane = height * width;
    let fill = |i: usize, y: &mut [f32]| {
        let x = &x[4 * i * plane..][..4 * plane];
        let mut narrow = vec![0f32; 2 * plane]; // [2 H, W]
        for (to, from) in narrow
            .chunks_exact_mut(width)
            .zip(x.chunks_exact(2 * width))
        {
            halve_row(to, from, factor);
        }
        let row = |r: usize| narrow.get(r * width..(r + 1) * width);
        for (r, to) in y.chunks_exact_mut(width).enumerate() {
            let outer = [(2 * r).checked_sub(1).and_then(row), row(2 * r + 2)];
            let inner = [row(2 * r), row(2 * r + 1)];
            for (rows, weight) in [(outer, 0.125), (inner, 0.375)] {
                for from in rows.into_iter().flatten() {
                    add_scaled(to, from, weight);
                }
            }
        }
    };
    in_pieces(x.len() / 4, plane, fill).0
}

fn halve_row(to: &mut [f32], from: &[f32], factor: f32) {
    let at = |i: usize| from.get(i).copied().unwrap_or(0.0);
    for (i, to) in to.iter_mut().enumerate() {
        let outer = (2 * i).checked_sub(1).map_or(0.0, at) + at(2 * i + 2);
        let inner = at(2 * i) + at(2 * i + 1);
        *to = (outer * 0.125 + inner * 0.375) * factor;
    }
}

/// Doubles planes, times a factor; the size is that of the smaller plane.
fn doubled(x: &[f32], (height, width): (usize, usize), factor: f32) -> Vec<f32> {
    let plane = height * width;
    let fill = |i: usize, y: &mut [f32]| {
        let x = &x[i * plane..][..plane];
        let mut wide = vec![0f32; 2 * plane]; // [H, 2 W]
        for (to, from) in wide.chunks_exact_mut(2 * width).zip(x.chunks_exact(width)) {
            double_row(to, from, factor);
        }
        let row = |r: usize| wide.get(r * 2 * width..(r + 1) * 2 * width);
        for (r, to) in y.chunks_exact_mut(2 * width).enumerate() {
            let near = r / 2;
            let far = if r % 2 == 0 {
                near.checked_sub(1)
            } else {
                Some(near + 1)
            };
            for (from, weight) in [(far.and_then(row), 0.25), (row(near), 0.75)] {
                if let Some(from) = from {
                    add_scaled(to, from, weight);
                }
            }
        }
    };
    in_pieces(4 * x.len(), 4 * plane, fill).0
}

fn double_row(to: &mut [f32], from: &[f32], factor: f32) {
    let at = |i: usize| from.get(i).copied().unwrap_or(0.0);
    for (i, pair) in to.chunks_exact_mut(2).enumerate() {
        let before = i.checked_sub(1).map_or(0.0, at);
        pair[0] = (before * 0.25 + at(i) * 0.75) * factor;
        pair[1] = (at(i) * 0.75 + at(i + 1) * 0.25) * factor;
    }
}

fn add_scaled(to: &mut [f32], from: &[f32], weight: f32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from * weight;
    }
}

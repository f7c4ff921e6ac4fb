//! Nearest-neighbour up-sampling and its gradient.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use crate::cuda::{card::Card, launch::Kind, planes};
use crate::storage::{in_pieces, slice, tensor_like, view};

/// Every pixel becomes a square of two by two.
///
/// # Shapes
/// x `[B, C, H, W]` -> `[B, C, 2 H, 2 W]`.
///
/// # Errors
/// A shape that is no image batch, a type other than f32.
pub fn upsample_nearest_2x(x: &Tensor) -> Result<Tensor> {
    crate::check::floats("upsample_nearest_2x", &[("x", x)])?;
    crate::check::image("upsample_nearest_2x", "x", x)?;
    if !crate::check::has_own(x) {
        return crate::reference::upsample_nearest_2x(x);
    }
    x.contiguous()?.apply_op1(Upsample)
}

struct Upsample;

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample_nearest_2x"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice("upsample_nearest_2x", "x", x, layout)?;
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let plane = height * width;
        let (y, _) = in_pieces(4 * x.len(), 4 * plane, |i, y| {
            upsample_plane(y, &x[i * plane..][..plane], width)
        });
        Ok((
            CpuStorage::F32(y),
            Shape::from((batch, channels, 2 * height, 2 * width)),
        ))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let card = Card::of(&x.device)?;
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let (kind, x) = card.numbers("upsample_nearest_2x", "x", x, layout)?;
        let pixels = batch * channels * height * width;
        let y = planes::spread_2x(&card, kind, x, (pixels, width), 1.0)?;
        let shape = (batch, channels, 2 * height, 2 * width);
        Ok((card.storage(y), Shape::from(shape)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, height, width) = x.dims4()?;
        let g = g.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let card = Card::of(x.device().as_cuda_device()?)?;
            let g = card.place("upsample_nearest_2x", "the gradient", &g)?;
            let dx =
                planes::gather_2x(&card, Kind::of(x.dtype())?, g, (x.elem_count(), width), 1.0)?;
            return Ok(card.gradient(dx, x));
        }
        let g = view("upsample_nearest_2x", "the gradient", &g)?;
        let plane = height * width;
        let (dx, _) = in_pieces(x.elem_count(), plane, |i, dx| {
            sum_plane(dx, &g[4 * i * plane..][..4 * plane], width)
        });
        tensor_like(dx, x).map(Some)
    }
}

fn upsample_plane(y: &mut [f32], x: &[f32], width: usize) {
    for (y, x) in y.chunks_exact_mut(4 * width).zip(x.chunks_exact(width)) {
        let (upper, lower) = y.split_at_mut(2 * width);
        upper
            .chunks_exact_mut(2)
            .zip(x)
            .for_each(|(pair, &x)| pair.fill(x));
        lower.copy_from_slice(upper);
    }
}

/// Each pixel gathers the gradients of the four that it became.
fn sum_plane(dx: &mut [f32], g: &[f32], width: usize) {
    for (dx, g) in dx.chunks_exact_mut(width).zip(g.chunks_exact(4 * width)) {
        let (upper, lower) = g.split_at(2 * width);
        let pairs = upper.chunks_exact(2).zip(lower.chunks_exact(2));
        dx.iter_mut()
            .zip(pairs)
            .for_each(|(dx, (a, b))| *dx = (a[0] + a[1]) + (b[0] + b[1]));
    }
}

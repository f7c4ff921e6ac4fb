//! Averages of two by two pixels and their gradient.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use crate::cuda::{card::Card, launch::Kind, planes};
use crate::storage::{in_pieces, slice, tensor_like, view};

/// Every square of two by two pixels becomes its mean.
///
/// # Shapes
/// x `[B, C, H, W]`, H and W even -> `[B, C, H / 2, W / 2]`.
///
/// # Errors
/// A shape that is no image batch, an odd side, a type other than f32.
pub fn average_pool_2x(x: &Tensor) -> Result<Tensor> {
    crate::check::floats("average_pool_2x", &[("x", x)])?;
    crate::check::even_image("average_pool_2x", "x", x)?;
    if !crate::check::has_own(x) {
        return crate::reference::average_pool_2x(x);
    }
    x.contiguous()?.apply_op1(AveragePool)
}

struct AveragePool;

impl CustomOp1 for AveragePool {
    fn name(&self) -> &'static str {
        "average_pool_2x"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice("average_pool_2x", "x", x, layout)?;
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let plane = height * width / 4;
        let (y, _) = in_pieces(x.len() / 4, plane, |i, y| {
            average_plane(y, &x[4 * i * plane..][..4 * y.len()], width / 2);
        });
        Ok((
            CpuStorage::F32(y),
            Shape::from((batch, channels, height / 2, width / 2)),
        ))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let card = Card::of(&x.device)?;
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let (kind, x) = card.numbers("average_pool_2x", "x", x, layout)?;
        let pixels = batch * channels * height * width / 4;
        let y = planes::gather_2x(&card, kind, x, (pixels, width / 2), 0.25)?;
        let shape = (batch, channels, height / 2, width / 2);
        Ok((card.storage(y), Shape::from(shape)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, height, width) = x.dims4()?;
        let g = g.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let card = Card::of(x.device().as_cuda_device()?)?;
            let g = card.place("average_pool_2x", "the gradient", &g)?;
            let dx = planes::spread_2x(
                &card,
                Kind::of(x.dtype())?,
                g,
                (x.elem_count() / 4, width / 2),
                0.25,
            )?;
            return Ok(card.gradient(dx, x));
        }
        let g = view("average_pool_2x", "the gradient", &g)?;
        let plane = height * width / 4;
        let (dx, _) = in_pieces(x.elem_count(), 4 * plane, |i, dx| {
            spread_plane(dx, &g[i * plane..][..dx.len() / 4], width / 2);
        });
        tensor_like(dx, x).map(Some)
    }
}

/// `width` is that of the smaller plane.
fn average_plane(y: &mut [f32], x: &[f32], width: usize) {
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(4 * width)) {
        let (upper, lower) = x.split_at(2 * width);
        let pairs = upper.chunks_exact(2).zip(lower.chunks_exact(2));
        for (y, (a, b)) in y.iter_mut().zip(pairs) {
            *y = ((a[0] + a[1]) + (b[0] + b[1])) * 0.25;
        }
    }
}

/// Each of the four pixels has a quarter of the gradient of their mean.
fn spread_plane(dx: &mut [f32], g: &[f32], width: usize) {
    for (dx, g) in dx.chunks_exact_mut(4 * width).zip(g.chunks_exact(width)) {
        let (upper, lower) = dx.split_at_mut(2 * width);
        for (pair, g) in upper.chunks_exact_mut(2).zip(g) {
            pair.fill(g * 0.25);
        }
        lower.copy_from_slice(upper);
    }
}

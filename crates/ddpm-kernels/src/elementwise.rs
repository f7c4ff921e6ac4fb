//! SiLU, addition, dropout by a given mask, and channels put behind channels.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor};

#[cfg(feature = "cuda")]
use crate::cuda::{card::Card, elementwise, launch::Kind};
use crate::simd::{per_processor, sigmoid, silu_slope};
use crate::storage::{in_pieces, slice, tensor_like, view};

/// x / (1 + e^-x), element by element, for any shape.
///
/// # Errors
/// A type other than f32.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    crate::check::floats("silu", &[("x", x)])?;
    if !crate::check::has_own(x) {
        return crate::reference::silu(x);
    }
    x.contiguous()?.apply_op1(Silu)
}

/// x + y, element by element, for any two equal shapes.
///
/// # Errors
/// Shapes that differ, a type other than f32.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    crate::check::floats("add", &[("x", x), ("y", y)])?;
    crate::check::same_shape("add", ("x", x), ("y", y))?;
    if !x.device().is_cpu() {
        return crate::reference::add(x, y);
    }
    x.contiguous()?.apply_op2(&y.contiguous()?, Add)
}

/// x / (1 - rate) where the mask is 1 and 0 where it is 0, for any two equal shapes.
///
/// The mask is `u8` or `f32` of zeros and ones, drawn by the caller with probability `rate` of a zero: nothing here
/// is random. It gets no gradient.
///
/// # Errors
/// Shapes that differ, a rate outside of 0 <= rate < 1, a type other than f32.
pub fn dropout(x: &Tensor, mask: &Tensor, rate: f64) -> Result<Tensor> {
    crate::check::floats("dropout", &[("x", x)])?;
    crate::check::dropout(x, mask, rate)?;
    if !x.device().is_cpu() {
        return crate::reference::dropout(x, mask, rate);
    }
    let mask = mask.detach().to_dtype(DType::F32)?.contiguous()?;
    x.contiguous()?.apply_op2(
        &mask,
        Dropout {
            scale: (1.0 / (1.0 - rate)) as f32,
        },
    )
}

/// The channels of `a` followed by those of `b`.
///
/// # Shapes
/// a `[B, C, H, W]`, b `[B, D, H, W]` -> `[B, C + D, H, W]`.
///
/// # Errors
/// Shapes that differ in more than channels, a type other than f32.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    crate::check::floats("concat_channels", &[("a", a), ("b", b)])?;
    crate::check::concat_channels(a, b)?;
    if !a.device().is_cpu() {
        return crate::reference::concat_channels(a, b);
    }
    a.contiguous()?.apply_op2(&b.contiguous()?, ConcatChannels)
}

/// Elements one task works on.
const CHUNK: usize = 1 << 14;

/// Writes f(y, x, z) over pieces of three slices of one length, in parallel.
fn over_pieces(x: &[f32], z: &[f32], f: impl Fn(&mut [f32], &[f32], &[f32]) + Sync) -> Vec<f32> {
    in_pieces(x.len(), CHUNK, |i, y| {
        f(y, &x[i * CHUNK..][..y.len()], &z[i * CHUNK..][..y.len()])
    })
    .0
}

per_processor! {
    fn silu_of(y: &mut [f32], x: &[f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * sigmoid(x);
        }
    }

    fn silu_gradient(dx: &mut [f32], x: &[f32], g: &[f32]) {
        for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
            *dx = g * silu_slope(x);
        }
    }

    fn sum_of_two(y: &mut [f32], a: &[f32], b: &[f32]) {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = a + b;
        }
    }

    /// Zero wherever the mask is, even for an x that is not finite.
    fn masked(y: &mut [f32], x: &[f32], mask: &[f32], scale: f32) {
        for ((y, &x), &mask) in y.iter_mut().zip(x).zip(mask) {
            *y = if mask == 0.0 { 0.0 } else { x * scale };
        }
    }
}

struct Silu;

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice("silu", "x", x, layout)?;
        let (y, _) = in_pieces(x.len(), CHUNK, |i, y| {
            silu_of(y, &x[i * CHUNK..][..y.len()])
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let card = Card::of(&x.device)?;
        let (kind, x) = card.numbers("silu", "x", x, layout)?;
        let y = elementwise::silu(&card, kind, x, layout.shape().elem_count())?;
        Ok((card.storage(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let card = Card::of(x.device().as_cuda_device()?)?;
            let (at, g) = (
                card.place("silu", "x", x)?,
                card.place("silu", "the gradient", &g)?,
            );
            let dx =
                elementwise::silu_gradient(&card, Kind::of(x.dtype())?, at, g, x.elem_count())?;
            return Ok(card.gradient(dx, x));
        }
        let dx = over_pieces(
            &view("silu", "x", x)?,
            &view("silu", "the gradient", &g)?,
            silu_gradient,
        );
        tensor_like(dx, x).map(Some)
    }
}

struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sum = over_pieces(
            slice("add", "x", x, x_layout)?,
            slice("add", "y", y, y_layout)?,
            sum_of_two,
        );
        Ok((CpuStorage::F32(sum), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((
            x.track_op().then(|| g.clone()),
            y.track_op().then(|| g.clone()),
        ))
    }
}

struct Dropout {
    scale: f32,
}

impl Dropout {
    fn apply(&self, x: &[f32], mask: &[f32]) -> Vec<f32> {
        over_pieces(x, mask, |y, x, mask| masked(y, x, mask, self.scale))
    }
}

impl CustomOp2 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        m: &CpuStorage,
        m_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.apply(
            slice("dropout", "x", x, x_layout)?,
            slice("dropout", "mask", m, m_layout)?,
        );
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        mask: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let dx = self.apply(
            &view("dropout", "the gradient", &g)?,
            &view("dropout", "mask", mask)?,
        );
        Ok((Some(tensor_like(dx, x)?), None))
    }
}

struct ConcatChannels;

impl CustomOp2 for ConcatChannels {
    fn name(&self) -> &'static str {
        "concat_channels"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (
            slice("concat_channels", "a", a, a_layout)?,
            slice("concat_channels", "b", b, b_layout)?,
        );
        let (batch, a_channels, height, width) = a_layout.shape().dims4()?;
        let channels = a_channels + b_layout.shape().dims4()?.1;
        let (a_length, length) = (a_channels * height * width, channels * height * width);
        let (y, _) = in_pieces(a.len() + b.len(), length, |image, y| {
            let (y_a, y_b) = y.split_at_mut(a_length);
            y_a.copy_from_slice(&a[image * a_length..][..a_length]);
            y_b.copy_from_slice(&b[image * (length - a_length)..][..length - a_length]);
        });
        Ok((
            CpuStorage::F32(y),
            Shape::from((batch, channels, height, width)),
        ))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let batch = a.dim(0)?.max(1);
        let (a_length, length) = (a.elem_count() / batch, g.elem_count() / batch);
        let g = view("concat_channels", "the gradient", &g)?;
        let part = |of: &Tensor, start: usize, part_length: usize| {
            let copy = |image: usize, part: &mut [f32]| {
                part.copy_from_slice(&g[image * length + start..][..part_length])
            };
            tensor_like(in_pieces(of.elem_count(), part_length, copy).0, of)
        };
        let da = a.track_op().then(|| part(a, 0, a_length)).transpose()?;
        let db = b
            .track_op()
            .then(|| part(b, a_length, length - a_length))
            .transpose()?;
        Ok((da, db))
    }
}

//! The one operation under all formulas of the paper: a_t x + b_t y with a t for every image.

use crate::{Error, Result, Schedule, Timestep};
use candle_core::{DType, Tensor};

/// One term of a sum: a tensor `[B, ...]`, its name for errors, and its coefficient at each t, in f64.
pub(crate) struct Term<'a> {
    pub(crate) name: &'static str,
    pub(crate) tensor: &'a Tensor,
    pub(crate) coefficient: &'a dyn Fn(Timestep) -> f64,
}

/// `a_t x + b_t y`, each image with its own t; the coefficients are cast once, to the type of `x`.
pub(crate) fn mix(schedule: &Schedule, t: &[Timestep], x: Term<'_>, y: Term<'_>) -> Result<Tensor> {
    same_shape(y.name, y.tensor, x.name, x.tensor)?;
    check_times(schedule, t, x.tensor)?;
    let a = per_image(t.iter().map(|&t| (x.coefficient)(t)), x.tensor)?;
    let b = per_image(t.iter().map(|&t| (y.coefficient)(t)), x.tensor)?;
    Ok((x.tensor.broadcast_mul(&a)? + y.tensor.broadcast_mul(&b)?)?)
}

/// One number for each image as `[B, 1, ..., 1]`, of the type and on the device of `like`: `[B, ...]`.
pub(crate) fn per_image(values: impl Iterator<Item = f64>, like: &Tensor) -> Result<Tensor> {
    let values: Vec<f64> = values.collect();
    let mut shape = vec![1; like.rank()];
    if let Some(batch) = shape.first_mut() {
        *batch = values.len();
    }
    // Cast on the host: not every device has f64.
    let values = Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?;
    Ok(values.to_dtype(like.dtype())?.to_device(like.device())?)
}

/// The mean over everything but the batch: `[B, ...]` -> `[B]`.
pub(crate) fn mean_per_image(x: &Tensor) -> Result<Tensor> {
    match x.rank() {
        0 | 1 => Ok(x.flatten_all()?),
        _ => Ok(x.flatten_from(1)?.mean(1)?),
    }
}

/// The tensor in f64, for quantities whose terms cancel.
pub(crate) fn in_f64(x: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F64)?)
}

/// Fails unless there is one t of this schedule for every image.
pub(crate) fn check_times(schedule: &Schedule, t: &[Timestep], x: &Tensor) -> Result<()> {
    let images = x.dims().first().copied().unwrap_or(0);
    if images != t.len() {
        return Err(Error::Batch {
            images,
            timesteps: t.len(),
        });
    }
    t.iter().try_for_each(|&t| schedule.check(t))
}

/// Fails unless both tensors have the same shape.
pub(crate) fn same_shape(
    name: &'static str,
    x: &Tensor,
    other: &'static str,
    y: &Tensor,
) -> Result<()> {
    match x.dims() == y.dims() {
        true => Ok(()),
        false => Err(Error::Shape {
            name,
            got: x.dims().to_vec(),
            other,
            expected: y.dims().to_vec(),
        }),
    }
}

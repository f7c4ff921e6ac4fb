//! Noise for samplers: addressed by image and draw, or given.

use candle_core::{Device, Tensor};
use ddpm_core::NoiseSource;

use crate::draw::{batch, normals_of};
use crate::{Error, Result, Stream};

/// x_T of the images `first_image..first_image + n`.
///
/// Image k has the same x_T in every batch: stream [`Stream::SampleStart`], step 0.
///
/// # Shapes
/// `shape`: (C, H, W); result: f32 `[n, C, H, W]`.
///
/// # Errors
/// [`Error::Images`] when the images do not fit below 2^44; as [`normal_batch`](crate::normal_batch).
pub fn sample_start(
    seed: u64,
    first_image: u64,
    n: usize,
    shape: (usize, usize, usize),
    device: &Device,
) -> Result<Tensor> {
    let images = image_numbers(first_image, n)?;
    crate::normal_batch(seed, Stream::SampleStart, &images, 0, shape, device)
}

/// The noise of a sampler's steps: row i belongs to image `first_image + i`, whatever the batch.
///
/// Draw k of image i stands at stream [`Stream::SampleStep`], image i, step k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleNoise {
    /// The seed of the samples.
    pub seed: u64,
    /// The number of the image in row 0 of the batch.
    pub first_image: u64,
}

impl SampleNoise {
    fn noise(&self, draw: usize, like: &Tensor) -> Result<Tensor> {
        let shape = like.dims();
        let n = *shape.first().ok_or(Error::Scalar)?;
        let images = image_numbers(self.first_image, n)?;
        let numbers = batch(
            self.seed,
            Stream::SampleStep,
            &images,
            draw as u64,
            shape,
            normals_of,
        )?;
        Ok(Tensor::from_vec(numbers, shape, like.device())?.to_dtype(like.dtype())?)
    }
}

impl NoiseSource for SampleNoise {
    fn draw(&mut self, draw: usize, like: &Tensor) -> ddpm_core::Result<Tensor> {
        self.noise(draw, like).map_err(to_core)
    }
}

/// Noise that somebody else made: draw k is tensor k, of exactly the images' shape.
#[derive(Debug, Clone)]
pub struct FixedNoise(pub Vec<Tensor>);

impl FixedNoise {
    fn noise(&self, draw: usize, like: &Tensor) -> Result<Tensor> {
        let noise = self.0.get(draw).ok_or(Error::Exhausted {
            draw,
            given: self.0.len(),
        })?;
        if noise.dims() != like.dims() {
            let (given, expected) = (noise.dims().to_vec(), like.dims().to_vec());
            return Err(Error::FixedShape {
                draw,
                given,
                expected,
            });
        }
        Ok(noise.to_device(like.device())?.to_dtype(like.dtype())?)
    }
}

impl NoiseSource for FixedNoise {
    fn draw(&mut self, draw: usize, like: &Tensor) -> ddpm_core::Result<Tensor> {
        self.noise(draw, like).map_err(to_core)
    }
}

/// The numbers `first..first + n`.
fn image_numbers(first: u64, n: usize) -> Result<Vec<u64>> {
    let end = first.checked_add(n as u64).filter(|&end| end <= 1 << 44);
    let end = end.ok_or(Error::Images { first, n })?;
    let mut images = Vec::new();
    images
        .try_reserve_exact(n)
        .map_err(|_| Error::Shape { shape: vec![n] })?;
    images.extend(first..end);
    Ok(images)
}

pub(crate) fn to_core(error: Error) -> ddpm_core::Error {
    match error {
        Error::Tensor(error) => ddpm_core::Error::Tensor(error),
        error => ddpm_core::Error::Noise(Box::new(error)),
    }
}

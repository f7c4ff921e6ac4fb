//! Algorithm 2: from x_T to x_0, batch by batch; an image depends on the seed and its own number only.

use anyhow::Context;
use candle_core::{Device, Tensor};
use ddpm_core::{Denoiser, NoiseSource};
use ddpm_image::Film;
use ddpm_random::{FixedNoise, SampleNoise, TorchGenerator, sample_start};
use ddpm_samplers::SelfConditioned;
use ddpm_unet::upload;

use crate::Failure;
use crate::camera::Camera;
use crate::flags::Rng;
use crate::progress::Progress;
use crate::request::Request;

/// Makes all images, and their film where the result is one.
///
/// # Shapes
/// returns `[N, C, H, W]` f32, x_0 as computed.
///
/// # Errors
/// [`Failure::Interrupted`] when `stop` says so between two steps; what the network or the walk reports.
pub(crate) fn sample(
    request: &Request,
    progress: &Progress,
    stop: &dyn Fn() -> bool,
) -> Result<(Tensor, Option<Film>), Failure> {
    let mut camera = Camera::new(request.film(), request.steps(), &request.pixels);
    let mut finished = Vec::new();
    let mut torch = TorchGenerator::new(request.seed);
    for first in (0..request.images).step_by(request.batch_size) {
        let images = request.batch_size.min(request.images - first);
        let (x_t, mut own);
        let noise: &mut dyn NoiseSource = match request.rng {
            Rng::Torch => {
                x_t = start_of_torch(request, &mut torch, images)?;
                &mut torch
            }
            Rng::Ddpm => {
                x_t = start(request, first, images)?;
                own = step_noise(request, first, images)?;
                own.as_mut()
            }
        };
        let noise = &mut Uploaded(noise);
        let x_t = upload(&x_t, request.place.device()).context("the device has no room")?;
        let told;
        let network = match &request.labels {
            Some(labels) => {
                told = labels.tell(&request.network, first, images)?;
                &told
            }
            None => &request.network,
        };
        let conditioned = request.process.as_ref().map(|process| {
            SelfConditioned::new(
                process,
                |x: &Tensor, time: &[f64], last: Option<&Tensor>| {
                    Ok(network.forward_after(x, time, last)?)
                },
            )
        });
        let network: &dyn Denoiser = match &conditioned {
            Some(conditioned) => conditioned,
            None => network,
        };
        let mut x = x_t.clone();
        for step in request.way.walk(network, &x_t, noise, first)? {
            let step = step.context("sampling failed")?;
            camera.see(&step, &x)?;
            x = step.x;
            progress.stepped(images);
            let notes = request.place.notes();
            notes.iter().for_each(|note| progress.note(note));
            if stop() {
                return Err(Failure::Interrupted);
            }
        }
        camera.see_the_end(&x)?;
        finished.push(
            x.to_device(&Device::Cpu)
                .context("the images do not come back")?,
        );
        progress.finished(first + images);
    }
    let samples = Tensor::cat(&finished, 0).context("the batches do not fit together")?;
    Ok((samples, camera.film))
}

/// Noise that is drawn on the host, whatever the device of the images.
struct Uploaded<'a>(&'a mut dyn NoiseSource);

impl NoiseSource for Uploaded<'_> {
    fn draw(&mut self, draw: usize, like: &Tensor) -> ddpm_core::Result<Tensor> {
        let noise = self.0.draw(draw, &on_the_host(like)?)?;
        Ok(upload(&noise, like.device())?)
    }

    fn skip(&mut self, draw: usize, like: &Tensor) -> ddpm_core::Result<()> {
        self.0.skip(draw, &on_the_host(like)?)
    }
}

/// A tensor of the shape and type, that takes no room.
fn on_the_host(like: &Tensor) -> candle_core::Result<Tensor> {
    Tensor::zeros((), like.dtype(), &Device::Cpu)?.broadcast_as(like.shape())
}

/// x_T of the next images as diffusers' pipeline draws it.
fn start_of_torch(
    request: &Request,
    torch: &mut TorchGenerator,
    images: usize,
) -> anyhow::Result<Tensor> {
    let (c, h, w) = request.shape;
    Ok(torch.normal(&[images, c, h, w], &Device::Cpu)?)
}

/// Where the walk of the images `first..first + images` begins: x_T, or the images to be inverted.
fn start(request: &Request, first: usize, images: usize) -> anyhow::Result<Tensor> {
    let given = match (&request.inverted, &request.noise) {
        (Some(images), _) => Some(images),
        (None, file) => file.as_ref().map(|file| &file.noise),
    };
    match given {
        Some(given) => Ok(given.narrow(0, first, images)?.contiguous()?),
        None => Ok(sample_start(
            request.seed,
            first as u64,
            images,
            request.shape,
            &Device::Cpu,
        )?),
    }
}

fn step_noise(
    request: &Request,
    first: usize,
    images: usize,
) -> anyhow::Result<Box<dyn NoiseSource>> {
    let from_file = request
        .noise
        .as_ref()
        .and_then(|file| file.step_noise.as_ref());
    let Some(step_noise) = from_file else {
        return Ok(Box::new(SampleNoise {
            seed: request.seed,
            first_image: first as u64,
        }));
    };
    let draws = step_noise.dim(0)?;
    let batch = step_noise.narrow(1, first, images)?;
    let noise = (0..draws)
        .map(|draw| batch.get(draw)?.contiguous())
        .collect::<candle_core::Result<_>>()?;
    Ok(Box::new(FixedNoise(noise)))
}

//! The loss on images that training never sees, at a t and noise that never change.

use candle_core::Device;
use ddpm_core::Timestep;
use ddpm_data::Dataset;
use ddpm_image::{Picture, PixelMap};
use ddpm_random::{Stream, normal_batch, uniform_u64_below};
use ddpm_unet::UNet;

use crate::{Examples, Objective, Result};

/// Images of the test split with their t and noise. All of it comes from seed 0 whatever the run's seed is, so that
/// the numbers of two runs on the same data and objective compare.
pub struct HeldOut {
    parts: Vec<Examples>,
}

impl HeldOut {
    /// Takes the first `count` images of `test` (or all, if fewer), `at_once` of them to a pass of the network, in the
    /// numbers of `pixels`.
    pub fn new(
        objective: &Objective,
        test: &Dataset,
        pixels: &PixelMap,
        count: usize,
        at_once: usize,
    ) -> Result<Self> {
        let indices: Vec<usize> = (0..count.min(test.len())).collect();
        let parts = indices
            .chunks(at_once.max(1))
            .map(|part| examples(objective, test, pixels, part))
            .collect::<Result<_>>()?;
        Ok(Self { parts })
    }

    /// The first `count` of the images, or all, if fewer.
    pub(crate) fn pictures(&self, count: usize, pixels: &PixelMap) -> Result<Vec<Picture>> {
        let mut pictures = Vec::new();
        for part in &self.parts {
            if pictures.len() < count {
                pictures.extend(Picture::from_tensor(&part.x_0, pixels)?);
            }
        }
        pictures.truncate(count);
        Ok(pictures)
    }

    /// The mean weighted loss of a network.
    pub fn loss(&self, objective: &Objective, network: &UNet) -> Result<f64> {
        let mut losses = Vec::new();
        for part in &self.parts {
            let part = &part.to_device(network.device())?;
            let x_t = objective.x_t(part)?;
            let output = network
                .forward(&x_t, &objective.network_times(&part.t))?
                .detach();
            losses.extend(objective.per_image(part, &x_t, &output)?.to_vec1::<f32>()?);
        }
        Ok(losses.iter().copied().map(f64::from).sum::<f64>() / losses.len() as f64)
    }
}

fn examples(
    objective: &Objective,
    test: &Dataset,
    pixels: &PixelMap,
    indices: &[usize],
) -> Result<Examples> {
    const SEED: u64 = 0;
    let schedule = &objective.schedule;
    let images: Vec<u64> = indices.iter().map(|i| *i as u64).collect();
    let t = |i: &u64| {
        let before = uniform_u64_below(SEED, Stream::HeldOut, *i, 0, schedule.steps() as u64)?;
        Ok(schedule.timestep(before as usize + 1)?)
    };
    let t: Vec<Timestep> = images.iter().map(t).collect::<Result<_>>()?;
    let shape = (test.channels(), test.height(), test.width());
    Ok(Examples {
        x_0: test.tensor(indices, pixels, &Device::Cpu)?,
        t,
        // Step 0 of the stream is the timestep, step 1 the noise.
        eps: normal_batch(SEED, Stream::HeldOut, &images, 1, shape, &Device::Cpu)?,
    })
}

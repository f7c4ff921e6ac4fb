//! Pictures on the way: samples of the averaged weights, always from the same noise.

use std::path::Path;

use candle_core::{Device, Tensor};
use ddpm_core::Spacing;
use ddpm_image::{Film, Picture, PixelMap, encode_png, sheet, write_png};
use ddpm_random::{SampleNoise, sample_start};
use ddpm_samplers::{Clip, Process, ddim};
use ddpm_unet::UNet;

use crate::report::Samples;
use crate::settings::SampleSettings;
use crate::{Objective, Result};

/// Images that go through the network at once.
pub(crate) const AT_ONCE: usize = 64;

/// Samples from a network by DDIM (eta 0, trailing spacing, x_0-hat clipped to the range of `pixels`): what
/// `ddpm-sample` draws with the same seed and number of steps.
///
/// # Shapes
/// `shape`: (C, H, W). Returns `[samples.count, C, H, W]`, on the CPU.
pub fn sample(
    objective: &Objective,
    network: &UNet,
    samples: &SampleSettings,
    pixels: &PixelMap,
    shape: (usize, usize, usize),
) -> Result<Tensor> {
    walk(
        objective,
        network,
        samples,
        pixels,
        shape,
        &mut |_, _, _| Ok(()),
    )
}

/// [`sample`], and the first images at some moments of their walk.
pub(crate) fn film(
    objective: &Objective,
    network: &UNet,
    samples: &SampleSettings,
    pixels: &PixelMap,
    shape: (usize, usize, usize),
) -> Result<Samples> {
    let mut film = Film::new(samples.steps, MOMENTS);
    let images = walk(
        objective,
        network,
        samples,
        pixels,
        shape,
        &mut |moment, time, x| {
            let shown = x.narrow(0, 0, FILMED.min(x.dim(0)?))?;
            Ok(film.show(moment, time, &shown, pixels)?)
        },
    )?;
    let pictures = Picture::from_tensor(&images, pixels)?;
    Ok(Samples { pictures, film })
}

/// Images and moments of a film.
const FILMED: usize = 16;
const MOMENTS: usize = 33;

/// What is shown the first images of a walk: the moment, its t, x_t.
type Watch<'a> = dyn FnMut(usize, usize, &Tensor) -> Result<()> + 'a;

fn walk(
    objective: &Objective,
    network: &UNet,
    samples: &SampleSettings,
    pixels: &PixelMap,
    shape: (usize, usize, usize),
    watch: &mut Watch<'_>,
) -> Result<Tensor> {
    let schedule = objective
        .schedule
        .respaced(Spacing::Trailing, samples.steps)?;
    let process = Process {
        schedule,
        prediction: objective.prediction,
        clip: clip(pixels, shape.0)?,
    };
    let mut parts = Vec::new();
    for first in (0..samples.count).step_by(AT_ONCE) {
        let n = AT_ONCE.min(samples.count - first);
        let mut x = sample_start(samples.seed, first as u64, n, shape, network.device())?;
        let mut noise = SampleNoise {
            seed: samples.seed,
            first_image: first as u64,
        };
        let start = x.clone();
        let steps = ddim(&process, 0.0, network, &start, &mut noise);
        for (moment, step) in steps.enumerate() {
            let step = step?;
            if first == 0 {
                // The network is told t - 1.
                watch(moment, step.time as usize + 1, &x)?;
            }
            x = step.x;
        }
        if first == 0 {
            watch(samples.steps, 0, &x)?;
        }
        parts.push(x.to_device(&Device::Cpu)?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// Samples and writes them as a grid, whole or not at all.
pub fn picture(
    objective: &Objective,
    network: &UNet,
    samples: &SampleSettings,
    pixels: &PixelMap,
    shape: (usize, usize, usize),
    path: &Path,
) -> Result<()> {
    let (picture, metadata) = drawn(objective, network, samples, pixels, shape)?;
    Ok(write_png(path, &picture, &metadata)?)
}

/// The bytes of the PNG that [`picture`] would write.
pub(crate) fn picture_bytes(
    objective: &Objective,
    network: &UNet,
    samples: &SampleSettings,
    pixels: &PixelMap,
    shape: (usize, usize, usize),
) -> Result<Vec<u8>> {
    let (picture, metadata) = drawn(objective, network, samples, pixels, shape)?;
    Ok(encode_png(&picture, &metadata)?)
}

/// A grid of samples, and how they were made.
fn drawn(
    objective: &Objective,
    network: &UNet,
    samples: &SampleSettings,
    pixels: &PixelMap,
    shape: (usize, usize, usize),
) -> Result<(Picture, Vec<(&'static str, String)>)> {
    let images = sample(objective, network, samples, pixels, shape)?;
    let pictures = Picture::from_tensor(&images, pixels)?;
    Ok((sheet(&pictures)?, story(samples)))
}

/// Writes a grid of samples, whole or not at all.
pub(crate) fn write_sheet(samples: &SampleSettings, sheet: &Picture, path: &Path) -> Result<()> {
    Ok(write_png(path, sheet, &story(samples))?)
}

/// How samples are made.
fn story(samples: &SampleSettings) -> Vec<(&'static str, String)> {
    vec![
        (
            "Software",
            concat!("ddpm-train ", env!("CARGO_PKG_VERSION")).to_string(),
        ),
        ("sampler", "ddim".to_string()),
        ("steps", samples.steps.to_string()),
        ("eta", "0".to_string()),
        ("seed", samples.seed.to_string()),
    ]
}

/// What x_0-hat is held to: the numbers of bytes 0 and 255, channel by channel where each has its own.
fn clip(pixels: &PixelMap, channels: usize) -> Result<Clip> {
    Ok(match pixels {
        PixelMap::MinusOneToOne => Clip::Range(1.0),
        map => Clip::PerChannel(map.value_range(channels)?),
    })
}

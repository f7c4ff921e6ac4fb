//! How images come about: a sampler from noise (or back to it), or RePaint from noise and an image.

use anyhow::Result;
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource};
use ddpm_samplers::{Process, RePaintSettings, Sampler, Walk, repaint};

use crate::pictures::rows;

/// The walk of all batches.
pub(crate) enum Way {
    Sampler(Sampler),
    RePaint(Painting),
}

/// An image that is painted anew in parts.
pub(crate) struct Painting {
    /// All steps of training.
    pub(crate) process: Process,
    pub(crate) steps: usize,
    /// The image and its known part, of one image or of all.
    pub(crate) settings: RePaintSettings,
}

impl Way {
    /// The walk of the images `first..first + x.dim(0)`.
    pub(crate) fn walk<'a>(
        &'a self,
        network: &'a dyn Denoiser,
        x: &Tensor,
        noise: &'a mut dyn NoiseSource,
        first: usize,
    ) -> Result<Walk<'a>> {
        match self {
            Self::Sampler(sampler) => Ok(sampler.walk(network, x, noise)),
            Self::RePaint(painting) => {
                let images = x.dim(0)?;
                let settings = RePaintSettings {
                    image: rows(&painting.settings.image, first, images)?.to_device(x.device())?,
                    known: rows(&painting.settings.known, first, images)?.to_device(x.device())?,
                    ..painting.settings.clone()
                };
                let (process, steps) = (&painting.process, painting.steps);
                Ok(repaint(process, steps, settings, network, x, noise))
            }
        }
    }

    /// Moves of a walk.
    pub(crate) fn steps(&self) -> usize {
        match self {
            Self::Sampler(sampler) => sampler.steps(),
            Self::RePaint(painting) => painting.settings.moves(painting.steps),
        }
    }

    /// How many draws of noise a walk must be handed.
    pub(crate) fn draws(&self) -> usize {
        match self {
            Self::Sampler(sampler) => sampler.draws(),
            Self::RePaint(painting) => {
                let of = painting.process.schedule.steps();
                painting.settings.draws(painting.steps, of)
            }
        }
    }
}

//! The samplers by name, for programs that let their users choose.

use crate::ancestral::sigma;
use crate::{DdimSettings, Error, Process, Result, Walk, ancestral, ddim_with};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource, Schedule, Variance};
use std::fmt;
use std::str::FromStr;

/// A family of samplers, as it is called on a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SamplerKind {
    /// `ddpm`: [`ancestral`].
    Ddpm,
    /// `ddim`: [`ddim`](crate::ddim).
    Ddim,
}

/// A sampler with all its settings.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Sampler {
    /// [`ancestral`] with this variance.
    Ancestral(Variance),
    /// [`ddim_with`] these settings.
    Ddim(DdimSettings),
}

impl Sampler {
    /// The walk of this sampler from x_T (`[B, C, H, W]`).
    pub fn walk<'a>(
        &self,
        process: &'a Process,
        denoiser: &'a dyn Denoiser,
        x_t_last: &Tensor,
        noise: &'a mut dyn NoiseSource,
    ) -> Walk<'a> {
        match self {
            Sampler::Ancestral(variance) => {
                ancestral(process, *variance, denoiser, x_t_last, noise)
            }
            Sampler::Ddim(settings) => {
                ddim_with(process, settings.clone(), denoiser, x_t_last, noise)
            }
        }
    }

    /// How often a walk over `schedule` draws noise.
    pub fn draws(&self, schedule: &Schedule) -> usize {
        let sigma = |t| match self {
            Sampler::Ancestral(variance) => sigma(schedule, *variance, t),
            Sampler::Ddim(settings) => settings.variance(schedule, t).sqrt(),
        };
        schedule.timesteps().filter(|&t| sigma(t) != 0.0).count()
    }
}

impl SamplerKind {
    /// All of them.
    pub const ALL: [SamplerKind; 2] = [SamplerKind::Ddpm, SamplerKind::Ddim];

    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            SamplerKind::Ddpm => "ddpm",
            SamplerKind::Ddim => "ddim",
        }
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = SamplerKind::ALL
            .into_iter()
            .find(|kind| kind.name() == name);
        found.ok_or_else(|| {
            let known: Vec<&str> = SamplerKind::ALL
                .into_iter()
                .map(SamplerKind::name)
                .collect();
            Error::UnknownSampler {
                name: name.to_owned(),
                known: known.join(", "),
            }
        })
    }
}

//! The process as `scheduler_config.json` will tell it to those who sample.

use ddpm_image::PixelMap;
use ddpm_samplers::{Betas, Clip, SchedulerConfig};

use crate::settings::{DiffusionSettings, ScheduleKind};
use crate::{Objective, Result};

/// diffusers' configuration of the schedule: by name where diffusers has one, else as `trained_betas`. It clips to
/// [-1, 1] where `pixels` does; for images normalised per channel it has no words, and does not clip.
pub fn scheduler(
    objective: &Objective,
    d: &DiffusionSettings,
    pixels: &PixelMap,
) -> Result<SchedulerConfig> {
    let (start, end) = (d.beta_start.unwrap_or(1e-4), d.beta_end.unwrap_or(0.02));
    let betas = match d.schedule {
        ScheduleKind::Linear => Betas::Linear { start, end },
        ScheduleKind::ScaledLinear | ScheduleKind::Quadratic => Betas::ScaledLinear { start, end },
        ScheduleKind::Sigmoid => Betas::Sigmoid { start, end },
        ScheduleKind::Cosine => Betas::Cosine,
        ScheduleKind::Laplace => Betas::Laplace,
        // `schedule` knows every other kind; the rescaling below is then part of the betas.
        _ => Betas::Trained(objective.schedule.betas().to_vec()),
    };
    let by_name = !matches!(betas, Betas::Trained(_));
    let (prediction, variance) = (objective.prediction, objective.variance);
    let clip = match pixels {
        PixelMap::MinusOneToOne => Clip::Range(1.0),
        PixelMap::PerChannel { .. } => Clip::None,
    };
    let config = SchedulerConfig::ddpm(betas, d.timesteps, prediction, variance, clip)?;
    Ok(if by_name && d.zero_terminal_snr {
        config.with_zero_terminal_snr()?
    } else {
        config
    })
}

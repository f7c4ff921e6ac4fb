//! DDIM: equation 12 of Song, Meng and Ermon 2021, from the same network with fewer steps and as little noise as one likes.

use crate::error::require;
use crate::walk::{Moved, Noise};
use crate::{Error, Manner, Process, Result, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource, Schedule, Timestep, eps_from_x_0};
use std::num::NonZeroUsize;

/// The settings of a DDIM walk, as diffusers' `DDIMScheduler` has them.
#[derive(Clone, Debug, PartialEq)]
pub struct DdimSettings {
    /// How much of the ancestral noise is drawn, in 0..=1: 0 is deterministic, 1 has the variance beta-tilde_t
    /// (equation 16 of Song et al. 2021).
    pub eta: f64,
    /// The noise that points back to x_t.
    pub direction: Direction,
    /// alpha-bar of the image after the last step: 1, or alpha-bar_1 of training for files with `set_alpha_to_one: false`.
    /// At least alpha-bar_1 of the walk, since a step must not add noise on balance.
    pub alpha_bar_end: f64,
    /// The level that each step goes down to.
    pub landing: Landing,
}

/// The level alpha-bar_{t-1} in equation 12.
#[derive(Clone, Debug, PartialEq)]
pub enum Landing {
    /// That of the walk's next step, which is where the next step takes off.
    NextStep,
    /// That of a fixed number of training steps earlier, as diffusers' `DDIMScheduler` computes it: wrong by a little when
    /// spacing is linspace or T is no multiple of the number of steps, and needed to get its images there. See
    /// [`DdimSettings::landing_as_diffusers`].
    Stride {
        /// The schedule of training, which the walk's was respaced from.
        training: Schedule,
        /// floor(T / the number of steps of the walk).
        stride: NonZeroUsize,
    },
}

/// Where the noise in equation 12 comes from when x_0-hat was clipped; without clipping both are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The network's own output, whatever x_0-hat was clipped to: diffusers' default.
    AsPredicted,
    /// What x_t and the clipped x_0-hat imply: diffusers' `use_clipped_model_output`, and guided-diffusion's way.
    FromClipped,
}

impl DdimSettings {
    /// diffusers' defaults with this eta.
    pub fn new(eta: f64) -> Self {
        DdimSettings {
            eta,
            direction: Direction::AsPredicted,
            alpha_bar_end: 1.0,
            landing: Landing::NextStep,
        }
    }

    /// The same with [`Landing::Stride`], for a walk over `steps` of the steps of `training`.
    pub fn landing_as_diffusers(self, training: &Schedule, steps: usize) -> Self {
        let stride = training.steps() / steps.max(1);
        DdimSettings {
            landing: Landing::Stride {
                training: training.clone(),
                stride: NonZeroUsize::new(stride).unwrap_or(NonZeroUsize::MIN),
            },
            ..self
        }
    }
}

/// Walks from x_T to x_0 by DDIM, x_{t-1} = sqrt(alpha-bar_{t-1}) x_0-hat + sqrt(1 - alpha-bar_{t-1} - sigma_t^2) eps + sigma_t z
/// with sigma_t = eta sqrt(beta-tilde_t) (equations 12 and 16 of Song et al. 2021).
///
/// With eta = 0 no noise is drawn, and x_T alone decides the image. x_0-hat is clipped, eps is the network's own
/// ([`Direction::AsPredicted`]), so that images equal those of diffusers.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn ddim<'a>(
    process: &'a Process,
    eta: f64,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Walk<'a> {
    ddim_with(process, DdimSettings::new(eta), denoiser, x_t_last, noise)
}

/// [`ddim`] with all its settings; when one is impossible for this process, the first step says so.
pub fn ddim_with<'a>(
    process: &'a Process,
    settings: DdimSettings,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Walk<'a> {
    let schedule = &process.schedule;
    let check = settings.check(schedule);
    let mut noise = Noise::new(noise, settings.manner());
    let walk = Walk::down(process, x_t_last, move |x_t, t| {
        let answer = process.ask(denoiser, x_t, t)?;
        let x_0_hat = process.x_0_hat(x_t, &answer)?;
        let eps = match settings.direction {
            Direction::AsPredicted => process.eps_hat(x_t, &answer)?,
            Direction::FromClipped => eps_from_x_0(schedule, x_t, &answer.t, &x_0_hat)?,
        };
        let variance = settings.variance(schedule, t);
        let mean = towards(settings.level_after(schedule, t), variance, &x_0_hat, &eps)?;
        let x = noise.around(mean, variance.sqrt())?;
        Ok(Moved { x, x_0_hat })
    });
    walk.provided(check)
}

/// sqrt(alpha-bar) x_0-hat + sqrt(1 - alpha-bar - sigma^2) eps, the mean of equation 12 of Song et al. 2021 at the level alpha-bar.
pub(crate) fn towards(
    alpha_bar: f64,
    variance: f64,
    x_0_hat: &Tensor,
    eps: &Tensor,
) -> Result<Tensor> {
    // sigma^2 is never above 1 - alpha-bar, but may round to above it.
    let direction = (1.0 - alpha_bar - variance).max(0.0).sqrt();
    Ok(((x_0_hat * alpha_bar.sqrt())? + (eps * direction)?)?)
}

impl DdimSettings {
    /// Whose account is followed; with eta = 0 even diffusers draws nothing.
    pub(crate) fn manner(&self) -> Manner {
        match (&self.landing, self.eta) {
            (Landing::NextStep, _) | (_, 0.0) => Manner::Paper,
            _ => Manner::Diffusers,
        }
    }

    /// sigma_t^2 (equation 16 of Song et al. 2021), eta^2 times beta-tilde_t:
    /// (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) (1 - alpha-bar_t / alpha-bar_{t-1}).
    /// Never negative, because [`DdimSettings::check`] asks that alpha-bar_{t-1} is at least alpha-bar_t.
    pub(crate) fn variance(&self, schedule: &Schedule, t: Timestep) -> f64 {
        let (before, after) = (schedule.alpha_bar(t), self.level_after(schedule, t));
        self.eta.powi(2) * ((1.0 - after) / (1.0 - before) * (1.0 - before / after))
    }

    /// alpha-bar_{t-1} of the equations: the level that step t of `schedule` goes down to; NaN where a stride finds none.
    pub(crate) fn level_after(&self, schedule: &Schedule, t: Timestep) -> f64 {
        match &self.landing {
            Landing::NextStep => t
                .previous()
                .map_or(self.alpha_bar_end, |t| schedule.alpha_bar(t)),
            Landing::Stride { training, stride } => {
                let time = schedule.network_time(t) as usize;
                time.checked_sub(stride.get())
                    .map_or(self.alpha_bar_end, |time| {
                        let t = training.timestep_at_network_time(time);
                        t.map_or(f64::NAN, |t| training.alpha_bar(t))
                    })
            }
        }
    }

    /// Fails when a step of a walk over `schedule` would add noise on balance, or lands nowhere: no variance is right for it.
    fn check(&self, schedule: &Schedule) -> Result<()> {
        check_eta(self.eta)?;
        check_end("alpha_bar_end", self.alpha_bar_end, schedule)?;
        for t in schedule.timesteps() {
            let after = self.level_after(schedule, t);
            require(
                after > 0.0 && after >= schedule.alpha_bar(t),
                "alpha_bar where a stride lands",
                after,
                "no less than where it starts: `training` must be what the walk's schedule was respaced from",
            )?;
        }
        Ok(())
    }
}

/// Fails when eta is more noise than there can be, or less than none.
pub(crate) fn check_eta(eta: f64) -> Result<()> {
    require((0.0..=1.0).contains(&eta), "eta", eta, "a number in 0..=1")
}

/// Fails when `alpha_bar`, the clean end of a walk over `schedule`, is no level, or noisier than the walk's first step.
pub(crate) fn check_end(name: &'static str, alpha_bar: f64, schedule: &Schedule) -> Result<()> {
    let first = schedule.alpha_bar(schedule.timestep(1)?);
    let expected = if !(alpha_bar > 0.0 && alpha_bar <= 1.0) {
        "a number in (0, 1]"
    } else if alpha_bar < first {
        "at least alpha_bar at t = 1 of the walk"
    } else {
        return Ok(());
    };
    Err(Error::Setting {
        name,
        value: alpha_bar,
        expected,
    })
}

//! DDIM: equation 12 of Song, Meng and Ermon 2021, from the same network with fewer steps and as little noise as one likes.

use crate::process::{Process, Step, draw};
use crate::{Error, Result};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource, Schedule, Timestep, eps_from_x_0};

/// The settings of a DDIM walk, as diffusers' `DDIMScheduler` has them.
#[derive(Clone, Debug, PartialEq)]
pub struct DdimSettings {
    /// How much of the ancestral noise is drawn, in 0..=1: 0 is deterministic, 1 has the variance beta-tilde_t
    /// (equation 16 of Song et al. 2021).
    pub eta: f64,
    /// The noise that points back to x_t.
    pub direction: Direction,
    /// alpha-bar of the image after the last step: 1, or alpha-bar_1 of training for files with `set_alpha_to_one: false`.
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
        /// The schedule of training.
        training: Schedule,
        /// floor(T / the number of steps of the walk).
        stride: usize,
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
        let stride = (training.steps() / steps.max(1)).max(1);
        DdimSettings {
            landing: Landing::Stride {
                training: training.clone(),
                stride,
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
) -> Ddim<'a> {
    ddim_with(process, DdimSettings::new(eta), denoiser, x_t_last, noise)
}

/// [`ddim`] with all its settings.
pub fn ddim_with<'a>(
    process: &'a Process,
    settings: DdimSettings,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Ddim<'a> {
    let next = Some(process.schedule.last());
    Ddim {
        process,
        settings,
        denoiser,
        noise,
        draws: 0,
        x: x_t_last.detach(),
        next,
    }
}

/// The iterator that [`ddim`] returns.
pub struct Ddim<'a> {
    process: &'a Process,
    settings: DdimSettings,
    denoiser: &'a dyn Denoiser,
    noise: &'a mut dyn NoiseSource,
    draws: usize,
    x: Tensor,
    /// The step to do next; None when done or after an error.
    next: Option<Timestep>,
}

impl Ddim<'_> {
    fn step(&mut self, t: Timestep) -> Result<Step> {
        self.settings.check()?;
        let Process {
            schedule,
            prediction,
            clip,
        } = self.process;
        let answer = self.process.ask(self.denoiser, &self.x, t)?;
        let x_0_hat = prediction.x_0_hat(schedule, &self.x, &answer.t, &answer.output)?;
        let x_0_hat = clip.apply(&x_0_hat)?;
        let eps = match self.settings.direction {
            Direction::AsPredicted => {
                prediction.eps_hat(schedule, &self.x, &answer.t, &answer.output)?
            }
            Direction::FromClipped => eps_from_x_0(schedule, &self.x, &answer.t, &x_0_hat)?,
        };
        let alpha_bar_after = self.settings.alpha_bar_after(schedule, t);
        let variance = self.settings.eta.powi(2) * variance(schedule.alpha_bar(t), alpha_bar_after);
        let direction = (1.0 - alpha_bar_after - variance).max(0.0).sqrt();
        let mut x = ((&x_0_hat * alpha_bar_after.sqrt())? + (eps * direction)?)?;
        if variance > 0.0 {
            let z = draw(self.noise, &mut self.draws, &self.x)?;
            x = (x + (z * variance.sqrt())?)?;
        }
        self.x = x.detach();
        Ok(Step {
            t,
            time: answer.time,
            x: self.x.clone(),
            x_0_hat: x_0_hat.detach(),
        })
    }
}

impl DdimSettings {
    /// alpha-bar of the level that the step t of `schedule` goes down to.
    fn alpha_bar_after(&self, schedule: &Schedule, t: Timestep) -> f64 {
        match &self.landing {
            Landing::NextStep => t
                .previous()
                .map_or(self.alpha_bar_end, |t| schedule.alpha_bar(t)),
            Landing::Stride { training, stride } => {
                let before = (schedule.network_time(t) as usize).checked_sub(*stride);
                let before = before.and_then(|time| training.timestep_at_network_time(time));
                before.map_or(self.alpha_bar_end, |t| training.alpha_bar(t))
            }
        }
    }

    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.eta) {
            let (name, value) = ("eta", self.eta);
            return Err(Error::Setting {
                name,
                value,
                expected: "a number in 0..=1",
            });
        }
        if !(self.alpha_bar_end > 0.0 && self.alpha_bar_end <= 1.0) {
            let (name, value) = ("alpha_bar_end", self.alpha_bar_end);
            return Err(Error::Setting {
                name,
                value,
                expected: "a number in (0, 1]",
            });
        }
        Ok(())
    }
}

/// (1 - alpha-bar_{t-1}) / (1 - alpha-bar_t) (1 - alpha-bar_t / alpha-bar_{t-1}), sigma_t^2 at eta = 1: beta-tilde_t
/// (equation 16 of Song et al. 2021).
fn variance(alpha_bar: f64, alpha_bar_after: f64) -> f64 {
    (1.0 - alpha_bar_after) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_after)
}

impl Iterator for Ddim<'_> {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        let t = self.next.take()?;
        let step = self.step(t);
        if step.is_ok() {
            self.next = t.previous();
        }
        Some(step)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.next.map_or(0, Timestep::get);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Ddim<'_> {}

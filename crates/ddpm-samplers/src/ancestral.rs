//! Ancestral sampling: algorithm 2 of Ho et al. 2020, through x_0-hat.

use crate::process::Answer;
use crate::walk::{Moved, Noise};
use crate::{Manner, Process, Result, Walk};
use candle_core::Tensor;
use ddpm_core::{
    Denoiser, NoiseSource, Schedule, Timestep, Variance, log_variance_between, posterior_weights,
};

/// The settings of an ancestral walk, as diffusers' `DDPMScheduler` has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AncestralSettings {
    /// `variance_type`.
    pub variance: StepVariance,
    /// In diffusers' manner the last step draws noise too, unless it is at network time 0.
    pub manner: Manner,
}

/// The variance of the noise of each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepVariance {
    /// The same for all pixels.
    Fixed(Variance),
    /// `learned`: the second half of the network's channels is the variance.
    Learned,
    /// `learned_range`: it says where the variance lies between both fixed ones, from -1 (beta-tilde_t) to 1 (beta_t), in the logarithm
    /// (Nichol and Dhariwal 2021, equation 15).
    LearnedRange,
}

/// Walks from x_T to x_0 by x_{t-1} = mu-tilde_t(x_t, x_0-hat) + sigma_t z (algorithm 2 of Ho et al. 2020, equations 7 and 15).
///
/// One path at every step: output of the network -> x_0-hat -> clip -> posterior mean -> noise. The last step draws no noise.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn ancestral<'a>(
    process: &'a Process,
    variance: Variance,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Walk<'a> {
    let settings = AncestralSettings {
        variance: StepVariance::Fixed(variance),
        manner: Manner::Paper,
    };
    ancestral_with(process, settings, denoiser, x_t_last, noise)
}

/// [`ancestral`] with all its settings.
pub fn ancestral_with<'a>(
    process: &'a Process,
    settings: AncestralSettings,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Walk<'a> {
    let mut noise = Noise::new(noise, settings.manner);
    Walk::down(process, x_t_last, move |x_t, t| {
        let answer = process.ask(denoiser, x_t, t)?;
        let x_0_hat = process.x_0_hat(x_t, &answer)?;
        let step = Coefficients::new(&process.schedule, t, settings.manner);
        let mean = ((&x_0_hat * step.of_x_0)? + (x_t * step.of_x_t)?)?;
        let x = match settings.variance {
            _ if !settings.draws_at(&process.schedule, t) => mean,
            StepVariance::Fixed(kind) => noise.around(mean, step.variance(kind).sqrt())?,
            learned => {
                let sigma = learned_sigma(learned, &process.schedule, &answer, &step)?;
                let z = noise.draw(&mean)?;
                (mean + (z * sigma)?)?
            }
        };
        Ok(Moved { x, x_0_hat })
    })
}

impl AncestralSettings {
    /// Whether noise is drawn at step t: "z = 0" for t = 1 in algorithm 2 of Ho et al. 2020; diffusers asks for the network's time.
    fn draws_at(&self, schedule: &Schedule, t: Timestep) -> bool {
        match self.manner {
            Manner::Paper => t.previous().is_some(),
            Manner::Diffusers => schedule.network_time(t) > 0.0,
        }
    }

    /// The noise that each step draws, 1 where only the network knows.
    pub(crate) fn sigmas(&self, schedule: &Schedule) -> Vec<f64> {
        let drawing = schedule.timesteps().rev();
        let drawing = drawing.filter(|&t| self.draws_at(schedule, t));
        drawing
            .map(|t| match self.variance {
                StepVariance::Fixed(kind) => Coefficients::new(schedule, t, self.manner)
                    .variance(kind)
                    .sqrt(),
                _ => 1.0,
            })
            .collect()
    }
}

/// The numbers of one step.
struct Coefficients {
    t: Timestep,
    of_x_0: f64,
    of_x_t: f64,
    beta: f64,
    beta_tilde: f64,
    manner: Manner,
}

impl Coefficients {
    fn new(schedule: &Schedule, t: Timestep, manner: Manner) -> Self {
        match manner {
            Manner::Paper => {
                let (of_x_0, of_x_t) = posterior_weights(schedule, t);
                Coefficients {
                    t,
                    of_x_0,
                    of_x_t,
                    beta: schedule.beta(t),
                    beta_tilde: schedule.beta_tilde(t),
                    manner,
                }
            }
            Manner::Diffusers => Coefficients::in_f32(schedule, t),
        }
    }

    /// Equation 7 of Ho et al. 2020 in f32, where 1 - alpha-bar_t / alpha-bar_{t-1} has four digits: they are seen in the images.
    fn in_f32(schedule: &Schedule, t: Timestep) -> Self {
        let now = schedule.alpha_bar(t) as f32;
        let before = schedule.alpha_bar_previous(t) as f32;
        let alpha = now / before;
        let beta = 1.0 - alpha;
        let of_x_0 = before.sqrt() * beta / (1.0 - now);
        let of_x_t = alpha.sqrt() * (1.0 - before) / (1.0 - now);
        let beta_tilde = (1.0 - before) / (1.0 - now) * beta;
        Coefficients {
            t,
            of_x_0: of_x_0.into(),
            of_x_t: of_x_t.into(),
            beta: beta.into(),
            beta_tilde: beta_tilde.into(),
            manner: Manner::Diffusers,
        }
    }

    fn variance(&self, kind: Variance) -> f64 {
        match kind {
            Variance::FixedLarge => self.beta,
            _ => self.beta_tilde,
        }
    }
}

/// sigma_t for each pixel, as the network says.
fn learned_sigma(
    kind: StepVariance,
    schedule: &Schedule,
    answer: &Answer,
    step: &Coefficients,
) -> Result<Tensor> {
    let Some(said) = &answer.variance else {
        return Err(crate::Error::NoVariance);
    };
    if kind == StepVariance::Learned {
        return Ok(said.sqrt()?);
    }
    let share = ((said + 1.0)? * 0.5)?;
    let log_variance = match step.manner {
        Manner::Paper => log_variance_between(schedule, &share, &vec![step.t; answer.t.len()])?,
        Manner::Diffusers => {
            // Its stand-in for a variance of 0, which has no logarithm.
            const LEAST: f64 = 1e-20;
            let (low, high) = (step.beta_tilde.max(LEAST).ln(), step.beta.ln());
            ((share * (high - low))? + low)?
        }
    };
    let sigma = (log_variance * 0.5)?.exp()?;
    Ok(sigma.to_dtype(said.dtype())?)
}

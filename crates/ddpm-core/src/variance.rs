//! The variance of p(x_{t-1} | x_t): sigma_t^2 fixed to beta_t or beta-tilde_t, or between the two where a network says so.

use crate::mix::{check_times, in_f64, per_image};
use crate::{Result, Schedule, Timestep};
use candle_core::Tensor;

/// sigma_t^2 of the reverse process, which is not learned (section 3.2 of Ho et al. 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Variance {
    /// sigma_t^2 = beta_t, right for x_0 ~ N(0, I); Ho's choice for CIFAR-10, diffusers' `fixed_large`.
    FixedLarge,
    /// sigma_t^2 = beta-tilde_t, right for x_0 that is one point; diffusers' `fixed_small`.
    FixedSmall,
}

impl Variance {
    /// sigma_t^2, the variance of the noise that a sampling step adds. The last step, t = 1, adds none whatever this is.
    pub fn at(self, schedule: &Schedule, t: Timestep) -> f64 {
        match self {
            Variance::FixedLarge => schedule.beta(t),
            Variance::FixedSmall => schedule.beta_tilde(t),
        }
    }

    /// sigma_t^2 as the likelihood uses it: as [`Variance::at`], but beta-tilde_2 at t = 1 for both kinds, since beta-tilde_1
    /// is 0 and no density (`append(var[1], var[1:])` in the code of Ho et al. 2020). beta_1 when T = 1.
    pub fn of_likelihood(self, schedule: &Schedule, t: Timestep) -> f64 {
        match t.previous() {
            Some(_) => self.at(schedule, t),
            None => floor(schedule),
        }
    }
}

/// The variance between beta-tilde_t (v = 0) and beta_t (v = 1) that a network chose for each pixel, as a logarithm:
/// v log beta_t + (1 - v) log beta-tilde_t (Nichol and Dhariwal 2021, equation 15), with beta-tilde_2 for beta-tilde_1.
///
/// # Shapes
/// `v`: `[B, ...]`, for guided-diffusion's networks (output + 1) / 2; `t`: one for every image. Returns `[B, ...]`, f64.
///
/// # Errors
/// When `t` does not fit the batch or the schedule.
pub fn log_variance_between(schedule: &Schedule, v: &Tensor, t: &[Timestep]) -> Result<Tensor> {
    check_times(schedule, t, v)?;
    let v = in_f64(v)?;
    let low = |t| Variance::FixedSmall.of_likelihood(schedule, t).ln();
    let span = per_image(t.iter().map(|&t| schedule.beta(t).ln() - low(t)), &v)?;
    let low = per_image(t.iter().map(|&t| low(t)), &v)?;
    Ok(v.broadcast_mul(&span)?.broadcast_add(&low)?)
}

/// The smallest variance that the likelihood uses: beta-tilde_2, or beta_1 when there is no second step.
fn floor(schedule: &Schedule) -> f64 {
    let mut first_two = schedule.timesteps().take(2);
    match (first_two.next(), first_two.next()) {
        (_, Some(second)) => schedule.beta_tilde(second),
        (Some(first), None) => schedule.beta(first),
        (None, None) => f64::NAN,
    }
}

//! Ancestral sampling: algorithm 2 of Ho et al. 2020, through x_0-hat.

use crate::walk::{Moved, Noise};
use crate::{Process, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource, Schedule, Timestep, Variance, q_posterior_mean};

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
    let schedule = &process.schedule;
    let mut noise = Noise::new(noise);
    Walk::down(process, x_t_last, move |x_t, t| {
        let answer = process.ask(denoiser, x_t, t)?;
        let x_0_hat = process.x_0_hat(x_t, &answer)?;
        let mean = q_posterior_mean(schedule, &x_0_hat, x_t, &answer.t)?;
        let x = noise.around(mean, sigma(schedule, variance, t))?;
        Ok(Moved { x, x_0_hat })
    })
}

/// sigma_t, and 0 at t = 1: "z = 0" in algorithm 2 of Ho et al. 2020.
pub(crate) fn sigma(schedule: &Schedule, variance: Variance, t: Timestep) -> f64 {
    match t.previous() {
        Some(_) => variance.at(schedule, t).sqrt(),
        None => 0.0,
    }
}

//! Euler's method along the probability flow: Karras et al. 2022, algorithm 1 without its second order.

use crate::level::straight;
use crate::{Levels, Walk};
use candle_core::Tensor;
use ddpm_core::Denoiser;

/// Walks down the levels by Euler's steps of dx/dsigma = (x - x_0-hat) / sigma (equation 3 of Karras et al. 2022), x being
/// x_t / sqrt(alpha-bar_t): diffusers' `EulerDiscreteScheduler` and `EDMEulerScheduler`, without their churn.
///
/// The same as DDIM with eta = 0 over the same levels. Draws no noise.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn euler<'a>(levels: &'a Levels, denoiser: &'a dyn Denoiser, x_t_last: &Tensor) -> Walk<'a> {
    levels.walk(denoiser, x_t_last, move |x, guess, i| {
        let (from, to) = levels.step(i);
        straight(x, &guess.x_0_hat, (from, to), to.sigma() / from.sigma())
    })
}

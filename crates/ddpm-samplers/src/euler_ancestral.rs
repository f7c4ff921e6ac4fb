//! Euler's method below each level, and noise back up to it: `sample_euler_ancestral` of Crowson's k-diffusion.

use crate::level::{Level, straight};
use crate::walk::Noise;
use crate::{Levels, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource};

/// Walks down the levels by Euler's steps that overshoot to sigma_down, and adds noise of sigma_up: diffusers'
/// `EulerAncestralDiscreteScheduler`, `sample_euler_ancestral` of Crowson's k-diffusion with eta = 1.
///
/// With sigma the level of the step and sigma' the next, sigma_down = sigma'^2 / sigma and sigma_up^2 = sigma'^2 - sigma_down^2.
/// The same as DDIM with eta = 1 over the same levels. The last step draws no noise where it ends at the clean image.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn euler_ancestral<'a>(
    levels: &'a Levels,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Walk<'a> {
    let mut noise = Noise::new(noise, levels.manner());
    levels.walk(denoiser, x_t_last, move |x, guess, i| {
        let (from, to) = levels.step(i);
        let share = (to.sigma() / from.sigma()).powi(2);
        let mean = straight(x, &guess.x_0_hat, (from, to), share)?;
        noise.around(mean, to.signal * sigma_up(from, to))
    })
}

/// The noise that takes sigma_down back up to the level `to`, where the images still have variance exploding scale.
pub(crate) fn sigma_up(from: Level, to: Level) -> f64 {
    let share = to.sigma() / from.sigma();
    to.sigma() * (1.0 - share * share).max(0.0).sqrt()
}

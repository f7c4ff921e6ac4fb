//! The midpoint method below each level, and noise back up to it: `sample_dpm_2_ancestral` of Crowson's k-diffusion.

use crate::euler_ancestral::sigma_up;
use crate::kdpm2::through_middle;
use crate::level::straight;
use crate::walk::Noise;
use crate::{Levels, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, NoiseSource};

/// Walks down the levels by [`kdpm2`](crate::kdpm2)'s steps that overshoot to sigma_down, and adds noise of sigma_up, both as in
/// [`euler_ancestral`](crate::euler_ancestral): diffusers' `KDPM2AncestralDiscreteScheduler`.
///
/// Each step asks the network twice and draws noise, the last, which is Euler's, asks once and draws none.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn kdpm2_ancestral<'a>(
    levels: &'a Levels,
    denoiser: &'a dyn Denoiser,
    x_t_last: &Tensor,
    noise: &'a mut dyn NoiseSource,
) -> Walk<'a> {
    let mut noise = Noise::new(noise, levels.manner());
    levels.walk(denoiser, x_t_last, move |x, guess, i| {
        let (from, to) = levels.step(i);
        let here = (x, &guess.x_0_hat);
        match to.is_clean() {
            true => straight(x, &guess.x_0_hat, (from, to), 0.0),
            false => {
                let down = to.sigma().powi(2) / from.sigma();
                let mean = through_middle(levels, denoiser, here, (from, to), down)?;
                noise.around(mean, to.signal * sigma_up(from, to))
            }
        }
    })
}

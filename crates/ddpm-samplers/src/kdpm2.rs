//! The midpoint method along the probability flow: `sample_dpm_2` of Crowson's k-diffusion.

use crate::level::{Level, along, straight};
use crate::{Levels, Result, Walk};
use candle_core::Tensor;
use ddpm_core::Denoiser;

/// Walks down the levels by the slope in the middle of each step, at sqrt(sigma sigma'): algorithm 2 of Karras et al. 2022 with another
/// midpoint (DPM-Solver-2 of Lu et al. 2022), diffusers' `KDPM2DiscreteScheduler`, two of whose steps are one of this walk.
///
/// Each step asks the network twice, the last, which is Euler's, once. The x_0-hat of a step is that of its first slope. Draws no
/// noise.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn kdpm2<'a>(levels: &'a Levels, denoiser: &'a dyn Denoiser, x_t_last: &Tensor) -> Walk<'a> {
    levels.walk(denoiser, x_t_last, move |x, guess, i| {
        let (from, to) = levels.step(i);
        let here = (x, &guess.x_0_hat);
        match to.is_clean() {
            true => straight(x, &guess.x_0_hat, (from, to), 0.0),
            false => through_middle(levels, denoiser, here, (from, to), to.sigma()),
        }
    })
}

/// From x at the level `from` to sigma `down` along the slope at sqrt(sigma down), at the scale of the level `to`.
pub(crate) fn through_middle(
    levels: &Levels,
    denoiser: &dyn Denoiser,
    (x, x_0_hat): (&Tensor, &Tensor),
    (from, to): (Level, Level),
    down: f64,
) -> Result<Tensor> {
    let middle = Level::of_sigma((from.sigma() * down).sqrt());
    let share = middle.sigma() / from.sigma();
    let there = straight(x, x_0_hat, (from, middle), share)?;
    let time = levels.time_of(middle);
    let eps = levels
        .guess_at(denoiser, &there, (middle, to), time)?
        .eps_hat;
    along(x, &eps, (from, to), down - from.sigma())
}

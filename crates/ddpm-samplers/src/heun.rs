//! Heun's method along the probability flow: algorithm 1 of Karras et al. 2022, second order.

use crate::level::{Level, straight};
use crate::{Levels, Result, Walk};
use candle_core::Tensor;
use ddpm_core::Denoiser;

/// Walks down the levels by Heun's steps, the mean of the slopes at both ends (algorithm 1 of Karras et al. 2022): diffusers'
/// `HeunDiscreteScheduler`, two of whose steps are one of this walk.
///
/// Each step asks the network twice, the last, which is Euler's, once. The x_0-hat of a step is that of its first slope. Draws no
/// noise.
///
/// # Shapes
/// `x_t_last` (x_T, standard normal): `[B, C, H, W]`.
pub fn heun<'a>(levels: &'a Levels, denoiser: &'a dyn Denoiser, x_t_last: &Tensor) -> Walk<'a> {
    levels.walk(denoiser, x_t_last, move |x, guess, i| {
        let (from, to) = levels.step(i);
        let x_0_hat = &guess.x_0_hat;
        let there = straight(x, x_0_hat, (from, to), to.sigma() / from.sigma())?;
        match i + 1 == levels.steps() {
            true => Ok(there),
            false => {
                let x_0_there = levels.guess(denoiser, &there, i + 1)?.x_0_hat;
                mean_of_slopes((x, x_0_hat, from), (&there, &x_0_there, to))
            }
        }
    })
}

/// Images, x_0-hat and level at one end of a step.
type Place<'a> = (&'a Tensor, &'a Tensor, Level);

/// x'/signal' = x/signal + (sigma' - sigma) (d + d') / 2 with the slopes d = (x/signal - x_0-hat) / sigma at both ends.
fn mean_of_slopes(here: Place, there: Place) -> Result<Tensor> {
    let half = 0.5 * (there.2.sigma() - here.2.sigma());
    let slope = |(x, x_0_hat, level): Place| -> Result<Tensor> {
        Ok((((x / level.signal)? - x_0_hat)? * (half / level.sigma()))?)
    };
    let (x, _, from) = here;
    let moved = (((x / from.signal)? + slope(here)?)? + slope(there)?)?;
    Ok((moved * there.2.signal)?)
}

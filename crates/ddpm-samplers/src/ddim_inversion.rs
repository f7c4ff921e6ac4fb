//! DDIM backwards: from an image to the x_T that DDIM with eta = 0 would turn into it.

use crate::ddim::{check_end, towards};
use crate::walk::Moved;
use crate::{DdimSettings, Process, Walk};
use candle_core::Tensor;
use ddpm_core::{Denoiser, Prediction};

/// Walks from x_0 to x_T by equation 12 of Song et al. 2021 with sigma = 0, solved for x_t with the noise of x_{t-1}
/// (section 4.3 there).
///
/// The network sees x_{t-1} with the time of t, as diffusers' `DDIMInverseScheduler` does; the noise in its answer is
/// read at the level of x_{t-1} for v, as there, and at the level of t for x_0 and posterior means, since a clean image holds
/// no noise to tell. More steps make the way back more exact; clipping makes it less so.
///
/// # Shapes
/// `x_0`: `[B, C, H, W]`.
pub fn ddim_inversion<'a>(
    process: &'a Process,
    denoiser: &'a dyn Denoiser,
    x_0: &Tensor,
) -> Walk<'a> {
    ddim_inversion_with(process, 1.0, denoiser, x_0)
}

/// [`ddim_inversion`] from images at the level `alpha_bar_start`, at most 1 and at least alpha-bar_1 of the walk: the
/// counterpart of [`DdimSettings::alpha_bar_end`](crate::DdimSettings::alpha_bar_end).
pub fn ddim_inversion_with<'a>(
    process: &'a Process,
    alpha_bar_start: f64,
    denoiser: &'a dyn Denoiser,
    x_0: &Tensor,
) -> Walk<'a> {
    let mut settings = DdimSettings::new(0.0);
    settings.alpha_bar_end = alpha_bar_start;
    ddim_inversion_of(process, settings, denoiser, x_0)
}

/// The way back of a [`ddim_with`](crate::ddim_with) walk with these settings, of which eta and direction mean nothing here.
pub fn ddim_inversion_of<'a>(
    process: &'a Process,
    settings: DdimSettings,
    denoiser: &'a dyn Denoiser,
    x_0: &Tensor,
) -> Walk<'a> {
    let schedule = &process.schedule;
    let check = check_end("alpha_bar_start", settings.alpha_bar_end, schedule);
    let walk = Walk::up(process, x_0, move |x, t| {
        let answer = process.ask(denoiser, x, t)?;
        let before = settings.level_after(schedule, t);
        let (signal, noise) = (before.sqrt(), (1.0 - before).sqrt());
        let eps = match process.prediction {
            Prediction::Velocity => ((&answer.output * signal)? + (x * noise)?)?,
            _ => process.eps_hat(x, &answer)?,
        };
        // Equation 4 of Ho et al. 2020 at the level of x_{t-1}, solved for x_0.
        let x_0_hat = ((x - (&eps * noise)?)? / signal)?;
        let x_0_hat = process.clip.apply(&x_0_hat)?;
        let x = towards(schedule.alpha_bar(t), 0.0, &x_0_hat, &eps)?;
        Ok(Moved { x, x_0_hat })
    });
    walk.provided(check)
}
